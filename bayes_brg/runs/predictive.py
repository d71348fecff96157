"""What a method predicts of held-out targets, whatever the method is, and its scores in the data's own units."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ..core.arrays import check_floats
from ..diagnostics.scores import Scores, score_table
from ..io.units import Units
from .measures import scores_in_units

__all__ = ["Predictive", "as_predictive", "score_predictive"]

MAX_DRAWS = 200  # of those that CRPS is taken from


class Predictive(NamedTuple):
    """A predictive law at n test points, in the units of the targets the method was given: one of three forms.

    Attributes
    ----------
    loc, scale : array (draw, n)
        A mixture of Gaussians, equally weighted; one draw for a single Gaussian.
    draws : array (draw, n)
        Draws of y; their density is that of a Gaussian kernel of Scott's width.
    probs : array (draw, n, classes)
        Probabilities of classes, to be averaged.
    phi : array (chain, draw, n, outputs), optional
        Outputs of chains, from which R-hat is taken.
    """

    loc: Any = None
    scale: Any = None
    draws: Any = None
    probs: Any = None
    phi: Any = None


def as_predictive(value: Any, n: int, num_classes: int) -> Predictive:
    """What a method returned, checked: a `Predictive`, a mapping of its fields, or an array of draws (draw, n).

    For classes an array holds probabilities, (n, classes) or (draw, n, classes).

    Raises
    ------
    ValueError
        If it has none of the three forms, other shapes, or values that are not finite.
    """
    if isinstance(value, Predictive):
        found = value
    elif isinstance(value, dict):
        unknown = sorted(set(value) - set(Predictive._fields))
        if unknown:
            raise ValueError(f"a method returned {', '.join(unknown)}; it may return {', '.join(Predictive._fields)}")
        found = Predictive(**value)
    else:
        found = Predictive(**{"probs" if num_classes else "draws": value})
    if num_classes:
        if found.probs is None:
            raise ValueError("the target holds classes: a method must return probs, (n, classes) or (draw, n, classes)")
        probs = check_floats(found.probs, "probs")
        probs = probs[None] if probs.ndim == 2 else probs
        if probs.ndim != 3 or probs.shape[1:] != (n, num_classes):
            raise ValueError(f"probs must be ({n}, {num_classes}), or so for each draw, got {probs.shape}")
        if (probs < 0).any() or not np.allclose(probs.sum(axis=-1), 1, atol=1e-4):
            raise ValueError("probs must not be negative and must sum to 1 over classes")
        return found._replace(probs=probs)
    if found.loc is not None and found.scale is not None:
        loc, scale = np.broadcast_arrays(np.atleast_2d(check_floats(found.loc, "loc")),
                                         np.atleast_2d(check_floats(found.scale, "scale")))
        if (scale <= 0).any():
            raise ValueError(f"scale must be above 0, got {scale.min():g}")
    elif found.draws is not None:
        loc = check_floats(found.draws, "draws")
        if loc.ndim != 2 or len(loc) < 2:
            raise ValueError(f"draws must be (draw, {n}) with two draws at least, got {loc.shape}; a single prediction "
                             "has no density: return loc and scale")
        width = loc.std(axis=0, ddof=1) * len(loc) ** -0.2
        if (width <= 0).any():
            raise ValueError("all draws agree at a test point, which has no density; return loc and scale")
        scale = np.broadcast_to(width, loc.shape)
    else:
        raise ValueError("a method must return loc and scale, (n,) or (draw, n), or draws (draw, n)")
    if loc.shape[1] != n:
        raise ValueError(f"a method predicts {loc.shape[1]} points of {n}")
    return found._replace(loc=loc, scale=scale, draws=None)


def score_predictive(found: Predictive, y: Any, units: Units, num_classes: int, method: str = "") -> Scores:
    """Scores of a checked `Predictive` against targets as the method was given them, in the data's own units."""
    y = np.asarray(y).reshape(-1, 1)
    with np.errstate(divide="ignore"):
        if num_classes:
            law = {"probs": found.probs[..., 1:]} if num_classes == 2 else {"classes": found.probs}
            density = np.log(np.take_along_axis(found.probs, y.astype(int)[None], axis=2)[..., 0])
        else:
            law = {"loc": found.loc[..., None], "scale": found.scale[..., None]}
            density = stats.norm.logpdf(y[:, 0], found.loc, found.scale)
    dataset, name, kind = score_table(law, y.astype(float), density, (0.5, 0.8, 0.9, 0.95), 10, MAX_DRAWS)
    dataset.attrs |= {"num_draws": len(density), "method": method}
    return scores_in_units(Scores(dataset, name, kind), units, lambda: law, y)
