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
import numpyro.distributions as dist
import xarray as xr

from ._checks import check_choice, check_count, check_data, check_inputs, check_key, check_like
from ._critical import CriticalScale, critical_scale, variance_scale
from ._geometry import is_real
from ._map import default_chunk, map_draws
from ._member import FlowSpec, along_one, at_one, mean_one, reduced
from ._metric import prior_one
from ._regulators import Regulator, Unlearning, as_regulator, unlearning
from .fisher import Metric, restricted
from .model import Params, bind, name_key, unwrap
from .posterior import Posterior, check_proper, work

__all__ = ["CriticalScale", "Flow", "Regulator", "critical_scale", "cutoffs", "renormalize", "unlearning"]

REFILLS = ("prior", "zero", "jeffreys")
SPACINGS = ("log", "quantile", "distinct")


# -- cutoffs --------------------------------------------------------------------------------------------------
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
    try:
        read = None if values is None else np.atleast_1d(np.asarray(values)).astype(np.float64)
    except (TypeError, ValueError):
        read = None
    if read is None:
        raise TypeError(f"cutoffs must be a list of numbers, got {values!r}; brg.cutoffs(metric) makes one")
    values = read
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


# -- the flow -------------------------------------------------------------------------------------------------
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
        return self.spec.refill

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
        """Prior mean m_p, see `prior_mean`. A sharp flow to a prior draw does without, since α + β = 1."""
        if self.regulator.name == "sharp" and self.refill != "zero":
            return {s: jnp.zeros(()) for s in self.spec.sites}
        return prior_mean(self.spec, self.posterior, self.metric)

    def _inputs(self) -> dict:
        metric, _ = self.metric.arrays()
        members = {"theta": {s: self.posterior.flat()[s] for s in self.spec.bound.names},
                   "index": jnp.arange(self.posterior.size), "metric": metric}
        if self._mean_per_draw:
            members["mean"] = self._prior_mean
        return members

    @property
    def _mean_per_draw(self) -> bool:
        shapes = self.spec.geometry.shapes()
        return any(jnp.ndim(v) > len(shapes[s]) for s, v in self._prior_mean.items())

    def _shared(self, cutoffs: Any, x: Any = None, y: Any = None, draw_key: Any = None) -> dict:
        shared = {"key": self.key, "metric": self.metric.arrays()[1], "cutoffs": jnp.asarray(working(cutoffs)), "x": x,
                  "y": y, "draw_key": draw_key}
        if not self._mean_per_draw:
            shared["mean"] = self._prior_mean
        return shared

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
        flowed = map_draws(at_one, (self.spec,), self._inputs(), (self._shared(cutoff),), chunk=default_chunk(size))
        return renormalized(self.posterior, flowed, cutoff)

    def _along(self, quantity: str, x, y=None, cutoffs=None, show: bool = True, draw_key=None) -> np.ndarray:
        """(cutoff, chain, draw, ...) of a quantity."""
        check_like(x, self.metric.x)
        cutoffs = self.cutoffs if cutoffs is None else check_cutoffs(cutoffs)
        chunk = 1 if self.spec.linear else default_chunk(work(self.spec.bound, x))
        values = map_draws(along_one, (self.spec, quantity), self._inputs(),
                           (self._shared(cutoffs, x, y, draw_key),), chunk=chunk, desc=f"flow: {quantity}", show=show)
        values = np.moveaxis(np.asarray(values), 1, 0)
        return values.reshape(len(cutoffs), self.posterior.num_chains, self.posterior.num_draws, *values.shape[2:])

    def _array(self, values: np.ndarray, name: str, cutoffs=None, extra: Sequence[str] = ()) -> xr.DataArray:
        dims = ("cutoff", "chain", "draw", *extra)
        coords: dict[str, Any] = {d: np.arange(k) for d, k in zip(dims, values.shape, strict=True)}
        coords["cutoff"] = self.cutoffs if cutoffs is None else np.atleast_1d(np.asarray(cutoffs, float))
        return xr.DataArray(values, coords=coords, dims=dims, name=name)

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
        return self._array(phi, "phi", cutoffs, ("point", "output"))

    def loss(self, x, y, *, cutoffs=None, progress_bar: bool = True) -> xr.DataArray:
        """Training loss along the flow, mean over points: (y − φ)² summed over outputs for a Gaussian, else −log p.

        Returns
        -------
        DataArray (cutoff, chain, draw)
            In squared units of y, or nats.
        """
        x, y = check_data(x, y)
        loss = self._along("loss", x, self.spec.bound.targets(y), cutoffs, progress_bar)
        return self._array(loss, "loss", cutoffs)

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
        return reduced(self.spec, quantity, self._inputs(), self._shared(scales, x, y))

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

    def critical_scale(self, x, y=None, *, definition: str = "loss_ratio", ratio: float = 2.0, level: float = 0.9,
                       num_bootstrap: int = 500, progress_bar: bool = True) -> CriticalScale:
        """The scale Λ_C at which the flow leaves its flat region.

        Parameters
        ----------
        x, y : arrays
            Held-out data; `y` is not needed by "variance_ratio".
        definition : {"loss_ratio", "variance_ratio", "knee"}
            Where the median loss over members has grown by `ratio` relative to Λ = 0; where the variance of φ over
            members has; both interpolated in log–log. Or the corner of the flat-then-rising broken line that fits the
            median loss best in log–log.
        ratio : float
            Above 1.
        level : float
            Probability of the bootstrap interval over members.
        num_bootstrap : int

        Returns
        -------
        CriticalScale
            With value NaN and a reason where there is no flat region, or the curve never leaves it.
        """
        check_choice(definition, "definition", ("loss_ratio", "variance_ratio", "knee"))
        if definition == "variance_ratio":
            return variance_scale(self.predict(x, progress_bar=progress_bar), ratio=ratio, level=level,
                                  num_bootstrap=num_bootstrap)
        if y is None:
            raise ValueError(f"definition={definition!r} needs the targets y")
        loss = self.loss(x, y, progress_bar=progress_bar)
        return critical_scale(loss, definition=definition, ratio=ratio, level=level, num_bootstrap=num_bootstrap)

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


