"""Distances, convergence, learning against the flow, comparison of flows.

Random tests use fixed keys and state their chance to fail for a right implementation with fresh ones.
"""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from matplotlib import pyplot as plt
from scipy import stats
from scipy.linalg import sqrtm

import bayes_brg as brg
from bayes_brg import diagnostics as diag
from bayes_brg import plots
from bayes_brg.diagnostics.convergence import judge
from bayes_brg.diagnostics.distances import gaussians, wasserstein_squared

KEY = jax.random.key(5)


def fresh(seed):
    return np.random.default_rng(seed)


# -- distances ------------------------------------------------------------------------------------------------
def gaussian_pair():
    rng = fresh(0)
    roots = rng.normal(size=(2, 3, 3))
    means = rng.normal(size=(2, 3))
    covs = roots @ np.swapaxes(roots, 1, 2) + 0.2 * np.eye(3)
    middle = sqrtm(covs[0])
    squared = ((means[0] - means[1]) ** 2).sum() + np.trace(covs.sum(0) - 2 * sqrtm(middle @ covs[1] @ middle).real)
    return means, covs, float(squared)


def test_wasserstein_against_the_matrix_formula():
    """40 pairs of samples: estimates within 4 standard errors, whose mean square must be near 1 (chance 1e-3)."""
    means, covs, squared = gaussian_pair()
    z = []
    for seed in range(40):
        rng = fresh(100 + seed)
        a, b = (rng.multivariate_normal(m, c, size=n) for m, c, n in zip(means, covs, (300, 200), strict=True))
        found = diag.gaussian_wasserstein(a, b)
        z.append((found.squared - squared) / found.squared_sem)
        assert found.value == pytest.approx(np.sqrt(squared), abs=5 * found.sem)
    assert np.abs(z).max() < 4
    # Also that the first-order bias is gone: the mean of 40 is N(0, 1/√40).
    assert abs(np.mean(z)) < 3.3 / np.sqrt(40)
    assert 0.5 < np.mean(np.square(z)) < 1.8


def test_wasserstein_of_equal_laws_is_unbiased():
    rng = fresh(3)
    found = [diag.gaussian_wasserstein(rng.normal(size=(200, 5)), rng.normal(size=(200, 5))).squared
             for _ in range(60)]
    plain = 5 * 2 / 200  # what the means alone add without the correction
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(60)
    assert abs(np.mean(found)) < plain / 3


def test_wasserstein_takes_singular_covariances():
    """Fewer draws than points, and a point that never moves."""
    rng = fresh(1)
    a = np.concatenate([rng.normal(size=(6, 9)), np.ones((6, 1))], axis=1)
    assert diag.gaussian_wasserstein(a, a).value == 0
    one, moved = (gaussians(v, np.ones((1, 6))) for v in (a, a + 2.0))
    assert wasserstein_squared(one, one)[0] == pytest.approx(0, abs=1e-6)
    assert wasserstein_squared(one, moved)[0] == pytest.approx(40, rel=1e-6)


def test_energy_distance_against_loops():
    rng = fresh(2)
    a, b = rng.normal(size=(14, 2)), rng.normal(0.5, size=(9, 2))

    def mean(u, v, same):
        pairs = [np.linalg.norm(p - q) for i, p in enumerate(u) for j, q in enumerate(v) if not (same and i == j)]
        return np.mean(pairs)

    expected = 2 * mean(a, b, False) - mean(a, a, True) - mean(b, b, True)
    found = diag.energy_distance(a, b, num_permutations=99)
    assert found.squared == pytest.approx(expected, rel=1e-10)
    assert found.sizes == (14, 9)
    # The jackknife error of a pair that differs: against 200 fresh pairs (√(1/400) known to 5 %; blocks to 14 %).
    rng = fresh(4)
    many = [diag.energy_distance(rng.normal(size=(60, 2)), rng.normal(1.0, size=(50, 2)), num_permutations=19)
            for _ in range(60)]
    assert np.mean([m.squared_sem for m in many]) == pytest.approx(np.std([m.squared for m in many]), rel=0.3)


