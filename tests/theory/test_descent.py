"""Gradient descent in time against explicit stepping, its limits, and ensembles of wide networks."""

import numpy as np
import pytest

from bayes_brg import theory

RNG = np.random.default_rng(0)
X, X_TEST, Y = RNG.normal(size=(5, 3)), RNG.normal(size=(3, 3)), RNG.normal(size=(5, 2))
NETWORK = dict(depth=2, activation="relu", weight_var=1.5, bias_var=0.1)


@pytest.mark.parametrize("kernel", ["nngp", "ntk"])
@pytest.mark.parametrize("scaling", [dict(scaling="ntk"), dict(scaling="fan_in", width=20)])
def test_against_steps_in_function_space(kernel, scaling):
    everything = np.vstack([X, X_TEST])
    in64 = theory.kernels.in_float64
    trained = "readout" if kernel == "nngp" else "all"
    theta = in64(theory.ntk, everything, trained=trained, **scaling, **NETWORK)
    prior = in64(theory.nngp, everything, **NETWORK)
    time, steps = 4.0 / np.linalg.eigvalsh(theta[:5, :5] / 5)[-1], 4000
    generator = np.zeros((8, 8))
    generator[:, :5] = -theta[:, :5] / 5
    linear, shift = np.eye(8), np.zeros((8, 2))
    drive = theta[:, :5] @ Y / 5
    for _ in range(
        steps
    ):  # midpoint steps of df/dt = −Θ(f − y)/n on all eight points, for every start at once
        half_linear = linear + time / steps / 2 * generator @ linear
        half_shift = shift + time / steps / 2 * (generator @ shift + drive)
        linear = linear + time / steps * generator @ half_linear
        shift = shift + time / steps * (generator @ half_shift + drive)
    mean, cov = theory.descent(X, Y, X_TEST, t=time, kernel=kernel, **scaling, **NETWORK)
    np.testing.assert_allclose(mean, shift[5:], atol=1e-6)
    np.testing.assert_allclose(cov, (linear @ prior @ linear.T)[5:, 5:], atol=1e-6)


def test_limits_in_time(x64):
    start = theory.descent(X, Y, X_TEST, t=0.0, kernel="ntk", **NETWORK)
    np.testing.assert_array_equal(start[0], np.zeros((3, 2)))
    np.testing.assert_allclose(start[1], theory.nngp(X_TEST, **NETWORK), atol=1e-12)
    # Readout-only descent ends at the noise-free posterior of the NNGP.
    end = theory.descent(X, Y, X_TEST, t=np.inf, kernel="nngp", **NETWORK)
    posterior = theory.gp_posterior(X, Y, X_TEST, noise_var=0.0, **NETWORK)
    np.testing.assert_allclose(end[0], posterior[0], atol=1e-9)
    np.testing.assert_allclose(end[1], posterior[1], atol=1e-9)
    # All layers: kernel regression with Θ, and every member fits the data.
    end = theory.descent(X, Y, X_TEST, t=np.inf, kernel="ntk", **NETWORK)
    theta, cross = theory.ntk(X, **NETWORK), theory.ntk(X_TEST, X, **NETWORK)
    np.testing.assert_allclose(end[0], cross @ np.linalg.solve(theta, Y), atol=1e-9)
    mean, cov = theory.descent(X, Y, X, t=np.inf, kernel="ntk", **NETWORK)
    np.testing.assert_allclose(mean, Y, atol=1e-9)
    np.testing.assert_allclose(cov, np.zeros((5, 5)), atol=1e-9)


def test_a_linear_model_descends_exactly():
    # Gradient flow on ½·mean (y − x w/√3 · σ − b σ_b)² from Gaussian (w, b), by the matrix exponential of its Hessian.
    time, gain = 2.0, np.append(np.full(3, np.sqrt(1.5 / 3)), np.sqrt(0.1))
    design, test = (np.hstack([x, np.ones((len(x), 1))]) * gain for x in (X, X_TEST))
    rates, modes = np.linalg.eigh(design.T @ design / len(X))
    stay = (modes * np.exp(-rates * time)) @ modes.T
    mean, cov = theory.descent(X, Y, X_TEST, t=time, **dict(NETWORK, depth=0))
    np.testing.assert_allclose(mean, test @ (np.eye(4) - stay) @ np.linalg.lstsq(design, Y, rcond=None)[0], atol=1e-12)
    np.testing.assert_allclose(cov, test @ stay @ stay @ test.T, atol=1e-12)


