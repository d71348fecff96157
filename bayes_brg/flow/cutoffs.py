"""Schedules of cutoffs Λ."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from ..core.arrays import check_floats
from ..core.checks import check_choice, check_count
from ..metric.metric import Metric

SPACINGS = ("log", "quantile", "distinct")


def cutoffs(metric: Metric, num: int = 25, spacing: str = "log") -> np.ndarray:
    """A schedule of cutoffs Λ for a metric: 0 first, the last just above the stiffest direction.

    Parameters
    ----------
    metric : Metric
    num : int
        How many, 0 included (not used by "distinct").
    spacing : {"log", "quantile", "distinct"}
        ``"log"``: equal ratios between the smallest stiffness that counts (above 1e-8 of the largest) and the largest.
        ``"quantile"``: equal numbers of parameters in each shell. ``"distinct"``: every distinct stiffness.

    Returns
    -------
    array
        Increasing, in units of 1/datum like the stiffness (of the whitened stiffness where the metric is whitened).
    """
    check_choice(spacing, "spacing", SPACINGS)
    num = check_count(num, "num", 2)
    values = metric.values()
    values = values[values > 0]
    if not values.size:
        raise ValueError("every stiffness is zero: the output does not depend on the flowing sites at these inputs")
    top = float(values[-1]) * 1.001
    if spacing == "distinct":
        chosen = np.unique(values)
    elif spacing == "quantile":
        chosen = np.quantile(values, np.linspace(0, 1, num - 1)[:-1]) if num > 2 else np.empty(0)
    else:
        low = values[values > 1e-8 * values[-1]][0]
        chosen = np.geomspace(low, top, num - 1)[:-1] if num > 2 else np.empty(0)
    return np.unique(np.concatenate([[0.0], chosen, [top]]))


def check_cutoffs(values: Any) -> np.ndarray:
    """Refuse cutoffs that are not increasing numbers of at least 0."""
    if values is None or isinstance(values, (str, bytes)):
        raise TypeError(f"cutoffs must be a list of numbers, got {values!r}; brg.cutoffs(metric) makes one")
    values = np.atleast_1d(check_floats(values, "cutoffs", finite=False))
    if values.ndim != 1 or not values.size:
        raise ValueError(f"cutoffs must be a list of numbers, got shape {values.shape}")
    if np.isnan(values).any():
        raise ValueError(f"cutoffs[{int(np.argmax(np.isnan(values)))}] is NaN; drop it")
    if (values < 0).any():
        i = int(np.argmax(values < 0))
        raise ValueError(f"cutoffs[{i}] is {values[i]}; a cutoff is a stiffness, of at least 0")
    if (np.diff(values) <= 0).any():
        i = int(np.argmax(np.diff(values) <= 0))
        raise ValueError(f"cutoffs must increase, but cutoffs[{i}] = {values[i]} is followed by {values[i + 1]}; "
                         "pass np.unique(cutoffs)")
    return values


def check_cutoff(value: Any) -> float:
    """Return one cutoff as a float."""
    values = check_cutoffs(value)
    if values.size != 1:
        raise ValueError(f"flow.at takes one cutoff, got {values.tolist()}; call it for each, or ask flow.predict or "
                         "flow.loss for all with cutoffs=...")
    return float(values[0])


def working(values: Any) -> np.ndarray:
    """Cutoffs in the precision of the flow. One above 0 stays above 0: else λ = 0 would be stiff there."""
    dtype = np.dtype(jnp.result_type(float))
    values = np.asarray(values)
    with np.errstate(over="ignore"):  # above all stiffness is above all stiffness
        return np.where(values > 0, np.maximum(values, np.finfo(dtype).tiny), 0.0).astype(dtype)
