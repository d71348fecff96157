"""The generalised cos-net as a free field with a momentum cutoff, and its renormalisation (77)-(90).

    φ(x) = Σ_i w_i h_i(x),  h_i(x) = cos(b_i·x + c_i)/√(|b_i|² + m²),
    w_i ~ N(0, σ_w²/N),  b_i ~ Unif(ball of radius R in d dimensions),  c_i ~ Unif[−π, π].

Σ(p) = C_d σ_w²/(p² + m²) for |p| < R and 0 beyond. Units: R, m and p are inverse lengths. NumPy float64; the
radial integrals are composite Gauss-Legendre on panels that resolve both the pole at |p| = im and the
oscillation.
"""

import math
from typing import Any

import numpy as np
from scipy import special

from ..core.arrays import check_floats
from .infinite_width import finite_width_kappa4

_DIMENSIONS = (1, 2, 3)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


def _positive(**values):
    for name, value in values.items():
        array = check_floats(value, name, finite=False)
        if np.isnan(array).any() or not (array > 0).all():
            raise ValueError(f"{name} must be positive, got {value}")


def _check_dim(dim, known=None):
    if isinstance(dim, bool) or int(dim) != dim or dim < 1 or (known and dim not in known):
        raise ValueError(
            f"dim must be {'one of ' + str(known) if known else 'a positive integer'}, got {dim!r}"
        )
    return int(dim)


def _distances(r):
    r = check_floats(r, "r")
    if (r < 0).any():
        raise ValueError("r must hold finite distances ≥ 0")
    return r


def _radial(r, dim, mass, radius, power):
    """∫_0^R dp p^{d−1} j_d(p r)/(p² + m²)^power, j_d the directional mean of e^{ip·x}; the shape of r."""
    r = _distances(r)
    distinct, inverse = np.unique(r.ravel(), return_inverse=True)
    values = np.empty_like(distinct)
    for start in range(
        0, distinct.size, 64
    ):  # sorted, so that a block shares the panels of its largest distance
        block = distinct[start : start + 64]
        p, weight = _momenta(block[-1], mass, radius)
        phase = np.multiply.outer(block, p)
        if dim == 1:
            wave = np.cos(phase)
        elif dim == 2:
            wave = special.j0(phase)
        else:
            wave = np.sinc(phase / math.pi)
        values[start : start + 64] = wave @ (weight * p ** (dim - 1) / (p * p + mass * mass) ** power)
    return values[inverse].reshape(r.shape)


def _momenta(distance, mass, radius):
    """Gauss-Legendre momenta and weights on [0, R]: panels double from length m, at most 8 radians each."""
    edges = [0.0]
    while edges[-1] < radius:
        longest = max(mass, edges[-1])
        edges.append(min(radius, edges[-1] + longest))
    lengths = np.diff(edges)
    pieces = np.maximum(1, np.ceil(lengths * distance / 8)).astype(int)
    if pieces.sum() > 10**6:
        raise ValueError(
            f"radius · r = {radius * distance:.3g} oscillates too fast for the quadrature; take r smaller"
        )
    half = np.repeat(lengths / pieces, pieces) / 2
    left = np.concatenate(
        [edge + 2 * h * np.arange(k) for edge, h, k in zip(edges, lengths / pieces / 2, pieces, strict=False)]
    )
    p = left[:, None] + half[:, None] * (1 + _NODES)
    return p.ravel(), (half[:, None] * _WEIGHTS).ravel()


def _ball(dim, radius):
    """Volume of the d-ball."""
    return math.pi ** (dim / 2) / math.gamma(dim / 2 + 1) * radius**dim


def cosnet_normalization(dim: int, radius: float) -> float:
    """C_d = (2π)^d/(2 Vol B_R) (81): turns the free propagator into the covariance of the cos-net.

    dim any positive integer; radius R > 0 in inverse lengths; C_d in units of R^{−d}.
    """
    _positive(radius=radius)
    dim = _check_dim(dim)
    return (2 * math.pi) ** dim / (2 * _ball(dim, radius))


