"""Hamiltonian Monte Carlo by NumPyro, for any model; with the linear readout collapsed for Gaussian networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from numpyro.infer.hmc import hmc as numpyro_hmc

from ..core.arrays import check_array
from ..core.batching import quiet
from ..core.checks import check_count, check_positive
from ..posterior import Posterior
from .chains import BLOCK, RunOptions, run_chains
from .target import Target, initial, prepare, unconstrain_all

__all__ = ["hmc", "nuts"]


@dataclass(frozen=True)
class HamiltonianKernel:
    """NumPyro's NUTS or HMC on a `Target`: adaptation of step size and mass matrix is part of the warm-up steps."""

    target: Target
    algo: str
    warmup: int
    step_size: float
    target_accept_prob: float
    dense_mass: tuple[tuple[str, ...], ...]
    adapt_mass: bool
    max_tree_depth: int = 8
    trajectory_length: float | None = None
    num_steps: int | None = None
    pooled: ClassVar[bool] = False

    def _numpyro(self, x, y) -> tuple[Callable, Callable]:
        def potential(x, y):
            return lambda u: -self.target.log_density(u, x, y)

        start, step = numpyro_hmc(potential_fn_gen=potential, algo=self.algo)
        settings = {
            "num_warmup": self.warmup, "step_size": self.step_size, "adapt_mass_matrix": self.adapt_mass,
            "dense_mass": list(self.dense_mass), "target_accept_prob": self.target_accept_prob,
            "num_steps": self.num_steps, "trajectory_length": self.trajectory_length,
            "max_tree_depth": self.max_tree_depth, "model_args": (x, y),
        }
        return partial(start, **settings), step

    def begin(self, key, start, x, y):
        u, variances = start
        blocks = {}
        for names in (*self.dense_mass, *((s,) for s in u if not any(s in block for block in self.dense_mass))):
            if variances is not None:
                blocks[names] = jnp.concatenate([variances[s].ravel() for s in names])
        return self._numpyro(x, y)[0](u, inverse_mass_matrix=blocks or None, rng_key=key)

    def step(self, state, x, y):
        start, step = self._numpyro(x, y)
        jax.eval_shape(start, state.z)  # NumPyro's step learns its settings from the call of its start
        state = step(state, (x, y), {})
        num_steps = jnp.asarray(state.num_steps, jnp.int32)
        info = {
            "diverging": state.diverging, "num_steps": num_steps, "accept_prob": state.accept_prob,
            "energy": state.energy, "step_size": state.adapt_state.step_size,
        }
        if self.algo == "NUTS":
            info["tree_depth"] = 32 - jax.lax.clz(num_steps)  # a tree of depth d takes 2^{d−1} … 2^d − 1 steps
        return state, info

    def position(self, state, x, y):
        return state.z


