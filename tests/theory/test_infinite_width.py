"""The closed-form flow of a Gaussian readout against published numbers and brute-force sampling."""

import numpy as np
import pytest

from bayes_brg import theory

MEAN = np.array([0.1, -0.2, 0.3, 0.4, -0.5, 0.6])
COV = 0.1 * 0.5 ** np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
STIFFNESS = np.array([5, 1, 3, 0.5, 2, 0.1])
NETWORK = dict(depth=1, activation="relu", weight_var=2.0, bias_var=0.1)


def two_outputs(seed=0, n=4, bias=True):
    rng = np.random.default_rng(seed)
    rows = n + bias
    root = rng.normal(size=(rows * 2, rows * 2)) / 3
    mean, stiffness = rng.normal(size=(rows, 2)), rng.gamma(1.0, size=(rows, 2))
    return mean, (root @ root.T).reshape(rows, 2, rows, 2), stiffness


def test_published_flow(x64):
    moments = theory.feature_moments(np.array([[1, 0.5]]), np.array([[-0.3, 0.8]]), **NETWORK)
    V1_x, V1_y, V2 = (np.asarray(part).ravel()[0] for part in moments)
    flow = theory.renormalized_gp(MEAN, COV, STIFFNESS, [0.0, 1.5], 2 / 6, moments=moments)
    np.testing.assert_allclose(flow.mean_x[:, 0], (0.324470329699, -0.046352904243), atol=1e-12)
    np.testing.assert_allclose(flow.covariance[:, 0, 0], (0.316967176773, 0.325442379184), atol=1e-12)
    for i, cutoff in enumerate((0.0, 1.5)):
        mean, cov = theory.renormalized_readout(MEAN, COV, STIFFNESS, cutoff, 2 / 6)
        mu_x, mu_y, sigma = theory.predictive_gp(mean, cov, V1_x, V1_y, V2)
        np.testing.assert_allclose((mu_x, sigma), (flow.mean_x[i, 0], flow.covariance[i, 0, 0]), atol=1e-14)
        assert mu_x.shape == mu_y.shape == sigma.shape == ()


def test_readout_at_every_scale():
    cutoffs = np.array([0.0, 0.5, 1.5, 100.0, np.inf])
    means, covs = theory.renormalized_readout(MEAN, COV, STIFFNESS, cutoffs, 1 / 3, prior_mean=0.2)
    assert means.shape == (5, 6) and covs.shape == (5, 6, 6)
    np.testing.assert_array_equal(means[0], MEAN)
    np.testing.assert_array_equal(covs[0], COV)
    # λ = Λ = 0.5 is stiff: only the last weight is sloppy.
    np.testing.assert_array_equal(means[1], [*MEAN[:5], 0.2])
    np.testing.assert_array_equal(covs[1][:5, :5], COV[:5, :5])
    np.testing.assert_array_equal(covs[1][5], [0, 0, 0, 0, 0, 1 / 3])
    for last in (3, 4):
        np.testing.assert_array_equal(means[last], np.full(6, 0.2))
        np.testing.assert_array_equal(covs[last], np.eye(6) / 3)
    assert all(np.linalg.eigvalsh(cov)[0] > 0 for cov in covs)


def test_zero_stiffness_is_sloppy_at_every_positive_scale_only():
    mean, cov = theory.renormalized_readout([1.0, 2.0], np.eye(2), [0.0, 1.0], [0.0, 1e-12], 5.0)
    np.testing.assert_array_equal(mean, [[1, 2], [0, 2]])
    np.testing.assert_array_equal(cov[1], [[5, 0], [0, 1]])


