"""Judging posteriors by what they say: convergence in function space, scores, calibration, distances between laws.

Everything here looks at φ_θ(x), the network's output, or at predictions made from it. Weights of a network that can be
permuted or rescaled without changing the output have no convergence of their own that matters.
"""

from .better import Better, correlated_t, signed_rank
from .calibration import SBC, sbc
from .compare import Comparison, compare
from .convergence import Convergence, convergence
from .distances import Distance, KolmogorovSmirnov, adjust, energy_distance, gaussian_wasserstein, kolmogorov_smirnov
from .learning import learning_vs_flow
from .scores import Scores, loo, scores
from .side_by_side import side_by_side
from .stacking import Stacking, stacking

__all__ = [
    "Better",
    "Comparison",
    "Convergence",
    "Distance",
    "KolmogorovSmirnov",
    "SBC",
    "Scores",
    "Stacking",
    "adjust",
    "compare",
    "convergence",
    "correlated_t",
    "energy_distance",
    "gaussian_wasserstein",
    "kolmogorov_smirnov",
    "learning_vs_flow",
    "loo",
    "sbc",
    "scores",
    "side_by_side",
    "signed_rank",
    "stacking",
]
