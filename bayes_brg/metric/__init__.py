"""The Fisher metric of a model: per draw or shared, diagonal or in eigenmodes."""

from .fisher import fisher
from .metric import Metric, spectrum_table

__all__ = [
    "Metric",
    "fisher",
    "spectrum_table",
]
