"""A run that dies, is damaged, meets a full disk or comes from a stranger: nothing is lost, and nobody let in."""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from matplotlib.figure import Figure

import bayes_brg as brg
from bayes_brg import plots
from bayes_brg.cli import main
from bayes_brg.core import files
from bayes_brg.io import manifest as manifests
from bayes_brg.io import store
from bayes_brg.runs import provenance, stages
from bayes_brg.runs.table_experiment import TABLE_FILE

X = jnp.linspace(-1, 1, 6)[:, None]
CALLS: list[str] = []


def line(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand((1,)).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def exact(name):
    def infer(model, x, y, key, settings):
        CALLS.append(name)
        draws = 1.5 + dist.Normal(0, 0.3).sample(key, (4, settings.draws, 1))
        return brg.Posterior({"w": draws}, {"independent": True, "seconds": time.perf_counter()}, name)
    return infer


def small(figure_of=None):
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    return figure


def table(run, flows):
    import pandas as pd
    return {"own": pd.DataFrame({"a": [float(run.flow["phi"].sum())]}), "drawn": small()}


EXPERIMENT = brg.Experiment("line", lambda s: line, lambda s, key: brg.Data(X, 2 * X[:, 0], X, 2 * X[:, 0]), None,
                            {"exact": exact("exact"), "other": exact("other")}, flow={"cutoffs": [0, 1, 4]},
                            settings={"draws": 10}, figures=[small], extras=table)


@pytest.fixture(autouse=True)
def few_figures(monkeypatch):
    """The package's own figures take longest, and are tested elsewhere."""
    monkeypatch.setattr(plots, "run_figures", lambda run: {"phi_moments": small()})
    CALLS.clear()


def run_into(path, experiment=EXPERIMENT, **options):
    return experiment.run(path, progress_bar=False, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of an uninterrupted run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "run_figures", lambda run: {"phi_moments": small()})
        return run_into(tmp_path_factory.mktemp("whole") / "line").path


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "line")
    return tmp_path / "line"


def numbers(path):
    """All that a run holds, but for how long it took: digests of numbers, and the bytes of the rest."""
    found = {}
    for name, one in manifests.recorded(manifests.read_manifest(path)).items():
        assert manifests.fault_of(path, name, one) is None
        found[name] = one.get("content", one["sha256"])
    return found


def leftovers(path):
    return [p.name for p in path.rglob(".*") if p.name != store.COPY]


def assert_whole(path, whole):
    assert numbers(path) == numbers(whole) and brg.load_run(path, verify=True).finished
    assert leftovers(path) == []


# -- death ----------------------------------------------------------------------------------------------------
class Killed(BaseException):
    """What no handler may see."""


class Death:
    """Ends everything at the `at`-th call that touches the disk; from then on nothing can be touched, as in death."""

    def __init__(self, patch, at):
        self.at, self.calls, self.dead, self.handles = at, 0, False, []
        for name in ("replace", "fsync", "unlink"):
            patch.setattr(os, name, self.touching(getattr(os, name)))
        patch.setattr(files, "open", self.touching(open), raising=False)
        patch.setattr(files, "start_of", lambda pid: 1)  # whoever comes after sees a process that is gone
        patch.setattr(files.Owner, "__exit__", lambda owner, *error: self.leave(owner))

    def touching(self, call):
        def touch(*args, **options):
            if not self.dead:
                self.calls += 1
                self.dead = self.calls == self.at
            if self.dead:
                raise Killed
            return call(*args, **options)
        return touch

    def leave(self, owner):
        if owner.handle is not None:
            os.close(owner.handle)  # a lock dies with its process


def die_at(path, at, **options):
    """Whether a run died at the `at`-th touch of the disk."""
    with pytest.MonkeyPatch.context() as patch:
        death = Death(patch, at)
        with contextlib.suppress(Killed):
            run_into(path, **options)
        return death.dead


