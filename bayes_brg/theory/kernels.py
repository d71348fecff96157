"""Kernels of dense networks at infinite width: NNGP and NTK, any depth, activation and biases.

    K¹(x, y) = σ_b² + σ_w² x·y/n₀,   K^{ℓ+1} = σ_b² + σ_w² V2[K^ℓ],
    Θ¹ = K¹,                         Θ^{ℓ+1} = K^{ℓ+1} + σ_w² V2'[K^ℓ] Θ^ℓ,

with weights N(0, σ_w²/fan_in), so that the limit exists; V2 and V2' are in `duals`. Everything is JAX: it can
be jitted, differentiated and mapped, in float32 or float64.
"""

import functools
import itertools
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.arrays import check_floats
from . import duals


def _is_traced(*values) -> bool:
    return any(isinstance(value, jax.core.Tracer) for value in values)


def _check_inputs(x1, x2) -> tuple[Any, Any]:
    x1 = duals.as_float(x1, "x1")
    x2 = None if x2 is None else duals.as_float(x2, "x2")
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None and x.ndim != 2:
            raise ValueError(
                f"{name} must have shape (points, inputs), got {x.shape}; "
                f"write {name}[:, None] for points on a line"
            )
    if x1.shape[1] == 0:
        raise ValueError(f"x1 has no input columns: shape {x1.shape}")
    if x2 is not None and x1.shape[1] != x2.shape[1]:
        raise ValueError(f"x1 {x1.shape} and x2 {x2.shape} have different numbers of inputs")
    return x1, x2


def _check_depth(depth, least: int) -> int:
    if isinstance(depth, bool) or not isinstance(depth, numbers.Integral) or depth < least:
        raise ValueError(
            f"depth is the number of hidden layers, an integer of at least {least}; got {depth!r}"
        )
    return int(depth)


def _per_layer_activations(spec: Any, depth: int) -> tuple[duals.Activation, ...]:
    several = isinstance(spec, list | tuple) and not all(isinstance(value, numbers.Number) for value in spec)
    if not several:
        return (duals.activation(spec),) * depth
    if len(spec) != depth:
        raise ValueError(f"{len(spec)} activations for depth {depth}: give one, or one per hidden layer")
    return tuple(duals.activation(value) for value in spec)


def _per_layer_variance(value, name: str, layers: int, dtype) -> Any:
    array = duals.as_float(value, name).astype(dtype)
    if array.shape not in ((), (layers,)):
        raise ValueError(f"{name} must be a scalar or one per layer ({layers},), got shape {array.shape}")
    if _is_traced(array):
        return jnp.broadcast_to(array, (layers,))
    array = np.asarray(array)
    if (array < 0).any():
        raise ValueError(f"{name} is a variance and must not be negative, got {array.min():g}")
    return np.broadcast_to(array, (layers,))


@functools.partial(jax.jit, static_argnames=("acts", "want"))
def _propagate(x1, x2, weight_var, bias_var, weight_gain, bias_gain, *, acts, want):
    """Push covariances through the layers.

    A layer adds weight_gain·S + bias_gain to the tangent kernel, S the mean product of the layer's inputs.
    ``want``: "nngp" K^{depth+1}; "ntk" Θ^{depth+1}; "readout" the last layer's own share of the tangent
    kernel; "features" (V1(x1), V1(x2), V2) of the last hidden layer.
    """
    same = x2 is None
    right = x1 if same else x2
    inputs = x1.shape[1]
    # Highest precision: an accelerator's default would round the inputs of the product to fewer bits.
    product = jnp.matmul(x1, right.T, precision="highest") / inputs
    norm1, norm2 = (jnp.sum(x * x, 1) / inputs for x in (x1, right))
    layers = (weight_var, bias_var, weight_gain, bias_gain)

    def step(act, carry, layer):
        product, norm1, norm2, below, _, _ = carry
        scale, shift, gain, bias = layer
        a, b, c = (scale * value + shift for value in (norm1, norm2, product))
        if want == "ntk":
            slope = duals.derivative_moment(act, a[:, None], b[None, :], c)
            below = slope * (gain * product + bias + scale * below)
        product = duals.second_moment(act, a[:, None], b[None, :], c)
        norm1 = jnp.diagonal(product) if same else duals.second_moment(act, a, a, a)
        norm2 = norm1 if same else duals.second_moment(act, b, b, b)
        return (product, norm1, norm2, below, a, b), None

    if same:
        norm1 = norm2 = jnp.diagonal(product)
    # Layers that are alike are scanned: compiled once, and no chain of layers is fused and computed twice.
    below = jnp.zeros_like(product) if want == "ntk" else jnp.zeros((), product.dtype)
    carry = (product, norm1, norm2, below, norm1, norm2)
    start = 0
    for act, run in itertools.groupby(acts):
        stop = start + len(list(run))
        carry, _ = jax.lax.scan(functools.partial(step, act), carry, tuple(x[start:stop] for x in layers))
        start = stop
    product, _, _, below, a, b = carry

    if want == "features":
        return duals.first_moment(acts[-1], a), duals.first_moment(acts[-1], b), product
    if want == "nngp":
        return weight_var[-1] * product + bias_var[-1]
    if want == "readout":
        return weight_gain[-1] * product + bias_gain[-1]
    return weight_gain[-1] * product + bias_gain[-1] + weight_var[-1] * below


