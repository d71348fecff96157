"""Gaussian expectations of callables: E f(u), E f(u) g(v) for zero-mean u, v of variances a, b, covariance c.

Smooth callables go by the Mehler series, whose coefficients are Gauss-Hermite sums; callables with kinks by
Gauss-Legendre panels that end at the kinks, which `find_kinks` looks for. Gauss-Hermite on a kinked function
would be off by 1e-3 or so however many nodes it had.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# Panels for smooth functions that turn over where |u| is about 1, as tanh and softplus do, however wide u is.
STEP_ENDS = (-10.0, -3.0, 0.0, 3.0, 10.0)
_BULK = 3.0  # standard deviations at which those panels end too
_WIDE = 2.0  # variance above which Gauss-Hermite misses such a function: tanh' is off by 5e-10 there, by 1e-6 at 4
_REACH = 8.5  # standard deviations kept by the panels: the density beyond is under 1e-16
_ORDERS = 5  # f and the derivatives searched for jumps: those of the fifth are lost in rounding and cost 1e-6 or less


def correlation(a, b, c):
    """c/√(ab) in [-1, 1]; 0 where a or b is 0; exactly ±1 where it is so to rounding.

    Angles go as √(1 − ρ): one rounding of ρ in float32 would be 3e-4 on the diagonal of a kernel.
    """
    scale = root(a) * root(b)
    rho = jnp.where(scale > 0, c / jnp.where(scale > 0, scale, 1), 0)
    snapped = jnp.where(jnp.abs(rho) > 1 - 4 * jnp.finfo(rho.dtype).eps, jnp.sign(rho), rho)
    # The gradient goes through as if not snapped, so that it stays right at ρ = ±1.
    return rho + jax.lax.stop_gradient(snapped - rho)


def root(x):
    """Square root whose gradient at 0 is 0 instead of infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


# --- where a callable is not smooth -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Derivative:
    """u ↦ f'(u), hashable so that compiled kernels are found again."""

    function: Callable

    def __call__(self, u):
        return jax.jvp(self.function, (u,), (jnp.ones_like(u),))[1]


@dataclasses.dataclass(frozen=True)
class Dilation:
    """u ↦ u f'(u), the derivative of f along scale."""

    function: Callable

    def __call__(self, u):
        return jax.jvp(self.function, (u,), (u,))[1]


@functools.lru_cache(maxsize=256)
def find_kinks(function: Callable) -> tuple[float, ...]:
    """Places in |u| ≤ 25 where a derivative of f up to the fourth jumps.

    Every cell of a grid is bisected towards its largest change.

    After 40 halvings the change over a cell is rounding for a smooth function and the jump itself otherwise.
    """
    name = getattr(function, "__name__", type(function).__name__)
    grid = np.linspace(-25.0, 25.0, 5002)  # even count: 0 falls inside a cell
    found: list[float] = []
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        derivative: Callable = function
        for order in range(_ORDERS):
            rule = jax.jit(derivative)
            left, right = grid[:-1], grid[1:]
            at_left, at_right = _evaluate(rule, left, name), _evaluate(rule, right, name)
            finite = np.isfinite(at_left) & np.isfinite(at_right)
            near = np.abs(left) < 5
            if order == 0 and not finite[near].all():
                raise ValueError(f"activation {name} is not finite near u = {left[near & ~finite][0]:.3g}")
            size = np.maximum(np.abs(at_left), np.abs(at_right))
            size += 0.01 * np.max(size[near & finite], initial=0.0) + 1e-9
            for _ in range(40):
                middle = (left + right) / 2
                at_middle = _evaluate(rule, middle, name)
                lower = np.abs(at_middle - at_left) > np.abs(at_right - at_middle)
                right, at_right = np.where(lower, middle, right), np.where(lower, at_middle, at_right)
                left, at_left = np.where(lower, left, middle), np.where(lower, at_left, at_middle)
            jumps = left[finite & (np.abs(at_right - at_left) > 1e-4 * size)]
            if order == 0:
                _refuse_jumps(jumps, name)
            found.extend(round(float(place), 9) + 0.0 for place in jumps)
            derivative = Derivative(derivative)
    kinks: list[float] = []
    for place in sorted(found):
        if not kinks or place - kinks[-1] > 1e-6:
            kinks.append(place)
    if len(kinks) > 12:
        raise ValueError(
            f"activation {name} has {len(kinks)} kinks in |u| ≤ 25; at most 12 can be integrated around. "
            "Declare the ones that matter with activation(f, kinks=...)"
        )
    return tuple(kinks)


