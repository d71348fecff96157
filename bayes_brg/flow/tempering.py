"""Particles moved along π_t ∝ π₀ L^t, between the posterior (t = 1) and the prior (t = 0) (theory §9).

A level is one power t: particles come to it with weights L^{t′−t}, are resampled where these weights have become
unequal, and are moved by Hamiltonian Monte Carlo that leaves π_t invariant. The power is an argument of the compiled
code, which is therefore one program for all levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.special import logsumexp

from ..core.batching import default_chunk, map_draws
from ..core.keys import name_key
from ..model.bound import BoundModel, Params
from ..posterior import work

PASSES = 2000  # gradients a particle, roughly: what a run is counted as when it is compiled
CLEAR = 5.0  # standard errors by which the particles must contradict the prior's scale of a coordinate


@dataclass(frozen=True)
class Coordinates:
    """The flowing sites as one real vector u, the others held. Hashable: it keys the compiled code."""

    bound: BoundModel
    sites: tuple[str, ...]

    @property
    def held(self) -> tuple[str, ...]:
        return tuple(s for s in self.bound.names if s not in self.sites)

    @property
    def single(self) -> bool:
        """Whether each particle has values of its own that do not flow: then it is no copy of another's."""
        return bool(self.held)

    def unravel(self, x: Any, y: Any) -> Callable[[jax.Array], Params]:
        """From the vector to named unconstrained coordinates."""
        shapes = self.bound.shapes(x, y)
        return ravel_pytree({s: jnp.zeros(shapes[s].shape, shapes[s].dtype) for s in self.sites})[1]

    def native(self, u: jax.Array, held: Params, x: Any, y: Any) -> Params:
        """Native values of every site."""
        return self.bound.constrain({**held, **self.unravel(x, y)(u)}, x, y)

    def densities(self, u: jax.Array, held: Params, x: Any, y: Any) -> tuple[jax.Array, jax.Array]:
        """Log prior density of u (Jacobian included) and log-likelihood, factors with it, in nats."""
        coords = {**held, **self.unravel(x, y)(u)}
        params = self.bound.constrain(coords, x, y)
        likelihood = jnp.sum(self.bound.weighted_log_likelihood(params, x, y)) + self.bound.log_factors(params, x, y)
        return self.bound.log_prior_of(coords, x, y), likelihood


class Particle(NamedTuple):
    """One particle; of several each array has the leading axis T."""

    u: jax.Array
    """(P,): coordinates that flow."""
    held: Params
    """Unconstrained coordinates of the sites that do not."""
    index: jax.Array
    """Its slot."""


class Motion(NamedTuple):
    """How the particles of a level are moved; the same for all of them."""

    key: jax.Array
    power: jax.Array
    """t."""
    step: jax.Array
    """Radians of one kick."""
    steps: jax.Array
    """Kicks a transition."""
    centre: jax.Array
    """(P,): mean of the Gaussian whose motion is solved exactly."""
    width: jax.Array
    """(P,): its standard deviations."""


def start_one(space: Coordinates, params: Params, x: Any, y: Any) -> tuple[jax.Array, Params, jax.Array]:
    """Coordinates of one draw, those of its held sites, and its log-likelihood."""
    coords = space.bound.unconstrain(params, x, y)
    u = ravel_pytree({s: coords[s] for s in space.sites})[0].astype(jnp.result_type(float))
    held = {s: coords[s] for s in space.held}
    return u, held, space.densities(u, held, x, y)[1]


def native_one(space: Coordinates, particle: Particle, x: Any, y: Any) -> Params:
    """The flowing sites of one particle, native coordinates."""
    params = space.native(particle.u, particle.held, x, y)
    return {s: params[s] for s in space.sites}


