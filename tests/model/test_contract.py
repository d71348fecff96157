"""What a model must be, checked at a prior draw: a datum depends on its own x, weights count everywhere."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import bayes_brg as brg
from bayes_brg.model.bound import bind

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3)).astype(np.float32)
Y = RNG.normal(size=8).astype(np.float32)
SEEN = np.array([1, 1, 0, 1, 0, 1, 1, 1], bool)
AT = {"b": np.array([0.3, -0.2, 0.5])}


def line(x):
    return x @ numpyro.sample("b", dist.Normal(0.0, 1.0).expand([3]).to_event(1))


def observe(f, y, scale=1.0):
    numpyro.sample("y", dist.Normal(f, scale), obs=y)


def centred(x, y=None):
    observe(line(x - x.mean(0)), y)


def counted(x, y=None):
    observe(line(x), y, scale=0.1 * x.shape[0])


def normalised_output(x, y=None):
    f = line(x)
    observe((f - f.mean()) / f.std(), y)


def cumulative(x, y=None):
    observe(jnp.cumsum(line(x)), y)


def shifted(x, y=None):  # φ_i of x_{i−1}: the first data would not show it
    observe(jnp.roll(line(x), 1), y)


def phi_of_the_batch(x, y=None):
    f = line(x)
    numpyro.deterministic("phi", f - f.mean())
    observe(f, y)


def share(x, y=None):
    f = line(x)
    with handlers.scale(scale=1 / x.shape[0]):
        observe(f, y)


def autoregressive(x, y=None):
    f = line(x)
    past = jnp.zeros(len(x)) if y is None else jnp.concatenate([jnp.zeros(1), y[:-1]])
    observe(f + 0.5 * past, y)


def scaled_prior(x, y=None):
    with handlers.scale(scale=10.0):
        f = line(x)
    observe(f, y)


@pytest.mark.parametrize(("model", "words"), [
    (centred, "depends on the other data"), (counted, "depends on the other data"),
    (normalised_output, "depends on the other data"), (cumulative, "depends on the other data"),
    (shifted, "depends on the other data"), (phi_of_the_batch, "output phi of a datum depends"),
    (share, "depends on the other data"), (autoregressive, "conditioned on others"),
    (scaled_prior, "handlers.scale counts latent site 'b' 10.0 times"),
])
def test_a_datum_that_depends_on_others_is_refused(model, words):
    with pytest.raises(ValueError, match=words):
        bind(model, X)
    with pytest.raises(ValueError, match=words):
        brg.laplace(model, X, Y, key=jax.random.key(0), params=AT, progress_bar=False)


def test_what_is_computed_outside_of_the_model_is_no_batch():
    bound = bind(lambda x, y=None: observe(line(x), y), X - X.mean(0))
    np.testing.assert_allclose(bound.phi(AT, X)[:1], bound.phi(AT, X[:1]), rtol=1e-6)  # a datum by itself


def scaled(x, y=None):
    f = line(x)
    with handlers.scale(scale=10.0):
        observe(f, y)


def test_scaled_likelihoods_count_everywhere(x64):
    """Ten times the likelihood is ten times the precision, in the joint, in the Fisher metric and in Laplace."""
    x, bound = X.astype(float), bind(scaled, X.astype(float))
    exact = np.linalg.inv(10 * x.T @ x + np.eye(3))
    total = bound.log_prior(AT, x) + bound.weighted_log_likelihood(AT, x, Y).sum()
    assert float(bound.log_joint(AT, x, Y)) == pytest.approx(float(total), rel=1e-12)
    stiffness = brg.fisher(scaled, None, x, at=AT, progress_bar=False).stiffness["b"]
    np.testing.assert_allclose(stiffness, 10 * (x**2).mean(0), rtol=1e-10)
    hessian = jax.hessian(lambda b: bound.log_joint({"b": b}, x, Y))(AT["b"])
    np.testing.assert_allclose(np.linalg.inv(-hessian), exact, rtol=1e-10)
    # densities of data are not weighted: held-out scores mean what they say
    np.testing.assert_allclose(bound.log_likelihood(AT, x, Y), dist.Normal(x @ AT["b"], 1.0).log_prob(Y), rtol=1e-12)


def masked(x, y=None):
    f = line(x["x"])
    with handlers.mask(mask=x["seen"]):
        observe(f, y)


def test_masked_data_leave_every_average(x64):
    x, y = {"x": X.astype(float), "seen": SEEN}, np.where(SEEN, Y, 1000.0)
    bound = bind(masked, x)
    few = {"x": X[SEEN].astype(float), "seen": np.ones(6, bool)}
    assert float(bound.mean_loss(AT, x, y)) == pytest.approx(float(bound.mean_loss(AT, few, Y[SEEN])), rel=1e-12)
    np.testing.assert_array_equal(bound.seen(x)[:, 0], SEEN)
    assert bound.seen(few) is None
    np.testing.assert_array_equal(bound.weights(AT, x), SEEN)
    assert (np.asarray(bound.log_likelihood(AT, x, y))[~SEEN] == 0).all()


def test_a_mask_of_entries(x64):
    seen = np.ones((8, 2), bool)
    seen[2, 1] = seen[5] = False

    def model(x, y=None):
        f = line(x["x"])[:, None] + jnp.zeros(2)
        numpyro.sample("y", dist.Normal(f, 1.0).mask(x["seen"]).to_event(1), obs=y)

    x = {"x": X.astype(float), "seen": seen}
    y = np.where(seen, np.stack([Y, 2 * Y], 1), 1e3)
    bound = bind(model, x)
    np.testing.assert_array_equal(bound.seen(x), seen)
    square = np.where(seen, (y - np.asarray(x["x"] @ AT["b"])[:, None]) ** 2, 0).sum(1)
    expected = square[seen.any(1)].mean()
    assert float(bound.mean_loss(AT, x, y)) == pytest.approx(expected, rel=1e-10)


def test_an_event_over_independent_data_comes_apart(x64):
    def whole(x, y=None):
        numpyro.sample("y", dist.Normal(line(x)[:, None], 1.0).to_event(2), obs=y)

    def apart(x, y=None):
        numpyro.sample("y", dist.Normal(line(x)[:, None], 1.0).to_event(1), obs=y)

    x, y = X.astype(float), Y[:, None].astype(float)
    one, other = bind(whole, x), bind(apart, x)
    for quantity in ("log_likelihood", "loss", "log_joint"):
        np.testing.assert_allclose(getattr(one, quantity)(AT, x, y), getattr(other, quantity)(AT, x, y), rtol=1e-12)
    stiffness = [brg.fisher(m, None, x, at=AT, progress_bar=False).stiffness["b"] for m in (whole, apart)]
    np.testing.assert_allclose(*stiffness, rtol=1e-12)


def test_a_deterministic_phi_counts_where_it_follows_the_data():
    def summary(x, y=None):
        f = line(x)
        numpyro.deterministic("phi", jnp.ones(3))
        observe(f, y)

    np.testing.assert_allclose(bind(summary, X).phi(AT, X)[:, 0], X @ np.asarray(AT["b"]), rtol=1e-5)


def test_an_error_of_the_users_is_theirs():
    def broken(x, y=None):
        f = line(x)
        return {}["missing"] + f

    with pytest.raises(KeyError, match="missing") as caught:
        bind(broken, X)
    assert any("test_contract.py" in note and '{}["missing"]' in note for note in caught.value.__notes__)

    def ill_shaped(x, y=None):
        observe(line(x) + jnp.ones(5), y)

    with pytest.raises(TypeError, match="incompatible shapes"):  # and no word of functools.partial
        bind(ill_shaped, X)


class Unhashable:
    __hash__ = None

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x, y=None):
        observe(line(x), y, self.scale)


def test_a_callable_without_a_hash_binds():
    model = Unhashable(0.5)
    assert bind(model, X) == bind(model, X) and hash(bind(model, X)) == hash(bind(model, X))
    assert bind(model, X) != bind(Unhashable(0.5), X)
    brg.fisher(model, None, X, at=AT, progress_bar=False)


def test_a_parameter_without_a_prior_is_named():
    def model(x, y=None):
        observe(line(x), y, numpyro.param("width", 1.0))

    with pytest.warns(UserWarning, match="without a prior: width"):
        bind(model, X)


def test_totals_in_x_are_never_sampled_to_read_the_prior():
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(jnp.zeros((3, 4)), 1.0).to_event(2))
        numpyro.sample("y", dist.Multinomial(logits=x["x"] @ w, total_count=x["total"]), obs=y)

    x = {"x": X, "total": np.arange(1, 9)}
    bound = bind(model, x)
    draw = jax.jit(lambda key, x: bound.draw_prior(key, x))(jax.random.key(0), jax.tree.map(jnp.asarray, x))
    assert draw["w"].shape == (3, 4)
    assert brg.prior(model, x, key=jax.random.key(0), num_samples=3).samples["w"].shape == (3, 1, 3, 4)


def schools(x, y=None):
    mu, tau = numpyro.sample("mu", dist.Normal(0.0, 5.0)), numpyro.sample("tau", dist.HalfNormal(5.0))
    with numpyro.plate("schools", x.shape[0]):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("obs", dist.Normal(theta, x[:, 0]), obs=y)


def test_local_latents_are_sampled_and_refused_where_they_do_not_belong():
    x = np.array([15, 10, 16, 11, 9, 11, 10, 18], np.float32)[:, None]
    y = np.array([28, 8, -3, 7, -1, 1, 18, 12], np.float32)
    key = jax.random.key(0)
    post = brg.nuts(schools, x, y, key=key, num_chains=2, num_warmup=20, num_samples=5, progress_bar=False)
    assert post.samples["theta"].shape == (2, 5, 8)
    assert brg.predict(schools, post, x, progress_bar=False).shape == (2, 5, 8, 1)
    with pytest.raises(ValueError, match="'theta' has shape .8,. .* training inputs alone"):
        brg.predict(schools, post, x[:4])
    with pytest.raises(ValueError, match="brg.fisher needs .* 'theta' has one row a datum"):
        brg.fisher(schools, post, x)
    with pytest.raises(ValueError, match="brg.sgld, which takes minibatches, .* 'theta'"):
        brg.sgld(schools, x, y, key=key)


def test_censored_and_truncated_data_are_understood():
    def survival(x, y=None):
        rate = jnp.exp(line(x["x"]))
        numpyro.sample("y", dist.RightCensoredDistribution(dist.Exponential(rate), x["censored"]), obs=y)

    x = {"x": X, "censored": ~SEEN}
    bound, y = bind(survival, x), np.abs(Y) + 0.1
    base = dist.Exponential(jnp.exp(X @ AT["b"]))
    expected = np.where(SEEN, base.log_prob(y), jnp.log1p(-base.cdf(y)))
    np.testing.assert_allclose(bound.log_likelihood(AT, x, y), expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(bound.phi(AT, x)[:, 0], np.exp(-np.asarray(X @ AT["b"])), rtol=1e-5)


def test_a_distribution_without_a_mean_says_so():
    class Nameless(dist.Distribution):
        support = dist.constraints.real

        def __init__(self, a):
            self.a = a
            super().__init__(jnp.shape(a))

        def sample(self, key, sample_shape=()):
            return self.a + jax.random.normal(key, (*sample_shape, *self.batch_shape))

        def log_prob(self, value):
            return -((value - self.a) ** 4)

    def model(x, y=None):
        numpyro.sample("y", Nameless(line(x)), obs=y)

    with pytest.raises(ValueError, match="Nameless has no location.*deterministic"):
        bind(model, X).phi(AT, X)


def test_a_model_is_looked_at_once():
    """The examination of a model is remembered by its inputs' shapes."""
    calls = []

    def model(x, y=None):
        calls.append(1)
        observe(line(x), y)

    bind(model, X)
    first = len(calls)
    bind(model, X + 1)
    assert len(calls) == first
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bind(functools.partial(model), X[:5])


def test_repeated_inputs_with_tiny_noise_are_told_of_the_noise():
    x = np.repeat(np.linspace(-1, 1, 10)[:, None], 5, 0)
    net = brg.mlp((200,), bias_std=1.0, likelihood=brg.gaussian(1e-9))
    with pytest.raises(ValueError, match="noise, 1e-09, vanishes"):
        brg.readout_posterior(net, x, np.sin(x[:, 0]), key=jax.random.key(0), num_samples=4, progress_bar=False)
