"""Exact maps between a prior and N(0, 1), entry by entry where it has no other form: what a sampler that solves a
Gaussian exactly moves in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import erf, gammainc, log_ndtr, ndtr, ndtri

from .distributions import unwrap

__all__ = ["ball_from_normal", "ball_to_normal", "from_normal", "to_normal", "unmapped"]


def _tril(d: Any) -> jax.Array:
    if isinstance(d, dist.MultivariateNormal):
        return d.scale_tril
    return jnp.linalg.cholesky(d.covariance_matrix)


def from_normal(prior: dist.Distribution, z: jax.Array) -> jax.Array:
    """The value θ = T(z) of a site, T(N(0, 1)) being its prior; z has the shape of θ.

    Gaussians by location and scale, transformed laws by their transforms, a law with `from_normal` by that, and any
    other of independent entries by its quantile function, T = F⁻¹ ∘ Φ: of the half-normal and the exponential law in
    the form that keeps both tails, where F is 1 to rounding (from 5 σ in float32).
    """
    d = unwrap(prior)
    match d:
        case dist.Normal():
            return d.loc + d.scale * z
        case dist.HalfNormal():
            upper = -ndtri(0.5 * ndtr(-jnp.maximum(z, 0.0)))
            return d.scale * jnp.where(z > 0, upper, jax.lax.erf_inv(ndtr(jnp.minimum(z, 0.0))) * 2**0.5)
        case dist.Exponential():
            return jnp.where(z > 0, -log_ndtr(-jnp.maximum(z, 0.0)), -jnp.log1p(-ndtr(jnp.minimum(z, 0.0)))) / d.rate
        case dist.MultivariateNormal() | dist.LowRankMultivariateNormal():
            return d.loc + jnp.einsum("...ij,...j->...i", _tril(d), z)
        case dist.TransformedDistribution():
            value = from_normal(d.base_dist, z)
            for transform in d.transforms:
                value = transform(value)
            return value
    if hasattr(d, "from_normal"):
        return d.from_normal(z)
    return d.icdf(ndtr(z))


def to_normal(prior: dist.Distribution, value: jax.Array) -> jax.Array:
    """The inverse of `from_normal`."""
    d = unwrap(prior)
    match d:
        case dist.Normal():
            return (value - d.loc) / d.scale
        case dist.HalfNormal():
            r, middle = value / d.scale, 0.6744898
            upper = -ndtri(2 * ndtr(-jnp.maximum(r, middle)))
            return jnp.where(r > middle, upper, ndtri(erf(jnp.minimum(r, middle) / 2**0.5)))
        case dist.Exponential():
            r, middle = value * d.rate, 0.6931472
            return jnp.where(r > middle, -ndtri(jnp.exp(-jnp.maximum(r, middle))),
                             ndtri(-jnp.expm1(-jnp.minimum(r, middle))))
        case dist.MultivariateNormal() | dist.LowRankMultivariateNormal():
            gap = (value - d.loc)[..., None]
            tril = jnp.broadcast_to(_tril(d), (*gap.shape[:-2], *_tril(d).shape[-2:]))
            return solve_triangular(tril, gap, lower=True)[..., 0]
        case dist.TransformedDistribution():
            for transform in reversed(d.transforms):
                value = transform.inv(value)
            return to_normal(d.base_dist, value)
    if hasattr(d, "to_normal"):
        return d.to_normal(value)
    return ndtri(d.cdf(value))


def unmapped(prior: dist.Distribution, shape: tuple[int, ...]) -> str:
    """Name of a prior that has no such map; "" for one that has. `shape` is that of the site."""
    d = unwrap(prior)
    try:
        z = jax.ShapeDtypeStruct(shape, jnp.result_type(float))
        value = jax.eval_shape(lambda z: from_normal(prior, z), z)
        back = jax.eval_shape(lambda v: to_normal(prior, v), value)
    except (NotImplementedError, AttributeError, ImportError, TypeError, ValueError):
        return type(d).__name__
    coupled = d.event_dim and not isinstance(d, (dist.MultivariateNormal, dist.LowRankMultivariateNormal)) \
        and not isinstance(d, dist.TransformedDistribution) and not hasattr(d, "from_normal")
    return type(d).__name__ if coupled or value.shape != shape or back.shape != shape else ""


# -- the ball -----------------------------------------------------------------------------------------------------
BISECTIONS = 60


def ball_from_normal(z: jax.Array, radius: float) -> jax.Array:
    """Uniform in the ball of d dimensions: along z (..., d), at the radius R F(|z|)^{1/d}, F the law of |z|."""
    d = z.shape[-1]
    square = jnp.sum(z**2, axis=-1, keepdims=True)
    length = jnp.sqrt(square)
    return radius * gammainc(d / 2, square / 2) ** (1 / d) * z / length


def ball_to_normal(value: jax.Array, radius: float) -> jax.Array:
    """The inverse of `ball_from_normal`, by bisection."""
    d = value.shape[-1]
    length = jnp.linalg.norm(value, axis=-1, keepdims=True)
    share = (length / radius) ** d

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        below = gammainc(d / 2, middle**2 / 2) < share
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    ends = jnp.zeros_like(length), jnp.full_like(length, 8.0 + d**0.5)
    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, ends)
    return value / length * 0.5 * (low + high)
