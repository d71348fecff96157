"""Modes and the Gaussians around them: the MAP, Laplace's approximation, and variational inference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from jax.flatten_util import ravel_pytree
from numpyro.infer import SVI, Trace_ELBO, autoguide, init_to_value

from ..core.batching import as_chains, largest_divisor, map_draws, progress, quiet
from ..core.checks import check_choice, check_count, check_positive, num_points
from ..core.keys import name_key
from ..metric.fisher import fisher
from ..metric.geometry import Geometry, hold, ravel, unravel
from ..model.bound import Params
from ..posterior import Posterior, check_proper, log_joint
from .target import Target, initial, prepare

__all__ = ["laplace", "map_estimate", "svi"]

MEMORY = 10  # pairs that L-BFGS keeps
DENSE_LIMIT = 3000  # parameters up to which a precision matrix is held


# -- the mode -------------------------------------------------------------------------------------------------
def map_estimate(model, x, y, *, key, num_starts: int = 4, num_steps: int = 2000, learning_rate: float = 0.03,
                 init: Any = "auto", coordinates: str = "native", progress_bar: bool = True) -> Params:
    """Most probable parameters, argmax π_D(θ) (31): the network that training with weight decay ends at.

    From each start Adam takes a fifth of the steps, its rate falling to zero, and L-BFGS the rest (optax's), in
    unconstrained coordinates whitened by the prior. The best of all starts and steps is returned. It is a local
    maximum: posteriors of networks have many.

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model ``model(x, y)``.
    x : array (n, dim)
    y : array (n,) or (n, outputs)
    key : jax.random.key
    num_starts : int
        Starting points.
    num_steps : int
        Steps from each.
    learning_rate : float
        Of Adam, in prior standard deviations.
    init : str, Posterior or dict
        Where to start, as in `nuts`.
    coordinates : {"native", "unconstrained"}
        Those whose density is maximised: a mode depends on them. Where the scale of a prior is learned the native
        density has no maximum (it grows without end as weights and their scale vanish together): take the others,
        in which weights are in units of their scale.
    progress_bar : bool

    Returns
    -------
    dict of str to array
        Site to value (*site shape), native coordinates. It goes into ``brg.fisher(model, None, x, at=params)``.

    Raises
    ------
    ValueError
        As in `nuts`.
    RuntimeError
        If the density is not finite at the end of every start.
    """
    check_choice(coordinates, "coordinates", ("native", "unconstrained"))
    target, x, y, key = prepare(model, x, y, key, "map_estimate")
    with quiet(not progress_bar):
        u = _maximise(target, key, x, y, coordinates, num_starts, num_steps, learning_rate, init)
    return {s: v for s, v in target.constrain(u, x, y).items() if s in target.bound.names}


def _objective(target: Target, density: str, u: Params, x: Any, y: Any) -> jax.Array:
    if density == "native":
        return target.bound.log_joint(target.constrain(u, x, y), x, y)
    return target.log_density(u, x, y)


def _climb_one(target: Target, density: str, adam_steps: int, steps: int, rate: float, start: Params, x: Any, y: Any):
    """The best point of one ascent and its log density."""
    flat, named = ravel_pytree(start)

    def loss(v):
        return -_objective(target, density, named(v), x, y)

    def better(best, v, value):
        good = value < best[1]
        return jnp.where(good, v, best[0]), jnp.where(good, value, best[1])

    first = optax.adam(optax.cosine_decay_schedule(rate, max(adam_steps, 1)))

    def adam(carry, _):
        v, state, best = carry
        value, grad = jax.value_and_grad(loss)(v)
        change, state = first.update(grad, state, v)
        return (optax.apply_updates(v, change), state, better(best, v, value)), None

    begin = (flat, jnp.asarray(jnp.inf, flat.dtype))
    (v, _, best), _ = jax.lax.scan(adam, (flat, first.init(flat), begin), None, length=adam_steps)
    best = better(best, v, loss(v))
    second = optax.lbfgs(memory_size=MEMORY)
    evaluate = optax.value_and_grad_from_state(loss)

    def newton(carry):
        v, state, best, _, done = carry
        value, grad = evaluate(v, state=state)
        change, state = second.update(grad, state, v, value=value, grad=grad, value_fn=loss)
        moved = optax.apply_updates(v, change)
        after = better(best, moved, optax.tree.get(state, "value"))
        # Rounding alone moves the value by so much.
        still = best[1] - after[1] > 4 * jnp.finfo(v.dtype).eps * jnp.abs(best[1])
        return moved, state, after, jnp.where(still, 0, carry[3] + 1), done + 1

    def go_on(carry):
        return (carry[3] < 5) & (carry[4] < steps) & jnp.isfinite(carry[0]).all()

    _, _, best, _, _ = jax.lax.while_loop(go_on, newton, (best[0], second.init(best[0]), best, 0, 0))
    return named(best[0]), -best[1]


def _maximise(target: Target, key, x, y, density: str, num_starts: int, num_steps: int, learning_rate: float,
              init: Any) -> Params:
    """Unconstrained coordinates of the highest of several maxima."""
    starts, steps = check_count(num_starts, "num_starts"), check_count(num_steps, "num_steps")
    rate = check_positive(learning_rate, "learning_rate")
    start = initial(target, key, x, y, starts, init)
    first = steps // 5
    found, height = map_draws(_climb_one, (target, density, first, steps - first, rate), start, (x, y), desc="ascent",
                              passes=2 * steps)
    height = np.asarray(height)
    if not np.isfinite(height).any():
        raise RuntimeError(f"the log density is not finite at the end of any of {starts} starts; start nearer to the "
                           "posterior with init=, or lower learning_rate")
    best = int(np.argmax(np.where(np.isfinite(height), height, -np.inf)))
    return {s: v[best] for s, v in found.items()}


# -- Laplace --------------------------------------------------------------------------------------------------
STRUCTURES = ("full", "diagonal", "last_layer")


def laplace(model, x, y, *, key, num_samples: int = 1000, structure: str = "full", params: Params | None = None,
            num_starts: int = 4, num_steps: int = 2000, learning_rate: float = 0.03, init: Any = "auto",
            progress_bar: bool = True) -> Posterior:
    """Laplace's approximation: a Gaussian at the mode, its precision n·I plus that of the prior (71).

    The Fisher metric I (the generalised Gauss–Newton matrix) takes the place of the Hessian, so that the precision is
    positive. Everything is in the unconstrained coordinates u that samplers move in, in which the scales that a network
    learns are independent of its weights. For a `Network` with Gaussian priors they are θ whitened by the prior, and
    with λ̃ and V the eigenvalues and eigenmodes of the whitened metric (theory §1) the covariance is 1 − V nλ̃/(1 +
    nλ̃) Vᵀ, for which no P × P matrix is formed.

    The Gauss–Newton precision is that of the network made linear at its mode [1]_. Through the network itself, as
    `predict` takes them, draws far from the mode leave that region and underfit: check held-out scores, prefer
    ``"last_layer"`` where they are bad.

    Parameters
    ----------
    model, x, y, key, num_starts, num_steps, learning_rate, init, progress_bar
        As in `map_estimate`.
    num_samples : int
    structure : {"full", "diagonal", "last_layer"}
        ``"full"``: the metric of all sites; ``"diagonal"``: its diagonal; ``"last_layer"``: the readout of a
        `Network`, hidden weights staying at the mode.
    params : dict, optional
        A mode that is known, native coordinates; default: found from `num_starts` starts.

    Returns
    -------
    Posterior
        ``method="laplace (structure)"``, independent draws stored as (4, T/4). ``stats``: ``log_joint``,
        ``independent``, and ``log_evidence``, log p(y | x) in nats to this approximation, ½ log det included; for
        ``"last_layer"`` it is that of the readout given the hidden weights.

    Raises
    ------
    ValueError
        As in `nuts`; for ``"last_layer"`` of a model that is no `Network`; for a model of more than 3,000 parameters
        that is no `Network` with Gaussian priors; if the precision at `params` is not positive definite.

    References
    ----------
    .. [1] Immer, Korzepa and Bauer, Improving predictions of Bayesian neural nets via local linearization, AISTATS
       2021, arXiv:2008.08400.
    """
    target, x, y, key = prepare(model, x, y, key, "laplace")
    check_choice(structure, "structure", STRUCTURES)
    count, bound = check_count(num_samples, "num_samples"), target.bound
    check_proper(bound)
    bound.check_global("brg.laplace, whose precision is a Fisher metric,")
    if structure == "last_layer" and bound.readout is None:
        raise ValueError("structure='last_layer' needs a brg.mlp or brg.cosnet, whose readout is known; pass 'full' or "
                         "'diagonal'")
    keys = jax.vmap(partial(jax.random.fold_in, name_key(key, "draws")))(jnp.arange(count))
    sites = bound.readout.sites if structure == "last_layer" and bound.readout is not None else bound.names
    around = _around_network if bound.white(sites) else _around
    with quiet(not progress_bar):
        if params is None:
            mode = _maximise(target, key, x, y, "unconstrained", num_starts, num_steps, learning_rate, init)
        else:
            mode = target.unconstrain(bound.check_params(params, "params", lead=0), x, y)
        samples, evidence = around(target, structure, sites, mode, keys, x, y)
    stats = {"independent": True, "log_evidence": float(evidence),
             "log_joint": as_chains(log_joint(bound, samples, x, y))}
    return Posterior(as_chains(samples), stats, f"laplace ({structure})", sites)


def _draw_one(geometry: Geometry, n: int, key: jax.Array, mode: Params, scale: Params, arrays: Any) -> Params:
    """θ = θ̂ + σ₀(1 + nλ̃)^{−1/2} ξ mode by mode: a prior draw about the mode, drawn in along stiff directions."""
    white = {s: scale[s] * jax.random.normal(name_key(key, s), scale[s].shape, scale[s].dtype)
             for s in geometry.sites}
    pull = jax.tree.map(lambda c, v: c * (1 / jnp.sqrt(1 + n * v) - 1), geometry.to_modes(arrays, white),
                        geometry.spectrum(arrays))
    back = geometry.from_modes(arrays, pull)
    return {s: mode[s] + white[s] + back[s] if s in white else mode[s] for s in mode}


def _around_network(target, structure, sites, mode, keys, x, y):
    """Draws and evidence of a network with Gaussian priors, in the modes of its whitened metric."""
    bound, n = target.bound, num_points(x)
    params = target.constrain(mode, x, y)
    metric = fisher(bound.fn, None, x, at=params, kind="diagonal" if structure == "diagonal" else "full", whiten=True,
                    sites=sites)
    arrays = metric.arrays()
    scale = {s: jnp.broadcast_to(jnp.asarray(v, params[s].dtype), params[s].shape)
             for s, v in metric.prior_scale.items()}
    samples = map_draws(_draw_one, (metric.geometry, n), keys, (params, scale, arrays))
    values = np.asarray(metric.values(), np.float64)
    log_prior = sum(-0.5 * float(jnp.sum(mode[s] ** 2)) for s in sites)
    fit = float(jnp.sum(bound.log_likelihood(params, x, y)))
    return samples, fit + log_prior - 0.5 * np.log1p(n * values).sum()


def _around(target, structure, sites, mode, keys, x, y):
    """Draws and evidence of any model, by its precision matrix in unconstrained coordinates."""
    bound, n = target.bound, num_points(x)
    flat = ravel_pytree(mode)[0]
    if flat.size > DENSE_LIMIT:
        raise ValueError(f"the model has {flat.size} parameters; laplace holds the precision of at most {DENSE_LIMIT} "
                         "for models that are no Network with Gaussian priors: use brg.svi")
    params = target.constrain(mode, x, y)
    metric = fisher(bound.fn, None, x, at={s: params[s] for s in bound.names}, kind="full", sites=bound.names,
                    coordinates="unconstrained")
    basis, values = (np.asarray(a, np.float64) for a in _eigenbasis(metric.geometry, metric.arrays()))
    centre = ravel(mode, bound.names)
    basis = basis @ np.asarray(_coordinates(target, metric.geometry, centre, x, y), np.float64)
    information = (basis.T * values) @ basis
    precision = n * information + np.asarray(_penalty_hessian(target, centre, x, y), np.float64)
    if structure == "diagonal":
        precision = np.diag(np.diagonal(precision))
    try:
        lower = np.linalg.cholesky(precision)
    except np.linalg.LinAlgError:
        raise ValueError("the precision is not positive definite here: the point is no maximum of the density; leave "
                         "params out, or raise num_steps") from None
    noise = np.asarray(jax.vmap(lambda k: jax.random.normal(k, flat.shape))(keys), np.float64)
    draws = np.asarray(centre, np.float64) + np.linalg.solve(lower.T, noise.T).T
    draws = jnp.asarray(draws, flat.dtype)
    samples = map_draws(_constrain_one, (target,), draws, (x, y))
    density = float(_density(target, mode, x, y))
    evidence = density + 0.5 * flat.size * np.log(2 * np.pi) - np.log(np.diagonal(lower)).sum()
    return samples, evidence


@partial(jax.jit, static_argnums=0)
def _eigenbasis(geometry: Geometry, arrays):
    """Modes as rows, (K, P), and their stiffness."""
    values = geometry.spectrum(arrays)
    unit = jnp.eye(len(values), dtype=jnp.result_type(*hold(arrays).params.values()))
    return jax.lax.map(lambda c: ravel(geometry.from_modes(arrays, c), geometry.sites), unit), values


def _named(target: Target, vector, x, y) -> Params:
    """Coordinates u by site, of a vector in the order of the model's sites."""
    shapes = {s: v.shape for s, v in target.shapes(x, y).items()}
    return unravel(vector, {s: shapes[s] for s in target.bound.names})


@partial(jax.jit, static_argnums=(0, 1))
def _coordinates(target: Target, geometry: Geometry, centre, x, y):
    """Derivative of the metric's coordinates with respect to u, (P, P): 1 where they are the same."""
    return jax.jacobian(lambda v: ravel(geometry.coords(target.constrain(_named(target, v, x, y), x, y)),
                                        geometry.sites))(centre)


@partial(jax.jit, static_argnums=0)
def _penalty_hessian(target: Target, centre, x, y):
    def penalty(v):
        u = _named(target, v, x, y)
        return -target.log_prior(u, x, y) - target.log_factors(u, x, y)

    return jax.hessian(penalty)(centre)


@partial(jax.jit, static_argnums=0)
def _density(target: Target, u: Params, x, y):
    return target.log_density(u, x, y)


def _constrain_one(target: Target, vector, x, y):
    found = target.constrain(_named(target, vector, x, y), x, y)
    return {s: found[s] for s in target.bound.names}


# -- variational inference ------------------------------------------------------------------------------------
GUIDES = ("mean_field", "low_rank", "flow")


@dataclass(frozen=True)
class Fit:
    """A guide and how it is fitted. Hashable: it keys compiled code, in which NumPyro's objects are made anew."""

    target: Target
    guide: str
    rank: int | None
    particles: int
    rate: float
    steps: int

    def _made(self, key, start: Params, x, y) -> tuple[SVI, Any, Any]:
        """NumPyro's SVI and guide, set up, and the first state."""
        where = init_to_value(values=self.target.constrain(start, x, y))

        def fn(x, y=None):  # a Network has no __name__, which NumPyro's guides do not ask for but messages do
            return self.target.bound.fn(x, y)

        guide = {"mean_field": lambda: autoguide.AutoNormal(fn, init_loc_fn=where, init_scale=0.03),
                 "low_rank": lambda: autoguide.AutoLowRankMultivariateNormal(fn, init_loc_fn=where, init_scale=0.03,
                                                                             rank=self.rank),
                 "flow": lambda: autoguide.AutoIAFNormal(fn, init_loc_fn=where)}[self.guide]()
        rule = numpyro.optim.optax_to_numpyro(optax.adam(optax.cosine_decay_schedule(self.rate, self.steps)))
        svi = SVI(fn, guide, rule, Trace_ELBO(num_particles=self.particles))
        return svi, guide, svi.init(key, x, y)

    @partial(jax.jit, static_argnums=0)
    def begin(self, key, start, x, y):
        return self._made(key, start, x, y)[2]

    @partial(jax.jit, static_argnums=(0, 1))
    def advance(self, count: int, key, start, state, x, y):
        """`count` steps; the state after them, and their losses."""
        svi = self._made(key, start, x, y)[0]
        return jax.lax.scan(lambda s, _: svi.update(s, x, y), state, None, length=count)

    @partial(jax.jit, static_argnums=(0, 1))
    def draw(self, count: int, key, draw_key, start, state, x, y):
        svi, guide, _ = self._made(key, start, x, y)
        drawn = guide.sample_posterior(draw_key, svi.get_params(state), sample_shape=(count,))
        return {s: drawn[s] for s in self.target.bound.names}


def svi(model, x, y, *, key, num_samples: int = 1000, guide: str = "mean_field", rank: int | None = None,
        num_steps: int = 5000, learning_rate: float = 0.01, num_particles: int = 1, init: Any = "auto",
        progress_bar: bool = True) -> Posterior:
    """Variational posterior by NumPyro's SVI and automatic guides: the member of a family nearest in KL(q ‖ π_D).

    A mean-field or low-rank Gaussian about one mode is narrower than the posterior; compare its moments with another
    method's.

    Parameters
    ----------
    model, x, y, key, init
        As in `nuts`.
    num_samples : int
        Draws from the fitted guide.
    guide : {"mean_field", "low_rank", "flow"}
        ``AutoNormal``, ``AutoLowRankMultivariateNormal`` (`rank` columns, default √P), or ``AutoIAFNormal``.
    num_steps : int
        Steps of Adam; its rate falls to zero along a cosine.
    learning_rate : float
        In unconstrained units.
    num_particles : int
        Draws for each gradient.
    progress_bar : bool

    Returns
    -------
    Posterior
        ``method="svi (guide)"``, independent draws stored as (4, T/4). ``stats``: ``log_joint``, ``independent``,
        ``elbo`` (num_steps,), nats: the evidence lower bound as noisily estimated at each step.

    Raises
    ------
    ValueError
        As in `nuts`, and for a rank with another guide.
    RuntimeError
        If the bound is not finite at the end.

    References
    ----------
    .. [1] Kucukelbir et al., Automatic differentiation variational inference, JMLR 18 (2017), arXiv:1603.00788.
    """
    target, x, y, key = prepare(model, x, y, key, "svi")
    check_proper(target.bound)
    count, steps = check_count(num_samples, "num_samples"), check_count(num_steps, "num_steps")
    check_choice(guide, "guide", GUIDES)
    if rank is not None and guide != "low_rank":
        raise ValueError(f"rank={rank!r} belongs to guide='low_rank', got guide={guide!r}")
    fit = Fit(target, guide, None if rank is None else check_count(rank, "rank"),
              check_count(num_particles, "num_particles"), check_positive(learning_rate, "learning_rate"), steps)
    start = jax.tree.map(lambda a: a[0], initial(target, key, x, y, 1, init))
    run_key, losses = name_key(key, "steps"), []
    state, size = fit.begin(run_key, start, x, y), largest_divisor(steps, steps // 20 or 1)
    with quiet(not progress_bar):
        for _ in progress(range(steps // size), desc="svi", unit="block"):
            state, loss = fit.advance(size, run_key, start, state, x, y)
            losses.append(np.asarray(loss))
    elbo = -np.concatenate(losses)
    if not np.isfinite(elbo[-1]):
        raise RuntimeError(f"the evidence bound is {elbo[-1]} after {steps} steps; lower learning_rate={learning_rate}")
    samples = fit.draw(count, run_key, name_key(key, "draws"), start, state, x, y)
    stats = {"independent": True, "elbo": elbo, "log_joint": as_chains(log_joint(target.bound, samples, x, y))}
    return Posterior(as_chains(samples), stats, f"svi ({guide})")
