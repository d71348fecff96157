"""Observation models: a NumPyro distribution around the network's output, and its output-space Fisher matrix.

Everything is written in the natural output coordinates φ (theory §1): location for a Gaussian, logits for
Bernoulli and categorical, log-rate for Poisson. Each likelihood is one class, found by its name in `LIKELIHOODS`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ..core.arrays import check_array
from ..core.checks import check_positive
from .distributions import stable
from .hyperpriors import Hyperprior, number_or_law

__all__ = ["Likelihood", "bernoulli", "categorical", "categorical_root", "gaussian", "poisson"]

LIKELIHOODS: dict[str, type[Likelihood]] = {}
"""Every likelihood by its name; a subclass enters it where it is defined."""


@dataclass(frozen=True)
class Likelihood:
    """An observation model p(y | φ) with φ of shape (n, outputs), the base of all.

    Make one with `gaussian`, `bernoulli`, `categorical`, `poisson` or those of `model.noise`. To add one, subclass it
    in a file of your own, as a frozen dataclass whose fields are numbers or text, checked in ``__post_init__``;
    `distribution` is all that must be given. Where NumPyro knows no KL divergence of it, give `fisher_root` too;
    `targets` where y is not (n, outputs). A field that `positive` lists may be a law instead of a number: it is then a
    latent site, and `given` puts its value there before any other method is called.

    Attributes
    ----------
    name : str
        Of the class: how it is found again in the files of a run. Default: its module and name.
    positive : tuple of str
        Of the class: fields that are a number above 0 or, to be learned, the law of one.
    renamed : dict
        Of the class: the site of a field that is learned, where it is not called as the field.
    noise : float or None
        Standard deviation of y around φ where the likelihood is Gaussian and it is one known number: the training loss
        is then (y − φ)², and a linear readout has a closed form. None for every other.

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
    positive: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[Mapping[str, str]] = {}
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

    def __post_init__(self):
        for name in self.positive:
            object.__setattr__(self, name, number_or_law(getattr(self, name), name, self._site(name)))

    # -- what is learned of it ----------------------------------------------------------------------------
    @property
    def learned(self) -> dict[str, str]:
        """Site of each field that is learned: field to site."""
        return {f.name: self._site(f.name) for f in dataclasses.fields(self)
                if isinstance(getattr(self, f.name), Hyperprior)}

    def _site(self, name: str) -> str:
        return self.renamed.get(name, name)

    def hyperpriors(self, outputs: int) -> dict[str, tuple[Hyperprior, tuple[int, ...]]]:
        """Prior and shape of each site that is learned: one value a target."""
        return {site: (getattr(self, name), (self.num_targets(outputs),)) for name, site in self.learned.items()}

    def given(self, params: Mapping[str, Any]) -> Likelihood:
        """The likelihood with the values of its sites, out of all `params`, in place of their priors."""
        learned = self.learned
        if not learned:
            return self
        known = copy.copy(self)
        for name, site in learned.items():
            object.__setattr__(known, name, params[site])
        return known

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

    def num_targets(self, outputs: int) -> int:
        """Numbers in y a datum, for a network of so many outputs."""
        return outputs

    def targets(self, y: Any, outputs: int) -> jax.Array:
        """Bring targets to the shape the distribution has, (n, outputs) unless a subclass says otherwise.

        Raises
        ------
        ValueError
            If the shape disagrees with `outputs`, or (for concrete arrays) a value lies outside the support.
        """
        y, count = check_array(y, "y", finite=False), self.num_targets(outputs)
        if y.ndim == 1 and count == 1:
            y = y[:, None]
        elif y.ndim != 2 or y.shape[1] != count:
            raise ValueError(f"y has shape {y.shape} but the network has {outputs} output(s): "
                             f"expected (n, {count})" + (" or (n,)" if count == 1 else ""))
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

    # -- where a linear readout can be integrated out -----------------------------------------------------
    def heads(self, outputs: int) -> tuple[int, ...]:
        """Outputs that mean the same thing, side by side: each group has a prior scale of its own."""
        return (outputs,)

    def gaussian_outputs(self, outputs: int) -> int:
        """How many of the outputs, the first ones, are means of Gaussians whose widths the others give."""
        return 0

    def widths(self, rest: jax.Array) -> jax.Array:
        """Standard deviation of y around those means: (), (targets,) or (n, targets), from the other outputs (n, …)."""
        raise NotImplementedError(f"the likelihood {self.name!r} has no Gaussian outputs")

    # -- what follows -------------------------------------------------------------------------------------
    @property
    def squared(self) -> bool:
        """Whether the training loss is (y − φ)²."""
        return self.noise is not None

    def log_prob(self, phi: jax.Array, y: jax.Array) -> jax.Array:
        """Log-likelihood of each datum, shape (n,), in nats."""
        return self.distribution(phi).log_prob(y)

    def loss(self, phi: jax.Array, y: jax.Array) -> jax.Array:
        """Training loss of each datum, shape (n,): (y − φ)² summed over outputs where that is `squared` (92), else
        −log p."""
        return jnp.sum((y - phi) ** 2, axis=-1) if self.squared else -self.log_prob(phi, y)

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
                value = value.record() if isinstance(value, Hyperprior) else value
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
        def read(value):
            if isinstance(value, list):
                return tuple(read(v) for v in value)
            return Hyperprior.restore(value) if isinstance(value, dict) else value

        return LIKELIHOODS[found["name"]](**{k: read(v) for k, v in found["fields"].items()})


