"""Likelihoods with more to their noise than one width: heteroscedastic, heavy tails, counts, fractions, ranks.

Each is one class, with its output Fisher matrix in closed form, in the natural coordinates φ of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import polygamma

from ..core.arrays import check_array, check_floats
from ..core.checks import check_positive
from .distributions import stable
from .likelihoods import Likelihood, columns

__all__ = ["beta", "heteroscedastic", "multivariate_gaussian", "negative_binomial", "ordinal", "student_t"]


@dataclass(frozen=True)
class Heteroscedastic(Likelihood):
    """y ~ N(μ, s² e^{2ℓ} + rounding²/12), φ = (μ, ℓ): means first.

    F_out = diag(1/v, 2 (s² e^{2ℓ}/v)²), v the variance: diag(e^{−2ℓ}, 2) for s = 1.
    """

    name: ClassVar[str] = "heteroscedastic"
    positive: ClassVar[tuple[str, ...]] = ("scale",)
    renamed: ClassVar[Mapping[str, str]] = {"scale": "noise"}
    scale: Any = 1.0
    rounding: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "rounding", check_positive(self.rounding, "rounding", zero=True))

    def outputs(self, out):
        return 2 * out

    def num_targets(self, outputs):
        return outputs // 2

    def heads(self, outputs):
        return outputs // 2, outputs // 2

    def gaussian_outputs(self, outputs):
        return outputs // 2

    def widths(self, rest):
        own = self.scale * jnp.exp(rest)
        return jnp.sqrt(own**2 + self.rounding**2 / 12) if self.rounding else own

    def _halves(self, phi):
        mean, rest = jnp.split(phi, 2, axis=-1)
        return mean, self.widths(rest), rest

    def distribution(self, phi):
        mean, sd, _ = self._halves(phi)
        return dist.Normal(mean, sd).to_event(1)

    def mean(self, phi):
        return self._halves(phi)[0]

    def fisher_root(self, phi):
        _, sd, rest = self._halves(phi)
        share = (self.scale * jnp.exp(rest) / sd) ** 2 if self.rounding else jnp.ones_like(sd)
        return columns(jnp.concatenate([1 / sd, np.sqrt(2.0) * share], axis=-1).astype(phi.dtype))


@dataclass(frozen=True)
class StudentT(Likelihood):
    """(y − φ)/s ~ Student's t with ν degrees of freedom; F_out = (ν + 1)/((ν + 3)s²)."""

    name: ClassVar[str] = "student_t"
    positive: ClassVar[tuple[str, ...]] = ("df", "scale")
    renamed: ClassVar[Mapping[str, str]] = {"scale": "noise"}
    df: Any = 4.0
    scale: Any = 1.0

    def distribution(self, phi):
        return dist.StudentT(self.df, phi, self.scale).to_event(1)

    def mean(self, phi):
        """φ: the mean where there is one (ν > 1), the median of any."""
        return phi

    def fisher_root(self, phi):
        root = jnp.sqrt((self.df + 1) / (self.df + 3)) / self.scale
        return columns(jnp.broadcast_to(root, phi.shape).astype(phi.dtype))


@dataclass(frozen=True)
class NegativeBinomial(Likelihood):
    """Counts of mean μ = e^φ and variance μ + μ²/r; F_out = μ/(1 + μ/r)."""

    name: ClassVar[str] = "negative_binomial"
    positive: ClassVar[tuple[str, ...]] = ("concentration",)
    concentration: Any = 1.0

    def distribution(self, phi):
        return stable(dist.NegativeBinomial2(jnp.exp(phi), self.concentration)).to_event(1)

    def support(self, y, outputs):
        return (y == np.round(y)) & (y >= 0), "a whole number of at least 0"

    def mean(self, phi):
        return jnp.exp(phi)

    def fisher_root(self, phi):  # μ/(1 + μ/r) = r σ(φ − log r)
        log_r = jnp.log(jnp.asarray(self.concentration, phi.dtype))
        return columns(jnp.exp(0.5 * (log_r + jax.nn.log_sigmoid(phi - log_r))))


@dataclass(frozen=True)
class Beta(Likelihood):
    """Fractions of mean m = σ(φ): y ~ Beta(cm, c(1 − m)); F_out = c²m²(1 − m)² [ψ′(cm) + ψ′(c(1 − m))]."""

    name: ClassVar[str] = "beta"
    positive: ClassVar[tuple[str, ...]] = ("concentration",)
    concentration: Any = 1.0

    def _parts(self, phi):
        return self.concentration * jax.nn.sigmoid(phi), self.concentration * jax.nn.sigmoid(-phi)

    def distribution(self, phi):
        return dist.Beta(*self._parts(phi)).to_event(1)

    def support(self, y, outputs):
        return (y > 0) & (y < 1), "a number between 0 and 1, neither of them"

    def mean(self, phi):
        return jax.nn.sigmoid(phi)

    def fisher_root(self, phi):
        a, b = self._parts(phi)  # a² ψ′(a) = 1 + a² ψ′(1 + a), which is finite at a = 0
        left, right = ((p / self.concentration) ** 2 * (1 + q**2 * polygamma(1, 1 + q)) for p, q in ((b, a), (a, b)))
        return columns(jnp.sqrt(left + right))


