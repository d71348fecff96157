"""What a model must be: log p(θ, y) = log prior + Σ_i log p(y_i | θ, x_i) + factors, looked at with a prior draw.

`examine` runs a model a few times, on all data and on some of them in another order, and refuses by name what would
give wrong numbers further on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import biject_to

from ..core.checks import num_points
from ..core.keys import name_key
from .distributions import WRAPPERS, observed_mask, unwrap
from .tracing import is_factor, latents, per_datum, run, where

__all__ = ["Findings", "examine"]

HELD_DATA = ("Arrays with one entry a datum (offsets, weights) belong in x, which may be a dict of arrays, and a plate "
             "over data has the length of x")
OUTSIDE = ("φ and the likelihood of a datum must be functions of its own x: centre, normalise or count outside of the "
           "model and pass the result as x (which may be a dict of arrays)")


LOOKED_AT = 4  # data that are looked at alone


class Findings(NamedTuple):
    """What a model is, at some inputs."""

    trace: dict
    """NumPyro trace at a prior draw."""
    observed: str
    """Name of the likelihood."""
    local: tuple[str, ...]
    """Latent sites whose first axis is the datum."""
    has_phi: bool
    """Whether a deterministic site ``"phi"`` says what the output is."""
    weighted: bool
    """Whether some data count more than others, or not at all (`handlers.scale`, `handlers.mask`)."""


def examine(model: Callable, x: Any) -> Findings:
    """Look at a model at a prior draw."""
    key, n = jax.random.key(0), num_points(x)
    trace = run(model, x, None, key)
    loose = {name: _somewhere(site, key) for name, site in latents(trace).items()
             if isinstance(unwrap(site["fn"]), dist.ImproperUniform)}
    if loose:  # at zero, where such a site stands else, nothing depends on anything
        trace = run(model, x, None, key, loose)
    for name, site in trace.items():
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            raise ValueError(f"plate {name!r} takes a subsample of {site['args'][1]} of {site['args'][0]} points; "
                             "the posterior needs all data: leave subsample_size out")
    observed, seen = _find_observed(model, x, trace, key, loose)
    fn, shape = per_datum(trace[observed]["fn"], n), jnp.shape(trace[observed]["value"])
    if not fn.batch_shape or fn.batch_shape[0] != n:
        raise ValueError(f"the observed site {observed!r} has batch shape {fn.batch_shape} and event shape "
                         f"{fn.event_shape}: one event covers several of the {n} data points, and does not come apart. "
                         f"Each datum needs a log-likelihood of its own: drop .to_event over the first axis of {shape}")
    names = [k for k in latents(trace) if k != observed]
    if not names:
        raise ValueError("the model has no latent sample site, so there is nothing to infer")
    for name in names:
        if not _is_one(trace[name]["scale"]):
            raise ValueError(f"handlers.scale counts latent site {name!r} {trace[name]['scale']} times, so that its "
                             "density is no prior that could be drawn from; scale the likelihood alone")
    _check_history(trace, seen, observed, n)
    _check_as_given(trace, seen, observed)
    weighted = not _is_one(trace[observed]["scale"]) or _masked(trace[observed]["fn"])
    for seed in (1, 2, 3) if weighted else ():
        _check_weights(trace, run(model, x, None, jax.random.key(seed), loose), observed)
    _warn_of_params(trace)
    _warn_of_factors(trace, seen)
    _warn_of_others(trace, observed)
    local, has_phi = _check_batch(model, x, trace, observed, names, key)
    return Findings(trace, observed, local, has_phi, weighted)


def _is_one(scale: Any) -> bool:
    return scale is None or bool(np.all(np.asarray(scale) == 1))


def _masked(d: dist.Distribution) -> bool:
    while isinstance(d, WRAPPERS):
        if isinstance(d, dist.MaskedDistribution):
            return True
        d = d.base_dist
    return False


def _somewhere(site: dict, key: jax.Array) -> jax.Array:
    """A value inside the support of a site from which nothing can be drawn."""
    to = biject_to(site["fn"].support)
    return to(jax.random.normal(name_key(key, site["name"]), to.inverse_shape(jnp.shape(site["value"]))))


def _find_observed(model: Callable, x: Any, trace: dict, key: jax.Array, values: dict) -> tuple[str, dict]:
    """The site that is latent for model(x, None) and observed for model(x, y), and the trace with a y given.

    That y is the site's own draw in the opposite order of data, so that a model which conditions a datum on others
    shows itself.
    """
    n, errors = num_points(x), []
    candidates = [k for k, s in latents(trace).items() if jnp.ndim(s["value"]) and s["value"].shape[0] == n]
    for name in reversed(candidates):
        try:
            seen = run(model, x, trace[name]["value"][::-1], key, values)
        except Exception as error:  # this value does not fit the model's y; try the next candidate
            errors.append(f"{name}: {type(error).__name__}: {error}{where(error)}")
            continue
        switched = [k for k in latents(trace) if k in seen and seen[k]["is_observed"]]
        if len(switched) == 1:
            return switched[0], seen
        if len(switched) > 1:
            raise ValueError(f"the model observes {len(switched)} sites ({', '.join(switched)}) when y is given; "
                             "one likelihood is needed: put the others into numpyro.factor")
    detail = f" (tried {'; '.join(errors)})" if errors else ""
    raise ValueError(
        "the model has no observed site: no sample site of first axis "
        f"{n} is latent for model(x, None) and observed for model(x, y); its latent sites are "
        f"{', '.join(latents(trace)) or 'none'}{detail}. Write numpyro.sample('y', ..., obs=y) and let y=None "
        "draw it"
    )


def _arrays(d: dist.Distribution) -> list[np.ndarray]:
    return [np.asarray(leaf, float) for leaf in jax.tree.leaves(d) if np.asarray(leaf).dtype.kind in "fiub"]


def _close(a: Any, b: Any) -> bool:
    """Equal to the rounding of another order of sums."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    finite = np.abs(a[np.isfinite(a)])
    return np.allclose(a, b, rtol=1e-4, atol=1e-5 * finite.max(initial=0.0), equal_nan=True)


