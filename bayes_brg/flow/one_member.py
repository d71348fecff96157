"""One member along the flow, as pure functions: its parameters at Λ, its outputs, and sums over members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..metric.geometry import Geometry
from ..metric.prior_moments import is_real
from ..model.bound import BoundModel, Params
from ..model.networks import BoundNetwork
from .regulators import Regulator

MANY = 32  # cutoffs from which a linear readout's flow is taken from cumulative sums


@dataclass(frozen=True)
class FlowSpec:
    """The static part of a flow: what keys its compiled functions."""

    geometry: Geometry
    refill: str
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
        return self.geometry.kind == "diagonal" and self.geometry.coordinates == "native"

    @property
    def linear(self) -> bool:
        """Whether the output is linear in everything that flows, so that features are computed once a member."""
        return isinstance(self.bound, BoundNetwork) and set(self.sites) <= set(self.bound.network.readout_sites)


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


def _mean(spec: FlowSpec, member: dict, shared: dict) -> Params:
    """m_p of one member, as large as the sites."""
    held = member["mean"] if "mean" in member else shared["mean"]
    dtype = jnp.result_type(*(member["theta"][s] for s in spec.sites))
    return {s: jnp.broadcast_to(jnp.asarray(held[s], dtype), shape) for s, shape in spec.geometry.shapes().items()}


def _refill_one(spec: FlowSpec, member: dict, shared: dict) -> Params:
    """θ₀ of one member on the flowing sites: a prior draw given the sites that do not flow, or the prior mean."""
    if spec.refill == "zero":
        return spec.geometry.native(_mean(spec, member, shared))
    theta, x = member["theta"], shared["metric"]["data"]["x"]
    key = jax.random.fold_in(shared["key"], member["index"])
    given = {s: v for s, v in theta.items() if s not in spec.sites}
    if isinstance(spec.bound, BoundNetwork):
        return spec.bound.draw_prior(key, x, sites=spec.sites)
    return {s: v for s, v in spec.bound.draw_prior(key, x, given).items() if s in spec.sites}


def member_flow(spec: FlowSpec, member: dict, shared: dict) -> Callable[[jax.Array], Params]:
    """θ_Λ of one member as a function of Λ: all sites, native coordinates."""
    geometry, regulator, theta = spec.geometry, spec.regulator, member["theta"]
    arrays = member["metric"], shared["metric"]
    theta0, m = _refill_one(spec, member, shared), _mean(spec, member, shared)
    values = geometry.spectrum(arrays)

    if spec.native:
        for s in spec.sites:  # entries whose support ties them together go together, by the stiffest of them
            axes = coupled_axes(spec.bound.site(s).support)
            if axes:
                values = {**values, s: jnp.max(values[s], axis=tuple(range(-axes, 0)), keepdims=True)}

        def step(cutoff):
            return {s: blend(regulator.alpha(values[s], cutoff), regulator.beta(values[s], cutoff), theta[s], theta0[s],
                             m[s]) for s in spec.sites}
    else:
        u, u0 = geometry.coords(theta), geometry.coords({**theta, **theta0})

        def step(cutoff):
            if geometry.kind == "diagonal":
                alpha, beta = (jax.tree.map(lambda v, f=f: f(v, cutoff), values) for f in
                               (regulator.alpha, regulator.beta))
                moved = {s: blend(alpha[s], beta[s], u[s], u0[s], m[s]) for s in spec.sites}
            else:
                # Outside the modes the stiffness is zero: weights α(0) and β(0) there, and what the modes add to it.
                # The two products are joined into one, since to_modes is linear.
                alpha, beta = regulator.alpha(values, cutoff), regulator.beta(values, cutoff)
                zero = jnp.zeros((), values.dtype)
                alpha0, beta0 = regulator.alpha(zero, cutoff), regulator.beta(zero, cutoff)
                a, b = modes
                inside = geometry.from_modes(arrays, (alpha - alpha0) * a + (beta - beta0) * b)
                moved = {s: blend(alpha0, beta0, u[s], u0[s], m[s]) + inside[s].astype(u[s].dtype) for s in spec.sites}
            native = geometry.native(moved)
            # The ends, exactly: Λ = 0 is θ, and where nothing of the posterior is left θ₀.
            gone = jnp.stack([jnp.all(a == 0) for a in jax.tree.leaves(alpha)]).all()
            gone &= jnp.stack([jnp.all(b == 1) for b in jax.tree.leaves(beta)]).all()
            return {s: jnp.where(cutoff == 0, theta[s], jnp.where(gone, theta0[s], native[s])) for s in spec.sites}

        if geometry.kind != "diagonal":
            modes = tuple(geometry.to_modes(arrays, {s: w[s] - m[s] for s in spec.sites}) for w in (u, u0))

    return lambda cutoff: {**theta, **step(cutoff)}


def at_one(spec: FlowSpec, member: dict, shared: dict) -> Params:
    """One member's chosen sites at every cutoff in `shared`."""
    theta = member_flow(spec, member, shared)(shared["cutoffs"])
    return {s: theta[s] for s in spec.sites}


def _readout(bound: BoundNetwork, theta: Params) -> jax.Array:
    return jnp.concatenate([jnp.atleast_2d(theta[s]) for s in bound.network.readout_sites])


