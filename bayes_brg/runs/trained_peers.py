"""Trained networks as peers, by optax in mini-batches: a deep ensemble, and Monte-Carlo dropout."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..core.keys import name_key
from .predictive import Predictive

__all__ = ["deep_ensemble", "mc_dropout"]


class Layer(NamedTuple):
    """A dense layer: weights (fan_in, fan_out), biases (fan_out,)."""

    w: jax.Array
    b: jax.Array


def _init(key: jax.Array, widths: tuple[int, ...]) -> list[Layer]:
    keys = jax.random.split(key, len(widths) - 1)
    return [Layer(jax.random.normal(k, (a, b)) * jnp.sqrt(2 / a), jnp.zeros(b))
            for k, a, b in zip(keys, widths[:-1], widths[1:], strict=True)]


def _forward(layers: list[Layer], x: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    """Rectified units, a share `rate` of them dropped before each layer but the first."""
    for i, layer in enumerate(layers):
        if i and rate:
            kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - rate, x.shape)
            x = jnp.where(kept, x / (1 - rate), 0.0)
        x = x @ layer.w + layer.b
        if i < len(layers) - 1:
            x = jax.nn.relu(x)
    return x


def _noise(out: jax.Array) -> jax.Array:
    return 1e-3 + jax.nn.softplus(out[:, 1])


def _loss(layers: list[Layer], x: jax.Array, y: jax.Array, key: jax.Array, rate: float, num_classes: int) -> jax.Array:
    """−log p of each datum, in nats."""
    out = _forward(layers, x, key, rate)
    if num_classes:
        return optax.softmax_cross_entropy_with_integer_labels(out, y)
    return -jax.scipy.stats.norm.logpdf(y, out[:, 0], _noise(out))


@partial(jax.jit, static_argnames=("widths", "steps", "batch", "rate", "num_classes"))
def _train(key: jax.Array, x: jax.Array, y: jax.Array, held_x: jax.Array, held_y: jax.Array, *, widths: tuple[int, ...],
           steps: int, batch: int, rate: float, num_classes: int, learning_rate: float, decay: float) -> list[Layer]:
    """Adam with decay of the weights, in random batches; the weights of the best of twenty looks at the held rows."""
    layers = _init(jax.random.fold_in(key, 0), widths)
    rule = optax.adamw(optax.cosine_decay_schedule(learning_rate, 20 * steps), weight_decay=decay)

    def step(carry, k):
        layers, state = carry
        rows = jax.random.randint(k, (batch,), 0, len(x))
        dropped = jax.random.fold_in(k, 1)
        grad = jax.grad(lambda p: _loss(p, x[rows], y[rows], dropped, rate, num_classes).mean())(layers)
        change, state = rule.update(grad, state, layers)
        return (optax.apply_updates(layers, change), state), None

    def look(carry, k):
        layers, state, best, least = carry
        (layers, state), _ = jax.lax.scan(step, (layers, state), jax.random.split(k, steps))
        now = _loss(layers, held_x, held_y, k, 0.0, num_classes).mean()
        better = now < least
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), layers, best)
        return (layers, state, best, jnp.where(better, now, least)), None

    start = (layers, rule.init(layers), layers, jnp.asarray(jnp.inf, x.dtype))
    (_, _, best, _), _ = jax.lax.scan(look, start, jax.random.split(jax.random.fold_in(key, 1), 20))
    return best


def _fit(key: Any, x: Any, y: Any, num_classes: int, width: int, depth: int, rate: float, num_epochs: int, batch: int,
         learning_rate: float, decay: float) -> list[Layer]:
    """One network; a tenth of the rows is held back to say when to stop."""
    order = np.asarray(jax.random.permutation(name_key(key, "rows"), len(x)))
    held = max(1, len(x) // 10)
    x = jnp.asarray(x, jnp.result_type(float))
    y = jnp.asarray(y, jnp.int32 if num_classes else x.dtype)
    out = num_classes or 2
    batch = min(batch, len(x) - held)
    steps = max(1, round(num_epochs * (len(x) - held) / batch / 20))
    return _train(name_key(key, "train"), x[order[held:]], y[order[held:]], x[order[:held]], y[order[:held]],
                  widths=(x.shape[1], *(width,) * depth, out), steps=steps, batch=batch, rate=rate,
                  num_classes=num_classes, learning_rate=learning_rate, decay=decay)


def _predictive(outs: list[jax.Array], num_classes: int) -> Predictive:
    if num_classes:
        return Predictive(probs=np.stack([np.asarray(jax.nn.softmax(o), np.float64) for o in outs]))
    return Predictive(loc=np.stack([np.asarray(o[:, 0]) for o in outs]), scale=np.stack([np.asarray(_noise(o))
                                                                                         for o in outs]))


def deep_ensemble(x, y, x_test, *, key, num_classes: int = 0, num_members: int = 10, width: int = 50, depth: int = 2,
                  num_epochs: int = 400, batch: int = 64, learning_rate: float = 5e-3, decay: float = 1e-4
                  ) -> Predictive:
    """Networks trained from different starts by Adam, in mini-batches: the mixture of their predictions [1]_.

    Each learns a mean and a standard deviation at every input (or class probabilities), and stops where a tenth of the
    rows, held back, is predicted best.

    Parameters
    ----------
    x, y, x_test : arrays (n, dim), (n,), (m, dim)
        Standardised.
    key : jax.random.key
    num_classes : int
        0 for numbers.
    num_members, width, depth, num_epochs, batch, learning_rate, decay
        Members; hidden units a layer and hidden layers; passes over the data; rows a step; of Adam; of the weights.

    Returns
    -------
    Predictive

    References
    ----------
    .. [1] Lakshminarayanan, Pritzel and Blundell, NeurIPS 2017, arXiv:1612.01474 (without adversarial training).
    """
    test = jnp.asarray(x_test, jnp.result_type(float))
    outs = []
    for member in range(num_members):
        one = jax.random.fold_in(key, member)
        layers = _fit(one, x, y, num_classes, width, depth, 0.0, num_epochs, batch, learning_rate, decay)
        outs.append(_forward(layers, test, one, 0.0))
    return _predictive(outs, num_classes)


def mc_dropout(x, y, x_test, *, key, num_classes: int = 0, rate: float = 0.05, num_draws: int = 200, width: int = 50,
               depth: int = 2, num_epochs: int = 800, batch: int = 64, learning_rate: float = 5e-3, decay: float = 1e-4
               ) -> Predictive:
    """One network trained and asked with units dropped at random: the mixture over what was dropped [1]_.

    Noise: a standard deviation that the network learns at every input (the original takes one for all, by a search).

    Parameters
    ----------
    x, y, x_test, key, num_classes, width, depth, num_epochs, batch, learning_rate, decay
        As in `deep_ensemble`.
    rate : float
        Share of the units that is dropped.
    num_draws : int
        Networks drawn.

    Returns
    -------
    Predictive

    References
    ----------
    .. [1] Gal and Ghahramani, ICML 2016, arXiv:1506.02142.
    """
    layers = _fit(key, x, y, num_classes, width, depth, rate, num_epochs, batch, learning_rate, decay)
    test = jnp.asarray(x_test, jnp.result_type(float))
    forward = jax.jit(partial(_forward, layers, test, rate=rate))
    return _predictive([forward(k) for k in jax.random.split(name_key(key, "draws"), num_draws)], num_classes)
