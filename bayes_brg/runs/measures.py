"""What a run measures along a flow: φ and the loss of its members, their statistics, cumulants and couplings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from ..core.jackknife import block_jackknife
from ..diagnostics.scores import Scores, mean_sem, predictive, proper_score, scores
from ..field.correlators import cumulants
from ..field.couplings import running_couplings
from ..flow.critical_scale import critical_scale
from ..flow.flow import Flow
from ..io.store import learned_variables
from ..io.units import Units
from ..model.bound import bind
from ..posterior import Posterior
from .data import Data

__all__ = ["measure", "measure_couplings", "own_scores", "scores_in_units", "summarize"]

QUANTILES = (0.05, 0.95)
PHI_STATISTICS: dict[str, Callable[..., Any]] = {
    "phi_mean": partial(np.mean, axis=-1),
    "phi_std": partial(np.std, axis=-1, ddof=1),
    "phi_skewness": partial(stats.skew, axis=-1, bias=False),
    "phi_excess_kurtosis": partial(stats.kurtosis, axis=-1, bias=False),
}


def measure(flow: Flow, data: Data, max_loss: float = np.inf) -> xr.Dataset:
    """φ, loss and stiff fraction along a flow, and which members diverged.

    Parameters
    ----------
    flow : Flow
    data : Data
        φ is taken at its test inputs and its characteristic input, the loss on its test points.
    max_loss : float
        A member with a loss not below this at Λ = 0, or not finite, has diverged.

    Returns
    -------
    xarray.Dataset
        ``phi`` (cutoff, chain, draw, point, output), ``loss`` (cutoff, chain, draw), ``stiff_fraction`` (cutoff,),
        ``diverged`` (chain, draw), and what the likelihood learns, ``learned_SITE`` (cutoff, chain, draw, …).
        Attributes: ``characteristic_point``, ``num_members``, ``num_diverged``,
        ``likelihood`` (`Likelihood.record`) where the model is a network,
        ``num_unstable`` (that the sampler marks as diverged although their loss is small: they are kept),
        ``critical_scale`` with ``_lower`` and ``_upper``, of the members that did not diverge. φ and loss are as the
        model has them; where targets were standardised ``y_mean``, ``y_scale`` and ``units`` say how.
    """
    x, at = data.outputs_at()
    phi, loss = flow.predict(x), flow.loss(data.x_test, data.y_test)
    start = loss.sel(cutoff=0).transpose("chain", "draw").values
    diverged = ~(np.isfinite(start) & (start < max_loss))
    method = flow.posterior.method
    if diverged.all():
        raise ValueError(f"all {diverged.size} members of the {method} posterior diverged: their loss at cutoff 0 is "
                         f"not finite, or not below {max_loss:g}{_stable_rate(flow.posterior)}")
    critical = critical_scale(loss.where(xr.DataArray(~diverged, dims=("chain", "draw"))))
    attrs = {"method": method, "cutoff_units": "Fisher information per datum", "characteristic_point": at,
             "num_members": diverged.size, "num_diverged": int(diverged.sum()), **data.standardised}
    if data.y_transform:  # of the test points, in the mean
        attrs["y_log_jacobian"] = float(data.own.log_jacobian(data.own.back(data.y_test)).mean())
    likelihood = bind(flow.model, x).likelihood
    learned: dict[str, np.ndarray] = {}
    if likelihood is not None:
        attrs["likelihood"] = likelihood.record()
        learned = _along_flow(flow, tuple(likelihood.learned.values()))
    if "diverged" in flow.posterior.stats:  # the sampler's own word, such as a rate above the largest stable one
        attrs["num_unstable"] = int(np.sum(np.asarray(flow.posterior.stats["diverged"]) & ~diverged))
    attrs |= {name: float(value) for name, value in (
        ("critical_scale", critical.value), ("critical_scale_lower", critical.lower),
        ("critical_scale_upper", critical.upper))}
    attrs["critical_scale_text"] = str(critical)
    return xr.Dataset({"phi": phi, "loss": loss, "stiff_fraction": ("cutoff", np.asarray(flow.stiff_fraction)),
                       "diverged": (("chain", "draw"), diverged), **learned_variables(learned)}, attrs=attrs)


def _along_flow(flow: Flow, sites: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Draws of sites at every cutoff, (cutoff, chain, draw, …): the same at all where they do not flow."""
    cutoffs = np.asarray(flow.cutoffs)
    if not set(sites) & set(flow.sites):
        held = {s: np.asarray(flow.posterior.samples[s]) for s in sites}
        return {s: np.broadcast_to(v, (len(cutoffs), *v.shape)) for s, v in held.items()}
    every = [flow.at(c).samples for c in cutoffs]
    return {s: np.stack([np.asarray(one[s]) for one in every]) for s in sites}


