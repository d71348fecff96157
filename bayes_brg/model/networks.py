"""Architectures as NumPyro models: dense networks and cos-nets, with their priors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions.transforms import biject_to

from ..core.arrays import check_array
from ..core.checks import check_choice, check_count
from ..core.keys import name_key
from ..core.programs import depends
from .bound import BoundModel, Params, Site
from .distributions import unwrap
from .hyperpriors import Hyperprior, number_or_law
from .likelihoods import Likelihood, gaussian
from .normal_maps import from_normal
from .readout import LinearReadout

__all__ = ["MLP", "BoundNetwork", "Network", "dense", "mlp"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda z: z,
    "relu": jax.nn.relu,
    "erf": jax.scipy.special.erf,
    "tanh": jnp.tanh,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "cos": jnp.cos,
    "sin": jnp.sin,
}
OBSERVED = "y"


def dense(params: Params, x: jax.Array, weight: str, bias: str | None = None, scale: float = 1.0,
          bias_scale: float = 1.0) -> jax.Array:
    """The dense primitive: ``scale · x params[weight] + bias_scale · params[bias]``.

    Names and scales go in, so that a stand-in can record the layer's input and cotangent (the exact Fisher diagonal,
    theory §1) and square the scales too.
    """
    out = x @ params[weight]
    out = out if scale == 1.0 else out * scale
    if bias is None:
        return out
    return out + (params[bias] if bias_scale == 1.0 else params[bias] * bias_scale)


@dataclass(frozen=True)
class Network:
    """A NumPyro model ``net(x, y=None)`` that also knows its forward pass and its linear readout.

    Subclasses give `priors` and `features`. Parameters are dicts of named arrays.

    Attributes
    ----------
    likelihood : Likelihood
        The observation model around the output.
    """

    likelihood: Likelihood = field(default_factory=gaussian)

    def priors(self, dim: int) -> dict[str, dist.Distribution]:
        """Prior of each weight for inputs of `dim` coordinates; where its scale is learned, at a scale of 1."""
        raise NotImplementedError

    def hyperpriors(self, dim: int) -> dict[str, tuple[Hyperprior, tuple[int, ...]]]:
        """Prior and shape of each site that is no weight: scales that are learned, and what the likelihood learns."""
        return self.likelihood.hyperpriors(self.outputs)

    def parents(self) -> dict[str, tuple[str, ...]]:
        """The learned scales of each weight that has any."""
        return {}

    def multipliers(self, params: Params) -> dict[str, jax.Array]:
        """What the prior scale of each weight is multiplied by whose scales are all in `params`; it broadcasts against
        the weight."""
        return {}

    def features(self, params: Params, x: jax.Array, dense: Callable = dense) -> jax.Array:
        """Input of the readout, shape (n, width), scaled so that φ = features @ readout (+ bias)."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        raise NotImplementedError

    @property
    def readout(self) -> str:
        """Name of the site of readout weights, shape (width, outputs)."""
        raise NotImplementedError

    @property
    def readout_bias(self) -> str | None:
        """Name of the site of readout biases, or None."""
        return None

    @property
    def readout_sites(self) -> tuple[str, ...]:
        """The sites in which the output is linear."""
        return (self.readout,) if self.readout_bias is None else (self.readout, self.readout_bias)

    def readout_gains(self, fan_in: int) -> tuple[float, ...]:
        """What the forward pass multiplies each readout site by."""
        return (1.0,) * len(self.readout_sites)

    @property
    def dense_sites(self) -> tuple[str, ...]:
        """The sites that enter through the dense primitive alone."""
        return self.readout_sites

    @property
    def foreign(self) -> bool:
        """Whether any of it was written outside of this package, so that it is looked at as any model is."""
        own = __name__.partition(".")[0]
        return any(type(part).__module__.partition(".")[0] != own for part in (self, self.likelihood))

    def design(self, params: Params, x: jax.Array) -> jax.Array:
        """Matrix H, shape (n, width [+ 1]), with φ = H · [readout; bias]."""
        h = self.features(params, x)
        return h if self.readout_bias is None else jnp.concatenate([h, jnp.ones_like(h[:, :1])], axis=1)

    def apply(self, params: Params, x: jax.Array, dense: Callable = dense) -> jax.Array:
        """Output φ_θ(x), shape (n, outputs)."""
        return dense(params, self.features(params, x, dense), self.readout, self.readout_bias)

    def __call__(self, x: jax.Array, y: jax.Array | None = None) -> jax.Array:
        x = self._check_x(x)
        dim = x.shape[1]
        params = {name: numpyro.sample(name, law.repeated(*shape))
                  for name, (law, shape) in self.hyperpriors(dim).items()}
        for name, prior in scaled(self.priors(dim), self.multipliers(params)).items():
            params[name] = numpyro.sample(name, prior)
        phi = numpyro.deterministic("phi", self.apply(params, x))
        y = None if y is None else self.likelihood.targets(y, self.outputs)
        return numpyro.sample(OBSERVED, self.likelihood.given(params).distribution(phi), obs=y)

    def _check_x(self, x: jax.Array) -> jax.Array:
        x = x if isinstance(x, jax.Array) else check_array(x, "x", finite=False)
        if x.ndim != 2:
            raise ValueError(f"x has shape {x.shape}; a network takes (n, dim): write x[:, None] for one coordinate "
                             "or x[None] for one point")
        return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))

    def bind(self, x: jax.Array) -> BoundNetwork:
        """The network as a bound model for inputs of this dimension."""
        return _bound(self, self._check_x(x).shape[1])


