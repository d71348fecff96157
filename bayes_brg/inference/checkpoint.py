"""Draws written in blocks with the sampler's state, so that a stopped run goes on as if it had not stopped."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.archives import archive, check_mark, load_arrays
from ..core.files import (
    OWNER,
    Owner,
    inside,
    listed,
    make_directory,
    open_regular,
    seal,
    short,
    sweep,
    unseal,
    write_file,
)

FORMAT = 2
MANIFEST = "run.json"


class Checkpoint:
    """A directory: ``run.json`` says what the run is, ``draws_*.npz`` hold its blocks, ``state.npz`` where it stands.

    Every file is written beside its place and moved there, the state after the block it follows: whenever the run
    stops, the directory is whole. Every file knows its own SHA-256. It is a context, in which no other process writes
    there.
    """

    def __init__(self, directory: str | os.PathLike, identity: dict):
        self.directory = Path(directory)
        self.identity = json.loads(json.dumps({"format": FORMAT, **identity}))
        self.mark = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]
        self.owner = Owner(self.directory)

    def __enter__(self) -> Checkpoint:
        manifest = self.directory / MANIFEST
        if not manifest.exists() and self.directory.exists():
            self._check_empty()
        make_directory(self.directory)
        self.owner.__enter__()
        try:
            sweep(self.directory)
            if manifest.exists():
                self._check_same(manifest)
            else:
                self._check_empty()
                write_file(manifest, seal(self.identity), root=self.directory)
        except BaseException:
            self.owner.__exit__()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None = None, error: BaseException | None = None,
                 trace: TracebackType | None = None) -> None:
        self.owner.__exit__(kind, error, trace)

    def _check_empty(self) -> None:
        others = [p.name for p in self.directory.iterdir() if not p.name.endswith(".tmp") and p.name != OWNER]
        if others:
            raise ValueError(f"checkpoint directory {self.directory} holds {listed(map(repr, sorted(others)), 3)} and "
                             "no run; pass an empty or a new directory")

    def _check_same(self, manifest: Path) -> None:
        try:
            found = unseal(inside(self.directory, MANIFEST), lambda value: value.get("format") == FORMAT)
        except ValueError as error:
            raise ValueError(f"{error}; {self._anew()}") from None
        for name in {**found, **self.identity}:
            if found.get(name) != self.identity.get(name):
                raise ValueError(f"checkpoint directory {self.directory} holds another run: its {short(name)} is "
                                 f"{short(repr(found.get(name)), 300)}, this one's "
                                 f"{short(repr(self.identity.get(name)), 300)}; pass another "
                                 "directory, or the arguments of the run to go on with")

    def _anew(self) -> str:
        return f"remove {self.directory}, and the chains begin anew, with the same draws"

    def load(self, keys: jax.Array, template: Any) -> tuple[int, int, list[tuple[int, int]], Any] | None:
        """Warm-up steps and draws done, the blocks, and the state in the form of `template`; None at the start."""
        path = self.directory / "state.npz"
        if not path.exists():
            return None
        held = self._read(path)
        leaves, treedef = jax.tree.flatten(template)
        try:
            (warm, done), blocks = held["progress"], [(int(a), int(b)) for a, b in held["blocks"]]
            stored = [held[f"leaf_{i}"] for i in range(len(held) - 2)]
            impl = jax.random.key_impl(keys)
            state = [jax.random.wrap_key_data(jnp.asarray(a), impl=impl) if _is_key(leaf) else
                     jnp.asarray(a, leaf.dtype) for a, leaf in zip(stored, leaves, strict=True)]
            if [a.shape for a in state] != [leaf.shape for leaf in leaves]:
                raise ValueError("shapes")
        except (KeyError, ValueError, TypeError):
            raise ValueError(f"{path} is the state of another sampler; {self._anew()}") from None
        return int(warm), int(done), blocks, jax.tree.unflatten(treedef, state)

    def save(self, state: Any, warm: int, done: int, blocks: list[tuple[int, int]]) -> None:
        leaves = [np.asarray(jax.random.key_data(a) if _is_key(a) else a) for a in jax.tree.leaves(state)]
        arrays = {f"leaf_{i}": a for i, a in enumerate(leaves)}
        self._write(self.directory / "state.npz", progress=np.array([warm, done]),
                    blocks=np.array(blocks, int).reshape(-1, 2), **arrays)

    def add(self, first: int, samples: dict, stats: dict) -> None:
        """Write the block of draws that begins with draw `first`."""
        named = {f"sample:{k}": np.asarray(v) for k, v in samples.items()}
        named |= {f"stat:{k}": np.asarray(v) for k, v in stats.items()}
        self._write(self._block(first), names=np.array(list(named)),
                    **{f"array_{i}": v for i, v in enumerate(named.values())})

    def gather(self, blocks: list[tuple[int, int]], count: int) -> tuple[dict, dict]:
        """The first `count` draws, from disk: samples and stats."""
        parts: dict[str, list] = {}
        for first, _ in blocks:
            held = self._read(self._block(first))
            for i, name in enumerate(held["names"]):
                parts.setdefault(str(name), []).append(held[f"array_{i}"])
        whole = {k: jnp.asarray(np.concatenate(v, axis=1)[:, :count]) for k, v in parts.items()}
        return tuple({k.split(":", 1)[1]: v for k, v in whole.items() if k.startswith(kind)}  # type: ignore[return-value]
                     for kind in ("sample:", "stat:"))

    def _block(self, first: int) -> Path:
        return self.directory / f"draws_{first:09d}.npz"

    def _read(self, path: Path) -> dict[str, np.ndarray]:
        """The arrays of a file, which are those that were written."""
        try:
            file, size = open_regular(inside(self.directory, path.name))
            with file:
                content = file.read()
            check_mark(content)
            held = load_arrays(io.BytesIO(content), 2 * size)
            if str(held.pop("whose", whose := f"{path.name} of {self.mark}")) != whose:
                raise ValueError("it is another file, or another run's, in its place")
            return held
        except FileNotFoundError:
            raise ValueError(f"{path} is missing; {self._anew()}") from None
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; {self._anew()}") from None

    def _write(self, path: Path, **arrays: Any) -> None:
        whose = np.array(f"{path.name} of {self.mark}")  # a whole file of another run would be taken for ours
        write_file(path, archive({**arrays, "whose": whose}), root=self.directory)


def _is_key(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jax.dtypes.prng_key)


def digest(tree: Any) -> str:
    """Short hash of a pytree of arrays: types, shapes and values."""
    h = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        a = np.asarray(jax.random.key_data(leaf) if _is_key(jnp.asarray(leaf)) else leaf)
        h.update(f"{a.dtype}{a.shape}".encode())
        h.update(np.ascontiguousarray(a).tobytes())
    return h.hexdigest()[:16]
