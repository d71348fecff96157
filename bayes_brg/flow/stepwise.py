"""A flow whose metric is recomputed after every step: a wrapper round the fixed-metric step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import xarray as xr

from ..core.checks import check_data, check_inputs, check_key
from ..metric.metric import Metric
from ..model.bound import bind
from ..posterior import Posterior, mean_loss, predict
from .cutoffs import check_cutoffs
from .flow import independence, loss_units
from .refills import Refill
from .regulators import Regulator, as_regulator
from .renormalize import as_refill, renormalize

__all__ = ["StepwiseFlow", "renormalize_stepwise"]


@dataclass(frozen=True)
class StepwiseFlow:
    """Posteriors at increasing Λ, each renormalised from the one before with a metric of its own.

    Make one with `renormalize_stepwise`. Like `Flow` it holds no parameters: iterating walks the steps anew.

    Attributes
    ----------
    cutoffs : array (cutoff,)
    """

    model: Callable = field(repr=False)
    posterior: Posterior
    metric: Callable[[Posterior], Metric] = field(repr=False)
    cutoffs: np.ndarray = field(repr=False)
    key: jax.Array = field(repr=False)
    refill: Refill
    regulator: Regulator

    def __iter__(self) -> Iterator[tuple[float, Posterior, Metric]]:
        """Walk the flow: (Λ, posterior at Λ, metric that took it there)."""
        posterior, before = self.posterior, 0.0
        for i, cutoff in enumerate(self.cutoffs):
            metric = self.metric(posterior)
            regulator, key = self.regulator.step(before, self.key, i)
            step = renormalize(self.model, posterior, metric, cutoffs=[cutoff], key=key, refill=self.refill,
                               regulator=regulator)
            posterior, before = step.at(cutoff), float(cutoff)
            yield float(cutoff), posterior, metric

    def _among(self, cutoffs: Any) -> Iterator[tuple[float, Posterior]]:
        """Walk the flow, Λ = 0 before its first step; default all of its cutoffs."""
        wanted = self.cutoffs if cutoffs is None else check_cutoffs(cutoffs)
        known = {0.0, *(float(c) for c in self.cutoffs)}
        for scale in wanted:
            if float(scale) not in known:
                raise ValueError(f"a stepwise flow is defined at its own cutoffs only, {self.cutoffs}, not at {scale}")
        left = {float(c) for c in wanted}
        if 0.0 in left:  # the first step may recompute the metric, but it takes nothing away
            left.remove(0.0)
            yield 0.0, self.posterior
        for scale, posterior, _ in self if left else ():
            if scale in left:
                left.remove(scale)
                yield scale, posterior
            if not left:
                return

    def at(self, cutoff: float) -> Posterior:
        """The posterior at one of the flow's cutoffs, or at 0."""
        return next(posterior for _, posterior in self._among([cutoff]))

    def predict(self, x, *, cutoffs=None, progress_bar: bool = False) -> xr.DataArray:
        """Output φ along the flow, (cutoff, chain, draw, point, output); at some of its cutoffs, or 0, where given."""
        walked = {c: np.asarray(predict(self.model, p, x, progress_bar=progress_bar)) for c, p in self._among(cutoffs)}
        return self._array(walked, "phi", ("point", "output"))

    def loss(self, x, y, *, cutoffs=None, progress_bar: bool = False) -> xr.DataArray:
        """Training loss along the flow, mean over points, (cutoff, chain, draw); cutoffs as in `predict`."""
        x, y = check_data(x, y)
        bound = bind(self.model, check_inputs(x))
        y = bound.targets(y)
        lead = self.posterior.num_chains, self.posterior.num_draws
        walked = {c: np.asarray(mean_loss(bound, p.flat(), x, y)).reshape(lead) for c, p in self._among(cutoffs)}
        return self._array(walked, "loss").assign_attrs(units=loss_units(bound, self.posterior, x))

    def _array(self, walked: dict[float, np.ndarray], name: str, extra: tuple[str, ...] = ()) -> xr.DataArray:
        values, dims = np.stack(list(walked.values())), ("cutoff", "chain", "draw", *extra)
        coords = {d: np.arange(k) for d, k in zip(dims, values.shape, strict=True)} | {"cutoff": np.array([*walked])}
        return xr.DataArray(values, coords, dims, name=name, attrs=independence(self.posterior))


def renormalize_stepwise(model, posterior: Posterior, metric: Callable[[Posterior], Metric], *, cutoffs, key,
                         refill: str | Refill = "prior", regulator: str | Regulator = "sharp"
                         ) -> StepwiseFlow:
    """A BRG flow that recomputes its metric after each step, at the posterior it has reached.

    Parameters
    ----------
    model, posterior, cutoffs, key, refill
        As for `renormalize`.
    metric : callable
        From a posterior to its `Metric`, such as ``lambda p: brg.fisher(model, p, x)``.
    regulator : {"sharp"} or `unlearning(num_data)`
        Rules that compose: the sharp one with the same θ₀ at every step, un-learning with independent noise.

    Returns
    -------
    StepwiseFlow
    """
    if not callable(metric):
        raise TypeError("metric must be a function from a posterior to its Metric, such as "
                        f"lambda p: brg.fisher(model, p, x), got {type(metric).__name__}")
    regulator = as_regulator(regulator)
    if not regulator.composes:
        raise ValueError(f"{regulator.name} regulators do not compose step by step; use 'sharp' or "
                         "brg.unlearning(num_data)")
    return StepwiseFlow(model, posterior, metric, check_cutoffs(cutoffs), check_key(key), as_refill(refill), regulator)
