"""The Fisher metric against dense float64 oracles, on networks and on any NumPyro model (theory §1)."""

import os
import subprocess
import sys
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from oracles import (
    flat,
    kl_metric,
    looped_metric,
    output_kl,
    positive_grid,
    real_grid,
    score_metric,
    unflat,
)

from bayes_brg.metric.fisher import fisher
from bayes_brg.model.bound import bind
from bayes_brg.model.cosnet import cosnet
from bayes_brg.model.likelihoods import bernoulli, categorical, gaussian, poisson
from bayes_brg.model.networks import mlp
from bayes_brg.posterior import Posterior, prior


def plain(net):
    """The same model with no sign that it is a network, so that it goes the general way."""
    def model(x, y=None):
        return net(x, y)
    return model


def draw(net, x, seed=1):
    return prior(net, x, key=jax.random.key(seed), num_samples=1).draw(0, 0)


def inputs(n=7, dim=3, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, dim))


# name: network; depths, widths, likelihoods, biases, scalings, several outputs
CASES = {
    "linear": mlp((), likelihood=gaussian(0.7), bias_std=0.5),
    "tanh": mlp((4,), activation="tanh", likelihood=gaussian(0.5)),
    "ntk": mlp((3, 4), 2, activation=("erf", "tanh"), bias_std=0.4, scaling="ntk", weight_std=1.3),
    "classes": mlp((4,), 3, activation="gelu", bias_std=1.0, scaling="ntk", likelihood=categorical()),
    "binary": mlp((5, 2), activation=("sin", "relu"), scaling="none", likelihood=bernoulli()),
    "counts": mlp((3,), 2, activation="cos", bias_std=0.3, likelihood=poisson()),
}


@pytest.fixture(scope="module")
def cases():
    """Each case with its probe inputs, parameters and dense metric in float64."""
    with jax.enable_x64(True):
        out = {}
        for name, net in CASES.items():
            x = inputs()
            params, sites = draw(net, x), bind(net, x).names
            dense = looped_metric(net.apply, params, x, sites, net.likelihood.name, net.likelihood.noise or 1.0)
            out[name] = net, x, params, sites, dense
    return out


# -- theory's numbers -----------------------------------------------------------------------------------------
def theory_setting(likelihood):
    theta = 0.8 * np.sin(1 + 0.7 * np.arange(21))
    net = mlp((3,), 3, activation="tanh", bias_std=1.0, likelihood=likelihood)
    params = {"w0": theta[:6].reshape(3, 2).T, "b0": theta[6:9], "w1": theta[9:18].reshape(3, 3).T, "b1": theta[18:]}
    x = jnp.array([[1, 0.5], [-0.3, 0.8], [0.2, -1.1], [-0.7, -0.4]])
    return net, x, {s: jnp.asarray(v) for s, v in params.items()}


@pytest.mark.parametrize("wrap", [lambda net: net, plain], ids=["network", "general"])
def test_theory_table(x64, wrap):
    net, x, params = theory_setting(gaussian(0.5))
    metric = fisher(wrap(net), None, x, at=params)
    assert metric.values().sum() == pytest.approx(35.8829702396, abs=1e-9)
    assert float(metric.stiffness["w0"][0, 0]) == pytest.approx(0.8278860523, abs=1e-9)
    assert float(metric.stiffness["w1"][0, 0]) == pytest.approx(1.8107188119, abs=1e-9)
    full = fisher(wrap(net), None, x, "full", at=params)
    assert full.eigenvalues[0] == pytest.approx(9.6820689739, abs=1e-9)
    assert np.sum(full.eigenvalues > full.noise_floor) == 12
    net, x, params = theory_setting(bernoulli())
    full = fisher(wrap(net), None, x, "full", at=params)
    assert full.eigenvalues.sum() == pytest.approx(1.9463557482, abs=1e-9)
    assert full.eigenvalues[0] == pytest.approx(0.5652923268, abs=1e-9)


# -- every kind against the dense matrix ------------------------------------------------------------------------
@pytest.mark.parametrize("name", CASES)
def test_diagonal_both_ways(x64, cases, name):
    net, x, params, sites, dense = cases[name]
    fast, general = fisher(net, None, x, at=params), fisher(plain(net), None, x, at=params)
    assert fast.geometry.layered and not general.geometry.layered
    np.testing.assert_allclose(flat(fast.stiffness, sites), np.diag(dense), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(flat(general.stiffness, sites), flat(fast.stiffness, sites), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name, kind", [("tanh", "full"), ("classes", "full"), ("ntk", "block"),
                                        ("linear", "lowrank"), ("classes", "lowrank")])
