"""Draws on the fibre of one draw θ*, as pure functions: function coordinates, densities, transitions (theory §9).

A fibre is where the stiff function coordinates s_k(θ) = Σ M_k η_θ(x) are those of θ*; η are the parameters of the
observed distribution, F_out = S Sᵀ is frozen at θ*, and M = UᵀSᵀ/√n with U the metric's left singular vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.checks import num_points
from ..core.keys import name_key
from ..metric.geometry import Geometry, State, draw_key, hold, ravel, unravel
from ..metric.output_fisher import outputs
from ..model.bound import BoundModel, Params
from ..model.readout import Readout, log_marginal, matheron

__all__ = ["Fibre", "FibreSpec", "Report", "Walk", "fibre_of", "land", "white", "walk"]

SPREAD = 2.0  # at most so much longer may the steps of one chain of a group be thought than those it takes
COOLING = 0.5  # share of the tuning in which walls that were widened for a distant start come in


@dataclass(frozen=True)
class FibreSpec:
    """The static part: what keys the compiled functions.

    Attributes
    ----------
    geometry : Geometry
        That of the metric.
    collapsed : bool
        Whether the linear readout is integrated out while the rest moves, and drawn exactly after.
    count : int
        Function coordinates taken at most, the stiffest ones.
    """

    geometry: Geometry
    collapsed: bool
    count: int

    @property
    def bound(self) -> BoundModel:
        return self.geometry.bound

    @property
    def sites(self) -> tuple[str, ...]:
        return self.geometry.sites

    @property
    def moved(self) -> tuple[str, ...]:
        """The sites that walk."""
        inside = self.bound.readout.sites if self.collapsed else ()  # type: ignore[union-attr]
        return tuple(s for s in self.sites if s not in inside)

    def shapes(self, sites: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
        return {s: self.bound.site(s).shape for s in sites}


class Fibre(NamedTuple):
    """What one draw's fibre is given by; of several each array has a leading axis."""

    theta: Params
    """θ*: all sites, native coordinates."""
    refill: Params
    """θ₀ on the flowing sites: one prior draw."""
    values: jax.Array
    """λ of the function coordinates, per datum, descending, (K,)."""
    map: jax.Array
    """M, (K, C, n): s = Σ_nc M_kcn η_nc."""
    centre: jax.Array
    """s(θ*), (K,)."""
    key: jax.Array
    """The member's own."""


class Walk(NamedTuple):
    """Chains of a group, one a draw, that walk in step."""

    z: jax.Array
    """(B, P): coordinates of the sites that walk, N(0, 1) under the prior."""
    log_step: jax.Array
    """(B,): log of the step that each would take by itself, radians."""


class Report(NamedTuple):
    """What a walk at one cutoff was like; (B,)."""

    acceptance: jax.Array
    """Mean after tuning."""
    num_gradients: jax.Array
    """All, those of the tuning included."""
    step_size: jax.Array
    """Radians, mean after tuning."""
    angle: jax.Array
    """Of a trajectory, radians, mean after tuning."""


# -- function coordinates -------------------------------------------------------------------------------------
def _left(geometry: Geometry, held: State, arrays: Any, count: int) -> jax.Array:
    """U of the stiffest `count` modes, (n, R, count); zero where λ is zero."""
    (modes,) = held.modes
    root = jnp.sqrt(modes.values[:count])
    if modes.weights is not None:
        return modes.weights[..., :count] * root
    total = modes.values.shape[0]

    def column(k):
        mode = geometry.from_modes(arrays, jax.nn.one_hot(k, total, dtype=root.dtype))
        return geometry.push(held.params, held.data, draw_key(held), mode)

    columns = jnp.moveaxis(jax.lax.map(column, jnp.arange(min(count, total))), 0, -1)
    return columns / jnp.where(root > 0, root, 1.0)


def fibre_of(spec: FibreSpec, draw: tuple[State, Params, Params, jax.Array], shared: State) -> Fibre:
    """The fibre of one draw: (own part of the metric's arrays, θ*, θ₀, key)."""
    own, theta, refill, key = draw
    held = hold((own, shared))
    data = held.data.numbered()
    found = outputs(spec.bound, spec.geometry.how, theta, data, draw_key(held))
    n, entries, k, r = found.root.shape
    left = _left(spec.geometry, held, (own, shared), spec.count)
    left = left.reshape(n, entries, r, -1)
    table = jnp.einsum("nekr,nerm->mekn", found.root, left) / n**0.5
    table = table.reshape(table.shape[0], entries * k, n)
    centre = jnp.einsum("kcn,nc->k", table, found.eta.reshape(n, -1))
    return Fibre(theta, refill, held.modes[0].values[:spec.count], table, centre, key)


