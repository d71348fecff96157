"""Runs from elsewhere, made to do harm: nothing outside their directory is read or written, nothing is run."""

import io
import json
import os
import pathlib
import re
import resource
import shutil
import sys
import warnings

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import bayes_brg as brg
from bayes_brg import plots
from bayes_brg.cli import main
from bayes_brg.core import files
from bayes_brg.io import manifest as manifests
from bayes_brg.io import netcdf, store

CANARY = "what nobody may read"
WATCHED: list[tuple[str, str]] | None = None
OWN = tuple(os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, pathlib.Path(brg.__file__).parents[1], "/proc",
                                          "/dev/null", "/usr/share", "/usr/lib", os.path.expanduser("~/.cache"),
                                          os.path.expanduser("~/.config"), os.environ["JAX_COMPILATION_CACHE_DIR"]))


def watch(event, arguments):
    """What Python does with files and processes while `WATCHED` is a list."""
    if WATCHED is None:
        return
    if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect"):
        WATCHED.append((event, str(arguments)[:200]))
    elif event in ("open", "os.mkdir", "os.remove", "os.rename", "os.symlink", "os.rmdir", "os.truncate"):
        for path in arguments[:2] if event == "os.rename" else arguments[:1]:
            if isinstance(path, (str, bytes, os.PathLike)):
                WATCHED.append((event, os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(path))))
                                + "/" + os.path.basename(os.fsdecode(path))))


sys.addaudithook(watch)


def small(run=None):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    return figure


def readout(model, x, y, key, settings):
    return brg.readout_posterior(model, x, y, key=key, num_samples=40)


X = jnp.linspace(-1, 1, 12)[:, None]
EXPERIMENT = brg.Experiment(
    "tiny", lambda s: brg.mlp((3,)), lambda s, key: brg.Data(X, X, X, X), None, {"a": readout, "b": readout},
    flow={"cutoffs": [0, 1e9]}, extras=lambda run, flows: {"scores": pd.DataFrame({"method": ["a"], "rmse": [1.0]})})


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "run_figures", lambda run: {"phi_moments": small()})
        path = EXPERIMENT.run(tmp_path_factory.mktemp("honest") / "tiny", progress_bar=False).path
    assert main(["info", str(path)]) == 0  # what is imported for the first time is so before it is watched
    return path


