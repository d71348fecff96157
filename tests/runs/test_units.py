"""What a person reads of a run is in the data's own units; inputs of any form go all the way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure

import bayes_brg as brg
from bayes_brg.cli import main
from bayes_brg.diagnostics.scores import scores_of_phi
from bayes_brg.io.store import in_units, learned_sites, learned_variables
from bayes_brg.runs.measures import measure_couplings

RNG = np.random.default_rng(0)
NOISE, MEAN, SCALE = 0.4, 5000.0, 300.0


def table():
    x = RNG.normal(size=(60, 2))
    return brg.Table(x, MEAN + SCALE * (x @ [0.8, -0.5] + NOISE * RNG.normal(size=60)), ("a", "b"), "price")


def linear(settings, table):
    return brg.mlp((), likelihood=brg.gaussian(NOISE))


def readout(model, x, y, key, settings):
    return brg.readout_posterior(model, x, y, key=key, num_samples=200)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    experiment = brg.table_experiment("priced", table, linear, {"readout": readout}, classes=False, settings={},
                                      flow={"cutoffs": [0, 0.01, 30, 1e3]}, couplings=1)
    return experiment.run(tmp_path_factory.mktemp("units") / "priced", progress_bar=False)


def test_scores_of_a_table_are_in_its_own_units(run, capsys):
    """By hand, from the members' predictions brought back to prices."""
    data, flow = run.data, run.flow
    mean, scale = data.attrs["y_mean"], data.attrs["y_scale"]
    assert abs(mean - MEAN) < 200 and 150 < scale < 450 and data.attrs["units"] == "price"
    price = mean + scale * data["y_test"].values[:, 0].astype(float)
    phi = mean + scale * flow["phi"].sel(cutoff=0).values.reshape(200, -1).astype(float)
    found = pd.read_csv(run.path / "scores.csv").set_index("method").loc["readout"]
    assert found["rmse"] == pytest.approx(np.sqrt(((phi.mean(0) - price) ** 2).mean()), rel=1e-4)
    sd = scale * NOISE
    density = np.exp(-0.5 * ((phi - price) / sd) ** 2) / np.sqrt(2 * np.pi) / sd
    assert found["mean_log_predictive_density"] == pytest.approx(np.log(density.mean(0)).mean(), rel=1e-4)
    row = run.summary.iloc[0]
    assert row["phi_mean"] == pytest.approx(phi[:, 0].mean(), rel=1e-5)
    assert row["phi_std"] == pytest.approx(phi[:, 0].std(ddof=1), rel=1e-3)
    assert row["loss_median"] == pytest.approx(np.median(((phi - price) ** 2).mean(1)), rel=1e-3)
    standardised = measure_couplings(flow, 1)
    for name, power in (("variance", 2), ("mass", -2), ("quartic", -4), ("kurtosis", 0)):
        for end in ("", "_sem"):
            np.testing.assert_allclose(run.couplings["readout"][name + end], standardised[name + end] * scale**power,
                                       rtol=1e-3)
    assert main(["info", str(run.path)]) == 0
    assert "in units of price" in capsys.readouterr().out


def test_the_report_of_a_table_is_in_its_own_units(run):
    def drawn(run):
        """Nothing but a line."""
        figure = Figure()
        figure.subplots().plot([1, 2])
        return figure

    text = brg.report(run, figures=[drawn]).read_text(encoding="utf-8")
    found = pd.read_csv(run.path / "scores.csv").set_index("method").loc["readout"]
    error = found["rmse_sem"]
    assert f"{found['rmse']:.{max(0, 1 - int(np.floor(np.log10(error))))}f} ±" in text
    assert "root mean squared error (price)" in text and "CRPS (price)" in text and "losses in price" in text
    assert "could not be made" not in text and "Nothing but a line." in text
    for sentence in ("of its level at Λ\u00a0=\u00a00 up to", "Gaussian", "90% intervals hold"):
        assert sentence in text


def test_what_is_stored_is_what_the_model_has(run):
    """So that a posterior, its model and the data of a run go together."""
    assert abs(run.data["y"].values.mean()) < 1e-6 and run.flow.attrs["y_scale"] == run.data.attrs["y_scale"]
    phi = brg.predict(linear(None, None), run.posterior, run.data["x_test"].values)
    np.testing.assert_allclose(phi, run.flow["phi"].sel(cutoff=0), rtol=1e-5, atol=1e-5)


