"""Architectures as NumPyro models: dense networks and cos-nets, with their priors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.random import normal, uniform
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform, biject_to

from ._checks import check_choice, check_count, check_positive
from .likelihoods import Likelihood, gaussian
from .model import BoundModel, Params, Site, name_key

__all__ = ["MLP", "CosNet", "Network", "UniformBall", "cosnet", "dense", "mlp"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda z: z,
    "relu": jax.nn.relu,
    "erf": jax.scipy.special.erf,
    "tanh": jnp.tanh,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "cos": jnp.cos,
    "sin": jnp.sin,
}
OBSERVED = "y"


def dense(params: Params, x: jax.Array, weight: str, bias: str | None = None, scale: float = 1.0,
          bias_scale: float = 1.0) -> jax.Array:
    """The dense primitive: ``scale · x params[weight] + bias_scale · params[bias]``.

    Names and scales go in, so that a stand-in can record the layer's input and cotangent (the exact Fisher diagonal,
    theory §1) and square the scales too.
    """
    out = x @ params[weight]
    out = out if scale == 1.0 else out * scale
    if bias is None:
        return out
    return out + (params[bias] if bias_scale == 1.0 else params[bias] * bias_scale)


@dataclass(frozen=True)
class Network:
    """A NumPyro model ``net(x, y=None)`` that also knows its forward pass and its linear readout.

    Subclasses give `priors` and `features`. Parameters are dicts of named arrays.

    Attributes
    ----------
    likelihood : Likelihood
        The observation model around the output.
    """

    likelihood: Likelihood = field(default_factory=gaussian)

    def priors(self, dim: int) -> dict[str, dist.Distribution]:
        """Prior of each site for inputs of `dim` coordinates."""
        raise NotImplementedError

    def features(self, params: Params, x: jax.Array, dense: Callable = dense) -> jax.Array:
        """Input of the readout, shape (n, width), scaled so that φ = features @ readout (+ bias)."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        raise NotImplementedError

    @property
    def readout(self) -> str:
        """Name of the site of readout weights, shape (width, outputs)."""
        raise NotImplementedError

    @property
    def readout_bias(self) -> str | None:
        """Name of the site of readout biases, or None."""
        return None

    @property
    def readout_sites(self) -> tuple[str, ...]:
        """The sites in which the output is linear."""
        return (self.readout,) if self.readout_bias is None else (self.readout, self.readout_bias)

    @property
    def dense_sites(self) -> tuple[str, ...]:
        """The sites that enter through the dense primitive alone."""
        return self.readout_sites

    def design(self, params: Params, x: jax.Array) -> jax.Array:
        """Matrix H, shape (n, width [+ 1]), with φ = H · [readout; bias]."""
        h = self.features(params, x)
        return h if self.readout_bias is None else jnp.concatenate([h, jnp.ones_like(h[:, :1])], axis=1)

    def apply(self, params: Params, x: jax.Array, dense: Callable = dense) -> jax.Array:
        """Output φ_θ(x), shape (n, outputs)."""
        return dense(params, self.features(params, x, dense), self.readout, self.readout_bias)

    def __call__(self, x: jax.Array, y: jax.Array | None = None) -> jax.Array:
        x = self._check_x(x)
        params = {name: numpyro.sample(name, prior) for name, prior in self.priors(x.shape[1]).items()}
        phi = numpyro.deterministic("phi", self.apply(params, x))
        y = None if y is None else self.likelihood.targets(y, self.outputs)
        return numpyro.sample(OBSERVED, self.likelihood.distribution(phi), obs=y)

    def _check_x(self, x: jax.Array) -> jax.Array:
        x = x if isinstance(x, jax.Array) else jnp.asarray(x)
        if x.ndim != 2:
            raise ValueError(f"x has shape {x.shape}; a network takes (n, dim): write x[:, None] for one coordinate "
                             "or x[None] for one point")
        return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))

    def bind(self, x: jax.Array) -> BoundNetwork:
        """The network as a bound model for inputs of this dimension."""
        return _bound(self, self._check_x(x).shape[1])


@lru_cache(maxsize=256)
def _bound(network: Network, dim: int) -> BoundNetwork:
    """A network at an input dimension: found again, since making a prior costs as much as a small forward pass."""
    sites = tuple(Site(name, tuple(d.batch_shape + d.event_shape), d.support, d.event_dim)
                  for name, d in network.priors(dim).items())
    return BoundNetwork(network, sites, OBSERVED, network.likelihood, dim)


