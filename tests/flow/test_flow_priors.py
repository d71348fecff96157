"""Flows whose rule needs the prior itself: its mean, its scale, its support, its Jeffreys measure."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import digamma

import bayes_brg as brg

KEY = jax.random.key(41)
RNG = np.random.default_rng(12)
X = RNG.normal(size=(9, 2))
NOISE = 0.5


def smooth(stiffness, cutoff):
    return stiffness / (stiffness + cutoff)


def linear(law, noise=NOISE, name="w"):
    """y = x·w + noise under a prior of w, one law for both entries."""
    def model(x, y=None):
        w = numpyro.sample(name, law.expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ w, noise), obs=y)
    return model


# -- hierarchical priors --------------------------------------------------------------------------------------
def family(x, y=None):
    mu = numpyro.sample("mu", dist.Normal(1.0, 3.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    w = numpyro.sample("w", dist.Normal(mu, tau).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


def location(x, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    w = numpyro.sample("w", dist.Normal(mu, 1.0).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


@pytest.fixture
def relatives(x64):
    mu, tau = RNG.normal(size=(4, 25)) * 3, RNG.gamma(3.0, size=(4, 25))
    return brg.Posterior({"mu": mu, "tau": tau, "w": mu[..., None] + 1 + RNG.normal(size=(4, 25, 2))})


@pytest.mark.parametrize("at", ["draw", "mean"])
@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_the_prior_mean_is_that_of_each_draw(at, kind, relatives):
    """θ_Λ = m_p + α(θ − m_p) + β(θ₀ − m_p), m_p = μ of the draw, also where the metric is shared."""
    metric = brg.fisher(family, relatives, X, kind=kind, at=at)
    flow = brg.renormalize(family, relatives, metric, cutoffs=[0.0], key=KEY, regulator=smooth)
    information = X.T @ X / len(X) / NOISE**2
    values, vectors = np.linalg.eigh(information) if kind == "full" else (np.diag(information), np.eye(2))
    a = smooth(values, 0.7)
    alpha, beta = ((vectors * v) @ vectors.T for v in (a, np.sqrt(1 - a**2)))
    mu, start = relatives.samples["mu"][..., None], np.asarray(flow.at(np.inf).samples["w"])
    expected = mu + (relatives.samples["w"] - mu) @ alpha + (start - mu) @ beta
    np.testing.assert_allclose(flow.at(0.7).samples["w"], expected, atol=1e-11)


def test_flowing_parents_take_their_mean_along(relatives):
    """Where parents flow too, m_p is one point for all draws: no draw's old parent moves it."""
    metric = brg.fisher(family, relatives, X, sites=("mu", "tau", "w"))
    end = brg.renormalize(family, relatives, metric, cutoffs=[0.0], key=KEY, refill="zero").at(np.inf).samples
    np.testing.assert_allclose(end["w"], 1.0)
    np.testing.assert_allclose(end["mu"], 1.0)
    np.testing.assert_allclose(end["tau"], 2 * np.sqrt(2 / np.pi))
    both = brg.Posterior({s: relatives.samples[s] for s in ("mu", "w")})
    metric = brg.fisher(location, both, X, sites=("mu", "w"))
    flow = brg.renormalize(location, both, metric, cutoffs=[0.0], key=KEY, regulator=smooth)
    a = smooth(np.diag(X.T @ X) / len(X) / NOISE**2, 0.7)  # m_p = 0
    expected = a * both.samples["w"] + np.sqrt(1 - a**2) * np.asarray(flow.at(np.inf).samples["w"])
    np.testing.assert_allclose(flow.at(0.7).samples["w"], expected, atol=1e-11)


def test_unlearning_refuses_what_it_cannot_invert(relatives):
    rule = dict(cutoffs=[0.0], key=KEY, regulator=brg.unlearning(9))
    shared = brg.fisher(family, relatives, X, kind="full", whiten=True, at="mean")
    with pytest.raises(ValueError, match="site 'w' differs from draw to draw.*at='draw'"):
        brg.renormalize(family, relatives, shared, **rule)
    own = brg.fisher(family, relatives, X, kind="full", whiten=True)
    brg.renormalize(family, relatives, own, **rule)
    with pytest.raises(ValueError, match="per datum, not that of 9 data"):
        brg.renormalize(family, relatives, own.total(9), **rule)
    both = brg.Posterior({s: relatives.samples[s] for s in ("mu", "w")})
    metric = brg.fisher(location, both, X, kind="full", whiten=True, at="mean", sites=("mu", "w"))
    with pytest.raises(ValueError, match="site 'w' depends on site 'mu', which flows too"):
        brg.renormalize(location, both, metric, **rule)
    # A common scale is no obstacle, whatever the locations.
    brg.renormalize(location, both, brg.fisher(location, both, X, kind="full", whiten=True, at="mean"), **rule)


