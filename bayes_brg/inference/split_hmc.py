"""Split Hamiltonian Monte Carlo: the motion of a Gaussian reference is solved exactly, the rest is kicked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ..core.batching import quiet
from ..core.checks import check_count, check_positive
from ..core.lazy import blackjax, load_blackjax
from ..posterior import Posterior
from .chains import BLOCK, RunOptions, run_chains
from .target import Target, initial, prepare

__all__ = ["split_hmc"]

FEWEST = 20  # draws of a window, over the chains, that say anything about a variance
SHORTEST = 20  # warm-up draws below which the step alone is tuned: each window starts its tuning anew, and upwards


def rotation(logdensity_fn, kinetic_energy_fn):
    """BlackJAX integrator for a density near N(0, 1): rotation by ε, between two half kicks of what N(0, 1) lacks.

    The Hamiltonian ½|v|² + ½|p|² + R(v), R = −log p − ½|v|², is split into the first two terms, whose flow is the
    rotation of (v, p), and R. The step is limited by R alone and not by the number of coordinates that follow the
    reference, which for the weights of a wide network is nearly all [1]_ [2]_.

    References
    ----------
    .. [1] Beskos, Pinski, Sanz-Serna and Stuart, Hybrid Monte Carlo on Hilbert spaces, SPA 121 (2011).
    .. [2] Shahbaba, Lan, Johnson and Neal, Split Hamiltonian Monte Carlo, Statistics and Computing 24 (2014),
       arXiv:1106.5941.
    """

    def step(state, angle):
        v, p, _, grad = state
        p = p + 0.5 * angle * (grad + v)
        v, p = jnp.cos(angle) * v + jnp.sin(angle) * p, jnp.cos(angle) * p - jnp.sin(angle) * v
        value, grad = jax.value_and_grad(logdensity_fn)(v)
        return blackjax.mcmc.integrators.IntegratorState(v, p + 0.5 * angle * (grad + v), value, grad)

    return step


class RotationState(NamedTuple):
    """All chains, and what they tune together; P unconstrained coordinates."""

    keys: jax.Array
    """(chain,): of the momenta and the accept steps."""
    key: jax.Array
    """Of the angle, the same for all chains."""
    count: jax.Array
    """Transitions made."""
    u: jax.Array
    """(chain, P): positions."""
    value: jax.Array
    """(chain,): log density, nats."""
    grad: jax.Array
    """(chain, P): its gradient."""
    centre: jax.Array
    """(P,): mean of the Gaussian reference."""
    width: jax.Array
    """(P,): its standard deviations."""
    dual: Any
    """BlackJAX's dual averaging of the step."""
    step_size: jax.Array
    """Radians."""
    moments: tuple[jax.Array, jax.Array, jax.Array]
    """Number, mean and sum of squares of the draws of the current window, over the chains."""


@dataclass(frozen=True)
class RotationKernel:
    """HMC by a fixed angle with the `rotation` integrator; chains share the reference and the step they tune.

    The reference starts as the prior (the coordinates are whitened) and follows the draws of the warm-up.
    """

    target: Target
    warmup: int
    angle: float
    target_accept_prob: float
    max_steps: int
    step_size: float = 0.2
    pooled: ClassVar[bool] = True

    def begin(self, keys, start, x, y):
        flat = jax.vmap(lambda u: ravel_pytree(u)[0])(start)
        unravel = self.target.unravel(x, y)
        value, grad = jax.vmap(jax.value_and_grad(lambda u: self.target.log_density(unravel(u), x, y)))(flat)
        dual = blackjax.adaptation.step_size.dual_averaging_adaptation(self.target_accept_prob)[0](self.step_size)
        zero = jnp.zeros_like(flat[0])
        key, step_size = jax.random.fold_in(keys[0], 1), jnp.asarray(self.step_size, flat.dtype)
        return RotationState(keys, key, jnp.zeros((), int), flat, value, grad, zero, zero + 1, dual, step_size,
                             (jnp.zeros((), flat.dtype), zero, zero))

    def step(self, s: RotationState, x, y):
        key, jitter_key = jax.random.split(s.key)
        keys, move_keys = jnp.moveaxis(jax.vmap(jax.random.split)(s.keys), 1, 0)
        unravel = self.target.unravel(x, y)

        def density(v):
            return self.target.log_density(unravel(s.centre + s.width * v), x, y)

        # One angle for all chains keeps them in step; it is spread so that no direction comes back every time.
        angle = self.angle * jax.random.uniform(jitter_key, minval=0.8, maxval=1.2, dtype=s.u.dtype)
        steps = jnp.clip(jnp.ceil(angle / s.step_size), 1, self.max_steps).astype(jnp.int32)
        small = jnp.minimum(angle / steps, s.step_size)
        state = blackjax.mcmc.hmc.HMCState((s.u - s.centre) / s.width, s.value, s.grad * s.width)
        move = partial(blackjax.mcmc.hmc.build_kernel(rotation), logdensity_fn=density, step_size=small,
                       inverse_mass_matrix=jnp.ones_like(s.centre), num_integration_steps=steps)
        state, info = jax.vmap(move)(move_keys, state)
        new = s._replace(keys=keys, key=key, count=s.count + 1, u=s.centre + s.width * state.position,
                         value=state.logdensity, grad=state.logdensity_grad / s.width)
        new = jax.lax.cond(s.count < self.warmup, self._adapt, lambda new, _: new, new, info.acceptance_rate)
        chains = s.u.shape[0]
        report = {"diverging": info.is_divergent, "num_steps": jnp.broadcast_to(steps, (chains,)),
                  "accept_prob": info.acceptance_rate, "energy": info.energy,
                  "step_size": jnp.broadcast_to(small, (chains,))}
        return new, report

    def _adapt(self, s: RotationState, accept):
        restart, update, _ = blackjax.adaptation.step_size.dual_averaging_adaptation(self.target_accept_prob)
        dual = update(s.dual, jnp.mean(accept))
        number, mean, square = s.moments
        chains = s.u.shape[0]
        delta = s.u - mean
        shift = jnp.sum(delta, axis=0) / (number + chains)
        square = square + jnp.sum(delta * (s.u - mean - shift), axis=0)
        s = s._replace(dual=dual, step_size=jnp.exp(dual.log_step_size),
                       moments=(number + chains, mean + shift, square))
        ends = jnp.asarray([int(f * self.warmup) for f in (0.1, 0.25, 0.5, 0.8)])  # the last before the end

        def window(s):
            number, mean, square = s.moments
            # A little of the reference goes in (as in Stan): chains that stood still have no variance of their own.
            variance = (number * square / jnp.maximum(number - 1, 1) + 5e-3 * s.width**2) / (number + 5)
            # A coordinate keeps its prior scale unless the draws contradict it: estimates for thousands of coordinates
            # that never left the prior would only add noise to the reference.
            informed = ((s.count > ends[0]) & (number >= FEWEST)
                        & (jnp.abs(jnp.log(variance)) > 5 * jnp.sqrt(2 / number)))
            width = jnp.where(informed, jnp.sqrt(variance), s.width)
            centre = jnp.where(informed, mean, s.centre)
            zero = jnp.zeros_like(mean)
            return s._replace(centre=centre, width=width, moments=(jnp.zeros_like(number), zero, zero),
                              dual=restart(s.step_size))

        if self.warmup >= SHORTEST:
            s = jax.lax.cond(jnp.any(s.count == ends), window, lambda s: s, s)
        return s._replace(step_size=jnp.where(s.count == self.warmup, jnp.exp(s.dual.log_step_size_avg), s.step_size))

    def position(self, state, x, y):
        return jax.vmap(self.target.unravel(x, y))(state.u)