@dataclass(frozen=True)
class BoundNetwork(BoundModel):
    """A `Network` at a given input dimension: the fast way through `BoundModel`'s questions."""

    dim: int = 0

    @property
    def network(self) -> Network:
        return self.fn  # type: ignore[return-value]

    def phi(self, params, x):
        return self.network.apply(params, x)

    def distribution(self, params, x):
        return self.network.likelihood.distribution(self.phi(params, x))

    def log_likelihood(self, params, x, y):
        return self.network.likelihood.log_prob(self.phi(params, x), y)

    def loss(self, params, x, y):
        return self.network.likelihood.loss(self.phi(params, x), y)

    def log_prior(self, params, x=None):
        terms = [jnp.sum(d.log_prob(params[s])) for s, d in self.network.priors(self.dim).items()]
        return sum(terms, start=jnp.zeros(()))

    def log_factors(self, params, x, y=None):
        return jnp.zeros(())

    def log_joint(self, params, x, y):
        return self.log_prior(params) + jnp.sum(self.log_likelihood(params, x, y))

    def draw_prior(self, key, x=None, given=None, sites=None):
        """As `BoundModel.draw_prior`; `sites` limits the draw, since a network's sites are independent."""
        given = given or {}
        priors = self.network.priors(self.dim)
        return {s: given[s] if s in given else priors[s].sample(name_key(key, s)) for s in sites or priors}

    def prior_mean(self, x, given, sites):
        priors = self.network.priors(self.dim)
        return {s: jnp.broadcast_to(priors[s].mean, self.site(s).shape) for s in sites}

    def targets(self, y: Any, outputs: int | None = None):
        return self.network.likelihood.targets(y, self.network.outputs)

    def parents(self, x=None):
        return {s: () for s in self.names}


# -- dense networks -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MLP(Network):
    """A dense network; make one with `mlp`."""

    widths: tuple[int, ...] = ()
    out: int = 1
    activation: tuple[str | Callable, ...] = ()
    weight_std: tuple[float, ...] = ()
    bias_std: tuple[float, ...] | None = None
    scaling: str = "fan_in"

    @property
    def outputs(self) -> int:
        return self.out

    @property
    def depth(self) -> int:
        """Number of hidden layers."""
        return len(self.widths)

    @property
    def readout(self) -> str:
        return f"w{self.depth}"

    @property
    def readout_bias(self) -> str | None:
        return None if self.bias_std is None else f"b{self.depth}"

    @property
    def dense_sites(self) -> tuple[str, ...]:
        letters = "w" if self.bias_std is None else "wb"
        return tuple(f"{letter}{layer}" for layer in range(self.depth + 1) for letter in letters)

    def priors(self, dim: int) -> dict[str, dist.Distribution]:
        sizes, priors = (dim, *self.widths, self.out), {}
        for layer, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            std = {"fan_in": self.weight_std[layer] / math.sqrt(fan_in), "ntk": 1.0,
                   "none": self.weight_std[layer]}[self.scaling]
            priors[f"w{layer}"] = dist.Normal(jnp.zeros((fan_in, fan_out)), std).to_event(2)
            if self.bias_std is not None:
                std = 1.0 if self.scaling == "ntk" else self.bias_std[layer]
                priors[f"b{layer}"] = dist.Normal(jnp.zeros(fan_out), std).to_event(1)
        return priors

    def _scales(self, layer: int, fan_in: int) -> tuple[float, float]:
        if self.scaling != "ntk":
            return 1.0, 1.0
        return self.weight_std[layer] / math.sqrt(fan_in), self.bias_std[layer] if self.bias_std else 1.0

    def hidden(self, params: Params, x: jax.Array, dense: Callable = dense) -> jax.Array:
        """Last hidden layer, shape (n, widths[-1]), before any readout scale."""
        h = x
        for layer, activation in enumerate(self.activation):
            bias = None if self.bias_std is None else f"b{layer}"
            h = dense(params, h, f"w{layer}", bias, *self._scales(layer, h.shape[1]))
            h = (ACTIVATIONS[activation] if isinstance(activation, str) else activation)(h)
        return h

    def features(self, params: Params, x: jax.Array, dense: Callable = dense) -> jax.Array:
        h = self.hidden(params, x, dense)
        scale, _ = self._scales(self.depth, h.shape[1])
        return h if scale == 1.0 else h * scale

    def design(self, params: Params, x: jax.Array) -> jax.Array:
        h = self.features(params, x)
        if self.bias_std is None:
            return h
        _, bias_scale = self._scales(self.depth, h.shape[1])
        return jnp.concatenate([h, jnp.full_like(h[:, :1], bias_scale)], axis=1)

    def apply(self, params: Params, x: jax.Array, dense: Callable = dense) -> jax.Array:
        h = self.hidden(params, x, dense)
        return dense(params, h, self.readout, self.readout_bias, *self._scales(self.depth, h.shape[1]))