def scaled(priors: dict[str, dist.Distribution], by: Params) -> dict[str, dist.Distribution]:
    """Gaussian priors with their scales multiplied by what `by` has for them; the others as they are."""
    out = dict(priors)
    for name, factor in by.items():
        base = unwrap(priors[name])
        wide = dist.Normal(base.loc, base.scale * factor, validate_args=False)
        out[name] = wide.to_event(len(wide.batch_shape))
    return out


@lru_cache(maxsize=256)
def _bound(network: Network, dim: int) -> BoundNetwork:
    """A network at an input dimension: found again, since making a prior costs as much as a small forward pass."""
    laws = {name: law.repeated(*shape) for name, (law, shape) in network.hyperpriors(dim).items()}
    sites = tuple(Site(name, tuple(d.batch_shape + d.event_shape), d.support, d.event_dim)
                  for name, d in {**laws, **network.priors(dim)}.items())
    return BoundNetwork(network, sites, OBSERVED, network.likelihood, dim=dim)


@dataclass(frozen=True)
class BoundNetwork(BoundModel):
    """A `Network` at a given input dimension: the fast way through `BoundModel`'s questions."""

    dim: int = 0

    @property
    def network(self) -> Network:
        return self.fn  # type: ignore[return-value]

    # -- its sites: scales that are learned first, then weights, given these -------------------------------
    @cached_property
    def _hyper(self) -> dict[str, Hyperprior]:
        return {s: law for s, (law, _) in self.network.hyperpriors(self.dim).items()}

    def _laws(self) -> dict[str, dist.Distribution]:
        return {s: law.repeated(*shape) for s, (law, shape) in self.network.hyperpriors(self.dim).items()}

    def _priors(self, params: Params) -> dict[str, dist.Distribution]:
        """Prior of each weight given the scales in `params`."""
        return scaled(self.network.priors(self.dim), self.network.multipliers(params))

    # -- what it knows of itself --------------------------------------------------------------------------
    @cached_property
    def readout(self):
        network = self.network
        shapes = tuple(self.site(s).shape for s in network.readout_sites)
        hidden = tuple(s for s in self.names if s not in network.readout_sites)
        return LinearReadout(
            network.readout_sites, shapes, hidden, tuple(self.site(s).shape for s in hidden), network.outputs,
            network.design, self._priors, network.likelihood, network.readout_gains(shapes[0][0]),
        )

    @property
    def familiar(self):
        return True

    def white(self, sites):
        priors, parents = self.network.priors(self.dim), self.network.parents()
        return all(s in priors and _is_normal(priors[s]) and not set(parents.get(s, ())) & set(sites) for s in sites)

    def hyperparameters(self, x):
        return tuple(self._hyper)

    def layered(self, sites):
        return set(sites) <= set(self.network.dense_sites) and set(sites) <= self._once

    @cached_property
    def _once(self) -> frozenset[str]:
        """Sites that enter through the dense primitive alone, once, with one row a datum: by tracing the forward pass.

        Where a layer sees other rows (a convolution as patches, positions that share weights) the gradient of a datum
        is a sum over its rows, which comes before any square or product.
        """
        seen: list[str] = []
        params = {site.name: jax.ShapeDtypeStruct(site.shape, jnp.float32) for site in self.sites}
        for n in (1, 3):
            def recording(params, h, weight, bias=None, scale=1.0, bias_scale=1.0, n=n):
                named = [s for s in (weight, bias) if s is not None]
                seen.extend(named if h.ndim == 2 and h.shape[0] == n else 2 * named)
                return dense(params, h, weight, bias, scale, bias_scale)

            x = jax.ShapeDtypeStruct((n, self.dim), jnp.float32)
            jax.eval_shape(lambda p, x, recording=recording: self.network.apply(p, x, recording), params, x)

        def without(params, h, weight, bias=None, scale=1.0, bias_scale=1.0):
            return jnp.zeros((*h.shape[:-1], params[weight].shape[1])) + jnp.sum(h)

        def elsewhere(site):
            rest = {s: np.zeros(p.shape, jnp.result_type(float)) for s, p in params.items()}
            return depends(lambda v: [self.network.apply({**rest, site: v}, jnp.zeros((3, self.dim)), without)],
                           rest[site])[0]

        return frozenset(s for s in set(seen) if seen.count(s) == 2 and not elsewhere(s))

    def apply(self, params, x, dense):
        return self.network.apply(params, x, dense)

    # -- one parameter draw -------------------------------------------------------------------------------
    def phi(self, params, x):
        return self.network.apply(params, x)

    def distribution(self, params, x):
        return self.likelihood_at(params).distribution(self.phi(params, x))

    def gauged(self, phi, x):
        return self.network.likelihood.gauged(phi)

    def log_likelihood(self, params, x, y):
        return self.likelihood_at(params).log_prob(self.phi(params, x), y)

    def loss(self, params, x, y):
        return self.likelihood_at(params).loss(self.phi(params, x), y)

    def log_prior(self, params, x=None):
        terms = [jnp.sum(d.log_prob(params[s])) for s, d in self.priors(params, x).items()]
        return sum(terms, start=jnp.zeros(()))

    def log_factors(self, params, x, y=None):
        return jnp.zeros(())

    def log_joint(self, params, x, y):
        return self.log_prior(params) + jnp.sum(self.log_likelihood(params, x, y))

    def draw_prior(self, key, x=None, given=None, sites=None):
        wanted = self.names if sites is None else sites
        parents = {p for s in wanted for p in self.network.parents().get(s, ())}
        found = dict(given or {})
        for s, law in self._laws().items():
            if s not in found and (s in wanted or s in parents):
                found[s] = law.sample(name_key(key, s))
        for s, law in (self._priors(found) if parents else self.network.priors(self.dim)).items():
            if s not in found and s in wanted:
                found[s] = law.sample(name_key(key, s))
        return {s: found[s] for s in wanted}

    def priors(self, params, x=None):
        return {**self._laws(), **self._priors(params)}

    def prior_mean(self, x, given, sites):
        laws = self._laws()
        found = {s: given[s] if s in given else law.mean for s, law in laws.items() if s in given or s in sites}
        known = {s: p.mean for s, p in self.network.priors(self.dim).items()}  # whatever their scales
        return {s: jnp.broadcast_to({**known, **found}[s], self.site(s).shape) for s in sites}

    # -- unconstrained coordinates: whitened by the prior, given its scales, where it is Gaussian -----------
    def scales(self, sites):
        priors = self._priors({s: jnp.ones(self.site(s).shape) for s in self._hyper})
        return {s: unwrap(priors[s]).scale if s in priors and _is_normal(priors[s]) else 1.0 for s in sites}

    def constrain(self, u, x=None, y=None):
        found = {s: law.constrain(u[s]) for s, law in self._hyper.items() if s in u}
        priors = self._priors(found).items()
        return found | {s: unwrap(p).loc + unwrap(p).scale * u[s] if _is_normal(p) else biject_to(p.support)(u[s])
                        for s, p in priors if s in u}

    def unconstrain(self, params, x=None, y=None):
        found = {s: law.unconstrain(params[s]) for s, law in self._hyper.items() if s in params}
        priors = self._priors(params).items()
        return found | {s: (params[s] - unwrap(p).loc) / unwrap(p).scale if _is_normal(p)
                        else biject_to(p.support).inv(params[s]) for s, p in priors if s in params}

    def from_normal(self, z, given, x=None):
        found = {s: from_normal(law, z[s]) if s in z else given[s] for s, law in self._laws().items()}
        return found | {s: from_normal(p, z[s]) if s in z else given[s] for s, p in self._priors(found).items()}

    def log_prior_of(self, u, x=None, y=None):
        terms = [jnp.sum(law.log_density(u[s])) for s, law in self._hyper.items() if s in u]
        for s, p in self.network.priors(self.dim).items():
            if s not in u:
                continue
            if _is_normal(p):
                terms.append(-0.5 * jnp.sum(u[s] ** 2) - 0.5 * u[s].size * math.log(2 * math.pi))
                continue
            t = biject_to(p.support)
            value = t(u[s])
            terms.append(jnp.sum(p.log_prob(value)) + jnp.sum(t.log_abs_det_jacobian(u[s], value)))
        return sum(terms, start=jnp.zeros(()))

    def log_density_of(self, u, x, y):
        return self.log_prior_of(u) + jnp.sum(self.log_likelihood(self.constrain(u), x, y))

    # -- targets, structure -------------------------------------------------------------------------------
    def targets(self, y: Any, outputs: int | None = None):
        return self.network.likelihood.targets(y, self.network.outputs)

    def parents(self, x=None):
        found = self.network.parents()
        return {s: found.get(s, ()) for s in self.names}


