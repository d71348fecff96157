"""Standard errors by block jackknife."""

from functools import partial

import numpy as np
import pytest
from scipy.signal import lfilter

from bayes_brg.core.jackknife import block_jackknife

MEAN, MEDIAN = partial(np.mean, axis=-1), partial(np.median, axis=-1)


def test_delete_one_of_the_mean_is_the_textbook_error():
    draws = np.random.default_rng(0).normal(size=(3, 20))
    np.testing.assert_allclose(block_jackknife(MEAN, draws), draws.std(1, ddof=1) / np.sqrt(20))


@pytest.mark.parametrize(("rho", "statistic", "error"), [
    (0.0, MEAN, np.sqrt(1 / 2000)),
    (0.0, MEDIAN, np.sqrt(np.pi / 2 / 2000)),
    (0.6, MEAN, np.sqrt((1 + 0.6) / (1 - 0.6) / 2000)),  # an AR(1) chain
])
def test_errors_of_independent_and_of_correlated_draws(rho, statistic, error):
    """Over 500 series the root mean square error has a standard error of 1/sqrt(2 * 24 * 500) = .65 % (the median's
    about twice that); 5 % also covers what blocks of 80 miss of the correlation (2 %). Fails by chance below 1e-4."""
    noise = np.random.default_rng(1).normal(size=(500, 2300)) * np.sqrt(1 - rho**2)
    draws = lfilter([1.0], [1.0, -rho], noise)[:, 300:]
    found = np.sqrt(np.mean(block_jackknife(statistic, draws) ** 2))
    assert found == pytest.approx(error, rel=0.05)


def test_too_few_draws():
    assert np.isnan(block_jackknife(MEAN, np.ones((2, 1)))).all()
    assert block_jackknife(MEAN, np.ones((2, 2))).shape == (2,)
