import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayes_brg as brg

X = np.random.default_rng(2).normal(size=(9, 2)).astype(np.float32)
NET = brg.mlp((6, 5), out=2, activation="tanh", bias_std=0.3)
KEY = jax.random.key(11)


def test_prior_draws_do_not_depend_on_their_number():
    few, many = brg.prior(NET, X, key=KEY, num_samples=6), brg.prior(NET, X, key=KEY, num_samples=50)
    for site, draws in few.flat().items():
        np.testing.assert_array_equal(draws, many.flat()[site][:6])
    assert (few.num_chains, few.num_draws) == (3, 2)  # the largest divisor of 6 not above 4
    assert few.stats["independent"] is True
    assert few.stats["log_joint"].shape == (3, 2)


def test_predict_is_apply_and_does_not_depend_on_the_batch():
    draws = brg.prior(NET, X, key=KEY, num_samples=12)
    phi = brg.predict(NET, draws, X)
    assert phi.shape == (4, 3, 9, 2)
    for batch_size in (1, 5, 12):
        np.testing.assert_allclose(brg.predict(NET, draws, X, batch_size=batch_size), phi, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(phi[2, 1], NET.apply(draws.draw(2, 1), X), rtol=1e-5, atol=1e-6)


def test_inputs_as_rows_in_lists():
    net = brg.mlp((3,))
    draws = brg.prior(net, [[0.0, 1.0]], key=jax.random.key(0), num_samples=4)
    rows = [[0.0, 1.0], [2.0, -1.0]]
    np.testing.assert_array_equal(brg.predict(net, draws, rows), brg.predict(net, draws, np.array(rows)))
    with pytest.raises(ValueError, match="rows differ in length"):
        brg.predict(net, draws, [[0.0, 1.0], [2.0]])
    with pytest.raises(ValueError, match=r"x\[1, 0\] is nan"):
        brg.predict(net, draws, [[0.0, 1.0], [np.nan, 1.0]])


def test_wrapping_anybodys_draws():
    posterior = brg.Posterior(samples={"w0": np.zeros((2, 5, 3))})
    assert (posterior.num_chains, posterior.num_draws, posterior.trained) == (2, 5, ("w0",))
    with pytest.raises(ValueError, match="chain, draw"):
        brg.Posterior(samples={"w0": np.zeros(3)})
    with pytest.raises(ValueError, match=r"\(2, 4\), the others \(2, 5\)"):
        brg.Posterior(samples={"a": np.zeros((2, 5)), "b": np.zeros((2, 4))})
    with pytest.raises(ValueError, match="unknown site"):
        brg.Posterior(samples={"a": np.zeros((2, 5))}, trained=("b",))
    with pytest.raises(ValueError, match="lacks the site"):
        brg.predict(NET, posterior, X)
    with pytest.raises(ValueError, match="log_joint"):
        posterior.mode()


def test_wrong_shapes_are_named():
    draws = brg.prior(NET, X, key=KEY, num_samples=4)
    with pytest.raises(ValueError, match=r"'w0' has shape \(2, 6\) per draw, the model expects \(3, 6\)"):
        brg.predict(NET, draws, np.zeros((4, 3)))


def test_mode_is_the_most_probable_draw():
    draws = brg.prior(NET, X, key=KEY, num_samples=8)
    best = np.unravel_index(np.argmax(draws.stats["log_joint"]), (4, 2))
    np.testing.assert_array_equal(draws.mode()["w0"], draws.samples["w0"][best])


def test_draws_without_a_density_are_no_mode():
    draws = brg.prior(NET, X, key=KEY, num_samples=8)
    for value in (np.nan, np.inf, -np.inf):
        scores = np.arange(8.0).reshape(4, 2)
        scores[0, 0] = scores[3, 1] = value  # the last would be the largest
        mode = draws.replace(stats={"log_joint": scores}).mode()
        np.testing.assert_array_equal(mode["w0"], draws.samples["w0"][3, 0])
    with pytest.raises(ValueError, match=r"of this posterior \(prior\) is finite at no draw"):
        draws.replace(stats={"log_joint": np.full((4, 2), np.nan)}).mode()


def test_draws_shard_over_devices():
    """On two devices the same draws, bit for bit, and the same outputs to rounding."""
    code = """
import jax, numpy as np, bayes_brg as brg
assert jax.local_device_count() == 2
x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)
net = brg.mlp((6, 5), out=2, activation="tanh", bias_std=0.3)
draws = brg.prior(net, x, key=jax.random.key(11), num_samples=7)
print(repr(np.asarray(draws.samples["w1"]).tobytes().hex()), repr(np.asarray(brg.predict(net, draws, x)).tolist()))
"""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    bits, values = run.stdout.split(" ", 1)
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)
    draws = brg.prior(NET, x, key=KEY, num_samples=7)
    assert bits.strip("'") == np.asarray(draws.samples["w1"]).tobytes().hex()
    np.testing.assert_allclose(np.array(eval(values)), brg.predict(NET, draws, x), rtol=1e-5, atol=1e-6)


def test_float64_where_asked(x64):
    draws = brg.prior(NET, X, key=KEY, num_samples=4)
    assert draws.samples["w0"].dtype == jnp.float64
    assert brg.predict(NET, draws, np.asarray(X, np.float64)).dtype == jnp.float64
