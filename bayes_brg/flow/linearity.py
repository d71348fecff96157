"""How far a flow along straight lines leaves the linearisation that its directions are made of (theory §9)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from ..metric.geometry import draw_key, hold
from ..metric.output_fisher import Data, outputs
from .one_member import FlowSpec, Member, Setting, member_flow

__all__ = ["linearity_one"]


def linearity_one(spec: FlowSpec, member: Member, setting: Setting) -> jax.Array:
    """Of one member at every cutoff, (cutoff,): √ mean over points of ΔᵀF_out Δ, Δ = η(θ_Λ) − [η(θ) + J (θ_Λ − θ)].

    η are the parameters of the observed distribution, F_out that at θ, J the Jacobian in the metric's coordinates; of a
    Gaussian it is Δφ in units of the noise.
    """
    geometry, theta, at = spec.geometry, member.theta, member_flow(spec, member, setting)
    key = draw_key(hold((member.metric, setting.metric)))
    data = Data(setting.x).numbered()
    start = geometry.coords(theta)

    def eta(coords: Any) -> jax.Array:
        params = {**theta, **geometry.native(coords)}
        return outputs(geometry.bound, geometry.how, params, data, key).eta

    here = outputs(geometry.bound, geometry.how, theta, data, key)
    value, push = jax.linearize(eta, start)

    def gap(cutoff: jax.Array) -> jax.Array:
        moved = geometry.coords(at(cutoff))
        beyond = eta(moved) - value - push({s: moved[s] - start[s] for s in start})
        scaled = jnp.einsum("nek,nekr->ner", beyond, here.root)
        return jnp.where(cutoff == 0, 0.0, jnp.sqrt(jnp.sum(scaled**2) / scaled.shape[0]))  # rounding apart

    return jax.lax.map(gap, setting.cutoffs)


def exactly(spec: FlowSpec, how: Any) -> FlowSpec:
    """`spec` with another estimator of the output Fisher matrix."""
    return replace(spec, geometry=replace(spec.geometry, how=how))
