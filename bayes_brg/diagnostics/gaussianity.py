"""Is an output Gaussian over draws? A goodness of fit with its p-value, and the cumulants that say how it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from ..core.checks import check_count
from ..field.correlators import cumulants
from .distances import generator, read, thinned

__all__ = ["Gaussianity", "gaussianity"]


@dataclass(frozen=True)
class Gaussianity:
    """Whether draws of one output differ from a Gaussian; made by `gaussianity`.

    Attributes
    ----------
    p_value : float
        Of the Anderson–Darling test against a Gaussian of unknown mean and variance, by simulation.
    skewness, kurtosis : float
        κ3/κ2^{3/2} and κ4/κ2² (the excess kurtosis), with standard errors under ``_sem``.
    num_draws : int
        Nearly independent draws that the test rests on.
    alpha : float
        Below this p-value the verdict is "not Gaussian".
    reference : float or None
        An excess kurtosis to compare with, such as the exact one of a finite network.
    """

    p_value: float
    skewness: float
    skewness_sem: float
    kurtosis: float
    kurtosis_sem: float
    num_draws: int
    alpha: float
    reference: float | None = None

    def __bool__(self) -> bool:
        """Whether no departure is seen."""
        return self.p_value >= self.alpha

    @property
    def deviation(self) -> float:
        """Excess kurtosis less the reference, in standard errors; NaN without one."""
        return np.nan if self.reference is None else (self.kurtosis - self.reference) / self.kurtosis_sem

    @property
    def verdict(self) -> str:
        """In words, computed from the numbers."""
        said = "no departure from a Gaussian is seen" if self else "not Gaussian"
        said += (f" (Anderson–Darling p = {self.p_value:.3g}, {self.num_draws} draws; skewness {self.skewness:.2f} ± "
                 f"{self.skewness_sem:.2f}, excess kurtosis {self.kurtosis:.2f} ± {self.kurtosis_sem:.2f})")
        if self.reference is not None:
            away = abs(self.deviation)
            said += (f"; the excess kurtosis is {away:.1f} standard errors from {self.reference:.4g}, "
                     f"{'in agreement' if away < 3 else 'in disagreement'} with it")
        return said

    def __str__(self) -> str:
        return self.verdict


def gaussianity(phi: Any, *, reference: float | None = None, alpha: float = 0.01, key: Any = None,
                num_simulations: int = 999) -> Gaussianity:
    """Test whether one output is Gaussian over draws.

    Parameters
    ----------
    phi : array (sample,) or (sample, 1), array (chain, draw, 1, 1), or DataArray
        Draws of one output at one point and cutoff, in any units. Chains that are correlated are thinned for the test.
    reference : float, optional
        An excess kurtosis κ4/κ2² that is expected, such as ``theory.deep_kappa4`` gives.
    alpha : float
        p-value below which the verdict is "not Gaussian".
    key : jax.random.key, optional
        Of the simulations; left out, a fixed one.
    num_simulations : int
        p is at least 1/(num_simulations + 1).

    Returns
    -------
    Gaussianity

    Raises
    ------
    ValueError
        For several outputs, fewer than eight draws, or draws that are all the same.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    count = check_count(num_simulations, "num_simulations", 19)
    phi = np.asarray(phi)[:, None] if np.ndim(phi) == 1 and not hasattr(phi, "dims") else phi
    draws = read(phi, "phi", 4)
    if draws.values.shape[-1] != 1:
        raise ValueError(f"phi has {draws.values.shape[-1]} mesh points (points times outputs); take one of them")
    values = thinned(draws)[:, 0]
    if len(values) < 8:
        raise ValueError(f"{len(values)} nearly independent draws are left of {draws.num_samples}; eight are needed")
    if values.min() == values.max():
        raise ValueError(f"phi is {values[0]:g} in all draws; there is no distribution to test")
    # In units of the spread about the mean: the test does not see them, and no square leaves float64.
    standard = (values - values.mean()) / values.std()
    fit = stats.goodness_of_fit(stats.norm, standard, statistic="ad", n_mc_samples=count, rng=generator(key))
    k = cumulants(phi)
    k = k[0] if k.mean.ndim > 1 else k

    def shape(k: Any) -> dict[str, Any]:
        variance = k.k2[..., 0, 0]
        return {"skewness": k.k3[..., 0, 0, 0] / variance**1.5, "kurtosis": k.k4[..., 0, 0, 0, 0] / variance**2}

    value, sem, _ = k.jackknife(shape)
    skewness, kurtosis = ((float(value[n]), float(sem[n])) for n in ("skewness", "kurtosis"))
    return Gaussianity(float(fit.pvalue), *skewness, *kurtosis, len(values), alpha, reference)
