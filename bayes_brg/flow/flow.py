"""What every flow answers: a posterior at each scale Λ, and what is measured along it (theory §2, §9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import xarray as xr

from ..core.batching import default_chunk, first_draw, map_draws
from ..core.checks import check_choice, check_data, check_inputs, check_key, check_like, warn_unfinite
from ..core.keys import name_key
from ..model.bound import BoundModel, Params
from ..posterior import Posterior, diverged, work
from .critical_scale import CriticalScale, critical_scale, variance_scale
from .cutoffs import check_cutoffs

__all__ = ["Flow"]

TOO_LARGE = ("The output, or its square, is beyond floating point, or a draw is not finite: rescale x or y, or leave "
             "such draws out")


@dataclass(frozen=True, repr=False)
class Flow:
    """A family of renormalised posteriors π_Λ: `MappedFlow` from `renormalize`, or a `SampledFlow`.

    A kind of flow is a subclass with `at`, `bound`, `sites`, `probe` and `stiff_fraction`; what is measured along it
    follows, draw by draw from its posteriors, where it has no shorter way.

    Attributes
    ----------
    cutoffs : array (cutoff,)
        Λ, in units of 1/datum.
    posterior : Posterior
        That at Λ = 0.
    model : callable
    key : jax.random.key
        Of the prior draws: flows with the same key share them.
    """

    model: Callable = field(repr=False)
    posterior: Posterior
    cutoffs: np.ndarray = field(repr=False)
    key: jax.Array = field(repr=False)

    def __repr__(self) -> str:
        scales = np.asarray(self.cutoffs, float)
        span = f"{len(scales)} cutoffs"
        if len(scales):
            span += f" from {scales[0]:.3g} to {scales[-1]:.3g} per datum"
        return f"{type(self).__name__}({span}; {', '.join(self.sites)} flow{self._how}; of {self.posterior!r})"

    @property
    def _how(self) -> str:
        """What else there is to say of the kind of flow."""
        return ""

    @property
    def bound(self) -> BoundModel:
        """The model, bound."""
        raise NotImplementedError

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that flow."""
        raise NotImplementedError

    @property
    def probe(self) -> Any:
        """Inputs of the form that the model takes: those that the flow was made with."""
        raise NotImplementedError

    @property
    def independent(self) -> bool:
        """Whether draws at one Λ are independent of each other."""
        return bool(independence(self.posterior)["independent"])

    @property
    def available(self) -> np.ndarray | None:
        """The Λ at which the flow can be had; None for any."""
        return None

    @property
    def stiff_fraction(self) -> np.ndarray:
        """Fraction of the flowing directions that are not the prior's yet, (cutoff,)."""
        raise NotImplementedError

    def at(self, cutoff: float) -> Posterior:
        """The renormalised posterior π_Λ."""
        raise NotImplementedError

    def _along(self, quantity: str, x, y=None, cutoffs=None, show: bool = True, draw_key=None) -> np.ndarray:
        """(cutoff, chain, draw, ...) of a quantity: "phi", "loss", "log_likelihood" or "y"."""
        check_like(x, self.probe)
        scales = self.cutoffs if cutoffs is None else check_cutoffs(cutoffs)
        return np.stack([self._of(self.at(c), quantity, x, y, draw_key) for c in scales])

    def _of(self, posterior: Posterior, quantity: str, x, y=None, draw_key=None) -> np.ndarray:
        """(chain, draw, ...) of a quantity at one Λ."""
        flat = posterior.flat()
        draws = {s: flat[s] for s in self.bound.names}, np.arange(posterior.size)
        values = np.asarray(map_draws(quantity_one, (self.bound, quantity), draws, (x, y, draw_key),
                                      chunk=default_chunk(work(self.bound, x))))
        return values.reshape(posterior.num_chains, posterior.num_draws, *values.shape[1:])

    def _sums(self, quantity: str, x, y, scales: np.ndarray) -> Any:
        """Sums over members at each Λ: number, mean and squared deviations of φ, or log Σ p(y | θ_Λ)."""
        check_like(x, self.probe)
        found = []
        for cutoff in scales:
            values = self._of(self.at(cutoff), quantity, x, y)
            values = values.reshape(-1, *values.shape[2:])
            if quantity == "phi":
                mean = values.mean(axis=0)
                found.append((mean, ((values - mean) ** 2).sum(axis=0)))
            else:
                found.append(np.logaddexp.reduce(values, axis=0))
        if quantity != "phi":
            return np.stack(found)
        mean, square = (np.stack(part) for part in zip(*found, strict=True))
        return self.posterior.size, mean, square

    def _array(self, values: np.ndarray, name: str, cutoffs=None, extra: Sequence[str] = ()) -> xr.DataArray:
        dims = ("cutoff", "chain", "draw", *extra)
        coords: dict[str, Any] = {d: np.arange(k) for d, k in zip(dims, values.shape, strict=True)}
        coords["cutoff"] = self.cutoffs if cutoffs is None else np.atleast_1d(np.asarray(cutoffs, float))
        return xr.DataArray(values, coords=coords, dims=dims, name=name, attrs={"independent": int(self.independent)})

    def predict(self, x, *, cutoffs=None, progress_bar: bool = True) -> xr.DataArray:
        """Output φ_θ(x) along the flow.

        Parameters
        ----------
        x : array (n, dim)
        cutoffs : array, optional
            Other cutoffs than the flow's own. For a sharp flow of a linear readout many cost little more than one.

        Returns
        -------
        DataArray (cutoff, chain, draw, point, output)
        """
        phi = self._along("phi", check_inputs(x), None, cutoffs, progress_bar)
        extra = ("point", "output")
        warn_unfinite(phi, "flow.predict: outputs", ("cutoff", "chain", "draw", *extra), TOO_LARGE, self._diverged)
        return self._array(phi, "phi", cutoffs, extra)

    @property
    def _diverged(self) -> np.ndarray:
        return diverged(self.posterior).reshape(self.posterior.num_chains, self.posterior.num_draws)

    def loss(self, x, y, *, cutoffs=None, progress_bar: bool = True) -> xr.DataArray:
        """Training loss along the flow, mean over points: (y − φ)² summed over outputs for a Gaussian, else −log p.

        Returns
        -------
        DataArray (cutoff, chain, draw)
            In squared units of y, or nats; ``attrs["units"]`` says which.
        """
        x, y = check_data(x, y)
        loss = self._along("loss", x, self.bound.targets(y), cutoffs, progress_bar)
        warn_unfinite(loss, "flow.loss: losses", ("cutoff", "chain", "draw"), TOO_LARGE, self._diverged)
        return self._array(loss, "loss", cutoffs).assign_attrs(units=loss_units(self.bound, self.posterior, x))

    def moments(self, x, *, cutoffs=None) -> xr.Dataset:
        """Mean and variance of φ over members along the flow, by running sums: memory is cutoff × point.

        Returns
        -------
        Dataset
            ``mean`` and ``variance`` (unbiased), (cutoff, point, output).
        """
        x = check_inputs(x)
        scales = self.cutoffs if cutoffs is None else check_cutoffs(cutoffs)
        count, mean, square = self._sums("phi", x, None, scales)
        return self._points({"mean": mean, "variance": square / (count - 1)}, scales, ("point", "output"))

    @staticmethod
    def _points(values: dict, scales: np.ndarray, extra: Sequence[str]) -> xr.Dataset:
        arrays = {k: (("cutoff", *extra), np.asarray(v)) for k, v in values.items()}
        shape = next(iter(arrays.values()))[1].shape
        coords = {d: np.arange(k) for d, k in zip(extra, shape[1:], strict=True)}
        return xr.Dataset(arrays, {"cutoff": scales, **coords})

    def log_predictive(self, x, y, *, cutoffs=None) -> xr.DataArray:
        """Log posterior predictive density of each datum along the flow (55): log of the mean over draws of p(y | θ_Λ).

        Returns
        -------
        DataArray (cutoff, point)
            In nats; sum over points for the log score of the data taken one by one.
        """
        x, y = check_data(x, y)
        scales = self.cutoffs if cutoffs is None else check_cutoffs(cutoffs)
        total = self._sums("log_likelihood", x, self.bound.targets(y), scales) - np.log(self.posterior.size)
        warn_unfinite(total, "flow.log_predictive: log densities", ("cutoff", "point"), "No draw gives such a datum a "
                      "density that floating point holds: check the units of y")
        return self._points({"log_predictive": total}, scales, ("point",))["log_predictive"]

    def predictive(self, x, key, *, cutoffs=None, progress_bar: bool = True) -> xr.DataArray:
        """One draw of y from the renormalised posterior predictive (55) for each posterior draw.

        Parameters
        ----------
        x : array (n, dim)
        key : jax.random.key
            The noise of a member depends on the key and its number alone: it is the same at every Λ.

        Returns
        -------
        DataArray (cutoff, chain, draw, point[, output])
        """
        draw_key = name_key(check_key(key), "predictive")
        values = self._along("y", check_inputs(x), None, cutoffs, progress_bar, draw_key)
        extra = ("point", "output", "axis")[:values.ndim - 3]
        return self._array(values, "y", cutoffs, extra)

    def critical_scale(self, x, y=None, *, definition: str | None = None, ratio: float = 2.0, rise: float = 0.1,
                       level: float = 0.9, num_bootstrap: int = 500, progress_bar: bool = True) -> CriticalScale:
        """The scale Λ_C at which the flow leaves its flat region.

        Parameters
        ----------
        x, y : arrays
            Held-out data; `y` is not needed by "variance_ratio".
        definition : {"loss_ratio", "loss_rise", "variance_ratio", "knee"}, optional
            Where the median loss over members has grown by `ratio` relative to Λ = 0 (the default for a squared loss);
            where it has risen by `rise` (the default for −log p, whose zero depends on the units of y); where the
            variance of φ over members has grown by `ratio`; interpolated in log Λ. Or the corner of the
            flat-then-rising broken line that fits the median loss best.
        ratio : float
            Above 1.
        rise : float
            In nats per datum.
        level : float
            Probability of the bootstrap interval over members.
        num_bootstrap : int

        Returns
        -------
        CriticalScale
            With value NaN and a reason where there is no flat region, or the curve never leaves it.
        """
        if definition is not None:
            check_choice(definition, "definition", ("loss_ratio", "loss_rise", "variance_ratio", "knee"))
        if definition == "variance_ratio":
            return variance_scale(self.predict(x, progress_bar=progress_bar), ratio=ratio, level=level,
                                  num_bootstrap=num_bootstrap)
        if y is None:
            raise ValueError(f"definition={definition or 'of the loss'!r} needs the targets y")
        loss = self.loss(x, y, progress_bar=progress_bar)
        return critical_scale(loss, definition=definition, ratio=ratio, rise=rise, level=level,
                              num_bootstrap=num_bootstrap)


