"""BlackJAX's samplers for any model: microcanonical Langevin, stochastic gradients, tempered SMC, pathfinder.

Each is a `Kernel` (a chain) or a loop over particles on the flat coordinates of a `Target`; models, named arrays,
starting points and the running of chains are `target`'s and `chains`' business.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ..core.batching import progress, quiet
from ..core.checks import check_count, check_positive, num_points
from ..core.keys import name_key
from ..core.lazy import blackjax, load_blackjax
from ..posterior import Posterior, check_proper
from .chains import BLOCK, RunOptions, run_chains
from .target import Target, initial, prepare

__all__ = ["mclmc", "pathfinder", "sghmc", "sgld", "tempered_smc"]


class FlatKernel:
    """What the kernels on flat coordinates share."""

    target: Target
    pooled: ClassVar[bool] = False

    def density(self, x, y):
        """Log density of the flat coordinates."""
        unravel = self.target.unravel(x, y)
        return lambda u: self.target.log_density(unravel(u), x, y)

    def position(self, state, x, y):
        return self.target.unravel(x, y)(state.u)


# -- microcanonical Langevin ----------------------------------------------------------------------------------
class MicroState(NamedTuple):
    """One chain of MCLMC: BlackJAX's state, and what was tuned."""

    key: jax.Array
    """Of the next transition."""
    inner: Any
    """BlackJAX's position, momentum, log density and its gradient."""
    tuned: Any
    """BlackJAX's L, step_size, inverse_mass_matrix."""

    @property
    def u(self):
        return self.inner.position


@dataclass(frozen=True)
class MicrocanonicalKernel(FlatKernel):
    """Unadjusted MCLMC, tuned by BlackJAX within `tune` steps."""

    target: Target
    tune: int
    energy_variance: float
    warmup: int = 0

    def begin(self, key, start, x, y):
        init_key, tune_key, key = jax.random.split(key, 3)
        density = self.density(x, y)
        state = blackjax.mclmc.init(ravel_pytree(start)[0], density, init_key)
        # Shares of the tuning steps: step size; variances; (a third of that again) step size; decoherence length.
        state, tuned, _ = blackjax.mclmc_find_L_and_step_size(
            mclmc_kernel=blackjax.mclmc.build_kernel(), num_steps=self.tune, state=state, rng_key=tune_key,
            logdensity_fn=density, frac_tune1=0.3, frac_tune2=0.3, frac_tune3=0.3,
            desired_energy_var=self.energy_variance,
        )
        return MicroState(key, state, tuned)

    def step(self, state, x, y):
        key, step_key = jax.random.split(state.key)
        inner, info = blackjax.mclmc.build_kernel()(
            step_key, state.inner, self.density(x, y), state.tuned.inverse_mass_matrix, state.tuned.L,
            state.tuned.step_size,
        )
        report = {"diverging": ~info.nonans, "energy_change": info.energy_change, "step_size": state.tuned.step_size,
                  "decoherence_length": state.tuned.L}
        return MicroState(key, inner, state.tuned), report


@dataclass(frozen=True)
class AdjustedKernel(FlatKernel):
    """Metropolis-adjusted MCLMC with trajectories of random length."""

    target: Target
    tune: int
    target_accept_prob: float
    steps: float
    warmup: int = 0

    def _kernel(self):
        lengths = blackjax.mcmc.adjusted_mclmc_dynamic.make_random_trajectory_length_fn(True)
        return blackjax.mcmc.adjusted_mclmc_dynamic.build_kernel(integration_steps_fn=lengths)

    def begin(self, key, start, x, y):
        length_key, tune_key, key = jax.random.split(key, 3)
        density = self.density(x, y)
        state = blackjax.mcmc.adjusted_mclmc_dynamic.init(ravel_pytree(start)[0], density, length_key)
        state, tuned, _ = blackjax.adjusted_mclmc_find_L_and_step_size(
            mclmc_kernel=self._kernel(), logdensity_fn=density, num_steps=self.tune, state=state, rng_key=tune_key,
            target=self.target_accept_prob, frac_tune1=0.35, frac_tune2=0.3, target_num_integration_steps=self.steps,
        )
        return MicroState(key, state, tuned)

    def step(self, state, x, y):
        key, step_key = jax.random.split(state.key)
        tuned = state.tuned
        inner, info = self._kernel()(
            step_key, state.inner, self.density(x, y), tuned.step_size, inverse_mass_matrix=tuned.inverse_mass_matrix,
            integration_steps_params=(tuned.L / tuned.step_size,),
        )
        report = {"diverging": info.is_divergent, "accept_prob": info.acceptance_rate, "energy": info.energy,
                  "num_steps": jnp.asarray(info.num_integration_steps, jnp.int32), "step_size": tuned.step_size}
        return MicroState(key, inner, tuned), report


