"""The command line: what it prints, where it writes, and that an error is one line."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

import bayes_brg as brg
from bayes_brg.cli import main

ROOT = pathlib.Path(__file__).resolve().parents[1]
WIDE = str(ROOT / "models" / "wide_relu.py")
SMALL = ["num_members=24", "width=32", "num_train=40", "num_test=30", "num_probe=50", "num_epochs=20"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cli") / "wide"


def test_run_ends_with_the_table_and_the_critical_scale(run_dir, capsys):
    assert main(["run", WIDE, "--out", str(run_dir), "--set", *SMALL]) == 0
    out = capsys.readouterr().out
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
