"""The Bayesian renormalisation-group flow: cutoffs, refill rules, and a posterior at every scale Λ (theory §2).

Every rule is θ_Λ = m_p + α(θ − m_p) + β(θ₀ − m_p) along the metric's directions, with α and β functions of the
stiffness λ and the cutoff Λ, θ₀ one prior draw for each (chain, draw) and m_p the prior mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from ..core.batching import default_chunk, first_draw, map_draws
from ..core.checks import check_choice, check_data, check_inputs, check_key, check_like, warn_unfinite
from ..core.keys import name_key
from ..metric.fisher import restricted
from ..metric.metric import Metric
from ..model.bound import BoundModel, Params
from ..posterior import Posterior, diverged, work
from .critical_scale import CriticalScale, critical_scale, variance_scale
from .cutoffs import check_cutoff, check_cutoffs, working
from .one_member import FlowSpec, Member, Setting, along_one, at_one, mean_one, reduced
from .regulators import Regulator

__all__ = ["Flow"]

TOO_LARGE = ("The output, or its square, is beyond floating point, or a draw is not finite: rescale x or y, or leave "
             "such draws out")


@dataclass(frozen=True)
class Flow:
    """A family of renormalised posteriors π_Λ; make one with `renormalize`.

    Lazy: it keeps the posterior, the metric and one key, and makes parameters at Λ when asked, member by member.
    The prior draw θ₀ of a member depends on the key and the member's number alone.

    Attributes
    ----------
    cutoffs : array (cutoff,)
        Λ, in the units of the metric's stiffness (1/datum).
    posterior, metric, model, refill, regulator
        What `renormalize` was given.
    """

    model: Callable = field(repr=False)
    posterior: Posterior
    metric: Metric
    cutoffs: np.ndarray = field(repr=False)
    key: jax.Array = field(repr=False)
    spec: FlowSpec = field(repr=False)

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
        cutoffs = self.cutoffs if cutoffs is None else check_cutoffs(cutoffs)
        chunk = 1 if self.spec.linear else default_chunk(work(self.spec.bound, x))
        values = map_draws(along_one, (self.spec, quantity), self._members(),
                           (self._setting(cutoffs, x, y, draw_key),), chunk=chunk, desc=f"flow: {quantity}", show=show)
        values = np.moveaxis(np.asarray(values), 1, 0)
        return values.reshape(len(cutoffs), self.posterior.num_chains, self.posterior.num_draws, *values.shape[2:])

    def _array(self, values: np.ndarray, name: str, cutoffs=None, extra: Sequence[str] = ()) -> xr.DataArray:
        dims = ("cutoff", "chain", "draw", *extra)
        coords: dict[str, Any] = {d: np.arange(k) for d, k in zip(dims, values.shape, strict=True)}
        coords["cutoff"] = self.cutoffs if cutoffs is None else np.atleast_1d(np.asarray(cutoffs, float))
        return xr.DataArray(values, coords=coords, dims=dims, name=name, attrs=independence(self.posterior))

    def predict(self, x, *, cutoffs=None, progress_bar: bool = True) -> xr.DataArray:
        """Output φ_θ(x) along the flow.

        Parameters
        ----------
        x : array (n, dim)
        cutoffs : array, optional
            Other cutoffs than the flow's own. For a sharp flow of a linear readout many cost little more than one.

        Returns
        -------
        DataArray (cutoff, chain, draw, point, output)
        """
        phi = self._along("phi", check_inputs(x), None, cutoffs, progress_bar)
        extra = ("point", "output")
        warn_unfinite(phi, "flow.predict: outputs", ("cutoff", "chain", "draw", *extra), TOO_LARGE, self._diverged)
        return self._array(phi, "phi", cutoffs, extra)

    @property
    def _diverged(self) -> np.ndarray:
        return diverged(self.posterior).reshape(self.posterior.num_chains, self.posterior.num_draws)

    def loss(self, x, y, *, cutoffs=None, progress_bar: bool = True) -> xr.DataArray:
        """Training loss along the flow, mean over points: (y − φ)² summed over outputs for a Gaussian, else −log p.

        Returns
        -------
        DataArray (cutoff, chain, draw)
            In squared units of y, or nats; ``attrs["units"]`` says which.
        """
        x, y = check_data(x, y)
        loss = self._along("loss", x, self.spec.bound.targets(y), cutoffs, progress_bar)
        warn_unfinite(loss, "flow.loss: losses", ("cutoff", "chain", "draw"), TOO_LARGE, self._diverged)
        return self._array(loss, "loss", cutoffs).assign_attrs(units=loss_units(self.spec.bound, self.posterior, x))

    def moments(self, x, *, cutoffs=None) -> xr.Dataset:
        """Mean and variance of φ over members along the flow, by running sums: memory is cutoff × point.

        Returns
        -------
        Dataset
            ``mean`` and ``variance`` (unbiased), (cutoff, point, output).
        """
        x = check_inputs(x)
        scales = self.cutoffs if cutoffs is None else check_cutoffs(cutoffs)
        count, mean, square = self._sums("phi", x, None, scales)
        return self._points({"mean": mean, "variance": square / (count - 1)}, scales, ("point", "output"))

    def _sums(self, quantity: str, x, y, scales: np.ndarray) -> Any:
        check_like(x, self.metric.x)
        return reduced(self.spec, quantity, self._members(), self._setting(scales, x, y))

    @staticmethod
    def _points(values: dict, scales: np.ndarray, extra: Sequence[str]) -> xr.Dataset:
        arrays = {k: (("cutoff", *extra), np.asarray(v)) for k, v in values.items()}
        shape = next(iter(arrays.values()))[1].shape
        coords = {d: np.arange(k) for d, k in zip(extra, shape[1:], strict=True)}
        return xr.Dataset(arrays, {"cutoff": scales, **coords})

    def log_predictive(self, x, y, *, cutoffs=None) -> xr.DataArray:
        """Log posterior predictive density of each datum along the flow (55): log of the mean over draws of p(y | θ_Λ).

        Returns
        -------
        DataArray (cutoff, point)
            In nats; sum over points for the log score of the data taken one by one.
        """
        x, y = check_data(x, y)
        scales = self.cutoffs if cutoffs is None else check_cutoffs(cutoffs)
        total = self._sums("log_likelihood", x, self.spec.bound.targets(y), scales) - np.log(self.posterior.size)
        warn_unfinite(total, "flow.log_predictive: log densities", ("cutoff", "point"), "No draw gives such a datum a "
                      "density that floating point holds: check the units of y")
        return self._points({"log_predictive": total}, scales, ("point",))["log_predictive"]

    def predictive(self, x, key, *, cutoffs=None, progress_bar: bool = True) -> xr.DataArray:
        """One draw of y from the renormalised posterior predictive (55) for each posterior draw.

        Parameters
        ----------
        x : array (n, dim)
        key : jax.random.key
            The noise of a member depends on the key and its number alone: it is the same at every Λ.

        Returns
        -------
        DataArray (cutoff, chain, draw, point[, output])
        """
        draw_key = name_key(check_key(key), "predictive")
        values = self._along("y", check_inputs(x), None, cutoffs, progress_bar, draw_key)
        extra = ("point", "output", "axis")[:values.ndim - 3]
        return self._array(values, "y", cutoffs, extra)

    def critical_scale(self, x, y=None, *, definition: str | None = None, ratio: float = 2.0, rise: float = 0.1,
                       level: float = 0.9, num_bootstrap: int = 500, progress_bar: bool = True) -> CriticalScale:
        """The scale Λ_C at which the flow leaves its flat region.

        Parameters
        ----------
        x, y : arrays
            Held-out data; `y` is not needed by "variance_ratio".
        definition : {"loss_ratio", "loss_rise", "variance_ratio", "knee"}, optional
            Where the median loss over members has grown by `ratio` relative to Λ = 0 (the default for a squared loss);
            where it has risen by `rise` (the default for −log p, whose zero depends on the units of y); where the
            variance of φ over members has grown by `ratio`; interpolated in log Λ. Or the corner of the
            flat-then-rising broken line that fits the median loss best.
        ratio : float
            Above 1.
        rise : float
            In nats per datum.
        level : float
            Probability of the bootstrap interval over members.
        num_bootstrap : int

        Returns
        -------
        CriticalScale
            With value NaN and a reason where there is no flat region, or the curve never leaves it.
        """
        if definition is not None:
            check_choice(definition, "definition", ("loss_ratio", "loss_rise", "variance_ratio", "knee"))
        if definition == "variance_ratio":
            return variance_scale(self.predict(x, progress_bar=progress_bar), ratio=ratio, level=level,
                                  num_bootstrap=num_bootstrap)
        if y is None:
            raise ValueError(f"definition={definition or 'of the loss'!r} needs the targets y")
        loss = self.loss(x, y, progress_bar=progress_bar)
        return critical_scale(loss, definition=definition, ratio=ratio, rise=rise, level=level,
                              num_bootstrap=num_bootstrap)

    def by_site(self, sites: Sequence[str] | None = None) -> dict[str, Flow]:
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


def independence(posterior: Posterior) -> dict[str, int]:
    """Attributes that say whether a posterior's draws are independent; so are then those of its flow."""
    return {"independent": int(np.all(np.asarray(posterior.stats.get("independent", False))))}