def nuts(model, x, y, *, key, num_chains: int = 4, num_warmup: int = 1000, num_samples: int = 1000, thinning: int = 1,
         readout: str = "sampled", init: Any = "auto", target_accept_prob: float = 0.8, max_tree_depth: int = 8,
         step_size: float = 1.0, dense_mass: bool | Sequence = False, inverse_mass: Any = None,
         adapt_mass: bool = True, chain_method: str = "vectorized", checkpoint: Any = None,
         block_size: int = BLOCK, progress_bar: bool = True) -> Posterior:
    """Posterior draws by the no-U-turn sampler (NumPyro's).

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model ``model(x, y)``.
    x : array (n, dim)
        Inputs; the first axis is the datum.
    y : array (n, ...)
        Targets.
    key : jax.random.key
        The same key gives the same draws; another function called with it draws from an independent stream.
    num_chains, num_warmup, num_samples : int
        Chains, adaptation steps a chain (thrown away), draws kept a chain.
    thinning : int
        Transitions for each draw kept: `num_samples` draws cost ``num_samples · thinning`` transitions.
    readout : {"sampled", "collapsed"}
        ``"collapsed"``, for a `Network` with Gaussian likelihood: the hidden sites are sampled from
        p(hidden) N(y; 0, HΣ_wHᵀ + s²1), the readout integrated out, and drawn exactly after.
    init : "auto", "prior", "uniform", "ensemble", Posterior or dict
        Where chains start. ``"prior"``: prior draws, with the readout of a Gaussian network from its exact
        conditional. ``"uniform"``: uniform on (−2, 2) in unconstrained coordinates. ``"auto"``: the first for networks,
        the second for other models. ``"ensemble"``: where an ascent of the log density by Adam from there ends, one a
        chain. A `Posterior` (the last draws of its chains, or draws at random), or a dict of
        native values, shape (*site) or (chain, *site).
    target_accept_prob : float
        Mean acceptance that the step size is adapted to, between 0 and 1.
    max_tree_depth : int
        At most 2^max_tree_depth − 1 gradients a transition.
    step_size : float
        First step size, in unconstrained coordinates (units of the prior standard deviation for networks).
    dense_mass : bool or list of tuples of site names
        ``True``: one dense mass matrix; a list: a dense block for each tuple; diagonal for the rest.
    inverse_mass : Posterior or dict, optional
        First inverse mass matrix (diagonal): the variances of a posterior's draws, or a dict of variances in
        unconstrained coordinates, native scale.
    adapt_mass : bool
        Whether the mass matrix is adapted in warm-up.
    chain_method : {"vectorized", "sequential", "parallel", "threads"}
        ``"parallel"`` spreads the chains over the devices, ``"threads"`` over the cores of a CPU.
    checkpoint : path, optional
        Directory for the draws, written block by block with the sampler's state. The same call finds them and goes
        on; the draws are those of an uninterrupted run, bit for bit on the same machine. A larger `num_samples`
        continues.
    block_size : int
        Draws a block.
    progress_bar : bool
        Show a bar on a terminal.

    Returns
    -------
    Posterior
        ``method="nuts"``, samples (chain, draw, *site). ``stats``, arrays (chain, draw): ``log_joint`` (nats, native
        coordinates), ``diverging``, ``num_steps`` (gradients), ``tree_depth``, ``accept_prob``, ``energy`` (nats),
        ``step_size``; and ``seconds`` and ``processor_seconds`` of drawing, ``seconds_warmup`` with compilation.

    Raises
    ------
    ValueError
        Data, keys or options that cannot be used; a discrete site; a readout that cannot be collapsed; no starting
        point of finite density.

    References
    ----------
    .. [1] Hoffman and Gelman, The No-U-Turn Sampler, JMLR 15 (2014), arXiv:1111.4246.
    .. [2] Hron, Novak, Pennington and Sohl-Dickstein, Wide Bayesian neural networks have a simple weight posterior,
       ICML 2022, arXiv:2206.07673 (the collapsed readout; theory §8).
    """
    target, x, y, key = prepare(model, x, y, key, "nuts", readout)
    run = RunOptions(num_chains, num_warmup, num_samples, thinning, chain_method, checkpoint, block_size)
    with quiet(not progress_bar):
        return run_hamiltonian(target, "NUTS", x, y, key, run, init, target_accept_prob, step_size, dense_mass,
                               inverse_mass, adapt_mass, max_tree_depth=check_count(max_tree_depth, "max_tree_depth"))


def hmc(model, x, y, *, key, num_chains: int = 4, num_warmup: int = 1000, num_samples: int = 1000, thinning: int = 1,
        readout: str = "sampled", init: Any = "auto", target_accept_prob: float = 0.8,
        trajectory_length: float | None = None, num_steps: int | None = None, step_size: float = 1.0,
        dense_mass: bool | Sequence = False, inverse_mass: Any = None, adapt_mass: bool = True,
        chain_method: str = "vectorized", checkpoint: Any = None,
        block_size: int = BLOCK, progress_bar: bool = True) -> Posterior:
    """Posterior draws by Hamiltonian Monte Carlo with trajectories of fixed length (NumPyro's).

    Parameters are those of `nuts`, save `max_tree_depth`, and

    Parameters
    ----------
    trajectory_length : float, optional
        Length of a trajectory, in units of the posterior standard deviation (once the mass matrix is adapted).
        Default π/2, a quarter of a Gaussian's period, which makes successive draws of a Gaussian independent.
    num_steps : int, optional
        Fixes the number of leapfrog steps instead of the length.

    Returns
    -------
    Posterior
        ``method="hmc"``; stats as in `nuts`, without ``tree_depth``.

    Raises
    ------
    ValueError
        As in `nuts`, and if both a length and a number of steps are given.

    References
    ----------
    .. [1] Neal, MCMC using Hamiltonian dynamics, Handbook of MCMC (2011), arXiv:1206.1901.
    """
    target, x, y, key = prepare(model, x, y, key, "hmc", readout)
    if num_steps is not None and trajectory_length is not None:
        raise ValueError(f"pass trajectory_length={trajectory_length!r} or num_steps={num_steps!r}, not both")
    if num_steps is None:
        length = math.pi / 2 if trajectory_length is None else check_positive(trajectory_length, "trajectory_length")
    else:
        num_steps, length = check_count(num_steps, "num_steps"), None
    run = RunOptions(num_chains, num_warmup, num_samples, thinning, chain_method, checkpoint, block_size)
    with quiet(not progress_bar):
        return run_hamiltonian(target, "HMC", x, y, key, run, init, target_accept_prob, step_size, dense_mass,
                               inverse_mass, adapt_mass, trajectory_length=length, num_steps=num_steps)


