"""The action S = -log p of a field on a mesh, as a function, and the inverse Feynman rules for its couplings.

In z = phi - mean: S = S0 + J_i z_i + A_ij z_i z_j / 2 + g3_ijk zzz / 3! + g4_ijkl zzzz / 4!, (41) and (42)
with the factorials, the centring and the tadpoles that the printed formulas lack. All orders are minus the
sum of connected diagrams with vertices +kappa_n, external legs K^(-1) z and internal lines -K^(-1).
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arrays import read_array
from . import symmetric_tensors
from .cumulants import along_cutoffs, cholesky, described, pytree

__all__ = ["Action"]

RANKS = {"constant": 0, "linear": 1, "quadratic": 2, "cubic": 3, "quartic": 4, "sextic": 6}
NEEDED: dict[Any, tuple[tuple[str, ...], tuple[str, ...]]] = {
    0: ((), ()),
    1: (("k3",), ()),
    2: (("k4",), ("k3",)),
    "next": (("k4", "k6"), ()),
}


@pytree(
    (
        "constant",
        "linear",
        "quadratic",
        "cubic",
        "quartic",
        "sextic",
        "mean",
        "sem",
        "bias",
        "ridge",
        "cutoff",
    ),
    ("order",),
)
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Action:
    """S(phi) = -log p(phi) as a polynomial in z = phi - mean. Call it on fields (..., M). A pytree.

    Attributes
    ----------
    constant, linear, quadratic, cubic, quartic : arrays (...), (..., M), ..., (..., M, M, M, M)
        Couplings S0, J, A, g3, g4, each symmetric, to be divided by n!; in units of 1/field^n.
    sextic : array (..., M, M, M, M, M, M) or None
        g6, only in the next order of an even theory.
    mean : array (..., M)
        Field about which the couplings stand.
    sem : Action or None
        Standard errors under the same names, from a block jackknife of the couplings themselves.
    bias : Action or None
        Estimated bias that was subtracted.
    ridge : array
        Variance of the white noise added to the field to make its covariance invertible; 0 if none.
    cutoff : array or None
        Values of the leading axis.
    order : int or str
        0, 1, 2 or "next".
    """

    constant: Any
    linear: Any
    quadratic: Any
    cubic: Any
    quartic: Any
    mean: Any
    sextic: Any = None
    sem: Action | None = None
    bias: Action | None = None
    ridge: Any = 0.0
    cutoff: Any = None
    order: Any = 2

    def __repr__(self) -> str:
        """Order, and the range of each coupling with the median of its standard errors."""
        added = "" if isinstance(self.ridge, jax.core.Tracer) or not np.any(self.ridge) else (
            f", of the field plus white noise of variance {float(np.max(self.ridge)):.3g}")
        return "\n".join([f"Action of order {self.order}{along_cutoffs(self.cutoff)}{added}",
                          *described(self._couplings(), None if self.sem is None else self.sem._couplings())])

    def __call__(self, phi: Any) -> Any:
        """S at field values (..., M). JAX values: differentiable and traceable; NumPy values: float64."""
        if np.ndim(self.mean) != 1:
            raise ValueError("this action has a cutoff axis; index it first, action[i](phi)")
        num_points = self.mean.shape[-1]
        traced = symmetric_tensors.namespace(phi, self.quadratic) is jnp
        xp: Any = jnp if traced or isinstance(phi, jax.Array) else np
        phi = xp.asarray(read_array(phi, "phi", finite=False), dtype=np.float64 if xp is np else None)
        if phi.ndim < 1 or phi.shape[-1] != num_points:
            raise ValueError(f"phi has shape {phi.shape}; its last axis must be the {num_points} points")
        powers = 3 if self.sextic is not None else 2
        if xp is jnp:
            return symmetric_tensors.in_chunks(self._polynomial, phi - self.mean, num_points**powers)
        with np.errstate(over="ignore", invalid="ignore"):
            value = symmetric_tensors.in_chunks(self._polynomial, phi - self.mean, num_points**powers)
        if not np.isfinite(value).all():
            at = tuple(int(i) for i in np.argwhere(~np.isfinite(np.atleast_1d(value)))[0])
            raise ValueError(f"phi is {np.atleast_2d(phi)[at]} at index {at}: it is not finite, or its powers leave "
                             "float64; scale the field")
        return value

    def _polynomial(self, z: Any) -> Any:
        num_points = z.shape[-1]
        value = self.constant + z @ self.linear + 0.5 * ((z @ self.quadratic) * z).sum(-1)
        zz = (z[..., :, None] * z[..., None, :]).reshape(*z.shape[:-1], -1)
        if self.cubic is not None:
            value = value + ((zz @ self.cubic.reshape(-1, num_points)) * z).sum(-1) / 6
        if self.quartic is not None:
            value = value + ((zz @ self.quartic.reshape(num_points**2, -1)) * zz).sum(-1) / 24
        if self.sextic is not None:
            zzz = (zz[..., :, None] * z[..., None, :]).reshape(*z.shape[:-1], -1)
            value = value + ((zzz @ self.sextic.reshape(num_points**3, -1)) * zzz).sum(-1) / 720
        return value

    def __getitem__(self, i: int) -> Action:
        """The action at the i-th cutoff."""
        if np.ndim(self.mean) < 2:
            raise ValueError(f"this action has no cutoff axis to index with {i!r}")
        scale = self.cutoff if self.cutoff is None or np.ndim(self.cutoff) == 0 else self.cutoff[i]
        part = jax.tree_util.tree_map(lambda leaf: leaf[i], dataclasses.replace(self, cutoff=None))
        return dataclasses.replace(part, cutoff=scale)

    def about_zero(self) -> Action:
        """The same function with couplings of phi itself.

        Standard errors do not carry over, because the mean is estimated too: ``action(k, about="zero")``
        gives these couplings with their errors.
        """
        if np.ndim(self.mean) != 1:
            raise ValueError("this action has a cutoff axis; index it first, action[i].about_zero()")
        if self.sextic is not None and (self.mean != 0).any():
            raise ValueError(
                "an action with sextic couplings stays about its mean; shifting it makes quintic ones"
            )
        shifted = _about_zero(self._couplings(), self.mean)
        return dataclasses.replace(self, **shifted, mean=0 * self.mean, sem=None, bias=None)

    def _couplings(self) -> dict[str, Any]:
        return {n: getattr(self, n) for n in RANKS if getattr(self, n) is not None}


def _about_zero(c: dict[str, Any], mean: Any) -> dict[str, Any]:
    def down(tensor: Any, times: int) -> Any:  # contract the last legs with the mean, one by one
        for _ in range(times):
            m = mean.reshape(*mean.shape[:-1], *(1,) * (tensor.ndim - mean.ndim), mean.shape[-1])
            tensor = (tensor * m).sum(-1)
        return tensor

    c = filled(c, mean.shape)
    j, a, g3, g4 = (c[n] for n in ("linear", "quadratic", "cubic", "quartic"))
    out = dict(c)
    out["cubic"] = g3 - down(g4, 1)
    out["quadratic"] = a - down(g3, 1) + down(g4, 2) / 2
    out["linear"] = j - down(a, 1) + down(g3, 2) / 2 - down(g4, 3) / 6
    out["constant"] = c["constant"] - down(j, 1) + down(a, 2) / 2 - down(g3, 3) / 6 + down(g4, 4) / 24
    return out


def filled(c: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Zeros for the couplings that vanish at this order, given the shape of the mean."""
    zeros = {
        n: np.zeros(shape[:-1] + shape[-1:] * RANKS[n]) for n in ("linear", "cubic", "quartic") if n not in c
    }
    return {**c, **zeros}