def test_permutation_p_values_are_uniform_and_find_a_shift():
    rng = fresh(5)
    p = [diag.energy_distance(rng.normal(size=(60, 3)), rng.normal(size=(40, 3)), num_permutations=199,
                              key=jax.random.key(i)).p_value for i in range(100)]
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert diag.energy_distance(rng.normal(size=(60, 3)), rng.normal(0.7, size=(60, 3))).p_value == 1e-3


def autoregressive(rng, rho, shape):
    noise = rng.normal(size=shape) * np.sqrt(1 - rho**2)
    chain = np.empty(shape)
    chain[:, 0] = rng.normal(size=chain[:, 0].shape)
    for t in range(1, shape[1]):
        chain[:, t] = rho * chain[:, t - 1] + noise[:, t]
    return chain


def test_correlated_draws_do_not_make_differences():
    """Chains with autocorrelation time 9 against independent draws: p uniform (1e-3), errors of W2 honest."""
    rng = fresh(6)
    p, naive, ks, z = [], [], [], []
    for i in range(60):
        chain = autoregressive(rng, 0.8, (4, 400, 2))
        other = rng.normal(size=(500, 2))
        p.append(diag.energy_distance(chain[..., None], other, num_permutations=99, key=jax.random.key(i)).p_value)
        ks.append(diag.kolmogorov_smirnov(chain[..., None], other).p_value[0])
        if i < 30:
            naive.append(diag.energy_distance(chain[0], other, num_permutations=99).p_value)
            apart = diag.gaussian_wasserstein(chain[..., None] + 1.0, other)
            z.append((apart.squared - 2.0) / apart.squared_sem)
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert stats.kstest(ks, "uniform").pvalue > 1e-3
    assert stats.kstest(naive, "uniform").pvalue < 1e-3  # what taking them as independent would do
    assert np.mean(np.square(z)) < 2.2


def test_kolmogorov_smirnov_against_scipy():
    rng = fresh(7)
    a, b = rng.normal(size=(150, 4)), rng.normal([0, 0, 0.6, 0], size=(120, 4))
    found = diag.kolmogorov_smirnov(a, b)
    for j in range(4):
        known = stats.ks_2samp(a[:, j], b[:, j], method="asymp")
        assert found.statistic[j] == pytest.approx(known.statistic)
        assert found.p_value[j] == pytest.approx(known.pvalue, rel=1e-6)
    np.testing.assert_array_equal(found.p_adjusted < 0.01, [False, False, True, False])


