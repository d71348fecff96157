"""Cos-nets: the uniform law on a ball, and the network whose prior is a free field."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.random import normal, uniform
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform, biject_to

from ..core.checks import check_count, check_positive
from .bound import Params
from .likelihoods import Likelihood, gaussian
from .networks import Network, dense
from .normal_maps import ball_from_normal, ball_to_normal


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

    def from_normal(self, z):
        return ball_from_normal(z, self.radius)

    def to_normal(self, value):
        return ball_to_normal(value, self.radius)

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
    likelihood = gaussian() if likelihood is None else likelihood
    if likelihood.outputs(1) != 1:
        raise ValueError(f"a cos-net has one output, but a {likelihood.name} likelihood needs {likelihood.outputs(1)}; "
                         "use brg.mlp")
    return CosNet(
        likelihood=likelihood,
        width=check_count(width, "width"), dim=check_count(dim, "dim"), mass=check_positive(mass, "mass"),
        radius=check_positive(radius, "radius"), weight_std=check_positive(weight_std, "weight_std"),
    )
