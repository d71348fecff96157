"""The cos-net's closed forms against published numbers, other quadratures and random networks."""

import math

import numpy as np
import pytest
from scipy import integrate, special

from bayes_brg import theory


def test_published_numbers():
    one = dict(mass=1.0, radius=30.0)
    for dim, constant in ((1, 0.052359877560), (2, 0.006981317008)):
        np.testing.assert_allclose(theory.cosnet_normalization(dim, 30.0), constant, atol=1e-12)
    np.testing.assert_allclose(
        theory.cosnet_covariance([0, 0.5, 1, 2], dim=1, **one),
        (0.025624588849, 0.015905967953, 0.009612716063, 0.003540547239),
        atol=1e-12,
    )
    np.testing.assert_allclose(
        theory.cosnet_propagator([0.5, 1.0], dim=2, **one), (0.149282964090, 0.066411781615), atol=1e-12
    )
    for dim, radius in ((1, 12.0), (2, 18.9736659610), (3, 22.1041889918)):
        got = theory.cosnet_radius(30.0, dim=dim, weight_var=2.5, prior_var=1.0)
        np.testing.assert_allclose(got, radius, atol=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("mass, radius", [(1.0, 30.0), (0.05, 7.0), (4.0, 2.0)])
def test_propagator_against_a_dense_trapezoid(dim, mass, radius):
    wave = {1: np.cos, 2: special.j0, 3: lambda t: np.sinc(t / np.pi)}[dim]
    measure = {1: 1 / np.pi, 2: 1 / (2 * np.pi), 3: 1 / (2 * np.pi**2)}[dim]
    p = np.linspace(0, radius, 100_001)
    r = np.array([[2.0, 0.0, 0.3], [7.5, 0.3, 20.0]])
    for place, value in zip(
        r.ravel(), theory.cosnet_propagator(r, dim=dim, mass=mass, radius=radius).ravel(), strict=True
    ):
        integrand = measure * p ** (dim - 1) * wave(p * place) / (p**2 + mass**2)
        np.testing.assert_allclose(value, integrate.simpson(integrand, x=p), rtol=1e-9, atol=1e-11)


def test_infinite_radius_limits():
    r = np.array([0.5, 1.0, 3.0])
    for dim, power, exact in (
        (1, 2, np.exp(-1.5 * r) / 3),
        (2, 1.5, special.k0(1.5 * r) / (2 * np.pi)),
        (3, 1, np.exp(-1.5 * r) / (4 * np.pi * r)),
    ):
        np.testing.assert_allclose(theory.cosnet_propagator(r, dim=dim, mass=1.5), exact, rtol=1e-14)
        far = theory.cosnet_propagator(r, dim=dim, mass=1.5, radius=4000.0)
        assert np.max(np.abs(far - exact)) < 2 * 4000.0**-power
    assert theory.cosnet_propagator(0.0, dim=1, mass=2.0) == 0.25
    assert np.isinf(theory.cosnet_propagator(0.0, dim=3, mass=2.0))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_spectrum_is_the_transform_of_the_covariance(dim):
    options = dict(dim=dim, mass=0.7, radius=5.0, weight_var=1.8)
    sphere = {1: 2.0, 2: 2 * np.pi, 3: 4 * np.pi}[dim] / (2 * np.pi) ** dim
    total, _ = integrate.quad(lambda p: sphere * p ** (dim - 1) * theory.cosnet_spectrum(p, **options), 0, 5)
    np.testing.assert_allclose(theory.cosnet_covariance(0.0, **options), total, rtol=1e-10)
    assert theory.cosnet_spectrum(5.0, **options) == 0 < theory.cosnet_spectrum(4.999, **options)
    x = np.random.default_rng(0).normal(size=(30, dim))
    matrix = theory.cosnet_covariance(np.linalg.norm(x[:, None] - x, axis=-1), **options)
    assert (matrix == matrix.T).all() and np.linalg.eigvalsh(matrix)[0] > -1e-12 * matrix[0, 0]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_covariance_and_kappa4_of_random_hidden_units(dim):
    # One million hidden units. Tolerance 4 standard errors on 11 numbers a dimension; a fresh seed would fail
    # with probability about 2e-3 over the three.
    rng, units = np.random.default_rng(dim), 1_000_000
    x = rng.normal(size=(4, dim))
    direction = rng.normal(size=(units, dim))
    b = (
        direction
        / np.linalg.norm(direction, axis=1, keepdims=True)
        * rng.uniform(size=(units, 1)) ** (1 / dim)
    )
    b *= 3.0
    phase = rng.uniform(-np.pi, np.pi, size=(units, 1))
    h = np.cos(b @ x.T + phase) / np.sqrt((b * b).sum(1, keepdims=True) + 1.2**2)
    for i in range(4):
        for j in range(i, 4):
            product = h[:, i] * h[:, j]
            exact = theory.cosnet_covariance(np.linalg.norm(x[i] - x[j]), dim=dim, mass=1.2, radius=3.0)
            assert abs(product.mean() - exact) < 4 * product.std() / math.sqrt(units)
    for points in (x, x[[0, 0, 1, 1]]):
        index = [0, 1, 2, 3] if points is x else [0, 0, 1, 1]
        quartic = h[:, index].prod(1)
        pairs = theory.cosnet_covariance(
            np.linalg.norm(points[:, None] - points, axis=-1), dim=dim, mass=1.2, radius=3.0
        )
        sampled = theory.finite_width_kappa4(quartic.mean(), pairs, width=10, weight_var=2.0)
        exact = theory.cosnet_kappa4(points, mass=1.2, radius=3.0, width=10, weight_var=2.0)
        assert abs(sampled - exact) < 4 * 3 * 0.4 * quartic.std() / math.sqrt(units)


def test_renormalised_quantities_follow_the_effective_variance():
    n, rng = 5, np.random.default_rng(0)
    mean, stiffness = rng.normal(size=n), np.arange(n, dtype=float)
    laws = theory.renormalized_readout(mean, 0.1 * np.eye(n), stiffness, [0.0, 2.0, np.inf], 1.3 / n)
    variance = theory.cosnet_effective_variance(*laws)
    np.testing.assert_allclose(
        variance, [0.5 + (mean**2).sum(), 2 * 1.3 / n + 0.3 + (mean[2:] ** 2).sum(), 1.3], rtol=1e-14
    )
    options = dict(dim=2, radius=6.0, weight_var=variance)
    np.testing.assert_allclose(
        theory.cosnet_mass(0.7, **options) / theory.cosnet_mass(2.1, **options), 1 / 3, rtol=1e-14
    )
    spectrum = theory.cosnet_spectrum(2.1, dim=2, mass=0.7, radius=6.0, weight_var=variance)
    total = theory.cosnet_mass(0.7, **options) ** 2 + theory.cosnet_mass(2.1, **options) ** 2
    np.testing.assert_allclose(spectrum * total, 1.0, rtol=1e-13)  # Σ(p)(p_Λ² + m_Λ²) = 1
    np.testing.assert_allclose(
        theory.cosnet_action_coefficient(**options) * (0.7**2 + 2.1**2), 1 / spectrum, rtol=1e-13
    )
    radius = theory.cosnet_radius(6.0, dim=2, weight_var=variance, prior_var=1.3)
    np.testing.assert_allclose(
        [theory.cosnet_normalization(2, R) for R in radius],
        theory.cosnet_normalization(2, 6.0) * variance / 1.3,
        rtol=1e-13,
    )


def test_bad_arguments_are_refused_by_name():
    good = dict(dim=1, mass=1.0, radius=30.0)
    for options, words in [
        (dict(dim=4), "dim must be one of"),
        (dict(mass=0.0), "mass must be positive, got 0"),
        (dict(radius=-1.0), "radius must be positive, got -1"),
        (dict(weight_var=-1.0), "weight_var is a variance"),
        (dict(radius=math.inf), "vanishes with C_d"),
        (dict(r=-0.5), "distances"),
        (dict(r=1e7), "oscillates too fast"),
    ]:
        with pytest.raises(ValueError, match=words):
            theory.cosnet_covariance(**dict(dict(good, r=1.0), **options))
    with pytest.raises(ValueError, match=r"\(\.\.\., 4, dim\)"):
        theory.cosnet_kappa4(np.ones((3, 2)), mass=1.0, radius=1.0, width=1)
    with pytest.raises(ValueError, match="prior_var must be positive"):
        theory.cosnet_radius(30.0, dim=1, weight_var=1.0, prior_var=0.0)
