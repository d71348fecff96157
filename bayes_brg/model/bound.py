"""The model convention: what the package knows of any NumPyro callable ``model(x, y)``.

`bind` is the one place that decides whether a model takes the fast way (a `Network`, which knows its own
``apply``) or the general one (NumPyro handlers). Both answer the same questions with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.inspect import get_dependencies

from ..core.arrays import check_array
from ..core.checks import check_inputs, num_points
from ..core.keys import name_key
from .likelihoods import Likelihood

__all__ = ["BoundModel", "Site", "bind"]

Params = dict[str, jax.Array]
HELD_DATA = ("Arrays with one entry a datum (offsets, weights) belong in x, which may be a dict of arrays, and a plate "
             "over data has the length of x")


class NamedSeed(numpyro.primitives.Messenger):
    """Seed each site with the key folded from its name, so that giving one site a value changes no other draw."""

    def __init__(self, fn: Callable | None = None, key: jax.Array | None = None):
        self.key = key
        self.unnamed = 0
        super().__init__(fn)

    def process_message(self, msg: dict) -> None:
        sampled = msg["type"] == "sample" and not msg["is_observed"] and msg["kwargs"].get("rng_key") is None
        if not (sampled or msg["type"] in ("prng_key", "plate", "control_flow")) or msg["value"] is not None:
            return
        if sampled and isinstance(unwrap(msg["fn"]), dist.ImproperUniform):
            # Nothing can be drawn; a value of the right shape stands in where a model is only looked at.
            msg["value"] = msg["fn"].support.feasible_like(jnp.zeros(msg["fn"].shape()))
            return
        name = msg.get("name")
        if name is None:
            name, self.unnamed = f"#{self.unnamed}", self.unnamed + 1
        msg["kwargs"]["rng_key"] = name_key(self.key, name)
        if msg["type"] == "sample" and isinstance(unwrap(msg["fn"]), dist.ImproperUniform):
            # Nothing can be drawn; any value of the support lets the model run, so that the site can be named.
            shape = msg["fn"].shape(msg["kwargs"].get("sample_shape", ()))
            msg["value"] = msg["fn"].support.feasible_like(jnp.zeros(shape))


@dataclass(frozen=True)
class Site:
    """A latent sample site. Sites compare by name and shape, so that compiled functions are reused."""

    name: str
    shape: tuple[int, ...]
    support: Any = field(compare=False, repr=False)
    event_dim: int = field(default=0, compare=False)
    improper: bool = field(default=False, compare=False)
    discrete: bool = field(default=False, compare=False)


def unwrap(d: dist.Distribution) -> dist.Distribution:
    """The distribution under `Independent`, `expand` and `mask`."""
    while isinstance(d, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        d = d.base_dist
    return d


def output_of(d: dist.Distribution, n: int) -> jax.Array:
    """φ of an observed distribution: location, logits, log-rate or mean, in that order, as (n, outputs)."""
    base = unwrap(d)
    shape: tuple[int, ...] = (*d.batch_shape, *d.event_shape)
    if isinstance(base, (dist.CategoricalLogits, dist.CategoricalProbs)):
        logits = base.logits
        phi = logits - jnp.mean(logits, axis=-1, keepdims=True)  # the gauge: only differences matter
        shape = (*d.batch_shape, logits.shape[-1])
    elif hasattr(base, "loc"):
        phi = base.loc
    elif hasattr(base, "logits"):
        phi = base.logits
    elif hasattr(base, "rate") and isinstance(base, (dist.Poisson, dist.ZeroInflatedPoisson)):
        phi = jnp.log(base.rate)
    else:
        phi = d.mean
    return jnp.broadcast_to(phi, shape).reshape(n, -1)


@dataclass(frozen=True)
class BoundModel:
    """A NumPyro callable whose sites are known. Hashable, so that it can be a static argument of compiled code.

    Attributes
    ----------
    fn : callable
        ``model(x, y)``.
    sites : tuple of Site
        The latent sites, that is the parameters, in the order the model samples them.
    observed : str
        The name of the likelihood.
    """

    fn: Callable
    sites: tuple[Site, ...]
    observed: str
    likelihood: Likelihood | None = field(default=None, compare=False)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(site.name for site in self.sites)

    def site(self, name: str) -> Site:
        for site in self.sites:
            if site.name == name:
                return site
        raise ValueError(f"the model has no parameter site {name!r}; its sites are {', '.join(self.names)}")

    # -- one parameter draw -------------------------------------------------------------------------------
    def trace(self, params: Params, x: Any, y: Any = None, key: jax.Array | None = None) -> dict:
        """NumPyro trace of the model at `params`."""
        key = jax.random.key(0) if key is None else key
        seeded = NamedSeed(self.fn, key)
        with handlers.block():
            return handlers.trace(handlers.substitute(seeded, data=params)).get_trace(x, y)

    def distribution(self, params: Params, x: Any) -> dist.Distribution:
        """The observed distribution at `params`; its first axis is the datum."""
        return self.trace(params, x)[self.observed]["fn"]

    def phi(self, params: Params, x: Any) -> jax.Array:
        """Network output φ_θ(x), shape (n, outputs)."""
        trace, n = self.trace(params, x), num_points(x)
        if "phi" in trace and trace["phi"]["type"] == "deterministic":
            return jnp.reshape(trace["phi"]["value"], (n, -1))
        return output_of(trace[self.observed]["fn"], n)

    def gauged(self, phi: Any, x: Any) -> np.ndarray:
        """φ as NumPy, last axis the output, in the gauge: categorical logits sum to 0 over classes."""
        values = np.asarray(phi)
        free = isinstance(unwrap(self.distribution({}, x)), (dist.CategoricalLogits, dist.CategoricalProbs))
        return values - values.mean(axis=-1, keepdims=True) if free else values

    def log_likelihood(self, params: Params, x: Any, y: jax.Array) -> jax.Array:
        """Log-likelihood of each datum, shape (n,), in nats."""
        log_prob = self.distribution(params, x).log_prob(y)
        return log_prob.reshape(log_prob.shape[0], -1).sum(axis=1)

    def loss(self, params: Params, x: Any, y: jax.Array) -> jax.Array:
        """Training loss of each datum, shape (n,): (y − φ)² for Gaussian likelihoods, −log p for others."""
        d = self.distribution(params, x)
        if isinstance(unwrap(d), dist.Normal):
            return jnp.sum((y.reshape(y.shape[0], -1) - output_of(d, y.shape[0])) ** 2, axis=1)
        return -self.log_likelihood(params, x, y)

    def log_prior(self, params: Params, x: Any) -> jax.Array:
        """Log prior density, native coordinates, in nats."""
        trace = self.trace(params, x)
        return sum((jnp.sum(trace[s]["fn"].log_prob(params[s])) for s in self.names), start=jnp.zeros(()))

    def log_factors(self, params: Params, x: Any, y: jax.Array | None = None) -> jax.Array:
        """Sum of the `numpyro.factor` terms, which belong to neither prior nor likelihood."""
        trace = self.trace(params, x, y)
        terms = [jnp.sum(site["fn"].log_prob(site["value"])) for site in trace.values() if is_factor(site)]
        return sum(terms, start=jnp.zeros(()))

    def log_joint(self, params: Params, x: Any, y: jax.Array) -> jax.Array:
        """Log of prior times likelihood (times factors), native coordinates, in nats."""
        with handlers.block():
            seeded = NamedSeed(self.fn, jax.random.key(0))
            return numpyro.infer.util.log_density(seeded, (x, y), {}, params)[0]

    def draw_prior(self, key: jax.Array, x: Any, given: Params | None = None) -> Params:
        """One prior draw of every site, ancestrally; sites in `given` are held and their children drawn given them.

        The key of a site is folded from its name.
        """
        trace = self.trace(given or {}, x, key=key)
        return {s: trace[s]["value"] for s in self.names}

    def undrawable(self) -> str:
        """Why no draw can be made of the prior, and what to do; "" where one can."""
        for site in self.sites:
            if site.improper:
                return (f"site {site.name!r} has an improper prior, from which nothing can be drawn; "
                        "give it a proper one")
        return ""

    def prior_mean(self, x: Any, given: Params, sites: tuple[str, ...]) -> Params:
        """Prior mean of `sites`, given the values of others; a child of one of `sites` has its mean at the parent's."""
        with handlers.block():
            trace = handlers.trace(handlers.substitute(
                NamedSeed(self.fn, jax.random.key(0)),
                substitute_fn=lambda msg: given.get(msg["name"],
                                                    msg["fn"].mean if msg["name"] in sites else None)
                if msg["type"] == "sample" else None,
            )).get_trace(x, None)
        return {s: jnp.broadcast_to(trace[s]["value"], self.site(s).shape) for s in sites}

    # -- targets, structure -------------------------------------------------------------------------------
    def targets(self, y: Any, outputs: int | None = None) -> jax.Array:
        """Bring targets to the observed site's shape. General models say for themselves what they accept."""
        return check_array(y, "y", finite=False)

    def check_params(self, samples: Mapping, source: str, lead: int = 2) -> Params:
        """Values of the model's sites out of `samples`; refuse those whose sites or shapes are not the model's."""
        missing = [s for s in self.names if s not in samples]
        if missing:
            raise ValueError(f"{source} lacks the site(s) {', '.join(missing)} of the model; "
                             f"it has {', '.join(samples)}")
        params = {s: check_array(samples[s], f"{source}[{s!r}]", finite=False, axes=()) for s in self.names}
        for site in self.sites:
            shape = params[site.name].shape[lead:]
            if shape != site.shape:
                raise ValueError(f"{source}: site {site.name!r} has shape {shape} per draw, the model expects "
                                 f"{site.shape} for these inputs")
        return params

    def parents(self, x: Any) -> dict[str, tuple[str, ...]]:
        """Latent sites on which each latent site's prior depends."""
        def model(x):
            return NamedSeed(self.fn, jax.random.key(0))(x, None)
        with handlers.block():
            found = get_dependencies(model, (x,))["prior_dependencies"]
        return {s: tuple(p for p in found.get(s, {}) if p != s and p in self.names) for s in self.names}