def _per_layer(value: Any, name: str, layers: int) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * layers
    if len(values) != layers:
        raise ValueError(f"{name} has {len(values)} entries but the network has {layers} layers of weights "
                         "(hidden layers + readout); pass one number or one a layer")
    return tuple(check_positive(v, name) for v in values)


def mlp(hidden: int | Sequence[int] = (), out: int = 1, *, activation: str | Callable | Sequence = "relu",
        weight_std: float | Sequence[float] = 1.0, bias_std: float | Sequence[float] | None = None,
        scaling: str = "fan_in", likelihood: Likelihood | None = None) -> MLP:
    """A dense network with Gaussian priors, as a NumPyro model.

    Sites are ``"w0", "w1", ...`` with shape (fan_in, fan_out) and, where `bias_std` is given, ``"b0", "b1", ...``.

    Parameters
    ----------
    hidden : sequence of int
        Widths of the hidden layers; ``()`` is a linear model.
    out : int
        Number of outputs.
    activation : str, callable, or one of them a hidden layer
        ``"identity"``, ``"relu"``, ``"erf"``, ``"tanh"``, ``"gelu"``, ``"cos"``, ``"sin"``, or an elementwise function.
    weight_std, bias_std : float, or one a layer (hidden layers + readout)
        Prior scales σ_w and σ_b; ``bias_std=None`` for no biases.
    scaling : {"fan_in", "ntk", "none"}
        ``"fan_in"``: weights ~ N(0, σ_w²/fan_in). ``"ntk"``: weights ~ N(0, 1), multiplied by σ_w/√fan_in in the
        forward pass (biases by σ_b). ``"none"``: weights ~ N(0, σ_w²), as in the paper's own experiment.
    likelihood : Likelihood
        Default ``gaussian(1.0)``.

    Returns
    -------
    MLP
        A frozen `Network`: ``net(x, y)`` is the NumPyro model, ``net.apply(params, x)`` its output (n, out).

    Notes
    -----
    The recursion of (60), with the fan-in scale the infinite-width limit needs (theory §6).

    Examples
    --------
    >>> net = mlp((10, 10, 2048), activation=("identity", "relu", "relu"), scaling="none")
    >>> net.readout
    'w3'
    """
    widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    widths = tuple(check_count(w, "a hidden width") for w in widths)
    depth = len(widths)
    if isinstance(activation, (str, bytes)) or callable(activation):
        activation = (activation,) * depth
    activation = tuple(activation)
    if len(activation) != depth:
        raise ValueError(f"activation has {len(activation)} entries but there are {depth} hidden layers; "
                         "the readout has none")
    for a in activation:
        if not callable(a):
            check_choice(a, "activation", ACTIVATIONS)
    if likelihood is None:
        likelihood = gaussian()
    if not isinstance(likelihood, Likelihood):
        raise TypeError("likelihood must come from brg.gaussian, bernoulli, categorical or poisson, "
                        f"got {likelihood!r}")
    out = check_count(out, "out")
    if likelihood.name == "categorical" and out < 2:
        raise ValueError(f"a categorical likelihood needs out >= 2 logits, got {out}; use brg.bernoulli() for one")
    return MLP(
        likelihood=likelihood, widths=widths, out=out, activation=activation,
        weight_std=_per_layer(weight_std, "weight_std", depth + 1),
        bias_std=None if bias_std is None else _per_layer(bias_std, "bias_std", depth + 1),
        scaling=check_choice(scaling, "scaling", ("fan_in", "ntk", "none")),
    )


# -- cos-nets -------------------------------------------------------------------------------------------------
class _Ball(constraints.Constraint):
    """Vectors of length below `radius`."""

    event_dim = 1

    def __init__(self, radius: float):
        self.radius = radius

    def __call__(self, x):
        return jnp.sum(x**2, axis=-1) < self.radius**2

    def feasible_like(self, prototype):
        return jnp.zeros_like(prototype)

    def __eq__(self, other):
        return isinstance(other, _Ball) and self.radius == other.radius

    def __hash__(self):
        return hash((_Ball, self.radius))

    def tree_flatten(self):
        return (), ((), {"radius": self.radius})


