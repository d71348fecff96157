"""Ensembles of wide networks, trained by the package, against gradient descent at infinite width.

The mean and covariance of the outputs over members are compared at three times. A difference may be 4 standard errors
plus an allowance for what the theory leaves out: 10/width of the prior's scale for finite width (25/width with two
hidden layers, whose tangent kernel fluctuates more), and 1/epochs of it for steps of finite size. There are 9 numbers a
time, most of them strongly correlated: a fresh key would fail with a probability below 2e-3 a case.
"""

import jax
import numpy as np
import pytest

import bayes_brg as brg
from bayes_brg import theory

RNG = np.random.default_rng(0)
X, X_TEST = RNG.normal(size=(6, 3)).astype(np.float32), RNG.normal(size=(3, 3)).astype(np.float32)
Y = (X[:, 0] + 0.5 * X[:, 1] ** 2).astype(np.float32)
WEIGHT_STD, BIAS_STD = 1.2, 0.3
EPOCHS = (40, 120, 360)


def check(train, scaling, widths, members):
    depth, width = len(widths), min(widths)
    std = [WEIGHT_STD / n**0.5 for n in (X.shape[1], *widths)] if scaling == "none" else WEIGHT_STD
    net = brg.mlp(widths, activation="relu", weight_std=std, bias_std=BIAS_STD, scaling=scaling)
    described = dict(depth=depth, activation="relu", weight_var=WEIGHT_STD**2, bias_var=BIAS_STD**2, scaling=scaling,
                     width=None if scaling == "ntk" else widths)
    # A rate that learns the stiffest direction in about twenty steps.
    theta = theory.ntk(X, **described, trained="all" if train == "all" else "readout")
    rate = float(0.05 * len(X) / np.linalg.eigvalsh(np.asarray(theta))[-1] / 2)
    posterior = brg.ensemble(net, X, Y, key=jax.random.key(3), num_members=members, train=train, optimizer="gd",
                             learning_rate=rate, num_epochs=EPOCHS[-1], record=EPOCHS, progress_bar=False)
    time = theory.descent_time(rate, EPOCHS)
    means, covs = theory.descent(X, Y, X_TEST, t=time, kernel="ntk" if train == "all" else "nngp", **described)
    prior = theory.descent(X, Y, X_TEST, t=0.0, kernel="ntk", **described)[1]
    start = np.abs(means[-1]).max()
    for epochs, mean, cov in zip(EPOCHS, means, covs, strict=True):
        phi = np.asarray(brg.predict(net, posterior.history[epochs], X_TEST, progress_bar=False), np.float64)
        phi = phi.reshape(members, 3)
        centred = phi - phi.mean(0)
        products = centred[:, :, None] * centred[:, None]
        allowance = (10 if depth == 1 else 25) / width + 1 / epochs
        scale = np.diagonal(prior).max()
        assert (np.abs(phi.mean(0) - mean) < 4 * phi.std(0) / np.sqrt(members) + allowance * np.sqrt(scale)).all()
        assert (np.abs(products.mean(0) - cov) < 4 * products.std(0) / np.sqrt(members) + allowance * scale).all()
    # The comparison means something: training moved the mean and shrank the variance well beyond the tolerance.
    assert start > 12 * np.sqrt(scale / members) and np.trace(covs[-1]) < 0.7 * np.trace(prior)


@pytest.mark.parametrize("train, scaling", [("readout", "ntk"), ("all", "ntk"), ("all", "fan_in"), ("readout", "none")])
def test_ensembles_of_wide_networks(train, scaling):
    check(train, scaling, (256,), 256)


@pytest.mark.slow
@pytest.mark.parametrize("scaling", ["ntk", "fan_in"])
@pytest.mark.parametrize("train", ["readout", "all"])
def test_ensembles_of_very_wide_networks(train, scaling):
    check(train, scaling, (2048,), 2048)


@pytest.mark.slow
@pytest.mark.parametrize("scaling", ["ntk", "fan_in"])
def test_ensembles_of_two_hidden_layers(scaling):
    check("all", scaling, (256, 256), 512)
