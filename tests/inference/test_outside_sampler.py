"""A sampler from outside the package, in one file: random-walk Metropolis by the `Kernel` protocol and `run_chains`.

It has what every sampler of the package has: any model, named draws, reports, blocks, checkpoints. The posterior is
Gaussian and known; the key is fixed and tolerances are 4 standard errors (`assert_moments`).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from moments import assert_moments
from test_blackjax_samplers import COV, LINEAR, MEAN, X, Y, weights

from bayes_brg.inference import RunOptions, Target, chains, initial, prepare, run_chains
from bayes_brg.posterior import log_joint


class Walk(NamedTuple):
    """One chain."""

    key: jax.Array
    """Of the next step."""
    u: dict[str, jax.Array]
    """Site to unconstrained values."""
    value: jax.Array
    """Log density there, nats."""
    step_size: jax.Array
    count: jax.Array
    """Steps made."""


@dataclass(frozen=True)
class Metropolis:
    """Steps of N(0, ε²) in every unconstrained coordinate; ε is tuned to the acceptance in the warm-up."""

    target: Target
    warmup: int
    step_size: float
    accept_prob: float = 0.3
    pooled: ClassVar[bool] = False

    def begin(self, key, start, x, y):
        return Walk(key, start, self.target.log_density(start, x, y), jnp.asarray(self.step_size), jnp.asarray(0))

    def step(self, state, x, y):
        key, move_key, accept_key = jax.random.split(state.key, 3)
        flat, named = ravel_pytree(state.u)
        u = named(flat + state.step_size * jax.random.normal(move_key, flat.shape, flat.dtype))
        value = self.target.log_density(u, x, y)
        accept = jnp.exp(jnp.minimum(value - state.value, 0.0))
        good = jax.random.uniform(accept_key) < accept
        u, value = jax.tree.map(lambda new, old: jnp.where(good, new, old), (u, value), (state.u, state.value))
        tuned = state.step_size * jnp.exp((accept - self.accept_prob) / jnp.sqrt(1.0 + state.count))
        step_size = jnp.where(state.count < self.warmup, tuned, state.step_size)
        report = {"accept_prob": accept, "step_size": step_size, "diverging": ~jnp.isfinite(value)}
        return Walk(key, u, value, step_size, state.count + 1), report

    def position(self, state, x, y):
        return state.u


def metropolis(model, x, y, *, key, step_size: float = 0.5, init: Any = "auto", **options):
    target, x, y, key = prepare(model, x, y, key, "metropolis")
    run = RunOptions(**options)
    start = initial(target, key, x, y, run.num_chains, init)
    return run_chains(Metropolis(target, run.num_warmup, step_size), key, start, x, y, run, method="metropolis")


def walk(directory=None, **changes):
    options = dict(key=jax.random.key(2), num_warmup=500, num_samples=1500, thinning=20) | changes
    return metropolis(LINEAR, X, Y[:, :1], checkpoint=directory, **options)


def test_moments_of_a_known_posterior():
    post = walk()
    assert post.samples["w0"].shape == (4, 1500, 2, 1) and post.method == "metropolis"
    assert post.stats["accept_prob"].shape == (4, 1500) and 0.1 < np.mean(post.stats["accept_prob"]) < 0.5
    assert_moments(weights(post), MEAN[:, 0], COV)
    bound = LINEAR.bind(jnp.asarray(X))
    np.testing.assert_allclose(np.ravel(post.stats["log_joint"]), log_joint(bound, post.flat(), X, Y[:, :1]), rtol=2e-5)


def test_stopped_run_goes_on(tmp_path, monkeypatch):
    short = dict(num_warmup=15, num_samples=24, block_size=10, thinning=2)
    whole, true_block, calls = walk(**short), chains._block, []

    def block(*args):
        if len(calls) == 3:  # two blocks of warm-up, one of draws
            raise KeyboardInterrupt
        calls.append(1)
        return true_block(*args)

    monkeypatch.setattr(chains, "_block", block)
    with pytest.raises(KeyboardInterrupt):
        walk(tmp_path / "run", **short)
    monkeypatch.setattr(chains, "_block", true_block)
    resumed = walk(tmp_path / "run", **short)
    for s in whole.samples:
        np.testing.assert_array_equal(resumed.samples[s], whole.samples[s])
    np.testing.assert_array_equal(resumed.stats["step_size"], whole.stats["step_size"])
    with pytest.raises(ValueError, match="its settings is"):
        walk(tmp_path / "run", **short, step_size=0.4)


def test_thinning_keeps_every_third_transition():
    every, third = (walk(num_warmup=4, num_samples=60 // t, thinning=t).samples["w0"] for t in (1, 3))
    np.testing.assert_array_equal(third, every[:, 2::3])


def test_chains_in_threads_are_the_chains_of_a_sequence():
    short = dict(num_warmup=3, num_samples=7, thinning=2)
    one, other = (walk(chain_method=how, **short) for how in ("sequential", "threads"))
    for s in one.samples:
        np.testing.assert_allclose(other.samples[s], one.samples[s], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other.stats["log_joint"], one.stats["log_joint"], rtol=1e-5)


def test_run_options_are_checked_when_made():
    for wrong, message in (({"num_samples": 0}, "num_samples must be a whole number of at least 1, got 0"),
                           ({"num_warmup": -1}, "num_warmup"), ({"thinning": 1.5}, "thinning"),
                           ({"block_size": 0}, "block_size"), ({"chain_method": "processes"}, "chain_method")):
        with pytest.raises(ValueError, match=message):
            RunOptions(**wrong)