def _outputs_one(spec: FlowSpec, member: dict, shared: dict) -> jax.Array:
    """φ of one network member at every cutoff, (cutoff, point, output), by the cheapest of three ways."""
    bound, x, scales = spec.bound, shared["x"], shared["cutoffs"]
    assert isinstance(bound, BoundNetwork)
    if not spec.linear:
        at = member_flow(spec, member, shared)
        return jax.lax.map(lambda c: bound.phi(at(c), x), scales)
    design = bound.network.design(member["theta"], x)
    if not (spec.native and spec.regulator.name == "sharp" and scales.shape[0] >= MANY):
        at = member_flow(spec, member, shared)
        return jax.lax.map(lambda c: design @ _readout(bound, at(c)), scales, batch_size=MANY)
    # Sharp and linear: φ_Λ = φ_{θ₀} + Σ_{λ_k ≥ Λ} h_k (w_k − w_{0,k}), so that all cutoffs are one cumulative sum over
    # units sorted by falling stiffness (theory §2).
    theta = _readout(bound, member["theta"])
    stiffness = _readout_stiffness(spec, member, shared)
    start = _readout(bound, {**member["theta"], **_refill_one(spec, member, shared)})

    def one_output(lam, w, w0):
        order = jnp.argsort(-lam)
        sums = jnp.cumsum(design.T[order] * (w - w0)[order, None], axis=0)  # (unit, point)
        count = jnp.searchsorted(-lam[order], -scales, side="right")  # units with λ ≥ Λ
        steps = jnp.concatenate([jnp.zeros_like(sums[:1]), sums])[count]
        return design @ w0 + steps

    return jax.vmap(one_output, in_axes=1, out_axes=2)(stiffness, theta, start)


def _readout_stiffness(spec: FlowSpec, member: dict, shared: dict) -> jax.Array:
    """Stiffness of each readout weight, (width [+ 1], outputs); infinite where a readout site does not flow."""
    assert isinstance(spec.bound, BoundNetwork)
    values = spec.geometry.spectrum((member["metric"], shared["metric"]))
    return _readout(spec.bound, {s: values.get(s, jnp.full_like(member["theta"][s], jnp.inf))
                                 for s in spec.bound.network.readout_sites})


def along_one(spec: FlowSpec, quantity: str, member: dict, shared: dict) -> jax.Array:
    """A quantity of one member at every cutoff: (cutoff, ...)."""
    x, y, bound = shared["x"], shared["y"], spec.bound
    if isinstance(bound, BoundNetwork):
        likelihood = bound.network.likelihood
        if not spec.linear and quantity != "phi":  # one forward pass at a time, reduced at once
            at = member_flow(spec, member, shared)
            return jax.lax.map(lambda c: _measure(likelihood, quantity, bound.phi(at(c), x), y, member, shared),
                               shared["cutoffs"])
        phi = _outputs_one(spec, member, shared)
        return jax.vmap(lambda f: _measure(likelihood, quantity, f, y, member, shared))(phi)
    at = member_flow(spec, member, shared)
    measures: dict[str, Callable] = {
        "phi": lambda theta: bound.phi(theta, x),
        "loss": lambda theta: jnp.mean(bound.loss(theta, x, y)),
        "log_likelihood": lambda theta: bound.log_likelihood(theta, x, y),
        "y": lambda theta: bound.distribution(theta, x).sample(_draw_key(member, shared)),
    }
    return jax.lax.map(lambda c: measures[quantity](at(c)), shared["cutoffs"])


def _draw_key(member: dict, shared: dict) -> jax.Array:
    return jax.random.fold_in(shared["draw_key"], member["index"])


def _measure(likelihood: Any, quantity: str, phi: jax.Array, y: Any, member: dict, shared: dict) -> jax.Array:
    match quantity:
        case "phi":
            return phi
        case "loss":
            return jnp.mean(likelihood.loss(phi, y))
        case "log_likelihood":
            return likelihood.log_prob(phi, y)
        case _:
            return likelihood.distribution(phi).sample(_draw_key(member, shared))


def _reduce(spec: FlowSpec, quantity: str, members: dict, shared: dict) -> Any:
    """Running sums over members, so that nothing of size cutoff × member × point is ever held.

    "phi": mean and squared deviations of φ (Welford). "log_likelihood": log Σ_members p(y|θ_Λ).
    """
    first = jax.eval_shape(lambda m: along_one(spec, quantity, m, shared), jax.tree.map(lambda a: a[0], members))
    zero = jnp.zeros(first.shape, first.dtype)
    if quantity == "phi":
        start: Any = (jnp.zeros(()), zero, zero)

        def add(carry, member):
            count, mean, square = carry
            phi = along_one(spec, quantity, member, shared)
            count = count + 1
            delta = phi - mean
            mean = mean + delta / count
            return (count, mean, square + delta * (phi - mean)), None
    else:
        start = zero - jnp.inf

        def add(carry, member):
            return jnp.logaddexp(carry, along_one(spec, quantity, member, shared)), None
    return jax.lax.scan(add, start, members)[0]


reduced = jax.jit(_reduce, static_argnums=(0, 1))
