"""Correlators of a field on a mesh: raw moments, unbiased cumulants, the generating functional.

Estimates are host computations in NumPy float64 whatever JAX's default precision, because cumulants are small
differences of large sums; :meth:`Moments.update` also runs under ``jit`` in the precision of its batch. Every
estimate comes with a standard error from a jackknife over blocks: blocks of samples for independent draws,
blocks of consecutive draws longer than the autocorrelation time for chains.

Equation numbers refer to the paper on Bayesian renormalisation and neural-network field theory.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import numpy as np

from ..core.arrays import check_floats
from ..core.jackknife import jackknife
from . import symmetric_tensors
from .cumulants import (
    BlockSums,
    Cumulants,
    GeneratingFunctional,
    check_order,
    estimate,
    from_sums,
    least_samples,
    named,
    pytree,
    read_sources,
)
from .draws import Draws, cut, read_draws
from .moments import Moments, pool_moments
from .symmetric_tensors import Index

__all__ = [
    "Cumulants",
    "GeneratingFunctional",
    "Moments",
    "RawMoments",
    "block_cumulants",
    "cumulants",
    "log_generating_functional",
    "moments",
]

_SIXTH_ORDER_POINTS = 12  # 12**6 entries: 24 MB
_RESULT_BYTES = 4 << 30
_BLOCK_BYTES = 128 << 20  # block sums: with 64 points at fourth order this allows 20 blocks
_KEEP_BYTES = 512 << 20
_FEWEST_BLOCKS = 16
_LOW_ESS = 100


@pytree(("m1", "m2", "m3", "m4", "sem", "cutoff"), ("labels",))
@dataclasses.dataclass(frozen=True, eq=False)
class RawMoments:
    """Moments G^(n) of (37), (38), with standard errors under the same names; None above the order."""

    m1: np.ndarray
    m2: np.ndarray | None = None
    m3: np.ndarray | None = None
    m4: np.ndarray | None = None
    sem: RawMoments | None = None
    cutoff: np.ndarray | None = None
    labels: tuple | None = None


def cumulants(
    phi: Any,
    order: int = 4,
    *,
    zero_mean: bool = False,
    indices: Any = None,
    num_blocks: int | None = None,
    weights: Any = None,
) -> Cumulants:
    """Unbiased connected correlators of a field on a mesh, with standard errors.

    The k-statistics of 1st to 4th order; (38) as printed estimates moments, not these. Sums are float64 about
    the sample mean, streamed over samples: memory does not grow with their number.

    Parameters
    ----------
    phi : array (sample, point), or array (chain, draw, point, output), or xarray.DataArray, or list of
    Moments
        An array of two axes is independent samples. A DataArray has dims ``point`` and ``chain``/``draw`` (or
        ``sample``), optionally ``output`` and ``cutoff``; chains are pooled. Where its attribute ``independent`` is
        true, as ``flow.predict`` sets it for members of an ensemble, its draws are independent; so are chains in
        which no autocorrelation and no difference between chains is found (tests of level 5 %). Else errors come
        from blocks of consecutive draws that are long against the autocorrelation time. Points and outputs are
        stacked, output fastest. A list of :class:`Moments` is
        pooled, each being one block: parts of a sample from several devices or processes.
    order : int
        1 to 4; 6 with ``zero_mean`` adds the sixth cumulant, on at most 12 points.
    zero_mean : bool
        The law is known to be even, phi -> -phi: the mean is 0, third moments are not subtracted.
    indices : array (n, r) or sequence of index tuples, optional
        Only these entries, where M**n is too large. Ranks 2 to ``order``, mixed as you like.
    num_blocks : int, optional
        Blocks for the jackknife; chosen from the autocorrelation time if left out.
    weights : array (sample,) or (chain, draw), optional
        Importance weights of the draws, at least 0, up to a factor; the same at every cutoff. The estimates are
        then those of the weighted law, with a bias of order 1/(effective draws) that weights carry; ``num_samples``
        is (sum w)^2 / sum w^2.

    Returns
    -------
    Cumulants
        With ``sem`` from a delete-a-block jackknife.

    Raises
    ------
    ValueError
        For values that are not finite or whose powers overflow, too few samples, unknown dims, or a result that
        would not fit in memory.

    Notes
    -----
    k_ijkl = [T(T+1) S_ijkl - (T-1)(S_ij S_kl + S_ik S_jl + S_il S_jk)] / ((T-1)(T-2)(T-3)) with centred sums
    S over T samples; with known zero mean [(T+2) s_ijkl - (s_ij s_kl + ...)] / (T(T-1)) with raw sums s.
    """
    check_order(order, zero_mean)
    if isinstance(phi, Moments) or (isinstance(phi, (list, tuple)) and phi and isinstance(phi[0], Moments)):
        if indices is not None or num_blocks is not None or weights is not None:
            raise ValueError(
                "indices, num_blocks and weights do not apply to Moments; their sums are already formed"
            )
        return pool_moments([phi] if isinstance(phi, Moments) else list(phi), order, zero_mean)
    draws = read_draws(phi, least_samples(order, zero_mean), order)
    num_cutoffs, num_points = len(draws.values), draws.values.shape[-1]
    if order == 6 and (num_points > _SIXTH_ORDER_POINTS or indices is not None):
        raise ValueError(f"order 6 on {num_points} points; take at most {_SIXTH_ORDER_POINTS} and no indices")
    if indices is None:
        wanted = None
        numbers = 2 * num_cutoffs * num_points**order
        if 8 * numbers > _RESULT_BYTES:
            raise ValueError(
                f"cumulants of order {order} on {num_points} points and {num_cutoffs} cutoffs need "
                f"{8 * numbers / 2**30:.1f} GiB; pass indices=, fewer points or a lower order"
            )
        index = symmetric_tensors.dense_index(num_points, order)
    else:
        wanted = _wanted(indices, num_points, order)
        index = Index(num_points, max(r for r, _ in wanted), {r: np.array(rows) for r, rows in wanted})
    per_block = 8 * num_cutoffs * sum(len(rows) for rows in index.tuples.values())
    most = int(np.clip(_BLOCK_BYTES // per_block, _FEWEST_BLOCKS, 64))
    weight = None if weights is None else _read_weights(weights, draws, least_samples(order, zero_mean))
    blocks = [
        _block_sums(draws, i, index, slices, zero_mean, weight)
        for slices in [cut(draws, order, num_blocks, most)]
        for i in range(num_cutoffs)
    ]
    keep = per_block * blocks[0].num_blocks <= _KEEP_BYTES
    parts = [estimate(b, wanted, keep) for b in blocks]
    k = _stack(parts, draws)
    return dataclasses.replace(k, cutoff=draws.cutoff, labels=draws.labels)


def _stack(parts: list, draws: Draws) -> Any:
    if draws.cutoff is None:
        return parts[0]
    return jax.tree_util.tree_map(lambda *leaves: np.stack(leaves), *parts)


def _wanted(indices: Any, num_points: int, order: int) -> tuple:
    rows = [tuple(int(i) for i in np.atleast_1d(row)) for row in indices]
    for row in rows:
        if not 2 <= len(row) <= order:
            raise ValueError(f"index tuple {row} has rank {len(row)}; expected 2 to order = {order}")
        if not all(0 <= i < num_points for i in row):
            raise ValueError(f"index tuple {row} leaves the mesh of {num_points} points")
    if not rows:
        raise ValueError("indices is empty; leave it out for full tensors")
    return tuple((r, tuple(row for row in rows if len(row) == r)) for r in sorted({len(row) for row in rows}))


def _read_weights(weights: Any, draws: Draws, least: int) -> np.ndarray:
    """Weights of the pooled samples, scaled to add up to the effective number of draws."""
    weight = check_floats(weights, "weights", finite=False)
    shape = draws.values.shape[1:3]
    if weight.shape not in (shape, (draws.num_samples,)):
        raise ValueError(f"weights has shape {weight.shape}; expected {(draws.num_samples,)} or (chain, draw) {shape}")
    bad = ~(np.isfinite(weight) & (weight >= 0))
    if bad.any():
        where = tuple(int(i[0]) for i in np.nonzero(bad))
        raise ValueError(f"weights is {weight[where]} at {where}; expected finite numbers of at least 0")
    total, squares = weight.sum(), (weight**2).sum()
    if not total**2 > least * squares:
        raise ValueError(f"the weights leave less than {least} effective draws; more are needed at this order")
    return weight.ravel() * (total / squares)


def _block_sums(
    draws: Draws, i: int, index: Index, slices: list[slice], zero_mean: bool, weight: np.ndarray | None = None
) -> BlockSums:
    values = draws.pooled(i)
    mean = np.zeros(index.num_points)
    if not zero_mean:  # about a first sample, so that a mean far above the spread costs no digits
        first = values[0].astype(np.float64)
        step = max(1, (1 << 22) // index.num_points)
        for start in range(0, len(values), step):
            part = values[start : start + step] - first
            mean += part.sum(axis=0) if weight is None else weight[start : start + step] @ part
        mean = first + mean / (len(values) if weight is None else weight.sum())
    sums = {r: np.empty((len(slices), len(rows))) for r, rows in index.tuples.items()}
    for b, s in enumerate(slices):
        of_block = symmetric_tensors.power_sums(index, values[s], mean, None if weight is None else weight[s])
        for r, total in of_block.items():
            sums[r][b] = total
    count = np.array([s.stop - s.start if weight is None else weight[s].sum() for s in slices])
    return BlockSums(count, mean, sums, index, zero_mean)


def block_cumulants(
    phi: Any, order: int = 4, *, num_blocks: int | None = None, zero_mean: bool = False
) -> Cumulants:
    """Unbiased cumulants of each block of consecutive draws, (chain, block, ...) after any cutoff axis.

    Read as draws of a chain by tools that summarise posterior draws, they give each cumulant with a
    Monte-Carlo error that respects autocorrelation. Blocks have equal length (left-over draws at the start
    are not used) and are centred on their own means, which takes a part of order (autocorrelation time /
    block length) off k2.

    Parameters
    ----------
    phi : array or DataArray
        As for :func:`cumulants`; independent samples count as one chain.
    order : int
        1 to 4.
    num_blocks : int, optional
        Blocks per chain; from the autocorrelation time if left out.
    zero_mean : bool
        As for :func:`cumulants`.

    Returns
    -------
    Cumulants
        Without ``sem``; ``num_samples`` is the number of draws in a block. ``brg.to_arviz`` takes it.
    """
    check_order(order, zero_mean)
    draws = read_draws(phi, 2 * max(order, 2), order)
    _, num_chains, length, num_points = draws.values.shape
    if num_blocks is None:
        num_blocks = max(1, min(len(cut(draws, order, None)) // num_chains, length // max(order, 2)))
    if not 1 <= num_blocks <= length // max(order, 2):
        raise ValueError(
            f"num_blocks is {num_blocks} for chains of {length} draws; a block needs {max(order, 2)}"
        )
    size = length // num_blocks
    index = symmetric_tensors.dense_index(num_points, order)
    parts = []
    for i in range(len(draws.values)):
        slices = [
            slice(start, start + size)
            for c in range(num_chains)
            for start in range(c * length + length - size * num_blocks, (c + 1) * length, size)
        ]
        b = _block_sums(draws, i, index, slices, zero_mean)
        packed = from_sums(index, b.sums, b.count[:, None].astype(float), b.centre, zero_mean)
        fields = named(index, {r: v.reshape(num_chains, num_blocks, -1) for r, v in packed.items()}, None)
        parts.append(Cumulants(**fields, num_samples=size))
    k = _stack(parts, draws)
    return dataclasses.replace(k, cutoff=draws.cutoff, labels=draws.labels)


def moments(phi: Any, order: int = 4, *, num_blocks: int | None = None) -> RawMoments:
    """Moments G^(n)(x1..xn) = E[phi(x1)..phi(xn)] of (37), estimated by (38), with standard errors.

    Parameters
    ----------
    phi : array or DataArray
        As for :func:`cumulants`.
    order : int
        1 to 4.
    num_blocks : int, optional
        Blocks for the standard errors.

    Returns
    -------
    RawMoments
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order is {order!r}; expected 1, 2, 3 or 4")
    draws = read_draws(phi, 2, order)
    num_cutoffs, num_points = len(draws.values), draws.values.shape[-1]
    if 16 * num_cutoffs * num_points**order > _RESULT_BYTES:
        raise ValueError(f"moments of order {order} on {num_points} points do not fit; use fewer points")
    index = symmetric_tensors.dense_index(num_points, order)
    slices = cut(draws, order, num_blocks, _FEWEST_BLOCKS if num_points > 32 else 64)
    parts = []
    for i in range(num_cutoffs):
        b = _block_sums(draws, i, index, slices, zero_mean=True)
        count, total = b.count[:, None], b.count.sum()
        both = []
        for packed in (
            {r: s.sum(axis=0) / total for r, s in b.sums.items()},
            # The mean over blocks weighted by length; its error is that of a weighted mean.
            {r: _weighted_error(s / count, count / total) for r, s in b.sums.items()},
        ):
            both.append(RawMoments(**{f"m{r}": symmetric_tensors.unpack(v, num_points, r) for r, v in packed.items()}))
        parts.append(dataclasses.replace(both[0], sem=both[1]))
    m = _stack(parts, draws)
    return dataclasses.replace(m, cutoff=draws.cutoff, labels=draws.labels)


