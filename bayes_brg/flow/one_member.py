"""One member along the flow, as pure functions: its parameters at Λ, its outputs, and sums over members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..metric.geometry import Geometry, State
from ..metric.prior_moments import is_real
from ..model.bound import BoundModel, Params
from .refills import Refill
from .regulators import Regulator

MANY = 32  # cutoffs from which a linear readout's flow is taken from cumulative sums


class Member(NamedTuple):
    """One draw along the flow; of several each array has the leading axis T."""

    theta: Params
    """All sites, native coordinates."""
    index: jax.Array
    """Number of the draw: its keys are folded with it."""
    metric: State | None = None
    """Its own part of the metric's arrays; None where the metric is shared."""
    mean: Params | None = None
    """Prior mean m_p of the flowing sites, where it differs from draw to draw."""


class Setting(NamedTuple):
    """What the members of a flow share."""

    key: jax.Array
    """Of the refills."""
    metric: State
    """The shared part of the metric's arrays."""
    cutoffs: jax.Array
    """Λ, one or several."""
    mean: Params | None = None
    """Prior mean m_p of the flowing sites, where it is the same for every draw."""
    x: Any = None
    """Inputs at which something is asked for."""
    y: Any = None
    """Their targets."""
    draw_key: Any = None
    """Of drawn labels."""


@dataclass(frozen=True)
class FlowSpec:
    """The static part of a flow: what keys its compiled functions."""

    geometry: Geometry
    refill: Refill
    regulator: Regulator

    @property
    def bound(self) -> BoundModel:
        return self.geometry.bound

    @property
    def sites(self) -> tuple[str, ...]:
        return self.geometry.sites

    @property
    def native(self) -> bool:
        """Whether the step acts on native coordinates, entry by entry."""
        return self.geometry.entrywise and self.geometry.coordinates == "native"

    @property
    def linear(self) -> bool:
        """Whether the output is linear in everything that flows, so that features are computed once a member."""
        return self.bound.readout is not None and set(self.sites) <= set(self.bound.readout.sites)

    @property
    def needs_mean(self) -> bool:
        """Whether the prior mean m_p enters. A flow to a prior draw with α + β = 1 does without."""
        return self.regulator.needs_mean or self.refill.needs_mean


def coupled_axes(support: Any) -> int:
    """Number of trailing axes whose entries the support ties together; 0 where each entry is free of the others."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return 0 if is_real(support) else support.event_dim


def blend(alpha: jax.Array, beta: jax.Array, theta: jax.Array, theta0: jax.Array, mean: Any) -> jax.Array:
    """m + α(θ − m) + β(θ₀ − m), and exactly θ or θ₀ where one weight is 1 and the other 0."""
    mixed = mean + alpha * (theta - mean) + beta * (theta0 - mean)
    exact = jnp.where((alpha == 1) & (beta == 0), theta, jnp.where((alpha == 0) & (beta == 1), theta0, mixed))
    return exact.astype(theta.dtype)


def mean_one(geometry: Geometry, theta: Params, x: Any) -> Params:
    """Prior mean m_p of one draw in the metric's coordinates, given its parents; those that flow are at their mean."""
    bound = geometry.bound
    parents = {p for ps in bound.parents(x).values() for p in ps}
    given = {s: v for s, v in theta.items() if s not in geometry.sites}
    flowing = bound.prior_mean(x, given, tuple(s for s in geometry.sites if s in parents))
    return geometry.prior({**theta, **flowing}, x)[0]


def _mean(spec: FlowSpec, member: Member, setting: Setting) -> Params:
    """m_p of one member, as large as the sites."""
    held = setting.mean if member.mean is None else member.mean
    assert held is not None
    dtype = jnp.result_type(*(member.theta[s] for s in spec.sites))
    return {s: jnp.broadcast_to(jnp.asarray(held[s], dtype), shape) for s, shape in spec.geometry.shapes().items()}


def _refilled(spec: FlowSpec, member: Member, setting: Setting) -> Params:
    """θ₀ of one member on the flowing sites, native coordinates."""
    mean = spec.geometry.native(_mean(spec, member, setting)) if spec.refill.needs_mean else None
    key, x = jax.random.fold_in(setting.key, member.index), setting.metric.data.x
    drawn = spec.refill.draw(key, spec.bound, x, member.theta, spec.sites, mean)
    return {s: jnp.broadcast_to(drawn[s], member.theta[s].shape).astype(member.theta[s].dtype) for s in spec.sites}


