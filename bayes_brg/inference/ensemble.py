"""Ensembles of networks trained by gradient descent, a stand-in for the posterior (§2, §4.2.2 of the paper)."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from threadpoolctl import threadpool_limits

from ..core.arrays import check_array
from ..core.batching import as_chains, default_chunk, map_draws, progress, quiet
from ..core.checks import check_choice, check_count, check_positive, num_points
from ..core.keys import name_key
from ..metric.geometry import Geometry
from ..metric.output_fisher import Estimator
from ..model.bound import BoundModel, Params
from ..model.distributions import unwrap
from ..model.readout import LinearReadout, exact_shift
from ..posterior import Posterior, check_proper, draw_prior, log_joint, work
from .linear_descent import descend
from .target import checked, trained_sites
from .training_advice import curvature_rate

__all__ = ["ensemble", "readout_posterior"]


def ensemble(model: Callable, x, y, *, key, num_members: int = 1000, train: str | Sequence[str] = "readout",
             objective: str = "loss", optimizer: str = "sgd", learning_rate: float | str = "auto",
             num_epochs: int = 1000, record: Sequence[int] = (), solver: str = "auto",
             progress_bar: bool = True) -> Posterior:
    """Train an ensemble by gradient descent from independent prior draws.

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model ``model(x, y)``.
    x : array (n, dim)
    y : array (n,) or (n, outputs)
    key : jax.random.key
        Initial values, noise and anchors come from streams named after them.
    num_members : int
    train : {"readout", "all"} or sequence of site names
        The sites that learn; the others stay at their prior draw.
    objective : {"loss", "randomized_map"}
        ``"loss"``: (y − φ)² summed over outputs for Gaussian likelihoods (92), −log p for others.
        ``"randomized_map"``: each member fits its own noisy targets y + ε, ε ~ N(0, s²), and is tied to its own prior
        draw θ₀: |y + ε − φ|² + s² Σ (θ − θ₀)²/σ₀². On a linear readout its minimiser, found exactly here whatever the
        optimizer, is an exact posterior draw (theory §8). For other likelihoods, −2 log p takes the place of the square
        and only θ₀ is random. Needs Gaussian priors.
    optimizer : {"sgd", "gd", "adam"}
        ``"sgd"``: per sample, in order. ``"gd"``: full batch, mean over points. ``"adam"``: the same gradient in Adam.
    learning_rate : float or "auto"
        η in θ ← θ − η ∂loss/∂θ, so w ← w + 2η r h for the square: units of θ²/loss. ``"auto"``: what `learning_rate`
        suggests from the curvature at eight of the members' starts, for Adam .01; it is in
        ``stats["learning_rate"]``. The paper takes 1e-6 for its own network. Sites whose support is not all of
        ℝ take their steps in unconstrained coordinates, and so stay inside it.
    num_epochs : int
        Passes over the data; 0 leaves the prior draws.
    record : sequence of int
        Epochs to keep in ``posterior.history``, each a `Posterior` with ``log_joint`` and ``loss`` of its own.
    solver : {"auto", "closed_form", "stepping"}
        With a Gaussian likelihood, a trained readout and "sgd" or "gd" all epochs are one affine map, which "auto" uses
        (theory §8). "stepping" takes every step.
    progress_bar : bool

    Returns
    -------
    Posterior
        Members stored as (4, T/4) in key order (the largest divisor of T not above 4). ``stats``: ``independent``,
        ``log_joint``, ``loss`` (training loss, mean over points), ``diverged`` (parameters or loss not finite, or a
        rate above the largest stable one), and, from the closed form, ``largest_stable_rate``.

    Warns
    -----
    UserWarning
        When members diverged: how many, and the largest rate that is stable for all.

    Raises
    ------
    ValueError
        For data that disagree or are not finite, unknown options, a closed form that does not apply, or "sgd" with a
        site that has one row a datum.
    """
    bound, x, y, key = checked(model, x, y, key)
    count = check_count(num_members, "num_members")
    epochs = check_count(num_epochs, "num_epochs", 0)
    if learning_rate != "auto":
        learning_rate = check_positive(learning_rate, "learning_rate")
    check_choice(optimizer, "optimizer", ("sgd", "gd", "adam"))
    check_choice(objective, "objective", ("loss", "randomized_map"))
    check_choice(solver, "solver", ("auto", "closed_form", "stepping"))
    if not np.iterable(record):
        raise ValueError(f"record must be a sequence of epochs to keep, got {record!r}; for one write "
                         f"record=({record!r},)")
    stops = sorted({check_count(e, "an epoch to record", 0) for e in record})
    if stops and stops[-1] > epochs:
        raise ValueError(f"record asks for epoch {stops[-1]} but num_epochs is {epochs}")
    check_proper(bound)
    trained = trained_sites(bound, train)
    if optimizer == "sgd":
        bound.check_global("brg.ensemble with optimizer='sgd', which takes data one by one,")
    elif bound.local and learning_rate == "auto" and optimizer == "gd":
        raise ValueError(f"the automatic learning rate is made of a Fisher metric, which a model with one row of "
                         f"{bound.local[0]!r} a datum has none of; pass learning_rate=, or optimizer='adam'")
    key = name_key(key, "ensemble")

    readout = bound.readout
    linear = readout is not None and set(trained) <= set(readout.sites) and not readout.inexact()
    closed = linear and (objective == "randomized_map" or optimizer != "adam")
    if solver == "closed_form" and not closed:
        raise ValueError("the closed form needs a Network with a Gaussian likelihood, train='readout' and optimizer "
                         f"'sgd' or 'gd'; got train={train!r}, optimizer={optimizer!r}")
    draws = draw_prior(bound, name_key(key, "init"), x, count)
    solved = closed and solver != "stepping" and objective == "randomized_map"
    if learning_rate == "auto" and not solved:
        learning_rate = curvature_rate(bound, draws, x, optimizer, trained)
    rate = 0.0 if solved else float(learning_rate)
    stats: dict[str, Any] = {"independent": True} if solved else {"independent": True, "learning_rate": rate}
    if solved and stops:
        raise ValueError("record needs a path of descent; randomized_map on a linear readout is solved at once: "
                         "leave record out, or pass solver='stepping'")
    snapshots: dict[int, Params]
    with quiet(not progress_bar):
        if solved:
            snapshots = {epochs: exact_readout(bound, draws, x, y, key, trained)}
        elif solver != "stepping" and closed:
            snapshots, stable, limit = _descend_members(bound, draws, x, y, trained, optimizer, rate, stops, epochs)
            stats["largest_stable_rate"] = as_chains(jnp.asarray(limit))
        else:
            snapshots = _step_members(bound, draws, x, y, key, trained, objective, optimizer, rate, stops, epochs)
    final = snapshots[epochs]
    reports = {e: map_draws(_report_one, (bound,), found, (x, y), chunk=default_chunk(work(bound, x)))
               for e, found in snapshots.items()}
    finite = np.logical_and.reduce([np.isfinite(np.asarray(final[s])).reshape(count, -1).all(1) for s in trained])
    finite &= np.isfinite(np.asarray(reports[epochs]["loss"]))  # it overflows long before the parameters do
    diverged = ~finite if "largest_stable_rate" not in stats else ~finite | ~stable
    if diverged.any():
        remedy = (f"the largest rate stable for all of them is {limit[diverged].min():.3g}, "
                  "member by member in stats['largest_stable_rate']"
                  if "largest_stable_rate" in stats else "lower it" if optimizer == "adam" else
                  "lower it; brg.learning_rate suggests one")
        warnings.warn(f"{diverged.sum()} of {count} members diverged at learning_rate={rate:.3g}: {remedy}. They are "
                      "marked in stats['diverged']", UserWarning, stacklevel=2)
    method = f"ensemble ({objective}, {optimizer})"
    stats |= {"diverged": as_chains(jnp.asarray(diverged)), **as_chains(reports[epochs])}
    history = {e: Posterior(as_chains(snapshots[e]), {"independent": True, **as_chains(reports[e])}, method, trained)
               for e in stops}
    return Posterior(as_chains(final), stats, method, trained, history)


def readout_posterior(model: Callable, x, y, *, key, num_samples: int = 1000, hidden: Params | None = None,
                      progress_bar: bool = True) -> Posterior:
    """Exact posterior of a linear Gaussian readout on frozen random features.

    Each draw has hidden weights from the prior and a readout from its exact Gaussian posterior given them, by
    Matheron's rule: w = w₀ + Σ_w Hᵀ(H Σ_w Hᵀ + s²)⁻¹(y + ε − H w₀) (theory §8).

    Parameters
    ----------
    model : Network
        With a Gaussian likelihood.
    x : array (n, dim)
    y : array (n,) or (n, outputs)
    key : jax.random.key
    num_samples : int
    hidden : dict, optional
        Hidden weights to freeze for every draw; default: each draw has its own from the prior.
    progress_bar : bool

    Returns
    -------
    Posterior
        Independent draws of all sites, stored as (4, T/4); ``trained`` names the readout.

    Raises
    ------
    ValueError
        If the model is not a `Network` with a Gaussian likelihood.
    """
    bound, x, y, key = checked(model, x, y, key)
    if bound.readout is None or bound.readout.inexact():
        raise ValueError("readout_posterior needs a brg.mlp or brg.cosnet with a Gaussian likelihood, in whose readout "
                         f"the output is linear; got {model!r}. Use brg.nuts for other models")
    count, given = check_count(num_samples, "num_samples"), {}
    for s, value in (hidden or {}).items():
        given[s] = check_array(value, f"hidden[{s!r}]", axes=())
        if bound.site(s).shape != given[s].shape:
            raise ValueError(f"hidden[{s!r}] has shape {given[s].shape}, the model expects {bound.site(s).shape}")
    with quiet(not progress_bar):
        return run_readout_posterior(bound, x, y, name_key(key, "readout_posterior"), count, given)


def run_readout_posterior(bound: BoundModel, x: Any, y: Any, key: jax.Array, count: int,
                          hidden: Params | None = None) -> Posterior:
    """`readout_posterior` of a bound model whose readout is exact."""
    assert bound.readout is not None
    draws, trained = draw_prior(bound, name_key(key, "init"), x, count), bound.readout.sites
    for s, value in (hidden or {}).items():
        if s not in trained:
            draws[s] = jnp.broadcast_to(value.astype(draws[s].dtype), draws[s].shape)
    draws = exact_readout(bound, draws, x, y, key, trained)
    stats = {"independent": True, "log_joint": as_chains(log_joint(bound, draws, x, y))}
    return Posterior(as_chains(draws), stats, "readout_posterior", trained)


# -- closed forms ---------------------------------------------------------------------------------------------
@partial(jax.jit, static_argnums=0)
def _design_one(bound: BoundModel, params: Params, x: jax.Array) -> jax.Array:
    return bound.readout.design(params, x)  # type: ignore[union-attr]


def _each_member(bound: BoundModel, readout: LinearReadout, draws: Params, x: jax.Array, solve: Callable,
                 desc: str) -> None:
    """Call ``solve(member, H)``, H in float64, for every member.

    Members are independent, so each core solves one with single-threaded linear algebra: matrices this small gain
    little from threads, and threads that compete for cores cost a factor of ten and more.
    """
    count, cores = next(iter(draws.values())).shape[0], os.cpu_count() or 1
    own = threading.local()  # one matrix a thread: fresh pages for each member cost more than the copy
    hidden = {s: np.asarray(draws[s]) for s in readout.hidden}
    wide = jax.config.jax_enable_x64
    weights = {s: np.zeros(draws[s].shape[1:], draws[s].dtype) for s in readout.sites}  # features do not see them

    def solve_one(member: int) -> None:
        with jax.enable_x64(wide):  # JAX keeps its precision by thread
            features = np.asarray(_design_one(bound, {**weights, **{s: v[member] for s, v in hidden.items()}}, x))
        if not hasattr(own, "h"):
            own.h = np.empty(features.shape)
        np.copyto(own.h, features)
        solve(member, own.h)

    with (progress(desc=desc, total=count, unit="member") as bar,
          threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(cores) as pool):
        for _ in pool.map(solve_one, range(count)):
            bar.update()


def _store(readout: LinearReadout, draws: Params, weights: np.ndarray) -> Params:
    """Draws with the readout replaced by `weights` (T, rows, outputs), in the draws' own precision."""
    with np.errstate(over="ignore"):  # a member too large for the precision is infinite: `stats` says that it diverged
        weights = weights.astype(draws[readout.sites[0]].dtype)
    return {**draws, **{s: jnp.asarray(v) for s, v in readout.split(weights).items()}}