def prior_mean(spec: FlowSpec, posterior: Posterior, metric: Metric) -> Params:
    """Prior mean m_p of the flowing sites in the metric's coordinates: (*site shape), or (T, *site shape) where it
    depends on other sites of each draw."""
    if not spec.geometry.hierarchical:
        return metric.prior_mean
    draws = {s: posterior.flat()[s] for s in spec.bound.names}
    return map_draws(mean_one, (spec.geometry,), draws, (metric.x,))


def renormalized(posterior: Posterior, flowed: Mapping[str, jax.Array], cutoff: float) -> Posterior:
    """`posterior` with the flowed sites (leading axis T) put in, and only the statistics that still hold."""
    lead = posterior.num_chains, posterior.num_draws
    samples = {s: flowed[s].reshape(*lead, *flowed[s].shape[1:]) if s in flowed else v
               for s, v in posterior.samples.items()}
    stats = {k: v for k, v in posterior.stats.items() if k in ("independent", "diverged")}
    return Posterior(samples, stats | {"cutoff": cutoff}, f"{posterior.method.split(' at Λ')[0]} at Λ = {cutoff:g}",
                     posterior.trained)


def renormalize(model, posterior: Posterior, metric: Metric, *, cutoffs, key, refill: str = "prior",
                regulator: str | Regulator | Callable = "sharp", bounds: Mapping[str, tuple] | None = None) -> Flow:
    """The BRG flow of a posterior: parameters with λ < Λ go back to the prior (94)–(97).

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model.
    posterior : Posterior
    metric : Metric
        From `fisher`, per draw (95) or shared (53). A diagonal metric flows in the parameters themselves, any other
        kind in its eigenmodes, outside which the stiffness is zero.
    cutoffs : array
        Increasing Λ ≥ 0, in the units of the metric's stiffness; see `cutoffs`.
    key : jax.random.key
        One prior draw θ₀ for each (chain, draw) comes from it, whatever the cutoffs asked for.
    refill : {"prior", "zero", "jeffreys"}
        What sloppy parameters become: a prior draw (96), given the draw's own parents in a hierarchical model; the
        prior mean in the metric's coordinates (pruning); or a draw from the Jeffreys prior ∝ √det I_<(θ_<, θ_>) (54),
        for up to eight sloppy parameters of bounded support.
    regulator : {"sharp"}, `unlearning(num_data)`, or callable α(λ, Λ)
        A callable is used variance preserving, β² = 1 − α².
    bounds : mapping of site name to (low, high), optional
        For "jeffreys": bounds within which an unbounded site is drawn.

    Returns
    -------
    Flow

    Raises
    ------
    ValueError
        For cutoffs that do not increase, a metric of another posterior, a regulator that the metric or the prior does
        not allow, or a constrained site that would leave its support.
    """
    key = check_key(key)
    check_choice(refill, "refill", REFILLS)
    scales = check_cutoffs(cutoffs)
    bound = bind(model, metric.x)
    if bound.sites != metric.bound.sites:
        raise ValueError("the metric was computed for a model with other sites; compute it with brg.fisher on this one")
    bound.check_params(posterior.samples, "posterior")
    if metric.lead is not None and metric.lead != (posterior.num_chains, posterior.num_draws):
        raise ValueError(f"the metric has (chain, draw) = {metric.lead} but the posterior "
                         f"{(posterior.num_chains, posterior.num_draws)}; compute the metric on this posterior, or a "
                         "shared one with at='mean'")
    spec = FlowSpec(replace(metric.geometry, bound=bound), refill, as_regulator(regulator))
    if refill == "prior":
        check_proper(bound)
    if isinstance(spec.regulator, Unlearning):
        _check_unlearning(metric, posterior)
    if metric.coordinates == "native" and not (spec.native and spec.regulator.name == "sharp"):
        for s in spec.sites:
            if not is_real(bound.site(s).support):
                raise ValueError(f"site {s!r} is constrained: a flow in eigenmodes or with a smooth regulator would "
                                 "take it out of its support; pass coordinates='unconstrained' to brg.fisher")
    flow = Flow(model, posterior, metric, scales, name_key(key, "refill"), spec)
    _check_mean(flow)
    if refill == "jeffreys":
        from ._jeffreys import jeffreys_flow
        return jeffreys_flow(flow, bounds or {})
    if bounds:
        raise ValueError("bounds are for refill='jeffreys' only")
    return flow