def test_modes_against_the_dense_matrix(x64, cases, name, kind):
    net, x, params, sites, dense = cases[name]
    metric = fisher(net, None, x, kind, at=params, rank=6)
    values, basis = np.asarray(metric.geometry.spectrum(metric.arrays())), np.asarray(metric.basis())
    kept = values > 0
    np.testing.assert_allclose((basis.T @ basis)[np.ix_(kept, kept)], np.eye(kept.sum()), atol=1e-8)
    whole = dense
    if kind == "block":
        ends = np.cumsum([0] + [np.size(params[s]) for s in sites])
        whole = np.zeros_like(dense)
        for a, b in zip(ends, ends[1:], strict=False):
            whole[a:b, a:b] = dense[a:b, a:b]
        assert set(metric.eigenvalues) == set(sites)
    exact = np.linalg.eigvalsh(whole)[::-1]
    count = 6 if kind == "lowrank" and len(dense) > 6 else len(exact)
    got = np.sort(metric.values())[::-1][:count]
    np.testing.assert_allclose(got, exact[:len(got)], rtol=1e-8, atol=1e-11 * exact[0])
    if kind != "lowrank":
        np.testing.assert_allclose(basis * values @ basis.T, whole, rtol=1e-8, atol=1e-11 * exact[0])
    else:
        assert np.nanmax(metric.residuals) < 1e-8 * exact[0]
        np.testing.assert_allclose(dense @ basis, basis * values, atol=1e-8 * exact[0])
        whole = basis * values @ basis.T
    v = np.random.default_rng(0).normal(size=len(dense))
    tree = unflat(v, params, sites)
    np.testing.assert_allclose(flat(metric.matvec(tree), sites), whole @ v, rtol=1e-8, atol=1e-9 * exact[0])
    assert float(metric.quadratic(tree)) == pytest.approx(v @ whole @ v, rel=1e-8)
    np.testing.assert_allclose(flat(metric.stiffness, sites), np.diag(dense), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", ["diagonal", "full", "block"])
def test_whitened_metric(x64, cases, kind):
    net, x, params, sites, dense = cases["ntk" if kind == "block" else "tanh"]
    metric = fisher(net, None, x, kind, at=params, whiten=True)
    scale = flat(metric.prior_scale, sites)
    np.testing.assert_allclose(scale, flat({s: jnp.full_like(params[s], float(jnp.sqrt(d.variance).ravel()[0]))
                                            for s, d in net.priors(3).items()}, sites))
    white = dense * np.outer(scale, scale)
    np.testing.assert_allclose(flat(metric.stiffness, sites), np.diag(white), rtol=1e-10, atol=1e-14)
    if kind == "full":
        np.testing.assert_allclose(np.sort(metric.eigenvalues)[::-1][:7], np.linalg.eigvalsh(white)[::-1][:7],
                                   rtol=1e-8)
    # quadratic() takes displacements that are not whitened, whatever the metric
    v = np.random.default_rng(0).normal(size=len(dense))
    whole = {"diagonal": np.diag(np.diag(dense)), "full": dense}.get(kind)
    if whole is not None:
        assert float(metric.quadratic(unflat(v, params, sites))) == pytest.approx(v @ whole @ v, rel=1e-8)
    # modes and back is a projection; on the modes it is the identity
    if kind != "diagonal":
        c = jnp.where(metric.geometry.spectrum(metric.arrays()) > 0, 1.0, 0.0)
        np.testing.assert_allclose(metric.to_modes(metric.from_modes(c)), c, atol=1e-7)


@pytest.mark.parametrize("n, width", [(40, 100), (300, 60)], ids=["rows", "columns"])
def test_lowrank_finds_every_copy_of_a_mode(x64, n, width):
    """Three outputs under one noise: every eigenvalue of the readout three times, but once in a Krylov space."""
    net, x = mlp((width,), 3, likelihood=gaussian(0.8)), inputs(n, 100)
    params = draw(net, x)
    metric = fisher(net, None, x, "lowrank", at=params, sites="w1", rank=6)
    assert metric.geometry.blocks[0].side == ("rows" if n < width else "columns")
    h = np.asarray(net.features(params, x))
    np.testing.assert_allclose(metric.eigenvalues, np.repeat(np.linalg.eigvalsh(h.T @ h / n / 0.64)[::-1], 3)[:6],
                               rtol=1e-6)
    basis = np.asarray(metric.basis())
    np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=1e-8)


@pytest.mark.parametrize("kind", ["diagonal", "full", "block", "lowrank"])
def test_metric_of_a_network_that_says_nothing(kind):
    """Every unit dead: all λ are zero, and that is no error, though Lanczos has nothing to start from."""
    net, x = mlp((4,)), -jnp.ones((5, 2))
    params = {"w0": jnp.ones((2, 4)), "w1": jnp.ones((4, 1))}
    metric = fisher(net, None, x, kind, at=params, rank=3)
    assert np.all(metric.values() == 0) and float(metric.quadratic(params)) == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, bool])
def test_inputs_that_are_whole_numbers(dtype):
    """An image of bytes: its squares do not fit into bytes."""
    net, x = CASES["linear"], np.array([[200, 3, 0], [17, 250, 1]]).astype(dtype)
    params = draw(net, x.astype(np.float32))
    for kind in ("diagonal", "full"):
        np.testing.assert_allclose(fisher(net, None, x, kind, at=params).values(),
                                   fisher(net, None, x.astype(np.float32), kind, at=params).values(), rtol=1e-6)


def test_activations_are_held_for_one_batch():
    """One parameter, 5,000 units: the rows of all data are few numbers, what the model makes of them is not."""
    from bayes_brg.metric import eigenmodes as spectrum

    def model(x, y=None):
        a = numpyro.sample("a", dist.Normal(0, 1))
        f = jnp.sort(jnp.tanh(a * x + jnp.linspace(0, 1, 5000)))[:, :9].mean(1)  # a sort cannot be fused away
        numpyro.sample("y", dist.Normal(f, 1.0), obs=y)

    def temporary(batch_size):
        metric = fisher(model, None, inputs(64, 1), "full", at={"a": 0.5}, batch_size=batch_size)
        program = jax.jit(spectrum._pieces, static_argnums=0).lower(metric.geometry, None, metric.shared)
        return program.compile().memory_analysis().temp_size_in_bytes

    assert temporary(4) < temporary(64) / 8


def test_groups_of_draws_count_the_inputs_of_layers(monkeypatch):
    """3 × 1,000 inputs a draw, next to which cotangents and Gram matrix are small."""
    from bayes_brg.metric import eigenmodes as spectrum
    net, x, seen = mlp((2,)), inputs(3, 1000), []
    whole = spectrum.map_draws

    def recording(fn, statics, draws, *rest, **options):
        seen.append(jax.tree.leaves(draws)[0].shape[0])
        return whole(fn, statics, draws, *rest, **options)

    monkeypatch.setattr(spectrum, "map_draws", recording)
    monkeypatch.setattr(spectrum, "GROUP", 8000)  # numbers of two draws
    fisher(net, prior(net, x, key=jax.random.key(0), num_samples=4), x, "full", progress_bar=False)
    assert set(seen) == {2}