def is_factor(site: dict) -> bool:
    """Whether a trace entry is a `numpyro.factor`: observed by construction, whatever y is."""
    return site["type"] == "sample" and isinstance(unwrap(site["fn"]), dist.Unit)


def _latents(trace: dict) -> dict[str, dict]:
    return {k: s for k, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}


def _find_observed(fn: Callable, x: Any, trace: dict, key: jax.Array) -> str:
    """The site that is latent for model(x, None) and observed for model(x, y), whatever its name."""
    n, errors = num_points(x), []
    candidates = [k for k, s in _latents(trace).items() if jnp.ndim(s["value"]) and s["value"].shape[0] == n]
    for name in reversed(candidates):
        try:
            with handlers.block():
                seen = handlers.trace(NamedSeed(fn, key)).get_trace(x, trace[name]["value"])
        except Exception as error:  # this value does not fit the model's y; try the next candidate
            errors.append(f"{name}: {error}")
            continue
        switched = [k for k in _latents(trace) if k in seen and seen[k]["is_observed"]]
        if len(switched) == 1:
            return switched[0]
        if len(switched) > 1:
            raise ValueError(f"the model observes {len(switched)} sites ({', '.join(switched)}) when y is given; "
                             "one likelihood is needed: put the others into numpyro.factor")
    detail = f" (tried {'; '.join(errors)})" if errors else ""
    raise ValueError(
        "the model has no observed site: no sample site of first axis "
        f"{n} is latent for model(x, None) and observed for model(x, y); its latent sites are "
        f"{', '.join(_latents(trace)) or 'none'}{detail}. Write numpyro.sample('y', ..., obs=y) and let y=None "
        "draw it"
    )