def mclmc(model, x, y, *, key, num_chains: int = 4, num_warmup: int = 2000, num_samples: int = 1000,
          thinning: int | None = None, adjusted: bool = False, readout: str = "sampled", init: Any = "auto",
          energy_variance: float = 5e-4, target_accept_prob: float = 0.8, num_steps: float = 8.0,
          chain_method: str = "vectorized", checkpoint: Any = None,
          block_size: int = BLOCK, progress_bar: bool = True) -> Posterior:
    """Posterior draws by microcanonical Langevin Monte Carlo (BlackJAX's).

    The unadjusted sampler has no accept step: its draws have a bias that falls with `energy_variance` and that it does
    not report. Compare its moments with another method's. ``adjusted=True`` has none.

    Parameters
    ----------
    model, x, y, key, num_chains, readout, init, chain_method, checkpoint, block_size, progress_bar
        As in `nuts`.
    num_warmup : int
        Tuning steps: of the step size, the variances and the decoherence length.
    num_samples : int
        Draws kept a chain.
    thinning : int, optional
        Transitions for each draw kept; default 10 unadjusted (a transition is one step of two gradients), 1 adjusted.
    adjusted : bool
        Metropolis-adjusted, with trajectories of random length.
    energy_variance : float
        Unadjusted: variance of the energy error a dimension and step that the step size is tuned to.
    target_accept_prob : float
        Adjusted: mean acceptance the step size is tuned to.
    num_steps : float
        Adjusted: mean number of steps a trajectory; at least 1.2.

    Returns
    -------
    Posterior
        ``method="mclmc"``. ``stats`` (chain, draw): ``log_joint``, ``diverging``, ``step_size``; unadjusted
        ``energy_change`` (nats) and ``decoherence_length``; adjusted ``accept_prob``, ``energy``, ``num_steps``.

    Raises
    ------
    ValueError
        As in `nuts`, and for a model of one parameter: the dynamics need a direction to turn in.

    References
    ----------
    .. [1] Robnik, De Luca, Silverstein and Seljak, Microcanonical Hamiltonian Monte Carlo, JMLR 24 (2023),
       arXiv:2212.08549.
    """
    target, x, y, key = prepare(model, x, y, key, "mclmc", readout)
    if thinning is None:
        thinning = 1 if adjusted else 10
    tune = check_count(num_warmup, "num_warmup", 100)
    run = RunOptions(num_chains, tune, num_samples, thinning, chain_method, checkpoint, block_size)
    with quiet(not progress_bar):
        return run_mclmc(target, x, y, key, run, init, adjusted, energy_variance, target_accept_prob, num_steps)


def run_mclmc(target: Target, x: Any, y: Any, key: jax.Array, run: RunOptions, init: Any = "auto",
              adjusted: bool = False, energy_variance: float = 5e-4, target_accept_prob: float = 0.8,
              num_steps: float = 8.0) -> Posterior:
    """`mclmc` on a prepared target."""
    load_blackjax()
    tune = run.num_warmup
    start = initial(target, key, x, y, run.num_chains, init)
    if sum(u[0].size for u in start.values()) < 2:
        raise ValueError("mclmc needs at least two parameters, the model has one; use nuts")
    if adjusted:
        if check_positive(num_steps, "num_steps") < 1.2:
            raise ValueError(f"num_steps must be at least 1.2, got {num_steps!r}")
        if check_positive(target_accept_prob, "target_accept_prob") >= 1:
            raise ValueError(f"target_accept_prob must lie between 0 and 1, got {target_accept_prob!r}")
        kernel: Any = AdjustedKernel(target, tune, float(target_accept_prob), float(num_steps))
    else:
        kernel = MicrocanonicalKernel(target, tune, check_positive(energy_variance, "energy_variance"))
    return run_chains(kernel, key, start, x, y, run, method="mclmc")


# -- stochastic gradients -------------------------------------------------------------------------------------
class StochasticState(NamedTuple):
    """One chain of SGLD or SGHMC."""

    key: jax.Array
    """Of the next step."""
    u: jax.Array
    """(P,): unconstrained coordinates."""
    step_size: jax.Array
    """ε."""


