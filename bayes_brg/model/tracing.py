"""Running a user's NumPyro callable, and reading its trace."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

from ..core.keys import name_key
from .distributions import CENSORED, stable, unwrap


class NamedSeed(numpyro.primitives.Messenger):
    """Seed each site with the key folded from its name, so that giving one site a value changes no other draw.

    A site that nothing can be drawn of (an improper prior), or that nothing is to be drawn of (`unseen`, the likelihood
    where a model is only looked at: not every one can be sampled in compiled code), gets a value of its shape.
    """

    def __init__(self, fn: Callable | None = None, key: jax.Array | None = None, unseen: str | None = None):
        self.key = key
        self.unseen = unseen
        self.unnamed = 0
        super().__init__(fn)

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "sample":
            msg["fn"] = stable(msg["fn"])
        sampled = msg["type"] == "sample" and not msg["is_observed"] and msg["kwargs"].get("rng_key") is None
        if not (sampled or msg["type"] in ("prng_key", "plate", "control_flow")) or msg["value"] is not None:
            return
        if sampled and isinstance(unwrap(msg["fn"]), dist.ImproperUniform):
            msg["value"] = msg["fn"].support.feasible_like(jnp.zeros(msg["fn"].shape()))
            return
        name = msg.get("name")
        if sampled and name == self.unseen:
            whole = msg["fn"].support is not None and msg["fn"].support.is_discrete
            msg["value"] = jnp.zeros(msg["fn"].shape(), int if whole else float)
            return
        if name is None:
            name, self.unnamed = f"#{self.unnamed}", self.unnamed + 1
        msg["kwargs"]["rng_key"] = name_key(self.key, name)


class Unweighted(numpyro.primitives.Messenger):
    """Takes `handlers.scale` off: NumPyro compares traces, and arrays among them are not equal or unequal."""

    def process_message(self, msg: dict) -> None:
        if msg.get("scale") is not None:
            msg["scale"] = None
            msg.get("plate_to_scale", {}).pop(None, None)


class ByIdentity:
    """A callable that cannot be hashed (a dataclass, an Equinox module), equal to itself alone."""

    def __init__(self, fn: Callable):
        self.fn = fn

    def __call__(self, *args):
        return self.fn(*args)

    def __eq__(self, other):
        return isinstance(other, ByIdentity) and self.fn is other.fn

    def __hash__(self):
        return id(self.fn)

    def __repr__(self):
        return repr(self.fn)


def hashable(model: Callable) -> Callable:
    """`model`, or a wrapper of it that has a hash."""
    try:
        hash(model)
    except TypeError:
        return ByIdentity(model)
    return model


def check_call(model: Callable) -> None:
    """Refuse a callable that does not take (x, y)."""
    try:
        inspect.signature(model).bind(None, None)
    except ValueError:  # no signature to be had
        return
    except TypeError as error:
        raise TypeError(f"the model cannot be called as model(x, None): {error}; bind other arguments with "
                        "functools.partial or a lambda") from None


def run(model: Callable, x: Any, y: Any, key: jax.Array, values: dict | None = None) -> dict:
    """Trace of ``model(x, y)``, its randomness fixed; an error raised inside is the user's own, with its line."""
    try:
        with handlers.block():
            seeded = NamedSeed(model, key)
            return handlers.trace(handlers.substitute(seeded, data=values or {})).get_trace(x, y)
    except Exception as error:
        if isinstance(error, TypeError) and "string indexing" in str(error):
            raise TypeError("the model asks for columns of x by name, but x is one array here, as a DataFrame becomes: "
                            "pass a dict of columns, {name: frame[name] for name in frame}") from error
        error.add_note(f"Raised inside the model{where(error)}, run as model(x, {'None' if y is None else 'y'}) by "
                       "bayes_brg.")
        raise


def where(error: BaseException) -> str:
    """File and line of the user's code that raised `error`: the last frame that is no library's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__)
              if "site-packages" not in f.filename and not f.filename.startswith("<frozen") and f.filename != __file__]
    return f" at {frames[-1].filename}, line {frames[-1].lineno} ({frames[-1].line})" if frames else ""


def latents(trace: dict) -> dict[str, dict]:
    """Sample sites that are not observed."""
    return {k: s for k, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}


def is_factor(site: dict) -> bool:
    """Whether a trace entry is a `numpyro.factor`: observed by construction, whatever y is."""
    return site["type"] == "sample" and isinstance(unwrap(site["fn"]), dist.Unit)


def per_datum(d: dist.Distribution, n: int) -> dist.Distribution:
    """An event over all data whose entries are independent (``.to_event(2)``) taken apart: its batch is the data."""
    if isinstance(d, dist.Independent) and not d.batch_shape:
        base, depth = d.base_dist, d.reinterpreted_batch_ndims
        if base.batch_shape[:1] == (n,) and len(base.batch_shape) == depth:
            return base if depth == 1 else dist.Independent(base, depth - 1)
    return d


def output_of(d: dist.Distribution, n: int) -> jax.Array:
    """φ of an observed distribution: location, logits, log-rate or mean, in that order, as (n, outputs)."""
    base = unwrap(d)
    while isinstance(base, CENSORED):
        base = unwrap(base.base_dist)
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
        try:
            phi = base.mean if isinstance(unwrap(d), CENSORED) else d.mean
        except NotImplementedError:
            raise ValueError(f"φ is not known: the observed {type(base).__name__} has no location, logits, rate or "
                             "mean; write numpyro.deterministic('phi', ...) in the model, first axis the datum"
                             ) from None
    return jnp.broadcast_to(phi, shape).reshape(n, -1)