def check_continuous(function: Callable, places: tuple[float, ...]) -> None:
    """Refuse a callable that jumps at one of the places where its kinks were said to be."""
    name, u = getattr(function, "__name__", type(function).__name__), np.asarray(places, dtype=float)
    step = 1e-9 * (1 + np.abs(u))
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        left, right, low, high = (_evaluate(function, v, name) for v in (u - step, u + step, u - 1, u + 1))
    size = np.max(np.abs([left, right, low, high]), axis=0)
    _refuse_jumps(u[np.abs(right - left) > 1e-4 * size], name)


def _refuse_jumps(jumps, name):
    if len(jumps):
        raise ValueError(
            f"activation {name} jumps at u = {jumps[0]:.6g}: discontinuous activations have no NTK "
            "and no rule here; use a continuous one"
        )


def _evaluate(function, u, name):
    try:
        values = np.asarray(function(jnp.asarray(u)), dtype=float)
    except (jax.errors.JAXTypeError, TypeError) as error:
        raise ValueError(
            f"activation {name} could not be evaluated on an array: it must be elementwise, made of JAX "
            "operations and not depend on traced values"
        ) from error
    if values.shape != u.shape:
        raise ValueError(f"activation {name} maps shape {u.shape} to {values.shape}: it must be elementwise")
    return values


# --- smooth callables: the Mehler series --------------------------------------------------------------