def _check_history(trace: dict, seen: dict, observed: str, n: int) -> None:
    here, there = (_arrays(t[observed]["fn"]) for t in (trace, seen))
    if len(here) == len(there) and all(a.shape == b.shape and _close(a, b) for a, b in zip(here, there, strict=True)):
        return
    raise ValueError(f"the distribution of the observed site {observed!r} changes with y itself: a datum is "
                     "conditioned on others, and no likelihood of its own is left to it. Pass the observed history as "
                     "x (lagged columns), so that each datum has its own past")


def _check_as_given(trace: dict, seen: dict, observed: str) -> None:
    """Refuse a model that observes something made of y: samplers would see that, and everything else y itself."""
    given, found = (np.asarray(v) for v in (trace[observed]["value"][::-1], seen[observed]["value"]))
    same = given.shape == found.shape or given.size == found.size == 1
    if same and _close(given.ravel(), found.ravel()):
        return
    raise ValueError(f"the observed site {observed!r} has not the values of y that the model was given, but what it "
                     "made of them: bring y to what is observed outside of the model")


def _check_weights(trace: dict, other: dict, observed: str) -> None:
    """Refuse weights of data that change with the parameters, seen at another draw of them."""
    one, two = trace[observed], other[observed]
    same = _close(one["scale"] if one["scale"] is not None else 1.0, two["scale"] if two["scale"] is not None else 1.0)
    if not same or not _close(observed_mask(one["fn"]), observed_mask(two["fn"])):
        what = "handlers.mask" if same else "handlers.scale"
        raise ValueError(f"{what} around the observed site {observed!r} changes with the parameters, so that which "
                         "data count, or how often, is not known; make it a function of x, or write it into the "
                         "likelihood")


def _warn_of_others(trace: dict, observed: str) -> None:
    """Name sites that are observed whatever y is: factors, to all but samplers."""
    names = [name for name, site in trace.items() if site["type"] == "sample" and site["is_observed"]
             and name != observed and not is_factor(site)]
    if names:
        warnings.warn(f"the model always observes {', '.join(map(repr, names))} beside {observed!r}: samplers count it "
                      "as they count a numpyro.factor, but Fisher metrics, losses, scores and leave-one-out are of "
                      f"{observed!r} alone", UserWarning, stacklevel=5)


def _warn_of_params(trace: dict) -> None:
    """Name `numpyro.param` sites, and leaves of modules, that have no prior."""
    held = []
    for name, site in trace.items():
        if site["type"] != "param":
            continue
        leaves = jax.tree_util.tree_flatten_with_path(site["value"])[0]
        if len(leaves) == 1 and not leaves[0][0]:
            held.append(name)
            continue
        module = name.removesuffix("$params")
        for path, _ in leaves:
            keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
            if not any(f"{module}/{sep.join(keys)}" in trace for sep in ("/", ".")):
                held.append(f"{module}/{'.'.join(keys)}")
    if held:
        warnings.warn(f"numpyro.param without a prior: {', '.join(held)}. They are held at their first values, and "
                      "nothing is inferred of them; give them a prior with numpyro.sample (for modules, "
                      "random_flax_module and its like)", UserWarning, stacklevel=5)


def _warn_of_factors(trace: dict, seen: dict) -> None:
    """Name `numpyro.factor` sites that depend on y: likelihoods that only samplers know of."""
    found = []
    for name, site in seen.items():
        if not is_factor(site):
            continue
        before = trace[name]["fn"].log_factor if name in trace and is_factor(trace[name]) else None
        if before is None or jnp.shape(before) != jnp.shape(site["fn"].log_factor) or not _close(
                before, site["fn"].log_factor):
            found.append(name)
    if found:
        warnings.warn(f"numpyro.factor {', '.join(map(repr, found))} depends on y: samplers count it, but it is no "
                      "part of the likelihood of a datum, so that Fisher metrics, losses, scores and leave-one-out "
                      "know nothing of it. Write it as the log_prob of the observed distribution", UserWarning,
                      stacklevel=5)


