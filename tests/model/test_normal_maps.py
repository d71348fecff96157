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
