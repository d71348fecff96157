"""What a report says of a flow that was sampled scale by scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from markupsafe import Markup

from . import html

__all__ = ["figure_of", "how_sampled"]


def figure_of(draw: Callable[..., Any], *what: Any, size: tuple[float, float] = (5.6, 4.2), **options: Any) -> Any:
    """A Figure with one axes, drawn by a function of the plots, in their style."""
    import matplotlib
    from matplotlib.figure import Figure

    from .. import plots

    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(*what, ax=figure.subplots(), **options)
    return figure


def how_sampled(diagnostics: Mapping[str, xr.Dataset]) -> Markup:
    """The sampler's own diagnostics of each method's flow, and its heat capacity where it has one; "" without any."""
    from .. import plots

    pieces = []
    for method, found in diagnostics.items():
        pieces += [html.heading(f"{method}, along the flow"), html.table(
            by_cutoff(found), f"{method}: how its flow was sampled (medians over draws)", index="Λ", tall=True)]
        if found.attrs.get("critical_scales"):
            pieces.append(html.paragraph(found.attrs["critical_scales"]))
    warm = {m: d for m, d in diagnostics.items() if "effective_directions" in d}
    if warm:
        last = next(iter(warm.values()))["effective_directions"].values
        pieces.append(html.figures(html.picture(
            figure_of(plots.effective_directions_along_flow, warm),
            f"Number of directions that the data determine against cutoff, from {last[0]:.3g} to {last[-1]:.3g}.",
            "2C(Λ), twice the heat capacity, with 95 % intervals: how many directions the data still determine.")))
    return html.join(*pieces)


def by_cutoff(diagnostics: xr.Dataset) -> pd.DataFrame:
    """One row a cutoff: what has one number there, and the median over draws of what has one a draw."""
    columns: dict[str, Any] = {"Λ": [f"{c:.4g}" for c in diagnostics["cutoff"].values]}
    for name, values in diagnostics.data_vars.items():
        if str(name).endswith("_sem") or "cutoff" not in values.dims:
            continue
        rest = [d for d in values.dims if d != "cutoff"]
        with np.errstate(all="ignore"):
            columns[str(name).replace("_", " ")] = np.asarray(values.median(rest) if rest else values, float)
    return pd.DataFrame(columns)
