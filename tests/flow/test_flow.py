import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from scipy import stats

import bayes_brg as brg
from bayes_brg.flow.critical_scale import critical_scale

KEY = jax.random.key(21)
RNG = np.random.default_rng(6)
X = RNG.normal(size=(10, 2)).astype(np.float32)
Y = RNG.normal(size=10).astype(np.float32)
NET = brg.mlp((6, 5), activation="tanh", bias_std=0.3)


@pytest.fixture(scope="module")
def trained():
    """An ensemble with every site trained, so that every site flows."""
    return brg.ensemble(NET, X, Y, key=KEY, num_members=12, train="all", optimizer="gd", learning_rate=0.05,
                        num_epochs=30)


@pytest.fixture(scope="module")
def metric(trained):
    return brg.fisher(NET, trained, X)


@pytest.fixture(scope="module")
def flow(trained, metric):
    return brg.renormalize(NET, trained, metric, cutoffs=brg.cutoffs(metric, num=8), key=KEY)


def equal(a, b):
    return all(np.array_equal(a.samples[s], b.samples[s]) for s in a.samples)


def test_the_ends_of_the_flow(flow, trained):
    """Λ = 0 is the posterior, Λ above every stiffness one prior draw a member; both bit for bit."""
    assert equal(flow.at(0.0), trained)
    top = flow.at(flow.cutoffs[-1])
    assert equal(top, flow.at(np.inf))
    prior = np.concatenate([np.ravel(top.samples[s]) / np.asarray(std) for s, std in
                            {"w0": 1 / np.sqrt(2), "w1": 1 / np.sqrt(6), "w2": 1 / np.sqrt(5), "b0": 0.3}.items()])
    assert stats.kstest(prior, "norm").pvalue > 1e-3
    assert not np.isin(np.asarray(top.samples["w0"]), np.asarray(trained.samples["w0"])).any()


def test_sloppy_goes_and_stiff_stays(flow, metric, trained):
    cutoff = flow.cutoffs[4]
    middle, top = flow.at(cutoff), flow.at(np.inf)
    for s in metric.sites:
        stiff = np.asarray(metric.stiffness[s]) >= cutoff
        np.testing.assert_array_equal(middle.samples[s], np.where(stiff, trained.samples[s], top.samples[s]))


def test_sharp_flows_form_a_semigroup_bit_for_bit(flow, metric):
    low, high = flow.cutoffs[2], flow.cutoffs[5]
    for first, second in ((low, high), (high, low), (low, low)):
        again = brg.renormalize(NET, flow.at(first), metric, cutoffs=[0.0, second], key=KEY)
        assert equal(again.at(second), flow.at(max(first, second)))


def test_a_parameter_exactly_at_the_cutoff_is_stiff(metric, trained):
    cutoff = float(np.asarray(metric.stiffness["w2"])[0, 0, 0, 0])
    at = brg.renormalize(NET, trained, metric, cutoffs=[0.0], key=KEY).at(cutoff)
    assert at.samples["w2"][0, 0, 0, 0] == trained.samples["w2"][0, 0, 0, 0]


def test_zero_stiffness_is_sloppy_at_every_positive_cutoff():
    net = brg.mlp((4,), activation="relu", weight_std=1.0)
    x = np.ones((3, 1), np.float32)
    post = brg.prior(net, x, key=KEY, num_samples=40)
    metric = brg.fisher(net, post, x)
    dead = np.asarray(metric.stiffness["w1"]) == 0
    assert dead.any()
    for cutoff in (1e-30, 1e-42, 1e-300):  # the last two are 0 in float32, but not Λ = 0
        flow = brg.renormalize(net, post, metric, cutoffs=[0.0, cutoff], key=jax.random.key(1))
        changed = np.asarray(flow.at(cutoff).samples["w1"]) != np.asarray(post.samples["w1"])
        np.testing.assert_array_equal(changed, dead)
        np.testing.assert_allclose(flow.predict(x).values[1], brg.predict(net, flow.at(cutoff), x), rtol=1e-5)


def test_common_random_numbers(trained, metric, flow):
    """θ₀ depends on the key and the member alone: not on the schedule, the order of calls, or other members."""
    other = brg.renormalize(NET, trained, metric, cutoffs=[0.0, 7.0], key=KEY)
    assert equal(other.at(np.inf), flow.at(np.inf))
    fewer = brg.Posterior({s: v[:1] for s, v in trained.samples.items()}, trained.stats, trained.method)
    small = brg.renormalize(NET, fewer, brg.fisher(NET, fewer, X), cutoffs=[0.0], key=KEY).at(np.inf)
    for s in small.samples:
        np.testing.assert_array_equal(small.samples[s][0], flow.at(np.inf).samples[s][0])


