"""The collapsed readout with small, unequal and varying noise, against long double arithmetic, in a float32 session."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import bayes_brg as brg
from bayes_brg.inference.target import Target
from bayes_brg.model.bound import bind
from bayes_brg.model.readout import Readout, draw_readout, log_marginal

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


# -- as a target of samplers ----------------------------------------------------------------------------------
X = np.random.default_rng(1).normal(size=(12, 2))
Y = np.tanh(X[:, :1]) + 0.1 * np.random.default_rng(2).normal(size=(12, 1))


def network(likelihood, **changes):
    options = {"activation": "tanh", "weight_std": "learned", "bias_std": dist.HalfNormal(1.0), "relevance": True}
    return brg.mlp((3,), likelihood=likelihood, **options | changes)


def integrated(target, params, x, y):
    """log p(y | what is sampled), by the dense Gaussian law of y."""
    bound = target.bound
    zero = {**params, **bound.readout.split(bound.readout.stack(params).at[:, 0].set(0.0))}
    law, design = bound.distribution(zero, x), bound.readout.design(params, x)
    std = bound.readout.moments(params)[1][:, 0]
    cov = (design * std) @ (design * std).T + jnp.diag(jnp.broadcast_to(law.base_dist.scale, y.shape)[:, 0] ** 2)
    return jax.scipy.stats.multivariate_normal.logpdf(y[:, 0], jnp.zeros(len(y)), cov)


@pytest.mark.parametrize("likelihood", [brg.gaussian("learned"), brg.heteroscedastic("learned")],
                         ids=["gaussian", "heteroscedastic"])
def test_the_target_is_the_marginal_of_the_whole(x64, likelihood):
    """Its prior times its likelihood is the density of what is sampled, every scale and column among it."""
    bound = bind(network(likelihood), X)
    target, whole = Target(bound, True), Target(bound)
    params = bound.draw_prior(jax.random.key(0), X)
    u = target.unconstrain(params, X, Y)
    np.testing.assert_allclose(target.log_likelihood(u, X, Y)[0], integrated(target, params, X, jnp.asarray(Y)),
                               rtol=1e-10)
    everything = whole.unconstrain(params, X, Y)
    gone = sum(v.size for v in everything.values()) - sum(v.size for v in u.values())
    assert gone == 4  # three weights and a bias
    rest = {s: jnp.zeros_like(v) for s, v in everything.items()} | everything
    rest |= {s: v.at[..., 0].set(0.0) for s, v in everything.items() if s in bound.readout.sites}
    np.testing.assert_allclose(target.log_prior(u, X, Y),
                               whole.log_prior(rest, X, Y) + 0.5 * gone * np.log(2 * np.pi), rtol=1e-10)
    done = target.finish(jax.random.key(1), u, X, Y)
    for s, v in params.items():
        kept = v if s not in bound.readout.sites else v[..., 1:]
        np.testing.assert_allclose(done[s] if s not in bound.readout.sites else done[s][..., 1:], kept, rtol=1e-10)


@pytest.mark.parametrize(("n", "p"), [(9, 4), (4, 9)])
def test_draws_with_noise_of_each_datum(n, p):
    """In a float32 session: mean and covariance of each output's weights, against the dense Gaussian."""
    design, scale, noise, y = problem(n, p, 0.3, False, 2, "data")
    keys = jax.random.split(jax.random.key(8), 20_000)
    readout = Readout(jnp.zeros((p, 2)), scale, noise)
    draws = np.asarray(jax.jit(jax.vmap(lambda k: draw_readout(readout, k, design, y)))(keys))
    assert draws.dtype == np.float32
    for c in range(2):
        precision = np.diag(1 / scale.astype(float) ** 2) + (design / noise[:, c:c + 1] ** 2).T.astype(float) @ design
        cov = np.linalg.inv(precision)
        mean = cov @ (design.T @ (y[:, c] / noise[:, c] ** 2))
        z = draws[..., c] - mean
        assert np.all(np.abs(z.mean(0)) < 4.5 * np.sqrt(np.diag(cov) / len(keys)))
        error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / len(keys))
        assert np.all(np.abs(z.T @ z / len(keys) - cov) < 4.5 * error)


def test_mapped_over_chains_in_compiled_loops():
    """A mapped trace is where a switch of precision inside compiled code is lost, if anywhere."""
    cases = [problem(10, 4, 1e-3, False, 1, "one", seed) for seed in range(3)]
    design, scale, noise, y = (jnp.asarray(np.stack(a)) for a in zip(*cases, strict=True))

    def slope(h, s, e, t):
        return jax.grad(lambda h: log_marginal(Readout(jnp.zeros((4, 1)), s, e), h, t))(h)

    def guarded(h, s, e, t):
        return jax.lax.cond(h[0, 0] > -2, slope, lambda h, *_: h, h, s, e, t)

    def looped(h, s, e, t):
        return jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, slope(h, s, e, t)), (0, h))[1]

    args, exact = (design, scale, noise, y), np.stack([oracle(*case)[1] for case in cases]).astype(float)
    ways = {
        "cond": jax.vmap(guarded), "while": jax.vmap(looped),
        "twice": lambda *a: jax.vmap(jax.vmap(slope))(*(v[None] for v in a))[0],
        "map": lambda *a: jax.lax.map(lambda one: slope(*one), a, batch_size=2),
    }
    for name, fn in ways.items():
        assert np.abs(jax.jit(fn)(*args) - exact).max() < 1e-5 * np.abs(exact).max(), name


@pytest.mark.slow
def test_calibration_of_noise_scales_and_relevances():
    """Ranks of every hyperparameter among its draws are uniform, over data from the prior; fails once in 1,000."""
    net = brg.mlp((3,), activation="tanh", weight_std="learned", relevance=True, likelihood=brg.gaussian("learned"))
    x = np.random.default_rng(0).normal(size=(12, 2))
    infer = partial(brg.split_hmc, readout="collapsed", num_chains=2, num_warmup=300, num_samples=160, thinning=3,
                    progress_bar=False)
    found = brg.diagnostics.sbc(net, x, infer, key=jax.random.key(0), num_simulations=200, num_draws=31,
                                sites=("noise", "scale0", "scale1", "relevance"), progress_bar=False)
    assert list(found.dataset["quantity"].values[-5:]) == ["noise[0]", "scale0", "scale1", "relevance[0]",
                                                           "relevance[1]"]
    assert found, found
