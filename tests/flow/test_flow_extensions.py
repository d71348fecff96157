"""Rules written outside the package: a regulator with any α and β, and a refill, on every path to a number."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import bayes_brg as brg
from bayes_brg.flow import Refill, Regulator

KEY = jax.random.key(3)
NET = brg.mlp((6,), activation="tanh", bias_std=0.5, likelihood=brg.gaussian(0.4))
X = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
SCALES = np.r_[0.0, np.geomspace(1e-4, 10, 42)]  # 43: past the number from which the sharp rule uses cumulative sums


class Half(Regulator):
    """α alone overridden: a third of what is stiff goes too; β = 1 − α."""

    def alpha(self, stiffness, cutoff):
        return jnp.where(stiffness >= cutoff, 2 / 3, 0.0)


class Soft(Regulator):
    """Any α and β, with a number of its own that no dataclass declares; α(λ, Λ) at Λ = 0 would be 0/0 for λ = 0."""

    def __init__(self, power):
        self.power = power

    def alpha(self, stiffness, cutoff):
        return stiffness**self.power / (stiffness**self.power + cutoff**self.power)

    def beta(self, stiffness, cutoff):
        return 1.5 * (1 - self.alpha(stiffness, cutoff)) ** 2


def general(x, y=None):
    return NET(x, y)


@pytest.fixture(scope="module")
def draws():
    return brg.prior(NET, X, key=jax.random.key(0), num_samples=4).replace(trained=("w1", "b1"))


def by_hand(regulator, post, flow, metric, cutoff):
    """θ_Λ of the flowing sites from the definition, with the flow's own θ₀ (prior mean 0)."""
    if cutoff == 0:
        return {s: np.asarray(post.samples[s]) for s in metric.sites}
    theta0 = brg.renormalize(NET, post, metric, cutoffs=[0.0], key=KEY).at(np.inf).samples
    out = {}
    for s in metric.sites:
        lam = metric.stiffness[s]
        out[s] = np.asarray(regulator.alpha(lam, cutoff) * post.samples[s] + regulator.beta(lam, cutoff) * theta0[s])
    return out


@pytest.mark.parametrize("regulator", [Half(), Soft(1), Soft(2)], ids=["half", "soft", "softer"])
def test_a_regulator_is_the_same_on_every_path(regulator, draws):
    """Few cutoffs, many cutoffs, the general model, the posterior at Λ and the definition."""
    metric = brg.fisher(NET, draws, X)
    flow = brg.renormalize(NET, draws, metric, cutoffs=SCALES, key=KEY, regulator=regulator)
    many, few = flow.predict(X), flow.predict(X, cutoffs=SCALES[[0, 20, 30]])
    np.testing.assert_allclose(many[[0, 20, 30]], few, rtol=1e-5, atol=1e-6)
    other = brg.renormalize(general, draws, brg.fisher(general, draws, X), cutoffs=SCALES, key=KEY, regulator=regulator)
    np.testing.assert_allclose(other.predict(X), many, rtol=1e-5, atol=2e-6)
    for i in (0, 20, 30):
        theta = {**draws.samples, **by_hand(regulator, draws, flow, metric, SCALES[i])}
        at = flow.at(float(SCALES[i]))
        for s in metric.sites:
            np.testing.assert_allclose(at.samples[s], theta[s], rtol=1e-5, atol=1e-6)
        phi = brg.predict(NET, brg.Posterior(theta), X)
        np.testing.assert_allclose(many[i], phi, rtol=1e-5, atol=2e-6)


