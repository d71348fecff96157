"""The action S = -log p of a field on a mesh, from its connected correlators, and its couplings along a flow.

In z = phi - mean: S = S0 + J_i z_i + A_ij z_i z_j / 2 + g3_ijk zzz / 3! + g4_ijkl zzzz / 4!, (41) and (42)
with the factorials, the centring and the tadpoles that the printed formulas lack. All orders are minus the
sum of connected diagrams with vertices +kappa_n, external legs K^(-1) z and internal lines -K^(-1).
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from . import symmetric_tensors
from .cumulants import Cumulants, along_cutoffs, cholesky, described, field_tensors, pytree

__all__ = ["Action", "action", "running_couplings"]

_RANKS = {"constant": 0, "linear": 1, "quadratic": 2, "cubic": 3, "quartic": 4, "sextic": 6}
_NEEDED: dict[Any, tuple[tuple[str, ...], tuple[str, ...]]] = {
    0: ((), ()),
    1: (("k3",), ()),
    2: (("k4",), ("k3",)),
    "next": (("k4", "k6"), ()),
}
_HIGHEST = {0: 2, 1: 3, 2: 4, "next": 6}
_EVEN_SIGMAS = 6.0


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
        phi = xp.asarray(phi, dtype=np.float64 if xp is np else None)
        if phi.ndim < 1 or phi.shape[-1] != num_points:
            raise ValueError(f"phi has shape {phi.shape}; its last axis must be the {num_points} points")
        powers = 3 if self.sextic is not None else 2
        return symmetric_tensors.in_chunks(self._polynomial, phi - self.mean, num_points**powers)

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
        return {n: getattr(self, n) for n in _RANKS if getattr(self, n) is not None}


def _about_zero(c: dict[str, Any], mean: Any) -> dict[str, Any]:
    def down(tensor: Any, times: int) -> Any:  # contract the last legs with the mean, one by one
        for _ in range(times):
            m = mean.reshape(*mean.shape[:-1], *(1,) * (tensor.ndim - mean.ndim), mean.shape[-1])
            tensor = (tensor * m).sum(-1)
        return tensor

    c = _filled(c, mean.shape)
    j, a, g3, g4 = (c[n] for n in ("linear", "quadratic", "cubic", "quartic"))
    out = dict(c)
    out["cubic"] = g3 - down(g4, 1)
    out["quadratic"] = a - down(g3, 1) + down(g4, 2) / 2
    out["linear"] = j - down(a, 1) + down(g3, 2) / 2 - down(g4, 3) / 6
    out["constant"] = c["constant"] - down(j, 1) + down(a, 2) / 2 - down(g3, 3) / 6 + down(g4, 4) / 24
    return out


def _filled(c: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Zeros for the couplings that vanish at this order, given the shape of the mean."""
    zeros = {
        n: np.zeros(shape[:-1] + shape[-1:] * _RANKS[n]) for n in ("linear", "cubic", "quartic") if n not in c
    }
    return {**c, **zeros}


def _sum_pairings(x: Any) -> Any:
    """x_ijkl + x_ikjl + x_iljk of x symmetric within each pair of legs."""
    n = x.ndim - 4
    return x + x.swapaxes(n + 1, n + 2) + x.swapaxes(n + 1, n + 3)


def _couplings(t: dict[str, Any], order: int | str, ridge: Any) -> dict[str, Any]:
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
    return {n: symmetric_tensors.transform(v, back, _RANKS[n], xp) if _RANKS[n] else v for n, v in c.items()}


def _front(x: Any, legs: int) -> Any:
    """A symmetric tensor flattened to (its first ``legs`` legs) by (the last one)."""
    m = x.shape[-1]
    return x.reshape(*x.shape[: x.ndim - legs - 1], m**legs, m)


def _default_order(k: Cumulants) -> int:
    return 2 if k.k4 is not None else (1 if k.k3 is not None else 0)


def _regularise(k: Cumulants, max_condition: float) -> float:
    """Smallest ridge that brings the condition number to ``max_condition``, with a warning; or 0.

    The covariance of all draws but one block, which the jackknife inverts too, is held to the same.
    """
    k2 = np.asarray(k.k2, dtype=np.float64)[None]
    if k.blocks is not None:
        k2 = np.concatenate([k2, k.up_to(2).replicates().k2])
    eigenvalues = np.linalg.eigvalsh(k2)
    low, high = eigenvalues[:, 0], eigenvalues[:, -1]
    if low[0] < -1e-6 * abs(high[0]) or high[0] <= 0:
        raise ValueError(f"k2 is not a covariance: its eigenvalues run from {low[0]:.3g} to {high[0]:.3g}")
    lacking = (high - low * max_condition) / (max_condition - 1)
    worst = 0 if lacking[0] > 0 else int(np.argmax(lacking))
    if lacking[worst] <= 0:
        return 0.0
    ridge = float(lacking.max())
    condition = high[worst] / low[worst] if low[worst] > 0 else np.inf
    warnings.warn(
        f"k2 is near-singular{' without one block of draws' if worst else ''} (condition number {condition:.3g}); a "
        f"ridge of {ridge:.3g} was added to its diagonal, so this is the action of the field plus white noise of that "
        "variance. Use fewer points or more draws, or set ridge= or max_condition=.",
        stacklevel=4,
    )
    return ridge