@functools.lru_cache(maxsize=32)
def _hermite(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Hermite nodes z (J,) for N(0, 1) and the matrix (K, J) from values f(z_j) to coefficients f_k."""
    z, _ = np.polynomial.hermite_e.hermegauss(nodes)
    functions = np.zeros((nodes, nodes))
    # Hermite functions: their recurrence is stable and keeps relative accuracy where the weights are tiny.
    functions[0] = np.exp(-z * z / 4)
    if nodes > 1:
        functions[1] = z * functions[0]
    for k in range(1, nodes - 1):
        functions[k + 1] = (z * functions[k] - math.sqrt(k) * functions[k - 1]) / math.sqrt(k + 1)
    functions /= np.sqrt((functions**2).sum(0))
    return z, functions * functions[0]


def _coefficients(function, nodes, variance):
    """E[f(√a z) He_k(z)]/√k!, shape (K, *a.shape)."""
    z, matrix = _hermite(nodes)
    if variance.dtype.itemsize < 8:
        # Outer nodes whose weight float32 cannot hold: dropped, or f = inf there would give inf · 0.
        keep = matrix[0] > 1e-37
        z, matrix = z[keep], matrix[:, keep]
    points = root(variance) * z.reshape((-1,) + (1,) * variance.ndim).astype(variance.dtype)
    values = function(points)
    return jnp.tensordot(matrix.astype(variance.dtype), values, 1, precision="highest")


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def mean_smooth(function, nodes, steps, a):
    """E f(u), u ~ N(0, a), by Gauss–Hermite, or by panels between `steps` for large a; differentiable in a."""
    narrow = _coefficients(function, nodes, a)[0]
    if not steps:
        return narrow
    return jnp.where(a > _WIDE, mean_kinked(function, steps, max(2, nodes // 10), a, _BULK), narrow)


@mean_smooth.defjvp
def _mean_smooth_jvp(function, nodes, steps, primals, tangents):
    (a,), (da,) = primals, tangents
    second = mean_smooth(Derivative(Derivative(function)), nodes, steps, a)
    return mean_smooth(function, nodes, steps, a), second * da / 2


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def pair_smooth(f, g, nodes, steps, a, b, c):
    """E f(u) g(v) by the Mehler series, or, where a variance is large, by panels that end at `steps` too.

    Functions of fixed width get narrow beside u as its variance grows, and fall between Gauss–Hermite nodes.
    """
    def series(a, b, c):
        return _mehler(f, g, nodes, a, b, c)

    if not steps:
        return series(a, b, c)

    def panels(a, b, c):
        return pair_panels(f, g, steps, max(2, nodes // 10), a, b, c, _BULK)

    return jax.lax.cond(jnp.maximum(jnp.max(a), jnp.max(b)) > _WIDE, panels, series, a, b, c)


def _mehler(f, g, nodes, a, b, c):
    """E f(u) g(v) = Σ_k f_k(a) g_k(b) ρ^k (Mehler): symmetric, and positive semidefinite term by term."""
    rho = correlation(a, b, c)
    left = _coefficients(f, nodes, a)
    right = left if (g is f and b is a) else _coefficients(g, nodes, b)

    def horner(total, pair):
        return total * rho + pair[0] * pair[1], None

    start = jnp.zeros(jnp.broadcast_shapes(a.shape, b.shape, c.shape), rho.dtype)
    return jax.lax.scan(horner, start, (left, right), reverse=True, unroll=8)[0]


@pair_smooth.defjvp
def _pair_smooth_jvp(f, g, nodes, steps, primals, tangents):
    # Price's theorem: derivatives of a Gaussian expectation are expectations again, finite at ρ = 1 or a = 0.
    da, db, dc = tangents
    df, dg = Derivative(f), Derivative(g)
    slope = pair_smooth(df, dg, nodes, steps, *primals) * dc
    slope += pair_smooth(Derivative(df), g, nodes, steps, *primals) * da / 2
    slope += pair_smooth(f, Derivative(dg), nodes, steps, *primals) * db / 2
    return pair_smooth(f, g, nodes, steps, *primals), slope


# --- kinked callables: panels that end at the kinks ---------------------------------------------------


@functools.lru_cache(maxsize=8)
def _legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(nodes)


def _panels(edges, nodes):
    """Gauss-Legendre points and N(0, 1) weights on consecutive panels, shape (..., panels, nodes)."""
    points, weights = (array.astype(edges.dtype) for array in _legendre(nodes))
    half = jnp.diff(edges)[..., None] / 2
    z = (edges[..., :-1, None] + edges[..., 1:, None]) / 2 + half * points
    return z, half * weights * jnp.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _edges(places, bulk=None):
    """Panel edges: the sorted places, cut to the reach of the density, between its two ends.

    `bulk` ends panels there too, so that few nodes a panel see the density itself.
    """
    ends = jnp.broadcast_to(jnp.array([_REACH], places.dtype), (*places.shape[:-1], 1))
    inside = jnp.clip(places, -_REACH, _REACH)
    if bulk is not None:
        inside = jnp.sort(jnp.concatenate([inside, 0 * ends - bulk, 0 * ends + bulk], axis=-1))
    return jnp.concatenate([-ends, inside, ends], axis=-1)


def _scaled(kinks, scale):
    tiny = float(jnp.finfo(scale.dtype).tiny) ** 0.5
    return jnp.asarray(kinks, scale.dtype) / jnp.maximum(scale, tiny)[..., None]


def mean_kinked(function, kinks, nodes, a, bulk=None):
    """E f(u), u ~ N(0, a), by Gauss–Legendre panels between the kinks."""
    scale = root(a)
    z, weights = _panels(_edges(_scaled(kinks, scale), bulk), nodes)
    return (weights * function(scale[..., None, None] * z)).sum((-1, -2))


def pair_panels(f, g, kinks, nodes, a, b, c, bulk=None):
    """E f(u) g(v) by an outer rule over u and an inner one over v given u; autodiff is right for ρ ≠ ±1.

    The inner integral, as a function of u, turns over within s/ρ of each kink of g: the outer panels end
    there too.
    """

    def one(variances):
        a, b, c = variances
        root_a, root_b = root(a), root(b)
        rho = correlation(a, b, c)
        slack = (1 - rho) * (1 + rho)
        floor = jnp.finfo(rho.dtype).eps
        spread = jnp.where(slack > 4 * floor, jnp.sqrt(jnp.where(slack > 4 * floor, slack, 1)), floor)
        slope = jnp.where(jnp.abs(rho) > 1e-3, rho, jnp.where(rho < 0, -1e-3, 1e-3))
        in_u, in_v = _scaled(kinks, root_a), _scaled(kinks, root_b)
        turn, width = in_v / slope, _REACH * spread / jnp.abs(slope)
        outer = jnp.sort(jnp.concatenate([in_u, turn, turn - width, turn + width]))
        z, weights = _panels(_edges(outer, bulk), nodes)
        inner, inner_weights = _panels(_edges((in_v - rho * z[..., None]) / spread, bulk), nodes)
        v = root_b * (rho * z[..., None, None] + spread * inner)
        return (weights * f(root_a * z) * (inner_weights * g(v)).sum((-1, -2))).sum()

    a, b, c = jnp.broadcast_arrays(a, b, c)
    flat = jax.lax.map(one, (a.ravel(), b.ravel(), c.ravel()), batch_size=16)
    return flat.reshape(a.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def pair_kinked(f, g, kinks, nodes, a, b, c):
    """E f(u) g(v) by `pair_panels`, with derivatives that are right for kinks and at ρ = ±1."""
    return pair_panels(f, g, kinks, nodes, a, b, c)


@pair_kinked.defjvp
def _pair_kinked_jvp(f, g, kinks, nodes, primals, tangents):
    # As for smooth callables, but f'' would hold point masses: the scale derivative u f'(u) stands in for it.
    (a, b, c), (da, db, dc) = primals, tangents
    rule = functools.partial(pair_panels, kinks=kinks, nodes=nodes, a=a, b=b, c=c)
    both = rule(Derivative(f), Derivative(g))
    in_a = jnp.where(a > 0, (rule(Dilation(f), g) - c * both) / jnp.where(a > 0, 2 * a, 1), 0)
    in_b = jnp.where(b > 0, (rule(f, Dilation(g)) - c * both) / jnp.where(b > 0, 2 * b, 1), 0)
    return pair_kinked(f, g, kinks, nodes, a, b, c), both * dc + in_a * da + in_b * db
