"""Which of two methods predicts better: probabilities from differences over splits of one table, and over tables."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import special

from ..core.arrays import check_floats
from ..core.checks import check_count, check_positive

__all__ = ["Better", "correlated_t", "signed_rank"]


class Better(NamedTuple):
    """Probabilities that the first of two is better, that they are equal for practical purposes, that it is worse."""

    better: float
    equal: float
    worse: float


def correlated_t(differences: Any, *, test_fraction: float, rope: float = 0.0) -> Better:
    """Bayesian correlated t-test: the mean difference of two methods on one table, from overlapping splits [1]_.

    The differences d_1 … d_n (first less second, larger better) of n splits share training rows, and so are correlated,
    by about ρ = the share of the rows that is held out [2]_. Under the prior 1/σ the mean difference has the posterior

        μ ~ t_{n−1}( d̄, (1/n + ρ/(1 − ρ)) s² ),   s² = Σ (d_i − d̄)²/(n − 1).

    Parameters
    ----------
    differences : array (n,)
        Units of the score.
    test_fraction : float
        ρ, between 0 and 1.
    rope : float
        Half width of the region of practical equality, in units of the score.

    Returns
    -------
    Better

    Raises
    ------
    ValueError
        For fewer than two differences, or a fraction that is none.

    References
    ----------
    .. [1] Corani and Benavoli, Machine Learning 100 (2015) 285, eq. (9).
    .. [2] Nadeau and Bengio, Machine Learning 52 (2003) 239.
    """
    d = check_floats(differences, "differences")
    if d.ndim != 1 or len(d) < 2:
        raise ValueError(f"differences must be (n,) of two splits at least, got shape {d.shape}")
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction must be in [0, 1), got {test_fraction}")
    rope = check_positive(rope, "rope", zero=True)
    n, middle = len(d), float(d.mean())
    width = float(np.sqrt((1 / n + test_fraction / (1 - test_fraction)) * d.var(ddof=1)))
    if width == 0:  # all alike
        return Better(float(middle > rope), float(abs(middle) <= rope), float(middle < -rope))
    better, worse = (float(special.stdtr(n - 1, (side * middle - rope) / width)) for side in (1, -1))
    return Better(better, max(0.0, 1 - better - worse), worse)


def signed_rank(differences: Any, *, rope: float = 0.0, strength: float = 0.5, num_samples: int = 20_000, seed: int = 0
                ) -> Better:
    """Bayesian signed-rank test: two methods over several tables, whose differences need not be Gaussian [1]_.

    The law of the difference has a Dirichlet process as its prior, of strength s around a point z_0 = 0: its posterior
    weighs z_0, z_1, …, z_q (the mean difference on each of q tables) by w ~ Dirichlet(s, 1, …, 1). Then

        θ_better = Σ_ij w_i w_j 1[z_i + z_j > 2r],   θ_worse = Σ_ij w_i w_j 1[z_i + z_j < −2r],   θ_equal the rest

    (r: the region of practical equality), and each answer's probability is that of its θ being the largest of the
    three; it is estimated from draws of w, ties shared.

    Parameters
    ----------
    differences : array (q,)
        Of each table, first less second, larger better; comparable from table to table.
    rope : float
        r.
    strength : float
        s, which counts as so many tables without a difference.
    num_samples : int
        Draws of w.
    seed : int
        Of NumPy's generator.

    Returns
    -------
    Better

    Raises
    ------
    ValueError
        For no difference at all.

    References
    ----------
    .. [1] Benavoli, Mangili, Corani, Zaffalon and Ruggeri, ICML 2014, 1026; Benavoli, Corani, Demšar and Zaffalon,
       JMLR 18 (2017) 77, eqs. (10)-(12).
    """
    z = check_floats(differences, "differences")
    if z.ndim != 1 or not len(z):
        raise ValueError(f"differences must be (tables,) of one table at least, got shape {z.shape}")
    rope, strength = check_positive(rope, "rope", zero=True), check_positive(strength, "strength")
    rng = np.random.default_rng(seed)
    z = np.append(0.0, z)
    w = rng.dirichlet(np.append(strength, np.ones(len(z) - 1)), size=check_count(num_samples, "num_samples"))
    pairs = z[:, None] + z[None]
    theta = np.stack([np.einsum("ki,ij,kj->k", w, part.astype(float), w, optimize=True)
                      for part in (pairs > 2 * rope, np.abs(pairs) <= 2 * rope, pairs < -2 * rope)], axis=1)
    most = np.isclose(theta, theta.max(axis=1, keepdims=True), rtol=0, atol=1e-12)
    return Better(*(most / most.sum(axis=1, keepdims=True)).mean(axis=0).tolist())
