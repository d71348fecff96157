"""Dense layers of a network at one draw: inputs and cotangents, of which its Fisher metric is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from ..model.bound import BoundModel, Params
from ..model.networks import BoundNetwork, dense
from .output_fisher import Estimator, depends, output_responses


@dataclass(frozen=True)
class Layer:
    """One dense layer at one draw: its names, its scales, and its inputs (n, fan_in).

    With δ (n, fan_out) the cotangent of its output under one response, the factor rows restricted to its weights are
    the outer products scale · a ⊗ δ, so that the Fisher diagonal and the Gram matrix come without forming them.
    """

    weight: str
    bias: str | None
    scale: float
    bias_scale: float
    inputs: jax.Array


def layers(bound: BoundNetwork, how: Estimator, sites: tuple[str, ...], params: Params, batch: dict, key: Any
           ) -> tuple[list[Layer], Callable[[jax.Array], list[jax.Array]], int]:
    """Dense layers that hold one of `sites`, a function from (r,) to their cotangents δ under response r, and R.

    A zero, the tap, is added to each dense output; its cotangent is the layer's δ: one backward pass a response.
    """
    facts: dict[str, tuple[str | None, float, float]] = {}

    def forward(taps: dict) -> tuple[jax.Array, dict, dict]:
        inputs, outputs = {}, {}

        def tapped(params, h, weight, bias=None, scale=1.0, bias_scale=1.0):
            out = dense(params, h, weight, bias, scale, bias_scale)
            if weight in sites or bias in sites:
                facts[weight] = bias, scale, bias_scale
                inputs[weight], outputs[weight] = h.astype(out.dtype), out  # whole numbers may not be squared
                out = out + taps[weight] if taps else out
            return out

        phi = bound.network.apply(params, batch["x"], tapped)
        r = output_responses(bound.network.likelihood, how, phi, batch, key) * batch["weight"][:, None]
        return r, inputs, outputs

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(lambda: forward({})[2]))
    r, pull, inputs = jax.vjp(lambda taps: forward(taps)[:2], zeros, has_aux=True)

    def cotangents(index: jax.Array | int) -> list[jax.Array]:
        chosen = (jnp.arange(r.shape[1]) == index).astype(r.dtype)
        found = pull(jnp.broadcast_to(chosen, r.shape))[0]
        return [found[weight] for weight in facts]

    return [Layer(weight, *facts[weight], inputs[weight]) for weight in facts], cotangents, r.shape[1]


def covered(bound: BoundModel, sites: tuple[str, ...]) -> bool:
    """Whether each of `sites` enters through the dense primitive alone, once, with one row a datum.

    Then `layers` tells all about them. Where a layer sees other rows (a convolution as patches, positions that share
    weights) the gradient of a datum is a sum over its rows, which comes before any square or product: such sites take
    the general way, and so do those that enter elsewhere too.
    """
    if not isinstance(bound, BoundNetwork) or not set(sites) <= set(bound.network.dense_sites):
        return False
    return set(sites) <= _once(bound)


@lru_cache(maxsize=256)
def _once(bound: BoundNetwork) -> frozenset[str]:
    """Sites of which `covered` is true, found by tracing the forward pass."""
    seen: list[str] = []
    params = {site.name: jax.ShapeDtypeStruct(site.shape, jnp.float32) for site in bound.sites}
    for n in (1, 3):
        def recording(params, h, weight, bias=None, scale=1.0, bias_scale=1.0, n=n):
            named = [s for s in (weight, bias) if s is not None]
            seen.extend(named if h.ndim == 2 and h.shape[0] == n else 2 * named)
            return dense(params, h, weight, bias, scale, bias_scale)

        x = jax.ShapeDtypeStruct((n, bound.dim), jnp.float32)
        jax.eval_shape(lambda p, x, recording=recording: bound.network.apply(p, x, recording), params, x)

    def without(params, h, weight, bias=None, scale=1.0, bias_scale=1.0):
        return jnp.zeros((*h.shape[:-1], params[weight].shape[1])) + jnp.sum(h)

    def elsewhere(site):
        rest = {s: jnp.zeros(p.shape) for s, p in params.items()}
        return depends(lambda v: [bound.network.apply({**rest, site: v}, jnp.zeros((3, bound.dim)), without)],
                       rest[site])[0]

    return frozenset(s for s in set(seen) if seen.count(s) == 2 and not elsewhere(s))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """aᵀb, contracted over data in place: XLA was seen to transpose a first, at three times the cost for one output."""
    return jnp.einsum("ni,no->io", a, b)
