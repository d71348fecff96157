"""Dual activations: moments of f(u) for Gaussian u, the building blocks of kernels at infinite width.

For zero-mean jointly Gaussian (u, v) with variances a, b and covariance c,

    V1(a) = E f(u),    V2(a, b, c) = E f(u) f(v),    V2'(a, b, c) = E f'(u) f'(v) = dV2/dc.

Three ways to get them, one per kind of activation: a closed form; the Mehler series with Gauss-Hermite
coefficients for smooth callables; Gauss-Legendre panels that end at the kinks for the others.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import erf

from ..core.arrays import narrow, read_array
from . import quadrature

HERMITE_NODES = 200  # smooth callables; also the number of terms of the Mehler series
PANEL_NODES = 40  # per panel and per dimension, kinked callables


@dataclasses.dataclass(frozen=True)
class Activation:
    """An elementwise activation and how its Gaussian moments are computed.

    Attributes
    ----------
    name : str
    function : callable
        Elementwise f.
    first, second : callable or None
        Closed forms V1(a) and V2(a, b, c); None for activations done by quadrature.
    kinks : tuple of float
        Where f or a derivative of it is not smooth; the quadrature splits there.
    nodes : int
        Gauss-Hermite nodes (no kinks) or Gauss-Legendre nodes per panel (kinks).
    steps : tuple of float
        Smooth activations: where panels end that take over from Gauss-Hermite at large variances, with a tenth of the
        nodes each. ``()``: Gauss-Hermite throughout.
    """

    name: str
    function: Callable[[Array], Array]
    first: Callable | None = None
    second: Callable | None = None
    kinks: tuple[float, ...] = ()
    nodes: int = 0
    steps: tuple[float, ...] = ()


# --- closed forms -------------------------------------------------------------------------------------


def _determinant(a, b, c):
    """ab - c² with the exact gradient; 0 where it is so to rounding, which is not small beside 1 + a + b."""
    det = a * b - c * c
    snapped = jnp.where(det > 4 * jnp.finfo(det.dtype).eps * a * b, det, 0)
    return det + jax.lax.stop_gradient(snapped - det)


def _sine(rho):
    return quadrature.root((1 - rho) * (1 + rho))


@jax.custom_jvp
def _abs_second(a, b, c):
    """E|u||v| = (2/π)(√(ab−c²) + c asin ρ)."""
    rho = quadrature.correlation(a, b, c)
    sine = _sine(rho)
    return (
        (2 / math.pi)
        * quadrature.root(a)
        * quadrature.root(b)
        * (sine + 2 * rho * jnp.arctan2(rho, 1 + sine))
    )


@_abs_second.defjvp
def _abs_second_jvp(primals, tangents):
    # Written by hand: the divergent parts of d√(1−ρ²) and d asin ρ cancel, and would give inf − inf at ρ = 1.
    a, b, c = primals
    da, db, dc = tangents
    rho = quadrature.correlation(a, b, c)
    sine = _sine(rho)
    ra, rb = quadrature.root(a), quadrature.root(b)
    ratio = jnp.where(ra > 0, rb / jnp.where(ra > 0, ra, 1), 0)
    inverse = jnp.where(rb > 0, ra / jnp.where(rb > 0, rb, 1), 0)
    slope = (sine * (ratio * da + inverse * db)) / math.pi
    return _abs_second(a, b, c), (2 / math.pi) * _arcsine(rho) * dc + slope


@jax.custom_jvp
def _arcsine(rho):
    return 2 * jnp.arctan2(rho, 1 + _sine(rho))


@_arcsine.defjvp
def _arcsine_jvp(primals, tangents):
    # A true cusp at ρ = ±1 (the relu NTK has one at equal inputs): the symmetric subgradient there is 0.
    (rho,), (tangent,) = primals, tangents
    sine = _sine(rho)
    return _arcsine(rho), jnp.where(sine > 0, tangent / jnp.where(sine > 0, sine, 1), 0)


def _erf_second(a, b, c):
    root = jnp.sqrt(1 + 2 * (a + b) + 4 * _determinant(a, b, c))
    return (2 / math.pi) * jnp.arctan2(2 * c, root)


@jax.custom_jvp
def _gelu_second(a, b, c):
    det = _determinant(a, b, c)
    root = jnp.sqrt(1 + a + b + det)
    edge = det + c * c * (1 / (1 + a) + 1 / (1 + b))
    return c * (0.25 + jnp.arctan2(c, root) / (2 * math.pi)) + edge / (2 * math.pi * root)


@_gelu_second.defjvp
def _gelu_second_jvp(primals, tangents):
    # Written by hand from E f'f' and E f''f: autodiff leaves terms of order √a³ that cancel to order 1.
    a, b, c = primals
    da, db, dc = tangents
    det = _determinant(a, b, c)
    square = 1 + a + b + det
    density = 1 / (2 * math.pi * jnp.sqrt(square))  # E φ(u) φ(v), φ the standard normal density

    def half_second(a, b):  # ½ E f''(u) f(v), f'' = (2 − u²) φ
        flat = (det + b) / (1 + a)
        return density * (flat - (a * flat + c * c * (1 / (1 + a) + 1 / square)) / (2 * (1 + a)))

    angle = jnp.arctan2(c, jnp.sqrt(square)) / (2 * math.pi)
    slope = 0.25 + angle + density * c * (1 / (1 + a) + 1 / (1 + b) + 1 / square)
    return _gelu_second(a, b, c), slope * dc + half_second(a, b) * da + half_second(b, a) * db


def _cos_second(a, b, c):
    # Both exponents are at most 0 for a valid covariance, while cosh c alone overflows.
    half = (a + b) / 2
    return (jnp.exp(c - half) + jnp.exp(-c - half)) / 2


def _sin_second(a, b, c):
    half = (a + b) / 2
    small = jnp.abs(c) < 1
    near = jnp.exp(-half) * jnp.sinh(jnp.where(small, c, 0))
    return jnp.where(small, near, (jnp.exp(c - half) - jnp.exp(-c - half)) / 2)


def _gaussian_second(a, b, c):
    return 1 / jnp.sqrt(1 + 2 * (a + b) + 4 * _determinant(a, b, c))


def _leaky(slope: float, name: str) -> Activation:
    """f(u) = u for u > 0, slope·u below: (1+slope)/2·u + (1−slope)/2·|u|, whose cross terms vanish."""
    odd, even = (1 + slope) / 2, (1 - slope) / 2
    return Activation(
        name,
        lambda u: jnp.where(u > 0, u, slope * u),
        lambda a: even * math.sqrt(2 / math.pi) * quadrature.root(a),
        lambda a, b, c: odd**2 * c + even**2 * _abs_second(a, b, c),
        kinks=(0.0,),
    )


_TABLE = {
    "identity": Activation("identity", lambda u: u, jnp.zeros_like, lambda a, b, c: c + 0 * (a + b)),
    "relu": _leaky(0.0, "relu"),
    "leaky_relu": _leaky(0.01, "leaky_relu"),
    "abs": _leaky(-1.0, "abs"),
    "erf": Activation("erf", erf, jnp.zeros_like, _erf_second),
    "gelu": Activation(
        "gelu",
        lambda u: u * (1 + erf(u / math.sqrt(2))) / 2,
        lambda a: a / jnp.sqrt(2 * math.pi * (1 + a)),
        _gelu_second,
    ),
    "cos": Activation("cos", jnp.cos, lambda a: jnp.exp(-a / 2), _cos_second),
    "sin": Activation("sin", jnp.sin, jnp.zeros_like, _sin_second),
    "gaussian": Activation(
        "gaussian", lambda u: jnp.exp(-u * u), lambda a: 1 / jnp.sqrt(1 + 2 * a), _gaussian_second
    ),
    "exp": Activation("exp", jnp.exp, lambda a: jnp.exp(a / 2), lambda a, b, c: jnp.exp((a + b) / 2 + c)),
    "tanh": Activation("tanh", jnp.tanh, nodes=HERMITE_NODES, steps=quadrature.STEP_ENDS),
}
_TABLE["rbf"] = _TABLE["gaussian"]
# Callables that are exactly one of the above (jax.nn.gelu is not: it defaults to the tanh approximation).
_SAME = {jax.nn.relu: "relu", jnp.tanh: "tanh", jnp.sin: "sin", jnp.cos: "cos", jnp.exp: "exp", erf: "erf"}


@functools.lru_cache(maxsize=64)
def leaky_relu(slope: float) -> Activation:
    """Leaky relu of any slope below zero: f(u) = max(u, 0) + slope·min(u, 0), in closed form."""
    if not math.isfinite(slope):
        raise ValueError(f"slope must be a finite number, got {slope!r}")
    return _leaky(float(slope), f"leaky_relu({slope:g})")


@dataclasses.dataclass(frozen=True)
class _Polynomial:
    coefficients: tuple[float, ...]

    def __call__(self, u):
        return jnp.polyval(jnp.asarray(self.coefficients[::-1], dtype=u.dtype), u)


def polynomial(coefficients: Sequence[float]) -> Activation:
    """Polynomial activation Σ_k coefficients[k] u^k; exact duals, by Gauss-Hermite with degree + 1 nodes."""
    values = tuple(float(value) for value in coefficients)
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(
            f"coefficients must be one or more finite numbers, constant first; got {coefficients!r}"
        )
    return Activation(f"polynomial{values}", _Polynomial(values), nodes=len(values))


def activation(spec: Any, *, kinks: Sequence[float] | None = None, nodes: int | None = None) -> Activation:
    """Resolve an activation: a name, a callable, polynomial coefficients, or an `Activation`.

    Parameters
    ----------
    spec : str, callable, sequence of float, or Activation
        Names: identity, relu, leaky_relu (slope 0.01), abs, erf, gelu (the exact one), cos, sin, gaussian or
        rbf (exp(−u²)), exp, tanh. A callable must be elementwise and made of JAX operations; pass the same
        function object each time, since compiled kernels are kept per object.
    kinks : sequence of float, optional
        Callables only. Where a derivative of f jumps. By default jumps of the first four are looked for on
        |u| ≤ 25; ``()`` declares that there are none, without looking: Gauss-Hermite at any variance.
    nodes : int, optional
        Callables only. Gauss-Hermite nodes (default 200), or Gauss-Legendre nodes per panel when there are
        kinks (default 40).

    Raises
    ------
    ValueError
        Unknown name; a callable that is not elementwise, not finite near 0, not JAX, or discontinuous.
    """
    if isinstance(spec, Activation) or isinstance(spec, str) or not callable(spec):
        if kinks is not None or nodes is not None:
            raise ValueError(f"kinks and nodes describe a callable; {spec!r} already has its own rule")
        return _resolve_name(spec)
    if nodes is not None and (int(nodes) != nodes or nodes < 2):
        raise ValueError(f"nodes must be an integer of at least 2, got {nodes!r}")
    name = getattr(spec, "__name__", type(spec).__name__)
    try:
        hash(spec)
    except TypeError as error:
        raise ValueError(f"activation {name} is not hashable: wrap it in a function") from error
    if kinks is None and nodes is None and spec in _SAME:
        return _TABLE[_SAME[spec]]
    places = tuple(sorted(float(k) for k in (quadrature.find_kinks(spec) if kinks is None else kinks)))
    if not all(math.isfinite(kink) for kink in places):
        raise ValueError(f"kinks must be finite, got {places}")
    if kinks is not None and places:
        quadrature.check_continuous(spec, places)
    steps = quadrature.STEP_ENDS if kinks is None and nodes is None and not places else ()
    return Activation(name, spec, kinks=places, nodes=int(nodes or (PANEL_NODES if places else HERMITE_NODES)),
                      steps=steps)


_resolve = activation  # `dual` and the kernels have an argument of that name


def _resolve_name(spec) -> Activation:
    if isinstance(spec, Activation):
        return spec
    if isinstance(spec, str):
        if spec not in _TABLE:
            raise ValueError(
                f"unknown activation {spec!r}: use one of {', '.join(sorted(_TABLE))}, a callable, "
                "or polynomial(coefficients)"
            )
        return _TABLE[spec]
    if isinstance(spec, Sequence | np.ndarray) and len(spec) and all(np.isscalar(value) for value in spec):
        return polynomial(tuple(spec))
    raise ValueError(f"activation must be a name, a callable or polynomial coefficients, got {spec!r}")


# --- the moments --------------------------------------------------------------------------------------


def first_moment(act: Activation, a):
    """V1(a) for a resolved activation and a JAX array (no checks)."""
    if act.first is not None:
        return act.first(a)
    if act.kinks:
        return quadrature.mean_kinked(act.function, act.kinks, act.nodes, a)
    return quadrature.mean_smooth(act.function, act.nodes, act.steps, a)


def second_moment(act: Activation, a, b, c):
    """V2(a, b, c) for a resolved activation and JAX arrays (no checks)."""
    if act.second is not None:
        return act.second(a, b, c)
    if act.kinks:
        return quadrature.pair_kinked(act.function, act.function, act.kinks, act.nodes, a, b, c)
    return quadrature.pair_smooth(act.function, act.function, act.nodes, act.steps, a, b, c)


def derivative_moment(act: Activation, a, b, c):
    """E f'(u) f'(v) for a resolved activation and JAX arrays (no checks)."""
    if act.second is not None:
        c = jnp.broadcast_to(c, jnp.broadcast_shapes(a.shape, b.shape, c.shape))
        return jax.jvp(lambda value: act.second(a, b, value), (c,), (jnp.ones_like(c),))[1]
    slope = quadrature.Derivative(act.function)
    if act.kinks:
        return quadrature.pair_panels(slope, slope, act.kinks, act.nodes, a, b, c)
    return quadrature.pair_smooth(slope, slope, act.nodes, act.steps, a, b, c)


@functools.partial(jax.jit, static_argnames="act")
def _moments(act, a, b, c):
    return first_moment(act, a), first_moment(act, b), second_moment(act, a, b, c)


_derivative_moment = jax.jit(derivative_moment, static_argnames="act")


def coarser(act: Activation) -> tuple[Activation, ...]:
    """The activation with fewer nodes, whose moments differ from its own by about the quadrature's error; () if exact.

    One node fewer moves all nodes by half their distance, so that what falls between them shows; three quarters of them
    is for rules that have begun to converge.
    """
    if act.second is not None or isinstance(act.function, _Polynomial):
        return ()
    fewer = (act.nodes - 10 if act.steps else act.nodes - 1, (3 * act.nodes) // 4)
    return tuple(dataclasses.replace(act, nodes=max(1, nodes)) for nodes in fewer)


def warn_if_rough(fine, rough, what: str) -> None:
    """Warn where a quadrature's estimated relative error is above 1e-6 (1e-4 in float32, which rounds)."""
    limit = 1e-6 if fine.dtype.itemsize > 4 else 1e-4
    size, error = (float(jnp.max(jnp.abs(value))) for value in (fine, rough - fine))
    if not error <= limit * size:
        warnings.warn(f"{what} has an estimated relative error of {error / size if size else np.inf:.1e}, of "
                      "quadrature at variances this large; say where the activation turns over, "
                      "theory.activation(f, kinks=[...]), or scale the inputs down", stacklevel=4)