@jax.jit
def _symmetric(kernel):
    """Remove what rounding differs by between an entry and its mirror (vector and scalar code paths).

    A program of its own: fused with the layers, each term would be computed from the start.
    """
    return (kernel + kernel.T) / 2


def nngp(x1, x2=None, *, depth: int, activation: Any, weight_var: Any = 1.0, bias_var: Any = 0.0) -> Array:
    """Covariance of the outputs of an infinitely wide dense network, K^{depth+1} (61), (67).

    Parameters
    ----------
    x1, x2 : array (n1, inputs), (n2, inputs)
        Points. Without x2 the kernel of x1 with itself, symmetric bit for bit.
    depth : int
        Number of hidden layers; 0 is the linear model, K¹.
    activation : str, callable, coefficients, or a sequence of them
        One for all hidden layers or one per layer; see `theory.activation`.
    weight_var, bias_var : float or array (depth + 1,)
        σ_w² and σ_b²: weights are N(0, σ_w²/fan_in), biases N(0, σ_b²). The same number for both the "fan_in"
        and the "ntk" scaling of a network; for "none", weight_var is std² · fan_in.

    Returns
    -------
    Array (n1, n2)
        In squared units of the output. Positive semidefinite to rounding. Float32 as JAX has it by default;
        float64, for the accuracy of an oracle, with float64 points under ``jax.enable_x64(True)``.

    Raises
    ------
    ValueError
        Shapes that do not match, non-finite inputs, negative variances, depth < 0, unknown activation.

    Notes
    -----
    Lee et al., arXiv:1711.00165; Matthews et al., arXiv:1804.11271. Gradients are finite everywhere, equal
    inputs included.
    """
    return _call("nngp", x1, x2, depth, activation, weight_var, bias_var, "ntk", None)


def ntk(
    x1,
    x2=None,
    *,
    depth: int,
    activation: Any,
    weight_var: Any = 1.0,
    bias_var: Any = 0.0,
    scaling: str = "ntk",
    width: int | Sequence[int] | None = None,
    trained: str = "all",
) -> Array:
    """Neural tangent kernel Θ^{depth+1} = Σ_θ ∂_θ φ(x1) ∂_θ φ(x2) of an infinitely wide dense network.

    Parameters
    ----------
    x1, x2, depth, activation, weight_var, bias_var
        As for `nngp`.
    scaling : {"ntk", "fan_in", "none"}
        How the network holds its parameters. "ntk": N(0, 1), multiplied by σ/√fan_in in the forward pass; the
        limit is finite. "fan_in": N(0, σ²/fan_in) used as they are; the kernel grows with the width, which
        must be given: a layer adds fan_in · V2 for its weights and 1 for its bias where the layer's bias_var
        > 0. "none" is the same kernel: there weight_var is std² · fan_in, one per layer.
    width : int or sequence of int (depth,)
        Hidden widths, not for "ntk". Exact on average for one hidden layer; to a relative 1/width beyond.
    trained : {"all", "readout"}
        Which parameters move: all, or the last layer's only (then "ntk" gives the NNGP kernel itself).

    Returns
    -------
    Array (n1, n2)

    Raises
    ------
    ValueError
        As `nngp`; unknown scaling or trained; width missing with "fan_in" or "none", or given with "ntk".

    Notes
    -----
    Jacot, Gabriel & Hongler, arXiv:1806.07572. For relu it has a cusp at equal inputs, where its gradient is
    given as the symmetric one.
    """
    if trained not in ("all", "readout"):
        raise ValueError(f"trained must be 'all' or 'readout', got {trained!r}")
    want = "ntk" if trained == "all" else "readout"
    return _call(want, x1, x2, depth, activation, weight_var, bias_var, scaling, width)


