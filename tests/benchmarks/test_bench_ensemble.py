"""What the closed-form ensemble and its flow cost, against stepping in the same run.

    python -m pytest -m slow -s tests/benchmarks/test_bench_ensemble.py
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayes_brg as brg

pytestmark = pytest.mark.slow
NET = brg.mlp((10, 10, 2048), activation=("identity", "relu", "relu"), scaling="none")
CUTOFFS = np.r_[0.0, np.geomspace(1e-4, 1e5, 24)]


def data(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    x, x_test, probe = (jax.random.normal(k, (200, 2)) for k in keys)
    def target(x):
        return (1 - x[:, 0]) ** 2 - 0.5 * (x[:, 1] - x[:, 0] ** 2)
    return x, target(x), x_test, target(x_test), probe


def seconds(fn):
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


@jax.jit
def step_by_step(h, y, w):
    """1000 epochs of per-sample descent on precomputed features: the fastest honest loop."""
    def step(w, row):
        h_i, y_i = row
        return w + 2e-6 * (y_i - h_i @ w) * h_i, None
    return jax.lax.scan(lambda w, _: (jax.lax.scan(step, w, (h, y))[0], None), w, None, length=1000)[0]


def test_closed_form_descent_against_the_loop():
    """At least 100 times the network's own step-by-step training, and the factor to a loop on ready features."""
    x, y, *_ = data(0)
    common = dict(key=jax.random.key(1), progress_bar=False)
    members = 128

    def all_members():
        return brg.ensemble(NET, x, y, num_members=members, **common).samples
    all_members()  # compiles
    closed = min(seconds(all_members) for _ in range(3)) / members
    params = brg.prior(NET, x, key=jax.random.key(1), num_samples=1).draw(0, 0)
    h, w = NET.features(params, x), params["w3"][:, 0]
    step_by_step(h, y, w)
    loop = min(seconds(lambda: step_by_step(h, y, w)) for _ in range(2))

    def step_the_network():
        return brg.ensemble(NET, x, y, num_members=1, solver="stepping", **common).samples
    step_the_network()
    stepping = min(seconds(step_the_network) for _ in range(3))
    print(f"\nper member: closed form {closed * 1e3:.1f} ms, stepping the network {stepping:.2f} s "
          f"({stepping / closed:.0f}×), a loop on ready features {loop:.2f} s ({loop / closed:.0f}×)")
    assert stepping / closed > 100


def test_the_whole_experiment():
    """Training, Fisher, 25 cutoffs and summary of 1,000 members, after compilation; aim: 20 s on two cores."""
    def run(members, seed):
        x, y, x_test, y_test, probe = data(seed)
        e = brg.ensemble(NET, x, y, key=jax.random.key(seed), num_members=members, learning_rate=1e-6,
                         progress_bar=False)
        metric = brg.fisher(NET, e, probe, progress_bar=False)
        flow = brg.renormalize(NET, e, metric, cutoffs=CUTOFFS, key=jax.random.key(seed))
        loss, phi = flow.loss(x_test, y_test, progress_bar=False), flow.predict(x_test[:1], progress_bar=False)
        brg.critical_scale(loss)
        return jnp.asarray(phi.values)
    run(1000, 0)
    total = seconds(lambda: run(1000, 1))
    x, y, *_ = data(0)
    params = brg.prior(NET, x, key=jax.random.key(1), num_samples=1).draw(0, 0)
    h, w = NET.features(params, x), params["w3"][:, 0]
    step_by_step(h, y, w)
    loop = seconds(lambda: step_by_step(h, y, w))
    print(f"\n1,000 members, all of it: {total:.1f} s, {total:.1f} ms a member; a loop for one member takes "
          f"{loop:.2f} s, {loop / (total / 1000):.0f}×")
    assert loop / (total / 1000) > 20


def test_a_continuous_flow_costs_little_more_than_one_cutoff():
    """2,048 cutoffs at most 20 times one cutoff's predictions, and 100 times less than one call each."""
    x, y, x_test, _, probe = data(0)
    post = brg.readout_posterior(NET, x, y, key=jax.random.key(1), num_samples=64, progress_bar=False)
    metric = brg.fisher(NET, post, probe, progress_bar=False)
    flow = brg.renormalize(NET, post, metric, cutoffs=[0.0, 1.0], key=jax.random.key(2))
    every = np.unique(np.quantile(metric.values(), np.linspace(0, 1, 2048)))

    def one():
        return flow.loss(x_test, x_test[:, 0], cutoffs=[1.0], progress_bar=False).values

    def many():
        return flow.loss(x_test, x_test[:, 0], cutoffs=every, progress_bar=False).values
    one(), many()
    a = min(seconds(one) for _ in range(5))
    b = min(seconds(many) for _ in range(5))
    print(f"\none cutoff {a * 1e3:.0f} ms, {len(every)} cutoffs {b * 1e3:.0f} ms: {b / a:.1f} times one, "
          f"{len(every) * a / b:.0f} times less than a call each")
    assert b < 20 * a
    assert b < len(every) * a / 100
