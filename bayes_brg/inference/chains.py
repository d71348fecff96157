"""Running Markov chains in blocks: the loop every chain sampler shares."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from ..core import processes
from ..core.batching import largest_divisor, progress
from ..core.checks import check_choice, check_count
from ..core.keys import name_key
from ..posterior import Posterior
from .checkpoint import Checkpoint, digest
from .target import Params, Target

CHAIN_METHODS = ("vectorized", "sequential", "parallel", "threads")
BLOCK = 50  # draws a call of compiled code; fixed, so that a longer run repeats a shorter one and then goes on


@dataclass(frozen=True)
class RunOptions:
    """How chains are run, whatever the sampler; checked when it is made.

    Attributes
    ----------
    num_chains, num_warmup, num_samples, thinning : int
        Chains, steps thrown away, draws kept a chain, transitions for each.
    chain_method : {"vectorized", "sequential", "parallel", "threads"}
        How `num_chains` chains share the device or devices; ``"threads"``: each runs on a core of its own, as many at a
        time as there are cores.
    checkpoint : path, optional
        Directory for the draws and the state after each block; a run that finds its own there goes on.
    block_size : int
        Draws a block.
    """

    num_chains: int = 4
    num_warmup: int = 1000
    num_samples: int = 1000
    thinning: int = 1
    chain_method: str = "vectorized"
    checkpoint: str | os.PathLike | None = None
    block_size: int = BLOCK

    def __post_init__(self):
        for name in ("num_chains", "num_warmup", "num_samples", "thinning", "block_size"):
            count = check_count(getattr(self, name), name, 0 if name == "num_warmup" else 1)
            object.__setattr__(self, name, count)
        check_choice(self.chain_method, "chain_method", CHAIN_METHODS)


class Kernel(Protocol):
    """One sampler: pure functions of one chain. A frozen, hashable dataclass, so that it keys the compiled loop.

    Where `pooled`, of all chains at once (leading axis (chain,) in, and in state and report out), which tune together.
    A sampler from outside the package is such a class and four calls (``tests/inference/test_outside_sampler.py``)::

        @dataclass(frozen=True)
        class Metropolis:                     # every field is part of what a checkpoint remembers
            target: Target
            warmup: int
            step_size: float
            pooled: ClassVar[bool] = False

            def begin(self, key, start, x, y): ...    # start: site -> unconstrained values of one chain
            def step(self, state, x, y): ...          # self.target.log_density(u, x, y) is the density, in nats
            def position(self, state, x, y): ...

        target, x, y, key = prepare(model, x, y, key, "metropolis")
        run = RunOptions(num_chains=4, num_warmup=500, num_samples=1000)
        start = initial(target, key, x, y, run.num_chains)
        posterior = run_chains(Metropolis(target, run.num_warmup, 0.5), key, start, x, y, run, method="metropolis")
    """

    @property
    def target(self) -> Target: ...

    @property
    def pooled(self) -> bool: ...

    @property
    def warmup(self) -> int:
        """Steps to take, and throw away, after `begin`."""

    def begin(self, key: jax.Array, start: Any, x: Any, y: Any) -> Any:
        """State at a starting point, tuned as far as it is not in the warm-up steps; a NamedTuple, its key in it."""

    def step(self, state: Any, x: Any, y: Any) -> tuple[Any, dict[str, jax.Array]]:
        """One transition, and its report: numbers that go into ``posterior.stats`` under these names."""

    def position(self, state: Any, x: Any, y: Any) -> Params:
        """Named unconstrained coordinates."""


def over_chains(fn: Callable, method: str) -> Callable:
    """`fn` of one chain's arguments, mapped over leading chain axes in the way `method` says."""
    if method == "sequential":
        return lambda *args: jax.lax.map(lambda one: fn(*one), args)
    if method == "vectorized":
        return jax.vmap(fn)
    if method == "threads":  # one chain a call
        return lambda *args: jax.tree.map(lambda a: a[None], fn(*jax.tree.map(lambda a: a[0], args)))

    def sharded(*args):
        count = jax.tree.leaves(args)[0].shape[0]
        devices = largest_divisor(count, jax.local_device_count())
        mesh, split = Mesh(np.array(jax.local_devices()[:devices]), ("chain",)), PartitionSpec("chain")
        return jax.shard_map(jax.vmap(fn), mesh=mesh, in_specs=split, out_specs=split, check_vma=False)(*args)

    return sharded