def test_adjusted_p_values_by_hand():
    p = np.array([0.01, np.nan, 0.04, 0.03])
    np.testing.assert_allclose(diag.adjust(p), [0.03, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(diag.adjust(p, "bh"), [0.03, np.nan, 0.04, 0.04])
    with pytest.raises(ValueError, match="holm"):
        diag.adjust(p, "bonferroni")


def test_distances_refuse_what_they_cannot_read():
    a = np.zeros((10, 3))
    with pytest.raises(ValueError, match="mesh"):
        diag.energy_distance(a, np.zeros((10, 4)))
    with pytest.raises(ValueError, match="b: phi is nan"):
        diag.gaussian_wasserstein(a, np.full((10, 3), np.nan))
    with pytest.raises(ValueError, match="a: phi has shape"):
        diag.gaussian_wasserstein(np.zeros(10), a)


# -- convergence ----------------------------------------------------------------------------------------------
NET = brg.mlp((3,), activation="tanh", bias_std=0.5, likelihood=brg.gaussian(0.3))
X = fresh(8).normal(size=(12, 2)).astype(np.float32)
Y = np.sin(X[:, 0]).astype(np.float32)


def test_convergence_is_judged_in_function_space():
    """Chains that differ by a permutation of hidden units: apart in weight space, together in function space."""
    base = brg.prior(NET, X, key=KEY, num_samples=2000)
    first = {s: np.asarray(v[:1, :1]) for s, v in base.samples.items()}
    near = {s: first[s] + 0.1 * np.asarray(v) for s, v in base.samples.items()}
    order = [2, 0, 1]
    near["w0"][0], near["b0"][0], near["w1"][0] = near["w0"][0][..., order], near["b0"][0][..., order], \
        near["w1"][0][:, order]
    found = diag.convergence(NET, brg.Posterior(near), X, Y)
    assert found.converged and bool(found)
    assert "converged in function space: yes" in str(found)
    assert found.table.loc["w1 (weight space)", "rhat_worst"] > 1.3
    assert found.table.loc["phi (function space)", "rhat_worst"] < 1.01
    assert found.dataset["rhat"].dims == ("point", "output")
    # MCSE: sd/√ESS of the mean, and draws here are independent.
    np.testing.assert_allclose(found.dataset["mcse"], found.dataset["sd"] / np.sqrt(2000), rtol=0.25)
    assert float(found.dataset["loss_ess_bulk"]) > 400

    apart = {s: np.asarray(v).copy() for s, v in base.samples.items()}
    apart["b1"] = apart["b1"] + np.array([0, 0, 0, 3.0]).reshape(4, 1, 1)
    lost = diag.convergence(NET, brg.Posterior(apart), X)
    assert not lost and "R-hat" in lost.reason
    assert "loss (function space)" not in lost.table.index


def test_convergence_says_why_not():
    base = brg.prior(NET, X, key=KEY, num_samples=40)
    one = brg.Posterior({s: v[:1] for s, v in base.samples.items()}, {"diverging": np.ones((1, 10), bool)})
    found = diag.convergence(NET, one, X)
    assert not found and "one chain" in found.reason and "10 transitions diverged" in found.reason
    short = diag.convergence(NET, brg.Posterior(base.samples), X)
    assert not short and "ESS" in short.reason
    still = brg.Posterior({s: jnp.ones_like(v) for s, v in base.samples.items()})
    assert "never moves" in diag.convergence(NET, still, X).reason
    broken = brg.Posterior({s: v.at[0, 3].set(jnp.inf) for s, v in base.samples.items()})
    assert "1 of 40 draws" in diag.convergence(NET, broken, X).reason


def test_exact_draws_are_not_said_to_be_unconverged():
    """Independent draws, however few, in the words of the verdict; what is not finite counts all the same."""
    base = brg.prior(NET, X, key=KEY, num_samples=40)
    found = diag.convergence(NET, base, X)
    assert found and found.independent and str(found).startswith("independent; 40 members. Note: this does not say")
    broken = base.replace(samples={s: v.at[0, 3].set(jnp.inf) for s, v in base.samples.items()})
    found = diag.convergence(NET, broken, X)
    assert not found and "independent; 40 members; 1 of 40 draws give a phi that is not finite" in str(found)
    far = np.where(np.arange(len(Y)) == 2, 1e20, Y).astype(np.float32)  # its square leaves float32
    assert "40 of 40 draws give a loss that is not finite" in diag.convergence(NET, base, X, far).reason


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_counts_against_convergence():
    """Two outputs that mix, and a third: chains that stand still apart; one that never moves; values of 1e200."""
    good = fresh(2).normal(size=(4, 400, 2))

    def judged(third, **site):
        phi = np.concatenate([good, third], axis=2)
        sites = {"w": jnp.asarray(good), **{s: jnp.asarray(v) for s, v in site.items()}}
        return judge(xr.Dataset({"phi": (("chain", "draw", "point"), phi)}), brg.Posterior(sites))

    assert judged(good[..., :1])
    apart = np.tile(np.arange(4.0)[:, None, None], (1, 400, 1))
    found = judged(apart)
    assert not found and "1 outputs have no finite R-hat" in found.reason
    assert found.table.loc["phi (function space)", "undefined"] == 1
    still = np.zeros((4, 400, 1))
    assert judged(still) and "every parameter moves" in judged(still).reason
    assert not judged(still, b=still) and "some parameters never move" in judged(still, b=still).reason
    assert not judged(1e200 * good[..., :1])


def test_categorical_logits_are_judged_in_their_gauge():
    """A shift of all logits, which no prediction sees, differs from chain to chain."""
    def model(x, y):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([2, 3]).to_event(2))
        shift = numpyro.sample("shift", dist.Normal(0, 10))
        logits = numpyro.deterministic("phi", x @ w + shift)
        numpyro.sample("y", dist.Categorical(logits=logits), obs=y)

    rng = fresh(9)
    shift = rng.normal(size=(4, 500)) * 0.01 + np.arange(4)[:, None]
    post = brg.Posterior({"w": jnp.asarray(rng.normal(size=(4, 500, 2, 3))), "shift": jnp.asarray(shift)})
    found = diag.convergence(model, post, X)
    assert found.converged
    assert found.table.loc["shift (weight space)", "rhat_worst"] > 2
    assert np.abs(found.dataset["mean"].sum("output")).max() < 1e-5


# -- learning against the flow --------------------------------------------------------------------------------
def linear(x, y):
    scale = jnp.array([1.0, 0.5, 2.0])
    w = numpyro.sample("w", dist.Normal(0, scale).to_event(1))
    numpyro.sample("y", dist.Normal(numpyro.deterministic("phi", x @ w), 0.4), obs=y)


def conjugate(correlated):
    """Data for `linear`, and its posterior with the likelihood to the power t/n, t in data."""
    rng = fresh(10)
    n = 40
    x = rng.normal(size=(n, 3))
    if correlated:
        x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1]
    else:
        x = np.linalg.qr(x)[0] * np.sqrt(n) * np.array([1.0, 0.7, 0.3])
    y = x @ np.array([0.8, -0.7, 1.5]) + 0.4 * rng.normal(size=n)
    fisher, drift = x.T @ x / n / 0.16, x.T @ y / n / 0.16
    precision = 1 / np.array([1.0, 0.5, 2.0]) ** 2

    def at(t, seed, size=400):
        cov = np.linalg.inv(np.diag(precision) + t * fisher)
        draws = fresh(seed).multivariate_normal(cov @ (t * drift), cov, size=size)
        return brg.Posterior({"w": jnp.asarray(draws.reshape(4, -1, 3), jnp.float32)}, {"independent": True})

    return n, jnp.asarray(x, jnp.float32), at