@pytest.fixture
def stranger(honest, tmp_path):
    """A copy of an honest run, beside something that is none of its business."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text(CANARY)
    shutil.copytree(honest, tmp_path / "place" / "run")
    return tmp_path / "place" / "run"


def rewrite(run, change):
    """A manifest whose seal is whole, whatever it says."""
    held = json.loads((run / store.MANIFEST).read_text())
    change(held)
    for name in (store.MANIFEST, store.COPY):
        (run / name).write_bytes(files.seal(held))


def setting(*keys, to):
    def change(held):
        for key in keys[:-1]:
            held = held[key]
        held[keys[-1]] = to
    return lambda run: rewrite(run, change)


def renamed(method):
    def change(held):
        text = json.dumps(held).replace('"b"', json.dumps(method)).replace("posterior b", "posterior c")
        held.clear()
        held.update(json.loads(text))
    return lambda run: rewrite(run, change)


def recorded_as(name):
    digest = manifests.record(CANARY.encode())
    return lambda run: rewrite(run, lambda held: held["stages"]["summary"]["files"].update({name: digest}))


def raw(content):
    return lambda run: [(run / n).write_bytes(content) for n in (store.MANIFEST, store.COPY)]


MANIFESTS = {
    **{f"method {ascii(m)[:20]}": renamed(m) for m in (
        "../../../x", "a/b", "..", "x\0", "\x1b[2J", "/etc/passwd", "C:\\x", "a" * 10**6, "", "\u202eevil", " ")},
    **{f"experiment {ascii(n)[:20]}": setting("experiment", to=n) for n in (
        "../x", "/etc", "C:\\x", "\x1b]0;owned\x07", "", 3, None, ["a"], "a\nb", ".ssh", "x" * 10**5)},
    **{f"file {ascii(n)[:24]}": recorded_as(n) for n in (
        "../../outside/secret", "/etc/passwd", "figures/../../x", "..\\x", "a\0.csv", "sub/x.csv", "figures/a/b", "",
        "~/x", "C:x.csv")},
    "settings list": setting("settings", to=[1]), "seed text": setting("settings", "seed", to="1; rm -rf"),
    "seed below 0": setting("settings", "seed", to=-1), "seed beyond": setting("settings", "seed", to=10**30),
    "stages list": setting("stages", to=["data"]), "seconds text": setting("stages", "data", "seconds", to="9"),
    "seconds beyond": setting("stages", "data", "seconds", to=1e300),
    "no files": setting("stages", "data", "files", to=7),
    "size below 0": setting("stages", "data", "files", "data.nc", "size", to=-5),
    "size beyond": setting("stages", "data", "files", "data.nc", "size", to=10**40),
    "sum no text": setting("stages", "data", "files", "data.nc", "sha256", to=7),
    "sum short": setting("stages", "data", "files", "data.nc", "sha256", to="ab"),
    "next no record": setting("stages", "data", "files", "data.nc", "next", to="ab"),
    "results of others": setting("results", "../x", to={}),
    "counts text": setting("results", "a", "num_members", to="\x1b"),
    "captions list": setting("captions", to=[]), "captions numbers": setting("captions", "x", to=3),
    "many methods": setting("methods", to=[f"m{i}" for i in range(10**5)] + ["m0"]),
    "no methods": setting("methods", to=[]), "twice": setting("methods", to=["a", "a"]),
    "format true": setting("format", to=True), "format text": setting("format", to="3"),
    "format none": setting("format", to=None),
    "options deep": raw(b'{"options": ' + b"[" * 10**5), "huge number": raw(b'{"format": ' + b"9" * 10**5 + b"}"),
    "not a number": raw(b'{"format": NaN}'), "huge": raw(b" " * (2**24 + 1)), "no json": raw(b"\x80\x04cos\nsystem\n."),
}


def looked_at(command, run):
    """Exit status, and all that a command did outside a run's directory or with processes."""
    global WATCHED
    WATCHED = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = main([*command, str(run)])
    finally:
        found, WATCHED = WATCHED, None
    inside = (os.path.realpath(run) + "/", *OWN)
    own = os.path.realpath(run)
    return status, [(e, p) for e, p in found if e not in ("open", "os.mkdir", "os.remove", "os.rename") or not (
        p.startswith(inside) or p == own or "/matplotlib" in p or p.endswith(".pyc"))]


