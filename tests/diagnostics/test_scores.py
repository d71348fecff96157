"""Predictive scores and simulation-based calibration."""

from functools import partial

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from matplotlib import pyplot as plt
from scipy import integrate, stats

import bayes_brg as brg
from bayes_brg import diagnostics as diag
from bayes_brg import plots
from bayes_brg.diagnostics.calibration import uniformity
from bayes_brg.diagnostics.scores import _loo_faults, log_mean_exp, mean_sem, overlap, proper_score

KEY = jax.random.key(8)


def fresh(seed):
    return np.random.default_rng(seed)


X = fresh(1).normal(size=(30, 2)).astype(np.float32)


def weights(size, seed=0, outputs=1, std=1.0):
    """A posterior of a linear network, whose draws are given."""
    w = std * fresh(seed).normal(size=(4, size // 4, 2, outputs))
    return brg.Posterior({"w0": jnp.asarray(w, jnp.float32)}, {"independent": True})


def linear(likelihood, outputs=1):
    return brg.mlp((), out=outputs, scaling="none", likelihood=likelihood)


# -- scores against slow answers ------------------------------------------------------------------------------
def test_gaussian_scores_against_quadrature():
    """CRPS is ∫(F − 1[z ≥ y])² dz of the mixture; with all pairs of draws instead of different ones, exactly."""
    model, posterior = linear(brg.gaussian(0.5)), weights(12)
    y = fresh(101).normal(size=3)
    found = diag.scores(model, posterior, X[:3], y)
    phi = np.asarray(brg.predict(model, posterior, X[:3]), float).reshape(12, 3)
    for i in range(3):
        def cdf(z, i=i):
            return stats.norm.cdf(z, phi[:, i], 0.5).mean()
        low = integrate.quad(lambda z: cdf(z) ** 2, -25, y[i], limit=200)[0]
        high = integrate.quad(lambda z: (1 - cdf(z)) ** 2, y[i], 25, limit=200)[0]
        # The fair estimate leaves out the pairs of a draw with itself: E|Z − Z'| of one component, 2σ/√π.
        same = 2 * 0.5 / np.sqrt(np.pi)
        spread = np.mean([_absolute(phi[s, i] - phi[t, i], 0.5 * np.sqrt(2)) for s in range(12) for t in range(12)
                          if s != t])
        all_pairs = (spread * 132 + same * 12) / 144
        expected = low + high + 0.5 * (all_pairs - spread)
        assert float(found.dataset["crps"][i, 0]) == pytest.approx(expected, rel=1e-4)
        density = stats.norm.pdf(y[i], phi[:, i], 0.5).mean()
        assert float(found.dataset["log_predictive_density"][i]) == pytest.approx(np.log(density), rel=1e-4)
        np.testing.assert_allclose(found.dataset["pit"][i, 0], cdf(y[i]), rtol=1e-4)
    assert found.name == "crps" and found.kind == "pit"


def _absolute(mean, sd):
    return stats.foldnorm.mean(abs(mean) / sd, scale=sd)


def test_discrete_scores_by_hand():
    p = np.array([0.1, 0.6, 0.3])
    law = {"classes": np.array([[p, p], [p, p]])}
    name, score = proper_score(law, np.array([[1.0], [2.0]]))
    assert name == "brier"
    np.testing.assert_allclose(score[:, 0], [0.01 + 0.16 + 0.09, 0.01 + 0.36 + 0.49])
    assert proper_score({"probs": np.array([[[0.2]], [[0.4]]])}, np.array([[1.0]]))[1] == pytest.approx(0.49)
    # Counts: the ranked probability score Σ_k (F(k) − 1[y ≤ k])² of a Poisson law, from draws.
    drawn = fresh(102).poisson(3.0, size=(40000, 1, 1)).astype(float)
    name, score = proper_score({"rate": np.full((1, 1, 1), 3.0), "draws": drawn}, np.array([[5.0]]))
    k = np.arange(60)
    expected = ((stats.poisson.cdf(k, 3.0) - (k >= 5)) ** 2).sum()
    assert name == "rps" and score[0, 0] == pytest.approx(expected, abs=0.04)  # 4 standard errors


def test_overlap():
    np.testing.assert_allclose(overlap(np.array([[0.2, 0.6], [0.5, 0.5], [0.9, 1.0]]), 0.0, 0.5), [0.75, 1.0, 0.0])


LIKELIHOODS = {
    "gaussian": (brg.gaussian(0.7), 1), "two gaussians": (brg.gaussian(0.7), 2), "bernoulli": (brg.bernoulli(), 1),
    "categorical": (brg.categorical(), 3), "poisson": (brg.poisson(), 1),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_truth_is_calibrated(name):
    """Data from the predictive law itself: coverage nominal, calibration curve on the diagonal, within 4 errors.

    Each datum has inputs of its own and a fresh parameter, so data are independent; then a law that is too narrow.
    """
    likelihood, outputs = LIKELIHOODS[name]
    model, n = linear(likelihood, outputs), 800
    x = fresh(103).normal(size=(n, 2)).astype(np.float32)
    posterior = weights(200, 3, outputs, 0.6)
    truth = np.asarray(brg.predict(model, weights(n, 4, outputs, 0.6), x)).reshape(n, n, outputs)
    phi = jnp.asarray(truth[np.arange(n), np.arange(n)])
    y = np.asarray(likelihood.distribution(phi).sample(KEY))
    found = diag.scores(model, posterior, x, y, levels=(0.5, 0.9), max_draws=60)
    d = found.dataset
    # 200 draws stand for the law: half as much again as the error over data.
    error = 4 * np.hypot(d["coverage_sem"], 0.01)
    assert (np.abs(d["coverage"] - d["level"]) < error).all(), str(found)
    seen = (d["calibration_count"] > 30).values
    off = np.abs(d["calibration_observed"] - d["calibration_predicted"])[seen]
    half = 0.5 * (d["calibration_upper"] - d["calibration_lower"])[seen]
    assert (off < 2 * half + 0.02).all()
    if name == "gaussian":
        narrow = diag.scores(linear(brg.gaussian(0.3)), weights(200, 3, 1, 0.1), x, y, levels=(0.9,), max_draws=60)
        assert float(narrow.dataset["coverage"][0]) < 0.7
        assert float(narrow.dataset["mean_log_predictive_density"]) < float(d["mean_log_predictive_density"]) - 0.3
        assert float(narrow.dataset["mean_crps"]) > float(d["mean_crps"])
    assert ("accuracy" in d) == (name in ("bernoulli", "categorical"))
    assert isinstance(found.plot(), matplotlib.axes.Axes) and "coverage of 90% intervals" in str(found)
    plt.close("all")


def test_other_observations_are_scored_from_draws():
    def student(x, y):
        w = numpyro.sample("w0", dist.Normal(0, 1).expand([2, 1]).to_event(2))
        numpyro.sample("y", dist.StudentT(4.0, (x @ w)[:, 0], 0.5), obs=y)

    def gaussian(x, y):
        w = numpyro.sample("w0", dist.Normal(0, 1).expand([2, 1]).to_event(2))
        numpyro.sample("y", dist.Normal((x @ w)[:, 0], 0.5), obs=y)

    y = fresh(104).normal(size=30).astype(np.float32)
    posterior = weights(400)
    heavy = diag.scores(student, posterior, X, y)
    assert heavy.name == "crps" and np.isfinite(heavy.dataset["crps"]).all()
    general, network = (diag.scores(m, posterior, X, y).dataset for m in (gaussian, linear(brg.gaussian(0.5))))
    for k in ("crps", "pit", "log_predictive_density"):
        np.testing.assert_allclose(general[k], network[k], rtol=1e-4, atol=1e-5)
    # Median instead of draws: near what the Gaussian of the same width gives.
    assert float(heavy.dataset["mean_crps"]) == pytest.approx(float(general["mean_crps"]), rel=0.15)


def test_diverged_draws_are_named_and_left_out():
    model, good, y = linear(brg.gaussian(0.5)), weights(40), fresh(106).normal(size=30)
    samples = {"w0": good.samples["w0"].at[1, 3].set(jnp.nan)}
    diverged = jnp.zeros((4, 10), bool).at[2, 0].set(True)
    spoilt = brg.Posterior(samples, {"independent": True, "diverged": diverged})
    with pytest.warns(UserWarning, match=r"2 of 40 draws .* \(chain, draw\) \(1, 3\), \(2, 0\)"):
        found = diag.scores(model, spoilt, X, y)
    assert found.dataset.attrs["num_draws"] == 38 and found.dataset.attrs["num_left_out"] == 2
    kept = np.delete(np.asarray(good.samples["w0"]).reshape(40, 2, 1), [13, 20], axis=0)
    expected = diag.scores(model, brg.Posterior({"w0": jnp.asarray(kept)[None]}), X.tolist(), y.tolist())
    for k in ("crps", "log_predictive_density", "coverage", "rmse"):
        np.testing.assert_allclose(found.dataset[k], expected.dataset[k], rtol=1e-5)
    with pytest.raises(ValueError, match=r"1 of 40 draws have no log-likelihood .* \(1, 3\)"):
        diag.loo(model, spoilt, X, y)
    with pytest.raises(ValueError, match="all 40 draws"):
        diag.scores(model, spoilt.replace(stats={"diverged": ~diverged | diverged}), X, y)


def test_leave_one_out_against_refitting():
    """A conjugate model without each datum in turn, in closed form: within 0.1 nats of a sum near −30."""
    y = (X @ np.array([1.0, -0.5]) + 0.7 * fresh(105).normal(size=30)).astype(np.float32)
    x = X.astype(float)

    def posterior(keep):
        cov = np.linalg.inv(np.eye(2) + x[keep].T @ x[keep] / 0.49)
        return cov @ x[keep].T @ y[keep] / 0.49, cov

    def log_density(i, mean, cov):
        return stats.norm.logpdf(y[i], x[i] @ mean, np.sqrt(x[i] @ cov @ x[i] + 0.49))

    exact = [log_density(i, *posterior(np.arange(30) != i)) for i in range(30)]
    mean, cov = posterior(np.arange(30))
    effective = sum(log_density(i, mean, cov) for i in range(30)) - sum(exact)
    draws = np.random.default_rng(2).multivariate_normal(mean, cov, size=(4, 1000))[..., None]
    found = diag.loo(linear(brg.gaussian(0.7)), brg.Posterior({"w0": jnp.asarray(draws, jnp.float32)}), X, y)
    np.testing.assert_allclose(found["elpd"], exact, atol=0.05)
    assert float(found["elpd_sum"]) == pytest.approx(np.sum(exact), abs=0.1)
    assert int(found["num_bad"]) == 0
    assert float(found["p_loo"]) == pytest.approx(effective, abs=0.1)
    assert bool(found["usable"]) and found.attrs["verdict"].startswith(f"elpd {np.sum(exact):.1f}"[:8])


@pytest.mark.filterwarnings("ignore:leave-one-out is unusable")  # the draws are not this posterior's
@pytest.mark.parametrize("outputs", [1, 2])
def test_masked_data_are_in_no_average(outputs):
    """Every third datum masked, its target 1e6: scores, leave-one-out and comparison are those without it; of two
    outputs one alone may be masked, and the other counts."""
    keep = np.ones((30, outputs), bool)
    keep[::3] = False
    keep[1, -1] = outputs == 1  # of two outputs, the second of this datum
    y = np.where(keep, fresh(7).normal(size=(30, outputs)), 1e6).astype(np.float32)

    def model(inputs, y=None):
        w = numpyro.sample("w0", dist.Normal(0, 1).expand([2, outputs]).to_event(2))
        with numpyro.handlers.mask(mask=inputs["keep"]):
            numpyro.sample("y", dist.Normal(inputs["x"] @ w, 0.5), obs=y)

    def data(rows):
        return {"x": X[rows], "keep": keep[rows]}

    rows = np.flatnonzero(keep.any(axis=1))
    draws, every = weights(400, outputs=outputs, std=0.1), np.arange(30)
    found, expected = (diag.scores(model, draws, data(r), y[r]).dataset for r in (every, rows))
    assert found.attrs["num_masked"] == 10 and found["point"].values.tolist() == rows.tolist()
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)
    plain = diag.scores(brg.mlp((), out=outputs, likelihood=brg.gaussian(0.5)), draws, X[rows], y[rows]).dataset
    each = np.average(plain["crps"], axis=1, weights=keep[rows])
    assert float(found["mean_crps"]) == pytest.approx(each.mean(), rel=1e-5)
    assert float(found["rmse"]) < 2
    one, other = (diag.loo(model, draws, data(r), y[r]) for r in (every, rows))
    for name in ("elpd", "elpd_sum", "elpd_sum_sem", "p_loo"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5)
    with pytest.raises(ValueError, match="masks all data"):
        diag.scores(model, draws, {"x": X, "keep": np.zeros_like(keep)}, y)


@pytest.mark.parametrize(("parameters", "most"), [(100, 108.0), (4, 6.0)])
def test_p_loo_may_exceed_the_parameters_by_its_scatter(parameters, most):
    """16 parts of spread 1 scatter by √16: twice that is let pass, or half the parameters where that is less."""
    each, k = np.tile([1.0, -1.0], 8), np.zeros(16)
    assert not _loo_faults(each, k, most - 0.01, parameters)
    assert len(_loo_faults(each, k, most + 0.01, parameters)) == 1
    each[0] = np.inf  # of what is not finite there is no scatter
    assert len(_loo_faults(each, k, parameters + 0.01, parameters)) == 2


def test_leave_one_out_says_when_it_is_unusable():
    """Noise far below the posterior's spread: importance weights of every datum rest on a draw or two."""
    with pytest.warns(UserWarning, match="leave-one-out is unusable here: 30 of 30 data have a Pareto k above 0.7; "
                                         r"p_loo = .* is above the model's 2 parameters\. Score data that were held"):
        found = diag.loo(linear(brg.gaussian(0.01)), weights(400), X, np.zeros(30, np.float32))
    assert not found["usable"] and "unusable" in found.attrs["verdict"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["gaussian", "bernoulli", "categorical"])
def test_unusual_values_are_named(name):
    """A target of 1e20, logits of ±1e30: scores, or a word on the datum, and no warning of NumPy's."""
    likelihood = brg.gaussian(0.5) if name == "gaussian" else getattr(brg, name)()
    outputs = 3 if name == "categorical" else 1
    model = brg.mlp((), out=outputs, likelihood=likelihood)
    w = jax.random.normal(jax.random.key(3), (4, 10, 2, outputs))
    if name == "gaussian":
        y = np.zeros(30, np.float32)
        y[4] = 1e20
        with pytest.warns(UserWarning, match=r"log predictive density of 1 of 30 data .* -inf at y\[4\] = 1e\+20"):
            found = diag.scores(model, brg.Posterior({"w0": w}), X, y).dataset
        assert float(found["mean_log_predictive_density"]) == -np.inf and np.isfinite(found["mean_crps"])
        assert np.isnan(found["mean_log_predictive_density_sem"])
    else:
        y = (X[:, 0] > 0).astype(int)
        found = diag.scores(model, brg.Posterior({"w0": 1e30 * w}), X, y).dataset
        assert all(np.isfinite(found[k]).all() for k in ("brier", "pit", "coverage", "log_predictive_density"))


# -- simulation-based calibration -----------------------------------------------------------------------------
SMALL = linear(brg.gaussian(0.5))
X_SMALL = X[:5]


def exact(width=1.0, shift=0.0, size=63):
    """The exact posterior of `SMALL`, with its spread or mean changed."""
    def infer(model, x, y, key):
        cov = jnp.linalg.inv(jnp.eye(2) + x.T @ x / 0.25)
        root = jnp.linalg.cholesky(cov)
        z = jax.random.normal(key, (size, 2, 1))
        return {"w0": cov @ x.T @ y / 0.25 + shift * root @ jnp.ones((2, 1)) + width * root @ z}
    return infer


def ignore_data(model, x, y, key):
    return {"w0": jax.random.normal(key, (63, 2, 1))}


def test_a_right_method_is_calibrated():
    """A right method fails with probability 1e-3; 400 simulations together."""
    found = diag.sbc(SMALL, X_SMALL, exact(), key=KEY, num_simulations=400, vectorized=True)
    assert found.passed, str(found)
    d = found.dataset
    assert d["rank"].dtype.kind == "i" and int(d["rank"].min()) >= 0 and int(d["rank"].max()) <= 63
    assert np.abs(d["shift"]).max() < 4 and np.abs(d["spread"]).max() < 4
    assert list(d["quantity"].values) == ["phi[0, 0]", "phi[1, 0]", "phi[2, 0]", "log joint"]
    assert "passed" in str(found)
    again = diag.sbc(SMALL, X_SMALL, exact(), key=KEY, num_simulations=400, vectorized=True)
    assert again.dataset.identical(d)


def test_wrong_methods_are_found_and_told_apart():
    options = {"key": KEY, "num_simulations": 400, "vectorized": True}
    narrow = diag.sbc(SMALL, X_SMALL, exact(0.7), **options)
    wide = diag.sbc(SMALL, X_SMALL, exact(1.5), **options)
    high = diag.sbc(SMALL, X_SMALL, exact(1.0, 0.5), **options)
    prior = diag.sbc(SMALL, X_SMALL, ignore_data, **options)
    assert not (narrow.passed or wide.passed or high.passed or prior.passed)
    assert float(narrow.dataset["spread"][0]) > 4 and float(wide.dataset["spread"][0]) < -4
    assert np.abs(high.dataset["shift"][:3]).max() > 4
    # Prior draws have uniform ranks of φ: only the log joint sees that the data were ignored.
    p = prior.dataset["p_value"].values
    assert (p[:3] > 1e-3 / 4).all() and p[3] < 1e-6
    ax = plots.rank_uniformity(narrow)
    assert isinstance(ax, matplotlib.axes.Axes)
    plt.close("all")


def test_calibration_one_by_one():
    """The package's own exact method, simulation by simulation; and what is refused."""
    net = brg.mlp((4,), activation="relu", likelihood=brg.gaussian(0.5))

    def infer(model, x, y, key):
        return brg.readout_posterior(model, x, y, key=key, num_samples=20)

    # A method of the package as it stands: it takes its key by keyword alone.
    direct = diag.sbc(net, X_SMALL, partial(brg.readout_posterior, num_samples=20), key=KEY, num_simulations=60,
                      num_draws=19)
    # readout_posterior freezes the hidden weights at prior draws: right only for a net whose hidden weights are known.
    found = diag.sbc(net, X_SMALL, infer, key=KEY, num_simulations=60, num_draws=19)
    assert found.dataset["rank"].shape == (60, 4) and direct.dataset.identical(found.dataset)
    with pytest.raises(ValueError, match="returned 20 draws"):
        diag.sbc(net, X_SMALL, infer, key=KEY, num_simulations=60, num_draws=63)
    with pytest.raises(TypeError, match="must return a Posterior"):
        diag.sbc(net, X_SMALL, lambda *a: {}, key=KEY, num_simulations=60)
    with pytest.raises(ValueError, match="num_bins"):
        diag.sbc(net, X_SMALL, infer, key=KEY, num_simulations=60, num_draws=19, num_bins=40)

    def factored(x, y):
        w = numpyro.sample("w", dist.Normal(0, 1))
        numpyro.factor("extra", -w**4)
        numpyro.sample("y", dist.Normal(w * x[:, 0], 1.0), obs=y)

    with pytest.raises(ValueError, match="factor"):
        diag.sbc(factored, X_SMALL, infer, key=KEY)


def test_uniformity_of_uneven_bins():
    """Ranks 0 … 9 in four bins: expected counts follow the widths; p uniform over 300 samples (1e-3)."""
    rng = np.random.default_rng(3)
    p = [uniformity(rng.integers(10, size=400), 9, 4) for _ in range(300)]
    assert stats.kstest(p, "uniform").pvalue > 1e-3


# -- full size ------------------------------------------------------------------------------------------------
TINY = brg.mlp((3,), activation="tanh", bias_std=0.5, likelihood=brg.gaussian(0.4))
SAMPLERS = {
    "nuts": lambda m, x, y, key: brg.nuts(m, x, y, key=key, num_chains=2, num_warmup=300, num_samples=160, thinning=3),
    "hmc": lambda m, x, y, key: brg.hmc(m, x, y, key=key, num_chains=2, num_warmup=300, num_samples=160, thinning=3),
    "collapsed nuts": lambda m, x, y, key: brg.nuts(m, x, y, key=key, num_chains=2, num_warmup=300, num_samples=160,
                                                    thinning=3, readout="collapsed"),
    "adjusted mclmc": lambda m, x, y, key: brg.mclmc(m, x, y, key=key, adjusted=True, num_chains=2, num_warmup=1000,
                                                     num_samples=160, thinning=3),
    "tempered smc": lambda m, x, y, key: independent_populations(m, x, y, key),
}


def independent_populations(model, x, y, key):
    """One particle of each of 32 populations: particles of one population share ancestors and their errors."""
    post = brg.tempered_smc(model, x, y, key=key, num_chains=32, num_samples=64)
    return brg.Posterior({s: v[:, :1] for s, v in post.samples.items()},
                         {"log_joint": post.stats["log_joint"][:, :1], "independent": True}, post.method)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_are_calibrated(name):
    """240 simulations; a right sampler fails with probability 1e-3, one of the six here with at most 6e-3."""
    found = diag.sbc(TINY, X_SMALL, SAMPLERS[name], key=KEY, num_simulations=240, num_draws=31)
    assert found.passed, str(found)


@pytest.mark.slow
def test_randomised_map_is_calibrated():
    """On a linear readout with known hidden weights: exact, 300 simulations, fails with probability 1e-3."""
    found = diag.sbc(linear(brg.gaussian(0.5)), X_SMALL, lambda m, x, y, key: brg.ensemble(
        m, x, y, key=key, num_members=64, objective="randomized_map"), key=KEY, num_simulations=300)
    assert found.passed, str(found)


@pytest.mark.slow
def test_a_short_chain_is_not():
    """NUTS on a network without warm-up or time to move from a common start: found."""
    found = diag.sbc(TINY, X_SMALL, lambda m, x, y, key: brg.nuts(
        m, x, y, key=key, num_chains=1, num_warmup=1, num_samples=40, max_tree_depth=1, init="uniform"), key=KEY,
        num_simulations=240, num_draws=31)
    assert not found.passed, str(found)


def test_pieces_by_hand():
    """CRPS of two draws: pairs of different draws alone; error over data by n − 1; the mean of exp along any axis."""
    assert proper_score({"draws": np.array([[[0.0]], [[1.0]]])}, np.zeros((1, 1)))[1].item() == 0.0
    assert mean_sem(np.array([0.0, 2.0])) == pytest.approx((1.0, 1.0))
    np.testing.assert_allclose(log_mean_exp(np.log([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]])), np.log([2.0, 4.0]))
