"""Ways to a posterior: samplers, ensembles, approximations, and the default among them."""

from .approximations import laplace, map_estimate, svi
from .blackjax_samplers import mclmc, pathfinder, sghmc, sgld, tempered_smc
from .default import sample
from .ensemble import ensemble, readout_posterior
from .numpyro_hmc import hmc, nuts
from .split_hmc import split_hmc
from .training_advice import LearningRate, early_stopped, learning_rate

__all__ = [
    "LearningRate",
    "early_stopped",
    "ensemble",
    "hmc",
    "laplace",
    "learning_rate",
    "map_estimate",
    "mclmc",
    "nuts",
    "pathfinder",
    "readout_posterior",
    "sample",
    "sghmc",
    "sgld",
    "split_hmc",
    "svi",
    "tempered_smc",
]
