"""A linear Gaussian model with its likelihood to a power, in closed form (theory §9)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..core.arrays import check_floats

__all__ = ["TemperedLinear", "tempered_linear"]


class TemperedLinear(NamedTuple):
    """What `tempered_linear` gives, each (power,)."""

    log_evidence: np.ndarray
    """log ∫ π₀ L^t, nats."""
    mean_log_likelihood: np.ndarray
    """E_t[log L], nats."""
    heat_capacity: np.ndarray
    """C = t² Var_t(log L); 2C counts the directions that the data determine."""


def tempered_linear(power: Any, stiffness: Any, estimate: Any, num_data: float, peak: float = 0.0) -> TemperedLinear:
    """Thermodynamics of π₀ L^t for L = exp(peak − ½ n Σ_k λ̃_k (u_k − û_k)²) and u_k ~ N(0, 1).

    Parameters
    ----------
    power : float or array (power,)
        t ≥ 0; along a flow t = min(1, 1/(nΛ)).
    stiffness : array (mode,)
        Whitened stiffness λ̃_k per datum: eigenvalues of P₀^{-1/2} I P₀^{-1/2}.
    estimate : array (mode,)
        û_k: the least-squares estimate in the eigenbasis, in prior standard deviations from the prior mean.
    num_data : float
        n.
    peak : float
        Log-likelihood at the estimate; 0 leaves it out.

    Returns
    -------
    TemperedLinear
        With a_k = n t λ̃_k: log Z = t · peak − ½ Σ [log(1 + a) + a û²/(1 + a)];
        E_t[log L] = peak − ½ n Σ λ̃ [1/(1 + a) + û²/(1 + a)²]; C = Σ [½ (a/(1 + a))² + a² û²/(1 + a)³].

    Examples
    --------
    >>> float(tempered_linear(0.5, [2.0], [1.3], 10).heat_capacity[0].round(10))
    0.5401953418
    """
    t = np.atleast_1d(check_floats(power, "power"))
    lam, u = np.broadcast_arrays(*(np.atleast_1d(check_floats(v, name))
                                   for v, name in ((stiffness, "stiffness"), (estimate, "estimate"))))
    for name, value in (("power", t), ("stiffness", lam)):
        if (value < 0).any():
            raise ValueError(f"{name} must be at least 0, got {value.min():g}")
    a = num_data * t[:, None] * lam
    kept = 1 + a
    evidence = t * peak - 0.5 * np.sum(np.log(kept) + a * u**2 / kept, axis=1)
    mean = peak - 0.5 * num_data * np.sum(lam * (1 / kept + u**2 / kept**2), axis=1)
    return TemperedLinear(evidence, mean, np.sum(0.5 * (a / kept) ** 2 + a**2 * u**2 / kept**3, axis=1))