def test_a_regulator_is_the_same_in_the_closed_form(draws):
    """Frozen features: the mean of a member's output is H(α w), the refill's variance H β²σ₀² Hᵀ."""
    metric = brg.fisher(NET, draws, X)
    flow = brg.renormalize(NET, draws, metric, cutoffs=SCALES[[0, 20]], key=KEY, regulator=Soft(2))
    closed = brg.closed_form_flow(flow, X, progress_bar=False)
    kept = {s: np.asarray(Soft(2).alpha(metric.stiffness[s], SCALES[20]) * draws.samples[s]) for s in metric.sites}
    phi = brg.predict(NET, brg.Posterior({**draws.samples, **kept}), X)
    np.testing.assert_allclose(closed["member_mean"][1], phi, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(closed["member_mean"][0], brg.predict(NET, draws, X), rtol=1e-5, atol=1e-6)
    assert np.abs(closed["member_variance"][0]).max() == 0 and (closed["member_variance"][1] > 0).all()


def test_regulators_that_differ_are_not_taken_for_each_other(draws):
    """Compiled code is found again for an equal rule only."""
    assert Soft(1) == Soft(1) and Soft(1) != Soft(2) and hash(Soft(1)) != hash(Soft(2)) and Half() != Regulator()
    metric = brg.fisher(NET, draws, X)
    one, two = (brg.renormalize(NET, draws, metric, cutoffs=[0.0, 0.1], key=KEY, regulator=r).predict(X)
                for r in (Soft(1), Soft(2)))
    assert not np.allclose(one[1], two[1])


def test_a_regulator_in_the_eigenmodes_is_that_of_the_dense_matrix(draws):
    with jax.enable_x64(True):
        post = brg.Posterior({s: np.asarray(v, np.float64) for s, v in draws.samples.items()}, trained=draws.trained)
        metric = brg.fisher(NET, post, X, kind="full")
        flow = brg.renormalize(NET, post, metric, cutoffs=[0.0, 0.05], key=KEY, regulator=Soft(2))
        start = brg.renormalize(NET, post, metric, cutoffs=[0.0], key=KEY).at(np.inf)
        at = flow.at(0.05)
        for draw in range(post.num_draws):
            basis = np.asarray(metric.basis(0, draw))
            values = np.asarray(metric.geometry.spectrum(jax.tree.map(lambda a, d=draw: a[d], metric.arrays()[0])
                                                         and metric._at(0, draw)))
            theta, theta0 = (np.asarray(metric.ravel({s: p.samples[s][0, draw] for s in metric.sites}))
                             for p in (post, start))
            full = np.linalg.qr(np.column_stack([basis[:, values > 0], np.eye(len(basis))]))[0][:, :len(basis)]
            lam = np.r_[values[values > 0], np.zeros(len(basis) - (values > 0).sum())]
            right = full @ (Soft(2).alpha(lam, 0.05) * (full.T @ theta) + Soft(2).beta(lam, 0.05) * (full.T @ theta0))
            got = np.asarray(metric.ravel({s: at.samples[s][0, draw] for s in metric.sites}))
            np.testing.assert_allclose(got, right, rtol=1e-6, atol=1e-9)


def test_a_smooth_regulator_may_not_take_constrained_sites_out_of_their_support():
    def model(x, y=None):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        numpyro.sample("y", dist.Normal(rate * x[:, 0], 1.0), obs=y)

    post = brg.prior(model, X, key=KEY, num_samples=4)
    with pytest.raises(ValueError, match="would take it out of its support"):
        brg.renormalize(model, post, brg.fisher(model, post, X), cutoffs=[0.0], key=KEY, regulator=Half())


@pytest.mark.parametrize(("weights", "match"), [
    ({"alpha": lambda self, lam, cut: lam[:3]}, "one finite number for each λ"),
    ({"alpha": lambda self, lam, cut: cut / lam}, "one finite number for each λ"),
    ({"beta": lambda self, lam, cut: np.asarray(lam)}, "beta.* failed on arrays"),
])
def test_regulators_that_fail_are_refused_where_the_flow_is_made(weights, match, draws):
    bad = type("Bad", (Regulator,), weights)()
    with pytest.raises(ValueError, match=match):
        brg.renormalize(NET, draws, brg.fisher(NET, draws, X), cutoffs=[0.0], key=KEY, regulator=bad)


def test_an_overridden_regulator_does_not_compose_by_itself(draws):
    with pytest.raises(ValueError, match="do not compose"):
        brg.renormalize_stepwise(NET, draws, lambda p: None, cutoffs=[0.0, 1.0], key=KEY, regulator=Half())


class Scaled(Refill):
    """A prior draw times a constant: of known law, so that closed forms hold too."""

    name = "scaled"

    def __init__(self, factor):
        self.factor = factor

    def draw(self, key, bound, x, theta, sites, mean):
        return {s: self.factor * v for s, v in bound.draw_prior(key, x).items() if s in sites}

    def variance(self, prior_variance):
        return self.factor**2 * prior_variance


class Flip(Refill):
    """The member itself, mirrored at the prior mean."""

    needs_mean = True

    def draw(self, key, bound, x, theta, sites, mean):
        return {s: 2 * mean[s] - theta[s] for s in sites}


def test_a_refill_from_outside(draws):
    metric = brg.fisher(NET, draws, X)
    scales = SCALES[[0, 20, 30]]

    def flow(refill, model=NET, cutoffs=scales):
        return brg.renormalize(model, draws, brg.fisher(model, draws, X), cutoffs=cutoffs, key=KEY, refill=refill)

    np.testing.assert_allclose(flow(Scaled(1.0)).predict(X), flow("prior").predict(X), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(flow(Scaled(0.0)).at(np.inf).samples["w1"], flow("zero").at(np.inf).samples["w1"])
    top = np.asarray(flow("prior").at(np.inf).samples["w1"])
    np.testing.assert_allclose(flow(Scaled(3.0)).at(np.inf).samples["w1"], 3 * top, rtol=1e-6)
    for refill in (Scaled(3.0), Flip()):  # network and general model; few cutoffs and many
        np.testing.assert_allclose(flow(refill, general).predict(X), flow(refill).predict(X), rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(flow(refill, cutoffs=SCALES).predict(X)[[0, 20, 30]], flow(refill).predict(X),
                                   rtol=1e-5, atol=2e-6)
    stiff = np.asarray(metric.stiffness["w1"]) >= scales[1]
    flipped = flow(Flip())
    assert flipped.refill == "given"
    at = np.asarray(flipped.at(float(scales[1])).samples["w1"])
    np.testing.assert_array_equal(at, np.where(stiff, draws.samples["w1"], -draws.samples["w1"]))
    closed = brg.closed_form_flow(flow(Scaled(3.0)), X, progress_bar=False)["member_variance"]
    plain = brg.closed_form_flow(flow("prior"), X, progress_bar=False)["member_variance"]
    np.testing.assert_allclose(closed, 9 * plain, rtol=1e-6)
    with pytest.raises(ValueError, match="'prior' or 'zero' for a Gaussian readout, got 'given'"):
        brg.closed_form_flow(flipped, X)
    with pytest.raises(ValueError, match="did you mean 'prior'"):
        flow("pior")