@partial(jax.jit, static_argnums=(0, 1))
def _begin(kernel: Kernel, method: str, keys: jax.Array, start: Any, x: Any, y: Any) -> Any:
    begin = partial(kernel.begin, x=x, y=y)
    state = begin(keys, start) if kernel.pooled else over_chains(begin, method)(keys, start)
    # Weak types go, so that a state read back from disk runs the same compiled code.
    return jax.tree.map(_strong, state)


def _strong(a: Any) -> jax.Array:
    a = jnp.asarray(a)
    return a if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else jnp.asarray(a, a.dtype)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _block(kernel: Kernel, size: int, method: str, state: Any, keys: jax.Array, first, count, thinning, keep, x, y):
    """`count` ≤ `size` draws, each after `thinning` transitions; nothing is kept where `keep` is False (warm-up).

    The counts are arguments and not constants: warm-up, full blocks and the last short one share one compilation.
    """
    target = kernel.target

    def finish(index, key, u, report):
        params = target.finish(jax.random.fold_in(key, index), u, x, y)
        return params, {**report, "log_joint": target.bound.log_joint(params, x, y)}

    def chain(state, key):
        def transition(_, carry):
            state, report = carry
            state, new = kernel.step(state, x, y)
            # A divergence between two kept draws is reported with the second.
            return state, {k: (v | report[k] if v.dtype == bool else v) for k, v in new.items()}

        def emit(index, state, report):
            write = jax.vmap(finish, in_axes=(None, 0, 0, 0)) if kernel.pooled else finish
            return write(index, key, kernel.position(state, x, y), report)

        blank = _zeros(lambda s: kernel.step(s, x, y)[1], state)

        def draw(j, carry):
            state, kept = carry
            state, report = jax.lax.fori_loop(0, thinning, transition, (state, blank))

            def write(kept):
                out = emit(first + j, state, report)
                return jax.tree.map(lambda buffer, value: buffer.at[j].set(value), kept, out)

            return state, jax.lax.cond(keep, write, lambda kept: kept, kept)

        empty = _zeros(lambda s: emit(0, s, blank), state)
        empty = jax.tree.map(lambda a: jnp.zeros((size, *a.shape), a.dtype), empty)
        return jax.lax.fori_loop(0, count, draw, (state, empty))

    if not kernel.pooled:
        return over_chains(chain, method)(state, keys)
    state, out = chain(state, keys)
    return state, jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), out)


def _together(fn: Callable, statics: tuple) -> Callable:
    """Calls of `fn` for all chains at once."""
    return lambda *args, shared=(): fn(*statics, *args, *shared)


class _Apart:
    """Calls of `fn`, a jitted function, one chain at a time in threads.

    It is compiled once, before there are threads: a model is traced in one thread alone, as NumPyro's handlers need.
    """

    def __init__(self, fn: Callable, statics: tuple, pool: ThreadPoolExecutor):
        self.fn, self.statics, self.pool = fn, statics, pool
        self.compiled: Any = None

    def __call__(self, *args, shared: tuple = ()):
        """`fn` of one chain of `args`, leading axis (chain,), and of `shared`."""
        chains, wide = jax.tree.leaves(args)[0].shape[0], jax.config.jax_enable_x64
        shared = jax.tree.map(jnp.asarray, shared)
        each = [jax.tree.map(lambda a, i=i: a[i:i + 1], args) for i in range(chains)]
        if self.compiled is None:
            lowered = self.fn.lower(*self.statics, *each[0], *shared)  # type: ignore[attr-defined]
            self.compiled = lowered.compile()

        def run(one):
            with jax.enable_x64(wide):  # JAX keeps its precision by thread
                return jax.block_until_ready(self.compiled(*one, *shared))

        return jax.tree.map(lambda *a: jnp.concatenate(a), *self.pool.map(run, each))


def _zeros(fn: Callable, *args) -> Any:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(fn, *args))


@partial(jax.jit, static_argnums=0)
def _densities(target: Target, start: Params, x: Any, y: Any) -> jax.Array:
    return jax.lax.map(lambda u: target.log_density(u, x, y), start)


def _identity(kernel: Kernel, key, start, x, y, method: str, run: RunOptions) -> dict:
    """What must agree for a run to go on: all that its draws depend on, save how many of them there are."""
    target = kernel.target
    settings = {f.name: getattr(kernel, f.name) for f in fields(kernel) if f.name != "target"}  # type: ignore[arg-type]
    # A model is code, which has no fingerprint; its density where the chains start stands for it.
    u = start[0] if isinstance(start, tuple) else start
    density = [f"{v:.4e}" for v in np.asarray(_densities(target, u, x, y), float)]
    sites = {s.name: list(s.shape) for s in target.bound.sites}
    return {"method": method, "sites": sites, "collapsed": target.collapsed, "settings": settings,
            "thinning": run.thinning, "chain_method": run.chain_method, "block_size": run.block_size,
            "key": digest(key), "x": digest(x), "y": digest(y), "start": digest(start), "density_at_start": density}


