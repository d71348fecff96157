"""Convergence of chains in function space."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from ..core.checks import check_data, check_inputs
from ..field.draws import largest
from ..io import arviz_bridge
from ..model.bound import bind
from ..posterior import Posterior, mean_loss, predict

__all__ = ["Convergence", "convergence", "judge"]


# -- convergence ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Convergence:
    """Whether draws have converged, judged in function space.

    Attributes
    ----------
    converged : bool
        Of independent draws: whether all are finite and move, for there is nothing more to converge.
    reason : str
        Why, in words.
    independent : bool
        Whether the draws are independent of each other, so that no R-hat and no ESS need judge them.
    table : pandas.DataFrame
        One row for φ and one for the loss (function space), one for each site (weight space): the worst and the
        median over entries of R-hat, bulk and tail ESS, and of the Monte-Carlo standard error in units of the
        entry's posterior standard deviation; ``constant`` and ``undefined``, the number of entries that are the same
        in all draws, and of others whose R-hat or ESS is not finite (chains that stand still at different values).
    dataset : xarray.Dataset
        ``rhat``, ``ess_bulk``, ``ess_tail``, ``mcse``, ``mean``, ``sd`` of φ at every (point, output), and the same
        of the loss with the prefix ``loss_``. Constant entries are NaN.
    """

    converged: bool
    reason: str
    table: pd.DataFrame
    dataset: xr.Dataset
    independent: bool = False

    def __bool__(self) -> bool:
        return self.converged

    @property
    def verdict(self) -> str:
        """One sentence: of chains, whether they have converged and why; of independent draws, how many there are."""
        return self.reason if self.independent else (
            f"converged in function space: {'yes' if self.converged else 'no'}, because {self.reason}")

    def __str__(self) -> str:
        return f"{self.verdict}\n{self.table.to_string(float_format=lambda v: f'{v:.4g}', na_rep='-')}"


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
    other; independent members have no chains, so the verdict is their number, and no test says that they are the
    posterior's. An R-hat or ESS that is not finite counts against convergence; an output that is the same in all
    draws does too, unless every parameter moves (a network without biases at x = 0).

    References
    ----------
    .. [1] Vehtari, Gelman, Simpson, Carpenter and Bürkner, Bayesian Analysis 16 (2021) 667, arXiv:1903.08008.
    """
    x = check_inputs(x)
    bound = bind(model, x)
    phi = np.asarray(bound.gauged(predict(model, posterior, x, progress_bar=progress_bar), x))
    dims = ("chain", "draw", "point", "output")
    variables = {"phi": xr.DataArray(phi, dims=dims)}
    if y is not None:
        x, y = check_data(x, y)
        draws = {s: posterior.flat()[s] for s in bound.names}
        loss = mean_loss(bound, draws, x, bound.targets(y))
        variables["loss"] = xr.DataArray(np.asarray(loss).reshape(phi.shape[:2]), dims=dims[:2])
    return judge(xr.Dataset(variables), posterior, max_rhat, min_ess)


def judge(data: xr.Dataset, posterior: Posterior, max_rhat: float = 1.01, min_ess: float = 400.0) -> Convergence:
    """Convergence of given draws: ``phi`` (chain, draw, point, output) and, where known, ``loss`` (chain, draw).

    `posterior` has the same chains and draws; its sites are the weight-space rows, its stats the notes.
    """
    shape = (data.sizes["chain"], data.sizes["draw"])
    draws = [data[name].transpose("chain", "draw", ...).values.reshape(*shape, -1) for name in data.data_vars]
    finite = {str(name): np.isfinite(values).all(-1) for name, values in zip(data.data_vars, draws, strict=True)}
    bad = Counter({name: int((~good).sum()) for name, good in finite.items() if not good.all()})
    function = _measures(data)
    weights = _measures(arviz_bridge.posterior_datasets(posterior)["posterior"])
    rows = {f"{name} (function space)": _row(function, str(name)) for name in data.data_vars}
    rows |= {f"{arviz_bridge.unescape(str(name))} (weight space)": _row(weights, str(name))
             for name in weights["rhat"].data_vars}
    table = pd.DataFrame(rows).T
    independent = bool(np.any(np.asarray(posterior.stats.get("independent", False))))
    weight_rows = table.iloc[len(data.data_vars):]
    judged = _Judged(table.iloc[:len(data.data_vars)], posterior, bad,
                     still=all(bool(v.all()) for v in function["constant"].data_vars.values()),
                     stuck=bool((weight_rows["constant"] > 0).any()))
    faults = judged.broken() or ([] if independent else judged.unmixed(max_rhat, min_ess))
    reason = judged.reason(faults, independent, max_rhat, min_ess)
    out = {k: ds["phi"] for k, ds in function.items()}
    out |= {f"loss_{k}": ds["loss"] for k, ds in function.items() if "loss" in ds}
    return Convergence(not faults, reason, table, xr.Dataset(out, attrs={"method": posterior.method}), independent)


