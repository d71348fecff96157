"""How far a flow along straight lines leaves its linearisation, and the warning that says so."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import bayes_brg as brg

KEY = jax.random.key(12)
X = np.linspace(-2, 2, 8, dtype=np.float32)[:, None]
NET = brg.mlp((5,), activation="tanh", weight_std=2.0, bias_std=1.0, likelihood=brg.gaussian(0.1))


@pytest.fixture(scope="module")
def flow():
    post = brg.prior(NET, X, key=KEY, num_samples=6)
    metric = brg.fisher(NET, post, X, kind="full", whiten=True)
    return brg.renormalize(NET, post, metric, cutoffs=[0.0, 1.0, 30.0, np.inf], key=KEY)


def test_distance_from_the_linearisation(flow):
    """Against φ(θ_Λ) − φ(θ) − J δ by a Jacobian, over the noise."""
    found = flow.linearity()
    assert found.dims == ("cutoff", "chain", "draw") and (found[0] == 0).all()
    theta, moved = (flow.at(c).draw(2, 1) for c in (0.0, 30.0))
    jac = jax.jacrev(lambda p: NET.apply(p, X))(theta)
    line = sum(jnp.tensordot(jac[s], moved[s] - theta[s], theta[s].ndim) for s in theta)
    gap = (NET.apply(moved, X) - NET.apply(theta, X) - line) / 0.1
    np.testing.assert_allclose(found[2, 2, 1], np.sqrt(np.mean(gap**2)), rtol=1e-3)


def test_a_flow_that_bends_warns_once(flow):
    with pytest.warns(UserWarning, match="leaves their linearisation: by .* brg.renormalize_fibre"):
        flow.predict(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow.loss(X, X[:, 0])


def linear(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, jnp.ones(2)).to_event(1))
    numpyro.sample("y", dist.Normal(x[:, 0] * w[0] + w[1], 0.1), obs=y)


@pytest.mark.parametrize("model, options", [(linear, {"kind": "full"}), (NET, {"kind": "full", "sites": ("w1", "b1")}),
                                            (NET, {})], ids=["linear", "readout", "parameters"])
def test_what_is_linear_or_no_eigenmode_does_not_warn(model, options):
    post = brg.prior(model, X, key=KEY, num_samples=4)
    metric = brg.fisher(model, post, X, whiten=True, **options)
    flow = brg.renormalize(model, post, metric, cutoffs=[0.5], key=KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow.predict(X)
    if options:
        assert (flow.linearity(X[:3]) < 1e-2).all()


def test_units_are_those_of_the_likelihood():
    """Binary labels, by the empirical metric: the output Fisher matrix p(1 − p) sets the unit."""
    net = brg.mlp((3,), activation="tanh", likelihood=brg.bernoulli())
    post = brg.prior(net, X, key=KEY, num_samples=2)
    metric = brg.fisher(net, post, X, kind="full", whiten=True, estimator="empirical", y=(X[:, 0] > 0) * 1.0)
    flow = brg.renormalize(net, post, metric, cutoffs=[1e9], key=KEY)
    theta, moved = post.draw(0, 0), flow.at(1e9).draw(0, 0)
    value, line = jax.jvp(lambda p: net.apply(p, X), (theta,), ({s: moved[s] - theta[s] for s in theta},))
    p = jax.nn.sigmoid(value)
    gap = (net.apply(moved, X) - value - line) * jnp.sqrt(p * (1 - p))
    np.testing.assert_allclose(flow.linearity()[0, 0, 0], np.sqrt(np.mean(gap**2)), rtol=1e-3)
