"""Experiments: what a model file declares, what a run measures and keeps, and its report."""

from . import verdicts
from .data import Data
from .experiment import Experiment, load_experiment
from .report import report
from .tables import Table, load_table, table_experiment

__all__ = [
    "Data",
    "Experiment",
    "Table",
    "load_experiment",
    "load_table",
    "report",
    "table_experiment",
    "verdicts",
]
