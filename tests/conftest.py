"""Shared fixtures. JAX keeps its default of float32; tests that need float64 ask for the ``x64`` fixture."""

import functools
import importlib.metadata
import os
import pathlib
import sys

# One compilation cache for all workers and for the programs they start; set before JAX is imported.
_CACHE = pathlib.Path(__file__).resolve().parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Tests compile many programs and run each on little: code that LLVM leaves as it is comes twice as fast. Slow checks
# and benchmarks compute: theirs is optimised.
# From JAX 0.11 on level 0 was seen to make a loop that never ends (an ascent by L-BFGS), so those have level 1.
OLD = importlib.metadata.version("jaxlib").startswith("0.10.")
FLAGS = "--xla_cpu_parallel_codegen_split_count=1 --xla_backend_optimization_level="
FLAGS += "0 --xla_cpu_use_fusion_emitters=false" if OLD else "1"
computes = "slow" in sys.argv or any("benchmarks" in argument for argument in sys.argv)
os.environ.setdefault("XLA_FLAGS", "" if computes else FLAGS)  # set either way: workers take it from here
os.environ.setdefault("MPLBACKEND", "agg")
# Two workers on two cores: threads of their own would compete.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import gc  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402

MAPS = pathlib.Path("/proc/self/maps")

if OLD:  # it loads MLIR's dialects again for each program, a quarter of a small one's time: here once a module
    own_context = mlir.make_ir_context
    shared_context = functools.cache(own_context)
    # A program that is lowered while another one is must not be written into that one.
    mlir.make_ir_context = lambda: shared_context() if mlir.ir.Context.current is None else own_context()


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_code():
    """Compiled programs map memory and are kept; a process that reaches the system's limit of maps (65,530) aborts."""
    yield
    if OLD:
        shared_context.cache_clear()
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64():
    """Run the test in float64."""
    with jax.enable_x64(True):
        yield
