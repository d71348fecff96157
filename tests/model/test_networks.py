import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import log_density
from scipy import stats

import bayes_brg as brg
from bayes_brg.model.cosnet import UniformBall

X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def forward(params, x, activations, scale):
    """The forward pass written out, with `scale(layer, fan_in)` the weight and bias factors."""
    h = np.asarray(x, np.float64)
    for layer, activation in enumerate([*activations, lambda z: z]):
        s, t = scale(layer, h.shape[1])
        h = s * h @ np.asarray(params[f"w{layer}"], np.float64)
        if f"b{layer}" in params:
            h = h + t * np.asarray(params[f"b{layer}"], np.float64)
        h = activation(h)
    return h


@pytest.mark.parametrize("scaling", ["fan_in", "ntk", "none"])
@pytest.mark.parametrize("bias_std", [None, 0.7])
def test_apply_is_the_written_out_forward_pass(scaling, bias_std, x64):
    net = brg.mlp((5, 4), out=2, activation=("tanh", "relu"), weight_std=1.3, bias_std=bias_std, scaling=scaling)
    params = brg.prior(net, X, key=jax.random.key(0), num_samples=1).draw(0, 0)

    def scale(layer, fan_in):
        return (1.3 / np.sqrt(fan_in), bias_std) if scaling == "ntk" else (1.0, 1.0)

    expected = forward(params, X, [np.tanh, lambda z: np.maximum(z, 0)], scale)
    np.testing.assert_allclose(net.apply(params, X), expected, rtol=1e-10)
    readout = np.concatenate([np.atleast_2d(params[s]) for s in net.readout_sites])
    np.testing.assert_allclose(net.design(params, X) @ readout, expected, rtol=1e-10)
    assert net.features(params, X).shape == (7, 4)


@pytest.mark.parametrize(("scaling", "std"), [("fan_in", 1.5 / np.sqrt(20)), ("ntk", 1.0), ("none", 1.5)])
def test_prior_has_the_scale_it_names(scaling, std):
    net = brg.mlp((20, 30), weight_std=1.5, bias_std=0.4, scaling=scaling)
    draws = brg.prior(net, X, key=jax.random.key(1), num_samples=40)
    w = np.ravel(draws.samples["w1"])
    # One test in 500 would fail by chance; the key is fixed.
    assert stats.kstest(w / std, "norm").pvalue > 2e-3
    assert stats.kstest(np.ravel(draws.samples["b1"]) / (1.0 if scaling == "ntk" else 0.4), "norm").pvalue > 2e-3


def test_per_layer_scales():
    net = brg.mlp((50,), weight_std=(1.0, 3.0), bias_std=(0.1, 0.2), scaling="none")
    draws = brg.prior(net, X, key=jax.random.key(2), num_samples=100)
    assert np.std(draws.samples["w1"]) == pytest.approx(3.0, rel=4 / np.sqrt(2 * 5000))
    assert np.std(draws.samples["b0"]) == pytest.approx(0.1, rel=4 / np.sqrt(2 * 5000))


def test_network_is_a_numpyro_model():
    net = brg.mlp((4,), out=1, likelihood=brg.gaussian(0.5))
    y = np.zeros(7, np.float32)
    trace = handlers.trace(handlers.seed(net, jax.random.key(0))).get_trace(X, y)
    assert [k for k, s in trace.items() if s["type"] == "sample" and not s["is_observed"]] == ["w0", "w1"]
    assert trace["phi"]["value"].shape == (7, 1)
    drawn = Predictive(net, num_samples=3)(jax.random.key(1), X)
    assert drawn["y"].shape == (3, 7, 1)
    params = {s: drawn[s][0] for s in ("w0", "w1")}
    joint, _ = log_density(net, (X, y), {}, params)
    expected = (stats.norm.logpdf(params["w0"], scale=1 / np.sqrt(3)).sum()
                + stats.norm.logpdf(params["w1"], scale=1 / np.sqrt(4)).sum()
                + stats.norm.logpdf(0.0, np.ravel(net.apply(params, X)), 0.5).sum())
    assert float(joint) == pytest.approx(expected, rel=1e-5)
    mcmc = numpyro.infer.MCMC(numpyro.infer.NUTS(net), num_warmup=5, num_samples=5, progress_bar=False)
    mcmc.run(jax.random.key(2), X, y)
    assert mcmc.get_samples()["w0"].shape == (5, 3, 4)


