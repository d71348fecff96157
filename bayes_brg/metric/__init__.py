"""The Fisher metric of a model: per draw or shared, diagonal or in eigenmodes."""

from .fisher import fisher
from .kinds import Kind
from .metric import Metric, spectrum_table

__all__ = [
    "Kind",
    "Metric",
    "fisher",
    "spectrum_table",
]
