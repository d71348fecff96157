"""Dense layers of a network at one draw: inputs and cotangents, of which its Fisher metric is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..model.bound import BoundModel, Params
from ..model.networks import dense
from .output_fisher import Data, Estimator, network_labels, output_responses


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


Cotangents = Callable[[jax.Array | int], list[jax.Array]]


def layers(bound: BoundModel, how: Estimator, sites: tuple[str, ...], params: Params, batch: Data, key: Any
           ) -> tuple[list[Layer], Cotangents, int]:
    """Dense layers that hold one of `sites`, a function from (r,) to their cotangents δ under response r, and R."""
    likelihood = bound.likelihood_at(params)

    def respond(phi):
        return output_responses(likelihood, how, phi, batch, key) * batch.weight[:, None], None

    return _taps(bound, sites, params, batch, respond)[:3]


def layer_labels(bound: BoundModel, how: Estimator, sites: tuple[str, ...], params: Params, batch: Data, key: Any
                 ) -> tuple[list[Layer], Cotangents, int, jax.Array]:
    """As `layers` under the outputs φ themselves, with the scores (n, S, K) of drawn labels."""
    likelihood = bound.likelihood_at(params)

    def respond(phi):
        found = network_labels(likelihood, how, phi, batch, key)
        return found.outputs, found.scores * batch.weight[:, None, None]

    return _taps(bound, sites, params, batch, respond)


def _taps(bound: BoundModel, sites: tuple[str, ...], params: Params, batch: Data, respond: Callable
          ) -> tuple[list[Layer], Cotangents, int, Any]:
    """Layers, their cotangents under each of the responses that ``respond(φ)`` gives first, R, and the rest.

    A zero, the tap, is added to each dense output; its cotangent is the layer's δ: one backward pass a response.
    """
    facts: dict[str, tuple[str | None, float, float]] = {}

    def forward(taps: dict) -> tuple[jax.Array, dict, dict, Any]:
        inputs, outputs = {}, {}

        def tapped(params, h, weight, bias=None, scale=1.0, bias_scale=1.0):
            out = dense(params, h, weight, bias, scale, bias_scale)
            if weight in sites or bias in sites:
                facts[weight] = bias, scale, bias_scale
                inputs[weight], outputs[weight] = h.astype(out.dtype), out  # whole numbers may not be squared
                out = out + taps[weight] if taps else out
            return out

        r, more = respond(bound.apply(params, batch.x, tapped))
        return r, inputs, outputs, more

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(lambda: forward({})[2]))

    def split(taps):
        r, inputs, _, more = forward(taps)
        return r, (inputs, more)

    r, pull, (inputs, more) = jax.vjp(split, zeros, has_aux=True)

    def cotangents(index: jax.Array | int) -> list[jax.Array]:
        chosen = (jnp.arange(r.shape[1]) == index).astype(r.dtype)
        found = pull(jnp.broadcast_to(chosen, r.shape))[0]
        return [found[weight] for weight in facts]

    return [Layer(weight, *facts[weight], inputs[weight]) for weight in facts], cotangents, r.shape[1], more


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """aᵀb, contracted over data in place: XLA was seen to transpose a first, at three times the cost for one output."""
    return jnp.einsum("ni,no->io", a, b)