def test_both_sides_and_streamed_rows_agree(x64, cases, monkeypatch):
    """Gram matrix of data rows, of parameter columns, and in batches of factor rows: the same eigenvalues."""
    from bayes_brg.metric import eigenmodes as spectrum
    net, x, params, sites, dense = cases["tanh"]  # 16 parameters, 7 rows
    many = jnp.concatenate([x, x + 1, x - 1])  # 21 rows: the column side
    oracle, general = looped_metric(net.apply, params, many, sites, "gaussian", 0.5), plain(net)
    for points, whole in ((x, dense), (many, oracle)):
        exact = np.linalg.eigvalsh(whole)[::-1]
        for limit in (spectrum.ROWS, 40):  # 40 numbers at once: batches of 2 rows, the last one short
            monkeypatch.setattr(spectrum, "ROWS", limit)
            metric = fisher(general, None, points, "full", at=params)
            np.testing.assert_allclose(metric.eigenvalues, exact[:metric.eigenvalues.size], rtol=1e-8,
                                       atol=1e-12 * exact[0])
            monkeypatch.undo()


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_batches_that_do_not_divide_n(x64, cases, kind):
    net, x, params, sites, _ = cases["tanh"]
    v = {s: jnp.ones_like(a) for s, a in params.items()}
    whole = fisher(net, None, x, kind, at=params)
    for wrap in (lambda net: net, plain):
        part = fisher(wrap(net), None, x, kind, at=params, batch_size=3)
        np.testing.assert_allclose(flat(part.matvec(v), sites), flat(whole.matvec(v), sites), rtol=1e-7)


# -- estimators -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["tanh", "classes", "counts"])
def test_montecarlo_within_its_error(x64, cases, name):
    """Each entry within 5 standard errors (false alarm 6e-7 an entry), their mean square about 1."""
    net, x, params, sites, dense = cases[name]
    for wrap in (lambda net: net, plain) if name == "counts" else (lambda net: net,):
        metric = fisher(wrap(net), None, x, estimator="montecarlo", at=params, key=jax.random.key(3), num_samples=400)
        error, value = flat(metric.sem, sites), flat(metric.stiffness, sites)
        moving = np.diag(dense) > 1e-12
        z = (value - np.diag(dense))[moving] / error[moving]
        assert np.abs(z).max() < 5 and 0.1 < np.mean(z**2) < 4
    if name != "tanh":
        return
    full = fisher(net, None, x, "full", "montecarlo", at=params, key=jax.random.key(3), num_samples=400)
    z = (full.eigenvalues - np.linalg.eigvalsh(dense)[::-1][:full.eigenvalues.size])[:2] / full.sem[:2]
    assert np.abs(z).max() < 5