def _is_normal(prior: dist.Distribution) -> bool:
    return isinstance(unwrap(prior), dist.Normal)


# -- dense networks -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MLP(Network):
    """A dense network; make one with `mlp`."""

    widths: tuple[int, ...] = ()
    out: int = 1
    activation: tuple[str | Callable, ...] = ()
    weight_std: tuple[float | Hyperprior, ...] = ()
    bias_std: tuple[float | Hyperprior, ...] | None = None
    scaling: str = "fan_in"
    relevance: Hyperprior | None = None

    @property
    def outputs(self) -> int:
        return self.out

    @property
    def foreign(self) -> bool:
        return super().foreign or any(callable(a) for a in self.activation)

    @property
    def depth(self) -> int:
        """Number of hidden layers."""
        return len(self.widths)

    @property
    def readout(self) -> str:
        return f"w{self.depth}"

    @property
    def readout_bias(self) -> str | None:
        return None if self.bias_std is None else f"b{self.depth}"

    @property
    def dense_sites(self) -> tuple[str, ...]:
        letters = "w" if self.bias_std is None else "wb"
        return tuple(f"{letter}{layer}" for layer in range(self.depth + 1) for letter in letters)

    def _stds(self) -> dict[str, tuple[str, float | Hyperprior]]:
        """Of each weight: the name that its scale has where it is learned, and the scale."""
        found = {f"w{layer}": (f"scale{layer}", std) for layer, std in enumerate(self.weight_std)}
        return found | {f"b{layer}": (f"bias_scale{layer}", std) for layer, std in enumerate(self.bias_std or ())}

    def priors(self, dim: int) -> dict[str, dist.Distribution]:
        sizes, priors, stds = (dim, *self.widths, self.out), {}, self._stds()
        zero = np.zeros((), jnp.result_type(float))  # one number, seen in every shape: JAX would compile each array
        for layer, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            for site, shape in ((f"w{layer}", (fan_in, fan_out)), (f"b{layer}", (fan_out,))):
                if site not in stds:
                    continue
                std = stds[site][1]
                std = 1.0 if self.scaling == "ntk" or isinstance(std, Hyperprior) else std
                std = std / math.sqrt(fan_in) if self.scaling == "fan_in" and len(shape) == 2 else std
                priors[site] = dist.Normal(np.broadcast_to(zero, shape), std, validate_args=False).to_event(len(shape))
        return priors

    def hyperpriors(self, dim: int) -> dict[str, tuple[Hyperprior, tuple[int, ...]]]:
        found, heads = {}, len(self.likelihood.heads(self.out))
        for site, (name, std) in self._stds().items():
            if isinstance(std, Hyperprior):
                found[name] = std, (heads,) if heads > 1 and site in self.readout_sites else ()
        if self.relevance is not None:
            found["relevance"] = self.relevance, (dim,)
        return found | self.likelihood.hyperpriors(self.out)

    def parents(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {site: (name,) for site, (name, std) in self._stds().items()
                                             if isinstance(std, Hyperprior)}
        return found if self.relevance is None else {**found, "w0": (*found.get("w0", ()), "relevance")}

    def multipliers(self, params: Params) -> dict[str, jax.Array]:
        found = {}
        for site, names in self.parents().items():
            if not set(names) <= set(params):
                continue
            factors = []
            for name in names:
                factor = params[name]
                if name == "relevance":
                    factor = jnp.asarray(factor)[..., None]
                elif site in self.readout_sites and jnp.ndim(factor):
                    factor = jnp.repeat(factor, np.asarray(self.likelihood.heads(self.out)), axis=0,
                                        total_repeat_length=self.out)
                factors.append(factor)
            found[site] = math.prod(factors)
        return found

    def _scales(self, layer: int, fan_in: int) -> tuple[float, float]:
        if self.scaling != "ntk":
            return 1.0, 1.0
        weight, bias = self.weight_std[layer], self.bias_std[layer] if self.bias_std else 1.0
        assert not isinstance(weight, Hyperprior) and not isinstance(bias, Hyperprior)  # `mlp` sees to it
        return weight / math.sqrt(fan_in), bias

    def readout_gains(self, fan_in: int) -> tuple[float, ...]:
        return self._scales(self.depth, fan_in)[:len(self.readout_sites)]

    def hidden(self, params: Params, x: jax.Array, dense: Callable = dense) -> jax.Array:
        """Last hidden layer, shape (n, widths[-1]), before any readout scale."""
        h = x
        for layer, activation in enumerate(self.activation):
            bias = None if self.bias_std is None else f"b{layer}"
            h = dense(params, h, f"w{layer}", bias, *self._scales(layer, h.shape[1]))
            h = (ACTIVATIONS[activation] if isinstance(activation, str) else activation)(h)
        return h

    def features(self, params: Params, x: jax.Array, dense: Callable = dense) -> jax.Array:
        h = self.hidden(params, x, dense)
        scale, _ = self._scales(self.depth, h.shape[1])
        return h if scale == 1.0 else h * scale

    def design(self, params: Params, x: jax.Array) -> jax.Array:
        h = self.features(params, x)
        if self.bias_std is None:
            return h
        _, bias_scale = self._scales(self.depth, h.shape[1])
        return jnp.concatenate([h, jnp.full_like(h[:, :1], bias_scale)], axis=1)

    def apply(self, params: Params, x: jax.Array, dense: Callable = dense) -> jax.Array:
        h = self.hidden(params, x, dense)
        return dense(params, h, self.readout, self.readout_bias, *self._scales(self.depth, h.shape[1]))


def _per_layer(value: Any, name: str, layers: int) -> tuple[float | Hyperprior, ...]:
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * layers
    if len(values) != layers:
        raise ValueError(f"{name} has {len(values)} entries but the network has {layers} layers of weights "
                         "(hidden layers + readout); pass one number or one a layer")
    return tuple(number_or_law(v, name, "scale") for v in values)


def mlp(hidden: int | Sequence[int] = (), out: int = 1, *, activation: str | Callable | Sequence = "relu",
        weight_std: Any = 1.0, bias_std: Any = None, scaling: str = "fan_in", relevance: Any = False,
        likelihood: Likelihood | None = None) -> MLP:
    """A dense network with Gaussian priors, as a NumPyro model.

    Sites are ``"w0", "w1", ...`` with shape (fan_in, fan_out) and, where `bias_std` is given, ``"b0", "b1", ...``.
    Scales that are learned are sites too: ``"scale0", ...`` of the weights, ``"bias_scale0", ...`` of the biases, one
    number a layer (of the readout, one for each kind of output, where there are two), and ``"relevance"``, (dim,). The
    weights are what enters the forward pass: N(0, scale²/fan_in) given their scale.

    Parameters
    ----------
    hidden : sequence of int
        Widths of the hidden layers; ``()`` is a linear model.
    out : int
        Number of outputs.
    activation : str, callable, or one of them a hidden layer
        ``"identity"``, ``"relu"``, ``"erf"``, ``"tanh"``, ``"gelu"``, ``"cos"``, ``"sin"``, or an elementwise function.
    weight_std, bias_std : float, numpyro Distribution or "learned", or one of them a layer (hidden layers + readout)
        Prior scales σ_w and σ_b; ``bias_std=None`` for no biases. A univariate distribution of positive support is the
        prior of a scale that is learned, ``"learned"`` stands for LogNormal(0, 1).
    scaling : {"fan_in", "ntk", "none"}
        ``"fan_in"``: weights ~ N(0, σ_w²/fan_in). ``"ntk"``: weights ~ N(0, 1), multiplied by σ_w/√fan_in in the
        forward pass (biases by σ_b). ``"none"``: weights ~ N(0, σ_w²), as in the paper's own experiment.
    relevance : bool or numpyro Distribution
        Whether each input has a scale of its own, with which the prior scale of its row of ``"w0"`` is multiplied; its
        prior, for True LogNormal(0, 1).
    likelihood : Likelihood
        Default ``gaussian(1.0)``.

    Returns
    -------
    MLP
        A frozen `Network`: ``net(x, y)`` is the NumPyro model, ``net.apply(params, x)`` its output (n, out).

    Notes
    -----
    The recursion of (60), with the fan-in scale the infinite-width limit needs (theory §6). Samplers move in
    coordinates in which learned scales and weights are independent under the prior (non-centred): w over its scale.

    Raises
    ------
    TypeError, ValueError
        For numbers of layers that do not agree, scales that are neither positive numbers nor laws of one, or learned
        scales with ``scaling="ntk"``, where a weight has no scale of its own.

    Examples
    --------
    >>> net = mlp((10, 10, 2048), activation=("identity", "relu", "relu"), scaling="none")
    >>> net.readout
    'w3'
    """
    widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    widths = tuple(check_count(w, "a hidden width") for w in widths)
    depth = len(widths)
    if isinstance(activation, (str, bytes)) or callable(activation):
        activation = (activation,) * depth
    activation = tuple(activation)
    if len(activation) != depth:
        raise ValueError(f"activation has {len(activation)} entries but there are {depth} hidden layers; "
                         "the readout has none")
    for a in activation:
        if not callable(a):
            check_choice(a, "activation", ACTIVATIONS)
    if likelihood is None:
        likelihood = gaussian()
    if not isinstance(likelihood, Likelihood):
        raise TypeError("likelihood must come from brg.gaussian, bernoulli, categorical or poisson, or be a Likelihood "
                        f"of your own, got {likelihood!r}")
    out = likelihood.outputs(check_count(out, "out"))
    net = MLP(
        likelihood=likelihood, widths=widths, out=out, activation=activation,
        weight_std=_per_layer(weight_std, "weight_std", depth + 1),
        bias_std=None if bias_std is None else _per_layer(bias_std, "bias_std", depth + 1),
        scaling=check_choice(scaling, "scaling", ("fan_in", "ntk", "none")), relevance=_relevance(relevance),
    )
    if net.scaling == "ntk" and net.parents():
        raise ValueError("scaling='ntk' has weights of unit scale, so that there is none to learn; pass "
                         "scaling='fan_in'")
    return net


def _relevance(value: Any) -> Hyperprior | None:
    if value is True:
        return Hyperprior.learned("relevance")
    if value is False or value is None:
        return None
    return value if isinstance(value, Hyperprior) else Hyperprior.of(value, "relevance")
