"""Convergence of chains in function space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..core.batching import default_chunk, map_draws
from ..core.checks import check_data, check_inputs
from ..io import arviz_bridge
from ..model.bound import BoundModel, bind
from ..posterior import Posterior, predict, work

__all__ = ["Convergence", "convergence", "judge"]


# -- convergence ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Convergence:
    """Whether draws have converged, judged in function space.

    Attributes
    ----------
    converged : bool
    reason : str
        Why, in words.
    table : pandas.DataFrame
        One row for φ and one for the loss (function space), one for each site (weight space): the worst and the
        median over entries of R-hat, bulk and tail ESS, and of the Monte-Carlo standard error in units of the
        entry's posterior standard deviation.
    dataset : xarray.Dataset
        ``rhat``, ``ess_bulk``, ``ess_tail``, ``mcse``, ``mean``, ``sd`` of φ at every (point, output), and the same
        of the loss with the prefix ``loss_``. Constant entries are NaN.
    """

    converged: bool
    reason: str
    table: pd.DataFrame
    dataset: xr.Dataset

    def __bool__(self) -> bool:
        return self.converged

    def __str__(self) -> str:
        verdict = f"converged in function space: {'yes' if self.converged else 'no'}, because {self.reason}"
        return f"{verdict}\n{self.table.to_string(float_format=lambda v: f'{v:.4g}', na_rep='-')}"


def _loss_of_draw(bound: BoundModel, params: dict, x: Any, y: Any):
    return bound.loss(params, x, y).mean()


def convergence(model, posterior: Posterior, x, y=None, *, max_rhat: float = 1.01, min_ess: float = 400.0,
                progress_bar: bool = True) -> Convergence:
    """Rank-normalised R-hat, effective sample sizes and Monte-Carlo errors of the network's output.

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model.
    posterior : Posterior
    x : array (n, dim)
        Inputs at which φ is judged.
    y : array (n, ...), optional
        Targets: the training loss (mean over points) is then judged as well.
    max_rhat : float
        The largest R-hat, over entries, that passes.
    min_ess : float
        The smallest bulk and tail ESS that passes, in draws.
    progress_bar : bool

    Returns
    -------
    Convergence

    Notes
    -----
    The verdict is about φ and the loss alone; the weight-space rows are labelled so and do not enter. Categorical
    logits are centred over classes first: a shift of all of them says nothing. R-hat compares chains with each
    other; for independent members it holds by construction and does not say that they are the posterior's.

    References
    ----------
    .. [1] Vehtari, Gelman, Simpson, Carpenter and Bürkner, Bayesian Analysis 16 (2021) 667, arXiv:1903.08008.
    """
    x = check_inputs(x)
    bound = bind(model, x)
    phi = bound.gauged(predict(model, posterior, x, progress_bar=progress_bar), x)
    dims = ("chain", "draw", "point", "output")
    variables = {"phi": xr.DataArray(phi, dims=dims)}
    if y is not None:
        x, y = check_data(x, y)
        draws = {s: posterior.flat()[s] for s in bound.names}
        loss = map_draws(_loss_of_draw, (bound,), draws, (x, bound.targets(y)), chunk=default_chunk(work(bound, x)))
        variables["loss"] = xr.DataArray(np.asarray(loss).reshape(phi.shape[:2]), dims=dims[:2])
    return judge(xr.Dataset(variables), posterior, max_rhat, min_ess)


def judge(data: xr.Dataset, posterior: Posterior, max_rhat: float = 1.01, min_ess: float = 400.0) -> Convergence:
    """Convergence of given draws: ``phi`` (chain, draw, point, output) and, where known, ``loss`` (chain, draw).

    `posterior` has the same chains and draws; its sites are the weight-space rows, its stats the notes.
    """
    shape = (data.sizes["chain"], data.sizes["draw"])
    draws = [data[name].transpose("chain", "draw", ...).values.reshape(*shape, -1) for name in data.data_vars]
    bad = ~np.logical_and.reduce([np.isfinite(values).all(-1) for values in draws])
    function = _measures(data)
    weights = _measures(arviz_bridge.posterior_datasets(posterior)["posterior"])
    rows = {f"{name} (function space)": _row(function, str(name)) for name in data.data_vars}
    rows |= {f"{arviz_bridge.unescape(str(name))} (weight space)": _row(weights, str(name))
             for name in weights["rhat"].data_vars}
    table = pd.DataFrame(rows).T
    found, reason = _verdict(table.iloc[:len(data.data_vars)], posterior, int(bad.sum()), max_rhat, min_ess)
    out = {k: ds["phi"] for k, ds in function.items()}
    out |= {f"loss_{k}": ds["loss"] for k, ds in function.items() if "loss" in ds}
    return Convergence(found, reason, table, xr.Dataset(out, attrs={"method": posterior.method}))


def _measures(data: xr.Dataset) -> dict[str, xr.Dataset]:
    chain = ("chain", "draw")
    data = data.astype(float)
    data = data.where(np.isfinite(data))  # NaN throughout an entry's measures
    constant = data.max(chain) == data.min(chain)
    found = {"rhat": arviz_bridge.rhat(data), "ess_bulk": arviz_bridge.ess(data),
             "ess_tail": arviz_bridge.ess(data, "tail"), "mcse": arviz_bridge.mcse(data)}
    found = {k: v.where(~constant) for k, v in found.items()}
    return found | {"mean": data.mean(chain, skipna=False), "sd": data.std(chain, ddof=1, skipna=False)}


def _row(measures: dict[str, xr.Dataset], name: str) -> dict[str, float]:
    values = {k: np.ravel(measures[k][name].values) for k in ("rhat", "ess_bulk", "ess_tail")}
    with np.errstate(divide="ignore", invalid="ignore"):
        values["mcse_per_sd"] = np.ravel(measures["mcse"][name].values / measures["sd"][name].values)
    row: dict[str, float] = {}
    for measure, v in values.items():
        v = v[np.isfinite(v)]
        worst = np.nan if not v.size else v.min() if measure.startswith("ess") else v.max()
        row |= {f"{measure}_worst": worst, f"{measure}_median": float(np.median(v)) if v.size else np.nan}
    return row


def _verdict(table: pd.DataFrame, posterior: Posterior, bad: int, max_rhat: float, min_ess: float) -> tuple[bool, str]:
    rhat = table["rhat_worst"].max(skipna=False)
    bulk, tail = table["ess_bulk_worst"].min(skipna=False), table["ess_tail_worst"].min(skipna=False)
    faults = []
    independent = bool(np.any(np.asarray(posterior.stats.get("independent", False))))
    if bad:
        faults.append(f"{bad} of {posterior.size} draws give a value that is not finite")
    elif posterior.num_chains < 2:
        faults.append("one chain cannot disagree with itself: run two or more")
    elif posterior.num_draws < 4:
        faults.append(f"chains of {posterior.num_draws} draws are too short to be judged")
    elif np.isnan(rhat):
        faults.append("the output never moves: all draws agree at every point")
    else:
        if not rhat <= max_rhat and not independent:  # of independent draws R-hat is noise about 1
            faults.append(f"the worst R-hat is {rhat:.3f}, above {max_rhat:g}")
        for name, ess in (("bulk", bulk), ("tail", tail)):
            if not ess >= min_ess:
                faults.append(f"the smallest {name} ESS is {ess:.0f} of {posterior.size} draws, below {min_ess:g}")
    notes = []
    jumps = int(np.sum(np.asarray(posterior.stats.get("diverging", 0))))
    if jumps:
        notes.append(f"{jumps} transitions diverged, so that parts of the posterior may be missing")
    if independent:
        notes.append("of independent draws this does not say whether they are the posterior's")
    mixed = "draws are independent" if independent else f"the worst R-hat is {rhat:.3f} (at most {max_rhat:g})"
    reason = "; ".join(faults) if faults else (f"{mixed} and the smallest ESS is {min(bulk, tail):.0f} (at least "
                                               f"{min_ess:g})")
    return not faults, reason + "".join(f". Note: {n}" for n in notes)


# -- learning against the flow --------------------------------------------------------------------------------