def split_hmc(model, x, y, *, key, num_chains: int = 4, num_warmup: int = 1000, num_samples: int = 1000,
              thinning: int = 1, readout: str = "sampled", init: Any = "auto", target_accept_prob: float = 0.65,
              trajectory_length: float = 1.2, max_steps: int = 64, checkpoint: Any = None,
              block_size: int = BLOCK, progress_bar: bool = True) -> Posterior:
    """Posterior draws by Hamiltonian Monte Carlo that solves a Gaussian reference exactly (see `rotation`).

    Made for wide networks with ``readout="collapsed"``: nearly all hidden weights then stay close to their prior, and
    the step does not shrink as the width grows. All chains share the step size and the reference, tuned on their pooled
    draws.

    Parameters
    ----------
    model, x, y, key, num_chains, num_warmup, num_samples, thinning, readout, init, checkpoint, block_size, progress_bar
        As in `nuts`.
    target_accept_prob : float
        Mean acceptance the step is tuned to.
    trajectory_length : float
        Mean angle of a trajectory, in radians. π/2 makes draws of the reference independent; a little less, at a lower
        acceptance, gave up to 1.7 times as many effective draws a gradient on wide nets.
    max_steps : int
        At most so many gradients a transition; a shorter step shortens the trajectory.

    Returns
    -------
    Posterior
        ``method="split_hmc"``; ``stats`` (chain, draw): ``log_joint``, ``diverging``, ``num_steps``, ``accept_prob``,
        ``energy``, ``step_size`` (radians).

    Raises
    ------
    ValueError
        As in `nuts`.

    References
    ----------
    .. [1] Beskos, Pinski, Sanz-Serna and Stuart, Hybrid Monte Carlo on Hilbert spaces, SPA 121 (2011).
    .. [2] Hron, Novak, Pennington and Sohl-Dickstein, Wide Bayesian neural networks have a simple weight posterior,
       ICML 2022, arXiv:2206.07673.
    """
    target, x, y, key = prepare(model, x, y, key, "split_hmc", readout)
    run = RunOptions(num_chains, num_warmup, num_samples, thinning, checkpoint=checkpoint, block_size=block_size)
    with quiet(not progress_bar):
        return run_split_hmc(target, x, y, key, run, init, target_accept_prob, trajectory_length, max_steps)


def run_split_hmc(target: Target, x: Any, y: Any, key: jax.Array, run: RunOptions, init: Any = "auto",
                  target_accept_prob: float = 0.65, trajectory_length: float = 1.2, max_steps: int = 64) -> Posterior:
    """`split_hmc` on a prepared target."""
    load_blackjax()
    if check_positive(target_accept_prob, "target_accept_prob") >= 1:
        raise ValueError(f"target_accept_prob must lie between 0 and 1, got {target_accept_prob!r}")
    kernel = RotationKernel(target, run.num_warmup, check_positive(trajectory_length, "trajectory_length"),
                            float(target_accept_prob), check_count(max_steps, "max_steps"))
    start = initial(target, key, x, y, run.num_chains, init)
    return run_chains(kernel, key, start, x, y, run, method="split_hmc")
