"""The model convention: any NumPyro callable, and the same numbers on the fast and on the general way."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import bayes_brg as brg
from bayes_brg.diagnostics.scores import training_density
from bayes_brg.model.bound import bind

X = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)


def hierarchical(x, y=None):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("units", 3):
        w = numpyro.sample("w", dist.Normal(0.0, tau).expand([2]).to_event(1))
    s = numpyro.sample("s", dist.Gamma(3.0, 1.0))
    f = jnp.tanh(x @ w.T).sum(axis=1)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("target", dist.Normal(f, s), obs=y)


@pytest.mark.parametrize("likelihood", [brg.gaussian(0.7), brg.bernoulli(), brg.categorical(), brg.poisson()])
def test_fast_and_general_way_agree(likelihood, x64):
    net = brg.mlp((4,), out=3, activation="tanh", bias_std=0.5, likelihood=likelihood, scaling="ntk")
    fast, general = bind(net, X), bind(lambda x, y=None: net(x, y), X)
    assert general.names == fast.names
    assert general.observed == "y"
    key = jax.random.key(0)
    a, b = fast.draw_prior(key, X), general.draw_prior(key, X)
    for site in a:
        np.testing.assert_array_equal(a[site], b[site])
    y = fast.targets(np.ones(6) if likelihood.name == "categorical" else np.ones((6, 3)))
    np.testing.assert_allclose(fast.phi(a, X), general.phi(a, X), rtol=1e-12)
    for quantity in ("log_likelihood", "loss", "log_joint"):
        np.testing.assert_allclose(getattr(fast, quantity)(a, X, y), getattr(general, quantity)(a, X, y), rtol=1e-12)
    np.testing.assert_allclose(fast.log_prior(a, X), general.log_prior(a, X), rtol=1e-12)


def test_a_hierarchical_model_is_understood():
    bound = bind(hierarchical, X)
    assert bound.names == ("tau", "w", "s")
    assert bound.observed == "target"
    assert bound.parents(X) == {"tau": (), "w": ("tau",), "s": ()}
    params = bound.draw_prior(jax.random.key(0), X)
    phi = bound.phi(params, X)
    np.testing.assert_allclose(phi[:, 0], np.tanh(X @ np.asarray(params["w"]).T).sum(1), rtol=1e-5)
    assert bound.log_likelihood(params, X, jnp.zeros(6)).shape == (6,)


def test_a_draw_of_a_site_does_not_depend_on_the_others():
    """Giving one site a value changes no other site's draw, and neither does the order of sampling."""
    def one(x, y=None):
        a = numpyro.sample("a", dist.Normal())
        b = numpyro.sample("b", dist.Normal())
        numpyro.sample("y", dist.Normal(a + b, 1.0).expand([x.shape[0]]), obs=y)

    def other(x, y=None):
        b = numpyro.sample("b", dist.Normal())
        numpyro.sample("extra", dist.Normal())
        a = numpyro.sample("a", dist.Normal())
        numpyro.sample("y", dist.Normal(a + b, 1.0).expand([x.shape[0]]), obs=y)

    key = jax.random.key(3)
    first, second = bind(one, X).draw_prior(key, X), bind(other, X).draw_prior(key, X)
    assert first["a"] == second["a"] and first["b"] == second["b"]
    held = bind(one, X).draw_prior(key, X, {"a": jnp.array(9.0)})
    assert held["b"] == first["b"] and held["a"] == 9.0


def test_phi_is_read_off_in_the_stated_order():
    def model(make):
        def fn(x, y=None):
            w = numpyro.sample("w", dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(2))
            numpyro.sample("y", make(x @ w), obs=y)
        return fn
    w = jnp.arange(6.0).reshape(2, 3) / 5
    z = np.asarray(X @ w)
    cases = [
        (lambda z: dist.Laplace(z, 1.0).to_event(1), z),
        (lambda z: dist.Bernoulli(logits=z).to_event(1), z),
        (lambda z: dist.Categorical(logits=z), z - z.mean(1, keepdims=True)),
        (lambda z: dist.Poisson(jnp.exp(z)).to_event(1), z),
        (lambda z: dist.Gamma(2.0, jnp.exp(z)).to_event(1), 2.0 / np.exp(z)),
        (lambda z: dist.Normal(z[:, 0], 1.0), z[:, :1]),
    ]
    for make, expected in cases:
        np.testing.assert_allclose(bind(model(make), X).phi({"w": w}, X), expected, rtol=2e-5, atol=1e-6)


