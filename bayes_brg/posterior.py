"""Posterior: a bag of named arrays, and what the network says at each draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .core.arrays import check_array
from .core.batching import as_chains, as_draws, default_chunk, map_draws
from .core.checks import check_count, check_inputs, check_key, num_points, warn_unfinite
from .core.keys import name_key
from .model.bound import BoundModel, bind

__all__ = ["Posterior", "predict", "prior"]


@dataclass(frozen=True)
class Posterior:
    """Draws from a posterior (or prior, or renormalised posterior): named arrays with leading axes (chain, draw).

    Wraps anybody's draws: ``Posterior(samples={"w": array})`` with shape (chain, draw, *site shape).

    Attributes
    ----------
    samples : dict of str to array
        Site name to draws, shape (chain, draw, *site shape), native coordinates.
    stats : dict
        Reports of the sampler: arrays (chain, draw, ...) and scalars. ``"log_joint"``, in nats and native coordinates,
        is there for every method of the package; ``"independent"`` is True where draws are independent.
    method : str
        How the draws were made.
    trained : tuple of str
        The sites that learned from data; default all. They are those that flow.
    history : dict of int to Posterior
        Earlier epochs of an ensemble, for the epochs asked for in ``record``.
    """

    samples: Mapping[str, jax.Array]
    stats: Mapping[str, Any] = field(default_factory=dict)
    method: str = "given"
    trained: tuple[str, ...] = ()
    history: Mapping[int, Posterior] = field(default_factory=dict)

    def __post_init__(self):
        if not self.samples:
            raise ValueError("a Posterior needs at least one site: samples={name: array (chain, draw, ...)}")
        lead = None
        samples = {name: check_array(array, f"samples[{name!r}]", finite=False, axes=(0, 1))
                   for name, array in self.samples.items()}
        for name, array in samples.items():
            shape = array.shape
            if len(shape) < 2:
                raise ValueError(f"site {name!r} has shape {shape}; draws need leading axes (chain, draw): "
                                 "write array[None] for one chain")
            if lead is not None and shape[:2] != lead:
                raise ValueError(f"site {name!r} has (chain, draw) = {shape[:2]}, the others {lead}")
            lead = shape[:2]
        object.__setattr__(self, "samples", samples)
        trained = tuple(self.trained) or tuple(self.samples)
        unknown = [t for t in trained if t not in self.samples]
        if unknown:
            raise ValueError(f"trained names unknown site(s) {', '.join(unknown)}; sites: {', '.join(self.samples)}")
        object.__setattr__(self, "trained", trained)

    @property
    def num_chains(self) -> int:
        return next(iter(self.samples.values())).shape[0]

    @property
    def num_draws(self) -> int:
        """Draws in each chain."""
        return next(iter(self.samples.values())).shape[1]

    @property
    def size(self) -> int:
        """All draws of all chains."""
        return self.num_chains * self.num_draws

    def flat(self) -> dict[str, jax.Array]:
        """Draws with one leading axis, chain by chain: shape (chain · draw, *site shape)."""
        flat = as_draws(dict(self.samples))
        return {s: flat[s] for s in self.samples}  # in their own order

    def draw(self, chain: int, draw: int) -> dict[str, jax.Array]:
        """The parameters of one draw."""
        return {k: v[chain, draw] for k, v in self.samples.items()}

    def mean(self) -> dict[str, jax.Array]:
        """Mean of every site over all draws."""
        return {k: jnp.mean(v, axis=(0, 1)) for k, v in self.samples.items()}

    def mode(self) -> dict[str, jax.Array]:
        """The draw of largest ``stats["log_joint"]``."""
        if "log_joint" not in self.stats:
            raise ValueError(f"this posterior ({self.method}) has no stats['log_joint'], so its most probable draw is "
                             "not known; pass at='mean' or a params dict")
        scores = np.asarray(self.stats["log_joint"])
        known = np.isfinite(scores)
        if not known.any():
            raise ValueError(f"stats['log_joint'] of this posterior ({self.method}) is finite at no draw, so its most "
                             "probable draw is not known")
        index = np.unravel_index(np.argmax(np.where(known, scores, -np.inf)), scores.shape)
        return self.draw(int(index[0]), int(index[1]))

    def replace(self, **changes) -> Posterior:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def __repr__(self) -> str:
        sites = ", ".join(f"{k}{tuple(v.shape[2:])}" for k, v in self.samples.items())
        return f"Posterior(method={self.method!r}, chains={self.num_chains}, draws={self.num_draws}, sites: {sites})"


def diverged(posterior: Posterior | None) -> np.ndarray:
    """Which draws, (T,), are marked in ``stats["diverged"]`` as members of an ensemble that diverged."""
    if posterior is None:
        return np.zeros(1, bool)
    found = np.asarray(posterior.stats.get("diverged", False), bool)
    # A report of other draws (a part of a posterior was taken, its stats left as they were) says nothing of these.
    shape = (posterior.num_chains, posterior.num_draws)
    return found.ravel() if found.shape == shape else np.zeros(posterior.size, bool)


def _phi_one(bound: BoundModel, params, x):
    return bound.phi(params, x)


def _log_joint_one(bound: BoundModel, params, x, y):
    return bound.log_joint(params, x, y)


def _prior_one(bound: BoundModel, member, key, x):
    index, given = member
    return bound.draw_prior(jax.random.fold_in(key, index), x, given)


def work(bound: BoundModel, x: Any) -> int:
    """Rough count of numbers touched by one forward pass, to choose how many draws run together."""
    return num_points(x) * max((max(s.shape) for s in bound.sites if s.shape), default=1)


def log_joint(bound: BoundModel, draws: dict, x: Any, y: Any) -> jax.Array:
    """Log joint density of each draw, leading axis T."""
    return map_draws(_log_joint_one, (bound,), draws, (x, y), chunk=default_chunk(work(bound, x)))


def _mean_loss_one(bound: BoundModel, params, x, y):
    return bound.mean_loss(params, x, y)


def mean_loss(bound: BoundModel, draws: dict, x: Any, y: Any) -> jax.Array:
    """Training loss of each draw, mean over data, leading axis T."""
    return map_draws(_mean_loss_one, (bound,), draws, (x, y), chunk=default_chunk(work(bound, x)))


def predict(model, posterior: Posterior, x, batch_size: int | None = None, *, progress_bar: bool = True) -> jax.Array:
    """Network output φ_θ(x) at every draw.

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model ``model(x, y)``.
    posterior : Posterior
        Draws of all its sites.
    x : array (n, dim)
        Inputs.
    batch_size : int, optional
        Draws evaluated at once. Memory is that of one batch and the result.
    progress_bar : bool
        Show a bar on a terminal.

    Returns
    -------
    array (chain, draw, point, output)
        φ, in the natural coordinates of the likelihood: location, logits or log-rate.
    """
    x = check_inputs(x)
    bound = bind(model, x)
    bound.check_params(posterior.samples, "posterior")
    chunk = default_chunk(work(bound, x)) if batch_size is None else check_count(batch_size, "batch_size")
    draws = {s: posterior.flat()[s] for s in bound.names}
    phi = map_draws(_phi_one, (bound,), draws, (x,), chunk=chunk, desc="predict", show=progress_bar)
    lead = posterior.num_chains, posterior.num_draws
    phi = phi.reshape(*lead, *phi.shape[1:])
    if not bool(jnp.isfinite(phi).all()):
        warn_unfinite(phi, "predict: outputs", ("chain", "draw", "point", "output"), "Either the parameters of such a "
                      "draw are not finite, or the output is beyond floating point: an infinite mean, a rate that "
                      "overflows, inputs in too small units", diverged(posterior).reshape(lead))
    return phi


def prior(model, x, *, key, num_samples: int = 1000) -> Posterior:
    """Independent draws from the prior π₀.

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model ``model(x, y)``.
    x : array (n, dim)
        Inputs; only their dimension matters.
    key : jax.random.key
    num_samples : int

    Returns
    -------
    Posterior
        ``method="prior"``; ``stats["log_joint"]`` is the log prior density, in nats.

    Raises
    ------
    ValueError
        If a site is improper, so that nothing can be drawn.
    """
    key, x = check_key(key), check_inputs(x)
    count = check_count(num_samples, "num_samples")
    bound = bind(model, x)
    check_proper(bound)
    draws = draw_prior(bound, name_key(key, "prior"), x, count)
    log_prior = map_draws(_log_prior_one, (bound,), draws, (x,), chunk=8)
    stats = {"independent": True, "log_joint": as_chains(log_prior)}
    return Posterior(as_chains(draws), stats, "prior")


def _log_prior_one(bound, params, x):
    return bound.log_prior(params, x)


def draw_prior(bound: BoundModel, key: jax.Array, x: Any, count: int, given: dict | None = None
               ) -> dict[str, jax.Array]:
    """Draws 0 … count − 1 of the prior stream of `key`, leading axis T: the same whatever the count.

    Each with its own of the values in `given`, leading axis T, for the sites that these name.
    """
    numbers = sum(math.prod(site.shape) for site in bound.sites)
    return map_draws(_prior_one, (bound,), (np.arange(count), given or {}), (key, x), chunk=1, passes=numbers)


def check_proper(bound: BoundModel) -> None:
    """Refuse a model from whose prior nothing can be drawn, where such draws are needed."""
    reason = bound.undrawable()
    if reason:
        raise ValueError(reason)
