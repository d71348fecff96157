"""One way to run a function over draws: `jax.lax.map` over small vmapped chunks, sharded over devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from tqdm.auto import tqdm

from . import processes

__all__ = ["largest_divisor", "map_draws", "progress", "quiet"]

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """No progress bars inside, whatever the functions called there are told."""
    token = _QUIET.set(on or _QUIET.get())
    try:
        yield
    finally:
        _QUIET.reset(token)


def progress(iterable=None, *, desc: str, total: int | None = None, show: bool = True, unit: str = "it"):
    """A tqdm bar, quiet when not a terminal or when `show` is False."""
    show = show and not _QUIET.get()
    return tqdm(iterable, desc=desc, total=total, unit=unit, disable=None if show else True, leave=False)


def largest_divisor(n: int, at_most: int) -> int:
    """The largest divisor of n that is at most `at_most`."""
    at_most = max(1, min(n, at_most))
    return max(d for d in range(1, at_most + 1) if n % d == 0)


def default_chunk(work: int) -> int:
    """Draws to vmap at once for a function that touches `work` numbers a draw.

    On a CPU a big vmap falls out of the cache (100 draws of a wide net ran three times slower than chunks of 1 to 4);
    an accelerator wants more.
    """
    budget = 2**16 if jax.default_backend() == "cpu" else 2**26
    return max(1, min(64, budget // max(1, work)))


def _over(fn: Callable, statics: tuple, chunk: int, devices: int, draws: Any, shared: tuple) -> Any:
    def over(draws, shared):
        return jax.lax.map(lambda draw: fn(*statics, draw, *shared), draws, batch_size=chunk if chunk > 1 else None)

    if devices == 1:
        return over(draws, shared)
    mesh = Mesh(np.array(jax.local_devices()[:devices]), ("draw",))
    split, whole = PartitionSpec("draw"), PartitionSpec()
    return jax.shard_map(over, mesh=mesh, in_specs=(split, whole), out_specs=split, check_vma=False)(draws, shared)


# A small job ends before a compiler that thinks hard has begun: half its compile time, at some five times the run time
# of what is not a matrix product. From JAX 0.11 on level 0 was seen to make a loop that never ends.
if version("jaxlib").startswith("0.10."):
    QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
else:
    QUICK = {"xla_backend_optimization_level": 1}
SMALL = 5e7
_mapped = jax.jit(_over, static_argnums=(0, 1, 2, 3))
_mapped_quickly = jax.jit(_over, static_argnums=(0, 1, 2, 3), compiler_options=QUICK)


def _effort(total: int, draws: Any, shared: tuple) -> int:
    """Rough count of multiplications: the numbers of all draws, times the longest of the arrays that they meet."""
    numbers = sum(np.size(a) for a in jax.tree.leaves(draws))
    return max(numbers, total) * max((np.shape(a)[0] for a in jax.tree.leaves(shared) if np.ndim(a)), default=1)


def map_draws(fn: Callable, statics: tuple, draws: Any, shared: tuple = (), *, chunk: int = 1,
              desc: str | None = None, show: bool = True, passes: int = 1) -> Any:
    """Map ``fn(*statics, draw, *shared)`` over the leading axis of `draws`, on all devices of all processes.

    Parameters
    ----------
    fn : callable
        A module-level function, so that its compiled form is found again.
    statics : tuple
        Hashable first arguments (a `BoundModel`, options); they key the compilation cache.
    draws : pytree
        Arrays with a common leading axis T.
    shared : tuple of pytrees
        Further arguments, the same for every draw.
    chunk : int
        Draws evaluated together; the largest divisor of T (per device) not above it is taken.
    desc : str, optional
        Show a progress bar under this name; the draws then run in about twenty blocks, where the job is not small.
    passes : int
        How often one draw goes over its numbers (steps of a training, a chain): what is a small job on a CPU in all is
        compiled quickly and not optimised.

    Returns
    -------
    pytree
        Results with leading axis T.
    """
    total = jax.tree.leaves(draws)[0].shape[0]
    small = passes * _effort(total, draws, shared) < SMALL  # of the whole: one program, however many share it
    if processes.count() == 1:
        return _map_here(fn, statics, draws, shared, chunk, desc, show, small)
    mine = processes.mine(draws, getattr(fn, "__qualname__", "a map over draws"), shared)
    part = _map_here(fn, statics, mine, shared, chunk, desc, show, small)
    return processes.gathered(part, total)


def _map_here(fn, statics, draws, shared, chunk, desc, show, small) -> Any:
    """`map_draws` on this process's devices."""
    total = jax.tree.leaves(draws)[0].shape[0]
    devices = jax.local_device_count()
    pad = -total % devices
    if pad:
        draws = jax.tree.map(lambda a: jnp.concatenate([a, jnp.repeat(a[-1:], pad, axis=0)]), draws)
    padded = total + pad
    blocks = 1 if desc is None or not show or small or _QUIET.get() else largest_divisor(padded // devices, 20)
    size = padded // blocks
    chunk = largest_divisor(size // devices, chunk)
    run = _mapped_quickly if small and jax.default_backend() == "cpu" else _mapped
    results = []
    for start in progress(range(0, padded, size), desc=desc or "", show=show and desc is not None,
                          total=math.ceil(padded / size)):
        block = draws if blocks == 1 else jax.tree.map(lambda a, s=start: a[s:s + size], draws)
        results.append(run(fn, statics, chunk, devices, block, shared))
        if blocks > 1:
            jax.block_until_ready(results[-1])
    out = results[0] if blocks == 1 else jax.tree.map(lambda *a: jnp.concatenate(a), *results)
    return jax.tree.map(lambda a: a[:total], out) if pad else out


def chains(size: int) -> int:
    """Chains under which independent draws are stored: the largest divisor of `size` not above 4."""
    return largest_divisor(size, 4)


@jax.jit
def as_chains(draws: Any) -> Any:
    """Store independent draws, leading axis T, as (chains, T/chains) in order."""
    return jax.tree.map(lambda a: a.reshape(chains(a.shape[0]), -1, *a.shape[1:]), draws)


@jax.jit
def as_draws(samples: Any) -> Any:
    """Draws with one leading axis, chain by chain, from (chain, draw, ...); one program for all sites."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), samples)


@jax.jit
def first_draw(draws: Any) -> Any:
    """The first along the leading axis of every leaf, in one program."""
    return jax.tree.map(lambda a: a[0], draws)
