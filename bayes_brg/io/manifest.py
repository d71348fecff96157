"""The manifest of a run: what it may hold, its seal, its copy, and what each stage's files must be."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..core.files import MIB, amount, check_name, inside, open_regular, plain, seal, short, unseal, write_file

__all__ = ["ADDRESS", "COPY", "FORMAT", "MANIFEST", "damage", "fault_of", "jsonable", "open_recorded", "read_manifest",
           "record", "record_anew", "recorded", "write_json", "write_manifest"]

FORMAT = 3  # to be raised when a file's meaning changes: runs of a format that is not read are refused
READ = (2, FORMAT)  # of format 2 the files have no checksums
MANIFEST = "manifest.json"
COPY = ".manifest.json"
WHOLE = 512 * MIB  # files up to here are read at once; larger ones are checked first and then read from the same handle
HEX = re.compile(r"[0-9a-f]{64}")
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # where an object lies in memory, which is elsewhere the next time


# -- JSON -----------------------------------------------------------------------------------------------------
def jsonable(value: Any) -> Any:
    """`value` in terms of JSON: arrays as lists, callables by name."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "__array__"):
        return jsonable(np.asarray(value).tolist())
    if (name := getattr(value, "__qualname__", None)) is not None:
        return name
    if type(value).__repr__ is object.__repr__ and hasattr(value, "__dict__"):  # such a repr says nothing of its parts
        return f"{type(value).__qualname__}({', '.join(f'{k}={jsonable(v)!r}' for k, v in vars(value).items())})"
    return ADDRESS.sub("", repr(value))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all; numbers that JSON cannot hold (NaN, infinity) become null."""
    write_file(path, (json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n").encode())


def write_manifest(root: Path, manifest: Mapping[str, Any]) -> None:
    """Write a run's manifest, sealed, and then its copy."""
    content = seal(jsonable(manifest))
    for name in (MANIFEST, COPY):
        write_file(root / name, content, root=root)


# -- what a manifest may hold ---------------------------------------------------------------------------------
def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_text, value.values()))


def _settings(value: Any) -> bool:
    return isinstance(value, dict) and ("seed" not in value or _whole(value["seed"]))


def _methods(value: Any) -> bool:
    return (isinstance(value, list) and bool(value) and all(_text(m) and m.replace("_", "").isalnum() for m in value)
            and len(set(value)) == len(value) and all(len(m) <= 100 for m in value))


def _digest(value: Any) -> bool:
    return isinstance(value, dict) and _text(value.get("sha256")) and HEX.fullmatch(value["sha256"]) is not None


def _record(value: Any) -> bool:
    return (_digest(value) and _whole(value.get("size")) and _text(value.get("content", ""))
            and ("next" not in value or _record(value["next"])))


def _files(value: Any) -> bool:
    return isinstance(value, dict) and all(_record(r) and _file_name(n) for n, r in value.items())


def _file_name(name: str) -> bool:
    """Whether a name is that of a file in the run's directory or in its figures'."""
    parts = name.split("/")
    if len(parts) > 2 or (len(parts) == 2 and parts[0] != "figures"):
        return False
    try:
        return bool([check_name(p, "a file") for p in parts])
    except ValueError:
        return False


def _stage(value: Any) -> bool:
    return (isinstance(value, dict) and _seconds(value.get("seconds")) and _text(value.get("ended", ""))
            and _texts(value.get("versions", {})) and _files(value.get("files", {})))


def _result(value: Any) -> bool:
    return (isinstance(value, dict) and all(_whole(value.get(k, 0)) for k in ("num_diverged", "num_members",
                                                                              "num_unstable"))
            and _text(value.get("critical_scale_text", "")))