def measure_couplings(flow: xr.Dataset, num_points: int = 3) -> xr.Dataset:
    """Cumulants and running couplings of the field at a few inputs, along a flow.

    Parameters
    ----------
    flow : xarray.Dataset
        As `Run.flow`. Members that diverged are left out; the first output is taken.
    num_points : int
        The characteristic input, then the first of the others.

    Returns
    -------
    xarray.Dataset
        What `running_couplings` gives, each name with its ``_sem``, over (cutoff, point). ``point`` is the position
        along ``point`` of the flow.

    Warns
    -----
    UserWarning
        Where the covariance is near-singular at a cutoff, as for points that the members always change together: its
        action is then that of the field plus a little noise, whose variance is ``ridge``.

    Notes
    -----
    The action is that of order 1/N (theory §5): its couplings are those of −log p as far as κ4/κ2² is small against 1.
    """
    at = flow.attrs["characteristic_point"]
    points = [at, *(i for i in range(flow.sizes["point"]) if i != at)][:num_points]
    phi = flow["phi"].isel(point=points, output=0)
    kept = ~flow["diverged"].values.ravel()
    if not kept.all():  # chains of unequal length; members that can diverge so are independent of each other
        values = phi.transpose("cutoff", "chain", "draw", "point").values
        values = values.reshape(values.shape[0], -1, values.shape[-1])[:, kept]
        phi = xr.DataArray(values, dims=("cutoff", "sample", "point"), coords={"cutoff": phi["cutoff"].values})
    running = running_couplings(cumulants(phi, order=4)).drop_vars("label", errors="ignore")
    return running.assign_coords(point=points).assign_attrs(cutoff_units="Fisher information per datum", output=0)


def _stable_rate(posterior: Posterior) -> str:
    if "largest_stable_rate" not in posterior.stats:
        return ""
    rates = np.asarray(posterior.stats["largest_stable_rate"])
    return f"; their largest stable learning rates are {rates.min():.3g} to {rates.max():.3g}"


def draws_of(law: dict[str, np.ndarray], num_draws: int = 400) -> np.ndarray:
    """Draws of y (draw, n, outputs) of a predictive law as `diagnostics.scores` has it, the same at each call."""
    if "draws" in law:
        return law["draws"]
    count = len(law["loc"])
    at = np.arange(max(count, num_draws)) % count
    noise = np.random.default_rng(0).normal(size=(len(at), *law["loc"].shape[1:]))
    return law["loc"][at] + law["scale"][at] * noise