@dataclass(frozen=True)
class StochasticKernel(FlatKernel):
    """SGLD (``leaps=0``) or SGHMC on minibatches drawn with replacement."""

    target: Target
    warmup: int
    batch: int
    step_size: float | None
    leaps: int = 0
    friction: float = 0.0

    def begin(self, key, start, x, y):
        flat = ravel_pytree(start)[0]
        if self.step_size is not None:
            return StochasticState(key, flat, jnp.asarray(self.step_size, flat.dtype))
        # The curvature at the start bounds the step: ε λ < 2 for Langevin, ε √λ < 2 for Hamiltonian steps.
        gradient = jax.grad(self.density(x, y))

        def power(_, v):
            v = jax.jvp(gradient, (flat,), (v / jnp.linalg.norm(v),))[1]
            return v

        v = jax.lax.fori_loop(0, 20, power, jax.random.normal(name_key(key, "curvature"), flat.shape, flat.dtype))
        curvature = jnp.maximum(jnp.linalg.norm(v), 1.0)
        return StochasticState(key, flat, 0.1 / (jnp.sqrt(curvature) if self.leaps else curvature))

    def step(self, state, x, y):
        key, batch_key, step_key = jax.random.split(state.key, 3)
        n = num_points(x)
        target, unravel = self.target, self.target.unravel(x, y)

        def estimate(u, batch):
            xb, yb = batch
            u = unravel(u)
            share = n * jnp.mean(target.log_likelihood(u, xb, yb))
            return target.log_prior(u, x, y) + target.log_factors(u, x, y) + share

        if self.batch < n:
            pick = jax.random.randint(batch_key, (self.batch,), 0, n)
            batch = jax.tree.map(lambda a: a[pick], (x, y))
        else:
            batch = (x, y)
        if self.leaps:
            sampler = blackjax.sghmc(jax.grad(estimate), self.leaps, self.friction)
        else:
            sampler = blackjax.sgld(jax.grad(estimate))
        u = sampler.step(step_key, state.u, batch, state.step_size)
        return StochasticState(key, u, state.step_size), {"diverging": ~jnp.isfinite(u).all(),
                                                          "step_size": state.step_size}


def sgld(model, x, y, *, key, num_chains: int = 4, num_warmup: int = 2000, num_samples: int = 1000, thinning: int = 10,
         batch_size: int | None = None, step_size: float | None = None, init: Any = "auto",
         chain_method: str = "vectorized", checkpoint: Any = None,
         block_size: int = BLOCK, progress_bar: bool = True) -> Posterior:
    """Posterior draws by stochastic-gradient Langevin dynamics (BlackJAX's): approximate, for much data.

    θ ← θ + ε ĝ + √(2ε) ξ, ĝ the gradient of the log posterior estimated on a minibatch. There is no accept step: the
    bias is O(ε), plus the minibatch noise ε²Var ĝ, which widens the draws.

    Parameters
    ----------
    model, x, y, key, num_chains, init, chain_method, checkpoint, block_size, progress_bar
        As in `nuts`.
    num_warmup, num_samples, thinning : int
        Steps thrown away; draws kept; steps for each draw kept.
    batch_size : int, optional
        Data points a step, drawn with replacement; default min(n, 64); n takes the exact gradient.
    step_size : float, optional
        ε, in unconstrained coordinates (units of the prior variance for networks). Default .1 over the largest
        curvature at the start.

    Returns
    -------
    Posterior
        ``method="sgld"``; ``stats`` (chain, draw): ``log_joint``, ``step_size``, ``diverging`` (left the numbers).

    References
    ----------
    .. [1] Welling and Teh, Bayesian learning via stochastic gradient Langevin dynamics, ICML 2011.
    """
    run = RunOptions(num_chains, num_warmup, num_samples, thinning, chain_method, checkpoint, block_size)
    with quiet(not progress_bar):
        return _stochastic("sgld", model, x, y, key, run, batch_size, step_size, init)


