"""Where a result came from: files by their contents, versions, the machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax

__all__ = ["fingerprint", "is_file", "machine", "versions"]


def is_file(path: Any) -> bool:
    """Whether a setting names a file that is there."""
    return isinstance(path, str) and path != "" and Path(path).is_file()


def fingerprint(path: Path) -> dict[str, str]:
    """What identifies a file's content."""
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


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
