"""Figures of one output along the flow: loss, moments, distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from scipy import stats

from ..core.arrays import check_floats
from ..core.jackknife import block_jackknife
from ..field.draws import largest
from .style import (
    COLOURS,
    INK,
    LINES,
    MEAN,
    SD,
    VARIANCE,
    _along,
    _axes,
    _by_label,
    _count,
    _figure,
    _legend,
    _look,
    _mark_critical,
    _power,
    _styled,
    _whiskers,
    cutoff_axis,
)


def _units(phi: Any) -> str:
    """Units of φ for an axis, where its attributes name them."""
    found = [getattr(array, "attrs", {}).get("units", "") for array in _by_label(phi).values()]
    return f" ({found[0]})" if found and found[0] else ""


# -- one scale ------------------------------------------------------------------------------------------------
@_styled
def distribution(phi: Any, truth: float | None = None, *, ax: Axes | None = None, bins: int = 40,
                 title: str | None = None, clip: float = 0.002) -> Axes:
    """Distribution of one output over draws, with the Gaussian of the same mean and variance (figure 8).

    Parameters
    ----------
    phi : array or DataArray, or mapping of label to them
        Draws in any shape, chain after chain. The first is a histogram with the counting errors of independent draws
        (one standard error a bin), others are outlines; errors of mean and sd are by a block jackknife.
    truth : float, optional
        The true value, drawn as a vertical line.
    ax : matplotlib Axes, optional
    bins : int
        At most; fewer where there are few draws.
    title : str, optional
    clip : float
        Fraction of draws beyond each end that may fall outside the axis; they stay in the fit.

    Returns
    -------
    matplotlib Axes
        x is φ in its own units, y the probability density per unit of φ.
    """
    ax = _axes(ax)
    series = {label: np.ravel(check_floats(draws, label or "phi", finite=False))
              for label, draws in _by_label(phi).items()}
    finite = {label: draws[np.abs(draws) <= largest(2)] for label, draws in series.items()}
    for label, draws in finite.items():
        if draws.size < 2:
            raise ValueError(f"{label or 'phi'} has {draws.size} finite draws (with finite squares) of "
                             f"{series[label].size}; a distribution needs two")
    ends = np.array([np.quantile(d, (clip, 1 - clip)) for d in finite.values()])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    if truth is not None:
        low, high = min(low, truth), max(high, truth)
    pad = 0.05 * (high - low) or 1.0
    most = max(draws.size for draws in finite.values())
    edges = np.linspace(low - pad, high + pad, min(bins, max(8, int(2 * np.sqrt(most)))) + 1)
    grid = np.linspace(edges[0], edges[-1], 400)
    width, centre = np.diff(edges), 0.5 * (edges[1:] + edges[:-1])
    entries: dict[str, Any] = {}
    for number, (label, draws) in enumerate(finite.items()):
        colour, line = COLOURS[number % 6], LINES[number % 6]
        density = np.histogram(draws, edges)[0] / (draws.size * width)
        shape = ax.stairs(density, edges, fill=not number, color=colour, alpha=0.6 if number else 0.3, linewidth=1.2,
                          linestyle=line)
        if not number:
            error = np.sqrt(density * (1 - density * width) / (draws.size * width))
            seen = density > 0
            ax.errorbar(centre[seen], density[seen], error[seen], fmt="none", ecolor=colour, elinewidth=0.9, alpha=0.8)
        mean, sd = np.mean(draws), SD(draws)
        handle: Any = shape
        entry = _count(label, draws.size, series[label].size - draws.size)
        if sd > 0:
            mean_error, sd_error = (float(block_jackknife(s, draws)) for s in (np.mean, SD))
            entry += f"\nGaussian fit: mean {_digits(mean, mean_error)}, sd {_digits(sd, sd_error)}"
            handle = (shape, *ax.plot(grid, stats.norm.pdf(grid, mean, sd), color=colour if number else INK,
                                      linestyle=line))
        entries[entry] = handle
    if truth is not None:
        entries[f"true value {truth:.4g}"] = ax.axvline(truth, color=COLOURS[2], linestyle=":", linewidth=2)
    ax.set_xlabel(r"output $\phi$" + _units(phi))
    ax.set_ylabel("probability density")
    ax.set_xlim(edges[0], edges[-1])
    ax.xaxis.set_major_locator(MaxNLocator(6))
    _legend(ax, title, entries, handlelength=2.5)
    return ax


def _digits(value: float, error: float) -> str:
    """A value with its standard error, to two digits of the error."""
    if not np.isfinite(error) or error <= 0:
        return f"{value:.4g}"
    places = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{places}f} ± {error:.{places}f}"


# -- along the flow -------------------------------------------------------------------------------------------
@_styled
def loss_along_flow(loss: Any, *, critical_scale: Any = None, ax: Axes | None = None) -> Axes:
    """Loss against cutoff, log–log, with Λ = 0 at the left edge and Λ_C with its interval (figure 9).

    Parameters
    ----------
    loss : DataArray (cutoff, chain, draw), or mapping of label to them
        As `Flow.loss`. Line: median over members, with 95 % error bars by a block jackknife. Band: the members' 5 % to
        95 % quantiles (first series).
    critical_scale : CriticalScale or (value, lower, upper), optional
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        x is Λ per datum; y the loss, mean over points.
    """
    ax = _axes(ax)
    series = {label: _along(array, "loss") for label, array in _by_label(loss).items()}
    place = cutoff_axis(ax, np.concatenate([c for c, _, _ in series.values()]))
    positive = all((draws > 0).all() for _, draws, _ in series.values())
    for number, (label, (cutoffs, draws, left_out)) in enumerate(series.items()):
        colour, x = COLOURS[number % 6], place(cutoffs)
        median = np.median(draws, axis=1)
        error = 1.96 * block_jackknife(partial(np.median, axis=-1), draws)
        if number == 0:
            ax.fill_between(x, *np.quantile(draws, (0.05, 0.95), axis=1), color=colour, alpha=0.18, linewidth=0,
                            label="members, 5 % to 95 %")
        ax.errorbar(x, median, _whiskers(median, error) if positive else error, **_look(number),
                    label=f"median, {_count(label, draws.shape[1], left_out)}")
    if positive:
        ax.set_yscale("log")
    _mark_critical(ax, critical_scale)
    ax.set_ylabel("loss (mean over points)")
    _legend(ax)
    return ax


@_styled
def stiff_fraction_along_flow(fraction: Any, *, critical_scale: Any = None, ax: Axes | None = None) -> Axes:
    """Share of directions that are still the posterior's at each cutoff.

    Parameters
    ----------
    fraction : DataArray (cutoff,), or mapping of label to them
        As ``Run.flow["stiff_fraction"]``: the mean over draws.
    critical_scale : CriticalScale or (value, lower, upper), optional
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        x is Λ per datum; y the stiff fraction, from 1 (the posterior) to 0 (all is returned to the prior).
    """
    ax = _axes(ax)
    series = _by_label(fraction)
    place = cutoff_axis(ax, np.concatenate([np.asarray(f["cutoff"].values, float) for f in series.values()]))
    for number, (label, one) in enumerate(series.items()):
        look = {k: v for k, v in _look(number).items() if k not in ("capsize", "elinewidth")}
        ax.plot(place(np.asarray(one["cutoff"].values, float)), one.values, label=label or None, **look)
    _mark_critical(ax, critical_scale)
    ax.set_ylim(-0.04, 1.04)
    ax.set_ylabel("stiff fraction of directions")
    if ax.get_legend_handles_labels()[1]:
        _legend(ax)
    return ax


@_styled
def effective_directions_along_flow(diagnostics: Any, *, critical_scale: Any = None, ax: Axes | None = None) -> Axes:
    """How many directions the data still determine at each cutoff of a tempered flow.

    Parameters
    ----------
    diagnostics : Dataset with ``effective_directions`` and its ``_sem``, or mapping of label to them
        `TemperedFlow.diagnostics` over (cutoff,), or `TemperedFlow.levels` over (level,), which has more scales.
    critical_scale : CriticalScale or (value, lower, upper), optional
        Such as one of `TemperedFlow.critical_scales`.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        x is Λ per datum; y is 2C, twice the heat capacity, with 95 % error bars.
    """
    ax = _axes(ax)
    series = {}
    for label, one in _by_label(diagnostics).items():
        scales = np.asarray(one["cutoff"].values, float)
        finite = np.isfinite(scales)  # Λ = ∞ has no place on the axis
        series[label] = (scales[finite], *(one[f"effective_directions{s}"].values[finite] for s in ("", "_sem")))
    place = cutoff_axis(ax, np.concatenate([scales for scales, _, _ in series.values()]))
    for number, (label, (scales, value, error)) in enumerate(series.items()):
        ax.errorbar(place(scales), value, 1.96 * error, label=label or None, **_look(number))
    _mark_critical(ax, critical_scale)
    ax.set_ylabel("directions that the data determine, 2C")
    if ax.get_legend_handles_labels()[1]:
        _legend(ax)
    return ax


@_styled
def moments_along_flow(phi: Any, *, truth: float | None = None, critical_scale: Any = None,
                       closed_form: Mapping[str, xr.Dataset] | None = None,
                       axes: Sequence[Axes] | None = None) -> Figure:
    """Mean and variance of one output along the flow (figure 11).

    Parameters
    ----------
    phi : DataArray (cutoff, chain, draw), or mapping of label to them
        φ at one point and output. Error bars: 95 %, by a block jackknife.
    truth : float, optional
        The true value, in the panel of the mean.
    critical_scale : CriticalScale or (value, lower, upper), optional
    closed_form : mapping of label to Dataset, optional
        From `closed_form_flow` at one point and output, drawn over the rest as lines with their 95 % bands; φ
        itself is then points alone.
    axes : two matplotlib Axes, optional

    Returns
    -------
    matplotlib Figure
        Left the mean, in units of φ, on a scale that is linear near 0 and logarithmic beyond; right the variance.
    """
    if axes is None:
        figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    left, right = axes
    series = {label: _along(array, "phi") for label, array in _by_label(phi).items()}
    every = np.concatenate([c for c, _, _ in series.values()])
    place = cutoff_axis(left, every)
    cutoff_axis(right, every)
    reach, smallest = 0.0, np.inf
    for number, (label, (cutoffs, draws, left_out)) in enumerate(series.items()):
        count = draws.shape[1]
        mean, variance = MEAN(draws), VARIANCE(draws)
        mean_error, variance_error = (1.96 * block_jackknife(s, draws) for s in (MEAN, VARIANCE))
        look: dict[str, Any] = _look(number)
        look["label"] = _count(label, count, left_out)
        if closed_form:
            look["linestyle"] = "none"
        x = place(cutoffs)
        left.errorbar(x, mean, mean_error, **look)
        right.errorbar(x, variance, _whiskers(variance, variance_error), **look)
        reach, smallest = max(reach, np.abs(mean).max()), min(smallest, np.abs(mean[0]))
    for number, (label, law) in enumerate((closed_form or {}).items(), len(series)):
        number += number > 1  # the third colour is the true value's
        look = {"color": COLOURS[number % 6], "linestyle": LINES[number % 6], "label": label}
        x, mean = place(law["cutoff"].values), law["mean"].values.ravel()
        for ax, name in ((left, "mean"), (right, "covariance")):
            value, error = (law[part].values.ravel() for part in (name, f"{name}_sem"))
            ax.plot(x, value, **look)
            if np.isfinite(error).all():
                low, high = _whiskers(value, 1.96 * error) if name == "covariance" else (1.96 * error, 1.96 * error)
                ax.fill_between(x, value - low, value + high, color=look["color"], alpha=0.15, linewidth=0)
        reach, smallest = max(reach, np.abs(mean).max()), min(smallest, np.abs(mean[0]))
    if reach > 30 * max(smallest, 1e-12):
        left.set_yscale("symlog", linthresh=10 ** np.ceil(np.log10(max(2 * smallest, reach * 1e-4))))
    if any((np.asarray(line.get_ydata()) > 0).any() for line in right.lines):  # draws that all agree have no variance
        right.set_yscale("log")
        right.yaxis.set_minor_locator(LogLocator(subs="auto"))
    if truth is not None:
        left.axhline(truth, color=COLOURS[2], linestyle=":", linewidth=2, label=f"true value {truth:.4g}")
    for ax in (left, right):
        _mark_critical(ax, critical_scale, label=ax is right)
    left.set_ylabel(r"mean of $\phi$" + _units(phi))
    right.set_ylabel(r"variance of $\phi$" + (_units(phi) and f"{_units(phi)[:-1]}, squared)"))
    _legend(left)
    _legend(right)
    return _figure(left)


@_styled
def flow_distributions(phi: Any, *, critical_scale: Any = None, cutoffs: Sequence[float] | None = None,
                       truth: float | None = None, axes: Sequence[Axes] | None = None) -> Figure:
    """Distributions of one output on either side of the critical scale (figure 10).

    Parameters
    ----------
    phi : DataArray (cutoff, chain, draw), or mapping of label to them
        φ at one point and output.
    critical_scale : CriticalScale or (value, lower, upper), optional
        Says which cutoffs to show: Λ = 0 and the last below Λ_C, the first above and the last of all.
    cutoffs : sequence of float, optional
        The cutoffs to show instead; the nearest there are taken.
    truth : float, optional
    axes : matplotlib Axes, optional
        One a panel.

    Returns
    -------
    matplotlib Figure
    """
    series = _by_label(phi)
    first = next(iter(series.values()))
    values = np.asarray(first["cutoff"].values, float)
    value = critical_scale if critical_scale is None or isinstance(critical_scale, Sequence) else (
        critical_scale.value, critical_scale.lower, critical_scale.upper)
    critical = None if value is None or value[0] is None or not np.isfinite(value[0]) else float(value[0])
    if cutoffs is None:
        chosen = _either_side(values, critical)
    else:
        chosen = sorted({int(np.abs(values - c).argmin()) for c in cutoffs})
    if axes is None:
        columns = 2 if len(chosen) > 1 else 1
        rows = -(-len(chosen) // columns)
        figure, grid = plt.subplots(rows, columns, figsize=(4.8 * columns, 3.9 * rows), layout="constrained",
                                    squeeze=False)
        axes = list(grid.ravel())
        for spare in axes[len(chosen):]:
            spare.remove()
    for ax, index in zip(axes, chosen, strict=False):
        scale = values[index]
        side = "" if critical is None else (r", below $\Lambda_C$" if scale < critical else r", above $\Lambda_C$")
        distribution({label: array.isel(cutoff=index) for label, array in series.items()}, truth, ax=ax,
                     title=rf"$\Lambda$ = {_power(scale)}{side}")
    return _figure(axes[0])


def _either_side(cutoffs: np.ndarray, critical: float | None) -> list[int]:
    """Positions of four cutoffs: two below Λ_C and two above, or spread evenly where there is none."""
    order = np.argsort(cutoffs)
    if critical is None:
        return sorted({int(order[i]) for i in np.linspace(0, len(order) - 1, 4).round().astype(int)})
    below = [int(i) for i in order if cutoffs[i] < critical]
    above = [int(i) for i in order if cutoffs[i] >= critical]
    return sorted({*below[:1], *below[-1:], *above[:1], *above[-1:]})


@_styled
def flows_side_by_side(table: Any, *, axes: Sequence[Axes] | None = None) -> Figure:
    """Held-out loss of several flows against the cutoff, and against the share of directions kept.

    Parameters
    ----------
    table : pandas.DataFrame
        From `diagnostics.side_by_side`.
    axes : two matplotlib Axes, optional

    Returns
    -------
    matplotlib Figure
        y is the median loss over draws relative to Λ = 0 (its level where that is not positive, or in nats).
    """
    if axes is None:
        figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    left, right = axes
    finite = table[np.isfinite(table["cutoff"])]
    place = cutoff_axis(left, finite["cutoff"].to_numpy(float))
    positive = bool((table["loss"] > 0).all() and table["loss_ratio"].notna().all())
    column = "loss_ratio" if positive else "loss"
    for number, (name, rows) in enumerate(finite.groupby("flow", sort=False)):
        look = {k: v for k, v in _look(number).items() if k not in ("capsize", "elinewidth")}
        left.plot(place(rows["cutoff"].to_numpy(float)), rows[column], label=str(name), **look)
        some = rows[rows["kept"] > 0]
        right.plot(some["kept"], some[column], label=str(name), **look)
    right.set_xscale("log")
    right.set_xlabel("share of directions kept")
    for ax in (left, right):
        if positive:
            ax.set_yscale("log")
        ax.set_ylabel("median loss" + (r" over that at $\Lambda$ = 0" if positive else ""))
        _legend(ax)
    return _figure(left)