def test_predictive_law_matches_sampling():
    # 400,000 draws of readout (two outputs and biases) and of 4 independent relu units at two points.
    # Tolerance 4 standard errors on 4 means and 10 covariances; a fresh seed would fail with probability
    # about 1e-3.
    rng = np.random.default_rng(1)
    draws, (mean, cov, stiffness) = 400_000, two_outputs()
    x = np.array([[1, 0.5], [-0.3, 0.8]])
    gram = 0.1 + 2.0 * x @ x.T / 2
    with_jax = theory.feature_moments(x, **NETWORK)
    for cutoff in (0.0, 0.7):
        law = theory.renormalized_readout(mean, cov, stiffness, cutoff, 0.5)
        w = rng.multivariate_normal(law[0].ravel(), law[1].reshape(10, 10), size=draws).reshape(draws, 5, 2)
        h = np.maximum(rng.normal(size=(draws, 4, 2)) @ np.linalg.cholesky(gram).T, 0)
        outputs = (np.einsum("tio,tip->tpo", w[:, :4], h) + w[:, None, 4]).reshape(draws, 4)
        flow = theory.renormalized_gp(mean, cov, stiffness, cutoff, 0.5, moments=with_jax, bias=True)
        centred = outputs - outputs.mean(0)
        error = centred.std(0) / np.sqrt(draws)
        assert (np.abs(outputs.mean(0) - flow.mean_x.ravel()) < 4 * error).all()
        products = centred[:, :, None] * centred[:, None]
        error = products.std(0) / np.sqrt(draws)
        assert flow.covariance.shape == (2, 2, 2, 2)
        assert (np.abs(products.mean(0) - flow.covariance.reshape(4, 4)) < 4 * error).all()
        np.testing.assert_array_equal(flow.mean_x, flow.mean_y)
        assert np.linalg.eigvalsh(flow.covariance.reshape(4, 4))[0] > 0


def test_frozen_features_are_exact():
    mean, cov, stiffness = two_outputs()
    rng = np.random.default_rng(2)
    H_x, H_y = rng.normal(size=(3, 4)), rng.normal(size=(5, 4))
    flow = theory.renormalized_gp(mean, cov, stiffness, [0.0, 0.7], 0.5, features=(H_x, H_y), bias=True)
    for i, cutoff in enumerate((0.0, 0.7)):
        w, xi = theory.renormalized_readout(mean, cov, stiffness, cutoff, 0.5)
        A, B = (np.hstack([H, np.ones((len(H), 1))]) for H in (H_x, H_y))
        np.testing.assert_allclose(flow.mean_x[i], A @ w, atol=1e-12)
        np.testing.assert_allclose(flow.mean_y[i], B @ w, atol=1e-12)
        np.testing.assert_allclose(flow.covariance[i], np.einsum("xi,iajb,yj->xayb", A, xi, B), atol=1e-12)
    single = theory.renormalized_gp(MEAN[:4], COV[:4, :4], STIFFNESS[:4], 0.0, 0.5, features=H_x)
    np.testing.assert_allclose(single.covariance, H_x @ COV[:4, :4] @ H_x.T, atol=1e-14)


def test_fully_renormalised_network_is_the_prior_nngp(x64):
    x = np.random.default_rng(0).normal(size=(4, 3))
    moments = theory.feature_moments(x, **dict(NETWORK, depth=3))
    prior_var = np.append(np.full(6, 2.0 / 6), 0.1)
    flow = theory.renormalized_gp(
        np.append(MEAN, 1.0), np.eye(7), np.ones(7), np.inf, prior_var, moments=moments, bias=True
    )
    assert (flow.mean_x == 0).all()
    np.testing.assert_allclose(flow.covariance, theory.nngp(x, **dict(NETWORK, depth=3)), rtol=1e-12)


def test_readout_moments_of_draws():
    draws = np.random.default_rng(0).normal(size=(50, 3, 2))
    mean, cov = theory.readout_moments(draws)
    np.testing.assert_allclose(mean, draws.mean(0))
    np.testing.assert_allclose(cov.reshape(6, 6), np.cov(draws.reshape(50, 6).T), atol=1e-14)
    assert cov.shape == (3, 2, 3, 2)