def columns(roots: jax.Array) -> jax.Array:
    """diag of `roots` (..., k) as (..., k, k): the factor of a Fisher matrix whose outputs are orthogonal."""
    return roots[..., None] * jnp.eye(roots.shape[-1], dtype=roots.dtype)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """y ~ N(φ, s²), s² = scale² + rounding²/12; F_out = 1/s²."""

    name: ClassVar[str] = "gaussian"
    positive: ClassVar[tuple[str, ...]] = ("scale",)
    renamed: ClassVar[Mapping[str, str]] = {"scale": "noise"}
    scale: Any = 1.0
    rounding: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "rounding", check_positive(self.rounding, "rounding", zero=True))

    @property
    def noise(self) -> float | None:  # type: ignore[override]
        return None if self.learned else self.sd

    @property
    def sd(self) -> Any:
        """s: a number, or (outputs,)."""
        if not self.rounding:
            return self.scale
        root = math.sqrt if isinstance(self.scale, float) else jnp.sqrt
        return root(self.scale**2 + self.rounding**2 / 12)

    @property
    def squared(self):
        return True

    def distribution(self, phi):
        return dist.Normal(phi, self.sd).to_event(1)

    def mean(self, phi):
        return phi

    def gaussian_outputs(self, outputs):
        return outputs

    def widths(self, rest):
        return jnp.asarray(self.sd)

    def fisher_root(self, phi):
        return columns(jnp.broadcast_to(1 / self.sd, phi.shape).astype(phi.dtype))


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
        return columns(jnp.exp(0.5 * (jax.nn.log_sigmoid(phi) + jax.nn.log_sigmoid(-phi))))


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
        return columns(jnp.exp(0.5 * phi))


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


def gaussian(scale: Any = 1.0, *, rounding: float = 0.0) -> Likelihood:
    """Gaussian noise, known or learned: y ~ N(φ, scale²) for each output.

    Parameters
    ----------
    scale : float, numpyro Distribution or "learned"
        Standard deviation s of the noise, in the units of y. A number above 0, or its prior, a univariate distribution
        of positive support: then s is the site ``"noise"``, shape (outputs,). ``"learned"`` is a prior for standardised
        targets with quantiles .029 (5 %), .066 (50 %) and .66 (95 %), p(s) ∝ s⁻² exp(−(.03/s)⁴): its lower tail keeps s
        from collapsing on targets that repeat.
    rounding : float
        The step to whose multiples y was rounded, in the units of y (whole numbers: 1 over their standard deviation
        where they were standardised). Its variance step²/12 is added to s².

    Returns
    -------
    Likelihood

    Raises
    ------
    TypeError, ValueError
        For a scale that is neither a positive number nor the law of one.

    Examples
    --------
    >>> import numpyro.distributions as dist
    >>> gaussian(dist.LogNormal(-2.0, 1.5)).learned
    {'scale': 'noise'}
    """
    return Gaussian(scale, rounding)


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
