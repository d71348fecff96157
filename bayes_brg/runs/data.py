"""Data of an experiment: what a network learns from and is held against."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from ..core.checks import check_choice, check_data, check_positive, num_points
from ..io import arviz_bridge
from ..io.units import TRANSFORMS, Units

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
    y_mean, y_scale : float
        Where targets are standardised: what they were measured as is ``y_mean + y_scale * y``. Tables, figures, scores
        and the report of a run are then in the data's own units. One number for all target columns.
    units : str
        What these are, or the target's name.
    y_transform : {"", "log", "rank"}
        Where the target was transformed before: `io.units.Units` has the formula.
    y_knots : tuple of two tuples
        Of ``"rank"``: the points of its piecewise linear map.
    encoder : Encoder, optional
        What made the inputs from the columns of a table; a run keeps it.
    encoding : DataFrame, optional
        What became of each column, one row a column; a run keeps it as ``encoding.csv``, and its report shows it.
    """

    x: Any
    y: Any
    x_test: Any
    y_test: Any
    characteristic: Any = None
    truth: Any = None
    y_mean: float = 0.0
    y_scale: float = 1.0
    units: str = ""
    y_transform: str = ""
    y_knots: tuple = ((), ())
    encoder: Any = None
    encoding: Any = None

    def __post_init__(self):
        for name in ("y_mean", "y_scale"):
            if np.size(getattr(self, name)) != 1:
                raise ValueError(f"{name} has {np.size(getattr(self, name))} entries; it is one number for all target "
                                 "columns, since a loss is a sum over them. Bring the columns to one unit and divide "
                                 "them by one number, or leave y_mean and y_scale out: the run is then reported in the "
                                 "units that the model has")
        if not np.isfinite(self.y_mean):
            raise ValueError(f"y_mean must be a finite number, got {self.y_mean!r}")
        check_positive(self.y_scale, "y_scale")
        check_choice(self.y_transform, "y_transform", TRANSFORMS)
        for inputs, targets in (("x", "y"), ("x_test", "y_test")):
            x, y = check_data(getattr(self, inputs), getattr(self, targets))
            object.__setattr__(self, inputs, x)
            object.__setattr__(self, targets, y)

    @property
    def own(self) -> Units:
        """Units of the targets."""
        return Units(float(self.y_mean), float(self.y_scale), self.units, self.y_transform, *self.y_knots)

    @property
    def standardised(self) -> dict[str, Any]:
        """How targets were standardised, as attributes of what is stored; empty where they were not."""
        return self.own.attrs()

    def outputs_at(self) -> tuple[Any, int]:
        """Inputs at which φ is followed, the test inputs and the characteristic one, and the latter's position."""
        if self.characteristic is None:
            return self.x_test, 0

        def join(test, one):
            return jnp.concatenate([jnp.asarray(test), jnp.asarray(one, jnp.asarray(test).dtype)[None]])

        return jax.tree.map(join, self.x_test, self.characteristic), num_points(self.x_test)


def data_dataset(data: Data, x_probe: Any) -> xr.Dataset:
    """Data and probe inputs as a run keeps them, leaf by leaf."""
    variables: dict[str, Any] = {}
    x_eval, at = data.outputs_at()
    named = {"x": ("train", data.x), "y": ("train", data.y), "x_test": ("test", data.x_test),
             "y_test": ("test", data.y_test), "x_probe": ("probe", x_probe)}
    for name, (axis, value) in named.items():
        variables |= arviz_bridge.leaf_variables(name, value, axis)
    variables |= arviz_bridge.leaf_variables("characteristic", jax.tree.map(lambda a: np.asarray(a)[at], x_eval))
    if data.truth is not None:
        variables["truth"] = (("output",), np.atleast_1d(np.asarray(data.truth, dtype=float)))
    trees = {name: arviz_bridge.tree_names(name, value) for name, (_, value) in named.items()}
    return xr.Dataset(variables, attrs={"trees": json.dumps(trees), **data.standardised})
