"""What a JAX program says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

__all__ = ["depends"]


def depends(fn: Callable, *args: Any) -> list[bool]:
    """Whether each output leaf of ``fn(*args)`` depends on `args`, by following the program; never says no wrongly."""
    program = jax.make_jaxpr(fn)(*args).jaxpr
    live = set(program.invars)
    for equation in program.eqns:
        if any(not isinstance(v, core.Literal) and v in live for v in equation.invars):
            live.update(equation.outvars)
    return [not isinstance(v, core.Literal) and v in live for v in program.outvars]