def as_float(value, name: str) -> Any:
    """The value as a real array of at least float32, checked to be finite.

    Concrete values are handled in NumPy: checking them in JAX would compile a program for every shape.
    """
    array = read_array(value, name)
    if not isinstance(array, jax.Array):
        return narrow(array, name)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.result_type(float))


def _variances(a, b, c):
    values = [as_float(value, name) for value, name in ((a, "a"), (b, "b"), (c, "c"))]
    dtype = jnp.result_type(*(value.dtype for value in values))
    a, b, c = (value.astype(dtype) for value in values)
    try:
        np.broadcast_shapes(a.shape, b.shape, c.shape)
    except ValueError as error:
        raise ValueError(f"a {a.shape}, b {b.shape} and c {c.shape} do not broadcast together") from error
    if not any(isinstance(value, jax.core.Tracer) for value in (a, b, c)):
        A, B, C = (np.asarray(value, dtype=np.float64) for value in (a, b, c))
        for value, name in ((A, "a"), (B, "b")):
            if (value < 0).any():
                raise ValueError(f"{name} is a variance and must not be negative, got {value.min():g}")
        if (np.abs(C) > np.sqrt(A) * np.sqrt(B) * (1 + 1e-4) + 1e-12).any():
            raise ValueError("c is a covariance: |c| must not exceed sqrt(a b)")
    return a, b, c


