"""Where a result came from: files by their contents, versions, the machine."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import platform
import sys
import sysconfig
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

__all__ = ["NUMBERS", "fingerprint", "imported", "is_file", "machine", "named", "versions", "warn_of_change"]

NUMBERS = ("bayes_brg", "jax", "jaxlib", "numpyro", "numpy", "scipy", "optax", "blackjax")
"""Packages of which another version may give other numbers."""


def is_file(path: Any) -> bool:
    """Whether a setting names a file that is there."""
    return isinstance(path, str) and path != "" and Path(path).is_file()


def named(source: str | Path, settings: Mapping[str, Any]) -> str:
    """The file of a run as the command that runs it again names it: of our own templates, the table that was given."""
    path = Path(source)
    if settings.get("data") and path.parent == Path(__file__).parent / "templates":
        return str(settings["data"])
    return path.name if path.is_absolute() else path.as_posix()


def warn_of_change(path: str | Path, manifest: Mapping[str, Any], stacklevel: int = 3) -> None:
    """Say that a file is not the one by which a run was made: what it makes anew may be something else."""
    held = manifest.get("source")
    if held is not None and is_file(str(path)) and fingerprint(Path(path)) != held:
        warnings.warn(f"{path} is not the file by which the run was made, or has changed since (its SHA-256 is "
                      "another): what is made anew may not be what it was", UserWarning, stacklevel=stacklevel)


def fingerprint(path: Path) -> dict[str, str]:
    """What identifies a file's content."""
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def imported(path: Path) -> dict[str, str]:
    """SHA-256 of the files that a Python file imports, and those they import, but for installed packages.

    Found by the words of the files: what is imported by a name that is computed is not among them.
    """
    folder, found, stack = path.resolve().parent, {}, [path.resolve()]  # type: Path, dict[str, str], list[Path]
    package = Path(__file__).resolve().parents[1]
    installed = [Path(p).resolve() for p in sysconfig.get_paths().values()] + [package]
    seen = {path.resolve()}
    while stack:
        for name in _named(stack.pop()):
            file = _file_of(name, folder)
            if file is None or file in seen or any(file.is_relative_to(p) for p in installed):
                continue
            seen.add(file)
            stack.append(file)
            found[os.path.relpath(file, folder).replace(os.sep, "/")] = fingerprint(file)["sha256"]
    return dict(sorted(found.items()))


def _named(path: Path) -> set[str]:
    """Modules that a file names in its imports, with those they lie in."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (path.stem if node.level else "") if node.module is None else node.module
            names |= {base, *(f"{node.module}.{a.name}" if node.module else a.name for a in node.names)}
    return {".".join(n.split(".")[:i + 1]) for n in names for i in range(n.count(".") + 1)}


def _file_of(name: str, folder: Path) -> Path | None:
    """The Python file of a module: where it was imported from, or beside the file that names it."""
    held = getattr(sys.modules.get(name), "__file__", None)
    at = folder.joinpath(*name.split("."))
    for candidate in ([Path(held)] if held else []) + [at.with_suffix(".py"), at / "__init__.py"]:
        if candidate.suffix == ".py" and candidate.is_file():
            return candidate.resolve()
    return None


def versions() -> dict[str, str]:
    """Versions of this package and what it computes with."""
    from .. import __version__

    names = ("jax", "jaxlib", "numpyro", "arviz", "xarray", "numpy", "scipy", "optax", "blackjax", "matplotlib")
    found = {"bayes_brg": __version__, "python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What it runs on."""
    return {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count(),
            "backend": jax.default_backend(), "devices": [d.device_kind for d in jax.devices()]}
