"""Prior means and scales, entry by entry, in the coordinates of a metric."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import biject_to, constraints

from ..model.bound import BoundModel, Params, unwrap
from ..model.cosnet import UniformBall


def is_real(support: Any) -> bool:
    """Whether a support is all of ℝ, so that native and unconstrained coordinates are the same."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))


def _moments_unconstrained(d: dist.Distribution, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of u = T⁻¹(θ), θ ~ d.

    Entry by entry by the trapezium rule on 2,001 nodes over ±20 standard deviations (a rough scale comes from 512
    draws of a fixed key); for supports that couple entries, from 8,192 such draws, a relative error of about 1 %.
    """
    base, key = unwrap(d), jax.random.key(0)
    transform = biject_to(d.support)
    if base.event_dim:
        u = jax.vmap(transform.inv)(d.sample(key, (8192,)))
        return jnp.mean(u, axis=0), jnp.std(u, axis=0)
    rough = jax.vmap(transform.inv)(d.sample(key, (512,)))
    centre, width = jnp.mean(rough, axis=0), jnp.std(rough, axis=0)
    entry = biject_to(base.support)

    def log_density(t):
        u = centre + t * width
        theta = entry(u)
        return jnp.broadcast_to(base.log_prob(theta), shape) + entry.log_abs_det_jacobian(u, theta)

    t = jnp.linspace(-20.0, 20.0, 2001)
    log_p = jax.vmap(log_density)(t)
    p = jax.nn.softmax(jnp.where(jnp.isnan(log_p), -jnp.inf, log_p), axis=0)
    mean = jnp.tensordot(t, p, 1)
    variance = jnp.sum((t.reshape(-1, *(1,) * len(shape)) - mean) ** 2 * p, axis=0)
    return centre + width * mean, width * jnp.sqrt(variance)


def prior_moments(bound: BoundModel, sites: tuple[str, ...], coordinates: str, params: Params, x: Any
                  ) -> tuple[Params, Params]:
    """Prior mean m_p and standard deviation P₀^{−1/2} of each entry of `sites`, given their parents in `params`."""
    found = bound.priors(params, x)
    mean, scale = {}, {}
    for s in sites:
        d, shape = found[s], bound.site(s).shape
        if coordinates == "native" or is_real(d.support):
            mean[s] = jnp.broadcast_to(d.mean, shape)
            scale[s] = jnp.broadcast_to(jnp.sqrt(d.variance), shape)
        else:
            mean[s], scale[s] = _moments_unconstrained(d, shape)
    dtype = jnp.result_type(*params.values())
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (mean, scale))


def check_whitening(bound: BoundModel, sites: tuple[str, ...], coordinates: str, params: Params, x: Any,
                    moments: tuple[Params, Params]) -> None:
    """Refuse priors that have no scale for each entry: infinite variance, or correlated entries."""
    laws: dict[str, tuple[str, bool]] = {}

    def inspect(params):  # only traced: nothing is computed
        trace = bound.trace(params, x)
        for s in sites:
            base = unwrap(trace[s]["fn"])
            laws[s] = type(base).__name__, bool(base.event_dim) and not isinstance(base, UniformBall)

    jax.eval_shape(inspect, params)
    for s in sites:
        law, coupled = laws[s]
        if coupled and (coordinates == "native" or is_real(bound.site(s).support)):
            raise ValueError(f"whiten=True needs a prior scale for each entry, but the entries of site {s!r} are "
                             f"correlated under its {law} prior; write it non-centred (a Normal site and a "
                             "deterministic transform), or use whiten=False")
    mean, scale = (jax.tree.map(np.asarray, m) for m in moments)
    for s in sites:
        good = np.isfinite(mean[s]) & np.isfinite(scale[s]) & (scale[s] > 0)
        if not good.all():
            raise ValueError(f"whiten=True needs a finite prior mean and scale, but site {s!r} has mean "
                             f"{np.ravel(mean[s])[np.argmin(good)]} and scale {np.ravel(scale[s])[np.argmin(good)]} "
                             f"under its {laws[s][0]} prior; use coordinates='unconstrained', another prior, or "
                             "whiten=False")
