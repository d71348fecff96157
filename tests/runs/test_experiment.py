"""Experiments: what they declare, what a run leaves, and that an interrupted one ends the same."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import bayes_brg as brg
from bayes_brg.runs.experiment import load_experiment
from bayes_brg.runs.measures import summarize
from bayes_brg.runs.settings import Settings

CUTOFFS = [0, 1e-3, 0.03, 0.3, 1, 1e9]


def data(settings, key):
    train, test = jax.random.split(key)
    x, x_test = jax.random.normal(train, (12, 2)), jax.random.normal(test, (7, 2))
    return brg.Data(x, x[:, :1] * 2, x_test, x_test[:, :1] * 2, characteristic=jnp.array([1.0, 0.0]), truth=2.0)


def readout(model, x, y, key, settings):
    return brg.readout_posterior(model, x, y, key=key, num_samples=settings.num_members)


def ensemble(model, x, y, key, settings):
    return brg.ensemble(model, x, y, key=key, num_members=settings.num_members, learning_rate=settings.rate,
                        num_epochs=50)


EXPERIMENT = brg.Experiment(
    name="tiny", model=lambda s: brg.mlp((s.width,), scaling="none"), data=data,
    probe=lambda s, key: jax.random.normal(key, (9, 2)), infer={"ensemble": ensemble, "readout": readout},
    metric={"kind": "diagonal"}, flow={"cutoffs": CUTOFFS}, settings={"num_members": 40, "width": 8, "rate": 0.01},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return EXPERIMENT.run(tmp_path_factory.mktemp("runs") / "tiny", progress_bar=False)


def test_what_a_run_leaves(run):
    expected = {"manifest.json", "data.nc", "posterior.nc", "posterior_readout.nc", "flow.nc", "flow_readout.nc",
                "summary.csv", "summary_readout.csv", "figures", ".manifest.json"}
    assert {p.name for p in run.path.iterdir()} == expected
    assert set(run.figures) == {"phi_before_flow", "loss_along_flow", "phi_either_side", "phi_moments"}
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in run.figures.values())
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["finished"] and manifest["settings"] == {"seed": 0, "num_members": 40, "width": 8, "rate": 0.01}
    assert manifest["versions"]["jax"] == jax.__version__ and manifest["key"]["data"] == [0, 0]
    assert all(stage["seconds"] >= 0 for stage in manifest["stages"].values())
    flow = xr.open_dataset(run.path / "flow.nc")
    assert flow["phi"].dims == ("cutoff", "chain", "draw", "point", "output") and flow["phi"].shape == (6, 4, 10, 8, 1)
    assert flow["loss"].dims == ("cutoff", "chain", "draw") and flow["stiff_fraction"].dims == ("cutoff",)


def test_a_loaded_run_holds_the_same_numbers_as_the_public_functions(run):
    """Everything in the run follows from its key by the documented names, whatever went on around it."""
    loaded = brg.load_run(run.path)
    assert loaded.methods == ["ensemble", "readout"] and set(loaded.posteriors) == set(loaded.methods)
    model, posterior = EXPERIMENT.model(EXPERIMENT.with_settings()), loaded.posterior
    metric = brg.fisher(model, posterior, loaded.data["x_probe"].values)
    from bayes_brg.core.keys import name_key
    key = name_key(name_key(jax.random.key(0), "flow"), "ensemble")
    flow = brg.renormalize(model, posterior, metric, cutoffs=CUTOFFS, key=key)
    stored, at = loaded.flow, loaded.flow.attrs["characteristic_point"]
    np.testing.assert_allclose(stored["phi"].isel(point=at)[..., 0],
                               flow.predict(jnp.array([[1.0, 0.0]]))[..., 0, 0], rtol=1e-5, atol=1e-6)
    x_test, y_test = loaded.data["x_test"].values, loaded.data["y_test"].values
    np.testing.assert_allclose(stored["loss"], flow.loss(x_test, y_test), rtol=1e-5)
    residual = stored["phi"].isel(point=slice(7)).values - y_test
    np.testing.assert_allclose(stored["loss"], (residual**2).mean((-1, -2)), rtol=1e-4)
    assert stored.attrs["critical_scale"] == pytest.approx(flow.critical_scale(x_test, y_test).value, rel=1e-5)
    np.testing.assert_array_equal(stored["stiff_fraction"], flow.stiff_fraction)


def test_streams_are_independent_and_the_data_the_same_for_all(run):
    d = run.data
    every = np.concatenate([d["x"].values, d["x_test"].values, d["x_probe"].values])
    assert len(np.unique(every.round(6), axis=0)) == len(every) == 28
    hidden = {m: np.asarray(p.samples["w0"]) for m, p in run.posteriors.items()}
    assert not np.isclose(hidden["ensemble"], hidden["readout"]).any()


def test_methods_of_a_run_share_no_prior_draw(run):
    """At Λ = ∞ both flows are the prior: of the same draws, the difference of their laws would be none at all."""
    last = {m: EXPERIMENT.flow_of(run, m).at(np.inf).samples["w1"] for m in run.methods}
    assert not np.isclose(last["ensemble"], last["readout"]).any()
    alone = dataclasses.replace(EXPERIMENT, infer={"readout": readout}, name="tiny")
    again = alone.flow_of(run, "readout").at(np.inf).samples["w1"]
    np.testing.assert_array_equal(again, last["readout"])  # nor does a method's depend on what stands beside it
    assert not brg.compare((run, "ensemble"), (run, "readout"), num_permutations=240).dataset.attrs["shared_key"]


def test_summary_against_the_draws(run):
    table = run.summary
    needed = ["cutoff", "sloppy_fraction", "loss_median", "loss_mean", "loss_q05", "loss_q95", "phi_mean", "phi_std",
              "phi_skewness", "phi_excess_kurtosis"]
    assert list(table.columns[:10]) == needed and list(table["cutoff"]) == CUTOFFS
    loss = run.flow["loss"].values.reshape(6, -1).astype(float)
    phi = run.flow["phi"].isel(point=7).values.reshape(6, -1).astype(float)
    np.testing.assert_allclose(table["loss_median"], np.median(loss, 1))
    np.testing.assert_allclose(table["loss_q95"], np.quantile(loss, 0.95, axis=1))
    np.testing.assert_allclose(table["phi_std"], phi.std(1, ddof=1))
    n, z = 40, phi[2] - phi[2].mean()
    k2, k3 = (z**2).sum() / (n - 1), n * (z**3).sum() / ((n - 1) * (n - 2))  # k-statistics, by hand
    k4 = (n * (n + 1) * (z**4).sum() - 3 * (n - 1) * (z**2).sum() ** 2) / ((n - 1) * (n - 2) * (n - 3))
    assert table["phi_skewness"][2] == pytest.approx(k3 / k2**1.5)
    assert table["phi_excess_kurtosis"][2] == pytest.approx(k4 / k2**2)
    assert table["sloppy_fraction"][0] == 0 and table["sloppy_fraction"][5] == 1
    np.testing.assert_allclose(table["phi_mean_se"], phi.std(1, ddof=1) / np.sqrt(40), rtol=0.6)


def members(loss, phi, diverged):
    dims = ("cutoff", "chain", "draw")
    return xr.Dataset(
        {"loss": (dims, loss), "phi": ((*dims, "point", "output"), phi[..., None, None]),
         "stiff_fraction": ("cutoff", [1.0]), "diverged": (("chain", "draw"), diverged)},
        {"cutoff": [0.0]}, {"characteristic_point": 0})


def test_summary_leaves_out_and_counts_the_diverged():
    rng = np.random.default_rng(0)
    loss, phi = rng.uniform(1, 2, (1, 2, 50)), rng.normal(size=(1, 2, 50))
    diverged = np.zeros((2, 50), bool)
    diverged[1, 3] = diverged[0, 7] = True
    clean = summarize(members(loss, phi, diverged))
    loss[0, 1, 3], phi[0, 1, 3], loss[0, 0, 7], phi[0, 0, 7] = 1e30, -1e20, np.nan, np.nan
    assert clean.equals(summarize(members(loss, phi, diverged)))
    assert clean["num_diverged"][0] == 2 and clean["num_members"][0] == 98


@pytest.mark.filterwarnings("ignore:.*members diverged")
def test_diverged_members_are_counted_and_kept_out(tmp_path):
    run = dataclasses.replace(EXPERIMENT, infer={"ensemble": ensemble}, max_loss=5.0).run(
        tmp_path / "r", {"rate": 0.03}, progress_bar=False)
    start = run.flow["loss"].sel(cutoff=0).values
    bad = ~(np.isfinite(start) & (start < 5.0))
    assert 0 < bad.sum() < bad.size  # so that this test tests something
    assert np.array_equal(run.flow["diverged"].values, bad)
    assert run.manifest["results"]["ensemble"]["num_diverged"] == bad.sum()
    assert (run.summary["num_diverged"] == bad.sum()).all()
    assert run.summary["loss_q95"][0] < 5


@pytest.mark.filterwarnings("ignore:.*members diverged")
def test_a_run_in_which_all_diverge_says_so(tmp_path):
    with pytest.raises(ValueError, match="all 40 members .* largest stable learning rates are"):
        dataclasses.replace(EXPERIMENT, infer={"ensemble": ensemble}).run(tmp_path / "r", {"rate": 50.0},
                                                                         progress_bar=False)


def test_an_interrupted_run_goes_on_and_ends_the_same(run, tmp_path, monkeypatch):
    calls = []

    def counted(name, function, fail=False):
        def infer(*args):
            calls.append(name)
            if fail:
                raise KeyboardInterrupt
            return function(*args)
        return infer

    for fail in (True, False):
        experiment = dataclasses.replace(EXPERIMENT, infer={
            "ensemble": counted("ensemble", ensemble), "readout": counted("readout", readout, fail)})
        if fail:
            with pytest.raises(KeyboardInterrupt):
                experiment.run(tmp_path / "r", progress_bar=False)
            halted = brg.load_run(tmp_path / "r")
            assert not halted.finished and list(halted.manifest["stages"]) == ["data", "posterior ensemble",
                                                                              "flow ensemble"]
            (tmp_path / "r" / "flow.nc").unlink()  # and its file went missing
        else:
            again = experiment.run(tmp_path / "r", progress_bar=False)
    assert calls == ["ensemble", "readout", "readout"]
    for method in run.methods:
        assert run.flows[method].identical(again.flows[method])
        assert run.summaries[method].equals(again.summaries[method])
    experiment.run(tmp_path / "r", progress_bar=False)  # finished: nothing is run
    assert len(calls) == 3


def test_another_run_in_the_directory_is_refused(run):
    with pytest.raises(ValueError, match="width = 8 there, 9 now; choose another directory with --out"):
        EXPERIMENT.run(run.path, {"width": 9})
    with pytest.raises(ValueError, match="run of 'tiny', not of 'other'"):
        dataclasses.replace(EXPERIMENT, name="other").run(run.path)
    with pytest.raises(ValueError, match="other options: flow"):
        dataclasses.replace(EXPERIMENT, flow={"cutoffs": [0, 1]}).run(run.path)


def test_a_changed_file_is_another_experiment(tmp_path):
    (tmp_path / "e.py").write_text("a = 1")
    few = {"num_members": 8}
    EXPERIMENT.run(tmp_path / "r", few, source=tmp_path / "e.py", progress_bar=False)
    (tmp_path / "e.py").write_text("a = 2")
    with pytest.raises(ValueError, match="by a model file that has changed since; choose another directory"):
        EXPERIMENT.run(tmp_path / "r", few, source=tmp_path / "e.py")


def test_cutoffs_are_spaced_where_none_are_given_and_zero_is_added(tmp_path):
    spaced = dataclasses.replace(EXPERIMENT, flow={}).run(tmp_path / "a", progress_bar=False)
    assert spaced.flow["cutoff"][0] == 0 and spaced.flow.sizes["cutoff"] == 25
    assert spaced.flows["readout"]["cutoff"].equals(spaced.flow["cutoff"])
    added = dataclasses.replace(EXPERIMENT, infer={"readout": readout}, flow=lambda s: {"cutoffs": [1, 2]}).run(
        tmp_path / "b", progress_bar=False)
    assert list(added.flow["cutoff"]) == [0, 1, 2]


# -- settings -------------------------------------------------------------------------------------------------
TYPED = dataclasses.replace(EXPERIMENT, settings={"count": 3, "rate": 0.1, "on": False, "kind": "a", "widths": (1, 2)})


@pytest.mark.parametrize(("name", "text", "value"), [
    ("count", "12", 12), ("count", 12.0, 12), ("rate", "1e-6", 1e-6), ("rate", 1, 1.0), ("on", "true", True),
    ("on", False, False), ("kind", "b", "b"), ("widths", "3,4, 5", (3, 4, 5)), ("widths", [7], (7,)), ("seed", "4", 4),
])
def test_settings_take_the_type_of_their_default(name, text, value):
    got = TYPED.with_settings({name: text})[name]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(("name", "value", "message"), [
    ("cuont", 1, "no setting 'cuont' .did you mean 'count'.*its settings are seed, count"),
    ("count", "1.5", "a whole number like its default 3, got '1.5'"),
    ("count", True, "a whole number"),
    ("count", 2.5, "a whole number"),
    ("rate", "fast", "a number"),
    ("rate", "nan", "a number"),
    ("on", "maybe", "true or false"),
    ("kind", 3, "text"),
    ("widths", "1,x", "a whole number"),
    ("seed", "-1", "seed must be a whole number of at least 0"),
])
def test_wrong_settings_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        TYPED.with_settings({name: value})


def test_settings_object():
    settings = Settings({"width": 3})
    assert settings.width == settings["width"] == 3 and dict(settings) == {"width": 3}
    with pytest.raises(AttributeError, match="did you mean 'width'"):
        _ = settings.widht
    with pytest.raises(AttributeError, match="do not change"):
        settings.width = 4


# -- declarations ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("changes", "message"), [
    ({"name": "a/b"}, "name must be text"),
    ({"model": brg.mlp((2,))}, "model of experiment 'tiny' must be a function of settings, got MLP"),
    ({"probe": np.zeros(3)}, "probe=lambda settings, key"),
    ({"infer": {}}, "at least one method"),
    ({"infer": {"a/b": readout}}, "letters, digits"),
    ({"infer": {"nuts": 3}}, "must be a function, got int"),
    ({"flow": [1, 2]}, "flow of experiment 'tiny' must be a mapping"),
    ({"figures": (3,)}, "figures must be functions"),
    ({"figures": (lambda run: None,)}, "a lambda has no name"),
])
def test_wrong_declarations(changes, message):
    with pytest.raises(TypeError, match=message):
        dataclasses.replace(EXPERIMENT, **changes)


@pytest.mark.parametrize(("part", "options", "error", "message"), [
    ("flow", {"cutoffs": [0, -1.0]}, ValueError, r"cutoffs\[1\] is -1"),
    ("flow", {"cutoffs": [2, 1]}, ValueError, "cutoffs must increase"),
    ("flow", {"cutoffs": [0, np.nan]}, ValueError, r"cutoffs\[1\] is NaN"),
    ("flow", {"cutoffs": [0, 1], "refill": "pior"}, ValueError, "did you mean 'prior'"),
    ("flow", {"cutoffs": [0, 1], "regulator": "sharpe"}, ValueError, "regulator must be one of"),
    ("flow", {"cutoffs": [0, 1], "refil": "zero"}, TypeError, "flow of experiment 'tiny' has no option 'refil' .did "),
    ("metric", {"kind": "diagnal"}, ValueError, "did you mean 'diagonal'"),
    ("metric", {"kinds": "full"}, TypeError, "metric of experiment 'tiny' has no option 'kinds' .did you mean 'kind'"),
])
def test_wrong_options_are_refused_before_anything_is_inferred(tmp_path, part, options, error, message):
    experiment = dataclasses.replace(EXPERIMENT, **{part: lambda s: options},
                                     infer={"never": lambda *a: pytest.fail("inferred")})
    with pytest.raises(error, match=message):
        experiment.run(tmp_path / "r", progress_bar=False)
    assert not (tmp_path / "r").exists()


def test_data_as_rows_in_lists():
    data = brg.Data([[0.0, 1.0], [2.0, 3.0]], [0, 1], [[4.0, 5.0]], [1.0], characteristic=[6.0, 7.0])
    x, at = data.outputs_at()
    np.testing.assert_array_equal(x, [[4, 5], [6, 7]])
    assert at == 1


def test_wrong_returns(tmp_path):
    with pytest.raises(TypeError, match="must return brg.Data, got tuple"):
        dataclasses.replace(EXPERIMENT, data=lambda s, key: (1, 2)).run(tmp_path / "a")
    with pytest.raises(TypeError, match=r"infer\['mine'\] must return a Posterior, got dict"):
        dataclasses.replace(EXPERIMENT, infer={"mine": lambda *a: {}}).run(tmp_path / "b")
    with pytest.raises(ValueError, match=r"y\[1\] is nan"):
        brg.Data(np.zeros((2, 1)), [0.0, np.nan], np.zeros((2, 1)), [0.0, 0.0])


OUTSIDE = """
import jax.numpy as jnp
import numpyro, numpyro.distributions as dist
import bayes_brg as brg
from matplotlib.figure import Figure