@dataclass(frozen=True)
class MultivariateGaussian(Likelihood):
    """y ~ N(φ, L Lᵀ), targets of a datum correlated; F_out = (L Lᵀ)⁻¹."""

    name: ClassVar[str] = "multivariate_gaussian"
    scale_tril: tuple[tuple[float, ...], ...] = ()

    @property
    def _lower(self):
        return np.asarray(self.scale_tril)

    def outputs(self, out):
        if out != len(self.scale_tril):
            raise ValueError(f"the covariance is of {len(self.scale_tril)} targets, but out={out}; pass "
                             f"out={len(self.scale_tril)}")
        return out

    def distribution(self, phi):
        return dist.MultivariateNormal(phi, scale_tril=jnp.asarray(self._lower, phi.dtype))

    def mean(self, phi):
        return phi

    def fisher_root(self, phi):
        root = jnp.asarray(np.linalg.inv(self._lower).T, phi.dtype)
        return jnp.broadcast_to(root, (*phi.shape[:-1], *root.shape))


@dataclass(frozen=True)
class Ordinal(Likelihood):
    """Ranks 0 … K − 1: P(y ≤ k) = σ(c_k − φ), cut points c_0 < … < c_{K−2}, y of shape (n,).

    With σ_k = σ(c_k − φ), σ_{−1} = 0, σ_{K−1} = 1 and p_k = σ_k − σ_{k−1}: ∂p_k/∂φ = −p_k (1 − σ_k − σ_{k−1}), so that
    F_out = Σ_k p_k (1 − σ_k − σ_{k−1})².
    """

    name: ClassVar[str] = "ordinal"
    cutpoints: tuple[float, ...] = ()

    @property
    def _ends(self):
        return np.asarray(self.cutpoints)

    def outputs(self, out):
        if out != 1:
            raise ValueError(f"an ordinal likelihood has one output, got out={out}")
        return out

    def targets(self, y, outputs):
        y = check_array(y, "y", finite=False)
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1:
            raise ValueError(f"ordinal targets are ranks of shape (n,), got shape {y.shape}")
        return self._checked(y, outputs).astype(int)

    def support(self, y, outputs):
        most = len(self.cutpoints)
        return (y == np.round(y)) & (y >= 0) & (y <= most), f"a rank 0 ... {most}"

    def distribution(self, phi):
        return dist.Categorical(logits=self.log_probs(phi))

    def log_probs(self, phi):
        """log p_k, shape (n, K): log(σ_k − σ_{k−1}) = log σ(b) + log σ(−a) + log(1 − e^{a−b}), a and b the two ends."""
        at = jnp.asarray(self._ends, phi.dtype) - phi  # (n, K − 1)
        width = jnp.asarray(np.diff(self._ends), phi.dtype)
        inner = jax.nn.log_sigmoid(at[:, 1:]) + jax.nn.log_sigmoid(-at[:, :-1]) + jnp.log(-jnp.expm1(-width))
        return jnp.concatenate([jax.nn.log_sigmoid(at[:, :1]), inner, jax.nn.log_sigmoid(-at[:, -1:])], axis=1)

    def mean(self, phi):
        """Mean rank, (n, 1)."""
        p = jnp.exp(self.log_probs(phi))
        return p @ jnp.arange(p.shape[1], dtype=p.dtype)[:, None]

    def fisher_root(self, phi):
        """Score of each rank times √p_k, (n, 1, K)."""
        below = jax.nn.sigmoid(jnp.asarray(self._ends, phi.dtype) - phi)
        below = jnp.pad(below, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1)))
        slope = 1 - below[:, 1:] - below[:, :-1]
        return (jnp.exp(0.5 * self.log_probs(phi)) * slope)[:, None, :]


# -- as they are called ---------------------------------------------------------------------------------------
def heteroscedastic(scale: Any = 1.0, *, rounding: float = 0.0) -> Likelihood:
    """Gaussian noise whose width depends on x: a network of 2·out outputs, the means μ and then ℓ = log sd.

    Parameters
    ----------
    scale : float, numpyro Distribution or "learned"
        s in sd = s e^ℓ, a level for all data in the units of y; where it is learned the site is ``"noise"``, shape
        (out,), and the defaults are those of `gaussian`.
    rounding : float
        Step to whose multiples y was rounded, as in `gaussian`.

    Returns
    -------
    Likelihood
        Its training loss is −log p. Scales of the readout that are learned are two: of the means and of the ℓ.

    Notes
    -----
    With ``readout="collapsed"`` the readout of the means is integrated out, that of the ℓ is sampled (theory §13).
    """
    return Heteroscedastic(scale, rounding)


