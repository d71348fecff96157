"""Figures. Each function draws on the axes it is given (or makes its own), and returns its Axes or Figure.

They take xarray objects with dims cutoff, chain, draw as `Flow.predict`, `Flow.loss` and `Run.flow` give them, or a
mapping of label to such, to show methods side by side. Draws that are not finite are left out and counted in the
legend. Colours are Okabe and Ito's, and every series also has its own line style and marker, so that a figure reads in
greyscale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy import stats

from ._errors import block_jackknife
from .correlators import cumulants
from .edgeworth import edgeworth_pdf

__all__ = [
    "COLOURS",
    "LINES",
    "MARKERS",
    "STYLE",
    "calibration_curve",
    "comparison",
    "coupling_along_flow",
    "couplings_along_flow",
    "cutoff_axis",
    "distribution",
    "edgeworth_marginals",
    "flow_distributions",
    "learning_against_flow",
    "loss_along_flow",
    "moments_along_flow",
    "rank_uniformity",
    "run_figures",
    "spectrum",
]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe–Ito, dark enough on white
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#333333"
STYLE: dict[str, Any] = {
    "figure.dpi": 110, "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "legend.fontsize": 8.5,
    "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.6,
    "lines.markersize": 4, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
    "axes.labelcolor": INK, "xtick.direction": "out", "ytick.direction": "out", "mathtext.fontset": "dejavusans",
}
CUTOFF_LABEL = r"cutoff $\Lambda$ (Fisher information per datum)"


MEAN: Callable[..., Any] = partial(np.mean, axis=-1)
VARIANCE: Callable[..., Any] = partial(np.var, axis=-1, ddof=1)
SD: Callable[..., Any] = partial(np.std, axis=-1, ddof=1)


def _styled(draw: Callable) -> Callable:
    """Draw under this module's style, and leave matplotlib's settings as they were."""
    @wraps(draw)
    def styled(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)
    return styled


def _axes(ax: Axes | None, size: tuple[float, float] = (5.6, 3.8)) -> Axes:
    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def _by_label(data: Any) -> dict[str, Any]:
    return dict(data) if isinstance(data, Mapping) and not isinstance(data, xr.Dataset) else {"": data}


def _along(array: xr.DataArray, name: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Cutoffs, draws (cutoff, draw) of the members finite at Λ's start, and how many are left out."""
    missing = {"cutoff", "chain", "draw"} - set(array.dims)
    if missing:
        raise ValueError(f"{name} needs dims cutoff, chain and draw, it lacks {', '.join(sorted(missing))}")
    extra = [d for d in array.dims if d not in ("cutoff", "chain", "draw")]
    wide = [d for d in extra if array.sizes[d] > 1]
    if wide:
        raise ValueError(f"{name} has several entries along {', '.join(map(str, wide))}; choose one, as in "
                         f"phi.isel({wide[0]}=0)")
    values = array.isel({d: 0 for d in extra}).transpose("cutoff", "chain", "draw").values.astype(float)
    values = values.reshape(values.shape[0], -1)
    good = np.isfinite(values).all(axis=0)
    return np.asarray(array["cutoff"].values, float), values[:, good], int((~good).sum())


def _whiskers(value: Any, error: Any) -> np.ndarray:
    """Error bars on a log scale, where one that reaches 0 has no end: it is cut at a tenth of the value."""
    return np.stack([np.minimum(error, 0.9 * value), error])


def _look(number: int) -> dict[str, Any]:
    """A series with error bars: colour, line, marker, of which any two series differ in all."""
    colour = COLOURS[number % 6]
    return {"color": colour, "linestyle": LINES[number % 6], "marker": MARKERS[number % 6], "capsize": 2,
            "elinewidth": 1, "markerfacecolor": "white" if number else colour}


def _count(label: str, used: int, left_out: int) -> str:
    """Name of a series: label, how many draws it shows, and how many it leaves out."""
    counts = f"{used} draws, {left_out} left out" if left_out else f"{used} draws"
    return f"{label} ({counts})" if label else counts


def _legend(ax: Axes, title: str | None = None, entries: dict[str, Any] | None = None, **options: Any) -> None:
    """A legend above the axes, where it hides no data; its title is that of the panel."""
    handles = (list(entries.values()), list(entries)) if entries else ax.get_legend_handles_labels()
    ax.legend(*handles, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, borderpad=0, labelspacing=0.3,
              title=title, alignment="left", title_fontsize=10, **options)


