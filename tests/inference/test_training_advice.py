"""Advice on learning rates against what training does, and early stopping against a search by hand."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import bayes_brg as brg

KEY = jax.random.key(8)
RNG = np.random.default_rng(3)
X, X_HELD = RNG.normal(size=(15, 2)), RNG.normal(size=(9, 2))
Y, Y_HELD = (np.sin(x[:, :1]) + 0.3 * RNG.normal(size=(len(x), 1)) for x in (X, X_HELD))
NET = brg.mlp((12,), bias_std=0.5, likelihood=brg.gaussian(0.7))


@pytest.mark.filterwarnings("ignore:.*diverged")
def test_full_batch_rate_is_that_of_the_closed_form():
    advice = brg.learning_rate(NET, X, Y, key=KEY, optimizer="gd", num_members=6)
    trained = brg.ensemble(NET, X, Y, key=KEY, num_members=6, optimizer="gd", num_epochs=1, learning_rate=1e-3)
    np.testing.assert_allclose(advice.stable, np.ravel(trained.stats["largest_stable_rate"]), rtol=1e-4)
    assert advice.suggested == pytest.approx(advice.stable.min() / 2) and "half of the smallest" in str(advice)
    for factor, bad in ((0.99, False), (1.01, True)):
        run = brg.ensemble(NET, X, Y, key=KEY, num_members=6, optimizer="gd",
                           learning_rate=factor * advice.stable.min(), num_epochs=1)
        assert bool(np.any(run.stats["diverged"])) == bad


def test_per_sample_rate_contracts_at_every_step():
    advice = brg.learning_rate(NET, X, Y, key=KEY, num_members=4)
    draws = brg.ensemble(NET, X, Y, key=KEY, num_members=4, num_epochs=0).flat()
    h = np.maximum(X @ draws["w0"] + np.asarray(draws["b0"])[:, None], 0)
    np.testing.assert_allclose(advice.stable, 1 / ((h**2).sum(-1) + 1).max(1), rtol=1e-4)
    run = brg.ensemble(NET, X, Y, key=KEY, num_members=4, learning_rate=advice.stable.min(), num_epochs=50)
    assert not np.any(run.stats["diverged"])


def test_rates_of_all_layers_and_of_classes():
    net = brg.mlp((6,), 3, activation="tanh", likelihood=brg.categorical())
    advice = brg.learning_rate(net, X, np.arange(15) % 3, key=KEY, optimizer="gd", train="all", num_members=3)
    assert np.isfinite(advice.stable).all() and (advice.stable > 0).all()
    with pytest.raises(ValueError, match="Adam divides"):
        brg.learning_rate(net, X, np.arange(15) % 3, key=KEY, optimizer="adam")


def test_early_stopping_takes_each_member_where_it_was_best():
    epochs = (0, 20, 200, 2000)
    run = brg.ensemble(NET, X, Y, key=KEY, num_members=8, optimizer="gd", learning_rate=0.01, num_epochs=20_000,
                       record=epochs)
    stopped = brg.early_stopped(NET, run, X_HELD, Y_HELD)
    losses = np.stack([((np.asarray(brg.predict(NET, p, X_HELD)) - Y_HELD) ** 2).mean((2, 3))
                       for p in (*run.history.values(), run)])
    np.testing.assert_array_equal(stopped.stats["stopped_epoch"], np.array([*epochs, -1])[losses.argmin(0)])
    np.testing.assert_allclose(stopped.stats["held_out_loss"], losses.min(0), rtol=1e-4)
    assert len(np.unique(stopped.stats["stopped_epoch"])) > 1
    bound = NET.bind(X)
    expected = [bound.log_joint(stopped.draw(i, 1), X, Y) for i in range(4)]
    np.testing.assert_allclose(stopped.stats["log_joint"][:, 1], expected, rtol=1e-4)
    at = np.asarray(brg.predict(NET, stopped, X_HELD))
    np.testing.assert_allclose(((at - Y_HELD) ** 2).mean((2, 3)), losses.min(0), rtol=1e-4)
    with pytest.raises(ValueError, match="no recorded epochs"):
        brg.early_stopped(NET, stopped, X_HELD, Y_HELD)


def test_the_noise_of_a_plain_gaussian_model_is_read_off_it():
    """Per sample G_i = 2 x_i x_iᵀ, whatever the noise: stable below 1/max|x_i|²."""
    def plain(x, y=None):
        w = numpyro.sample("w", dist.Normal(0, 1).expand((2,)).to_event(1))
        numpyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)

    advice = brg.learning_rate(plain, X, Y[:, 0], key=KEY, train="all", num_members=2)
    np.testing.assert_allclose(advice.stable, 1 / (X**2).sum(1).max(), rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "gd", "adam"])
def test_the_default_rate_trains(optimizer):
    """No rate is given: the loss falls well below that of the prior draws, and nobody diverges."""
    common = dict(key=KEY, num_members=8, optimizer=optimizer, num_epochs=300)
    run = brg.ensemble(NET, X, Y, record=[0], **common)
    assert not np.asarray(run.stats["diverged"]).any()
    assert np.median(run.stats["loss"]) < 0.5 * np.median(run.history[0].stats["loss"])
    assert run.stats["learning_rate"] > 1e-5
