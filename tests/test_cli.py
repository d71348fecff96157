"""The command line: what it prints, where it writes, and that an error is one line."""

import contextlib
import io
import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import bayes_brg as brg
from bayes_brg.cli import main

ROOT = pathlib.Path(__file__).resolve().parents[1]
WIDE = str(ROOT / "models" / "wide_relu.py")
SMALL = ["num_members=24", "width=32", "num_train=40", "num_test=30", "num_probe=50", "num_epochs=20"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's directory, and what the command printed."""
    path, out = tmp_path_factory.mktemp("cli") / "wide", io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["run", WIDE, "--out", str(path), "--set", *SMALL]) == 0
    return path, out.getvalue()


@pytest.fixture(scope="module")
def run_dir(finished):
    return finished[0]


def test_run_ends_with_the_table_and_the_critical_scale(finished):
    run_dir, out = finished
    run = brg.load_run(run_dir)
    assert run.finished and run.settings["num_members"] == 24
    first = next(line for line in out.splitlines() if line.split()[:2] == ["0", "0"])
    assert first.split()[2] == f"{run.summary['loss_median'][0]:.4g}"
    assert run.manifest["results"]["ensemble"]["critical_scale_text"] in out
    assert "of 24 members diverged" in out and "summary.csv" in out
    assert len([line for line in out.splitlines() if line.strip()[:1].isdigit()]) >= 26  # one row a cutoff


