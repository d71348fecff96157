"""A flow whose posteriors were sampled scale by scale and are kept: what the fibre and tempered flows give (theory §9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
import xarray as xr

from ..core.batching import map_draws
from ..metric.metric import Metric
from ..model.bound import BoundModel, Params, bind
from ..posterior import Posterior, check_proper
from .cutoffs import check_cutoff
from .flow import Flow, renormalized
from .mapped import MappedFlow
from .one_member import FlowSpec
from .refills import Prior
from .regulators import as_regulator

__all__ = ["SampledFlow", "check_held", "prior_draws", "prior_refills"]


@dataclass(frozen=True, repr=False)
class SampledFlow(Flow):
    """A family of posteriors π_Λ whose draws are stored; known at its own cutoffs, at Λ = 0 and at Λ = ∞.

    It holds cutoffs × draws × parameters, which a `MappedFlow` never does.

    Attributes
    ----------
    cutoffs : array (cutoff,)
        Λ, in units of 1/datum.
    samples : dict of str to array
        Draws of the sites that flow, (cutoff, chain, draw, *site shape), native coordinates. The other sites have the
        posterior's own draws at every Λ.
    fraction : array (cutoff,)
        What `stiff_fraction` says.
    x : array or pytree
        Inputs that the flow was made with: a metric's probe inputs, or those of the data.
    diagnostics : Dataset
        What the sampler says of itself, over ``cutoff``, or (``cutoff``, ``chain``, ``draw``).
    metric : Metric or None
        Whose directions are followed, where there is one.
    key : jax.random.key
        Of the prior draws at Λ = ∞, the same as those of `renormalize` with the same key.
    """

    samples: Mapping[str, Any] = field(repr=False)
    fraction: np.ndarray = field(repr=False)
    x: Any = field(repr=False)
    diagnostics: xr.Dataset = field(default_factory=xr.Dataset, repr=False)
    metric: Metric | None = field(default=None, repr=False)

    def __post_init__(self):
        lead = len(self.cutoffs), self.posterior.num_chains, self.posterior.num_draws
        for site, draws in self.samples.items():
            if np.shape(draws)[:3] != lead:
                raise ValueError(f"samples[{site!r}] has leading axes {np.shape(draws)[:3]}, not (cutoff, chain, draw) "
                                 f"= {lead}")

    @property
    def bound(self) -> BoundModel:
        return bind(self.model, self.x)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.samples)

    @property
    def probe(self) -> Any:
        return self.x

    @property
    def available(self) -> np.ndarray:
        return np.union1d(np.asarray(self.cutoffs, float), [0.0] if self.bound.undrawable() else [0.0, np.inf])

    @property
    def stiff_fraction(self) -> np.ndarray:
        """Fraction of the flowing directions that the data still determine, (cutoff,)."""
        return np.asarray(self.fraction)

    def report(self) -> xr.Dataset:
        """The diagnostics as a run keeps them."""
        return self.diagnostics

    def at(self, cutoff: float) -> Posterior:
        """The renormalised posterior π_Λ at one of the flow's own cutoffs.

        Parameters
        ----------
        cutoff : float
            One of `cutoffs`; 0, the posterior itself; or infinity, the prior.

        Returns
        -------
        Posterior
            Same shape as the flow's posterior.

        Raises
        ------
        ValueError
            For another Λ, naming the nearest there are; for infinity where the prior is improper.
        """
        cutoff = check_cutoff(cutoff)
        if cutoff == 0:
            return self.posterior
        own = np.asarray(self.cutoffs, float)
        near = np.flatnonzero(own == cutoff)
        if not near.size:  # another route to the same number
            near = np.flatnonzero(np.isclose(own, cutoff, rtol=1e-6, atol=0.0))
        if near.size:
            flowed = {s: v[near[0]].reshape(-1, *np.shape(v)[3:]) for s, v in self.samples.items()}
        elif np.isinf(cutoff):
            check_proper(self.bound)
            if self.metric is not None and set(self.metric.sites) == set(self.sites):
                flowed = prior_refills(self.bound, self.posterior, self.metric, self.key)
            else:
                flowed = prior_draws(self.bound, self.posterior, self.key, self.x, self.sites)
        else:
            place = int(np.searchsorted(own, cutoff))
            nearest = " and ".join(f"{c:g}" for c in own[max(0, place - 1):place + 1])
            raise ValueError(f"this flow was sampled at its own cutoffs, not at Λ = {cutoff:g}; the nearest are "
                             f"{nearest}. Make one with this cutoff among cutoffs=")
        found = renormalized(self.posterior, flowed, cutoff)
        if "independent" in found.stats:
            found = found.replace(stats={**found.stats, "independent": self.independent})
        return found


def prior_draws(bound: BoundModel, posterior: Posterior, key: jax.Array, x: Any, sites: tuple[str, ...]
                ) -> dict[str, jax.Array]:
    """One prior draw θ₀ of `sites` for each draw of a posterior, given its other sites, leading axis T.

    Bit for bit those of a flow by `renormalize` whose `Flow.key` is `key`.
    """
    flat = posterior.flat()
    members = {s: flat[s] for s in bound.names}, np.arange(posterior.size)
    return map_draws(_prior_one, (bound, sites), members, (key, x))


def check_held(bound: BoundModel, flowing: Sequence[str], x: Any) -> None:
    """Refuse a site that is held while one flows on which its prior depends: its density would have to be weighed."""
    if len(flowing) == len(bound.names):
        return
    for s, parents in bound.parents(x).items():
        moved = [p for p in parents if p in flowing]
        if s not in flowing and moved:
            raise ValueError(f"site {s!r} is held, but its prior depends on {moved[0]!r}, which flows; let both "
                             "flow, or hold both")


def prior_refills(bound: BoundModel, posterior: Posterior, metric: Metric, key: jax.Array) -> Params:
    """`prior_draws` of a metric's sites by the very program of `renormalize` with that metric: another one may round
    the last bit otherwise."""
    spec = FlowSpec(replace(metric.geometry, bound=bound), Prior(), as_regulator("sharp"))
    top = MappedFlow(bound.fn, posterior, np.array([np.inf]), key, metric, spec).at(np.inf).flat()
    return {s: top[s] for s in metric.sites}


def _prior_one(bound: BoundModel, sites: tuple[str, ...], member: tuple[Params, jax.Array], key: jax.Array, x: Any
               ) -> Params:
    theta, index = member
    given = {s: v for s, v in theta.items() if s not in sites}
    drawn = bound.draw_prior(jax.random.fold_in(key, index), x, given, sites)
    return {s: jax.numpy.broadcast_to(drawn[s], theta[s].shape).astype(theta[s].dtype) for s in sites}
