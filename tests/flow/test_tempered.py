"""The tempered flow against conjugate models, quadrature and the un-learning flow.

Statistical tests have fixed keys; "z" is a deviation in standard errors, of which a limit says how many.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import bayes_brg as brg
from bayes_brg import theory
from bayes_brg.flow.thermodynamics import _smoother, bridge, integral

KEY = jax.random.key(11)
RNG = np.random.default_rng(4)
N, STIFFNESS, ESTIMATE = 10, 2.0, 1.3


def equal(a, b):
    return all(np.array_equal(a.samples[s], b.samples[s]) for s in a.samples)


def score(flow, name, exact, where=slice(None)):
    """Largest deviation in standard errors."""
    found, error = getattr(flow, name)[where], getattr(flow, f"{name}_sem")[where]
    return np.abs((found - np.asarray(exact)[where]) / error).max()


# -- one mode (theory §9) -------------------------------------------------------------------------------------
def one_mode(x, y=None):
    u = numpyro.sample("u", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(u * x, 1.0), obs=y)


ONE_X = np.full(N, STIFFNESS**0.5, np.float32)
ONE_Y = ONE_X * ESTIMATE
PEAK = -0.5 * N * np.log(2 * np.pi)
ONE_CUTOFFS = [0.0, 0.05, 0.1, 0.2, 1.0, np.inf]


@pytest.fixture(scope="module")
def mode():
    a = N * STIFFNESS
    u = a * ESTIMATE / (1 + a) + RNG.normal(size=(4, 500)) / np.sqrt(1 + a)
    posterior = brg.Posterior({"u": u.astype(np.float32)}, {"independent": True})
    return brg.renormalize_tempered(one_mode, posterior, ONE_X, ONE_Y, cutoffs=ONE_CUTOFFS, key=KEY)


def test_the_closed_form_has_the_numbers_of_the_theory():
    found = theory.tempered_linear([0.1, 0.5, 1.0], [STIFFNESS], [ESTIMATE], N)
    np.testing.assert_allclose(found.heat_capacity, [0.4725925926, 0.5401953418, 0.5265090163], rtol=1e-9)
    np.testing.assert_allclose(found.mean_log_likelihood, [-5.2111111111, -1.0487603306, -0.5145124717], rtol=1e-9)
    grid = np.linspace(-8, 8, 40_001)
    loss = -0.5 * N * STIFFNESS * (grid - ESTIMATE) ** 2
    mass = np.exp(0.5 * loss - 0.5 * grid**2)
    assert found.log_evidence[1] == pytest.approx(np.log(mass.sum() * (grid[1] - grid[0]) / np.sqrt(2 * np.pi)))
    with pytest.raises(ValueError, match="stiffness must be at least 0"):
        theory.tempered_linear(1.0, [-1.0], [0.0], N)


def test_particles_have_the_numbers_of_the_theory(mode):
    exact = theory.tempered_linear(mode.power, [STIFFNESS], [ESTIMATE], N, PEAK)
    finite = slice(0, 5)
    for name in ("heat_capacity", "mean_log_likelihood", "log_evidence"):
        assert score(mode, name, getattr(exact, name), finite) < 3, name
    integrated = mode.diagnostics["log_evidence_integrated"] - exact.log_evidence
    assert (np.abs(integrated[finite] / mode.diagnostics["log_evidence_integrated_sem"][finite]) < 3).all()
    np.testing.assert_allclose(mode.effective_directions, 2 * mode.heat_capacity)
    assert mode.heat_capacity[-1] == 0 and mode.log_evidence[-1] == 0


def test_small_cutoffs_are_the_posterior_and_infinity_the_prior_bit_for_bit(mode):
    assert mode.at(0.0) is mode.posterior
    for cutoff in (0.05, 0.1):
        assert equal(mode.at(cutoff), mode.posterior)
    assert not equal(mode.at(0.2), mode.posterior)
    metric = brg.fisher(one_mode, mode.posterior, ONE_X)
    mapped = brg.renormalize(one_mode, mode.posterior, metric, cutoffs=[0.0], key=KEY)
    assert equal(mode.at(np.inf), mapped.at(np.inf))


def test_one_over_n_is_the_posterior_whatever_its_rounding():
    for n in (3, 49, 107, 1000):
        assert (brg.flow.tempered.powers([1 / n, np.nextafter(1 / n, 1)], n) == 1).all()


def test_every_scale_reports_on_itself(mode):
    d = mode.diagnostics.isel(cutoff=[3, 4])
    assert (d["acceptance"] > 0.6).all() and (np.abs(d["forgotten"]) < 0.2).all()
    assert ((d["angle"] > 0.9) & (d["angle"] < 1.5)).all()
    assert (d["ancestors"] > 500).all() and (d["ancestors"] < 2000).all() and (d["weight_ess"] > 500).all()
    assert d["log_likelihood"].dims == ("cutoff", "chain", "draw")
    np.testing.assert_allclose(d["log_likelihood"].mean(("chain", "draw")), d["mean_log_likelihood"], atol=0.5)
    assert float(mode.diagnostics["num_gradients"].sum()) <= float(mode.levels["num_gradients"].sum())
    assert float(mode.diagnostics["num_gradients"][4]) == float(mode.levels["num_gradients"].where(
        (mode.levels["power"] < 0.5) & (mode.levels["power"] >= 0.1), drop=True).sum())
    assert mode.levels["power"][0] == 1 and mode.levels["power"][-1] < 0.1
    assert not mode.independent and not mode.predict(ONE_X[:2], cutoffs=[1.0]).attrs["independent"]


def test_cooled_particles_say_the_same_and_a_wrong_posterior_does_not(mode):
    back = mode.hysteresis(key=jax.random.key(5))
    for name in ("mean_log_likelihood", "heat_capacity", "log_evidence"):
        assert (np.abs(back[f"{name}_z"]) < 3.5).all(), name
    off = mode.posterior.replace(samples={"u": mode.posterior.samples["u"] + 0.5})
    with pytest.warns(UserWarning, match="not draws of it"):
        wrong = brg.renormalize_tempered(one_mode, off, ONE_X, ONE_Y, cutoffs=[0.0, 0.2], key=KEY)
    assert float(np.abs(wrong.hysteresis(key=KEY)["mean_log_likelihood_z"][0])) > 5


@pytest.mark.slow
def test_the_error_is_that_of_repetition():
    """Over 40 repetitions the deviations have a spread of 1; between .75 and 1.35 is 99 % of such spreads."""
    a, found = N * STIFFNESS, []
    exact = theory.tempered_linear([0.5, 0.1], [STIFFNESS], [ESTIMATE], N, PEAK)
    for seed in range(40):
        u = a * ESTIMATE / (1 + a) + np.random.default_rng(seed).normal(size=(4, 100)) / np.sqrt(1 + a)
        posterior = brg.Posterior({"u": u.astype(np.float32)}, {"independent": True})
        flow = brg.renormalize_tempered(one_mode, posterior, ONE_X, ONE_Y, cutoffs=[0.2, 1.0],
                                        key=jax.random.key(seed))
        found.append([(getattr(flow, n) - getattr(exact, n)) / getattr(flow, f"{n}_sem")
                      for n in ("mean_log_likelihood", "log_evidence")])
    spread = np.sqrt(np.mean(np.square(found), axis=0))
    assert ((spread > 0.75) & (spread < 1.35)).all(), spread


# -- linear readouts: un-learning -----------------------------------------------------------------------------
OUT, DIM, NOISE = 2, 3, 0.7
LIN_X = (RNG.normal(size=(20, DIM)) @ np.array([[1.0, 0.8, 0.0], [0.0, 0.6, 0.5], [0.0, 0.0, 1.0]]))
LIN_Y = LIN_X @ np.array([[0.6, -0.3], [-0.3, 1.0], [0.9, 0.2]]) + NOISE * RNG.normal(size=(20, OUT))
MEAN = np.array([[0.5, -1.0], [0.0, 0.2], [0.3, 0.0]])
STD = np.array([[1.0, 0.5], [0.2, 1.0], [0.5, 0.7]])
LIN_CUTOFFS = [0.0, 0.03, 0.05, 0.1, 0.3, 1.0, 5.0]


def linear(outputs):
    def model(x, y=None):
        w = numpyro.sample("w", dist.Normal(jnp.asarray(MEAN[:, :outputs], x.dtype),
                                            jnp.asarray(STD[:, :outputs], x.dtype)).to_event(2))
        numpyro.sample("y", dist.Normal(x @ w, NOISE).to_event(1), obs=y)
    return model


def law(power, c):
    """Mean and covariance of output c's weights with the likelihood to a power."""
    precision = np.diag(1 / STD[:, c] ** 2) + power * LIN_X.T @ LIN_X / NOISE**2
    covariance = np.linalg.inv(precision)
    return covariance @ (MEAN[:, c] / STD[:, c] ** 2 + power * LIN_X.T @ LIN_Y[:, c] / NOISE**2), covariance


