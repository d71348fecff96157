"""Bayesian neural-network posteriors seen through the renormalisation group.

Networks are NumPyro models; their posteriors flow under the Bayesian renormalisation group, which returns parameters
whose Fisher information is below a cutoff Λ to the prior; each posterior on the flow is read as a field theory through
the cumulants of the network's output.
"""

from . import diagnostics, theory
from .action import Action, action, running_couplings
from .arviz_bridge import from_arviz, from_numpyro, to_arviz
from .closed_form import closed_form_differences, closed_form_flow
from .correlators import Cumulants, Moments, block_cumulants, cumulants, log_generating_functional, moments
from .deform import Deformed, ImportanceWeights, deform, importance_weights
from .diagnostics import compare
from .edgeworth import edgeworth_logpdf, edgeworth_marginal, edgeworth_pdf, edgeworth_report
from .experiment import Data, Experiment, load_experiment
from .fisher import Metric, fisher
from .flow import CriticalScale, Flow, critical_scale, cutoffs, renormalize, unlearning
from .inference.choose import sample
from .inference.ensemble import ensemble, readout_posterior
from .inference.gaussian import laplace, map_estimate, svi
from .inference.mcmc import hmc, nuts
from .inference.samplers import mclmc, pathfinder, sghmc, sgld, tempered_smc
from .inference.split import split_hmc
from .inference.training import LearningRate, early_stopped, learning_rate
from .likelihoods import Likelihood, bernoulli, categorical, gaussian, poisson
from .networks import Network, cosnet, mlp
from .posterior import Posterior, predict, prior
from .pruning import pruning_curve, removable_fraction
from .report import report
from .stepwise import StepwiseFlow, renormalize_stepwise
from .store import Run, load_run
from .tables import Table, load_table, table_experiment

__version__ = "0.1.0"

__all__ = [
    "Action",
    "CriticalScale",
    "Cumulants",
    "Data",
    "Deformed",
    "Experiment",
    "Flow",
    "ImportanceWeights",
    "LearningRate",
    "Likelihood",
    "Metric",
    "Moments",
    "Network",
    "Posterior",
    "Run",
    "StepwiseFlow",
    "Table",
    "action",
    "bernoulli",
    "block_cumulants",
    "categorical",
    "closed_form_differences",
    "closed_form_flow",
    "compare",
    "cosnet",
    "critical_scale",
    "cumulants",
    "cutoffs",
    "deform",
    "diagnostics",
    "early_stopped",
    "edgeworth_logpdf",
    "edgeworth_marginal",
    "edgeworth_pdf",
    "edgeworth_report",
    "ensemble",
    "fisher",
    "from_arviz",
    "from_numpyro",
    "gaussian",
    "hmc",
    "importance_weights",
    "laplace",
    "learning_rate",
    "load_experiment",
    "load_run",
    "load_table",
    "log_generating_functional",
    "map_estimate",
    "mclmc",
    "mlp",
    "moments",
    "nuts",
    "pathfinder",
    "poisson",
    "predict",
    "prior",
    "pruning_curve",
    "readout_posterior",
    "removable_fraction",
    "renormalize",
    "renormalize_stepwise",
    "report",
    "running_couplings",
    "sample",
    "sghmc",
    "sgld",
    "split_hmc",
    "svi",
    "table_experiment",
    "tempered_smc",
    "theory",
    "to_arviz",
    "unlearning",
]


def __getattr__(name):
    if name == "plots":  # matplotlib is imported when it is first needed
        import importlib

        return importlib.import_module(".plots", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
