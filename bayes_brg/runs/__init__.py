"""Experiments: what a model file declares, what a run measures and keeps, and its report."""

from . import verdicts
from .board import Board, board
from .data import Data
from .default_network import table_network
from .encoding import Encoder
from .experiment import Experiment, load_experiment
from .predictive import Predictive
from .report import report
from .table_experiment import table_experiment
from .tables import Table, load_table

__all__ = [
    "Board",
    "Data",
    "Encoder",
    "Experiment",
    "Predictive",
    "Table",
    "board",
    "load_experiment",
    "load_table",
    "report",
    "table_experiment",
    "table_network",
    "verdicts",
]