def _eta(spec: FibreSpec, params: Params, shared: State) -> jax.Array:
    """η, (n, C)."""
    data = shared.data.numbered()
    # Labels that a Monte-Carlo metric would draw here are those of its root, which is not used: they are never drawn.
    found = outputs(spec.bound, spec.geometry.how, params, data, jax.random.key(0))
    return found.eta.reshape(num_points(data.x), -1)


def coordinates(spec: FibreSpec, fibre: Fibre, params: Params, shared: State) -> jax.Array:
    """s(θ), (K,)."""
    return jnp.einsum("kcn,nc->k", fibre.map, _eta(spec, params, shared))


# -- coordinates of the walk ----------------------------------------------------------------------------------
def white(spec: FibreSpec, params: Params, shared: State, sites: tuple[str, ...]) -> jax.Array:
    """Coordinates of `sites` that are N(0, 1) under the prior, as one vector."""
    return ravel(spec.bound.to_normal(params, shared.data.x, sites), sites) if sites else jnp.zeros(0)


def _params(spec: FibreSpec, fibre: Fibre, z: jax.Array, shared: State) -> Params:
    """All sites, native coordinates; those of a collapsed readout are at θ*."""
    named = unravel(z, spec.shapes(spec.moved))
    return spec.bound.from_normal(named, fibre.theta, shared.data.x)


def _readout(spec: FibreSpec, fibre: Fibre, params: Params, shared: State) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The readout's part in s as a linear map: A (K, rows · C), and its prior mean and scale (rows · C,).

    Rows of a readout site that does not flow have the scale 0 and stay where they are.
    """
    readout = spec.bound.readout
    assert readout is not None
    design = readout.design(params, shared.data.x)  # (n, rows)
    table = jnp.einsum("kcn,nj->kjc", fibre.map, design)
    mean, scale = readout.moments(params)
    free = readout.stack({s: jnp.full(spec.bound.site(s).shape, s in spec.sites) for s in readout.sites})
    mean, scale = jnp.where(free, mean, readout.stack(fibre.theta)), jnp.where(free, scale, 0.0)
    return table.reshape(table.shape[0], -1), mean.ravel(), scale.ravel()


def walls(spec: FibreSpec, fibre: Fibre, z: jax.Array, cutoff: jax.Array, width: jax.Array, shared: State) -> jax.Array:
    """Log of what the target has beside N(0, 1) at z: Σ_{λ_k ≥ Λ} log N(s_k; s_k*, width²), up to a constant.

    With a collapsed readout its integral over the readout's prior, N(s*; A m, A Σ Aᵀ + width²).
    """
    keep = fibre.values >= cutoff
    params = _params(spec, fibre, z, shared)
    if not spec.collapsed:
        gap = coordinates(spec, fibre, params, shared) - fibre.centre
        return -0.5 * jnp.sum(jnp.where(keep, gap, 0.0) ** 2) / width**2
    table, mean, scale = _readout(spec, fibre, params, shared)
    law = Readout(mean[:, None], scale, width)
    return log_marginal(law, jnp.where(keep[:, None], table, 0.0), jnp.where(keep, fibre.centre, 0.0)[:, None])


def land(spec: FibreSpec, fibre: Fibre, z: jax.Array, cutoff: jax.Array, width: jax.Array, shared: State
         ) -> tuple[Params, jax.Array]:
    """θ_Λ on the flowing sites from where a walk ended, and its worst |s_k − s_k*|/width over kept coordinates.

    A collapsed readout is drawn from its exact conditional by Matheron's rule, that of θ₀ being the prior draw.
    """
    keep = fibre.values >= cutoff
    params = _params(spec, fibre, z, shared)
    if spec.collapsed:
        readout = spec.bound.readout
        assert readout is not None
        table, mean, scale = _readout(spec, fibre, params, shared)
        whitened = spec.bound.to_normal({**fibre.theta, **fibre.refill}, shared.data.x, readout.sites)
        noise = jax.random.normal(name_key(fibre.key, "walls"), keep.shape, table.dtype)  # the same at every cutoff
        drawn = matheron(Readout(mean[:, None], scale, width), jnp.where(keep[:, None], table, 0.0),
                         jnp.where(keep, fibre.centre, 0.0)[:, None], readout.stack(whitened).reshape(-1, 1),
                         noise[:, None])
        params = {**params, **readout.split(drawn.reshape(-1, readout.outputs))}
    gap = jnp.abs(coordinates(spec, fibre, params, shared) - fibre.centre) / width
    gone = ~keep.any()  # nothing is held: θ₀ itself
    moved = {s: jnp.where(gone, fibre.refill[s], params[s].astype(fibre.theta[s].dtype)) for s in spec.sites}
    return moved, jnp.max(jnp.where(keep, gap, 0.0))


# -- the walk -------------------------------------------------------------------------------------------------
class Tuning(NamedTuple):
    """Numbers that a walk is run with; all may differ from call to call of one program."""

    cutoff: jax.Array
    """Λ, per datum."""
    width: jax.Array
    """√(ηΛ)."""
    heat: jax.Array
    """Width at the start over that at the end; 1 from θ*."""
    level: jax.Array
    """Number of the cutoff, with which keys are folded."""
    num_tuning: jax.Array
    num_transitions: jax.Array
    """After tuning."""
    angle: jax.Array
    """Mean of a trajectory's, radians."""
    accept: jax.Array
    """Mean acceptance that the step is tuned to."""
    max_steps: jax.Array