def _each(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


SCHEMA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "settings": (_settings, "an object whose seed, if any, is a whole number"),
    "methods": (_methods, "a list of names of letters, digits and underscores, each once"),
    "stages": (_each(_stage), "an object of stages, each with its seconds and its files, which have a size, a SHA-256 "
                              "and a name in the run's directory"),
    "results": (_each(_result), "an object of results, each with counts and texts"),
    "finished": (lambda v: isinstance(v, bool), "true or false"),
    "weights": (lambda v: isinstance(v, bool), "true or false"),
    "options": (lambda v: isinstance(v, dict), "an object"),
    "key": (lambda v: isinstance(v, dict), "an object"),
    "platform": (lambda v: isinstance(v, dict), "an object"),
    "versions": (_texts, "an object of texts"),
    "captions": (_texts, "an object of texts"),
    "source": (lambda v: v is None or _digest(v), "null or a SHA-256"),
    "data": (_digest, "a SHA-256"),
    "imports": (_each(_text), "an object of texts"),
    "accepted": (lambda v: isinstance(v, list) and all(map(_text, v)), "a list of texts"),
    "file": (_text, "text"),
    "precision": (lambda v: v in ("float32", "float64"), "float32 or float64"),
}


def check_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """Refuse a manifest whose parts are not what they must be, the first of them by name."""
    said = f"{plain(str(path))} is not a run's manifest: "
    missing = [k for k in ("format", "experiment", "settings", "methods", "stages") if k not in manifest]
    if missing:
        raise ValueError(f"{said}it lacks {', '.join(missing)}")
    if manifest["format"] not in READ or isinstance(manifest["format"], bool):
        raise ValueError(f"{plain(str(path.parent))} has run format {short(manifest['format'])}; this version reads "
                         f"format {' and '.join(map(str, READ))}: run the experiment again into another directory")
    check_name(manifest["experiment"], f"{said}experiment")
    for name, (check, expected) in SCHEMA.items():
        if name in manifest and not check(manifest[name]):
            raise ValueError(f"{said}{name} must be {expected}, got {short(json.dumps(manifest[name]), 100)}")
    for name in ("results", "captions"):
        others = set(manifest.get(name, {})) - set(manifest["methods"])
        if name == "results" and others:
            raise ValueError(f"{said}results are of methods that it does not name: {short(min(others))}")


def read_manifest(path: Path, *, mend: bool = False) -> dict[str, Any]:
    """Read a run's manifest, or say why the path is not a run.

    With `mend`, a manifest that is damaged or gone is taken from its copy, with a warning.
    """
    shown = plain(str(path))
    if not path.exists():
        raise FileNotFoundError(f"no such run: {shown}")
    if not path.is_dir():
        raise NotADirectoryError(f"{shown} is a file; a run is a directory with a {MANIFEST}")
    copied = (path / COPY).is_file()
    try:
        if not (path / MANIFEST).exists():
            raise FileNotFoundError(f"{shown} is not a run: it has no {MANIFEST}")
        return _read(path, MANIFEST)
    except (ValueError, OSError) as error:
        if not copied or _unread(error):
            raise
        try:
            copy = _read(path, COPY)
        except (ValueError, OSError):
            raise error from None
        if not mend:
            raise type(error)(f"{error}; run the experiment again into the same directory (bayes-brg run), which mends "
                              "it from its copy") from None
        warnings.warn(f"{error}; it is mended from its copy", UserWarning, stacklevel=3)
        return copy


def _unread(error: Exception) -> bool:
    """Whether a manifest is whole, and refused for what it says."""
    return "is not a run's manifest" in str(error) or "has run format" in str(error)


def _read(root: Path, name: str) -> dict[str, Any]:
    path = inside(root, name)
    try:
        manifest = unseal(path, lambda value: value.get("format") == FORMAT)
    except OSError as error:
        raise ValueError(f"{plain(str(path))} cannot be read: {error.strerror}") from None
    check_manifest(manifest, path)
    return manifest


# -- files by their bytes -------------------------------------------------------------------------------------
def record(content: bytes | memoryview, content_digest: str | None = None) -> dict[str, Any]:
    """What identifies a file: ``sha256`` and ``size`` in bytes; ``content``: the digest of its numbers alone."""
    found = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    return found if content_digest is None else found | {"content": content_digest}