def quantity_one(bound: BoundModel, quantity: str, draw: tuple[Params, jax.Array], x: Any, y: Any, draw_key: Any
                 ) -> jax.Array:
    """A quantity of one draw, (parameters, its number)."""
    theta, index = draw
    match quantity:
        case "phi":
            return bound.phi(theta, x)
        case "loss":
            return bound.mean_loss(theta, x, y)
        case "log_likelihood":
            return bound.log_likelihood(theta, x, y)
        case _:
            return bound.distribution(theta, x).sample(jax.random.fold_in(draw_key, index))


def independence(posterior: Posterior) -> dict[str, int]:
    """Attributes that say whether a posterior's draws are independent; so are then those of its flow."""
    return {"independent": int(np.all(np.asarray(posterior.stats.get("independent", False))))}


def loss_units(bound: BoundModel, posterior: Posterior, x: Any) -> str:
    """Units of the training loss: those of y, squared, or nats."""
    return "squared units of y" if bound.squared(first_draw(posterior.flat()), x) else "nats"


def renormalized(posterior: Posterior, flowed: Mapping[str, jax.Array], cutoff: float) -> Posterior:
    """`posterior` with the flowed sites (leading axis T) put in, and only the statistics that still hold."""
    lead = posterior.num_chains, posterior.num_draws
    samples = {s: flowed[s].reshape(*lead, *flowed[s].shape[1:]) if s in flowed else v
               for s, v in posterior.samples.items()}
    stats = {k: v for k, v in posterior.stats.items() if k in ("independent", "diverged")}
    return Posterior(samples, stats | {"cutoff": cutoff}, f"{posterior.method.split(' at Λ')[0]} at Λ = {cutoff:g}",
                     posterior.trained)