def dual(activation: Any, a, b, c) -> tuple[Array, Array, Array]:
    """Gaussian moments of an activation: (E f(u), E f(v), E f(u) f(v)) (66), (67).

    Parameters
    ----------
    activation : str, callable, sequence of float, or Activation
        See `theory.activation`.
    a, b, c : array_like
        Variances of u and v and their covariance; they broadcast together.

    Returns
    -------
    V1a, V1b, V2 : Array
        With the shapes of a, of b, and of the three together. Float32 as JAX has it by default; float64, for
        the accuracy of an oracle, with float64 inputs or Python numbers under ``jax.enable_x64(True)``.

    Raises
    ------
    ValueError
        Unknown activation, negative variance, |c| > √(ab), shapes that do not broadcast, non-finite values.

    Notes
    -----
    Closed forms: relu family, Cho & Saul, NIPS 2009; erf, Williams, NIPS 1996; the others by elementary
    Gaussian integrals. Smooth callables use 200 Gauss-Hermite nodes, at variances above 2 Gauss-Legendre panels that
    see what happens where |u| is about 1; kinked ones use such panels between the kinks. `dual_error` estimates the
    error of all. A smooth function that turns over elsewhere, or faster, needs ends of panels there,
    ``activation(f, kinks=(4.0, 5.0, 6.0))``.
    """
    act = _resolve(activation)
    a, b, c = _variances(a, b, c)
    return _moments(act, a, b, c)


