"""Networks from outside the package, whose layers do not see one row a datum: the right metric both ways."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import bayes_brg as brg
from bayes_brg.model.networks import Network, dense


@dataclass(frozen=True)
class Patches(Network):
    """A convolution written as patches: one dense layer over windows of the input, their mean the features."""

    window: int = 2
    width: int = 3
    flat: bool = True
    hidden: bool = True

    @property
    def outputs(self):
        return 1

    @property
    def readout(self):
        return "v"

    @property
    def dense_sites(self):
        return ("w", "b", "v")

    def priors(self, dim):
        fan_in = self.window if self.hidden else dim
        return {"w": dist.Normal(jnp.zeros((fan_in, self.width)), 1.0).to_event(2),
                "b": dist.Normal(jnp.zeros(self.width), 1.0).to_event(1),
                "v": dist.Normal(jnp.zeros((self.width, 1)), 1.0).to_event(2)}

    def features(self, params, x, dense=dense):
        places = x.shape[1] - self.window + 1
        patches = jnp.stack([x[:, i:i + self.window] for i in range(places)], axis=1)  # (n, place, window)
        if self.flat:
            h = jnp.tanh(dense(params, patches.reshape(-1, self.window), "w", "b"))
            h = h.reshape(x.shape[0], places, self.width)
        else:
            h = jnp.tanh(dense(params, patches, "w", "b"))
        return h.sum(1)


@dataclass(frozen=True)
class Skip(Patches):
    """A layer whose weights enter a second time, past the dense primitive."""

    hidden: bool = False

    def features(self, params, x, dense=dense):
        return jnp.tanh(dense(params, x, "w", "b")) + 0.3 * x[:, :1] * params["w"].sum(0)


@dataclass(frozen=True)
class Twice(Patches):
    """Weights shared by two calls of the dense primitive."""

    hidden: bool = False

    def features(self, params, x, dense=dense):
        return jnp.tanh(dense(params, x, "w", "b")) * dense(params, x**2, "w", "b")


@dataclass(frozen=True)
class Plain(Patches):
    """The same sites, each entering once, one row a datum."""

    hidden: bool = False

    def features(self, params, x, dense=dense):
        return jnp.tanh(dense(params, x, "w", "b"))


NETS = {"patches": Patches(), "patches, three axes": Patches(flat=False), "skip": Skip(), "twice": Twice(),
        "plain": Plain()}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_network_and_general_model_agree(x64, name, likelihood):
    """Every kind, float64, against J F Jᵀ from the definition."""
    made = {"gaussian": brg.gaussian(0.7), "bernoulli": brg.bernoulli()}[likelihood]
    net = type(NETS[name])(likelihood=made, flat=NETS[name].flat)
    x = jax.random.normal(jax.random.key(0), (5, 4))
    params = brg.prior(net, x, key=jax.random.key(1), num_samples=1).draw(0, 0)
    sites, sizes = list(params), [params[s].size for s in params]

    def phi(vector):
        parts = dict(zip(sites, jnp.split(vector, np.cumsum(sizes)[:-1]), strict=True))
        return net.apply({s: parts[s].reshape(params[s].shape) for s in sites}, x)[:, 0]

    vector = jnp.concatenate([params[s].ravel() for s in sites])
    jacobian = np.asarray(jax.jacobian(phi)(vector))
    out = np.asarray(net.likelihood.fisher(net.apply(params, x)))[:, 0, 0]
    right = (jacobian.T * out) @ jacobian / len(x)
    diagonal = brg.fisher(net, None, x, at=params)
    assert diagonal.geometry.layered == (name == "plain")
    np.testing.assert_allclose(np.concatenate([np.ravel(diagonal.stiffness[s]) for s in sites]), np.diag(right),
                               rtol=1e-10)
    values = np.linalg.eigvalsh(right)[::-1]
    for kind in ("full", "lowrank"):
        found = brg.fisher(net, None, x, kind, at=params, rank=4).eigenvalues
        np.testing.assert_allclose(found[:4], values[:4], rtol=1e-10)
    block = brg.fisher(net, None, x, "block", at=params).eigenvalues["w"]
    start = int(np.sum(sizes[:sites.index("w")]))
    own = np.linalg.eigvalsh(right[start:start + params["w"].size, start:start + params["w"].size])[::-1]
    count = min(len(own), len(block))
    np.testing.assert_allclose(block[:count], own[:count], rtol=1e-10, atol=1e-12 * own[0])


def centred(x, y=None):
    b = numpyro.sample("b", dist.Normal(0, 1).expand([4]).to_event(1))
    numpyro.sample("y", dist.Normal((x - x.mean(0)) @ b, 1.0), obs=y)


def counted(x, y=None):
    b = numpyro.sample("b", dist.Normal(0, 1).expand([4]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ b, 1.0 / x.shape[0]), obs=y)


@dataclass(frozen=True)
class BatchNorm(Patches):
    hidden: bool = False

    def features(self, params, x, dense=dense):
        h = dense(params, x, "w", "b")
        return jnp.tanh((h - h.mean(0)) / (h.std(0) + 1e-3))


@pytest.mark.parametrize("model", [centred, counted, BatchNorm()], ids=["centred", "counted", "batch norm"])
def test_models_whose_data_depend_on_each_other_are_refused(model):
    """Never zeros: the metric of one datum by itself would be none at all."""
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    at = {"w": np.full((4, 3), 0.3), "b": np.full(3 if isinstance(model, BatchNorm) else 4, 0.5), "v": np.ones((3, 1))}
    at = at if isinstance(model, BatchNorm) else {"b": at["b"]}
    with pytest.raises(ValueError, match="depends on the other data"):
        brg.fisher(model, None, x, at=at)
    with pytest.raises(ValueError, match="depends on the other data"):
        brg.laplace(model, x, np.zeros(8), key=jax.random.key(1), params=at, num_samples=4, progress_bar=False)