def _entries(spec: FlowSpec, member: Member, setting: Setting) -> Params:
    """Stiffness of each entry; entries whose support ties them together go together, by the stiffest of them."""
    values = spec.geometry.spectrum((member.metric, setting.metric))
    for s in spec.sites if spec.native else ():
        axes = coupled_axes(spec.bound.site(s).support)
        if axes:
            together = jnp.max(values[s], axis=tuple(range(-axes, 0)), keepdims=True)
            values = {**values, s: jnp.broadcast_to(together, values[s].shape)}
    return values


Step = Callable[[jax.Array], tuple[Params, tuple[Any, Any]]]


def _entry_step(spec: FlowSpec, member: Member, setting: Setting, u: Params, u0: Params) -> Step:
    """Coordinates at Λ, entry by entry, and the weights (α, β) they were made with."""
    values, m = _entries(spec, member, setting), _mean(spec, member, setting)

    def step(cutoff):
        weights = [spec.regulator.weights(values[s], cutoff) for s in spec.sites]
        moved = {s: blend(*w, u[s], u0[s], m[s]) for s, w in zip(spec.sites, weights, strict=True)}
        return moved, tuple(zip(*weights, strict=True))

    return step


def _mode_step(spec: FlowSpec, member: Member, setting: Setting, u: Params, u0: Params) -> Step:
    """Coordinates at Λ in the metric's eigenmodes, and the weights (α, β) they were made with.

    Outside the modes the stiffness is zero: weights α(0) and β(0) there, and what the modes add to it. The two
    products are joined into one, since `to_modes` is linear.
    """
    geometry, arrays, m = spec.geometry, (member.metric, setting.metric), _mean(spec, member, setting)
    values = geometry.spectrum(arrays)
    a, b = (geometry.to_modes(arrays, {s: w[s] - m[s] for s in spec.sites}) for w in (u, u0))

    def step(cutoff):
        alpha, beta = spec.regulator.weights(values, cutoff)
        alpha0, beta0 = spec.regulator.weights(jnp.zeros((), values.dtype), cutoff)
        inside = geometry.from_modes(arrays, (alpha - alpha0) * a + (beta - beta0) * b)
        moved = {s: blend(alpha0, beta0, u[s], u0[s], m[s]) + inside[s].astype(u[s].dtype) for s in spec.sites}
        return moved, ((alpha, alpha0), (beta, beta0))

    return step


def member_flow(spec: FlowSpec, member: Member, setting: Setting) -> Callable[[jax.Array], Params]:
    """θ_Λ of one member as a function of Λ: all sites, native coordinates."""
    geometry, theta, theta0 = spec.geometry, member.theta, _refilled(spec, member, setting)
    if spec.native:
        entries = _entry_step(spec, member, setting, theta, theta0)
        return lambda cutoff: {**theta, **entries(cutoff)[0]}
    make = _entry_step if geometry.entrywise else _mode_step
    step = make(spec, member, setting, geometry.coords(theta), geometry.coords({**theta, **theta0}))

    def at(cutoff):
        moved, (alpha, beta) = step(cutoff)
        native = geometry.native(moved)
        # The ends, exactly: Λ = 0 is θ, and where nothing of the posterior is left θ₀.
        gone = jnp.stack([*(jnp.all(a == 0) for a in alpha), *(jnp.all(b == 1) for b in beta)]).all()
        ends = {s: jnp.where(cutoff == 0, theta[s], jnp.where(gone, theta0[s], native[s])) for s in spec.sites}
        return {**theta, **ends}

    return at


def at_one(spec: FlowSpec, member: Member, setting: Setting) -> Params:
    """One member's chosen sites at every cutoff in `setting`."""
    theta = member_flow(spec, member, setting)(setting.cutoffs)
    return {s: theta[s] for s in spec.sites}