def check_deaths(whole, folder, which, **options):
    died = 0
    for at in which:
        path = folder / str(at)
        if not die_at(path, at, **options):
            break
        died += 1
        run_into(path, **options)
        assert_whole(path, whole)
        shutil.rmtree(path)
    return died


def test_death_at_any_touch_of_the_disk_loses_nothing(whole, tmp_path):
    assert check_deaths(whole, tmp_path, range(60, 10**6, 60)) == 3


def test_a_directory_is_a_run_before_anything_is_made(tmp_path):
    def never(settings, key):
        raise Killed

    import dataclasses
    with pytest.raises(Killed):
        run_into(tmp_path / "r", dataclasses.replace(EXPERIMENT, data=never))
    assert brg.load_run(tmp_path / "r").manifest["stages"] == {}
    assert run_into(tmp_path / "r").finished


@pytest.mark.slow
@pytest.mark.parametrize("part", range(12))
def test_death_at_every_touch_of_the_disk(part, whole, tmp_path):
    assert check_deaths(whole, tmp_path, itertools.count(1 + part, 12)) > 10


@pytest.mark.slow
def test_death_while_weights_are_dropped_loses_none(whole, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(whole, bare)
    run_into(bare, keep_weights=False)
    for at in itertools.count(1):
        path = tmp_path / str(at)
        shutil.copytree(whole, path)
        died = die_at(path, at, keep_weights=False)
        run_into(path, keep_weights=False)
        assert_whole(path, bare)
        if not died:
            break
    assert at > 20 and CALLS == []  # nothing is inferred again


# -- damage ---------------------------------------------------------------------------------------------------
def truncate(content, rng):
    return content[:rng.integers(1, len(content))]


def flip(content, rng):
    damaged, bit = bytearray(content), rng.integers(8 * len(content))
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


DAMAGE = {"truncated": truncate, "empty": lambda content, rng: b"", "flipped": flip,
          "junk": lambda content, rng: rng.bytes(len(content))}


def test_every_damage_of_every_file_is_noticed_and_named(copy, capsys):
    rng, seen = np.random.default_rng(0), 0
    for file in [p for p in copy.rglob("*") if p.is_file()]:
        content = file.read_bytes()
        for kind, change in DAMAGE.items():
            for _ in range(40 if kind == "flipped" else 2):
                file.write_bytes(change(content, rng))
                if file.name == store.COPY:
                    assert not stages.copies_agree(copy)
                else:
                    with pytest.raises(ValueError, match=f"{file.name}.*run the experiment again into the same"):
                        brg.load_run(copy)
                seen += 1
        file.write_bytes(content)
    assert seen == 46 * 13
    (copy / "flow.nc").write_bytes(flip((copy / "flow.nc").read_bytes(), rng))
    for command in (["info"], ["report"], ["compare"], ["info", "--verify"]):
        assert main([*command, str(copy)]) == 2
        assert "flow.nc is damaged: its " in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"flow.nc is damaged.*bayes-brg run FILE --out .*line.*makes that file anew"):
        _ = brg.load_run(copy, verify=False).flow
    assert brg.load_run(copy, verify=False).posterior.method == "exact"  # what is whole can be had


def test_large_files_are_checked_and_read_from_one_handle(copy, whole, monkeypatch):
    monkeypatch.setattr(manifests, "WHOLE", 0)
    run = brg.load_run(copy, verify=True)
    assert run.flow.identical(brg.load_run(whole).flow) and run.summary.equals(brg.load_run(whole).summary)
    assert run.spectra["exact"].sizes and np.asarray(run.posterior.samples["w"]).shape == (4, 10, 1)
    (copy / "posterior.nc").write_bytes(flip((copy / "posterior.nc").read_bytes(), np.random.default_rng(0)))
    with pytest.raises(ValueError, match="posterior.nc is damaged"):
        _ = brg.load_run(copy, verify=False).posterior


REDONE = {"data.nc": [], "posterior.nc": ["exact"], "posterior_other.nc": ["other"], "flow.nc": [], "flow_other.nc": [],
          "summary.csv": [], "figures/small.png": [], "own.csv": [], store.MANIFEST: [], store.COPY: []}