def test_predict_and_loss_are_those_of_the_posterior_at_each_cutoff(flow):
    phi, loss = flow.predict(X), flow.loss(X, Y)
    assert phi.dims == ("cutoff", "chain", "draw", "point", "output")
    assert loss.dims == ("cutoff", "chain", "draw")
    for i, cutoff in enumerate(flow.cutoffs):
        expected = np.asarray(brg.predict(NET, flow.at(cutoff), X))
        np.testing.assert_allclose(phi.values[i], expected, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(loss.values[i], ((expected[..., 0] - Y) ** 2).mean(-1), rtol=2e-5)


def test_readout_flow_takes_the_linear_way_to_the_same_numbers():
    net = brg.mlp((6, 40), activation="tanh", bias_std=0.5, scaling="ntk")
    post = brg.readout_posterior(net, X, Y, key=KEY, num_samples=12)
    metric = brg.fisher(net, post, X)
    assert metric.sites == ("w2", "b2")
    flow = brg.renormalize(net, post, metric, cutoffs=brg.cutoffs(metric, num=6), key=KEY)
    phi = flow.predict(X)
    for i, cutoff in enumerate(flow.cutoffs):
        np.testing.assert_allclose(phi.values[i], brg.predict(net, flow.at(cutoff), X), rtol=1e-4, atol=1e-5)


def test_stiff_fraction_counts_parameters(flow, metric):
    values = np.concatenate([np.ravel(v) for v in metric.stiffness.values()])
    np.testing.assert_allclose(flow.stiff_fraction, [(values >= c).mean() for c in flow.cutoffs])
    assert flow.stiff_fraction[0] == 1.0 and flow.stiff_fraction[-1] == 0.0


def test_stiff_fraction_counts_what_the_flow_keeps_at_a_cutoff_as_printed(trained, metric):
    """A stiffness as it is printed, read back in double precision, may lie on either side of it."""
    values = np.unique(metric.values())[::7]
    flow = brg.renormalize(NET, trained, metric, cutoffs=[float(str(v)) for v in values], key=KEY)
    for cutoff, fraction in zip(flow.cutoffs, flow.stiff_fraction, strict=True):
        kept = [np.asarray(flow.at(cutoff).samples[s] == trained.samples[s]).ravel() for s in metric.sites]
        assert np.concatenate(kept).mean() == pytest.approx(fraction, abs=1e-12)


def test_zero_refill_prunes(trained, metric):
    flow = brg.renormalize(NET, trained, metric, cutoffs=[0.0], key=KEY, refill="zero")
    assert all((np.asarray(v) == 0).all() for v in flow.at(np.inf).samples.values())


@pytest.mark.parametrize("at", ["mean", "map"])
def test_a_shared_metric_splits_every_member_alike(trained, at):
    metric = brg.fisher(NET, trained, X, at=at)
    assert metric.stiffness["w0"].shape == (2, 6)
    flow = brg.renormalize(NET, trained, metric, cutoffs=brg.cutoffs(metric, num=5), key=KEY)
    kept = np.asarray(flow.at(flow.cutoffs[2]).samples["w1"]) == np.asarray(trained.samples["w1"])
    assert (kept == kept[:1, :1]).all() and 0 < kept.mean() < 1


def test_cutoff_schedules(metric):
    values = np.sort(np.concatenate([np.ravel(v) for v in metric.stiffness.values()]))
    log = brg.cutoffs(metric, num=9)
    assert log[0] == 0 and len(log) == 9 and log[-1] > values[-1]
    np.testing.assert_allclose(np.diff(np.log(log[1:])), np.log(log[2] / log[1]), rtol=1e-6)
    quantile = brg.cutoffs(metric, num=11, spacing="quantile")
    shells = np.diff(np.searchsorted(values[values > 0], quantile[1:]))
    assert np.ptp(shells) <= 2
    distinct = brg.cutoffs(metric, spacing="distinct")
    np.testing.assert_array_equal(distinct[1:-1], np.unique(values[values > 0]))


@pytest.mark.parametrize(("values", "match"), [
    ([0.0, -1.0], r"cutoffs\[1\] is -1"), ([0.0, 2.0, 1.0], "must increase.*np.unique"),
    ([0.0, 1.0, 1.0], "must increase"), ([0.0, np.nan], r"cutoffs\[1\] is NaN"), ([], "list of numbers"),
    (None, "got None; brg.cutoffs"), ("log", "got 'log'; brg.cutoffs"),
])
def test_bad_cutoffs_are_refused(values, match, trained, metric):
    with pytest.raises((ValueError, TypeError), match=match):
        brg.renormalize(NET, trained, metric, cutoffs=values, key=KEY)


def test_one_cutoff_at_a_time(flow):
    with pytest.raises(ValueError, match=r"one cutoff, got \[0.0, 1.0\]; .*flow.predict"):
        flow.at([0, 1.0])


def test_bad_flows_are_refused(trained, metric):
    common = dict(cutoffs=[0.0, 1.0], key=KEY)
    with pytest.raises(ValueError, match="refill must be one of"):
        brg.renormalize(NET, trained, metric, refill="pior", **common)
    with pytest.raises(ValueError, match="regulator must be one of"):
        brg.renormalize(NET, trained, metric, regulator="soft", **common)
    with pytest.raises(ValueError, match="whiten=True"):
        brg.renormalize(NET, trained, metric, regulator=brg.unlearning(10), **common)
    with pytest.raises(ValueError, match="compute the metric on this posterior"):
        brg.renormalize(NET, brg.prior(NET, X, key=KEY, num_samples=5), metric, **common)
    with pytest.raises(TypeError, match="jax.random.key"):
        brg.renormalize(NET, trained, metric, cutoffs=[0.0], key=3)
    with pytest.raises(TypeError, match="the third argument is a metric, .* not a ndarray"):
        brg.renormalize(NET, trained, X, **common)


def test_metrics_and_flows_introduce_themselves_in_a_line(trained):
    metric = brg.fisher(NET, trained, X)
    flow = brg.renormalize(NET, trained, metric, cutoffs=[0.0, 0.25, 4.0], key=KEY, refill="zero")
    low, high = metric.values()[[0, -1]]
    for said in (f"stiffness {low:.3g} to {high:.3g} per datum", "kind='diagonal'", "whiten=False"):
        assert said in repr(metric)
    assert f"to {10 * high:.3g} for 10 data" in repr(metric.total(10))
    for said in ("MappedFlow(3 cutoffs from 0 to 4 per datum", "refill='zero', regulator='sharp'", repr(trained)):
        assert said in repr(flow)
    assert len(repr(flow)) + len(repr(metric)) < 700 and "\n" not in repr(flow) + repr(metric)


ONE_SITE = [("diagonal", "draw"), ("block", "mean"), ("full", "draw")]
ONE_SITE += [pytest.param(kind, at, marks=pytest.mark.slow) for kind in ("diagonal", "block", "full", "lowrank")
             for at in ("draw", "mean") if (kind, at) not in ONE_SITE]


@pytest.mark.parametrize("kind, at", ONE_SITE)
def test_a_flow_of_one_site_keeps_the_metric_it_has(kind, at, trained):
    """Drawn labels, amount of data and rank are those of the whole metric; "full" has modes of the site's own."""
    how = dict(estimator="montecarlo", key=jax.random.key(3), num_samples=2, at=at, rank=7, whiten=True)
    metric = brg.fisher(NET, trained, X, kind, **how).total(10)
    flow = brg.renormalize(NET, trained, metric, cutoffs=[0.0, 0.3, np.inf], key=KEY)
    found = flow.by_site(["w1", "b1"])
    assert list(found) == ["w1", "b1"]
    for s, one in found.items():
        alone = brg.fisher(NET, trained, X, kind, sites=(s,), **how).total(10)
        np.testing.assert_allclose(one.metric.values(), alone.values(), rtol=2e-4, atol=1e-5 * alone.values()[-1])
        expected = brg.renormalize(NET, trained, alone, cutoffs=flow.cutoffs, key=KEY).predict(X)
        np.testing.assert_allclose(one.predict(X), expected, rtol=1e-3, atol=1e-4)
        assert all(np.array_equal(one.at(0.3).samples[r], trained.samples[r]) for r in trained.samples if r != s)
    with pytest.raises(ValueError, match="'w9' does not flow"):
        flow.by_site(["w9"])


# -- critical scale -------------------------------------------------------------------------------------------
def curve(scales, values, members=200, independent=False):
    """Members that share one shape, each times its own noise (at each cutoff, if independent)."""
    noise = np.random.default_rng(0).lognormal(0, 0.3, size=(len(scales) if independent else 1, 4, members // 4))
    return xr.DataArray(np.asarray(values)[:, None, None] * noise, dims=("cutoff", "chain", "draw"),
                        coords={"cutoff": scales})


def test_critical_scale_is_interpolated_in_log_log():
    scales = np.r_[0.0, np.geomspace(1e-3, 10, 9)]
    # The loss is 1 up to Λ = .1 and rises as (Λ/.1)² beyond: it doubles at .1 √2, on a grid that holds .1.
    shape = np.where(scales <= 0.1, 1.0, (scales / 0.1) ** 2)
    found = critical_scale(curve(scales, shape))
    assert found.value == pytest.approx(0.1 * np.sqrt(2), rel=1e-9)
    assert "critical scale 0.141" in str(found)
    noisy = critical_scale(curve(scales, shape, independent=True))
    assert noisy.lower < 0.1 * np.sqrt(2) < noisy.upper < 1.3 * noisy.lower


def test_critical_scale_says_why_there_is_none():
    scales = np.r_[0.0, np.geomspace(1e-3, 10, 5)]
    steep = critical_scale(curve(scales, [1, 5, 6, 7, 8, 9]))
    assert np.isnan(steep.value) and "no flat region" in steep.reason
    flat = critical_scale(curve(scales, np.ones(6)))
    assert np.isnan(flat.value) and "less than 2" in flat.reason
    with pytest.raises(ValueError, match="Λ = 0"):
        critical_scale(curve(scales[1:], np.ones(5)))
    with pytest.raises(ValueError, match="did you mean 'loss_ratio'"):
        critical_scale(curve(scales, np.ones(6)), definition="loss_ration")


# -- general models -------------------------------------------------------------------------------------------
def hierarchical(x, y=None):
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    w = numpyro.sample("w", dist.Normal(0.0, tau).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def test_parents_do_not_flow_and_children_refill_given_them():
    tau = np.linspace(0.1, 5.0, 4000).reshape(4, 1000).astype(np.float32)
    post = brg.Posterior({"tau": tau, "w": np.ones((4, 1000, 2), np.float32)})
    metric = brg.fisher(hierarchical, post, X)
    assert metric.sites == ("w",)
    top = brg.renormalize(hierarchical, post, metric, cutoffs=[0.0], key=KEY).at(np.inf)
    np.testing.assert_array_equal(top.samples["tau"], tau)
    assert stats.kstest(np.ravel(np.asarray(top.samples["w"]) / tau[..., None]), "norm").pvalue > 1e-3


def test_a_parent_asked_to_flow_is_refilled_first():
    """Λ = ∞ is then the joint prior: w/τ standard normal with the *new* τ, and τ half-normal."""
    post = brg.Posterior({"tau": np.full((4, 1000), 3.0, np.float32), "w": np.ones((4, 1000, 2), np.float32)})
    metric = brg.fisher(hierarchical, post, X, sites=("tau", "w"))
    top = brg.renormalize(hierarchical, post, metric, cutoffs=[0.0], key=KEY).at(np.inf)
    new = np.asarray(top.samples["tau"])
    assert stats.kstest(np.ravel(new) / 2.0, "halfnorm").pvalue > 1e-3
    assert stats.kstest(np.ravel(np.asarray(top.samples["w"]) / new[..., None]), "norm").pvalue > 1e-3


def test_constrained_sites_keep_their_support_under_the_sharp_flow():
    def model(x, y=None):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0).expand([3]).to_event(1))
        numpyro.sample("y", dist.Poisson(jnp.exp(x[:, 0]) * rate.sum()), obs=y)
    post = brg.prior(model, X, key=KEY, num_samples=200)
    metric = brg.fisher(model, post, X)
    flow = brg.renormalize(model, post, metric, cutoffs=brg.cutoffs(metric, num=6), key=jax.random.key(5))
    assert all((np.asarray(flow.at(c).samples["rate"]) > 0).all() for c in flow.cutoffs)


def test_inputs_of_another_form_are_refused(flow):
    wide = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"x has the form \(n, 3\), but .* probe inputs have \(n, 2\)"):
        flow.predict(wide)
    with pytest.raises(ValueError, match=r"x has the form \(n\), but"):
        flow.loss(wide[:, 0], jnp.ones(4))
    with pytest.raises(ValueError, match=r"\(n, 3\)"):
        flow.moments(wide)
