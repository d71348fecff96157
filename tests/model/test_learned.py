"""Learned noise, scales and relevances: the network's own way and the general one have the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import bayes_brg as brg
from bayes_brg.inference.target import Target
from bayes_brg.model.bound import bind
from bayes_brg.model.hyperpriors import FLOOR, Hyperprior

X = np.random.default_rng(0).normal(size=(6, 2))
Y = np.sin(X @ np.array([[1.0, -0.5], [0.3, 2.0]]))


def network(**changes):
    options = {"activation": "tanh", "weight_std": dist.LogNormal(0.0, 1.0), "bias_std": (dist.HalfNormal(1.0), 0.7),
               "relevance": True, "likelihood": brg.gaussian("learned")}
    return brg.mlp((3,), 2, **options | changes)


def plain(net):
    """The same as a NumPyro callable of which nothing else is known."""
    def model(x, y=None):
        return net(x, y)
    return model


NET = network()
SITES = {"scale0": (), "scale1": (), "bias_scale0": (), "relevance": (2,), "noise": (2,), "w0": (2, 3), "b0": (3,),
         "w1": (3, 2), "b1": (2,)}


def test_sites_and_their_parents():
    bound, general = bind(NET, X), bind(plain(NET), X)
    for one in (bound, general):
        assert {s.name: s.shape for s in one.sites} == SITES
        assert one.parents(X) == {"w0": ("scale0", "relevance"), "w1": ("scale1",), "b0": ("bias_scale0",)} | {
            s: () for s in SITES if s not in ("w0", "w1", "b0")}
    assert bound.hyperparameters(X) == ("scale0", "scale1", "bias_scale0", "relevance", "noise")
    assert bound.layered(("w0", "b0", "w1", "b1")) and bound.readout.sites == ("w1", "b1")
    assert NET == network() and hash(NET) == hash(network())
    assert NET != network(weight_std=dist.LogNormal(0.0, 1.1))


def test_a_network_with_relevances_has_a_readout_that_collapses():
    bound = bind(network(likelihood=brg.heteroscedastic()), X)
    assert not bound.uncollapsible() and not bind(NET, X).uncollapsible()
    x, y = X, bound.targets(Y)
    params = brg.prior(bound.fn, x, key=jax.random.key(1), num_samples=1).draw(0, 0)
    target = Target(bound, True)
    assert np.isfinite(target.log_density(target.unconstrain(params, x, y), x, y))


def test_both_ways_have_the_same_numbers(x64):
    model = plain(NET)
    bound, general = bind(NET, X), bind(model, X)
    post = brg.prior(NET, X, key=jax.random.key(0), num_samples=4)
    other = brg.prior(model, X, key=jax.random.key(0), num_samples=4)
    for s, v in post.samples.items():
        np.testing.assert_allclose(v, other.samples[s], rtol=1e-12)
    np.testing.assert_allclose(post.stats["log_joint"], other.stats["log_joint"], rtol=1e-10)
    one = {s: v[0] for s, v in post.flat().items()}
    y = bound.targets(Y)
    for name, args in (("log_prior", (X,)), ("log_joint", (X, y)), ("log_likelihood", (X, y)), ("loss", (X, y)),
                       ("phi", (X,))):
        np.testing.assert_allclose(getattr(bound, name)(one, *args), getattr(general, name)(one, *args), rtol=1e-10)
    held = {"scale0": jnp.asarray(2.0), "noise": jnp.ones(2)}
    drawn = [b.draw_prior(jax.random.key(3), X, held, ("w0", "b1", "noise")) for b in (bound, general)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), *drawn)
    tables = [brg.diagnostics.scores(m, post, X, Y).dataset for m in (NET, model)]
    for name in ("log_predictive_density", "crps"):
        np.testing.assert_allclose(*(t[name].values for t in tables), rtol=1e-6)


WEIGHTS = ("w0", "b0", "w1", "b1")


@pytest.mark.parametrize(("sites", "options"), [
    (None, {}),
    pytest.param(("w0", "scale0", "relevance", "noise"), {"coordinates": "unconstrained"}, marks=pytest.mark.slow),
    pytest.param(("w1", "b1"), {"whiten": True}, marks=pytest.mark.slow),
    pytest.param(WEIGHTS, {"kind": "full", "whiten": True}, marks=pytest.mark.slow),
])
def test_metric_and_flow_agree(x64, sites, options):
    model = plain(NET)
    post = brg.prior(NET, X, key=jax.random.key(0), num_samples=4)
    named = WEIGHTS if sites is None else sites  # by default the noise of a network stays
    metrics = [brg.fisher(m, post, X, sites=s, progress_bar=False, **options)
               for m, s in ((NET, sites), (model, named))]
    assert metrics[0].sites == metrics[1].sites
    if "kind" in options:
        np.testing.assert_allclose(metrics[0].eigenvalues, metrics[1].eigenvalues, rtol=1e-6, atol=1e-9)
    else:
        for s in named:
            np.testing.assert_allclose(metrics[0].stiffness[s], metrics[1].stiffness[s], rtol=1e-6, atol=1e-12)
    cutoffs = np.array([0.0, 0.3, 3.0, 1e9])
    flows = [brg.renormalize(m, post, f, cutoffs=cutoffs, key=jax.random.key(1))
             for m, f in zip((NET, model), metrics, strict=True)]
    for s, v in flows[0].at(0.3).samples.items():
        np.testing.assert_allclose(v, flows[1].at(0.3).samples[s], rtol=1e-6, atol=1e-9)
    for measure in ("predict", "loss"):
        data = (X, Y) if measure == "loss" else (X,)
        found = [getattr(f, measure)(*data, progress_bar=False).values for f in flows]
        np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(*(f.log_predictive(X, Y).values for f in flows), rtol=1e-6)
    stayed = set(SITES) - set(named)
    for s in stayed:
        assert np.array_equal(flows[0].at(1e9).samples[s], post.samples[s])


def test_coordinates_are_non_centred_and_densities_transform(x64):
    """log p(u) of the coordinates is log p(θ) plus the log determinant of the map, by its full Jacobian."""
    bound = bind(NET, X)
    target = Target(bound)
    params = bound.draw_prior(jax.random.key(5), X)
    u = target.unconstrain(params, X, Y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), target.constrain(u, X, Y), params)
    scale = params["scale0"] * params["relevance"][:, None] / np.sqrt(2)
    np.testing.assert_allclose(u["w0"], params["w0"] / scale, rtol=1e-12)
    flat, named = jax.flatten_util.ravel_pytree(u)
    jacobian = jax.jacobian(lambda v: jax.flatten_util.ravel_pytree(target.constrain(named(v), X, Y))[0])(flat)
    expected = bound.log_prior(params) + np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(target.log_prior(u, X, Y), expected, rtol=1e-10)
    np.testing.assert_allclose(target.log_density(u, X, Y), expected + bound.log_likelihood(params, X, Y).sum(),
                               rtol=1e-10)


def test_the_learned_noise_prior():
    """Its distribution function from the inverse gamma's, and the quantiles that its documentation gives."""
    law = Hyperprior.learned("noise")
    draws = np.asarray(law.law.sample(jax.random.key(0), (4000,)), float)
    assert stats.kstest(draws**4, stats.invgamma(0.25, scale=FLOOR**4).cdf).pvalue > 1e-3
    quantiles = stats.invgamma(0.25, scale=FLOOR**4).ppf([0.05, 0.5, 0.95]) ** 0.25
    np.testing.assert_allclose(quantiles, [0.029, 0.066, 0.66], rtol=0.02)
    u = law.unconstrain(law.law.sample(jax.random.key(1), (4000,)))
    assert abs(float(u.mean())) < 0.1 and abs(float(u.std()) - 1) < 0.1


