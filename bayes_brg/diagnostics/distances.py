"""Distances between the laws of a field on a mesh, from draws, with errors and p-values.

Host computations in NumPy float64. Draws come as everywhere in the package: an array (sample, point) is independent
samples; (chain, draw, point, output), or a DataArray with those dims, is Markov chains, whose errors come from blocks
of consecutive draws and whose tests are made on draws thinned until they are nearly independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from scipy import stats
from scipy.spatial.distance import cdist

from ..core.arrays import check_floats
from ..core.checks import check_choice, check_count, check_key
from ..core.jackknife import jackknife
from ..field.draws import Draws, cut, read_draws, slowest

__all__ = ["Distance", "KolmogorovSmirnov", "adjust", "energy_distance", "gaussian_wasserstein", "kolmogorov_smirnov"]

CORRECTIONS = ("holm", "bh")
JACKKNIFE_BLOCKS = 32
PERMUTATIONS_AT_ONCE = 256


@dataclass(frozen=True)
class Distance:
    """A distance between two laws.

    Attributes
    ----------
    value : float
        The distance, √max(squared, 0), in units of the field (their square root for the energy distance).
    sem : float
        Its standard error, by the delta method; where the distance is not clear of 0 this is a bound, √squared_sem/2.
    squared, squared_sem : float
        An estimate of the squared distance free of bias to first order, which may be negative, and its standard
        error. It is meant for laws that differ: at equality the squared distance has no Gaussian error, use a p-value.
    p_value : float
        Of the hypothesis that both laws are the same; NaN where no test was made.
    sizes : (int, int)
        Draws used of each.
    """

    value: float
    sem: float
    squared: float
    squared_sem: float
    p_value: float = np.nan
    sizes: tuple[int, int] = (0, 0)

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        test = "" if np.isnan(self.p_value) else f", p = {self.p_value:.3g}"
        return f"{self.value:.4g} ± {self.sem:.2g}{test} ({self.sizes[0]} and {self.sizes[1]} draws)"


@dataclass(frozen=True)
class KolmogorovSmirnov:
    """Two-sample Kolmogorov–Smirnov tests, one a mesh point.

    Attributes
    ----------
    statistic : array (mesh,)
        Largest difference of the two distribution functions.
    p_value, p_adjusted : arrays (mesh,)
        Before and after the correction for multiple testing.
    correction : str
    """

    statistic: np.ndarray
    p_value: np.ndarray
    p_adjusted: np.ndarray
    correction: str


def root_distance(squared: Any, squared_sem: Any) -> tuple[np.ndarray, np.ndarray]:
    """Distance and its standard error from the squared distance and its own."""
    squared, squared_sem = np.asarray(squared, float), np.asarray(squared_sem, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        sem = squared_sem / (2 * np.sqrt(np.maximum(squared, squared_sem)))
    return np.sqrt(np.maximum(squared, 0.0)), np.where(squared_sem == 0, 0.0, sem)


def generator(key: Any) -> np.random.Generator:
    """NumPy generator that a JAX key determines; of a fixed seed where the key is None."""
    if key is None:
        return np.random.default_rng(0)
    return np.random.default_rng(np.asarray(jax.random.key_data(check_key(key))).tolist())


# -- draws ----------------------------------------------------------------------------------------------------


def read(phi: Any, name: str) -> Draws:
    """Draws at one cutoff, at least two."""
    try:
        draws = read_draws(phi, 2, 2)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    if draws.cutoff is not None and len(draws.cutoff) > 1:
        raise ValueError(f"{name} has {len(draws.cutoff)} cutoffs; take one, phi.isel(cutoff=i)")
    return draws


def check_pair(a: Draws, b: Draws) -> None:
    """Raise unless both sides are on the same mesh."""
    if a.values.shape[-1] != b.values.shape[-1]:
        raise ValueError(f"a has {a.values.shape[-1]} mesh points (points times outputs), b has "
                         f"{b.values.shape[-1]}; compare laws on the same mesh")


def thinned(draws: Draws, most: int | None = None) -> np.ndarray:
    """Nearly independent draws (sample, mesh): every few autocorrelation times of a chain, at most `most`.

    The stride 2.5 (τ − 1) leaves neighbours correlated by about 0.01 in a slowly mixing chain.
    """
    values = draws.values[0].astype(np.float64)
    if draws.correlated:
        stride = max(1, int(np.ceil(2.5 * (slowest(draws, 2) - 1.0))))
        values = values[:, min(stride // 2, values.shape[1] - 1)::stride]
    values = values.reshape(-1, values.shape[-1])
    if most is not None and len(values) > most:
        values = values[np.linspace(0, len(values) - 1, most).round().astype(int)]
    return values


def left_out(slices: list[slice], count: int) -> np.ndarray:
    """Weights (1 + block, sample): all draws, then all but one block."""
    weights = np.ones((1 + len(slices), count))
    for row, block in zip(weights[1:], slices, strict=True):
        row[block] = 0.0
    return weights


def _sizes(slices: list[slice]) -> np.ndarray:
    return np.array([block.stop - block.start for block in slices])


# -- Gaussian 2-Wasserstein -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Gaussians:
    """Mean (replicate, mesh), trace of the covariance and a root R of it, Σ = R Rᵀ, for each set of weights."""

    mean: np.ndarray
    trace: np.ndarray
    root: np.ndarray


def gaussians(values: np.ndarray, weights: np.ndarray) -> Gaussians:
    """Means and unbiased covariances of draws (sample, mesh) under weights (replicate, sample) that count them."""
    first = values.mean(axis=0)
    values = values - first
    total = weights.sum(axis=1)
    mean = weights @ values / total[:, None]
    cov = np.stack([(values * w[:, None]).T @ values for w in weights])
    cov = (cov - total[:, None, None] * mean[:, :, None] * mean[:, None, :]) / (total - 1)[:, None, None]
    # An eigenbasis, not a Cholesky factor: a covariance of fewer draws than points, or of a point that never moves,
    # is singular.
    scale, basis = np.linalg.eigh(cov)
    return Gaussians(mean + first, np.trace(cov, axis1=1, axis2=2),
                     basis * np.sqrt(np.maximum(scale, 0.0))[:, None, :])


def wasserstein_squared(a: Gaussians, b: Gaussians) -> np.ndarray:
    """|μ_a − μ_b|² + tr(Σ_a + Σ_b − 2(Σ_a^{1/2} Σ_b Σ_a^{1/2})^{1/2}) for each replicate (broadcast against 1)."""
    cross = np.swapaxes(a.root, -1, -2) @ b.root
    # The trace of the root is the sum of the singular values of R_aᵀ R_b.
    fidelity = np.sqrt(np.maximum(np.linalg.eigvalsh(np.swapaxes(cross, -1, -2) @ cross), 0.0)).sum(axis=-1)
    return ((a.mean - b.mean) ** 2).sum(axis=-1) + a.trace + b.trace - 2 * fidelity


def gaussian_wasserstein(a: Any, b: Any) -> Distance:
    """2-Wasserstein distance between the Gaussians with the means and covariances of two laws.

        W₂² = |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a^{1/2} Σ_b Σ_a^{1/2})^{1/2})

    Parameters
    ----------
    a, b : array (sample, point), array (chain, draw, point, output) or DataArray
        Draws of the field on the same mesh.

    Returns
    -------
    Distance
        In units of the field. Error and first-order bias by a jackknife over blocks of both samples. A sum over mesh
        points: it grows as √points.

    References
    ----------
    .. [1] Gelbrich, Math. Nachr. 147 (1990) 185.
    """
    draws = [read(a, "a"), read(b, "b")]
    check_pair(*draws)
    slices = [cut(d, 2, None, JACKKNIFE_BLOCKS) for d in draws]
    laws = [gaussians(d.pooled(0), left_out(s, d.num_samples)) for d, s in zip(draws, slices, strict=True)]
    whole = [Gaussians(g.mean[:1], g.trace[:1], g.root[:1]) for g in laws]
    first = wasserstein_squared(laws[0], whole[1])
    second = wasserstein_squared(whole[0], laws[1])
    errors, biases = zip(*(jackknife(v, _sizes(s)) for v, s in zip((first, second), slices, strict=True)), strict=True)
    squared, sem = float(first[0] - sum(biases)), float(np.hypot(*errors))
    value, error = root_distance(squared, sem)
    return Distance(float(value), float(error), squared, sem, sizes=(draws[0].num_samples, draws[1].num_samples))


# -- energy ---------------------------------------------------------------------------------------------------
def energy_squared(chosen: np.ndarray, rest: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """2E|X−Y| − E|X−X'| − E|Y−Y'| without bias, for each row of 0/1 weights over the pooled draws.

    Each expectation is a quadratic form in the weights and the matrix of pooled distances.
    """
    to_chosen = chosen @ pooled
    n, m = chosen.sum(axis=1), rest.sum(axis=1)
    cross = (to_chosen * rest).sum(axis=1) / (n * m)
    within = (to_chosen * chosen).sum(axis=1) / (n * (n - 1))
    other = ((rest @ pooled) * rest).sum(axis=1) / (m * (m - 1))
    return 2 * cross - within - other


def permutation_test(pooled: np.ndarray, size: int, rng: np.random.Generator, count: int) -> tuple[float, float]:
    """Energy distance squared of the first `size` pooled draws against the others, and its permutation p-value.

    p = (1 + number of permutations with at least this distance) / (1 + permutations), a valid p-value at any size.
    """
    total = len(pooled)
    sums, everything = pooled.sum(axis=1), pooled.sum()

    def squared(chosen: np.ndarray) -> np.ndarray:
        # The other sample's sums follow from the row sums, so that one product with the matrix is enough.
        reach, within = chosen @ sums, ((chosen @ pooled) * chosen).sum(axis=1)
        n, m = size, total - size
        return (2 * (reach - within) / (n * m) - within / (n * (n - 1))
                - (everything - 2 * reach + within) / (m * (m - 1)))

    labels = np.zeros(total)
    labels[:size] = 1.0
    observed = float(squared(labels[None])[0])
    # Ties with the observed split are ties, whatever the rounding.
    slack = 1e-10 * max(1.0, abs(everything) / total**2)
    reached = 0
    for start in range(0, count, PERMUTATIONS_AT_ONCE):
        rows = np.tile(labels, (min(PERMUTATIONS_AT_ONCE, count - start), 1))
        reached += int((squared(rng.permuted(rows, axis=1)) >= observed - slack).sum())
    return observed, (1 + reached) / (1 + count)


def energy_distance(a: Any, b: Any, *, key: Any = None, num_permutations: int = 999,
                    max_samples: int = 500) -> Distance:
    """Energy distance between two laws, with a permutation test of their equality.

        D² = 2 E|X − Y| − E|X − X'| − E|Y − Y'|,

    with Euclidean norms over the mesh; 0 only where the laws are equal, in whatever respect they differ.

    Parameters
    ----------
    a, b : array (sample, point), array (chain, draw, point, output) or DataArray
        Draws of the field on the same mesh. Chains are thinned to nearly independent draws first, because
        permutations of correlated draws would find differences that are not there.
    key : jax.random.key, optional
        Of the permutations; left out, a fixed one.
    num_permutations : int
    max_samples : int
        Draws used of each law, evenly spaced; the cost grows with its square.

    Returns
    -------
    Distance
        ``p_value`` is valid at any sample size where the two samples are independent of each other; where they share
        random numbers it is conservative.

    References
    ----------
    .. [1] Székely and Rizzo, J. Stat. Plan. Inference 143 (2013) 1249.
    """
    first, second = read(a, "a"), read(b, "b")
    check_pair(first, second)
    most = check_count(max_samples, "max_samples", 4)
    count = check_count(num_permutations, "num_permutations", 19)
    x, y = thinned(first, most), thinned(second, most)
    if min(len(x), len(y)) < 4:
        raise ValueError(f"{min(len(x), len(y))} nearly independent draws are left of the "
                         f"{min(first.num_samples, second.num_samples)} given; run longer chains")
    both = np.concatenate([x, y])
    pooled = cdist(both, both)
    squared, p_value = permutation_test(pooled, len(x), generator(key), count)
    blocks = [[slice(int(s[0]), int(s[-1]) + 1) for s in np.array_split(np.arange(len(v)), min(25, len(v)))]
              for v in (x, y)]
    errors = []
    for side, (values, slices) in enumerate(zip((x, y), blocks, strict=True)):
        kept = left_out(slices, len(values))
        other = np.zeros((len(kept), len(both)))
        chosen = np.zeros((len(kept), len(both)))
        here, there = (slice(0, len(x)), slice(len(x), None)) if side == 0 else (slice(len(x), None), slice(0, len(x)))
        chosen[:, here], other[:, there] = kept, 1.0
        errors.append(jackknife(energy_squared(chosen, other, pooled), _sizes(slices))[0])
    sem = float(np.hypot(*errors))
    value, error = root_distance(squared, sem)
    return Distance(float(value), float(error), squared, sem, p_value, (len(x), len(y)))


# -- Kolmogorov–Smirnov ---------------------------------------------------------------------------------------
def adjust(p_values: Any, method: str = "holm") -> np.ndarray:
    """p-values corrected for the number of tests, over all entries; NaN entries are no tests.

    Parameters
    ----------
    p_values : array
        Any shape.
    method : {"holm", "bh"}
        ``"holm"``: the chance of any false alarm is at most the level, however the tests depend on each other.
        ``"bh"`` (Benjamini–Hochberg): the expected fraction of false alarms among the alarms is, for tests that
        are independent or positively dependent.

    Returns
    -------
    array
        Same shape.
    """
    check_choice(method, "correction", CORRECTIONS)
    p = check_floats(p_values, "p_values", finite=False)
    out = np.full(p.shape, np.nan)
    seen = np.isfinite(p)
    if not seen.any():
        return out
    values = p[seen]
    if method == "bh":
        out[seen] = stats.false_discovery_control(values)
        return out
    order = np.argsort(values)
    stepped = np.maximum.accumulate(values[order] * (len(values) - np.arange(len(values))))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(stepped, 1.0)
    out[seen] = corrected
    return out


def kolmogorov_smirnov(a: Any, b: Any, *, correction: str = "holm") -> KolmogorovSmirnov:
    """Two-sample Kolmogorov–Smirnov test at every mesh point, corrected for their number.

    Parameters
    ----------
    a, b : array (sample, point), array (chain, draw, point, output) or DataArray
        Draws of the field on the same mesh; chains are thinned to nearly independent draws.
    correction : {"holm", "bh"}
        See `adjust`.

    Returns
    -------
    KolmogorovSmirnov
    """
    check_choice(correction, "correction", CORRECTIONS)
    first, second = read(a, "a"), read(b, "b")
    check_pair(first, second)
    statistic, p_value = ks_columns(thinned(first), thinned(second))
    return KolmogorovSmirnov(statistic, p_value, adjust(p_value, correction), correction)


def ks_columns(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Statistic and two-sided p-value of each column; independent samples (sample, column)."""
    n, m = len(x), len(y)
    statistic = np.empty(x.shape[1])
    for j in range(x.shape[1]):
        u, v = np.sort(x[:, j]), np.sort(y[:, j])
        both = np.concatenate([u, v])
        statistic[j] = np.abs(np.searchsorted(u, both, "right") / n - np.searchsorted(v, both, "right") / m).max()
    # The one-sample law at the effective size; its error is far below the spread of p-values for n, m above 20.
    return statistic, np.clip(stats.kstwo.sf(statistic, max(1, round(n * m / (n + m)))), 0.0, 1.0)