def _bias_share(k: Cumulants) -> float:
    """What to keep of the jackknife's bias, so that A of independent Gaussian draws is exactly unbiased.

    The inverse of a sample covariance is off by c/(T-s), s = M+2 (M+1 if the mean is known), and the jackknife, which
    takes a bias of c/T off, would take too much. A block of correlated draws is worth fewer, so that s is then less
    than it should be.
    """
    assert k.blocks is not None
    left = float(k.blocks.count.sum()) * (1 - 1 / k.blocks.num_blocks)
    return max(0.0, 1 - (k.num_points + (1 if k.blocks.zero_mean else 2)) / left)


def action(
    k: Cumulants,
    order: int | str | None = None,
    *,
    even: bool = False,
    about: str = "mean",
    bias_correction: bool = True,
    ridge: float | None = None,
    max_condition: float = 1e8,
    relative_to: Cumulants | None = None,
) -> Action:
    """The action of the field whose cumulants are ``k``, by the inverse Feynman rules.

    Parameters
    ----------
    k : Cumulants
        A leading cutoff axis gives an action with that axis. If ``k`` was estimated from draws the couplings
        are corrected for bias and have standard errors.
    order : 0, 1, 2 or "next", optional
        0: the free (Gaussian) action. 1: third cumulants, error O(1/N). 2: all of 1/N, error O(N^(-3/2)), or
        O(N^(-2)) if odd cumulants vanish. "next": one order more for theories even about their mean; needs
        ``k.k6``, from ``cumulants(phi, order=6, zero_mean=True)``. The highest of 0, 1, 2 that ``k`` allows
        if left out.
    even : bool
        Take odd cumulants as zero: z -> -z is a symmetry. Implied by "next".
    about : "mean" or "zero"
        Couplings of z = phi - mean, or of phi.
    bias_correction : bool
        Subtract the bias estimated by the jackknife. The inverse of a sample covariance alone is biased by
        (T-1)/(T-M-2), and g4 carries four.
    ridge : float, optional
        Added to the diagonal of k2, in field^2. Chosen by ``max_condition`` if left out.
    max_condition : float
        Largest condition number of k2 taken as it is.
    relative_to : Cumulants, optional
        Another theory, whose couplings are subtracted. Measured on the same draws (another weight, another
        features' field), the standard errors are those of the paired difference. For a prior weighted by
        exp(-O(phi)) and the free one, the difference is a measurement of O itself. Both need the same mean, or
        ``about="zero"``.

    Returns
    -------
    Action

    Warns
    -----
    UserWarning
        Where a ridge was needed, where errors cannot be given, or where an odd cumulant contradicts ``even``.

    Notes
    -----
    (41), (42), (57), (58). A ridge is exactly the action of the field plus independent white noise of that
    variance, which has no higher cumulants.
    """
    if order is None:
        order = _default_order(k) if isinstance(k, Cumulants) else 2
    if order not in _NEEDED:
        raise ValueError(f"order is {order!r}; expected 0, 1, 2 or 'next'")
    if about not in ("mean", "zero"):
        raise ValueError(f"about is {about!r}; expected 'mean' or 'zero'")
    if ridge is not None and not ridge >= 0:
        raise ValueError(f"ridge is {ridge}; expected a variance >= 0")
    if not max_condition > 1:
        raise ValueError(f"max_condition is {max_condition}; expected more than 1")
    t = field_tensors(k, *_NEEDED[order])
    k = k.up_to(_HIGHEST[order])
    if relative_to is not None:
        return _relative(k, relative_to, order, even, about, bias_correction, ridge, max_condition)
    if t["k2"].ndim == 3:
        options: Any = dict(even=even, about=about, bias_correction=bias_correction)
        parts = [
            action(part, order, ridge=ridge, max_condition=max_condition, **options) for part in _split(k)
        ]
        return dataclasses.replace(_stack(parts), cutoff=k.cutoff)
    if t["k2"].ndim != 2:
        raise ValueError(f"k2 has shape {t['k2'].shape}; expected (M, M) or (cutoff, M, M)")
    if symmetric_tensors.namespace(t) is jnp:
        noise: Any = 0.0 if ridge is None else ridge
        c = _filled(_couplings_of(t, order, noise, even, about), t["mean"].shape)
        return Action(**c, ridge=noise, order=order)
    if even or order == "next":
        _check_even(k)
    noise = np.asarray(_regularise(k, max_condition) if ridge is None else float(ridge))
    if k.blocks is None:
        if k.sem is not None:
            warnings.warn(
                "the couplings have no standard errors and no bias correction: k keeps no block sums. "
                "Use fewer points or more draws.",
                stacklevel=2,
            )
        c = _filled(_couplings_of(t, order, noise, even, about), t["mean"].shape)
        return Action(**c, ridge=noise, order=order)

    def packed(part: Cumulants) -> dict[str, Any]:
        c = _couplings_of(field_tensors(part, *_NEEDED[order]), order, noise, even, about)
        return {n: _pack(v, _RANKS.get(n, 1)) for n, v in c.items()}

    return _with_errors(k.jackknife(packed), k, bias_correction, ridge=noise, order=order)