def scores_in_units(found: Scores, units: Units, law: Callable[[], dict[str, np.ndarray]] | None = None, y: Any = None
                    ) -> Scores:
    """Scores of standardised targets as those of the data's own units, densities with their Jacobian.

    Parameters
    ----------
    found : Scores
        As the model sees its targets.
    units : Units
    law : callable, optional
        ``law()`` gives the predictive law, for targets that were transformed: errors and CRPS are then those of draws
        brought back, their mean the prediction.
    y : array, optional
        The targets as the model sees them, likewise.
    """
    if not units.attrs():
        return found
    d = found.dataset
    if units.linear:
        errors = [n for n in d.data_vars if str(n).removesuffix("_sem") in ("crps", "mean_crps", "rmse")]
        new: dict[Any, Any] = {n: d[n] * units.scale for n in errors}
        shift = np.log(units.scale) * d.sizes["output"]
        new |= {n: d[n] - shift for n in ("log_predictive_density", "mean_log_predictive_density")}
        return replace(found, dataset=d.assign(new))
    assert law is not None
    own = units.back(np.asarray(y, float).reshape(d.sizes["point"], 1))
    drawn = units.back(draws_of(law()))
    density = d["log_predictive_density"].values + units.log_jacobian(own)[:, 0]
    _, crps = proper_score({"draws": drawn}, own)
    squares, error = mean_sem((drawn.mean(axis=0) - own) ** 2)
    values = {"mean_log_predictive_density": mean_sem(density), "mean_crps": mean_sem(crps),
              "rmse": (np.sqrt(squares), error / (2 * np.sqrt(squares)) if squares > 0 else 0.0)}
    new = {"log_predictive_density": ("point", density), "crps": (("point", "output"), crps)}
    for name, (value, sem) in values.items():
        new |= {name: value, f"{name}_sem": sem}
    return replace(found, dataset=d.assign(new))


def own_scores(model: Any, posterior: Posterior, data: Data) -> Scores:
    """Held-out scores of a posterior in the data's own units."""
    found = scores(model, posterior, data.x_test, data.y_test)

    def law():
        bound = bind(model, data.x_test)
        return predictive(bound, posterior, data.x_test, bound.targets(data.y_test), jax.random.key(0))

    return scores_in_units(found, data.own, law, data.y_test)


def summarize(flow: xr.Dataset, blocks: int = 25) -> pd.DataFrame:
    """One row a cutoff: what the ensemble does along the flow. Members that diverged are left out.

    Parameters
    ----------
    flow : xarray.Dataset
        As `Run.flow`.
    blocks : int
        Blocks of consecutive draws of the jackknife behind the standard errors.

    Returns
    -------
    pandas.DataFrame
        ``cutoff`` (per datum); ``sloppy_fraction``; test loss ``loss_median, loss_mean, loss_q05, loss_q95``; φ at the
        characteristic input (first output) ``phi_mean, phi_std, phi_skewness, phi_excess_kurtosis`` (unbiased);
        a standard error ``*_se`` for each but the quantiles, by a delete-a-block jackknife; ``num_members`` used and
        ``num_diverged`` left out.
    """
    kept = ~flow["diverged"].values.ravel()
    loss = _members(flow["loss"])[:, kept]
    phi = _members(flow["phi"].isel(point=flow.attrs["characteristic_point"], output=0))[:, kept]

    table = {"cutoff": flow["cutoff"].values, "sloppy_fraction": 1 - flow["stiff_fraction"].values,
             "loss_median": np.median(loss, axis=1), "loss_mean": np.mean(loss, axis=1)}
    table |= dict(zip(("loss_q05", "loss_q95"), np.quantile(loss, QUANTILES, axis=1), strict=True))
    with np.errstate(all="ignore"):  # φ may be the same for all members: no skewness then
        table |= {name: statistic(phi) for name, statistic in PHI_STATISTICS.items()}
        table["loss_median_se"] = block_jackknife(partial(np.median, axis=-1), loss, blocks)
        table["loss_mean_se"] = block_jackknife(partial(np.mean, axis=-1), loss, blocks)
        table |= {f"{name}_se": block_jackknife(statistic, phi, blocks) for name, statistic in PHI_STATISTICS.items()}
    table |= {"num_members": loss.shape[1], "num_diverged": int(np.sum(~kept))}
    return pd.DataFrame(table)


def _members(array: xr.DataArray) -> np.ndarray:
    """(cutoff, chain, draw) as float64 (cutoff, member), chain by chain."""
    values = array.transpose("cutoff", "chain", "draw").values.astype(np.float64)
    return values.reshape(values.shape[0], -1)
