"""Compression: how many parameters can go, by Fisher stiffness and by simpler rules."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from ..core.checks import check_choice, check_positive
from ..core.keys import name_key
from ..metric.geometry import State
from .cutoffs import check_cutoffs
from .mapped import MappedFlow, prior_mean
from .refills import Zero
from .regulators import Regulator

__all__ = ["pruning_curve", "removable_fraction"]

RULES = ("fisher", "magnitude", "random")


def pruning_curve(flow: MappedFlow, x, y, *, fractions=None, rules=RULES) -> xr.DataArray:
    """Loss against the fraction of parameters put to their prior mean, by three rules.

    Parameters
    ----------
    flow : MappedFlow
        Of a diagonal metric; its posterior, stiffnesses and flowing sites are used, its refill and regulator are not.
    x, y : arrays
        Held-out data.
    fractions : array, optional
        Fractions removed, increasing from 0; default twenty steps to 1.
    rules : sequence of {"fisher", "magnitude", "random"}
        Which parameters of a member go first: the sloppiest, those closest to their prior mean, or any.

    Returns
    -------
    DataArray (rule, fraction, chain, draw)
        Training loss, mean over points.
    """
    if not flow.spec.native:
        raise ValueError("pruning removes parameters, so it needs a diagonal metric in native coordinates")
    fractions = np.linspace(0, 1, 21) if fractions is None else check_cutoffs(fractions)
    if fractions[-1] > 1:
        raise ValueError(f"fractions must lie between 0 and 1, got {fractions[-1]}")
    count = flow.posterior.size
    flat = flow.posterior.flat()
    stiffness = flow.metric.flat_stiffness()
    mean = prior_mean(flow.spec, flow.posterior, flow.metric)
    curves = []
    for rule in rules:
        check_choice(rule, "a rule", RULES)
        scores = []
        for s in flow.spec.sites:
            if rule == "fisher":
                score = jnp.broadcast_to(stiffness[s], flat[s].shape)
            elif rule == "magnitude":
                score = jnp.abs(flat[s] - mean[s])
            else:
                score = jax.random.uniform(name_key(flow.key, f"random {s}"), flat[s].shape)
            scores.append(np.asarray(score).reshape(count, -1))
        ranks = np.argsort(np.argsort(np.concatenate(scores, axis=1), axis=1, kind="stable"), axis=1, kind="stable")
        places, start, held = (ranks + 0.5) / ranks.shape[1], 0, {}
        for s in flow.spec.sites:  # a place in (0, 1) for each parameter: the cutoff on it is the fraction removed
            size = int(np.prod(flat[s].shape[1:]))
            held[s] = jnp.asarray(places[:, start:start + size].reshape(flat[s].shape), flat[s].dtype)
            start += size
        own, shared = flow.metric.arrays()
        metric = replace(flow.metric, lead=(flow.posterior.num_chains, flow.posterior.num_draws),
                         own=(own or State())._replace(modes=held), shared=shared._replace(modes=None))
        spec = replace(flow.spec, refill=Zero(), regulator=Regulator())
        pruned = MappedFlow(flow.model, flow.posterior, fractions, flow.key, metric, spec)
        curves.append(pruned.loss(x, y, progress_bar=False).rename(cutoff="fraction"))
    return xr.concat(curves, dim=xr.Variable("rule", list(rules))).rename("loss")


def removable_fraction(curve: xr.DataArray, tolerance: float = 0.1) -> xr.DataArray:
    """Largest fraction that can go before the median loss over members has grown by `tolerance`, (rule,).

    Parameters
    ----------
    curve : DataArray
        From `pruning_curve`.
    tolerance : float
        Relative growth allowed.

    Returns
    -------
    DataArray (rule,)
    """
    allowed = 1 + check_positive(tolerance, "tolerance", zero=True)
    median = curve.median(("chain", "draw"))
    good = (median <= allowed * median.isel(fraction=0)).astype(int)
    last = good.cumprod("fraction").sum("fraction") - 1  # the curve must not have left before
    return curve["fraction"].isel(fraction=last).rename("removable_fraction")
