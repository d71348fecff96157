"""Flows side by side in one table: each number is that of the flow's own methods."""

import jax
import numpy as np
import pytest

import bayes_brg as brg
from bayes_brg import plots
from bayes_brg.diagnostics import side_by_side

KEY = jax.random.key(8)
X = np.random.default_rng(3).normal(size=(10, 2)).astype(np.float32)
Y = np.tanh(X[:, 0])
NET = brg.mlp((5,), activation="tanh", likelihood=brg.gaussian(0.3))


@pytest.fixture(scope="module")
def flows():
    posterior = brg.prior(NET, X, key=KEY, num_samples=20)
    metric = brg.fisher(NET, posterior, X)
    flow = brg.renormalize(NET, posterior, metric, cutoffs=brg.cutoffs(metric, num=4), key=KEY)
    every = [flow.at(c).samples for c in flow.cutoffs]
    samples = {s: np.stack([np.asarray(one[s]) for one in every]) for s in flow.sites}
    return flow, brg.SampledFlow(NET, posterior, flow.cutoffs, flow.key, samples, flow.stiff_fraction, X)


def test_the_table_has_what_the_flows_say(flows):
    flow, sampled = flows
    table = side_by_side({"mapped": flow, "sampled": lambda: sampled}, X, Y)
    one, other = (table[table["flow"] == name] for name in ("mapped", "sampled"))
    np.testing.assert_allclose(one["loss"], flow.loss(X, Y).median(("chain", "draw")), rtol=1e-5)
    np.testing.assert_allclose(one["log_density"], flow.log_predictive(X, Y).mean("point"), rtol=1e-5)
    np.testing.assert_allclose(one["kept"], flow.stiff_fraction)
    for column in ("loss_ratio", "log_density", "overlap"):
        np.testing.assert_allclose(other[column], one[column], rtol=1e-4)
    assert one["seconds"].isna().all() and (other["seconds"] >= 0).all() and (table["gradients"] == 0).all()
    white = {"w0": np.sqrt(2), "w1": np.sqrt(5)}
    first, last = (np.concatenate([np.asarray(p.flat()[s]).reshape(20, -1) * k for s, k in white.items()], axis=1)
                   for p in (flow.at(0.0), flow.at(flow.cutoffs[-1])))
    cosine = (first * last).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(last, axis=1)
    np.testing.assert_allclose(one["overlap"].iloc[[0, -1]], [1, cosine.mean()], rtol=1e-4)


def test_its_figure(flows):
    figure = plots.flows_side_by_side(side_by_side({"mapped": flows[0], "again": flows[0]}, X, Y))
    assert [len(ax.get_legend().get_texts()) for ax in figure.axes] == [2, 2]


def test_a_loss_in_nats_has_no_ratio():
    net = brg.mlp((3,), activation="tanh", likelihood=brg.bernoulli())
    posterior = brg.prior(net, X, key=KEY, num_samples=8)
    flow = brg.renormalize(net, posterior, brg.fisher(net, posterior, X), cutoffs=[0.0, 0.1], key=KEY)
    table = side_by_side({"mapped": flow}, X, X[:, 0] > 0)
    assert table["loss_ratio"].isna().all() and (table["loss"] > 0).all()
    assert plots.flows_side_by_side(table).axes[0].get_ylabel() == "median loss"