# -- priors with or without a mean ----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["full", "block", "lowrank"])
def test_a_sharp_flow_needs_no_prior_mean(kind):
    model, x = linear(dist.Cauchy(0.0, 1.0)), X.astype(np.float32)
    draws = brg.prior(model, x, key=KEY, num_samples=40)
    metric = brg.fisher(model, draws, x, kind=kind)
    flow = brg.renormalize(model, draws, metric, cutoffs=brg.cutoffs(metric, num=5), key=jax.random.key(1))
    assert np.isfinite(flow.predict(x)).all()
    for change in (dict(refill="zero"), dict(regulator=smooth)):
        with pytest.raises(ValueError, match="site 'w' has no known finite mean"):
            brg.renormalize(model, draws, metric, cutoffs=[0.0], key=KEY, **change)


def test_zero_refill_goes_to_the_prior_mean_in_the_metrics_coordinates(x64):
    """Native: E θ. Unconstrained: T(E u), here exp ψ(2) for Gamma(2), by the sharp and by a smooth rule."""
    model = linear(dist.Gamma(2.0, 1.0))
    draws = brg.prior(model, X, key=KEY, num_samples=8)

    def end(coordinates, kind, **rule):
        metric = brg.fisher(model, draws, X, kind=kind, coordinates=coordinates)
        flow = brg.renormalize(model, draws, metric, cutoffs=[0.0], key=KEY, refill="zero", **rule)
        return flow.at(1e30).samples["w"]

    np.testing.assert_allclose(end("native", "diagonal"), 2.0)
    for kind in ("diagonal", "full"):
        for rule in ({}, {"regulator": smooth}):
            np.testing.assert_allclose(end("unconstrained", kind, **rule), np.exp(digamma(2)), rtol=1e-6)


def test_zero_refill_of_a_prior_whose_mean_is_unknown():
    def ordered(x, y=None):
        law = dist.TransformedDistribution(dist.Normal(0, 1).expand([2]).to_event(1),
                                           dist.transforms.OrderedTransform())
        numpyro.sample("y", dist.Normal(x @ numpyro.sample("w", law), NOISE), obs=y)
    x = X.astype(np.float32)
    draws = brg.prior(ordered, x, key=KEY, num_samples=8)
    with pytest.raises(ValueError, match="coordinates='unconstrained'"):
        brg.renormalize(ordered, draws, brg.fisher(ordered, draws, x), cutoffs=[0.0], key=KEY, refill="zero")
    metric = brg.fisher(ordered, draws, x, coordinates="unconstrained")
    end = brg.renormalize(ordered, draws, metric, cutoffs=[0.0], key=KEY, refill="zero").at(np.inf).samples["w"]
    assert (np.diff(end) > 0).all() and np.ptp(end[..., 0]) == 0


# -- Jeffreys -------------------------------------------------------------------------------------------------
ONE = np.zeros((1, 1), np.float32)


def pair(x, y=None):
    a, b = numpyro.sample("a", dist.Uniform(0.0, 1.0)), numpyro.sample("b", dist.Uniform(2.0, 5.0))
    loc = jnp.broadcast_to(jnp.stack([a, b]), (x.shape[0], 2))
    numpyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)


@pytest.fixture(scope="module")
def flat_pair():
    """A constant metric of two bounded parameters, whose Jeffreys prior is flat; both are sloppy above Λ = 1."""
    draws = brg.prior(pair, ONE, key=KEY, num_samples=200)
    metric = brg.fisher(pair, draws, ONE)
    return brg.renormalize(pair, draws, metric, cutoffs=[0.0, 2.0], key=jax.random.key(2), refill="jeffreys")