@pytest.mark.parametrize("name", ["classes", "binary"])
def test_montecarlo_errors_of_both_ways_agree(x64, cases, name):
    """The dense layers' own rule and per-example gradients draw the same labels: equal to rounding."""
    net, x, params, _, _ = cases[name]
    fast, general = (fisher(model, None, x, estimator="montecarlo", at=params, key=jax.random.key(3), num_samples=50)
                     for model in (net, plain(net)))
    for s in fast.sem:
        np.testing.assert_allclose(fast.stiffness[s], general.stiffness[s], rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(fast.sem[s], general.sem[s], rtol=1e-10)


@pytest.mark.parametrize("name", ["classes", "counts"])
def test_empirical_is_the_outer_product_of_scores(x64, cases, name):
    net, x, params, sites, _ = cases[name]
    y = jnp.arange(7) % 2 if name == "classes" else (jnp.arange(7)[:, None] % 2) * jnp.ones((1, net.outputs))
    theta = jnp.asarray(flat(params, sites))
    scores = jax.jit(jax.jacrev(lambda t: net.likelihood.log_prob(net.apply(unflat(t, params, sites), x), y)))(theta)
    for wrap in (lambda net: net, plain) if name == "classes" else (lambda net: net,):
        metric = fisher(wrap(net), None, x, "full", "empirical", at=params, y=y)
        exact = np.linalg.eigvalsh(scores.T @ scores / 7)[::-1]
        np.testing.assert_allclose(metric.eigenvalues, exact[:metric.eigenvalues.size], rtol=1e-8,
                                   atol=1e-12 * exact[0])
        np.testing.assert_allclose(flat(metric.stiffness, sites), np.mean(scores**2, 0), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", ["tanh", "classes", "counts", "binary"])
def test_scores_average_to_zero(x64, cases, name):
    """(48): within 5 standard errors of drawn labels, each entry (false alarm 6e-7)."""
    net, x, params, sites, _ = cases[name]
    metric = fisher(net, None, x, estimator="montecarlo", at=params, key=jax.random.key(5), num_samples=500)
    batch = metric.shared.data.numbered()
    key = jax.random.fold_in(metric.shared.key, 0)
    slopes, found = jax.jit(jax.jacobian(lambda p: metric.geometry.labels(p, params, batch, key), has_aux=True))(params)
    jacobian = np.concatenate([np.reshape(slopes[s], (*slopes[s].shape[:2], -1)) for s in sites], axis=2)
    scores = np.sqrt(500) * np.einsum("nsk,nkp->nsp", found, jacobian)
    error = scores.std(1) / np.sqrt(500)
    z = scores.mean(1)[error > 1e-12] / error[error > 1e-12]
    assert np.abs(z).max() < 5


@pytest.mark.parametrize("name", CASES)
def test_quadratic_is_twice_the_kl_to_third_order(x64, cases, name):
    """(52): halving δ divides the difference by at least 2³ (less a margin for the next order)."""
    net, x, params, sites, _ = cases[name]
    metric = fisher(net, None, x, "full", at=params)
    step = np.random.default_rng(1).normal(size=flat(params, sites).size)

    def gap(size):
        moved = unflat(flat(params, sites) + size * step, params, sites)
        kl = output_kl(net.likelihood.name, net.apply(params, x), net.apply(moved, x), net.likelihood.noise or 1.0)
        return abs(2 * float(jnp.mean(kl)) - float(metric.quadratic(unflat(size * step, params, sites))))

    if name == "linear":  # the KL is quadratic: nothing is left but rounding
        assert gap(1e-2) < 1e-14
    else:
        assert gap(1e-3) < gap(2e-3) / 6
        assert gap(1e-3) < 0.05 * float(metric.quadratic(unflat(1e-3 * step, params, sites)))


# -- any distribution -------------------------------------------------------------------------------------------
def softplus(z):
    return jnp.logaddexp(0.0, z)


def tril(z):
    """(n, 3) → lower-triangular (n, 2, 2) with positive diagonal."""
    low = jnp.zeros((*z.shape[:-1], 2, 2)).at[..., 1, 0].set(z[..., 1])
    return low.at[..., 0, 0].set(softplus(z[..., 0])).at[..., 1, 1].set(softplus(z[..., 2]))


REAL, POSITIVE = real_grid(), positive_grid()
COUNTS = (np.arange(150.0), np.ones(150))


def unit():
    t = np.linspace(-40, 40, 4001)
    y = 1 / (1 + np.exp(-t))
    return y, y * (1 - y) * (t[1] - t[0])


# name: (outputs of the linear map, distribution, labels and weights)
FAMILIES = {
    "normal": (2, lambda z: dist.Normal(z[:, 0], softplus(z[:, 1])), REAL),
    "normal, known scale": (1, lambda z: dist.Normal(z[:, 0], 0.3), REAL),
    "lognormal": (2, lambda z: dist.LogNormal(z[:, 0], softplus(z[:, 1])), POSITIVE),
    "student": (2, lambda z: dist.StudentT(4.0, z[:, 0], softplus(z[:, 1])), REAL),
    "student, unknown ν": (3, lambda z: dist.StudentT(3 + softplus(z[:, 2]), z[:, 0], softplus(z[:, 1])), REAL),
    "cauchy": (2, lambda z: dist.Cauchy(z[:, 0], softplus(z[:, 1])), REAL),
    "logistic": (2, lambda z: dist.Logistic(z[:, 0], softplus(z[:, 1])), REAL),
    "exponential": (1, lambda z: dist.Exponential(softplus(z[:, 0])), POSITIVE),
    "half normal": (1, lambda z: dist.HalfNormal(softplus(z[:, 0])), POSITIVE),
    "gamma (KL)": (2, lambda z: dist.Gamma(1 + softplus(z[:, 0]), softplus(z[:, 1])), POSITIVE),
    "beta (KL)": (2, lambda z: dist.Beta(1 + softplus(z[:, 0]), 1 + softplus(z[:, 1])), unit()),
    "poisson": (1, lambda z: dist.Poisson(jnp.exp(z[:, 0])), COUNTS),
    "negative binomial": (1, lambda z: dist.NegativeBinomial2(softplus(z[:, 0]), 2.5), COUNTS),
    "binomial": (1, lambda z: dist.Binomial(4, logits=z[:, 0]), (np.arange(5.0), np.ones(5))),
    "geometric": (1, lambda z: dist.Geometric(logits=z[:, 0] + 0.5), (np.arange(400.0), np.ones(400))),
    "bernoulli": (1, lambda z: dist.Bernoulli(probs=jax.nn.sigmoid(z[:, 0])), (np.arange(2), np.ones(2))),
    "categorical": (3, lambda z: dist.Categorical(probs=jax.nn.softmax(z)), (np.arange(3), np.ones(3))),
    "ordered": (1, lambda z: dist.OrderedLogistic(z[:, 0], jnp.array([-0.5, 0.7])), (np.arange(3), np.ones(3))),
}


def linear_model(outputs, family):
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(jnp.zeros((2, outputs)), 1.0).to_event(2))
        return numpyro.sample("y", family(x @ w), obs=y)
    return model


QUICK = ("normal", "student", "exponential", "gamma (KL)", "poisson", "binomial", "categorical", "ordered")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_output_fisher_of_every_family(x64, name):
    """Against the covariance of scores, summed over all labels (50)."""
    outputs, family, (labels, weights) = FAMILIES[name]
    x = inputs(3, 2)
    theta = 0.4 * np.random.default_rng(2).normal(size=2 * outputs)
    dense = score_metric(lambda t, y: family(x @ t.reshape(2, outputs)).log_prob(jnp.full(3, y)), jnp.asarray(theta),
                         labels, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an exact way is known for all of these
        metric = fisher(linear_model(outputs, family), None, x, "full", at={"w": theta.reshape(2, outputs)})
    exact = np.linalg.eigvalsh(dense)[::-1]
    count = min(metric.eigenvalues.size, exact.size)
    np.testing.assert_allclose(metric.eigenvalues[:count], exact[:count], rtol=1e-6, atol=1e-9 * exact[0])


def test_laplace_family(x64):
    """The density has a kink, on which quadrature is poor: F = 1/s² for location and for scale, by hand."""
    model = linear_model(2, lambda z: dist.Laplace(z[:, 0], jnp.exp(z[:, 1])))
    x, w = inputs(3, 2), jnp.array([[0.3, -0.2], [0.1, 0.5]])
    metric = fisher(model, None, x, at={"w": w})
    scale = np.exp(np.asarray(x @ w)[:, 1])
    np.testing.assert_allclose(metric.stiffness["w"][:, 0], np.mean(np.asarray(x) ** 2 / scale[:, None] ** 2, 0))
    np.testing.assert_allclose(metric.stiffness["w"][:, 1], np.mean(np.asarray(x) ** 2, 0))


@pytest.mark.parametrize("family", [
    lambda z: dist.MultivariateNormal(z[:, :2], jnp.array([[0.8, 0.3], [0.3, 0.5]])),
    lambda z: dist.MultivariateNormal(z[:, :2], scale_tril=tril(z[:, 2:])),
    lambda z: dist.MultivariateNormal(jnp.zeros(2), scale_tril=tril(z[:, 2:])),
    lambda z: dist.LowRankMultivariateNormal(z[:, :2], jnp.ones((z.shape[0], 2, 1)), softplus(z[:, 3:])),
], ids=["known covariance", "unknown covariance", "covariance alone", "low rank"])
def test_multivariate_normal(x64, family):
    """Against the Hessian of the KL of Gaussians, written out."""
    x, theta = inputs(3, 2), 0.4 * np.random.default_rng(2).normal(size=10)

    def divergence(theta, other):
        p, q = family(x @ theta.reshape(2, 5)), family(x @ other.reshape(2, 5))
        a, b = jnp.broadcast_to(p.covariance_matrix, (3, 2, 2)), jnp.broadcast_to(q.covariance_matrix, (3, 2, 2))
        gap = jnp.broadcast_to(q.mean - p.mean, (3, 2))
        inverse = jnp.linalg.inv(b)
        kl = 0.5 * (jnp.trace(inverse @ a, axis1=-2, axis2=-1) + jnp.einsum("ni,nij,nj->n", gap, inverse, gap) - 2
                    + jnp.linalg.slogdet(b)[1] - jnp.linalg.slogdet(a)[1])
        return jnp.mean(kl)

    dense = kl_metric(divergence, jnp.asarray(theta))
    metric = fisher(linear_model(5, family), None, x, "full", at={"w": theta.reshape(2, 5)})
    exact = np.linalg.eigvalsh(dense)[::-1]
    np.testing.assert_allclose(metric.eigenvalues, exact[:metric.eigenvalues.size], rtol=1e-8, atol=1e-12)


def test_masked_data_say_nothing(x64):
    mask = jnp.array([True, False, True, True])
    x = inputs(4, 2)

    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
        m = numpyro.sample("m", dist.Normal(0, 1))
        return numpyro.sample("y", dist.Normal(x[:, 1:] @ w[None] + m * 0, 0.5).mask(x[:, :1] > 0).to_event(1), obs=y)

    x = x.at[:, 0].set(jnp.where(mask, 1.0, -1.0))
    at = {"w": jnp.zeros(2), "m": jnp.zeros(())}
    metric = fisher(model, None, x, at=at, sites="w")
    np.testing.assert_allclose(metric.stiffness["w"], np.sum(np.asarray(x)[mask, 1] ** 2) / 0.25 / 4 * np.ones(2))


def test_unknown_family_is_drawn_and_says_so(x64):
    def family(z):
        return dist.DirichletMultinomial(jnp.stack([jnp.exp(z[:, 0]), jnp.ones(z.shape[0])], -1), 4)
    x, w = inputs(4, 2), jnp.array([[0.3], [0.2]])
    with pytest.warns(UserWarning, match="DirichletMultinomial has neither a formula .* Monte-Carlo"):
        metric = fisher(linear_model(1, family), None, x, at={"w": w}, num_samples=4000)
    assert metric.estimator == "montecarlo"
    dense = score_metric(lambda t, y: family(x @ t.reshape(2, 1)).log_prob(jnp.full((4, 2), jnp.array([y, 4 - y]))),
                         jnp.ravel(w), np.arange(5.0), np.ones(5))
    z = (np.ravel(metric.stiffness["w"]) - np.diag(dense)) / np.ravel(metric.sem["w"])
    assert np.abs(z).max() < 5


@pytest.mark.slow
def test_memory_of_drawn_labels_does_not_grow_with_their_square():
    """Temporaries of the general way: 16 times the labels, at most about 16 times the memory."""
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(jnp.zeros((2, 2)), 1.0).to_event(2))
        z = x @ w
        numpyro.sample("y", dist.NegativeBinomial2(jnp.exp(z[:, 0]), jnp.exp(z[:, 1])), obs=y)

    def temporary(count):
        metric = fisher(model, None, inputs(4, 2), estimator="montecarlo", at={"w": jnp.zeros((2, 2))},
                        num_samples=count, key=jax.random.key(0))
        program = jax.jit(lambda shared: metric.geometry.diagonal(*shared)).lower(
            (metric.draws(), metric.shared.data, jax.random.key(1)))
        return program.compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096) < 24 * temporary(256)