def student_t(df: Any = 4.0, scale: Any = 1.0) -> Likelihood:
    """Heavy-tailed noise: (y − φ)/scale ~ Student's t.

    Parameters
    ----------
    df : float, numpyro Distribution or "learned"
        Degrees of freedom ν; a law of positive support makes them the site ``"df"``, (outputs,); ``"learned"`` is
        Gamma(2, 0.1).
    scale : float, numpyro Distribution or "learned"
        In the units of y; where it is learned the site ``"noise"``, as in `gaussian`.

    Returns
    -------
    Likelihood
        Its training loss is −log p.
    """
    return StudentT(df, scale)


def negative_binomial(concentration: Any = 1.0) -> Likelihood:
    """Overdispersed counts: mean μ = e^φ, variance μ + μ²/r.

    Parameters
    ----------
    concentration : float, numpyro Distribution or "learned"
        r; the larger, the nearer to Poisson. A law makes it the site ``"concentration"``, (outputs,); ``"learned"`` is
        LogNormal(1, 1.5).

    Returns
    -------
    Likelihood
    """
    return NegativeBinomial(concentration)


def beta(concentration: Any = 1.0) -> Likelihood:
    """Fractions between 0 and 1: y ~ Beta(cm, c(1 − m)), m = 1/(1 + e^{−φ}).

    Parameters
    ----------
    concentration : float, numpyro Distribution or "learned"
        c; the variance of y is m(1 − m)/(1 + c). A law makes it the site ``"concentration"``, (outputs,); ``"learned"``
        is LogNormal(1, 1.5).

    Returns
    -------
    Likelihood
    """
    return Beta(concentration)


def multivariate_gaussian(covariance: Any = None, *, scale_tril: Any = None) -> Likelihood:
    """Targets of a datum with correlated Gaussian noise of known covariance: y ~ N(φ, Σ).

    Parameters
    ----------
    covariance : array (outputs, outputs), optional
        Σ, in squared units of y.
    scale_tril : array (outputs, outputs), optional
        Its Cholesky factor instead.

    Returns
    -------
    Likelihood
        Its training loss is −log p.

    Raises
    ------
    ValueError
        If not one of the two is given, or it is not what it should be.
    """
    if (covariance is None) == (scale_tril is None):
        raise ValueError("pass the covariance or its Cholesky factor scale_tril, one of them")
    given = check_floats(covariance if scale_tril is None else scale_tril, "the covariance")
    if given.ndim != 2 or given.shape[0] != given.shape[1]:
        raise ValueError(f"the covariance must be square, got shape {given.shape}")
    if scale_tril is None:
        if not np.allclose(given, given.T, rtol=1e-6, atol=0):
            raise ValueError("the covariance is not symmetric")
        try:
            given = np.linalg.cholesky(given)
        except np.linalg.LinAlgError:
            raise ValueError("the covariance is not positive definite") from None
    if np.triu(given, 1).any() or not (np.diagonal(given) > 0).all():
        raise ValueError("scale_tril must be lower triangular with a positive diagonal")
    return MultivariateGaussian(tuple(tuple(float(v) for v in row) for row in given))


def ordinal(cutpoints: int | Sequence[float]) -> Likelihood:
    """Ordered classes, ranks 0 … K − 1, by one output: P(y ≤ k) = 1/(1 + e^{−(c_k − φ)}).

    Parameters
    ----------
    cutpoints : sequence of float, or int
        The K − 1 ≥ 1 increasing cut points c_k; or K, the number of classes, for cut points at which they are equally
        likely at φ = 0.

    Returns
    -------
    Likelihood
        Targets are ranks of shape (n,).

    Raises
    ------
    ValueError
        For cut points that do not increase, or fewer than two classes.
    """
    if isinstance(cutpoints, (int, np.integer)) and not isinstance(cutpoints, bool):
        if cutpoints < 2:
            raise ValueError(f"an ordinal likelihood needs at least 2 classes, got {cutpoints}")
        p = np.arange(1, cutpoints) / cutpoints
        cutpoints = np.log(p / (1 - p)).tolist()
    ends = check_floats(cutpoints, "cutpoints")
    if ends.ndim != 1 or not ends.size or not (np.diff(ends) > 0).all():
        raise ValueError(f"cutpoints must be one or more increasing numbers, got {cutpoints!r}")
    return Ordinal(tuple(float(v) for v in ends))
