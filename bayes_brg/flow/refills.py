"""Refill rules: what a sloppy direction becomes, θ₀ of one member (theory §2)."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ..core.static import Static
from ..model.bound import BoundModel, Params
from ..posterior import check_proper

__all__ = ["Prior", "Refill", "Zero"]


class Refill(Static):
    """A refill rule. Subclass it with `draw` and pass an instance as ``refill=`` of `renormalize`.

    Attributes
    ----------
    name : str
    needs_mean : bool
        Whether `draw` is to be given the prior mean, which not every prior has.
    """

    name = "given"
    needs_mean = False

    def draw(self, key: jax.Array, bound: BoundModel, x: Any, theta: Params, sites: tuple[str, ...],
             mean: Params | None) -> Params:
        """θ₀ of one member: a dict over `sites`, native coordinates. Called inside compiled code.

        Parameters
        ----------
        key : jax.random.key
            The member's own, the same at every Λ.
        bound : BoundModel
        x : array or pytree
            The metric's probe inputs.
        theta : dict
            All sites of the member, native coordinates.
        sites : tuple of str
            The sites that flow.
        mean : dict or None
            Their prior mean in the metric's coordinates, taken to native ones; where `needs_mean` is set.
        """
        raise NotImplementedError

    def check(self, bound: BoundModel) -> None:
        """Refuse a model that cannot be refilled so."""

    def variance(self, prior_variance: np.ndarray) -> np.ndarray:
        """Variance of θ₀ around a Gaussian prior's mean, for closed forms; refused where it is not known."""
        raise ValueError(f"refill must be 'prior' or 'zero' for a Gaussian readout, got {self.name!r}")

    def flow(self, flow: Any, bounds: Any) -> Any:
        """The `Flow` that refills so, from one with every other part in place."""
        if bounds:
            raise ValueError("bounds are for refill='jeffreys' only")
        return flow


class Prior(Refill):
    """A prior draw, given the sites that do not flow (96)."""

    name = "prior"

    def draw(self, key, bound, x, theta, sites, mean):
        given = {s: v for s, v in theta.items() if s not in sites}
        return bound.draw_prior(key, x, given, sites)

    def check(self, bound):
        check_proper(bound)

    def variance(self, prior_variance):
        return prior_variance


class Zero(Refill):
    """The prior mean in the metric's coordinates: pruning."""

    name = "zero"
    needs_mean = True

    def draw(self, key, bound, x, theta, sites, mean):
        return mean

    def variance(self, prior_variance):
        return np.zeros_like(prior_variance)
