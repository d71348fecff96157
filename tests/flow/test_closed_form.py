"""The closed-form flow of a readout against loops, dense matrices, the theory module, and numerical flows."""

from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import bayes_brg as brg
from bayes_brg import plots, theory
from bayes_brg.flow.closed_form import closed_form_differences, closed_form_flow

KEY = jax.random.key(7)
RNG = np.random.default_rng(2)
X = RNG.normal(size=(9, 2)).astype(np.float32)
Y = np.stack([X[:, 0], X[:, 1] ** 2], 1)
POINTS = RNG.normal(size=(3, 2)).astype(np.float32)
NETS = {"fan_in": brg.mlp((5, 6), out=2, bias_std=0.3, likelihood=brg.gaussian(0.3)),
        "ntk": brg.mlp(7, out=2, activation="erf", weight_std=1.4, bias_std=0.5, scaling="ntk",
                       likelihood=brg.gaussian(0.4)),
        "wide": brg.mlp(32, likelihood=brg.gaussian(0.2)),
        "none": brg.mlp(6, out=2, scaling="none", weight_std=0.7, likelihood=brg.gaussian(0.2))}


def rows(net, values):
    return np.concatenate([np.atleast_2d(np.asarray(values[s], np.float64)) for s in net.readout_sites])


def prior_var(net, dim=2):
    std = {s: np.broadcast_to(d.base_dist.scale, d.event_shape) for s, d in net.priors(dim).items()}
    return rows(net, std) ** 2


@lru_cache
def made(net, num=24, at="draw", whiten=False, refill="prior", regulator="sharp", sites=None, cutoffs=None):
    """A small exact readout posterior of two outputs, and its flow."""
    posterior = brg.readout_posterior(net, X, Y, key=KEY, num_samples=num)
    metric = brg.fisher(net, posterior, X, at=at, whiten=whiten, sites=sites)
    cutoffs = brg.cutoffs(metric, num=5, spacing="quantile") if cutoffs is None else cutoffs
    return brg.renormalize(net, posterior, metric, cutoffs=cutoffs, key=KEY, refill=refill, regulator=regulator)


def member_law(flow, net, i, cutoff, w, cov):
    """Mean and covariance of one member's output at Λ, with every matrix written out; outputs apart."""
    stiffness, shape = flow.metric.stiffness, (flow.posterior.num_chains, flow.posterior.num_draws)
    lam = {}
    for s in net.readout_sites:
        held = np.asarray(stiffness[s]) if s in stiffness else np.inf
        lam[s] = held if not flow.metric.per_draw or s not in stiffness else held[np.unravel_index(i, shape)]
        lam[s] = np.broadcast_to(lam[s], flow.posterior.samples[s].shape[2:])
    lam, params = rows(net, lam), flow.posterior.draw(*np.unravel_index(i, shape))
    h = np.asarray(net.design(params, POINTS), np.float64)
    if flow.regulator.name == "unlearning":
        start = 1 / len(X)
        top = max(cutoff, start)
        alpha = (lam + start) / (lam + top)
        beta = np.sqrt((top - start) * (lam + start + top)) / (lam + top)
    else:
        alpha = (lam.astype(np.float32) >= np.float32(cutoff)).astype(float)
        beta = 1 - alpha
    if flow.refill == "zero":
        beta = 0 * beta
    mean = h @ (alpha * w)
    covs = [h @ (np.diag(alpha[:, c]) @ cov[c] @ np.diag(alpha[:, c]) + np.diag(beta[:, c] ** 2 * prior_var(net)[:, c]))
            @ h.T for c in range(w.shape[1])]
    return mean, covs


def mixture(laws):
    means = np.array([m.ravel() for m, _ in laws])
    points, outputs = laws[0][0].shape
    inner = np.zeros((points, outputs, points, outputs))
    for _, covs in laws:
        for c, cov in enumerate(covs):
            inner[:, c, :, c] += cov / len(laws)
    between = np.cov(means.T) if len(laws) > 1 else np.zeros((points * outputs,) * 2)
    return means.mean(0).reshape(points, outputs), inner + between.reshape(inner.shape)