def _unpacked(c: dict[str, Any], size: int) -> dict[str, Any]:
    return {n: symmetric_tensors.unpack(v, size, _RANKS[n]) if _RANKS.get(n, 1) > 1 else v for n, v in c.items()}


def _with_errors(found: tuple[dict, dict, dict], k: Cumulants, bias_correction: bool, **rest: Any) -> Action:
    """The action of packed couplings with their standard errors and bias."""
    value, sem, bias = found
    share = _bias_share(k)
    bias = {n: share * v for n, v in bias.items()}
    if bias_correction:
        value = {n: v - bias[n] for n, v in value.items()}

    def full(c: dict[str, Any]) -> dict[str, Any]:
        return {**_filled(_unpacked(c, k.num_points), c["mean"].shape), **rest}

    return Action(
        **full(value), sem=Action(**full(sem)), bias=Action(**full(bias)) if bias_correction else None
    )


def _relative(
    k: Cumulants,
    base: Cumulants,
    order: int | str,
    even: bool,
    about: str,
    bias_correction: bool,
    ridge: float | None,
    max_condition: float,
) -> Action:
    """Couplings of ``k`` less those of ``base``, block by block."""
    tensors = [field_tensors(part, *_NEEDED[order]) for part in (k, base)]
    if any(t["k2"].ndim != 2 for t in tensors):
        raise ValueError("relative_to compares two theories at one cutoff each: pass k[i] and relative_to=base[i]")
    means = [t["mean"] for t in tensors]
    if means[0].shape != means[1].shape:
        raise ValueError(f"k is on {means[0].shape[-1]} points and relative_to on {means[1].shape[-1]}")
    if about == "mean" and (means[0] != means[1]).any():
        raise ValueError("the two theories have different means, so their couplings are of different fields; pass "
                         "about='zero', or cumulants(..., zero_mean=True)")
    base = base.up_to(_HIGHEST[order])
    if even or order == "next":
        for part in (k, base):
            _check_even(part)
    noise = [np.asarray(_regularise(p, max_condition) if ridge is None else float(ridge)) for p in (k, base)]

    def difference(*parts: Cumulants) -> dict[str, Any]:
        c, c0 = (
            _filled(_couplings_of(field_tensors(p, *_NEEDED[order]), order, n, even, about), p.mean.shape)
            for p, n in zip(parts, noise, strict=True)
        )
        return {n: _pack(v if n == "mean" else v - c0[n], _RANKS.get(n, 1)) for n, v in c.items()}

    if k.blocks is None or base.blocks is None:
        return Action(**_unpacked(difference(k, base), k.num_points), ridge=noise[0], order=order)
    return _with_errors(k.jackknife(difference, base), k, bias_correction, ridge=noise[0], order=order)


def _couplings_of(t: dict[str, Any], order: int | str, ridge: Any, even: bool, about: str) -> dict[str, Any]:
    if even:
        t = {n: v for n, v in t.items() if n != "k3"}
    c = _couplings(t, order, ridge)
    if about == "mean":
        return {**c, "mean": t["mean"]}
    if order == "next" and (t["mean"] != 0).any():
        raise ValueError("the next order stands about the mean; use about='mean'")
    return {**_about_zero(c, t["mean"]), "mean": 0 * t["mean"]}


def _pack(tensor: Any, rank: int) -> Any:
    """One entry per multiset of indices of a symmetric tensor, so that replicates stay small."""
    if rank < 2:
        return tensor
    return tensor[(..., *symmetric_tensors.multisets(tensor.shape[-1], rank).T)]


def _check_even(k: Cumulants) -> None:
    error = None if k.sem is None else k.sem.k3
    if k.k3 is None or error is None and k.num_samples is not None:  # an estimate without its error proves nothing
        return
    k3 = np.abs(np.asarray(k.k3))
    if error is None:
        scale = np.sqrt(np.diagonal(k.k2).max()) ** 3
        odd = bool((k3 > 1e-8 * scale).any())
    else:
        odd = bool((k3 > _EVEN_SIGMAS * error).any())
    if odd:
        warnings.warn(
            "the theory is taken as even, but a third cumulant differs from zero; the couplings ignore it",
            stacklevel=3,
        )