def move_one(space: Coordinates, transitions: int, particle: Particle, motion: Motion, x: Any, y: Any
             ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One particle after so many transitions: coordinates, log-likelihood after each, acceptance of each.

    The motion of N(centre, width²) is a rotation and is solved exactly; what π_t lacks to that Gaussian kicks [1]_.

    References
    ----------
    .. [1] Shahbaba, Lan, Johnson and Neal, Split Hamiltonian Monte Carlo, Statistics and Computing 24 (2014),
       arXiv:1106.5941.
    """
    def density(v):
        prior, likelihood = space.densities(motion.centre + motion.width * v, particle.held, x, y)
        return prior + motion.power * likelihood, likelihood

    evaluate = jax.value_and_grad(density, has_aux=True)
    cos, sin = jnp.cos(motion.step), jnp.sin(motion.step)

    def kick(_, state):
        v, p, _, grad = state
        p = p + 0.5 * motion.step * (grad + v)
        v, p = cos * v + sin * p, cos * p - sin * v
        value, grad = evaluate(v)
        return v, p + 0.5 * motion.step * (grad + v), value, grad

    def transition(state, key):
        v, value, grad = state
        momentum_key, accept_key = jax.random.split(key)
        p = jax.random.normal(momentum_key, v.shape, v.dtype)
        end, p_end, new, slope = jax.lax.fori_loop(0, motion.steps, kick, (v, p, value, grad))
        gain = new[0] - value[0] + 0.5 * (jnp.sum(p**2) - jnp.sum(p_end**2))
        gain = jnp.where(jnp.isfinite(gain) & jnp.isfinite(new[1]), gain, -jnp.inf)
        accept = jnp.log(jax.random.uniform(accept_key, dtype=v.dtype)) < gain
        state = jax.tree.map(lambda a, b: jnp.where(accept, a, b), (end, new, slope), (v, value, grad))
        return state, (state[1][1], jnp.minimum(1.0, jnp.exp(jnp.minimum(gain, 0.0))))

    v = (particle.u - motion.centre) / motion.width
    keys = jax.random.split(jax.random.fold_in(motion.key, particle.index), transitions)
    (v, _, _), (likelihood, accept) = jax.lax.scan(transition, (v, *evaluate(v)), keys)
    return motion.centre + motion.width * v, likelihood, accept


# -- weights ------------------------------------------------------------------------------------------------------
def effective(log_weights: np.ndarray) -> float:
    """Effective number (Σw)²/Σw² of weights given by their logarithms."""
    if not np.isfinite(log_weights).any():
        return 0.0
    return float(np.exp(2 * logsumexp(log_weights) - logsumexp(2 * log_weights)))


def conditional_share(log_w: np.ndarray, gain: np.ndarray) -> float:
    """Conditional effective share (Σ W r)²/Σ W r² of increments r = e^gain under normalised weights W [1]_.

    References
    ----------
    .. [1] Zhou, Johansen and Aston, Toward automatic model comparison, JCGS 25 (2016), arXiv:1303.3123.
    """
    top = logsumexp(log_w + gain)
    return float(np.exp(2 * top - logsumexp(log_w + 2 * gain))) if np.isfinite(top) else 0.0


def next_power(log_w: np.ndarray, energy: np.ndarray, power: float, goal: float, share: float) -> float:
    """The power nearest to `goal` at which increments from `power` keep that conditional effective share."""
    def kept(to):
        return conditional_share(log_w, (to - power) * energy)

    if kept(goal) >= share:
        return goal
    # On a grid of log t where both ends have one, else of t: heating goes down by factors.
    low, high = 0.0, 1.0
    def place(f):
        if goal > 0 and power > 0:
            return power * (goal / power) ** f
        return power + (goal - power) * f

    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if kept(place(middle)) >= share else (low, middle)
    return place(low) if low > 0 else place(high)


def systematic(weights: np.ndarray, place: float) -> np.ndarray:
    """Systematic resampling: the slot that each particle takes its state from, (T,).

    A particle that stays keeps its slot; further copies go to the slots of those that go, in order.
    """
    count = len(weights)
    edges = np.cumsum(weights) / np.sum(weights) * count
    edges[-1] = count
    copies = np.diff(np.ceil(edges - place).clip(0, count), prepend=0).astype(int)
    ancestors = np.arange(count)
    extra = np.repeat(np.arange(count), np.maximum(copies - 1, 0))
    ancestors[copies == 0] = extra[:np.sum(copies == 0)]
    return ancestors


# -- the walk -----------------------------------------------------------------------------------------------------
class Level(NamedTuple):
    """What happened at one power."""

    power: float
    increment: np.ndarray
    """(T,): log-likelihood that the particles came with, from the level before."""
    log_weights: np.ndarray
    """(T,): normalised, of the moved particles."""
    weight_ess: float
    """Effective number of the weights before any resampling."""
    ancestors: np.ndarray
    """(T,): slot at the level before."""
    energies: np.ndarray
    """(transition, T): log-likelihood of each particle after each of its transitions, in nats."""
    accept: float
    angle: float
    """Mean angle of a transition, radians."""
    steps: float
    """Mean number of gradients of a transition."""
    step: float
    forgotten: float
    """Correlation of the log-likelihood with that before the moves."""
    samples: dict[str, np.ndarray] | None
    """Native draws, (T, *site shape), where they are kept."""


class Options(NamedTuple):
    """How particles walk; see `renormalize_tempered`."""

    share: float
    moves: int
    angle: float
    accept: float
    max_steps: int
    resample: float = 0.5
    together: int = 2
    """Transitions between two adaptations of the step."""


@dataclass
class Walk:
    """Particles on their way from one end of the path to the other."""

    space: Coordinates
    options: Options
    key: jax.Array
    x: Any
    y: Any
    reference: tuple[np.ndarray, np.ndarray] | None
    """Centre and width of each coordinate under the prior; None where it is improper."""
    particles: Particle
    energy: np.ndarray
    power: float
    step: float = 0.2
    rounds: int = 0

    def __post_init__(self):
        self.log_w = np.full(len(self.energy), -math.log(len(self.energy)))
        self.chunk = default_chunk(work(self.space.bound, self.x) + self.particles.u.shape[1])

    @property
    def size(self) -> int:
        return len(self.energy)

    def gaussian(self) -> tuple[jax.Array, jax.Array]:
        """The reference of the moves: that of the prior, but for coordinates where the particles contradict it."""
        u = np.asarray(self.particles.u, np.float64)
        weights, dtype = np.exp(self.log_w), self.particles.u.dtype
        mean = weights @ u
        variance = weights @ (u - mean) ** 2
        if self.reference is None:
            return jnp.asarray(mean, dtype), jnp.asarray(np.sqrt(np.maximum(variance, 1e-30)), dtype)
        centre, width = self.reference
        number = 1 / np.sum(weights**2)
        variance = (number * variance + 5e-3 * width**2) / (number + 5e-3)
        clear = ((np.abs(np.log(variance / width**2)) > CLEAR * np.sqrt(2 / number))
                 | (np.abs(mean - centre) > CLEAR * width / np.sqrt(number)))
        return (jnp.asarray(np.where(clear, mean, centre), dtype),
                jnp.asarray(np.where(clear, np.sqrt(variance), width), dtype))

    def round(self, particles: Particle, power: float, reference: tuple[jax.Array, jax.Array]
              ) -> tuple[Particle, np.ndarray, float, float, int]:
        """A few transitions of all particles, after which the step is adapted.

        Returns the particles, their log-likelihoods (transition, T), acceptance, angle and steps.
        """
        self.rounds += 1
        key = jax.random.fold_in(self.key, self.rounds)
        # One angle for all, spread so that no direction comes back every time.
        angle = self.options.angle * float(jax.random.uniform(jax.random.fold_in(key, 0), minval=0.8, maxval=1.2))
        steps = int(np.clip(math.ceil(angle / self.step), 1, self.options.max_steps))
        step = min(angle / steps, self.step)
        t, small = (jnp.asarray(v, particles.u.dtype) for v in (power, step))
        motion = Motion(jax.random.fold_in(key, 1), t, small, jnp.asarray(steps), *reference)
        u, energies, accept = map_draws(move_one, (self.space, self.options.together), particles,
                                        (motion, self.x, self.y), chunk=self.chunk, passes=PASSES)
        accepted = float(np.mean(np.asarray(accept)))
        self.step = min(self.step * math.exp(accepted - self.options.accept), self.options.angle)
        return particles._replace(u=u), np.asarray(energies, np.float64).T, accepted, step * steps, steps

    def tune(self) -> np.ndarray:
        """Find the step on copies of the particles, and move them on: their log-likelihoods then, (transition, T)."""
        particles, near, seen = self.particles, 0, []
        reference = self.gaussian()
        for _ in range(25):
            particles, _, accept, _, _ = self.round(particles, self.power, reference)
            near = near + 1 if abs(accept - self.options.accept) < 0.1 else 0
            if near == 3:
                break
        for _ in range(math.ceil(self.options.moves / self.options.together)):
            particles, energies, *_ = self.round(particles, self.power, reference)
            seen.append(energies)
        return np.concatenate(seen)

    def to(self, goal: float, keep: bool) -> Level:
        """The next level on the way to `goal`, at which draws are kept if it is reached and `keep`."""
        power = next_power(self.log_w, self.energy, self.power, goal, self.options.share)
        here = self.energy
        weight_ess, ancestors = float(self.size), np.arange(self.size)
        if not self.space.single:
            self.log_w = self.log_w + (power - self.power) * here
            self.log_w = self.log_w - logsumexp(self.log_w)
            weight_ess = effective(self.log_w)
            if weight_ess < self.options.resample * self.size or (keep and power == goal):
                place = jax.random.uniform(jax.random.fold_in(name_key(self.key, "resample"), self.rounds))
                ancestors = systematic(np.exp(self.log_w), float(place))
                self.particles = self.particles._replace(u=self.particles.u[jnp.asarray(ancestors)])
                self.log_w = np.full(self.size, -math.log(self.size))
        if 0 < self.power and power < self.power:  # kicks are t times the likelihood's
            self.step = min(self.step * math.sqrt(self.power / power), self.options.angle)
        elif 0 < self.power:
            self.step *= math.sqrt(self.power / power)
        self.power = power
        reference, rounds = self.gaussian(), []
        for _ in range(math.ceil(self.options.moves / self.options.together)):
            self.particles, *report = self.round(self.particles, power, reference)
            rounds.append(report)
        energies = np.concatenate([r[0] for r in rounds])
        self.energy = energies[-1]
        accept, angle, steps = (float(np.mean([r[i] for r in rounds])) for i in (1, 2, 3))
        samples = self.native() if keep and power == goal else None
        return Level(power, here, self.log_w, weight_ess, ancestors, energies, accept, angle, steps, self.step,
                     correlation(here[ancestors], self.energy, np.exp(self.log_w)), samples)

    def native(self) -> dict[str, np.ndarray]:
        """Native draws of the flowing sites, leading axis T."""
        found = map_draws(native_one, (self.space,), self.particles, (self.x, self.y), chunk=self.chunk)
        return {s: np.asarray(v) for s, v in found.items()}


def correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> float:
    """Weighted correlation of two numbers a particle; 0 where one of them does not vary."""
    weights = np.where(np.isfinite(a) & np.isfinite(b), weights, 0.0)
    if not weights.any():
        return 0.0
    weights, a, b = weights / weights.sum(), np.where(weights > 0, a, 0.0), np.where(weights > 0, b, 0.0)
    a, b = a - weights @ a, b - weights @ b
    spread = math.sqrt((weights @ a**2) * (weights @ b**2))
    return float(weights @ (a * b) / spread) if spread > 0 else 0.0
