"""Exact maps from N(0, 1) to a prior: the law of what they give, and their inverses."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from bayes_brg.model.cosnet import UniformBall
from bayes_brg.model.normal_maps import from_normal, to_normal, unmapped

LAWS = {
    "normal": dist.Normal(jnp.array([1.0, -2.0]), 0.5).to_event(1),
    "log-normal": dist.LogNormal(0.3, 0.4).expand((2,)),
    "uniform": dist.Uniform(-1.0, jnp.array([2.0, 3.0])),
    "laplace": dist.Laplace(0.5, 2.0).expand((2,)).to_event(1),
    "cauchy": dist.Cauchy(0.0, 1.0).expand((2,)),
    "half-normal": dist.HalfNormal(2.0).expand((2,)),
    "exponential": dist.Exponential(3.0).expand((2,)),
    "multivariate": dist.MultivariateNormal(jnp.ones(2), jnp.array([[2.0, 0.9], [0.9, 1.0]])),
    "ball": UniformBall(1, 2, 3.0),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_law_and_the_inverse(name, x64):
    """Kolmogorov–Smirnov of each coordinate against draws of the law itself."""
    law = LAWS[name]
    shape = law.batch_shape + law.event_shape
    assert unmapped(law, shape) == ""
    z = jax.random.normal(jax.random.key(0), (2000, *shape))
    value = jax.vmap(lambda z: from_normal(law, z))(z)
    np.testing.assert_allclose(jax.vmap(lambda v: to_normal(law, v))(value), z, atol=1e-6)
    draws = law.sample(jax.random.key(1), (2000,))
    for ours, theirs in zip(value.reshape(2000, -1).T, draws.reshape(2000, -1).T, strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3


@pytest.mark.parametrize("law", [dist.Dirichlet(jnp.ones(3)), dist.LKJCholesky(2), dist.VonMises(0.0, 1.0)],
                         ids=lambda law: type(law).__name__)
def test_laws_without_a_map(law):
    assert unmapped(law, law.batch_shape + law.event_shape) == type(law).__name__


@pytest.mark.parametrize("law", [dist.HalfNormal(2.0), dist.Exponential(0.5)], ids=lambda law: type(law).__name__)
def test_tails_in_float32(law):
    """Where the distribution function is 0 or 1 to rounding the map goes on, with its slope."""
    value = jnp.array([1e-9, 1e-4, 1.0, 1.3, 1.4, 12.0, 18.0, 24.0], jnp.float32)
    z, slope = jax.vmap(jax.value_and_grad(lambda v: to_normal(law, v)))(value)
    back, inverse = jax.vmap(jax.value_and_grad(lambda z: from_normal(law, z)))(z)
    np.testing.assert_allclose(back, value, rtol=1e-4)
    np.testing.assert_allclose(slope * inverse, 1.0, rtol=1e-3)
    exact = {"HalfNormal": stats.halfnorm(scale=2.0), "Exponential": stats.expon(scale=2.0)}[type(law).__name__]
    upper = -stats.norm.ppf(exact.sf(np.asarray(value, float)))
    lower = stats.norm.ppf(exact.cdf(np.asarray(value, float)))
    np.testing.assert_allclose(z, np.where(lower < 0, lower, upper), rtol=1e-4, atol=1e-5)