def _sum_pairings(x: Any) -> Any:
    """x_ijkl + x_ikjl + x_iljk of x symmetric within each pair of legs."""
    n = x.ndim - 4
    return x + x.swapaxes(n + 1, n + 2) + x.swapaxes(n + 1, n + 3)


def couplings_about_mean(t: dict[str, Any], order: int | str, ridge: Any) -> dict[str, Any]:
    """Couplings about the mean that do not vanish, from cumulants with any leading axes."""
    xp = symmetric_tensors.namespace(t, ridge)
    k2 = t["k2"] + xp.asarray(ridge)[..., None, None] * np.eye(t["k2"].shape[-1])
    m = k2.shape[-1]
    lead = k2.shape[:-2]
    lower, inverse = cholesky(k2)
    logdet = 2 * xp.log(xp.diagonal(lower, axis1=-2, axis2=-1)).sum(-1)

    def dot(x: Any, left: int, y: Any, right: int) -> Any:
        """Contract ``left`` and ``right`` legs kept, all others summed, as one matrix product."""
        x = x.reshape(*lead, m**left, -1)
        y = y.reshape(*lead, -1, m**right)
        return xp.matmul(x, y).reshape(lead + (m,) * (left + right))

    eye = xp.broadcast_to(xp.eye(m, dtype=k2.dtype), k2.shape)
    k3 = t3 = xp.zeros(())
    c = {"constant": 0.5 * (m * np.log(2 * np.pi) + logdet), "quadratic": eye}
    if order in (1, 2) and "k3" in t:
        k3 = symmetric_tensors.transform(t["k3"], inverse, 3, xp)
        t3 = xp.trace(k3, axis1=-2, axis2=-1)
        c |= {"linear": 0.5 * t3, "cubic": -k3}
    if order in (2, "next"):
        k4 = symmetric_tensors.transform(t["k4"], inverse, 4, xp)
        tau = xp.trace(k4, axis1=-2, axis2=-1)
        c["quartic"] = -k4
        c["constant"] = c["constant"] - xp.trace(tau, axis1=-2, axis2=-1) / 8
        c["quadratic"] = eye + 0.5 * tau
    if order == 2 and "k3" in t:
        c["quartic"] = c["quartic"] + _sum_pairings(dot(k3, 2, k3, 2))
        c["quadratic"] = (
            c["quadratic"] - 0.5 * dot(k3, 2, t3[..., None], 0) - 0.5 * dot(k3, 1, _front(k3, 2), 1)
        )
        c["constant"] = c["constant"] + (t3**2).sum(-1) / 8 + (k3**2).sum((-3, -2, -1)) / 12
    if order == "next":
        k6 = symmetric_tensors.transform(t["k6"], inverse, 6, xp)
        one = xp.trace(k6, axis1=-2, axis2=-1)
        two = xp.trace(one, axis1=-2, axis2=-1)
        c["quadratic"] = (
            c["quadratic"]
            - two / 8
            + dot(k4, 1, _front(k4, 3), 1) / 6
            + dot(tau, 1, tau, 1) / 4
            + dot(k4, 2, tau.reshape(*lead, m * m, 1), 0) / 4
        )
        legs = dot(k4, 3, tau, 1)
        n = len(lead)
        four = sum((xp.moveaxis(legs, -1, n + a) for a in range(4)), 0 * legs)
        c["quartic"] = c["quartic"] + 0.5 * one - 0.5 * _sum_pairings(dot(k4, 2, k4, 2)) - 0.5 * four
        tree = dot(k4, 3, k4, 3)
        c["sextic"] = -k6
        for others in itertools.combinations(range(1, 6), 2):  # the ten ways to put three legs on each vertex
            left = (0, *others)
            right = tuple(leg for leg in range(6) if leg not in left)
            c["sextic"] = c["sextic"] + xp.moveaxis(tree, range(n, n + 6), [n + leg for leg in left + right])
        # Vacuum diagrams: three loops on a six-vertex, four lines between two four-vertices, two lines and
        # two loops.
        c["constant"] = c["constant"] + xp.trace(two, axis1=-2, axis2=-1) / 48
        c["constant"] = c["constant"] - (k4**2).sum((-4, -3, -2, -1)) / 48 - (tau**2).sum((-2, -1)) / 16
    back = xp.swapaxes(inverse, -1, -2)
    return {n: symmetric_tensors.transform(v, back, RANKS[n], xp) if RANKS[n] else v for n, v in c.items()}