def worst_score(w, power, c, size):
    """Largest deviation of mean and covariance, in standard errors of `size` independent draws."""
    mean, covariance = law(power, c)
    white = np.linalg.solve(np.linalg.cholesky(covariance), (np.asarray(w, float).reshape(-1, DIM) - mean).T)
    first = np.abs(white.mean(1)) * np.sqrt(size)
    second = np.abs(white @ white.T / white.shape[1] - np.eye(DIM)) * np.sqrt(size / (1 + np.eye(DIM)))
    return max(first.max(), second.max())


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_linear_readout_is_unlearned(outputs):
    """Mean and covariance of π_Λ at six cutoffs are those of un-learning (`test_flow_rules` has its flow to the same
    law), and the evidence is exact; as many draws count as there are ancestors left."""
    laws = [law(1.0, c) for c in range(outputs)]
    w = np.stack([RNG.multivariate_normal(m, c, size=(4, 500)) for m, c in laws], axis=-1).astype(np.float32)
    posterior = brg.Posterior({"w": w}, {"independent": True})
    x, y = LIN_X.astype(np.float32), LIN_Y[:, :outputs].astype(np.float32)
    flow = brg.renormalize_tempered(linear(outputs), posterior, x, y, cutoffs=LIN_CUTOFFS, key=KEY)
    for cutoff, ancestors in zip(LIN_CUTOFFS, flow.diagnostics["ancestors"].values, strict=True):
        for c in range(outputs):
            power = min(1.0, 1 / (20 * cutoff)) if cutoff else 1.0
            assert worst_score(flow.at(cutoff).samples["w"][..., c], power, c, ancestors) < 4, cutoff
    exact = [sum(stats.multivariate_normal.logpdf(LIN_Y[:, c], LIN_X @ MEAN[:, c],
                                                  LIN_X @ np.diag(STD[:, c] ** 2) @ LIN_X.T + NOISE**2 * np.eye(20))
                 for c in range(outputs))]
    assert score(flow, "log_evidence", exact * 2, slice(0, 2)) < 3


