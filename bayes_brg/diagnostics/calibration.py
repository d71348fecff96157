"""Simulation-based calibration: does a method return the posterior, on average over data from the model?"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy import stats

from ..core.batching import progress, quiet
from ..core.checks import check_count, check_inputs, check_key, check_positive, num_points
from ..core.keys import name_key
from ..field.draws import autocorrelation_time
from ..model.bound import BoundModel, bind, is_factor
from ..posterior import Posterior, check_proper

__all__ = ["SBC", "sbc"]

SIMULATIONS_AT_ONCE = 16


@dataclass(frozen=True)
class SBC:
    """Ranks of true values among posterior draws, and whether they are uniform; made by `sbc`.

    Attributes
    ----------
    passed : bool
        Whether every quantity's p-value is above ``failure_rate`` divided by the number of quantities.
    failure_rate : float
        The chance that a right method fails, whatever the number of quantities (Bonferroni).
    dataset : xarray.Dataset
        ``rank`` (simulation, quantity), 0 … num_draws; ``p_value`` (quantity), of a χ² test of uniformity;
        ``shift`` (quantity), the mean normalised rank less ½ in standard errors: draws too low or too high;
        ``spread`` (quantity), the variance of normalised ranks relative to a uniform one's, less 1, in standard
        errors: above 0, draws too narrow; below, too wide; ``ess`` (simulation), the smallest effective number of
        draws that the ranks rest on.
    """

    passed: bool
    failure_rate: float
    dataset: xr.Dataset

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        d = self.dataset
        lines = [f"{'passed' if self.passed else 'FAILED'}: {d.sizes['simulation']} simulations, ranks among "
                 f"{d.attrs['num_draws']} draws; a right method fails with probability {self.failure_rate:g}",
                 f"  {'quantity':22s}{'p':>10s}{'shift':>9s}{'spread':>9s}   (standard errors)"]
        for q in d["quantity"].values:
            one = d.sel(quantity=q)
            lines.append(f"  {q:22s}{float(one['p_value']):10.3g}{float(one['shift']):9.1f}{float(one['spread']):9.1f}")
        return "\n".join(lines)

    def plot(self, ax=None):
        """Distribution functions of the ranks; see `plots.rank_uniformity`."""
        from .. import plots
        return plots.rank_uniformity(self, ax=ax)


def _quantities(bound: BoundModel, sites: tuple[str, ...], params: dict, points: Any, x: Any, y: Any) -> jax.Array:
    """φ at the points (outputs fastest), the log joint, and the entries of `sites`."""
    phi = bound.gauged(bound.phi(params, points), points)
    return jnp.concatenate([phi.ravel(), bound.log_joint(params, x, y)[None], *(params[s].ravel() for s in sites)])


@partial(jax.jit, static_argnums=(0, 1))
def _simulate(bound: BoundModel, sites: tuple[str, ...], key: jax.Array, points: Any, x: Any
              ) -> tuple[dict, jax.Array, jax.Array]:
    """Parameters from the prior, data from them, and the true quantities."""
    params = bound.draw_prior(name_key(key, "truth"), x)
    y = bound.distribution(params, x).sample(name_key(key, "data"))
    return params, y, _quantities(bound, sites, params, points, x, y)


@partial(jax.jit, static_argnums=(0, 1))
def _measure(bound: BoundModel, sites: tuple[str, ...], draws: dict, points: Any, x: Any, y: Any) -> jax.Array:
    return jax.lax.map(lambda p: _quantities(bound, sites, p, points, x, y), draws)


def _thin(samples: dict, count: int) -> dict:
    """`count` draws of (chain, draw, ...) samples, evenly spaced through the chains, as (count, ...)."""
    first = next(iter(samples.values()))
    total = first.shape[0] * first.shape[1]
    if total < count:
        raise ValueError(f"infer returned {total} draws but num_draws is {count}; draw more, or pass a smaller "
                         "num_draws")
    keep = np.floor((np.arange(count) + 0.5) * total / count).astype(int)
    return {s: v.reshape(total, *v.shape[2:])[keep] for s, v in samples.items()}


def sbc(model, x, infer: Callable, *, key, num_simulations: int = 200, num_draws: int = 63, points: Any = None,
        sites: Sequence[str] = (), vectorized: bool = False, num_bins: int | None = None, failure_rate: float = 1e-3,
        progress_bar: bool = True) -> SBC:
    """Simulation-based calibration of an inference method.

    Parameters are drawn from the prior and data from them; if `infer` returns draws of the posterior, the rank of the
    true value of any quantity among them is uniform on 0 … num_draws. The quantities are φ at a few points and the
    log joint density of parameters and data, which sees a method that ignores the data, as φ alone would not.

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model with a proper prior.
    x : array (n, dim)
        Inputs at which data are simulated.
    infer : callable
        ``infer(model, x, y, key) -> Posterior``, such as
        ``lambda model, x, y, key: brg.nuts(model, x, y, key=key, num_samples=200)``, or one that takes ``key`` by
        keyword alone, such as ``functools.partial(brg.nuts, num_samples=200)``.
    key : jax.random.key
    num_simulations : int
        At least 50.
    num_draws : int
        Draws that each rank is taken among, evenly spaced in what `infer` returns. They should be nearly
        independent: correlated ones make the ranks of a right method heap up at both ends.
    points : array (m, dim), optional
        Inputs of φ; default: the first, middle and last of `x`.
    sites : sequence of str
        Sites whose every entry is a quantity too, such as noise and scales that are learned.
    vectorized : bool
        Whether `infer` can be traced by JAX, as exact methods often can: simulations then run together, compiled.
        It may return a dict of site to draws (draw, *site shape) instead of a `Posterior`.
    num_bins : int, optional
        Of the χ² test; default one for every 20 simulations, at most 20.
    failure_rate : float
        The chance that a right method fails, over all quantities together.
    progress_bar : bool

    Returns
    -------
    SBC

    Raises
    ------
    ValueError
        For an improper prior, a model with `numpyro.factor` (whose prior draws are not draws of its prior), or too
        few draws.

    References
    ----------
    .. [1] Talts, Betancourt, Simpson, Vehtari and Gelman, arXiv:1804.06788.
    .. [2] Modrák et al., Bayesian Analysis 20 (2025) 461, arXiv:2211.02383 (the log joint as a quantity).
    """
    key, x = check_key(key), check_inputs(x)
    count = check_count(num_simulations, "num_simulations", 50)
    draws = check_count(num_draws, "num_draws", 9)
    rate = check_positive(failure_rate, "failure_rate")
    bins = min(20, max(4, count // 20)) if num_bins is None else check_count(num_bins, "num_bins", 2)
    if bins > draws + 1 or count / bins < 5:
        raise ValueError(f"num_bins is {bins}, for {count} simulations and {draws + 1} possible ranks: a χ² test "
                         "needs five simulations a bin, and no more bins than ranks")
    bound = bind(model, x)
    check_proper(bound)
    if any(is_factor(site) for site in bound.trace({}, x).values()):
        raise ValueError("the model has a numpyro.factor, so that its prior cannot be drawn from; put the factor into "
                         "a distribution")
    n = num_points(x)
    points = jax.tree.map(lambda a: a[np.unique([0, n // 2, n - 1])], x) if points is None else \
        check_inputs(points, "points")
    keys = jax.vmap(partial(jax.random.fold_in, name_key(key, "sbc")))(jnp.arange(count))
    infer = _positional(infer)
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    names = [f"phi[{i}, {j}]" for i, j in np.ndindex(*_output_shape(bound, points))] + ["log joint"]
    names += [s + (str(list(i)) if i else "") for s in sites for i in np.ndindex(bound.site(s).shape)]
    run = _together if vectorized else _one_by_one
    with quiet(not progress_bar):
        true, drawn, ess = run(bound, sites, model, infer, keys, points, x, draws)
    if not np.isfinite(drawn).all() or not np.isfinite(true).all():
        bad = int((~np.isfinite(drawn).all(axis=(1, 2)) | ~np.isfinite(true).all(axis=1)).sum())
        raise ValueError(f"{bad} of {count} simulations gave values that are not finite; a rank among them means "
                         "nothing")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(name_key(key, "ties"))).tolist())
    equal = (drawn == true[:, None]).sum(axis=1)
    rank = (drawn < true[:, None]).sum(axis=1) + rng.integers(equal + 1)
    p_value = np.array([uniformity(r, draws, bins) for r in rank.T])
    u = (rank + 0.5) / (draws + 1) - 0.5
    # Of a uniform law on L + 1 ranks: variance (1 − 1/(L+1)²)/12; the variance of its squares is near 1/180.
    second = (1 - 1 / (draws + 1) ** 2) / 12
    shift = u.mean(axis=0) / np.sqrt(second / count)
    spread = ((u**2).mean(axis=0) - second) / np.sqrt(1 / 180 / count)
    dataset = xr.Dataset(
        {"rank": (("simulation", "quantity"), rank), "p_value": ("quantity", p_value), "shift": ("quantity", shift),
         "spread": ("quantity", spread), "ess": ("simulation", ess)},
        coords={"simulation": np.arange(count), "quantity": names},
        attrs={"num_draws": draws, "num_bins": bins, "failure_rate": rate},
    )
    return SBC(bool((p_value > rate / len(p_value)).all()), rate, dataset)


def uniformity(rank: np.ndarray, num_draws: int, num_bins: int) -> float:
    """p-value of a χ² test that ranks are uniform on 0 … num_draws; bins differ by at most one rank in width."""
    edges = np.round(np.linspace(0, num_draws + 1, num_bins + 1)).astype(int)
    observed = np.histogram(rank, edges - 0.5)[0]
    return float(stats.chisquare(observed, np.diff(edges) / (num_draws + 1) * len(rank)).pvalue)


def _output_shape(bound: BoundModel, points: Any) -> tuple[int, int]:
    shape = jax.eval_shape(lambda key: bound.phi(bound.draw_prior(key, points), points), jax.random.key(0)).shape
    return shape[0], shape[1]


def _positional(infer: Callable) -> Callable:
    """`infer` called as ``infer(model, x, y, key)``, where it takes the key by keyword alone too."""
    try:
        key = inspect.signature(infer).parameters.get("key")
    except (TypeError, ValueError):  # no signature to read
        return infer
    if key is None or key.kind is not inspect.Parameter.KEYWORD_ONLY:
        return infer
    return lambda model, x, y, key: infer(model, x, y, key=key)


def _one_by_one(bound, sites, model, infer, keys, points, x, num_draws):
    true, drawn, ess = [], [], []
    for key in progress(keys, desc="calibrate", total=len(keys), unit="simulation"):
        _, y, truth = _simulate(bound, sites, key, points, x)
        with quiet():
            posterior = infer(model, x, y, name_key(key, "infer"))
        if not isinstance(posterior, Posterior):
            raise TypeError(f"infer must return a Posterior, got {type(posterior).__name__}")
        bound.check_params(posterior.samples, "what infer returned")
        kept = _thin({s: posterior.samples[s] for s in bound.names}, num_draws)
        values = np.asarray(_measure(bound, sites, kept, points, x, y), np.float64)
        true.append(np.asarray(truth, np.float64))
        drawn.append(values)
        ess.append(num_draws / autocorrelation_time(values[None]))
    return np.stack(true), np.stack(drawn), np.array(ess)


def _together(bound, sites, model, infer, keys, points, x, num_draws):
    def one(key):
        _, y, truth = _simulate(bound, sites, key, points, x)
        found = infer(model, x, y, name_key(key, "infer"))
        samples = found.samples if isinstance(found, Posterior) else {s: jnp.asarray(v)[None] for s, v in found.items()}
        kept = _thin({s: samples[s] for s in bound.names}, num_draws)
        return truth, _measure(bound, sites, kept, points, x, y)

    run = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=min(SIMULATIONS_AT_ONCE, len(keys))))
    true, drawn = (np.asarray(a, np.float64) for a in run(keys))
    ess = np.array([num_draws / autocorrelation_time(values[None]) for values in drawn])
    return true, drawn, ess
