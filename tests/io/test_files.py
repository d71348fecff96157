"""Files that are whole or not there: names of temporaries, owners, full disks, seals, archives, NetCDF in memory."""

import errno
import io
import json
import os
import resource
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import xarray as xr

from bayes_brg.core import archives, files
from bayes_brg.io import netcdf


def dead_process():
    """The number of a process that has ended."""
    done = subprocess.Popen(["true"])
    done.wait()
    return done.pid


def names(path):
    return sorted(p.name for p in path.iterdir())


@pytest.fixture
def disk(tmp_path):
    """A function that gives a file system of so many bytes."""
    mounted = []

    def make(size, options=""):
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", str(place)],
                              capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


# -- writing --------------------------------------------------------------------------------------------------
def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a" / "f.txt"
    files.write_file(path, b"one")
    files.write_file(path, b"two")
    assert path.read_bytes() == b"two" and names(path.parent) == ["f.txt"]
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("three")
        assert files.TEMPORARY.fullmatch(temporary.name)
        raise RuntimeError
    assert path.read_bytes() == b"two" and names(path.parent) == ["f.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails_leaves_the_old_file_and_says_why(tmp_path, monkeypatch, call, code):
    path = tmp_path / "f.nc"
    files.write_file(path, b"old")

    def fail(*args, **options):
        raise OSError(code, os.strerror(code))

    if call == "write":
        monkeypatch.setattr(files, "open", fail, raising=False)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(files.WriteError) as error:
        files.write_file(path, b"new" * 1000)
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and names(tmp_path) == ["f.nc"]
    assert error.value.errno == code and str(path) in str(error.value)
    assert ("it needs 3 kB and" in str(error.value) and "is free" in str(error.value)) == (code != errno.EIO)


def test_a_file_size_limit_is_an_error(tmp_path):
    path, limits = tmp_path / "f.nc", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        netcdf.write_datasets(tmp_path / "small.nc", {None: xr.Dataset({"a": ("x", np.zeros(10))})})
        with pytest.raises(files.WriteError, match="f.nc could not be written: it is larger than .* it needs 80"):
            netcdf.write_datasets(path, {None: xr.Dataset({"a": ("x", np.zeros(100_000))})})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["small.nc"]


def test_a_full_disk_is_an_error(disk):
    """Of six sizes, the file fits on some."""
    dataset = {None: xr.Dataset({"a": ("x", np.random.default_rng(0).normal(size=25_000))})}
    fits = []
    for size in ("16k", "64k", "128k", "192k", "512k", "1m"):
        place = disk(size)
        try:
            netcdf.write_datasets(place / "a.nc", dataset)
            fits.append(size)
            assert xr.load_dataset(place / "a.nc", engine="h5netcdf").identical(dataset[None])
        except files.WriteError as error:
            assert "no room on the disk: it needs 2" in str(error) and "is free; make room" in str(error)
            assert names(place) == []
    assert fits == ["512k", "1m"]


def test_places_that_cannot_be_written(disk, tmp_path):
    place = disk("1m")
    (place / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    for make in (lambda: files.write_file(place / "run" / "f", b"a"), files.Owner(place / "run").__enter__,
                 lambda: files.make_directory(place / "new")):
        with pytest.raises(files.WriteError, match=f"make {place}.* writable"):
            make()
    with pytest.raises(files.WriteError, match="has vanished"):
        files.write_file(tmp_path / "gone" / "figures" / "f", b"a", root=tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_directory_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(files.WriteError, match="make .* writable"):
            files.write_file(tmp_path / "f", b"a")
    finally:
        tmp_path.chmod(0o700)


# -- what processes leave -------------------------------------------------------------------------------------
def test_leftovers_of_the_dead_are_cleared_and_those_of_the_living_stay(tmp_path):
    here, dead, me = files.host_name(), dead_process(), os.getpid()
    gone = [f".a.nc~{here}~{dead}~77~0.tmp", f".a.nc~{here}~{me}~1~0.tmp", f".a.nc.{dead}.tmp",
            ".a.nc~elsewhere~1~1~1.tmp"]
    kept = [files.temporary_for(tmp_path / "a.nc").name, f".a.nc~{here}~1~{files.start_of(1)}~3.tmp", "a.nc", ".a.tmp",
            ".b.nc~elsewhere~1~1~1.tmp", ".hidden"]
    for name in gone + kept:
        (tmp_path / name).write_text("x")
    os.utime(tmp_path / gone[3], (0, 0))
    (tmp_path / f".link~{here}~{dead}~7~0.tmp").symlink_to(tmp_path / "a.nc")
    assert {p.name for p in files.sweep(tmp_path)} == set(gone)
    assert set(kept) < set(names(tmp_path)) and not set(gone) & set(names(tmp_path))


def test_one_owner_at_a_time(tmp_path):
    with files.Owner(tmp_path):
        held = json.loads((tmp_path / ".owner").read_text())
        assert held["process"] == os.getpid() and held["host"] == files.host_name()
        with pytest.raises(ValueError, match=rf"is written by process {os.getpid()} on .*, at work since 20"):
            files.Owner(tmp_path).__enter__()
        code = "import pathlib, sys, bayes_brg.core.files as f\nf.Owner(pathlib.Path(sys.argv[1])).__enter__()"
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        assert f"is written by process {os.getpid()}" in other.stderr
    assert names(tmp_path) == []


@pytest.mark.parametrize("locks", [True, False])
def test_the_place_of_a_dead_owner_is_taken_over(tmp_path, monkeypatch, locks):
    if not locks:  # as on some network file systems
        monkeypatch.setattr(files, "_lock", lambda handle: None)
    held = {"process": dead_process(), "host": files.host_name(), "start": 5, "since": "then"}
    for content in ("", "junk", json.dumps(held), json.dumps(held | {"process": os.getpid(), "start": 1})):
        (tmp_path / ".owner").write_text(content)
        with files.Owner(tmp_path):
            assert json.loads((tmp_path / ".owner").read_text())["process"] == os.getpid()
        assert names(tmp_path) == []
    if not locks:
        (tmp_path / ".owner").write_text(json.dumps(held | {"host": "other\x1b[31m"}))
        with pytest.raises(ValueError, match=r"on other\\x1b\[31m, .*if it is gone, remove .*\.owner"):
            files.Owner(tmp_path).__enter__()


def test_owners_that_are_no_file(tmp_path):
    (tmp_path / ".owner").symlink_to("/etc/passwd")
    with pytest.raises(files.WriteError, match="owner could not be written"):
        files.Owner(tmp_path).__enter__()
    (tmp_path / ".owner").unlink()
    os.mkfifo(tmp_path / ".owner")
    with pytest.raises(ValueError, match="no ordinary file"):
        files.Owner(tmp_path).__enter__()


# -- names and words ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "C:x", "a\0", "a\n", "\x1b[2J", "\u202eabc",
                                  "~a", ".hidden", "a" * 200, None, 3, "é" * 100, "\ud800"])
def test_names_that_name_no_file(name):
    with pytest.raises(ValueError, match="text that can name a file"):
        files.check_name(name, "it")


def test_words():
    assert files.plain("a\x1b[31mb\x07\u202ec\nd\t\x9be") == r"a\x1b[31mb\x07\u202ec" + "\nd\t" + r"\x9be"
    assert files.listed(range(3)) == "0, 1, 2" and files.listed(range(99), 2) == "0, 1, … (99 in all)"
    assert len(files.listed(["x" * 10**6] * 9)) < 600
    assert [files.amount(n) for n in (7, 12_345, 3e6, 2e12)] == ["7 bytes", "12.3 kB", "3 MB", "2e+03 GB"]


def test_links_that_lead_out(tmp_path):
    root = tmp_path / "run"
    (root / "sub").mkdir(parents=True)
    (root / "in").symlink_to(root / "sub")
    (root / "out").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    (tmp_path / "via").symlink_to(root)
    assert files.inside(root, "in/f") == root / "in/f" and files.inside(tmp_path / "via", "f")
    for name in ("out/f", "out", "../x", "/etc/passwd", "in/../../x", "loop"):
        with pytest.raises(ValueError, match="leads out of"):
            files.inside(root, name)


# -- JSON that knows itself -----------------------------------------------------------------------------------
def test_every_flipped_bit_of_sealed_json_is_seen(tmp_path):
    path = tmp_path / "m.json"
    content = files.seal({"a": 0.1234567890123456, "b": [1, None, "é\x1b"], "sha256x": "0" * 64})
    path.write_bytes(content)
    assert files.unseal(path)["a"] == 0.1234567890123456
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="m.json"):
            files.unseal(path)