# -- networks -------------------------------------------------------------------------------------------------
def test_the_evidence_of_a_small_network_is_that_of_quadrature():
    """A tanh unit, two weights, with two modes of opposite sign: energy and evidence on a grid at each scale."""
    net = brg.mlp((1,), activation="tanh", weight_std=1.5, likelihood=brg.gaussian(0.4))
    x = np.linspace(-1, 1, 8)[:, None].astype(np.float32)
    y = 0.8 * np.tanh(1.2 * x[:, 0])
    g = np.linspace(-9, 9, 601)
    v, w = np.meshgrid(g, g, indexing="ij")
    loss = sum(stats.norm.logpdf(yi, w * np.tanh(v * xi), 0.4) for xi, yi in zip(x[:, 0], y, strict=True))
    prior = stats.norm.logpdf(v, 0, 1.5) + stats.norm.logpdf(w, 0, 1.5)
    mass = np.exp(loss + prior)
    pick = np.random.default_rng(0).choice(mass.size, size=2000, p=mass.ravel() / mass.sum())
    step = g[1] - g[0]
    jitter = np.random.default_rng(1).uniform(-step / 2, step / 2, size=(2, 2000))
    draws = {"w0": v.ravel()[pick] + jitter[0], "w1": w.ravel()[pick] + jitter[1]}
    posterior = brg.Posterior({s: d.reshape(4, 500, 1, 1).astype(np.float32) for s, d in draws.items()},
                              {"independent": True})
    flow = brg.renormalize_tempered(net, posterior, x, y, cutoffs=[0.0, 0.5, 2.0, 20.0], key=KEY)
    for k, t in enumerate(flow.power):
        mass = np.exp(t * loss + prior)
        mean = (mass * loss).sum() / mass.sum()
        for name, exact in (("log_evidence", np.log(mass.sum() * step**2)), ("mean_log_likelihood", mean),
                            ("heat_capacity", t**2 * (mass * (loss - mean) ** 2).sum() / mass.sum())):
            assert abs(getattr(flow, name)[k] - exact) < 3.5 * getattr(flow, f"{name}_sem")[k], (name, t)


