"""Draws written in blocks with the sampler's state, so that a stopped run goes on as if it had not stopped."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FORMAT = 1


class Checkpoint:
    """A directory: ``run.json`` says what the run is, ``draws_*.npz`` hold its blocks, ``state.npz`` where it stands.

    Every file is written beside its place and moved there, the state after the block it follows: whenever the run
    stops, the directory is whole.
    """

    def __init__(self, directory: str | os.PathLike, identity: dict):
        self.directory = Path(directory)
        identity = json.loads(json.dumps({"format": FORMAT, **identity}))
        self.directory.mkdir(parents=True, exist_ok=True)
        manifest = self.directory / "run.json"
        if not manifest.exists():
            others = [p.name for p in self.directory.iterdir() if not p.name.endswith(".tmp")]
            if others:
                raise ValueError(f"checkpoint directory {self.directory} holds {others[0]!r} and no run; "
                                 "pass an empty or a new directory")
            self._write(manifest, json.dumps(identity, indent=1).encode())
            return
        found = json.loads(manifest.read_text())
        for name in {**found, **identity}:
            if found.get(name) != identity.get(name):
                raise ValueError(f"checkpoint directory {self.directory} holds another run: its {name} is "
                                 f"{found.get(name)!r}, this one's {identity.get(name)!r}; pass another directory, "
                                 "or the arguments of the run to go on with")

    def load(self, keys: jax.Array, template: Any) -> tuple[int, int, list[tuple[int, int]], Any] | None:
        """Warm-up steps and draws done, the blocks, and the state in the form of `template`; None at the start."""
        path = self.directory / "state.npz"
        if not path.exists():
            return None
        with np.load(path) as file:
            stored = [file[f"leaf_{i}"] for i in range(len(file.files) - 2)]
            (warm, done), blocks = file["progress"], file["blocks"]
        leaves, treedef = jax.tree.flatten(template)
        impl = jax.random.key_impl(keys)
        state = [jax.random.wrap_key_data(jnp.asarray(a), impl=impl) if _is_key(leaf) else jnp.asarray(a, leaf.dtype)
                 for a, leaf in zip(stored, leaves, strict=True)]
        return int(warm), int(done), [(int(a), int(b)) for a, b in blocks], jax.tree.unflatten(treedef, state)

    def save(self, state: Any, warm: int, done: int, blocks: list[tuple[int, int]]) -> None:
        leaves = [np.asarray(jax.random.key_data(a) if _is_key(a) else a) for a in jax.tree.leaves(state)]
        arrays = {f"leaf_{i}": a for i, a in enumerate(leaves)}
        self._write_npz(self.directory / "state.npz", progress=np.array([warm, done]),
                        blocks=np.array(blocks, int).reshape(-1, 2), **arrays)

    def add(self, first: int, samples: dict, stats: dict) -> None:
        """Write the block of draws that begins with draw `first`."""
        named = {f"sample:{k}": np.asarray(v) for k, v in samples.items()}
        named |= {f"stat:{k}": np.asarray(v) for k, v in stats.items()}
        self._write_npz(self._block(first), names=np.array(list(named)),
                        **{f"array_{i}": v for i, v in enumerate(named.values())})

    def gather(self, blocks: list[tuple[int, int]], count: int) -> tuple[dict, dict]:
        """The first `count` draws, from disk: samples and stats."""
        parts: dict[str, list] = {}
        for first, _ in blocks:
            with np.load(self._block(first)) as file:
                for i, name in enumerate(file["names"]):
                    parts.setdefault(str(name), []).append(file[f"array_{i}"])
        whole = {k: jnp.asarray(np.concatenate(v, axis=1)[:, :count]) for k, v in parts.items()}
        return tuple({k.split(":", 1)[1]: v for k, v in whole.items() if k.startswith(kind)}  # type: ignore[return-value]
                     for kind in ("sample:", "stat:"))

    def _block(self, first: int) -> Path:
        return self.directory / f"draws_{first:09d}.npz"

    def _write_npz(self, path: Path, **arrays) -> None:
        temporary = path.with_suffix(".npz.tmp")
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def _write(self, path: Path, content: bytes) -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(content)
        os.replace(temporary, path)


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
