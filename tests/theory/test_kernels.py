"""NNGP and NTK against published numbers, and against wide random networks written out plainly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_brg import theory

POINTS = np.array([[0.3, -0.4, 0.9], [1.0, 0.5, -0.3], [-0.2, 0.8, 1.1]])
SETTINGS = dict(weight_var=1.96, bias_var=0.09)


def test_published_numbers(x64):
    x, other = POINTS[:1], POINTS[1:2]
    for depth, nngp, ntk in ((1, 0.3508986457, 0.3407352697), (3, 0.7413994245, 1.2735046919)):
        np.testing.assert_allclose(
            theory.nngp(x, other, depth=depth, activation="relu", **SETTINGS), [[nngp]], atol=1e-9
        )
        np.testing.assert_allclose(
            theory.ntk(x, other, depth=depth, activation="relu", **SETTINGS), [[ntk]], atol=1e-9
        )
    pair = np.array([[1, 0.5, -0.3], [-0.2, 0.8, 1.1]])
    for kernel in (theory.nngp, theory.ntk):  # a linear model: K¹ = Θ¹
        first = kernel(pair, depth=0, activation="relu", weight_var=1.5, bias_var=0.1)
        np.testing.assert_allclose(first, [[0.77, 0.035], [0.035, 1.045]], atol=1e-15)
    for name, numbers in (
        ("relu", (0.608125, 0.7628125, 0.4243163322)),
        ("erf", (0.7036201754, 0.7363300931, 0.1936564084)),
        ("identity", (0.77 * 2.25 + 0.25, 1.045 * 2.25 + 0.25, 0.035 * 2.25 + 0.25)),
    ):
        kernel = theory.nngp(pair, depth=2, activation=name, weight_var=1.5, bias_var=0.1)
        np.testing.assert_allclose((kernel[0, 0], kernel[1, 1], kernel[0, 1]), numbers, atol=1e-9)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_nngp_is_the_covariance_of_wide_random_networks(name):
    # 60 networks of width 512. Tolerance: 4 standard errors over networks, and 5/width relative for the
    # finite width; a fresh seed would fail with probability under 1e-3 (6 entries).
    width, nets = 512, 60
    rng = np.random.default_rng(3)
    f = {"relu": lambda u: np.maximum(u, 0), "tanh": np.tanh, "gelu": theory.activation("gelu").function}[
        name
    ]
    estimates = []
    for _ in range(nets):
        h = POINTS
        for _ in range(2):
            w = rng.normal(size=(h.shape[1], width)) * np.sqrt(1.96 / h.shape[1])
            h = np.asarray(f(h @ w + rng.normal(size=width) * 0.3))
        estimates.append(0.09 + 1.96 * h @ h.T / width)
    mean, error = np.mean(estimates, 0), np.std(estimates, 0, ddof=1) / np.sqrt(nets)
    kernel = np.asarray(theory.nngp(POINTS, depth=2, activation=name, **SETTINGS))
    assert (np.abs(mean - kernel) < 4 * error + 5 / width * kernel).all()
    assert (error < 0.02 * np.diagonal(kernel).max()).all()


@pytest.mark.parametrize("scaling", ["ntk", "fan_in"])
@pytest.mark.parametrize("trained", ["all", "readout"])
def test_ntk_is_the_jacobian_contraction_of_wide_networks(scaling, trained):
    # 100 networks of two hidden layers of 256. Tolerance: 4 standard errors, and 5/width relative for the
    # finite width; a fresh seed would fail with probability under 1e-3 (6 entries).
    width, nets = 256, 100
    sizes = (3, width, width, 1)

    def output(params, x):
        h = x
        for layer, (w, b) in enumerate(params):
            if scaling == "ntk":
                w, b = w * np.sqrt(1.96 / w.shape[0]), 0.3 * b
            h = h @ w + b
            h = jax.nn.relu(h) if layer < 2 else h
        return h[:, 0]

    def contraction(key):
        keys = jax.random.split(key, 6)
        params = []
        for layer in range(3):
            fan_in, fan_out = sizes[layer : layer + 2]
            std = (np.sqrt(1.96 / fan_in), 0.3) if scaling == "fan_in" else (1.0, 1.0)
            w = std[0] * jax.random.normal(keys[2 * layer], (fan_in, fan_out))
            params.append((w, std[1] * jax.random.normal(keys[2 * layer + 1], (fan_out,))))
        jacobian = jax.jacrev(output)(params, jnp.asarray(POINTS, jnp.float32))
        leaves = jax.tree.leaves(jacobian if trained == "all" else jacobian[-1])
        flat = jnp.concatenate([leaf.reshape(len(POINTS), -1) for leaf in leaves], 1)
        return flat @ flat.T

    draws = np.asarray(jax.lax.map(contraction, jax.random.split(jax.random.key(0), nets)))
    mean, error = draws.mean(0), draws.std(0, ddof=1) / np.sqrt(nets)
    size = dict(width=width) if scaling == "fan_in" else {}
    kernel = theory.ntk(
        POINTS, depth=2, activation="relu", scaling=scaling, trained=trained, **size, **SETTINGS
    )
    assert (np.abs(mean - kernel) < 4 * error + 5 / width * np.diagonal(kernel).max()).all()
    assert (error < 0.03 * np.diagonal(kernel).max()).all()


def test_fan_in_ntk_of_one_hidden_layer_in_closed_form(x64):
    x = POINTS
    got = theory.ntk(x, depth=1, activation="erf", scaling="fan_in", width=50, weight_var=1.3, bias_var=0.0)
    gram = 1.3 * x @ x.T / 3
    a = np.diagonal(gram)
    V2 = theory.dual("erf", a[:, None], a, gram)[2]
    slope = theory.dual_derivative("erf", a[:, None], a, gram)
    np.testing.assert_allclose(got, 50 * V2 + 1.3 * slope * (x @ x.T) / 1.0, rtol=1e-12)


def test_scaling_none_holds_its_parameters_as_fan_in_does():
    # Weights N(0, s²) are N(0, σ_w²/fan_in) with σ_w² = s² fan_in.
    options = dict(depth=2, activation="relu", weight_var=0.01 * np.array([3, 30, 20]), bias_var=0.1, width=(30, 20))
    none, fan_in = (theory.ntk(POINTS, scaling=scaling, **options) for scaling in ("none", "fan_in"))
    np.testing.assert_array_equal(none, fan_in)


def test_readout_training_is_the_nngp():
    options = dict(depth=3, activation="gelu", **SETTINGS)
    np.testing.assert_array_equal(
        theory.ntk(POINTS, trained="readout", **options), theory.nngp(POINTS, **options)
    )


@pytest.mark.parametrize("name", ["relu", "abs", "erf", "gelu", "cos", "sin", "gaussian", "tanh", "identity"])
def test_symmetric_and_positive_semidefinite(name):
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    x[1] = x[0]
    x[2] = -x[0]
    for kernel in (theory.nngp, theory.ntk):
        matrix = np.asarray(kernel(x, depth=3, activation=name, **SETTINGS))
        assert np.isfinite(matrix).all() and (matrix == matrix.T).all()
        values = np.linalg.eigvalsh(matrix.astype(float))
        assert values[0] > -60 * np.finfo(np.float32).eps * values[-1]


def test_pairs_of_inputs_agree_with_the_kernel_of_all_and_zero_inputs_are_fine():
    x = np.concatenate([np.zeros((1, 3)), POINTS])
    whole = theory.ntk(x, depth=2, activation="relu")
    np.testing.assert_allclose(
        theory.ntk(x[:2], x, depth=2, activation="relu"), whole[:2], rtol=1e-5, atol=1e-6
    )
    assert (whole[0] == 0).all()
    gradient = jax.grad(lambda x: theory.nngp(x, depth=2, activation="relu").sum())(jnp.zeros((2, 3)))
    assert bool(jnp.isfinite(gradient).all())


@pytest.mark.parametrize(
    "name, kernel, pair",
    [("relu", theory.nngp, False), ("relu", theory.ntk, False), ("relu", theory.ntk, True)]
    + [("gelu", theory.ntk, False), ("tanh", theory.nngp, True)],
)
def test_gradients_are_finite_at_equal_inputs(name, kernel, pair):
    x = jnp.asarray(POINTS[[0, 0, 1]], jnp.float32)

    def total(first):
        return kernel(first, x if pair else None, depth=2, activation=name, bias_var=0.1).sum()

    gradient = jax.grad(total)(x)
    assert bool(jnp.isfinite(gradient).all())
    np.testing.assert_allclose(gradient[0], gradient[1], rtol=1e-3, atol=1e-4)


def test_gradient_of_the_nngp_at_equal_inputs_is_right(x64):
    def total(x):
        return theory.nngp(x, depth=2, activation="relu", bias_var=0.1).sum()

    x = POINTS[[0, 0, 1]]
    gradient = jax.grad(total)(x)
    for i in range(3):
        step = np.zeros_like(x)
        step[2, i] = 1e-5
        np.testing.assert_allclose(gradient[2, i], (total(x + step) - total(x - step)) / 2e-5, rtol=1e-6)
        step[2, i], step[:2, i] = 0, 1e-5  # both copies together: the kernel is smooth along it
        np.testing.assert_allclose(
            gradient[:2, i].sum(), (total(x + step) - total(x - step)) / 2e-5, rtol=1e-6
        )


def test_float32_keeps_the_diagonal_of_the_ntk():
    x = np.random.default_rng(1).normal(size=(50, 5))
    single = theory.ntk(x.astype(np.float32), depth=5, activation="relu", **SETTINGS)
    assert single.dtype == jnp.float32
    with jax.enable_x64(True):
        double = np.asarray(
            theory.ntk(x.astype(np.float32).astype(float), depth=5, activation="relu", **SETTINGS)
        )
    np.testing.assert_allclose(single, double, rtol=3e-5)
    np.testing.assert_allclose(np.diagonal(single), np.diagonal(double), rtol=3e-6)
    assert not jax.config.jax_enable_x64


def test_layers_may_differ_and_transformations_compose(x64):
    kernel = theory.nngp(
        POINTS, depth=2, activation=["identity", "relu"], weight_var=[1.0, 2.0, 3.0], bias_var=0.1
    )
    first = 0.1 + POINTS @ POINTS.T / 3
    second = 0.1 + 2.0 * first
    a = np.diagonal(second)
    np.testing.assert_allclose(kernel, 0.1 + 3.0 * theory.dual("relu", a[:, None], a, second)[2], rtol=1e-12)

    def trace(variance, x):
        return jnp.trace(theory.nngp(x, depth=1, activation=jnp.sin, weight_var=variance))

    batch = jnp.stack([POINTS, 2 * POINTS])
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(trace), (None, 0)))(1.5, batch)
    step = (trace(1.5001, batch[1]) - trace(1.4999, batch[1])) / 2e-4
    np.testing.assert_allclose(value[0], trace(1.5, POINTS), rtol=1e-12)
    np.testing.assert_allclose(slope[1], step, rtol=1e-6)


def test_feature_moments_are_the_last_hidden_units(x64):
    V1, V1_other, V2 = theory.feature_moments(POINTS, POINTS[:1], depth=2, activation="relu", **SETTINGS)
    inner = theory.nngp(POINTS, depth=1, activation="relu", **SETTINGS)
    np.testing.assert_allclose(V1, np.sqrt(np.diagonal(inner) / (2 * np.pi)), rtol=1e-12)
    np.testing.assert_allclose(V1_other, V1[:1], rtol=1e-12)
    outer = theory.nngp(POINTS, POINTS[:1], depth=2, activation="relu", **SETTINGS)
    np.testing.assert_allclose(0.09 + 1.96 * V2, outer, rtol=1e-12)


def test_bad_arguments_are_refused_by_name():
    def call(x1=POINTS, x2=None, kernel=theory.nngp, **options):
        return kernel(x1, x2, **dict(dict(depth=1, activation="relu"), **options))

    for options, words in [
        (dict(depth=-1), "depth .* at least 0; got -1"),
        (dict(depth=0, kernel=theory.feature_moments), "depth .* at least 1; got 0"),
        (dict(depth=1.5), "got 1.5"),
        (dict(activation="swoosh"), "unknown activation 'swoosh'"),
        (dict(depth=3, activation=["relu", "erf"]), "2 activations for depth 3"),
        (dict(weight_var=-1.0), "weight_var is a variance .* -1"),
        (dict(bias_var=[0.1, -0.2]), "bias_var is a variance .* -0.2"),
        (dict(weight_var=np.ones(4)), r"one per layer \(2,\)"),
        (dict(x1=POINTS[0]), r"write x1\[:, None\]"),
        (dict(x2=POINTS[:, :2]), "different numbers of inputs"),
        (dict(x1=np.array([[np.nan, 1.0, 1.0]])), r"x1\[0, 0\] is nan"),
        (dict(kernel=theory.ntk, scaling="mup"), "scaling must be .* 'mup'"),
        (dict(kernel=theory.ntk, scaling="fan_in"), "needs width"),
        (dict(kernel=theory.ntk, width=10), "no meaning for scaling='ntk'"),
        (dict(kernel=theory.ntk, scaling="fan_in", width=[10, 10]), "one per hidden layer"),
        (dict(kernel=theory.ntk, trained="some"), "trained must be"),
    ]:
        with pytest.raises(ValueError, match=words):
            call(**options)
    with pytest.raises(TypeError, match="wieght_var"):
        call(wieght_var=1.0)


def test_tangent_kernel_of_tanh_at_large_inputs(x64):
    for x, exact in ((2.0, 12.9347), (4.0, 21.718), (8.0, 38.89)):
        found = theory.ntk(np.array([[x]]), depth=1, activation="tanh", weight_var=4.0, bias_var=1.0)
        np.testing.assert_allclose(found, [[exact]], rtol=3e-5)  # as many digits as are known
