"""Methods of a board by name: how each is fitted to a table and what it predicts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import check_choice
from ..core.keys import name_key
from ..diagnostics.scores import predictive
from ..diagnostics.stacking import stacking
from ..inference.approximations import map_estimate
from ..inference.default import sample
from ..model.bound import bind
from ..posterior import Posterior, predict
from .bde_peer import bde
from .default_network import default_network, default_steps, rounding_step, single_network
from .peers import PEERS
from .predictive import Predictive
from .trained_peers import deep_ensemble, mc_dropout

__all__ = ["METHODS", "method_by_name", "of_posterior"]


def of_posterior(model: Any, posterior: Posterior, x_test: Any, *, key: Any, num_classes: int = 0) -> Predictive:
    """What the draws of a posterior predict, and their outputs φ for R-hat.

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model.
    posterior : Posterior
    x_test : array (n, dim)
    key : jax.random.key
        Of draws of y, where the likelihood is none whose parameters are known.
    num_classes : int
        0 for numbers.

    Returns
    -------
    Predictive
    """
    bound = bind(model, x_test)
    x_test = jnp.asarray(x_test)
    some = jnp.zeros(len(x_test), int if num_classes else x_test.dtype)  # the law alone is asked for, not its densities
    law = predictive(bound, posterior, x_test, bound.targets(some), key)
    phi = None
    if not np.any(np.asarray(posterior.stats.get("independent", False))):
        phi = np.asarray(bound.gauged(predict(model, posterior, x_test, progress_bar=False), x_test), np.float64)
    if "probs" in law:
        return Predictive(probs=np.concatenate([1 - law["probs"], law["probs"]], axis=-1), phi=phi)
    if "classes" in law:
        probs = law["classes"]
        return Predictive(probs=probs / probs.sum(axis=-1, keepdims=True), phi=phi)
    if "loc" in law:
        return Predictive(loc=law["loc"][..., 0], scale=law["scale"][..., 0], phi=phi)
    return Predictive(draws=law["draws"][..., 0], phi=phi)


def _arrays(x: Any, y: Any, num_classes: int) -> tuple[jax.Array, jax.Array]:
    x = jnp.asarray(x, jnp.result_type(float))
    return x, jnp.asarray(y, int) if num_classes else jnp.asarray(y, x.dtype)[:, None]


def _network(y: Any, num_classes: int, options: dict[str, Any]) -> Any:
    return default_network(num_classes, **{"rounding": 0.0 if num_classes else rounding_step(y), **options})


def default(x, y, x_test, *, key, num_classes: int = 0, num_warmup: int = 0, num_samples: int = 0,
            max_rows: int = 4000, network: Any = None, stacked: bool = False, **options: Any) -> Predictive:
    """`sample` with the default network of a table.

    Of more than `max_rows` rows, the first so many (they are drawn at random already). ``num_warmup``,
    ``num_samples``: 0 for what suits the target. ``options``: of `default_network`; ``network``: another model in its
    place; ``stacked``: weigh the chains by leave-one-out (`diagnostics.stacking`).
    """
    model = network or _network(y, num_classes, options)
    x, y = _arrays(x[:max_rows], y[:max_rows], num_classes)
    num_warmup, num_samples = default_steps(num_classes, num_warmup, num_samples)
    found = sample(model, x, y, key=key, num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
    if stacked and not np.any(np.asarray(found.stats.get("independent", False))):
        found = stacking(model, found, x, y).apply(found)
    return of_posterior(model, found, np.asarray(x_test, x.dtype), key=name_key(key, "scores"),
                        num_classes=num_classes)


def most_probable(x, y, x_test, *, key, num_classes: int = 0, max_rows: int = 4000, network: Any = None,
                  **options: Any) -> Predictive:
    """The single most probable network, `map_estimate`, at prior scales of 1 and with one noise level, the most
    probable one, where the default network of a table learns more."""
    model = single_network(network or _network(y, num_classes, options))
    x, y = _arrays(x[:max_rows], y[:max_rows], num_classes)
    best = map_estimate(model, x, y, key=key, coordinates="unconstrained", progress_bar=False)
    single = Posterior({s: v[None, None] for s, v in best.items()}, {"independent": True}, "map")
    return of_posterior(model, single, np.asarray(x_test, x.dtype), key=name_key(key, "scores"),
                        num_classes=num_classes)


METHODS: dict[str, Callable[..., Predictive]] = {
    "default": default, "map": most_probable, "stacked": partial(default, stacked=True), "ensemble": deep_ensemble,
    "mc_dropout": mc_dropout, "bde": bde, **PEERS}
"""Each called as ``method(x, y, x_test, key=, num_classes=, **options)``, with standardised inputs and targets."""


def method_by_name(name: str, **options: Any) -> Callable[..., Any]:
    """A method of the table, with options.

    Raises
    ------
    ValueError
        For an unknown name, the nearest is given.
    """
    found = METHODS[check_choice(name, "method", METHODS)]
    return partial(found, **options) if options else found