def test_the_prior_is_a_fixed_point_and_is_reached():
    """Of data that say nothing π_Λ is the prior at every Λ, site by site; and Λ far above all stiffness is near it."""
    net = brg.mlp((3,), activation="tanh", bias_std=0.5, likelihood=brg.gaussian(1e3))
    x = RNG.normal(size=(5, 2)).astype(np.float32)
    y = RNG.normal(size=5).astype(np.float32)
    prior = brg.prior(net, x, key=KEY, num_samples=400)
    flow = brg.renormalize_tempered(net, prior, x, y, cutoffs=[0.0, 1.0, 1e4, np.inf], key=jax.random.key(2))
    stds = {"w0": 1 / np.sqrt(2), "w1": 1 / np.sqrt(3), "b0": 0.5, "b1": 0.5}
    for cutoff in flow.cutoffs[1:]:
        moved = flow.at(cutoff)
        for s, std in stds.items():
            assert stats.kstest(np.ravel(moved.samples[s]) / std, "norm").pvalue > 1e-3
            assert (np.asarray(moved.samples[s]) != np.asarray(prior.samples[s])).mean() > 0.99
    assert (flow.effective_directions < 1e-3).all()


def test_a_held_site_stays_and_the_rest_is_right_given_it():
    """Random features with their exact readouts: tempered given each draw's own features; 4 standard errors."""
    net = brg.mlp((6,), activation="tanh", likelihood=brg.gaussian(0.5))
    x = RNG.normal(size=(12, 2)).astype(np.float32)
    y = np.sin(x[:, 0])
    posterior = brg.readout_posterior(net, x, y, key=KEY, num_samples=600)
    assert posterior.trained == ("w1",)
    flow = brg.renormalize_tempered(net, posterior, x, y, cutoffs=[0.0, 0.5, np.inf], key=KEY)
    assert flow.sites == ("w1",)
    at = flow.at(0.5)
    np.testing.assert_array_equal(at.samples["w0"], posterior.samples["w0"])
    t, scores = flow.power[1], []
    for w0, w1 in zip(np.asarray(at.flat()["w0"], float), np.asarray(at.flat()["w1"], float)[..., 0], strict=True):
        h = np.tanh(x @ w0)
        precision = 6 * np.eye(6) + t * h.T @ h / 0.25
        mean = np.linalg.solve(precision, t * h.T @ y / 0.25)
        scores.append(np.linalg.cholesky(precision).T @ (w1 - mean))
    white = np.array(scores)
    size = len(white)
    assert np.abs(white.mean(0)).max() * np.sqrt(size) < 4
    assert (np.abs(white.T @ white / size - np.eye(6)) * np.sqrt(size / (1 + np.eye(6)))).max() < 4
    exact = np.mean([stats.multivariate_normal.logpdf(y, np.zeros(12), np.tanh(x @ w0) @ np.tanh(x @ w0).T / 6
                                                      + 0.25 * np.eye(12))
                     for w0 in np.asarray(posterior.flat()["w0"], float)])
    assert abs(flow.log_evidence[0] - exact) < 4 * flow.log_evidence_sem[0]


