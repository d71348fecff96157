"""The φ⁴ ring: the numbers of theory §11, a free field mode by mode, and two sites by brute force."""

import math

import numpy as np
import pytest

from bayes_brg.theory import phi4_ring


@pytest.mark.parametrize("ring, log_evidence, square, binder, correlator", [
    ((8, 1.0, 1.0, 0.5), 3.4093818908, 0.1133847896, 0.0147468895,
     [0.4218778397, 0.1544601, 0.0573057, 0.0233180, 0.0150329]),
    ((8, 2.0, -2.0, 6.0), 8.6079504535, 1.3784384347, 0.5958634376, [1.5701254494]),
    ((8, 4.0, -4.0, 12.0), 13.4632638163, 1.7676749139, 0.6513005914, []),
])
def test_the_numbers_of_the_theory(ring, log_evidence, square, binder, correlator):
    found = phi4_ring(*ring)
    np.testing.assert_allclose([found.log_evidence, found.magnetization_moments[0], found.binder],
                               [log_evidence, square, binder], atol=1e-9)
    np.testing.assert_allclose(found.correlator[:len(correlator)], correlator, atol=1e-7)


@pytest.mark.parametrize("sites, hopping, mass2", [(8, 1.3, 0.4), (5, 0.0, 2.0), (64, 3.0, 0.05), (2, 0.7, 1.0)])
def test_a_free_ring_is_a_sum_over_modes(sites, hopping, mass2):
    found = phi4_ring(sites, hopping, mass2, 0.0)
    momenta = 2 * np.pi * np.arange(sites) / sites
    inverse = mass2 + 2 * hopping * (1 - np.cos(momenta))
    np.testing.assert_allclose(found.log_evidence, 0.5 * np.sum(np.log(2 * np.pi / inverse)), rtol=1e-10)
    distances = np.arange(sites // 2 + 1)
    right = (np.cos(np.outer(distances, momenta)) / inverse).mean(axis=1)
    np.testing.assert_allclose(found.correlator, right, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.magnetization_moments, [1 / (sites * mass2), 3 / (sites * mass2) ** 2], rtol=1e-9)
    assert abs(found.binder) < 1e-9


def test_two_sites_by_brute_force():
    hopping, mass2, coupling = 0.8, -1.5, 5.0

    phi = np.linspace(-6, 6, 1501)  # the trapezium rule, exact to rounding for what vanishes at the ends
    a, b = phi[:, None], phi
    action = hopping * (a - b) ** 2 + sum(0.5 * mass2 * f**2 + coupling / 24 * f**4 for f in (a, b))
    z, second, fourth = (np.sum(((a + b) / 2) ** n * np.exp(-action)) * (phi[1] - phi[0]) ** 2 for n in (0, 2, 4))
    found = phi4_ring(2, hopping, mass2, coupling)
    np.testing.assert_allclose(found.log_evidence, math.log(z), rtol=1e-9)
    np.testing.assert_allclose(found.magnetization_moments, [second / z, fourth / z], rtol=1e-9)


@pytest.mark.parametrize("ring, message", [
    ((1, 1.0, 1.0, 0.5), "at least 2"), ((8, -1.0, 1.0, 0.5), "negative"), ((8, 1.0, -1.0, 0.0), "mass2 above 0"),
    ((8, np.nan, 1.0, 0.0), "finite"),
])
def test_a_ring_that_is_none_is_refused(ring, message):
    with pytest.raises(ValueError, match=message):
        phi4_ring(*ring)


def test_a_ring_too_narrow_for_any_grid_says_so():
    with pytest.raises(RuntimeError, match="too narrow"):
        phi4_ring(4, 1e9, 1.0, 1e-6)
