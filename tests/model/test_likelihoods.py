import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import bayes_brg as brg
from bayes_brg.model.distributions import stable
from bayes_brg.model.likelihoods import Gaussian, Likelihood

PHI = np.array([[0.3, -1.2, 0.5], [2.0, 0.1, -0.4]])
ALL = {"gaussian": brg.gaussian(0.6), "bernoulli": brg.bernoulli(), "categorical": brg.categorical(),
       "poisson": brg.poisson()}


@pytest.mark.parametrize("name", ALL)
def test_log_prob_against_scipy(name, x64):
    y = {"gaussian": PHI + 0.3, "bernoulli": np.array([[0, 1, 1], [1, 0, 0]]), "categorical": np.array([2, 0]),
         "poisson": np.array([[0, 2, 1], [5, 1, 0]])}[name]
    p = np.exp(PHI) / np.exp(PHI).sum(1, keepdims=True)
    expected = {
        "gaussian": lambda: stats.norm.logpdf(y, PHI, 0.6).sum(1),
        "bernoulli": lambda: stats.bernoulli.logpmf(y, 1 / (1 + np.exp(-PHI))).sum(1),
        "categorical": lambda: np.log(p[np.arange(2), y]),
        "poisson": lambda: stats.poisson.logpmf(y, np.exp(PHI)).sum(1),
    }[name]()
    got = ALL[name].log_prob(jnp.asarray(PHI), ALL[name].targets(y, 3))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_fisher_is_minus_the_expected_hessian(name, x64):
    """F_out = −E ∂² log p/∂φ², by autodiff and, for discrete targets, enumeration."""
    lik, phi = ALL[name], jnp.asarray(PHI[0])

    def log_p(phi, y):
        return lik.log_prob(phi[None], y)[0]

    if name == "gaussian":
        cases = [(1.0, np.zeros((1, 3)))]
    elif name == "categorical":
        cases = [(float(p), np.array([c])) for c, p in enumerate(jax.nn.softmax(phi))]
    else:
        values = range(2) if name == "bernoulli" else range(60)
        grids = np.stack(np.meshgrid(*[list(values)] * 3, indexing="ij"), -1).reshape(-1, 3) \
            if name == "bernoulli" else np.array([[v, v, v] for v in values])
        if name == "bernoulli":
            cases = [(float(np.exp(log_p(phi, g[None]))), g[None]) for g in grids]
        else:  # the Hessian of a Poisson in its log-rate does not depend on y
            cases = [(1.0, np.zeros((1, 3)))]
    expected = -sum(w * jax.hessian(log_p)(phi, lik.targets(y, 3)) for w, y in cases)
    np.testing.assert_allclose(lik.fisher(phi[None])[0], expected, atol=1e-12)


def test_categorical_root_survives_certain_classes():
    phi = jnp.array([[0.0, -200.0, 3.0, -90.0], [500.0, 0.0, 0.0, 0.0]])
    root = brg.categorical().fisher_root(phi)
    assert root.shape == (2, 4, 3)
    p = jax.nn.softmax(phi)
    expected = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None, :]
    np.testing.assert_allclose(root @ jnp.swapaxes(root, 1, 2), expected, atol=1e-7)


def test_targets_are_checked():
    lik = brg.gaussian()
    assert lik.targets(np.zeros(4), 1).shape == (4, 1)
    with pytest.raises(ValueError, match="2 output"):
        lik.targets(np.zeros(4), 2)
    with pytest.raises(ValueError, match=r"y\[1\] is 3"):
        brg.categorical().targets(np.array([0, 3]), 3)
    with pytest.raises(ValueError, match="argmax"):
        brg.categorical().targets(np.eye(3), 3)
    with pytest.raises(ValueError, match=r"y\[0, 0\] is 0.5"):
        brg.bernoulli().targets(np.array([0.5, 1.0]), 1)
    with pytest.raises(ValueError, match="whole number"):
        brg.poisson().targets(np.array([-1.0]), 1)
    with pytest.raises(ValueError, match="scale"):
        brg.gaussian(0.0)


COUNTS = np.array([0, 1, 5, 15, 16, 17, 100, 1_000, 10_000, 1_000_000, 10_000_000])


def test_large_counts_keep_their_digits_in_float32():
    """Against SciPy in float64 at the same float32 parameters: the error does not grow with the count."""
    rate = np.float32(COUNTS + 0.5 * np.sqrt(COUNTS) + 0.3)
    wide = rate.astype(float)
    np.testing.assert_allclose(stable(dist.Poisson(rate)).log_prob(COUNTS), stats.poisson.logpmf(COUNTS, wide),
                               atol=2e-4)
    for size in (3.7, 1e5):
        d = dist.NegativeBinomial2(rate, np.float32(size))
        r = np.asarray(d.rate, float)
        expected = stats.nbinom.logpmf(COUNTS, float(np.float32(size)), r / (1 + r))
        np.testing.assert_allclose(stable(d).log_prob(COUNTS), expected, atol=2e-3)
    total = np.maximum(COUNTS, 1)
    k, logit = (0.3 * total).astype(int), np.float32(-0.8)
    for d, p in ((dist.BinomialLogits(logit, total), 1 / (1 + np.exp(-float(logit)))),
                 (dist.BinomialProbs(np.float32(0.31), total), float(np.float32(0.31)))):
        np.testing.assert_allclose(stable(d).log_prob(k), stats.binom.logpmf(k, total, p), atol=3e-3)


