"""What the figures share: colours, lines, the cutoff axis, legends, error bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from ..field.draws import largest

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
    good = (np.abs(values) <= largest(2)).all(axis=0)
    if not good.any():
        at, draw = (int(i[0]) for i in np.nonzero(~(np.abs(values) <= largest(2))))
        raise ValueError(f"none of the {good.size} draws of {name} is finite, with finite squares, at every cutoff, so "
                         f"nothing can be drawn; the first is {values[at, draw]} at Λ = {float(array['cutoff'][at]):g}")
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
        return f"{value:.4g}"
    exponent = np.log10(value)
    return rf"$10^{{{round(exponent)}}}$" if np.isclose(exponent, round(exponent)) else f"{value:.4g}"


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