def _split(k: Cumulants) -> list[Cumulants]:
    return [k[i] for i in range(k.mean.shape[0])]


def _stack(parts: list) -> Any:
    return jax.tree_util.tree_map(lambda *leaves: symmetric_tensors.namespace(leaves).stack(leaves), *parts)


def running_couplings(
    k: Cumulants,
    order: int | str | None = None,
    *,
    even: bool = False,
    ridge: float | None = None,
    max_condition: float = 1e8,
) -> xr.Dataset:
    """Couplings at every scale of a flow, with standard errors, as one table.

    Parameters
    ----------
    k : Cumulants
        With a leading cutoff axis, as :func:`~bayes_brg.correlators.cumulants` makes from ``flow.predict``;
        one cutoff works too.
    order, even, ridge, max_condition
        As for :func:`action`.

    Returns
    -------
    xarray.Dataset
        Over ``cutoff`` (units of the metric's stiffness) and ``point`` (mesh index). Each name has a ``_sem``
        beside it if ``k`` came from draws, and is then corrected for bias by the same jackknife:

        constant, linear, cubic, quartic
            S0, J_i, g3_iii, g4_iiii.
        quadratic
            A_ij, dims (point, point2).
        mass
            sum_j A_ij: the mass-like term, what S costs a field that is the same at all points.
        effective_cubic, effective_quartic
            g3_iii K_ii^(3/2) and g4_iiii K_ii^2: dimensionless, unchanged if the field is rescaled.
        variance, skewness, kurtosis
            K_ii, kappa3_iii / K_ii^(3/2) and kappa4_iiii / K_ii^2 (0 for a Gaussian).
    """
    if order is None:
        order = _default_order(k)
    if order not in _NEEDED:
        raise ValueError(f"order is {order!r}; expected 0, 1, 2 or 'next'")
    t = field_tensors(k, *_NEEDED[order])
    leading = t["k2"].ndim == 3
    if t["k2"].ndim not in (2, 3):
        raise ValueError(f"k2 has shape {t['k2'].shape}; expected (M, M) or (cutoff, M, M)")
    num_points, rows, ridges = t["k2"].shape[-1], [], []
    for part in _split(k) if leading else [k]:
        part = part.up_to(_HIGHEST[order])
        noise = _regularise(part, max_condition) if ridge is None else float(ridge)
        ridges.append(noise)

        def table(p: Cumulants, noise: float = noise) -> dict[str, Any]:
            return _running(field_tensors(p, *_NEEDED[order]), order, np.asarray(noise), even)

        if part.blocks is None:
            rows.append(table(part))
            continue
        value, sem, bias = part.jackknife(table)
        share = _bias_share(part)
        rows.append({n: v - share * bias[n] for n, v in value.items()} | {f"{n}_sem": v for n, v in sem.items()})
    dims = {"constant": (), "quadratic": ("point", "point2")}
    lead = ("cutoff",) if leading else ()
    data = {}
    for name in rows[0]:
        values = np.stack([row[name] for row in rows]) if leading else rows[0][name]
        data[name] = (lead + dims.get(name.removesuffix("_sem"), ("point",)), values)
    coords: dict[str, Any] = {"point": np.arange(num_points)}
    if leading:
        coords["cutoff"] = k.cutoff if k.cutoff is not None else np.arange(t["k2"].shape[0])
    data["ridge"] = (lead, np.array(ridges) if leading else ridges[0])
    out = xr.Dataset(data, coords=coords, attrs={"order": str(order)})
    if k.labels is not None:
        out = out.assign_coords(label=("point", [str(label) for label in k.labels]))
    return out


def _running(t: dict[str, Any], order: int | str, ridge: Any, even: bool) -> dict[str, Any]:
    c = _filled(_couplings_of(t, order, ridge, even, "mean"), t["mean"].shape)
    i = np.arange(t["k2"].shape[-1])
    variance = t["k2"][..., i, i]
    g3, g4 = c["cubic"][..., i, i, i], c["quartic"][..., i, i, i, i]
    out = {
        "constant": c["constant"],
        "linear": c["linear"],
        "quadratic": c["quadratic"],
        "mass": c["quadratic"].sum(-1),
        "cubic": g3,
        "quartic": g4,
        "effective_cubic": g3 * variance**1.5,
        "effective_quartic": g4 * variance**2,
        "variance": variance,
    }
    if "k3" in t and not even:
        out["skewness"] = t["k3"][..., i, i, i] / variance**1.5
    if "k4" in t:
        out["kurtosis"] = t["k4"][..., i, i, i, i] / variance**2
    return out
