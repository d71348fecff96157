"""Judging posteriors by what they say: convergence in function space, scores, calibration, distances between laws.

Everything here looks at φ_θ(x), the network's output, or at predictions made from it. Weights of a network that can
be permuted or rescaled without changing the output have no convergence of their own that matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.spatial.distance import cdist

from . import arviz_bridge
from ._checks import check_choice, check_count, check_data, check_inputs
from ._compare import Comparison, compare
from ._distances import (
    Distance,
    KolmogorovSmirnov,
    adjust,
    energy_distance,
    field,
    gaussian_wasserstein,
    gaussians,
    generator,
    kolmogorov_smirnov,
    permutation_test,
    root_distance,
    thinned,
    wasserstein_squared,
)
from ._draws import Draws
from ._map import default_chunk, map_draws, progress, quiet
from ._sbc import SBC, sbc
from ._scores import Scores, loo, scores
from .model import BoundModel, bind
from .posterior import Posterior, predict, work

__all__ = [
    "SBC",
    "Comparison",
    "Convergence",
    "Distance",
    "KolmogorovSmirnov",
    "Scores",
    "adjust",
    "compare",
    "convergence",
    "energy_distance",
    "gaussian_wasserstein",
    "kolmogorov_smirnov",
    "learning_vs_flow",
    "loo",
    "sbc",
    "scores",
]


# -- convergence ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Convergence:
    """Whether draws have converged, judged in function space.

    Attributes
    ----------
    converged : bool
    reason : str
        Why, in words.
    table : pandas.DataFrame
        One row for φ and one for the loss (function space), one for each site (weight space): the worst and the
        median over entries of R-hat, bulk and tail ESS, and of the Monte-Carlo standard error in units of the
        entry's posterior standard deviation.
    dataset : xarray.Dataset
        ``rhat``, ``ess_bulk``, ``ess_tail``, ``mcse``, ``mean``, ``sd`` of φ at every (point, output), and the same
        of the loss with the prefix ``loss_``. Constant entries are NaN.
    """

    converged: bool
    reason: str
    table: pd.DataFrame
    dataset: xr.Dataset

    def __bool__(self) -> bool:
        return self.converged

    def __str__(self) -> str:
        verdict = f"converged in function space: {'yes' if self.converged else 'no'}, because {self.reason}"
        return f"{verdict}\n{self.table.to_string(float_format=lambda v: f'{v:.4g}', na_rep='-')}"


def _loss_of_draw(bound: BoundModel, params: dict, x: Any, y: Any):
    return bound.loss(params, x, y).mean()


def convergence(model, posterior: Posterior, x, y=None, *, max_rhat: float = 1.01, min_ess: float = 400.0,
                progress_bar: bool = True) -> Convergence:
    """Rank-normalised R-hat, effective sample sizes and Monte-Carlo errors of the network's output.

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model.
    posterior : Posterior
    x : array (n, dim)
        Inputs at which φ is judged.
    y : array (n, ...), optional
        Targets: the training loss (mean over points) is then judged as well.
    max_rhat : float
        The largest R-hat, over entries, that passes.
    min_ess : float
        The smallest bulk and tail ESS that passes, in draws.
    progress_bar : bool

    Returns
    -------
    Convergence

    Notes
    -----
    The verdict is about φ and the loss alone; the weight-space rows are labelled so and do not enter. Categorical
    logits are centred over classes first: a shift of all of them says nothing. R-hat compares chains with each
    other; for independent members it holds by construction and does not say that they are the posterior's.

    References
    ----------
    .. [1] Vehtari, Gelman, Simpson, Carpenter and Bürkner, Bayesian Analysis 16 (2021) 667, arXiv:1903.08008.
    """
    x = check_inputs(x)
    bound = bind(model, x)
    phi = field(bound, predict(model, posterior, x, progress_bar=progress_bar), x)
    dims = ("chain", "draw", "point", "output")
    variables = {"phi": xr.DataArray(phi, dims=dims)}
    if y is not None:
        x, y = check_data(x, y)
        draws = {s: posterior.flat()[s] for s in bound.names}
        loss = map_draws(_loss_of_draw, (bound,), draws, (x, bound.targets(y)), chunk=default_chunk(work(bound, x)))
        variables["loss"] = xr.DataArray(np.asarray(loss).reshape(phi.shape[:2]), dims=dims[:2])
    return judge(xr.Dataset(variables), posterior, max_rhat, min_ess)


def judge(data: xr.Dataset, posterior: Posterior, max_rhat: float = 1.01, min_ess: float = 400.0) -> Convergence:
    """Convergence of given draws: ``phi`` (chain, draw, point, output) and, where known, ``loss`` (chain, draw).

    `posterior` has the same chains and draws; its sites are the weight-space rows, its stats the notes.
    """
    shape = (data.sizes["chain"], data.sizes["draw"])
    draws = [data[name].transpose("chain", "draw", ...).values.reshape(*shape, -1) for name in data.data_vars]
    bad = ~np.logical_and.reduce([np.isfinite(values).all(-1) for values in draws])
    function = _measures(data)
    weights = _measures(arviz_bridge.posterior_datasets(posterior)["posterior"])
    rows = {f"{name} (function space)": _row(function, str(name)) for name in data.data_vars}
    rows |= {f"{arviz_bridge.unescape(str(name))} (weight space)": _row(weights, str(name))
             for name in weights["rhat"].data_vars}
    table = pd.DataFrame(rows).T
    found, reason = _verdict(table.iloc[:len(data.data_vars)], posterior, int(bad.sum()), max_rhat, min_ess)
    out = {k: ds["phi"] for k, ds in function.items()}
    out |= {f"loss_{k}": ds["loss"] for k, ds in function.items() if "loss" in ds}
    return Convergence(found, reason, table, xr.Dataset(out, attrs={"method": posterior.method}))


def _measures(data: xr.Dataset) -> dict[str, xr.Dataset]:
    chain = ("chain", "draw")
    data = data.astype(float)
    data = data.where(np.isfinite(data))  # NaN throughout an entry's measures
    constant = data.max(chain) == data.min(chain)
    found = {"rhat": arviz_bridge.rhat(data), "ess_bulk": arviz_bridge.ess(data),
             "ess_tail": arviz_bridge.ess(data, "tail"), "mcse": arviz_bridge.mcse(data)}
    found = {k: v.where(~constant) for k, v in found.items()}
    return found | {"mean": data.mean(chain, skipna=False), "sd": data.std(chain, ddof=1, skipna=False)}


def _row(measures: dict[str, xr.Dataset], name: str) -> dict[str, float]:
    values = {k: np.ravel(measures[k][name].values) for k in ("rhat", "ess_bulk", "ess_tail")}
    with np.errstate(divide="ignore", invalid="ignore"):
        values["mcse_per_sd"] = np.ravel(measures["mcse"][name].values / measures["sd"][name].values)
    row: dict[str, float] = {}
    for measure, v in values.items():
        v = v[np.isfinite(v)]
        worst = np.nan if not v.size else v.min() if measure.startswith("ess") else v.max()
        row |= {f"{measure}_worst": worst, f"{measure}_median": float(np.median(v)) if v.size else np.nan}
    return row


def _verdict(table: pd.DataFrame, posterior: Posterior, bad: int, max_rhat: float, min_ess: float) -> tuple[bool, str]:
    rhat = table["rhat_worst"].max(skipna=False)
    bulk, tail = table["ess_bulk_worst"].min(skipna=False), table["ess_tail_worst"].min(skipna=False)
    faults = []
    independent = bool(np.any(np.asarray(posterior.stats.get("independent", False))))
    if bad:
        faults.append(f"{bad} of {posterior.size} draws give a value that is not finite")
    elif posterior.num_chains < 2:
        faults.append("one chain cannot disagree with itself: run two or more")
    elif posterior.num_draws < 4:
        faults.append(f"chains of {posterior.num_draws} draws are too short to be judged")
    elif np.isnan(rhat):
        faults.append("the output never moves: all draws agree at every point")
    else:
        if not rhat <= max_rhat and not independent:  # of independent draws R-hat is noise about 1
            faults.append(f"the worst R-hat is {rhat:.3f}, above {max_rhat:g}")
        for name, ess in (("bulk", bulk), ("tail", tail)):
            if not ess >= min_ess:
                faults.append(f"the smallest {name} ESS is {ess:.0f} of {posterior.size} draws, below {min_ess:g}")
    notes = []
    jumps = int(np.sum(np.asarray(posterior.stats.get("diverging", 0))))
    if jumps:
        notes.append(f"{jumps} transitions diverged, so that parts of the posterior may be missing")
    if independent:
        notes.append("of independent draws this does not say whether they are the posterior's")
    mixed = "draws are independent" if independent else f"the worst R-hat is {rhat:.3f} (at most {max_rhat:g})"
    reason = "; ".join(faults) if faults else (f"{mixed} and the smallest ESS is {min(bulk, tail):.0f} (at least "
                                               f"{min_ess:g})")
    return not faults, reason + "".join(f". Note: {n}" for n in notes)


# -- learning against the flow --------------------------------------------------------------------------------
def independent_draws(phi: Any, posterior: Posterior, most: int | None = None) -> np.ndarray:
    """Nearly independent draws (sample, mesh) of φ (chain, draw, point, output)."""
    values = np.asarray(phi, dtype=np.float64)
    values = values.reshape(*values.shape[:2], -1)
    known = posterior.stats.get("independent", False)
    return thinned(Draws(values[None], None, None, not np.all(known)), most)


def learning_vs_flow(learning: Mapping[float, Posterior], flow: Any, x, *, distance: str = "wasserstein",
                     key: Any = None, num_bootstrap: int = 100, num_permutations: int = 199, max_samples: int = 500,
                     level: float = 0.9, progress_bar: bool = True) -> xr.Dataset:
    """How far each stage of learning is from each scale of the flow, and which stage matches a scale best.

    Parameters
    ----------
    learning : dict of number to Posterior
        Time, or amount of data, to the posterior there: an ensemble's ``history``, or tempered posteriors.
    flow : Flow
    x : array (n, dim)
        Mesh on which the laws of φ are compared. The cost of "wasserstein" grows with its size to the third power.
    distance : {"wasserstein", "energy"}
        `gaussian_wasserstein`, which sees mean and covariance, or `energy_distance`, which sees everything.
    key : jax.random.key, optional
        Of bootstrap and permutations; left out, a fixed one.
    num_bootstrap : int
        Resamples of the draws, for all errors.
    num_permutations : int
        Of the energy-distance test of each pair; 0 leaves the tests out.
    max_samples : int
        Draws used of each law.
    level : float
        Probability of the interval of the best match.
    progress_bar : bool

    Returns
    -------
    xarray.Dataset
        ``distance``, ``distance_error`` (time, cutoff), in units of φ; ``squared``, free of bias to first order;
        ``p_value`` (time, cutoff) of the hypothesis that the two laws are equal, always by the energy distance.
        ``best_time`` t*(Λ) (cutoff), with ``best_time_error``, ``best_time_lower``, ``best_time_upper``;
        ``at_edge`` (cutoff): the nearest law is the first or last given, so that t* is a bound and no match;
        ``best_distance`` (cutoff), the distance there, with ``best_distance_error``, and ``best_p_value``, that of
        the nearest time given. Λ is in units of the metric's stiffness, t in the units of the keys.

    Raises
    ------
    ValueError
        For fewer than two times, times that are not numbers of at least 0, or options that are unknown.

    Notes
    -----
    t*(Λ) minimises a cubic fitted to the squared distances at the five times about the nearest, in log(1 + t/t₁) with
    t₁ the smallest time above 0, between that time's neighbours. Its error is the spread over bootstrap resamples; laws
    with the same number of draws are resampled together, so that members they share are accounted for. With times in
    ratios of 1.6 and 400 draws the error was found right to a few tenths of itself, the fit's own bias below a third
    of it. Where laws share members, p-values are conservative. For a conjugate Gaussian model and the un-learning
    regulator t*(Λ) = 1/Λ (theory §2).
    """
    check_choice(distance, "distance", ("wasserstein", "energy"))
    if not isinstance(learning, Mapping) or len(learning) < 2:
        raise ValueError("learning must be a dict of two or more times to Posteriors, such as an ensemble's history")
    times = np.array(sorted(float(t) for t in learning))
    if not np.isfinite(times).all() or times[0] < 0 or (np.diff(times) == 0).any():
        raise ValueError(f"times must be distinct finite numbers of at least 0, got {times.tolist()}")
    count, most = check_count(num_bootstrap, "num_bootstrap", 10), check_count(max_samples, "max_samples", 8)
    tests = check_count(num_permutations, "num_permutations", 0)
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    x = check_inputs(x)
    rng = generator(key)
    bound = bind(flow.model, x)
    by_time = {float(t): p for t, p in learning.items()}
    with quiet(not progress_bar):
        stages = [independent_draws(field(bound, predict(flow.model, by_time[t], x, progress_bar=progress_bar), x),
                                    by_time[t], most) for t in times]
        along = flow.predict(x)
        cutoffs = np.asarray(along["cutoff"].values, float)
        scales = [independent_draws(field(bound, along.isel(cutoff=i).transpose("chain", "draw", "point", "output"), x),
                                    flow.posterior, most) for i in range(len(cutoffs))]
        for name, laws in (("learning", stages), ("flow", scales)):
            for law in laws:
                if len(law) < 8 or not np.isfinite(law).all():
                    raise ValueError(f"a law of {name} has {len(law)} nearly independent draws, "
                                     f"{int((~np.isfinite(law).all(axis=1)).sum())} of them not finite; at least 8 "
                                     "finite ones are needed")
        weights: dict[int, np.ndarray] = {}
        for n in sorted({len(law) for law in (*stages, *scales)}):
            weights[n] = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), size=count)])
        replicates, p_value = _pairs(stages, scales, weights, distance, tests, rng)
    # The resamples' own bias is that of the estimate once more, so it tells what to take off.
    raw, resampled = replicates[0], replicates[1:]
    squared = raw if distance == "energy" else 2 * raw - resampled.mean(axis=0)
    resampled = resampled + (squared - resampled.mean(axis=0))
    value, error = root_distance(squared, resampled.std(axis=0, ddof=1))
    best, depth, edge = _best_match(times, np.concatenate([squared[None], resampled]))
    best_distance, best_error = root_distance(depth[0], depth[1:].std(axis=0, ddof=1))
    lower, upper = np.quantile(best[1:], [(1 - level) / 2, (1 + level) / 2], axis=0)
    nearest = np.argmin(squared, axis=0)
    pair, one = ("time", "cutoff"), ("cutoff",)
    return xr.Dataset(
        {
            "distance": (pair, value), "distance_error": (pair, error), "squared": (pair, squared),
            "p_value": (pair, p_value), "best_time": (one, best[0]),
            "best_time_error": (one, best[1:].std(axis=0, ddof=1)), "best_time_lower": (one, lower),
            "best_time_upper": (one, upper), "at_edge": (one, edge), "best_distance": (one, best_distance),
            "best_distance_error": (one, best_error),
            "best_p_value": (one, p_value[nearest, np.arange(len(cutoffs))]),
        },
        coords={"time": times, "cutoff": cutoffs},
        attrs={"distance": distance, "level": level, "num_points": stages[0].shape[1]},
    )


def _pairs(stages: list[np.ndarray], scales: list[np.ndarray], weights: dict[int, np.ndarray], distance: str,
           tests: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances (replicate, time, cutoff), all draws first, and p-values (time, cutoff)."""
    rows = len(next(iter(weights.values())))
    squared = np.empty((rows, len(stages), len(scales)))
    p_value = np.full(squared.shape[1:], np.nan)
    if distance == "wasserstein":
        left, right = ([gaussians(law, weights[len(law)]) for law in laws] for laws in (stages, scales))
        for i, a in enumerate(left):
            for j, b in enumerate(right):
                squared[:, i, j] = wasserstein_squared(a, b)
        if not tests:
            return squared, p_value

    def within(law: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n, w = len(law), weights[len(law)]
        distances = cdist(law, law)
        return distances, ((w @ distances) * w).sum(axis=1) / (n * (n - 1))

    inside = [within(law) for law in scales]
    for i, stage in enumerate(progress(stages, desc="learning against the flow", total=len(stages))):
        own, spread = within(stage)
        for j, scale in enumerate(scales):
            other, other_spread = inside[j]
            cross = cdist(stage, scale)
            if distance == "energy":
                n, m = cross.shape
                between = ((weights[n] @ cross) * weights[m]).sum(axis=1) / (n * m)
                squared[:, i, j] = 2 * between - spread - other_spread
            if tests:
                pooled = np.block([[own, cross], [cross.T, other]])
                p_value[i, j] = permutation_test(pooled, len(stage), rng, tests)[1]
    return squared, p_value


def _best_match(times: np.ndarray, squared: np.ndarray, grid: int = 161) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Time of least squared distance (replicate, cutoff), its depth, and whether the estimate is at an end.

    The distance to each law has a noise of its own: a cubic fitted to five times is steadier than a curve through all.
    """
    unit = times[times > 0][0]
    u = np.log1p(times / unit)
    near = np.argmin(squared, axis=1)  # (replicate, cutoff)
    # Beyond an end nothing is known, so that the nearest law being the first or last leaves a bound.
    edge = (near == 0) | (near == len(u) - 1)
    best = times[near].astype(float)
    depth = np.take_along_axis(squared, near[:, None], axis=1)[:, 0]
    width = min(5, len(u))
    for k in np.unique(near[~edge]):
        start = int(np.clip(k - width // 2, 0, len(u) - width))
        window = slice(start, start + width)
        degree = min(3, width - 1)
        fit = np.linalg.pinv(np.vander(u[window] - u[k], degree + 1))
        fine = np.linspace(u[k - 1], u[k + 1], grid)
        rows, columns = np.nonzero((near == k) & ~edge)
        curve = squared[rows, window, columns] @ fit.T @ np.vander(fine - u[k], degree + 1).T
        chosen = np.argmin(curve, axis=1)
        best[rows, columns] = unit * np.expm1(fine[chosen])
        depth[rows, columns] = curve[np.arange(len(curve)), chosen]
    return best, depth, edge[0]
