"""Data of an experiment: what a network learns from and is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from ..core.checks import check_data, num_points
from ..io import arviz_bridge

__all__ = ["Data", "data_dataset"]


@dataclass(frozen=True)
class Data:
    """Data of an experiment.

    Attributes
    ----------
    x, y : array
        Training inputs (n, dim) and targets.
    x_test, y_test : array
        Held-out points, on which the loss along the flow is taken.
    characteristic : array (dim,), optional
        The one input at which the distribution of φ is followed; default the first test input.
    truth : float or array, optional
        The true φ at the characteristic input.
    """

    x: Any
    y: Any
    x_test: Any
    y_test: Any
    characteristic: Any = None
    truth: Any = None

    def __post_init__(self):
        for inputs, targets in (("x", "y"), ("x_test", "y_test")):
            x, y = check_data(getattr(self, inputs), getattr(self, targets))
            object.__setattr__(self, inputs, x)
            object.__setattr__(self, targets, y)

    def outputs_at(self) -> tuple[Any, int]:
        """Inputs at which φ is followed, the test inputs and the characteristic one, and the latter's position."""
        if self.characteristic is None:
            return self.x_test, 0

        def join(test, one):
            return jnp.concatenate([jnp.asarray(test), jnp.asarray(one, jnp.asarray(test).dtype)[None]])

        return jax.tree.map(join, self.x_test, self.characteristic), num_points(self.x_test)


def data_dataset(data: Data, x_probe: Any) -> xr.Dataset:
    """Data and probe inputs as a run keeps them, leaf by leaf."""
    variables = {}
    x_eval, at = data.outputs_at()
    named = {"x": ("train", data.x), "y": ("train", data.y), "x_test": ("test", data.x_test),
             "y_test": ("test", data.y_test), "x_probe": ("probe", x_probe)}
    for name, (axis, value) in named.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(value):
            label = arviz_bridge.escape(name + jax.tree_util.keystr(path))
            array = np.asarray(leaf)
            variables[label] = ((axis, *(f"{label}_dim_{i}" for i in range(array.ndim - 1))), array)
    for path, leaf in jax.tree_util.tree_leaves_with_path(x_eval):
        label = arviz_bridge.escape("characteristic" + jax.tree_util.keystr(path))
        array = np.asarray(leaf)[at]
        variables[label] = (tuple(f"{label}_dim_{i}" for i in range(array.ndim)), array)
    if data.truth is not None:
        variables["truth"] = (("output",), np.atleast_1d(np.asarray(data.truth, dtype=float)))
    return xr.Dataset(variables)