# -- any model --------------------------------------------------------------------------------------------------
def regression(x, y=None, width=3):
    """A two-layer network with unknown noise, in the spirit of NumPyro's Bayesian neural network example."""
    w0 = numpyro.sample("w0", dist.Normal(jnp.zeros((x.shape[1], width)), 1.0))
    w1 = numpyro.sample("w1", dist.Normal(jnp.zeros((width, width)), 1.0))
    w2 = numpyro.sample("w2", dist.Normal(jnp.zeros((width, 1)), 1.0))
    f = jnp.tanh(jnp.tanh(x @ w0) @ w1) @ w2
    precision = numpyro.sample("precision", dist.Gamma(3.0, 1.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("target", dist.Normal(f, 1 / jnp.sqrt(precision)).to_event(1), obs=y)


@pytest.mark.parametrize("coordinates", ["native", "unconstrained"])
def test_network_with_unknown_noise(x64, coordinates):
    x = inputs(5, 2)
    bound = bind(regression, x)
    post = prior(regression, x, key=jax.random.key(0), num_samples=2)
    params, sites = post.draw(1, 0), bound.names
    start = dict(params) if coordinates == "native" else {**params, "precision": jnp.log(params["precision"])}

    def law(theta):
        p = unflat(theta, start, sites)
        phi = jnp.tanh(jnp.tanh(x @ p["w0"]) @ p["w1"]) @ p["w2"]
        return phi, (p["precision"] if coordinates == "native" else jnp.exp(p["precision"])) ** -0.5

    def divergence(theta, other):
        (f, s), (g, t) = law(theta), law(other)
        return jnp.mean(jnp.log(t / s) + (s**2 + (f - g) ** 2) / (2 * t**2) - 0.5)

    dense = kl_metric(divergence, jnp.asarray(flat(start, sites)))
    metric = fisher(regression, post, x, "full", coordinates=coordinates, progress_bar=False)
    assert metric.stiffness["w0"].shape == (2, 1, 2, 3)
    np.testing.assert_allclose(flat({s: v[1, 0] for s, v in metric.stiffness.items()}, sites), np.diag(dense),
                               rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(metric.eigenvalues[1, 0], np.linalg.eigvalsh(dense)[::-1][:10], rtol=1e-8, atol=1e-12)
    v = np.random.default_rng(0).normal(size=len(dense))
    assert float(metric.quadratic(unflat(v, start, sites), chain=1)) == pytest.approx(v @ dense @ v, rel=1e-8)


def hierarchical(x, y=None):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    w = numpyro.sample("w", dist.Normal(jnp.zeros(2), tau).to_event(1))
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
    return numpyro.sample("y", dist.Normal(jnp.tanh(x @ w) + p[0] - p[2], 0.5), obs=y)


def test_hierarchical_and_coupled_sites(x64):
    x = inputs(4, 2)
    post = prior(hierarchical, x, key=jax.random.key(0), num_samples=4)
    metric = fisher(hierarchical, post, x, progress_bar=False)
    assert metric.sites == ("w", "p")  # a parent does not flow by default
    white = fisher(hierarchical, post, x, "full", whiten=True, sites="w", progress_bar=False)
    assert white.prior_scale["w"].shape == (4, 1, 2)
    np.testing.assert_allclose(white.prior_scale["w"][2, 0], float(post.samples["tau"][2, 0]) * np.ones(2))
    np.testing.assert_allclose(white.stiffness["w"], metric.stiffness["w"] * post.samples["tau"][..., None] ** 2)
    free = fisher(hierarchical, post, x, "full", coordinates="unconstrained", sites=("w", "p"), progress_bar=False)
    assert free.stiffness["p"].shape == (4, 1, 2)  # a simplex of three has two free coordinates
    transform = dist.biject_to(dist.constraints.simplex)
    params = post.draw(0, 0)
    rows = jax.jacrev(lambda w, u: jnp.tanh(x @ w) + transform(u)[0] - transform(u)[2], (0, 1))(
        params["w"], transform.inv(params["p"]))
    exact = np.linalg.eigvalsh(np.hstack(rows).T @ np.hstack(rows))[::-1] / 4 / 0.25
    np.testing.assert_allclose(free.eigenvalues[0, 0], exact, rtol=1e-8, atol=1e-12)
    with pytest.raises(ValueError, match="correlated under its Dirichlet prior"):
        fisher(hierarchical, post, x, whiten=True)


def test_prior_scale_in_unconstrained_coordinates(x64):
    """log of a Gamma variable: mean ψ(a) − log b, variance ψ'(a); of a uniform one through the logit: 0 and π²/3."""
    def model(x, y=None):
        g = numpyro.sample("g", dist.Gamma(2.5, 3.0))
        u = numpyro.sample("u", dist.Uniform(-1, 2).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ u * g, 1.0), obs=y)

    x = inputs(4, 2)
    metric = fisher(model, None, x, at={"g": jnp.array(0.7), "u": jnp.array([0.1, 0.5])}, coordinates="unconstrained",
                    whiten=True)
    digamma, trigamma = jax.scipy.special.digamma(2.5), jax.scipy.special.polygamma(1, 2.5)
    assert float(metric.prior_mean["g"]) == pytest.approx(float(digamma - np.log(3)), rel=1e-6)
    assert float(metric.prior_scale["g"]) == pytest.approx(float(np.sqrt(trigamma)), rel=1e-6)
    np.testing.assert_allclose(metric.prior_scale["u"], np.pi / np.sqrt(3) * np.ones(2), rtol=1e-3)


def test_cosnet_both_ways_and_its_readout(x64):
    net, x = cosnet(5, 2, 1.0, 3.0, likelihood=gaussian(0.5)), inputs(6, 2)
    params = draw(net, x)
    sites = bind(net, x).names
    dense = looped_metric(net.apply, params, x, sites, "gaussian", 0.5)
    metric = fisher(net, None, x, at=params)
    np.testing.assert_allclose(flat(metric.stiffness, sites), np.diag(dense), rtol=1e-9)
    readout = fisher(net, None, x, at=params, sites="w")
    assert readout.geometry.layered and not metric.geometry.layered
    np.testing.assert_allclose(readout.stiffness["w"], metric.stiffness["w"], rtol=1e-9)


def test_equinox_and_flax_modules():
    """Networks of other libraries through numpyro.contrib.module, with one line of adaptation."""
    from numpyro.contrib import module
    eqx, linen = pytest.importorskip("equinox"), pytest.importorskip("flax.linen")
    x = inputs(5, 2)
    net = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))

    def with_equinox(x, y=None):
        f = module.random_eqx_module("net", net, prior=dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(jax.vmap(f)(x), 0.5).to_event(1), obs=y)

    def with_flax(x, y=None):
        f = module.random_flax_module("net", linen.Dense(2), prior=dist.Normal(0, 1), input_shape=(1, 2))
        numpyro.sample("y", dist.Categorical(logits=f(x)), obs=y)

    for model in (with_equinox, with_flax):
        post = prior(model, x, key=jax.random.key(0), num_samples=2)
        metric = fisher(model, post, x, "full", progress_bar=False)
        assert set(metric.stiffness) == set(bind(model, x).names)
        total = sum(float(jnp.sum(v[1, 0])) for v in metric.stiffness.values())
        assert metric.eigenvalues[1, 0].sum() == pytest.approx(total, rel=1e-5)


