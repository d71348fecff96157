"""A flow of stored draws answers as the flow that the draws were taken from."""

import jax
import numpy as np
import pytest

import bayes_brg as brg
from bayes_brg.diagnostics import learning_vs_flow

KEY = jax.random.key(3)
RNG = np.random.default_rng(2)
X = RNG.normal(size=(12, 2)).astype(np.float32)
Y = np.tanh(X[:, 0]).astype(np.float32)
NET = brg.mlp((4,), activation="tanh", likelihood=brg.gaussian(0.3))


@pytest.fixture(scope="module")
def mapped():
    posterior = brg.prior(NET, X, key=KEY, num_samples=40)
    metric = brg.fisher(NET, posterior, X)
    return brg.renormalize(NET, posterior, metric, cutoffs=brg.cutoffs(metric, num=5), key=KEY)


@pytest.fixture(scope="module")
def sampled(mapped):
    every = [mapped.at(c).samples for c in mapped.cutoffs]
    samples = {s: np.stack([np.asarray(one[s]) for one in every]) for s in mapped.sites}
    return brg.SampledFlow(NET, mapped.posterior, mapped.cutoffs, mapped.key, samples, mapped.stiff_fraction, X)


def equal(a, b):
    return all(np.array_equal(a.samples[s], b.samples[s]) for s in a.samples)


def test_its_posteriors_are_those_stored(mapped, sampled):
    assert isinstance(sampled, brg.Flow) and isinstance(mapped, brg.Flow)
    for cutoff in mapped.cutoffs:
        assert equal(sampled.at(cutoff), mapped.at(cutoff))
    assert sampled.at(0.0) is sampled.posterior
    assert equal(sampled.at(np.inf), mapped.at(np.inf))  # the prior, drawn with the same key
    assert equal(sampled.at(float(np.float32(mapped.cutoffs[2]))), mapped.at(mapped.cutoffs[2]))
    assert sampled.at(mapped.cutoffs[1]).method == mapped.at(mapped.cutoffs[1]).method


def test_another_cutoff_is_refused_with_the_nearest(sampled):
    between = float(np.mean(sampled.cutoffs[1:3]))
    with pytest.raises(ValueError, match=f"{sampled.cutoffs[1]:g} and {sampled.cutoffs[2]:g}"):
        sampled.at(between)
    with pytest.raises(ValueError, match=f"nearest are {sampled.cutoffs[-1]:g}"):
        sampled.predict(X, cutoffs=[2 * sampled.cutoffs[-1]])


def test_what_is_measured_is_that_of_the_mapped_flow(mapped, sampled):
    pairs = [(f.predict(X), f.loss(X, Y), f.moments(X)["mean"], f.moments(X)["variance"], f.log_predictive(X, Y),
              f.predictive(X, KEY), f.loss(X, Y, cutoffs=mapped.cutoffs[[0, 3]])) for f in (mapped, sampled)]
    for ours, theirs in zip(*pairs, strict=True):
        assert ours.dims == theirs.dims and ours.attrs == theirs.attrs
        np.testing.assert_allclose(theirs, ours, rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(sampled.stiff_fraction, mapped.stiff_fraction)
    assert str(sampled.critical_scale(X, Y)) == str(mapped.critical_scale(X, Y))


def test_whoever_takes_a_flow_takes_it(mapped, sampled):
    both = brg.compare(mapped, sampled, X, Y, labels=("mapped", "sampled"), num_permutations=199,
                       cutoffs=mapped.cutoffs[[0, 2, 4]], progress_bar=False)
    assert both.dataset.attrs["shared_key"] and not both.differs
    np.testing.assert_array_equal(both.dataset["energy"], 0)
    summary = brg.to_arviz(sampled, x=X[:2], y=Y[:2], progress_bar=False)
    assert summary["posterior"]["phi"].shape == (4, 10, 5, 2, 1)
    stages = {float(t): mapped.at(c) for t, c in enumerate(mapped.cutoffs)}
    one, other = (learning_vs_flow(stages, f, X[:2], num_bootstrap=10, num_permutations=0, progress_bar=False)
                  for f in (mapped, sampled))
    np.testing.assert_allclose(one["squared"], other["squared"], rtol=1e-3, atol=1e-5)


def test_samples_must_fit(mapped):
    with pytest.raises(ValueError, match="'w0'.*leading axes"):
        brg.SampledFlow(NET, mapped.posterior, mapped.cutoffs, KEY, {"w0": np.zeros((2, 4, 10, 2, 4))}, np.ones(5), X)
