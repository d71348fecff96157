"""Every law of counts in float32, at counts from a few to a hundred million, against log-gamma functions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import gammaln as lg
from scipy.special import log_expit, logsumexp

from bayes_brg.model.distributions import stable

P3 = np.array([0.2, 0.3, 0.5])


def choose(n, k):
    return lg(n + 1) - lg(k + 1) - lg(n - k + 1)


def beta_binomial(y, n, a, b):
    return choose(n, y) + lg(y + a) + lg(n - y + b) - lg(n + a + b) - lg(a) - lg(b) + lg(a + b)


def negative_binomial(y, mean, size):
    return lg(y + size) - lg(size) - lg(y + 1) - size * np.log1p(mean / size) - y * np.log1p(size / mean)


def poisson(y, rate):
    return y * np.log(rate) - rate - lg(y + 1)


def multinomial(y, n, logits):
    return lg(n + 1) - np.sum(lg(y + 1)) + np.sum(y * (logits - logsumexp(logits)))


def dirichlet(y, n, a):
    return lg(np.sum(a)) + lg(n + 1) - lg(n + np.sum(a)) + np.sum(lg(y + a) - lg(a) - lg(y + 1))


def three(n):
    y = np.array([int(0.2 * n + 0.3 * n**0.5), int(0.3 * n - 0.2 * n**0.5), 0])
    y[2] = n - y.sum()
    return y


def two_poissons(y, rate):
    return np.logaddexp(poisson(y, rate), poisson(y, rate * (1 + 2 / np.sqrt(rate)))) - np.log(2)


def halves():
    return dist.Categorical(probs=jnp.array([0.5, 0.5]))


# name: law of (n, t), count at n, log density of (y, n, t); t moves a parameter, and is .1
LAWS = {
    "Bernoulli": (lambda n, t: dist.Bernoulli(logits=t - 0.1), lambda n: n % 2, lambda y, n, t: log_expit(
        (2 * y - 1) * (t - 0.1))),
    "Poisson": (lambda n, t: dist.Poisson(n * jnp.exp(t)), lambda n: n, lambda y, n, t: poisson(y, n * np.exp(t))),
    "zero-inflated Poisson": (lambda n, t: dist.ZeroInflatedPoisson(0.3, n * jnp.exp(t)), lambda n: n,
                              lambda y, n, t: np.log(0.7) + poisson(y, n * np.exp(t))),
    "censored Poisson": (lambda n, t: dist.RightCensoredDistribution(dist.Poisson(n * jnp.exp(t)), jnp.array(False)),
                         lambda n: n, lambda y, n, t: poisson(y, n * np.exp(t))),
    "two Poissons": (lambda n, t: dist.MixtureSameFamily(halves(), dist.Poisson(
        n * jnp.exp(t) * jnp.array([1, 1 + 2 / jnp.sqrt(n * jnp.exp(t))]))), lambda n: n,
        lambda y, n, t: two_poissons(y, n * np.exp(t))),
    "binomial by logits": (lambda n, t: dist.Binomial(n, logits=t - 0.1), lambda n: n // 2,
                           lambda y, n, t: choose(n, y) + y * log_expit(t - 0.1) + (n - y) * log_expit(0.1 - t)),
    "rare binomial": (lambda n, t: dist.Binomial(n, logits=t - 18.0), lambda n: 3,
                      lambda y, n, t: choose(n, y) + y * log_expit(t - 18) + (n - y) * log_expit(18 - t)),
    "binomial by probabilities": (lambda n, t: dist.Binomial(n, probs=jax.nn.sigmoid(t)), lambda n: n // 2,
                                  lambda y, n, t: choose(n, y) + y * log_expit(t) + (n - y) * log_expit(-t)),
    "negative binomial": (lambda n, t: dist.NegativeBinomial2(n * jnp.exp(t), 5.0), lambda n: n,
                          lambda y, n, t: negative_binomial(y, n * np.exp(t), 5.0)),
    "nearly Poisson": (lambda n, t: dist.NegativeBinomial2(n * jnp.exp(t), 1e7), lambda n: n,
                       lambda y, n, t: negative_binomial(y, n * np.exp(t), 1e7)),
    "gamma-Poisson": (lambda n, t: dist.GammaPoisson(2.5, jnp.exp(t) / n), lambda n: n,
                      lambda y, n, t: negative_binomial(y, 2.5 * n / np.exp(t), 2.5)),
    "beta-binomial": (lambda n, t: dist.BetaBinomial(2 + t, 3.5, n), lambda n: n // 3,
                      lambda y, n, t: beta_binomial(y, n, 2 + t, 3.5)),
    "nearly binomial": (lambda n, t: dist.BetaBinomial(2e5 * jnp.exp(t), 4e5, n), lambda n: n // 3,
                        lambda y, n, t: beta_binomial(y, n, 2e5 * np.exp(t), 4e5)),
    "multinomial": (lambda n, t: dist.Multinomial(n, logits=jnp.log(P3) + t * jnp.array([1, 0, 0])), three,
                    lambda y, n, t: multinomial(y, n, np.log(P3) + t * np.array([1, 0, 0]))),
    "multinomial by probabilities": (lambda n, t: dist.Multinomial(n, probs=jax.nn.softmax(
        jnp.log(P3) + t * jnp.array([1, 0, 0]))), three,
        lambda y, n, t: multinomial(y, n, np.log(P3) + t * np.array([1, 0, 0]))),
    "Dirichlet-multinomial": (lambda n, t: dist.DirichletMultinomial(jnp.array([1, 2, 3]) + t, n), three,
                              lambda y, n, t: dirichlet(y, n, np.array([1, 2, 3]) + t)),
    "geometric": (lambda n, t: dist.Geometric(probs=jnp.exp(t) / (n + 2)), lambda n: n,
                  lambda y, n, t: np.log(np.exp(t) / (n + 2)) + y * np.log1p(-np.exp(t) / (n + 2))),
    "geometric by logits": (lambda n, t: dist.Geometric(logits=t - 0.1), lambda n: 3,
                            lambda y, n, t: log_expit(t - 0.1) + y * log_expit(0.1 - t)),
}


@pytest.mark.parametrize("name", LAWS)
def test_counts_of_any_size(name):
    law, count, right = LAWS[name]
    at = 0.0 if name in ("Poisson", "two Poissons") else 0.1
    for n in (7, 10**6, 10**8):
        y, step = count(n), max(1e-4 / np.sqrt(1 + n), 1e-5)
        low, wanted, high = (right(np.asarray(y, float), n, at + d) for d in (-step, 0, step))
        difference = (high - low) / (2 * step)
        found, slope = jax.value_and_grad(lambda t, n=n, y=y: stable(law(n, t)).log_prob(jnp.asarray(y)))(
            jnp.float32(at))
        # A parameter that is rounded, by 6e-8, moves the log density by its slope times that.
        np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-5 + 1e-7 * np.sqrt(n) + 4e-7 * abs(difference),
                                   err_msg=f"n = {n}")
        np.testing.assert_allclose(slope, difference, rtol=1e-3, atol=1e-3 * np.sqrt(n), err_msg=f"n = {n}")


def test_a_logit_of_zero_has_a_slope():
    """Where a network's output is exactly 0, as of relu units that are dead: ∂ log p = y − ½."""
    for family in (dist.BernoulliLogits, lambda logits: dist.Binomial(1, logits=logits)):
        slopes = [float(jax.grad(lambda t, y=y, family=family: stable(family(t)).log_prob(jnp.asarray(y)))(0.0))
                  for y in (0, 1)]
        assert slopes == pytest.approx([-0.5, 0.5])
    found = stable(dist.Bernoulli(logits=jnp.array([-200.0, 200.0]))).log_prob(jnp.array([1, 0]))
    np.testing.assert_allclose(found, [-200.0, -200.0])