def _check_mean(flow: Flow) -> None:
    """Refuse rules that take parameters to a prior mean that does not exist."""
    try:
        lacking = [repr(s) for s, mean in flow._prior_mean.items() if not np.isfinite(np.asarray(mean)).all()]
    except NotImplementedError:  # NumPyro knows no mean of some prior
        lacking = [f"among {', '.join(flow.spec.sites)}"]
    if lacking:
        raise ValueError(f"the prior of site {lacking[0]} has no known finite mean, to which refill='zero' and smooth "
                         "regulators take parameters; pass coordinates='unconstrained' to brg.fisher where the site is "
                         "constrained, or use the sharp regulator with refill='prior'")


def _check_unlearning(metric: Metric, posterior: Posterior) -> None:
    """Un-learning inverts Bayes only in coordinates in which each draw's prior is a standard Gaussian."""
    if not metric.whiten:
        raise ValueError("un-learning is exact in the prior-whitened metric only; pass whiten=True to brg.fisher")
    amount = metric.arrays()[1].get("amount", 1.0)
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
        for s, scale in metric.arrays()[1]["scale"].items():
            if not np.allclose(scales[s], scale, rtol=1e-4):
                raise ValueError(f"the prior scale of site {s!r} differs from draw to draw, so that one metric cannot "
                                 "be whitened for all of them; compute the metric with at='draw'")
    params = {s: v[0] for s, v in metric.arrays()[0]["params"].items()} if metric.per_draw else \
        metric.arrays()[1]["params"]
    trace = metric.bound.trace(params, metric.x)
    for s in metric.sites:
        prior = unwrap(trace[s]["fn"])
        gaussian = isinstance(prior, dist.Normal) or (isinstance(prior, dist.LogNormal)
                                                      and metric.coordinates == "unconstrained")
        if not gaussian:
            raise ValueError(f"un-learning needs Gaussian priors, but site {s!r} has {type(prior).__name__} in "
                             f"{metric.coordinates} coordinates; leave it out with sites=..., or use the sharp "
                             "regulator")