def test_model_that_squeezes_its_output(x64):
    """A bare squeeze loses the datum axis of a single datum; the general way shows each datum twice."""
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(jnp.zeros((2, 1)), 1.0).to_event(2))
        numpyro.sample("y", dist.Normal((x @ w).squeeze(), 0.5), obs=y)

    x = inputs(4, 2)
    for estimator, extra in (("exact", {}), ("empirical", {"y": jnp.zeros(4)})):
        metric = fisher(model, None, x, "diagonal", estimator, at={"w": jnp.zeros((2, 1))}, **extra)
        expected = np.mean(np.asarray(x) ** 2, 0) / 0.25 if estimator == "exact" else np.zeros(2)
        np.testing.assert_allclose(metric.stiffness["w"].ravel(), expected)


def test_inputs_may_be_a_pytree(x64):
    def model(x, y=None):
        a = numpyro.sample("a", dist.Normal(0, 1))
        numpyro.sample("y", dist.Poisson(jnp.exp(a * x["u"] + x["v"])), obs=y)

    x = {"u": jnp.arange(3.0), "v": jnp.ones(3)}
    metric = fisher(model, None, x, at={"a": jnp.array(0.1)}, batch_size=2)
    assert float(metric.stiffness["a"]) == pytest.approx(float(jnp.mean(x["u"] ** 2 * jnp.exp(0.1 * x["u"] + 1))))


