"""Flows along fibres: their law where it is known, their ends, the prior as a fixed point, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import bayes_brg as brg
from bayes_brg.flow.fibre_kernel import FibreSpec, coordinates, fibre_of

KEY = jax.random.key(31)
RNG = np.random.default_rng(8)
X = (RNG.normal(size=(12, 3)) @ np.array([[1.0, 0.8, 0.0], [0.0, 0.6, 0.5], [0.0, 0.0, 0.4]])).astype(np.float32)
CUTOFFS = np.array([1e-3, 0.03, 0.3, 1.0, 3.0, 20.0])
TOLERANCE = 0.05


DRAWS = 200
MEAN, SCALE = np.array([1.0, -2.0, 0.5, -1.0]), np.array([1.0, 0.5, 2.0, 0.7])


def regression(x, y=None):
    """A general model, linear, whose priors have means."""
    w = numpyro.sample("w", dist.Normal(jnp.asarray(MEAN[:3], float), jnp.asarray(SCALE[:3], float)).to_event(1))
    b = numpyro.sample("b", dist.Normal(MEAN[3], SCALE[3]))
    numpyro.sample("y", dist.Normal(x @ w + b, 0.3), obs=y)


def one_output():
    """Model, draws, metric; and of each draw the whitened factor G (n, P) of one output."""
    post = brg.prior(regression, X, key=KEY, num_samples=DRAWS)
    factor = np.column_stack([X, np.ones(len(X))]) * SCALE / (0.3 * np.sqrt(len(X)))
    return regression, post, brg.fisher(regression, post, X, kind="full", whiten=True), np.stack([factor] * DRAWS)


def two_outputs():
    """A readout of two outputs on features that stay."""
    net = brg.mlp((2,), 2, activation="tanh", bias_std=0.5, likelihood=brg.gaussian(0.4))
    post = brg.prior(net, X, key=KEY, num_samples=DRAWS).replace(trained=("w1", "b1"))
    flat = {s: np.asarray(v, float) for s, v in post.flat().items()}
    hidden = np.tanh(np.einsum("ni,tij->tnj", X, flat["w0"]) + flat["b0"][:, None])
    ones = np.ones((*hidden.shape[:2], 1))
    factor = np.concatenate([hidden / 2**0.5, 0.5 * ones], 2) / (0.4 * np.sqrt(len(X)))
    return net, post, brg.fisher(net, post, X, kind="full", whiten=True), factor


def whitened(samples):
    """(T, P, outputs): the flowing sites in units of their priors."""
    flat = {s: np.asarray(v, float).reshape(DRAWS, *np.shape(v)[2:]) for s, v in samples.items()}
    if "w" in flat:
        return ((np.column_stack([flat["w"], flat["b"]]) - MEAN) / SCALE)[..., None]
    return np.concatenate([flat["w1"] * 2**0.5, flat["b1"][:, None] / 0.5], 1)


def errors_of(flow, factor, tolerance):
    """(cutoff, T, modes): coordinates of θ_Λ as they deviate from their law given θ*, in its standard deviations."""
    _, s, vt = np.linalg.svd(factor, full_matrices=False)
    found, start = [], vt @ whitened({s_: flow.posterior.samples[s_] for s_ in flow.samples})
    for i, cutoff in enumerate(flow.cutoffs):
        wall = np.where(s**2 >= cutoff, s**2 / (tolerance * cutoff), 0.0)[..., None]
        u = vt @ whitened({name: v[i] for name, v in flow.samples.items()})
        found.append(((u - wall / (1 + wall) * start) * np.sqrt(1 + wall)).reshape(DRAWS, -1))
    return np.stack(found)


@pytest.mark.parametrize("make, readout", [(one_output, "sampled"), (two_outputs, "auto"), pytest.param(
    two_outputs, "sampled", marks=pytest.mark.slow), pytest.param(two_outputs, "collapsed", marks=pytest.mark.slow)])
def test_the_law_of_a_linear_readout(make, readout):
    """Given θ*, mode k is N(û/(1+r), r/(1+r)), r = ηΛ/λ, where it is kept, and N(0, 1) where not; 4 standard errors.

    Some 150 comparisons, of which one fails in a hundred choices of the key.
    """
    model, post, metric, factor = make()
    flow = brg.renormalize_fibre(model, post, metric, cutoffs=CUTOFFS, key=KEY, tolerance=TOLERANCE, num_tuning=8,
                                 num_transitions=8, readout=readout)
    errors = errors_of(flow, factor, TOLERANCE)
    size = errors.shape[2]
    assert (np.abs(errors.mean(axis=1)) < 4 / np.sqrt(DRAWS)).all()
    for e in errors:
        assert (np.abs(np.cov(e.T) - np.eye(size)) < 4 * np.sqrt((1 + np.eye(size)) / DRAWS)).all()
    kept = flow.diagnostics["num_kept"].mean(("chain", "draw"))
    assert kept[0] > kept[2] > kept[-1]


@pytest.mark.slow
@pytest.mark.parametrize("make", [one_output, two_outputs])
def test_the_sharp_flow_in_eigenmodes(make):
    """The same mean and covariance as `renormalize`, whose θ₀ are others, within 4 standard errors."""
    model, post, metric, _ = make()
    flow = brg.renormalize_fibre(model, post, metric, cutoffs=CUTOFFS, key=KEY, tolerance=0.002, num_tuning=8,
                                 num_transitions=10, readout="auto" if make is two_outputs else "sampled")
    sharp = brg.renormalize(model, post, metric, cutoffs=CUTOFFS, key=jax.random.key(5))
    for cutoff in CUTOFFS:
        ours, theirs = (np.concatenate([np.asarray(v).reshape(DRAWS, -1) for v in
                                        (f.at(cutoff).flat()[s] for s in metric.sites)], 1) for f in (flow, sharp))
        products = [np.concatenate([a, np.einsum("ti,tj->tij", a - a.mean(0), a - a.mean(0)).reshape(DRAWS, -1)], 1)
                    for a in (ours, theirs)]
        # The two share θ*: paired where that is the smaller error.
        paired = (products[0] - products[1]).std(0) / np.sqrt(DRAWS)
        assert (np.abs(products[0].mean(0) - products[1].mean(0)) < 4 * np.maximum(paired, 1e-3)).all()


NET = brg.mlp((4,), activation="tanh", bias_std=0.5, weight_std=1.5, likelihood=brg.gaussian(0.3))
LINE = np.linspace(-2, 2, 7, dtype=np.float32)[:, None]


@pytest.fixture(scope="module")
def prior_flow():
    """The prior, flowed."""
    post = brg.prior(NET, LINE, key=jax.random.key(2), num_samples=400)
    metric = brg.fisher(NET, post, LINE, kind="full", whiten=True)
    flow = brg.renormalize_fibre(NET, post, metric, cutoffs=[0.0, 0.1, 1.0, 1e6], key=KEY, num_tuning=10,
                                 num_transitions=10)
    return post, metric, flow


def test_ends_bit_for_bit(prior_flow):
    post, metric, flow = prior_flow
    sharp = brg.renormalize(NET, post, metric, cutoffs=[0.0], key=KEY)
    for cutoff, other in ((0.0, post), (1e6, sharp.at(np.inf)), (np.inf, sharp.at(np.inf))):
        assert all(np.array_equal(flow.at(cutoff).samples[s], other.samples[s]) for s in metric.sites)


def test_the_prior_is_a_fixed_point(prior_flow):
    _, metric, flow = prior_flow
    scale = {"w0": 1.5, "b0": 0.5, "w1": 0.75, "b1": 0.5}
    for cutoff in (0.1, 1.0):
        at = flow.at(cutoff)
        assert metric.sites == tuple(scale)
        for s in metric.sites:
            assert stats.kstest(np.ravel(at.samples[s]) / scale[s], "norm").pvalue > 1e-3, s


def test_what_is_kept_and_what_is_forgotten(prior_flow):
    """Kept coordinates stay within their shells, the rest is forgotten, and the numbers of the walk say so."""
    _, metric, flow = prior_flow
    found = flow.diagnostics
    assert set(found.data_vars) == {"acceptance", "num_gradients", "step_size", "angle", "deviation", "overlap", "move",
                                    "num_kept"}
    assert (found["deviation"] < 6).all()
    walked = found.sel(cutoff=[0.1, 1.0]).where(found["num_kept"] > 0)
    assert abs(float(walked["angle"].mean()) - 1.2) < 0.1
    assert 0.4 < float(walked["acceptance"].mean()) < 0.95
    assert abs(float(found["overlap"].sel(cutoff=0.1).mean())) < 0.5
    assert (found["overlap"].sel(cutoff=0.0) > 0.999).all() and (found["move"].sel(cutoff=0.0) == 0).all()
    np.testing.assert_array_equal(found["num_kept"].sel(cutoff=0.1),
                                  (np.asarray(metric.eigenvalues) >= 0.1).sum(-1))
    np.testing.assert_allclose(flow.stiff_fraction[1], found["num_kept"].sel(cutoff=0.1).mean() / 13)
    phi = flow.predict(LINE)
    moved = ((phi - phi.sel(cutoff=0.0)) ** 2).mean(("chain", "draw", "point", "output"))
    assert moved[1] < moved[2] < moved[3]


@pytest.mark.parametrize("readout", [pytest.param("sampled", marks=pytest.mark.slow), "collapsed"])
def test_distant_starts_have_the_same_law(readout):
    """From θ₀, with walls that come in from far, as from θ*: means of φ and of its square within 4 standard errors."""
    one = brg.prior(NET, LINE, key=jax.random.key(4), num_samples=1)
    post = brg.Posterior({s: jnp.repeat(v, 160, axis=1) for s, v in one.samples.items()})  # one θ*, many walks
    metric = brg.fisher(NET, post, LINE, kind="full", whiten=True)
    flows = [brg.renormalize_fibre(NET, post, metric, cutoffs=[0.3], key=key, start=start, num_tuning=30,
                                   num_transitions=40, readout=readout)
             for key, start in ((KEY, "posterior"), (jax.random.key(7), "prior"))]
    x = np.linspace(-3, 3, 9, dtype=np.float32)[:, None]  # between and beyond the probe inputs
    phi = np.stack([np.asarray(flow.predict(x)).reshape(160, -1) for flow in flows])
    for power in (1, 2):
        mean, error = (phi**power).mean(1), (phi**power).std(1) / np.sqrt(160)
        assert (np.abs(mean[0] - mean[1]) < 4 * np.hypot(*error) + 1e-6).all()
    assert all(float(np.median(flow.diagnostics["deviation"])) < 4 for flow in flows)


def labels(x, y=None):
    """A general model with two groups of weights, Bernoulli."""
    w = numpyro.sample("w", dist.Normal(jnp.zeros((3, 2)), 1.0).to_event(2))
    v = numpyro.sample("v", dist.Laplace(jnp.zeros(2), 1.0).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=jnp.tanh(x @ w) @ v), obs=y)


@pytest.mark.parametrize("model, kind", [(labels, "full"), (labels, "lowrank"), (brg.mlp(
    (3,), 3, activation="tanh", likelihood=brg.categorical()), "full")], ids=["general", "lowrank", "categorical"])
def test_function_coordinates(model, kind):
    """λ and s = Uᵀ F_out^{1/2} η/√n against a singular value decomposition in float64, and F_out frozen at θ*."""
    post = brg.prior(model, X, key=KEY, num_samples=2)
    metric = brg.fisher(model, post, X, kind=kind, whiten=True, rank=3, coordinates="unconstrained")
    own, shared = metric.arrays()
    first, bound = jax.tree.map(lambda a: a[0], own), metric.bound
    theta = {s: post.flat()[s][0] for s in bound.names}
    other = {s: post.flat()[s][1] for s in bound.names}
    fibre = fibre_of(spec := FibreSpec(metric.geometry, False, 3), (first, theta, theta, KEY), shared)
    logits = bound.phi(theta, X)
    p = np.asarray(jax.nn.softmax(logits, -1) if logits.shape[1] > 1 else jax.nn.sigmoid(logits), float)
    forms = [np.diag(q) - np.outer(q, q) if len(q) > 1 else np.array([[q[0] * (1 - q[0])]]) for q in p]
    halves = [vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T for values, vectors in map(np.linalg.eigh, forms)]
    scale = metric.prior_scale

    def flat(d):
        moved = {s: theta[s] + d[s] * (scale[s] if jnp.shape(scale[s]) == d[s].shape else 1) for s in d}
        return bound.phi(moved, X)

    jac = jax.jacrev(flat)({s: jnp.zeros_like(v) for s, v in theta.items()})
    jac = np.concatenate([np.asarray(jac[s], float).reshape(*logits.shape, -1) for s in metric.sites], -1)
    factor = np.einsum("nij,njp->nip", halves, jac).reshape(-1, jac.shape[-1]) / np.sqrt(len(X))
    u, s, _ = np.linalg.svd(factor, full_matrices=False)
    np.testing.assert_allclose(fibre.values, s[:3] ** 2, rtol=2e-4)
    for params in (theta, other):
        half = np.concatenate([h @ f for h, f in zip(halves, np.asarray(bound.phi(params, X), float), strict=True)])
        want = u[:, :3].T @ half / np.sqrt(len(X))
        np.testing.assert_allclose(np.abs(coordinates(spec, fibre, params, shared)), np.abs(want), atol=2e-4)
    np.testing.assert_allclose(coordinates(spec, fibre, theta, shared), fibre.centre, atol=1e-5)


def test_requests_that_have_no_fibre():
    post = brg.prior(NET, LINE, key=KEY, num_samples=4)

    def ask(metric, model=NET, post=post, **options):
        return brg.renormalize_fibre(model, post, metric, cutoffs=[0.1], key=KEY, **options)

    full = {"kind": "full", "whiten": True}
    with pytest.raises(ValueError, match="whitened metric"):
        ask(brg.fisher(NET, post, LINE, kind="full"))
    with pytest.raises(ValueError, match="a fibre of its own"):
        ask(brg.fisher(NET, post, LINE, at="mean", **full))
    for kind in ("diagonal", "block"):
        with pytest.raises(ValueError, match="all flowing parameters together"):
            ask(brg.fisher(NET, post, LINE, kind=kind, whiten=True))
    with pytest.raises(ValueError, match="observed labels"):
        ask(brg.fisher(NET, post, LINE, estimator="empirical", y=LINE, **full))
    metric = brg.fisher(NET, post, LINE, **full)
    with pytest.raises(ValueError, match="tolerance must be a finite number above 0"):
        ask(metric, tolerance=0)
    with pytest.raises(ValueError, match="lie between 0 and 1"):
        ask(metric, target_accept_prob=1.5)
    with pytest.raises(ValueError, match="start must be one of"):
        ask(metric, start="map")
    hidden = brg.fisher(NET, post, LINE, sites="w0", **full)
    with pytest.raises(ValueError, match="no readout site flows"):
        ask(hidden, readout="collapsed")

    def gammas(x, y=None):
        w = numpyro.sample("w", dist.Dirichlet(jnp.ones(1 + x.shape[1])))
        numpyro.sample("y", dist.Normal(x @ w[:-1], 1.0), obs=y)

    found = brg.prior(gammas, X, key=KEY, num_samples=4)
    with pytest.raises(ValueError, match="no exact map .*renormalize_tempered"):
        ask(brg.fisher(gammas, found, X, coordinates="unconstrained", **full), gammas, found)

    def scaled(x, y=None):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
        w = numpyro.sample("w", dist.Normal(jnp.zeros(x.shape[1]), scale).to_event(1))
        numpyro.sample("y", dist.Normal(x @ w * scale, 1.0), obs=y)

    found = brg.prior(scaled, X, key=KEY, num_samples=4)
    with pytest.raises(ValueError, match="'w' is held, but its prior depends on 'scale'"):
        ask(brg.fisher(scaled, found, X, sites="scale", coordinates="unconstrained", **full), scaled, found)
    with pytest.warns(UserWarning, match="max_steps ended them"):
        ask(metric, max_steps=1, num_tuning=1, num_transitions=2, tolerance=1e-5)


def test_some_sites_flow_and_units_of_the_metric_are_kept():
    """Sites left out stay; a metric of n data has cutoffs n times as large, and the same draws."""
    post = brg.prior(NET, LINE, key=KEY, num_samples=4)
    metric = brg.fisher(NET, post, LINE, kind="full", whiten=True, sites=("w0", "w1"))
    options = {"key": KEY, "num_tuning": 2, "num_transitions": 3}
    flow = brg.renormalize_fibre(NET, post, metric, cutoffs=[0.5], readout="collapsed", **options)
    for s in NET.bind(jnp.asarray(LINE)).names:
        assert np.array_equal(flow.at(0.5).samples[s], post.samples[s]) == (s not in metric.sites)
    total = brg.renormalize_fibre(NET, post, metric.total(4), cutoffs=[2.0], readout="collapsed", **options)
    np.testing.assert_allclose(total.at(2.0).samples["w1"], flow.at(0.5).samples["w1"], rtol=1e-4, atol=1e-5)


def test_drawn_labels():
    """A Monte-Carlo metric gives function coordinates too: those of the F_out of its labels."""
    post = brg.prior(NET, LINE, key=KEY, num_samples=2)
    metric = brg.fisher(NET, post, LINE, kind="full", whiten=True, estimator="montecarlo", key=KEY, num_samples=400)
    own, shared = metric.arrays()
    spec, theta = FibreSpec(metric.geometry, False, 2), {s: v[1] for s, v in post.flat().items()}
    fibre = fibre_of(spec, (jax.tree.map(lambda a: a[1], own), theta, theta, KEY), shared)
    np.testing.assert_allclose(coordinates(spec, fibre, theta, shared), fibre.centre, rtol=1e-5)
    exact = np.asarray(NET.apply(theta, LINE) / 0.3 / np.sqrt(7))
    np.testing.assert_allclose(np.sum(fibre.centre**2), np.sum(exact**2), rtol=0.3)  # of two coordinates of seven


def scaled(x, y=None):
    """Weights whose scale is a site; positive sites of several laws."""
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.3))
    w = numpyro.sample("w", dist.Normal(jnp.zeros(x.shape[1]), scale).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(x @ w, 0.3 + noise), obs=y)


def test_learned_scales_flow_where_they_are_asked_to():
    """Non-centred: where nothing is kept of them the joint law is the ancestral prior."""
    post = brg.prior(scaled, X, key=KEY, num_samples=240)
    metric = brg.fisher(scaled, post, X, kind="full", whiten=True, sites=("scale", "w", "noise"),
                        coordinates="unconstrained")
    top = np.asarray(metric.eigenvalues)[..., 0].max()
    flow = brg.renormalize_fibre(scaled, post, metric, cutoffs=[0.5 * np.median(metric.eigenvalues[..., 0]), 2 * top],
                                 key=KEY, num_tuning=8, num_transitions=8)
    at = flow.at(flow.cutoffs[0])
    assert (at.samples["noise"] > 0).all() and (at.samples["scale"] > 0).all()
    ratio = np.ravel(at.samples["w"] / at.samples["scale"][..., None])
    assert stats.kstest(ratio, "norm").pvalue > 1e-3  # the prior is a fixed point
    assert stats.kstest(np.log(np.ravel(at.samples["scale"])) / 0.3, "norm").pvalue > 1e-3
    assert (flow.diagnostics["deviation"] < 6).all()


def test_a_draw_too_far_in_a_tail_is_refused():
    def model(x, y=None):
        a = numpyro.sample("a", dist.Laplace(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a * x[:, 0], 0.5), obs=y)

    post = brg.Posterior({"a": np.array([[0.5, -0.2, 40.0, 1.0]])})
    metric = brg.fisher(model, post, X, kind="full", whiten=True)
    with pytest.raises(ValueError, match="1 draw.s. of site 'a', the first at chain 0, draw 2, lie so far in a tail"):
        brg.renormalize_fibre(model, post, metric, cutoffs=[0.1], key=KEY)