def _measures(data: xr.Dataset) -> dict[str, xr.Dataset]:
    chain = ("chain", "draw")
    data = data.astype(float)
    data = data.where(np.abs(data) <= largest(2))  # NaN throughout an entry's measures: squares of squares are taken
    constant = data.max(chain) == data.min(chain)
    if data.sizes["chain"] * data.sizes["draw"] < 2:  # one draw has no spread
        lost = xr.full_like(data.isel(chain=0, draw=0, drop=True), np.nan)
        return dict.fromkeys(("rhat", "ess_bulk", "ess_tail", "mcse", "sd"), lost) | {
            "mean": data.mean(chain, skipna=False), "constant": constant}
    found = {"rhat": arviz_bridge.rhat(data), "ess_bulk": arviz_bridge.ess(data),
             "ess_tail": arviz_bridge.ess(data, "tail"), "mcse": arviz_bridge.mcse(data)}
    found = {k: v.where(~constant) for k, v in found.items()}
    return found | {"mean": data.mean(chain, skipna=False), "sd": data.std(chain, ddof=1, skipna=False),
                    "constant": constant}


def _row(measures: dict[str, xr.Dataset], name: str) -> dict[str, float]:
    values = {k: np.ravel(measures[k][name].values) for k in ("rhat", "ess_bulk", "ess_tail")}
    with np.errstate(divide="ignore", invalid="ignore"):
        values["mcse_per_sd"] = np.ravel(measures["mcse"][name].values / measures["sd"][name].values)
    constant = np.ravel(measures["constant"][name].values)
    known = np.logical_and.reduce([np.isfinite(values[k]) for k in ("rhat", "ess_bulk", "ess_tail")])
    row: dict[str, float] = {}
    for measure, v in values.items():
        v = v[np.isfinite(v)]
        worst = np.nan if not v.size else v.min() if measure.startswith("ess") else v.max()
        row |= {f"{measure}_worst": worst, f"{measure}_median": float(np.median(v)) if v.size else np.nan}
    return row | {"constant": int(constant.sum()), "undefined": int((~known & ~constant).sum())}


class _Judged(NamedTuple):
    """What a verdict rests on: the function-space rows of the table, and how many draws of each are not finite."""

    table: pd.DataFrame
    posterior: Posterior
    bad: Counter[str]
    still: bool  # every output is the same in all draws
    stuck: bool  # some entry of a parameter is

    def broken(self) -> list[str]:
        """Faults that leave nothing to judge, or that independent draws can have too."""
        size = self.posterior.size
        if self.bad:
            return [f"{count} of {size} draws give a {name} that is not finite" for name, count in self.bad.items()]
        if self.still:
            return ["the output never moves: all draws agree at every point"]
        return []

    def unmixed(self, max_rhat: float, min_ess: float) -> list[str]:
        """Faults of chains."""
        if self.posterior.num_chains < 2:
            return ["one chain cannot disagree with itself: run two or more"]
        if self.posterior.num_draws < 4:
            return [f"chains of {self.posterior.num_draws} draws are too short to be judged"]
        faults, worst = [], self.worst
        undefined, constant = (int(self.table[c].sum()) for c in ("undefined", "constant"))
        if undefined:
            faults.append(f"{undefined} outputs have no finite R-hat or ESS, as of chains that stand still apart")
        if constant and self.stuck:
            faults.append(f"{constant} outputs and some parameters never move")
        if not worst["rhat"] <= max_rhat:
            told = f"{worst['rhat']:.3f}" if worst["rhat"] < 1000 else f"{worst['rhat']:.1g}"
            faults.append(f"the worst R-hat is {told}, above {max_rhat:g}")
        for name in ("bulk", "tail"):
            if not worst[name] >= min_ess:
                faults.append(f"the smallest {name} ESS is {worst[name]:.0f} of {self.posterior.size} draws, below "
                              f"{min_ess:g}")
        return faults

    @property
    def worst(self) -> dict[str, float]:
        """Over the rows whose entries move."""
        return {"rhat": self.table["rhat_worst"].max(), "bulk": self.table["ess_bulk_worst"].min(),
                "tail": self.table["ess_tail_worst"].min()}

    def reason(self, faults: list[str], independent: bool, max_rhat: float, min_ess: float) -> str:
        posterior, worst = self.posterior, self.worst
        notes = []
        jumps = int(np.sum(np.asarray(posterior.stats.get("diverging", 0))))
        if jumps:
            notes.append(f"{jumps} transitions diverged, so that parts of the posterior may be missing")
        constant = int(self.table["constant"].sum())
        if constant and not self.stuck:
            notes.append(f"{constant} outputs are the same in all draws although every parameter moves, and are not "
                         "judged")
        if independent:
            notes.append("this does not say whether they are the posterior's")
        mixed = (f"the worst R-hat is {worst['rhat']:.3f} (at most {max_rhat:g}) and the smallest ESS is "
                 f"{min(worst['bulk'], worst['tail']):.0f} (at least {min_ess:g})")
        members = f"independent; {posterior.size} members"
        said = ([members] if independent else []) + (faults or ([] if independent else [mixed]))
        return "; ".join(said) + "".join(f". Note: {n}" for n in notes)
