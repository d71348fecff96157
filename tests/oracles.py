"""Slow, obvious answers: what the package is checked against. Dense float64 matrices, loops, enumeration, grids.

Nothing here shares code with the package; θ is one flat vector, and `flat` says in which order a dict goes into it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def flat(tree: dict, sites) -> np.ndarray:
    """Entries of the named sites, one after the other."""
    return np.concatenate([np.ravel(np.asarray(tree[s], float)) for s in sites])


def unflat(vector, like: dict, sites) -> dict:
    """The inverse of `flat`; sites not named keep the value they have in `like`."""
    out, start = dict(like), 0
    for s in sites:
        size = int(np.prod(np.shape(like[s])))
        out[s] = jnp.reshape(vector[start:start + size], np.shape(like[s]))
        start += size
    return out


# -- the Fisher metric (50)–(52) --------------------------------------------------------------------------------
def output_fisher(name: str, phi: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """F_out of one datum in natural coordinates."""
    match name:
        case "gaussian":
            return np.eye(phi.size) / scale**2
        case "bernoulli":
            p = 1 / (1 + np.exp(-phi))
            return np.diag(p * (1 - p))
        case "poisson":
            return np.diag(np.exp(phi))
    p = np.exp(phi - phi.max())
    p /= p.sum()
    return np.diag(p) - np.outer(p, p)


def looped_metric(apply: Callable, params: dict, x, sites, name: str, scale: float = 1.0) -> np.ndarray:
    """Mean of JᵀF_out J over probe inputs, one gradient an input and output."""
    theta = jnp.asarray(flat(params, sites))

    @jax.jit
    def gradient(theta, x_i, k):
        return jax.value_and_grad(lambda t: apply(unflat(t, params, sites), x_i[None])[0, k])(theta)

    total = np.zeros((theta.size, theta.size))
    outputs = jax.eval_shape(apply, params, x[:1]).shape[1]
    for x_i in x:
        phi, jac = (np.array(a) for a in zip(*(gradient(theta, x_i, k) for k in range(outputs)), strict=True))
        total += jac.T @ output_fisher(name, phi, scale) @ jac
    return total / len(x)


def score_metric(log_prob: Callable, theta, labels, weights) -> np.ndarray:
    """E_y[∇log p ∇log pᵀ] (50) by a sum over labels: enumeration (weights 1) or quadrature.

    ``log_prob(theta, y)`` is the log-probability (n,) of each datum if its label were y.
    """
    def scores(y):
        return jax.jacfwd(lambda t: log_prob(t, y))(theta), jnp.exp(log_prob(theta, y))

    def add(total, pair):
        y, w = pair
        s, p = scores(y)
        return total + w * jnp.einsum("n,ni,nj->ij", p, s, s) / p.size, w * p

    total, mass = jax.lax.scan(add, jnp.zeros((theta.size,) * 2), (jnp.asarray(labels), jnp.asarray(weights)))
    np.testing.assert_allclose(np.sum(mass, axis=0), 1.0, atol=1e-8)  # the sum is over all labels
    return np.asarray(total)


def real_grid(half_width: float = 25.0, num: int = 6001) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on ℝ, dense near zero and reaching far (y = sinh t)."""
    t = np.linspace(-half_width, half_width, num)
    return np.sinh(t), np.cosh(t) * (t[1] - t[0])


def positive_grid(half_width: float = 40.0, num: int = 6001) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on the positive half line (y = e^t)."""
    t = np.linspace(-half_width, half_width / 4, num)
    return np.exp(t), np.exp(t) * (t[1] - t[0])


def kl_metric(divergence: Callable, theta) -> np.ndarray:
    """Hessian of KL(θ ‖ θ') in θ' at θ' = θ (52); ``divergence(theta, other)`` is the mean over probe inputs."""
    return np.asarray(jax.jit(jax.hessian(lambda other: divergence(theta, other)))(theta))


def output_kl(name: str, phi, other, scale: float = 1.0):
    """KL(p(y|φ) ‖ p(y|φ')) of each datum, written out; φ (n, outputs)."""
    match name:
        case "gaussian":
            return jnp.sum((phi - other) ** 2, -1) / (2 * scale**2)
        case "bernoulli":
            p = jax.nn.sigmoid(phi)
            return jnp.sum(p * (phi - other) + jnp.logaddexp(0, other) - jnp.logaddexp(0, phi), -1)
        case "poisson":
            return jnp.sum(jnp.exp(phi) * (phi - other) - jnp.exp(phi) + jnp.exp(other), -1)
    log_p, log_q = jax.nn.log_softmax(phi), jax.nn.log_softmax(other)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
