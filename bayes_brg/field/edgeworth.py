"""Edgeworth expansion of the density of a field on a mesh, (39) and (40) with connected correlators.

p = p0 [1 + k3.H3/6 + k4.H4/24 + k3 k3.H6/72 + ...] around the Gaussian p0 with the field's mean and
covariance. The first correction is of order N^(-1/2) for a network of width N, the other two together are of
order 1/N. The expansion is a polynomial times a Gaussian: far from the mean it may be negative, and is
reported so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy.special import ndtr

from ..core.arrays import check_floats, read_array
from . import symmetric_tensors
from .cumulants import Cumulants, cholesky, field_tensors
from .draws import largest

__all__ = [
    "EdgeworthReport",
    "edgeworth_logpdf",
    "edgeworth_marginal",
    "edgeworth_pdf",
    "edgeworth_report",
]

_NEEDED: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {
    0: ((), ()),
    1: (("k3",), ()),
    2: (("k4",), ("k3",)),
}


def _expansion(phi: Any, k: Cumulants, order: int) -> tuple[Any, Any, Any]:
    """Namespace, log p0(phi) and p/p0 - 1."""
    if order not in _NEEDED:
        raise ValueError(f"order is {order!r}; expected 0 (Gaussian), 1 (third cumulant) or 2 (all of 1/N)")
    t = field_tensors(k, *_NEEDED[order])
    num_points = t["k2"].shape[-1]
    if t["k2"].ndim != 2:
        raise ValueError(f"k2 has shape {t['k2'].shape}; index the cutoff first, k[i]")
    traced = symmetric_tensors.namespace(t, phi) is jnp
    xp: Any = jnp if traced or isinstance(phi, jax.Array) else np
    phi = xp.asarray(read_array(phi, "phi", finite=False))
    if phi.ndim < 1 or phi.shape[-1] != num_points:
        raise ValueError(f"phi has shape {phi.shape}; its last axis must be the {num_points} points of k")
    if xp is np:
        phi = phi.astype(np.float64)
    lower, inverse = cholesky(t["k2"])
    host = symmetric_tensors.namespace(t)
    # In the whitened field u the propagator is 1, and every contraction is a plain trace.
    with np.errstate(invalid="ignore", over="ignore"):  # said by name
        u = (phi - t["mean"]) @ inverse.T
    if xp is np and not (np.abs(u) <= largest(3)).all():
        at = tuple(int(i[0]) for i in np.nonzero(~(np.abs(u) <= largest(3))))
        raise ValueError(f"phi is {phi[at[:-1]]} at index {at[:-1]}: not finite, or so many standard deviations from "
                         "the mean that the sixth power of their number leaves float64")
    logp = -0.5 * (u**2).sum(-1) - host.log(host.diagonal(lower)).sum() - 0.5 * num_points * np.log(2 * np.pi)
    k3 = symmetric_tensors.transform(t["k3"], inverse, 3, host) if "k3" in t else None
    k4 = symmetric_tensors.transform(t["k4"], inverse, 4, host) if "k4" in t else None
    return xp, logp, symmetric_tensors.in_chunks(lambda rows: _correction(rows, k3, k4, xp, host), u, num_points**2)


def _correction(u: Any, k3: Any, k4: Any, xp: Any, host: Any) -> Any:
    """p/p0 - 1 at whitened fields, with whitened cumulants; all of 1/N if ``k4`` is there."""
    num_points = u.shape[-1]
    correction = xp.zeros(u.shape[:-1], u.dtype)
    if k3 is not None:
        a = host.trace(k3)
        w = (u @ k3.reshape(num_points, -1)).reshape(*u.shape, num_points)
        v = (w @ u[..., None])[..., 0]
        c, au = (v * u).sum(-1), u @ a
        correction = correction + (c - 3 * au) / 6
        if k4 is not None:
            h6 = c**2 - 6 * au * c - 9 * (v**2).sum(-1) + 18 * (v @ a) + 9 * au**2
            h6 = h6 + 18 * (w**2).sum((-2, -1)) - 9 * (a @ a) - 6 * (k3**2).sum()
            correction = correction + h6 / 72
    if k4 is not None:
        b = host.trace(k4)
        uu = (u[..., :, None] * u[..., None, :]).reshape(*u.shape[:-1], -1)
        h4 = (
            ((uu @ k4.reshape(num_points**2, -1)) * uu).sum(-1)
            - 6 * ((u @ b) * u).sum(-1)
            + 3 * host.trace(b)
        )
        correction = correction + h4 / 24
    return correction


def edgeworth_pdf(phi: Any, k: Cumulants, order: int = 2) -> Any:
    """Edgeworth density of a field on a mesh; it may be negative.

    Parameters
    ----------
    phi : array (..., M)
        Field values at the points of ``k``. NumPy values are worked out in NumPy float64; JAX values in their
        own precision, differentiably and under ``jit``.
    k : Cumulants
        At one cutoff; ``k.at(points)`` for a marginal. A ``k3`` that is absent where ``k4`` is given counts
        as zero.
    order : int
        0 Gaussian; 1 with the third cumulant, order N^(-1/2); 2 with all of order 1/N.

    Returns
    -------
    array (...)
        Density, in units of 1/field^M.

    Raises
    ------
    ValueError
        For NumPy values that are not finite, or whose polynomials are not.

    Notes
    -----
    (39), (40) with H^{i1..in} = (-1)^n p0^(-1) d^n p0. Printed with moments in (39), it holds for cumulants.
    """
    xp, logp, correction = _expansion(phi, k, order)
    return xp.exp(logp) * (1 + correction)


def edgeworth_logpdf(phi: Any, k: Cumulants, order: int = 2) -> Any:
    """Log of :func:`edgeworth_pdf`; NaN where the density is negative.

    Parameters
    ----------
    phi : array (..., point)
    k : Cumulants
    order : {0, 1, 2}
        As for `edgeworth_pdf`.

    Returns
    -------
    array (...)
        In nats.
    """
    xp, logp, correction = _expansion(phi, k, order)
    if xp is np:
        with np.errstate(invalid="ignore", divide="ignore"):
            return logp + np.log1p(correction)
    return logp + jnp.log1p(correction)


def edgeworth_marginal(
    k: Cumulants,
    points: int | Sequence[int],
    order: int = 2,
    *,
    grid: Any = None,
    num: int = 201,
    width: float = 5.0,
) -> xr.DataArray:
    """One- or two-point marginal of the Edgeworth density on a grid of field values, to lay over a histogram.

    The marginal of the expansion is the expansion with the cumulants of those points.

    Parameters
    ----------
    k : Cumulants
        At one cutoff.
    points : int or sequence of one or two int
        Mesh indices.
    order : int
        As for :func:`edgeworth_pdf`.
    grid : array or pair of arrays, optional
        Field values; ``num`` values to ``width`` standard deviations either side of the mean if left out.

    Returns
    -------
    xarray.DataArray
        Dims ("phi",) or ("phi", "phi2").
    """
    part = k.at(points)
    if part.num_points > 2:
        raise ValueError(f"points is {points!r}; a marginal on a grid has one or two points")
    if grid is None:
        steps = np.linspace(-width, width, num)
        axes = [m + np.sqrt(part.k2[i, i]) * steps for i, m in enumerate(part.mean)]
    else:
        axes = [check_floats(g, "grid") for g in ([grid] if part.num_points == 1 else grid)]
    mesh = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    dims = ("phi", "phi2")[: part.num_points]
    density = np.asarray(edgeworth_pdf(mesh, part, order))
    return xr.DataArray(density, dims=dims, coords=dict(zip(dims, axes, strict=True)), name="density")


@dataclasses.dataclass(frozen=True)
class EdgeworthReport:
    """Where an Edgeworth density is negative.

    Attributes
    ----------
    intervals : tuple of tuple of (low, high)
        For each mesh point, the field values at which its one-point marginal is negative; exact.
    negative_mass : array (M,)
        Integral of the negative part of each one-point marginal; exact.
    fraction, fraction_sem : float
        Share of the draws at which the joint density is negative, with its binomial standard error.
    negative : array
        Indices of those draws.
    """

    intervals: tuple
    negative_mass: np.ndarray
    fraction: float
    fraction_sem: float
    negative: np.ndarray


def edgeworth_report(
    k: Cumulants, order: int = 2, *, phi: Any = None, key: Any = None, num_draws: int = 10_000
) -> EdgeworthReport:
    """Say where the Edgeworth density is negative: exactly for each point, by draws for the joint density.

    Parameters
    ----------
    k : Cumulants
        At one cutoff.
    order : int
        As for :func:`edgeworth_pdf`.
    phi : array (sample, M), optional
        Draws at which to look.
    key : jax.random key, optional
        Without ``phi``: for ``num_draws`` draws of the Gaussian p0. Draws are split as by any JAX sampler.

    Returns
    -------
    EdgeworthReport
    """
    field_tensors(k, *_NEEDED.get(order, ((), ())))
    if phi is None:
        if key is None:
            raise ValueError("give draws phi= to look at, or a key= for draws of the Gaussian")
        lower, _ = cholesky(np.asarray(k.k2, dtype=np.float64))
        noise = np.asarray(jax.random.normal(key, (num_draws, k.num_points)), dtype=np.float64)
        phi = np.asarray(k.mean) + noise @ lower.T
    _, _, correction = _expansion(check_floats(phi, "phi", finite=False), k, order)
    bad = np.asarray(correction).reshape(-1) < -1
    fraction = float(bad.mean())
    lines = [_negative_line(k.at(i), order) for i in range(k.num_points)]
    return EdgeworthReport(
        tuple(intervals for intervals, _ in lines),
        np.array([mass for _, mass in lines]),
        fraction,
        float(np.sqrt(fraction * (1 - fraction) / bad.size)),
        np.flatnonzero(bad),
    )


def _negative_line(k: Cumulants, order: int) -> tuple[tuple, float]:
    """Negative intervals of a one-point expansion and the mass in them."""
    scale = float(np.sqrt(k.k2[0, 0]))
    skew = 0.0 if k.k3 is None or order < 1 else float(k.k3.item()) / scale**3
    kurtosis = float(k.k4.item()) / scale**4 if order == 2 else 0.0
    hermite = np.array([1, 0, 0, skew / 6, kurtosis / 24, 0, skew**2 / 72 if order == 2 else 0.0])
    roots = np.polynomial.hermite_e.hermeroots(np.trim_zeros(hermite, "b"))
    real = np.sort(roots[np.abs(roots.imag) < 1e-9].real) if len(roots) else np.array([])
    edges = np.concatenate([[-np.inf], real, [np.inf]])
    value = np.polynomial.hermite_e.hermeval

    def below(x: float) -> float:  # integral of p0 (1 + sum c_n He_n) up to x is Phi - p0 sum c_n He_{n-1}
        if np.isinf(x):
            return float(x > 0)
        density = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
        return float(ndtr(x) - density * value(x, hermite[1:]))

    found, mass = [], 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = 0.5 * (max(low, min(high, 0.0) - 100) + min(high, max(low, 0.0) + 100))
        if value(inside, hermite) < 0:
            found.append((float(k.mean[0]) + scale * low, float(k.mean[0]) + scale * high))
            mass += below(low) - below(high)
    return tuple(found), mass
