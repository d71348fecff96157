"""The experiments in models/ show what the paper says they show."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayes_brg as brg
from bayes_brg.experiment import measure, summarize
from bayes_brg.model import name_key

MODELS = pathlib.Path(__file__).resolve().parents[1] / "models"


def wide(settings, cutoffs=None):
    """Measured flow of the ensemble of wide_relu, without its files and figures."""
    experiment = brg.load_experiment(MODELS / "wide_relu.py")
    settings = experiment.with_settings(settings)
    key = jax.random.key(settings.seed)
    model, data = experiment.model(settings), experiment.data(settings, name_key(key, "data"))
    posterior = experiment.infer["ensemble"](model, data.x, data.y, name_key(key, "ensemble"), settings)
    metric = brg.fisher(model, posterior, experiment.probe(settings, name_key(key, "probe")))
    flow = brg.renormalize(model, posterior, metric, key=name_key(key, "flow"),
                           cutoffs=cutoffs or experiment.flow["cutoffs"])
    return measure(flow, data, experiment.max_loss)


def check_wide(num_members):
    """Point by point: flat up to 5e-3, doubled between .08 and .4, prior far above."""
    start = []
    for seed in range(8):
        flow = wide({"num_members": num_members, "seed": seed})
        table = summarize(flow, blocks=2).set_index("cutoff")
        start.append(table["loss_median"][0.0])
        assert 7 < start[-1] < 22
        assert table["loss_median"][5e-3] == pytest.approx(start[-1], rel=0.05)
        assert 0.08 < flow.attrs["critical_scale"] < 0.4
        assert table["phi_std"][1e5] > 30 * table["phi_std"][0.0]
    assert 10 < np.mean(start) < 15


@pytest.mark.filterwarnings("ignore:.*members diverged")
def test_wide_relu_over_eight_data_keys():
    check_wide(num_members=40)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*members diverged")
def test_wide_relu_over_eight_data_keys_at_full_size():
    check_wide(num_members=1000)


@pytest.mark.filterwarnings("ignore:.*members diverged")
def test_with_ten_probe_points_the_flat_region_disappears():
    """Units that are dead on ten points but not elsewhere have no stiffness, and go at the first cutoff."""
    for seed in range(2):
        flow = wide({"num_members": 40, "num_probe": 10, "seed": seed}, [0, 1e-4, 5e-3, 0.05, 0.5])
        table = summarize(flow, blocks=2)
        assert table["sloppy_fraction"][1] > 0.1  # .08 with 200
        assert table["loss_median"][2] > 1.5 * table["loss_median"][0]
        assert not flow.attrs["critical_scale"] > 0.05


def test_wide_relu_data_are_the_papers():
    experiment = brg.load_experiment(MODELS / "wide_relu.py")
    settings = experiment.with_settings()
    data = experiment.data(settings, jax.random.key(5))
    x1, x2 = np.asarray(data.x, float).T
    np.testing.assert_allclose(data.y[:, 0], (1 - x1) ** 2 - 0.5 * (x2 - x1**2), rtol=1e-4, atol=1e-5)
    assert data.truth == 2.75 and list(data.characteristic) == [2.0, 0.5]
    assert len(experiment.flow["cutoffs"]) == 26 and settings.num_members == 1000 and settings.width == 2048


def test_coin():
    experiment = brg.load_experiment(MODELS / "coin.py")
    settings = experiment.with_settings({"num_samples": 500})
    key = jax.random.key(0)
    model, data = experiment.model(settings), experiment.data(settings, key)
    probe, options = experiment.probe(settings, key), experiment.metric(settings)
    for method, infer in experiment.infer.items():
        posterior = infer(model, data.x, data.y, name_key(key, method), settings)
        theta = np.asarray(posterior.samples["theta"], float)
        # Beta(8, 4). NUTS draws count for at least a fifth of independent ones here; 4 standard errors.
        error = np.sqrt(0.017094 / (2000 if method == "exact" else 400))
        assert theta.mean() == pytest.approx(2 / 3, abs=4 * error)
        assert theta.var() == pytest.approx(0.017094, abs=4 * error * 0.19)  # sd of (θ−m)² is .19 sd of θ
        expected = 7 * np.log(theta) + 3 * np.log1p(-theta)
        np.testing.assert_allclose(posterior.stats["log_joint"], expected, rtol=1e-4, atol=1e-4)
        metric = brg.fisher(model, posterior, probe, **options)
        assert float(metric.stiffness["theta"]) == pytest.approx(1 / 0.21, rel=1e-5)
        flow = brg.renormalize(model, posterior, metric, key=key, **experiment.flow)
        assert jnp.array_equal(flow.at(4.7).samples["theta"], posterior.samples["theta"])
        prior = np.asarray(flow.at(4.8).samples["theta"])
        assert prior.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / 2000))
        assert flow.predict(data.x[:1]).values[0].ravel() == pytest.approx(theta.ravel())
