"""Field draws as one array, and the cutting of correlated draws into blocks for standard errors."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

_DIMS = ("cutoff", "chain", "draw", "point", "output")
_BLOCKS = 64  # a standard error from B blocks is itself known to 1/sqrt(2(B-1)): 9 % here
_FEW_BLOCKS = 8
_BLOCK_LENGTHS = 10  # autocorrelation times per block: the variance is then at most 5 % too small
_SEEN_POINTS = 16  # autocorrelation times are looked at on this many points


class Draws(NamedTuple):
    """Draws of a field on a mesh: ``values`` is (cutoff or 1, chain, draw, mesh index)."""

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


def read_draws(phi: Any, least: int = 1) -> Draws:
    """Accept (sample, point), (chain, draw, point, output) or a DataArray; refuse the rest by name."""
    if isinstance(phi, xr.DataArray):
        draws = _from_dataarray(phi)
    else:
        array = np.asarray(phi)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"phi has dtype {array.dtype}; real field values are needed")
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
    for i, values in enumerate(draws.values):
        for c, chain in enumerate(values):
            finite = np.isfinite(chain)
            if not finite.all():
                draw, point = (int(a[0]) for a in np.nonzero(~finite))
                value = chain[draw, point]
                where = f"sample {draw}" if not draws.correlated else f"chain {c}, draw {draw}"
                where = where if draws.cutoff is None else f"cutoff {draws.cutoff[i]}, {where}"
                raise ValueError(f"phi is {value} at {where}, mesh index {point}; drop or repair that draw")
    return draws


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
    cutoff = np.asarray(phi["cutoff"].values) if "cutoff" in phi.dims else None
    if not correlated:
        phi = phi.rename(sample="draw")
    phi = phi.expand_dims([d for d in _DIMS if d not in phi.dims]).transpose(*_DIMS)

    def names(dim: str) -> list:
        simple = dim in phi.coords and phi[dim].ndim == 1
        return phi[dim].values.tolist() if simple else list(range(phi.sizes[dim]))

    labels = tuple(names("point"))
    if phi.sizes["output"] > 1:
        labels = _labels(names("point"), names("output"))
    return Draws(phi.values.reshape(*phi.shape[:3], -1), cutoff, labels, correlated)


def autocorrelation_time(series: np.ndarray) -> float:
    """Longest integrated autocorrelation time of ``series`` (chain, draw, quantity), in draws.

    Autocovariances are taken about the mean of all chains, so chains that disagree count as correlation that
    does not decay. The sum is cut by Geyer's initial monotone positive sequence.
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


def cut(draws: Draws, order: int, num_blocks: int | None, most: int = _BLOCKS) -> list[slice]:
    """Blocks of consecutive draws, as slices of the pooled samples; none holds parts of two chains.

    The number is ``num_blocks`` if given, else at most ``most`` and few enough for every block to hold ten
    autocorrelation times of the field's first ``order`` powers.
    """
    _, num_chains, length, _ = draws.values.shape
    total = num_chains * length
    if num_blocks is not None:
        if not 2 <= num_blocks <= total:
            raise ValueError(f"num_blocks is {num_blocks}; it must lie between 2 and the {total} samples")
    if not draws.correlated or num_blocks is not None and num_chains == 1:
        return _split(0, total, min(num_blocks or most, total))
    if num_blocks is None:
        tau = _slowest(draws, order)
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


def _slowest(draws: Draws, order: int) -> float:
    num_points = draws.values.shape[-1]
    seen = np.unique(np.linspace(0, num_points - 1, min(num_points, _SEEN_POINTS)).astype(int))
    slowest = 1.0
    for values in draws.values:
        x = np.asarray(values[..., seen], dtype=np.float64)
        x = x - x.mean(axis=(0, 1))
        for power in range(1, min(order, 4) + 1):
            slowest = max(slowest, autocorrelation_time(x**power))
    return slowest


