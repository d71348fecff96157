"""Learning against the flow: does the flow, run back, pass through the posteriors of less data?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.spatial.distance import cdist

from ..core.batching import progress, quiet
from ..core.checks import check_choice, check_count, check_inputs
from ..field.draws import Draws, largest
from ..model.bound import bind
from ..posterior import Posterior, predict
from .distances import (
    gaussians,
    generator,
    permutation_test,
    root_distance,
    thinned,
    wasserstein_squared,
)


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
    times, by_time = _times(learning)
    count, most = check_count(num_bootstrap, "num_bootstrap", 10), check_count(max_samples, "max_samples", 8)
    tests = check_count(num_permutations, "num_permutations", 0)
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    x = check_inputs(x)
    rng = generator(key)
    with quiet(not progress_bar):
        laws = _laws(by_time, flow, x, most, progress_bar)
        weights = {n: np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), size=count)])
                   for n in sorted({len(law) for law in (*laws.stages, *laws.scales)})}
        replicates, p_value = _pairs(laws.stages, laws.scales, weights, distance, tests, rng)
    squared, resampled = _unbiased(replicates, distance)
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
            "best_p_value": (one, p_value[nearest, np.arange(len(laws.cutoffs))]),
        },
        coords={"time": times, "cutoff": laws.cutoffs},
        attrs={"distance": distance, "level": level, "num_points": laws.stages[0].shape[1]},
    )


def _times(learning: Any) -> tuple[np.ndarray, dict[float, Posterior]]:
    """Times in order, and the posterior at each."""
    if not isinstance(learning, Mapping) or len(learning) < 2:
        raise ValueError("learning must be a dict of two or more times to Posteriors, such as an ensemble's history")
    by_time = {float(t): p for t, p in learning.items()}
    times = np.array(sorted(float(t) for t in learning))
    if not np.isfinite(times).all() or times[0] < 0 or (np.diff(times) == 0).any():
        raise ValueError(f"times must be distinct finite numbers of at least 0, got {times.tolist()}")
    return times, by_time


class _Laws(NamedTuple):
    """Nearly independent draws (sample, mesh) of φ at each time of learning and at each scale of the flow."""

    stages: list[np.ndarray]
    scales: list[np.ndarray]
    cutoffs: np.ndarray


def _laws(by_time: dict[float, Posterior], flow: Any, x: Any, most: int, show: bool) -> _Laws:
    bound = bind(flow.model, x)
    stages = [independent_draws(bound.gauged(np.asarray(predict(flow.model, p, x, progress_bar=show)), x), p, most)
              for _, p in sorted(by_time.items())]
    along = flow.predict(x).transpose("cutoff", "chain", "draw", "point", "output")
    drawn = flow.posterior  # of a flow that was resampled the draws are not independent, even if the posterior's are
    if not along.attrs.get("independent", True):
        drawn = drawn.replace(stats={**drawn.stats, "independent": False})
    scales = [independent_draws(bound.gauged(phi, x), drawn, most) for phi in along.values]
    for name, laws in (("learning", stages), ("flow", scales)):
        for law in laws:
            bad = int((~(np.abs(law) <= largest(2)).all(axis=1)).sum())
            if len(law) < 8 or bad:
                raise ValueError(f"a law of {name} has {len(law)} nearly independent draws, {bad} of them not finite "
                                 "(or their squares are not); at least 8 finite ones are needed")
    return _Laws(stages, scales, np.asarray(along["cutoff"].values, float))


def _unbiased(replicates: np.ndarray, distance: str) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances without their bias of first order, and resampled ones about them."""
    raw, resampled = replicates[0], replicates[1:]
    # The resamples' own bias is that of the estimate once more, so it tells what to take off.
    squared = raw if distance == "energy" else 2 * raw - resampled.mean(axis=0)
    return squared, resampled + (squared - resampled.mean(axis=0))


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
