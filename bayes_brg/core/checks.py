"""Checks made where a public function starts, before anything is traced."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .arrays import check_array


def check_key(key: Any, name: str = "key") -> jax.Array:
    """Return `key` if it is one JAX random key, else say how to make one."""
    if isinstance(key, jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
            return key
        if key.dtype == jnp.uint32 and key.ndim == 1:  # the raw form of jax.random.PRNGKey
            return jax.random.wrap_key_data(key)
    raise TypeError(f"{name} must be one JAX random key, got {key!r}; make one with jax.random.key(0)")


def check_inputs(x: Any, name: str = "x") -> Any:
    """Check network inputs: finite, first axis the datum. A pytree is checked leaf by leaf.

    Lists of numbers, and DataFrames, are one array.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(x)
    if isinstance(x, (list, tuple)) and leaves and all(np.ndim(leaf) == 0 for _, leaf in leaves):
        leaves, treedef = [((), x)], jax.tree.structure(0)
    if not leaves:
        raise ValueError(f"{name} is empty; pass an array whose first axis runs over data points")
    arrays = [check_array(leaf, name + jax.tree_util.keystr(path)) for path, leaf in leaves]
    for array in arrays:
        if array.ndim == 0:
            raise ValueError(f"{name} is a scalar; pass an array whose first axis runs over data points")
        if array.shape[0] == 0:
            raise ValueError(f"{name} has no data points: shape {array.shape}")
        if array.size == 0:
            raise ValueError(f"{name} has no columns: shape {array.shape}")
        if array.shape[0] != arrays[0].shape[0]:
            raise ValueError(f"{name}: leaves disagree on the number of data points: "
                             f"{[a.shape for a in arrays]}")
    return jax.tree.unflatten(treedef, arrays)


def check_like(x: Any, probe: Any) -> None:
    """Refuse inputs whose points are not of the form of those that a metric has seen."""
    def form(a):
        return jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], a)

    if form(x) != form(probe):
        def say(a):
            return jax.tree.map(lambda leaf: "(" + ", ".join(["n", *map(str, jnp.shape(leaf)[1:])]) + ")", a)

        raise ValueError(f"x has the form {say(x)}, but the metric's probe inputs have {say(probe)}; pass inputs of "
                         "that form")


def check_data(x: Any, y: Any) -> tuple[Any, jax.Array]:
    """Check inputs and targets: finite, and as many targets as inputs."""
    x = check_inputs(x, "x")
    y = check_array(y, "y")
    n = num_points(x)
    if y.ndim == 0 or y.shape[0] != n:
        raise ValueError(f"y has shape {y.shape} but x has {n} data points; the first axis of both is the datum")
    return x, y


def warn_unfinite(values: Any, name: str, dims: Sequence[str], remedy: str, skip: Any = None) -> None:
    """Warn, naming the first, of values of a result that are not finite; members in `skip` (chain, draw) are known to.

    Parameters
    ----------
    values : array, axes `dims`
    name : str
        The function that found them, and what they are.
    dims : sequence of str
    remedy : str
    skip : array of bool (chain, draw), optional
    """
    values = np.asarray(values)
    bad = ~np.isfinite(values)
    if skip is not None and bad.any():
        at = list(dims).index("chain")
        bad &= ~np.asarray(skip).reshape((1,) * at + skip.shape + (1,) * (values.ndim - at - 2))
    if not bad.any():
        return
    index = np.unravel_index(np.argmax(bad), bad.shape)
    where = ", ".join(f"{d} {i}" for d, i in zip(dims, index, strict=True))
    warnings.warn(f"{name}: {int(bad.sum())} of {bad.size} are not finite, the first {values[index]} at {where}. "
                  f"{remedy}", UserWarning, stacklevel=3)


def num_points(x: Any) -> int:
    """Number of data points: the length of the first axis of the first leaf."""
    return jax.tree.leaves(x)[0].shape[0]


def check_count(value: Any, name: str, minimum: int = 1) -> int:
    """Return `value` as an int if it is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}")
    return int(value)


def check_positive(value: Any, name: str, *, zero: bool = False) -> float:
    """Return `value` as a float if it is a positive finite number (or zero where allowed)."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not np.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ValueError(f"{name} must be a finite number {'of at least' if zero else 'above'} 0, got {value!r}")
    return number


def check_choice(value: Any, name: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`; else list them and the nearest."""
    choices = list(choices)
    if value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}{hint}")
