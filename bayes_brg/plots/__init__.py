"""Figures. Each function draws on the axes it is given (or makes its own), and returns its Axes or Figure.

They take xarray objects with dims cutoff, chain, draw as `Flow.predict`, `Flow.loss` and `Run.flow` give them, or a
mapping of label to such, to show methods side by side. Draws that are not finite (or so large that their squares are
not) are left out and counted in the legend; where none is left, the function that was called says so. Colours are
Okabe and Ito's, and every series also has its own line style and marker, so that a figure reads in greyscale.
"""

from .board import board
from .diagnostics import calibration_curve, comparison, learning_against_flow, rank_uniformity
from .field import coupling_along_flow, couplings_along_flow, edgeworth_marginals
from .flow import (
    distribution,
    effective_directions_along_flow,
    flow_distributions,
    flows_side_by_side,
    loss_along_flow,
    moments_along_flow,
    stiff_fraction_along_flow,
)
from .runs import run_figures, spectrum
from .style import COLOURS, INK, LINES, MARKERS, STYLE, cutoff_axis

__all__ = [
    "COLOURS",
    "INK",
    "LINES",
    "MARKERS",
    "STYLE",
    "board",
    "calibration_curve",
    "comparison",
    "coupling_along_flow",
    "couplings_along_flow",
    "cutoff_axis",
    "distribution",
    "edgeworth_marginals",
    "effective_directions_along_flow",
    "flow_distributions",
    "flows_side_by_side",
    "learning_against_flow",
    "loss_along_flow",
    "moments_along_flow",
    "rank_uniformity",
    "run_figures",
    "spectrum",
    "stiff_fraction_along_flow",
]