def cosnet_propagator(r, *, dim: int, mass: float, radius: float = math.inf) -> np.ndarray:
    """Free propagator with a sharp cutoff: G_R(r) = ∫_{|p|<R} d^dp/(2π)^d e^{ip·x}/(p² + m²), r = |x|.

    Parameters
    ----------
    r : array (...)
        Distances ≥ 0, 0 included.
    dim : {1, 2, 3}
    mass : float
        m > 0, inverse length.
    radius : float
        R > 0. Infinity gives e^{−mr}/(2m), K0(mr)/(2π), e^{−mr}/(4πr) for d = 1, 2, 3; the last two diverge
        at 0.

    Returns
    -------
    ndarray (...)
        Absolute error below 1e-12 of the value at r = 0.
    """
    dim = _check_dim(dim, _DIMENSIONS)
    _positive(mass=mass, radius=radius)
    r = _distances(r)
    if math.isinf(radius):
        if dim == 1:
            return np.exp(-mass * r) / (2 * mass)
        if dim == 2:
            return special.k0(mass * r) / (2 * math.pi)
        with np.errstate(divide="ignore"):
            return np.exp(-mass * r) / (4 * math.pi * r)
    sphere = dim * _ball(dim, 1.0)
    return sphere / (2 * math.pi) ** dim * _radial(r, dim, mass, radius, 1)


def cosnet_covariance(r, *, dim: int, mass: float, radius: float, weight_var: float = 1.0) -> np.ndarray:
    """Covariance Σ(x, y) = σ_w² C_d G_R(|x − y|) of the cos-net's output, at any width.

    Parameters
    ----------
    r : array (...)
        Distances |x − y| ≥ 0.
    dim, mass, radius
        As for `cosnet_propagator`, R finite: C_d vanishes as R → ∞ (use `cosnet_propagator` for that limit).
    weight_var : float
        σ_w², the sum over hidden units of the readout's second moments (87); σ_w² of the prior before
        training.

    Returns
    -------
    ndarray (...)
    """
    _check_variance(weight_var)
    if math.isinf(radius):
        raise ValueError(
            "radius=inf: the covariance vanishes with C_d; cosnet_propagator has the limit of G_R"
        )
    return (
        weight_var
        * cosnet_normalization(dim, radius)
        * cosnet_propagator(r, dim=dim, mass=mass, radius=radius)
    )


def _check_variance(weight_var):
    value = check_floats(weight_var, "weight_var", finite=False)
    if not np.isfinite(value).all() or (value < 0).any():
        raise ValueError(f"weight_var is a variance and must be finite and ≥ 0, got {weight_var}")


def cosnet_spectrum(p, *, dim: int, mass: float, radius: float, weight_var: float = 1.0) -> np.ndarray:
    """Σ(p) = C_d σ_w²/(p² + m²) for |p| < R, 0 beyond (81); p (...) are moduli, inverse lengths."""
    _positive(mass=mass)
    _check_variance(weight_var)
    p = check_floats(p, "p")
    return np.where(
        np.abs(p) < radius, cosnet_normalization(dim, radius) * weight_var / (p * p + mass * mass), 0.0
    )


def cosnet_effective_variance(mean, cov) -> np.ndarray:
    """σ_w²(Λ) = Σ_i Ξ_ii(Λ) + w̄_i(Λ)² (87), the only thing the covariance keeps of the readout.

    Parameters
    ----------
    mean : array (..., n);  cov : array (..., n, n)
        As `renormalized_readout` gives them, one output; leading axes (cutoffs) are kept.
    """
    mean, cov = check_floats(mean, "mean"), check_floats(cov, "cov")
    if mean.ndim < 1 or cov.shape != (*mean.shape, mean.shape[-1]):
        raise ValueError(f"mean {mean.shape} and cov {cov.shape} must be (..., n) and (..., n, n)")
    return np.trace(cov, axis1=-2, axis2=-1) + (mean * mean).sum(-1)