def unlearned(correlated):
    """The flow by un-learning, in the full metric or (where inputs are orthogonal) the diagonal one."""
    n, x, at = conjugate(correlated)
    posterior = at(n, 1)
    metric = brg.fisher(linear, posterior, x, kind="full" if correlated else "diagonal", at="mean", whiten=True)
    cutoffs = [1 / n, 1 / 23, 1 / 9, 1 / 5.3, 1 / 2.2]
    flow = brg.renormalize(linear, posterior, metric, cutoffs=cutoffs, key=KEY, regulator=brg.unlearning(n))
    learning = {t: at(t, 50 + i) for i, t in enumerate((1, 1.6, 2.6, 4.2, 6.6, 10, 16, 25, 40, 64))}
    return learning, flow, jnp.asarray(fresh(11).normal(size=(6, 3)), jnp.float32)


@pytest.mark.parametrize("distance", ["wasserstein", "energy"])
@pytest.mark.parametrize("correlated", [False, True])
def test_unlearning_is_learning_backwards(distance, correlated):
    """t*(Λ) = 1/Λ: five cutoffs within 3.5 standard errors (chance 2e-3), and the laws there not told apart."""
    learning, flow, mesh = unlearned(correlated)
    found = diag.learning_vs_flow(learning, flow, mesh, distance=distance, key=KEY, num_permutations=99)
    z = (np.log(found["best_time"]) + np.log(found["cutoff"])) / (found["best_time_error"] / found["best_time"])
    assert np.abs(z).max() < 3.5
    assert (found["best_time_error"] / found["best_time"]).max() < 0.25
    assert not found["at_edge"].any()
    assert (found["best_p_value"] > 0.002).all()
    # Stages far from the match are told apart.
    far = np.abs(np.log(found["time"] * found["cutoff"])) > 1.5
    assert (found["p_value"].values[far.values] < 0.05).mean() > 0.8
    assert found["distance"].dims == ("time", "cutoff")


