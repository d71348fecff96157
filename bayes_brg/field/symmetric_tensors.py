"""Symmetric tensors kept once per multiset of indices, and the sums of powers that fill them.

A symmetric tensor of rank r on M points has C(M+r-1, r) independent entries. They are stored in
colexicographic order of the sorted index tuple i <= j <= ... <= l, so the position of a tuple,

    i + j(j+1)/2 + k(k+1)(k+2)/6 + l(l+1)(l+2)(l+3)/24 + ...,

does not depend on M, and the tuples on the first m points are a prefix. 64 points at rank 4 take 6 MB instead
of 134 MB, which is what makes it possible to keep sums for every jackknife block.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import blas

Sums = dict[int, Any]  # rank -> (..., number of tuples): sums of products over samples

_BUFFER = 4_000_000  # floats in one buffer of products (32 MB)


def namespace(*values: Any) -> Any:
    """``jax.numpy`` if any value is being traced, else NumPy: concrete numbers get host float64."""
    leaves = jax.tree_util.tree_leaves(values)
    return jnp if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves) else np


def size(num_points: int, rank: int) -> int:
    """Number of multisets of ``rank`` indices out of ``num_points``."""
    return math.comb(num_points + rank - 1, rank)


def rank_of(tuples: np.ndarray) -> np.ndarray:
    """Position of sorted index tuples (..., r) in colexicographic order."""
    tuples = np.asarray(tuples, dtype=np.int64)
    position = np.zeros(tuples.shape[:-1], dtype=np.int64)
    for leg in range(tuples.shape[-1]):
        term = np.ones_like(position)
        for step in range(leg + 1):  # binomial(t + leg, leg + 1), exact in integers at every step
            term = term * (tuples[..., leg] + step) // (step + 1)
        position += term
    return position


@functools.lru_cache(maxsize=32)
def multisets(num_points: int, rank: int) -> np.ndarray:
    """All sorted index tuples (n, rank), in colexicographic order."""
    if rank == 1:
        return np.arange(num_points, dtype=np.int32)[:, None]
    lower = multisets(num_points, rank - 1)
    rows = []
    for last in range(num_points):
        head = lower[: size(last + 1, rank - 1)]
        rows.append(np.column_stack([head, np.full(len(head), last, dtype=np.int32)]))
    return np.concatenate(rows)


def _full_positions(num_points: int, rank: int) -> np.ndarray:
    tuples = multisets(num_points, rank).astype(np.int64)
    full = np.empty(num_points**rank, dtype=np.int32)
    values = np.arange(len(tuples), dtype=np.int32)
    strides = num_points ** np.arange(rank - 1, -1, -1)
    for order in itertools.permutations(range(rank)):
        full[tuples @ strides[list(order)]] = values
    return full


_cached_positions = functools.lru_cache(maxsize=16)(_full_positions)


def unpack(values: Any, num_points: int, rank: int) -> Any:
    """From one entry per multiset (..., n) to the full tensor (..., M, ..., M)."""
    if rank == 1:
        return values
    # Large tables are not kept: 64 points at rank 4 would hold 67 MB for the life of the process.
    small = num_points**rank <= 1 << 21
    positions = (_cached_positions if small else _full_positions)(num_points, rank)
    return values[..., positions].reshape(values.shape[:-1] + (num_points,) * rank)


def transform(tensor: Any, matrix: Any, rank: int, xp: Any) -> Any:
    """Contract each of the last ``rank`` legs of ``tensor`` with ``matrix``: m_ai m_bj .. t_{ij..}."""
    lead = tensor.shape[:-rank]
    for _ in range(rank):  # the leg just done goes to the back; after ``rank`` turns all are in place again
        rest = tensor.shape[len(lead) + 1 :]
        flat = xp.matmul(matrix, tensor.reshape(*lead, tensor.shape[len(lead)], -1))
        tensor = xp.moveaxis(flat.reshape(*lead, flat.shape[-2], *rest), len(lead), -1)
    return tensor


def in_chunks(function: Callable[[Any], Any], rows: Any, floats: int) -> Any:
    """``function`` of host ``rows`` (..., M) a chunk at a time, where it makes ``floats`` numbers for each of them."""
    step = max(1, _BUFFER // floats)
    if not isinstance(rows, np.ndarray) or rows.ndim < 2 or rows.size <= step * rows.shape[-1]:
        return function(rows)
    flat = rows.reshape(-1, rows.shape[-1])
    parts = [function(flat[start : start + step]) for start in range(0, len(flat), step)]
    return np.concatenate(parts).reshape(rows.shape[:-1])


class Index:
    """A set of index tuples per rank, closed under taking parts, with the positions of the parts.

    Parameters
    ----------
    num_points : int
        Mesh size M. Rank 1 always holds every point.
    order : int
        Largest rank.
    tuples : mapping of rank to (n, rank) array, optional
        A sparse set; all multisets if left out.
    """

    def __init__(self, num_points: int, order: int, tuples: Mapping[int, np.ndarray] | None = None):
        self.num_points, self.order, self.dense = num_points, order, tuples is None
        self.ranks = [r for r in (1, 2, 3, 4, 6) if r <= order]
        self.tuples: dict[int, np.ndarray] = {}
        self._parts: dict[tuple[int, int], list[np.ndarray]] = {}
        if tuples is None:
            for r in self.ranks:
                self.tuples[r] = multisets(num_points, r)
            return
        wanted: dict[int, list[np.ndarray]] = {r: [np.zeros((0, r), np.int64)] for r in self.ranks}
        for r, rows in tuples.items():
            rows = np.sort(np.asarray(rows, dtype=np.int64), axis=1)
            for s in range(2, r + 1):
                wanted[s] += [rows[:, list(legs)] for legs in itertools.combinations(range(r), s)]
        for r in self.ranks:
            rows = np.concatenate(wanted[r]) if r > 1 else multisets(num_points, 1)
            _, first = np.unique(rank_of(rows), return_index=True)
            self.tuples[r] = rows[first]

    def locate(self, tuples: np.ndarray) -> np.ndarray:
        """Positions of sorted tuples (..., r) among this set's tuples of rank r."""
        position = rank_of(tuples)
        r = np.shape(tuples)[-1]
        if self.dense or r == 1:
            return position
        return np.searchsorted(rank_of(self.tuples[r]), position)

    def parts(self, rank: int, part: int) -> list[np.ndarray]:
        """Positions of the part of each tuple, for every choice of ``part`` legs in lexicographic order.

        The complement of choice c is choice -1-c of the parts of size ``rank - part``.
        """
        if (rank, part) not in self._parts:
            choices = itertools.combinations(range(rank), part)
            rows = self.tuples[rank]
            self._parts[rank, part] = [self.locate(rows[:, list(c)]).astype(np.int32) for c in choices]
        return self._parts[rank, part]


