"""The Bayesian renormalisation-group flow: cutoffs, refill rules, and a posterior at every scale Λ (theory §2).

Every rule is θ_Λ = m_p + α(θ − m_p) + β(θ₀ − m_p) along the metric's directions, with α and β functions of the
stiffness λ and the cutoff Λ, θ₀ one prior draw for each (chain, draw) and m_p the prior mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from ..core.batching import default_chunk, map_draws
from ..core.checks import check_inputs, check_like
from ..metric.fisher import restricted
from ..metric.metric import Metric
from ..metric.output_fisher import choose
from ..model.bound import BoundModel, Params
from ..posterior import Posterior, work
from .cutoffs import check_cutoff, check_cutoffs, working
from .flow import Flow, renormalized
from .linearity import exactly, linearity_one
from .one_member import FlowSpec, Member, Setting, along_one, at_one, mean_one, reduced
from .regulators import Regulator

__all__ = ["MappedFlow"]

LOOKED_AT = 6  # draws, and cutoffs, that a warning rests on


@dataclass(frozen=True, repr=False)
class MappedFlow(Flow):
    """A family of renormalised posteriors π_Λ along the metric's directions; make one with `renormalize`.

    Lazy: it keeps the posterior, the metric and one key, and makes parameters at Λ when asked, member by member.
    The prior draw θ₀ of a member depends on the key and the member's number alone.

    Attributes
    ----------
    cutoffs : array (cutoff,)
        Λ, in the units of the metric's stiffness (1/datum).
    posterior, metric, model, refill, regulator
        What `renormalize` was given.
    """

    metric: Metric
    spec: FlowSpec = field(repr=False)

    @property
    def bound(self) -> BoundModel:
        return self.spec.bound

    @property
    def sites(self) -> tuple[str, ...]:
        return self.spec.sites

    @property
    def probe(self) -> Any:
        return self.metric.x

    @property
    def _how(self) -> str:
        return f", refill={self.refill!r}, regulator={getattr(self.regulator, 'name', self.regulator)!r}"

    @property
    def regulator(self) -> Regulator:
        return self.spec.regulator

    @property
    def refill(self) -> str:
        """Name of the refill rule."""
        return self.spec.refill.name

    @cached_property
    def stiff_fraction(self) -> np.ndarray:
        """Fraction of the flowing parameters' directions with λ ≥ Λ, over all draws, (cutoff,)."""
        values = self.metric.values()
        total = sum(int(np.prod(shape)) for shape in self.spec.geometry.shapes().values())
        total *= self.posterior.size if self.metric.per_draw else 1
        values = values[~np.isnan(values)]  # a diverged member has no stiff directions
        stiff = values.size - np.searchsorted(values, working(self.cutoffs), side="left")
        return np.where(self.cutoffs == 0, 1.0, stiff / total)  # at Λ = 0 the complement of the modes counts too

    @cached_property
    def _prior_mean(self) -> Params:
        """Prior mean m_p, see `prior_mean`; zero where it does not enter."""
        if not self.spec.needs_mean:
            return {s: jnp.zeros(()) for s in self.spec.sites}
        return prior_mean(self.spec, self.posterior, self.metric)

    @property
    def _mean_per_draw(self) -> bool:
        shapes = self.spec.geometry.shapes()
        return any(jnp.ndim(v) > len(shapes[s]) for s, v in self._prior_mean.items())

    def _members(self) -> Member:
        theta = {s: self.posterior.flat()[s] for s in self.spec.bound.names}
        return Member(theta, np.arange(self.posterior.size), self.metric.arrays()[0],
                      self._prior_mean if self._mean_per_draw else None)

    def _setting(self, cutoffs: Any, x: Any = None, y: Any = None, draw_key: Any = None) -> Setting:
        return Setting(self.key, self.metric.arrays()[1], jnp.asarray(working(cutoffs)),
                       None if self._mean_per_draw else self._prior_mean, x, y, draw_key)

    def at(self, cutoff: float) -> Posterior:
        """The renormalised posterior π_Λ.

        Parameters
        ----------
        cutoff : float
            Any Λ ≥ 0, in the schedule or not; infinity is the prior.

        Returns
        -------
        Posterior
            Same shape as the flow's posterior; at Λ = 0 its very samples.
        """
        cutoff = check_cutoff(cutoff)
        if cutoff == 0:
            return self.posterior
        size = sum(int(np.prod(s.shape)) for s in self.spec.bound.sites)
        flowed = map_draws(at_one, (self.spec,), self._members(), (self._setting(cutoff),), chunk=default_chunk(size))
        return renormalized(self.posterior, flowed, cutoff)

    def _along(self, quantity: str, x, y=None, cutoffs=None, show: bool = True, draw_key=None) -> np.ndarray:
        """(cutoff, chain, draw, ...) of a quantity."""
        check_like(x, self.metric.x)
        _ = self._bent
        cutoffs = self.cutoffs if cutoffs is None else check_cutoffs(cutoffs)
        chunk = 1 if self.spec.linear else default_chunk(work(self.spec.bound, x))
        values = map_draws(along_one, (self.spec, quantity), self._members(),
                           (self._setting(cutoffs, x, y, draw_key),), chunk=chunk, desc=f"flow: {quantity}", show=show)
        values = np.moveaxis(np.asarray(values), 1, 0)
        return values.reshape(len(cutoffs), self.posterior.num_chains, self.posterior.num_draws, *values.shape[2:])

    def _sums(self, quantity: str, x, y, scales: np.ndarray) -> Any:
        check_like(x, self.metric.x)
        _ = self._bent
        return reduced(self.spec, quantity, self._members(), self._setting(scales, x, y))

    # -- straight lines -----------------------------------------------------------------------------------
    def linearity(self, x=None, *, cutoffs=None) -> xr.DataArray:
        """How far the output leaves the linearisation that the metric's directions are made of, in units of the noise.

        √ mean over points of ΔᵀF_out Δ with Δ = η(θ_Λ) − [η(θ) + J (θ_Λ − θ)], η the parameters of the observed
        distribution (φ of a Gaussian). Beyond 1 the flow's outputs are no statement about the posterior: what moved
        along "sloppy" directions moved the output by more than the noise. 0 for a readout that is linear.

        Parameters
        ----------
        x : array (n, dim), optional
            Default: the metric's probe inputs.
        cutoffs : array, optional
            Other cutoffs than the flow's own.

        Returns
        -------
        DataArray (cutoff, chain, draw)
        """
        scales = self.cutoffs if cutoffs is None else check_cutoffs(cutoffs)
        x = self.metric.x if x is None else check_inputs(x)
        check_like(x, self.metric.x)
        values = self._linearity(self._members(), x, scales)
        shape = len(scales), self.posterior.num_chains, self.posterior.num_draws
        return self._array(values.reshape(shape), "linearity", scales)

    def _linearity(self, members: Member, x: Any, scales: np.ndarray) -> np.ndarray:
        """(cutoff, T)"""
        spec, size = self.spec, len(members.index)
        if spec.linear:
            return np.zeros((len(scales), size))
        if spec.geometry.how.name == "empirical":
            one = jax.tree.map(lambda a: a[0], members.theta)
            how = choose(spec.bound, "exact", 64, one, x, spec.sites, members.theta)
            if how.name != "exact":
                raise ValueError("this likelihood has no output Fisher matrix in closed form, in which units linearity "
                                 "is measured; pass estimator='montecarlo' to brg.fisher")
            spec = exactly(spec, how)
        found = map_draws(linearity_one, (spec,), members, (self._setting(scales, x),))
        return np.asarray(found).T

    @cached_property
    def _bent(self) -> None:
        """Warns, once a flow, of outputs beyond the linearisation: by a few draws at a few cutoffs."""
        between = np.flatnonzero((self.stiff_fraction > 0) & (self.cutoffs > 0))
        if self.spec.geometry.entrywise or self.spec.linear or not between.size:
            return
        some = between[np.unique(np.linspace(0, between.size - 1, LOOKED_AT).round().astype(int))]
        draws = np.unique(np.linspace(0, self.posterior.size - 1, LOOKED_AT).round().astype(int))
        members = jax.tree.map(lambda a: np.asarray(a)[draws], self._members())
        try:
            values = self._linearity(members, self.metric.x, self.cutoffs[some])
        except ValueError:  # no units to measure it in
            return
        values = np.where(np.isfinite(values).any(axis=1), np.nanmedian(values, axis=1), 0.0)
        if (values > 1).any():
            first, worst = int(np.argmax(values > 1)), int(np.argmax(values))
            low, high = (f"{values[i]:.2g} times the noise (median) at Λ = {self.cutoffs[some[i]]:.3g}, where "
                         f"{self.stiff_fraction[some[i]]:.1%} of the directions are kept" for i in (first, worst))
            warnings.warn("this flow moves along straight lines in the metric's eigenmodes, and its output leaves "
                          f"their linearisation: by {low}" + (f"; by {high}" if worst != first else "")
                          + ". Losses there say nothing of the posterior; see flow.linearity, and use "
                          "brg.renormalize_fibre or brg.renormalize_tempered, which hold for any network",
                          UserWarning, stacklevel=5)

    def by_site(self, sites: Sequence[str] | None = None) -> dict[str, MappedFlow]:
        """One flow a site, in which only that site flows; for critical scales layer by layer.

        Its metric is the flow's own restricted to the site, so that cutoffs keep their units.
        """
        flows = {}
        for s in sites or self.spec.sites:
            if s not in self.spec.sites:
                raise ValueError(f"site {s!r} does not flow; the sites that do are {', '.join(self.spec.sites)}")
            metric = restricted(self.metric, s, self.posterior)
            flows[s] = replace(self, metric=metric, spec=replace(self.spec, geometry=metric.geometry))
        return flows


def prior_mean(spec: FlowSpec, posterior: Posterior, metric: Metric) -> Params:
    """Prior mean m_p of the flowing sites in the metric's coordinates: (*site shape), or (T, *site shape) where it
    depends on other sites of each draw."""
    if not spec.geometry.hierarchical:
        return metric.prior_mean
    draws = {s: posterior.flat()[s] for s in spec.bound.names}
    return map_draws(mean_one, (spec.geometry,), draws, (metric.x,))