def test_a_loss_in_nats_gets_the_jacobian():
    dims = ("cutoff", "chain", "draw")
    flow = xr.Dataset({"phi": ((*dims, "point", "output"), np.ones((1, 1, 1, 1, 2))), "loss": (dims, [[[1.0]]])},
                      attrs={"y_mean": 5.0, "y_scale": 3.0, "units": "m", "other": 1})
    flow["loss"].attrs["units"] = "nats"
    own = in_units(flow)
    assert own["loss"].item() == pytest.approx(1 + np.log(3)) and own["phi"].values.ravel().tolist() == [8.0, 1.0]
    assert own.attrs == {"units": "m", "other": 1} and in_units(own) is own
    flow["loss"].attrs["units"] = "squared"
    assert in_units(flow)["loss"].item() == 9.0


def test_noise_that_is_learned_goes_with_the_outputs_that_are_stored():
    """Scores from φ and the learned sites are those of the model and its posterior."""
    model = brg.mlp((), likelihood=brg.gaussian("learned"))
    x, y = RNG.normal(size=(5, 2)), RNG.normal(size=(5, 1))
    posterior = brg.prior(model, x, key=jax.random.key(0), num_samples=8)
    right = brg.diagnostics.scores(model, posterior, x, y).dataset
    phi = np.asarray(brg.predict(model, posterior, x))
    held = learned_variables({"noise": np.stack([posterior.samples["noise"]] * 2)})
    flow = xr.Dataset({"phi": (("cutoff", "chain", "draw", "point", "output"), np.stack([phi] * 2)), **held},
                      coords={"cutoff": [0.0, 1.0]})
    found = scores_of_phi(model.likelihood, phi.reshape(8, 5, 1), y, learned=learned_sites(flow)).dataset
    for name in ("log_predictive_density", "crps", "coverage"):
        np.testing.assert_allclose(found[name], right[name], rtol=1e-4)


# -- inputs that are not one array ----------------------------------------------------------------------------
def by_name(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand((2,)).to_event(1))
    phi = numpyro.deterministic("phi", (x["a"][:, 0] * w[0] + x["b/c"].mean((1, 2)) * w[1])[:, None])
    numpyro.sample("y", dist.Normal(phi, 0.5).to_event(1), obs=y)


def by_position(x, y=None):
    return by_name({"a": x[0], "b/c": x[1][0]}, y)


def inputs(n, key):
    a, b = jax.random.split(key)
    return {"a": jax.random.normal(a, (n, 1)), "b/c": jax.random.normal(b, (n, 2, 3))}


def as_tuple(x):
    return x["a"], [x["b/c"]]  # ragged: leaves of different rank


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_inputs_of_any_form_go_through_run_report_compare_and_arviz(form, tmp_path):
    model, shaped = (by_name, lambda x: x) if form == "dict" else (by_position, as_tuple)

    def data(settings, key):
        x, x_test = inputs(12, key), inputs(30, jax.random.fold_in(key, 1))
        y, y_test = x["a"] * 2, x_test["a"] * 2
        return brg.Data(shaped(x), y, shaped(x_test), y_test, characteristic=jax.tree.map(lambda a: a[0], shaped(x)))

    def prior(scale):
        return lambda model, x, y, key, settings: dataclasses.replace(
            brg.prior(model, x, key=key, num_samples=40), samples={"w": scale * jax.random.normal(key, (4, 10, 2))})

    experiment = brg.Experiment("named", lambda s: model, data, None, {"one": prior(1.0), "two": prior(3.0)},
                                flow={"cutoffs": [0, 0.5, 100]})
    run = experiment.run(tmp_path / "run", progress_bar=False)
    held = run.inputs("x_test")
    assert jax.tree.structure(held) == jax.tree.structure(shaped(inputs(1, jax.random.key(0))))
    phi = brg.predict(model, run.posterior, jax.tree.map(jnp.asarray, held))
    np.testing.assert_allclose(phi, run.flow["phi"].sel(cutoff=0).isel(point=slice(30)), rtol=1e-5)
    text = brg.report(run, experiment=experiment).read_text(encoding="utf-8")
    assert "could not be made" not in text and "root mean squared error" in text
    flows = [experiment.flow_of(run, m) for m in run.methods]
    compared = brg.compare(*flows, held, run.data["y_test"].values, num_permutations=199, progress_bar=False)
    assert compared.dataset.sizes["cutoff"] == 3
    idata = brg.to_arviz(flows[0], x=held, y=run.data["y_test"].values)
    found = idata["constant_data"]
    names = {"dict": ("x['a']", "x['b%2Fc']"), "tuple": ("x[0]", "x[1][0]")}[form]
    for name, leaf in zip(names, jax.tree.leaves(held), strict=True):
        np.testing.assert_array_equal(found[name], leaf)
    assert found.sizes["point"] == 30