def feature_moments(
    x1, x2=None, *, depth: int, activation: Any, weight_var: Any = 1.0, bias_var: Any = 0.0
) -> tuple[Array, Array, Array]:
    """First and second moments (V1(x1), V1(x2), V2(x1, x2)) of one unit of the last hidden layer (66), (67).

    Arguments as for `nngp`; of the depth + 1 layers' variances the readout's is not used. Exact at any width
    for depth 1, where the hidden units are independent; the infinite-width limit for deeper networks.

    Returns
    -------
    V1_x1 (n1,), V1_x2 (n2,), V2 (n1, n2) : Array
        What `predictive_gp` and `renormalized_gp` take.
    """
    return _call("features", x1, x2, depth, activation, weight_var, bias_var, "ntk", None)


def _call(want, x1, x2, depth, activation, weight_var, bias_var, scaling, width):
    x1, x2 = _check_inputs(x1, x2)
    depth = _check_depth(depth, least=1 if want == "features" else 0)
    acts = _per_layer_activations(activation, depth)
    dtype = x1.dtype if x2 is None else jnp.result_type(x1.dtype, x2.dtype)
    weights = _per_layer_variance(weight_var, "weight_var", depth + 1, dtype)
    biases = _per_layer_variance(bias_var, "bias_var", depth + 1, dtype)
    gains = _gains(scaling, width, depth, x1.shape[1], weights, biases)
    x1, x2 = x1.astype(dtype), None if x2 is None else x2.astype(dtype)
    result = _propagate(x1, x2, weights, biases, *gains, acts=acts, want=want)
    if want in ("ntk", "nngp") and not _is_traced(x1, x2, weights, biases, *gains):
        _check_quadrature(x1, x2, weights, biases, gains, acts, want)
    if x2 is not None:
        return result
    return (*result[:2], _symmetric(result[2])) if want == "features" else _symmetric(result)


def _check_quadrature(x1, x2, weights, biases, gains, acts, want) -> None:
    """Warn if the rule is too coarse at the point of largest variance, where functions are narrowest beside it."""
    rough = tuple((*duals.coarser(act), act)[0] for act in acts)
    if rough == acts:
        return
    points = np.concatenate([np.asarray(x) for x in (x1, x2) if x is not None])
    widest = jnp.asarray(points[[np.argmax((points**2).sum(1))]])
    fine, coarse = (_propagate(widest, None, weights, biases, *gains, acts=a, want=want) for a in (acts, rough))
    duals.warn_if_rough(fine, coarse, f"{want} at the largest point")


def _gains(scaling, width, depth, inputs, weights, biases):
    """What a layer's weights and bias add to the tangent kernel, per unit of S and of 1: arrays (layers,)."""
    if scaling == "ntk":
        if width is not None:
            raise ValueError(
                f"width={width!r} has no meaning for scaling='ntk', whose kernel does not depend on it"
            )
        return weights, biases
    if scaling not in ("fan_in", "none"):
        raise ValueError(f"scaling must be 'ntk', 'fan_in' or 'none', got {scaling!r}")
    if width is None and depth:
        raise ValueError(f"scaling={scaling!r} needs width=: its tangent kernel grows with the hidden widths")
    widths = (width,) * depth if width is None or isinstance(width, numbers.Integral) else tuple(width)
    if len(widths) != depth or not all(isinstance(n, int | np.integer) and n >= 1 for n in widths):
        raise ValueError(f"width must be a positive integer or one per hidden layer ({depth}), got {width!r}")
    fan_in = np.asarray((inputs, *widths), weights.dtype)
    if _is_traced(biases):
        return fan_in, jnp.ones_like(biases)
    return fan_in, (biases > 0).astype(biases.dtype)


def in_float64(function, *arrays, **settings):
    """Evaluate a kernel function in float64 whatever the default, on concrete arrays; NumPy results."""
    with jax.enable_x64(True):
        result = function(
            *(None if x is None else check_floats(x, "x", finite=False) for x in arrays), **settings
        )
        return jax.tree.map(np.asarray, result)