@pytest.mark.parametrize("content", [
    b"", b"[]", b"{", b"null", b"\xff\xfe", b'{"a": NaN}', b'{"sha256": 3}', b'{"sha256": "' + b"0" * 64 + b'"}',
    b"[" * 200_000, b'{"a": ' + b"9" * 10_000 + b"}", b'{"a":' * 100_000, b" " * 2**24 + b" "])
def test_json_that_is_not_ours(tmp_path, content):
    (tmp_path / "m.json").write_bytes(content)
    with pytest.raises(ValueError, match="m.json") as error:
        files.unseal(tmp_path / "m.json")
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.json")
    with pytest.raises(ValueError, match="no ordinary file"):
        files.unseal(tmp_path / "m.json")


# -- archives -------------------------------------------------------------------------------------------------
ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "names": np.array(["x", "yé"]), "none": np.zeros((0, 3)),
          "one": np.array(5, np.int8), "f": np.asfortranarray(np.arange(6).reshape(2, 3)), "flag": np.array([True])}


def test_archives_come_back_and_know_their_bytes():
    content = bytes(archives.archive(ARRAYS))
    archives.check_mark(content)
    for read in (archives.load_arrays(io.BytesIO(content), 10**6), dict(np.load(io.BytesIO(content)))):
        assert set(read) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert read[name].dtype == array.dtype and np.array_equal(read[name], array), name
    for bit in np.random.default_rng(0).integers(8 * len(content), size=200):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="SHA-256 is another"):
            archives.check_mark(damaged)
    for other in (b"", content[:-1], content[:100], b"x" * len(content)):
        with pytest.raises(ValueError, match="SHA-256 is another"):
            archives.check_mark(other)


