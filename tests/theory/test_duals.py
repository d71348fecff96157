"""Dual activations against published numbers, brute-force grids in float64, and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_brg import theory

NAMES = ["identity", "relu", "leaky_relu", "abs", "erf", "gelu", "cos", "sin", "gaussian", "exp", "tanh"]
SMOOTH = [name for name in NAMES if name not in ("relu", "leaky_relu", "abs")]
POINTS = [(1.3, 0.6, -0.4), (0.5, 2.0, 0.9)]


def hinge(u):
    return jnp.maximum(u, 0.0)


def wiggle(u):
    return jnp.sin(u) * jnp.log1p(u * u)


def brute(f, g, a, b, c, half=8.5, points=1000):
    """E f(u) g(v) by the midpoint rule on a square grid of independent standard normals."""
    z = (np.arange(points) + 0.5) / points * 2 * half - half
    weight = np.exp(-z * z / 2)
    weight /= weight.sum()
    u = np.sqrt(a) * z
    v = c / np.sqrt(a) * z[:, None] + np.sqrt(b - c * c / a) * z
    inner = np.asarray(g(jnp.asarray(v))) @ weight
    return float(weight * np.asarray(f(jnp.asarray(u))) @ inner)


def slope_of(f):
    return lambda u: jax.jvp(f, (u,), (jnp.ones_like(u),))[1]


@pytest.mark.parametrize(
    "name, first, second",
    [
        ("relu", 0.398942280401, 0.304498890522),
        ("erf", 0.0, 0.216346895939),
        ("cos", 0.606530659713, 0.414830409931),
        ("sin", 0.0, 0.191700249782),
        ("gelu", 0.282094791774, 0.227294915022),
        ("tanh", 0.0, 0.186324413203),
    ],
)
def test_published_numbers(x64, name, first, second):
    np.testing.assert_allclose(theory.dual(name, 1.0, 1.0, 0.5), (first, first, second), atol=1e-11)


@pytest.mark.parametrize("name", [*NAMES, "polynomial", "leaky_relu(.3)"])
def test_moments_match_a_brute_force_grid(x64, name):
    extra = {"polynomial": theory.polynomial([0.3, -1, 0.5, 0.2]), "leaky_relu(.3)": theory.leaky_relu(0.3)}
    spec = extra.get(name, name)
    f = theory.activation(spec).function
    # A midpoint grid is exact to rounding for smooth f, O(h²) across a kink, O(h) across the jump of its
    # slope.
    smooth = name in SMOOTH or name == "polynomial"
    for a, b, c in POINTS:
        V1a, V1b, V2 = theory.dual(spec, a, b, c)
        tolerance = 1e-9 if smooth else 6e-5
        np.testing.assert_allclose(V2, brute(f, f, a, b, c), rtol=tolerance, atol=tolerance)
        for value, variance in ((V1a, a), (V1b, b)):
            mean = brute(f, jnp.ones_like, variance, 1.0, 0.0)
            np.testing.assert_allclose(value, mean, rtol=tolerance, atol=tolerance)
        derivative = brute(slope_of(f), slope_of(f), a, b, c)
        np.testing.assert_allclose(
            theory.dual_derivative(spec, a, b, c), derivative, rtol=1e-9 if smooth else 6e-3, atol=1e-9
        )


def test_broadcasting_and_own_shapes():
    a, b = np.array([[0.5], [1.0], [2.0]]), np.array([1.0, 3.0])
    V1a, V1b, V2 = theory.dual("relu", a, b, 0.3)
    assert V1a.shape == (3, 1) and V1b.shape == (2,) and V2.shape == (3, 2)
    np.testing.assert_allclose(V2[2, 1], theory.dual("relu", 2.0, 3.0, 0.3)[2], rtol=1e-6)


@pytest.mark.parametrize("spec", [*NAMES, wiggle, (0.0, 1.0, 0.3)],
                         ids=lambda a: getattr(a, "__name__", str(a)))
def test_gradients_are_those_of_the_values(x64, spec):
    def second(*variances):
        return theory.dual(spec, *variances)[2]

    at = (1.3, 0.6, -0.4)
    gradient = jax.grad(second, (0, 1, 2))(*at)
    step = 1e-4
    for i in range(3):
        up, down = (second(*(v + s * step * (i == k) for k, v in enumerate(at))) for s in (1, -1))
        np.testing.assert_allclose(gradient[i], (up - down) / (2 * step), rtol=1e-6, atol=1e-8)
    # Price's theorem, E f'(u) f'(v) = dV2/dc, by an independent route for callables.
    np.testing.assert_allclose(theory.dual_derivative(spec, *at), gradient[2], rtol=1e-8, atol=1e-12)


def test_kinked_callables_agree_with_closed_forms(x64):
    cases = [(1.0, 2.0, rho * 2**0.5) for rho in (0.5, -0.999, 0.999999, 0.0, 1.0, -1.0)] + [(0.0, 1.0, 0.0)]
    a, b, c = (jnp.array(column) for column in zip(*cases, strict=True))
    assert theory.activation(hinge).kinks == (0.0,)
    for ours, exact in zip(theory.dual(hinge, a, b, c), theory.dual("relu", a, b, c), strict=True):
        np.testing.assert_allclose(ours, exact, atol=1e-11)
    live = slice(0, 6)  # at a = 0 the slope of relu is not defined
    np.testing.assert_allclose(
        theory.dual_derivative(hinge, a[live], b[live], c[live]),
        theory.dual_derivative("relu", a[live], b[live], c[live]),
        atol=1e-10,
    )
    gradient = jax.grad(lambda x, y, z: theory.dual(hinge, x, y, z)[2], (0, 1, 2))
    exact = jax.grad(lambda x, y, z: theory.dual("relu", x, y, z)[2], (0, 1, 2))
    for case in ((1.0, 2.0, 0.7), (1.5, 1.5, 1.5)):
        np.testing.assert_allclose(gradient(*case), exact(*case), atol=1e-9)


@pytest.mark.parametrize(
    "f, kinks",
    [(jax.nn.relu6, (0, 6)), (jax.nn.hard_tanh, (-1, 1)), (jax.nn.elu, (0,))]
    + [(lambda u: hinge(u) ** 3, (0,)), (lambda u: hinge(u - 0.5) ** 4, (0.5,))],
)
def test_kinked_callables_match_a_brute_force_grid(x64, f, kinks):
    assert theory.activation(f).kinks == kinks
    a, b, c = 1.3, 2.5, 1.1
    # The grid's midpoint rule, not ours, is what limits: it is the better the smoother f is.
    rough = f in (jax.nn.relu6, jax.nn.hard_tanh, jax.nn.elu)
    np.testing.assert_allclose(
        theory.dual(f, a, b, c)[2], brute(f, f, a, b, c), rtol=6e-5 if rough else 1e-7
    )
    np.testing.assert_allclose(
        theory.dual_derivative(f, a, b, c), brute(slope_of(f), slope_of(f), a, b, c), rtol=6e-3
    )


def test_smooth_callables_have_no_kinks_and_need_no_splitting(x64):
    for f in (jax.nn.gelu, jax.nn.mish, jax.nn.softplus, lambda u: jnp.tanh(20 * u), lambda u: jnp.exp(-u * u)):
        assert theory.activation(f).kinks == ()
    ours = theory.dual(lambda u: jnp.exp(-u * u), 1.0, 0.5, 0.3)
    np.testing.assert_allclose(ours, theory.dual("rbf", 1.0, 0.5, 0.3), atol=1e-12)
    np.testing.assert_allclose(
        theory.dual(wiggle, *POINTS[0])[2], brute(wiggle, wiggle, *POINTS[0]), rtol=1e-8
    )


def test_error_estimate_covers_the_error(x64):
    def steep(u):
        return jnp.tanh(5 * u)

    at = (4.0, 3.0, 3.2)
    fine = theory.dual(theory.activation(steep, kinks=(0.0,)), *at)[2]
    plain = theory.activation(steep, kinks=())  # Gauss-Hermite alone
    error = abs(theory.dual(plain, *at)[2] - fine)
    estimate = theory.dual_error(plain, *at)[2]
    assert 1e-7 < error < estimate < 10 * error
    assert theory.dual_error("tanh", 1.0, 1.0, 0.5)[2] < 1e-12
    assert theory.dual_error(theory.activation(steep, kinks=(0.0,)), *at)[2] < 1e-6
    assert float(theory.dual_error("relu", 1.0, 1.0, 0.5)[2]) == 0


def slope_squared(f, a):
    """E f'(u)², u ~ N(0, a), on a fine grid."""
    z = np.arange(-12, 12.0001, 0.002)
    weight = np.exp(-z * z / 2)
    return float((weight / weight.sum() * np.asarray(slope_of(f)(jnp.asarray(np.sqrt(a) * z))) ** 2).sum())


