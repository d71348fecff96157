"""NUTS and HMC against exact posteriors. Keys are fixed; tolerances are 4 standard errors (see `assert_moments`)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from moments import assert_moments, standard_error

from bayes_brg.inference import initial, prepare
from bayes_brg.inference.numpyro_hmc import hmc, nuts
from bayes_brg.model.cosnet import cosnet
from bayes_brg.model.likelihoods import bernoulli, gaussian
from bayes_brg.model.networks import mlp
from bayes_brg.model.readout import Readout, draw_readout, log_marginal
from bayes_brg.posterior import Posterior, log_joint, predict

X = np.linspace(-1.5, 2.0, 12)[:, None] * np.array([[1.0, -0.5]]) + 0.3 * np.cos(np.arange(24.0)).reshape(12, 2)
Y = np.stack([np.sin(X[:, 0]), X[:, 1] - 0.4], axis=1)


def linear_posterior(design, y, std, noise):
    """Exact weights given y = design·w + noise, w ~ N(0, diag(std²)): mean (p, C), shared covariance (p, p)."""
    precision = np.diag(1 / np.asarray(std, float) ** 2) + design.T @ design / noise**2
    cov = np.linalg.inv(precision)
    return cov @ design.T @ y / noise**2, cov


@pytest.mark.parametrize("sampler", [pytest.param(nuts, marks=pytest.mark.slow), hmc])
def test_conjugate_linear_model(sampler):
    net = mlp((), out=2, weight_std=1.4, bias_std=0.7, likelihood=gaussian(0.5))
    post = sampler(net, X, Y, key=jax.random.key(1), num_warmup=300, num_samples=500, progress_bar=False)
    design = np.concatenate([X, np.ones((12, 1))], axis=1)
    mean, cov = linear_posterior(design, Y, [1.4 / np.sqrt(2)] * 2 + [0.7], 0.5)
    assert post.samples["w0"].shape == (4, 500, 2, 2) and post.samples["b0"].shape == (4, 500, 2)
    assert set(post.samples) == {"w0", "b0"} and post.method == sampler.__name__
    weights = np.concatenate([post.samples["w0"], post.samples["b0"][:, :, None]], axis=2)
    for output in range(2):
        assert_moments(weights[..., output], mean[:, output], cov)
    for name in ("log_joint", "diverging", "num_steps", "accept_prob", "energy", "step_size"):
        assert post.stats[name].shape == (4, 500)
    bound = net.bind(jnp.asarray(X))
    np.testing.assert_allclose(post.stats["log_joint"].reshape(-1), log_joint(bound, post.flat(), X, Y), rtol=2e-5)


# -- a network of two weights, by quadrature ------------------------------------------------------------------
TINY_X = np.array([[-1.2], [-0.4], [0.3], [0.9], [1.6]])
TINY_Y = np.array([[-0.9], [-0.2], [0.5], [0.4], [1.1]])
PROBE = np.array([[-0.8], [0.5], [2.0]])
TINY = mlp((1,), activation="tanh", weight_std=1.3, likelihood=gaussian(0.4))


def tiny_moments():
    """E φ and Cov φ on PROBE under the posterior of φ = v tanh(u x), u, v ~ N(0, 1.3²), noise .4, on a grid."""
    u, v = np.meshgrid(np.linspace(-7, 7, 1401), np.linspace(-7, 7, 1401), indexing="ij")
    log_p = -(u**2 + v**2) / (2 * 1.3**2)
    for x, y in zip(TINY_X[:, 0], TINY_Y[:, 0], strict=True):
        log_p = log_p - (y - v * np.tanh(u * x)) ** 2 / (2 * 0.4**2)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    phi = np.stack([v * np.tanh(u * x) for x in PROBE[:, 0]])
    mean = (phi * p).sum(axis=(1, 2))
    return mean, np.einsum("iab,jab,ab->ij", phi, phi, p) - np.outer(mean, mean)


@pytest.mark.parametrize("readout", ["sampled", pytest.param("collapsed", marks=pytest.mark.slow)])
def test_tiny_network_against_quadrature(readout):
    post = nuts(TINY, TINY_X, TINY_Y, key=jax.random.key(3), num_warmup=400, num_samples=1000, readout=readout,
                progress_bar=False)
    assert list(post.samples) == ["w0", "w1"]
    assert_moments(predict(TINY, post, PROBE)[..., 0], *tiny_moments())


# -- the collapsed likelihood ---------------------------------------------------------------------------------
SHAPES = [(9, 4, 1), (9, 4, 3), (4, 9, 1), (4, 9, 3), (5, 5, 2)]


def collapse_case(n, p, outputs):
    keys = jax.random.split(jax.random.key(n * 100 + p * 10 + outputs), 4)
    readout = Readout(jax.random.normal(keys[0], (p, outputs)), jnp.exp(0.3 * jax.random.normal(keys[1], (p,))), 0.4)
    return readout, jax.random.normal(keys[2], (n, p)), jax.random.normal(keys[3], (n, outputs))


def dense_log_marginal(readout, design, y):
    cov = design @ jnp.diag(readout.scale**2) @ design.T + readout.noise**2 * jnp.eye(design.shape[0])
    columns = [jax.scipy.stats.multivariate_normal.logpdf(y[:, c], design @ readout.mean[:, c], cov)
               for c in range(y.shape[1])]
    return sum(columns)


@pytest.mark.parametrize("shape", SHAPES)
def test_collapsed_likelihood_and_its_derivative(x64, shape):
    readout, design, y = collapse_case(*shape)

    def both(fn):
        def of(design, mean, scale):
            return fn(Readout(mean, scale, readout.noise), design, y)
        return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2)))(design, readout.mean, readout.scale)

    (value, grads), (exact, exact_grads) = both(log_marginal), both(dense_log_marginal)
    np.testing.assert_allclose(value, exact, rtol=1e-11)
    for g, e in zip(grads, exact_grads, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("noise", [0.1, 0.01])
def test_collapsed_likelihood_keeps_its_digits_in_float32(noise):
    """Few features and little noise: within 2e-3 nats of float64, and the derivative to 1e-3 of its largest entry."""
    n, p = 100, 30
    rng = np.random.default_rng(3)
    design = np.maximum(rng.normal(size=(n, 5)) @ rng.normal(size=(5, p)), 0)
    y = design @ rng.normal(size=(p, 1)) / np.sqrt(p) + noise * rng.normal(size=(n, 1))
    g = design / np.sqrt(p)
    cov = g @ g.T + noise**2 * np.eye(n)
    a = np.linalg.solve(cov, y)
    exact = -0.5 * ((y * a).sum() + np.linalg.slogdet(2 * np.pi * cov)[1])
    slope = (a @ a.T - np.linalg.inv(cov)) @ g / np.sqrt(p)
    single = partial(jnp.asarray, dtype=jnp.float32)
    readout = Readout(jnp.zeros((p, 1)), single(np.full(p, 1 / np.sqrt(p))), noise)
    value, grad = jax.value_and_grad(lambda h: log_marginal(readout, h, single(y)))(single(design))
    assert float(value) == pytest.approx(exact, abs=2e-3)
    np.testing.assert_allclose(grad, slope, atol=1e-3 * np.abs(slope).max())


@pytest.mark.parametrize("shape", [(9, 4, 2), (4, 9, 2)])
def test_readout_draws_are_exact(x64, shape):
    readout, design, y = collapse_case(*shape)
    keys = jax.random.split(jax.random.key(8), 20_000)
    draws = np.asarray(jax.jit(jax.vmap(lambda k: draw_readout(readout, k, design, y)))(keys))
    shifted = y - design @ readout.mean
    mean, cov = linear_posterior(np.asarray(design), np.asarray(shifted), readout.scale, readout.noise)
    for output in range(2):  # independent draws: plain standard errors
        z = draws[..., output] - np.asarray(readout.mean)[:, output] - mean[:, output]
        assert np.all(np.abs(z.mean(0)) < 4.5 * np.sqrt(np.diag(cov) / len(keys)))
        error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / len(keys))
        assert np.all(np.abs(z.T @ z / len(keys) - cov) < 4.5 * error)
    across = np.corrcoef(draws.reshape(len(keys), -1).T)[0::2, 1::2]  # outputs are independent given the features
    assert np.abs(across).max() < 4.5 / np.sqrt(len(keys))


# -- general models -------------------------------------------------------------------------------------------
def coin(x, y=None):
    bias = numpyro.sample("bias", dist.Uniform(0.0, 1.0))
    with numpyro.plate("tosses", x.shape[0]):
        numpyro.sample("toss", dist.Bernoulli(bias), obs=y)


def test_coin_is_beta():
    x, y = np.zeros((10, 1)), np.array([1] * 7 + [0] * 3)
    post = nuts(coin, x, y, key=jax.random.key(0), num_warmup=300, num_samples=1000, progress_bar=False)
    assert post.samples["bias"].shape == (4, 1000)
    a, b = 8.0, 4.0
    mean, var = a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1))
    draws = np.asarray(post.samples["bias"])[..., None]
    assert_moments(draws, [mean], [[var]])
    below = (draws < 0.7).astype(float)
    exact = 0.56956  # P(Beta(8, 4) < .7) = P(Binomial(11, .7) ≥ 8)
    assert abs(below.mean() - exact) < 4 * standard_error(below)[0]


def hierarchical(x, y=None):
    """Positive scale, a location, three group means; and an observed site under a name of its own."""
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    group = numpyro.sample("group", dist.Normal(mu, tau).expand([3]).to_event(1))
    numpyro.deterministic("twice", 2 * mu)
    numpyro.sample("height", dist.Normal(group[x[:, 0].astype(int)], 0.3), obs=y)


@pytest.mark.slow
def test_hierarchical_model_against_quadrature():
    x = np.repeat(np.arange(3.0), 3)[:, None]
    y = np.array([0.9, 1.2, 1.1, 2.2, 2.0, 2.4, 1.4, 1.7, 1.6])
    post = nuts(hierarchical, x, y, key=jax.random.key(2), num_warmup=500, num_samples=1000, target_accept_prob=0.95,
                progress_bar=False)
    assert set(post.samples) == {"tau", "mu", "group"} and float(np.min(post.samples["tau"])) > 0
    # Given (mu, tau) the group averages are N(mu, tau² + .3²/3), independent: a two-dimensional integral is left.
    mu, tau = np.meshgrid(np.linspace(-8, 10, 1201), np.linspace(1e-3, 6, 1200), indexing="ij")
    averages, s2 = y.reshape(3, 3).mean(1), 0.3**2 / 3
    log_p = -mu**2 / 8 - tau**2 / 2
    for a in averages:
        log_p = log_p - 0.5 * (a - mu) ** 2 / (tau**2 + s2) - 0.5 * np.log(tau**2 + s2)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    f = np.stack([mu, tau, (mu * s2 + averages[1] * tau**2) / (tau**2 + s2)])  # E[group₁ | mu, tau]
    mean = (f * p).sum(axis=(1, 2))
    draws = np.stack([post.samples["mu"], post.samples["tau"], post.samples["group"][..., 1]], axis=-1)
    assert np.all(np.abs(draws.mean((0, 1)) - mean) < 4 * standard_error(draws))
    second = (f[:2] ** 2 * p).sum(axis=(1, 2))
    assert np.all(np.abs((draws[..., :2] ** 2).mean((0, 1)) - second) < 4 * standard_error(draws[..., :2] ** 2))


# -- options, keys, errors ------------------------------------------------------------------------------------
SHORT = dict(num_chains=2, num_warmup=0, num_samples=6, num_steps=3, step_size=0.1, progress_bar=False)


def test_keys_and_thinning():
    a = hmc(TINY, TINY_X, TINY_Y, key=jax.random.key(4), **SHORT).samples["w0"]
    np.testing.assert_array_equal(hmc(TINY, TINY_X, TINY_Y, key=jax.random.key(4), **SHORT).samples["w0"], a)
    assert not np.allclose(a[0], a[1]), "chains share a stream"
    other = hmc(TINY, TINY_X, TINY_Y, key=jax.random.key(5), **SHORT)
    assert not np.allclose(other.samples["w0"], a)
    thin = hmc(TINY, TINY_X, TINY_Y, key=jax.random.key(4), thinning=2, **{**SHORT, "num_samples": 3})
    np.testing.assert_array_equal(thin.samples["w0"], a[:, 1::2])
    longer = hmc(TINY, TINY_X, TINY_Y, key=jax.random.key(4), **{**SHORT, "num_samples": 70})
    assert longer.samples["w0"].shape == (2, 70, 1, 1)
    np.testing.assert_array_equal(longer.samples["w0"][:, :6], a)


def test_chains_of_an_ensemble_start_at_the_top():
    """Of a concave density every ascent ends at its one maximum, to a twentieth of a nat."""
    straight = mlp((), out=2, bias_std=1.0, likelihood=gaussian(0.3))
    target, x, y, key = prepare(straight, X, Y, jax.random.key(7), "nuts")
    best, exact = initial(target, key, x, y, 3, "ensemble"), linear_posterior(
        np.c_[X, np.ones(12)], Y, [2**-0.5, 2**-0.5, 1.0], 0.3)[0]
    top = target.log_density(target.unconstrain({"w0": exact[:2], "b0": exact[2]}, x, y), x, y)
    lower = target.log_density(jax.tree.map(lambda u: u[0], initial(target, key, x, y, 3, "prior")), x, y)
    for chain in range(3):
        found = target.log_density(jax.tree.map(lambda u, c=chain: u[c], best), x, y)
        assert top - 0.05 < found < top + 1e-4 and lower < top - 0.5


@pytest.mark.slow
def test_warm_starts_and_mass():
    still = {**SHORT, "num_samples": 1, "step_size": 1e-6}
    first = hmc(TINY, TINY_X, TINY_Y, key=jax.random.key(4), init="uniform", **SHORT)
    # With a vanishing step a chain stays where it was told to start.
    point = {"w0": jnp.full((1, 1), 0.7), "w1": jnp.full((1, 1), -0.2)}
    stay = hmc(TINY, TINY_X, TINY_Y, key=jax.random.key(6), init=point, **still)
    np.testing.assert_allclose(stay.samples["w0"].reshape(-1), 0.7, atol=1e-4)
    last = hmc(TINY, TINY_X, TINY_Y, key=jax.random.key(6), init=first, **still)
    np.testing.assert_allclose(last.samples["w1"][:, 0], first.samples["w1"][:, -1], atol=1e-4)
    # Members of an ensemble that diverged are no starting points.
    lost = jnp.asarray([[True] * 5 + [False], [True] * 6])
    broken = Posterior({s: jnp.where(lost.reshape(2, 6, 1, 1), jnp.nan, v) for s, v in first.samples.items()},
                       {"independent": True, "diverged": lost})
    stay = hmc(TINY, TINY_X, TINY_Y, key=jax.random.key(6), init=broken, **still)
    np.testing.assert_allclose(stay.samples["w0"][:, 0, 0, 0], first.samples["w0"][0, 5, 0, 0], atol=1e-4)
    # A large inverse mass moves its site further: HMC's displacement is step · √(inverse mass) · noise.
    far = hmc(TINY, TINY_X, TINY_Y, key=jax.random.key(6), init=point, inverse_mass={"w0": 1.3**2 * 1e8, "w1": 1.0},
              dense_mass=[("w1", "w0")], adapt_mass=False, **still)
    moved = {s: float(np.abs(far.samples[s] - point[s]).max()) for s in point}
    assert moved["w0"] > 1e-3 > 1e-4 > moved["w1"]


@pytest.mark.slow
def test_float64_where_enabled(x64):
    post = hmc(TINY, TINY_X, TINY_Y, key=jax.random.key(4), **SHORT)
    assert post.samples["w0"].dtype == jnp.float64 and post.stats["log_joint"].dtype == jnp.float64


@pytest.mark.slow
def test_chain_methods_and_a_posterior_as_mass():
    run = {m: hmc(TINY, TINY_X, TINY_Y, key=jax.random.key(4), chain_method=m, **SHORT)
           for m in ("vectorized", "sequential", "parallel")}
    for other in run.values():
        np.testing.assert_allclose(other.samples["w0"], run["vectorized"].samples["w0"], rtol=1e-4)
    pooled = hmc(TINY, TINY_X, TINY_Y, key=jax.random.key(6), inverse_mass=run["vectorized"], **SHORT)
    assert np.isfinite(pooled.stats["energy"]).all()


@pytest.mark.slow
def test_ball_and_interval_sites_stay_inside():
    net = cosnet(4, 1, mass=1.0, radius=2.0, likelihood=gaussian(0.4))
    post = hmc(net, TINY_X, TINY_Y, key=jax.random.key(1), readout="collapsed", **{**SHORT, "step_size": 0.3})
    assert float(np.abs(post.samples["b"]).max()) < 2.0 and float(np.abs(post.samples["c"]).max()) <= np.pi
    assert np.isfinite(post.stats["log_joint"]).all()


def discrete(x, y=None):
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(z * x[:, 0], 1.0), obs=y)


def test_errors():
    key = jax.random.key(0)
    with pytest.raises(TypeError, match="one JAX random key"):
        nuts(TINY, TINY_X, TINY_Y, key=0)
    with pytest.raises(ValueError, match=r"y\[1, 0\] is nan"):
        nuts(TINY, TINY_X, np.where(np.arange(5)[:, None] == 1, np.nan, TINY_Y), key=key)
    with pytest.raises(ValueError, match="y has shape"):
        nuts(TINY, TINY_X, TINY_Y[:4], key=key)
    with pytest.raises(TypeError, match="warmups"):
        nuts(TINY, TINY_X, TINY_Y, key=key, warmups=3)
    with pytest.raises(ValueError, match="num_samples must be a whole number"):
        nuts(TINY, TINY_X, TINY_Y, key=key, num_samples=0)
    with pytest.raises(ValueError, match="did you mean 'collapsed'"):
        nuts(TINY, TINY_X, TINY_Y, key=key, readout="colapsed")
    with pytest.raises(ValueError, match="not a Network"):
        nuts(coin, np.zeros((3, 1)), np.ones(3, int), key=key, readout="collapsed")
    with pytest.raises(ValueError, match="bernoulli, not Gaussian"):
        nuts(mlp((2,), likelihood=bernoulli()), TINY_X, np.ones(5, int), key=key, readout="collapsed")
    with pytest.raises(ValueError, match="no hidden site"):
        nuts(mlp(()), TINY_X, TINY_Y, key=key, readout="collapsed")
    with pytest.raises(ValueError, match="'z' is discrete"):
        nuts(discrete, TINY_X, TINY_Y[:, 0], key=key)
    with pytest.raises(ValueError, match="between 0 and 1"):
        nuts(TINY, TINY_X, TINY_Y, key=key, target_accept_prob=1.2)
    with pytest.raises(ValueError, match="not both"):
        hmc(TINY, TINY_X, TINY_Y, key=key, num_steps=3, trajectory_length=1.0)
    with pytest.raises(ValueError, match="dense_mass names 'w7'"):
        nuts(TINY, TINY_X, TINY_Y, key=key, dense_mass=[("w7",)])
    with pytest.raises(ValueError, match="init lacks the site 'w1'"):
        nuts(TINY, TINY_X, TINY_Y, key=key, init={"w0": np.ones((1, 1))})
    with pytest.raises(ValueError, match="not finite at the starting point of chain 0"):
        nuts(coin, np.zeros((3, 1)), np.ones(3, int), key=key, init={"bias": 2.0})
    with pytest.raises(ValueError, match="init: site 'w0' has shape"):
        nuts(TINY, TINY_X, TINY_Y, key=key,
             init=Posterior(samples={"w0": np.ones((1, 1, 2)), "w1": np.ones((1, 1, 1, 1))}))
    with pytest.raises(ValueError, match="chain_method must be one of"):
        nuts(TINY, TINY_X, TINY_Y, key=key, chain_method="vectorised")