def walk(spec: FibreSpec, fibres: Fibre, start: Walk, tuning: Tuning, shared: State) -> tuple[Walk, Report]:
    """Transitions of the chains of a group at one cutoff, in step: one angle for all, and the steps of the chain that
    needs most; chains that mapped together would wait for it anyway.

    Rotation HMC: ½|z|² + ½|p|² is solved exactly, the walls kick (see `bayes_brg.inference.split_hmc.rotation`).
    """
    group, size = start.z.shape
    level_keys = jax.vmap(lambda key: jax.random.fold_in(name_key(key, "walk"), tuning.level))(fibres.key)

    held = (fibres.values[:, 0] >= tuning.cutoff).astype(start.z.dtype)  # those that have anything to keep

    def density(z, width):
        def one(fibre, z):
            return walls(spec, fibre, z, tuning.cutoff, width, shared)

        return jax.vmap(jax.value_and_grad(one, argnums=1))(fibres, z)

    def transition(t, carry):
        z, log_step, mean, sums = carry
        keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, t)))(level_keys)
        # The angle is shared and spread, so that no direction comes back every time.
        spread = jax.random.uniform(jax.random.fold_in(keys[0, 0], 1), dtype=z.dtype, minval=0.8, maxval=1.2)
        step = jnp.exp(jnp.min(jnp.where(held > 0, log_step, jnp.inf)))
        steps = jnp.clip(jnp.ceil(tuning.angle * spread / step), 1, tuning.max_steps).astype(jnp.int32)
        h = jnp.minimum(tuning.angle * spread / steps, step)
        late = t >= tuning.num_tuning
        left = 1 - t / jnp.maximum(COOLING * tuning.num_tuning, 1)
        width = tuning.width * tuning.heat ** jnp.where(late, 0.0, jnp.maximum(left, 0.0)).astype(z.dtype)
        p = jax.vmap(lambda k: jax.random.normal(k, (size,), z.dtype))(keys[:, 0])
        value, grad = density(z, width)

        def leap(_, state):
            q, p, _, grad = state
            p = p + 0.5 * h * grad
            q, p = jnp.cos(h) * q + jnp.sin(h) * p, jnp.cos(h) * p - jnp.sin(h) * q
            value, grad = density(q, width)
            return q, p + 0.5 * h * grad, value, grad

        end = jax.lax.fori_loop(jnp.int32(0), steps, leap, (z, p, value, grad))
        gain = end[2] - value - 0.5 * jnp.sum(end[0] ** 2 + end[1] ** 2 - z**2 - p**2, axis=1)
        accept = jnp.where(jnp.isfinite(gain), jnp.exp(jnp.minimum(gain, 0.0)), 0.0)
        taken = jax.vmap(lambda k: jax.random.uniform(k, dtype=z.dtype))(keys[:, 1]) < accept
        z = jnp.where(taken[:, None], end[0], z)
        tuned = log_step + (accept - tuning.accept) / (1.0 + t) ** 0.5  # Robbins and Monro
        # Who might have taken longer steps than the others let it is not known to take any.
        tuned = jnp.minimum(tuned, jnp.log(SPREAD * h))
        # Acceptance falls from most to nothing within a few per cent of the step: what is kept is the mean of the
        # second half, and not where the last few happened to push it.
        count = t - tuning.num_tuning // 2 + 1
        mean = jnp.where(count > 0, mean + (tuned - mean) / jnp.maximum(count, 1), mean)
        tuned = jnp.where(t + 1 == tuning.num_tuning, mean, tuned)
        log_step = jnp.where(late, log_step, tuned)
        counted = jnp.where(late, 1.0, 0.0)
        sums = Report(sums.acceptance + counted * accept, sums.num_gradients + steps + 1,
                      sums.step_size + counted * h, sums.angle + counted * h * steps)
        return z, log_step, mean, sums

    zero = jnp.zeros(group, start.z.dtype)
    last = (tuning.num_tuning + tuning.num_transitions).astype(jnp.int32)
    begin = start.z, start.log_step, jnp.zeros_like(start.log_step), Report(zero, zero, zero, zero)
    z, log_step, _, sums = jax.lax.fori_loop(jnp.int32(0), last, transition, begin)
    late = jnp.maximum(tuning.num_transitions, 1)
    return Walk(z, log_step), Report(sums.acceptance / late, sums.num_gradients, sums.step_size / late,
                                     sums.angle / late)