@pytest.mark.parametrize("f", [jnp.tanh, jax.nn.silu, jax.nn.softplus, jax.nn.mish], ids=lambda f: f.__name__)
def test_slopes_that_are_narrow_beside_a_large_variance(x64, f):
    a = np.array([0.5, 4.0, 17.0, 65.0, 257.0])
    exact = [slope_squared(f, value) for value in a]
    np.testing.assert_allclose(theory.dual_derivative(f, a, a, a), exact, rtol=1e-9)
    assert (np.asarray(theory.dual_derivative_error(f, a, a, a)) < 1e-7).all()
    # The series and the panels, and points that are not alike, against each other.
    other = theory.activation(f, kinks=(-12.0, -5.0, -2.0, 0.0, 2.0, 5.0, 12.0))
    at = (65.0, 20.0, -11.0)
    np.testing.assert_allclose(theory.dual_derivative(f, *at), theory.dual_derivative(other, *at), rtol=1e-8)


def test_a_quadrature_that_is_too_coarse_says_so(x64):
    plain = theory.activation(jnp.tanh, kinks=())
    with pytest.warns(UserWarning, match="estimated relative error"):
        theory.dual_derivative(plain, 65.0, 65.0, 65.0)
    with pytest.warns(UserWarning, match="ntk at the largest point has an estimated relative error"):
        theory.ntk(np.array([[4.0]]), depth=1, activation=plain, weight_var=4.0, bias_var=1.0)
    assert theory.dual_derivative_error(plain, 65.0, 65.0, 65.0) > 1e-3
    assert float(theory.dual_derivative_error("relu", 1.0, 1.0, 0.5)) == 0