def _descend_members(bound, draws, x, y, trained, optimizer, rate, stops, epochs):
    readout = bound.readout
    stops = sorted({*stops, epochs})
    targets = np.asarray(y, np.float64)
    start = readout.stack(draws, np)
    count = len(start)
    results = np.repeat(start[None], len(stops), axis=0)
    stable, limit = np.ones(count, bool), np.zeros(count)
    free = readout.rows(trained)
    frozen = start.copy()
    frozen[:, free] = 0.0

    def solve(i, h):
        left = targets - h @ frozen[i] if frozen[i].any() else targets
        done = descend(h[:, free], left, start[i, free], optimizer=optimizer, learning_rate=rate, epochs=stops)
        for k, w in enumerate(done.weights):
            results[k, i, free] = w
        stable[i], limit[i] = done.stable, done.largest_stable_rate

    _each_member(bound, readout, draws, x, solve, "train")
    return {e: _store(readout, draws, results[k]) for k, e in enumerate(stops)}, stable, limit


def _white_one(shape, index, key):
    return jax.random.normal(jax.random.fold_in(key, index), shape)


def _white_noise(key: jax.Array, count: int, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise of each member, leading axis (count,)."""
    return map_draws(_white_one, (shape,), np.arange(count), (name_key(key, "noise"),), passes=math.prod(shape))


def exact_readout(bound: BoundModel, draws: Params, x, y, key, trained: Sequence[str]) -> Params:
    """Replace each member's readout by an exact posterior draw given its hidden weights (Matheron's rule)."""
    readout = bound.readout
    assert readout is not None
    count = next(iter(draws.values())).shape[0]
    given = {s: draws[s] for s in bound.hyperparameters(x)}
    anchor = readout.stack(draw_prior(bound, name_key(key, "anchor"), x, count, given), np)
    noise, std = (np.asarray(a, np.float64) for a in _noise_and_std(bound, count, given))
    targets = np.asarray(y, np.float64)
    epsilon = noise[:, None] * np.asarray(_white_noise(key, count, targets.shape), np.float64)
    results, free = readout.stack(draws, np), readout.rows(trained)

    def solve(i, h):
        results[i, free] = anchor[i, free]
        left = targets + epsilon[i] - h @ results[i]
        alike = (noise[i] == noise[i, 0]).all()
        for c in [slice(None)] if alike else [slice(c, c + 1) for c in range(left.shape[1])]:
            shift = exact_shift(h[:, free], left[:, c], std[i, free], float(noise[i, c][0]))
            results[i, free, c] += shift

    _each_member(bound, readout, draws, x, solve, "exact readout")
    return _store(readout, draws, results)


@partial(jax.jit, static_argnums=(0, 1))
def _noise_and_std(bound: BoundModel, count: int, given: Params) -> tuple[jax.Array, jax.Array]:
    """Noise (member, output) and prior standard deviations (member, row) of the readout, given the scales of each."""
    readout = bound.readout
    assert readout is not None

    def one(_, params):
        return jnp.broadcast_to(readout.noise(params), (readout.outputs,)), readout.moments(params)[1][:, 0]

    return jax.vmap(one)(jnp.arange(count), given)


# -- step by step ---------------------------------------------------------------------------------------------
class Member(NamedTuple):
    """What one member trains from; of all members, with a leading axis (member,)."""

    params: Params
    """Where it starts: every site, native coordinates."""
    epsilon: jax.Array | None = None
    """Noise added to its targets, of the form of y; None where there is none."""
    anchor: Params = {}
    """The prior draw that its trained sites are tied to; empty where they are free."""
    scale: Params = {}
    """Prior standard deviations of the anchor's sites."""