@pytest.mark.parametrize("name, options", [
    ("fan_in", {}), ("ntk", dict(at="map")), ("none", dict(refill="zero")), ("fan_in", dict(sites=("w2",))),
    ("ntk", dict(whiten=True, regulator=brg.unlearning(9), cutoffs=(0, 0.05, 0.5, 30.0))),
])
@pytest.mark.parametrize("known", [False, True])
def test_frozen_features_against_loops(name, options, known):
    net = NETS[name]
    flow = made(net, **options)
    closed = closed_form_flow(flow, POINTS, data=(X, Y) if known else None)
    size, noise = flow.posterior.size, net.likelihood.scale
    for k, cutoff in enumerate(flow.cutoffs):
        laws = []
        for i in range(size):
            params = flow.posterior.draw(*np.unravel_index(i, (flow.posterior.num_chains, flow.posterior.num_draws)))
            w = rows(net, params)
            cov = np.zeros((2, len(w), len(w)))
            if known:  # the textbook posterior, by precision matrices
                h = np.asarray(net.design(params, X), np.float64)
                for c in range(2):
                    cov[c] = np.linalg.inv(np.diag(1 / prior_var(net)[:, c]) + h.T @ h / noise**2)
                w = np.stack([cov[c] @ h.T @ Y[:, c] / noise**2 for c in range(2)], 1)
            laws.append(member_law(flow, net, i, cutoff, w, cov))
        mean, covariance = mixture(laws)
        scale = np.abs(covariance).max()
        np.testing.assert_allclose(closed["mean"][k], mean, atol=2e-5 * np.sqrt(scale))
        np.testing.assert_allclose(closed["covariance"][k], covariance, atol=2e-5 * scale)
        own = closed["member_mean"][k].values.reshape(size, 3, 2)
        np.testing.assert_allclose(own, [m for m, _ in laws], atol=2e-5 * np.sqrt(scale))
        spread = closed["member_variance"][k].values.reshape(size, 3, 2)
        np.testing.assert_allclose(spread, [np.stack([np.diag(c) for c in v], 1) for _, v in laws], atol=2e-5 * scale)


def test_random_features_are_the_theory_of_the_members_moments():
    """One shared metric: (74)–(76) with the members' w̄ and Ξ. V¹ = 0, so that only Ξ_ii + w̄_i² counts."""
    net = NETS["ntk"]
    flow = made(net, at="map")
    size, units, gain = flow.posterior.size, 7, 1.4 / np.sqrt(7)
    scale = np.r_[np.full(units, gain), 0.5][:, None]  # the readout that the forward pass uses
    weights = np.stack([rows(net, {s: v[i] for s, v in flow.posterior.flat().items()}) for i in range(size)])
    mean, cov = theory.readout_moments(weights)
    moments = theory.feature_moments(POINTS, depth=1, activation="erf", weight_var=1.96, bias_var=0.25)
    stiffness = rows(net, flow.metric.stiffness)
    for factor, part in ((1 - 1 / size, slice(0, units)), (1.0, slice(units, None))):
        cov[part, :, part] *= factor  # E w² itself is estimated without bias, Ξ + w̄² is off by Ξ/T
    laws = theory.renormalized_gp(mean * scale, cov * scale[..., None, None] * scale, stiffness, flow.cutoffs,
                                  np.broadcast_to(scale**2, mean.shape), moments=moments, bias=True)
    closed = closed_form_flow(flow, POINTS, features="random")
    np.testing.assert_allclose(closed["mean"], laws.mean_x, atol=1e-6)
    np.testing.assert_allclose(closed["covariance"], laws.covariance, atol=2e-6 * np.abs(laws.covariance).max())
    given = closed_form_flow(flow, POINTS, features="random", moments=moments)
    np.testing.assert_allclose(given["covariance"], closed["covariance"], atol=1e-6 * np.abs(laws.covariance).max())


