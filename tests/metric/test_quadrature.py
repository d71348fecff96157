"""The exact output Fisher matrix of any distribution of one number, against another quadrature to 1e-8."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import gammaln
from numpyro.distributions import transforms
from scipy.integrate import tanhsinh

from bayes_brg.metric.output_fisher import Data, choose, responses
from bayes_brg.model.bound import bind

E = jnp.exp
INF = np.inf


def unit(z):
    return jax.nn.sigmoid(z)


# name: (numbers that the parameters are made of, distribution, pieces of the support or number of labels)
FAMILIES = {
    "zero-inflated Poisson": (2, lambda a, b: dist.ZeroInflatedPoisson(unit(a), rate=E(b)), 200),
    "zero-inflated negative binomial": (
        3, lambda a, b, c: dist.ZeroInflatedNegativeBinomial2(E(a), E(b), gate=unit(c)), 3000),
    "negative binomial": (2, lambda a, b: dist.NegativeBinomial2(E(a), E(b)), 2000),
    "negative binomial, concentration .05": (2, lambda a, b: dist.NegativeBinomial2(E(a), 0.03 * E(b)), 8000),
    "gamma-Poisson": (2, lambda a, b: dist.GammaPoisson(E(a), E(b)), 2000),
    "beta-binomial": (2, lambda a, b: dist.BetaBinomial(E(a), E(b), 12), 13),
    "Weibull": (2, lambda a, b: dist.Weibull(E(a), E(b)), (0, INF)),
    "Gumbel": (2, lambda a, b: dist.Gumbel(a, E(b)), (-INF, 0, INF)),
    "normal above 0": (2, lambda a, b: dist.TruncatedNormal(a, E(b), low=0.0), (0, INF)),
    "normal between": (2, lambda a, b: dist.TruncatedNormal(a, E(b), low=-1.0, high=2.0), (-1, 2)),
    "Cauchy above 0": (2, lambda a, b: dist.TruncatedCauchy(a, E(b), low=0.0), (0, INF)),
    "log-normal, transformed": (
        2, lambda a, b: dist.TransformedDistribution(dist.Normal(a, E(b)), transforms.ExpTransform()), (0, 1, INF)),
    "logit-normal, transformed": (
        2, lambda a, b: dist.TransformedDistribution(dist.Normal(a, E(b)), transforms.SigmoidTransform()), (0, 1)),
    "beta": (2, lambda a, b: dist.Beta(1 + E(a), 1 + E(b)), (0, 1)),
    "beta by its mean": (2, lambda a, b: dist.BetaProportion(unit(a), 4 * E(b)), (0, 1)),
    "Kumaraswamy": (2, lambda a, b: dist.Kumaraswamy(1 + E(a), 1 + E(b)), (0, 1)),
    "gamma": (2, lambda a, b: dist.Gamma(E(a), E(b)), (0, 1, INF)),
    "inverse gamma": (2, lambda a, b: dist.InverseGamma(2 + E(a), E(b)), (0, 1, INF)),
    "Pareto": (1, lambda a: dist.Pareto(1.5, E(a)), (1.5, INF)),
    "half Cauchy": (1, lambda a: dist.HalfCauchy(E(a)), (0, INF)),
    "chi-squared": (1, lambda a: dist.Chi2(2 + E(a)), (0, 3, INF)),
    "asymmetric Laplace": (3, lambda a, b, c: dist.AsymmetricLaplace(a, E(b), E(c)), "loc"),
    "soft Laplace": (2, lambda a, b: dist.SoftLaplace(a, E(b)), (-INF, 0, INF)),
    "Student, unknown ν": (3, lambda a, b, c: dist.StudentT(2 + E(a), b, E(c)), (-INF, 0, INF)),
    "normal": (2, lambda a, b: dist.Normal(a, E(b)), (-INF, 0, INF)),
}
AT = np.array([0.4, -0.3, 0.2])


def negative_binomial(mean, concentration, gate=0.0):
    """log p(y) by log-gamma functions: NumPyro's own, by an approximate beta function, is right to 1e-7 only."""
    def log_p(y):
        rest = jnp.log(mean / (mean + concentration))
        counts = (gammaln(y + concentration) - gammaln(concentration) - gammaln(y + 1.0) + y * rest
                  + concentration * jnp.log(concentration / (mean + concentration)))
        return jnp.log(jnp.where(y == 0, gate, 0.0) + (1 - gate) * jnp.exp(counts))
    return log_p


def beta_binomial(a, b, n):
    def log_p(y):
        return (gammaln(n + 1.0) - gammaln(y + 1.0) - gammaln(n - y + 1.0) + gammaln(y + a) + gammaln(n - y + b)
                - gammaln(n + a + b) - gammaln(a) - gammaln(b) + gammaln(a + b))
    return log_p


OWN = {
    "beta-binomial": lambda a, b: beta_binomial(E(a), E(b), 12),
    "negative binomial": lambda a, b: negative_binomial(E(a), E(b)),
    "negative binomial, concentration .05": lambda a, b: negative_binomial(E(a), 0.03 * E(b)),
    "gamma-Poisson": lambda a, b: negative_binomial(E(a - b), E(a)),
    "zero-inflated negative binomial": lambda a, b, c: negative_binomial(E(a), E(b), unit(c)),
}


def by_quadrature(count, log_prob, support):
    """E[score scoreᵀ] of parameters AT by SciPy's tanh–sinh rule, or summed over labels."""
    z = jnp.asarray(AT[:count])

    @jax.jit
    def entries(y):
        def log_p(z):
            return log_prob(*z)(y)
        score = jax.jacfwd(log_p)(z)
        p = jnp.exp(log_p(z))
        return jnp.where((p > 0)[..., None, None], p[..., None, None] * score[..., :, None] * score[..., None, :], 0)

    if isinstance(support, int):
        return np.asarray(entries(jnp.arange(support)).sum(0))
    if support == "loc":
        support = (-INF, float(AT[0]), INF)
    out = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            for low, high in zip(support, support[1:], strict=False):
                found = tanhsinh(lambda y, i=i, j=j: np.nan_to_num(entries(jnp.asarray(y))[..., i, j]), low, high,
                                 rtol=1e-11, atol=1e-14)
                out[i, j] += found.integral
    return out


def model(count, family):
    def fn(x, y=None):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([count]).to_event(1))
        numpyro.sample("y", family(*(z[i] * x[:, 0] for i in range(count))), obs=y)
    return fn


QUICK = ("zero-inflated Poisson", "negative binomial", "Weibull", "normal above 0", "log-normal, transformed", "beta",
         "asymmetric Laplace", "Student, unknown ν")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_exact_output_fisher(x64, name):
    count, family, support = FAMILIES[name]
    x, params = jnp.ones((1, 1)), {"z": jnp.asarray(AT[:count])}
    bound = bind(model(count, family), jnp.ones((2, 1)))
    how = choose(bound, "exact", 64, params, x, ("z",))
    assert how.name == "exact", "no exact way was found"
    batch = Data(x).numbered()
    rows = np.asarray(jax.jit(jax.jacobian(lambda p: responses(bound, how, p, batch)[0]))(params)["z"])
    right = by_quadrature(count, OWN.get(name, lambda *z: family(*z).log_prob), support)
    scale = np.sqrt(np.outer(np.diag(right), np.diag(right)))
    np.testing.assert_allclose(rows.T @ rows / scale, right / scale, atol=1e-8)