def test_cosnet_prior_and_features():
    net = brg.cosnet(400, 2, mass=1.5, radius=3.0, weight_std=2.0)
    draws = brg.prior(net, X[:, :2], key=jax.random.key(3), num_samples=20)
    radii = np.linalg.norm(np.asarray(draws.samples["b"]).reshape(-1, 2), axis=1)
    # Uniform in a disc: (r/R)² uniform. One test in 500 fails by chance.
    assert stats.kstest((radii / 3.0) ** 2, "uniform").pvalue > 2e-3
    assert stats.kstest(np.ravel(draws.samples["c"]) / (2 * np.pi) + 0.5, "uniform").pvalue > 2e-3
    params = draws.draw(1, 2)
    b, c, w = (np.asarray(params[s], np.float64) for s in "bcw")
    x = X[:, :2].astype(np.float64)
    expected = (np.cos(x @ b.T + c) / np.sqrt((b**2).sum(1) + 1.5**2)) @ w
    np.testing.assert_allclose(net.apply(params, X[:, :2]), expected, atol=1e-4)


def test_ball_transform_is_a_bijection(x64):
    """Its Jacobian against autodiff, and the log density a sampler sees integrates to one."""
    from numpyro.distributions.transforms import biject_to

    ball = UniformBall(1, 2, 3.0)
    transform = biject_to(ball.support)
    u = jnp.array([0.7, -1.1])
    point = transform(u)
    np.testing.assert_allclose(transform._inverse(point), u, rtol=1e-12)
    determinant = jnp.linalg.slogdet(jax.jacobian(transform)(u))[1]
    assert float(transform.log_abs_det_jacobian(u, point)) == pytest.approx(float(determinant), rel=1e-12)
    r = np.linspace(0, 200, 200_001)  # ∫ 2πr exp(log p + log |J|) dr = 1 − O(R⁻²)
    grid = jnp.stack([jnp.asarray(r), 0 * r], axis=1)
    density = np.exp(ball.log_prob(transform(grid)[:1])[0] + transform.log_abs_det_jacobian(grid, transform(grid)))
    assert np.trapezoid(2 * np.pi * r * density, r) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(("arguments", "match"), [
    ({"hidden": (3, 0)}, "hidden width"),
    ({"hidden": (3,), "activation": "rleu"}, "did you mean 'relu'"),
    ({"hidden": (3,), "activation": ("relu", "relu")}, "2 entries but there are 1 hidden"),
    ({"hidden": (3,), "weight_std": -1.0}, "weight_std"),
    ({"hidden": (3,), "weight_std": (1.0, 2.0, 3.0)}, "3 entries but the network has 2 layers"),
    ({"hidden": (3,), "scaling": "ntkk"}, "did you mean 'ntk'"),
    ({"hidden": (3,), "likelihood": brg.categorical()}, "out >= 2"),
    ({"hidden": (3,), "out": 0}, "out"),
])
def test_bad_networks_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        brg.mlp(**arguments)


def test_unknown_keyword_is_refused():
    with pytest.raises(TypeError, match="widths"):
        brg.mlp(widths=(3,))
    with pytest.raises(TypeError, match="brg.gaussian"):
        brg.mlp((3,), likelihood="gaussian")


def test_bad_inputs_are_refused():
    net = brg.mlp((3,))
    with pytest.raises(ValueError, match=r"x\[:, None\]"):
        brg.prior(net, X[:, 0], key=jax.random.key(0))
    bad = X.copy()
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"x\[2, 1\] is nan"):
        brg.prior(net, bad, key=jax.random.key(0))
    with pytest.raises(ValueError, match="dim=2"):
        brg.prior(brg.cosnet(3, 2, 1.0, 1.0), X, key=jax.random.key(0))
    with pytest.raises(TypeError, match="jax.random.key"):
        brg.prior(net, X, key=0)
