"""Regulators: how much of the posterior (α) and of the prior (β) a direction keeps at a cutoff (theory §2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ..core.batching import map_draws
from ..core.checks import check_choice, check_positive
from ..core.static import Static
from ..metric.metric import Metric, prior_one
from ..model.bound import unwrap
from ..posterior import Posterior

__all__ = ["Regulator", "Smooth", "Unlearning", "as_regulator", "unlearning"]


class Regulator(Static):
    """How much of the posterior (α) and of the prior (β) a direction of stiffness λ keeps at cutoff Λ.

    This class is the sharp one (96): α = 1[λ ≥ Λ], β = 1 − α. A subclass overrides `alpha`, and `beta` where it is not
    1 − α; everything else it may leave as it is, since what a flow may take for granted is read off which of the two
    are still the sharp ones. Both are called on arrays inside compiled code, for Λ > 0.
    """

    name = "sharp"

    def alpha(self, stiffness: jax.Array, cutoff: jax.Array) -> jax.Array:
        """Weight of the posterior draw."""
        return (stiffness >= cutoff).astype(jnp.result_type(float))

    def beta(self, stiffness: jax.Array, cutoff: jax.Array) -> jax.Array:
        """Weight of the prior draw."""
        return 1.0 - self.alpha(stiffness, cutoff)

    def weights(self, stiffness: jax.Array, cutoff: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(α, β), and exactly (1, 0) at Λ = 0, where every flow is the identity."""
        safe = jnp.where(cutoff > 0, cutoff, 1.0)
        alpha, beta = self.alpha(stiffness, safe), self.beta(stiffness, safe)
        return jnp.where(cutoff > 0, alpha, 1.0), jnp.where(cutoff > 0, beta, 0.0)

    def is_still(self, owner: type[Regulator]) -> bool:
        """Whether both weights are those that `owner` defines."""
        return type(self).alpha is owner.alpha and type(self).beta is owner.beta

    @property
    def sharp(self) -> bool:
        """Whether each direction is wholly the posterior's (λ ≥ Λ) or wholly the prior's.

        Then it may act on constrained sites entry by entry, and a linear readout's output is one cumulative sum over
        units at all cutoffs.
        """
        return self.is_still(Regulator)

    @property
    def needs_mean(self) -> bool:
        """Whether α + β may differ from 1, so that the prior mean m_p enters."""
        return type(self).beta is not Regulator.beta

    def check(self, metric: Metric, posterior: Posterior) -> None:
        """Refuse a metric or a prior for which the rule is not what it says."""

    @property
    def composes(self) -> bool:
        """Whether steps from cutoff to cutoff make the flow, each by `step`."""
        return self.sharp

    def step(self, before: float, key: jax.Array, number: int) -> tuple[Regulator, jax.Array]:
        """Regulator and key of step `number`, from a posterior at cutoff `before`: sharp, the same θ₀ at every step."""
        return self, key


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

    @property
    def composes(self):
        return self.is_still(Unlearning)

    def step(self, before, key, number):
        # A semigroup in law only: each step starts where the last one ended and has noise of its own.
        return replace(self, num_data=1 / max(before, 1 / self.num_data)), jax.random.fold_in(key, number)

    def check(self, metric, posterior):
        """Un-learning inverts Bayes only in coordinates in which each draw's prior is a standard Gaussian."""
        if not metric.whiten:
            raise ValueError("un-learning is exact in the prior-whitened metric only; pass whiten=True to brg.fisher")
        amount = metric.amount
        if amount != 1:
            raise ValueError(f"un-learning counts data in 1/Λ, so it needs stiffness per datum, not that of {amount:g} "
                             "data: pass the metric without .total")
        for s, parents in metric.bound.parents(metric.x).items():
            both = [p for p in parents if p in metric.sites]
            if s in metric.sites and both:
                raise ValueError(f"un-learning needs priors that factorise, but that of site {s!r} depends on site "
                                 f"{both[0]!r}, which flows too; leave {both[0]!r} out with sites=...")
        if metric.geometry.hierarchical and not metric.per_draw:
            draws = {s: posterior.flat()[s] for s in metric.bound.names}
            scales = map_draws(prior_one, (metric.geometry,), draws, (metric.x,))[1]
            for s, scale in metric.prior_scale.items():
                if not np.allclose(scales[s], scale, rtol=1e-4):
                    raise ValueError(f"the prior scale of site {s!r} differs from draw to draw, so that one metric "
                                     "cannot be whitened for all of them; compute the metric with at='draw'")
        trace = metric.bound.trace(metric.first_params(), metric.x)
        for s in metric.sites:
            prior = unwrap(trace[s]["fn"])
            gaussian = isinstance(prior, dist.Normal) or (isinstance(prior, dist.LogNormal)
                                                          and metric.coordinates == "unconstrained")
            if not gaussian:
                raise ValueError(f"un-learning needs Gaussian priors, but site {s!r} has {type(prior).__name__} in "
                                 f"{metric.coordinates} coordinates; leave it out with sites=..., or use the sharp "
                                 "regulator")