def test_ends_are_said_to_be_bounds():
    learning, flow, mesh = unlearned(False)
    late = {t: p for t, p in learning.items() if t > 20}
    found = diag.learning_vs_flow(late, flow, mesh, key=KEY, num_permutations=0, num_bootstrap=20)
    np.testing.assert_array_equal(found["at_edge"], [False, True, True, True, True])
    assert np.isnan(found["p_value"]).all()
    again = diag.learning_vs_flow(late, flow, mesh, key=KEY, num_permutations=0, num_bootstrap=20)
    assert found.identical(again)
    with pytest.raises(ValueError, match="two or more"):
        diag.learning_vs_flow({1: learning[1]}, flow, mesh)
    with pytest.raises(ValueError, match="at least 0"):
        diag.learning_vs_flow({-1: learning[1], 1: learning[1]}, flow, mesh)
    with pytest.raises(ValueError, match="wasserstein"):
        diag.learning_vs_flow(learning, flow, mesh, distance="kl")


def test_members_shared_by_learning_and_flow():
    """The last epoch of an ensemble is its flow at Λ = 0, draw by draw: the distance is 0, the match exact."""
    net = brg.mlp((8,), activation="relu")
    trained = brg.ensemble(net, X, Y, key=KEY, num_members=200, optimizer="gd", learning_rate=0.05, num_epochs=40,
                           record=(0, 5, 10, 20, 40))
    metric = brg.fisher(net, trained, X)
    flow = brg.renormalize(net, trained, metric, cutoffs=brg.cutoffs(metric, num=5), key=KEY)
    found = diag.learning_vs_flow(trained.history, flow, X[:5], key=KEY, num_permutations=49)
    assert float(found["distance"][-1, 0]) == pytest.approx(0, abs=1e-3)
    assert float(found["best_time"][0]) == 40 and bool(found["at_edge"][0])
    ax = plots.learning_against_flow(found)
    assert isinstance(ax, matplotlib.axes.Axes)
    plt.close("all")


# -- compare --------------------------------------------------------------------------------------------------
WIDE = brg.mlp((12,), activation="relu", bias_std=0.2, likelihood=brg.gaussian(0.3))
X_NEW = fresh(12).normal(size=(8, 2)).astype(np.float32)
Y_NEW = np.sin(X_NEW[:, 0]).astype(np.float32)


def readout_flow(key, cutoffs, size=160, change=None):
    posterior = brg.readout_posterior(WIDE, X, Y, key=key, num_samples=size)
    if change is not None:
        posterior = posterior.replace(samples=change(posterior.samples))
    metric = brg.fisher(WIDE, posterior, X)
    return brg.renormalize(WIDE, posterior, metric, cutoffs=cutoffs, key=jax.random.fold_in(key, 99))