# -- the cutoff axis ------------------------------------------------------------------------------------------
def cutoff_axis(ax: Axes, cutoffs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Log axis in Λ with Λ = 0 at its left edge, behind a break. Returns where a cutoff is drawn."""
    positive = cutoffs[cutoffs > 0]
    if positive.size == 0:
        raise ValueError("there is no cutoff above 0 to draw a flow along")
    low, high = np.log10(positive.min()), np.log10(positive.max())
    margin = max(0.06 * (high - low), 0.15)
    zero = 10 ** (low - 2.2 * margin)
    ax.set_xscale("log")
    ax.set_xlabel(CUTOFF_LABEL)
    has_zero = bool((cutoffs == 0).any())
    ax.set_xlim(10 ** (low - (3 if has_zero else 1) * margin), 10 ** (high + margin))
    step = max(1, int(np.ceil((high - low) / 8)))
    decades = [10.0**k for k in range(int(np.ceil(low - 1e-9)), int(np.floor(high + 1e-9)) + 1, step)]
    decades = decades or [positive.min()]
    ticks = [zero, *decades] if has_zero else decades
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: "0" if has_zero and np.isclose(v, zero) else _power(v)))
    minor = [m * 10.0**k for k in range(int(np.floor(low)), int(np.ceil(high)) + 1) for m in range(1, 10)]
    ax.xaxis.set_minor_locator(FixedLocator([t for t in minor if 10**low <= t <= 10 ** (high + margin)]))
    ax.xaxis.set_minor_formatter(NullFormatter())
    if has_zero:  # two strokes across the axis: the scale is broken between 0 and the first cutoff
        for shift in (-0.12, 0.12):
            ax.plot([10 ** (low - (1.25 + shift) * margin)], [0], marker=(2, 0, -25), markersize=9, color=INK,
                    markeredgewidth=1.2, transform=ax.get_xaxis_transform(), clip_on=False, linestyle="none")
    return lambda c: np.where(np.asarray(c) > 0, c, zero)


def _power(value: float) -> str:
    if value <= 0:
        return f"{value:g}"
    exponent = np.log10(value)
    return rf"$10^{{{round(exponent)}}}$" if np.isclose(exponent, round(exponent)) else f"{value:g}"


def _mark_critical(ax: Axes, critical: Any, label: bool = True) -> None:
    """Vertical line at Λ_C with its interval shaded. Takes a CriticalScale, a (value, lower, upper) or None."""
    if critical is None:
        return
    value, lower, upper = critical if isinstance(critical, Sequence) else (
        critical.value, critical.lower, critical.upper)
    if value is None or not np.isfinite(value):
        return
    text = rf"$\Lambda_C$ = {value:.3g}"
    if lower is not None and upper is not None and np.isfinite([lower, upper]).all():
        ax.axvspan(lower, upper, color="#999999", alpha=0.3, linewidth=0)
        text += f" [{lower:.3g}, {upper:.3g}]"
    ax.axvline(value, color=INK, linestyle=(0, (4, 2)), linewidth=1.1, label=text if label else None)


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
    series = {label: np.ravel(np.asarray(draws, dtype=float)) for label, draws in _by_label(phi).items()}
    finite = {label: draws[np.isfinite(draws)] for label, draws in series.items()}
    for label, draws in finite.items():
        if draws.size < 2:
            raise ValueError(f"{label or 'phi'} has {draws.size} finite draws of {series[label].size}; a distribution "
                             "needs two")
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
    ax.set_xlabel(r"output $\phi$")
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
    right.set_yscale("log")
    right.yaxis.set_minor_locator(LogLocator(subs="auto"))
    if truth is not None:
        left.axhline(truth, color=COLOURS[2], linestyle=":", linewidth=2, label=f"true value {truth:.4g}")
    for ax in (left, right):
        _mark_critical(ax, critical_scale, label=ax is right)
    left.set_ylabel(r"mean of $\phi$")
    right.set_ylabel(r"variance of $\phi$")
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


# -- diagnostics ----------------------------------------------------------------------------------------------
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
    place = [cutoff_axis(ax, cutoffs) for ax in axes][0]
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
    middle.set_ylim(0, max(1.15 * bound, 1.1 * float(np.nanmax(largest.values))))
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


# -- the field ------------------------------------------------------------------------------------------------
FIELD_LABELS = {
    "variance": r"$\kappa_2$", "skewness": r"$\kappa_3/\kappa_2^{3/2}$", "kurtosis": r"$\kappa_4/\kappa_2^2$",
    "linear": r"$J$", "mass": r"mass-like term $\sum_j A_{ij}$", "cubic": r"$g_3$", "quartic": r"$g_4$",
    "effective_cubic": r"$g_3\,\kappa_2^{3/2}$", "effective_quartic": r"$g_4\,\kappa_2^2$",
}

FIELD_FIGURES = {"field_cumulants": ("variance", "skewness", "kurtosis"),
                 "field_couplings": ("mass", "cubic", "quartic", "effective_quartic")}


@_styled
def coupling_along_flow(couplings: Any, name: str = "kurtosis", *, point: int = 0, reference: float | None = None,
                        reference_label: str = "", critical_scale: Any = None, ax: Axes | None = None) -> Axes:
    """One cumulant or coupling of the field at one point along the flow, with error bars.

    Parameters
    ----------
    couplings : Dataset (cutoff, point), or mapping of label to them
        As `running_couplings` gives, or `Run.couplings`.
    name : str
        A variable over (cutoff, point), such as ``"kurtosis"`` (κ4/κ2²), ``"variance"``, ``"mass"``, ``"cubic"``,
        ``"quartic"`` or ``"effective_quartic"`` (g4 κ2², without unit). Error bars: 95 %, from its ``_sem``.
    point : int
        Position along ``point``.
    reference : float, optional
        A value to compare with, as a horizontal line, under `reference_label`.
    critical_scale : CriticalScale or (value, lower, upper), optional
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        y is logarithmic for the variance; elsewhere linear, or linear near 0 and logarithmic beyond where values
        differ by orders of magnitude.
    """
    ax = _axes(ax)
    series = _by_label(couplings)
    for label, table in series.items():
        if name not in table or set(table[name].dims) != {"cutoff", "point"}:
            known = [str(v) for v in table.data_vars if set(table[v].dims) == {"cutoff", "point"}]
            raise ValueError(f"{label or 'couplings'} has no {name!r} over (cutoff, point); there are "
                             f"{', '.join(v for v in known if not v.endswith('_sem'))}")
    place = cutoff_axis(ax, np.concatenate([t["cutoff"].values for t in series.values()]))
    seen = []
    for number, (label, table) in enumerate(series.items()):
        one = table.isel(point=point)
        value = one[name].values
        error = 1.96 * one[f"{name}_sem"].values if f"{name}_sem" in one else np.zeros_like(value)
        good = np.isfinite(value)
        whiskers = _whiskers(value, error) if name == "variance" else np.stack([error, error])
        ax.errorbar(place(one["cutoff"].values)[good], value[good], whiskers[:, good], label=label or None,
                    **_look(number))
        seen.append(np.abs(value[good]))
    if name == "variance":
        ax.set_yscale("log")
    else:
        ax.axhline(0, color="#999999", linewidth=0.8, zorder=0.5)
        size = np.concatenate(seen)
        size = size[size > 0]
        if size.size and size.max() > 100 * np.quantile(size, 0.1):
            ax.set_yscale("symlog", linthresh=10 ** np.ceil(np.log10(np.quantile(size, 0.1))))
    if reference is not None:
        ax.axhline(reference, color=INK, linestyle=":", linewidth=1.4, label=reference_label or None)
    _mark_critical(ax, critical_scale)
    ax.set_ylabel(FIELD_LABELS.get(name, name))
    if ax.get_legend_handles_labels()[1]:
        _legend(ax)
    return ax


@_styled
def couplings_along_flow(couplings: Any, names: Sequence[str] = ("mass", "cubic", "quartic", "effective_quartic"), *,
                         point: int = 0, critical_scale: Any = None, axes: Sequence[Axes] | None = None) -> Figure:
    """Several cumulants or couplings along the flow, one panel each; see `coupling_along_flow`.

    Parameters
    ----------
    couplings : Dataset (cutoff, point), or mapping of label to them
    names : sequence of str
        ``("variance", "skewness", "kurtosis")`` for the cumulants.
    point : int
    critical_scale : CriticalScale or (value, lower, upper), optional
    axes : matplotlib Axes, optional
        One a panel.

    Returns
    -------
    matplotlib Figure
    """
    if axes is None:
        columns = 2 if len(names) % 2 == 0 and len(names) > 2 else min(len(names), 3)
        rows = -(-len(names) // columns)
        _, grid = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.6 * rows), layout="constrained", squeeze=False)
        axes = list(grid.ravel())
    for number, (ax, name) in enumerate(zip(axes, names, strict=False)):
        coupling_along_flow(couplings, name, point=point, critical_scale=critical_scale, ax=ax)
        legend = ax.get_legend()
        if number and legend is not None:  # the series are the same in every panel
            legend.remove()
    return _figure(axes[0])


@_styled
def edgeworth_marginals(phi: Any, k: Any = None, points: Sequence[int] = (0, 1), *, weights: Any = None, bins: int = 40,
                        names: Sequence[str] | None = None) -> Figure:
    """Edgeworth marginals of a field over histograms of its draws: at each point, and of the first two points.

    Parameters
    ----------
    phi : array (sample, point), or DataArray with a dimension point
        Draws of the field at one cutoff.
    k : Cumulants, optional
        To fourth order, on the same points; measured on `phi` if left out.
    points : sequence of int
        Mesh indices, one panel each; with two or more, a last panel has the joint density of the first two.
    weights : array, optional
        Importance weights of the draws.
    bins : int
    names : sequence of str, optional
        What to call the points.

    Returns
    -------
    matplotlib Figure
        Bars: draws, with one standard error of independent draws a bin. Lines: the Gaussian of the same mean and
        variance, with the third cumulant, and with all of 1/N (39), (40); below, their ratio to the Gaussian. In the
        joint panel, contours of the last (lines) and of the Gaussian (dashed), of which they hold 20, 50, 80 and 95 %.
    """
    if isinstance(phi, xr.DataArray):
        phi = (phi.isel(output=0) if "output" in phi.dims else phi).transpose(..., "point").values
    draws = np.reshape(np.asarray(phi, dtype=float), (-1, np.shape(phi)[-1]))
    weight = np.ones(len(draws)) if weights is None else np.ravel(np.asarray(weights, dtype=float))
    weight = weight / weight.sum()
    k = cumulants(draws, order=4, weights=None if weights is None else weight) if k is None else k
    points = list(points)
    panels = len(points) + (len(points) > 1)
    titles = [str(n) for n in names] if names is not None else [f"point {p}" for p in points]
    figure = plt.figure(figsize=(4.2 * panels, 4.8), layout="constrained")
    grid = figure.add_gridspec(2, panels, height_ratios=(2.2, 1))
    for column, (p, title) in enumerate(zip(points, titles, strict=True)):
        top = figure.add_subplot(grid[0, column])
        below = figure.add_subplot(grid[1, column], sharex=top)
        _edgeworth_line(top, below, draws[:, p], weight, k.at(p), bins)
        below.set_xlabel(rf"$\phi$ at {title}")
        if column:
            top.get_legend().remove()
    if len(points) > 1:
        _edgeworth_plane(figure.add_subplot(grid[:, -1]), draws[:, points[:2]], weight, k.at(points[:2]), bins, titles)
    return figure


def _edgeworth_line(top: Axes, below: Axes, draws: np.ndarray, weight: np.ndarray, k: Any, bins: int) -> None:
    low, high = np.quantile(draws, (0.001, 0.999))
    edges = np.linspace(low, high, bins + 1)
    width, centre = np.diff(edges), 0.5 * (edges[1:] + edges[:-1])
    density = np.histogram(draws, edges, weights=weight)[0] / width
    error = np.sqrt(np.histogram(draws, edges, weights=weight**2)[0]) / width
    top.stairs(density, edges, fill=True, color=COLOURS[5], alpha=0.35, label=f"{len(draws)} draws")
    fine = np.linspace(low, high, 401)
    # The Gaussian's average over a bin, so that the ratio does not see the curvature within it.
    inside = edges[:-1, None] + width[:, None] * (np.arange(9) + 0.5) / 9
    gaussian, smooth = edgeworth_pdf(fine[:, None], k, 0), edgeworth_pdf(inside[..., None], k, 0).mean(axis=1)
    marks: dict[str, Any] = dict(fmt="none", ecolor=COLOURS[0], elinewidth=0.9, alpha=0.8)
    top.errorbar(centre, density, error, **marks)
    below.errorbar(centre, density / smooth, error / smooth, **marks)
    for number, (order, text) in enumerate(((0, "Gaussian"), (1, r"with $\kappa_3$"), (2, r"all of $1/N$"))):
        curve = edgeworth_pdf(fine[:, None], k, order)
        look: dict[str, Any] = {"color": (INK, COLOURS[2], COLOURS[1])[number], "linewidth": 1.4,
                                "linestyle": (LINES[1], LINES[2], "-")[number]}
        top.plot(fine, curve, label=text, **look)
        below.plot(fine, curve / gaussian, **look)
    top.set_ylabel("probability density")
    top.tick_params(labelbottom=False)
    top.set_xlim(low, high)
    below.set_ylabel("over Gaussian")
    reach = float(np.clip(np.quantile(np.abs(density / smooth - 1), 0.9) * 1.6, 0.1, 1.5))
    below.set_ylim(max(0, 1 - reach), 1 + reach)
    _legend(top)


def _edgeworth_plane(ax: Axes, draws: np.ndarray, weight: np.ndarray, k: Any, bins: int, titles: list[str]) -> None:
    ends = np.quantile(draws, (0.002, 0.998), axis=0)
    coarse = max(12, min(bins, int(np.sqrt(len(draws) / 12))))  # a dozen draws a bin on average
    edges = [np.linspace(ends[0, i], ends[1, i], coarse + 1) for i in (0, 1)]
    density = np.histogram2d(draws[:, 0], draws[:, 1], edges, weights=weight, density=True)[0]
    ax.pcolormesh(edges[0], edges[1], density.T, cmap="Blues", rasterized=True, vmin=0)
    grid = [np.linspace(ends[0, i], ends[1, i], 120) for i in (0, 1)]
    mesh = np.stack(np.meshgrid(*grid, indexing="ij"), axis=-1)
    gaussian, edgeworth = (edgeworth_pdf(mesh, k, order) for order in (0, 2))
    peak = 1 / (2 * np.pi * np.sqrt(np.linalg.det(k.k2)))
    levels = peak * np.array([0.05, 0.2, 0.5, 0.8])  # outside the level p of a plane Gaussian lies the mass p/peak
    ax.contour(*grid, gaussian.T, levels, colors=INK, linestyles="dashed", linewidths=0.9)
    ax.contour(*grid, edgeworth.T, levels, colors=COLOURS[1], linewidths=1.3)
    handles = [ax.plot([], [], color=INK, linestyle="--", linewidth=0.9)[0], ax.plot([], [], color=COLOURS[1])[0]]
    ax.set_xlabel(rf"$\phi$ at {titles[0]}")
    ax.set_ylabel(rf"$\phi$ at {titles[1]}")
    ax.grid(False)
    _legend(ax, entries=dict(zip(("Gaussian", r"all of $1/N$"), handles, strict=True)))


# -- a metric -------------------------------------------------------------------------------------------------
@_styled
def spectrum(metric: Any, *, ax: Axes | None = None) -> Axes:
    """Sloppiness plot: how the directions of a metric are spread over decades of stiffness.

    Parameters
    ----------
    metric : Metric
        Diagonal: stiffness of each parameter, by site. Other kinds: eigenvalues, by site for ``kind="block"``.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
        x is the share of directions at least as stiff, y is λ per datum, logarithmic. Line: median over draws; band:
        5 % to 95 % of draws. Directions of stiffness zero, or under the noise floor, are counted in the legend.
    """
    ax = _axes(ax, (5.8, 4.2))
    if metric.kind == "diagonal":
        groups = metric.stiffness
    else:
        groups = metric.eigenvalues if isinstance(metric.eigenvalues, dict) else {"eigenvalues": metric.eigenvalues}
    for number, (label, values) in enumerate(groups.items()):
        lead = int(np.prod(metric.lead)) if metric.per_draw else 1
        table = -np.sort(-np.asarray(values, float).reshape(lead, -1), axis=1)
        if metric.kind != "diagonal":
            floor = metric.noise_floor[label] if isinstance(metric.noise_floor, dict) else metric.noise_floor
            table = np.where(table > np.asarray(floor, float).reshape(lead, -1), table, 0.0)
        low, middle, high = np.quantile(table, (0.05, 0.5, 0.95), axis=0)
        share, zero = (np.arange(table.shape[1]) + 1) / table.shape[1], float(np.mean(table <= 0))
        good = middle > 0
        name = f"{label} ({table.shape[1]}" + (f"; {zero:.0%} zero)" if zero else ")")
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}
        ax.plot(share[good], middle[good], label=name, **style)
        if lead > 1:
            ax.fill_between(share[good], np.maximum(low[good], 1e-3 * middle[good].min()), high[good], alpha=0.2,
                            color=style["color"], linewidth=0)
    ax.set_yscale("log")
    ax.set_xlabel("share of directions at least as stiff")
    ax.set_ylabel(r"stiffness $\lambda\sigma_0^2$ (per datum)" if metric.whiten else r"stiffness $\lambda$ (per datum)")
    _legend(ax)
    return ax


# -- a run ----------------------------------------------------------------------------------------------------
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
    kept = {method: flow.where(~flow["diverged"]) for method, flow in run.flows.items()}
    phi = {m: f["phi"].isel(point=f.attrs["characteristic_point"], output=0) for m, f in kept.items()}
    loss = {m: f["loss"] for m, f in kept.items()}
    main = run.flow.attrs
    critical = tuple(main.get(k, np.nan) for k in ("critical_scale", "critical_scale_lower", "critical_scale_upper"))
    truth = float(run.data["truth"].values[0]) if "truth" in run.data else None
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
