"""Closed forms: networks at infinite width, their renormalisation, the cos-net, gradient descent in time.

Independent of the rest of the package, so that it can check it. ``dual``, ``nngp`` and ``ntk`` are JAX
functions; the others are NumPy float64 on the host.
"""

from .cosnet import (
    cosnet_action_coefficient,
    cosnet_covariance,
    cosnet_effective_variance,
    cosnet_kappa4,
    cosnet_mass,
    cosnet_normalization,
    cosnet_propagator,
    cosnet_radius,
    cosnet_spectrum,
)
from .descent import descent, descent_time
from .duals import (
    Activation,
    activation,
    dual,
    dual_derivative,
    dual_derivative_error,
    dual_error,
    leaky_relu,
    polynomial,
)
from .infinite_width import (
    RenormalizedGP,
    finite_width_kappa4,
    gp_posterior,
    predictive_gp,
    readout_moments,
    renormalized_gp,
    renormalized_readout,
)
from .kernels import feature_moments, nngp, ntk
from .phi4 import Phi4Ring, phi4_ring
from .tempered import TemperedLinear, tempered_linear

__all__ = [
    "Activation",
    "activation",
    "cosnet_action_coefficient",
    "cosnet_covariance",
    "cosnet_effective_variance",
    "cosnet_kappa4",
    "cosnet_mass",
    "cosnet_normalization",
    "cosnet_propagator",
    "cosnet_radius",
    "cosnet_spectrum",
    "descent",
    "descent_time",
    "dual",
    "dual_derivative",
    "dual_derivative_error",
    "dual_error",
    "feature_moments",
    "finite_width_kappa4",
    "gp_posterior",
    "leaky_relu",
    "nngp",
    "ntk",
    "Phi4Ring",
    "phi4_ring",
    "polynomial",
    "predictive_gp",
    "readout_moments",
    "renormalized_gp",
    "renormalized_readout",
    "RenormalizedGP",
    "TemperedLinear",
    "tempered_linear",
]