# -- at, draws, total, table --------------------------------------------------------------------------------------
def test_at_draw_mean_map_and_params():
    net, x = CASES["tanh"], inputs()
    post = prior(net, x, key=jax.random.key(0), num_samples=6)  # (3, 2)
    metric = fisher(net, post, x, progress_bar=False)
    assert metric.per_draw and metric.stiffness["w0"].shape == (3, 2, 3, 4)
    assert metric.flat_stiffness()["w0"].shape == (6, 3, 4)
    best = np.unravel_index(np.argmax(post.stats["log_joint"]), (3, 2))
    for at, params in (("map", post.draw(*map(int, best))), ("mean", post.mean()), (post.draw(2, 1), post.draw(2, 1))):
        shared = fisher(net, post, x, at=at)
        assert not shared.per_draw and shared.stiffness["w0"].shape == (3, 4)
        np.testing.assert_allclose(shared.stiffness["w0"], fisher(net, None, x, at=params).stiffness["w0"])
    np.testing.assert_allclose(shared.stiffness["w1"], metric.stiffness["w1"][2, 1], rtol=1e-5)
    np.testing.assert_allclose(shared.total(50).stiffness["w1"], 50 * shared.stiffness["w1"])
    readout = fisher(net, post.replace(trained=("w1",)), x, progress_bar=False)
    assert readout.sites == ("w1",)
    full = fisher(net, post, x, "full", progress_bar=False).total(50)
    np.testing.assert_allclose(full.stiffness["w1"], 50 * metric.stiffness["w1"], rtol=1e-4)
    assert np.sum(full.eigenvalues[0, 1]) == pytest.approx(
        50 * sum(float(jnp.sum(v[0, 1])) for v in metric.stiffness.values()), rel=1e-4)


def test_table_names_parameters():
    net, x = CASES["tanh"], inputs()
    metric = fisher(net, prior(net, x, key=jax.random.key(0), num_samples=4), x, progress_bar=False)
    table = metric.table(num=2)
    assert [r.rank for r in table] == [1, 2, 15, 16]
    mean = {s: np.mean(v, (0, 1)) for s, v in metric.stiffness.items()}
    top = table.rows[0]
    site, index = top.name.split("[")
    i, j = (int(k) for k in index.rstrip("]").split(","))
    assert mean[site][i, j] == pytest.approx(max(np.max(v) for v in mean.values())) == pytest.approx(top.stiffness)
    assert "(12 more)" in str(table) and top.name in str(table)


@partial(jax.jit, static_argnums=0)
def stiff_part(geometry, per_draw, shared, delta, cutoff):
    def one(slices):
        mine, delta = slices
        arrays = (mine, shared)
        values, modes = geometry.spectrum(arrays), geometry.to_modes(arrays, delta)
        return geometry.from_modes(arrays, jax.tree.map(lambda v, c: jnp.where(v >= cutoff, c, 0.0), values, modes))
    return jax.lax.map(one, (per_draw, delta))


@pytest.mark.parametrize("kind", ["diagonal", "full", "block"])
def test_modes_inside_compiled_code(x64, kind):
    """What the flow does: keep the directions stiffer than a cutoff, draw by draw, without asking for the kind."""
    net, x = CASES["ntk"], inputs(4, 3)
    post = prior(net, x, key=jax.random.key(0), num_samples=3)
    metric = fisher(net, post, x, kind, whiten=True, progress_bar=False)
    per_draw, shared = metric.arrays()
    delta = post.flat()
    kept = stiff_part(metric.geometry, per_draw, shared, delta, 0.1)
    again = stiff_part(metric.geometry, per_draw, shared, kept, 0.1)
    for s in metric.sites:
        np.testing.assert_allclose(again[s], kept[s], atol=1e-9)  # a projection
    if kind == "full":
        chain = len(metric.stiffness["w0"]) - 1
        basis, scale = np.asarray(metric.basis(chain, 0)), flat(metric.prior_scale, metric.sites)
        chosen = basis[:, metric.eigenvalues[chain, 0] >= 0.1]
        index = metric.lead[1] * chain
        expected = scale * (chosen @ (chosen.T @ (flat({s: v[index] for s, v in delta.items()}, metric.sites) / scale)))
        np.testing.assert_allclose(flat({s: v[index] for s, v in kept.items()}, metric.sites), expected, atol=1e-9)
    assert hash(metric.geometry) == hash(fisher(net, post, x, kind, whiten=True, progress_bar=False).geometry)


def test_noise_floor_in_float32():
    """A spectrum that falls over twenty decades: what float32 rows can tell is right, the rest is flagged."""
    net, x = mlp((64, 64), activation="tanh", bias_std=1.0), jnp.linspace(-1, 1, 60)[:, None]
    params = draw(net, x)
    with jax.enable_x64(True):
        double = {s: jnp.asarray(np.asarray(v, np.float64)) for s, v in params.items()}
        exact = fisher(net, None, jnp.asarray(np.asarray(x, np.float64)), "full", at=double).eigenvalues
    metric = fisher(net, None, x, "full", at=params)
    gap, top = np.abs(metric.eigenvalues - exact), exact[0]
    large = exact >= 1e-6 * top
    assert large.sum() >= 4 and np.max(gap[large] / exact[large]) < 1e-4
    assert np.max(gap[~large]) < 1e-7 * top
    assert 10 < metric.below_floor < 60
    above = metric.eigenvalues > metric.noise_floor
    assert np.max(gap[above] / exact[above]) < 0.5
    assert metric.values()[0] == 0.0 and np.sum(metric.values() > 0) == above.sum()


def test_labels_do_not_depend_on_the_batch():
    net, x = CASES["tanh"], inputs()
    options = {"estimator": "montecarlo", "at": draw(net, x), "key": jax.random.key(0), "num_samples": 5}
    whole, part = fisher(net, None, x, **options), fisher(net, None, x, batch_size=3, **options)
    np.testing.assert_allclose(whole.stiffness["w0"], part.stiffness["w0"], rtol=1e-5)


# -- full size ------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_spectrum_of_300_000_parameters():
    """P = 296,449, n = 1,000: against float64 throughout."""
    net, x = mlp((512, 512), activation="tanh", bias_std=1.0), inputs(1000, 64)
    params = draw(net, x)
    metric = fisher(net, None, x, "full", at=params)
    with jax.enable_x64(True):
        double = {s: jnp.asarray(np.asarray(v, np.float64)) for s, v in params.items()}
        exact = fisher(net, None, jnp.asarray(np.asarray(x, np.float64)), "full", at=double).eigenvalues
    gap, top = np.abs(metric.eigenvalues - exact), exact[0]
    large = exact >= 1e-6 * top
    assert np.max(gap[large] / exact[large]) < 1e-4
    assert np.max(gap[~large], initial=0.0) < 1e-7 * top
    assert int(metric.below_floor) == np.sum(metric.eigenvalues <= metric.noise_floor)