@pytest.mark.parametrize("name", list(REDONE))
def test_a_damaged_file_s_stage_alone_is_redone(name, copy, whole):
    rng, before = np.random.default_rng(1), {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file()}
    for kind in ("flipped", "missing"):
        file = copy / name
        if kind == "missing":
            file.unlink()
        else:
            file.write_bytes(flip(file.read_bytes(), rng))
        expected = contextlib.nullcontext() if name == store.COPY else pytest.warns(UserWarning, match=file.name)
        CALLS.clear()
        with expected:
            run_into(copy)
        assert CALLS == REDONE[name]
        assert_whole(copy, whole)
    stage = {f for s in manifests.read_manifest(copy)["stages"].values() if name in s["files"] for f in s["files"]}
    for file, then in before.items():
        own = file.relative_to(copy).as_posix()
        assert own in stage or own in (store.MANIFEST, store.COPY) or file.stat().st_mtime_ns == then


def test_what_depends_on_other_numbers_is_redone(copy):
    def shifted(model, x, y, key, settings):
        found = exact("exact")(model, x, y, key, settings)
        return found.replace(samples={"w": found.samples["w"] + 1})

    import dataclasses
    changed = dataclasses.replace(EXPERIMENT, infer={"exact": shifted, "other": exact("other")})
    before = numbers(copy)
    (copy / "posterior.nc").unlink()
    with pytest.warns(UserWarning, match="posterior.nc is missing; the stage 'posterior exact' is made anew"):
        run_into(copy, changed)
    after = numbers(copy)
    assert {n for n in before if before[n] != after[n]} == {"posterior.nc", "flow.nc", "summary.csv", "own.csv"}
    assert CALLS == ["exact"]


def test_death_after_other_numbers_leaves_no_mixture(copy, monkeypatch):
    """What was made of the numbers before is done no more, from the moment that the others are there."""
    import dataclasses

    def shifted(model, x, y, key, settings):
        found = exact("exact")(model, x, y, key, settings)
        return found.replace(samples={"w": found.samples["w"] + 1})

    def dead(*args):
        raise Killed

    changed = dataclasses.replace(EXPERIMENT, infer={"exact": shifted, "other": exact("other")})
    before = numbers(copy)
    (copy / "posterior.nc").unlink()
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="posterior.nc is missing"):
        patch.setattr(stages, "measure", dead)
        with pytest.raises(Killed):
            run_into(copy, changed)
    half = brg.load_run(copy)
    assert not half.finished and set(half.manifest["stages"]) == {"data", "posterior exact", "posterior other"}
    assert half.manifest["results"] == {}
    run_into(copy, changed)
    after = numbers(copy)
    assert {n for n in before if before[n] != after[n]} == {"posterior.nc", "flow.nc", "summary.csv", "own.csv"}
    assert brg.load_run(copy, verify=True).finished


def test_two_stages_do_not_leave_one_file(tmp_path):
    import dataclasses

    import pandas as pd
    same = dataclasses.replace(EXPERIMENT, extras=lambda run, flows: {"summary": pd.DataFrame({"a": [1.0]})})
    with pytest.raises(ValueError, match="the stages 'summary' and 'extras' both leave summary.csv"):
        run_into(tmp_path / "r", same)
    assert brg.load_run(tmp_path / "r").summary["cutoff"].tolist() == [0, 1, 4]
    run_into(tmp_path / "r")
    assert brg.load_run(tmp_path / "r", verify=True).finished


def test_weights_that_were_dropped_are_made_anew_where_they_are_needed(copy, whole):
    run_into(copy, keep_weights=False)
    bare = numbers(copy)
    assert CALLS == [] and not brg.load_run(copy).manifest["weights"]
    (copy / "flow_other.nc").write_bytes(b"")
    with pytest.warns(UserWarning, match="flow_other.nc is damaged: it has 0 bytes"):
        run_into(copy)
    assert CALLS == ["other"] and numbers(copy) == bare
    with pytest.raises(ValueError, match="--no-weights"):
        _ = brg.load_run(copy).posteriors


