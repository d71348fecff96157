"""Cost of flows along fibres: gradients a draw, time against gradients alone, growth; `pytest -s -m slow`.

Seconds are processor seconds of calls that compile nothing, so that a busy machine changes no ratio much.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

import bayes_brg as brg
from bayes_brg.flow.fibre import GROUP
from bayes_brg.flow.fibre_kernel import FibreSpec, fibre_of, walls, white

NOISE = 0.1


def problem(width=32, probe=100, num_members=GROUP):
    """The network of `models/deep_relu.py`, all of its layers flowing, and its metric."""
    net = brg.mlp((width,) * 3, activation="relu", weight_std=2**0.5, bias_std=0.1, likelihood=brg.gaussian(NOISE))
    x = random.normal(random.key(1), (50, 2))
    y = jnp.sin(2 * x[:, :1]) + 0.5 * x[:, 1:] + NOISE * random.normal(random.key(2), (50, 1))
    post = brg.ensemble(net, x, y, key=random.key(3), num_members=num_members, train="all", optimizer="adam",
                        objective="randomized_map", learning_rate=0.01, num_epochs=300, progress_bar=False)
    metric = brg.fisher(net, post, random.normal(random.key(4), (probe, 2)), kind="full", whiten=True)
    return net, post, metric


def flowed(net, post, metric, cutoffs, tolerance=0.1):
    """The flow, and processor seconds of a second one."""
    for _ in range(2):
        began = time.process_time()
        flow = brg.renormalize_fibre(net, post, metric, cutoffs=cutoffs, key=random.key(5), tolerance=tolerance,
                                     progress_bar=False)
        seconds = time.process_time() - began
    return flow, seconds


def gradient_seconds(post, metric, count=300):
    """Processor seconds of one gradient of one draw, in groups as the flow takes them, and nothing else."""
    spec, (own, shared) = FibreSpec(metric.geometry, False, 40), metric.arrays()
    theta = {s: post.flat()[s][:GROUP] for s in metric.bound.names}
    keys = random.split(random.key(0), GROUP)
    own = jax.tree.map(lambda a: a[:GROUP], own)
    fibres = jax.vmap(lambda *draw: fibre_of(spec, draw, shared))(own, theta, theta, keys)
    start = jax.vmap(lambda p: white(spec, p, shared, spec.moved))(theta)

    @jax.jit
    def many(z):
        def one(fibre, z):
            return walls(spec, fibre, z, jnp.float32(1.0), jnp.float32(1.0), shared)

        def body(_, z):
            return z + 1e-6 * jax.vmap(jax.grad(one, argnums=1))(fibres, z)

        return jax.lax.fori_loop(0, count, body, z)

    jax.block_until_ready(many(start))
    began = time.process_time()
    jax.block_until_ready(many(start))
    return (time.process_time() - began) / (count * GROUP)


@pytest.mark.slow
def test_time_against_gradients_alone():
    """At Λ = 1 of the deep relu network: the walk costs at most 1.3 times its gradients."""
    net, post, metric = problem(num_members=2 * GROUP)
    flow, seconds = flowed(net, post, metric, [1.0])
    alone = gradient_seconds(post, metric)
    total = float(flow.diagnostics["num_gradients"].sum())
    print(f"\n{total / post.size:.0f} gradients a draw of {1e6 * alone:.0f} µs; the flow takes {seconds:.2f} s, "
          f"{seconds / (total * alone):.2f} times that")
    assert seconds < 1.3 * total * alone


@pytest.mark.slow
def test_growth():
    """Gradients a draw along Λ and η, whose power is −½ in both where steps follow the walls; and with P and n."""
    rows = {}
    net, post, metric = problem()
    cutoffs = [0.3, 1.0, 3.0, 10.0]
    for tolerance in (0.4, 0.1):
        flow, _ = flowed(net, post, metric, cutoffs, tolerance)
        rows[f"η = {tolerance}"] = flow.diagnostics["num_gradients"].mean(("chain", "draw")).values
        assert abs(float(flow.diagnostics["angle"].mean()) - 1.2) < 0.1
    for name, options in (("width 64", {"width": 64}), ("50 probe inputs", {"probe": 50})):
        net, post, metric = problem(**options)
        flow, _ = flowed(net, post, metric, cutoffs)
        rows[name] = flow.diagnostics["num_gradients"].mean(("chain", "draw")).values
    print("\ngradients a draw at Λ =", cutoffs)
    for name, row in rows.items():
        print(f"{name:>16}", row.round().astype(int))
    slopes = [np.polyfit(np.log(cutoffs), np.log(rows[name]), 1)[0] for name in ("η = 0.4", "η = 0.1")]
    print("power of Λ:", np.round(slopes, 2), "of η:", np.round(np.log(rows["η = 0.1"] / rows["η = 0.4"])
                                                              / np.log(0.25), 2))
    assert all(-1 < slope < -0.25 for slope in slopes)
