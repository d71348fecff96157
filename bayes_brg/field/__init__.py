"""The output of a network as a field: cumulants, densities, the action, deformed priors."""

from .action import Action
from .correlators import block_cumulants, cumulants, log_generating_functional, moments
from .couplings import action, running_couplings
from .cumulants import Cumulants
from .deform import Deformed, ImportanceWeights, deform, importance_weights
from .edgeworth import edgeworth_logpdf, edgeworth_marginal, edgeworth_pdf, edgeworth_report
from .moments import Moments

__all__ = [
    "Action",
    "Cumulants",
    "Deformed",
    "ImportanceWeights",
    "Moments",
    "action",
    "block_cumulants",
    "cumulants",
    "deform",
    "edgeworth_logpdf",
    "edgeworth_marginal",
    "edgeworth_pdf",
    "edgeworth_report",
    "importance_weights",
    "log_generating_functional",
    "moments",
    "running_couplings",
]
