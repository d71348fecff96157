"""Critical scales of losses in nats, their intervals, and differences along a flow."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr

import bayes_brg as brg
from bayes_brg.core.jackknife import block_jackknife
from bayes_brg.flow import critical_scale, flow_differences

SCALES = np.array([0, 0.1, 0.2, 0.4, 0.8, 1.6])


def scattered(growth, seed, members=40):
    """A loss whose median has grown by `growth` at the last cutoff, members scattered by 60 %."""
    rng = np.random.default_rng(seed)
    level = np.array([1, 1, 1.05, 1.2, 1.5, growth])
    noise = np.exp(0.6 * np.r_[np.zeros((1, members)), rng.normal(size=(5, members))])
    return xr.DataArray((level[:, None] * noise)[:, None], dims=("cutoff", "chain", "draw"), coords={"cutoff": SCALES})


@pytest.mark.parametrize("growth", [1.9, 2.1])
def test_resamples_without_a_crossing_count_as_beyond(growth):
    found = [critical_scale(scattered(growth, seed), num_bootstrap=200) for seed in range(40)]
    none = [c for c in found if np.isnan(c.value)]
    assert none, "some curves should not cross"
    for c in none:
        assert c.upper == np.inf and c.beyond > 0.05 and "resamples beyond the last cutoff" in str(c)
    some = [c for c in found if np.isfinite(c.value)]
    assert any(c.upper == np.inf for c in some)
    for c in found:
        assert c.lower <= c.upper and (c.upper == np.inf or c.upper <= SCALES[-1])
        assert (c.upper == np.inf) == (c.beyond > 0.05 + 1e-9), c  # a 90 % interval
        # The share is that of the resamples' own curves.
    tight = critical_scale(scattered(40.0, 0), num_bootstrap=200)
    assert tight.beyond == 0 and np.isfinite(tight.upper) and "beyond" not in str(tight)


def test_resamples_without_a_flat_region_count_as_below():
    loss = scattered(40.0, 1) * xr.DataArray([1, 1.95, 2, 2, 2, 2], dims="cutoff")
    c = critical_scale(loss, num_bootstrap=200)
    assert 0 < c.below < 1 and c.lower == 0


def test_one_member_has_no_interval():
    c = critical_scale(scattered(4.0, 0, members=1))
    assert np.isnan([c.lower, c.upper]).all()
    with_value = critical_scale(scattered(4.0, 0, members=1).copy(data=np.array([1, 1, 1, 1.5, 3, 4.0])[:, None, None]))
    assert np.isfinite(with_value.value) and "no interval from one member" in str(with_value)


def rising(offset, units=None):
    """Flat over three decades, then up to 5 nats above a level that depends on the units of y."""
    cutoffs = np.array([0, 1e-3, 1e-2, 1e-1, 1, 10, 100.0])
    rise = np.array([0, 0, 0, 0.0, 2, 5, 5.0])
    noise = 1e-3 * np.random.default_rng(0).normal(size=(7, 4, 25))
    return xr.DataArray(offset + rise[:, None, None] + noise, dims=("cutoff", "chain", "draw"),
                        coords={"cutoff": cutoffs}, attrs={} if units is None else {"units": units})


@pytest.mark.parametrize("definition", [None, "knee"])
def test_an_offset_of_a_loss_in_nats_changes_nothing(definition):
    found = [critical_scale(rising(offset, "nats"), definition=definition).value for offset in (0.5, -1.2, 0.02, 100.0)]
    np.testing.assert_allclose(found, found[0], rtol=1e-5)
    # A rise of .1 on the straight line from 0 at Λ = .1 to 2 at Λ = 1.
    if definition is None:
        assert found[0] == pytest.approx(0.1 * 10 ** (0.1 / 2), rel=2e-3)
    else:
        assert 0.1 < found[0] < 0.3  # two points of the rise lie between
    assert critical_scale(rising(-1.2), definition=definition).value == pytest.approx(found[1])  # known by its sign
    with pytest.raises(ValueError, match="no meaning for a −log p"):
        critical_scale(rising(0.5, "nats"), definition="loss_ratio")


def test_growth_below_the_critical_scale_and_the_flat_region_are_said():
    values = np.array([1, 1.02, 1.04, 1.2, 1.57, 3.0])
    loss = xr.DataArray(values[:, None, None] * np.ones((1, 2, 5)), dims=("cutoff", "chain", "draw"),
                        coords={"cutoff": SCALES})
    c = critical_scale(loss)
    assert c.growth == pytest.approx(1.57) and c.flat == pytest.approx(0.2)


def coin(x, y=None):
    theta = numpyro.sample("theta", dist.Beta(1, 1))
    numpyro.sample("y", dist.Bernoulli(probs=theta).expand([x.shape[0]]), obs=y)


def test_the_coins_critical_scale():
    """Seven heads of ten: one direction of stiffness 1/(.7 · .3) = 4.7619 per toss."""
    x, y = np.zeros((10, 1)), np.array([1.0] * 7 + [0.0] * 3)
    draws = np.random.default_rng(0).beta(8, 4, size=(4, 500))
    post = brg.Posterior({"theta": draws}, {"independent": True})
    metric = brg.fisher(coin, None, x, at={"theta": 0.7})
    flow = brg.renormalize(coin, post, metric, cutoffs=[0.0, 0.1, 1.0, 4.75, 4.77, 10.0], key=jax.random.key(0))
    c = flow.critical_scale(x, y, progress_bar=False)
    assert "nats" in c.definition
    assert 4.75 < c.lower <= c.value <= c.upper < 4.77
    assert flow.loss(x, y, progress_bar=False).attrs["units"] == "nats"


def test_differences_along_a_flow_are_paired():
    rng = np.random.default_rng(1)
    member = rng.normal(size=(1, 2, 50))
    loss = xr.DataArray(member + np.array([0, 0.1, 0.3])[:, None, None] + 0.01 * rng.normal(size=(3, 2, 50)),
                        dims=("cutoff", "chain", "draw"), coords={"cutoff": [0, 1.0, 2.0]})
    found = flow_differences(loss)
    flat = loss.values.reshape(3, -1)
    np.testing.assert_allclose(found["difference"], (flat - flat[:1]).mean(1), atol=1e-12)
    by_hand = block_jackknife(lambda a: (a - a[:1]).mean(-1), flat)
    np.testing.assert_allclose(found["difference_sem"], by_hand)
    assert float(found["difference_sem"][0]) == 0
    single = block_jackknife(lambda a: a.mean(-1), flat)
    assert (found["difference_sem"][1:] < single[1:] / 20).all()  # the members' own scatter has gone
    np.testing.assert_allclose(found["difference_sem"][1:], 0.01 * np.sqrt(2 / 100), rtol=0.4)


# -- metrics of other draws or models, and what a metric per draw does to the prior ------------------------------
NET = brg.mlp((8,), activation="tanh", likelihood=brg.gaussian(0.1))
X = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)


def test_a_metric_of_other_draws_or_another_model_is_refused():
    post, other = (brg.prior(NET, X, key=jax.random.key(k), num_samples=4) for k in (0, 1))
    metric = brg.fisher(NET, post, X)
    with pytest.raises(ValueError, match="other draws than this posterior's: site 'w0' differs at chain 0, draw 0"):
        brg.renormalize(NET, other, metric, cutoffs=[0.0], key=jax.random.key(0))
    partly = post.replace(samples={**post.samples, "w1": post.samples["w1"].at[2, 0].add(1.0)})
    with pytest.raises(ValueError, match="site 'w1' differs at chain 2, draw 0"):
        brg.renormalize(NET, partly, metric, cutoffs=[0.0], key=jax.random.key(0))
    for net, what in ((brg.mlp((8,), activation="erf", likelihood=brg.gaussian(0.1)), "φ"),
                      (brg.mlp((8,), activation="tanh", weight_std=2.0, likelihood=brg.gaussian(0.1)), "log prior"),
                      (brg.mlp((8,), activation="tanh", likelihood=brg.gaussian(0.2)), "log-likelihood")):
        with pytest.raises(ValueError, match=f"another model: at its first draw the {what}"):
            brg.renormalize(net, post, metric, cutoffs=[0.0], key=jax.random.key(0))
    general = brg.renormalize(lambda x, y=None: NET(x, y), post, metric, cutoffs=[0.0, 1.0], key=jax.random.key(0))
    assert np.isfinite(general.at(1.0).samples["w0"]).all()  # the same model, said otherwise
    shared = brg.fisher(NET, post, X, at="mean")
    brg.renormalize(NET, other, shared, cutoffs=[0.0], key=jax.random.key(0))  # one split for several posteriors


def test_the_prior_is_kept_by_a_shared_metric_and_not_by_one_a_draw():
    """Theory §9. Variance of w0 over that of the prior, 64,000 numbers: standard error .0056."""
    post = brg.prior(NET, X, key=jax.random.key(0), num_samples=4000)
    for metric, kept in ((brg.fisher(NET, post, X, progress_bar=False), False),
                         (brg.fisher(NET, None, X, at=post.draw(0, 0), progress_bar=False), True)):
        cutoff = float(np.quantile(metric.values(), 0.25))
        flow = brg.renormalize(NET, post, metric, cutoffs=[0.0, cutoff], key=jax.random.key(1))
        variance = float(np.mean(np.square(flow.at(cutoff).samples["w0"]))) / 0.5
        assert abs(variance - 1) < 4 * 0.0056 if kept else variance < 1 - 15 * 0.0056, (kept, variance)