@pytest.mark.slow
def test_equal_posteriors_give_uniform_p_values():
    """50 pairs of keys: energy p uniform at two cutoffs (1e-3 each), and few false alarms."""
    many = brg.readout_posterior(WIDE, X, Y, key=KEY, num_samples=100 * 60)
    metric = brg.fisher(WIDE, brg.Posterior({s: v[:, :40] for s, v in many.samples.items()}), X, at="mean")
    flows = []
    for i in range(100):  # independent draws, cut into a hundred posteriors
        draws = {s: v.reshape(100, 4, 15, *v.shape[2:])[i] for s, v in many.samples.items()}
        flows.append(brg.renormalize(WIDE, brg.Posterior(draws, {"independent": True}), metric, cutoffs=[0.0, 3.0],
                                     key=jax.random.key(1000 + i)))
    p, false = [], 0
    for i in range(50):
        found = diag.compare(flows[2 * i], flows[2 * i + 1], X_NEW, Y_NEW, num_permutations=199, key=jax.random.key(i),
                             progress_bar=False)
        p.append(found.dataset["energy_p"].values)
        false += found.differs
        assert (found.dataset["ks_p_adjusted"] > 1e-4).all()
    for column in np.transpose(p):
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    assert false <= 9  # 50 · 0.05 expected at most; 10 or more has chance 1e-3


@pytest.mark.slow
def test_randomised_map_against_the_exact_posterior():
    """The same law by two ways (theory §8): no difference at any cutoff, in law, cumulants or scores."""
    scales = [0.0, 0.3, 1.0, 3.0, 10.0, 1e4]
    exact = readout_flow(jax.random.key(1), scales, 600)
    posterior = brg.ensemble(WIDE, X, Y, key=jax.random.key(2), num_members=600, objective="randomized_map")
    members = brg.renormalize(WIDE, posterior, brg.fisher(WIDE, posterior, X), cutoffs=scales, key=jax.random.key(3))
    found = diag.compare(members, exact, X_NEW, Y_NEW, labels=("ensemble", "exact"))
    assert not found.differs, str(found)
    d = found.dataset
    assert np.abs(d["cumulant_z"].sel(cumulant=["mean", "k2"])).max() < 4.5  # 96 entries, strongly correlated
    assert (d["ks_p_adjusted"] > 0.01).all()
    assert (np.abs(d["log_predictive_density_difference"]) < 4 * d["log_predictive_density_difference_sem"] + 0.02
            ).all()
    assert "no difference found" in str(found) and "ensemble" in str(found)
    assert not d.attrs["shared_key"]


@pytest.mark.slow
def test_a_difference_is_found_and_located():
    """Draws of a posterior widened: seen at small Λ, gone where everything is the prior."""
    scales = [0.0, 0.3, 3.0, 1e4, 1e5]

    def widen(samples):
        return samples | {"b1": samples["b1"] + 0.3}

    a = readout_flow(jax.random.key(1), scales, 400)
    b = readout_flow(jax.random.key(2), scales[:3] + [1e6], 400, change=widen)
    found = diag.compare(a, b, X_NEW, Y_NEW, cutoffs="union")
    d = found.dataset
    assert d["cutoff"].values.tolist() == [*scales, 1e6]
    assert found.differs and d["differs"].values[0] and not d["differs"].values[-2:].any()
    assert "differ at Λ = 0 to" in found.verdict
    assert d["cumulant_z"].sel(cumulant="mean").isel(cutoff=0).min() < -8
    assert np.abs(d["cumulant_z"].isel(cutoff=-1)).max() < 5
    figure = found.plot()
    assert len(figure.axes) == 3
    plt.close("all")
    shared = diag.compare(a, b, X_NEW, Y_NEW, cutoffs="shared")
    assert shared.dataset["cutoff"].values.tolist() == scales[:3]
    start = diag.compare(a, b, X_NEW, Y_NEW, cutoffs=[0.0], levels=0.8)
    for one, flow in zip(start.dataset["critical_scale"].values, (a, b), strict=True):  # its own, whatever is compared
        assert one == pytest.approx(flow.critical_scale(X_NEW, Y_NEW).value)
    assert start.dataset["level"].values.tolist() == [0.8] and len(start.plot().axes) == 3
    start.dataset["cumulant_z"][:] = np.nan  # as where φ is the same in all draws
    start.plot()
    plt.close("all")
    for levels, message in ((1.5, "between 0 and 1, got 1.5"), ((), "one probability or several, got none")):
        with pytest.raises(ValueError, match=message):
            diag.compare(a, b, X_NEW, Y_NEW, levels=levels)
    with pytest.raises(ValueError, match="permutations cannot"):
        diag.compare(a, b, X_NEW, Y_NEW, num_permutations=50)
    with pytest.raises(TypeError, match="two flows"):
        diag.compare(a, a.posterior, X_NEW, Y_NEW)