def recorded(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Records of all files of the stages that are done, by name."""
    return {name: found for stage in manifest["stages"].values() for name, found in stage.get("files", {}).items()}


def _choices(found: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield found
    if "next" in found:  # what was to take its place when the process ended
        yield found["next"]


def fault_of(root: Path, name: str, found: Mapping[str, Any], deep: bool = True) -> str | None:
    """What is wrong with a file; None where it is what was written. Its bytes are looked at where `deep`."""
    path = root / name
    try:
        file, size = open_regular(inside(root, name))
    except FileNotFoundError:
        return f"{plain(str(path))} is missing"
    except OSError as error:
        return f"{plain(str(path))} cannot be read ({error.strerror})"
    except ValueError as error:
        return str(error)
    with file:
        sizes = [c["size"] for c in _choices(found)]
        if size not in sizes:
            return f"{plain(str(path))} is damaged: it has {size} bytes, and had {sizes[0]} when it was written"
        if deep and _hash(file) not in [c["sha256"] for c in _choices(found)]:
            return (f"{plain(str(path))} is damaged: its {size} bytes are not those that were written (its SHA-256 is "
                    "another)")
    return None


def _hash(file: BinaryIO) -> str:
    whole = hashlib.sha256()
    while block := file.read(4 * MIB):
        whole.update(block)
    return whole.hexdigest()


def damage(root: Path, manifest: Mapping[str, Any], *, deep: bool = True, missing: bool = True) -> dict[str, str]:
    """Faults of a run's files, by name; those that are missing are named where `missing`."""
    found = {name: fault_of(root, name, one, deep) for name, one in recorded(manifest).items()
             if missing or (root / name).is_symlink() or (root / name).exists()}
    return {name: fault for name, fault in found.items() if fault is not None}


def record_anew(root: Path) -> None:
    """Write down a run's files as they are now: for those that were changed on purpose."""
    manifest = read_manifest(root)
    for stage in manifest["stages"].values():
        for name in stage.get("files", {}):
            if (root / name).exists():
                stage["files"][name] = record(inside(root, name).read_bytes())
    write_manifest(root, manifest)


def remedy(root: Path, manifest: Mapping[str, Any]) -> str:
    """How a bad file is made anew."""
    settings = manifest["settings"]
    file, place, target = (short(shlex.quote(str(text)), 200) for text in
                           (manifest.get("file", "FILE"), root, settings.get("target", "")))
    of = f" --target {target}" if settings.get("target") and settings.get("data") else ""
    return (f"run the experiment again into the same directory, bayes-brg run {file}{of} --out {place}, with the same "
            "settings: it makes that file anew, from the same key")


def open_recorded(root: Path, name: str, manifest: Mapping[str, Any], limit: int | None = None) -> BinaryIO:
    """A file of a run for reading: what is read has the size and SHA-256 that the manifest says.

    Raises
    ------
    FileNotFoundError, ValueError
        If it is missing, damaged, or larger than `limit` bytes.
    """
    files, path = recorded(manifest), inside(root, name)
    found = files.get(name)
    file, size = open_regular(path)
    try:
        if limit is not None and size > limit:
            raise ValueError(f"{plain(str(path))} has {amount(size)}, more than such a file ever has ({amount(limit)})")
        whole: BinaryIO = file
        if size <= WHOLE:
            content = file.read(size + 1)
            file.close()
            whole, size = io.BytesIO(content), len(content)
        if found is not None:
            sums = [(c["size"], c["sha256"]) for c in _choices(found)]
            if (size, _hash(whole)) not in sums:
                fault = fault_of(root, name, found) or f"{plain(str(path))} is damaged"
                raise ValueError(f"{fault}; {remedy(root, manifest)}")
            whole.seek(0)
        return whole
    except BaseException:
        file.close()
        raise