def check(run, capsys, commands=(["info"], ["report"], ["compare"]), status=2):
    outside = run.parents[1] / "outside"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for command in commands:
        got, done = looked_at(command, run)
        out, err = capsys.readouterr()
        assert got in (status if isinstance(status, tuple) else (status,)), (command, err)
        assert done == [], command
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out + err) and CANARY not in out + err
        assert len(err) < 3000 and err.count("\n") <= 1
    assert [p.name for p in outside.iterdir()] == ["secret"] and (outside / "secret").read_text() == CANARY
    assert {p.name for p in run.parent.iterdir()} == {"run"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # kB
    return err


@pytest.mark.parametrize("kind", list(MANIFESTS))
def test_hostile_manifests(kind, stranger, capsys):
    MANIFESTS[kind](stranger)
    assert "manifest.json" in check(stranger, capsys) or "run format" in check(stranger, capsys)


def linked(name, target="outside/secret"):
    def change(run):
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(run.parents[1] / target)
        return run
    return change


def replaced(name, make):
    """A file of a run with other bytes, whose checksum is right."""
    def change(run):
        content = make(run)
        (run / name).write_bytes(content)
        one = manifests.record(content)
        rewrite(run, lambda held: [s["files"].update({name: one}) for s in held["stages"].values()
                                   if name in s["files"]])
    return change


def hdf5(make):
    def content(run):
        out = io.BytesIO()
        with h5py.File(out, "w") as file:
            make(file, run)
        return out.getvalue()
    return content


def outside_data(file, run):
    secret = run.parents[1] / "outside" / "secret"
    file.create_dataset("phi", (5,), "u1", external=[(str(secret), 0, 5)])


def changed(name, change):
    return lambda run: bytes(netcdf.to_bytes({None: change(xr.load_dataset(run / name, engine="h5netcdf"))}))


FILES = {
    "a link to a secret": linked("summary.csv"), "a flow elsewhere": linked("flow.nc"),
    "a posterior elsewhere": linked("posterior.nc"), "a manifest elsewhere": linked(store.MANIFEST),
    "a pipe": lambda run: [(run / "flow.nc").unlink(), os.mkfifo(run / "flow.nc")],
    "a device": linked("flow.nc", "../../../../../../../../dev/zero"),
    "data elsewhere": replaced("flow.nc", hdf5(outside_data)),
    "a link in HDF5": replaced("flow.nc", hdf5(lambda f, run: f.__setitem__("phi", h5py.ExternalLink("/x.h5", "/a")))),
    "a bomb": replaced("flow.nc", hdf5(lambda f, run: f.create_dataset(
        "phi", data=np.zeros(4 * 10**7, np.float32), compression="gzip"))),
    "a claim": replaced("flow.nc", hdf5(lambda f, run: f.create_dataset("phi", (2**45,), "f8", chunks=(2**20,)))),
    "no HDF5": replaced("flow.nc", lambda run: b"cos\nsystem\n(S'touch x'\ntR."),
    "no flow": replaced("flow.nc", changed("flow.nc", lambda d: d.drop_vars("phi"))),
    "a foreign likelihood": replaced("flow.nc", changed("flow.nc", lambda d: d.assign_attrs(
        likelihood=json.dumps({"name": "os", "class": "os.system", "fields": {}})))),
    "a law that is none": replaced("flow.nc", changed("flow.nc", lambda d: d.assign_attrs(likelihood=json.dumps(
        {"name": "gaussian", "class": "x", "fields": {"noise": {"law": "util", "numbers": {}}}})))),
    "trees without end": replaced("data.nc", changed("data.nc", lambda d: d.assign_attrs(trees="[" * 10**5))),
    "a table of nothing": replaced("summary.csv", lambda run: b"\0" * 100),
    "a table of columns": replaced("summary.csv", lambda run: b"," * 10**6 + b"\n"),
    "a table that obeys": replaced("summary.csv", lambda run: b"cutoff\n\x1b[2J\x1b]0;owned\x07\n"),
}
SOFT = {
    "scores that obey": replaced("scores.csv", lambda run: b"method,rmse\n\x1b[2J\x07<script>alert(1)</script>,1\n"),
    "settings that obey": setting("settings", "word", to="\x1b[2J\u202e<script>"),
    "a command that obeys": setting("file", to="x.py\x1b[2J; rm -rf ~ #<script>"),
    "a caption that obeys": setting("captions", "x", to="<script>\x1b[2J"),
    "a file that is none of it": lambda run: (run / "own.csv").write_text(f"a\n{CANARY}\n"),
    "a link that is none of it": linked("own.csv"), "a report elsewhere": linked("report.html"),
    "an owner elsewhere": linked(".owner"),
    "figures of no record": lambda run: (run / "figures" / "x.png").write_bytes(b"x"),
}


@pytest.mark.parametrize("kind", list(FILES))
def test_hostile_files(kind, stranger, capsys):
    FILES[kind](stranger)
    check(stranger, capsys, (["info"],), status=(0, 2))
    read = (lambda run: run.flows, lambda run: run.posteriors, lambda run: run.summaries, lambda run: run.inputs("x"))
    failed = []
    for one in read:
        try:
            one(brg.load_run(stranger, verify=False))
        except (ValueError, FileNotFoundError) as error:
            failed.append(str(error))
    assert len(failed) < 4 or "manifest" in kind
    assert all("run" in text and len(text) < 2000 and CANARY not in text for text in failed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(FILES))
def test_hostile_files_in_every_command(kind, stranger, capsys):
    FILES[kind](stranger)
    check(stranger, capsys, status=(0, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(SOFT))
def test_words_that_obey_and_files_that_do_not_belong(kind, stranger, capsys):
    SOFT[kind](stranger)
    check(stranger, capsys, (["info"], ["report"]), status=0)
    page = (stranger / "report.html").read_text()
    assert "<script>" not in page and CANARY not in page and not (stranger / "report.html").is_symlink()


def test_folders_that_lead_out_are_not_written_into(stranger, capsys):
    linked("comparisons", "outside")(stranger)
    assert "comparisons" in check(stranger, capsys, (["compare"],)) 
    linked("figures", "outside")(stranger)
    for folder in ("comparisons", "figures"):
        with pytest.raises(ValueError, match="leads out of"):
            files.inside(stranger, f"{folder}/x")
    with pytest.raises(ValueError, match="leads out of"):
        EXPERIMENT.run(stranger, progress_bar=False)
    check(stranger, capsys, (["info"],), status=0)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"columns": [{"kind": "numbers"}]}', '{"columns": 3}',
                                     '{"columns": [{"kind": "os.system"}]}', "[" * 10**5, "\0"])
