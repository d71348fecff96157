"""models/phi4.py, models/finite_width.py and models/deep_relu.py: what goes in comes out of the measured action."""

import pathlib

import jax
import numpy as np
import pandas as pd
import pytest

import bayes_brg as brg

MODELS = pathlib.Path(__file__).resolve().parents[2] / "models"


def run(name, out, **settings):
    return brg.load_experiment(MODELS / f"{name}.py").run(out, settings, progress_bar=False)


def check_coupling(table, coupling):
    """Next order, the free network subtracted: within 3 standard errors (failure rate .003), each at most 20 %."""
    row = table[(table["order"] == "next") & np.isclose(table["coupling"], coupling)].iloc[0]
    assert abs(row["measured"] - coupling) < 3 * row["measured_se"]
    assert row["measured_se"] < 0.2 * coupling
    assert row["ess"] > 0.9 * 100_000


@pytest.mark.slow
def test_phi4_gives_back_its_coupling_at_full_size(tmp_path):
    experiment = brg.load_experiment(MODELS / "phi4.py")
    done = experiment.run(tmp_path / "run", progress_bar=False)
    table = pd.read_csv(done.path / "phi4.csv")
    check_coupling(table, done.settings["coupling"])
    for name in ("coupling", "running", "marginals"):
        assert (done.path / "figures" / f"{name}.png").stat().st_size > 10_000


@pytest.mark.slow
def test_phi4_at_reduced_size(tmp_path):
    """One site, where κ4 of 40,000 draws is enough; both ways to the interacting theory agree in variance."""
    done = run("phi4", tmp_path / "run", num_points=1, num_draws=40_000, num_members=1600, num_warmup=80)
    table = pd.read_csv(done.path / "phi4.csv").set_index("order")
    for row in table.loc["next"].itertuples():
        assert abs(row.measured - row.coupling) < 4 * row.measured_se  # 5 rows that share their draws: 3e-4
    # First order misses O(λ²): below the coupling at the largest, and by more than next order does.
    last = table[np.isclose(table["coupling"], table["coupling"].max())]
    assert last.loc["2", "measured"] < last.loc["next", "measured"]
    weighted, nuts = (done.flows[m]["phi"].sel(cutoff=0).values.reshape(-1, 2)[:, 0] for m in ("weighted", "nuts"))
    error = weighted.var() * np.sqrt(2 / 1600 + 2 / 200)  # NUTS draws count for a quarter of independent ones at least
    assert abs(weighted.var() - nuts.var()) < 4 * error


@pytest.mark.slow
def test_finite_width_obeys_the_exact_formula(tmp_path):
    """κ4 and κ3 of every law, width and set of points within 4 standard errors (27 numbers: failure rate .002), and
    slopes of log κ against log N within theirs of −1 and −½."""
    done = run("finite_width", tmp_path / "run", num_draws=40_000, num_members=400, widths="5,20,80")
    table = pd.read_csv(done.path / "finite_width.csv")
    for name in ("kappa3", "kappa4"):
        assert (np.abs(table[name] - table[f"{name}_exact"]) < 4 * table[f"{name}_se"]).all()
    slopes = pd.read_csv(done.path / "slopes.csv")
    assert (np.abs(slopes["slope"] - slopes["expected"]) < 4 * slopes["slope_se"]).all()


@pytest.mark.slow
def test_finite_width_at_full_size(tmp_path):
    """N = 10, 40, 160: 4 standard errors, and the slope of log κ4 within .1 of −1."""
    done = run("finite_width", tmp_path / "run", num_draws=400_000)
    table = pd.read_csv(done.path / "finite_width.csv")
    assert (np.abs(table["kappa4"] - table["kappa4_exact"]) < 4 * table["kappa4_se"]).all()
    slopes = pd.read_csv(done.path / "slopes.csv")
    gaussian = slopes[(slopes["law"] == "gaussian") & (slopes["cumulant"] == "kappa4")]
    assert (np.abs(gaussian["slope"] + 1) < 0.1).all()


@pytest.mark.slow
def test_deep_relu_couplings_run_along_the_flow(tmp_path):
    """Cumulants and couplings with their errors at every cutoff; the end of the flow is the prior."""
    done = run("deep_relu", tmp_path / "run", num_members=200, width=8, num_epochs=60)
    found = done.couplings["ensemble"]
    for name in ("variance", "kurtosis", "mass", "quartic"):
        assert found[name].sizes["cutoff"] == found.sizes["cutoff"] and np.isfinite(found[f"{name}_sem"]).all()
    experiment = brg.load_experiment(MODELS / "deep_relu.py")
    net = experiment.model(experiment.with_settings(done.settings))
    prior = brg.prior(net, np.ones((1, 2)), key=jax.random.key(1), num_samples=4000)
    phi = np.asarray(brg.predict(net, prior, np.array([[1.0, -0.5]]))).ravel()
    last = found.isel(cutoff=-1, point=0)
    error = np.hypot(last["variance_sem"].item(), phi.var() * np.sqrt(5 / 4000))
    assert abs(last["variance"].item() - phi.var()) < 4 * error
