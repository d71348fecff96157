"""Weights of chains that do not mix, by what each predicts of data that it did not see."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from ..io import arviz_bridge
from ..posterior import Posterior
from .scores import training_density

__all__ = ["Stacking", "stacking", "stacking_weights"]

FEWEST = 10  # draws of a chain that importance sampling can weigh


@dataclass(frozen=True)
class Stacking:
    """Weights of chains, and what they rest on.

    Attributes
    ----------
    weights : array (chain,)
        Not negative, of sum 1.
    elpd : array (chain,)
        Leave-one-out log predictive density of all data by each chain alone, nats.
    elpd_stacked, elpd_equal : float
        Of the mixture with these weights, and with equal ones: the draws as they are.
    bad_share : float
        Share of (chain, datum) whose Pareto k is too large for the estimate to be trusted.
    """

    weights: np.ndarray
    elpd: np.ndarray
    elpd_stacked: float
    elpd_equal: float
    bad_share: float

    def apply(self, posterior: Posterior) -> Posterior:
        """Draws of the mixture: as many as the posterior has, from each chain in proportion to its weight, evenly
        spaced along it and put together as one chain, since such draws have no convergence of their own."""
        if posterior.num_chains != len(self.weights):
            raise ValueError(f"the weights are those of {len(self.weights)} chains, the posterior has "
                             f"{posterior.num_chains}")
        chain, draw = _shares(self.weights, posterior.num_draws)
        samples = {s: v[chain, draw][None] for s, v in posterior.samples.items()}
        shape = (posterior.num_chains, posterior.num_draws)
        stats = {k: np.asarray(v)[chain, draw][None] if np.shape(v)[:2] == shape else v
                 for k, v in posterior.stats.items()}
        stats["stacking_weights"] = jnp.asarray(self.weights)
        return posterior.replace(samples=samples, stats=stats, method=f"{posterior.method}, stacked", history={})

    def __str__(self) -> str:
        parts = ", ".join(f"chain {i}: {w:.3f} (elpd {e:.4g})" for i, (w, e) in enumerate(zip(self.weights, self.elpd,
                                                                                            strict=True)))
        return (f"weights by leave-one-out: {parts}. elpd of the mixture {self.elpd_stacked:.4g}, with equal weights "
                f"{self.elpd_equal:.4g} nats; Pareto k too large for {100 * self.bad_share:.0f} % of the terms")


def _shares(weights: np.ndarray, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """(chain, draw) of as many draws as there are, chain k about weight k of them."""
    total = len(weights) * num_draws
    edges = np.round(np.cumsum(weights) * total).astype(int)
    counts = np.diff(edges, prepend=0)
    chain = np.repeat(np.arange(len(weights)), counts)
    draw = np.concatenate([(np.arange(c) + 0.5) * num_draws / max(c, 1) for c in counts]).astype(int)
    return chain, draw


def stacking_weights(log_density: np.ndarray, tolerance: float = 1e-10, max_steps: int = 100_000) -> np.ndarray:
    """Weights w on the simplex that maximise Σ_i log Σ_k w_k p_k(y_i), a concave problem.

    Parameters
    ----------
    log_density : array (chain, point)
        log p_k(y_i | the other data), nats.
    tolerance : float
        Bound on what is left to gain, nats: w is optimal where Σ_i p_ki / Σ_j w_j p_ji = n for each k with weight, and
        not above n for the others.
    max_steps : int

    Returns
    -------
    array (chain,)

    Notes
    -----
    By the steps w_k ← w_k · mean_i p_ki / Σ_j w_j p_ji, that is expectation-maximisation of a mixture whose components
    are known: each gains, and none leaves the simplex.
    """
    scaled = np.exp(log_density - log_density.max(axis=0))
    weights = np.full(len(scaled), 1 / len(scaled))
    for _ in range(max_steps):
        growth = np.mean(scaled / (weights @ scaled), axis=1)
        weights = weights * growth
        if log_density.shape[1] * np.log(max(growth.max(), 1.0)) < tolerance:
            break
    return weights / weights.sum()


def stacking(model, posterior: Posterior, x, y) -> Stacking:
    """Weights for chains that have not mixed, by stacking of their leave-one-out predictions [1]_.

    Where modes lie apart, the share of the draws that a mode has says which starts led there and nothing of its
    probability. The mixture of chains that predicts best what each did not see is then the better answer, and a chain
    that stands in a bad place has no weight. It is not the posterior: report that it was done.

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model.
    posterior : Posterior
        Two chains or more, each of 10 draws or more, trained on (x, y).
    x, y : arrays
        Its training data.

    Returns
    -------
    Stacking
        Its `apply` gives the draws of the mixture.

    Warns
    -----
    UserWarning
        Where Pareto k is too large for most of the terms.

    Raises
    ------
    ValueError
        For a single chain, for chains too short, for independent draws or draws without a log-likelihood.

    References
    ----------
    .. [1] Yao, Vehtari and Gelman, Stacking for non-mixing Bayesian computations, JMLR 23 (2022), arXiv:2006.12335.
    """
    if np.any(np.asarray(posterior.stats.get("independent", False))):
        raise ValueError(f"the {posterior.size} draws are independent of each other, and not chains to be "
                         "weighed")
    if posterior.num_chains < 2 or posterior.num_draws < FEWEST:
        raise ValueError(f"stacking weighs chains, two and more of {FEWEST} draws and more; got {posterior.num_chains} "
                         f"of {posterior.num_draws}")
    ll = training_density(model, posterior, x, y)[1]
    found = [arviz_bridge.loo(one[None]) for one in ll]
    density = np.stack([f["elpd"].values for f in found])
    bad = float(np.mean([f["pareto_k"].values > f.attrs["good_k"] for f in found]))
    if not np.isfinite(density).any(axis=0).all():
        raise ValueError("no chain gives some datum a leave-one-out density above zero; look for draws that are wrong")
    if bad > 0.5:
        warnings.warn(f"stacking: Pareto k is too large for {100 * bad:.0f} % of the terms, so the weights are a "
                      "guess; score data that were held out instead", UserWarning, stacklevel=2)
    density = np.where(np.isnan(density), -np.inf, density)
    weights = stacking_weights(density)
    return Stacking(weights, density.sum(axis=1), _mixed(density, weights), _mixed(density, np.ones(len(ll)) / len(ll)),
                    bad)


def _mixed(density: np.ndarray, weights: np.ndarray) -> float:
    top = density.max(axis=0)
    return float(np.sum(top + np.log(weights @ np.exp(density - top))))
