"""Observation models: a NumPyro distribution around the network's output, and its output-space Fisher matrix.

Everything is written in the natural output coordinates φ (theory §1): location for a Gaussian, logits for
Bernoulli and categorical, log-rate for Poisson.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ..core.arrays import check_array
from ..core.checks import check_positive

__all__ = ["Likelihood", "bernoulli", "categorical", "gaussian", "poisson"]


@dataclass(frozen=True)
class Likelihood:
    """An observation model p(y | φ) with φ of shape (n, outputs).

    Make one with `gaussian`, `bernoulli`, `categorical` or `poisson`.

    Attributes
    ----------
    name : str
        ``"gaussian"``, ``"bernoulli"``, ``"categorical"`` or ``"poisson"``.
    scale : float
        Noise standard deviation s of the Gaussian, in the units of y; 1 for the others, which do not use it.
    """

    name: str
    scale: float = 1.0

    def distribution(self, phi: jax.Array) -> dist.Distribution:
        """Distribution of y given φ: batch shape (n,), event shape (outputs,), or () for categorical."""
        match self.name:
            case "gaussian":
                return dist.Normal(phi, self.scale).to_event(1)
            case "bernoulli":
                return dist.Bernoulli(logits=phi).to_event(1)
            case "categorical":
                return dist.Categorical(logits=phi)
            case _:
                return dist.Poisson(jnp.exp(phi)).to_event(1)

    def targets(self, y, outputs: int):
        """Bring targets to the shape the distribution has: (n, outputs), or (n,) whole numbers for categorical.

        Raises
        ------
        ValueError
            If the shape disagrees with `outputs`, or (for concrete arrays) a value lies outside the support.
        """
        y = check_array(y, "y", finite=False)
        if self.name == "categorical":
            if y.ndim == 2 and y.shape[1] == 1:
                y = y[:, 0]
            if y.ndim != 1:
                raise ValueError(f"categorical targets are class numbers of shape (n,), got shape {y.shape}; "
                                 "use argmax(axis=1) on one-hot targets")
        elif y.ndim == 1 and outputs == 1:
            y = y[:, None]
        elif y.ndim != 2 or y.shape[1] != outputs:
            raise ValueError(f"y has shape {y.shape} but the network has {outputs} output(s): "
                             f"expected (n, {outputs})" + (" or (n,)" if outputs == 1 else ""))
        if not isinstance(y, jax.core.Tracer):
            self._check_support(np.asarray(y), outputs)
        return y.astype(int) if self.name == "categorical" else y

    def _check_support(self, y: np.ndarray, outputs: int) -> None:
        match self.name:
            case "bernoulli":
                bad, allowed = ~np.isin(y, (0, 1)), "0 or 1"
            case "categorical":
                bad = ~((y == np.round(y)) & (y >= 0) & (y < outputs))
                allowed = f"a class number 0 ... {outputs - 1}"
            case "poisson":
                bad, allowed = ~((y == np.round(y)) & (y >= 0)), "a whole number of at least 0"
            case _:
                return
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(f"y{list(index)} is {y[index]}; a {self.name} target must be {allowed}")

    def log_prob(self, phi: jax.Array, y: jax.Array) -> jax.Array:
        """Log-likelihood of each datum, shape (n,), in nats."""
        return self.distribution(phi).log_prob(y)

    def loss(self, phi: jax.Array, y: jax.Array) -> jax.Array:
        """Training loss of each datum, shape (n,): (y − φ)² summed over outputs for a Gaussian (92), else −log p."""
        if self.name == "gaussian":
            return jnp.sum((y - phi) ** 2, axis=-1)
        return -self.log_prob(phi, y)

    def gauged(self, phi) -> np.ndarray:
        """φ as NumPy, last axis the output, in the gauge: categorical logits sum to 0 over classes."""
        values = np.asarray(phi)
        return values - values.mean(axis=-1, keepdims=True) if self.name == "categorical" else values

    def mean(self, phi: jax.Array) -> jax.Array:
        """Mean of y (class probabilities for categorical), shape (n, outputs)."""
        match self.name:
            case "gaussian":
                return phi
            case "bernoulli":
                return jax.nn.sigmoid(phi)
            case "categorical":
                return jax.nn.softmax(phi, axis=-1)
            case _:
                return jnp.exp(phi)

    def fisher(self, phi: jax.Array) -> jax.Array:
        """Output-space Fisher matrix F_out, shape (n, outputs, outputs); theory §1.

        Gaussian 1/s²; categorical diag(p) − ppᵀ; Bernoulli p(1 − p); Poisson e^φ.
        """
        root = self.fisher_root(phi)
        return root @ jnp.swapaxes(root, -1, -2)

    def fisher_root(self, phi: jax.Array) -> jax.Array:
        """A factor S with S Sᵀ = F_out, shape (n, outputs, rank).

        The categorical matrix has rank C − 1 (logits shifted together change nothing), so its factor has C − 1
        columns: with the stick-breaking tails q_j = p_{j+1} + … + p_C, column j has √(p_j q_j / q_{j−1}) in row j
        and −p_i √(p_j / (q_j q_{j−1})) in the rows i below: the Cholesky factor of a multinomial covariance.
        """
        outputs = phi.shape[-1]
        eye = jnp.eye(outputs, dtype=phi.dtype)
        match self.name:
            case "gaussian":
                return jnp.broadcast_to(eye / self.scale, (*phi.shape, outputs))
            case "bernoulli":  # √(p(1 − p)), written so that it keeps its digits for large |φ|
                return eye * jnp.exp(0.5 * (jax.nn.log_sigmoid(phi) + jax.nn.log_sigmoid(-phi)))[..., None]
            case "poisson":
                return eye * jnp.exp(0.5 * phi)[..., None]
        # In logs, so that a class of vanishing probability gives 0 and not 0/0.
        log_p = jax.nn.log_softmax(phi, axis=-1)
        log_tail = jax.lax.cumlogsumexp(log_p, axis=log_p.ndim - 1, reverse=True)  # log q_{j−1}
        here, before = log_tail[..., 1:], log_tail[..., :-1]
        diagonal = jnp.exp(0.5 * (log_p[..., :-1] + here - before))
        below = -jnp.exp(log_p[..., :, None] + 0.5 * (log_p[..., :-1] - here - before)[..., None, :])
        rows, columns = jnp.arange(outputs)[:, None], jnp.arange(outputs - 1)[None, :]
        return jnp.where(rows == columns, diagonal[..., None, :], jnp.where(rows > columns, below, 0.0))


def gaussian(scale: float = 1.0) -> Likelihood:
    """Gaussian noise of known standard deviation: y ~ N(φ, scale²) for each output.

    Parameters
    ----------
    scale : float
        Standard deviation s of the noise, in the units of y. Above 0.

    Returns
    -------
    Likelihood
    """
    return Likelihood("gaussian", check_positive(scale, "scale"))


def bernoulli() -> Likelihood:
    """Binary targets: y ~ Bernoulli(1/(1 + e^{−φ})), one logit an output.

    Returns
    -------
    Likelihood
    """
    return Likelihood("bernoulli")


def categorical() -> Likelihood:
    """One class of C: y ~ Categorical(softmax φ), φ the C logits; targets are class numbers of shape (n,).

    Returns
    -------
    Likelihood
    """
    return Likelihood("categorical")


def poisson() -> Likelihood:
    """Counts: y ~ Poisson(e^φ), φ the log-rate.

    Returns
    -------
    Likelihood
    """
    return Likelihood("poisson")