def test_hierarchies_and_constraints_flow_to_their_joint_prior():
    """A scale (positive) over a Gamma site and a Normal one: heated draws at a large Λ have the joint prior's law."""
    def model(x, y=None):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        w = numpyro.sample("w", dist.Normal(0.0, scale))
        numpyro.sample("y", dist.Normal(rate + w * x, 0.5), obs=y)

    x = np.linspace(-1, 1, 6).astype(np.float32)
    y = 2 + x
    scale, rate = np.exp(RNG.normal(size=200_000) / 2), RNG.gamma(2.0, size=200_000)
    drawn = {"scale": scale, "rate": rate, "w": scale * RNG.normal(size=200_000)}
    loss = -2 * ((y - rate[:, None] - drawn["w"][:, None] * x) ** 2).sum(1)  # the posterior by rejection
    kept = np.flatnonzero(RNG.uniform(size=loss.size) < np.exp(loss))[:1000]
    posterior = brg.Posterior({s: v[kept].reshape(4, 250).astype(np.float32) for s, v in drawn.items()},
                              {"independent": True})
    flow = brg.renormalize_tempered(model, posterior, x, y, cutoffs=[0.0, 1.0, 1e4], key=KEY)
    far = {s: np.ravel(v).astype(float) for s, v in flow.at(1e4).samples.items()}
    assert stats.kstest(np.log(far["scale"]) / 0.5, "norm").pvalue > 1e-3
    assert stats.kstest(far["rate"], stats.gamma(2).cdf).pvalue > 1e-3
    assert stats.kstest(far["w"] / far["scale"], "norm").pvalue > 1e-3
    assert (far["rate"] > 0).all() and (np.asarray(flow.at(1.0).samples["rate"]) > 0).all()
    with pytest.raises(ValueError, match="'w' is held, but its prior depends on 'scale'"):
        brg.renormalize_tempered(model, posterior, x, y, cutoffs=[0.0, 1.0], key=KEY, sites=("scale",))


# -- transitions, refusals ------------------------------------------------------------------------------------
def test_two_scales_of_stiffness_are_two_steps_and_a_far_estimate_a_peak():
    """C of a direction rises to ½, with a peak on the way where its estimate is many prior widths out."""
    def model(x, y=None):
        u = numpyro.sample("u", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ u, 1.0), obs=y)

    x, estimate = np.full((N, 1), STIFFNESS**0.5, np.float32), 6.0
    a = N * STIFFNESS
    u = (a * estimate / (1 + a) + RNG.normal(size=(4, 500, 1)) / np.sqrt(1 + a)).astype(np.float32)
    flow = brg.renormalize_tempered(model, brg.Posterior({"u": u}, {"independent": True}), x, x[:, 0] * estimate,
                                    cutoffs=[0.0, *np.geomspace(0.1, 30, 12)], key=KEY)
    grid = np.geomspace(1e-3, 1, 4001)
    exact = theory.tempered_linear(grid, [STIFFNESS], [estimate], N).heat_capacity
    (found,) = flow.critical_scales()
    top = 1 / (N * grid[np.argmax(exact)])
    assert found.lower < top < found.upper and found.upper < 2 * found.lower
    assert "peak of the heat capacity" in str(found)


def test_what_it_refuses(mode):
    posterior = mode.posterior
    bad = posterior.replace(samples={"u": posterior.samples["u"].at[1, 3].set(jnp.nan)})
    call = brg.renormalize_tempered
    with pytest.raises(ValueError, match="log-likelihood of 1 of 2000 draws is not finite.*chain 1, draw 3"):
        call(one_mode, bad, ONE_X, ONE_Y, cutoffs=[0.0, 1.0], key=KEY)
    with pytest.raises(ValueError, match="start must be"):
        call(one_mode, posterior, ONE_X, ONE_Y, cutoffs=[0.0, 1.0], key=KEY, start="middle")
    with pytest.raises(ValueError, match="target_ess must lie"):
        call(one_mode, posterior, ONE_X, ONE_Y, cutoffs=[0.0, 1.0], key=KEY, target_ess=1.0)
    with pytest.raises(ValueError, match="no parameter site 'v'"):
        call(one_mode, posterior, ONE_X, ONE_Y, cutoffs=[0.0, 1.0], key=KEY, sites=("v",))
    with pytest.raises(RuntimeError, match="after 1 levels"):
        call(one_mode, posterior, ONE_X, ONE_Y, cutoffs=[0.0, 100.0], key=KEY, max_levels=1)
    with pytest.raises(ValueError, match="nearest are 0.2 and 1"):
        mode.at(0.5)


