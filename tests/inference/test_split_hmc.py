"""Split HMC and the default method against exact posteriors; tolerances are 4 standard errors (`assert_moments`)."""

import sys

import jax
import numpy as np
import pytest
from moments import assert_moments
from test_blackjax_samplers import COV, LINEAR, MEAN, X, Y, weights
from test_numpyro_hmc import PROBE, TINY, TINY_X, TINY_Y, coin, tiny_moments

from bayes_brg.core.checks import check_data
from bayes_brg.inference.chains import run_chains
from bayes_brg.inference.default import sample
from bayes_brg.inference.numpyro_hmc import nuts
from bayes_brg.inference.split_hmc import split_hmc
from bayes_brg.model.bound import BoundModel, bind
from bayes_brg.model.likelihoods import gaussian
from bayes_brg.model.networks import mlp
from bayes_brg.posterior import predict


def test_conjugate_linear_model():
    post = split_hmc(LINEAR, X, Y[:, :1], key=jax.random.key(1), num_warmup=300, num_samples=800, progress_bar=False)
    assert post.samples["w0"].shape == (4, 800, 2, 1) and post.method == "split_hmc"
    assert {"log_joint", "accept_prob", "energy", "num_steps", "diverging", "step_size"} <= set(post.stats)
    assert_moments(weights(post), MEAN[:, 0], COV)


@pytest.mark.parametrize("num_warmup", [2, 5, 20])
def test_one_chain_and_a_short_warm_up(num_warmup):
    """Windows of a few draws, in which the chain may stand still, leave the reference and the step usable."""
    stiff = mlp((4,), activation="tanh", likelihood=gaussian(0.05))
    for seed in range(3):
        post = split_hmc(stiff, X, Y[:, :1], key=jax.random.key(seed), num_chains=1, num_warmup=num_warmup,
                         num_samples=10, progress_bar=False)
        assert all(np.isfinite(v).all() for v in (*post.samples.values(), post.stats["log_joint"]))
        assert np.max(post.stats["step_size"]) <= 0.2 * np.e, "the first step was not tuned but forgotten"


def test_default_for_a_gaussian_network():
    post = sample(TINY, TINY_X, TINY_Y, key=jax.random.key(5), num_warmup=400, num_samples=1000, progress_bar=False)
    assert post.method == "split_hmc" and "collapsed" in post.stats["chosen"]
    assert_moments(predict(TINY, post, PROBE)[..., 0], *tiny_moments())


def test_default_for_other_models():
    exact = sample(LINEAR, X, Y[:, :1], key=jax.random.key(1), num_samples=500, progress_bar=False)
    assert exact.method == "readout_posterior" and "exact" in exact.stats["chosen"]
    assert_moments(weights(exact), MEAN[:, 0], COV)
    x, y = np.zeros((10, 1)), np.array([1] * 7 + [0] * 3)
    post = sample(coin, x, y, key=jax.random.key(0), num_warmup=300, num_samples=300, progress_bar=False)
    assert post.method == "nuts" and "not a Network" in post.stats["chosen"]
    with pytest.raises(TypeError, match="num_draws"):
        sample(coin, x, y, key=jax.random.key(0), num_draws=3)


COIN = coin, np.zeros((10, 1)), np.array([1] * 7 + [0] * 3)
SHORT = dict(key=jax.random.key(0), num_chains=2, num_warmup=2, num_samples=3, progress_bar=False)


def everywhere(monkeypatch, true, instead):
    """Put `instead` in the place of a function in every module of the package that has it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("bayes_brg"):
            for attribute in [a for a, v in vars(module).items() if v is true]:
                monkeypatch.setattr(module, attribute, instead)


@pytest.mark.parametrize("data", [(LINEAR, X, Y[:, :1]), (TINY, TINY_X, TINY_Y), COIN], ids=["exact", "split", "nuts"])
def test_default_checks_and_binds_once(data, monkeypatch):
    calls = []

    def counted(true, name):
        def call(*args, **options):
            calls.append(name)
            return true(*args, **options)
        return call

    everywhere(monkeypatch, check_data, counted(check_data, "check_data"))
    everywhere(monkeypatch, bind, counted(bind, "bind"))
    for kind in (BoundModel, *BoundModel.__subclasses__()):
        if "targets" in vars(kind):
            monkeypatch.setattr(kind, "targets", counted(kind.targets, "targets"))
    sample(*data, **SHORT)
    assert sorted(calls) == ["bind", "check_data", "targets"]


@pytest.mark.parametrize("data, method, options", [((TINY, TINY_X, TINY_Y), split_hmc, {"readout": "collapsed"}),
                                                   (COIN, nuts, {})], ids=["split", "nuts"])
def test_default_is_the_method_it_names(data, method, options, monkeypatch):
    """Same kernel (all its settings), same key, starts and run options: so the same draws."""
    runs = []

    def noted(kernel, key, start, x, y, run, **named):
        runs.append((kernel, key, start, run, named))
        return run_chains(kernel, key, start, x, y, run, **named)

    everywhere(monkeypatch, run_chains, noted)
    default, named = sample(*data, **SHORT), method(*data, **options, **SHORT)
    (kernel, key, start, run, name), (kernel2, key2, start2, run2, name2) = runs
    assert kernel == kernel2 and run == run2 and name == name2 and bool(key == key2)
    jax.tree.map(np.testing.assert_array_equal, start, start2)
    jax.tree.map(np.testing.assert_array_equal, default.samples, named.samples)
