"""Standard errors by block jackknife."""

from functools import partial

import numpy as np
import pytest
from scipy.signal import lfilter

from bayes_brg.core.jackknife import Jackknife, block_jackknife, jackknife

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


@pytest.mark.parametrize(("draws", "options", "left"), [
    (100, {}, [4] * 25), (10, {}, [1] * 10), (10, {"blocks": 3}, [4, 3, 3]),
])
def test_consecutive_draws_are_left_out_in_so_many_blocks(draws, options, left):
    seen = []

    def record(values):
        seen.append(values)
        return values.mean(-1)

    block_jackknife(record, np.arange(draws), **options)
    gone = [np.setdiff1d(np.arange(draws), values) for values in seen]
    assert [len(g) for g in gone] == [0, *left] and (np.concatenate(gone) == np.arange(draws)).all()


def test_too_few_draws():
    assert np.isnan(block_jackknife(MEAN, np.ones((2, 1)))).all()
    assert block_jackknife(MEAN, np.ones((2, 2))).shape == (2,)


def test_blocks_of_unequal_size_by_hand():
    """Three blocks of 2, 3 and 5 draws, of a scalar and of a matrix: the formulas of Busing et al. term by term."""
    draws, sizes = np.random.default_rng(2).normal(size=(2, 2, 10)), np.array([2, 3, 5])
    left = [np.delete(draws, np.arange(stop - size, stop), axis=-1)
            for size, stop in zip(sizes, np.cumsum(sizes), strict=True)]
    square = np.stack([d.mean(-1) ** 2 for d in (draws, *left)])
    h = (10 / sizes)[:, None, None]
    u = (h - 1) * (square[0] - square[1:])
    bias = -(u / h).sum(0)
    error = np.sqrt(((u + bias) ** 2 / (h - 1)).mean(0))
    np.testing.assert_allclose(jackknife(square, sizes), [error, bias], rtol=1e-12)
    np.testing.assert_allclose(jackknife(square[:, 0, 1], sizes), [error[0, 1], bias[0, 1]], rtol=1e-12)
    table = Jackknife({"square": square[0]})
    for part in (slice(0, 2), slice(2, 3)):  # in pieces
        table.add(10 / sizes[part], {"square": square[1:][part]})
    np.testing.assert_allclose(table.sem()["square"], error, rtol=1e-12)
    assert np.isnan(jackknife(square[:2], sizes[:1])[0]).all()