def bind(model: Callable, x: Any) -> BoundModel:
    """Find a model's parameters and its likelihood.

    Parameters
    ----------
    model : callable
        A `Network`, or any NumPyro model called as ``model(x, y)`` with ``y=None`` allowed.
    x : array or pytree
        Inputs; the first axis is the datum.

    Returns
    -------
    BoundModel

    Raises
    ------
    ValueError
        If the model has no observed site, several, a subsampled plate, local latents whose shape follows the
        number of data, or an event over data points.
    """
    x = check_inputs(x)
    if hasattr(model, "bind"):  # a Network knows itself
        return model.bind(x)
    if not callable(model):
        raise TypeError(f"model must be callable as model(x, y), got {type(model).__name__}")
    key, n = jax.random.key(0), num_points(x)
    try:
        with handlers.block():
            trace = handlers.trace(NamedSeed(model, key)).get_trace(x, None)
    except TypeError as error:
        if "string indexing" in str(error):
            raise TypeError("the model asks for columns of x by name, but x is one array here, as a DataFrame becomes: "
                            "pass a dict of columns, {name: frame[name] for name in frame}") from error
        raise TypeError(f"the model cannot be called as model(x, None): {error}; bind other arguments with "
                        "functools.partial or a lambda") from error
    for name, site in trace.items():
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            raise ValueError(f"plate {name!r} takes a subsample of {site['args'][1]} of {site['args'][0]} points; "
                             "the posterior needs all data: leave subsample_size out")
    observed = _find_observed(model, x, trace, key)
    fn, shape = trace[observed]["fn"], jnp.shape(trace[observed]["value"])
    if not fn.batch_shape or fn.batch_shape[0] != n:
        raise ValueError(f"the observed site {observed!r} has batch shape {fn.batch_shape} and event shape "
                         f"{fn.event_shape}: one event covers several of the {n} data points. Each datum needs "
                         f"a log-likelihood of its own: drop .to_event over the first axis of {shape}")
    names = [k for k in _latents(trace) if k != observed]
    if not names:
        raise ValueError("the model has no latent sample site, so there is nothing to infer")
    if n > 1:
        fewer = jax.tree.map(lambda leaf: leaf[: n - 1], x)
        try:
            with handlers.block():
                small = handlers.trace(NamedSeed(model, key)).get_trace(fewer, None)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the model runs on {n} data points but not on the first {n - 1} of them: "
                             + f"{str(error).rstrip('.')}. "
                             + HELD_DATA) from error
        if observed in small and jnp.shape(small[observed]["value"]) == shape:
            raise ValueError(f"the observed site {observed!r} has shape {shape} for {n} data points and for the first "
                             f"{n - 1} of them. " + HELD_DATA)
        for name in names:
            if name not in small or jnp.shape(small[name]["value"]) != jnp.shape(trace[name]["value"]):
                raise ValueError(f"the shape of latent site {name!r}, {jnp.shape(trace[name]['value'])}, follows the "
                                 "number of data points; such local latents cannot be renormalised: integrate "
                                 "them out or give them a fixed shape")
    sites = []
    for name in names:
        d = trace[name]["fn"]
        sites.append(Site(
            name=name, shape=tuple(jnp.shape(trace[name]["value"])), support=d.support,
            event_dim=d.event_dim, improper=isinstance(unwrap(d), dist.ImproperUniform),
            discrete=bool(d.support.is_discrete),
        ))
    return BoundModel(model, tuple(sites), observed)
