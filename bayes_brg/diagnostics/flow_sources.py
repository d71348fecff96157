"""What `compare` asks of a flow, and who answers: a flow, a stepwise flow, or the flow that a run has stored."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import numpy as np
import xarray as xr

from ..core.checks import check_data
from ..core.keys import name_key
from ..flow.flow import Flow
from ..flow.stepwise import StepwiseFlow
from ..io import store
from ..model.bound import BoundModel, bind
from ..model.likelihoods import Likelihood
from .scores import predictive, predictive_of_phi

ALONG = ("cutoff", "chain", "draw", "point", "output")


class Made:
    """A `Flow` or `StepwiseFlow` in memory.

    ``available``: the Λ at which it can be had, None for any. Two sides of one ``stream`` share their prior draws.
    """

    def __init__(self, flow: Flow | StepwiseFlow, x: Any):
        self.flow, self.label = flow, flow.posterior.method
        self.cutoffs = np.asarray(flow.cutoffs, float)
        self.available = flow.available if isinstance(flow, Flow) else np.union1d([0.0], self.cutoffs)
        self.independent = flow.independent if isinstance(flow, Flow) else bool(
            np.all(flow.posterior.stats.get("independent", False)))
        self.stream = _data(flow.key if isinstance(flow, Flow) else name_key(flow.key, "refill"))
        self.bound: BoundModel = flow.bound if isinstance(flow, Flow) else bind(flow.model, x)
        self.likelihood = self.bound.likelihood

    def phi(self, x, keep, scales, show):
        """φ (cutoff, chain, draw, point, output) at the inputs `x`, or those of them in `keep`."""
        mesh = x if keep is None else jax.tree.map(lambda a: a[keep], x)
        return self.flow.predict(mesh, cutoffs=scales, progress_bar=show).transpose(*ALONG).values

    def gauged(self, phi, x):
        """φ with categorical logits that sum to 0 over classes."""
        return self.bound.gauged(phi, x)

    def loss(self, x, y, scales, show):
        return self.flow.loss(x, y, cutoffs=scales, progress_bar=show)

    def targets(self, y):
        return self.bound.targets(y)

    def law(self, phi, cutoff, x, targets, key):
        """Components of the predictive law and ``log_likelihood`` (draw, n), of φ (draw, n, outputs)."""
        if self.bound.likelihood is not None:
            sites = tuple(self.bound.likelihood.learned.values())
            held = self.flow.at(cutoff).flat() if sites else {}
            return predictive_of_phi(self.bound.likelihood, phi, targets, key, {s: held[s] for s in sites})
        return predictive(self.bound, self.flow.at(cutoff), x, targets, key)


class Stored:
    """The flow of one method of a run, from its files: φ and the loss at its own held-out data and cutoffs.

    Members that diverged are left out.
    """

    def __init__(self, run: store.Run, method: str | None = None):
        method = run.methods[0] if method is None else method
        if method not in run.methods:
            raise ValueError(f"{run.path} has no method {method!r}; its methods are {', '.join(run.methods)}")
        self.run, self.label = run, method
        self.data = run.read_flow(method)
        self.cutoffs = self.available = self.data["cutoff"].values.astype(float)
        again = "; run it again with this version, or pass the flow, experiment.flow_of(run, method), which " \
                "`bayes-brg compare` does with --experiment FILE"
        if "likelihood" not in self.data.attrs:
            raise ValueError(f"{run.path} does not say which of this package's likelihoods its model has{again}")
        self.likelihood = Likelihood.restore(self.data.attrs["likelihood"])
        self.x, self.y = check_data(run.inputs("x_test"), run.data["y_test"].values)
        # As the run made its flow: stream "flow" of the seed, there the method's, and there `renormalize`'s refills.
        key = name_key(jax.random.key(run.settings["seed"]), "flow")
        self.stream = _data(name_key(name_key(key, method), "refill"))
        self.kept = ~self.data["diverged"].transpose("chain", "draw").values
        if not self.kept.all() and not self.independent:
            raise ValueError(f"{int((~self.kept).sum())} of {self.kept.size} draws of {method!r} in {run.path} "
                             "diverged; chains with holes cannot be compared")

    @cached_property
    def independent(self) -> bool:
        return self.run.independent(self.label) and bool(self.data["phi"].attrs.get("independent", True))

    def _at(self, scales: np.ndarray) -> np.ndarray:
        return np.abs(self.cutoffs - np.asarray(scales, float)[:, None]).argmin(axis=1)

    def phi(self, x, keep, scales, show):
        points = np.arange(len(self.y)) if keep is None else keep  # the characteristic input comes after them
        phi = self.data["phi"].isel(cutoff=self._at(scales), point=points).transpose(*ALONG).values
        if self.kept.all():
            return phi
        return phi.reshape(len(phi), 1, -1, *phi.shape[3:])[:, :, self.kept.ravel()]

    def gauged(self, phi, x):
        return self.likelihood.gauged(phi)

    def loss(self, x, y, scales, show):
        loss = self.data["loss"].isel(cutoff=self._at(scales))
        return loss.where(xr.DataArray(self.kept, dims=("chain", "draw")))

    def targets(self, y):
        return self.likelihood.targets(y, self.data.sizes["output"])

    def law(self, phi, cutoff, x, targets, key):
        learned = store.learned_sites(self.data, float(self.cutoffs[self._at(np.array([cutoff]))[0]]))
        return predictive_of_phi(self.likelihood, phi, targets, key, {
            s: v[self.kept.ravel()] for s, v in learned.items()})


def _data(key: jax.Array) -> list:
    return np.asarray(jax.random.key_data(key)).tolist()


def _same(one: Any, other: Any) -> bool:
    """Whether two inputs, arrays or dicts and tuples of them, are equal."""
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        np.array_equal(np.asarray(a), np.asarray(b))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def same_data(sides: list[Stored], x: Any, y: Any) -> tuple[Any, Any]:
    """The held-out data of stored flows, if they are the same, and those given where any are."""
    first = sides[0]
    remedy = "leave x and y out, or pass the flow, experiment.flow_of(run, method), which can be asked anywhere"
    for other in sides[1:]:
        if not (_same(first.x, other.x) and _same(first.y, other.y)):
            raise ValueError(f"{first.run.path} and {other.run.path} have other held-out data; compare runs of the "
                             "same data (settings, seed), or flows, which `bayes-brg compare` makes with --experiment "
                             "FILE")
    for name, given, held in (("x", x, first.x), ("y", y, first.y)):
        if given is not None and not _same(given, held):
            raise ValueError(f"{name} is not the held-out data of {first.run.path}, the only one its stored flow "
                             f"knows; {remedy}")
    return first.x, first.y


Side = Made | Stored
