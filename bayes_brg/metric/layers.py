"""Dense layers of a network at one draw: inputs and cotangents, of which its Fisher metric is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..model.bound import BoundModel, Params
from ..model.networks import dense
from .output_fisher import Estimator, output_responses


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


def layers(bound: BoundModel, how: Estimator, sites: tuple[str, ...], params: Params, batch: dict, key: Any
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

        assert bound.likelihood is not None
        phi = bound.apply(params, batch["x"], tapped)
        r = output_responses(bound.likelihood, how, phi, batch, key) * batch["weight"][:, None]
        return r, inputs, outputs

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(lambda: forward({})[2]))
    r, pull, inputs = jax.vjp(lambda taps: forward(taps)[:2], zeros, has_aux=True)

    def cotangents(index: jax.Array | int) -> list[jax.Array]:
        chosen = (jnp.arange(r.shape[1]) == index).astype(r.dtype)
        found = pull(jnp.broadcast_to(chosen, r.shape))[0]
        return [found[weight] for weight in facts]

    return [Layer(weight, *facts[weight], inputs[weight]) for weight in facts], cotangents, r.shape[1]


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """aᵀb, contracted over data in place: XLA was seen to transpose a first, at three times the cost for one output."""
    return jnp.einsum("ni,no->io", a, b)