def sghmc(model, x, y, *, key, num_chains: int = 4, num_warmup: int = 500, num_samples: int = 1000, thinning: int = 2,
          batch_size: int | None = None, step_size: float | None = None, num_steps: int = 10, friction: float = 1.0,
          init: Any = "auto", chain_method: str = "vectorized", checkpoint: Any = None,
          block_size: int = BLOCK, progress_bar: bool = True) -> Posterior:
    """Posterior draws by stochastic-gradient Hamiltonian Monte Carlo (BlackJAX's): approximate, for much data.

    There is no accept step. BlackJAX's steps are Euler's: a trajectory of L of them widens a direction of curvature λ,
    its variance by about a fraction Lε²λ (a tenth in the stiffest one by default), and minibatch noise widens it more.

    Parameters
    ----------
    model, x, y, key, num_chains, init, chain_method, checkpoint, block_size, progress_bar
        As in `nuts`.
    num_warmup, num_samples, thinning, batch_size
        As in `sgld`; a step is a trajectory.
    step_size : float, optional
        ε, in unconstrained coordinates. Default .1 over the square root of the largest curvature at the start.
    num_steps : int
        Steps a trajectory, one minibatch for all of them; the momentum is fresh at its start.
    friction : float
        α; the larger, the more of the minibatch noise is damped.

    Returns
    -------
    Posterior
        ``method="sghmc"``; ``stats`` as in `sgld`.

    References
    ----------
    .. [1] Chen, Fox and Guestrin, Stochastic gradient Hamiltonian Monte Carlo, ICML 2014, arXiv:1402.4102.
    """
    run = RunOptions(num_chains, num_warmup, num_samples, thinning, chain_method, checkpoint, block_size)
    with quiet(not progress_bar):
        return _stochastic("sghmc", model, x, y, key, run, batch_size, step_size, init,
                           leaps=check_count(num_steps, "num_steps"), friction=check_positive(friction, "friction"))


def _stochastic(method: str, model, x, y, key, run: RunOptions, batch_size, step_size, init, **settings) -> Posterior:
    load_blackjax()
    target, x, y, key = prepare(model, x, y, key, method)
    target.bound.check_global(f"brg.{method}, which takes minibatches,")
    n = num_points(x)
    batch = min(n, 64) if batch_size is None else min(check_count(batch_size, "batch_size"), n)
    step_size = None if step_size is None else check_positive(step_size, "step_size")
    kernel = StochasticKernel(target, run.num_warmup, batch, step_size, **settings)
    return run_chains(kernel, key, initial(target, key, x, y, run.num_chains, init), x, y, run, method=method)


# -- tempered sequential Monte Carlo --------------------------------------------------------------------------
class Population(NamedTuple):
    """All particles at one temperature; of several populations, with a leading axis (population,)."""

    smc: Any
    """BlackJAX's TemperedSMCState: particles (particle, P), weights, and the power of the likelihood."""
    step_size: jax.Array
    """Of the leapfrog, in units of the particles' standard deviations."""
    log_evidence: jax.Array
    """So far, nats."""


def _potential(target: Target, x, y):
    """What is tempered: log-likelihood and factors, of flat coordinates. The prior is where the particles start."""
    unravel = target.unravel(x, y)

    def value(u):
        u = unravel(u)
        return jnp.sum(target.log_likelihood(u, x, y)) + target.log_factors(u, x, y)

    return value


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _temper(target: Target, moves: int, leaps: int, target_ess: float, populations: Population, keys, x, y):
    """Move every population at its temperature, then weigh it for the next one, the same for all."""
    unravel, potential = target.unravel(x, y), _potential(target, x, y)

    def prior(u):
        return target.log_prior(unravel(u), x, y)

    here = populations.smc.tempering_param[0]

    def increment(population):
        delta = blackjax.smc.ess.ess_solver(jax.vmap(potential), population.smc.particles, target_ess, 1 - here,
                                            blackjax.smc.solver.dichotomy)
        return jnp.clip(delta, 0.0, 1 - here)

    there = here + jnp.min(jax.vmap(increment)(populations))
    there = jnp.where(there > 1 - 1e-6, 1.0, there)

    def one(population, key):
        variance = jnp.var(population.smc.particles, axis=0)
        settings = {"step_size": population.step_size[None], "inverse_mass_matrix": variance[None],
                    "num_integration_steps": jnp.full((1,), leaps)}
        kernel = blackjax.smc.tempered.build_kernel(prior, potential, blackjax.hmc.build_kernel(), blackjax.hmc.init,
                                       blackjax.smc.resampling.systematic)
        smc, info = kernel(key, population.smc, moves, there, settings)
        accept = jnp.mean(info.update_info.acceptance_rate)
        # Robbins–Monro on the log of the step, temperature by temperature.
        step_size = population.step_size * jnp.exp(1.5 * (accept - 0.8))
        return Population(smc, step_size, population.log_evidence + info.log_likelihood_increment), accept

    return jax.vmap(one)(populations, keys)