def dual_derivative(activation: Any, a, b, c) -> Array:
    """E f'(u) f'(v), the factor of the neural tangent kernel's recursion; arguments as for `dual`."""
    act = _resolve(activation)
    a, b, c = _variances(a, b, c)
    slope = _derivative_moment(act, a, b, c)
    if not any(isinstance(value, jax.core.Tracer) for value in (a, b, c)):
        for rough in coarser(act):
            warn_if_rough(slope, _derivative_moment(rough, a, b, c), "E f'(u) f'(v)")
    return slope


def dual_derivative_error(activation: Any, a, b, c) -> Array:
    """Estimated absolute quadrature error of `dual_derivative`; see `dual_error`."""
    act = _resolve(activation)
    a, b, c = _variances(a, b, c)
    fine = _derivative_moment(act, a, b, c)
    changes = [abs(fine - _derivative_moment(rough, a, b, c)) for rough in coarser(act)]
    return functools.reduce(jnp.maximum, changes, jnp.zeros_like(fine))


def dual_error(activation: Any, a, b, c) -> tuple[Array, Array, Array]:
    """Estimated absolute quadrature errors of `dual`: the largest change with fewer nodes.

    One node fewer moves all nodes by half their distance, so that what falls between them shows: the error of
    Gauss-Hermite at a kink or a steep step changes sign, and the estimate is about twice the error. Three
    quarters of the nodes is for rules that have begun to converge, whose estimate errs on the large side.
    Zero for closed forms and polynomials, whose only error is rounding.
    """
    act = _resolve(activation)
    a, b, c = _variances(a, b, c)
    fine = _moments(act, a, b, c)
    rough = [_moments(rule, a, b, c) for rule in coarser(act)]
    return tuple(functools.reduce(jnp.maximum, [abs(value - other[i]) for other in rough], jnp.zeros_like(value))
                 for i, value in enumerate(fine))  # type: ignore[return-value]