def sampled(phi):
    """Mean and covariance over members (T, field), with standard errors."""
    centred = phi - phi.mean(0)
    products = centred[:, :, None] * centred[:, None]
    root = np.sqrt(len(phi))
    return phi.mean(0), phi.std(0) / root, products.sum(0) / (len(phi) - 1), products.std(0) / root


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_exact_readout_posteriors_follow_the_closed_form(frozen):
    # 4000 members whose readouts are exact posterior draws on the features of one network, at five cutoffs; then read
    # with those features (exact) or with features drawn anew (65). w̄ and Ξ come from the textbook formula, not from
    # the draws. Tolerance 4 standard errors on 5 · (3 + 6) numbers, many of them close to equal: fails for less than
    # 3e-3 of keys.
    net = brg.mlp(16, bias_std=0.4, likelihood=brg.gaussian(0.3))
    y = X[:, :1] + 2
    hidden = brg.prior(net, X, key=jax.random.key(11), num_samples=1).draw(0, 0)
    posterior = brg.readout_posterior(net, X, y, key=KEY, num_samples=4000, hidden=hidden)
    metric = brg.fisher(net, posterior, X, at=hidden)
    if not frozen:
        fresh = brg.prior(net, X, key=jax.random.key(12), num_samples=4000)
        posterior = posterior.replace(samples={**fresh.samples, **{s: posterior.samples[s] for s in ("w1", "b1")}})
    cutoffs = brg.cutoffs(metric, num=5, spacing="quantile")
    flow = brg.renormalize(net, posterior, metric, cutoffs=cutoffs, key=KEY)

    h, at = (np.asarray(net.design(hidden, x), np.float64) for x in (X, POINTS))
    precision = np.diag(1 / prior_var(net)[:, 0]) + h.T @ h / 0.09
    mean, cov = np.linalg.solve(precision, h.T @ y / 0.09)[:, 0], np.linalg.inv(precision)
    how = dict(features=at[:, :-1]) if frozen else dict(
        moments=theory.feature_moments(POINTS, depth=1, activation="relu", bias_var=0.16))
    laws = theory.renormalized_gp(mean, (cov + cov.T) / 2, rows(net, metric.stiffness)[:, 0], cutoffs,
                                  prior_var(net)[:, 0], bias=True, **how)
    phi = flow.predict(POINTS).values.reshape(5, 4000, 3)
    for k in range(5):
        m, m_se, c, c_se = sampled(phi[k].astype(np.float64))
        assert np.max(np.abs(m - laws.mean_x[k]) / m_se) < 4
        assert np.max(np.abs(c - laws.covariance[k]) / c_se) < 4
    closed = closed_form_flow(flow, POINTS, features="frozen" if frozen else "random",
                              data=(X, y) if frozen else None)
    if frozen:  # nothing left to estimate
        np.testing.assert_allclose(closed["mean"][..., 0], laws.mean_x, atol=1e-4)
        np.testing.assert_allclose(closed["covariance"][:, :, 0, :, 0], laws.covariance, atol=1e-4)
    else:
        for name, exact in (("mean", laws.mean_x), ("covariance", laws.covariance)):
            error = closed[f"{name}_sem"].values.reshape(exact.shape)
            assert (np.abs(closed[name].values.reshape(exact.shape) - exact) < 4 * error + 1e-4).all()


@pytest.mark.slow
def test_members_with_features_of_their_own():
    # Each of 2000 members fits its own features with its own metric. Frozen features hold at every Λ, with the readout
    # known or averaged over; random and independent ones are far off until the readout is all prior. Tolerance 4
    # standard errors on 4 · 5 · 3 numbers; fails for less than 4e-3 of keys.
    net, y = NETS["wide"], X[:, :1] + 2
    posterior = brg.readout_posterior(net, X, y, key=KEY, num_samples=2000)
    metric = brg.fisher(net, posterior, X)
    flow = brg.renormalize(net, posterior, metric, cutoffs=[0, 0.3, 3, 30, 1e5], key=KEY)
    phi = flow.predict(POINTS)
    for data in (None, (X, y)):
        found = closed_form_differences(phi, closed_form_flow(flow, POINTS, data=data))
        assert np.abs(found[["mean_z", "variance_z"]].to_array()).max() < 4
    found = closed_form_differences(phi, closed_form_flow(flow, POINTS, features="random"))
    z = np.abs(found[["mean_z", "variance_z"]].to_array()).max(("point", "output", "variable"))
    assert (z[:4] > 10).all() and z[4] < 4


