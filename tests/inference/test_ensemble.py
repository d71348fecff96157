import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import bayes_brg as brg
from bayes_brg.inference import linear_descent
from bayes_brg.inference.linear_descent import descend

KEY = jax.random.key(4)
RNG = np.random.default_rng(5)
X = RNG.normal(size=(12, 3))
Y = RNG.normal(size=(12, 2))


def steps(h, y, w, optimizer, rate, epochs):
    """Descent on (y − h w)², every step taken."""
    n = len(h)
    for _ in range(epochs):
        if optimizer == "gd":
            w = w + 2 * rate / n * h.T @ (y - h @ w)
        else:
            for i in range(n):
                w = w + 2 * rate * np.outer(h[i], y[i] - h[i] @ w)
    return w


@pytest.mark.parametrize("shape", [(20, 50, 1), (20, 50, 3), (50, 7, 2), (60, 40, 1), (1, 5, 1), (5, 1, 1)])
@pytest.mark.parametrize("optimizer", ["gd", "sgd"])
@pytest.mark.parametrize("rate", [0.002, 0.3])
def test_closed_form_is_step_by_step(shape, optimizer, rate):
    """Also where the rate diverges, as long as it has not overflowed."""
    n, width, outputs = shape
    h, y, w = RNG.normal(size=(n, width)), RNG.normal(size=(n, outputs)), RNG.normal(size=(width, outputs))
    epochs = (0, 1, 7, 200) if rate < 0.3 else (0, 1, 3)
    done = descend(h, y, w, optimizer=optimizer, learning_rate=rate, epochs=epochs)
    for got, t in zip(done.weights, epochs, strict=True):
        expected = steps(h, y, w, optimizer, rate, t)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("optimizer", ["gd", "sgd"])
@pytest.mark.parametrize("width", [30, 6])
def test_largest_stable_rate_is_the_edge(optimizer, width):
    """Just below it descent stays bounded, just above it grows."""
    h, y, w = RNG.normal(size=(15, width)), RNG.normal(size=(15, 1)), RNG.normal(size=(width, 1))
    limit = descend(h, y, w, optimizer=optimizer, learning_rate=10.0, epochs=(1,)).largest_stable_rate
    below = descend(h, y, w, optimizer=optimizer, learning_rate=0.98 * limit, epochs=(4000,))
    above = descend(h, y, w, optimizer=optimizer, learning_rate=1.04 * limit, epochs=(4000,))
    assert below.stable and np.abs(below.weights[0]).max() < 1e3
    assert not above.stable and not np.abs(above.weights[0]).max() < 1e6


@pytest.mark.parametrize("optimizer", ["gd", "sgd"])
@pytest.mark.parametrize(("scaling", "bias_std"), [("ntk", 0.3), ("fan_in", None)])
def test_ensemble_solvers_agree(optimizer, scaling, bias_std, x64):
    net = brg.mlp((4, 9), out=2, activation="tanh", bias_std=bias_std, scaling=scaling, likelihood=brg.gaussian(0.4))
    common = dict(key=KEY, num_members=6, optimizer=optimizer, learning_rate=0.05, num_epochs=40, record=(0, 5))
    fast = brg.ensemble(net, X, Y, **common)
    slow = brg.ensemble(net, X, Y, solver="stepping", **common)
    for a, b in [(fast, slow), *((fast.history[e], slow.history[e]) for e in (0, 5))]:
        for site in a.samples:
            np.testing.assert_allclose(a.samples[site], b.samples[site], rtol=1e-6, atol=1e-12)
    assert fast.trained == net.readout_sites
    assert fast.stats["independent"] is True and fast.stats["log_joint"].shape == (3, 2)
    np.testing.assert_allclose(fast.stats["loss"], slow.stats["loss"], rtol=1e-6)
    phi = brg.predict(net, fast, X)
    np.testing.assert_allclose(fast.stats["loss"], ((Y - phi) ** 2).sum(-1).mean(-1), rtol=1e-10)