def _weighted_error(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    deviation = values - (weight * values).sum(axis=0)
    return np.sqrt((weight**2 * deviation**2).sum(axis=0) / (1 - (weight**2).sum()))


def log_generating_functional(phi: Any, J: Any, *, num_blocks: int | None = None) -> GeneratingFunctional:
    """log Z[J] = log E exp(J . phi), the generating functional (36), from draws.

    Parameters
    ----------
    phi : array or DataArray
        As for :func:`cumulants`, at one cutoff.
    J : array (..., M)
        Sources on the mesh, in 1/field.
    num_blocks : int, optional
        Blocks for the standard error.

    Returns
    -------
    GeneratingFunctional
        ``ess`` = (sum w)^2 / sum w^2 with w = exp(J . phi), in draws. Compare with
        :meth:`Cumulants.log_generating_functional`.

    Warns
    -----
    UserWarning
        Where fewer than 100 effective draws carry the average: value and standard error then mean little, and
        no comparison with the cumulants can be made.
    """
    draws = read_draws(phi, 2)
    if draws.cutoff is not None:
        raise ValueError("phi has a cutoff axis; take one cutoff, phi.isel(cutoff=i)")
    values = draws.pooled(0)
    source = read_sources(J, values.shape[1])
    shape = np.shape(J)[:-1]
    slices = cut(draws, 2, num_blocks)
    counts = np.array([s.stop - s.start for s in slices])
    value, sem, ess = np.empty((3, len(source)))
    for t, j in enumerate(source):
        exponent = values @ j
        top = exponent.max()
        weight = np.exp(exponent - top)
        total = weight.sum()
        value[t] = top + np.log(total / len(values))
        ess[t] = total**2 / (weight**2).sum()
        inside = np.array([weight[s].sum() for s in slices])
        # If one block carries all the weight the rest may underflow; the error is then rightly huge.
        rest = np.maximum(total - inside, np.finfo(float).tiny) / np.maximum(len(values) - counts, 1)
        sem[t] = jackknife(np.concatenate([value[t : t + 1], top + np.log(rest)]), counts)[0]
    if (ess < _LOW_ESS).any():
        worst = int(np.argmin(ess))
        warnings.warn(
            f"log Z[J] at source {worst} rests on {ess[worst]:.3g} effective draws of {len(values)}; it "
            f"cannot be compared with cumulants. Use weaker sources or more draws ({_LOW_ESS} effective).",
            stacklevel=2,
        )
    return GeneratingFunctional(value.reshape(shape), sem.reshape(shape), ess.reshape(shape))
