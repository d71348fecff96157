"""Priors of what is learned beside the weights: noise, scales of layers, relevances of inputs (theory §13)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions.transforms import PowerTransform, biject_to

from ..core.checks import check_positive

__all__ = ["Hyperprior", "number_or_law"]

FLOOR = 0.03
LOOKED_AT = 4096  # draws that say where a law lies


def _noise() -> dist.Distribution:
    """s with s⁴ ~ InverseGamma(¼, .03⁴): density ∝ s⁻² exp(−(.03/s)⁴)."""
    return dist.TransformedDistribution(dist.InverseGamma(0.25, FLOOR**4), PowerTransform(0.25))


LEARNED = {
    "noise": _noise,
    "scale": lambda: dist.LogNormal(0.0, 1.0),
    "relevance": lambda: dist.LogNormal(0.0, 1.0),
    "df": lambda: dist.Gamma(2.0, 0.1),
    "concentration": lambda: dist.LogNormal(1.0, 1.5),
}
"""What "learned" means, by what is learned.

The noise is meant for standardised targets: quantiles .029 (5 %), .066 (50 %), .66 (95 %). Its lower tail falls like
exp(−(.03/s)⁴), so that noise under a hundredth of the targets' spread takes thousands of data: targets that repeat, as
rounded ones do, would else pull it to zero. The law of degrees of freedom is that of Juárez and Steel (2010).
"""


@dataclass(frozen=True)
class Hyperprior:
    """A univariate law of positive support, the prior of a site. Equal and hashed by its family and its numbers.

    Attributes
    ----------
    label : str
        How it is written in the files of a run: ``"learned noise"`` and the like, or the name of its class.
    law : numpyro Distribution
    """

    label: str
    key: tuple = field(repr=False)
    law: Any = field(compare=False)

    @classmethod
    def learned(cls, what: str) -> Hyperprior:
        """The default for what is learned, of `LEARNED`."""
        return cls._of(LEARNED[what](), f"learned {what}")

    @classmethod
    def _of(cls, law: Any, label: str) -> Hyperprior:
        leaves, structure = jax.tree.flatten(law)
        numbers = tuple((np.shape(leaf), tuple(np.ravel(np.asarray(leaf, float)).tolist())) for leaf in leaves)
        return cls(label, (structure, numbers), law)

    @classmethod
    def of(cls, law: Any, name: str) -> Hyperprior:
        """From a NumPyro distribution.

        Raises
        ------
        TypeError, ValueError
            If it is none, or not the law of one positive number.
        """
        if not isinstance(law, dist.Distribution):
            raise TypeError(f"{name} must be a number, 'learned' or a NumPyro distribution, got {law!r}")
        kind = type(law).__name__
        if law.batch_shape or law.event_shape:
            raise ValueError(f"{name} is a {kind} of shape {law.batch_shape + law.event_shape}; pass the law of one "
                             "number: the site repeats it where there are several")
        low = getattr(law.support, "lower_bound", None)
        if law.support.is_discrete or low is None or not float(low) >= 0:
            raise ValueError(f"{name} is a {kind}, which is not of positive support; pass one that is, such as "
                             "dist.LogNormal or dist.HalfNormal")
        return cls._of(law, kind)

    def repeated(self, *shape: int) -> dist.Distribution:
        """Independent copies as one event, or the law itself for no shape."""
        return self.law.expand(shape).to_event(len(shape)) if shape else self.law

    # -- coordinates: u = (T⁻¹(s) − centre)/width, T from ℝ to the support ------------------------------------
    @cached_property
    def place(self) -> tuple[float, float]:
        """Centre and width of T⁻¹(s): mean and standard deviation under the law, where chains find it near N(0, 1)."""
        if type(self.law) is dist.LogNormal:
            return float(self.law.loc), float(self.law.scale)
        with jax.ensure_compile_time_eval():
            draws = self.law.sample(jax.random.key(0), (LOOKED_AT,))
            z = np.asarray(biject_to(self.law.support).inv(draws), float)
        return float(np.mean(z)), float(np.std(z))

    def constrain(self, u: jax.Array) -> jax.Array:
        centre, width = self.place
        return biject_to(self.law.support)(centre + width * u)

    def unconstrain(self, value: jax.Array) -> jax.Array:
        centre, width = self.place
        return (biject_to(self.law.support).inv(value) - centre) / width

    def log_density(self, u: jax.Array) -> jax.Array:
        """Log density of u, entry by entry, Jacobian included."""
        centre, width = self.place
        z, transform = centre + width * u, biject_to(self.law.support)
        value = transform(z)
        return self.law.log_prob(value) + transform.log_abs_det_jacobian(z, value) + np.log(width)

    # -- in the files of a run ----------------------------------------------------------------------------
    def record(self) -> dict[str, Any]:
        """Family and numbers; `restore` reads it."""
        if self.label.startswith("learned "):
            return {"law": self.label}
        numbers = {name: float(getattr(self.law, name)) for name in self.law.arg_constraints
                   if getattr(self.law, name, None) is not None}
        found = {"law": self.label, "numbers": numbers}
        if getattr(dist, self.label, None) is not type(self.law) or Hyperprior.restore(found) != self:
            raise TypeError(f"{self.label} is not known by its numbers alone")
        return found

    @staticmethod
    def restore(found: Mapping[str, Any]) -> Hyperprior:
        """The law that `record` wrote."""
        label = found["law"]
        if label.startswith("learned "):
            return Hyperprior.learned(label.removeprefix("learned "))
        family = getattr(dist, label, None)
        if not (isinstance(family, type) and issubclass(family, dist.Distribution)):
            raise ValueError(f"the law {label!r} of this run is not one of NumPyro's")
        return Hyperprior._of(family(**found["numbers"]), label)


def number_or_law(value: Any, name: str, what: str) -> float | Hyperprior:
    """A positive number as it is; "learned" and a NumPyro distribution as a `Hyperprior`.

    Parameters
    ----------
    value : float, "learned", Distribution or Hyperprior
    name : str
        What messages call it.
    what : str
        Which default ``"learned"`` takes, of `LEARNED`.
    """
    if isinstance(value, Hyperprior):
        return value
    if isinstance(value, str):
        if value != "learned":
            raise ValueError(f"{name}={value!r} is no number; write a number, 'learned', or a NumPyro distribution")
        return Hyperprior.learned(what)
    return Hyperprior.of(value, name) if isinstance(value, dist.Distribution) else check_positive(value, name)