def test_members_do_not_depend_on_their_number():
    net = brg.mlp((5,), out=2)
    few, many = (brg.ensemble(net, X, Y, key=KEY, num_members=m, learning_rate=1e-2, num_epochs=20) for m in (4, 20))
    np.testing.assert_allclose(few.flat()["w1"], many.flat()["w1"][:4], rtol=1e-6)
    np.testing.assert_array_equal(few.flat()["w0"], many.flat()["w0"][:4])


def test_training_all_sites_lowers_the_loss():
    net = brg.mlp((8,), out=2, activation="tanh", bias_std=0.1)
    for optimizer, rate in (("gd", 0.1), ("sgd", 0.01), ("adam", 0.01)):
        e = brg.ensemble(net, X, Y, key=KEY, num_members=4, train="all", optimizer=optimizer, learning_rate=rate,
                         num_epochs=60, record=(0, 30))
        assert e.trained == ("w0", "b0", "w1", "b1")
        first = ((Y - brg.predict(net, e.history[0], X)) ** 2).sum(-1).mean(-1)
        assert (np.asarray(e.stats["loss"]) < np.asarray(first)).all()


def test_training_named_sites_leaves_the_others():
    net = brg.mlp((8,), out=2, activation="tanh")
    e = brg.ensemble(net, X, Y, key=KEY, num_members=4, train=("w0",), optimizer="gd", learning_rate=0.1,
                     num_epochs=5, record=(0,))
    np.testing.assert_array_equal(e.samples["w1"], e.history[0].samples["w1"])
    assert not np.allclose(e.samples["w0"], e.history[0].samples["w0"])