def run_hamiltonian(target: Target, algo: str, x: Any, y: Any, key: jax.Array, run: RunOptions, init: Any = "auto",
                    target_accept_prob: float = 0.8, step_size: float = 1.0, dense_mass: bool | Sequence = False,
                    inverse_mass: Any = None, adapt_mass: bool = True, **settings) -> Posterior:
    """`nuts` or `hmc`, as `algo` says, on a prepared target."""
    if check_positive(target_accept_prob, "target_accept_prob") >= 1:
        raise ValueError(f"target_accept_prob must lie between 0 and 1, got {target_accept_prob!r}")
    kernel = HamiltonianKernel(
        target, algo, run.num_warmup, check_positive(step_size, "step_size"), float(target_accept_prob),
        _dense_blocks(target, dense_mass), bool(adapt_mass), **settings,
    )
    start = initial(target, key, x, y, run.num_chains, init)
    variances = _variances(target, inverse_mass, x, y, run.num_chains)
    return run_chains(kernel, key, (start, variances), x, y, run, method=algo.lower())


def _dense_blocks(target: Target, dense_mass: bool | Sequence) -> tuple[tuple[str, ...], ...]:
    """Site names of each dense block of the mass matrix."""
    if isinstance(dense_mass, bool):
        return (tuple(sorted(target.names)),) if dense_mass else ()
    blocks = tuple((block,) if isinstance(block, str) else tuple(block) for block in dense_mass)
    named = [s for block in blocks for s in block]
    for s in named:
        if s not in target.names or named.count(s) > 1:
            raise ValueError(f"dense_mass names {s!r}, which must be one of the sampled sites "
                             f"{', '.join(target.names)}, and once")
    return blocks


def _variances(target: Target, inverse_mass: Any, x, y, chains: int) -> dict[str, jax.Array] | None:
    """Diagonal of the first inverse mass matrix in the target's coordinates, leading axis (chains,)."""
    if inverse_mass is None:
        return None
    if isinstance(inverse_mass, Posterior):
        target.bound.check_params(inverse_mass.samples, "inverse_mass")
        draws = unconstrain_all(target, {s: inverse_mass.flat()[s] for s in target.names}, x, y)
        found = {s: jnp.var(u, axis=0) for s, u in draws.items()}
    elif isinstance(inverse_mass, Mapping):
        scales, found = target.scales(), {}
        for s in target.names:
            if s not in inverse_mass:
                raise ValueError(f"inverse_mass lacks the site {s!r}; it has {', '.join(inverse_mass)}")
            shape = target.bound.site(s).shape
            variance = check_array(inverse_mass[s], f"inverse_mass[{s!r}]", axes=())
            found[s] = target.narrow({s: jnp.broadcast_to(variance, shape)})[s] / scales[s] ** 2
    else:
        raise TypeError(f"inverse_mass must be a Posterior or a dict of variances, got {type(inverse_mass).__name__}")
    for s, v in found.items():
        if not bool(jnp.all(jnp.isfinite(v) & (v > 0))):
            raise ValueError(f"inverse_mass: a variance of site {s!r} is not a positive finite number")
    return {s: jnp.broadcast_to(v, (chains, *v.shape)) for s, v in found.items()}