def line(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand((1,)).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

def data(settings, key):
    x = jnp.linspace(-1, 1, settings.num)[:, None]
    return brg.Data(x, 2 * x[:, 0], x, 2 * x[:, 0])

def exact(model, x, y, key, settings):
    precision = 1 + (x**2).sum() / 0.25
    draws = (x[:, 0] @ y) / 0.25 / precision + numpyro.distributions.Normal(0, precision**-0.5).sample(key, (4, 50, 1))
    return brg.Posterior({"w": draws}, {"independent": True}, "exact")

def slope(run):
    \"\"\"Slope of each member along the flow.\"\"\"
    figure = Figure()
    ax = figure.subplots()
    ax.plot(run.flow["cutoff"], run.flow["phi"].isel(point=-1, output=0).mean(("chain", "draw")))
    return figure

experiment = brg.Experiment("line", lambda s: line, data, None, {"exact": exact}, flow={"cutoffs": [0, 1, 4]},
                            settings={"num": 9}, figures=[slope])
"""


def test_an_experiment_and_its_figure_from_outside_in_one_file(tmp_path):
    (tmp_path / "line.py").write_text(OUTSIDE)
    run = load_experiment(tmp_path / "line.py").run(tmp_path / "run", progress_bar=False)
    x = np.linspace(-1, 1, 9)
    precision = 1 + (x**2).sum() / 0.25
    w, error = np.asarray(run.posterior.samples["w"]), precision**-0.5 / np.sqrt(200)
    assert w.mean() == pytest.approx(2 * (x**2).sum() / 0.25 / precision, abs=4 * error)
    stiffness = (x**2).mean() / 0.25  # 1.67: at Λ = 1 the slope stays, at 4 it is a prior draw
    assert run.spectra["exact"]["stiffness"].values[0, 0] == pytest.approx(stiffness, rel=1e-5)
    ends = run.flow["phi"].isel(point=-2, output=0).mean(("chain", "draw")).values
    assert ends[1] == ends[0] == pytest.approx(w.mean() * x[-2], abs=1e-5)
    assert abs(ends[2]) < 4 / np.sqrt(200)
    assert run.figures["slope"].stat().st_size > 5000
    text = brg.report(run).read_text(encoding="utf-8")
    assert "Slope of each member along the flow." in text and "(slope.png)" in text
    wrong = dataclasses.replace(load_experiment(tmp_path / "line.py"), figures={"none": lambda run: 3})
    with pytest.raises(TypeError, match=r"figures\['none'\] must return a matplotlib Figure, got int"):
        wrong.run(tmp_path / "wrong", progress_bar=False)


GOOD = """
from dataclasses import dataclass
import bayes_brg as brg
@dataclass
class Thing:
    a: int = 1
experiment = brg.Experiment(name="e", model=lambda s: None, data=lambda s, k: None, probe=lambda s, k: None,
                            infer={"a": lambda *a: None})
"""


def test_load_experiment(tmp_path):
    (tmp_path / "e.py").write_text(GOOD)
    assert load_experiment(tmp_path / "e.py").name == "e"


@pytest.mark.parametrize(("content", "message"), [
    (None, "no such file"),
    (b"\x89PNG\r\n\xff", "not a text file"),
    (b"def (:", r"not Python: .* \(line 1\)"),
    (b"a = 1\x00", "not Python"),
    (b"import nothing_of_this_name", "fails when it is run: ModuleNotFoundError"),
    (b"raise SystemExit(0)", "fails when it is run: SystemExit"),
    (b"x = 1", "declares no Experiment"),
    (GOOD.encode() + b"import dataclasses\nother = dataclasses.replace(experiment, name='f')\n",
     "declares 2 Experiments"),
])
def test_wrong_files(tmp_path, content, message):
    path = tmp_path / "e.py"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        load_experiment(path)
    with pytest.raises(ValueError, match="is a directory"):
        load_experiment(tmp_path)


@pytest.mark.parametrize("field, value", [
    ("x_test", [[0.0], [np.nan]]), ("y_test", [[0.0], [np.inf]]), ("x_test", [[0.0]]), ("x_test", 3.0), ("y_test", 3.0),
    ("x_test", {"a": np.zeros((2, 1)), "b": np.zeros((3, 1))}),
])
def test_bad_held_out_data_are_refused(field, value):
    good = {"x": np.zeros((3, 1)), "y": np.zeros((3, 1)), "x_test": np.zeros((2, 1)), "y_test": np.zeros((2, 1))}
    brg.Data(**good)
    with pytest.raises(ValueError, match="x|y"):
        brg.Data(**good | {field: value})


def test_weights_need_not_stay_on_disk(run, tmp_path):
    bare = EXPERIMENT.run(tmp_path / "bare", progress_bar=False, keep_weights=False)
    assert bare.file("posterior").stat().st_size < run.file("posterior").stat().st_size
    xr.testing.assert_identical(brg.load_run(bare.path).flow.drop_attrs(), run.flow.drop_attrs())
    with pytest.raises(ValueError, match="holds no weights.*--no-weights"):
        _ = brg.load_run(bare.path).posterior
    assert EXPERIMENT.run(bare.path, progress_bar=False).finished  # nothing is run again
