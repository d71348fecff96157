"""Streaming, mergeable sums of powers of a field."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arrays import read_array
from . import symmetric_tensors
from .cumulants import BlockSums, Cumulants, check_order, estimate, least_samples, pytree
from .symmetric_tensors import Sums


@pytree(("count", "origin", "offset", "s2", "s3", "s4"), ("order",))
@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Sums of powers of a field, built batch by batch; merging two equals having seen all samples at once.

    Immutable, and a pytree: it can be carried through ``scan``, gathered from processes, and merged in any
    order. Sums are kept about the running mean (Pebay et al., Computational Statistics 31 (2016) 1305), once
    per multiset of points, and the mean as origin + offset, so a mean far larger than the spread costs no
    digits even in float32. NumPy batches are accumulated in NumPy float64; JAX batches, also traced ones, in
    their own precision, but never in less than float32.

    Examples
    --------
    >>> m = Moments.init(num_points=2, order=4)
    >>> for batch in np.random.default_rng(0).normal(size=(3, 100, 2)):
    ...     m = m.update(batch)
    >>> m.finalize().k4.shape
    (2, 2, 2, 2)
    """

    count: Any
    origin: Any
    offset: Any
    s2: Any
    s3: Any
    s4: Any
    order: int

    @classmethod
    def init(cls, num_points: int, order: int = 4) -> Moments:
        """No samples yet, for a mesh of ``num_points`` and cumulants to ``order`` (1 to 4)."""
        if order not in (1, 2, 3, 4):
            raise ValueError(f"order is {order!r}; expected 1, 2, 3 or 4")
        if num_points < 1:
            raise ValueError(f"num_points is {num_points}; expected at least 1")
        sums: Sums = {r: np.zeros(symmetric_tensors.size(num_points, r)) for r in range(2, order + 1)}
        return cls._of(np.zeros((), np.int64), np.zeros(num_points), np.zeros(num_points), sums, order)

    @classmethod
    def _of(cls, count: Any, origin: Any, offset: Any, sums: Sums, order: int) -> Moments:
        return cls(count, origin, offset, sums.get(2), sums.get(3), sums.get(4), order)

    @property
    def _sums(self) -> Sums:
        return {r: s for r, s in ((2, self.s2), (3, self.s3), (4, self.s4)) if s is not None}

    @property
    def num_points(self) -> int:
        return self.origin.shape[-1]

    def update(self, batch: Any) -> Moments:
        """With the samples of ``batch``, (sample, point), added."""
        jax_batch = isinstance(batch, jax.Array)
        batch = read_array(batch, "batch", finite=False)
        if batch.ndim != 2 or batch.shape[1] != self.num_points:
            raise ValueError(f"batch has shape {batch.shape}; expected (sample, {self.num_points})")
        if not len(batch):
            return self
        if not isinstance(batch, jax.core.Tracer):
            finite = np.isfinite(np.asarray(batch))
            if not finite.all():
                sample, point = (int(i[0]) for i in np.nonzero(~finite))
                raise ValueError(f"batch is {batch[sample, point]} at sample {sample}, mesh index {point}")
        if jax_batch:
            # Integers wrap round, and half precision overflows in the fourth power.
            whole = not jnp.issubdtype(batch.dtype, jnp.floating)
            dtype = jnp.result_type(float) if whole else jnp.promote_types(batch.dtype, jnp.float32)
            return _update_traced(self, batch.astype(dtype))
        index = symmetric_tensors.dense_index(self.num_points, self.order)
        origin = batch[0].astype(np.float64)
        offset = (batch - origin).mean(axis=0)
        sums = symmetric_tensors.power_sums(index, batch, origin + offset)
        return self.merge(self._of(len(batch), origin, offset, sums, self.order))

    def merge(self, other: Moments) -> Moments:
        """All samples of both."""
        if (self.num_points, self.order) != (other.num_points, other.order):
            raise ValueError(
                f"cannot merge Moments of {self.num_points} points, order {self.order} with "
                f"{other.num_points} points, order {other.order}"
            )
        if any(isinstance(m.origin, jax.Array) for m in (self, other)):
            return _merge_traced(self, other)
        return self._merge(other, np)

    def _merge(self, other: Moments, xp: Any) -> Moments:
        count = self.count + other.count
        origin = xp.where(self.count > 0, self.origin, other.origin)
        mine = (self.origin - origin) + self.offset
        theirs = (other.origin - origin) + other.offset
        share = other.count / xp.maximum(count, 1).astype(mine.dtype)
        offset = mine + share * (theirs - mine)
        return self._combined([(self, mine - offset), (other, theirs - offset)], count, origin, offset)

    def _combined(self, parts: list[tuple[Moments, Any]], count: Any, origin: Any, offset: Any) -> Moments:
        index = symmetric_tensors.dense_index(self.num_points, self.order)
        total: Sums = {}
        for m, shift in parts:
            weight = m.count * 1.0 if isinstance(m.count, int) else m.count.astype(shift.dtype)
            for r, s in symmetric_tensors.recentre(index, m._sums, weight, shift, to_mean=False).items():
                total[r] = s if r not in total else total[r] + s
        return self._of(count, origin, offset, total, self.order)

    def all_reduce(self, axis_name: Any) -> Moments:
        """Inside ``shard_map`` or a named ``vmap``: all samples of all members of the axis, the same on each.

        Leaves of different members are sums about different means, so they must not be added with a bare
        ``psum``.
        """
        total = jax.lax.psum(self.count, axis_name)
        seen = (self.count > 0).astype(self.origin.dtype)
        origin = jax.lax.psum(self.origin * seen, axis_name) / jnp.maximum(jax.lax.psum(seen, axis_name), 1)
        mine = (self.origin - origin) + self.offset
        weight = self.count.astype(mine.dtype)
        offset = jax.lax.psum(weight * mine, axis_name) / jnp.maximum(total, 1).astype(mine.dtype)
        shifted = self._combined([(self, mine - offset)], total, origin, offset)
        sums = jax.lax.psum(shifted._sums, axis_name)
        return self._of(total, origin, offset, sums, self.order)

    def finalize(self, zero_mean: bool = False) -> Cumulants:
        """Unbiased cumulants, in NumPy float64; not under ``jit``.

        One set of sums cannot tell its own error: keep several (per chain, batch or device) and pass the list
        to :func:`cumulants` for standard errors.
        """
        return pool_moments([self], self.order, zero_mean)


