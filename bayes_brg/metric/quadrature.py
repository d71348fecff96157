"""Sums and integrals over all labels of a distribution of one number, for its Fisher information.

Whole numbers are enumerated, counts without a bound up to where nothing is left. Anything else is integrated
by the trapezium rule, which converges exponentially on the real line: the support is mapped to u ∈ ℝ, and ℝ to two
half-lines u = c ± w eᵛ around a centre c, so that a kink at c does no harm, the scale w hardly matters, and tails
that fall like a power are reached.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import biject_to

MOST_LABELS = 2**14
STEP = 0.0625
ENDS = (-36.0, 36.0)  # of v, in which the integrand falls like e^{−|v|} or faster
ROUGH = 256  # draws that give a centre and a scale


class Rule(NamedTuple):
    """Labels and the logs of what their densities are multiplied by."""

    values: jax.Array
    """(node, ...)"""
    log_weight: jax.Array
    """(node, ...), or a scalar"""

    def mass(self, log_density: jax.Array) -> jax.Array:
        """Probability that each node stands for."""
        total = log_density + self.log_weight
        return jnp.where(jnp.isfinite(total), jnp.exp(jnp.where(jnp.isfinite(total), total, 0.0)), 0.0)


def reach(base: dist.Distribution) -> jax.Array:
    """Number of labels, from the lowest, beyond which there is none or less than rounding is left.

    Of counts without a bound, for tails that fall at least as fast as a negative binomial's: by 1/e every variance/mean
    or so, of which 45 are 1e-19.
    """
    if hasattr(base.support, "upper_bound"):
        return base.support.upper_bound - base.support.lower_bound
    if base.support is dist.constraints.boolean:
        return jnp.ones(())
    mean, variance = base.mean, base.variance
    return mean + 12 * jnp.sqrt(variance) + 45 * variance / jnp.maximum(mean, 1e-30) + 30


def rule(base: dist.Distribution, shape: tuple[int, ...], labels: int) -> Rule:
    """Labels for numbers of the given shape, which may be larger than the distribution's own."""
    if base.support.is_discrete:
        lowest = jnp.broadcast_to(getattr(base.support, "lower_bound", 0), shape)
        values = lowest + jnp.arange(labels).reshape(-1, *(1,) * len(shape))
        inside = base.support(values)
        return Rule(jnp.where(inside, values, lowest), jnp.where(inside, 0.0, -jnp.inf))
    transform = biject_to(base.support)
    rough = jnp.sort(transform.inv(base.sample(jax.random.key(0), (ROUGH,))), axis=0)
    centre, width = rough[ROUGH // 2], rough[3 * ROUGH // 4] - rough[ROUGH // 4]
    if hasattr(base, "loc") and base.support is dist.constraints.real:
        centre = jnp.broadcast_to(base.loc, centre.shape)
    centre, width = (jnp.broadcast_to(a, shape) for a in (centre, width))
    v = jnp.arange(*ENDS, STEP).reshape(-1, *(1,) * len(shape))
    far = width * jnp.exp(v)
    u = jnp.concatenate([centre - far, centre + far])
    values = transform(u)
    log_weight = jnp.log(width) + v + jnp.log(STEP)
    return Rule(values, jnp.concatenate([log_weight, log_weight]) + transform.log_abs_det_jacobian(u, values))
