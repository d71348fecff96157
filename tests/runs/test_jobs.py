"""Several processes of one job: the same numbers as one process, and clear words where they cannot work together."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_brg import cli
from bayes_brg.core import processes
from bayes_brg.runs.jobs import join, launch, place

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What each process does; its arguments: number, count, port, directory.
PROGRAM = """
import pathlib, sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
import bayes_brg as brg
from bayes_brg.runs.jobs import join, place
index, count, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], pathlib.Path(sys.argv[4])
if count > 1:
    join(f"127.0.0.1:{port}", count, index)
    assert jax.process_count() == count and len(jax.devices()) == count
import jax.numpy as jnp
net = brg.mlp((3,), activation="tanh", likelihood=brg.gaussian(0.2))
x, key = jnp.linspace(-1, 1, 6)[:, None], jax.random.key(0)
y = jnp.sin(2 * x)
members = brg.ensemble(net, x, y, key=key, num_members=7, train="all", optimizer="gd", learning_rate=0.05, num_epochs=9)
chains = brg.nuts(net, x, y, key=key, num_chains=3, num_warmup=10, num_samples=4, chain_method="sequential")
metric = brg.fisher(net, members, x)
flow = brg.renormalize(net, members, metric, cutoffs=[0.0, 0.5, 2.0], key=key)
found = {"w0": members.samples["w0"], "chains": chains.samples["w0"], "log_joint": chains.stats["log_joint"],
         "stiffness": metric.stiffness["w1"], "phi": flow.predict(x).values, "mean": flow.moments(x)["mean"].values}
if count > 1:
    try:
        brg.predict(net, members, x + index)
    except ValueError as error:
        assert "with other numbers" in str(error), error
    else:
        raise AssertionError("other inputs in each process were taken")
with place(folder / "run") as directory:
    directory.mkdir(exist_ok=True)
    (directory / "whose").write_text(str(index))
np.savez(folder / f"{count}_{index}.npz", **{k: np.asarray(v) for k, v in found.items()})
"""


def environment():
    """That of a fresh process: without this one's devices and flags."""
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    program, port = tmp_path / "program.py", free_port()
    program.write_text(PROGRAM)
    for count in (1, 2):
        started = [subprocess.Popen([sys.executable, str(program), str(i), str(count), port, str(tmp_path)],
                                    env=environment(), stderr=subprocess.PIPE, text=True) for i in range(count)]
        for one in started:
            said = one.communicate(timeout=300)[1]
            assert one.returncode == 0, said[-2000:]
        assert (tmp_path / "run" / "whose").read_text() == "0"  # the others kept theirs elsewhere
    alone = np.load(tmp_path / "1_0.npz")
    for index in range(2):
        shared = np.load(tmp_path / f"2_{index}.npz")
        for name in alone:
            if name in ("w0", "chains", "phi"):  # draws bit for bit, where each chain is a program of its own
                np.testing.assert_array_equal(shared[name], alone[name], err_msg=name)
            np.testing.assert_allclose(shared[name], alone[name], rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_job_that_fails_says_which_process_and_its_status(tmp_path, monkeypatch, capfd):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    assert launch(2, ["run", str(tmp_path / "none.py")]) == 2
    said = capfd.readouterr().err
    assert "of 2 ended with status 2" in said and "none.py" in said


# One process fails where the other waits for it.
ALONE = """
import jax, jax.numpy as jnp
import bayes_brg as brg
X = jnp.linspace(-1, 1, 6)[:, None]
def infer(model, x, y, key, settings):
    if jax.process_index() == settings.which:
        raise ValueError("this one alone")
    return brg.ensemble(model, x, y, key=key, num_members=3)
experiment = brg.Experiment("alone", lambda s: brg.mlp((3,)), lambda s, key: brg.Data(X, X, X, X), None,
                            {"ensemble": infer}, settings={"which": 0})
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_one_process_that_fails_ends_the_job_with_its_own_words(which, tmp_path, monkeypatch, capfd):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "alone.py").write_text(ALONE)
    words = ["run", str(tmp_path / "alone.py"), "--out", str(tmp_path / "run"), "--set", f"which={which}"]
    assert launch(2, words) == 2  # not that of JAX's barrier at exit, which waits five minutes and aborts
    said = capfd.readouterr().err
    assert "this one alone" in said and f"process {which} of 2 ended with status 2" in said


def test_parts_are_in_order_and_cover_all(monkeypatch):
    draws = {"a": jnp.arange(7), "k": jax.random.split(jax.random.key(0), 7)}
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    seen = []
    monkeypatch.setattr(processes, "same_everywhere", lambda value: seen.append(value) or True)
    parts = []
    for index in range(3):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        parts.append(processes.mine(draws))
    assert [p["a"].tolist() for p in parts] == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]  # of one size, as collectives want
    assert len(set(seen)) == 1  # what is compared is what was given, the same in all
    processes.mine({**draws, "a": draws["a"].at[-1].add(1)})
    processes.mine(draws, shared=jnp.ones(2))
    assert len(set(seen)) == 3
    monkeypatch.setattr(processes, "same_everywhere", lambda value: False)
    with pytest.raises(ValueError, match="the 3 processes of this job came to a map with other numbers"):
        processes.mine(draws, "a map")
    assert (jax.random.key_data(parts[2]["k"]) == jax.random.key_data(draws["k"])[6]).all()


def test_one_process_works_in_the_place_itself(tmp_path):
    with place(tmp_path / "run") as directory:
        assert directory == tmp_path / "run"


@pytest.mark.parametrize("words, match", [
    (["launch", "-n", "2", "info"], "launch starts a run"),
    (["launch", "-n", "0", "run", "a.py"], "-n must be 1 or more, got 0"),
    (["run", "a.py", "--num-processes", "2"], "all of --coordinator"),
    (["run", "a.py", "--coordinator", "here:1", "--num-processes", "2", "--process-id", "2"],
     "below num_processes = 2")])
def test_jobs_that_cannot_be(words, match, capsys):
    assert cli.main(words) == 2
    assert match in capsys.readouterr().err


def test_no_job_to_join_is_said(monkeypatch):
    def fails(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(ValueError, match="bayes-brg launch"):
        join()