def test_errors_are_those_of_finitely_many_members():
    """The standard errors cover the scatter between halves: 200 differences, many nearly the same, within 4 of them."""
    net = NETS["wide"]
    posterior = brg.readout_posterior(net, X, X[:, :1], key=KEY, num_samples=2000)
    flow = brg.renormalize(net, posterior, brg.fisher(net, posterior, X), cutoffs=[0, 0.3, 3, 30, 1e5], key=KEY)
    half = np.arange(2000).reshape(4, 500) < 1000
    for features in ("frozen", "random"):
        a, b = (closed_form_flow(flow, POINTS, features=features, keep=keep) for keep in (half, ~half))
        for name in ("mean", "covariance"):
            error = np.hypot(a[f"{name}_sem"], b[f"{name}_sem"]).values
            difference = np.abs(a[name] - b[name]).values
            assert (difference < 4 * error + 1e-6).all() and (difference > 0.3 * error).any()
    assert a.attrs["num_members"] == 1000 and "member_mean" not in a
    frozen = closed_form_flow(flow, POINTS, keep=half)
    assert np.isnan(frozen["member_mean"].values[:, ~half]).all()
    lone = closed_form_flow(flow, POINTS, keep=np.arange(2000).reshape(4, 500) == 5)
    assert np.isnan(lone["mean_sem"]).all() and np.isfinite(lone["covariance"]).all()


def test_a_linear_model_has_no_hidden_features():
    net = brg.mlp((), bias_std=0.2)
    posterior = brg.readout_posterior(net, X, X[:, 0], key=KEY, num_samples=40)
    flow = brg.renormalize(net, posterior, brg.fisher(net, posterior, X), cutoffs=[0, 0.5, 9.0], key=KEY)
    closed = closed_form_flow(flow, POINTS, data=(X, X[:, :1]))
    np.testing.assert_allclose(closed["covariance_sem"], 0, atol=1e-12)
    np.testing.assert_allclose(closed["covariance"][2, 0, 0, 0, 0], (POINTS[0] ** 2).sum() / 2 + 0.04, rtol=1e-6)
    with pytest.raises(ValueError, match="no random features"):
        closed_form_flow(flow, POINTS, features="random")


def test_wrong_questions_are_refused():
    net = NETS["fan_in"]
    flow = made(net)
    for options, words in [
        (dict(features="thawed"), "did you mean|one of 'frozen', 'random'"),
        (dict(features="random", data=(X, Y)), "data= is for"),
        (dict(moments=(0, 0, 0)), "moments= is for"),
        (dict(features="random", moments=(np.ones(2), 1.0, 1.0)), r"moments must have shapes \(3,\)"),
        (dict(keep=np.ones(3)), "keep has shape"),
        (dict(keep=np.zeros((4, 6))), "leaves no member"),
        (dict(cutoffs=[1.0, 0.5]), "must increase"),
    ]:
        with pytest.raises(ValueError, match=words):
            closed_form_flow(flow, POINTS, **options)
    with pytest.raises(ValueError, match="more than 2 GiB"):
        closed_form_flow(flow, np.ones((2000, 2), np.float32))
    whole = brg.renormalize(net, flow.posterior, brg.fisher(net, flow.posterior, X, sites=["b0", "w2"]), cutoffs=[0, 1],
                            key=KEY)
    with pytest.raises(ValueError, match=r"hidden sites b0 flow, .* sites=\['w2', 'b2'\]"):
        closed_form_flow(whole, POINTS)
    stepped = brg.ensemble(net, X, Y, key=KEY, num_members=4, num_epochs=2)
    flow = brg.renormalize(net, stepped, brg.fisher(net, stepped, X), cutoffs=[0, 1], key=KEY)
    with pytest.raises(ValueError, match="exact posterior draws, but these are of 'ensemble"):
        closed_form_flow(flow, POINTS, data=(X, Y))
    broken = stepped.replace(samples={**stepped.samples, "w2": stepped.samples["w2"].at[1, 0].set(jnp.nan)},
                             stats={**stepped.stats, "diverged": np.array([[0], [1], [0], [0]], bool)})
    flow = brg.renormalize(net, broken, brg.fisher(net, broken, X), cutoffs=[0, 1], key=KEY)
    with pytest.raises(ValueError, match=r"'w2' that is not finite, the first number 1; leave them out with keep="):
        closed_form_flow(flow, POINTS)
    with pytest.raises(ValueError, match="phi has"):
        closed_form_differences(flow.predict(POINTS[:2]), closed_form_flow(flow, POINTS, keep=[[1], [0], [1], [1]]))