@dataclass(frozen=True)
class Smooth(Regulator):
    """Variance preserving: any α(λ, Λ) ∈ [0, 1] increasing in λ, with β² = 1 − α²."""

    function: Callable = field(default=lambda stiffness, cutoff: stiffness)
    name = "smooth"

    def alpha(self, stiffness, cutoff):
        return self.function(stiffness, cutoff)

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


REGULATORS: dict[str, Regulator] = {"sharp": Regulator()}
GRID = np.r_[0.0, np.geomspace(1e-6, 1e6, 49)]


def _tried(function: Callable, what: str) -> Iterator[tuple[float, np.ndarray]]:
    """A function of (λ, Λ) on the grid at three cutoffs, compiled as a flow does it: NumPy functions fail here."""
    compiled = jax.jit(lambda lam, cut: function(lam, cut))
    for cutoff in (1e-3, 1.0, 1e3):
        try:
            found = np.asarray(compiled(GRID, np.asarray(cutoff)))
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{what}(λ, Λ) failed on arrays: {reason}; write it with jax.numpy") from error
        if found.shape != GRID.shape or not np.isfinite(found).all():
            raise ValueError(f"{what}(λ, Λ) must give one finite number for each λ, but at Λ = {cutoff:g} it gives "
                             f"shape {found.shape} with values from {found.min()} to {found.max()}")
        yield cutoff, found


def as_regulator(regulator: Any) -> Regulator:
    """A `Regulator` from its name, from itself, or from a callable α(λ, Λ); tried on a grid first.

    A `Regulator` may have any finite α and β; a bare callable is taken as a variance-preserving α, so that it must
    lie in [0, 1] and not decrease with λ.
    """
    if isinstance(regulator, Regulator):
        try:
            hash(regulator)
        except TypeError:
            raise TypeError(f"the regulator {type(regulator).__name__} cannot be hashed, which compiled code needs; "
                            "make it a @dataclass(frozen=True) or a plain class") from None
        for weight in ("alpha", "beta"):
            list(_tried(getattr(regulator, weight), f"{type(regulator).__name__}.{weight}"))
        return regulator
    if not callable(regulator):
        return REGULATORS[check_choice(regulator, "regulator", REGULATORS)]
    for cutoff, alpha in _tried(regulator, "the regulator α"):
        if not ((alpha >= 0) & (alpha <= 1)).all():
            raise ValueError(f"the regulator must return α(λ, Λ) between 0 and 1 for each λ, but at Λ = {cutoff:g} it "
                             f"gives values from {alpha.min()} to {alpha.max()}; for any other rule subclass Regulator")
        if (np.diff(alpha) < -1e-6).any():
            i = int(np.argmin(np.diff(alpha)))
            raise ValueError(f"the regulator must not decrease with λ, but at Λ = {cutoff:g} it falls from "
                             f"{alpha[i]:.3g} at λ = {GRID[i]:.3g} to {alpha[i + 1]:.3g} at λ = {GRID[i + 1]:.3g}")
    return Smooth(regulator)
