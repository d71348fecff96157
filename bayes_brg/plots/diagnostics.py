"""Figures of diagnostics: learning against the flow, two flows compared, calibration, simulation-based calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from scipy import stats

from .style import (
    COLOURS,
    CUTOFF_LABEL,
    INK,
    LINES,
    MARKERS,
    _axes,
    _by_label,
    _figure,
    _legend,
    _look,
    _power,
    _styled,
    cutoff_axis,
)


def _edges(centres: np.ndarray) -> np.ndarray:
    """Edges of cells around positive centres, halfway in logarithms."""
    logs = np.log(centres)
    middle = 0.5 * (logs[1:] + logs[:-1])
    ends = (2 * logs[0] - middle[0], 2 * logs[-1] - middle[-1]) if len(logs) > 1 else (logs[0] - 1, logs[0] + 1)
    return np.exp(np.concatenate([[ends[0]], middle, [ends[1]]]))


@_styled
def learning_against_flow(found: xr.Dataset, *, time_label: str = r"time of learning $t$", ax: Axes | None = None
                          ) -> Axes:
    """Distance between each stage of learning and each scale of the flow, with the best match t*(Λ) over it.

    Parameters
    ----------
    found : xarray.Dataset
        From `diagnostics.learning_vs_flow`. Cells with a cross: the two laws are not told apart (p above 0.05).
        Line: t*(Λ) with its bootstrap interval; open markers where it is at an end of the times given, a bound.
    time_label : str
        With the units of t.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        x is Λ per datum, y is t; both logarithmic, with 0 at the edge where it is there. Colour is the distance, in
        units of φ.
    """
    ax = _axes(ax, (6.2, 4.4))
    cutoffs, times = (np.asarray(found[d].values, float) for d in ("cutoff", "time"))
    place = cutoff_axis(ax, cutoffs)
    x = place(cutoffs)
    known = times[times > 0]
    ratio = known[1] / known[0] if len(known) > 1 else 10.0
    lowest = known[0] / ratio

    def height(t: Any) -> np.ndarray:
        """Where a time is drawn: logarithmic, and from the smallest positive one down to 0 linear."""
        t = np.asarray(t, float)
        with np.errstate(divide="ignore"):
            below = np.exp(np.log(lowest) + np.clip(t / known[0], 0, 1) * np.log(ratio))
            return np.where(t >= known[0], t, below)

    values = found["distance"].transpose("time", "cutoff").values
    positive = values[values > 0]
    low = max(positive.min(), 1e-3 * positive.max()) if positive.size else 1.0
    mesh = ax.pcolormesh(_edges(x), _edges(height(times)), np.maximum(values, low), cmap="cividis", rasterized=True,
                         norm=LogNorm(low, positive.max() if positive.size else 10.0))
    bar = _figure(ax).colorbar(mesh, ax=ax, pad=0.02)
    name = {"wasserstein": "2-Wasserstein", "energy": "energy"}[found.attrs["distance"]]
    bar.set_label(rf"{name} distance of predictive laws (units of $\phi$)")
    same = found["p_value"].transpose("time", "cutoff").values > 0.05
    if same.any():
        rows, columns = np.nonzero(same)
        ax.plot(x[columns], height(times)[rows], linestyle="none", marker="x", color="white", markersize=9,
                markeredgewidth=1.4, label="not told apart (p > 0.05)")
    best, edge = found["best_time"].values, found["at_edge"].values.astype(bool)
    y = height(best)
    error = np.stack([np.maximum(y - height(found["best_time_lower"].values), 0),
                      np.maximum(height(found["best_time_upper"].values) - y, 0)])
    colour = COLOURS[1]
    ax.plot(x, y, color="white", linewidth=3.4)
    ax.errorbar(x, y, error, color=colour, linewidth=1.8, marker="o", markersize=4.5, markeredgecolor="white",
                capsize=2.5, elinewidth=1.3,
                label=rf"best match $t^*(\Lambda)$, {found.attrs['level']:.0%} interval")
    if edge.any():
        ax.plot(x[edge], y[edge], linestyle="none", marker="o", markersize=6, markerfacecolor="white",
                markeredgecolor=colour, markeredgewidth=1.4, zorder=4, label="at an end of the times given")
    ax.set_yscale("log")
    ax.grid(False)
    ax.set_xlim(*_edges(x)[[0, -1]])
    ax.set_ylim(*_edges(height(times))[[0, -1]])
    if times[0] == 0:
        ticks = [lowest, *[10.0**k for k in range(int(np.ceil(np.log10(known[0]) - 1e-9)),
                                                  int(np.floor(np.log10(known[-1]) + 1e-9)) + 1)]]
        ax.yaxis.set_major_locator(FixedLocator(ticks))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: "0" if np.isclose(v, lowest) else _power(v)))
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel(time_label)
    _legend(ax)
    # White marks would vanish on the page: the legend shows them in ink.
    legend = ax.get_legend()
    assert legend is not None
    for handle in legend.legend_handles:
        if isinstance(handle, Line2D) and handle.get_color() == "white":
            handle.set_color(INK)
    return ax


def _cutoff_axis(ax: Axes, cutoffs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """As `cutoff_axis`, and an axis of Λ = 0 alone, all that two runs may share."""
    if (cutoffs > 0).any():
        return cutoff_axis(ax, cutoffs)
    ax.set_xticks([0.0], ["0"])
    ax.set_xlim(-1, 1)
    ax.set_xlabel(CUTOFF_LABEL)
    return np.asarray


@_styled
def comparison(compared: Any, *, axes: Sequence[Axes] | None = None) -> Figure:
    """Two flows side by side: distance of their laws, differences of cumulants, predictive density.

    Parameters
    ----------
    compared : Comparison
        From `compare`.
    axes : three matplotlib Axes, optional

    Returns
    -------
    matplotlib Figure
        Left: Wasserstein distance over the root of the total variance, 95 % error bars; filled markers where the energy
        distance finds a difference. Middle: the largest difference of a cumulant over mesh points, in standard errors,
        with what equal laws would give. Right: held-out log predictive density of both, per datum, with 95 % error
        bars over data.
    """
    d = compared.dataset
    if axes is None:
        _, axes = plt.subplots(1, 3, figsize=(13.6, 4.0), layout="constrained")
    left, middle, right = axes
    cutoffs = np.asarray(d["cutoff"].values, float)
    differs = d["differs"].values.astype(bool)
    place = [_cutoff_axis(ax, cutoffs) for ax in axes][0]
    x = place(cutoffs)
    value = d["wasserstein_relative"].values
    with np.errstate(divide="ignore", invalid="ignore"):
        error = 1.96 * d["wasserstein_sem"].values * np.where(d["wasserstein"] > 0, value / d["wasserstein"], 0.0)
    left.errorbar(x, value, np.stack([np.minimum(error, value), error]), color=COLOURS[0], capsize=2, elinewidth=1)
    for seen, face, text in ((differs, COLOURS[0], "laws differ (energy distance"),
                             (~differs, "white", "no difference found (energy distance")):
        if seen.any():
            left.plot(x[seen], value[seen], linestyle="none", marker="o", markersize=6, markerfacecolor=face,
                      markeredgecolor=COLOURS[0], label=f"{text}, α = {d.attrs['alpha']:g})")
    left.set_ylim(bottom=0)
    left.set_ylabel(r"$W_2$ / root of total variance")
    names = {"mean": "mean", "k2": "variance", "k3": r"$\kappa_3$", "k4": r"$\kappa_4$"}
    largest = np.abs(d["cumulant_z"]).max("mesh")
    for number, order in enumerate(d["cumulant"].values):
        middle.plot(x, largest.sel(cumulant=order), color=COLOURS[number], linestyle=LINES[number],
                    marker=MARKERS[number], markerfacecolor="white" if number else COLOURS[0], label=names[str(order)])
    # Equal laws, Gaussian errors: the largest of all points, orders and cutoffs stays below this (at most, if the
    # entries are correlated) in 95 % of cases.
    bound = stats.norm.isf(0.025 / d["cumulant_z"].size)
    middle.axhline(bound, color=INK, linestyle=(0, (4, 2)), linewidth=1.1, label="95 % bound for equal laws")
    highest = float(largest.max().fillna(0.0))  # there is none where φ is the same in all draws
    middle.set_ylim(0, max(1.15 * bound, 1.1 * highest))
    middle.set_ylabel("largest |difference| / standard error")
    for number, flow in enumerate(d["flow"].values):
        one = d.sel(flow=flow)
        right.errorbar(x, one["log_predictive_density"], 1.96 * one["log_predictive_density_sem"], label=str(flow),
                       **_look(number))
        scale = tuple(float(one[f"critical_scale{s}"]) for s in ("", "_lower", "_upper"))
        if np.isfinite(scale[0]):
            right.axvline(scale[0], color=COLOURS[number], linestyle=(0, (4, 2)), linewidth=1.1)
            if np.isfinite(scale[1:]).all():
                right.axvspan(*scale[1:], color=COLOURS[number], alpha=0.15, linewidth=0)
    right.set_ylabel("log predictive density per datum (nats)")
    _legend(left, "distance of the predictive laws")
    _legend(middle, "cumulants", ncols=3)
    _legend(right, r"held-out data; vertical lines: critical scales $\Lambda_C$")
    return _figure(left)


@_styled
def calibration_curve(scored: Any, *, ax: Axes | None = None) -> Axes:
    """Predicted probability against what was observed: reliability for classes, coverage of quantiles for numbers.

    Parameters
    ----------
    scored : Scores, or mapping of label to them
        From `diagnostics.scores`. Error bars: 95 % Wilson intervals over data.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        A calibrated prediction lies on the diagonal.
    """
    ax = _axes(ax, (4.6, 4.4))
    series = _by_label(scored)
    ax.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 2)), label="calibrated")
    for number, (label, one) in enumerate(series.items()):
        d = one.dataset
        seen = d["calibration_count"].values > 0
        x, y = (d[f"calibration_{k}"].values[seen] for k in ("predicted", "observed"))
        error = np.stack([y - d["calibration_lower"].values[seen], d["calibration_upper"].values[seen] - y])
        text = f"{d.sizes['point']} data"
        if "calibration_error" in d:
            text += f", calibration error {float(d['calibration_error']):.3f}"
        ax.errorbar(x, y, np.maximum(error, 0), **_look(number), label=f"{label} ({text})" if label else text)
    kinds = {one.kind for one in series.values()}
    quantiles = kinds == {"pit"}
    ax.set_xlabel("predictive quantile" if quantiles else "predicted probability")
    ax.set_ylabel("fraction of data below it" if quantiles else "observed frequency")
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_aspect("equal")
    _legend(ax)
    return ax


@_styled
def rank_uniformity(checked: Any, *, ax: Axes | None = None, level: float = 0.95) -> Axes:
    """Distribution functions of simulation-based calibration's ranks, less the uniform one.

    Parameters
    ----------
    checked : SBC
        From `diagnostics.sbc`.
    ax : matplotlib Axes, optional
    level : float
        Probability that one right curve stays inside the band everywhere (Kolmogorov–Smirnov).

    Returns
    -------
    matplotlib Axes
        A curve that rises, then falls: draws too high (ranks too low). Above at the left and below at the right:
        draws too narrow.
    """
    ax = _axes(ax)
    d = checked.dataset
    count, draws = d.sizes["simulation"], d.attrs["num_draws"]
    u = np.linspace(0, 1, draws + 2)
    band = stats.kstwo.ppf(level, count)
    ax.axhspan(-band, band, color="#999999", alpha=0.25, linewidth=0, label=f"{level:.0%} band of uniform ranks")
    ax.axhline(0, color=INK, linewidth=0.8)
    for number, name in enumerate(d["quantity"].values):
        one = d.sel(quantity=name)
        steps = np.concatenate([[0], np.cumsum(np.bincount(one["rank"].values, minlength=draws + 1))]) / count
        ax.plot(u, steps - u, color=COLOURS[number % 6], linestyle=LINES[number % 6],
                label=f"{name} (p = {float(one['p_value']):.2g})")
    ax.set_xlabel(f"rank of the true value / {draws + 1}")
    ax.set_ylabel("distribution function less uniform")
    ax.set_xlim(0, 1)
    state = "passed" if checked.passed else "FAILED"
    _legend(ax, f"{state}: {count} simulations, failure rate {checked.failure_rate:g}", ncols=2)
    return ax
