"""Figure of a board: scores by table, and who is better."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .style import INK, _look, _styled

__all__ = ["board"]

NAMES = {"log_density": "log density of a held-out datum (nats)", "rmse": "root mean squared error", "crps": "CRPS",
         "accuracy": "accuracy", "brier": "Brier score"}


@_styled
def board(found: Any, score: str = "log_density") -> Figure:
    """Scores less the first method's, table by table, beside the probability that one method is better than another.

    Parameters
    ----------
    found : Board
        From `board`.
    score : str
        ``"log_density"``, ``"rmse"``, ``"crps"``, ``"accuracy"`` or ``"brier"``.

    Returns
    -------
    matplotlib Figure
        Left: mean difference over splits with two standard deviations of its posterior's width, right better (errors:
        the logarithm of their ratio). Right: by the Bayesian signed-rank test over tables, the probability that the
        row's method is better than the column's by more than counts as equal.
    """
    compared, filled = found.comparison(score), found.filled(score)
    methods = [m for m in dict.fromkeys(found.table["method"]) if m in filled]
    tables = list(dict.fromkeys(filled.index.get_level_values("table")))
    figure = Figure(figsize=(5.2 + 0.7 * len(methods), 1.8 + max(0.4 * len(tables), 0.5 * len(methods))),
                    layout="constrained")
    left, right = figure.subplots(1, 2)
    larger = score in ("log_density", "accuracy")
    first, step = methods[0], 0.6 / max(len(methods) - 1, 1)
    for number, method in enumerate(methods[1:]):
        a, b = filled[method], filled[first]
        d = (a - b if larger else np.log(b / a)).dropna().groupby(level="table", sort=False)
        rho = found.test_fraction.reindex(tables).to_numpy()
        middle, spread, count = (getattr(d, f)().reindex(tables).to_numpy() for f in ("mean", "std", "count"))
        width = 2 * np.nan_to_num(spread) * np.sqrt(1 / np.maximum(count, 1) + rho / (1 - rho))
        left.errorbar(middle, np.arange(len(tables)) + step * (number - (len(methods) - 2) / 2), xerr=width,
                      **{**_look(number), "linestyle": ""}, label=method)
    left.axvline(0, color=INK, linewidth=1, linestyle=(0, (4, 2)))
    left.set_yticks(np.arange(len(tables)), tables)
    left.set_ylim(len(tables) - 0.5, -0.5)
    left.set_xlabel(f"{NAMES[score]}\n" + ("" if larger else "log ratio: ") + f"less {first}'s; right: better")
    if len(methods) > 1:
        figure.legend(loc="outside upper left", ncols=6)
    matrix = np.full((len(methods), len(methods)), np.nan)
    for row in compared[compared["table"] == ""].itertuples():
        i, j = methods.index(row.first), methods.index(row.second)
        matrix[i, j], matrix[j, i] = row.better, row.worse
    right.imshow(matrix, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            right.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else INK)
    right.set_xticks(np.arange(len(methods)), methods, rotation=30, ha="right")
    right.set_yticks(np.arange(len(methods)), methods)
    right.grid(False)
    right.set_title(f"P(row better than column), {len(tables)} table{'s' * (len(tables) != 1)}")
    return figure
