"""Which of two is better: against quadrature, and against simulated truth."""

import numpy as np
import pytest
from scipy import integrate, stats

from bayes_brg.diagnostics import correlated_t, signed_rank


def test_correlated_t_is_the_posterior_of_the_mean():
    """Against the posterior of (μ, σ) by quadrature: n differences of a Gaussian with all correlations ρ, prior 1/σ."""
    d, rho = np.array([0.3, 0.1, 0.5, -0.2, 0.25]), 0.2
    n = len(d)
    inverse = np.linalg.inv((1 - rho) * np.eye(n) + rho)
    mu = np.linspace(-8, 8, 8001)
    r = d[:, None] - mu
    quadratic = np.einsum("im,ij,jm->m", r, inverse, r)
    density = quadratic ** (-n / 2)  # ∫ σ^{-n-1} exp(−q/2σ²) dσ
    density /= integrate.trapezoid(density, mu)
    found = correlated_t(d, test_fraction=rho, rope=0.05)
    for value, region in ((found.better, mu > 0.05), (found.equal, np.abs(mu) <= 0.05), (found.worse, mu < -0.05)):
        assert value == pytest.approx(integrate.trapezoid(np.where(region, density, 0), mu), abs=2e-3)
    assert sum(found) == pytest.approx(1)
    assert correlated_t([0.2, 0.2], test_fraction=0.1) == (1, 0, 0)


def test_correlated_t_is_calibrated_on_simulated_splits():
    """Of the cases it calls P(better) in a bin, so many have a true mean above 0: mean of the prior known, n = 10.

    With μ drawn from a wide prior the posterior probability is the frequency; binomial errors, 4 of them (5 bins).
    """
    rng, rho, n, cases = np.random.default_rng(0), 0.1, 10, 4000
    mu = rng.uniform(-1.5, 1.5, cases)
    common, own = rng.normal(size=(cases, 1)), rng.normal(size=(cases, n))
    d = mu[:, None] + np.sqrt(rho) * common + np.sqrt(1 - rho) * own
    p = np.array([correlated_t(row, test_fraction=rho).better for row in d])
    for low, high in ((0, 0.1), (0.1, 0.4), (0.4, 0.6), (0.6, 0.9), (0.9, 1)):
        inside = (p >= low) & (p < high + (high == 1))
        expected, error = p[inside].mean(), np.sqrt((p[inside] * (1 - p[inside])).sum()) / inside.sum()
        assert abs((mu[inside] > 0).mean() - expected) < 4 * error, (low, high)


def test_signed_rank_on_few_tables_by_hand():
    """Two tables, all in favour: θ_better = 1 − w_0², worse 0, equal w_0²; w_0 ~ Beta(s, q)."""
    s, q = 0.5, 2
    share = stats.beta(s, q)
    exact = share.cdf(np.sqrt(0.5))
    found = signed_rank([1.0, 2.0], rope=0.01, strength=s, num_samples=40_000)
    assert found.better == pytest.approx(exact, abs=5 * np.sqrt(exact * (1 - exact) / 40_000))
    assert found.worse == 0 and sum(found) == pytest.approx(1)
    other = signed_rank([-1.0, -2.0], rope=0.01, strength=s, num_samples=40_000)
    assert (other.worse, other.better) == (pytest.approx(found.better), 0)
    assert signed_rank([0.0], rope=0.1).equal == 1


def test_signed_rank_finds_what_is_there():
    """Over simulated worlds: a clear winner is called, equals are not, and the sign of a doubtful one is right."""
    rng = np.random.default_rng(1)
    clear = [signed_rank(rng.normal(1, 0.7, 12), rope=0.05, num_samples=2000).better for _ in range(40)]
    none = [signed_rank(rng.normal(0, 0.01, 12), rope=0.05, num_samples=2000).equal for _ in range(10)]
    assert np.mean(np.array(clear) > 0.95) > 0.9 and np.min(none) > 0.99
    balanced = np.array([signed_rank(rng.normal(0, 1, 12), num_samples=2000).better for _ in range(200)])
    # without a rope and at the truth 0, P(better) is uniform but for its steps
    assert abs(balanced.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 200)
    assert 0.02 < np.mean(balanced > 0.9) < 0.25


def test_bad_differences_are_refused():
    with pytest.raises(ValueError, match="two splits at least"):
        correlated_t([1.0], test_fraction=0.1)
    with pytest.raises(ValueError, match="test_fraction must be"):
        correlated_t([1.0, 2.0], test_fraction=1.0)
    with pytest.raises(ValueError, match="rope must be"):
        signed_rank([1.0], rope=-1)


@pytest.mark.parametrize(("difference", "rope", "expected"), [
    (0.0, 0.0, (0, 1, 0)), (0.5, 0.5, (0, 1, 0)), (0.5, 0.25, (1, 0, 0)), (-0.5, 0.25, (0, 0, 1)),
])
def test_differences_that_are_all_alike(difference, rope, expected):
    """No spread: a mean on the edge of the region of equality is equal, one beyond it is surely not."""
    assert correlated_t([difference] * 4, test_fraction=0.1, rope=rope) == expected
