"""Figures of the field: cumulants and couplings along the flow, Edgeworth marginals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..core.arrays import check_floats
from ..field.correlators import cumulants
from ..field.draws import read_draws
from ..field.edgeworth import edgeworth_pdf
from .style import (
    COLOURS,
    INK,
    LINES,
    _axes,
    _by_label,
    _figure,
    _legend,
    _look,
    _mark_critical,
    _styled,
    _whiskers,
    cutoff_axis,
)

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
        if not good.any():
            raise ValueError(f"{name!r} of {label or 'the couplings'} at point {point} is finite at no cutoff, so "
                             "nothing can be drawn")
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
def edgeworth_marginals(phi: Any, k: Any = None, points: Sequence[int] | None = None, *, weights: Any = None,
                        bins: int = 40, names: Sequence[str] | None = None,
                        axes: Sequence[Axes] | None = None) -> Figure:
    """Edgeworth marginals of a field over histograms of its draws: at each point, and of the first two points.

    Parameters
    ----------
    phi : array (sample, point), or array (chain, draw, point, output), or DataArray
        Draws of the field at one cutoff, as for `cumulants`.
    k : Cumulants, optional
        To fourth order, on the same points; measured on `phi` if left out.
    points : sequence of int, optional
        Mesh indices, one panel each; with two or more, a last panel has the joint density of the first two. The first
        two points if left out.
    weights : array (sample,) or (chain, draw), optional
        Importance weights of the draws.
    bins : int
    names : sequence of str, optional
        What to call the points.
    axes : matplotlib Axes, optional
        Two a point, for the density and below it the ratio; with two points or more, a last one for the joint density.

    Returns
    -------
    matplotlib Figure
        Bars: draws, with one standard error of independent draws a bin. Lines: the Gaussian of the same mean and
        variance, with the third cumulant, and with all of 1/N (39), (40); below, their ratio to the Gaussian. In the
        joint panel, contours of the last (lines) and of the Gaussian (dashed), of which they hold 20, 50, 80 and 95 %.
    """
    read = read_draws(phi, order=4)
    if len(read.values) > 1:
        raise ValueError(f"phi has {len(read.values)} cutoffs; take one of them, phi.isel(cutoff=i)")
    draws = np.asarray(read.pooled(0), dtype=float)
    weight = np.ones(len(draws)) if weights is None else np.ravel(check_floats(weights, "weights"))
    if len(weight) != len(draws):
        raise ValueError(f"{len(weight)} weights for {len(draws)} draws; give one for each")
    weight = weight / weight.sum()
    k = cumulants(draws, order=4, weights=None if weights is None else weight) if k is None else k
    if k.mean.shape != draws.shape[1:]:
        raise ValueError(f"k has a mean of shape {k.mean.shape}, and phi {draws.shape[1]} points; give the cumulants "
                         "of the same points at one cutoff, k[i]")
    points = list(range(min(2, draws.shape[1]))) if points is None else list(points)
    panels = len(points) + (len(points) > 1)
    titles = [str(n) for n in names] if names is not None else [f"point {p}" for p in points]
    if axes is None:
        figure = plt.figure(figsize=(4.2 * panels, 4.8), layout="constrained")
        grid = figure.add_gridspec(2, panels, height_ratios=(2.2, 1))
        axes = []
        for column in range(len(points)):
            top = figure.add_subplot(grid[0, column])
            axes += [top, figure.add_subplot(grid[1, column], sharex=top)]
        if len(points) > 1:
            axes.append(figure.add_subplot(grid[:, -1]))
    elif len(axes) != len(points) + panels:
        raise ValueError(f"{len(points)} points need {len(points) + panels} axes, got {len(axes)}")
    for column, (p, title) in enumerate(zip(points, titles, strict=True)):
        top, below = axes[2 * column:2 * column + 2]
        _edgeworth_line(top, below, draws[:, p], weight, k.at(p), bins)
        below.set_xlabel(rf"$\phi$ at {title}")
        legend = top.get_legend()
        if column and legend is not None:  # the series are the same in every panel
            legend.remove()
    if len(points) > 1:
        _edgeworth_plane(axes[-1], draws[:, points[:2]], weight, k.at(points[:2]), bins, titles)
    return _figure(axes[0])


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
    for ax in (top, below):
        ax.set_xlim(low, high)
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
