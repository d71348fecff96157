"""Any NumPyro callable as a model with known parameters, and networks that know more of themselves."""

from .bound import BoundModel, Site, bind
from .cosnet import CosNet, UniformBall, cosnet
from .likelihoods import Likelihood, bernoulli, categorical, gaussian, poisson
from .networks import MLP, Network, mlp

__all__ = [
    "BoundModel",
    "CosNet",
    "Likelihood",
    "MLP",
    "Network",
    "Site",
    "UniformBall",
    "bernoulli",
    "bind",
    "categorical",
    "cosnet",
    "gaussian",
    "mlp",
    "poisson",
]
