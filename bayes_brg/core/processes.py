"""Draws shared out over the processes of a job that `jax.distributed` has joined.

Every process runs the same program on the same numbers. Where work goes over draws or chains, each does a part of them
on its own devices, and all get the whole back by one collective of JAX's: what follows cannot tell how many took part.
"""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["count", "gathered", "mine", "same_everywhere"]


def count() -> int:
    """Processes of the job; 1 where none was joined."""
    return jax.process_count()


def mine(tree: Any, what: str = "the work", shared: Any = ()) -> Any:
    """This process's part of arrays with leading axis T: ⌈T/P⌉ in order, the last repeated where they run out.

    A collective: what the processes were given is compared, by shapes, the first and last entries, and `shared`.

    Raises
    ------
    ValueError
        If it is not the same in all of them.
    """
    total = jax.tree.leaves(tree)[0].shape[0]
    ends = jax.tree.map(lambda a: a[np.array([0, total - 1])], tree)
    if not same_everywhere(_bytes((what, total, ends, shared))):
        raise ValueError(f"the {count()} processes of this job came to {what} with other numbers; each must run the "
                         "same program on the same data and keys, and none may do work of its own in between")
    size = -(-total // count())
    index = np.minimum(np.arange(size) + size * jax.process_index(), total - 1)
    return jax.tree.map(lambda a: a[index], tree)


def _bytes(tree: Any) -> bytes:
    """Shapes, types and bytes of all leaves."""
    parts = []
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        a = np.asarray(leaf)
        parts += [f"{a.dtype}{a.shape}".encode(), a.tobytes()]
    return b"".join(parts)


def gathered(tree: Any, total: int) -> Any:
    """The parts of all processes put together, leading axis `total`: a collective, which all must reach."""
    from jax.experimental import multihost_utils

    def whole(a):
        impl = jax.random.key_impl(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else None
        every = multihost_utils.process_allgather(a if impl is None else jax.random.key_data(a), tiled=True)[:total]
        return jnp.asarray(every) if impl is None else jax.random.wrap_key_data(jnp.asarray(every), impl=impl)

    return jax.tree.map(whole, tree)


def same_everywhere(value: bytes) -> bool:
    """Whether all processes have the same bytes: a collective."""
    from jax.experimental import multihost_utils

    digest = np.frombuffer(hashlib.sha256(value).digest(), np.uint8).astype(np.int32)
    every = np.asarray(multihost_utils.process_allgather(digest))
    return bool((every == every[:1]).all())
