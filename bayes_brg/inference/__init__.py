"""Ways to a posterior: samplers, ensembles, approximations, and the default among them.

`Kernel`, `RunOptions`, `Target`, `initial`, `prepare` and `run_chains` are what a further sampler is made from.
"""

from .approximations import laplace, map_estimate, svi
from .blackjax_samplers import mclmc, pathfinder, sghmc, sgld, tempered_smc
from .chains import Kernel, RunOptions, run_chains
from .default import sample
from .ensemble import ensemble, readout_posterior
from .numpyro_hmc import hmc, nuts
from .split_hmc import split_hmc
from .target import Target, initial, prepare
from .training_advice import LearningRate, early_stopped, learning_rate

__all__ = [
    "Kernel",
    "LearningRate",
    "RunOptions",
    "Target",
    "early_stopped",
    "ensemble",
    "hmc",
    "initial",
    "laplace",
    "learning_rate",
    "map_estimate",
    "mclmc",
    "nuts",
    "pathfinder",
    "prepare",
    "readout_posterior",
    "run_chains",
    "sample",
    "sghmc",
    "sgld",
    "split_hmc",
    "svi",
    "tempered_smc",
]
