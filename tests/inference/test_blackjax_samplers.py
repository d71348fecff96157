"""BlackJAX's samplers against exact posteriors. Keys are fixed; tolerances are 4 standard errors for the exact methods
(`assert_moments`) and a stated bias for the approximate ones."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from moments import assert_moments, standard_error
from test_numpyro_hmc import PROBE, TINY, TINY_X, TINY_Y, X, Y, linear_posterior, tiny_moments

from bayes_brg.inference.blackjax_samplers import mclmc, pathfinder, sghmc, sgld, tempered_smc
from bayes_brg.inference.numpyro_hmc import hmc
from bayes_brg.model.likelihoods import gaussian
from bayes_brg.model.networks import mlp
from bayes_brg.posterior import predict

LINEAR = mlp((), weight_std=1.4, bias_std=0.7, likelihood=gaussian(0.5))
DESIGN = np.concatenate([X, np.ones((12, 1))], axis=1)
STD = [1.4 / np.sqrt(2)] * 2 + [0.7]
MEAN, COV = linear_posterior(DESIGN, Y[:, :1], STD, 0.5)


def run(sampler, **options):
    return sampler(LINEAR, X, Y[:, :1], key=jax.random.key(1), progress_bar=False, **options)


def weights(post):
    return np.concatenate([post.samples["w0"][..., 0], post.samples["b0"]], axis=-1)


def relative_bias(post):
    """Error of the mean in posterior standard deviations, and of the variances as a fraction."""
    w = weights(post)
    sd = np.sqrt(np.diag(COV))
    return np.abs(w.mean((0, 1)) - MEAN[:, 0]) / sd, np.abs(w.var((0, 1)) / sd**2 - 1)


def test_adjusted_mclmc_is_exact():
    post = run(mclmc, adjusted=True, num_warmup=1000, num_samples=1000)
    assert post.samples["w0"].shape == (4, 1000, 2, 1) and post.method == "mclmc"
    assert {"log_joint", "accept_prob", "energy", "num_steps", "diverging"} <= set(post.stats)
    assert 0.6 < np.mean(post.stats["accept_prob"]) < 0.97
    assert_moments(weights(post), MEAN[:, 0], COV)


@pytest.mark.slow
def test_mclmc_has_a_small_bias():
    post = run(mclmc, num_warmup=2000, num_samples=2000)
    assert post.stats["energy_change"].shape == (4, 2000)
    mean, variance = relative_bias(post)  # Monte-Carlo error of the variance is about .04
    assert mean.max() < 0.15 and variance.max() < 0.2


@pytest.mark.parametrize("sampler", [sgld, pytest.param(sghmc, marks=pytest.mark.slow)])
def test_stochastic_gradients_have_a_small_bias(sampler):
    post = run(sampler, batch_size=8, num_samples=1500, thinning=20)
    assert post.samples["w0"].shape == (4, 1500, 2, 1) and np.isfinite(post.stats["log_joint"]).all()
    mean, variance = relative_bias(post)
    assert mean.max() < 0.2 and variance.max() < 0.3


def test_tempered_smc_posterior_and_evidence():
    post = run(tempered_smc, history=True)
    assert post.samples["w0"].shape == (4, 250, 2, 1) and post.stats["independent"] is False
    cov = DESIGN @ np.diag(np.square(STD)) @ DESIGN.T + 0.25 * np.eye(12)
    exact = -0.5 * (Y[:, 0] @ np.linalg.solve(cov, Y[:, 0]) + np.linalg.slogdet(2 * np.pi * cov)[1])
    assert abs(post.stats["log_evidence"] - exact) < 5 * max(post.stats["log_evidence_sem"], 0.02)
    w = weights(post)
    spread = w.mean(1) - MEAN[:, 0]  # four independent populations: their own spread is the error
    assert np.all(np.abs(spread.mean(0)) < 6 * np.sqrt(np.diag(COV) / 1000 * 1.5))
    assert np.all(np.abs(w.var((0, 1)) / np.diag(COV) - 1) < 6 * np.sqrt(2 / 1000 * 1.5))
    # History: the prior first, powers rising, and each the exact tempered posterior.
    powers = [h.stats["temperature"] for h in post.history.values()]
    assert list(post.history) == list(range(len(powers))) and powers[0] == 0 and powers == sorted(powers)
    assert np.all(np.abs(weights(post.history[0]).std((0, 1)) / STD - 1) < 4 / np.sqrt(2 * 1000))
    middle = len(powers) // 2
    tempered = linear_posterior(DESIGN, Y[:, :1], STD, 0.5 / np.sqrt(powers[middle]))[1]
    ratio = weights(post.history[middle]).var((0, 1)) / np.diag(tempered)
    assert np.all(np.abs(ratio - 1) < 6 * np.sqrt(2 / 1000 * 1.5))


def test_pathfinder_finds_a_gaussian_posterior():
    post = run(pathfinder, num_samples=1000)
    assert post.samples["b0"].shape == (4, 1000, 1) and post.stats["elbo"].shape == (4,)
    mean, variance = relative_bias(post)  # a quasi-Newton covariance is not the exact one
    assert mean.max() < 0.3 and variance.max() < 0.5
    again = hmc(LINEAR, X, Y[:, :1], key=jax.random.key(2), init=post, inverse_mass=post, num_warmup=0, num_samples=2,
                step_size=0.5, progress_bar=False)
    assert np.isfinite(again.stats["log_joint"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("readout", ["sampled", "collapsed"])
def test_tiny_network_against_quadrature(readout):
    mean, cov = tiny_moments()
    if readout == "sampled":
        post = mclmc(TINY, TINY_X, TINY_Y, key=jax.random.key(3), adjusted=True, num_warmup=1000, num_samples=2000,
                     progress_bar=False)
        assert_moments(predict(TINY, post, PROBE)[..., 0], mean, cov)
    else:
        post = tempered_smc(TINY, TINY_X, TINY_Y, key=jax.random.key(3), readout=readout, num_samples=500,
                            progress_bar=False)
        phi = np.asarray(predict(TINY, post, PROBE))[..., 0]
        assert np.all(np.abs(phi.mean((0, 1)) - mean) < 6 * np.sqrt(np.diag(cov) / 2000 * 1.5))


def scaled(x, y=None):
    """A positive scale among the parameters: the adapter must leave and enter its support."""
    tau = numpyro.sample("tau", dist.LogNormal(0.0, 0.5))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    numpyro.sample("obs", dist.Normal(slope * x[:, 0], tau), obs=y)


@pytest.mark.slow
def test_general_model_with_a_positive_site():
    x = np.linspace(-1, 1, 8)[:, None]
    y = 0.5 * x[:, 0] + 0.4 * np.sin(5 * np.arange(8.0))
    tau, slope = np.meshgrid(np.linspace(0.05, 3, 600), np.linspace(-4, 5, 600), indexing="ij")
    log_p = -np.log(tau) - 0.5 * (np.log(tau) / 0.5) ** 2 - slope**2 / 2
    for a, b in zip(x[:, 0], y, strict=True):
        log_p = log_p - 0.5 * ((b - slope * a) / tau) ** 2 - np.log(tau)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean = np.array([(tau * p).sum(), (slope * p).sum()])
    options = {mclmc: dict(adjusted=True, num_warmup=600, num_samples=500), tempered_smc: {}, pathfinder: {}}
    for sampler, kw in options.items():
        post = sampler(scaled, x, y, key=jax.random.key(5), progress_bar=False, **kw)
        assert set(post.samples) == {"tau", "slope"} and float(np.min(post.samples["tau"])) > 0
        draws = np.stack([post.samples["tau"], post.samples["slope"]], axis=-1)
        error = np.maximum(standard_error(draws), draws.std((0, 1)) / np.sqrt(1000 / 1.5))
        bias = 0.0 if sampler in (mclmc, tempered_smc) else 0.3 * draws.std((0, 1))
        assert np.all(np.abs(draws.mean((0, 1)) - mean) < 5 * error + bias), sampler.__name__


def test_keys_and_errors():
    key = jax.random.key(0)
    a, b = (run(pathfinder, num_samples=20) for _ in range(2))
    np.testing.assert_array_equal(a.samples["w0"], b.samples["w0"])
    with pytest.raises(ValueError, match="at least two parameters"):
        mclmc(mlp(()), TINY_X, TINY_Y, key=key)
    with pytest.raises(ValueError, match="target_ess is a fraction"):
        run(tempered_smc, target_ess=1.5)
    with pytest.raises(RuntimeError, match="at power"):
        run(tempered_smc, max_temperatures=1)
    with pytest.raises(ValueError, match="at least 1.2"):
        run(mclmc, adjusted=True, num_steps=1)
    with pytest.raises(ValueError, match="step_size"):
        run(sgld, step_size=-1)
    with pytest.raises(TypeError, match="batchsize"):
        run(sgld, batchsize=3)

    def improper(x, y=None):
        w = numpyro.sample("w", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(w * x[:, 0], 1.0), obs=y)

    with pytest.raises(ValueError, match="'w' has an improper prior"):
        tempered_smc(improper, TINY_X, TINY_Y[:, 0], key=key)
    assert jnp.isfinite(hmc(improper, TINY_X, TINY_Y[:, 0], key=key, num_warmup=5, num_samples=2, num_steps=2,
                            progress_bar=False).samples["w"]).all()
