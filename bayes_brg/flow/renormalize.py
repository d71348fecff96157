"""From a posterior, a metric and a rule to a flow: what is asked for is checked here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from ..core.checks import check_choice, check_key
from ..core.keys import name_key
from ..metric.metric import Metric
from ..metric.prior_moments import is_real
from ..model.bound import BoundModel, Params, bind
from ..posterior import Posterior
from .cutoffs import check_cutoffs
from .jeffreys import Jeffreys
from .mapped import MappedFlow
from .one_member import FlowSpec
from .refills import Prior, Refill, Zero
from .regulators import Regulator, as_regulator

REFILLS: dict[str, Refill] = {"prior": Prior(), "zero": Zero(), "jeffreys": Jeffreys()}


def as_refill(refill: Any) -> Refill:
    """A `Refill` from its name or from itself."""
    return refill if isinstance(refill, Refill) else REFILLS[check_choice(refill, "refill", REFILLS)]


def renormalize(model, posterior: Posterior, metric: Metric, *, cutoffs, key, refill: str | Refill = "prior",
                regulator: str | Regulator | Callable = "sharp", bounds: Mapping[str, tuple] | None = None
                ) -> MappedFlow:
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
    refill : {"prior", "zero", "jeffreys"} or Refill
        What sloppy parameters become: a prior draw (96), given the draw's own parents in a hierarchical model; the
        prior mean in the metric's coordinates (pruning); or a draw from the Jeffreys prior ∝ √det I_<(θ_<, θ_>) (54),
        for up to eight sloppy parameters of bounded support.
    regulator : {"sharp"}, `unlearning(num_data)`, callable α(λ, Λ), or Regulator
        A callable is used variance preserving, β² = 1 − α²; a `Regulator` may have any α and β.
    bounds : mapping of site name to (low, high), optional
        For "jeffreys": bounds within which an unbounded site is drawn.

    Returns
    -------
    MappedFlow

    Raises
    ------
    ValueError
        For cutoffs that do not increase, a metric of another posterior or model, a regulator that the metric or the
        prior does not allow, or a constrained site that would leave its support.

    Notes
    -----
    With a metric at every draw, rule (95), the prior is not a fixed point where hidden layers flow: which parameters
    are kept depends on the draw itself, so that those kept are not prior draws any more (of a width-8 tanh network the
    variance of the first layer falls to about two thirds, theory §9), and a large Λ short of all stiffnesses is not the
    prior. With one shared metric (``at="mean"`` or ``"map"``), or where only a linear readout flows, it is; take a
    shared metric where that matters.
    """
    refill = as_refill(refill)
    bound, scales, key = check_request(model, posterior, metric, cutoffs, key)
    spec = FlowSpec(replace(metric.geometry, bound=bound), refill, as_regulator(regulator))
    refill.check(bound)
    spec.regulator.check(metric, posterior)
    if metric.coordinates == "native" and not (spec.native and spec.regulator.sharp):
        for s in spec.sites:
            if not is_real(bound.site(s).support):
                raise ValueError(f"site {s!r} is constrained: a flow in eigenmodes or with a smooth regulator would "
                                 "take it out of its support; pass coordinates='unconstrained' to brg.fisher")
    flow = MappedFlow(model, posterior, scales, name_key(key, "refill"), metric, spec)
    _check_mean(flow)
    return refill.flow(flow, bounds or {})


def check_request(model: Callable, posterior: Posterior, metric: Metric, cutoffs: Any, key: Any
                  ) -> tuple[BoundModel, np.ndarray, jax.Array]:
    """The bound model, the cutoffs and the key, checked, and that the metric is of this model and this posterior."""
    if not isinstance(metric, Metric):
        raise TypeError(f"the third argument is a metric, brg.fisher(model, posterior, x), not a "
                        f"{type(metric).__name__}")
    key, scales, bound = check_key(key), check_cutoffs(cutoffs), bind(model, metric.x)
    if bound.sites != metric.bound.sites:
        raise ValueError("the metric was computed for a model with other sites; compute it with brg.fisher on this one")
    bound.check_params(posterior.samples, "posterior")
    _check_model(bound, metric)
    if metric.lead is not None and metric.lead != (posterior.num_chains, posterior.num_draws):
        raise ValueError(f"the metric has (chain, draw) = {metric.lead} but the posterior "
                         f"{(posterior.num_chains, posterior.num_draws)}; compute the metric on this posterior, or a "
                         "shared one with at='mean'")
    if metric.per_draw:
        _check_draws(posterior, metric)
    return bound, scales, key


def _check_draws(posterior: Posterior, metric: Metric) -> None:
    """Refuse a metric at the draws of another posterior of the same shape.

    A renormalised posterior may be taken further with the metric it was renormalised with: its flowing sites differ.
    """
    flat = posterior.flat()
    moved = metric.sites if "cutoff" in posterior.stats else ()
    for s, v in metric.draws().items():
        if s in moved:
            continue
        ours, theirs = np.asarray(flat[s]), np.asarray(v)  # on the host, where five comparisons compile nothing
        same = ((ours == theirs) | (np.isnan(ours) & np.isnan(theirs))).all(axis=tuple(range(1, ours.ndim)))
        if not same.all():
            chain, draw = divmod(int(np.argmin(same)), posterior.num_draws)
            raise ValueError(f"the metric was computed at other draws than this posterior's: site {s!r} differs at "
                             f"chain {chain}, draw {draw}; compute the metric on this posterior, or a shared one with "
                             "at='mean'")


@partial(jax.jit, static_argnums=0)
def _facts(bound: BoundModel, params: Params, x: Any, y: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What tells one model from another of the same shapes: φ, log prior, log-likelihood of some labels."""
    log_p = bound.distribution(params, x).log_prob(y)
    return bound.phi(params, x), bound.log_prior(params, x), log_p.reshape(log_p.shape[0], -1).sum(1)


def _check_model(bound: BoundModel, metric: Metric) -> None:
    """Refuse a metric of another model of the same sites: the two must say the same at the metric's first draw."""
    if bound == metric.bound:
        return
    params, x = metric.first_params(), metric.x
    try:
        y = metric.bound.distribution(params, x).sample(jax.random.key(0))
    except NotImplementedError:  # nothing to compare on
        return
    ours, theirs = (_facts(b, params, x, y) for b in (bound, metric.bound))
    for what, a, b in zip(("φ", "log prior", "log-likelihood"), ours, theirs, strict=True):
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ValueError(f"the metric was computed for another model: at its first draw the {what} is "
                             f"{np.ravel(b)[0]} there, {np.ravel(a)[0]} here; compute it with brg.fisher on this model")


def _check_mean(flow: MappedFlow) -> None:
    """Refuse rules that take parameters to a prior mean that does not exist."""
    try:
        lacking = [repr(s) for s, mean in flow._prior_mean.items() if not np.isfinite(np.asarray(mean)).all()]
    except NotImplementedError:  # NumPyro knows no mean of some prior
        lacking = [f"among {', '.join(flow.spec.sites)}"]
    if lacking:
        raise ValueError(f"the prior of site {lacking[0]} has no known finite mean, to which refill='zero' and smooth "
                         "regulators take parameters; pass coordinates='unconstrained' to brg.fisher where the site is "
                         "constrained, or use the sharp regulator with refill='prior'")
