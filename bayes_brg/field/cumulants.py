"""The cumulants of a field as one object, with what any function of them needs for its standard error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ..core.arrays import check_floats
from ..core.jackknife import Jackknife
from . import symmetric_tensors
from .symmetric_tensors import Index, Sums

RANKS = {"mean": 1, "k2": 2, "k3": 3, "k4": 4, "k6": 6}


def pytree(data: tuple[str, ...], meta: tuple[str, ...]) -> Callable[[type], type]:
    """Register a frozen dataclass: ``data`` are leaves, ``meta`` are static."""

    def register(cls: type) -> type:
        return jax.tree_util.register_dataclass(cls, data_fields=list(data), meta_fields=list(meta))

    return register


@pytree(("count", "centre", "sums"), ("index", "zero_mean"))
@dataclasses.dataclass(frozen=True, eq=False)
class BlockSums:
    """Sums of products of fields about one centre, block by block; what a jackknife of anything needs.

    ``count`` is (..., block), ``centre`` (..., point), ``sums[r]`` (..., block, tuples of rank r).
    """

    count: np.ndarray
    centre: np.ndarray
    sums: Sums
    index: Index
    zero_mean: bool

    def statistics(self, left_out: slice | None = None) -> Sums:
        """Packed k-statistics of all samples, or of all but one block, for each block in a slice."""
        total = {r: s.sum(axis=0) for r, s in self.sums.items()}
        count = np.asarray(float(self.count.sum()))
        if left_out is not None:
            total = {r: total[r] - s[left_out] for r, s in self.sums.items()}
            count = (count - self.count[left_out])[:, None]
        return from_sums(self.index, total, count, self.centre, self.zero_mean)

    @property
    def num_blocks(self) -> int:
        return self.count.shape[-1]

    def at(self, points: np.ndarray) -> BlockSums:
        """The same sums on some of the points."""
        order = max(self.sums)
        index = symmetric_tensors.dense_index(len(points), order)
        keep = {r: symmetric_tensors.rank_of(np.sort(points[index.tuples[r]], axis=1)) for r in index.ranks}
        sums = {r: s[..., keep[r]] for r, s in self.sums.items()}
        return dataclasses.replace(self, centre=self.centre[..., points], sums=sums, index=index)

    def up_to(self, order: int) -> BlockSums:
        """The same sums without those of rank above ``order``."""
        sums = {r: s for r, s in self.sums.items() if r <= order}
        index = symmetric_tensors.dense_index(self.index.num_points, max(sums))
        return dataclasses.replace(self, sums=sums, index=index)


def along_cutoffs(cutoff: Any) -> str:
    """Which scales a table of tensors stands at, in words."""
    if cutoff is None or isinstance(cutoff, jax.core.Tracer):
        return ""
    scales = np.atleast_1d(cutoff)
    return f" at Λ = {scales[0]:.4g}" + (f" to {scales[-1]:.4g} ({len(scales)})" if len(scales) > 1 else "")


def described(values: dict[str, Any], errors: dict[str, Any] | None = None) -> list[str]:
    """One line a tensor: its shape, the range of its entries, the median of their standard errors."""
    lines = []
    for name, value in values.items():
        line = f"  {name:10s}{np.shape(value)!s:24s}"
        if not isinstance(value, jax.core.Tracer) and np.size(value):
            low, high = float(np.min(value)), float(np.max(value))
            line += f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
            if errors is not None and name in errors:
                line += f" ± {float(np.median(errors[name])):.2g}"
        lines.append(line.rstrip())
    return lines


def from_sums(index: Index, sums: Sums, count: Any, centre: np.ndarray, zero_mean: bool) -> Sums:
    """Packed mean and k-statistics from sums about ``centre``."""
    if zero_mean:
        return {1: np.zeros_like(sums[1]), **symmetric_tensors.zero_mean_statistics(index, sums, count)}
    shift = -sums[1] / count
    centred = symmetric_tensors.recentre(index, sums, count, shift, to_mean=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {1: centre - shift, **symmetric_tensors.k_statistics(index, centred, count)}


@pytree(("mean", "k2", "k3", "k4", "k6", "sem", "blocks", "cutoff"), ("num_samples", "labels", "indices"))
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Cumulants:
    """Connected correlators G_c^(n) of a field on a mesh of M points, in units of the field to the power n.

    Made by :func:`cumulants` and :meth:`Moments.finalize`, or from given arrays. A pytree.

    Attributes
    ----------
    mean : array (..., M)
        Zero where not given.
    k2, k3, k4 : array (..., M, M), (..., M, M, M), (..., M, M, M, M)
        None above the order asked for. A leading axis, if any, is the cutoff.
    k6 : array (..., M, M, M, M, M, M) or None
        Only for theories even under phi -> -phi (``order=6, zero_mean=True``).
    sem : Cumulants or None
        Standard errors under the same names; NaN where there were too few samples to say.
    blocks : BlockSums or None
        Sums per block, from which any function of the cumulants gets its error by :meth:`jackknife`. None for given
        arrays, where the sums would not fit in memory, and where too few samples are left without one block.
    cutoff : array or None
        Values of the leading axis: the scale, in the units of the metric's stiffness.
    num_samples : int or None
    labels : tuple or None
        What each mesh index stands for: a point's coordinate, or (point, output).
    indices : tuple or None
        With a sparse set of tuples, ((rank, tuples), ...); k2, k3, k4 are then (..., number of tuples), in
        the order the tuples were given.
    """

    k2: Any
    mean: Any = None
    k3: Any = None
    k4: Any = None
    k6: Any = None
    sem: Cumulants | None = None
    blocks: BlockSums | None = None
    cutoff: Any = None
    num_samples: int | None = None
    labels: tuple | None = None
    indices: tuple | None = None

    def __post_init__(self) -> None:
        for name in RANKS:
            if isinstance(getattr(self, name), (list, tuple, np.ndarray)):
                object.__setattr__(self, name, check_floats(getattr(self, name), name, finite=False))
        if self.mean is None and hasattr(self.k2, "shape"):
            object.__setattr__(self, "mean", np.zeros(self.k2.shape[:-1]))

    @property
    def num_points(self) -> int:
        """Mesh size M (points times outputs)."""
        return self.mean.shape[-1]

    def __repr__(self) -> str:
        """Sizes, and the range of each cumulant with the median of its standard errors."""
        blocks = "" if self.blocks is None else f" in {self.blocks.num_blocks} blocks"
        drawn = "given arrays" if self.num_samples is None else f"{self.num_samples} samples{blocks}"
        return "\n".join([f"Cumulants{along_cutoffs(self.cutoff)}: {drawn}",
                          *described(self._arrays(), None if self.sem is None else self.sem._arrays())])

    def _arrays(self) -> dict[str, Any]:
        return {n: getattr(self, n) for n in RANKS if getattr(self, n) is not None}

    def __getitem__(self, i: int) -> Cumulants:
        """The cumulants at the i-th cutoff."""
        if self.mean.ndim < 2:
            raise ValueError(
                f"these cumulants have no leading axis to index with {i!r}; the mean is {self.mean.shape}"
            )
        scale = self.cutoff if self.cutoff is None or np.ndim(self.cutoff) == 0 else self.cutoff[i]
        part = jax.tree_util.tree_map(lambda leaf: leaf[i], dataclasses.replace(self, cutoff=None))
        return dataclasses.replace(part, cutoff=scale)

    def at(self, points: int | Sequence[int] | np.ndarray) -> Cumulants:
        """The cumulants of the marginal law on some mesh indices, in the order given; errors come along.

        Parameters
        ----------
        points : int or sequence of int
            Mesh indices.
        """
        self._needs_full("at")
        chosen = np.atleast_1d(np.asarray(points))
        if chosen.dtype.kind not in "iu" or chosen.ndim != 1 or not len(chosen):
            raise ValueError(f"points is {points!r}; give one or more mesh indices")
        bad = chosen[(chosen < -self.num_points) | (chosen >= self.num_points)]
        if len(bad):
            raise ValueError(
                f"mesh index {bad[0]} is outside the {self.num_points} points of these cumulants"
            )
        chosen = chosen % self.num_points
        parts = {n: a[(..., *np.ix_(*[chosen] * RANKS[n]))] for n, a in self._arrays().items()}
        return dataclasses.replace(
            self,
            **parts,
            sem=None if self.sem is None else self.sem.at(chosen),
            blocks=None if self.blocks is None else self.blocks.at(chosen),
            labels=None if self.labels is None else tuple(self.labels[i] for i in chosen),
        )

    def up_to(self, order: int) -> Cumulants:
        """The cumulants of rank at most ``order``; what is made of them costs less.

        Parameters
        ----------
        order : int
        """
        self._needs_full("up_to")
        return dataclasses.replace(
            self,
            **{n: None for n, r in RANKS.items() if r > order},
            sem=None if self.sem is None else self.sem.up_to(order),
            blocks=None if self.blocks is None else self.blocks.up_to(order),
        )

    def _needs_full(self, what: str) -> None:
        if self.indices is not None:
            raise ValueError(
                f"{what} needs full tensors, not a sparse set of index tuples; leave out indices="
            )

    def replicates(self, left_out: slice = slice(None)) -> Cumulants:
        """Cumulants of all samples but one block, for each block in a slice, along a leading axis."""
        if self.blocks is None or self.blocks.count.ndim != 1:
            raise ValueError(
                "these cumulants keep no block sums at one cutoff; index the cutoff first, or make them "
                "from draws with cumulants()"
            )
        statistics = self.blocks.statistics(left_out)
        left = int(round(float(self.blocks.count.sum() - self.blocks.count.mean())))
        return Cumulants(
            **named(self.blocks.index, statistics, self.indices), num_samples=left, indices=self.indices
        )

    def jackknife(
        self, function: Callable[..., dict[str, Any]], *others: Cumulants
    ) -> tuple[dict, dict, dict]:
        """A function of the cumulants, its standard error and its bias, by leaving out one block at a time.

        Parameters
        ----------
        function : callable
            From Cumulants with any leading axes to a dict of arrays with the same leading axes.
        *others : Cumulants
            Further arguments of ``function``, measured on the same draws in the same blocks (other weights, other
            points, another scale of one flow). A block is left out of all at once, so that errors of differences
            are those of paired draws.

        Returns
        -------
        value, sem, bias : dict
            ``value - bias`` has its bias of order 1/samples removed.
        """
        together = (self, *others)
        for k in together:
            if k.blocks is None or self.blocks is None:
                raise ValueError("these cumulants keep no block sums; make them from draws with cumulants()")
            if k.blocks.count.shape != self.blocks.count.shape:
                raise ValueError(
                    f"cumulants in {self.blocks.count.shape[-1]} and {k.blocks.count.shape[-1]} blocks are not paired; "
                    "make both from the same draws with the same num_blocks"
                )
        whole = function(*(dataclasses.replace(k, sem=None, blocks=None) for k in together))
        table = Jackknife(whole)
        at_once = max(1, (1 << 22) // self.num_points ** (6 if self.k6 is not None else 4))
        assert self.blocks is not None
        total = self.blocks.count.sum()
        for start in range(0, self.blocks.num_blocks, at_once):
            some = slice(start, start + at_once)
            table.add(total / self.blocks.count[some], function(*(k.replicates(some) for k in together)))
        return table.estimate, table.sem(), table.bias()

    def log_generating_functional(self, J: Any) -> GeneratingFunctional:
        """log Z[J] of (36) from the cumulants known, to fourth order in the source.

        Parameters
        ----------
        J : array (..., M)
            Sources on the mesh, weights of a quadrature included, in 1/field.

        Returns
        -------
        GeneratingFunctional
            ``value`` and ``sem`` (None without block sums) shaped like J without its last axis; ``ess`` is
            None.
        """
        self._needs_full("log_generating_functional")
        if self.mean.ndim > 1:
            raise ValueError("index the cutoff first: k[i].log_generating_functional(J)")
        source = read_sources(J, self.num_points)

        def series(k: Cumulants) -> dict[str, Any]:
            total, factor = k.mean @ source.T, 1.0
            for rank, tensor in ((2, k.k2), (3, k.k3), (4, k.k4)):
                factor /= rank
                if tensor is not None:
                    lead, part = tensor.shape[:-rank], np.broadcast_to
                    x = tensor.reshape(*lead, self.num_points, -1)
                    x = np.einsum("ti,...ij->...tj", source, x)
                    for _ in range(rank - 1):
                        x = x.reshape(*x.shape[: len(lead) + 1], self.num_points, -1)
                        x = np.einsum("ti,...tij->...tj", source, x)
                    total = total + factor * part(x[..., 0], total.shape)
            return {"value": total}

        shape = np.shape(J)[:-1]
        if self.blocks is None:
            return GeneratingFunctional(series(self)["value"].reshape(shape), None, None)
        value, sem, _ = self.jackknife(series)
        return GeneratingFunctional(value["value"].reshape(shape), sem["value"].reshape(shape), None)


@pytree(("value", "sem", "ess"), ())
@dataclasses.dataclass(frozen=True, eq=False)
class GeneratingFunctional:
    """log Z[J], its standard error, and the effective number of draws behind it (None from cumulants)."""

    value: np.ndarray
    sem: np.ndarray | None
    ess: np.ndarray | None


def named(index: Index, packed: Sums, wanted: tuple | None) -> dict[str, Any]:
    """Packed statistics as the array fields of Cumulants: full tensors, or the tuples ``wanted``."""
    out = {"mean": packed[1]}
    if wanted is None:
        for r, values in packed.items():
            if r > 1:
                out[f"k{r}"] = symmetric_tensors.unpack(values, index.num_points, r)
    else:
        for r, rows in wanted:
            out[f"k{r}"] = packed[r][..., index.locate(np.sort(np.array(rows), axis=1))]
    out.setdefault("k2", None)
    return out


def estimate(blocks: BlockSums, wanted: tuple | None, keep: bool = True) -> Cumulants:
    """Cumulants and their jackknife errors from block sums at one cutoff."""
    whole = blocks.statistics()
    index, total = blocks.index, blocks.count.sum()
    table = Jackknife({str(r): v for r, v in whole.items()})
    at_once = max(1, (1 << 20) // max(v.size for v in whole.values()))
    enough = total - blocks.count.max() >= least_samples(max(index.ranks), blocks.zero_mean)
    for start in range(0, blocks.num_blocks if enough else 0, at_once):
        some = slice(start, start + at_once)
        replicates = blocks.statistics(some)
        table.add(total / blocks.count[some], {str(r): v for r, v in replicates.items()})
    # Both at once, because the table of positions is the dear part for a large mesh.
    both = named(index, {int(r): np.stack([whole[int(r)], v]) for r, v in table.sem().items()}, wanted)
    value, sem = ({n: None if v is None else v[i] for n, v in both.items()} for i in (0, 1))
    return Cumulants(
        **value,
        sem=Cumulants(**sem, indices=wanted),
        blocks=blocks if keep and enough else None,
        num_samples=int(round(float(total))),
        indices=wanted,
    )


def check_order(order: int, zero_mean: bool) -> None:
    """Refuse orders that have no estimator."""
    if order not in RANKS.values():
        raise ValueError(f"order is {order!r}; expected 1, 2, 3 or 4 (or 6 with zero_mean=True)")
    if order == 6 and not zero_mean:
        raise ValueError(
            "order 6 is estimated for even theories only; pass zero_mean=True if phi -> -phi is a symmetry"
        )


def least_samples(order: int, zero_mean: bool) -> int:
    """Fewest samples for which the unbiased estimators of ``order`` exist."""
    known = {1: 1, 2: 1, 3: 1, 4: 2, 6: 3}
    return known[order] if zero_mean else max(2, order)


def read_sources(J: Any, num_points: int) -> np.ndarray:
    """Sources as finite float64 (source, point)."""
    source = check_floats(J, "J")
    if source.ndim < 1 or source.shape[-1] != num_points:
        raise ValueError(f"J has shape {source.shape}; its last axis must be the {num_points} mesh points")
    return source.reshape(-1, num_points)


def field_tensors(k: Cumulants, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Mean and cumulants as checked float64 arrays (or tracers); absent optional ones are left out."""
    if not isinstance(k, Cumulants):
        raise ValueError(f"expected Cumulants, got {type(k).__name__}; pass cumulants(phi)")
    k._needs_full("a field theory")
    xp = symmetric_tensors.namespace({n: getattr(k, n) for n in RANKS})
    lead, num_points = np.shape(k.k2)[:-2], np.shape(k.k2)[-1]
    out = {}
    for name in ("mean", "k2", *needed, *optional):
        value, rank = getattr(k, name), RANKS[name]
        if value is None:
            if name in optional:
                continue
            raise ValueError(f"{name} is missing; estimate it with cumulants(phi, order={rank})")
        array = xp.asarray(value, dtype=np.float64 if xp is np else None)
        if array.shape != lead + (num_points,) * rank:
            raise ValueError(f"{name} has shape {array.shape}; expected {lead + (num_points,) * rank}")
        if xp is np:
            if not np.isfinite(array).all():
                where = tuple(int(i[0]) for i in np.nonzero(~np.isfinite(array)))
                raise ValueError(f"{name} is {array[where]} at {where}")
            swapped = np.swapaxes(array, -1, -2) if rank > 1 else array
            cycled = np.moveaxis(array, -1, len(lead))
            scale = 1e-6 * np.abs(array).max(initial=0)
            if max(np.abs(array - swapped).max(initial=0), np.abs(array - cycled).max(initial=0)) > scale:
                raise ValueError(f"{name} is not symmetric in its {rank} indices")
        out[name] = array
    return out


def cholesky(k2: Any) -> tuple[Any, Any]:
    """Lower factor L of the covariance and its inverse: z = L u with u white."""
    xp = symmetric_tensors.namespace(k2)
    try:
        lower = xp.linalg.cholesky(k2)
    except np.linalg.LinAlgError as error:
        smallest = float(np.linalg.eigvalsh(k2).min())
        raise ValueError(
            f"k2 is not positive definite (smallest eigenvalue {smallest:.3g}); use more draws than points, "
            "fewer points with k.at(points), or a ridge"
        ) from error
    eye = xp.broadcast_to(xp.eye(k2.shape[-1], dtype=k2.dtype), k2.shape)
    return lower, xp.linalg.solve(lower, eye)
