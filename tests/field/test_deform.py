"""Engineered theories: the deformed prior, its importance weights, and the coupling that comes back from samples."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density

import bayes_brg as brg
from bayes_brg.field.deform import deform, importance_weights
from bayes_brg.model.bound import bind

MESH = np.array([[0.0], [1.0], [2.5]], dtype=np.float32)


def quartic(phi):
    return 0.5 / 24 * jnp.sum(phi**4)


def plain(x, y=None):
    """A Gaussian field read at x, without "phi" and with a likelihood under another name."""
    a = numpyro.sample("a", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("obs", dist.Normal(a[0] + a[1] * x[:, 0], scale), obs=y)


@pytest.fixture(scope="module")
def net():
    return brg.cosnet(16, 1, mass=1.0, radius=3.0, weight_std=2.0, likelihood=brg.gaussian(0.5))


@pytest.mark.parametrize("name", ["network", "plain"])
def test_the_weight_is_the_operator_on_the_mesh(net, name):
    model = net if name == "network" else plain
    x = jax.random.normal(jax.random.key(0), (5, 1))
    y = jnp.zeros((5, 1)) if name == "network" else jnp.zeros(5)
    deformed = deform(model, quartic, MESH)
    params = brg.prior(model, x, key=jax.random.key(1), num_samples=4).draw(0, 0)
    operator = quartic(bind(model, MESH).phi(params, MESH))
    for given in (deformed, lambda x, y=None: deformed(x, y)):  # with its own bind, and as any NumPyro model
        difference = log_density(given, (x, y), {}, params)[0] - log_density(model, (x, y), {}, params)[0]
        np.testing.assert_allclose(difference, -operator, rtol=1e-4, atol=1e-5)
        bound, base = bind(given, x), bind(model, x)
        assert bound.names == base.names and bound.observed == base.observed
        np.testing.assert_allclose(bound.log_joint(params, x, y) - base.log_joint(params, x, y), -operator, rtol=1e-4,
                                   atol=1e-5)
        np.testing.assert_allclose(bound.log_factors(params, x, y), -operator, rtol=1e-6)
        np.testing.assert_allclose(bound.phi(params, x), base.phi(params, x), rtol=1e-6)
        np.testing.assert_allclose(bound.log_likelihood(params, x, y), base.log_likelihood(params, x, y), rtol=1e-6)


def test_silent_likelihood_and_two_operators(net):
    x, y = jnp.ones((3, 1)), jnp.full((3, 1), 7.0)
    params = brg.prior(net, x, key=jax.random.key(2), num_samples=4).draw(1, 0)
    base = bind(net, x)
    silent = bind(deform(net, quartic, MESH, likelihood=False), x)
    expected = base.log_prior(params, x) - quartic(net.apply(params, MESH))
    np.testing.assert_allclose(silent.log_joint(params, x, y), expected, rtol=1e-5)
    np.testing.assert_allclose(log_density(silent.fn, (x, y), {}, params)[0], expected, rtol=1e-5)
    twice = deform(deform(net, quartic, MESH), lambda phi: jnp.sum(phi) ** 2, MESH[:1])
    factors = bind(twice, x).log_factors(params, x, y)
    phi = net.apply(params, MESH)
    np.testing.assert_allclose(factors, -quartic(phi) - phi[0, 0] ** 2, rtol=1e-5)
    np.testing.assert_allclose(log_density(twice, (x, y), {}, params)[0],
                               base.log_joint(params, x, y) + factors, rtol=1e-5)


def test_what_draws_from_the_prior_refuses_it(net):
    deformed, x = deform(net, quartic, MESH), jnp.asarray(MESH)
    posterior = brg.prior(net, x, key=jax.random.key(3), num_samples=8)
    metric = brg.fisher(deformed, posterior, x)
    calls = [
        lambda: brg.prior(deformed, x, key=jax.random.key(0)),
        lambda: brg.renormalize(deformed, posterior, metric, cutoffs=[0, 1.0], key=jax.random.key(0)),
        lambda: brg.ensemble(deformed, x, jnp.zeros((3, 1)), key=jax.random.key(0), num_members=4, train="all"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="deformed.model"):
            call()
    # The undeformed model takes the same metric and posterior; at the end of its flow is the free prior.
    flow = brg.renormalize(deformed.model, posterior, metric, cutoffs=[0, 1.0], key=jax.random.key(0))
    assert not np.array_equal(flow.at(np.inf).samples["w"], posterior.samples["w"])


@pytest.mark.parametrize("operator, message", [
    (3.0, "must be a function"),
    (lambda phi: phi**4, "one real number"),
    (lambda phi: jnp.argmax(phi), "one real number"),
])
def test_operators_that_cannot_be_used(net, operator, message):
    with pytest.raises((TypeError, ValueError), match=message):
        deform(net, operator, MESH)


def test_the_mesh_may_be_a_list_of_numbers(net):
    given = [deform(net, quartic, mesh).mesh for mesh in (MESH, MESH.tolist())]
    assert np.array_equal(*given)
    with pytest.raises(ValueError, match="mesh is a list whose rows differ"):
        deform(net, quartic, [[0.0], [1.0, 2.0]])


def test_inputs_of_another_dimension():
    with pytest.raises(ValueError, match="differ from those at the mesh"):
        bind(deform(brg.mlp(3), quartic, MESH), jnp.ones((4, 2)))


def test_weights_against_quadrature():
    """φ = w at one point: moments under exp(−φ²/2 − λφ⁴/24) by Gauss–Hermite. Tolerance 5 standard errors."""
    model = brg.mlp((), likelihood=brg.gaussian(1.0))
    x = jnp.ones((1, 1))
    free = brg.prior(model, x, key=jax.random.key(4), num_samples=40_000)
    found = importance_weights(deform(model, quartic, x), free)
    t, w = np.polynomial.hermite_e.hermegauss(120)
    w = w / np.sqrt(2 * np.pi)
    weight = w * np.exp(-0.5 * t**4 / 24)
    z = weight.sum()
    assert abs(found.log_evidence - np.log(z)) < 5 * found.log_evidence_sem < 0.02
    np.testing.assert_allclose(found.ess / 40_000, z**2 / (w * np.exp(-(t**4) / 24)).sum(), rtol=0.02)
    np.testing.assert_allclose(found.weights.mean(), 1.0, rtol=1e-12)
    m2, m4 = ((weight * t**n).sum() / z for n in (2, 4))
    phi = np.asarray(brg.predict(model, free, x))
    k = brg.cumulants(phi, zero_mean=True, weights=found.weights)
    assert abs(k.k2[0, 0] - m2) < 5 * k.sem.k2[0, 0]
    assert abs(k.k4[0, 0, 0, 0] - (m4 - 3 * m2**2)) < 5 * k.sem.k4[0, 0, 0, 0] < 0.2
    assert abs(k.num_samples - found.ess) < 1
    drawn = found.resample(jax.random.key(5))
    again = brg.cumulants(brg.predict(model, drawn, x), zero_mean=True)
    assert abs(again.k2[0, 0] - m2) < 5 * again.sem.k2[0, 0]
    assert drawn.stats["independent"] is False and drawn.stats["log_joint"].shape == (4, 10_000)
    w0 = drawn.samples["w0"].ravel()
    np.testing.assert_allclose(drawn.stats["log_joint"].ravel(), dist.Normal(0, 1).log_prob(w0) - 0.5 / 24 * w0**4,
                               rtol=1e-4, atol=1e-5)


def test_resampling_copies_each_draw_as_often_as_its_weight(net):
    free = brg.prior(net, MESH, key=jax.random.key(6), num_samples=400)
    found = importance_weights(deform(net, quartic, MESH), free)
    drawn = np.asarray(found.resample(jax.random.key(7)).flat()["c"][:, 0])
    source = np.asarray(free.flat()["c"][:, 0])
    copies = np.array([(drawn == c).sum() for c in source])
    assert np.all(np.abs(copies - found.weights.ravel()) < 1)  # systematic: never off by one or more
    assert np.array_equal(drawn, np.repeat(source, copies))  # copies stand side by side


def test_too_few_effective_draws_are_said(net):
    free = brg.prior(net, MESH, key=jax.random.key(8), num_samples=400)
    with pytest.warns(UserWarning, match=r"effective draws of 400.*brg.nuts"):
        found = importance_weights(deform(net, lambda phi: 500 * jnp.sum(phi**2), MESH), free)
    assert 1 <= found.ess < 100
    with pytest.raises(ValueError, match="∞ at every draw"):
        importance_weights(deform(net, lambda phi: jnp.sum(phi**2) * 0 + jnp.inf, MESH), free)


@pytest.mark.slow
def test_nuts_draws_the_deformed_prior():
    """Against importance weights, |difference| < 5 standard errors: fails for 1 key in 10⁶."""
    model = brg.mlp(4, activation="tanh", weight_std=2.0)
    x = jnp.asarray([[1.0], [-0.5]])
    def operator(phi):
        return jnp.sum(phi**4) / 8
    free = brg.prior(model, x, key=jax.random.key(9), num_samples=20_000)
    weights = importance_weights(deform(model, operator, x), free).weights
    k = brg.cumulants(brg.predict(model, free, x), order=2, zero_mean=True, weights=weights)
    chains = brg.nuts(deform(model, operator, x, likelihood=False), x, jnp.full((2, 1), 100.0), key=jax.random.key(10),
                      num_chains=4, num_warmup=300, num_samples=700, max_tree_depth=5)
    found = brg.cumulants(brg.predict(model, chains, x), order=2, zero_mean=True)
    assert np.all(np.abs(found.k2 - k.k2) < 5 * np.hypot(found.sem.k2, k.sem.k2))
    assert np.all(np.diagonal(k.k2) < 0.8 * np.diagonal(brg.cumulants(brg.predict(model, free, x), order=2).k2))


# -- weighted and paired estimates ----------------------------------------------------------------------------
def test_equal_weights_change_nothing():
    phi = np.random.default_rng(0).normal(size=(500, 3))
    for options in ({}, {"zero_mean": True}, {"order": 6, "zero_mean": True},
                    {"indices": [(0, 1), (0, 1, 2), (0, 0, 1, 2)]}):
        given, weighted = (brg.cumulants(phi, **options, weights=w) for w in (None, np.full(500, 0.3)))
        for name in ("mean", "k2", "k3", "k4", "k6"):
            for a, b in ((given, weighted), (given.sem, weighted.sem)):
                if getattr(a, name) is not None:
                    np.testing.assert_allclose(getattr(b, name), getattr(a, name), rtol=1e-9, atol=1e-12)


def test_integer_weights_are_copies_up_to_their_bias():
    rng = np.random.default_rng(1)
    phi, copies = rng.normal(size=(4000, 2)) + 50, rng.integers(0, 4, size=4000)
    a = brg.cumulants(phi, weights=copies)
    b = brg.cumulants(np.repeat(phi, copies, axis=0))
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12)
    for name in ("k2", "k3", "k4"):  # they differ in the corrections of order 1/T alone
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=20 / 4000)


@pytest.mark.parametrize("weights, message", [
    (np.ones(3), "expected"), (-np.ones(10), "at least 0"), (np.full(10, np.nan), "finite"),
    (np.eye(10)[0], "effective draws"),
])
def test_weights_that_cannot_be_used(weights, message):
    with pytest.raises(ValueError, match=message):
        brg.cumulants(np.random.default_rng(0).normal(size=(10, 2)), weights=weights)


def test_paired_differences_have_paired_errors():
    """A field and its double on the same draws: the difference of log k2 is log 4 without error."""
    phi = np.random.default_rng(2).normal(size=(1000, 1))
    one, two = brg.cumulants(phi, order=2), brg.cumulants(2 * phi, order=2)
    value, sem, _ = two.jackknife(lambda a, b: {"d": np.log(a.k2) - np.log(b.k2)}, one)
    np.testing.assert_allclose(value["d"], np.log(4.0), rtol=1e-12)
    assert sem["d"].max() < 1e-10
    with pytest.raises(ValueError, match="not paired"):
        two.jackknife(lambda a, b: {"d": a.k2 - b.k2}, brg.cumulants(phi, order=2, num_blocks=10))


def test_relative_action_is_the_difference_of_two():
    rng = np.random.default_rng(3)
    phi = rng.normal(size=(3000, 2))
    k0, k = brg.cumulants(phi), brg.cumulants(phi, weights=np.exp(-0.003 * (phi**4).sum(1)))
    found = brg.action(k, relative_to=k0, about="zero", bias_correction=False)
    for name in ("constant", "linear", "quadratic", "cubic", "quartic"):
        one, other = (getattr(brg.action(p, about="zero", bias_correction=False), name) for p in (k, k0))
        np.testing.assert_allclose(getattr(found, name), one - other, atol=1e-10)
    assert found.sem.quartic[0, 0, 0, 0] < brg.action(k).sem.quartic[0, 0, 0, 0]
    with pytest.raises(ValueError, match="different means"):
        brg.action(k, relative_to=k0)


def test_action_of_an_exact_operator():
    """One site by quadrature: the difference of actions is the operator, to the order kept."""
    t, w = np.polynomial.hermite_e.hermegauss(120)

    def given(coupling):
        p = w * np.exp(-coupling * t**4 / 24)
        m = [(p * t**n).sum() / p.sum() for n in range(7)]
        k2, k4, k6 = m[2], m[4] - 3 * m[2] ** 2, m[6] - 15 * m[4] * m[2] + 30 * m[2] ** 3
        return brg.Cumulants(k2=np.full((1, 1), k2), k4=np.full((1,) * 4, k4), k6=np.full((1,) * 6, k6))

    for coupling in (0.02, 0.01):
        found = brg.action(given(coupling), "next", relative_to=given(0.0))
        assert abs(found.quartic.item() - coupling) < 10 * coupling**3
        assert abs(found.quadratic.item()) < 10 * coupling**3 and found.sem is None
