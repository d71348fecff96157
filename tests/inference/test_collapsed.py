"""The collapsed readout with small, unequal and varying noise, against long double arithmetic, in a float32 session."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_brg.model.readout import Readout, log_marginal

LONG = np.longdouble


def inverse_and_log_det(s):
    """Of a positive definite matrix, by Gauss–Jordan in long double."""
    s, log_det = s.copy(), LONG(0)
    for k in range(len(s)):
        pivot = s[k, k]
        log_det += np.log(pivot)
        row, column = s[k] / pivot, s[:, k].copy()
        row[k] = 1 / pivot
        s[:, k] = 0
        s -= np.outer(np.where(np.arange(len(s)) == k, 0, column), row)
        s[k] = row
    return s, log_det


def oracle(design, scale, noise, y):
    """log Π_c N(y_c; 0, G Gᵀ + diag(s_c²)), G = design · scale, and its gradients in design, scale and noise."""
    design, scale, y = (np.asarray(a, LONG) for a in (design, scale, y))
    width = np.broadcast_to(np.asarray(noise, LONG), y.shape)
    g, value = design * scale, LONG(0)
    slope, of_noise, known = np.zeros_like(g), np.zeros_like(y), {}
    for c in range(y.shape[1]):
        key = width[:, c].tobytes()
        if key not in known:
            known[key] = inverse_and_log_det(g @ g.T + np.diag(width[:, c] ** 2))
        inverse, log_det = known[key]
        a = inverse @ y[:, c]
        value -= (y[:, c] @ a + log_det + len(y) * np.log(2 * LONG(np.pi))) / 2
        core = np.outer(a, a) - inverse
        slope += core @ g
        of_noise[:, c] = np.diagonal(core) * width[:, c]
    shape = np.shape(noise)
    axes = () if shape == y.shape else (0,) if shape else (0, 1)
    return value, slope * scale, (slope * design).sum(0), of_noise.sum(axis=axes) if axes else of_noise


def problem(n, width, noise, repeated, outputs, kind, seed=0):
    """Features of a tanh layer, targets that they nearly give, all in float32; half of the inputs twice."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    if repeated:
        x[n // 2:] = x[:n - n // 2]
    design = np.tanh(x @ rng.normal(size=(3, width)) + rng.normal(size=width))
    y = design @ rng.normal(size=(width, outputs)) / np.sqrt(width) + noise * rng.normal(size=(n, outputs))
    given = {"one": noise, "outputs": noise * np.array([1.0, 30.0])[:outputs],
             "data": noise * np.exp(rng.normal(size=(n, outputs)))}[kind]
    return [np.asarray(a, np.float32) for a in (design, np.full(width, 1 / np.sqrt(width)), given, y)]


@jax.jit
def ours(design, scale, noise, y):
    def value(design, scale, noise):
        return log_marginal(Readout(jnp.zeros((design.shape[1], y.shape[1])), scale, noise), design, y)

    return jax.value_and_grad(value, (0, 1, 2))(design, scale, noise)


def worst(case):
    (value, grads), exact = ours(*case), oracle(*case)
    assert value.dtype == jnp.float32
    found = [np.asarray(a, LONG) for a in (value, *grads)]
    return max(float(np.abs(a - e).max() / np.abs(e).max()) for a, e in zip(found, exact, strict=True))


KINDS = [("one", 1), ("outputs", 2), ("data", 2)]


@pytest.mark.parametrize(("n", "width"), [(10, 5), (10, 50), *(pytest.param(n, w, marks=pytest.mark.slow) for n, w in (
    (10, 200), (100, 5), (100, 50), (100, 200), (300, 5), (300, 50), (300, 200)))])
def test_value_and_gradient_in_a_float32_session(n, width):
    """Of the features, the prior scale and the noise, each relative to its largest entry."""
    for noise in (1e-4, 1e-2, 1.0):
        for repeated in (False, True):
            for kind, outputs in KINDS:
                error = worst(problem(n, width, noise, repeated, outputs, kind))
                assert error < 1e-5, (noise, repeated, kind, error)
