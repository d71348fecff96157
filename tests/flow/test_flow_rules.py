"""Regulators, refills and bases of the flow against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import bayes_brg as brg
from bayes_brg.flow.regulators import Regulator

KEY = jax.random.key(31)
RNG = np.random.default_rng(7)
PRIOR_STD = np.array([1.0, 0.2, 0.5])  # prior precisions 1, 25, 4
NOISE = 0.7
X = RNG.normal(size=(20, 3)) @ np.array([[1.0, 0.8, 0.0], [0.0, 0.6, 0.5], [0.0, 0.0, 1.0]])  # correlated inputs
Y = X @ np.array([0.6, -0.3, 0.9]) + NOISE * RNG.normal(size=20)
DRAWS = 20_000


def conjugate(x, y=None):
    w = numpyro.sample("w", dist.Normal(0.0, jnp.asarray(PRIOR_STD, x.dtype)).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


def law(power):
    """Mean and covariance of the conjugate posterior with the likelihood to a power."""
    precision = np.diag(1 / PRIOR_STD**2) + power * X.T @ X / NOISE**2
    covariance = np.linalg.inv(precision)
    return covariance @ (power * X.T @ Y / NOISE**2), covariance


@pytest.fixture(scope="module")
def posterior():
    mean, covariance = law(1.0)
    return brg.Posterior({"w": RNG.multivariate_normal(mean, covariance, size=(4, DRAWS // 4)).astype(np.float32)})


def worst_score(samples, power):
    """Largest deviation of mean and covariance from the law, in standard errors; 9 numbers: 4.5 is 6e-5 by chance."""
    mean, covariance = law(power)
    root = np.linalg.cholesky(covariance)
    white = np.linalg.solve(root, (np.asarray(samples, float).reshape(-1, 3) - mean).T)
    scores = np.abs(white.mean(1)) * np.sqrt(DRAWS)
    second = (white @ white.T / DRAWS - np.eye(3)) * np.sqrt(DRAWS / (1 + np.eye(3)))
    return max(scores.max(), np.abs(second).max())


SCALES = [1 / 20, 0.08, 0.2, 1.0, 10.0]


def flow_of(posterior, kind="full", whiten=True, regulator=None, key=KEY):
    metric = brg.fisher(conjugate, posterior, X.astype(np.float32), kind=kind, whiten=whiten, at="mean")
    return brg.renormalize(conjugate, posterior, metric, cutoffs=[0.0, *SCALES], key=key,
                           regulator=regulator or brg.unlearning(20))


@pytest.mark.parametrize("cutoff", SCALES)
def test_unlearning_is_the_tempered_posterior(cutoff, posterior):
    """Λ₀ = 1/n; at Λ the likelihood has the power 1/(nΛ) (theory §2)."""
    assert worst_score(flow_of(posterior).at(cutoff).samples["w"], 1 / (20 * cutoff)) < 4.5


def test_unlearning_is_the_identity_below_its_start(posterior):
    flow = flow_of(posterior)
    np.testing.assert_allclose(flow.at(0.02).samples["w"], posterior.samples["w"], rtol=1e-5, atol=1e-6)
    assert worst_score(flow.at(np.inf).samples["w"], 0.0) < 4.5


@pytest.mark.parametrize(("name", "kind", "whiten"), [("ornstein", "full", True), ("diagonal", "diagonal", True)])
def test_naive_unlearning_fails(name, kind, whiten, posterior):
    """What theory §2 says is wrong is found to be wrong by the same test."""
    start = 1 / 20

    def ornstein(stiffness, cutoff):  # right mean, and β² = 1 − α²: the variance is wrong
        return (stiffness + start) / (stiffness + jnp.maximum(cutoff, start))

    regulator = ornstein if name == "ornstein" else brg.unlearning(20)
    flow = flow_of(posterior, kind, whiten, regulator)
    assert worst_score(flow.at(0.2).samples["w"], 1 / (20 * 0.2)) > 10


def test_unlearning_composes_in_law_with_independent_noise_only(posterior):
    first = flow_of(posterior).at(0.1)
    def again(key):
        return flow_of(first, regulator=brg.unlearning(1 / 0.1), key=key).at(0.5).samples["w"]
    assert worst_score(again(jax.random.key(99)), 1 / (20 * 0.5)) < 4.5
    assert worst_score(again(KEY), 1 / (20 * 0.5)) > 10  # shared noise


def test_unlearning_stepwise_composes(posterior):
    x = X.astype(np.float32)
    def metric(p):
        return brg.fisher(conjugate, p, x, kind="full", whiten=True, at="mean")
    flow = brg.renormalize_stepwise(conjugate, posterior, metric, cutoffs=[0.0, 0.1, 0.2, 0.5], key=KEY,
                                    regulator=brg.unlearning(20))
    for cutoff, step, _ in flow:
        assert worst_score(step.samples["w"], min(1.0, 1 / (20 * cutoff)) if cutoff else 1.0) < 4.5


def test_a_stepwise_step_starts_where_the_last_one_ended():
    """α of the whole way is the product over steps: .15/1.65 from Λ₀ = .1 to 1.6 at λ̃ = .05; 5 standard errors.

    Steps that all started at Λ₀ would forget thirty times as much.
    """
    def one(x, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    x, start = np.full(10, 0.05**0.5, np.float32), 5.0
    same = brg.Posterior({"w": np.full((4, 2000), start, np.float32)})
    steps = brg.renormalize_stepwise(one, same, lambda p: brg.fisher(one, p, x, kind="full", whiten=True, at="mean"),
                                     cutoffs=[0.2, 0.4, 0.8, 1.6], key=KEY, regulator=brg.unlearning(10))
    for cutoff, step, _ in steps:
        w = np.asarray(step.samples["w"], float)
        assert w.mean() == pytest.approx(start * 0.15 / (0.05 + cutoff), abs=5 * w.std() / np.sqrt(w.size))


def test_the_check_of_the_theory(x64):
    """λ̃ = 2, Λ .1 → .5, θ̂ = 1.3: mean 1.2380952381 → 1.04, variance .0476190476 → .2, α = .84, β² = .1664."""
    rule = brg.unlearning(10)
    alpha, beta = (float(f(jnp.array(2.0), jnp.array(0.5))) for f in (rule.alpha, rule.beta))
    assert alpha == pytest.approx(0.84, rel=1e-12) and beta**2 == pytest.approx(0.1664, rel=1e-12)
    assert alpha * 1.2380952381 == pytest.approx(1.04, rel=1e-10)
    assert alpha**2 * 0.0476190476 + beta**2 == pytest.approx(0.2, rel=1e-9)
    grid = jnp.array([0.0, 1e-6, 0.3, 50.0])
    one, two = brg.unlearning(1 / 0.3), brg.unlearning(10)
    both = two
    composed = one.alpha(grid, 0.9) * two.alpha(grid, 0.3)
    np.testing.assert_allclose(composed, both.alpha(grid, 0.9), rtol=1e-12)
    np.testing.assert_allclose(one.alpha(grid, 0.9) ** 2 * two.beta(grid, 0.3) ** 2 + one.beta(grid, 0.9) ** 2,
                               both.beta(grid, 0.9) ** 2, rtol=1e-12)


def test_smooth_regulators_have_the_stated_law(posterior):
    """Mean αE[θ], covariance αCα + βΣ₀β in the whitened eigenbasis; 4.5 standard errors."""
    def alpha(stiffness, cutoff):
        return stiffness / (stiffness + cutoff)

    flow = flow_of(posterior, regulator=alpha)
    got = np.asarray(flow.at(0.2).samples["w"], float).reshape(-1, 3)
    white = PRIOR_STD[:, None] * (X.T @ X / NOISE**2 / 20) * PRIOR_STD
    values, vectors = np.linalg.eigh(white)
    a = alpha(values, 0.2)
    keep = PRIOR_STD[:, None] * (vectors * a) @ vectors.T / PRIOR_STD
    mean, covariance = law(1.0)
    expected = keep @ covariance @ keep.T + PRIOR_STD[:, None] * (vectors * (1 - a**2)) @ vectors.T * PRIOR_STD
    root = np.linalg.cholesky(expected)
    scores = np.linalg.solve(root, (got - keep @ mean).T)
    assert np.abs(scores.mean(1)).max() < 4.5 / np.sqrt(DRAWS)
    assert np.abs(scores @ scores.T / DRAWS - np.eye(3)).max() < 4.5 * np.sqrt(2 / DRAWS)


# -- bases ----------------------------------------------------------------------------------------------------
NET = brg.mlp((4,), activation="tanh", bias_std=0.3)
XN = RNG.normal(size=(6, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def draws():
    return brg.prior(NET, XN, key=jax.random.key(3), num_samples=6)


@pytest.mark.parametrize("kind", ["full", "block"])
def test_eigenbasis_flow_is_the_dense_projection(kind, x64):
    """θ_Λ = θ₀ + V 1[λ ≥ Λ] Vᵀ(θ − θ₀), the dense matrices written out."""
    x = XN.astype(float)
    draws = brg.prior(NET, x, key=jax.random.key(3), num_samples=4)
    metric = brg.fisher(NET, draws, x, kind=kind)
    flow = brg.renormalize(NET, draws, metric, cutoffs=brg.cutoffs(metric, num=6), key=KEY)
    theta0 = flow.at(np.inf)
    cutoff = flow.cutoffs[3]
    got = flow.at(cutoff)
    for chain, draw in ((0, 0), (3, 0)):
        params = draws.draw(chain, draw)
        jac = jax.jacobian(lambda p: NET.apply(p, jnp.asarray(x))[:, 0])(params)
        parts = {s: np.asarray(j).reshape(6, -1) for s, j in jac.items()}
        groups = [list(parts)] if kind == "full" else [[s] for s in parts]
        for group in groups:
            j = np.concatenate([parts[s] for s in group], axis=1)
            values, vectors = np.linalg.eigh(j.T @ j / 6)
            project = (vectors * (values >= cutoff)) @ vectors.T
            a, b, c = (np.concatenate([np.ravel(p.draw(chain, draw)[s]) for s in group])
                       for p in (draws, theta0, got))
            np.testing.assert_allclose(c, b + project @ (a - b), atol=1e-9)


def test_eigenbasis_ends_and_semigroup(draws):
    metric = brg.fisher(NET, draws, XN, kind="full", at="mean")
    flow = brg.renormalize(NET, draws, metric, cutoffs=brg.cutoffs(metric, num=8), key=KEY)
    for s in draws.samples:
        np.testing.assert_array_equal(flow.at(0.0).samples[s], draws.samples[s])
        np.testing.assert_array_equal(flow.at(flow.cutoffs[-1]).samples[s], flow.at(np.inf).samples[s])
        np.testing.assert_allclose(flow.predict(XN).values[0], brg.predict(NET, draws, XN), rtol=1e-5, atol=1e-6)
    low, high = flow.cutoffs[3], flow.cutoffs[5]
    for first, second in ((low, high), (high, low)):
        again = brg.renormalize(NET, flow.at(first), metric, cutoffs=[0.0], key=KEY).at(second)
        for s in draws.samples:
            np.testing.assert_allclose(again.samples[s], flow.at(high).samples[s], rtol=1e-4, atol=1e-5)


def test_parameter_and_eigenbasis_flows_agree_on_a_diagonal_metric(x64):
    """Orthogonal inputs with different lengths: the metric of a linear model is diagonal."""
    x = np.diag([1.0, 2.0, 3.0])
    net = brg.mlp(())
    draws = brg.prior(net, x, key=KEY, num_samples=8)
    flows = [brg.renormalize(net, draws, brg.fisher(net, draws, x, kind=kind), cutoffs=[0.0, 0.5, 2.0, 4.0], key=KEY)
             for kind in ("diagonal", "full")]
    np.testing.assert_allclose(flows[0].predict(x), flows[1].predict(x), atol=1e-10)
    net = brg.mlp((4,), activation="tanh")
    draws = brg.prior(net, x, key=KEY, num_samples=8)
    flows = [brg.renormalize(net, draws, brg.fisher(net, draws, x, kind=kind), cutoffs=[0.0, 0.1], key=KEY)
             for kind in ("diagonal", "full")]
    assert np.abs(flows[0].predict(x) - flows[1].predict(x))[1].max() > 0.1


def test_whitened_flow_does_not_depend_on_units(x64):
    """ntk and fan_in scaling are one model in other units: whitened flows of corresponding draws agree."""
    one, two = (brg.mlp((5,), activation="tanh", scaling=s, weight_std=1.7) for s in ("fan_in", "ntk"))
    x = XN.astype(float)
    draws = brg.prior(one, x, key=KEY, num_samples=4)
    stds = {"w0": 1.7 / np.sqrt(2), "w1": 1.7 / np.sqrt(5)}
    other = brg.Posterior({s: v / stds[s] for s, v in draws.samples.items()})
    cut = [0.0, 1e-3, 0.05, 0.5, np.inf]
    for kind in ("diagonal", "full"):
        a, b = (brg.renormalize(n, d, brg.fisher(n, d, x, kind=kind, whiten=True), cutoffs=cut, key=KEY).predict(x)
                for n, d in ((one, draws), (two, other)))
        np.testing.assert_allclose(a, b, atol=1e-8)


# -- many cutoffs, reductions, predictive ---------------------------------------------------------------------
@pytest.fixture(scope="module")
def wide():
    net = brg.mlp((6, 50), out=2, activation="tanh", bias_std=0.5, scaling="ntk", likelihood=brg.gaussian(0.5))
    post = brg.readout_posterior(net, XN, RNG.normal(size=(6, 2)), key=KEY, num_samples=8)
    return net, post, brg.fisher(net, post, XN)


def test_continuous_flow_is_the_flow_at_each_cutoff(wide):
    """Every distinct stiffness at once, against one cutoff at a time."""
    net, post, metric = wide
    every = brg.cutoffs(metric, spacing="distinct")
    flow = brg.renormalize(net, post, metric, cutoffs=every, key=KEY)
    some = every[::37]
    all_at_once = flow.predict(XN).sel(cutoff=some)
    one_by_one = flow.predict(XN, cutoffs=some)
    assert len(every) > 400 and len(some) < 32
    np.testing.assert_allclose(all_at_once, one_by_one, atol=2e-5)
    y = np.zeros((6, 2))
    np.testing.assert_allclose(flow.loss(XN, y).sel(cutoff=some), flow.loss(XN, y, cutoffs=some), rtol=1e-3)


def test_moments_are_those_of_predict(wide):
    net, post, metric = wide
    flow = brg.renormalize(net, post, metric, cutoffs=brg.cutoffs(metric, num=6), key=KEY)
    phi, moments = flow.predict(XN), flow.moments(XN)
    np.testing.assert_allclose(moments["mean"], phi.mean(("chain", "draw")), atol=1e-5)
    np.testing.assert_allclose(moments["variance"], phi.var(("chain", "draw"), ddof=1), rtol=1e-4)


@pytest.mark.parametrize("likelihood", [brg.gaussian(0.5), brg.bernoulli(), brg.categorical(), brg.poisson()])
def test_posterior_predictive_along_the_flow(likelihood):
    """log mean p(y|θ_Λ) against the plain formula, and draws of y with the mean they should have."""
    net = brg.mlp((3,), out=2, activation="tanh", likelihood=likelihood)
    post = brg.prior(net, XN, key=KEY, num_samples=400)
    metric = brg.fisher(net, post, XN, at="mean")
    flow = brg.renormalize(net, post, metric, cutoffs=brg.cutoffs(metric, num=4), key=jax.random.key(5))
    y = np.array([0, 1, 1, 0, 1, 0]) if likelihood.name == "categorical" else np.array([[0, 1]] * 6)
    phi = flow.predict(XN)
    target = likelihood.targets(y, 2)
    log_p = np.asarray(jax.vmap(lambda f: likelihood.log_prob(f, target))(phi.values.reshape(-1, 6, 2)))
    expected = np.log(np.exp(log_p.reshape(4, -1, 6)).mean(1))
    np.testing.assert_allclose(flow.log_predictive(XN, y), expected, rtol=1e-4)
    drawn = flow.predictive(XN, jax.random.key(9))
    mean = np.asarray(likelihood.mean(jnp.asarray(phi.values)))
    got = np.asarray(drawn, float)
    if likelihood.name == "categorical":
        assert drawn.dims == ("cutoff", "chain", "draw", "point")
        got, mean = got[..., None], mean[..., 1:]
    error = got.reshape(4, 400, -1) - mean.reshape(4, 400, -1)
    z = error.mean(1) / (error.std(1) / np.sqrt(400))
    assert np.abs(z).max() < 4.5  # 48 numbers at most: 3e-4 by chance


def test_critical_scales_by_definition_and_by_site(wide):
    net = brg.mlp((8, 60), activation=("relu", "relu"), scaling="none")
    x, y = XN, RNG.normal(size=6)
    post = brg.ensemble(net, x, y, key=KEY, num_members=60, learning_rate=1e-4, num_epochs=300)
    metric = brg.fisher(net, post, RNG.normal(size=(60, 2)).astype(np.float32))
    flow = brg.renormalize(net, post, metric, cutoffs=np.r_[0.0, np.geomspace(1e-4, 1e3, 15)], key=KEY)
    found = {d: flow.critical_scale(x, y, definition=d) for d in ("loss_ratio", "variance_ratio", "knee")}
    for scale in found.values():
        assert scale.lower <= scale.value <= scale.upper, scale
    with pytest.raises(ValueError, match="needs the targets"):
        flow.critical_scale(x)
    with pytest.raises(ValueError, match="did you mean 'knee'"):
        flow.critical_scale(x, y, definition="nee")
    everything = post.replace(trained=("w0", "w1", "w2"))
    metric = brg.fisher(net, everything, x)
    by_site = brg.renormalize(net, everything, metric, cutoffs=flow.cutoffs, key=KEY).by_site()
    assert list(by_site) == ["w0", "w1", "w2"]
    top = by_site["w1"].at(np.inf)
    np.testing.assert_array_equal(top.samples["w2"], post.samples["w2"])
    assert not np.any(np.asarray(top.samples["w1"]) == np.asarray(post.samples["w1"]))


def test_pruning_curve_and_what_can_go():
    net = brg.mlp((8, 60), activation=("relu", "relu"), scaling="none")
    y = RNG.normal(size=6)
    post = brg.ensemble(net, XN, y, key=KEY, num_members=20, learning_rate=1e-4, num_epochs=300)
    flow = brg.renormalize(net, post, brg.fisher(net, post, XN), cutoffs=[0.0], key=KEY)
    curve = brg.pruning_curve(flow, XN, y, fractions=[0.0, 0.2, 0.5, 1.0])
    assert curve.dims == ("rule", "fraction", "chain", "draw")
    np.testing.assert_allclose(curve.sel(fraction=1.0), (y**2).mean(), rtol=1e-5)  # nothing left: φ = 0
    for rule in curve.rule.values:
        np.testing.assert_allclose(curve.sel(rule=rule, fraction=0.0), flow.loss(XN, y, cutoffs=[0.0])[0], rtol=1e-5)
    median = curve.median(("chain", "draw")).sel(fraction=0.2)
    assert median.sel(rule="fisher") < median.sel(rule="random")
    removable = brg.removable_fraction(curve, 0.1)
    assert float(removable.sel(rule="fisher")) >= float(removable.sel(rule="random"))


# -- Jeffreys -------------------------------------------------------------------------------------------------
def coin(x, y=None):
    theta = numpyro.sample("theta", dist.Beta(1, 1))
    numpyro.sample("y", dist.Bernoulli(probs=theta).expand([x.shape[0]]), obs=y)


def test_the_coin_by_jeffreys():
    """Beta(8, 4) up to Λ = 4.7619, Beta(½, ½) above (theory §2); Kolmogorov–Smirnov, 10⁵ draws."""
    theta = np.random.default_rng(0).beta(8, 4, size=(4, 25_000)).astype(np.float32)
    post, x = brg.Posterior({"theta": theta}), np.zeros((1, 1), np.float32)
    metric = brg.fisher(coin, post, x, at={"theta": jnp.array(0.7)})
    assert float(metric.stiffness["theta"]) == pytest.approx(4.76190476, rel=1e-6)
    flow = brg.renormalize(coin, post, metric, cutoffs=[0.0, 4.7, 4.8], key=KEY, refill="jeffreys")
    below, above = (np.ravel(flow.at(c).samples["theta"]) for c in (4.7, 4.8))
    assert stats.kstest(below, stats.beta(8, 4).cdf).pvalue > 1e-3
    assert stats.kstest(above, stats.beta(0.5, 0.5).cdf).pvalue > 1e-3
    assert above.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 8 / 1e5))
    assert (above <= 0.7).mean() == pytest.approx(0.630989880, abs=4 * np.sqrt(0.25 / 1e5))


@pytest.mark.slow
def test_jeffreys_of_several_parameters():
    """Two coins: √det of a diagonal metric is the product, so each is Beta(½, ½) and they are independent."""
    def coins(x, y=None):
        p = numpyro.sample("p", dist.Beta(jnp.ones(2), 1).to_event(1))
        numpyro.sample("y", dist.Bernoulli(probs=jnp.broadcast_to(p, (x.shape[0], 2))).to_event(1), obs=y)
    post = brg.Posterior({"p": np.full((4, 25, 2), 0.7, np.float32)})
    x = np.zeros((1, 1), np.float32)
    metric = brg.fisher(coins, post, x, at="mean")
    flow = brg.renormalize(coins, post, metric, cutoffs=[0.0, 10.0], key=KEY, refill="jeffreys")
    p = np.asarray(flow.at(10.0).samples["p"]).reshape(-1, 2)
    for k in range(2):
        assert stats.kstest(p[:, k], stats.beta(0.5, 0.5).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(p.T)[0, 1]) < 4.5 / np.sqrt(100)
    assert flow.predict(x, cutoffs=[0.0]).shape == (1, 4, 25, 1, 2)


def test_improper_and_large_jeffreys_are_refused(posterior):
    metric = brg.fisher(conjugate, posterior, X.astype(np.float32), at="mean")
    flow = brg.renormalize(conjugate, posterior, metric, cutoffs=[0.0, 1e9], key=KEY, refill="jeffreys")
    with pytest.raises(ValueError, match=r"improper on an unbounded support.*bounds=\{'w'"):
        flow.at(1e9)
    bounded = brg.renormalize(conjugate, posterior, metric, cutoffs=[0.0], key=KEY, refill="jeffreys",
                              bounds={"w": (-1.0, 2.0)})
    first = np.sort([float(v) for v in metric.stiffness["w"]])[0]
    values = np.asarray(bounded.at(first * 1.01).samples["w"])[..., int(np.argmin(metric.stiffness["w"]))]
    assert stats.kstest((values.ravel() + 1) / 3, "uniform").pvalue > 1e-3  # a constant metric is flat
    net = brg.mlp((4,))
    draws = brg.prior(net, XN, key=KEY, num_samples=2)
    many = brg.renormalize(net, draws, brg.fisher(net, draws, XN), cutoffs=[0.0], key=KEY, refill="jeffreys",
                           bounds={"w0": (-1, 1), "w1": (-1, 1)})
    with pytest.raises(ValueError, match="12 parameters are sloppy.*at most 8"):
        many.at(1e9)


# -- constrained and hierarchical sites -----------------------------------------------------------------------
def simplex_model(x, y=None):
    p = numpyro.sample("p", dist.Dirichlet(jnp.array([2.0, 1.0, 3.0])))
    rate = numpyro.sample("rate", dist.Gamma(3.0, 1.0))
    numpyro.sample("y", dist.Normal(rate * (x @ p), 0.5), obs=y)


@pytest.mark.parametrize(("kind", "regulator"), [("diagonal", "sharp"), ("full", "sharp"),
                                                 ("full", lambda lam, cut: lam / (lam + cut))])
def test_constrained_sites_keep_their_support(kind, regulator):
    x = RNG.normal(size=(8, 3)).astype(np.float32)
    post = brg.prior(simplex_model, x, key=KEY, num_samples=300)
    native = kind == "diagonal"
    metric = brg.fisher(simplex_model, post, x, kind=kind, coordinates="native" if native else "unconstrained")
    flow = brg.renormalize(simplex_model, post, metric, cutoffs=brg.cutoffs(metric, num=6), key=jax.random.key(8),
                           regulator=regulator)
    for cutoff in [*flow.cutoffs, np.inf]:
        at = flow.at(cutoff)
        p = np.asarray(at.samples["p"])
        np.testing.assert_allclose(p.sum(-1), 1.0, rtol=1e-5)
        assert (p > 0).all() and (np.asarray(at.samples["rate"]) > 0).all()
        if native:  # the simplex goes whole
            moved = p != np.asarray(post.samples["p"])
            assert (moved.all(-1) | ~moved.any(-1)).all()
    end = np.asarray(flow.at(np.inf).samples["rate"]).ravel()
    assert stats.kstest(end, stats.gamma(3).cdf).pvalue > 1e-3


def test_native_eigenmodes_of_constrained_sites_are_refused():
    x = RNG.normal(size=(8, 3)).astype(np.float32)
    post = brg.prior(simplex_model, x, key=KEY, num_samples=4)
    for metric, regulator in ((brg.fisher(simplex_model, post, x, kind="full"), "sharp"),
                              (brg.fisher(simplex_model, post, x), lambda lam, cut: lam / (lam + cut))):
        with pytest.raises(ValueError, match="coordinates='unconstrained'"):
            brg.renormalize(simplex_model, post, metric, cutoffs=[0.0], key=KEY, regulator=regulator)
    gamma = brg.fisher(simplex_model, post, x, kind="full", whiten=True, coordinates="unconstrained", sites=("rate",))
    with pytest.raises(ValueError, match="Gaussian priors, but site 'rate' has Gamma"):
        brg.renormalize(simplex_model, post, gamma, cutoffs=[0.0], key=KEY, regulator=brg.unlearning(8))


@pytest.mark.parametrize(("regulator", "match"), [
    (lambda lam, cut: 2 * lam / (lam + cut), "between 0 and 1"),
    (lambda lam, cut: cut / (lam + cut), "must not decrease"),
    (lambda lam: lam, "failed on arrays"),
    (lambda lam, cut: 1 - np.exp(-lam / cut), "write it with jax.numpy"),
])
def test_bad_regulators_are_refused(regulator, match, posterior):
    with pytest.raises(ValueError, match=match):
        flow_of(posterior, regulator=regulator)


@pytest.mark.slow
def test_stepwise_with_a_constant_metric_is_the_flow(draws):
    metric = brg.fisher(NET, draws, XN)
    scales = brg.cutoffs(metric, num=5)
    flow = brg.renormalize(NET, draws, metric, cutoffs=scales, key=KEY)
    steps = brg.renormalize_stepwise(NET, draws, lambda p: metric, cutoffs=scales, key=KEY)
    np.testing.assert_allclose(steps.predict(XN), flow.predict(XN), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(steps.loss(XN, np.zeros(6)), flow.loss(XN, np.zeros(6)), rtol=1e-5)
    fine = brg.cutoffs(metric, num=30)
    recomputed = brg.renormalize_stepwise(NET, draws, lambda p: brg.fisher(NET, p, XN), cutoffs=fine, key=KEY)
    fixed = brg.renormalize(NET, draws, metric, cutoffs=fine, key=KEY).predict(XN)
    again = recomputed.predict(XN)
    assert not np.allclose(again, fixed)
    np.testing.assert_allclose(again[-1], fixed[-1], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="own cutoffs"):
        steps.at(0.123)


def test_the_regulator_classes_say_what_they_are():
    assert Regulator().name == "sharp"
    assert Regulator().alpha(jnp.array([0.0, 1.0, 2.0]), jnp.array(1.0)).tolist() == [0.0, 1.0, 1.0]