@partial(jax.jit, static_argnums=0)
def _native(target: Target, particles, keys, x, y):
    """Native values and log joint of particles (population, particle, dim)."""
    unravel = target.unravel(x, y)

    def one(u, key):
        params = target.finish(key, unravel(u), x, y)
        return params, target.bound.log_joint(params, x, y)

    return jax.lax.map(lambda pair: jax.lax.map(lambda one_: one(*one_), pair), (particles, keys))


def tempered_smc(model, x, y, *, key, num_chains: int = 4, num_samples: int = 250, num_mcmc_steps: int = 5,
                 num_steps: int = 8, target_ess: float = 0.7, max_temperatures: int = 500, history: bool = False,
                 readout: str = "sampled", progress_bar: bool = True) -> Posterior:
    """Posterior draws and the evidence by adaptive tempered sequential Monte Carlo (BlackJAX's).

    Particles start from the prior; the likelihood (and factors) are raised to a power that grows from 0 to 1 as fast as
    the effective sample size allows, and at each power HMC moves them: the posterior as data come in.

    Parameters
    ----------
    model, x, y, key, readout, progress_bar
        As in `nuts`. With ``readout="collapsed"`` the marginal likelihood is what is tempered.
    num_chains : int
        Independent populations; they share the temperatures. Their spread is the error of the evidence.
    num_samples : int
        Particles a population.
    num_mcmc_steps, num_steps : int
        HMC transitions at each temperature, and leapfrog steps in each; the step size follows the acceptance, the mass
        matrix the particles.
    target_ess : float
        Effective sample size, as a fraction, that the next power is chosen for.
    max_temperatures : int
        Give up after so many.
    history : bool
        Keep the particles at each temperature in ``posterior.history`` (0 is the prior), with ``stats["temperature"]``
        the power.

    Returns
    -------
    Posterior
        ``method="tempered_smc"``, samples (population, particle, *site). ``stats``: ``log_joint`` (population,
        particle); ``log_evidence`` (nats, over the populations) and its standard error ``log_evidence_sem``,
        ``log_evidence_chains`` (population,), ``temperatures`` and ``accept_prob`` (temperature,) and
        ``independent`` False: particles share ancestors.

    Raises
    ------
    ValueError
        As in `nuts`, and for an improper prior.
    RuntimeError
        If the power has not reached 1 after `max_temperatures`.

    References
    ----------
    .. [1] Del Moral, Doucet and Jasra, Sequential Monte Carlo samplers, JRSS B 68 (2006).
    """
    load_blackjax()
    target, x, y, key = prepare(model, x, y, key, "tempered_smc", readout)
    check_proper(target.bound)
    chains, count = check_count(num_chains, "num_chains"), check_count(num_samples, "num_samples", 2)
    moves, leaps = check_count(num_mcmc_steps, "num_mcmc_steps"), check_count(num_steps, "num_steps")
    if check_positive(target_ess, "target_ess") >= 1:
        raise ValueError(f"target_ess is a fraction of the particles between 0 and 1, got {target_ess!r}")
    particles = _prior_particles(target, chains, count, name_key(key, "prior"), x, y)
    weights = jnp.full((chains, count), 1 / count)
    zero = jnp.zeros(chains, weights.dtype)
    populations = Population(blackjax.smc.tempered.TemperedSMCState(particles, weights, zero), zero + 0.3, zero)
    temperatures, accepted, kept = [0.0], [], {}
    with quiet(not progress_bar), progress(desc="tempered_smc", total=None, unit="temperature") as bar:
        # Each round moves at the current power, so one more follows the power's arrival at 1.
        for index in range(check_count(max_temperatures, "max_temperatures")):
            here = temperatures[-1]
            keys = jax.random.split(jax.random.fold_in(key, index), chains)
            populations, accept = _temper(target, moves, leaps, float(target_ess), populations, keys, x, y)
            accepted.append(np.asarray(accept).mean())
            if history or here == 1.0:
                kept[index] = (here, populations.smc.particles)
            if here == 1.0:
                break
            temperatures.append(float(populations.smc.tempering_param[0]))
            bar.set_postfix(power=f"{temperatures[-1]:.2g}")
            bar.update(1)
        else:
            raise RuntimeError(f"tempered_smc is at power {temperatures[-1]:.3g} of the likelihood after "
                               f"{max_temperatures} temperatures; give it more particles, more moves, or raise "
                               "max_temperatures")
    evidence = np.asarray(populations.log_evidence, float)
    finish = jax.random.split(name_key(key, "finish"), (chains, count))
    found = {}
    for i, (power, where) in kept.items():
        samples, log_joint = _native(target, where, finish, x, y)
        found[i] = Posterior(samples, {"log_joint": log_joint, "temperature": power, "independent": False},
                             "tempered_smc")
    last = found.pop(index)
    top = evidence.max()
    ratio = np.exp(evidence - top)
    stats = {**last.stats, "log_evidence": float(top + np.log(ratio.mean())),
             "log_evidence_sem": float(ratio.std(ddof=1) / ratio.mean() / np.sqrt(chains)) if chains > 1 else np.nan,
             "log_evidence_chains": evidence, "temperatures": np.asarray(temperatures),
             "accept_prob": np.asarray(accepted)}
    return last.replace(stats=stats, history=found)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _prior_particles(target: Target, chains: int, count: int, key, x, y):
    def one(index):
        draw = target.bound.draw_prior(jax.random.fold_in(key, index), x)
        return ravel_pytree(target.unconstrain(draw, x, y))[0]

    return jax.lax.map(one, jnp.arange(chains * count)).reshape(chains, count, -1)