class _BallTransform(Transform):
    """ℝ^d → ball: u ↦ R u/√(1 + |u|²). Its Jacobian determinant is R^d (1 + |u|²)^{−(d+2)/2}."""

    domain = constraints.real_vector

    def __init__(self, radius: float):
        self.radius = radius

    @property
    def codomain(self):
        return _Ball(self.radius)

    def __call__(self, u):
        return self.radius * u / jnp.sqrt(1 + jnp.sum(u**2, axis=-1, keepdims=True))

    def _inverse(self, x):
        v = x / self.radius
        return v / jnp.sqrt(1 - jnp.sum(v**2, axis=-1, keepdims=True))

    def log_abs_det_jacobian(self, u, x, intermediates=None):
        d = u.shape[-1]
        return d * math.log(self.radius) - (0.5 * d + 1) * jnp.log1p(jnp.sum(u**2, axis=-1))

    def tree_flatten(self):
        return (), ((), {"radius": self.radius})

    def __eq__(self, other):
        return isinstance(other, _BallTransform) and self.radius == other.radius

    __hash__ = None  # type: ignore[assignment]


@biject_to.register(_Ball)
def _biject_to_ball(constraint):
    return _BallTransform(constraint.radius)


class UniformBall(dist.Distribution):
    """Uniform law on the ball of `radius` in `dim` dimensions; a batch of `count` vectors, shape (count, dim)."""

    reparametrized_params: list[str] = []
    pytree_aux_fields = ("radius", "dim", "count")

    def __init__(self, count: int, dim: int, radius: float, *, validate_args=None):
        self.count, self.dim, self.radius = count, dim, radius
        super().__init__((count,), (dim,), validate_args=validate_args)

    @property
    def support(self):
        return _Ball(self.radius)

    def sample(self, key, sample_shape=()):
        direction_key, length_key = jax.random.split(key)
        g = normal(direction_key, (*sample_shape, self.count, self.dim))
        length = uniform(length_key, (*sample_shape, self.count, 1)) ** (1 / self.dim)
        return self.radius * length * g / jnp.linalg.norm(g, axis=-1, keepdims=True)

    def log_prob(self, value):
        volume = math.pi ** (self.dim / 2) / math.gamma(self.dim / 2 + 1) * self.radius**self.dim
        return jnp.where(self.support(value), -math.log(volume), -jnp.inf)

    @property
    def mean(self):
        return jnp.zeros((self.count, self.dim))

    @property
    def variance(self):
        return jnp.full((self.count, self.dim), self.radius**2 / (self.dim + 2))


@dataclass(frozen=True)
class CosNet(Network):
    """A one-layer cos-net; make one with `cosnet`."""

    width: int = 1
    dim: int = 1
    mass: float = 1.0
    radius: float = 1.0
    weight_std: float = 1.0

    @property
    def outputs(self) -> int:
        return 1

    @property
    def readout(self) -> str:
        return "w"

    def _check_x(self, x):
        x = super()._check_x(x)
        if x.shape[1] != self.dim:
            raise ValueError(f"x has {x.shape[1]} coordinates but the cos-net was made for dim={self.dim}")
        return x

    def priors(self, dim: int) -> dict[str, dist.Distribution]:
        return {
            "b": UniformBall(self.width, self.dim, self.radius).to_event(1),
            "c": dist.Uniform(-jnp.pi * jnp.ones(self.width), jnp.pi).to_event(1),
            "w": dist.Normal(jnp.zeros((self.width, 1)), self.weight_std / math.sqrt(self.width)).to_event(2),
        }

    def features(self, params: Params, x: jax.Array, dense: Callable = dense) -> jax.Array:
        phase = x @ params["b"].T + params["c"]
        return jnp.cos(phase) / jnp.sqrt(jnp.sum(params["b"] ** 2, axis=1) + self.mass**2)


def cosnet(width: int, dim: int, mass: float, radius: float, weight_std: float = 1.0, *,
           likelihood: Likelihood | None = None) -> CosNet:
    """The generalised cos-net (77), corrected: φ(x) = Σ_i w_i cos(b_i·x + c_i)/√(|b_i|² + m²).

    Sites: ``"b"`` (width, dim) uniform in the ball |b| < radius, ``"c"`` (width,) uniform on [−π, π], ``"w"``
    (width, 1) ~ N(0, σ_w²/width). Its prior is, as the width grows, a free scalar field of mass m with momentum
    cutoff `radius` (theory §7).

    Parameters
    ----------
    width : int
        Number N of hidden units.
    dim : int
        Dimension d of x.
    mass : float
        m, in the units of momentum (1/x).
    radius : float
        Momentum cutoff R, in the units of momentum.
    weight_std : float
        σ_w.
    likelihood : Likelihood
        Default ``gaussian(1.0)``.

    Returns
    -------
    CosNet
    """
    return CosNet(
        likelihood=gaussian() if likelihood is None else likelihood,
        width=check_count(width, "width"), dim=check_count(dim, "dim"), mass=check_positive(mass, "mass"),
        radius=check_positive(radius, "radius"), weight_std=check_positive(weight_std, "weight_std"),
    )
