"""Weights of chains by leave-one-out: against a generic optimiser, exact leave-one-out, and chains that are wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import optimize, stats

import bayes_brg as brg
from bayes_brg.diagnostics import stacking
from bayes_brg.diagnostics.stacking import stacking_weights
from bayes_brg.runs.methods import method_by_name

X = jnp.linspace(-1, 1, 24)[:, None]
Y = jnp.asarray(np.random.default_rng(3).normal(0.5, 1.0, (24, 1)))


def level(x, y=None):
    """y ~ N(θ, 1), θ ~ N(0, 10²)."""
    theta = numpyro.sample("theta", dist.Normal(0, 10).expand([1]).to_event(1))
    numpyro.sample("y", dist.Normal(jnp.broadcast_to(theta, (len(x), 1)), 1.0).to_event(1), obs=y)


def chains(shifts, draws=200):
    """Draws of the posterior of θ, each chain moved by its shift."""
    var = 1 / (len(Y) + 0.01)
    z = np.random.default_rng(0).normal(size=(len(shifts), draws, 1))
    samples = float(jnp.sum(Y)) * var + np.sqrt(var) * z + np.asarray(shifts)[:, None, None]
    return brg.Posterior(samples={"theta": jnp.asarray(samples)}, stats={"log_joint": jnp.asarray(z[..., 0])},
                         method="nuts")


@pytest.mark.parametrize("seed", range(3))
def test_weights_are_those_of_a_generic_optimiser(seed):
    rng = np.random.default_rng(seed)
    density = rng.normal(size=(4, 30)) + 2 * rng.normal(size=(4, 1))

    def loss(z):
        return -np.sum(np.log(np.exp(z) / np.exp(z).sum() @ np.exp(density)))

    found = stacking_weights(density)
    assert found.sum() == pytest.approx(1) and (found >= 0).all()
    assert -np.sum(np.log(found @ np.exp(density))) <= optimize.minimize(loss, np.zeros(4), tol=1e-12).fun + 1e-8


def test_a_chain_that_stands_in_a_bad_place_has_no_weight():
    post = chains([0.0, 12.0, 0.0])
    found = stacking(level, post, X, Y)
    assert found.weights[1] < 1e-6 and found.elpd[1] < found.elpd[0] - 100
    assert found.elpd_stacked > found.elpd_equal > found.elpd[1]
    # The exact leave-one-out density of the conjugate model; importance sampling errs by less than a hundredth.
    n, y = len(Y), np.asarray(Y)[:, 0]
    var = 1 / (n - 1 + 0.01)
    exact = stats.norm.logpdf(y, (y.sum() - y) * var, np.sqrt(1 + var)).sum()
    assert found.elpd[0] == pytest.approx(exact, abs=0.3) and found.elpd_stacked == pytest.approx(exact, abs=0.3)
    mixed = found.apply(post)
    assert mixed.samples["theta"].shape == (1, 600, 1) and mixed.method == "nuts, stacked"
    assert float(jnp.abs(mixed.samples["theta"] - post.samples["theta"][1].mean()).min()) > 2
    shares = [np.isin(mixed.samples["theta"], post.samples["theta"][k]).mean() for k in range(3)]
    np.testing.assert_allclose(shares, found.weights, atol=1 / 600)
    pick = int(np.argmin(np.abs(post.samples["theta"] - mixed.samples["theta"][0, 7]).ravel()))
    assert mixed.stats["log_joint"][0, 7] == post.stats["log_joint"].ravel()[pick]
    assert "chain 1: 0.000" in str(found)


def test_what_cannot_be_weighed_is_refused():
    with pytest.raises(ValueError, match="got 1 of 200"):
        stacking(level, chains([0.0]), X, Y)
    with pytest.raises(ValueError, match="got 2 of 5"):
        stacking(level, chains([0.0, 0.0], 5), X, Y)
    members = chains([0.0, 0.0])
    with pytest.raises(ValueError, match="the 400 draws are independent"):
        stacking(level, members.replace(stats={**members.stats, "independent": True}), X, Y)
    found = stacking(level, chains([0.0, 0.1]), X, Y)
    with pytest.raises(ValueError, match="2 chains, the posterior has 3"):
        found.apply(chains([0.0, 0.0, 0.0]))


@pytest.mark.slow
def test_a_board_takes_the_stacked_default():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 2))
    y = x[:, 0] + 0.3 * rng.normal(size=60)
    found = method_by_name("stacked", width=4, num_warmup=200, num_samples=50)(x, y, x[:5], key=jax.random.key(0))
    assert found.loc.shape == (200, 5) and found.phi.shape[:2] == (1, 200)
    assert np.abs(found.loc.mean(0) - x[:5, 0]).max() < 0.6
