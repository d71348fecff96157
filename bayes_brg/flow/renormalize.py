"""From a posterior, a metric and a rule to a flow: what is asked for is checked here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import numpyro.distributions as dist

from ..core.batching import map_draws
from ..core.checks import check_choice, check_key
from ..core.keys import name_key
from ..metric.metric import Metric, prior_one
from ..metric.prior_moments import is_real
from ..model.bound import bind, unwrap
from ..posterior import Posterior, check_proper
from .cutoffs import check_cutoffs
from .flow import Flow
from .one_member import FlowSpec
from .regulators import Regulator, Unlearning, as_regulator

REFILLS = ("prior", "zero", "jeffreys")


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
        from .jeffreys import jeffreys_flow
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