def _objective(bound: BoundModel, member: Member, strength: float):
    """``fn(params, x, y) -> (n,)``: the loss of each point of a slice, plus the tie to the anchor.

    A noise that is learned may differ between outputs, so that the square is not it; −log p takes its place.
    """
    learned = member.epsilon is not None and bound.likelihood is not None and bound.likelihood.noise is None

    def fn(params, x, y):
        loss = -bound.log_likelihood(params, x, y) if learned else bound.loss(params, x, y)
        if member.anchor:
            tie = sum(jnp.sum(((params[s] - a) / member.scale[s]) ** 2) for s, a in member.anchor.items())
            loss = loss + strength * tie
        return loss
    return fn


def _train_one(bound, trained, optimizer, rate, stops, strength, member: Member, x, y):
    """All epochs of one member; returns its trained sites at each stop."""
    params, geometry = member.params, Geometry(bound, trained, Estimator(), coordinates="unconstrained")
    targets = y + member.epsilon if member.epsilon is not None else y
    fixed = {s: v for s, v in params.items() if s not in trained}
    fn = _objective(bound, member, strength)

    def point_loss(free, i):
        x_i = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, i, 1), x)
        return fn({**fixed, **geometry.native(free)}, x_i, jax.lax.dynamic_slice_in_dim(targets, i, 1))[0]

    def mean_loss(free):
        return jnp.mean(fn({**fixed, **geometry.native(free)}, x, targets))

    rule = optax.adam(rate) if optimizer == "adam" else optax.sgd(rate)

    def update(carry, grads):
        free, state = carry
        change, state = rule.update(grads, state, free)
        return optax.apply_updates(free, change), state

    def epoch(carry, _):
        if optimizer != "sgd":
            return update(carry, jax.grad(mean_loss)(carry[0])), None
        return jax.lax.scan(lambda c, i: (update(c, jax.grad(point_loss)(c[0], i)), None), carry,
                            jnp.arange(num_points(x)))[0], None

    free = geometry.coords(params)
    carry, done, kept = (free, rule.init(free)), 0, []
    for stop in stops:
        if stop > done:
            carry, _ = jax.lax.scan(epoch, carry, None, length=stop - done)
        done = stop
        kept.append(geometry.native(carry[0]) if done else {s: params[s] for s in trained})
    return kept