@functools.lru_cache(maxsize=8)
def dense_index(num_points: int, order: int) -> Index:
    """The cached index of all multisets."""
    return Index(num_points, order)


@functools.lru_cache(maxsize=8)
def _gram_positions(num_points: int, rank: int) -> np.ndarray:
    """Where the tuples of even rank r stand in the Gram matrix of products of r/2 fields (row <= column)."""
    rows, half = multisets(num_points, rank), rank // 2
    width = size(num_points, half)
    # int32, because JAX may keep an int64 constant from one precision mode and trip over it in the other.
    return (rank_of(rows[:, :half]) * width + rank_of(rows[:, half:])).astype(np.int32)


@functools.lru_cache(maxsize=8)
def _cubic_positions(num_points: int) -> np.ndarray:
    rows = multisets(num_points, 3)
    return (rows[:, 2].astype(np.int64) * size(num_points, 2) + rank_of(rows[:, :2])).astype(np.int32)


def power_sums(index: Index, values: np.ndarray, centre: np.ndarray, weights: np.ndarray | None = None) -> Sums:
    """Sums over samples of products of fields about ``centre``, in float64, streamed over chunks of samples.

    ``values`` is (samples, points); ``weights`` (samples,), if any, multiply each term. The fourth order is
    DD'DD with DD the products i <= j only: an eighth of the work of the full product, as one symmetric rank-k
    update.
    """
    num_points, order = index.num_points, index.order
    sums: Sums = {r: np.zeros(len(index.tuples[r])) for r in index.ranks}
    if not index.dense:
        return _sparse_power_sums(index, values, centre, sums, weights)
    widths = {r: size(num_points, r) for r in (1, 2, 3)}
    top = 3 if order >= 6 else (2 if order >= 3 else 1)
    rows = max(1, min(len(values), max(64, _BUFFER // widths[top])))
    products = {r: np.empty((widths[r], rows)) for r in range(1, top + 1)}
    grams = {r: np.zeros((widths[r // 2],) * 2, order="F") for r in (2, 4, 6) if r <= order}
    cubic = np.zeros((num_points, widths[2])) if order >= 3 else None
    for start in range(0, len(values), rows):
        chunk = np.asarray(values[start : start + rows], dtype=np.float64)
        stop = len(chunk)
        d = {r: products[r][:, :stop] for r in products}
        np.subtract(chunk.T, centre[:, None], out=d[1])
        for r in range(2, top + 1):  # in colex order the products with last leg l are a prefix times d_l
            offset = 0
            for last in range(num_points):
                width = size(last + 1, r - 1)
                np.multiply(d[r - 1][:width], d[1][last], out=d[r][offset : offset + width])
                offset += width
        w = None if weights is None else weights[start : start + rows]
        sums[1] += d[1].sum(axis=1) if w is None else d[1] @ w
        if cubic is not None:
            cubic += (d[1] if w is None else d[1] * w) @ d[2].T
        for r, gram in grams.items():
            block = d[r // 2] if stop == rows else np.ascontiguousarray(d[r // 2])
            block = block if w is None else block * np.sqrt(w)
            grams[r] = blas.dsyrk(1.0, block.T, beta=1.0, c=gram, trans=1, overwrite_c=1)
    if cubic is not None:
        sums[3] = cubic.ravel()[_cubic_positions(num_points)]
    for r, gram in grams.items():
        # The transpose of the Fortran array is its C view; swap row and column accordingly.
        row, column = np.divmod(_gram_positions(num_points, r), gram.shape[0])
        sums[r] = gram.T[column, row]
    return sums


def _sparse_power_sums(
    index: Index, values: np.ndarray, centre: np.ndarray, sums: Sums, weights: np.ndarray | None
) -> Sums:
    longest = max(index.num_points, *(len(rows) for rows in index.tuples.values()))
    rows = max(1, _BUFFER // longest)
    for start in range(0, len(values), rows):
        d = np.ascontiguousarray(
            np.asarray(values[start : start + rows], dtype=np.float64).T - centre[:, None]
        )
        for r in index.ranks:
            product = d[index.tuples[r][:, 0]]
            for leg in range(1, r):
                product = product * d[index.tuples[r][:, leg]]
            sums[r] += product.sum(axis=1) if weights is None else product @ weights[start : start + rows]
    return sums


def traced_power_sums(index: Index, d: Any, rows: int = 2048) -> Sums:
    """:func:`power_sums` in ``jax.numpy`` for deviations ``d`` (samples, points), in their own precision."""
    num_points, order = index.num_points, index.order
    pairs = multisets(num_points, 2)
    rows = min(rows, len(d))
    padded = jnp.pad(d, ((0, -len(d) % rows), (0, 0)))  # rows of zeros add nothing to any sum
    dot = functools.partial(jnp.matmul, precision="highest")

    def step(carry: Any, x: Any) -> tuple[Any, None]:
        new = [dot(x.T, x)] if order >= 2 else []
        if order >= 3:
            xx = x[:, pairs[:, 0]] * x[:, pairs[:, 1]]
            new.append(dot(x.T, xx))
            if order >= 4:
                new.append(dot(xx.T, xx))
        return [c + n for c, n in zip(carry, new, strict=True)], None

    shapes = [(num_points, num_points), (num_points, len(pairs)), (len(pairs), len(pairs))][: order - 1]
    start = [jnp.zeros(shape, d.dtype) for shape in shapes]
    totals, _ = jax.lax.scan(step, start, padded.reshape(-1, rows, num_points))
    positions = {
        2: _gram_positions(num_points, 2),
        3: _cubic_positions(num_points) if order >= 3 else None,
        4: _gram_positions(num_points, 4) if order >= 4 else None,
    }
    sums: Sums = {1: d.sum(axis=0)}
    for r, total in zip(range(2, order + 1), totals, strict=True):
        sums[r] = total.ravel()[positions[r]]
    return sums


def recentre(index: Index, sums: Sums, count: Any, shift: Any, to_mean: bool) -> Sums:
    """Sums about another centre, ``shift`` = old centre - new centre, (..., M).

    With ``to_mean`` the new centre is the mean of these very samples (the sum of first powers is -count *
    shift before and zero after); without, the old one was (it is zero before). ``count`` broadcasts against
    (..., 1).
    """
    weight = {2: -1, 3: -2, 4: -3} if to_mean else {2: 1, 3: 1, 4: 1}
    out: Sums = {1: 0 * shift if to_mean else count * shift}
    if 2 not in sums:
        return out
    first, second = index.parts(2, 1)
    aa = shift[..., first] * shift[..., second]
    out[2] = sums[2] + (weight[2] * count) * aa
    if 3 in sums:
        singles, pairs = index.parts(3, 1), index.parts(3, 2)
        out[3] = sums[3] + (weight[3] * count) * (shift[..., singles[0]] * aa[..., pairs[-1]])
        for c, single in enumerate(singles):
            out[3] += shift[..., single] * sums[2][..., pairs[-1 - c]]
    if 4 in sums:
        singles, pairs, triples = index.parts(4, 1), index.parts(4, 2), index.parts(4, 3)
        pieces = []
        for run in _runs(sums[4]):
            piece = sums[4][..., run] + (weight[4] * count) * (
                _at(aa, pairs[0][run]) * _at(aa, pairs[-1][run])
            )
            for c, single in enumerate(singles):
                piece += _at(shift, single[run]) * _at(sums[3], triples[-1 - c][run])
            for c, pair in enumerate(pairs):
                piece += _at(aa, pair[run]) * _at(sums[2], pairs[-1 - c][run])
            pieces.append(piece)
        out[4] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1)
    return out


def _at(values: Any, positions: np.ndarray) -> Any:
    return values.take(positions, axis=-1) if isinstance(values, np.ndarray) else values[..., positions]


def _runs(values: Any) -> list[slice]:
    """Stretches of a long host array whose temporaries stay in the processor's cache: twice as fast."""
    length, step = values.shape[-1], 1 << 15
    if not isinstance(values, np.ndarray) or length < 4 * step:
        return [slice(None)]
    return [slice(start, start + step) for start in range(0, length, step)]


def k_statistics(index: Index, sums: Sums, count: Any) -> Sums:
    """Unbiased estimates of the cumulants of rank 2, 3 and 4 from sums about the sample mean."""
    n, k = count, Sums()
    if 2 in sums:
        k[2] = sums[2] / (n - 1)
    if 3 in sums:
        k[3] = sums[3] * (n / ((n - 1) * (n - 2)))
    if 4 in sums:
        pairs = index.parts(4, 2)
        pieces = []
        for run in _runs(sums[4]):
            piece = sums[4][..., run] * (n * (n + 1) / (n - 1))
            for c in range(3):
                piece -= _at(sums[2], pairs[c][run]) * _at(sums[2], pairs[-1 - c][run])
            piece /= (n - 2) * (n - 3)
            pieces.append(piece)
        k[4] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1)
    return k


def zero_mean_statistics(index: Index, sums: Sums, count: Any) -> Sums:
    """Unbiased estimates when the mean is known to be zero, from raw sums; odd moments are not subtracted.

    Rank 6 estimates m6 - (15 terms) m4 m2 + 2 (15 terms) m2 m2 m2, each product over distinct samples: the
    sixth cumulant of a law that is even under reflection of all the fields.
    """
    n, k = count, Sums()
    for r in (2, 3):
        if r in sums:
            k[r] = sums[r] / n
    if 4 in sums:
        pairs = index.parts(4, 2)
        products = sum(sums[2][..., pairs[c]] * sums[2][..., pairs[-1 - c]] for c in range(3))
        k[4] = (sums[4] * (n + 2) - products) / (n * (n - 1))
    if 6 in sums:
        pairs, fours = index.parts(6, 2), index.parts(6, 4)
        choices = list(itertools.combinations(range(6), 2))
        where = {choice: position for choice, position in zip(choices, pairs, strict=True)}
        split = sum(sums[2][..., pairs[c]] * sums[4][..., fours[-1 - c]] for c in range(15))
        triple = 0
        for match in pairings(range(6)):
            a, b, c = (sums[2][..., where[pair]] for pair in match)
            triple = triple + a * b * c
        k[6] = (
            sums[6] / n
            - (split - 15 * sums[6]) / (n * (n - 1))
            + 2 * (triple - 3 * split + 30 * sums[6]) / (n * (n - 1) * (n - 2))
        )
    return k


def pairings(legs: Sequence[int]) -> list[tuple[tuple[int, int], ...]]:
    """All ways to join ``legs`` in pairs, each pair sorted."""
    legs = list(legs)
    if not legs:
        return [()]
    first, found = legs[0], []
    for i in range(1, len(legs)):
        rest = pairings(legs[1:i] + legs[i + 1 :])
        found += [((first, legs[i]), *match) for match in rest]
    return found