FULL_SIZE = """
import sys, jax
from bayes_brg.metric.fisher import fisher
from bayes_brg.model.networks import mlp
from bayes_brg.posterior import prior
if sys.argv[1] == "wide":  # P = 296,449, n = 1,000
    net, count = mlp((512, 512), activation="tanh", bias_std=1.0), 1
    x = jax.random.normal(jax.random.key(0), (1000, 64))
else:  # a metric at each of 1,000 draws of P = 22,648
    net = mlp((10, 10, 2048), activation=("identity", "relu", "relu"), scaling="none")
    x, count = jax.random.normal(jax.random.key(0), (200, 2)), 1000
metric = fisher(net, prior(net, x, key=jax.random.key(1), num_samples=count), x, "full", whiten=True)
assert metric.eigenvalues.shape[-1] == len(x)
with open("/proc/self/status") as status:  # getrusage would count the peak of the process that started this one
    print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20)  # GiB
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["wide", "many"])
def test_full_size_stays_within_two_gib(size):
    """Peak resident memory of a process of its own."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # eigenproblems of 200 × 200: threads only get in the way
    done = subprocess.run([sys.executable, "-c", FULL_SIZE, size], capture_output=True, text=True, env=environment,
                          check=True)
    assert float(done.stdout) < 2.0


# -- errors -----------------------------------------------------------------------------------------------------
def test_errors_name_the_value_and_the_remedy():
    net, x = CASES["tanh"], inputs()
    params = draw(net, x)
    for match, options in {
        "estimator='empirical' .* pass y=": {"estimator": "empirical"},
        "montecarlo' draws labels: pass key=": {"estimator": "montecarlo"},
        "kind must be one of .* did you mean 'full'": {"kind": "ful"},
        "coordinates must be one of": {"coordinates": "polar"},
        "no parameter site 'w9'": {"sites": "w9"},
        "sites is empty": {"sites": ()},
        "names a site twice": {"sites": ("w0", "w0")},
        "rank must be a whole number": {"rank": 0},
        "batch_size must be a whole number": {"batch_size": 0},
        "needs a posterior": {"at": "draw"},
        "at lacks the site": {"at": {"w0": params["w0"]}},
    }.items():
        with pytest.raises(ValueError, match=match):
            fisher(net, None, x, **{"at": params, **options})
    with pytest.raises(ValueError, match="y has shape"):
        fisher(net, None, x, at=params, estimator="empirical", y=jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"y\[2, 0\] is nan"):
        fisher(net, None, x, at=params, estimator="empirical", y=jnp.zeros((7, 1)).at[2].set(jnp.nan))
    with pytest.raises(ValueError, match=r"y has shape \(7, 2\) but the model observes \(7, 1\)"):
        fisher(plain(net), None, x, at=params, estimator="empirical", y=jnp.zeros((7, 2)))
    with pytest.raises(TypeError):
        fisher(net, None, x, at=params, colour="red")
    metric = fisher(net, None, x, at=params)
    with pytest.raises(ValueError, match="num_data must be a finite number above 0, got -3"):
        metric.total(-3)
    with pytest.raises(ValueError, match="diagonal metric has no eigenbasis"):
        metric.basis()
    with pytest.raises(TypeError, match="got ndarray; unravel makes one"):
        metric.quadratic(np.zeros(16))
    with pytest.raises(ValueError, match="does not cover site 'w7'"):
        metric.quadratic({"w7": jnp.zeros(2)})
    with pytest.raises(ValueError, match="site 'w0' has shape"):
        metric.quadratic({"w0": jnp.zeros(2)})
    post = prior(net, x, key=jax.random.key(0), num_samples=2)
    with pytest.raises(IndexError, match="no chain 5"):
        fisher(net, post, x, "full", progress_bar=False).basis(5, 0)


def noisy(scale):
    def model(x, y=None):
        a = numpyro.sample("a", dist.Normal(0, 1))
        s = numpyro.sample("s", dist.Normal(scale, 1))
        numpyro.sample("y", dist.Normal(a * x[:, 0], s), obs=y)
    return model


def test_models_without_a_metric_are_refused():
    x = inputs(4, 2)

    def improper(x, y=None):
        a = numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(a * x[:, 0], 1.0), obs=y)

    def unobserved(x, y=None):
        numpyro.sample("a", dist.Normal(0, 1))

    def discrete(x, y=None):
        k = numpyro.sample("k", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(k * x[:, 0], 1.0), obs=y)

    def exact(x, y=None):
        a = numpyro.sample("a", dist.Normal(0, 1))
        numpyro.sample("y", dist.Delta(a * x[:, 0]), obs=y)

    def moving(x, y=None):
        a = numpyro.sample("a", dist.HalfNormal(1))
        numpyro.sample("y", dist.Uniform(0, a * jnp.abs(x[:, 0])), obs=y)

    def heavy(x, y=None):
        a = numpyro.sample("a", dist.Cauchy(0, 1))
        numpyro.sample("y", dist.Normal(a * x[:, 0], 1.0), obs=y)

    at = {"a": jnp.array(0.5)}
    for model, match, options in (
        (improper, "site 'a' has an improper prior", {"at": at}),
        (unobserved, "no observed site", {"at": at}),
        (discrete, "site 'k' is discrete", {"at": {"k": jnp.array(1)}}),
        (exact, "singular output Fisher", {"at": at}),
        (moving, "support of the observed Uniform moves", {"at": at}),
        (heavy, "site 'a' has mean .* Cauchy prior", {"at": at, "whiten": True}),
        (noisy(1.0), "singular at the given point, datum 0: Normal with .*scale = \\[0.0\\]",
         {"at": {"a": jnp.array(1.0), "s": jnp.array(0.0)}}),
    ):
        with pytest.raises(ValueError, match=match):
            fisher(model, None, x, **options)
    samples = {"a": jnp.ones((2, 2)), "s": jnp.array([[1.0, 1.0], [0.0, 1.0]])}
    with pytest.raises(ValueError, match="singular at chain 1, draw 0"):
        fisher(noisy(1.0), Posterior(samples), x, progress_bar=False)
    with pytest.raises(ValueError, match="'a' is not finite at chain 1, draw 1"):
        fisher(noisy(1.0), Posterior({"a": samples["a"].at[1, 1].set(jnp.nan), "s": jnp.ones((2, 2))}), x,
               progress_bar=False)