def test_without_a_whole_manifest_nothing_is_touched(copy):
    for name in (store.MANIFEST, store.COPY):
        (copy / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match="manifest.json"):
        run_into(copy)
    assert CALLS == []


# -- what has changed since -----------------------------------------------------------------------------------
FILE = """
import jax.numpy as jnp, numpyro, numpyro.distributions as dist, bayes_brg as brg
from line_helper import draws
X = jnp.linspace(-1, 1, 6)[:, None]
def line(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand((1,)).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)
def infer(model, x, y, key, settings):
    return brg.Posterior({"w": draws(key)}, {"independent": True}, "exact")
experiment = brg.Experiment("line", lambda s: line, lambda s, k: brg.Data(X, 2 * X[:, 0], X, 2 * X[:, 0]), None,
                            {"exact": infer}, flow={"cutoffs": [0, 1]})
"""
HELPER = "import numpyro.distributions as dist\ndraws = lambda key: dist.Normal(1, 0.3).sample(key, (4, 10, 1))\n"


def test_changed_files_and_versions_are_refused_unless_asked_for(tmp_path, monkeypatch, capsys):
    (tmp_path / "line.py").write_text(FILE)
    (tmp_path / "line_helper.py").write_text(HELPER)
    command = ["run", str(tmp_path / "line.py"), "--out", str(tmp_path / "r"), "--quiet"]
    assert main(command) == 0
    held = manifests.read_manifest(tmp_path / "r")
    assert list(held["imports"]) == ["line_helper.py"]
    assert all(stage["versions"]["bayes_brg"] == brg.__version__ for stage in held["stages"].values())
    (tmp_path / "line_helper.py").write_text(HELPER + "# other\n")
    assert main(command) == 2
    assert "a file that its model file imports (line_helper.py) that has changed since" in capsys.readouterr().err
    (tmp_path / "r" / "summary.csv").unlink()
    versions = stages.versions()
    monkeypatch.setattr(stages, "versions", lambda: versions | {"jax": "99"})
    (tmp_path / "line_helper.py").write_text(HELPER)
    with pytest.warns(UserWarning, match="summary.csv is missing"):
        assert main(command) == 2
    err = capsys.readouterr().err
    assert f"posterior exact (jax {versions['jax']})" in err and "--accept-changed" in err
    (tmp_path / "line_helper.py").write_text(HELPER + "# other\n")
    with pytest.warns(UserWarning, match="summary.csv is missing"):
        assert main([*command, "--accept-changed"]) == 0
    held = manifests.read_manifest(tmp_path / "r")
    assert len(held["accepted"]) == 2 and "line_helper.py" in held["accepted"][0] and "jax" in held["accepted"][1]
    assert held["stages"]["summary"]["versions"]["jax"] == "99" != held["stages"]["flow exact"]["versions"]["jax"]
    assert brg.load_run(tmp_path / "r", verify=True).finished


def test_data_that_change_without_a_word_are_refused(copy):
    import dataclasses
    other = dataclasses.replace(EXPERIMENT, data=lambda s, key: brg.Data(X, 3 * X[:, 0], X, 2 * X[:, 0]))
    (copy / "own.csv").unlink()
    with pytest.warns(UserWarning, match="own.csv is missing"), pytest.raises(ValueError, match="data.nc.*has changed"):
        run_into(copy, other)
    with pytest.warns(UserWarning, match="own.csv is missing"):
        run_into(copy, other, accept_changed=True)
    assert "not those in data.nc" in brg.load_run(copy).manifest["accepted"][0]