def _front(x: Any, legs: int) -> Any:
    """A symmetric tensor flattened to (its first ``legs`` legs) by (the last one)."""
    m = x.shape[-1]
    return x.reshape(*x.shape[: x.ndim - legs - 1], m**legs, m)


def couplings_of(t: dict[str, Any], order: int | str, ridge: Any, even: bool, about: str) -> dict[str, Any]:
    """Couplings of the action with these cumulants, of z = φ − mean or of φ itself; κ3 left out where `even`."""
    if even:
        t = {n: v for n, v in t.items() if n != "k3"}
    c = couplings_about_mean(t, order, ridge)
    if about == "mean":
        return {**c, "mean": t["mean"]}
    if order == "next" and (t["mean"] != 0).any():
        raise ValueError("the next order stands about the mean; use about='mean'")
    return {**_about_zero(c, t["mean"]), "mean": 0 * t["mean"]}


def pack(tensor: Any, rank: int) -> Any:
    """One entry per multiset of indices of a symmetric tensor, so that replicates stay small."""
    if rank < 2:
        return tensor
    return tensor[(..., *symmetric_tensors.multisets(tensor.shape[-1], rank).T)]


def unpacked(c: dict[str, Any], size: int) -> dict[str, Any]:
    """The inverse of `pack`, of all couplings of a mesh of this size."""
    return {n: symmetric_tensors.unpack(v, size, RANKS[n]) if RANKS.get(n, 1) > 1 else v for n, v in c.items()}
