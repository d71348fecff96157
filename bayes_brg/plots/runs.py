"""Figures of a metric and of a stored run."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..metric.metric import spectrum_table
from .field import FIELD_FIGURES, couplings_along_flow
from .flow import distribution, flow_distributions, loss_along_flow, moments_along_flow
from .style import COLOURS, LINES, MARKERS, STYLE, _axes, _legend, _styled


@_styled
def spectrum(metric: Any, *, ax: Axes | None = None) -> Axes:
    """Sloppiness plot: how the directions of a metric are spread over decades of stiffness.

    Parameters
    ----------
    metric : Metric, or Dataset
        Dataset: as `Run.spectra` has it.
        Diagonal: stiffness of each parameter, by site. Other kinds: eigenvalues, by site for ``kind="block"``.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        x is the share of directions at least as stiff, y is λ per datum, logarithmic. Line: median over draws; band:
        5 % to 95 % of draws. The legend counts directions, those of stiffness zero or under the noise floor, and the
        parameters where they are more than the modes.
    """
    ax = _axes(ax, (5.8, 4.2))
    table = metric if isinstance(metric, xr.Dataset) else spectrum_table(metric, num=None)
    if not (table["stiffness"] > 0).any():
        raise ValueError("no direction of the metric has a stiffness above 0, so a logarithmic spectrum shows nothing; "
                         "do the outputs depend on the parameters at the probe inputs?")
    for number, label in enumerate(table["group"].values):
        one = table.sel(group=label)
        share, (low, middle, high) = one["share"].values, one["stiffness"].transpose("quantile", "rank").values
        size, zero = int(one["num_directions"]), float(one["zero_fraction"])
        good = middle > 0  # nor where a group has no more ranks
        total = int(one["num_parameters"]) if "num_parameters" in one else size  # older runs do not tell
        name = f"{label} ({size}" + (f" of {total}" if total > size else "") + (f"; {zero:.1%} zero)" if zero else ")")
        line = number + number // len(COLOURS)  # a seventh site has the first one's colour and another's line
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[line % len(LINES)]}
        few: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)]} if good.sum() <= 12 else {}
        ax.plot(share[good], middle[good], label=name, **style, **few)
        if table.attrs["num_draws"] > 1 and good.any():
            ax.fill_between(share[good], np.maximum(low[good], 1e-3 * middle[good].min()), high[good], alpha=0.2,
                            color=style["color"], linewidth=0)
    ax.set_yscale("log")
    ax.set_xlabel("share of directions at least as stiff")
    ax.set_ylabel(r"stiffness $\lambda\sigma_0^2$ (per datum)" if table.attrs["whitened"]
                  else r"stiffness $\lambda$ (per datum)")
    _legend(ax)
    return ax


def run_figures(run: Any) -> dict[str, Figure]:
    """The figures of a run: φ before the flow, loss along it, φ on either side of Λ_C, φ's mean and variance.

    Parameters
    ----------
    run : Run
        As `load_run` gives it. Members that diverged are left out.

    Returns
    -------
    dict of str to matplotlib Figure
        ``phi_before_flow``, ``loss_along_flow``, ``phi_either_side``, ``phi_moments``: the paper's figures 8 to 11,
        of the main method with the others beside it. Where the experiment measures them, ``field_cumulants`` and
        ``field_couplings`` at the characteristic input.
    """
    kept = {method: flow.where(~flow["diverged"]) for method, flow in run.own_units.items()}
    phi = {m: f["phi"].isel(point=f.attrs["characteristic_point"], output=0) for m, f in kept.items()}
    loss = {m: f["loss"] for m, f in kept.items()}
    main = run.flow.attrs
    critical = tuple(main.get(k, np.nan) for k in ("critical_scale", "critical_scale_lower", "critical_scale_upper"))
    truth = run.truth
    with matplotlib.rc_context(STYLE):
        before, loss_figure = (Figure(figsize=(5.8, 4.4), layout="constrained") for _ in range(2))
        either = Figure(figsize=(9.6, 7.8), layout="constrained")
        moments = Figure(figsize=(9.6, 3.9), layout="constrained")
        distribution({m: p.sel(cutoff=0) for m, p in phi.items()}, truth, ax=before.subplots(),
                     title=r"$\phi$ at the characteristic input, $\Lambda$ = 0")
        loss_along_flow(loss, critical_scale=critical, ax=loss_figure.subplots())
        flow_distributions(phi, critical_scale=critical, truth=truth, axes=list(either.subplots(2, 2).ravel()))
        moments_along_flow(phi, truth=truth, critical_scale=critical, axes=list(moments.subplots(1, 2)))
        figures = {"phi_before_flow": before, "loss_along_flow": loss_figure, "phi_either_side": either,
                   "phi_moments": moments}
        if run.file("couplings").is_file():
            for title, names in FIELD_FIGURES.items():
                rows, columns = (2, len(names) // 2) if len(names) > 3 else (1, len(names))
                figures[title] = Figure(figsize=(4.6 * columns, 3.3 * rows + 0.6), layout="constrained")
                couplings_along_flow(run.couplings, names, critical_scale=critical,
                                     axes=list(figures[title].subplots(rows, columns).ravel()))
    for figure in figures.values():
        figure.suptitle(run.name, x=0.01, ha="left", fontsize=9, color="#777777")
    return figures