def test_outputs_of_another_meaning_are_not_compared():
    flows = []
    for likelihood in (brg.gaussian(0.3), brg.poisson()):
        net = brg.mlp((4,), likelihood=likelihood)
        posterior = brg.prior(net, X, key=KEY, num_samples=40)
        flows.append(brg.renormalize(net, posterior, brg.fisher(net, posterior, X), cutoffs=[0.0, 1.0], key=KEY))
    with pytest.raises(ValueError, match="a gaussian and a poisson likelihood, so their outputs mean different things"):
        diag.compare(*flows, X_NEW, np.arange(8))


def test_compare_other_models():
    """A general NumPyro model, correlated chains, several outputs, one key."""
    def model(x, y):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([2, 3]).to_event(2))
        numpyro.sample("y", dist.Categorical(logits=x @ w), obs=y)

    labels = np.argmax(X_NEW @ np.ones((2, 3)) + fresh(0).normal(size=(8, 3)), axis=1)
    flows = []
    for i in range(2):
        draws = autoregressive(fresh(20 + i), 0.5, (2, 150, 2, 3))
        posterior = brg.Posterior({"w": jnp.asarray(draws, jnp.float32)})
        flows.append(brg.renormalize(model, posterior, brg.fisher(model, posterior, X), cutoffs=[0.0, 0.05, 1.0],
                                     key=KEY))
    with pytest.warns(UserWarning, match="standard errors rest on 8 blocks"):
        found = diag.compare(*flows, X_NEW, labels)
    assert not found.differs and found.dataset.attrs["shared_key"]
    assert found.dataset["flow"].values.tolist() == ["given a", "given b"]
    assert found.dataset.sizes["mesh"] == 24
    assert "conservative" in str(found)


def test_masked_data_are_not_compared():
    def model(inputs, y=None):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
        with numpyro.handlers.mask(mask=inputs["keep"]):
            numpyro.sample("y", dist.Normal(inputs["x"] @ w, 0.5), obs=y)

    x = {"x": X_NEW, "keep": np.arange(8) % 4 != 1}
    y = np.where(x["keep"], Y_NEW, 1e5).astype(np.float32)
    flows = []
    for i in range(2):
        posterior = brg.Posterior({"w": jnp.asarray(fresh(i).normal(size=(4, 25, 2)), jnp.float32)},
                                  {"independent": True})
        flows.append(brg.renormalize(model, posterior, brg.fisher(model, posterior, x), cutoffs=[0.0, 1.0],
                                     key=jax.random.key(i)))
    d = diag.compare(*flows, x, y, num_permutations=199, progress_bar=False).dataset.isel(cutoff=0)
    for i, flow in enumerate(flows):
        one = diag.scores(model, flow.posterior, x, y, levels=(0.5, 0.9)).dataset
        assert float(d["log_predictive_density"][i]) == pytest.approx(float(one["mean_log_predictive_density"]))
        np.testing.assert_allclose(d["coverage"][i], one["coverage"])


def test_independent_draws_are_not_judged_by_rhat():
    """The worst R-hat of many outputs of independent draws is above 1.01 by chance; of chains that is a fault."""
    draws = np.random.default_rng(0).normal(size=(4, 120, 300, 1))
    net = brg.mlp((), likelihood=brg.gaussian(1.0))
    x = np.eye(300)
    verdicts = [brg.diagnostics.convergence(net, brg.Posterior({"w0": jnp.asarray(draws)}, stats), x)
                for stats in ({}, {"independent": True})]
    assert not verdicts[0] and "R-hat is" in verdicts[0].reason
    assert "R-hat" not in verdicts[1].reason and "independent" in verdicts[1].reason


