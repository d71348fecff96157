"""The Fisher metric of a model, per datum, with the noise included: I = E_x[Jᵀ F_out J] (50)–(52), theory §1.

What acts on one draw is in `geometry`, what differs between kinds in `kinds`, the result in `metric`; this module
decides what to compute.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arrays import check_array
from ..core.batching import first_draw, map_draws
from ..core.checks import check_choice, check_count, check_inputs, check_key, num_points
from ..core.keys import name_key
from ..model.bound import BoundModel, Params, bind, unwrap
from ..posterior import Posterior, diverged
from . import eigenmodes
from .geometry import Geometry, State, draw_key, hold
from .kinds import KINDS, Kind, as_kind, num_rows
from .label_checks import check_labels, check_memory
from .metric import Metric, prior_one, prior_shared
from .output_fisher import Data, Estimator, choose, has_parameter
from .prior_moments import check_whitening

__all__ = ["KINDS", "Geometry", "Metric", "fisher"]

ESTIMATORS = ("exact", "montecarlo", "empirical")
COORDINATES = ("native", "unconstrained")
# Numbers held at once on one draw, on a CPU: probe inputs × the widest layer, or factor rows × parameters on the
# general way. Measured: smaller batches pay for each start, larger ones for fresh memory; and batches whose activations
# are smaller than the weights pay for reading these again.
LAYER_WORK = 2**19
ROW_WORK = 2**20


# -- making one -----------------------------------------------------------------------------------------------
def _coords_one(geometry: Geometry, params: Params) -> Params:
    return geometry.coords(params)


def fisher(model, posterior: Posterior | None, x, kind: str | Kind = "diagonal", estimator: str = "exact",
           at: str | Params = "draw", whiten: bool = False, sites=None, *, y=None, key=None, num_samples: int = 64,
           rank: int = 20, coordinates: str = "native", batch_size: int | None = None,
           progress_bar: bool = True) -> Metric:
    """Fisher information metric of a model, per datum, at posterior draws.

    I = E_x[Jᵀ F_out J] (50)–(52): the mean over the probe inputs x of the Fisher information of one datum about the
    parameters, noise included. It is the Hessian of the mean KL divergence between the outputs, at coincidence.

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model ``model(x, y)``.
    posterior : Posterior or None
        Draws of all the model's sites; None where `at` gives the parameters.
    x : array (n, ...) or pytree
        Probe inputs; the first axis is the datum. With few of them many parameters have λ = 0.
    kind : {"diagonal", "full", "block", "lowrank"} or Kind
        ``"diagonal"``: λ of each parameter, exact. ``"full"``: all eigenmodes, exact; a P × P matrix is held only where
        P is less than n times the number of outputs. ``"block"``: the same site by site. ``"lowrank"``: the leading
        `rank` modes by Lanczos.
    estimator : {"exact", "montecarlo", "empirical"}
        The expectation over labels: in closed form, over `num_samples` drawn labels (`key`), or the observed labels
        `y` instead, which is a different matrix.
    at : {"draw", "mean", "map"} or dict
        At every draw, or one shared metric at the posterior mean, at the draw of largest ``log_joint``, or at given
        parameters (site to array).
    whiten : bool
        The metric P₀^{−1/2} I P₀^{−1/2}, P₀ the prior precision: λ̃ = λσ₀², a cutoff on which is one over an amount of
        data. Under a hierarchical prior σ₀ is that of each draw.
    sites : str or sequence of str, optional
        Sites that the metric covers; default those that were trained, less the parents of others and the noise of a
        network.
    y : array (n, ...), optional
        Observed labels of `x`, for the empirical Fisher.
    key : jax.random.key, optional
        For drawn labels; they depend on the number of draw and datum alone.
    num_samples : int
        Labels drawn for each datum and draw; time and memory grow linearly, and what does not fit is refused before
        any is drawn. The standard error in ``sem`` is that of finitely many labels; a warning says where scores have
        too long tails for it. The exact estimator has none.
    rank : int
        Modes of a low-rank metric.
    coordinates : {"native", "unconstrained"}
        Coordinates of constrained sites: the model's own, or NumPyro's unconstrained ones.
    batch_size : int, optional
        Probe inputs taken at once; memory grows with it and not with n. Default: chosen for the cache.
    progress_bar : bool
        Show a bar on a terminal.

    Returns
    -------
    Metric
        ``stiffness`` (diagonal) or ``eigenvalues`` (others), λ per datum.

    Raises
    ------
    ValueError
        For censored data, whose limits their law does not know; for a distribution whose labels are not those of its
        density; an empirical Fisher without `y`, a Monte-Carlo one without `key` or of more labels than fit; an
        improper or discrete site; a singular output Fisher matrix (no noise); an infinite prior variance with
        ``whiten=True``.

    Warns
    -----
    UserWarning
        Where the observed distribution has neither a formula nor a KL divergence, so that labels are drawn after all;
        where the squared scores of drawn labels have too long a tail for the standard error in ``sem``.

    Notes
    -----
    The diagonal of a dense layer is (A²)ᵀ Σ_r Δ_r² / n, A its inputs and Δ_r its cotangents, for one backward pass a
    column of S, F_out = S Sᵀ. For P ≫ n·C the spectrum comes from the Gram matrix of the factor rows, which for dense
    layers is Σ (A Aᵀ)∘(Δ_r Δ_sᵀ), accumulated in float64.

    Examples
    --------
    >>> import jax, bayes_brg as brg
    >>> net, x = brg.mlp((8,)), jax.numpy.ones((5, 2))
    >>> metric = brg.fisher(net, brg.prior(net, x, key=jax.random.key(0), num_samples=4), x)
    >>> metric.stiffness["w1"].shape
    (4, 1, 8, 1)
    """
    x = check_inputs(x)
    num_samples, rank = check_count(num_samples, "num_samples"), check_count(rank, "rank")
    kind = as_kind(kind, rank)
    check_choice(estimator, "estimator", ESTIMATORS)
    check_choice(coordinates, "coordinates", COORDINATES)
    bound = bind(model, x)
    bound.check_global("brg.fisher")
    sites = flowing_sites(bound, x, posterior, sites)
    parents = bound.parents(x)
    draft = Geometry(bound, sites, Estimator(), whiten, coordinates, hierarchical=any(parents.get(s) for s in sites),
                     kind=kind)
    params, lead = _points(draft, posterior, at)
    draws = State(params, np.arange(lead[0] * lead[1])) if lead else \
        State(jax.tree.map(lambda a: a[None], params), jnp.zeros(1, int))
    one = first_draw(draws.params)
    shared = State(data=Data(x, _labels(bound, y, one, x) if estimator == "empirical" else None))
    how = choose(bound, estimator, num_samples, one, x, sites, draws.params)
    if how.name == "montecarlo":
        shared = shared._replace(key=_label_key(bound, estimator, key, one, x))
    if whiten:
        moments = prior_shared(draft, one, x)
        check_whitening(bound, sites, coordinates, one, x, moments)
        if draft.hierarchical and lead is not None:
            draws = draws._replace(scale=map_draws(prior_one, (draft,), params, (x,))[1])
        else:
            shared = shared._replace(scale=moments[1])
    geometry = _complete(draft, how, one, shared, batch_size)
    if how.name == "montecarlo":
        check_labels(geometry, one, shared)
    return _found(Metric(geometry, x, at if isinstance(at, str) else "given", lead), draws, shared, posterior,
                  progress_bar)


def _found(bare: Metric, draws: State, shared: State, posterior: Posterior | None, show: bool) -> Metric:
    """The metric with what its kind finds at `draws`, leading axis T."""
    geometry, lead = bare.geometry, bare.lead
    found = geometry.kind.find(geometry, draws, shared, show)
    _check_result(geometry, np.asarray(found.good) if lead is None else np.asarray(found.good) | diverged(posterior),
                  draws, shared, lead)
    names = ("eigenvalues", "noise_floor", "sem", "residuals")
    own = draws._replace(modes=found.modes)
    if lead is None:
        own, found = jax.tree.map(lambda a: a[0], (own, found))
    report = {name: bare._shaped(getattr(found, name)) for name in names}
    if lead is None:
        return replace(bare, shared=hold((own, shared)), **report)
    return replace(bare, own=own, shared=shared, **report)


def restricted(metric: Metric, site: str, posterior: Posterior | None) -> Metric:
    """The metric of one of its sites alone, with the same draws, labels and amount of data.

    Parameters
    ----------
    metric : Metric
    site : str
    posterior : Posterior or None
        The draws it was computed on, for those known to have diverged.
    """
    def alone(held):
        scale = None if held.scale is None else {site: held.scale[site]}
        modes = None if held.modes is None else kind.restricted(held.modes, site)
        return held._replace(scale=scale, modes=modes)

    kind, geometry = metric.geometry.kind, replace(metric.geometry, sites=(site,), blocks=())
    if kind.restricted(metric._held.modes, site) is not None:
        return replace(metric, geometry=geometry, sem=None if metric.sem is None else {site: metric.sem[site]},
                       own=None if metric.own is None else alone(metric.own), shared=alone(metric.shared))
    draws, shared = (alone(held) for held in metric.lifted())
    geometry = kind.plan(geometry, num_rows(geometry, jax.tree.map(lambda a: a[0], draws.params), shared))
    found = _found(Metric(geometry, metric.x, metric.at, metric.lead), draws, shared, posterior, False)
    return found if metric.shared.amount is None else found.total(metric.amount)


def _points(geometry: Geometry, posterior: Posterior | None, at: Any) -> tuple[Params, tuple[int, int] | None]:
    """Parameters with leading axis T and (chain, draw); or, for a shared metric, without it and None."""
    bound = geometry.bound
    if not isinstance(at, str):
        if not isinstance(at, dict):
            raise TypeError(f"at must be 'draw', 'mean', 'map' or a dict of site to array, got {type(at).__name__}")
        given = bound.check_params(at, "at", lead=0)
        whole = {s for s, v in given.items() if not jnp.issubdtype(v.dtype, jnp.floating)}  # nothing to differentiate
        return {s: v.astype(float) if s in whole and not bound.site(s).discrete else v for s, v in given.items()}, None
    check_choice(at, "at", ("draw", "mean", "map"))
    if posterior is None:
        raise ValueError(f"at={at!r} needs a posterior; pass at=params for one point without it")
    bound.check_params(posterior.samples, "posterior")
    if at == "draw":
        flat = posterior.flat()
        return {s: flat[s] for s in bound.names}, (posterior.num_chains, posterior.num_draws)
    params = posterior.mean() if at == "mean" else posterior.mode()
    if at == "mean" and geometry.coordinates == "unconstrained":  # a mean that cannot leave the support
        flat = {s: posterior.flat()[s] for s in bound.names}
        coords = map_draws(_coords_one, (geometry,), flat)
        params = {**params, **geometry.native({s: jnp.mean(v, axis=0) for s, v in coords.items()})}
    return {s: jnp.asarray(params[s]) for s in bound.names}, None


def _labels(bound: BoundModel, y: Any, params: Params, x: Any) -> jax.Array:
    if y is None:
        raise ValueError("estimator='empirical' is made of the observed labels: pass y=; for the Fisher metric itself "
                         "use estimator='exact', which needs none")
    y = bound.targets(check_array(y, "y"))
    if y.shape[:1] != (num_points(x),):
        raise ValueError(f"y has shape {y.shape} but x has {num_points(x)} data points")
    shape = jax.eval_shape(lambda p: jnp.zeros(bound.distribution(p, x).shape()), params).shape
    if y.size != math.prod(shape):
        raise ValueError(f"y has shape {y.shape} but the model observes {shape}")
    return y.reshape(shape)


def _label_key(bound: BoundModel, estimator: str, key: Any, params: Params, x: Any) -> jax.Array:
    if estimator == "exact":
        kind = type(bound.distribution(params, x)).__name__
        warnings.warn(f"the observed {kind} has neither a formula for its Fisher matrix nor a KL divergence registered "
                      "in NumPyro: the metric is a Monte-Carlo estimate, with its standard error in metric.sem"
                      + ("" if key is not None else "; its labels are drawn from jax.random.key(0), pass key= for "
                         "others"), UserWarning, stacklevel=3)
        key = jax.random.key(0) if key is None else key
    elif key is None:
        raise ValueError("estimator='montecarlo' draws labels: pass key=jax.random.key(...)")
    return name_key(check_key(key), "fisher")


def _complete(draft: Geometry, how: Estimator, params: Params, shared: State, batch_size: int | None) -> Geometry:
    """The geometry with its estimator, its fast way, its batch of probe inputs and its blocks."""
    bound, n = draft.bound, num_points(shared.data.x)
    real = draft.coordinates == "native" or all(draft._transform(s) is None for s in draft.sites)
    layered = real and bound.layered(draft.sites)
    scale = shared.scale
    uniform = not draft.whiten or (scale is not None and all(bool(jnp.all(v == v.ravel()[0])) for v in scale.values()))
    geometry = replace(draft, how=how, layered=layered, uniform=uniform, batch=n)
    rows = num_rows(geometry, params, shared)
    if batch_size is None:
        width = max((max(bound.site(s).shape, default=1) for s in bound.names), default=1)
        largest = max(math.prod(bound.site(s).shape) for s in bound.names)
        numbers = rows // n * geometry.size()  # of the factor rows of one datum
        # Diagonals of the general way hold rows of a batch; all else holds activations of one.
        holds_rows = geometry.entrywise and not layered
        at_once = ROW_WORK // numbers if holds_rows else max(LAYER_WORK, largest) // width
        at_once *= 1 if jax.default_backend() == "cpu" else 32
        batch_size = max(at_once, min(16, eigenmodes.ROWS // numbers) if holds_rows else 16, 1)
        if how.name == "montecarlo":  # scores of the labels of a batch
            batch_size = max(1, min(batch_size, ROW_WORK // how.num_samples))
    count = -(-n // min(n, check_count(batch_size, "batch_size")))
    geometry = replace(geometry, batch=-(-n // count))  # equal batches: less padding
    if how.name == "montecarlo":
        check_memory(bound, how, params, shared.data.x, geometry.batch, geometry.entrywise)
    return geometry.kind.plan(geometry, rows)


def _check_result(geometry: Geometry, good: Any, draws: State, shared: State, lead: tuple[int, int] | None
                  ) -> None:
    """Refuse a metric that is not finite, and say at which draw and datum the output Fisher matrix is singular."""
    good = np.asarray(good)
    if good.all():
        return
    draw = int(np.argmin(good))
    held = hold((jax.tree.map(lambda a: a[draw], draws), shared))
    name = "the given point" if lead is None else "chain {}, draw {}".format(*divmod(draw, lead[1]))
    for s, v in held.params.items():
        if not np.isfinite(np.asarray(v)).all():
            raise ValueError(f"site {s!r} is not finite at {name}; drop such draws before asking for a metric")
    data, n = held.data, num_points(held.data.x)

    @jax.jit  # compiled, since NumPyro checks concrete values with messages of its own
    def look(params):
        base = unwrap(geometry.bound.distribution(params, data.x))
        shown = {p: jnp.asarray(getattr(base, p)) for p in base.arg_constraints if has_parameter(base, p)}
        return geometry.respond(geometry.coords(params), params, data.numbered(), draw_key(held)), shown

    law = type(unwrap(jax.eval_shape(lambda p: geometry.bound.distribution(p, data.x), held.params))).__name__
    r, shown = look(held.params)
    bad = ~np.isfinite(np.asarray(r)).all(axis=1)
    index = int(np.argmax(bad))

    def entry(v):
        return np.ravel(v[index] if v.shape[:1] == (n,) else v)[:4].tolist()

    values = ", ".join(f"{p} = {entry(np.asarray(v))}" for p, v in shown.items())
    if bad.any():
        raise ValueError(f"the output Fisher matrix is singular at {name}, datum {index}: {law} with {values}; give "
                         "the likelihood a positive scale and finite parameters")
    raise ValueError(f"the metric is not finite at {name} though the output Fisher matrix is: the derivatives of the "
                     f"model are not (first datum: {law} with {values})")


def flowing_sites(bound: BoundModel, x: Any, posterior: Posterior | None, sites) -> tuple[str, ...]:
    """The sites a metric covers: those asked for, else those trained, less the hyperparameters."""
    if sites is not None:
        sites = (sites,) if isinstance(sites, str) else tuple(sites)
        if not sites:
            raise ValueError("sites is empty; name at least one site or leave it out")
        if len(set(sites)) < len(sites):
            raise ValueError(f"sites names a site twice: {', '.join(sites)}")
    else:
        stay = bound.hyperparameters(x)
        trained = bound.names if posterior is None else posterior.trained
        sites = tuple(s for s in bound.names if s in trained and s not in stay)
        if not sites:
            raise ValueError("no site of the model was trained and has no children; name those to cover with sites=")
    for s in sites:
        site = bound.site(s)
        if site.improper:
            raise ValueError(f"site {s!r} has an improper prior, from which nothing can be refilled; give it a proper "
                             "one, or leave it out with sites=")
        if site.discrete:
            raise ValueError(f"site {s!r} is discrete and has no Fisher metric; marginalise it, or leave it out with "
                             "sites=")
    return sites