def test_models_that_break_the_convention_are_refused_by_name():
    def no_observed(x, y=None):
        numpyro.sample("w", dist.Normal())

    def squared(x, y=None):  # a latent that follows the data, but not one row a datum
        z = numpyro.sample("z", dist.Normal(jnp.zeros((2, x.shape[0])), 1.0))
        numpyro.sample("y", dist.Normal(z.sum(0), 1.0), obs=y)

    def one_event(x, y=None):
        w = numpyro.sample("w", dist.Normal())
        numpyro.sample("y", dist.MultivariateNormal(w * x[:, 0], jnp.eye(x.shape[0])), obs=y)

    def subsampled(x, y=None):
        w = numpyro.sample("w", dist.Normal())
        with numpyro.plate("data", x.shape[0], subsample_size=2) as i:
            numpyro.sample("y", dist.Normal(w * x[i, 0], 1.0), obs=None if y is None else y[i])

    def held(x, y=None):
        w = numpyro.sample("w", dist.Normal())
        numpyro.sample("y", dist.Normal(w * x[:, 0] + jnp.arange(6.0), 1.0), obs=y)

    def held_by_two(x, y=None):  # one datum is silently shown as two
        w = numpyro.sample("w", dist.Normal())
        numpyro.sample("y", dist.Normal(w * x[:, 0] + jnp.arange(2.0), 1.0), obs=y)

    def extra(x, y, depth):
        return None

    for model, match in [(no_observed, "no observed site"), (squared, "'z'"), (one_event, "one event covers"),
                         (subsampled, "'data' takes a subsample"), (lambda x, y=None: None, "no observed site")]:
        with pytest.raises(ValueError, match=match):
            bind(model, X)
    with pytest.raises(TypeError, match="functools.partial"):
        bind(extra, X)
    with pytest.raises(ValueError, match="runs on 6 data points but not on 2 of them: .* belong in x"):
        bind(held, X)
    with pytest.raises(ValueError, match="shape .2,. for 2 data points and for 1 .* belong in x"):
        bind(held_by_two, X[:2])


def test_factors_are_not_the_likelihood(x64):
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal())
        numpyro.factor("tilt", -0.5 * w**2)
        numpyro.sample("obs", dist.Normal(w * x[:, 0], 1.0), obs=y)
    bound = bind(model, X)
    assert bound.observed == "obs"
    w = {"w": jnp.array(0.8)}
    assert float(bound.log_factors(w, X)) == pytest.approx(-0.32)
    y = jnp.zeros(6)
    total = bound.log_prior(w, X) + bound.log_likelihood(w, X, y).sum() + bound.log_factors(w, X)
    assert float(bound.log_joint(w, X, y)) == pytest.approx(float(total), rel=1e-12)


# -- what comes in ----------------------------------------------------------------------------------------------
def line(x, y=None):
    w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def test_targets_take_the_shape_of_what_is_observed():
    """(n, 1) against a law of n numbers would broadcast to n² of them."""
    y, bound = X[:, 0], bind(line, X)
    np.testing.assert_array_equal(bound.targets(y[:, None]), y)
    posterior = brg.prior(line, X, key=jax.random.key(0), num_samples=4)
    one, other = (training_density(line, posterior, X, v)[1] for v in (y, y[:, None]))
    np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"y has shape \(6, 2\) but the model observes \(6,\)"):
        bound.targets(X)

    def reshapes(x, y=None):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("y", dist.Normal((x @ w)[:, None], 1.0).to_event(1), obs=None if y is None else y[:, None])

    with pytest.raises(ValueError, match="has not the values of y"):
        bind(reshapes, X)


def test_draws_of_whole_numbers_are_refused():
    """A prior draw put among them would be cut to whole numbers."""
    with pytest.raises(ValueError, match="site 'w' are whole numbers .int32., and would stay such along a flow"):
        bind(line, X).check_params({"w": np.ones((1, 4, 2), np.int32)}, "posterior")
