"""Observation models: a NumPyro distribution around the network's output, and its output-space Fisher matrix.

Everything is written in the natural output coordinates φ (theory §1): location for a Gaussian, logits for
Bernoulli and categorical, log-rate for Poisson. Each likelihood is one class, found by its name in `LIKELIHOODS`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ..core.arrays import check_array
from ..core.checks import check_positive
from .distributions import stable

__all__ = ["Likelihood", "bernoulli", "categorical", "categorical_root", "gaussian", "poisson"]

LIKELIHOODS: dict[str, type[Likelihood]] = {}
"""Every likelihood by its name; a subclass enters it where it is defined."""


@dataclass(frozen=True)
class Likelihood:
    """An observation model p(y | φ) with φ of shape (n, outputs), the base of all.

    Make one with `gaussian`, `bernoulli`, `categorical` or `poisson`. To add one, subclass it in a file of your own, as
    a frozen dataclass whose fields are numbers or text, checked in ``__post_init__``; `distribution` is all that must
    be given. Where NumPyro knows no KL divergence of it, give `fisher_root` too; `targets` where y is not (n, outputs).

    Attributes
    ----------
    name : str
        Of the class: how it is found again in the files of a run. Default: its module and name.
    noise : float or None
        Standard deviation of y around φ where the likelihood is Gaussian and it is known: the training loss is then
        (y − φ)², and a linear readout has a closed form. None for every other.

    Examples
    --------
    >>> @dataclass(frozen=True)
    ... class Laplacian(Likelihood):
    ...     width: float = 1.0
    ...     def distribution(self, phi):
    ...         return dist.Laplace(phi, self.width).to_event(1)
    ...     def fisher_root(self, phi):
    ...         return jnp.broadcast_to(jnp.eye(phi.shape[-1]) / self.width, (*phi.shape, phi.shape[-1]))
    >>> Laplacian(0.5).loss(jnp.zeros((1, 1)), jnp.ones((1, 1)))
    Array([2.], dtype=float32)
    """

    name: ClassVar[str] = ""
    noise: ClassVar[float | None] = None

    def __new__(cls, *args, **kwargs):
        if cls is Likelihood:
            raise TypeError(f"Likelihood{args} is the base of all likelihoods; make one with brg.gaussian(scale), "
                            "brg.bernoulli(), brg.categorical() or brg.poisson(), or subclass it")
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        where = f"{cls.__module__}.{cls.__qualname__}"
        cls.name = cls.__dict__.get("name", where)
        other = LIKELIHOODS.setdefault(cls.name, cls)
        if f"{other.__module__}.{other.__qualname__}" != where:
            raise ValueError(f"the likelihood name {cls.name!r} belongs to {other.__module__}.{other.__qualname__}; "
                             f"give {where} another")
        LIKELIHOODS[cls.name] = cls

    # -- to be given by a subclass ------------------------------------------------------------------------
    def distribution(self, phi: jax.Array) -> dist.Distribution:
        """Distribution of y given φ: batch shape (n,), event shape (outputs,), or () for one number a datum."""
        raise NotImplementedError(f"{type(self).__name__} gives no distribution(phi)")

    def fisher_root(self, phi: jax.Array) -> jax.Array:
        """A factor S with S Sᵀ = F_out, shape (n, outputs, rank).

        By default from the Hessian of the KL divergence at coincidence (52), where NumPyro knows it.
        """
        def root(one):
            def divergence(other):
                here, there = (self.distribution(f[None]) for f in (one, other))
                return jnp.sum(dist.kl_divergence(here, there))

            values, vectors = jnp.linalg.eigh(jax.hessian(divergence)(one))
            return vectors * jnp.sqrt(jnp.where(values < 0, 0.0, values))  # keeps NaN, drops rounding below zero

        try:
            return jax.vmap(root)(phi)
        except NotImplementedError as error:
            raise NotImplementedError(f"NumPyro knows no KL divergence of the likelihood {self.name!r}; give it a "
                                      "method fisher_root(phi)") from error

    def support(self, y: np.ndarray, outputs: int) -> tuple[np.ndarray, str]:
        """Which entries of y a target may have, and what they may be, in words."""
        return np.ones(y.shape, bool), "a number"

    def outputs(self, out: int) -> int:
        """Outputs that a network needs for `out` targets a datum.

        Raises
        ------
        ValueError
            If the likelihood cannot stand on `out`.
        """
        return out

    def targets(self, y: Any, outputs: int) -> jax.Array:
        """Bring targets to the shape the distribution has, (n, outputs) unless a subclass says otherwise.

        Raises
        ------
        ValueError
            If the shape disagrees with `outputs`, or (for concrete arrays) a value lies outside the support.
        """
        y = check_array(y, "y", finite=False)
        if y.ndim == 1 and outputs == 1:
            y = y[:, None]
        elif y.ndim != 2 or y.shape[1] != outputs:
            raise ValueError(f"y has shape {y.shape} but the network has {outputs} output(s): "
                             f"expected (n, {outputs})" + (" or (n,)" if outputs == 1 else ""))
        return self._checked(y, outputs)

    def _checked(self, y: jax.Array, outputs: int) -> jax.Array:
        if not isinstance(y, jax.core.Tracer):
            values = np.asarray(y)
            good, words = self.support(values, outputs)
            if not good.all():
                index = tuple(int(i) for i in np.argwhere(~good)[0])
                raise ValueError(f"y{list(index)} is {values[index]}; a {self.name} target must be {words}")
        return y

    def gauged(self, phi: Any) -> Any:
        """φ (NumPy or JAX), last axis the output, in the gauge: without what changes no probability."""
        return phi

    def mean(self, phi: jax.Array) -> jax.Array:
        """Mean of y (class probabilities for categorical), shape (n, outputs)."""
        return self.distribution(phi).mean

    # -- what follows -------------------------------------------------------------------------------------
    def log_prob(self, phi: jax.Array, y: jax.Array) -> jax.Array:
        """Log-likelihood of each datum, shape (n,), in nats."""
        return self.distribution(phi).log_prob(y)

    def loss(self, phi: jax.Array, y: jax.Array) -> jax.Array:
        """Training loss of each datum, shape (n,): (y − φ)² summed over outputs where `noise` is known (92), else
        −log p."""
        return -self.log_prob(phi, y) if self.noise is None else jnp.sum((y - phi) ** 2, axis=-1)

    def fisher(self, phi: jax.Array) -> jax.Array:
        """Output-space Fisher matrix F_out, shape (n, outputs, outputs); theory §1."""
        root = self.fisher_root(phi)
        return root @ jnp.swapaxes(root, -1, -2)

    # -- in the files of a run ----------------------------------------------------------------------------
    def record(self) -> str:
        """Name and fields as JSON, for the files of a run; `restore` reads it."""
        fields, opaque = {}, {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            try:
                json.dumps(value)
                fields[field.name] = value
            except TypeError:
                opaque["opaque"] = field.name
        where = f"{type(self).__module__}.{type(self).__qualname__}"
        return json.dumps({"name": self.name, "class": where, "fields": fields, **opaque})

    @staticmethod
    def restore(record: str) -> Likelihood:
        """The likelihood that `record` describes.

        Raises
        ------
        ValueError
            If its class is not defined here, or a field could not be written.
        """
        found = json.loads(record)
        remedy = "or pass the flow, experiment.flow_of(run, method)"
        if found["name"] not in LIKELIHOODS:
            module = found["class"].rpartition(".")[0]
            raise ValueError(f"the likelihood {found['name']!r} of this run is the class {found['class']}, which is "
                             f"not defined here: import {module} first, {remedy}")
        if "opaque" in found:
            raise ValueError(f"the likelihood {found['name']!r} of this run has a field {found['opaque']!r} that is no "
                             f"number and no text, so that it cannot be read back: give it such fields, {remedy}")
        return LIKELIHOODS[found["name"]](**{k: tuple(v) if isinstance(v, list) else v
                                             for k, v in found["fields"].items()})


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """y ~ N(φ, scale²); F_out = 1/s²."""

    name: ClassVar[str] = "gaussian"
    scale: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "scale", check_positive(self.scale, "scale"))

    @property
    def noise(self) -> float:  # type: ignore[override]
        return self.scale

    def distribution(self, phi):
        return dist.Normal(phi, self.scale).to_event(1)

    def mean(self, phi):
        return phi

    def fisher_root(self, phi):
        return jnp.broadcast_to(jnp.eye(phi.shape[-1], dtype=phi.dtype) / self.scale, (*phi.shape, phi.shape[-1]))


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """y ~ Bernoulli(σ(φ)); F_out = p(1 − p)."""

    name: ClassVar[str] = "bernoulli"

    def distribution(self, phi):
        return stable(dist.Bernoulli(logits=phi)).to_event(1)

    def support(self, y, outputs):
        return np.isin(y, (0, 1)), "0 or 1"

    def mean(self, phi):
        return jax.nn.sigmoid(phi)

    def fisher_root(self, phi):  # √(p(1 − p)), written so that it keeps its digits for large |φ|
        root = jnp.exp(0.5 * (jax.nn.log_sigmoid(phi) + jax.nn.log_sigmoid(-phi)))
        return jnp.eye(phi.shape[-1], dtype=phi.dtype) * root[..., None]


@dataclass(frozen=True)
class Categorical(Likelihood):
    """y ~ Categorical(softmax φ), y class numbers (n,); F_out = diag(p) − ppᵀ. A shift of all logits says nothing."""

    name: ClassVar[str] = "categorical"

    def distribution(self, phi):
        return dist.Categorical(logits=phi)

    def outputs(self, out):
        if out < 2:
            raise ValueError(f"a categorical likelihood needs out >= 2 logits, got {out}; use brg.bernoulli() for one")
        return out

    def targets(self, y, outputs):
        y = check_array(y, "y", finite=False)
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1:
            raise ValueError(f"categorical targets are class numbers of shape (n,), got shape {y.shape}; "
                             "use argmax(axis=1) on one-hot targets")
        return self._checked(y, outputs).astype(int)

    def support(self, y, outputs):
        return (y == np.round(y)) & (y >= 0) & (y < outputs), f"a class number 0 ... {outputs - 1}"

    def gauged(self, phi):
        return phi - phi.mean(axis=-1, keepdims=True)

    def mean(self, phi):
        return jax.nn.softmax(phi, axis=-1)

    def fisher_root(self, phi):
        return categorical_root(phi)


@dataclass(frozen=True)
class Poisson(Likelihood):
    """y ~ Poisson(e^φ); F_out = e^φ."""

    name: ClassVar[str] = "poisson"

    def distribution(self, phi):
        return stable(dist.Poisson(jnp.exp(phi))).to_event(1)

    def support(self, y, outputs):
        return (y == np.round(y)) & (y >= 0), "a whole number of at least 0"

    def mean(self, phi):
        return jnp.exp(phi)

    def fisher_root(self, phi):
        return jnp.eye(phi.shape[-1], dtype=phi.dtype) * jnp.exp(0.5 * phi)[..., None]


def categorical_root(logits: jax.Array) -> jax.Array:
    """S (..., C, C − 1) with S Sᵀ = diag(p) − ppᵀ.

    The matrix has rank C − 1 (logits shifted together change nothing): with the stick-breaking tails q_j = p_{j+1} + …
    + p_C, column j has √(p_j q_j / q_{j−1}) in row j and −p_i √(p_j / (q_j q_{j−1})) in the rows i below: the Cholesky
    factor of a multinomial covariance.
    """
    outputs = logits.shape[-1]
    # In logs, so that a class of vanishing probability gives 0 and not 0/0.
    log_p = jax.nn.log_softmax(logits, axis=-1)
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
    return Gaussian(scale)


def bernoulli() -> Likelihood:
    """Binary targets: y ~ Bernoulli(1/(1 + e^{−φ})), one logit an output.

    Returns
    -------
    Likelihood
    """
    return Bernoulli()


def categorical() -> Likelihood:
    """One class of C: y ~ Categorical(softmax φ), φ the C logits; targets are class numbers of shape (n,).

    Returns
    -------
    Likelihood
    """
    return Categorical()


def poisson() -> Likelihood:
    """Counts: y ~ Poisson(e^φ), φ the log-rate.

    Returns
    -------
    Likelihood
    """
    return Poisson()