@pytest.mark.parametrize(
    "points, kurtosis, kappa4",
    [((1, 1, 1, 1), 3.0, 0.375), ((1, 1, 0.5, 0.5), 3.0, 0.09375), ((1, 1, 1, 1), 1.8, 0.195)],
)
def test_finite_width_kappa4(points, kurtosis, kappa4):
    x = np.array(points)  # h = relu(u x), u ~ N(0, 1), x > 0: E h_a h_b = x_a x_b/2, E h⁴ = 3/2 Π x
    fourth, pairs = 1.5 * x.prod(), np.outer(x, x) / 2
    got = theory.finite_width_kappa4(fourth, pairs, width=10, weight_kurtosis=kurtosis)
    np.testing.assert_allclose(got, kappa4, rtol=1e-14)
    np.testing.assert_allclose(
        theory.finite_width_kappa4(fourth, pairs, width=20, weight_var=3.0, weight_kurtosis=kurtosis),
        kappa4 * 9 / 2,
        rtol=1e-14,
    )


def test_gp_posterior_is_conditioning():
    rng = np.random.default_rng(0)
    x, x_test, y = rng.normal(size=(8, 3)), rng.normal(size=(4, 3)), rng.normal(size=(8, 2))
    options = dict(depth=2, activation="erf", weight_var=1.5, bias_var=0.1)
    joint = np.asarray(theory.kernels.in_float64(theory.nngp, np.vstack([x, x_test]), **options))
    precision = np.linalg.inv(
        joint + np.diag([0.2] * 8 + [0.0] * 4)
    )  # an independent route: blocks of the precision
    cov = np.linalg.inv(precision[8:, 8:])
    got = theory.gp_posterior(x, y, x_test, noise_var=0.2, **options)
    np.testing.assert_allclose(got[1], cov, atol=1e-11)
    np.testing.assert_allclose(got[0], -cov @ precision[8:, :8] @ y, atol=1e-11)
    single = theory.gp_posterior(x, y[:, 0], x_test, noise_var=0.2, **options)
    np.testing.assert_allclose(single[0], got[0][:, 0], atol=1e-13)
    exact = theory.gp_posterior(x, y, x, noise_var=0.0, **options)
    np.testing.assert_allclose(exact[0], y, atol=1e-7)
    with pytest.raises(ValueError, match="singular at noise_var=0"):
        theory.gp_posterior(x[[0, 0, 0]], y[:3], x_test, noise_var=0.0, **options)
    with pytest.raises(ValueError, match="noise_var must be"):
        theory.gp_posterior(x, y, x_test, noise_var=-1.0, **options)


def test_bad_arguments_are_refused_by_name():
    def readout(mean=MEAN, cov=COV, stiffness=STIFFNESS, cutoff=1.0, prior_var=0.3, **more):
        return theory.renormalized_readout(mean, cov, stiffness, cutoff, prior_var, **more)

    for options, words in [
        (dict(cov=COV[:5, :5]), r"cov has shape \(5, 5\).*\(6, 6\)"),
        (dict(cov=COV + np.triu(COV, 1)), "not symmetric"),
        (dict(cov=-COV), "negative variance"),
        (dict(stiffness=STIFFNESS[:2]), "one stiffness per weight"),
        (dict(stiffness=-STIFFNESS), "stiffness must not be negative, got -5"),
        (dict(cutoff=-1.0), "cutoff must be"),
        (dict(cutoff=np.nan), "cutoff must be"),
        (dict(prior_var=-0.1), "prior_var must not be negative"),
        (dict(prior_var=np.ones(4)), "prior_var .* does not broadcast"),
        (dict(mean=np.append(MEAN[:5], np.nan)), r"mean\[5\] is nan"),
    ]:
        with pytest.raises(ValueError, match=words):
            readout(**options)
    with pytest.raises(ValueError, match="V2_xy has shape"):
        theory.predictive_gp(MEAN, COV, np.ones(2), np.ones(3), np.ones((3, 2)))
    with pytest.raises(ValueError, match="exactly one of"):
        theory.renormalized_gp(MEAN, COV, STIFFNESS, 1.0, 0.3)
    with pytest.raises(ValueError, match=r"\(points, 6\)"):
        theory.renormalized_gp(MEAN, COV, STIFFNESS, 1.0, 0.3, features=np.ones((3, 5)))
    with pytest.raises(ValueError, match="width ≥ 1"):
        theory.finite_width_kappa4(1.0, np.ones((4, 4)), width=0)
    with pytest.raises(ValueError, match="pairs has shape"):
        theory.finite_width_kappa4(1.0, np.ones((4, 3)), width=1)
