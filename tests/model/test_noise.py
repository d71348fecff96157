"""Likelihoods of `model.noise`: their output Fisher matrices against sums and integrals, and the general way."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import integrate

import bayes_brg as brg
from bayes_brg.model.bound import bind
from bayes_brg.model.likelihoods import Likelihood

COVARIANCE = [[1.0, 0.3], [0.3, 0.5]]
ALL = {
    "heteroscedastic": brg.heteroscedastic(),
    "heteroscedastic rounded": brg.heteroscedastic(0.7, rounding=0.9),
    "student_t": brg.student_t(3.5, 0.6),
    "negative_binomial": brg.negative_binomial(1.7),
    "beta": brg.beta(4.2),
    "multivariate_gaussian": brg.multivariate_gaussian(COVARIANCE),
    "ordinal": brg.ordinal((-1.0, 0.2, 1.5)),
}
LEARNED = {
    "heteroscedastic": brg.heteroscedastic("learned"),
    "student_t": brg.student_t("learned", "learned"),
    "negative_binomial": brg.negative_binomial(dist.Gamma(2.0, 1.0)),
    "beta": brg.beta(dist.Gamma(20.0, 5.0)),  # of few extremes, where quadrature has fewer digits
}
COUNTS = np.arange(4000)


def targets(likelihood):
    """What integrates or sums over y: nodes and weights, y as the likelihood takes it."""
    if likelihood.name == "ordinal":
        return np.arange(4), np.ones(4)
    if likelihood.name == "negative_binomial":
        return COUNTS[:, None], np.ones(len(COUNTS))
    t, w = np.polynomial.legendre.leggauss(400)
    if likelihood.name == "beta":  # y = σ(z), z on ±40
        z = 40 * t
        y = 1 / (1 + np.exp(-z))
        return y[:, None], 40 * w * y * (1 - y)
    z = 12 * t  # y = sinh z
    return np.sinh(z)[:, None], 12 * w * np.cosh(z)


DEAR = ("beta", "ordinal", "negative_binomial")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in DEAR else [])
                                  for n in ALL if n != "multivariate_gaussian"])
def test_output_fisher_is_the_mean_square_of_the_score(x64, name):
    likelihood = ALL[name]
    phi = jnp.array([0.4, -0.3][:likelihood.outputs(1)])
    y, weight = targets(likelihood)
    mask = (np.asarray(y, float).reshape(len(y)) < 1) if name == "beta" else np.ones(len(y), bool)
    y, weight = jnp.asarray(y[mask]), weight[mask]

    def log_p(phi):
        return likelihood.log_prob(jnp.broadcast_to(phi, (len(y), phi.size)), y)

    p, score = np.exp(log_p(phi)) * weight, np.asarray(jax.jacfwd(log_p)(phi))
    assert p.sum() == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(likelihood.fisher(phi[None])[0], (score.T * p) @ score, rtol=1e-8, atol=1e-9)


def test_fisher_of_correlated_targets(x64):
    found = ALL["multivariate_gaussian"].fisher(jnp.zeros((3, 2)))
    np.testing.assert_allclose(found, np.broadcast_to(np.linalg.inv(COVARIANCE), (3, 2, 2)), rtol=1e-12)


X = np.random.default_rng(0).normal(size=(6, 2))


def case(likelihood):
    out = 2 if likelihood.name == "multivariate_gaussian" else 1
    net = brg.mlp((3,), out, activation="tanh", likelihood=likelihood)

    def general(x, y=None):
        return net(x, y)

    post = brg.prior(net, X, key=jax.random.key(0), num_samples=4)
    params = {s: v[0] for s, v in post.flat().items()}
    y = bind(net, X).distribution(params, X).sample(jax.random.key(5))
    return net, general, post, np.asarray(y)


SOME = ("heteroscedastic",)


@pytest.mark.parametrize("likelihood", [
    *(pytest.param(ALL[n], id=n, marks=[] if n in SOME else pytest.mark.slow) for n in ALL),
    *(pytest.param(LEARNED[n], id=f"learned {n}", marks=pytest.mark.slow) for n in LEARNED)])
def test_the_general_way_has_the_same_numbers(x64, likelihood):
    net, general, post, y = case(likelihood)
    weights = ["w0", "w1"]
    fast, slow = (brg.fisher(m, post, X, sites=weights, progress_bar=False) for m in (net, general))
    for s in weights:
        np.testing.assert_allclose(fast.stiffness[s], slow.stiffness[s], rtol=1e-8)
    bound, other = bind(net, X), bind(general, X)
    params = {s: v[0] for s, v in post.flat().items()}
    given = bound.targets(y)
    for name in ("log_joint", "log_likelihood", "loss"):
        np.testing.assert_allclose(getattr(bound, name)(params, X, given), getattr(other, name)(params, X, given),
                                   rtol=1e-10)
    flows = [brg.renormalize(m, post, f, cutoffs=[0.0, 0.05, 0.5], key=jax.random.key(1))
             for m, f in ((net, fast), (general, slow))]
    np.testing.assert_allclose(*(f.loss(X, y, progress_bar=False).values for f in flows), rtol=1e-6)
    tables = [brg.diagnostics.scores(m, post, X, y).dataset["log_predictive_density"].values for m in (net, general)]
    np.testing.assert_allclose(*tables, rtol=1e-6)


@pytest.mark.parametrize("likelihood", [*ALL.values(), *LEARNED.values()])
def test_means_sites_and_files(likelihood):
    phi = jnp.array([[0.3, -0.2], [1.0, 0.4]])[:, :2 if likelihood.name == "multivariate_gaussian" else
                                               likelihood.outputs(1)]
    assert Likelihood.restore(likelihood.record()) == likelihood
    sites = likelihood.hyperpriors(phi.shape[1])
    assert all(shape == (1,) for _, shape in sites.values())
    known = likelihood.given({s: jnp.array([0.8]) for s in sites})
    law = known.distribution(phi)
    if likelihood.name == "ordinal":
        np.testing.assert_allclose(known.mean(phi)[:, 0], law.probs @ np.arange(4), rtol=1e-5)
    elif "df" not in sites:  # of which this value leaves no mean
        np.testing.assert_allclose(known.mean(phi), law.mean, rtol=1e-5)


@pytest.mark.parametrize(("likelihood", "y", "message"), [
    (brg.beta(), [0.5, 1.0], "between 0 and 1"), (brg.negative_binomial(), [1.0, 0.5], "whole number"),
    (brg.ordinal(3), [0, 3], "rank 0 ... 2"), (brg.heteroscedastic(), [[1.0, 2.0]] * 2, r"expected \(n, 1\)"),
])
def test_targets_outside_the_support_are_named(likelihood, y, message):
    with pytest.raises(ValueError, match=message):
        likelihood.targets(np.asarray(y), likelihood.outputs(1))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: brg.ordinal((1.0, 0.0)), "increasing"), (lambda: brg.ordinal(1), "at least 2"),
    (lambda: brg.multivariate_gaussian([[1.0, 2.0], [2.0, 1.0]]), "not positive definite"),
    (lambda: brg.multivariate_gaussian(), "one of them"),
    (lambda: brg.mlp((), 3, likelihood=brg.multivariate_gaussian(COVARIANCE)), "of 2 targets, but out=3"),
    (lambda: brg.cosnet(3, 1, 1.0, 1.0, likelihood=brg.heteroscedastic()), "use brg.mlp"),
])
def test_what_makes_no_likelihood_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_extreme_outputs_keep_their_digits():
    """Far out, where a probability rounds to 0 or 1."""
    phi = jnp.array([[-60.0], [60.0]])
    ordinal = brg.ordinal((-1.0, 1.0))
    for likelihood, y in ((ordinal, jnp.array([1, 1])), (brg.beta(3.0), jnp.array([[0.5], [0.5]])),
                          (brg.negative_binomial(2.0), jnp.array([[3.0], [3.0]]))):
        assert np.isfinite(likelihood.log_prob(phi, y)).all()
        assert np.isfinite(likelihood.fisher_root(phi)).all()
    middle = integrate.quad(lambda t: np.exp(-t), 59, 61)[0]  # P(−1 < φ + logistic < 1) at φ = −60
    assert float(ordinal.log_probs(phi)[0, 1]) == pytest.approx(np.log(middle), rel=1e-5)


def test_rounded_width_and_information_of_counts_by_hand():
    """s² = scale² + step²/12; F_out of a negative binomial is μ/(1 + μ/r)."""
    assert brg.gaussian(0.3, rounding=0.6).sd == pytest.approx(np.sqrt(0.09 + 0.03))
    mean = np.array([0.2, 1.0, 30.0])
    found = brg.negative_binomial(2.5).fisher(jnp.log(jnp.asarray(mean))[:, None])
    np.testing.assert_allclose(found[:, 0, 0], mean / (1 + mean / 2.5), rtol=1e-5)