def test_jeffreys_by_site_keeps_each_sites_interval(flat_pair):
    alone = flat_pair.by_site()["b"].at(2.0)
    b = np.ravel(alone.samples["b"])
    assert stats.kstest(b, stats.uniform(2, 3).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(alone.samples["a"], flat_pair.posterior.samples["a"])


def test_pruning_is_sharp_and_to_zero_whatever_the_flow(flat_pair):
    y = np.zeros((1, 2), np.float32)
    common = dict(cutoffs=[0.0, 2.0], key=jax.random.key(2))
    flows = [flat_pair, *(brg.renormalize(pair, flat_pair.posterior, flat_pair.metric, **common, refill=r)
                          for r in ("prior", "zero"))]
    net, x = brg.mlp((4,)), X.astype(np.float32)
    draws = brg.prior(net, x, key=KEY, num_samples=6)
    metric = brg.fisher(net, draws, x, whiten=True)
    others = [brg.renormalize(net, draws, metric, cutoffs=[0.0], key=KEY, regulator=r)
              for r in ("sharp", smooth, brg.unlearning(9))]
    for some, inputs, targets in ((flows, ONE, y), (others, x, X[:, 0])):
        curves = [brg.pruning_curve(f, inputs, targets, fractions=[0.0, 0.5, 1.0]) for f in some]
        for curve in curves[1:]:
            np.testing.assert_array_equal(curve, curves[0])


def test_bounds_outside_the_support_are_refused(flat_pair):
    common = dict(cutoffs=[0.0, 2.0], key=KEY, refill="jeffreys")
    for bounds, match in (({"a": (-1, 1)}, r"\(-1, 1\) of site 'a' reach outside its support, \(0.0, 1.0\)"),
                          ({"a": 0.3}, r"must be \(low, high\), got 0.3"), ({"a": (1, 0)}, "low < high")):
        with pytest.raises(ValueError, match=match):
            brg.renormalize(pair, flat_pair.posterior, flat_pair.metric, bounds=bounds, **common)


def test_jeffreys_of_a_simplex_is_refused():
    def model(x, y=None):
        p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
        numpyro.sample("y", dist.Categorical(p).expand([x.shape[0]]), obs=y)
    draws = brg.prior(model, ONE, key=KEY, num_samples=4)
    metric = brg.fisher(model, draws, ONE)
    for bounds in (None, {"p": (0, 1)}):
        with pytest.raises(ValueError, match="site 'p' ties its entries together"):
            brg.renormalize(model, draws, metric, cutoffs=[0.0], key=KEY, refill="jeffreys", bounds=bounds)


@pytest.mark.slow
def test_a_block_that_is_singular_up_to_rounding_is_refused():
    """Only the product of the two parameters is seen: rank one, though rounding gives the determinant a sign."""
    def product(x, y=None):
        a, b = (numpyro.sample(s, dist.Uniform(0.1, 1.0)) for s in "ab")
        numpyro.sample("y", dist.Normal(0.37 * a * b + 0 * x[:, 0], 1.0), obs=y)
    x = X.astype(np.float32)
    draws = brg.prior(product, x, key=KEY, num_samples=12)
    flow = brg.renormalize(product, draws, brg.fisher(product, draws, x), cutoffs=[0.0], key=KEY, refill="jeffreys")
    with pytest.raises(ValueError, match=r"2 parameters sloppy.*is singular \(a, b\)"):
        flow.at(9.0)


@pytest.mark.slow
def test_jeffreys_where_the_middle_of_the_bounds_is_singular():
    """φ = a²/2 and b on (−1, 1): √det ∝ |a|, zero in the middle; a² is uniform."""
    def model(x, y=None):
        a, b = (numpyro.sample(s, dist.Uniform(-1.0, 1.0)) for s in "ab")
        loc = jnp.broadcast_to(jnp.stack([a**2 / 2, b]), (x.shape[0], 2))
        numpyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=y)
    draws = brg.prior(model, ONE, key=KEY, num_samples=200)
    flow = brg.renormalize(model, draws, brg.fisher(model, draws, ONE), cutoffs=[0.0], key=KEY, refill="jeffreys")
    a = np.ravel(flow.at(9.0).samples["a"])
    assert stats.kstest(a**2, "uniform").pvalue > 1e-3
    assert abs((a > 0).mean() - 0.5) < 4.5 * 0.5 / np.sqrt(200)