@pytest.mark.parametrize("f, place", [
    (hinge, 0.0), (lambda u: hinge(u - 0.6), 0.6), (lambda u: jnp.tanh(20 * u), 0.0), (lambda u: hinge(u) ** 2, 0.0),
])
def test_error_estimate_covers_gauss_hermite_that_has_not_converged(x64, f, place):
    a, b, c = np.array([[1.0, 1.0, 0.5], [2.0, 2.0, 2.0], [3.0, 2.0, -1.0], [25.0, 16.0, -10.0]]).T
    near = tuple(place + step for step in (-0.3, -0.1, 0.0, 0.1, 0.3))  # panels that resolve a step of width 1/20
    smooth = theory.activation(f, kinks=())
    exact = theory.dual(theory.activation(f, kinks=near), a, b, c)
    errors = [abs(x - y) for x, y in zip(theory.dual(smooth, a, b, c), exact, strict=True)]
    assert np.max(errors[2] / exact[2]) > 1e-5
    for error, estimate in zip(errors, theory.dual_error(smooth, a, b, c), strict=True):
        assert (error < estimate + 1e-12).all() and (estimate < 20 * error + 1e-9).all()


@pytest.mark.parametrize("spec", [*NAMES, hinge, wiggle, jnp.cosh], ids=lambda a: getattr(a, "__name__", str(a)))
def test_float32_is_as_good_as_float32_allows(spec):
    a, b = np.float32([0.3, 1.0, 2.0, 1.0]), np.float32([0.3, 2.0, 0.5, 1.0])
    c = np.float32([0.3, 0.7, -0.9, 0.0])
    got = theory.dual(spec, a, b, c)
    assert all(value.dtype == jnp.float32 for value in got)
    with jax.enable_x64(True):
        exact = theory.dual(spec, *(x.astype(float) for x in (a, b, c)))
    for value, truth in zip(got, exact, strict=True):
        np.testing.assert_allclose(value, truth, rtol=2e-5, atol=2e-6)
    slope = jax.grad(lambda a, b, c: theory.dual(spec, a, b, c)[2].sum(), (0, 1, 2))(
        *map(jnp.asarray, (a, b, c))
    )
    assert all(bool(jnp.isfinite(value).all()) for value in slope)


@pytest.mark.parametrize("name", ["erf", "gelu", "gaussian"])
def test_float32_holds_at_large_variances(name):
    # Inputs of a thousand have variances of a million, beside which the 1 in (1 + a)(1 + b) − c² is nearly lost.
    a = np.float32([1e2, 1e4, 1e6, 1e8])[:, None]
    c = a * np.float32([1, 0.5, 0, -0.7])
    got = theory.dual(name, a, a, c)[2], theory.dual_derivative(name, a, a, c)
    with jax.enable_x64(True):
        a, c = a.astype(float), c.astype(float)
        exact = theory.dual(name, a, a, c)[2], theory.dual_derivative(name, a, a, c)
    for value, truth in zip(got, exact, strict=True):
        np.testing.assert_allclose(value, truth, rtol=1e-5)


def test_bad_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="unknown activation 'reluu'.*relu"):
        theory.dual("reluu", 1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="a is a variance.*-1"):
        theory.dual("relu", -1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="must not exceed"):
        theory.dual("relu", 1.0, 1.0, 1.1)
    with pytest.raises(ValueError, match="broadcast"):
        theory.dual("relu", np.ones(2), np.ones(3), 0.0)
    with pytest.raises(ValueError, match=r"b\[1\] is nan"):
        theory.dual("relu", 1.0, np.array([1.0, np.nan]), 0.0)
    with pytest.raises(ValueError, match="jumps at u"):
        theory.activation(jnp.sign)
    with pytest.raises(ValueError, match="jumps at u = 0.5: discontinuous"):
        theory.activation(lambda u: jnp.where(u > 0.5, u, 0.0), kinks=(0.0, 0.5))
    with pytest.raises(ValueError, match="kinks in"):
        theory.activation(lambda u: jnp.abs(jnp.sin(3 * u)))
    with pytest.raises(ValueError, match="elementwise"):
        theory.activation(jnp.sum)
    with pytest.raises(ValueError, match="not finite near u"):
        theory.activation(jnp.log)
    with pytest.raises(ValueError, match="already has its own rule"):
        theory.activation("relu", kinks=(0.0,))
    with pytest.raises(ValueError, match="at least 2"):
        theory.activation(jnp.cosh, nodes=1)
    with pytest.raises(ValueError, match="finite numbers"):
        theory.polynomial([1.0, np.inf])