def test_the_same_command_again_changes_nothing(run_dir, capsys):
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")}
    assert main(["run", WIDE, "--out", str(run_dir), "--set", *SMALL, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")} == before


def test_info_of_a_run(run_dir, capsys):
    assert main(["info", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert "wide_relu" in out and "num_members=24" in out and "flow_readout.nc" in out


def test_compare_two_methods_of_a_run(run_dir, capsys, tmp_path):
    """From the files alone: the same as the flows themselves say, and nothing in the run is touched."""
    assert main(["compare", str(run_dir), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ensemble against readout: ") and "critical scale of readout" in out
    names = {f"ensemble_readout.{end}" for end in ("csv", "nc", "png")}
    assert {p.name for p in tmp_path.iterdir()} == names and all(name in out for name in names)
    table, stored = pd.read_csv(tmp_path / "ensemble_readout.csv"), xr.open_dataset(tmp_path / "ensemble_readout.nc")
    run, experiment = brg.load_run(run_dir), brg.load_experiment(WIDE)
    np.testing.assert_array_equal(table["cutoff"], run.flow["cutoff"])
    assert stored.attrs["shared_key"] == 0 and stored.sizes["mesh"] == 30
    x, y = run.data["x_test"].values, run.data["y_test"].values
    kept = ~run.flow["diverged"].values  # one member is not: it takes no part
    assert kept.sum() == 23
    squares = (run.flow["phi"].isel(cutoff=0, point=slice(30)).values[kept] - y) ** 2
    by_hand = np.log(np.mean(np.exp(-0.5 * squares - 0.5 * np.log(2 * np.pi)), axis=0)).mean()
    assert float(stored["log_predictive_density"][0, 0]) == pytest.approx(by_hand, rel=1e-4)
    flow = experiment.flow_of(run, "readout")
    both = brg.compare(flow, (run, "readout"), labels=("made", "stored"))  # the same draws twice
    lpd, critical = both.dataset["log_predictive_density"], both.dataset["critical_scale"]
    np.testing.assert_allclose(lpd[0], lpd[1], rtol=1e-4)
    np.testing.assert_allclose(lpd[1], stored["log_predictive_density"][1], rtol=1e-6)
    assert float(critical[0]) == pytest.approx(float(critical[1]), rel=1e-3)
    assert both.dataset.attrs["shared_key"] and not both.differs and both.dataset["energy"].max() < 1e-2
    with pytest.raises(ValueError, match="x is not the held-out data"):
        brg.compare(run, (run, "readout"), x + 1, y)
    with pytest.raises(ValueError, match="leave mesh out"):
        brg.compare(run, (run, "readout"), mesh=np.ones((3, 2)))
    with pytest.raises(ValueError, match="needs held-out data"):
        brg.compare(flow, flow)


@pytest.mark.slow
def test_compare_two_runs(run_dir, capsys, tmp_path):
    """The data of runs follow from their seeds; one trained longer has the same data and other draws."""
    other, third = str(tmp_path / "other"), str(tmp_path / "third")
    settings = [s for s in SMALL if not s.startswith("num_epochs")]
    assert main(["run", WIDE, "--out", other, "--quiet", "--no-weights", "--set", *settings, "num_epochs=25"]) == 0
    assert main(["compare", f"{run_dir}:readout", f"{other}:readout", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    table = pd.read_csv(run_dir / "comparisons" / "wide-readout_other-readout.csv")
    assert not table["differs"].any() and (table["energy"] < 1e-2).all()  # its draws do not depend on the epochs
    assert main(["run", WIDE, "--out", third, "--quiet", "--set", *SMALL, "seed=1"]) == 0
    assert main(["compare", other, third]) == 2
    assert "have other held-out data; compare runs of the same data" in capsys.readouterr().err
    for arguments, message in (
        ([f"{other}:readout"], "name two"), ([f"{other}:nuts", third], "no method 'nuts'"),
        ([other, other], "both are ensemble"), ([other, third, third], "one or two runs"), (["nowhere"], "no such run"),
    ):
        assert main(["compare", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


@pytest.mark.slow
def test_compare_a_model_of_ones_own(capsys, tmp_path):
    """A NumPyro model's likelihood is not in the files: they ask for the file that declares it, and go on with it."""
    coin, run = str(ROOT / "models" / "coin.py"), str(tmp_path / "coin")
    assert main(["run", coin, "--out", run, "--quiet", "--set", "num_samples=100"]) == 0
    methods = brg.load_run(run).methods
    pair = [f"{run}:{m}" for m in methods[:2]]
    assert main(["compare", *pair]) == 2
    assert "--experiment FILE" in capsys.readouterr().err
    assert main(["compare", *pair, "--experiment", coin]) == 0
    out = capsys.readouterr().out
    assert "no difference found" in out and " against " in out


def test_info_gives_versions(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert brg.__version__ in out and "jax" in out and "arviz" in out


def test_default_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.py").write_text(
        "import numpy as np, jax.numpy as jnp, bayes_brg as brg\n"
        "x = jnp.ones((3, 1))\n"
        "experiment = brg.Experiment(name='mine', model=lambda s: brg.mlp(), data=lambda s, k: brg.Data(x, x, x, x),\n"
        "    probe=lambda s, k: x, infer={'prior': lambda m, x, y, k, s: brg.prior(m, x, key=k, num_samples=40)},\n"
        "    flow={'cutoffs': [0, .5, 2]})\n")
    assert main(["run", "e.py", "--quiet"]) == 0
    run = brg.load_run("runs/mine")
    assert np.array_equal(run.flow["cutoff"], [0, 0.5, 2])
    (tmp_path / "e.py").write_text((tmp_path / "e.py").read_text().replace("40", "41"))
    assert main(["run", "e.py", "--quiet"]) == 2  # the file says something else now


@pytest.mark.parametrize(("arguments", "message"), [
    (["run", "nothing.py"], "no such file: nothing.py"),
    (["run", str(ROOT / "pyproject.toml")], "not Python"),
    (["run", WIDE, "--set", "wdith=3"], "did you mean 'width'"),
    (["run", WIDE, "--set", "width"], "NAME=VALUE"),
    (["run", WIDE, "--set", "width=wide"], "a whole number like its default 2048"),
    (["run", WIDE, "--set", "width=0"], "a hidden width must be a whole number of at least 1, got 0"),
    (["run", WIDE, "--set", "num_members=0"], "num_members must be a whole number of at least 1, got 0"),
    (["run", WIDE, "--set", "learning_rate=-1"], "learning_rate must be"),
    (["run", WIDE, "--out", WIDE], "is a file"),
    (["run", WIDE, "--out", str(ROOT / "tests")], "no run"),
    (["info", str(ROOT / "tests")], "not a run"),
    (["info", "nothing"], "no such run"),
])
def test_an_error_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err
    assert err.startswith("bayes-brg: error: ") and err.count("\n") == 1


def test_other_settings_in_the_same_directory(run_dir, capsys):
    assert main(["run", WIDE, "--out", str(run_dir), "--set", *SMALL, "seed=1"]) == 2
    assert "seed = 0 there, 1 now" in capsys.readouterr().err
    coin = str(ROOT / "models" / "coin.py")
    assert main(["run", coin, "--out", str(run_dir)]) == 2
    assert "run of 'wide_relu', not of 'coin'" in capsys.readouterr().err


def test_traceback_is_there_for_those_who_ask():
    with pytest.raises(FileNotFoundError):
        main(["run", "nothing.py", "--traceback"])


def test_as_a_program():
    done = subprocess.run([sys.executable, "-m", "bayes_brg.cli", "run", "nothing.py"], capture_output=True, text=True,
                          cwd=ROOT)
    assert done.returncode == 2 and done.stderr == "bayes-brg: error: no such file: nothing.py\n"
    done = subprocess.run([sys.executable, "-m", "bayes_brg.cli", "run"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "usage" in done.stderr
