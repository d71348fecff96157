"""Refill from the Jeffreys prior of the sloppy parameters, π_<(θ_<) ∝ √det I_<(θ_<, θ_>) (54)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from ..core.batching import map_draws
from ..core.keys import name_key
from ..core.lazy import blackjax, load_blackjax
from ..metric.geometry import State
from ..model.bound import Params
from ..posterior import Posterior
from .cutoffs import check_cutoff, working
from .flow import Flow, renormalized
from .mapped import MappedFlow
from .one_member import Member, coupled_axes
from .refills import Refill

MAX_SLOPPY = 8
NODES = 4096
STARTS = 16
WARMUP = 300
STEPS = 20  # after warm-up, so that a draw no longer depends on the adaptation
BLOCK = 2000  # members drawn at once


class Jeffreys(Refill):
    """A draw from the Jeffreys prior of the sloppy parameters, given the stiff ones; made by a flow of its own."""

    name = "jeffreys"

    def flow(self, flow, bounds):
        return jeffreys_flow(flow, bounds)


@dataclass(frozen=True)
class JeffreysFlow(MappedFlow):
    """A flow whose sloppy parameters are drawn anew at every Λ, given the stiff ones; see `Flow`.

    The sloppy set changes with Λ, and with it the law; a member's random numbers still come from the key and its
    number alone.

    Attributes
    ----------
    low, high : dict of site to array
        Ends of the interval of each entry, flat.
    """

    low: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    high: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    def at(self, cutoff: float) -> Posterior:
        cutoff = check_cutoff(cutoff)
        if cutoff == 0:
            return self.posterior
        sloppy = self._sloppy(cutoff)
        flat = {s: np.asarray(self.posterior.flat()[s]).copy() for s in self.spec.bound.names}
        sets, which = np.unique(sloppy, axis=0, return_inverse=True)
        for k, mask in enumerate(sets):
            members = np.flatnonzero(np.ravel(which) == k)
            if mask.any():
                new = self._draw(mask, {s: v[members] for s, v in flat.items()}, members, cutoff)
                for s, v in new.items():
                    flat[s][members] = v
        return renormalized(self.posterior, {s: jnp.asarray(flat[s]) for s in self.spec.sites}, cutoff)

    def _sloppy(self, cutoff: float) -> np.ndarray:
        """Which parameters of each member are sloppy, (T, P)."""
        values = self.metric.flat_stiffness()
        lead = self.posterior.size if self.metric.per_draw else 1
        flat = np.concatenate([np.asarray(values[s]).reshape(lead, -1) for s in self.spec.sites], axis=1)
        below = flat < working(cutoff)
        return np.broadcast_to(below, (self.posterior.size, below.shape[1]))

    def _draw(self, mask: np.ndarray, members: Params, index: np.ndarray, cutoff: float) -> dict[str, np.ndarray]:
        """New values of the flowing sites of some members that share one sloppy set."""
        chosen = tuple(int(i) for i in np.flatnonzero(mask))
        if len(chosen) > MAX_SLOPPY:
            raise ValueError(f"{len(chosen)} parameters are sloppy at Λ = {cutoff:g}; a Jeffreys refill draws at most "
                             f"{MAX_SLOPPY} together: lower the cutoff, or use refill='prior'")
        low, high = (np.concatenate([ends[s] for s in self.spec.sites]) for ends in (self.low, self.high))
        for i in chosen:
            if not (np.isfinite(low[i]) and np.isfinite(high[i])):
                raise ValueError(f"the Jeffreys prior of {self._name(i)} is improper on an unbounded support, so it "
                                 f"cannot refill it at Λ = {cutoff:g}; pass bounds={{{self._name(i).split('[')[0]!r}: "
                                 "(low, high)}, or use refill='prior'")
        flat = np.concatenate([np.asarray(members[s]).reshape(len(index), -1) for s in self.spec.sites], axis=1)
        shared = self.metric.arrays()[1], jnp.asarray(low), jnp.asarray(high)
        blocks = [slice(i, i + BLOCK) for i in range(0, len(index), BLOCK)]
        draws = np.concatenate([self._draw_block(chosen, {s: v[b] for s, v in members.items()}, flat[b], index[b],
                                                 shared)
                                for b in blocks])
        if not np.isfinite(draws).all():
            raise ValueError(f"the Fisher metric of the {len(chosen)} parameters sloppy at Λ = {cutoff:g} is singular "
                             f"({', '.join(map(self._name, chosen))}), so its Jeffreys density is zero everywhere: use "
                             "more probe inputs, or refill='prior'")
        flat[:, list(chosen)] = draws
        out, start = {}, 0
        for s in self.spec.sites:
            size = int(np.prod(members[s].shape[1:]))
            out[s] = flat[:, start:start + size].reshape(members[s].shape)
            start += size
        return out

    def _draw_block(self, chosen: tuple[int, ...], members: Params, flat: np.ndarray, index: np.ndarray, shared: tuple
                    ) -> np.ndarray:
        if len(chosen) > 1:
            draws = Member({s: jnp.asarray(v) for s, v in members.items()}, jnp.asarray(index))
            return np.asarray(map_draws(_draw_by_nuts, (self.spec, chosen), draws, (self.key, *shared), chunk=64,
                                        passes=10_000))
        # Members that agree in everything else share one density: its table is made once.
        others = [np.delete(flat, chosen, axis=1)]
        others += [v.reshape(len(index), -1) for s, v in members.items() if s not in self.spec.sites]
        _, first, which = np.unique(np.concatenate(others, axis=1), axis=0, return_index=True, return_inverse=True)
        distinct = {s: jnp.asarray(v[first]) for s, v in members.items()}
        tables = map_draws(_table_one, (self.spec, chosen), distinct, shared, chunk=16)
        mine = tables[jnp.asarray(np.ravel(which))], jnp.asarray(index)
        return np.asarray(map_draws(_invert_one, (chosen,), mine, (self.key, *shared[1:]), chunk=16))

    def _name(self, i: int) -> str:
        for s in self.spec.sites:
            shape = self.spec.bound.site(s).shape
            size = int(np.prod(shape))
            if i < size:
                index = ", ".join(str(k) for k in np.unravel_index(i, shape))
                return f"{s}[{index}]" if shape else s
            i -= size
        raise IndexError(i)

    _along, _sums = Flow._along, Flow._sums  # draw by draw: nothing is shared between scales


def jeffreys_flow(flow: MappedFlow, bounds: Mapping[str, tuple]) -> JeffreysFlow:
    """A flow with the same parts that refills from the Jeffreys prior."""
    load_blackjax()
    if not (flow.spec.native and flow.regulator.sharp and not flow.metric.whiten):
        raise ValueError("refill='jeffreys' is defined for the sharp flow of a diagonal, native, unwhitened metric")
    for s in bounds:
        if s not in flow.spec.sites:
            raise ValueError(f"bounds name site {s!r}, which does not flow; flowing: {', '.join(flow.spec.sites)}")
    low: dict[str, np.ndarray] = {}
    high: dict[str, np.ndarray] = {}
    for s in flow.spec.sites:
        site = flow.spec.bound.site(s)
        if coupled_axes(site.support):
            raise ValueError(f"the support of site {s!r} ties its entries together ({site.support}), and a Jeffreys "
                             "refill draws each entry within an interval of its own; leave the site out with sites= of "
                             "brg.fisher, or use refill='prior'")
        ends = _bounds(site.support)
        given = bounds.get(s, ends)
        if np.ndim(given) == 0 or len(given) != 2:
            raise ValueError(f"bounds of site {s!r} must be (low, high), got {given!r}")
        a, b = (np.ravel(np.broadcast_to(np.asarray(end, float), site.shape)) for end in given)
        if not (a < b).all():
            raise ValueError(f"bounds of site {s!r} must be (low, high) with low < high, got {given}")
        if (a < np.ravel(ends[0])).any() or (b > np.ravel(ends[1])).any():
            raise ValueError(f"bounds {given} of site {s!r} reach outside its support, {ends}")
        low[s], high[s] = a, b
    parts = {f.name: getattr(flow, f.name) for f in fields(MappedFlow)}
    return JeffreysFlow(**parts, low=low, high=high)


def _bounds(support: Any) -> tuple[Any, Any]:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if isinstance(support, type(constraints.unit_interval)):
        return 0.0, 1.0
    return getattr(support, "lower_bound", -np.inf), getattr(support, "upper_bound", np.inf)


def _half_log_det(spec: Any, chosen: tuple[int, ...], theta: Params, values: jax.Array, shared: State) -> jax.Array:
    """½ log det of the metric of the chosen parameters, put to `values`, given the others."""
    flat = jnp.concatenate([jnp.ravel(theta[s]) for s in spec.sites]).at[jnp.array(chosen)].set(values)
    params, start = dict(theta), 0
    for s in spec.sites:
        params[s] = flat[start:start + theta[s].size].reshape(theta[s].shape)
        start += theta[s].size
    batch = shared.data.numbered()
    n = batch.index.size
    rows = spec.geometry.rows(params, batch, None, spec.sites)
    factor = jnp.concatenate([r.reshape(*r.shape[:2], -1) for r in rows.values()], axis=-1)
    factor = factor[..., jnp.array(chosen)].reshape(-1, len(chosen))
    # In units in which the diagonal is 1, a block is singular where its least eigenvalue is within rounding of 0.
    length = jnp.sqrt(jnp.sum(factor**2, axis=0) / n)
    scaled = factor / jnp.where(length > 0, length, 1.0)
    gram = scaled.T @ scaled / n
    log_det = jnp.linalg.slogdet(gram)[1] + 2 * jnp.sum(jnp.log(jnp.where(length > 0, length, 1.0)))
    least = jnp.linalg.eigvalsh(jax.lax.stop_gradient(gram))[0]
    floor = 8 * len(chosen) * jnp.finfo(gram.dtype).eps
    return jnp.where((least > floor) & jnp.all(length > 0), 0.5 * log_det, -jnp.inf)


def _log_density(spec: Any, chosen: tuple[int, ...], theta: Params, shared: State, low: jax.Array, high: jax.Array):
    """Log Jeffreys density as a function of t.

    θ = low + (high − low) sin²t, t ∈ (0, π/2), takes away the inverse-root ends that Jeffreys densities often have
    (a Bernoulli probability is uniform in t).
    """
    low, high = low[jnp.array(chosen)], high[jnp.array(chosen)]

    def log_density(t):
        values = low + (high - low) * jnp.sin(t) ** 2
        jacobian = jnp.sum(jnp.log((high - low) * jnp.abs(jnp.sin(2 * t))))
        return _half_log_det(spec, chosen, theta, values, shared) + jacobian

    return log_density


def _member_key(key: jax.Array, index: jax.Array) -> jax.Array:
    return name_key(jax.random.fold_in(key, index), "jeffreys")


def _table_one(spec: Any, chosen: tuple[int, ...], theta: Params, shared: State, low: jax.Array, high: jax.Array
               ) -> jax.Array:
    """Cumulative Jeffreys mass of one parameter at the edges of a grid in t, by the midpoint rule."""
    log_density = _log_density(spec, chosen, theta, shared, low, high)
    edges = jnp.linspace(0.0, jnp.pi / 2, NODES + 1)
    log_p = jax.lax.map(lambda t: log_density(t[None]), (edges[1:] + edges[:-1]) / 2, batch_size=256)
    total = jnp.cumsum(jnp.exp(log_p - jnp.max(log_p)))
    return jnp.concatenate([jnp.zeros(1, total.dtype), total / total[-1]])


def _invert_one(chosen: tuple[int, ...], member: tuple, key: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """A draw of one parameter by the inverse of its table."""
    low, high = low[jnp.array(chosen)], high[jnp.array(chosen)]
    table, index = member
    place = jax.random.uniform(_member_key(key, index), dtype=table.dtype)
    t = jnp.interp(place, table, jnp.linspace(0.0, jnp.pi / 2, NODES + 1))
    return low + (high - low) * jnp.sin(t) ** 2


def _draw_by_nuts(spec: Any, chosen: tuple[int, ...], member: Member, key: jax.Array, shared: State, low: jax.Array,
                  high: jax.Array) -> jax.Array:
    """A draw of several parameters by NUTS in the logit of t/(π/2); NaN where the density vanishes."""
    log_density = _log_density(spec, chosen, member.theta, shared, low, high)

    def unbounded(u):
        return log_density(jnp.pi / 2 * jax.nn.sigmoid(u)) + jnp.sum(jax.nn.log_sigmoid(u) + jax.nn.log_sigmoid(-u))

    start_key, warm_key, run_key = jax.random.split(_member_key(key, member.index), 3)
    # Started from the likeliest of a few places: the middle may be singular, as the origin of a network's weights is.
    places = jax.random.logistic(start_key, (STARTS, len(chosen)))
    start = places[jnp.argmax(jax.lax.map(unbounded, places))]
    adapt = blackjax.window_adaptation(blackjax.nuts, unbounded)
    (state, parameters), _ = adapt.run(warm_key, start, num_steps=WARMUP)
    step = blackjax.nuts(unbounded, **parameters).step
    state, _ = jax.lax.scan(lambda s, k: (step(k, s)[0], None), state, jax.random.split(run_key, STEPS))
    u = jnp.where(jnp.isfinite(unbounded(state.position)), state.position, jnp.nan)
    t = jnp.pi / 2 * jax.nn.sigmoid(u)
    return low[jnp.array(chosen)] + (high - low)[jnp.array(chosen)] * jnp.sin(t) ** 2