def run_chains(kernel: Kernel, key: jax.Array, start: Any, x: Any, y: Any, run: RunOptions, *,
               method: str) -> Posterior:
    """Run a kernel from `start`, leading axis (chain,), and gather a `Posterior` named after `method`."""
    how, chains = run.chain_method, jax.tree.leaves(start)[0].shape[0]
    if kernel.pooled and how == "threads":
        raise ValueError(f"the chains of {method} tune together, so each cannot have a thread of its own; pass "
                         "chain_method='vectorized'")
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(chains))
    if processes.count() > 1 and run.checkpoint is not None:
        run = replace(run, checkpoint=Path(run.checkpoint) / f"process_{jax.process_index()}")
    if processes.count() == 1 or kernel.pooled:  # chains that tune together stay so: each process runs them all
        samples, stats, seconds = _run_here(kernel, key, keys, start, x, y, run, method)
    else:
        my_keys, my_start = processes.mine((keys, start), f"chains of {method}", (x, y))
        samples, stats, seconds = _run_here(kernel, key, my_keys, my_start, x, y, run, method)
        samples, stats = processes.gathered((samples, stats), chains)
    return Posterior({s: samples[s] for s in kernel.target.bound.names}, {**stats, **seconds}, method)


def _run_here(kernel: Kernel, key: jax.Array, keys: jax.Array, start: Any, x: Any, y: Any, run: RunOptions,
              method: str) -> tuple[dict, dict, dict]:
    """Samples and stats, (chain, draw, ...), of chains with these keys in this process, and the seconds they took."""
    size, num_samples, how = run.block_size, run.num_samples, run.chain_method
    chains = len(keys)
    run_keys, finish_keys = (jax.vmap(lambda k, name=name: name_key(k, name))(keys) for name in ("run", "finish"))
    disk = found = None
    kept: list = []
    with (ExitStack() as held, ThreadPoolExecutor(min(chains, os.cpu_count() or 1)) as pool,
          progress(desc=method, total=kernel.warmup + num_samples, unit="draw") as bar):
        if run.checkpoint is not None:
            disk = held.enter_context(Checkpoint(run.checkpoint, _identity(kernel, key, start, x, y, method, run)))
            together = "vectorized" if how == "threads" else how  # the state of all chains, whoever runs them
            template = jax.eval_shape(partial(_begin, kernel, together), run_keys, start, x, y)
            found = disk.load(run_keys, template)
        began = time.perf_counter()
        begin, block = ((_Apart(fn, statics, pool) if how == "threads" else _together(fn, statics))
                        for fn, statics in ((_begin, (kernel, how)), (_block, (kernel, size, how))))
        warm, done, blocks, state = found or (0, 0, [], begin(run_keys, start, shared=(x, y)))
        bar.update(warm + min(done, num_samples))
        for steps in _pieces(kernel.warmup - warm, size):
            state, _ = block(state, finish_keys, shared=(0, steps, 1, False, x, y))
            jax.block_until_ready(state)
            warm += steps
            if disk:
                disk.save(state, warm, done, blocks)
            bar.update(steps)
        warmed, spent = time.perf_counter(), time.process_time()
        for steps in _pieces(num_samples - done, size):
            state, out = block(state, finish_keys, shared=(done, steps, run.thinning, True, x, y))
            samples, stats = jax.tree.map(lambda a, n=steps: a[:, :n], jax.block_until_ready(out))
            blocks = [*blocks, (done, steps)]
            if disk:
                disk.add(done, samples, stats)
                disk.save(state, warm, done + steps, blocks)
            else:
                kept.append((samples, stats))
            done += steps
            bar.update(steps)
        if disk:
            samples, stats = disk.gather(blocks, num_samples)
        else:
            samples, stats = jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *kept)
    # Of drawing alone; processor seconds, of all threads, are what a busy machine does not stretch.
    seconds = {"processor_seconds": time.process_time() - spent, "seconds_warmup": warmed - began,
               "seconds": time.perf_counter() - warmed}
    return samples, stats, seconds


def _pieces(total: int, size: int) -> list[int]:
    """`total` cut into pieces of `size`, the last one shorter; none if it is not positive."""
    return [min(size, total - done) for done in range(0, total, size)]
