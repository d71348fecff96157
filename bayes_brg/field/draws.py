"""Field draws as one array, and the cutting of correlated draws into blocks for standard errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..core.arrays import check_floats, read_array
from ..core.lazy import stats

_DIMS = ("cutoff", "chain", "draw", "point", "output")
_BLOCKS = 64  # a standard error from B blocks is itself known to 1/sqrt(2(B-1)): 9 % here
_FEW_BLOCKS = 8
_BLOCK_LENGTHS = 10  # autocorrelation times per block: the variance is then at most 5 % too small
_SEEN_POINTS = 16  # autocorrelation times are looked at on this many points
_LEVEL = 0.05  # chance that independent draws given as chains are taken for correlated ones
_LARGEST = 300  # decades of a float64


class Draws(NamedTuple):
    """Draws of a field on a mesh: ``values`` is (cutoff or 1, chain, draw, mesh index).

    ``correlated``: whether neighbours in a chain may be, because nothing says that they are not.
    """

    values: np.ndarray
    cutoff: np.ndarray | None
    labels: tuple | None
    correlated: bool

    @property
    def num_samples(self) -> int:
        return self.values.shape[1] * self.values.shape[2]

    def pooled(self, i: int) -> np.ndarray:
        """Draws at the i-th cutoff, (sample, mesh index), chain after chain."""
        return self.values[i].reshape(-1, self.values.shape[-1])


def read_draws(phi: Any, least: int = 1, order: int = 1) -> Draws:
    """Accept (sample, point), (chain, draw, point, output) or a DataArray; refuse the rest by name.

    Draws of a DataArray whose attribute ``independent`` is true, as those of ``flow.predict`` for an ensemble, are
    independent. Values whose powers up to ``order``, squared for their errors, leave float64 are refused too.
    """
    if isinstance(phi, xr.DataArray):
        draws = _from_dataarray(phi)
    else:
        array = np.asarray(read_array(phi, "phi", finite=False))
        if array.ndim == 2:
            draws = Draws(array[None, None], None, None, False)
        elif array.ndim == 4:  # what predict returns
            outputs = array.shape[-1]
            labels = _labels(list(range(array.shape[2])), list(range(outputs))) if outputs > 1 else None
            draws = Draws(array.reshape(1, *array.shape[:2], -1), None, labels, True)
        else:
            raise ValueError(
                f"phi has shape {array.shape}; an array is (sample, point) for independent samples, or "
                "(chain, draw, point, output). Else pass a DataArray with named dims. One point: phi[:, None]"
            )
    if draws.values.shape[-1] == 0:
        raise ValueError("phi has no points")
    if draws.num_samples < least:
        raise ValueError(f"phi has {draws.num_samples} samples; at least {least} are needed at this order")
    kind = draws.values.dtype
    most = min(largest(order), float(np.finfo(kind).max)) if kind.kind == "f" else largest(order)
    samples = not draws.correlated and "chain" not in getattr(phi, "dims", ())
    for i, values in enumerate(draws.values):
        for c, chain in enumerate(values):
            good = np.abs(chain) <= most  # false for NaN too
            if not good.all():
                draw, point = (int(a[0]) for a in np.nonzero(~good))
                value = chain[draw, point]
                where = f"sample {draw}" if samples else f"chain {c}, draw {draw}"
                where = where if draws.cutoff is None else f"cutoff {draws.cutoff[i]}, {where}"
                remedy = "drop or repair that draw" if not np.isfinite(value) else (
                    f"powers up to {2 * order} of it leave float64 (at most {most:.0e}): scale the field")
                raise ValueError(f"phi is {value} at {where}, mesh index {point}; {remedy}")
        if (flat := values.reshape(-1, values.shape[-1])).size:
            _check_spread(flat, order)
    return draws


def _check_spread(values: np.ndarray, order: int) -> None:
    """Refuse a field (sample, point) whose powers vanish in float64, though it moves."""
    spread = np.ptp(np.asarray(values, np.float64), axis=0)
    small = (spread > 0) & (spread < 1 / largest(order))
    if small.any():
        point = int(np.argmax(small))
        raise ValueError(f"phi moves by {spread[point]:.3g} only at mesh index {point}; powers up to {2 * order} of it "
                         f"leave float64 (at least {1 / largest(order):.0e}): scale the field")


def largest(order: int) -> float:
    """The largest value whose powers up to ``order`` float64 holds, and their squares, which errors are made of."""
    return 10.0 ** (_LARGEST / (2 * order))


def _labels(points: list, outputs: list) -> tuple:
    return tuple((p, o) for p in points for o in outputs)


def _from_dataarray(phi: xr.DataArray) -> Draws:
    unknown = [d for d in phi.dims if d not in (*_DIMS, "sample")]
    if unknown or "point" not in phi.dims:
        raise ValueError(
            f"phi has dims {phi.dims}; expected 'point', chain/draw or sample, and optionally cutoff, output"
        )
    correlated = "draw" in phi.dims
    if correlated == ("sample" in phi.dims) or ("chain" in phi.dims and not correlated):
        raise ValueError(f"phi has dims {phi.dims}; give either 'sample', or 'draw' with or without 'chain'")
    independent = not correlated or bool(phi.attrs.get("independent", False))
    cutoff = check_floats(phi["cutoff"].values, "cutoff", finite=False) if "cutoff" in phi.dims else None
    if not correlated:
        phi = phi.rename(sample="draw")
    phi = phi.expand_dims([d for d in _DIMS if d not in phi.dims]).transpose(*_DIMS)

    def names(dim: str) -> list:
        simple = dim in phi.coords and phi[dim].ndim == 1
        return phi[dim].values.tolist() if simple else list(range(phi.sizes[dim]))

    labels = tuple(names("point"))
    if phi.sizes["output"] > 1:
        labels = _labels(names("point"), names("output"))
    values = np.asarray(read_array(phi.values, "phi", finite=False))
    return Draws(values.reshape(*phi.shape[:3], -1), cutoff, labels, not independent)


def autocorrelation_time(series: np.ndarray) -> float:
    """Longest integrated autocorrelation time of ``series`` (chain, draw, quantity), in draws.

    Autocovariances are taken about the mean of all chains, so chains that disagree count as correlation that
    does not decay. The sum is cut by Geyer's initial monotone positive sequence. ArviZ's ESS of the mean says the same
    of AR(1) chains of times 1 to 39 (4 × 1000 draws), at 1.6 to 3.4 times the cost and twice the noise at time 39.
    """
    num_chains, length, _ = series.shape
    if length < 8:
        return 1.0
    longest = 1.0
    for q in range(series.shape[2]):
        x = series[:, :, q] - series[:, :, q].mean()
        variance = np.mean(x**2)
        if not variance > 0:
            continue
        spectrum = np.fft.rfft(x, n=2 * length, axis=1)
        rho = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :length].sum(axis=0) / (
            num_chains * length * variance
        )
        pairs = rho[: length - length % 2].reshape(-1, 2).sum(axis=1)
        positive = np.argmax(pairs <= 0) if (pairs <= 0).any() else len(pairs)
        longest = max(longest, float(2 * np.minimum.accumulate(pairs[:positive]).sum() - 1))
    return longest


def is_correlated(draws: Draws, order: int) -> bool:
    """Whether draws given as chains differ from independent ones: neighbours alike, or chains apart.

    Tests of level 5 % in all, by the lag-1 autocorrelation (its mean over points, and its largest) and by the variance
    between chains, of the field's first ``order`` powers at every cutoff. What they miss is an autocorrelation of a few
    times 1/√draws at most; block errors of what they let pass would be known far worse than that.
    """
    _, num_chains, length, _ = draws.values.shape
    if not draws.correlated or length < 8:  # too short to tell: whole chains are blocks then
        return draws.correlated
    along, apart, most = [], [], []
    for x in _powers(draws, order):
        variance = (x**2).mean(axis=(0, 1))
        moving = variance > 0
        if not moving.any():
            continue
        x = x[..., moving] / np.sqrt(variance[moving])
        pairs = num_chains * (length - 1)
        z = (x[:, 1:] * x[:, :-1]).sum(axis=(0, 1)) / np.sqrt(pairs)
        along.append(z.mean())
        most.append(z)
        if num_chains > 1:
            within = x.var(axis=1, ddof=1).mean(axis=0)
            ratio = length * x.mean(axis=1).var(axis=0, ddof=1) / np.maximum(within, 1e-12)
            apart.append(stats.f.sf(ratio, num_chains - 1, num_chains * (length - 1)))
    found = [np.array(along), np.concatenate(most)] if most else []
    p_values = [stats.norm.sf(z) for z in found] + ([np.concatenate(apart)] if apart else [])
    return any(p.min() * p.size < _LEVEL / len(p_values) for p in p_values)


def cut(draws: Draws, order: int, num_blocks: int | None, most: int = _BLOCKS) -> list[slice]:
    """Blocks of consecutive draws, as slices of the pooled samples; none holds parts of two chains.

    The number is ``num_blocks`` if given, else at most ``most``; and few enough for every block to hold ten
    autocorrelation times of the field's first ``order`` powers where draws are not as independent ones are.
    """
    _, num_chains, length, _ = draws.values.shape
    total = num_chains * length
    if num_blocks is not None:
        if not 2 <= num_blocks <= total:
            raise ValueError(f"num_blocks is {num_blocks}; it must lie between 2 and the {total} samples")
    whole = num_chains == 1 if num_blocks is not None else not is_correlated(draws, order)
    if whole or not draws.correlated:
        return _split(0, total, min(num_blocks or most, total))
    if num_blocks is None:
        tau = _longest(draws, order)
        per_chain = min(max(1, most // num_chains), max(1, int(length / (_BLOCK_LENGTHS * tau))))
        wanted = min(_FEW_BLOCKS, total)
        if per_chain * num_chains < wanted:
            enough = -(-wanted // num_chains)
            # Whole chains are honest blocks even when few; half of a chain shorter than tau is not.
            per_chain = enough if num_chains < 4 else per_chain
            warnings.warn(
                f"standard errors rest on {per_chain * num_chains} blocks: autocorrelation time {tau:.3g} "
                f"draws in {num_chains} chains of {length}, or the chains disagree. Run longer chains.",
                stacklevel=3,
            )
    else:
        per_chain = max(1, num_blocks // num_chains)
    if per_chain == 1 and num_chains > (num_blocks or most):  # many short chains: whole chains share a block
        return [slice(s.start * length, s.stop * length) for s in _split(0, num_chains, num_blocks or most)]
    return [s for c in range(num_chains) for s in _split(c * length, length, min(per_chain, length))]


def _split(start: int, length: int, parts: int) -> list[slice]:
    edges = start + (np.arange(parts + 1) * length) // parts
    return [slice(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _powers(draws: Draws, order: int) -> Iterator[np.ndarray]:
    """Powers of the field about its mean, less their own, (chain, draw, point), at some points and each cutoff."""
    num_points = draws.values.shape[-1]
    seen = np.unique(np.linspace(0, num_points - 1, min(num_points, _SEEN_POINTS)).astype(int))
    for values in draws.values:
        x = np.asarray(values[..., seen], dtype=np.float64)
        x = x - x.mean(axis=(0, 1))
        x = x / np.maximum(np.abs(x).max(axis=(0, 1)), np.finfo(float).tiny)  # no power overflows
        for power in range(1, min(order, 4) + 1):
            yield x**power - (x**power).mean(axis=(0, 1))


def slowest(draws: Draws, order: int) -> float:
    """The longest autocorrelation time, in draws, of the field's first ``order`` powers; 1 of independent draws."""
    return _longest(draws, order) if is_correlated(draws, order) else 1.0


def _longest(draws: Draws, order: int) -> float:
    return max(autocorrelation_time(x) for x in _powers(draws, order))


