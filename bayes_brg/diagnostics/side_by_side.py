"""Which flow when: several flows of one posterior in one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from ..core.batching import map_draws
from ..core.checks import check_data
from ..flow.flow import Flow
from ..model.bound import BoundModel, Params

__all__ = ["side_by_side"]


def side_by_side(flows: Mapping[str, Flow | Callable[[], Flow]], x, y, *, progress_bar: bool = False) -> pd.DataFrame:
    """What flows of one posterior keep of its predictions at each Λ, what they forget of its weights, and the cost.

    Parameters
    ----------
    flows : dict of str to Flow, or to a function that makes one
        By name. Of a function the seconds are counted, those of its first call's compilation with them.
    x, y : arrays
        Held-out data.
    progress_bar : bool

    Returns
    -------
    pandas.DataFrame
        One row a flow and cutoff: ``flow``, ``cutoff`` (per datum); ``kept``, the share of directions kept
        (`Flow.stiff_fraction`); ``loss``, the median over draws of the held-out loss, and ``loss_ratio`` to that at
        Λ = 0, NaN for a loss in nats, whose zero depends on the units of y; ``log_density``, the mean held-out log
        predictive density, nats a datum; ``overlap``, the correlation of a draw's whitened flowing parameters with
        those at Λ = 0, the mean over draws (1: nothing is forgotten, about 0: all is), NaN where the prior is not
        Gaussian; ``gradients``, a draw, from the cutoff before on its walk to this one, in the mean, for flows that
        are sampled; ``seconds``, of the whole flow.
    """
    x, y = check_data(x, y)
    rows = []
    for name, made in flows.items():
        start = time.perf_counter()
        flow = made if isinstance(made, Flow) else made()
        seconds = np.nan if flow is made else time.perf_counter() - start
        scales = np.asarray(flow.cutoffs, float)
        found = flow.loss(x, y, progress_bar=progress_bar)
        loss = found.median(("chain", "draw")).values
        first = float(flow.loss(x, y, cutoffs=[0.0], progress_bar=progress_bar).median())
        first = np.nan if found.attrs["units"] == "nats" else first  # −log p has no zero that a ratio could be to
        density = flow.log_predictive(x, y).mean("point").values
        spent = _gradients(flow)
        rows += [{"flow": name, "cutoff": scales[k], "kept": flow.stiff_fraction[k], "loss": loss[k],
                  "loss_ratio": loss[k] / first, "log_density": density[k], "overlap": overlap(flow, scales[k]),
                  "gradients": spent[k], "seconds": seconds} for k in range(len(scales))]
    return pd.DataFrame(rows)


def _gradients(flow: Flow) -> np.ndarray:
    """Gradients a draw at each cutoff, as its sampler says; none for a flow that maps draws."""
    diagnostics = getattr(flow, "diagnostics", {})
    if "num_gradients" not in diagnostics:
        return np.zeros(len(flow.cutoffs))
    found = diagnostics["num_gradients"]
    return np.asarray(found.mean([d for d in found.dims if d != "cutoff"]), float)


def overlap(flow: Flow, cutoff: float) -> float:
    """Mean over draws of the correlation of whitened flowing parameters at Λ with those at Λ = 0."""
    if not flow.bound.white(flow.sites):
        return np.nan
    draws = flow.posterior.flat(), flow.at(cutoff).flat()
    names = flow.bound.names
    pairs = tuple({s: one[s] for s in names} for one in draws)
    return float(np.mean(np.asarray(map_draws(_overlap_one, (flow.bound, flow.sites), pairs, (flow.probe,)))))


def _overlap_one(bound: BoundModel, sites: tuple[str, ...], pair: tuple[Params, Params], x: Any) -> jax.Array:
    one, two = ({s: bound.unconstrain(p, x, None)[s] for s in sites} for p in pair)
    def product(a, b):
        return sum((jnp.vdot(a[s], b[s]) for s in sites), start=jnp.zeros(()))
    return product(one, two) / jnp.sqrt(product(one, one) * product(two, two))
