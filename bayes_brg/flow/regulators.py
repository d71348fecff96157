"""Regulators: how much of the posterior (α) and of the prior (β) a direction keeps at a cutoff (theory §2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import check_choice, check_positive

__all__ = ["Regulator", "Smooth", "Unlearning", "as_regulator", "unlearning"]


@dataclass(frozen=True)
class Regulator:
    """How much of the posterior (α) and of the prior (β) a direction of stiffness λ keeps at cutoff Λ.

    Sharp (96): α = 1[λ ≥ Λ], β = 1 − α. This base class is the sharp one; subclasses are smooth.
    """

    name = "sharp"

    def alpha(self, stiffness: jax.Array, cutoff: jax.Array) -> jax.Array:
        """Weight of the posterior draw, in [0, 1]."""
        return (stiffness >= cutoff).astype(jnp.result_type(float))

    def beta(self, stiffness: jax.Array, cutoff: jax.Array) -> jax.Array:
        """Weight of the prior draw."""
        return 1.0 - self.alpha(stiffness, cutoff)


@dataclass(frozen=True)
class Unlearning(Regulator):
    """Exact un-learning; make one with `unlearning`."""

    num_data: float = 1
    name = "unlearning"

    def alpha(self, stiffness, cutoff):
        start = 1.0 / self.num_data
        return (stiffness + start) / (stiffness + jnp.maximum(cutoff, start))

    def beta(self, stiffness, cutoff):
        start = 1.0 / self.num_data
        cutoff = jnp.maximum(cutoff, start)
        # Divided through by Λ, so that Λ = ∞ gives 1 and not ∞/∞.
        ratio, first = stiffness / cutoff, start / cutoff
        return jnp.sqrt((1 - first) * (ratio + first + 1)) / (ratio + 1)


@dataclass(frozen=True)
class Smooth(Regulator):
    """Variance preserving: any α(λ, Λ) ∈ [0, 1] increasing in λ, with β² = 1 − α²."""

    function: Callable = field(default=lambda stiffness, cutoff: stiffness)
    name = "smooth"

    def alpha(self, stiffness, cutoff):
        # Λ = 0 changes nothing, whatever the function makes of 0/0 there.
        safe = jnp.where(cutoff > 0, cutoff, 1.0)
        return jnp.where(cutoff > 0, self.function(stiffness, safe), 1.0)

    def beta(self, stiffness, cutoff):
        return jnp.sqrt(jnp.maximum(1.0 - self.alpha(stiffness, cutoff) ** 2, 0.0))


def unlearning(num_data: float) -> Regulator:
    """The regulator that inverts Bayes exactly for a conjugate Gaussian model (theory §2).

    With whitened stiffness λ̃ and Λ₀ = 1/num_data, for Λ ≥ Λ₀ (below it nothing changes)

        α = (λ̃ + Λ₀)/(λ̃ + Λ),   β² = (Λ − Λ₀)(λ̃ + Λ₀ + Λ)/(λ̃ + Λ)²,

    so that the posterior at Λ is that of the likelihood tempered to the power 1/(num_data · Λ): the posterior of
    T = 1/Λ data with the same sufficient mean. Needs a metric with ``whiten=True`` and Gaussian priors; exact with
    ``kind="full"`` at probe inputs equal to the data.

    Parameters
    ----------
    num_data : float
        Number of data the posterior has seen; of a posterior that stands at Λ₀ already, 1/Λ₀.

    Returns
    -------
    Regulator
    """
    return Unlearning(check_positive(num_data, "num_data"))


def as_regulator(regulator: Any) -> Regulator:
    """A `Regulator` from its name, from itself, or from a callable α(λ, Λ), which is tried on a grid first."""
    if isinstance(regulator, Regulator):
        return regulator
    if not callable(regulator):
        check_choice(regulator, "regulator", ("sharp",))
        return Regulator()
    grid = np.r_[0.0, np.geomspace(1e-6, 1e6, 49)]
    for cutoff in (1e-3, 1.0, 1e3):
        try:
            # Compiled, as the flow does it: NumPy functions fail here and not later.
            alpha = np.asarray(jax.jit(lambda lam, cut: regulator(lam, cut))(jnp.asarray(grid), jnp.asarray(cutoff)))
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"the regulator α(λ, Λ) failed on arrays: {reason}; write it with jax.numpy") from error
        if alpha.shape != grid.shape or not ((alpha >= 0) & (alpha <= 1)).all():  # NaN fails too
            raise ValueError(f"the regulator must return α(λ, Λ) between 0 and 1 for each λ, but at Λ = {cutoff:g} it "
                             f"gives shape {alpha.shape} with values from {alpha.min()} to {alpha.max()}")
        if (np.diff(alpha) < -1e-6).any():
            i = int(np.argmin(np.diff(alpha)))
            raise ValueError(f"the regulator must not decrease with λ, but at Λ = {cutoff:g} it falls from "
                             f"{alpha[i]:.3g} at λ = {grid[i]:.3g} to {alpha[i + 1]:.3g} at λ = {grid[i + 1]:.3g}")
    return Smooth(regulator)
