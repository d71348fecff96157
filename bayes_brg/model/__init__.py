"""Any NumPyro callable as a model with known parameters, and networks that know more of themselves."""

from .bound import BoundModel, Site, bind
from .cosnet import CosNet, UniformBall, cosnet
from .likelihoods import Likelihood, bernoulli, categorical, gaussian, poisson
from .networks import MLP, Network, mlp
from .noise import beta, heteroscedastic, multivariate_gaussian, negative_binomial, ordinal, student_t

__all__ = [
    "BoundModel",
    "CosNet",
    "Likelihood",
    "MLP",
    "Network",
    "Site",
    "UniformBall",
    "bernoulli",
    "beta",
    "bind",
    "categorical",
    "cosnet",
    "gaussian",
    "heteroscedastic",
    "mlp",
    "multivariate_gaussian",
    "negative_binomial",
    "ordinal",
    "poisson",
    "student_t",
]