def test_a_stepwise_flow_is_compared_at_its_own_cutoffs():
    """With one metric throughout, stepping is the same flow (both take one key): no difference, equal numbers."""
    scales = [0.3, 3.0, 30.0]
    made = readout_flow(jax.random.key(1), scales, 80)
    steps = brg.renormalize_stepwise(WIDE, made.posterior, lambda p: made.metric, cutoffs=scales,
                                     key=jax.random.fold_in(jax.random.key(1), 99))
    found = diag.compare(made, steps, X_NEW, Y_NEW, labels=("at once", "in steps"), num_permutations=199)
    d = found.dataset
    assert d["cutoff"].values.tolist() == scales and d.attrs["shared_key"] and not found.differs
    lpd = d["log_predictive_density"].values
    np.testing.assert_allclose(lpd[0], lpd[1], rtol=1e-5)
    np.testing.assert_allclose(d["critical_scale"][0], d["critical_scale"][1], rtol=1e-4)
    wider = readout_flow(jax.random.key(2), [0.0, 1.0, 3.0, 30.0], 80)
    assert diag.compare(wider, steps, X_NEW, Y_NEW, num_permutations=199).dataset["cutoff"].values.tolist() == [
        0.0, *scales]  # 0 is the posterior itself; 1 is not among the steps
    with pytest.raises(ValueError, match="own cutoffs only, not at 1; they are 0.3, 3, 30"):
        diag.compare(wider, steps, X_NEW, Y_NEW, cutoffs=[0.3, 1.0])
    assert steps.at(0.0) is steps.posterior
    with pytest.raises(ValueError, match="own cutoffs only"):
        steps.predict(X_NEW, cutoffs=[1.0])


@pytest.mark.slow
def test_a_deep_ensemble_against_nuts():
    """Gradient descent without noise or tie to the prior is no posterior; returned to the prior it is forgotten.

    Descent from the prior spreads less than the posterior where there are data and keeps its prior where there are
    none. Far above all stiffnesses both are the prior, drawn with different keys: a false alarm has chance 0.05.
    """
    rng = fresh(31)
    x = rng.uniform(-2, 2, (12, 1)).astype(np.float32)
    y = (np.sin(2 * x) + 0.3 * rng.normal(size=x.shape)).astype(np.float32)
    x_new = np.linspace(-2.5, 2.5, 16, dtype=np.float32)[:, None]
    model = brg.mlp((6, 6), activation="tanh", weight_std=1.5, bias_std=1.0, likelihood=brg.gaussian(0.3))
    deep = brg.ensemble(model, x, y, key=jax.random.key(1), num_members=400, train="all", optimizer="adam",
                        learning_rate=0.03, num_epochs=1000, progress_bar=False)
    chains = brg.nuts(model, x, y, key=jax.random.key(2), num_chains=4, num_warmup=1000, num_samples=1000,
                      progress_bar=False)
    scales = [0.0, 0.1, 10.0, 1e6]
    flows = [brg.renormalize(model, p, brg.fisher(model, p, x), cutoffs=scales, key=jax.random.key(i))
             for i, p in enumerate((deep, chains), 5)]
    found = diag.compare(*flows, x_new, np.sin(2 * x_new), labels=("ensemble", "nuts"), progress_bar=False)
    assert found.differs, str(found)
    d = found.dataset
    assert d["differs"].values[0] and not d["differs"].values[-1], str(found)
    assert found.verdict.startswith("the predictive laws differ at Λ = 0")
    relative = d["wasserstein_relative"].values
    assert relative[0] > 3 * relative[-1], str(found)
    gap, error = (d[f"log_predictive_density_difference{s}"].values[-1] for s in ("", "_mcse"))
    assert abs(gap) < 4 * error
