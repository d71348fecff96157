"""Advice on training an ensemble: how large a learning rate the curvature allows, and when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.batching import as_chains, map_draws
from ..core.checks import check_choice, check_count, check_data
from ..core.keys import name_key
from ..metric.fisher import fisher
from ..metric.geometry import Geometry
from ..metric.output_fisher import Data, Estimator
from ..model.bound import BoundModel, Params, bind
from ..model.distributions import unwrap
from ..posterior import Posterior, draw_prior, mean_loss
from .target import checked, trained_sites

__all__ = ["LearningRate", "early_stopped", "learning_rate"]


@dataclass(frozen=True)
class LearningRate:
    """What `learning_rate` found.

    Attributes
    ----------
    suggested : float
        Half of the smallest stable rate over the members looked at, in units of θ²/loss.
    stable : array (members,)
        The largest rate at which descent from each member's start does not grow, to second order about it.
    optimizer : str
    """

    suggested: float
    stable: np.ndarray
    optimizer: str

    def __str__(self) -> str:
        return (f"learning rate {self.suggested:.3g} for {self.optimizer}: half of the smallest stable one of "
                f"{len(self.stable)} members, which have {self.stable.min():.3g} to {self.stable.max():.3g}")


def learning_rate(model, x, y, *, key, optimizer: str = "sgd", train: str | Sequence[str] = "readout",
                  num_members: int = 8) -> LearningRate:
    """Advise on a learning rate for `ensemble`, from the curvature of its loss at prior draws.

    Full batch: the mean loss has the Gauss–Newton matrix G, and θ ← θ − η∇ is stable for η < 2/λ_max(G); for
    (y − φ)² with noise s that is 1/(s² λ_max(I)), I the Fisher metric. Per sample: η < 2/max_i |G_i|, G_i of one datum,
    which suffices for every order of the data; larger rates may do. On a linear readout both hold all along training,
    elsewhere at its start.

    Parameters
    ----------
    model, x, y, key, train
        As in `ensemble`.
    optimizer : {"sgd", "gd"}
    num_members : int
        Prior draws to look at.

    Returns
    -------
    LearningRate
        ``str`` of it says what it means.

    Raises
    ------
    ValueError
        For Adam, whose steps have the size of its rate whatever the curvature, and as in `ensemble`.
    """
    if optimizer == "adam":
        raise ValueError("Adam divides by the size of the gradient, so the curvature sets no rate for it; 1e-2 to 1e-3 "
                         "is usual. Ask for optimizer='sgd' or 'gd'")
    check_choice(optimizer, "optimizer", ("sgd", "gd"))
    bound, x, y, key = checked(model, x, y, key)
    count, sites = check_count(num_members, "num_members"), trained_sites(bound, train)
    draws = draw_prior(bound, name_key(name_key(key, "ensemble"), "init"), x, count)
    stable = stable_rates(bound, draws, x, optimizer, sites)
    return LearningRate(float(stable.min() / 2), stable, optimizer)


ADAM_RATE = 0.01  # of a step in Adam, whatever the curvature
LOOKED_AT = 8  # members whose curvature sets a rate


def curvature_rate(bound: BoundModel, draws: Params, x: Any, optimizer: str, sites: tuple[str, ...]) -> float:
    """The rate an ensemble takes by default: half of the smallest stable one at its first starts."""
    if optimizer == "adam":
        return ADAM_RATE
    few = jax.tree.map(lambda a: a[:LOOKED_AT], draws)
    return float(stable_rates(bound, few, x, optimizer, sites).min() / 2)


def stable_rates(bound: BoundModel, draws: Params, x: Any, optimizer: str, sites: tuple[str, ...]) -> np.ndarray:
    """The largest stable rate at each draw, leading axis T."""
    # G = factor · I: the square (y − φ)² has second derivative 2 where −log p has 1/s².
    factor = np.asarray(map_draws(_square_factor, (bound,), draws, (x,)))
    if optimizer == "gd":
        metric = fisher(bound.fn, Posterior({s: v[None] for s, v in draws.items()}), x, kind="full", sites=sites,
                        coordinates="unconstrained", progress_bar=False)
        top = np.asarray(metric.eigenvalues)[0, :, 0]
    else:
        top = np.asarray(map_draws(_steepest_one, (bound, sites), draws, (x,), chunk=1))
    with np.errstate(divide="ignore"):
        return 2 / (factor * top)


def _square_factor(bound: BoundModel, params: Params, x) -> jax.Array:
    """2s² where the loss is (y − φ)², the largest s over data; 1 where it is −log p."""
    if not bound.squared(params, x):
        return jnp.ones(())
    return 2 * jnp.max(jnp.asarray(unwrap(bound.distribution(params, x)).scale)) ** 2


def _steepest_one(bound: BoundModel, sites: tuple[str, ...], params: Params, x) -> jax.Array:
    """max_i λ_max of the Fisher matrix of one datum."""
    geometry = Geometry(bound, sites, Estimator(), coordinates="unconstrained", batch=1)
    batches, _ = geometry.batches(Data(x))

    def one(batch):
        rows = geometry.rows(params, batch, None, sites)
        flat = jnp.concatenate([r[0].reshape(r.shape[1], -1) for r in rows.values()], axis=1)
        return jnp.linalg.eigvalsh(flat @ flat.T)[-1]

    return jnp.max(jax.lax.map(one, batches))


def early_stopped(model, ensemble: Posterior, x, y) -> Posterior:
    """Each member of an ensemble at the recorded epoch of its lowest held-out loss.

    Record epochs while training, ``brg.ensemble(..., record=range(0, 1001, 50))``; in closed form they cost little.

    Parameters
    ----------
    model : callable
        That of the ensemble.
    ensemble : Posterior
        With a `history`; its last epoch is a candidate too.
    x, y : array
        Held-out data (n, dim) and targets.

    Returns
    -------
    Posterior
        ``stats``: ``stopped_epoch`` (chain, draw), the last one as −1 where training ended best; ``held_out_loss``,
        the lowest, mean over points; ``log_joint`` at that epoch, and ``independent`` as it was. ``diverged`` marks a
        member that is finite at no epoch, which stays as it is; one that diverged after its best epoch does not count.

    Raises
    ------
    ValueError
        If the ensemble has no history.
    """
    if not ensemble.history:
        raise ValueError(f"this posterior ({ensemble.method}) has no recorded epochs to choose from; pass "
                         "record=range(0, num_epochs, ...) to brg.ensemble")
    x, y = check_data(x, y)
    bound = bind(model, x)
    y = bound.targets(y)
    epochs = np.array([*ensemble.history, -1])
    stages = [*(p.flat() for p in ensemble.history.values()), ensemble.flat()]
    losses = np.stack([np.asarray(mean_loss(bound, s, x, y)) for s in stages])
    losses = np.where(np.isfinite(losses), losses, np.inf)
    best = np.where(np.isinf(losses).all(0), len(stages) - 1, losses.argmin(0))
    members = np.arange(ensemble.size)
    samples = {s: jnp.stack([stage[s] for stage in stages])[best, members] for s in ensemble.samples}
    lowest = losses[best, members]
    stats = {"independent": ensemble.stats.get("independent", False),
             "stopped_epoch": as_chains(jnp.asarray(epochs[best])), "held_out_loss": as_chains(jnp.asarray(lowest)),
             "diverged": as_chains(jnp.asarray(np.isinf(lowest)))}
    shape = (ensemble.num_chains, ensemble.num_draws)
    reports = [*(p.stats for p in ensemble.history.values()), ensemble.stats]
    if all("log_joint" in r for r in reports):
        stats["log_joint"] = jnp.stack([jnp.ravel(r["log_joint"]) for r in reports])[best, members]
    return Posterior({s: v.reshape(*shape, *v.shape[1:]) for s, v in samples.items()},
                     {k: v if k == "independent" else v.reshape(shape) for k, v in stats.items()},
                     f"{ensemble.method}, stopped early", ensemble.trained)