def test_hostile_encoders(content, stranger):
    (stranger / "encoder.json").write_text(content)
    one = manifests.record(content.encode())
    rewrite(stranger, lambda held: held["stages"]["data"]["files"].update({"encoder.json": one}))
    with pytest.raises(ValueError, match="encoder.json"):
        brg.Encoder.load(stranger)


TABLES = {
    "b.csv.gz": lambda: __import__("gzip").compress(b"a,y\n" + b"0,0\n" * (18 * 10**6)),
    "b.csv.bz2": lambda: __import__("bz2").compress(bytes(7 * 10**7)),
    "b.csv.xz": lambda: __import__("lzma").compress(bytes(7 * 10**7)),
    "t.csv.gz": lambda: __import__("gzip").compress(b"a,y\n1,2\n")[:-6],
    "a.npz": lambda: packed(b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (2**40,), }"
                            .ljust(117) + b"\n"),
    "o.npz": lambda: packed(objects()),
}


def packed(content):
    import zipfile
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        target.writestr("y.npy", content)
    return out.getvalue()


class Harm:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def objects():
    out = io.BytesIO()
    np.save(out, np.array([Harm()], dtype=object), allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize("name", list(TABLES))
def test_hostile_tables(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(TABLES[name]())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=f"{name} cannot be read as a table"):
        brg.load_table(name, "y")
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@pytest.mark.slow
def test_degenerate_numbers_stay_reported_from_a_run(stranger):
    """A flow whose φ or loss is no number, or all the same, makes no verdict hold."""
    from bayes_brg.runs import verdicts

    def spoil(value):
        def change(flow):
            flow = flow.copy(deep=True)
            flow["phi"][:] = value
            flow["loss"][:] = value
            return flow
        return change

    for value in (np.nan, np.inf, 0.0):
        replaced("flow.nc", changed("flow.nc", spoil(value)))(stranger)
        run = brg.load_run(stranger)
        assert not verdicts.gaussian(run.flow["phi"].isel(cutoff=0, point=0, output=0).values, independent=True).holds
        page = brg.report(run).read_text()
        assert "nan" in page.lower() or "not " in page


@pytest.mark.slow
def test_the_honest_run_is_read(stranger, capsys):
    check(stranger, capsys, (["info"], ["info", "--verify"], ["report"], ["compare"]), status=0)
    assert jax.tree.leaves(brg.load_run(stranger).posterior.samples)