def _step_members(bound, draws, x, y, key, trained, objective, optimizer, rate, stops, epochs):
    count = next(iter(draws.values())).shape[0]
    stops = tuple(sorted({*stops, epochs}))
    members, strength = Member(draws), 0.0
    if objective == "randomized_map":
        noise = bound.likelihood.noise if bound.likelihood is not None else None
        given = {s: draws[s] for s in bound.hyperparameters(x)}
        anchors = draw_prior(bound, name_key(key, "anchor"), x, count, given)
        members = members._replace(anchor={s: anchors[s] for s in trained},
                                   scale=prior_scales(bound, x, trained, draws))
        if bound.likelihood is not None and bound.likelihood.squared:
            wide = _noise_and_std(bound, count, given)[0][:, None] if noise is None else noise
            members = members._replace(epsilon=wide * _white_noise(key, count, y.shape))
        # Per point: the square carries s²; −log p is half of −2 log p, so its tie has half the strength.
        strength = (0.5 if noise is None else noise**2) / num_points(x)
    kept = map_draws(_train_one, (bound, trained, optimizer, rate, stops, strength), members, (x, y),
                     chunk=default_chunk(work(bound, x)), desc="train", passes=1 + 2 * epochs)
    return {stop: {**draws, **free} for stop, free in zip(stops, kept, strict=True)}


def prior_scales(bound: BoundModel, x: Any, sites: Sequence[str], draws: Params) -> Params:
    """Prior standard deviations of Gaussian sites, of each member given the parents of its own."""
    trace = bound.trace({}, x)
    for s in sites:
        base = unwrap(trace[s]["fn"])
        if not isinstance(base, dist.Normal):
            raise ValueError(f"randomized_map needs Gaussian priors, but site {s!r} has {type(base).__name__}; "
                             "leave it out of train, or use objective='loss'")
    return map_draws(_prior_scales_one, (bound, tuple(sites)), draws, (x,))


def _prior_scales_one(bound: BoundModel, sites: tuple[str, ...], params: Params, x: Any) -> Params:
    priors = bound.priors(params, x)
    return {s: jnp.broadcast_to(unwrap(priors[s]).scale, bound.site(s).shape) for s in sites}


def _report_one(bound: BoundModel, params: Params, x, y) -> dict[str, jax.Array]:
    """Both in one pass through the network."""
    return {"loss": bound.mean_loss(params, x, y), "log_joint": bound.log_joint(params, x, y)}
