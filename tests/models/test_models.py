"""The experiments in models/ show what the paper says they show."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import bayes_brg as brg
from bayes_brg.core.keys import name_key
from bayes_brg.runs.measures import measure, summarize

MODELS = pathlib.Path(__file__).resolve().parents[2] / "models"


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


@pytest.mark.slow
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


# -- real tables ----------------------------------------------------------------------------------------------
TABLES = {  # settings at which each runs in seconds
    "diabetes": {"width": 3, "num_train": 40, "num_warmup": 20, "num_samples": 10},
    "breast_cancer": {"width": 2, "num_train": 40, "num_warmup": 20, "num_samples": 40, "num_members": 40,
                      "num_epochs": 10},
    "digits": {"width": 2, "num_train": 40, "num_warmup": 10, "num_samples": 40, "num_members": 40, "num_epochs": 10},
}
ELSEWHERE = {"coin": "test_models", "wide_relu": "../test_cli", "table": "../runs/test_tables",
             "cosnet": "test_cosnet_model", "phi4": "test_field_models", "finite_width": "test_field_models",
             "deep_relu": "test_field_models"}


def test_every_model_is_run_by_a_test():
    assert {p.stem for p in MODELS.glob("*.py")} == {*TABLES, *ELSEWHERE}
    for model, file in ELSEWHERE.items():
        assert model in (pathlib.Path(__file__).parent / f"{file}.py").read_text()


def check_table(name, out, settings):
    """Run it; the scores of its methods, after what must hold at any size."""
    file = MODELS / f"{name}.py"
    run = brg.load_experiment(file).run(out, settings, progress_bar=False, source=file)
    assert run.finished and "calibration" in run.figures
    scores = pd.read_csv(out / "scores.csv").set_index("method")
    peers = ["ridge", "forest", "boosting", "gp"] if run.settings["peers"] else []
    assert list(scores.index) == [*run.methods, "map", *peers] and np.isfinite(scores.to_numpy()).all()
    experiment = brg.load_experiment(file)
    net = experiment.model(experiment.with_settings(run.settings))
    for method, flow in run.flows.items():
        assert np.isfinite(flow["phi"]).all() and not flow["diverged"].any()
        density = brg.diagnostics.scores(net, run.posteriors[method], run.data["x_test"].values,
                                         run.data["y_test"].values)
        jacobian = np.log(run.data.attrs.get("y_scale", 1.0))  # scores are of y as it was measured
        assert scores["mean_log_predictive_density"][method] == pytest.approx(
            float(density.dataset["mean_log_predictive_density"]) - jacobian, rel=1e-5)
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.filterwarnings("ignore:.*standard errors rest on")
def test_tables(name, tmp_path):
    check_table(name, tmp_path / name, TABLES[name] | {"peers": name == "diabetes"})


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_tables_at_full_size(name, tmp_path):
    """On data not seen, averaging over the posterior is no worse than its most probable network: 3 standard errors."""
    scores = check_table(name, tmp_path / name, {})
    measure, sign = ("rmse", -1) if name == "diabetes" else ("accuracy", 1)
    for method in ("sample",) if name == "diabetes" else ("sample", "ensemble"):
        lead = sign * (scores[measure][method] - scores[measure]["map"])
        assert lead > -3 * np.hypot(scores[f"{measure}_sem"][method], scores[f"{measure}_sem"]["map"]), method


@pytest.mark.slow
def test_averaging_over_networks_beats_the_single_one_on_digits():
    """Held-out log density by over 3 standard errors of the paired difference, and accuracy, over three splits."""
    experiment = brg.load_experiment(MODELS / "digits.py")
    gain, right = [], []
    for seed in range(3):
        settings, key = experiment.with_settings({"seed": seed}), jax.random.key(seed)
        net, data = experiment.model(settings), experiment.data(settings, name_key(key, "data"))
        averaged = experiment.infer["sample"](net, data.x, data.y, name_key(key, "sample"), settings)
        best = brg.map_estimate(net, data.x, data.y, key=key)
        single = brg.Posterior({s: v[None, None] for s, v in best.items()}, {"independent": True}, "map")
        one, other = (brg.diagnostics.scores(net, p, data.x_test, data.y_test).dataset for p in (averaged, single))
        gain.append(np.asarray(one["log_predictive_density"] - other["log_predictive_density"]))
        right.append([float(one["accuracy"]), float(other["accuracy"])])
    gain = np.concatenate(gain)
    error = gain.std(ddof=1) / np.sqrt(gain.size)
    print(f"\nlog density {gain.mean():.3f} ± {error:.3f} above one network's; accuracy {np.mean(right, axis=0)}")
    assert gain.mean() > 3 * error
    assert np.mean(right, axis=0)[0] > np.mean(right, axis=0)[1]