def _check_batch(model: Callable, x: Any, trace: dict, observed: str, names: list[str], key: jax.Array
                 ) -> tuple[tuple[str, ...], bool]:
    """Refuse a model in which a datum depends on the others: shown two of them, in the opposite order, and some alone.

    Returns the local latents, and whether a deterministic ``"phi"`` follows the data.
    """
    n = num_points(x)
    named = "phi" in trace and trace["phi"]["type"] == "deterministic"
    if n == 1:
        return (), named and jnp.shape(trace["phi"]["value"])[:1] == (1,)
    k = min(n - 1, 2)  # few: what is compiled for two data serves every model and every n
    chosen = np.arange(n)[::-1][:k]
    some = jax.tree.map(lambda leaf: leaf[chosen], x)
    shape = jnp.shape(trace[observed]["value"])
    try:
        small = run(model, some, None, key)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"the model runs on {n} data points but not on {k} of them: "
                         f"{str(error).rstrip('.')}{where(error)}. {HELD_DATA}") from error
    if observed not in small or jnp.shape(small[observed]["value"]) == shape:
        raise ValueError(f"the observed site {observed!r} has shape {shape} for {n} data points and for {k} of them. "
                         + HELD_DATA)
    drawn = {s: trace[s]["value"] for s in names}
    values, local = dict(drawn), []
    for name in names:
        here, there = jnp.shape(values[name]), jnp.shape(small[name]["value"]) if name in small else None
        if here == there:
            continue
        if there is None or (here[:1], there[:1]) != ((n,), (k,)) or here[1:] != there[1:]:
            raise ValueError(f"the shape of latent site {name!r}, {here}, follows the number of data points, but not "
                             "as its first axis; give it a fixed shape, or one row a datum")
        local.append(name)
        values[name] = values[name][chosen]
    small = run(model, some, None, key, values)
    _compare(trace[observed], small[observed], n, k, chosen, observed)
    for i in dict.fromkeys(np.linspace(0, n - 1, LOOKED_AT).round().astype(int)):  # alone, or with its like
        pair = np.array([i, i])
        alone = run(model, jax.tree.map(lambda leaf, pair=pair: leaf[pair], x), None, key,
                    drawn | {name: drawn[name][pair] for name in local})
        _compare(trace[observed], alone[observed], n, 2, pair, observed)
    has_phi = named and (jnp.shape(trace["phi"]["value"])[:1], jnp.shape(small["phi"]["value"])[:1]) == ((n,), (k,))
    if has_phi and not _close(trace["phi"]["value"][chosen], small["phi"]["value"]):
        raise ValueError(f"the output phi of a datum depends on the other data in the batch (on {n} of them or {k}). "
                         + OUTSIDE)
    return tuple(local), has_phi


def _compare(full: dict, part: dict, n: int, k: int, chosen: np.ndarray, observed: str) -> None:
    """Refuse where the distribution of the chosen data is another among all, or the density of their own draws."""
    one_law, other_law = per_datum(full["fn"], n), per_datum(part["fn"], k)
    pairs = list(zip(_arrays(one_law), _arrays(other_law), strict=False))
    pairs += [(np.asarray(s) for s in (full["scale"], part["scale"]))] if full["scale"] is not None else []  # type: ignore[list-item]
    pairs += [(_mask_of(one_law), _mask_of(other_law))]
    name = type(unwrap(full["fn"])).__name__
    for what, found in ((f"a parameter of its {name}", pairs),
                        (f"the log density of a draw of its {name}", [_densities(full, one_law, other_law, chosen)])):
        for one, other in found:
            if one.shape[:1] == (n,) and other.shape[:1] == (k,):
                one = one[chosen]
            if one.shape == other.shape and not _close(one, other):
                where_ = np.unravel_index(np.argmax(np.abs(np.asarray(one, float) - np.asarray(other, float))),
                                          one.shape)
                raise ValueError(
                    f"the likelihood {observed!r} of a datum depends on the other data in the batch: {what} is "
                    f"{one[where_]:.6g} among all {n} data and {other[where_]:.6g} among {k} of them. {OUTSIDE}")


def _mask_of(d: dist.Distribution) -> np.ndarray:
    shape = (*d.batch_shape, *d.event_shape)
    return np.asarray(jnp.broadcast_to(observed_mask(d), shape[:len(shape) - unwrap(d).event_dim]), float)


def _densities(full: dict, one: dist.Distribution, other: dist.Distribution, chosen: np.ndarray
               ) -> tuple[np.ndarray, np.ndarray]:
    """Log densities of the draws of all data under the one law, and of those chosen under the other."""
    y = full["value"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # NumPyro's, of values beside the support
        return np.asarray(one.log_prob(y), float), np.asarray(other.log_prob(y[chosen]), float)