def prior_mean(spec: FlowSpec, posterior: Posterior, metric: Metric) -> Params:
    """Prior mean m_p of the flowing sites in the metric's coordinates: (*site shape), or (T, *site shape) where it
    depends on other sites of each draw."""
    if not spec.geometry.hierarchical:
        return metric.prior_mean
    draws = {s: posterior.flat()[s] for s in spec.bound.names}
    return map_draws(mean_one, (spec.geometry,), draws, (metric.x,))


def loss_units(bound: BoundModel, posterior: Posterior, x: Any) -> str:
    """Units of the training loss: those of y, squared, or nats."""
    return "squared units of y" if bound.squared(first_draw(posterior.flat()), x) else "nats"


def renormalized(posterior: Posterior, flowed: Mapping[str, jax.Array], cutoff: float) -> Posterior:
    """`posterior` with the flowed sites (leading axis T) put in, and only the statistics that still hold."""
    lead = posterior.num_chains, posterior.num_draws
    samples = {s: flowed[s].reshape(*lead, *flowed[s].shape[1:]) if s in flowed else v
               for s, v in posterior.samples.items()}
    stats = {k: v for k, v in posterior.stats.items() if k in ("independent", "diverged")}
    return Posterior(samples, stats | {"cutoff": cutoff}, f"{posterior.method.split(' at Λ')[0]} at Λ = {cutoff:g}",
                     posterior.trained)
