"""A large NNGP: its cost against the arithmetic it needs, its symmetry, its positivity. `pytest -m slow -s` prints."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_brg import theory

DEPTH, WEIGHT_VAR, BIAS_VAR = 5, 1.5, 0.1


@jax.jit
def plain(x):
    """The matrix product and the elementwise work of a relu NNGP, with no care for edge cases."""
    kernel = BIAS_VAR + WEIGHT_VAR * (x @ x.T) / x.shape[1]
    for _ in range(DEPTH):
        scale = jnp.sqrt(jnp.diagonal(kernel))
        size = scale[:, None] * scale
        cosine = jnp.clip(kernel / size, -1, 1)
        angle = jnp.sqrt(1 - cosine**2) + (jnp.pi - jnp.arccos(cosine)) * cosine
        kernel = BIAS_VAR + WEIGHT_VAR * size * angle / (2 * jnp.pi)
    return kernel


def fastest(*functions, repeats=9):
    """Least seconds of each, taken in turn so that other load on the machine falls on all of them."""
    seconds = np.empty((repeats, len(functions)))
    for function in functions:
        function().block_until_ready()
    for row in seconds:
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function().block_until_ready()
            row[i] = time.perf_counter() - start
    return seconds.min(0)


@pytest.mark.slow
def test_nngp_costs_at_most_three_times_its_arithmetic():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2000, 10)), jnp.float32)

    def ours():
        return theory.nngp(x, depth=DEPTH, activation="relu", weight_var=WEIGHT_VAR, bias_var=BIAS_VAR)

    np.testing.assert_allclose(ours(), plain(x), rtol=2e-3)
    kernel = np.asarray(ours(), np.float64)
    assert (kernel == kernel.T).all() and np.linalg.eigvalsh(kernel)[0] > 0
    mine, least = fastest(ours, lambda: plain(x))
    print(f"\nnngp 2000x2000 depth {DEPTH}: {mine:.3f} s, plain {least:.3f} s, ratio {mine / least:.2f}")
    assert mine <= 3 * least