def test_a_rate_far_from_the_count():
    for rate in (1e-6, 3.0, 1e4):
        expected = stats.poisson.logpmf(COUNTS, float(np.float32(rate)))
        np.testing.assert_allclose(stable(dist.Poisson(rate)).log_prob(COUNTS), expected, rtol=1e-6, atol=1e-6)
    d = dist.BinomialLogits(jnp.array([-100.0, 100.0, -100.0]), 5)
    k = jnp.array([0, 5, 2])
    np.testing.assert_allclose(stable(d).log_prob(k), d.log_prob(k), atol=1e-6)


def test_stable_counts_are_the_same_law():
    y = jnp.array([1, 2, 3])
    for d in (dist.Poisson(2.0).expand([3]).to_event(1), dist.ZeroInflatedPoisson(jnp.full(3, 0.2), 3.0),
              dist.NegativeBinomialLogits(3.0, jnp.full(3, 0.2)), dist.NegativeBinomialProbs(3.0, jnp.full(3, 0.4))):
        again = stable(d)
        np.testing.assert_allclose(again.log_prob(y), d.log_prob(y), rtol=1e-5)
        np.testing.assert_allclose(jax.jit(lambda d: d.log_prob(y))(again), d.log_prob(y), rtol=1e-5)
        assert again.batch_shape == d.batch_shape and isinstance(again, type(d))
    assert stable(dist.Normal()).__class__ is dist.Normal


def test_likelihoods_are_made_by_name_or_refused():
    with pytest.raises(TypeError, match="gausian.*brg.gaussian"):
        Likelihood("gausian", 1.0)
    with pytest.raises(ValueError, match="scale must be .* above 0, got -1"):
        Gaussian(-1.0)
    with pytest.raises(ValueError, match="'gaussian' belongs to"):
        type("Mine", (Likelihood,), {"name": "gaussian"})


@dataclasses.dataclass(frozen=True)
class Laplacian(Likelihood):
    """A likelihood as a user adds one: a file of their own, and a distribution."""

    width: float = 1.0

    def distribution(self, phi):
        return dist.Laplace(phi, self.width).to_event(1)

    def fisher_root(self, phi):
        return jnp.broadcast_to(jnp.eye(phi.shape[-1]) / self.width, (*phi.shape, phi.shape[-1]))


@dataclasses.dataclass(frozen=True)
class Noisy(Likelihood):
    """Without a formula: the Fisher matrix comes from the KL divergence that NumPyro knows."""

    shape: float = 0.5

    def distribution(self, phi):
        return dist.Gamma(self.shape, jnp.exp(phi)).to_event(1)


@pytest.mark.parametrize("likelihood", [*ALL.values(), Laplacian(0.7)])
def test_a_likelihood_is_read_back_from_a_run(likelihood):
    assert Likelihood.restore(likelihood.record()) == likelihood


def test_a_likelihood_that_cannot_be_read_back_is_named():
    elsewhere = json.dumps({"name": "mine", "class": "their.module.Mine", "fields": {}})
    with pytest.raises(ValueError, match="'mine'.*import their.module first"):
        Likelihood.restore(elsewhere)
    with pytest.raises(ValueError, match="field 'width'"):
        Likelihood.restore(Laplacian(jnp.ones(2)).record())


@pytest.mark.parametrize("likelihood", [Laplacian(0.7), Noisy(0.4)])
def test_a_likelihood_from_outside_has_the_numbers_of_the_general_way(likelihood, x64):
    """Fisher, flow, loss and scores of a network with it, against the same model as a plain NumPyro callable."""
    x = np.random.default_rng(0).normal(size=(7, 2))
    net = brg.mlp((3,), activation="tanh", likelihood=likelihood)
    def general(x, y=None):
        return net(x, y)
    y = np.exp(np.sin(x[:, :1]))
    post = brg.prior(net, x, key=jax.random.key(0), num_samples=4)
    fast, slow = (brg.fisher(m, post, x, progress_bar=False) for m in (net, general))
    for s in post.samples:
        np.testing.assert_allclose(fast.stiffness[s], slow.stiffness[s], rtol=1e-6)
    flows = [brg.renormalize(m, post, f, cutoffs=[0.0, 0.05, 0.5], key=jax.random.key(1))
             for m, f in ((net, fast), (general, slow))]
    losses = [f.loss(x, y, progress_bar=False).values for f in flows]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    tables = [brg.diagnostics.scores(m, post, x, y).dataset["log_predictive_density"].values for m in (net, general)]
    np.testing.assert_allclose(*tables, rtol=1e-6)
