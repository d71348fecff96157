"""Units of a target: from what was measured to what a model is fitted to, and back, densities with their Jacobian."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["TRANSFORMS", "Units"]

TRANSFORMS = ("", "log", "rank")


@dataclass(frozen=True)
class Units:
    """z = (t(y) − mean)/scale, with t the identity, the logarithm, or a piecewise linear map onto normal scores.

    log p(y) = log p(z) + log |dz/dy|. An increasing map keeps quantiles, coverage and medians: a φ that is brought back
    is the median of y where the noise is symmetric around φ.

    Attributes
    ----------
    mean, scale : float
        Of t(y) over the training rows.
    name : str
        The unit, or the target's name.
    transform : {"", "log", "rank"}
    knots, scores : tuple of float
        Of the map of ``"rank"``: y and t(y) where its slope changes; beyond the ends it goes on with the last slope.
    """

    mean: float = 0.0
    scale: float = 1.0
    name: str = ""
    transform: str = ""
    knots: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def linear(self) -> bool:
        """Whether y is mean + scale · z."""
        return not self.transform

    def forward(self, y: Any) -> np.ndarray:
        """What the model sees, z, of y as measured."""
        y = np.asarray(y, float)
        if self.transform == "log":
            y = np.log(y)
        elif self.transform == "rank":
            y = _piecewise(y, self.knots, self.scores)
        return (y - self.mean) / self.scale

    def back(self, z: Any) -> np.ndarray:
        """y as measured, of what the model sees."""
        t = self.mean + self.scale * np.asarray(z, float)
        if self.transform == "log":
            with np.errstate(over="ignore"):
                return np.exp(t)
        return _piecewise(t, self.scores, self.knots) if self.transform == "rank" else t

    def log_jacobian(self, y: Any) -> np.ndarray:
        """log |dz/dy| at y as measured: what is added to log p(z) to get log p(y)."""
        y = np.asarray(y, float)
        slope = np.zeros_like(y)
        if self.transform == "log":
            slope = -np.log(y)
        elif self.transform == "rank":
            knots, scores = np.array(self.knots), np.array(self.scores)
            at = np.clip(np.searchsorted(knots, y, side="right") - 1, 0, len(knots) - 2)
            slope = np.log(np.diff(scores) / np.diff(knots))[at]
        return slope - np.log(self.scale)

    def attrs(self) -> dict[str, Any]:
        """As attributes of what is stored; empty where nothing was done to the target."""
        if (self.mean, self.scale, self.transform) == (0.0, 1.0, ""):
            return {}
        found: dict[str, Any] = {"y_mean": float(self.mean), "y_scale": float(self.scale), "units": self.name}
        if self.transform:
            found |= {"y_transform": self.transform, "y_knots": json.dumps([self.knots, self.scores])}
        return found

    @staticmethod
    def of(attrs: Mapping[str, Any]) -> Units:
        """What `attrs` wrote down."""
        knots, scores = json.loads(str(attrs.get("y_knots", "[[], []]")))
        return Units(float(attrs.get("y_mean", 0.0)), float(attrs.get("y_scale", 1.0)), str(attrs.get("units", "")),
                     str(attrs.get("y_transform", "")), tuple(knots), tuple(scores))


def _piecewise(value: np.ndarray, start: tuple[float, ...], end: tuple[float, ...]) -> np.ndarray:
    """The increasing map through the points (start, end), beyond the ends with the slope of the last piece."""
    a, b = np.array(start), np.array(end)
    low = b[0] + (value - a[0]) * (b[1] - b[0]) / (a[1] - a[0])
    high = b[-1] + (value - a[-1]) * (b[-1] - b[-2]) / (a[-1] - a[-2])
    return np.where(value < a[0], low, np.where(value > a[-1], high, np.interp(value, a, b)))