# -- pathfinder -----------------------------------------------------------------------------------------------
@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _find_paths(target: Target, count: int, elbo_draws: int, iterations: int, keys, start, x, y):
    unravel = target.unravel(x, y)

    def density(u):
        return target.log_density(unravel(u), x, y)

    def one(key, u):
        path_key, draw_key = jax.random.split(key)
        state, _ = blackjax.vi.pathfinder.approximate(path_key, density, u, elbo_draws, maxiter=iterations)
        draws, log_q = blackjax.vi.pathfinder.sample(draw_key, state, count)
        return draws, jax.lax.map(density, draws) - log_q, state.elbo

    return jax.lax.map(lambda pair: one(*pair), (keys, jax.vmap(lambda u: ravel_pytree(u)[0])(start)))


def pathfinder(model, x, y, *, key, num_chains: int = 4, num_samples: int = 250, num_elbo_draws: int = 200,
               max_iterations: int = 100, init: Any = "auto", readout: str = "sampled",
               progress_bar: bool = True) -> Posterior:
    """Approximate posterior draws by pathfinder (BlackJAX's): the best Gaussian along a quasi-Newton path.

    Cheap, and as wrong as a Gaussian (in unconstrained coordinates) around one mode is; its best use is a start or a
    mass matrix for another sampler: ``nuts(..., init=posterior)``.

    Parameters
    ----------
    model, x, y, key, readout, init, progress_bar
        As in `nuts`; `init` starts the paths.
    num_chains, num_samples : int
        Paths, and draws from the Gaussian of each.
    num_elbo_draws : int
        Draws for the evidence lower bound by which a path's Gaussian is chosen.
    max_iterations : int
        Of the quasi-Newton method.

    Returns
    -------
    Posterior
        ``method="pathfinder"``, samples (path, draw, *site). ``stats``: ``log_joint``; ``log_weight`` (path, draw), the
        log density of the posterior (up to the evidence) over the Gaussian's; ``elbo`` (path,), nats; ``independent``
        True.

    References
    ----------
    .. [1] Zhang, Carpenter, Gelman and Vehtari, Pathfinder: parallel quasi-Newton variational inference, JMLR 23
       (2022), arXiv:2108.03782.
    """
    load_blackjax()
    target, x, y, key = prepare(model, x, y, key, "pathfinder", readout)
    chains, count = check_count(num_chains, "num_chains"), check_count(num_samples, "num_samples")
    start = initial(target, key, x, y, chains, init)
    keys = jax.random.split(name_key(key, "paths"), chains)
    draws, log_weight, elbo = _find_paths(target, count, check_count(num_elbo_draws, "num_elbo_draws"),
                                          check_count(max_iterations, "max_iterations"), keys, start, x, y)
    if not np.isfinite(np.asarray(elbo)).any():
        raise RuntimeError("no path found a Gaussian of finite evidence bound; start nearer to the posterior: init=")
    finish = jax.random.split(name_key(key, "finish"), (chains, count))
    samples, log_joint = _native(target, draws, finish, x, y)
    return Posterior(samples, {"log_joint": log_joint, "log_weight": log_weight, "elbo": np.asarray(elbo),
                               "independent": True}, "pathfinder")