def test_draws_that_cannot_be_heated_are_refused(mode):
    """One draw, or draws that agree, would stay where they are at every Λ, with errors of zero."""
    call, u = brg.renormalize_tempered, mode.posterior.samples["u"]
    for samples in ({"u": u[:1, :1]}, {"u": jnp.full((2, 10), 1.2)}):
        with pytest.raises(ValueError, match="draw.s. all have the same value in site 'u'"):
            call(one_mode, brg.Posterior(samples), ONE_X, ONE_Y, cutoffs=[0.0, 1.0], key=KEY)

    def held(x, y=None):
        numpyro.sample("b", dist.Normal(0.0, 1.0))
        one_mode(x, y)

    posterior = brg.Posterior({"b": u, "u": u})
    with pytest.raises(ValueError, match="num_moves must be at least 6 where sites are held, got 2"):
        call(held, posterior, ONE_X, ONE_Y, cutoffs=[0.0, 1.0], key=KEY, sites="u", num_moves=2)


def test_values_that_a_model_computes_may_be_among_the_draws(mode):
    u = mode.posterior.samples["u"][:, :50]
    flows = [brg.renormalize_tempered(one_mode, brg.Posterior(s), ONE_X, ONE_Y, cutoffs=[0.2], key=KEY)
             for s in ({"u": u}, {"u": u, "fitted": u[..., None] * ONE_X})]
    assert flows[1].sites == ("u",)
    np.testing.assert_array_equal(*(f.at(0.2).samples["u"] for f in flows))


def test_an_improper_prior_has_no_other_end():
    def flat(x, y=None):
        u = numpyro.sample("u", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(u * x, 1.0), obs=y)

    u = ESTIMATE + RNG.normal(size=(1, 50)) / np.sqrt(N * STIFFNESS)
    flow = brg.renormalize_tempered(flat, brg.Posterior({"u": u}), ONE_X, ONE_Y, cutoffs=[0.2], key=KEY)
    assert np.isnan(flow.log_evidence).all()
    with pytest.raises(ValueError, match="hysteresis starts from the prior: site 'u' has an improper prior"):
        flow.hysteresis(key=KEY)


@pytest.mark.parametrize("stiffness", [[1e-3], [1.0], [1e3], [1e-3, 0.1, 3.0, 100.0]])
def test_the_integral_over_powers_holds_from_weak_data_to_strong(stiffness):
    """Four levels a factor of three apart, against the closed form; over log t alone each would be off by .03."""
    t = np.geomspace(1.0, 1 / 27, 4)
    exact = theory.tempered_linear(t, stiffness, 1.3, 10, -20.0)
    mean, variance = exact.mean_log_likelihood, exact.heat_capacity / t**2
    legs, coefficients = integral(t, mean, variance)
    np.testing.assert_allclose(legs, np.diff(exact.log_evidence), atol=2e-3)
    moved = integral(t, mean + np.array([0.0, 0.1, 0.0, 0.0]), variance)[0] - legs
    np.testing.assert_allclose(moved, 0.1 * coefficients[:, 1], atol=1e-9)


def test_a_bridge_between_laws_that_hardly_meet_is_a_number():
    near, far = np.array([[-14_000.0, -14_001.0]]), np.array([[-1e6, -1.1e6]])
    found = bridge(near, np.full(2, 0.5), far, np.full(2, 0.5), -0.999)
    assert np.isfinite(found.value) and np.isfinite(found.near).all() and np.isfinite(found.far).all()


def test_the_smoothed_curve_keeps_lines_and_makes_no_peak_of_a_step():
    places = np.linspace(0, 11, 50)
    smooth = _smoother(12, places)
    np.testing.assert_allclose(smooth @ (3.0 - 2.0 * np.arange(12)), 3.0 - 2.0 * places, atol=1e-9)
    step = smooth @ np.repeat([70.0, 0.5], 6)
    assert (np.diff(step)[5:-5] < 0).all()  # lines at the ends see little of the other side