def header(shape, dtype="<f8", extra=b""):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue() + extra


def packed(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", members.pop("how", zipfile.ZIP_DEFLATED)) as target:
        for name, content in members.items():
            target.writestr(f"{name}.npy", content)
    return out


HOSTILE = {
    "bomb": lambda: packed(a=header((2**24,), extra=bytes(2**27))),
    "declares too much": lambda: packed(a=header((2**40,))),
    "declares too little": lambda: packed(a=header((1,), extra=bytes(800))),
    "negative": lambda: packed(a=header((-1, -8), extra=bytes(64))),
    "objects": lambda: packed(a=header((1,), "|O", b"cos\nsystem\n(S'touch x'\ntR.")),
    "no width": lambda: packed(a=header((2**40,), "|S0")),
    "no array": lambda: packed(a=b"junk"),
    "bzip": lambda: packed(a=header((1,), extra=bytes(8)), how=zipfile.ZIP_BZIP2),
    "code in the header": lambda: packed(a=b"\x93NUMPY\x01\x00" + (60).to_bytes(2, "little")
                                         + b"__import__('os').system('touch x')".ljust(60)),
    "cut": lambda: io.BytesIO(packed(a=header((1,), extra=bytes(8))).getvalue()[:-30]),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_hostile_archives(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError):
        archives.load_arrays(HOSTILE[kind](), 2**26)
    assert names(tmp_path) == []


# -- NetCDF ---------------------------------------------------------------------------------------------------
def test_netcdf_in_memory_is_the_same_file_each_time():
    groups = {None: xr.Dataset({"a": (("x", "y"), np.ones((2, 3)))}, {"x": ["a", "b"]}, {"t": "text"}),
              "g": xr.Dataset({"b": ("z", np.array([np.nan, 1]))})}
    content = bytes(netcdf.to_bytes(groups))
    assert content == bytes(netcdf.to_bytes(groups))
    file = netcdf.Netcdf(io.BytesIO(content), "f")
    assert file.groups == ["g"] and file.read().identical(groups[None]) and file.read("g").identical(groups["g"])
    other = {**groups, "g": groups["g"].assign_attrs(seconds=3.0)}
    assert netcdf.content_digest(other) == netcdf.content_digest(groups)
    assert netcdf.content_digest({**groups, "g": groups["g"].fillna(0)}) != netcdf.content_digest(groups)


def hdf5(make):
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        make(file)
    return out


def external_data(file):
    file.create_dataset("a", (100,), "u1", external=[("/etc/passwd", 0, 100)])


def virtual_data(file):
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "a", (4,))
    file.create_virtual_dataset("a", layout)


def many_texts(file):
    file.create_dataset("a", (10**6,), h5py.string_dtype())
    file.create_dataset("b", data=np.zeros(10_000))


HOSTILE_HDF5 = {
    "external link": (lambda f: f.__setitem__("a", h5py.ExternalLink("/tmp/other.h5", "/a")), "points with 'a'"),
    "soft link": (lambda f: f.__setitem__("a", h5py.SoftLink("/b")), "points with 'a'"),
    "external data": (external_data, "are in another file"),
    "virtual data": (virtual_data, "are in another file"),
    "circle": (lambda f: f.create_group("g").__setitem__("again", f["g"]), "under two names"),
    "never written": (lambda f: f.create_dataset("a", (2**40,), "f8", chunks=(2**20,)), "declares arrays of 8.8e"),
    "compressed": (lambda f: f.create_dataset("a", data=np.zeros(2 * 10**7), compression="gzip"), "declares arrays of"),
    "wide attribute": (lambda f: f.attrs.create("a", shape=(8000,), dtype="f8", data=np.zeros(8000)) or [
        f.create_group(f"g{i}").attrs.create("a", np.zeros(8000)) for i in range(3)], None),
    "texts": (many_texts, "declares arrays of"),
}


@pytest.mark.parametrize("kind", list(HOSTILE_HDF5))
def test_hostile_netcdf(kind):
    make, message = HOSTILE_HDF5[kind]
    source = hdf5(make)
    if message is None:
        assert len(netcdf.Netcdf(source, "f.nc").groups) == 3
        return
    with pytest.raises(ValueError, match=f"f.nc.*{message}"):
        netcdf.Netcdf(source, "f.nc")


def test_many_names_of_a_large_file_are_no_bomb():
    names = [f"place {i}" for i in range(300)]
    whole = xr.Dataset({"a": (("x", "y"), np.ones((300, 1000)))}, {"x": names})
    content = bytes(netcdf.to_bytes({None: whole}))
    assert netcdf.Netcdf(io.BytesIO(content), "f.nc").read().identical(whole)


def test_damaged_netcdf_is_named():
    content = bytes(netcdf.to_bytes({None: xr.Dataset({"a": ("x", np.arange(9))})}))
    for bad in (b"", b"junk", content[:700], content[700:]):
        with pytest.raises(ValueError, match="f.nc is not a NetCDF file that can be read"):
            netcdf.Netcdf(io.BytesIO(bad), "f.nc")