def cosnet_action_coefficient(*, dim: int, radius: float, weight_var: Any) -> Any:
    """1/(C_d σ_w²(Λ)): the free action is S = ½ ∫ φ(−∇² + m²)φ times this, for |p| < R (84).

    It also multiplies p² and m² when the field is rescaled to unit normalisation instead (89).
    """
    _positive(weight_var=weight_var)
    return 1 / (cosnet_normalization(dim, radius) * check_floats(weight_var, "weight_var", finite=False))


def cosnet_mass(mass: float, *, dim: int, radius: float, weight_var: Any) -> Any:
    """m_Λ = m/√(C_d σ_w²(Λ)) (89). The correlation length 1/m is unchanged, since momenta rescale too.

    Use it for a momentum as well: p_Λ is ``cosnet_mass(p, ...)``.
    """
    _positive(mass=mass)
    return mass * np.sqrt(cosnet_action_coefficient(dim=dim, radius=radius, weight_var=weight_var))


def cosnet_radius(radius: float, *, dim: int, weight_var: Any, prior_var: float) -> Any:
    """R_Λ = R (σ_w²(Λ)/σ_w²(prior))^{−1/d}, from C_d(Λ) = (2π)^d/(2 Vol B_{R_Λ}) (90, with the 2 it lacks).

    Parameters
    ----------
    radius : float
        R, inverse length.
    weight_var : float or array
        σ_w²(Λ), see `cosnet_effective_variance`.
    prior_var : float
        σ_w² of the prior, at which R_Λ = R. The sum over units, not the variance of one weight.

    Notes
    -----
    R_Λ labels the amplitude of the covariance; the support of the spectrum stays |p| < R.
    """
    _positive(radius=radius, weight_var=weight_var, prior_var=prior_var)
    return radius * (check_floats(weight_var, "weight_var", finite=False) / prior_var) ** (-1 / _check_dim(dim))


def cosnet_kappa4(
    points, *, mass: float, radius: float, width: int, weight_var: float = 1.0, weight_kurtosis: float = 3.0
) -> np.ndarray:
    """Connected four-point function of a cos-net of finite width, exact at any N.

    The average over c of four cosines leaves (1/8) Σ cos(b·s) over s = x1 + x2 − x3 − x4 and its two fellows.

    Parameters
    ----------
    points : array (..., 4, dim)
        The four points, dim 1, 2 or 3.
    mass, radius : float
        m, R > 0.
    width : int
        N.
    weight_var, weight_kurtosis : float
        As for `finite_width_kappa4`.

    Returns
    -------
    ndarray (...)
    """
    _positive(mass=mass, radius=radius)
    points = check_floats(points, "points", finite=False)
    if points.ndim < 2 or points.shape[-2] != 4 or points.shape[-1] not in _DIMENSIONS:
        raise ValueError(f"points must have shape (..., 4, dim) with dim 1, 2 or 3, got {points.shape}")
    dim = points.shape[-1]

    def average(shift, power):  # over b: E cos(b·shift)/(|b|² + m²)^power
        return dim / radius**dim * _radial(np.linalg.norm(shift, axis=-1), dim, mass, radius, power)

    x1, x2, x3, x4 = np.moveaxis(points, -2, 0)
    fourth = sum(average(shift, 2) for shift in (x1 + x2 - x3 - x4, x1 - x2 + x3 - x4, x1 - x2 - x3 + x4)) / 8
    pairs = average(points[..., :, None, :] - points[..., None, :, :], 1) / 2
    return finite_width_kappa4(
        fourth, pairs, width=width, weight_var=weight_var, weight_kurtosis=weight_kurtosis
    )