def test_sites_with_a_bounded_support_stay_inside():
    """A rate and a share, learned by steps that would leave their supports in native coordinates."""
    def model(x, y=None):
        rate = numpyro.sample("rate", dist.HalfNormal(1.0))
        share = numpyro.sample("share", dist.Dirichlet(jnp.ones(3)))
        numpyro.sample("obs", dist.Poisson(rate * (jnp.abs(x) @ share) + 1e-3), obs=y)

    y = np.r_[np.zeros(10), 1, 0].astype(int)
    options = dict(key=KEY, num_members=4, train="all", optimizer="gd", learning_rate=0.5, num_epochs=4000, record=(0,))
    run = brg.ensemble(model, X, y, **options)
    assert np.isfinite(run.stats["log_joint"]).all() and (np.asarray(run.stats["loss"]) <
                                                          np.asarray(run.history[0].stats["loss"])).all()
    assert float(np.min(run.samples["rate"])) > 0
    np.testing.assert_allclose(np.sum(run.samples["share"], axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(run.history[0].flat()["rate"], brg.ensemble(
        model, X, y, **options | {"num_epochs": 0}).flat()["rate"])
    # The minimiser of −Σ log p over the rate, given the member's share.
    s = np.abs(X) @ np.asarray(run.flat()["share"]).T
    slope = (s - y[:, None] * s / (np.asarray(run.flat()["rate"]) * s + 1e-3)).sum(0)
    assert np.abs(slope).max() < 1e-2
    advice = [brg.learning_rate(model, X, y, key=KEY, optimizer=o, train="all", num_members=2) for o in ("gd", "sgd")]
    assert all(np.isfinite(a.stable).all() for a in advice)


def test_recorded_epochs_know_their_density():
    net = brg.mlp((5,), out=2, bias_std=0.3)
    run = brg.ensemble(net, X, Y, key=KEY, num_members=4, learning_rate=1e-2, num_epochs=20, record=(0, 20))
    np.testing.assert_array_equal(run.history[20].stats["log_joint"], run.stats["log_joint"])
    bound = net.bind(jnp.asarray(X))
    expected = [bound.log_joint(run.history[0].draw(i, 0), X, Y) for i in range(4)]
    np.testing.assert_allclose(run.history[0].stats["log_joint"][:, 0], expected, rtol=1e-5)


def test_other_likelihoods_train_on_minus_log_p():
    net = brg.mlp((8,), out=3, activation="tanh", likelihood=brg.categorical())
    labels = RNG.integers(3, size=12)
    e = brg.ensemble(net, X, labels, key=KEY, num_members=4, optimizer="gd", learning_rate=0.5, num_epochs=100,
                     record=(0,))
    phi = brg.predict(net, e, X)
    log_p = np.asarray(jax.nn.log_softmax(phi))
    np.testing.assert_allclose(e.stats["loss"], -log_p[..., np.arange(12), labels].mean(-1), rtol=1e-5)


@pytest.mark.parametrize("num_epochs", [20, 50])  # too large for float32, and for float64
def test_divergence_is_reported_member_by_member(num_epochs):
    net = brg.mlp((30,), out=2, scaling="none")
    with pytest.warns(UserWarning, match="of 4 members diverged at learning_rate=1.*largest rate stable") as caught:
        e = brg.ensemble(net, X, Y, key=KEY, num_members=4, learning_rate=1.0, num_epochs=num_epochs)
    assert len(caught) == 1  # and nothing about numbers too large for float32
    limit = np.asarray(e.stats["largest_stable_rate"])
    assert e.stats["diverged"].all() and (limit > 0).all() and (limit < 1).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine = brg.ensemble(net, X, Y, key=KEY, num_members=4, learning_rate=0.9 * float(limit.min()), num_epochs=50)
    assert not fine.stats["diverged"].any()
    with pytest.warns(UserWarning, match="diverged"):
        stepped = brg.ensemble(net, X, Y, key=KEY, num_members=4, learning_rate=1.0, num_epochs=50, solver="stepping")
    assert stepped.stats["diverged"].all()


def test_a_loss_that_overflows_is_divergence_although_the_parameters_are_finite():
    net = brg.mlp((30,), scaling="none")
    with pytest.warns(UserWarning, match="members diverged at learning_rate=0.5: .*brg.learning_rate"):
        e = brg.ensemble(net, X, Y[:, 0], key=KEY, num_members=4, learning_rate=0.5, num_epochs=2, solver="stepping")
    overflowed = ~np.isfinite(e.stats["loss"])
    assert np.isfinite(e.samples["w1"]).all() and overflowed.any()
    np.testing.assert_array_equal(e.stats["diverged"], overflowed)


def exact(h, y, std, noise):
    """Posterior mean (N, C) and covariance (N, N) of a linear Gaussian readout, from its precision matrix."""
    precision = h.T @ h / noise**2 + np.diag(1 / std**2)
    covariance = np.linalg.inv(precision)
    return covariance @ h.T @ y / noise**2, covariance


@pytest.mark.parametrize("width", [20, 5])
@pytest.mark.parametrize("method", ["readout_posterior", "randomized_map"])
def test_exact_readouts_have_the_exact_law(width, method, x64):
    """Mean and covariance of w − E[w | features] over draws, features frozen; 4 standard errors, failure rate 1e-3."""
    net = brg.mlp((width,), out=2, activation="tanh", bias_std=0.4, likelihood=brg.gaussian(0.3))
    count = 4000
    if method == "readout_posterior":
        hidden = brg.prior(net, X, key=jax.random.key(8), num_samples=1).draw(0, 0)
        post = brg.readout_posterior(net, X, Y, key=KEY, num_samples=count, hidden=hidden)
    else:
        post = brg.ensemble(net, X, Y, key=KEY, num_members=count, objective="randomized_map")
    flat = {s: np.asarray(v) for s, v in post.flat().items()}
    std = np.r_[np.full(width, 1 / np.sqrt(width)), 0.4]
    design = jax.jit(jax.vmap(net.design, (0, None)))(post.flat(), jnp.asarray(X))
    scores = []
    for t in range(count):  # whitened by the exact law of its own features: standard normal if exact
        mean, covariance = exact(np.asarray(design[t]), Y, std, 0.3)
        w = np.concatenate([flat["w1"][t], flat["b1"][t][None]])
        scores.append(np.linalg.solve(np.linalg.cholesky(covariance), w - mean))
    scores = np.stack(scores)
    d = scores.shape[1]
    assert np.abs(scores.mean(0)).max() < 4.5 / np.sqrt(count)
    for c in range(2):
        cov = np.cov(scores[:, :, c].T)
        assert np.abs(cov - np.eye(d)).max() < 5 * np.sqrt(2 / count)
    assert np.abs(np.mean(scores[:, :, 0] * scores[:, :, 1])) < 5 / np.sqrt(count * d)


def test_stepped_randomized_map_reaches_the_exact_minimiser(x64):
    net = brg.mlp((9,), out=2, activation="tanh", bias_std=0.3, likelihood=brg.gaussian(0.4))
    common = dict(key=KEY, num_members=4, objective="randomized_map")
    at_once = brg.ensemble(net, X, Y, **common)
    stepped = brg.ensemble(net, X, Y, solver="stepping", optimizer="gd", learning_rate=0.05, num_epochs=20_000,
                           **common)
    for site in at_once.samples:
        np.testing.assert_allclose(at_once.samples[site], stepped.samples[site], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("change", "match"), [
    ({"optimizer": "sdg"}, "did you mean 'sgd'"),
    ({"objective": "map"}, "objective must be one of"),
    ({"learning_rate": -1.0}, "learning_rate"),
    ({"num_members": 0}, "num_members"),
    ({"record": (500,)}, "record asks for epoch 500"),
    ({"record": 5}, r"for one write record=\(5,\)"),
    ({"train": ("w7",)}, "no parameter site 'w7'"),
    ({"solver": "closed_form", "optimizer": "adam"}, "closed form needs"),
    ({"y": Y[:-1]}, r"y has shape \(11, 2\) but x has 12"),
    ({"y": np.where(np.arange(24).reshape(12, 2) == 3, np.inf, Y)}, r"y\[1, 1\] is inf"),
    ({"y": Y[:, :1].ravel()}, "2 output"),
])
def test_bad_arguments_are_refused(change, match):
    net = brg.mlp((4,), out=2)
    arguments = {"y": Y, "key": KEY, "num_members": 2, "num_epochs": 3} | change
    with pytest.raises(ValueError, match=match):
        brg.ensemble(net, X, arguments.pop("y"), **arguments)


def test_readout_needs_a_network():
    with pytest.raises(ValueError, match="brg.nuts"):
        brg.readout_posterior(brg.mlp((4,), likelihood=brg.bernoulli()), X, np.zeros(12), key=KEY)
    with pytest.raises(ValueError, match="train='all'"):
        net = brg.mlp((4,), out=2)
        brg.ensemble(lambda x, y=None: net(x, y), X, Y, key=KEY, num_members=2)


@pytest.mark.parametrize("n, width", [(7, 40), (60, 25), (90, 30)])
def test_stability_by_powers_is_that_by_eigenvalues(n, width):
    """A product of powers decides without eigenvalues; here both, on either side of the largest stable rate."""
    rng = np.random.default_rng(n)
    answers = []
    for _ in range(6):
        h = np.maximum(rng.normal(size=(n, 5)) @ rng.normal(size=(5, width)), 0) * np.exp(rng.normal(size=(n, 1)) / 2)
        gram = h @ h.T
        for rate in np.geomspace(0.5, 6, 8) / np.diagonal(gram).max():
            if n <= 2 * width:
                epoch, metric = linear_descent._data_map(gram, linear_descent._inverse_lower(gram, rate)), gram
            else:
                epoch, metric = linear_descent._weight_map(h, np.zeros((n, 1)), rate)[0], np.eye(width)
            answers.append(linear_descent._is_stable(epoch, metric))
            assert answers[-1] == (np.abs(np.linalg.eigvals(epoch)).max() <= 1 + 1e-9)
    assert 0 < sum(answers) < len(answers)