def test_shapes_rates_and_repeated_points():
    options = dict(kernel="ntk", **NETWORK)
    times = np.array([0.0, 1.0, 10.0, np.inf])
    mean, cov = theory.descent(X, Y, X_TEST, t=times, **options)
    assert mean.shape == (4, 3, 2) and cov.shape == (4, 3, 3)
    single = theory.descent(X, Y[:, 0], X_TEST, t=10.0, **options)
    np.testing.assert_allclose(single[0], mean[2, :, 0], atol=1e-14)
    faster = theory.descent(X, Y, X_TEST, t=times / 2, learning_rate=2.0, **options)
    np.testing.assert_allclose(faster[0], mean, atol=1e-13)
    assert (np.diff([np.trace(c) for c in cov]) < 0).all()
    twice = theory.descent(X[[0, 0]], np.array([1.0, 3.0]), X[:1], t=np.inf, **options)
    np.testing.assert_allclose(twice[0], [2.0], atol=1e-9)  # the singular direction stays where it started


@pytest.mark.parametrize("scaling", ["ntk", "fan_in"])
def test_ensembles_of_wide_networks_follow_it(scaling):
    # 400 networks of one hidden layer of 1024, readout trained by full-batch steps on the mean of (y − f)².
    # Tolerance 4 standard errors (3 means, 6 covariances, two times) and 2 % of the variances for width and
    # step size; a fresh seed would fail with probability about 1e-3.
    rng, members, width, variance = np.random.default_rng(5), 400, 1024, 1.5
    y, epochs = Y[:, 0], (30, 150)
    # rate · λ_max/n must stay small for discrete steps to follow the flow
    rate = 0.01 if scaling == "ntk" else 0.01 * variance / width
    gain = np.sqrt(variance / width) if scaling == "ntk" else 1.0
    results = {epoch: [] for epoch in epochs}
    for _ in range(members):
        inner = rng.normal(size=(3, width)) * np.sqrt(variance / 3)
        H, H_test = (gain * np.maximum(x @ inner, 0) for x in (X, X_TEST))
        w = rng.normal(size=width) * np.sqrt(variance / width) / gain
        for epoch in range(1, max(epochs) + 1):
            w = w + rate * 2 / 5 * H.T @ (y - H @ w)
            if epoch in epochs:
                results[epoch].append(H_test @ w)
    t = theory.descent_time(
        rate,
        epochs,
        scaling=scaling,
        **(dict(width=width, weight_var=variance) if scaling == "fan_in" else {}),
    )
    means, covs = theory.descent(
        X, y, X_TEST, t=t, kernel="nngp", depth=1, activation="relu", weight_var=variance
    )
    plain = theory.descent(
        X, y, X_TEST, t=theory.descent_time(rate, epochs), kernel="nngp", depth=1, activation="relu",
        weight_var=variance, scaling=scaling, width=width if scaling == "fan_in" else None,
    )  # fmt: skip
    np.testing.assert_allclose(plain[0], means, atol=1e-9)
    for epoch, mean, cov in zip(epochs, means, covs, strict=True):
        f = np.array(results[epoch])
        centred = f - f.mean(0)
        products = centred[:, :, None] * centred[:, None]
        allowance = 0.02 * np.diagonal(cov).max()
        assert (np.abs(f.mean(0) - mean) < 4 * f.std(0) / np.sqrt(members) + allowance).all()
        error = products.std(0) / np.sqrt(members)
        assert (np.abs(products.mean(0) - cov) < 4 * error + allowance).all()


def test_bad_arguments_are_refused_by_name():
    for options, words in [
        (dict(kernel="rbf"), "kernel must be 'ntk'"),
        (dict(t=-1.0), "t must be a time"),
        (dict(t=np.nan), "t must be a time"),
        (dict(learning_rate=0.0), "learning_rate must be"),
        (dict(y_train=Y[:3]), r"y_train must have shape \(5,\)"),
        (dict(x_test=X_TEST[:, :2]), "different numbers of inputs"),
        (dict(depth=-1), "depth"),
        (dict(activation="swish!"), "unknown activation"),
        (dict(scaling="fan_in"), "needs width"),
        (dict(x_train=np.full((5, 3), np.nan)), r"x_train\[0, 0\] is nan"),
    ]:
        arguments = dict(dict(x_train=X, y_train=Y, x_test=X_TEST, t=1.0, kernel="ntk", **NETWORK), **options)
        with pytest.raises(ValueError, match=words):
            theory.descent(**arguments)
    with pytest.raises(ValueError, match="needs width"):
        theory.descent_time(0.1, 10, scaling="fan_in")
    with pytest.raises(ValueError, match="scaling='none' needs width"):
        theory.descent_time(0.1, 10, scaling="none")
    with pytest.raises(ValueError, match="scaling must be"):
        theory.descent_time(0.1, 10, scaling="mup")
    with pytest.raises(ValueError, match="num_epochs"):
        theory.descent_time(0.1, -10)
    assert theory.descent_time(0.1, 10) == 2.0
