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
from scipy import stats

import bayes_brg as brg
from bayes_brg.io import store
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


def test_local_latents_are_scored_and_stored_and_not_trained_datum_by_datum(tmp_path):
    """Against SciPy; per-sample descent has no row of a site for a datum alone."""
    rng, x = np.random.default_rng(0), np.array([15, 10, 16, 11], np.float32)[:, None]
    y = np.array([28, 8, -3, 7], np.float32)
    theta = rng.normal(8, 3, (2, 6, 4)).astype(np.float32)
    post = brg.Posterior({"mu": rng.normal(size=(2, 6)), "tau": np.exp(rng.normal(size=(2, 6))), "theta": theta})
    density = stats.norm(theta.reshape(12, 4), x[:, 0]).pdf(y)
    found = brg.diagnostics.scores(schools, post, x, y).dataset
    np.testing.assert_allclose(found["log_predictive_density"], np.log(density.mean(0)), rtol=1e-5)
    sd = np.hypot(x[:, 0][None, None], np.zeros((12, 12, 1))) * np.sqrt(2)  # of Y − Y′ under two draws
    flat = theta.reshape(12, 4).astype(float)

    def absolute(mean, sd):
        return sd * np.sqrt(2 / np.pi) * np.exp(-(mean / sd) ** 2 / 2) + mean * (1 - 2 * stats.norm.cdf(-mean / sd))

    pairs = absolute(flat[:, None] - flat[None], sd)[~np.eye(12, dtype=bool)].mean(0)
    np.testing.assert_allclose(found["crps"][:, 0], absolute(y - flat, x[:, 0]).mean(0) - pairs / 2, rtol=1e-4)
    idata = brg.to_arviz(post, schools, x, y=y, progress_bar=False)
    np.testing.assert_array_equal(idata.posterior["theta"], theta)
    store.save_posterior(tmp_path / "p.nc", post)
    np.testing.assert_array_equal(store.load_posterior(tmp_path / "p.nc").samples["theta"], theta)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="optimizer='sgd', which takes data one by one, .* 'theta' has one row"):
        brg.ensemble(schools, x, y, key=key, num_members=2, train="all")
    with pytest.raises(ValueError, match="automatic learning rate .* 'theta' a datum"):
        brg.ensemble(schools, x, y, key=key, num_members=2, train="all", optimizer="gd")
    with pytest.raises(ValueError, match="brg.laplace, .* 'theta' has one row a datum"):
        brg.laplace(schools, x, y, key=key)


def test_one_draw_of_one_datum():
    """What can be said of it is right; what cannot is refused, without a NumPy warning."""
    def model(x, y=None):
        numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0, 1)) * x[:, 0], 1.0), obs=y)

    post, x, y = brg.Posterior({"z": np.full((1, 1), 0.3)}), np.ones((1, 1)), np.array([0.5])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = brg.diagnostics.convergence(model, post, x, y, progress_bar=False)
        scored = brg.diagnostics.scores(model, post, x, y).dataset
    assert not found and "never moves" in found.reason
    assert float(scored["mean_log_predictive_density"]) == pytest.approx(stats.norm.logpdf(0.2), rel=1e-6)
    with pytest.raises(ValueError, match="leave-one-out .* got 1"):
        brg.diagnostics.loo(model, post, x, y)


def mask_by_the_batch(x, y=None):
    mean = line(x)
    with handlers.mask(mask=x[:, 0] > x[:, 0].mean()):
        observe(mean, y)


def mask_by_parameters(x, y=None):
    mean = line(x)
    with handlers.mask(mask=mean > 0):
        observe(mean, y)


def scale_by_parameters(x, y=None):
    mean = line(x)
    with handlers.scale(scale=jnp.exp(mean[0])):
        observe(mean, y)


def running_sum(x, y=None):
    b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    observe(jax.lax.scan(lambda s, row: (s + row @ b, s + row @ b), 0.0, x)[1], y)


def ranks(x, y=None):
    observe(jnp.argsort(jnp.argsort(x[:, 0])) + line(x), y)


def centred_targets(x, y=None):
    observe(line(x), None if y is None else y - y.mean())


def logs_of_targets(x, y=None):
    observe(line(x), None if y is None else jnp.log(jnp.abs(y)))


def batch_norm(z):
    return (z - z.mean(0)) / z.std(0)


def improper(x, y=None):
    b = numpyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), (3,)))
    observe((x - x.mean(0)) @ b, y)


@pytest.mark.parametrize(("model", "match"), [
    (mask_by_the_batch, "depends on the other data"), (mask_by_parameters, "handlers.mask .* changes with the param"),
    (scale_by_parameters, "handlers.scale .* changes with the param"), (running_sum, "depends on the other data"),
    (ranks, "depends on the other data"), (centred_targets, "has not the values of y"),
    (logs_of_targets, "has not the values of y"), (improper, "depends on the other data"),
    (brg.mlp((4,), activation=batch_norm), "depends on the other data"),
], ids=lambda v: getattr(v, "__name__", "network") if callable(v) else "")
def test_dependence_that_hides(model, match):
    with pytest.raises(ValueError, match=match):
        bind(model, X)


def test_what_only_samplers_count_is_named():
    """A factor of y, and a site that is observed whatever y is; both are in the log joint, and in `log_factors`."""
    def with_factor(x, y=None):
        mean = line(x)
        observe(mean, y)
        if y is not None:
            numpyro.factor("censored", -jnp.sum(jnp.exp(mean) * y))

    def with_another(x, y=None):
        mean = line(x)
        numpyro.sample("other", dist.Normal(mean, 0.1), obs=jnp.ones(len(x)))
        observe(mean, y)

    with pytest.warns(UserWarning, match="numpyro.factor 'censored' depends on y"):
        bind(with_factor, X)
    with pytest.warns(UserWarning, match="always observes 'other' beside"):
        bound = bind(with_another, X)
    mean = X @ AT["b"]
    np.testing.assert_allclose(bound.log_factors(AT, X), stats.norm(mean, 0.1).logpdf(1).sum(), rtol=1e-4)
    parts = bound.log_prior(AT, X) + bound.log_likelihood(AT, X, Y).sum() + bound.log_factors(AT, X)
    np.testing.assert_allclose(bound.log_joint(AT, X, Y), parts, rtol=1e-4)


def test_weights_of_each_datum_can_be_asked_for_twice():
    """NumPyro's own search for dependences compares arrays of weights by their truth."""
    def model(x, y=None):
        mean = line(x["x"])
        with handlers.scale(scale=x["weight"]):
            observe(mean, y)

    x = {"x": X, "weight": np.arange(1.0, 9.0, dtype=np.float32)}
    for _ in range(2):
        found = brg.fisher(model, None, x, at=AT, progress_bar=False)
    np.testing.assert_allclose(found.stiffness["b"], np.mean(x["weight"][:, None] * X**2, axis=0), rtol=1e-5)
