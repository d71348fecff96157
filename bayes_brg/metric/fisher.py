"""The Fisher metric of a model, per datum, with the noise included: I = E_x[Jᵀ F_out J] (50)–(52), theory §1.

Everything that acts on one draw is in `bayes_brg._geometry` and `bayes_brg._spectrum`, the result in
`bayes_brg._metric`; this module decides what to compute and runs it over draws.
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
from ..core.batching import default_chunk, map_draws
from ..core.checks import check_choice, check_count, check_inputs, check_key, num_points
from ..core.keys import name_key
from ..model.bound import BoundModel, Params, bind, unwrap
from ..posterior import Posterior, diverged, work
from . import eigenmodes
from .geometry import Geometry, draw_key, hold
from .metric import Metric, diagonal_one, diagonal_shared, finite_one, prior_one, prior_shared
from .output_fisher import Estimator, choose, has_parameter
from .prior_moments import check_whitening

__all__ = ["Geometry", "Metric", "fisher"]

KINDS = ("diagonal", "full", "block", "lowrank")
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


def fisher(model, posterior: Posterior | None, x, kind: str = "diagonal", estimator: str = "exact",
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
    kind : {"diagonal", "full", "block", "lowrank"}
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
        Sites that the metric covers; default those that were trained, less the parents of others.
    y : array (n, ...), optional
        Observed labels of `x`, for the empirical Fisher.
    key : jax.random.key, optional
        For drawn labels; they depend on the number of draw and datum alone.
    num_samples : int
        Labels drawn for each datum and draw.
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
        For an empirical Fisher without `y`, a Monte-Carlo one without `key`, an improper or discrete site, a singular
        output Fisher matrix (no noise), an infinite prior variance with ``whiten=True``.

    Warns
    -----
    UserWarning
        Where the observed distribution has neither a formula nor a KL divergence, so that labels are drawn after all.

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
    check_choice(kind, "kind", KINDS)
    check_choice(estimator, "estimator", ESTIMATORS)
    check_choice(coordinates, "coordinates", COORDINATES)
    num_samples, rank = check_count(num_samples, "num_samples"), check_count(rank, "rank")
    bound = bind(model, x)
    bound.check_global("brg.fisher")
    sites = flowing_sites(bound, x, posterior, sites)
    parents = bound.parents(x)
    draft = Geometry(bound, sites, kind, Estimator(), whiten, coordinates,
                     hierarchical=any(parents.get(s) for s in sites))
    params, lead = _points(draft, posterior, at)
    one = params if lead is None else jax.tree.map(lambda a: a[0], params)
    data = {"x": x}
    if estimator == "empirical":
        data["y"] = _labels(bound, y, one, x)
    how = choose(bound, estimator, num_samples, one, x, sites)
    shared: dict[str, Any] = {"data": data}
    if how.name == "montecarlo":
        shared["key"] = _label_key(bound, estimator, key, one, x)
    draws: dict[str, Any] = {"params": params, "draw": 0 if lead is None else jnp.arange(lead[0] * lead[1])}
    if whiten:
        moments = prior_shared(draft, one, x)
        check_whitening(bound, sites, coordinates, one, x, moments)
        if draft.hierarchical and lead is not None:
            draws["scale"] = map_draws(prior_one, (draft,), params, (x,))[1]
        else:
            shared["scale"] = moments[1]
    geometry = _complete(draft, how, one, data, shared, batch_size)
    metric = Metric(geometry, x, at if isinstance(at, str) else "given", lead)
    if kind == "diagonal":
        if lead is None:
            found, spread, good = diagonal_shared(geometry, draws, shared)
        else:
            found, spread, good = map_draws(diagonal_one, (geometry,), draws, (shared,), desc="fisher",
                                            show=progress_bar,
                                            chunk=default_chunk(work(bound, x)) if geometry.layered else 1)
        _check_result(geometry, good if lead is None else good | diverged(posterior), draws, shared, lead)
        return _keep(metric, {**draws, "stiffness": found}, shared,
                     sem=None if spread is None else jax.tree.map(jnp.sqrt, spread))
    return _with_modes(metric, draws, shared, posterior, rank, progress_bar)


def _with_modes(metric: Metric, draws: dict, shared: dict, posterior: Posterior | None, rank: int, show: bool
                ) -> Metric:
    """The metric with its eigenmodes at every draw, or at the shared point."""
    geometry, lead = metric.geometry, metric.lead
    lifted = draws if lead is not None else jax.tree.map(lambda a: jnp.asarray(a)[None], draws)
    one = jax.tree.map(lambda a: a[0], lifted["params"])
    responses = eigenmodes.num_responses(geometry, one, shared["data"], shared.get("key"))
    modes = eigenmodes.leading(geometry, lifted, shared, responses, rank, show) if geometry.kind == "lowrank" else \
        eigenmodes.exact(geometry, lifted, shared, responses, show)
    found, held_modes = _read_modes(geometry, modes, lifted, shared)
    good = np.all([np.isfinite(m["values"]).all(axis=1) for m in modes], axis=0)
    good &= np.asarray(map_draws(finite_one, (geometry,), lifted["params"]))
    _check_result(geometry, good[0] if lead is None else good | diverged(posterior), draws, shared, lead)
    if lead is None:
        found, held_modes = jax.tree.map(lambda a: a[0], (found, held_modes))
    return _keep(metric, {**draws, "modes": held_modes}, shared, **found)


def restricted(metric: Metric, site: str, posterior: Posterior | None) -> Metric:
    """The metric of one of its sites alone, with the same draws, labels and amount of data.

    Parameters
    ----------
    metric : Metric
    site : str
    posterior : Posterior or None
        The draws it was computed on, for those known to have diverged.
    """
    geometry = replace(metric.geometry, sites=(site,), blocks=())
    draws, shared = ({k: {site: v[site]} if k in ("stiffness", "scale") else v for k, v in held.items() if k != "modes"}
                     for held in (metric.held_draws, metric.held_shared))
    if metric.kind == "diagonal":
        sem = None if metric.sem is None else {site: metric.sem[site]}
        return replace(metric, geometry=geometry, sem=sem, held_draws=draws, held_shared=shared)
    if not metric.per_draw:
        draws = {k: shared.pop(k) for k in ("params", "draw")}
    amount, rank = float(shared.pop("amount", 1.0)), metric._held["modes"][0]["values"].shape[-1]  # type: ignore[arg-type]
    one = draws["params"] if not metric.per_draw else jax.tree.map(lambda a: a[0], draws["params"])
    rows = num_points(metric.x) * eigenmodes.num_responses(geometry, one, shared["data"], shared.get("key"))
    geometry = replace(geometry, blocks=eigenmodes.plan(geometry, rows, ((site,),)))
    bare = Metric(geometry, metric.x, metric.at, metric.lead)
    return _with_modes(bare, draws, shared, posterior, rank, False).total(amount)


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


def _complete(draft: Geometry, how: Estimator, params: Params, data: dict, shared: dict, batch_size: int | None
              ) -> Geometry:
    """The geometry with its estimator, its fast way, its batch of probe inputs and its blocks."""
    bound, n = draft.bound, num_points(data["x"])
    real = draft.coordinates == "native" or all(draft._transform(s) is None for s in draft.sites)
    layered = real and bound.layered(draft.sites)
    scale = shared.get("scale", {})
    uniform = not draft.whiten or ("scale" in shared and all(bool(jnp.all(v == v.ravel()[0])) for v in scale.values()))
    geometry = replace(draft, how=how, layered=layered, uniform=uniform, batch=n)
    responses = eigenmodes.num_responses(geometry, params, data, shared.get("key"))
    if batch_size is None:
        width = max((max(bound.site(s).shape, default=1) for s in bound.names), default=1)
        size = sum(map(math.prod, geometry.shapes().values()))
        rows = geometry.kind == "diagonal" and not layered  # the other ways hold activations of one batch, not rows
        largest = max(math.prod(bound.site(s).shape) for s in bound.names)
        at_once = ROW_WORK // (responses * size) if rows else max(LAYER_WORK, largest) // width
        at_once *= 1 if jax.default_backend() == "cpu" else 32
        batch_size = max(at_once, min(16, eigenmodes.ROWS // (responses * size)) if rows else 16, 1)
    count = -(-n // min(n, check_count(batch_size, "batch_size")))
    geometry = replace(geometry, batch=-(-n // count))  # equal batches: less padding
    if geometry.kind == "diagonal":
        return geometry
    groups = tuple((s,) for s in geometry.sites) if geometry.kind == "block" else (geometry.sites,)
    return replace(geometry, blocks=eigenmodes.plan(geometry, n * responses, groups))


def _keep(metric: Metric, draws: dict, shared: dict, **found: Any) -> Metric:
    """A metric with its arrays, of each draw or shared."""
    if metric.per_draw:
        return replace(metric, held_draws=draws, held_shared=shared, **metric._shaped(found))
    return replace(metric, held_shared={**shared, **draws}, **found)


def _read_modes(geometry: Geometry, found: list[dict], draws: dict, shared: dict) -> tuple[dict, list[dict]]:
    """What a metric shows of the modes of its blocks, and the arrays it keeps; leading axis T."""
    names, dtype = [b.sites[0] for b in geometry.blocks], jnp.result_type(*draws["params"].values())
    modes = []
    for m in found:
        cut = np.where(m["values"] > m["floor"][:, None], m["values"], 0.0)
        modes.append({"values": jnp.asarray(cut, dtype), **{k: m[k] for k in ("weights", "vectors") if k in m}})

    def gather(parts):
        return dict(zip(names, parts, strict=True)) if geometry.kind == "block" else parts[0]

    shown = {name: gather([m[key] for m in found]) for key, name in
             (("values", "eigenvalues"), ("floor", "noise_floor"), ("residual", "residuals")) if key in found[0]}
    if geometry.how.name == "montecarlo":
        variance = map_draws(eigenmodes.mode_variance, (geometry,), {**draws, "modes": modes}, (shared,))
        ends = np.cumsum([m["values"].shape[1] for m in found])[:-1]
        shown["sem"] = gather(np.split(np.sqrt(np.asarray(variance, float)), ends, axis=1))
    return shown, modes


def _check_result(geometry: Geometry, good: Any, draws: dict, shared: dict, lead: tuple[int, int] | None) -> None:
    """Refuse a metric that is not finite, and say at which draw and datum the output Fisher matrix is singular."""
    good = np.asarray(good)
    if good.all():
        return
    draw = int(np.argmin(good))
    held = hold((draws if lead is None else jax.tree.map(lambda a: a[draw], draws), shared))
    name = "the given point" if lead is None else "chain {}, draw {}".format(*divmod(draw, lead[1]))
    for s, v in held["params"].items():
        if not np.isfinite(np.asarray(v)).all():
            raise ValueError(f"site {s!r} is not finite at {name}; drop such draws before asking for a metric")
    data, n = held["data"], num_points(held["data"]["x"])

    @jax.jit  # compiled, since NumPyro checks concrete values with messages of its own
    def look(params):
        batch = {**data, "index": jnp.arange(n), "weight": jnp.ones(n)}
        base = unwrap(geometry.bound.distribution(params, data["x"]))
        shown = {p: jnp.asarray(getattr(base, p)) for p in base.arg_constraints if has_parameter(base, p)}
        return geometry.respond(geometry.coords(params), params, batch, draw_key(held)), shown

    law = type(unwrap(jax.eval_shape(lambda p: geometry.bound.distribution(p, data["x"]), held["params"]))).__name__
    r, shown = look(held["params"])
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
    """The sites a metric covers: those asked for, else those trained, less the parents of others."""
    if sites is not None:
        sites = (sites,) if isinstance(sites, str) else tuple(sites)
        if not sites:
            raise ValueError("sites is empty; name at least one site or leave it out")
        if len(set(sites)) < len(sites):
            raise ValueError(f"sites names a site twice: {', '.join(sites)}")
    else:
        parents = {p for ps in bound.parents(x).values() for p in ps}
        trained = bound.names if posterior is None else posterior.trained
        sites = tuple(s for s in bound.names if s in trained and s not in parents)
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