# Compiled once per mesh, order and batch shape, so that batches may also be fed from a Python loop.
@jax.jit
def _merge_traced(left: Moments, right: Moments) -> Moments:
    return left._merge(right, jnp)


@jax.jit
def _update_traced(state: Moments, batch: jax.Array) -> Moments:
    index = symmetric_tensors.dense_index(state.num_points, state.order)
    origin = batch[0]
    deviation = batch - origin
    offset = deviation.mean(axis=0)
    sums = symmetric_tensors.traced_power_sums(index, deviation - offset)
    return state._merge(state._of(len(batch), origin, offset, sums, state.order), jnp)


def pool_moments(parts: list[Moments], order: int, zero_mean: bool) -> Cumulants:
    """Cumulants of all samples, each member of ``parts`` being one block of the jackknife."""
    check_order(order, zero_mean)
    if any(m.order < order for m in parts) or order == 6:
        raise ValueError(f"cumulants of order {order} from Moments of order {min(m.order for m in parts)}")
    sizes = sorted({m.num_points for m in parts})
    if len(sizes) > 1:
        raise ValueError(f"Moments of {sizes[0]} and of {sizes[-1]} points cannot be pooled; give those of one mesh")
    parts = [m for m in parts if int(m.count) > 0]
    count = np.array([int(m.count) for m in parts], dtype=np.int64)
    least = least_samples(order, zero_mean)
    if count.sum() < least:
        raise ValueError(f"Moments hold {count.sum()} samples; at least {least} are needed at order {order}")
    for m in parts:
        for r, sums in m._sums.items():
            if not np.isfinite(sums).all():
                raise ValueError(f"the sums of rank {r} overflow {np.asarray(sums).dtype}; scale the field, or update "
                                 "with NumPy batches, whose sums are float64")
    index = symmetric_tensors.dense_index(parts[0].num_points, order)
    f64 = [jax.tree_util.tree_map(lambda leaf: np.asarray(leaf, dtype=np.float64), m) for m in parts]
    means = np.stack([m.origin + m.offset for m in f64])
    centre = np.zeros(index.num_points) if zero_mean else count @ (means - means[0]) / count.sum() + means[0]
    rows = []
    for m in f64:
        centred: Sums = {r: v for r, v in m._sums.items() if r <= order}
        rows.append(symmetric_tensors.recentre(index, centred, m.count, (m.origin - centre) + m.offset, to_mean=False))
    blocks = BlockSums(
        count, centre, {r: np.stack([row[r] for row in rows]) for r in rows[0]}, index, zero_mean
    )
    k = estimate(blocks, None)
    return k if len(parts) > 1 else dataclasses.replace(k, sem=None, blocks=None)