def _outputs_one(spec: FlowSpec, member: Member, setting: Setting) -> jax.Array:
    """φ of one network member at every cutoff, (cutoff, point, output), by the cheapest of three ways."""
    bound, x, scales = spec.bound, setting.x, setting.cutoffs
    readout = bound.readout
    if readout is None or not spec.linear:
        at = member_flow(spec, member, setting)
        return jax.lax.map(lambda c: bound.phi(at(c), x), scales)
    design = readout.design(member.theta, x)
    if not (spec.native and spec.regulator.sharp and scales.shape[0] >= MANY):
        at = member_flow(spec, member, setting)
        return jax.lax.map(lambda c: design @ readout.stack(at(c)), scales, batch_size=MANY)
    # Sharp and linear: φ_Λ = φ_{θ₀} + Σ_{λ_k ≥ Λ} h_k (w_k − w_{0,k}), so that all cutoffs are one cumulative sum over
    # units sorted by falling stiffness (theory §2).
    theta = readout.stack(member.theta)
    stiffness = _readout_stiffness(spec, member, setting)
    start = readout.stack({**member.theta, **_refilled(spec, member, setting)})

    def one_output(lam, w, w0):
        order = jnp.argsort(-lam)
        sums = jnp.cumsum(design.T[order] * (w - w0)[order, None], axis=0)  # (unit, point)
        count = jnp.searchsorted(-lam[order], -scales, side="right")  # units with λ ≥ Λ
        steps = jnp.concatenate([jnp.zeros_like(sums[:1]), sums])[count]
        return design @ w0 + steps

    return jax.vmap(one_output, in_axes=1, out_axes=2)(stiffness, theta, start)


def _readout_stiffness(spec: FlowSpec, member: Member, setting: Setting) -> jax.Array:
    """Stiffness of each readout weight, (width [+ 1], outputs); infinite where a readout site does not flow."""
    readout = spec.bound.readout
    assert readout is not None
    values = _entries(spec, member, setting)
    return readout.stack({s: values.get(s, jnp.full_like(member.theta[s], jnp.inf)) for s in readout.sites})


def along_one(spec: FlowSpec, quantity: str, member: Member, setting: Setting) -> jax.Array:
    """A quantity of one member at every cutoff: (cutoff, ...)."""
    x, y, bound = setting.x, setting.y, spec.bound
    if bound.likelihood is not None and not set(bound.likelihood.learned.values()) & set(spec.sites):
        likelihood = bound.likelihood_at(member.theta)
        if not spec.linear and quantity != "phi":  # one forward pass at a time, reduced at once
            at = member_flow(spec, member, setting)
            return jax.lax.map(lambda c: _measure(likelihood, quantity, bound.phi(at(c), x), y, member, setting),
                               setting.cutoffs)
        phi = _outputs_one(spec, member, setting)
        return jax.vmap(lambda f: _measure(likelihood, quantity, f, y, member, setting))(phi)
    at = member_flow(spec, member, setting)
    measures: dict[str, Callable] = {
        "phi": lambda theta: bound.phi(theta, x),
        "loss": lambda theta: bound.mean_loss(theta, x, y),
        "log_likelihood": lambda theta: bound.log_likelihood(theta, x, y),
        "y": lambda theta: bound.distribution(theta, x).sample(_draw_key(member, setting)),
    }
    return jax.lax.map(lambda c: measures[quantity](at(c)), setting.cutoffs)


def _draw_key(member: Member, setting: Setting) -> jax.Array:
    return jax.random.fold_in(setting.draw_key, member.index)


def _measure(likelihood: Any, quantity: str, phi: jax.Array, y: Any, member: Member, setting: Setting) -> jax.Array:
    match quantity:
        case "phi":
            return phi
        case "loss":
            return jnp.mean(likelihood.loss(phi, y))
        case "log_likelihood":
            return likelihood.log_prob(phi, y)
        case _:
            return likelihood.distribution(phi).sample(_draw_key(member, setting))


def _reduce(spec: FlowSpec, quantity: str, members: Member, setting: Setting) -> Any:
    """Running sums over members, so that nothing of size cutoff × member × point is ever held.

    "phi": mean and squared deviations of φ (Welford). "log_likelihood": log Σ_members p(y|θ_Λ).
    """
    first = jax.eval_shape(lambda m: along_one(spec, quantity, m, setting), jax.tree.map(lambda a: a[0], members))
    zero = jnp.zeros(first.shape, first.dtype)
    if quantity == "phi":
        start: Any = (jnp.zeros(()), zero, zero)

        def add(carry, member):
            count, mean, square = carry
            phi = along_one(spec, quantity, member, setting)
            count = count + 1
            delta = phi - mean
            mean = mean + delta / count
            return (count, mean, square + delta * (phi - mean)), None
    else:
        start = zero - jnp.inf

        def add(carry, member):
            return jnp.logaddexp(carry, along_one(spec, quantity, member, setting)), None
    return jax.lax.scan(add, start, members)[0]


reduced = jax.jit(_reduce, static_argnums=(0, 1))
