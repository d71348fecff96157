import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bayes_brg as brg

PHI = np.array([[0.3, -1.2, 0.5], [2.0, 0.1, -0.4]])
ALL = {"gaussian": brg.gaussian(0.6), "bernoulli": brg.bernoulli(), "categorical": brg.categorical(),
       "poisson": brg.poisson()}


@pytest.mark.parametrize("name", ALL)
def test_log_prob_against_scipy(name, x64):
    y = {"gaussian": PHI + 0.3, "bernoulli": np.array([[0, 1, 1], [1, 0, 0]]), "categorical": np.array([2, 0]),
         "poisson": np.array([[0, 2, 1], [5, 1, 0]])}[name]
    p = np.exp(PHI) / np.exp(PHI).sum(1, keepdims=True)
    expected = {
        "gaussian": lambda: stats.norm.logpdf(y, PHI, 0.6).sum(1),
        "bernoulli": lambda: stats.bernoulli.logpmf(y, 1 / (1 + np.exp(-PHI))).sum(1),
        "categorical": lambda: np.log(p[np.arange(2), y]),
        "poisson": lambda: stats.poisson.logpmf(y, np.exp(PHI)).sum(1),
    }[name]()
    got = ALL[name].log_prob(jnp.asarray(PHI), ALL[name].targets(y, 3))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_fisher_is_minus_the_expected_hessian(name, x64):
    """F_out = −E ∂² log p/∂φ², by autodiff and, for discrete targets, enumeration."""
    lik, phi = ALL[name], jnp.asarray(PHI[0])

    def log_p(phi, y):
        return lik.log_prob(phi[None], y)[0]

    if name == "gaussian":
        cases = [(1.0, np.zeros((1, 3)))]
    elif name == "categorical":
        cases = [(float(p), np.array([c])) for c, p in enumerate(jax.nn.softmax(phi))]
    else:
        values = range(2) if name == "bernoulli" else range(60)
        grids = np.stack(np.meshgrid(*[list(values)] * 3, indexing="ij"), -1).reshape(-1, 3) \
            if name == "bernoulli" else np.array([[v, v, v] for v in values])
        if name == "bernoulli":
            cases = [(float(np.exp(log_p(phi, g[None]))), g[None]) for g in grids]
        else:  # the Hessian of a Poisson in its log-rate does not depend on y
            cases = [(1.0, np.zeros((1, 3)))]
    expected = -sum(w * jax.hessian(log_p)(phi, lik.targets(y, 3)) for w, y in cases)
    np.testing.assert_allclose(lik.fisher(phi[None])[0], expected, atol=1e-12)


def test_categorical_root_survives_certain_classes():
    phi = jnp.array([[0.0, -200.0, 3.0, -90.0], [500.0, 0.0, 0.0, 0.0]])
    root = brg.categorical().fisher_root(phi)
    assert root.shape == (2, 4, 3)
    p = jax.nn.softmax(phi)
    expected = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None, :]
    np.testing.assert_allclose(root @ jnp.swapaxes(root, 1, 2), expected, atol=1e-7)


def test_targets_are_checked():
    lik = brg.gaussian()
    assert lik.targets(np.zeros(4), 1).shape == (4, 1)
    with pytest.raises(ValueError, match="2 output"):
        lik.targets(np.zeros(4), 2)
    with pytest.raises(ValueError, match=r"y\[1\] is 3"):
        brg.categorical().targets(np.array([0, 3]), 3)
    with pytest.raises(ValueError, match="argmax"):
        brg.categorical().targets(np.eye(3), 3)
    with pytest.raises(ValueError, match=r"y\[0, 0\] is 0.5"):
        brg.bernoulli().targets(np.array([0.5, 1.0]), 1)
    with pytest.raises(ValueError, match="whole number"):
        brg.poisson().targets(np.array([-1.0]), 1)
    with pytest.raises(ValueError, match="scale"):
        brg.gaussian(0.0)