@pytest.mark.slow
def test_wide_relu_draws_its_closed_forms(tmp_path):
    """The run reports both closed forms: the frozen one within 4 standard errors at every Λ (z < 4 for 2 · 26 · 2
    numbers: fails for less than 7e-3 of seeds), the random one far off at Λ = 0 and right at the last Λ."""
    experiment = brg.load_experiment(Path(__file__).parents[2] / "models" / "wide_relu.py")
    settings = {"num_members": 120, "width": 256, "num_train": 30, "num_test": 5, "num_probe": 40,
                "closed_forms": True}
    run = experiment.run(tmp_path / "run", settings, progress_bar=False)
    table = pd.read_csv(run.path / "closed_form.csv")
    assert "phi_closed_form" in run.figures and set(table["method"]) == {"ensemble", "readout"}
    assert table[["mean_frozen_z", "variance_frozen_z"]].abs().max().max() < 4
    first, last = table[table["cutoff"] == 0], table[table["cutoff"] == 1e5]
    assert (first["variance_random_z"].abs() > 4).all() and (last["variance_random_z"].abs() < 4).all()


def test_closed_forms_are_drawn_as_lines_over_the_members():
    flow = made(NETS["fan_in"])
    closed = closed_form_flow(flow, POINTS[:1]).isel(output=[1], output2=[1])
    figure = plots.moments_along_flow(flow.predict(POINTS[:1]).isel(output=1), closed_form={"closed": closed})
    for ax, name in zip(figure.axes, ("mean", "covariance"), strict=True):
        lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
        np.testing.assert_array_equal(lines["closed"], closed[name].values.ravel())
        assert len(ax.collections) >= 2  # error bars and a band


@pytest.mark.parametrize("noise", [1e-9, 1e-4])
def test_repeated_inputs_with_little_noise(noise):
    """Five equal inputs each: the output's standard deviation is noise/√5, or there is no digit of it left."""
    x = np.repeat(X[:3], 5, axis=0)
    net = brg.mlp(16, bias_std=1.0, likelihood=brg.gaussian(noise))
    posterior = brg.prior(net, x, key=KEY, num_samples=2).replace(trained=("w1", "b1"))
    metric = brg.fisher(net, posterior, x, progress_bar=False)
    flow = brg.renormalize(net, posterior, metric, cutoffs=[0.0], key=KEY)
    if noise < 1e-7:
        with pytest.raises(ValueError, match="the noise, 1e-09, vanishes .* repeated"):
            closed_form_flow(flow, X[:3], data=(x, x[:, 0]))
    else:
        closed = closed_form_flow(flow, X[:3], data=(x, x[:, 0]), progress_bar=False)
        sd = np.sqrt(closed["member_variance"].values)
        np.testing.assert_allclose(sd, noise / np.sqrt(5), rtol=1e-2)
        np.testing.assert_allclose(closed["mean"].values[0, :, 0], X[:3, 0], atol=5 * noise)