def test_what_was_accepted_of_a_finished_run_is_written_down(tmp_path, capsys):
    (tmp_path / "line.py").write_text(FILE)
    (tmp_path / "line_helper.py").write_text(HELPER)
    command = ["run", str(tmp_path / "line.py"), "--out", str(tmp_path / "r"), "--quiet"]
    assert main(command) == 0
    (tmp_path / "line.py").write_text(FILE + "# other\n")
    assert main(command) == 2 and "by a model file that has changed since" in capsys.readouterr().err
    assert main([*command, "--accept-changed"]) == 0 and main(command) == 0
    assert len(brg.load_run(tmp_path / "r").manifest["accepted"]) == 1


def test_objects_are_known_by_their_parts():
    class Part:
        def __init__(self, size):
            self.size = size

    assert manifests.jsonable(Part(1)) == manifests.jsonable(Part(1)) != manifests.jsonable(Part(2))
    first, again = (manifests.jsonable(functools.partial(lambda a, b: a, k)) for k in (1, 1))
    assert first == again != manifests.jsonable(functools.partial(lambda a, b: a, 2))


def test_a_table_that_has_changed_is_read_again(tmp_path):
    experiment = brg.table_experiment("t")
    settings = experiment.with_settings({"data": str(tmp_path / "t.csv"), "target": "y"})
    for value in (1, 3):
        (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{i},{i * value + 0.5}\n" for i in range(40)))
        data = stages.make_data(experiment, settings)
        y = data.own.back(np.asarray(data.y)).ravel()
        assert np.allclose((y - 0.5) / value, np.round((y - 0.5) / value), atol=1e-3)
        assert y.max() > 35 * value


def test_a_table_is_named_by_what_makes_its_run_anew(tmp_path):
    assert provenance.named(TABLE_FILE, {"data": "my table.csv"}) == "my table.csv"
    assert provenance.named("/a/models/line.py", {"data": "my table.csv"}) == "line.py"
    said = manifests.remedy(tmp_path, {"file": "my table.csv", "settings": {"data": "my table.csv", "target": "a b"}})
    assert "bayes-brg run 'my table.csv' --target 'a b' --out" in said


@pytest.mark.parametrize("name", ["m" * 101, 1, "a-b", "é" * 51])
def test_methods_whose_names_no_manifest_takes_are_refused(name):
    import dataclasses
    with pytest.raises(TypeError, match="at most 100 bytes: it names files"):
        dataclasses.replace(EXPERIMENT, infer={name: exact("exact")})


def test_a_run_without_checksums(copy):
    """Of format 2: it is read, and its stages are taken over only where that is asked for."""
    held = manifests.read_manifest(copy)
    for stage in held["stages"].values():
        del stage["files"], stage["versions"]
    (copy / store.COPY).unlink()
    (copy / store.MANIFEST).write_text(json.dumps(held | {"format": 2}))
    old = brg.load_run(copy)
    assert old.flow.sizes["cutoff"] == 3 and set(old.figures) == {"phi_moments", "small", "drawn"}
    with pytest.raises(ValueError, match="format 2, which has no checksums"):
        brg.load_run(copy, verify=True)
    with pytest.warns(UserWarning, match="an older version, without checksums"):
        run_into(copy)
    (copy / "flow.nc").unlink()
    with pytest.raises(ValueError, match=r"data \(an older version, without checksums\).*--accept-changed"):
        run_into(copy)
    run_into(copy, accept_changed=True)
    assert CALLS == [] and brg.load_run(copy, verify=True).finished


# -- full, vanished, forbidden --------------------------------------------------------------------------------
@contextlib.contextmanager
def failing_after(writes, code):
    """A disk that takes so many files and then none."""
    import errno
    with pytest.MonkeyPatch.context() as patch:
        true, done = os.replace, []

        def replace(*args):
            done.append(1)
            if len(done) > writes:
                raise OSError(getattr(errno, code), "no")
            return true(*args)

        patch.setattr(os, "replace", replace)
        yield


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO"])
def test_a_disk_that_fails_is_told_and_the_run_goes_on(code, tmp_path, whole):
    for writes in (0, 3, 9) if code == "ENOSPC" else (3,):
        path = tmp_path / str(writes)
        with failing_after(writes, code), pytest.raises(files.WriteError, match="could not be written: .*finished is"):
            run_into(path)
        assert leftovers(path) == []
    if code == "ENOSPC":
        run_into(path)
        assert_whole(path, whole)


def test_a_directory_that_vanishes_is_not_made_again(tmp_path):
    import dataclasses

    def infer(*args):
        shutil.rmtree(tmp_path / "r")
        return exact("exact")(*args)

    with pytest.raises(files.WriteError, match="r has vanished, then run the same command again"):
        run_into(tmp_path / "r", dataclasses.replace(EXPERIMENT, infer={"exact": infer}))
    assert not (tmp_path / "r").exists()


def test_a_finished_run_where_nothing_can_be_written(copy, monkeypatch):
    def forbidden(self):
        raise files.failed(PermissionError(13, "Permission denied"), self.path, None)

    monkeypatch.setattr(files.Owner, "__enter__", forbidden)
    assert run_into(copy).finished
    (copy / "flow.nc").write_bytes(b"")
    with pytest.warns(UserWarning, match="flow.nc is damaged"), pytest.raises(files.WriteError, match="writable"):
        run_into(copy)


def test_runs_in_threads_wait_for_each_other(tmp_path, whole):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(2) as pool:
        for run in pool.map(lambda name: run_into(tmp_path / name), "ab"):
            assert numbers(run.path) == numbers(whole)


def test_a_second_process_is_refused_by_name(copy, capsys):
    with files.Owner(copy), pytest.raises(ValueError, match=rf"line is written by process {os.getpid()} on "):
        run_into(copy)


# -- processes ------------------------------------------------------------------------------------------------
WAIT = FILE.replace("from line_helper import draws", "import os, time\n" + HELPER).replace(
    "    return brg.Posterior", """    open("begun", "w").close()
    time.sleep(float(os.environ.get("WAIT", "0")))
    return brg.Posterior""")


def start(folder, *arguments, wait="0"):
    environment = os.environ | {"WAIT": wait, "PYTHONPATH": str(pathlib.Path(brg.__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-m", "bayes_brg.cli", "run", "line.py", "--out", "r", *arguments],
                            cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_sigterm_ends_like_an_interrupt_and_a_second_process_is_refused(tmp_path):
    (tmp_path / "line.py").write_text(WAIT)
    first = start(tmp_path, "--quiet", wait="60")
    while not (tmp_path / "begun").exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = start(tmp_path, "--quiet")
    assert second.wait() == 2 and f"r is written by process {first.pid} on " in second.communicate()[1]
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 143
    assert "ended by SIGTERM; the same command goes on from the finished stages" in first.communicate()[1]
    assert list(brg.load_run(tmp_path / "r").manifest["stages"]) == ["data"] and leftovers(tmp_path / "r") == []
    done = start(tmp_path, "--quiet")
    assert done.communicate() == (None, "") and done.returncode == 0


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    (tmp_path / "line.py").write_text(WAIT)
    began = time.perf_counter()
    assert start(tmp_path, "--quiet").wait() == 0
    took = time.perf_counter() - began
    shutil.move(tmp_path / "r", tmp_path / "whole")
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = start(tmp_path, "--quiet")
        time.sleep(rng.uniform(0.3, 1.0) * took)
        process.kill()
        process.wait()
        assert start(tmp_path, "--quiet").wait() == 0
        assert_whole(tmp_path / "r", tmp_path / "whole")
        shutil.rmtree(tmp_path / "r")


def test_signals_end_as_an_interrupt_does(monkeypatch, capsys, tmp_path):
    from bayes_brg import cli

    monkeypatch.setattr(cli, "_info", lambda arguments: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5))
    before = signal.getsignal(signal.SIGTERM)
    assert main(["info"]) == 143
    assert capsys.readouterr().err.startswith("ended by SIGTERM; the same command goes on")
    assert signal.getsignal(signal.SIGTERM) == before