@pytest.mark.parametrize(("make", "message"), [
    (lambda: brg.gaussian(dist.Normal(0.0, 1.0)), "scale is a Normal, which is not of positive support"),
    (lambda: brg.gaussian(dist.LogNormal(jnp.zeros(2), 1.0)), "shape \\(2,\\)"),
    (lambda: brg.gaussian("lerned"), "scale='lerned' is no number"),
    (lambda: brg.gaussian(0.0), "scale must be a finite number above 0"),
    (lambda: brg.mlp((3,), weight_std=dist.HalfNormal(1.0), scaling="ntk"), "pass scaling='fan_in'"),
    (lambda: brg.mlp((3,), relevance=dist.Poisson(1.0)), "relevance is a Poisson"),
])
def test_what_cannot_be_a_scale_is_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize("likelihood", [brg.gaussian("learned"), brg.gaussian(dist.LogNormal(-2.0, 1.5), rounding=0.5)])
def test_a_learned_likelihood_is_read_back_from_a_run(likelihood):
    from bayes_brg.model.likelihoods import Likelihood
    assert Likelihood.restore(likelihood.record()) == likelihood


def test_rounding_adds_its_variance():
    likelihood = brg.gaussian(0.3, rounding=1.0)
    assert likelihood.noise == pytest.approx(np.sqrt(0.09 + 1 / 12))
    y, phi = jnp.array([[0.2]]), jnp.zeros((1, 1))
    assert float(likelihood.log_prob(phi, y)[0]) == pytest.approx(stats.norm(0, likelihood.noise).logpdf(0.2), rel=1e-5)


# -- exact laws of the readout, given what is learned ----------------------------------------------------------
def readout_laws(params):
    """Mean and covariance of each output's readout weights and bias given everything else, dense."""
    design, noise = np.asarray(NET.design(params, jnp.asarray(X)), float), np.asarray(params["noise"], float)
    std = np.r_[np.full(3, params["scale1"] / np.sqrt(3)), 0.7]
    for c in range(2):
        cov = np.linalg.inv(design.T @ design / noise[c] ** 2 + np.diag(1 / std**2))
        yield cov @ design.T @ Y[:, c] / noise[c] ** 2, cov


def held(seed=2):
    params = bind(NET, X).draw_prior(jax.random.key(seed), X)
    return params | {"noise": jnp.array([0.3, 1.2])}


def check_readout(flat, laws, centre=None):
    for c, (mean, cov) in enumerate(laws):
        draws = np.concatenate([flat["w1"][:, :, c], flat["b1"][:, None, c]], axis=1).astype(float)
        z = draws - (mean if centre is None else centre[c])
        assert np.all(np.abs(z.mean(0)) < 4.5 * np.sqrt(np.diag(cov) / len(z)))
        error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / len(z))
        assert np.all(np.abs(z.T @ z / len(z) - cov) < 4.5 * error)


def test_exact_readout_with_noise_of_each_output():
    params = held()
    fixed = {s: v for s, v in params.items() if s not in ("w1", "b1")}
    post = brg.readout_posterior(NET, X, Y, key=jax.random.key(1), num_samples=4000, hidden=fixed, progress_bar=False)
    check_readout(post.flat(), readout_laws(params))


def test_laplace_of_the_last_layer_given_the_scales():
    params = held()
    post = brg.laplace(NET, X, Y, key=jax.random.key(1), num_samples=4000, structure="last_layer", params=params,
                       progress_bar=False)
    centre = [np.r_[params["w1"][:, c], params["b1"][c]] for c in range(2)]
    check_readout(post.flat(), readout_laws(params), centre)
    assert set(post.trained) == {"w1", "b1"}
