"""The model convention: what the package knows of any NumPyro callable ``model(x, y)``.

`bind` is the one place that decides whether a model takes the fast way (a `Network`, which knows its own
``apply``) or the general one (NumPyro handlers). Both answer the same questions with the same numbers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer.inspect import get_dependencies
from numpyro.infer.util import constrain_fn, get_transforms, potential_energy, unconstrain_fn

from ..core.arrays import check_array
from ..core.checks import check_inputs, num_points
from .contract import Findings, examine
from .distributions import observed_mask, unwrap
from .likelihoods import Likelihood
from .normal_maps import from_normal, to_normal, unmapped
from .readout import LinearReadout
from .tracing import NamedSeed, Unweighted, check_call, hashable, is_factor, latents, output_of, per_datum

__all__ = ["BoundModel", "Site", "bind"]

Params = dict[str, jax.Array]


@dataclass(frozen=True)
class Site:
    """A latent sample site. Sites compare by name and shape, so that compiled functions are reused."""

    name: str
    shape: tuple[int, ...]
    support: Any = field(compare=False, repr=False)
    event_dim: int = field(default=0, compare=False)
    improper: bool = field(default=False, compare=False)
    discrete: bool = field(default=False, compare=False)
    local: bool = field(default=False, compare=False)
    """Whether its first axis is the datum, so that it is known for the training inputs alone."""


@dataclass(frozen=True)
class BoundModel:
    """A NumPyro callable whose sites are known. Hashable, so that it can be a static argument of compiled code.

    Attributes
    ----------
    fn : callable
        ``model(x, y)``.
    sites : tuple of Site
        The latent sites, that is the parameters, in the order the model samples them.
    observed : str
        The name of the likelihood.
    likelihood : Likelihood or None
        Of a `Network`; None for a general model.
    has_phi : bool
        Whether a deterministic site ``"phi"`` says what the output is.
    weighted : bool
        Whether data have weights (`handlers.scale`, `handlers.mask`); see `weights` and `seen`.
    target_shape : tuple of int, optional
        Shape of one datum's target in a general model.
    """

    fn: Callable
    sites: tuple[Site, ...]
    observed: str
    likelihood: Likelihood | None = field(default=None, compare=False)
    has_phi: bool = False
    weighted: bool = False
    target_shape: tuple[int, ...] | None = field(default=None, compare=False, kw_only=True)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(site.name for site in self.sites)

    # -- what it knows of itself --------------------------------------------------------------------------
    @property
    def readout(self) -> LinearReadout | None:
        """The sites in which the output is linear, or None where that is not known."""
        return None

    def uncollapsible(self) -> str:
        """Why the readout cannot be integrated out; "" where it can."""
        readout = self.readout
        if readout is None:
            return "the model is not a Network, so its readout is not known to be linear; write it with brg.mlp"
        if not readout.hidden and not readout.inexact():
            return "the network has no hidden site; its posterior is exactly Gaussian: use brg.readout_posterior"
        return readout.uncollapsible()

    @property
    def familiar(self) -> bool:
        """Whether the prior is known ahead, site by site, so that its draws are good points to start from."""
        return False

    def white(self, sites: Sequence[str]) -> bool:
        """Whether the unconstrained coordinates of `sites` are values whitened by Gaussian priors, given others."""
        return False

    def hyperparameters(self, x: Any) -> tuple[str, ...]:
        """Sites that do not flow unless asked to: parents of others, and of a `Network` the noise (theory §2)."""
        return tuple({p: None for found in self.parents(x).values() for p in found})

    def likelihood_at(self, params: Params) -> Likelihood:
        """The likelihood of a `Network` with the values that `params` have for what is learned of it."""
        assert self.likelihood is not None
        return self.likelihood.given(params)

    def layered(self, sites: Sequence[str]) -> bool:
        """Whether each of `sites` enters the output once, through the dense primitive alone (see `apply`)."""
        return False

    def apply(self, params: Params, x: Any, dense: Callable) -> jax.Array:
        """φ_θ(x) with a stand-in for the dense primitive; for models with `layered` sites."""
        raise NotImplementedError("the forward pass of a general model has no dense primitive")

    def site(self, name: str) -> Site:
        for site in self.sites:
            if site.name == name:
                return site
        raise ValueError(f"the model has no parameter site {name!r}; its sites are {', '.join(self.names)}")

    # -- one parameter draw -------------------------------------------------------------------------------
    def trace(self, params: Params, x: Any, y: Any = None, key: jax.Array | None = None) -> dict:
        """NumPyro trace of the model at `params`."""
        key = jax.random.key(0) if key is None else key
        seeded = NamedSeed(self.fn, key, unseen=self.observed)
        with handlers.block():
            return handlers.trace(handlers.substitute(seeded, data=params)).get_trace(x, y)

    def distribution(self, params: Params, x: Any) -> dist.Distribution:
        """The observed distribution at `params`; its first axis is the datum."""
        return per_datum(self.trace(params, x)[self.observed]["fn"], num_points(x))

    def phi(self, params: Params, x: Any) -> jax.Array:
        """Network output φ_θ(x), shape (n, outputs)."""
        trace, n = self.trace(params, x), num_points(x)
        if self.has_phi:
            return jnp.reshape(trace["phi"]["value"], (n, -1))
        return output_of(per_datum(trace[self.observed]["fn"], n), n)

    @property
    def local(self) -> tuple[str, ...]:
        """Sites with one row a datum, known for the training inputs alone."""
        return tuple(s.name for s in self.sites if s.local)

    def check_global(self, what: str) -> None:
        """Refuse a model with local latents where the output at other inputs, or of one datum alone, is needed."""
        if self.local:
            raise ValueError(f"{what} needs outputs that are functions of x and of parameters of fixed shape, but site "
                             f"{self.local[0]!r} has one row a datum: integrate it out of the model. It can be "
                             "sampled, predicted, scored and stored at the training inputs")

    # -- the weight of a datum ----------------------------------------------------------------------------
    def seen(self, x: Any) -> np.ndarray | None:
        """Which entries of y count, (n, entries) of bool; None where all do (no `handlers.mask`)."""
        if not self.weighted:
            return None
        d = self.distribution({}, x)
        full = np.asarray(_spread(observed_mask(d), d)).reshape(num_points(x), -1)
        return None if full.all() else full

    def weights(self, params: Params, x: Any) -> jax.Array:
        """Weight of each datum in the likelihood, (n,): that of `handlers.scale`, 0 where it is masked whole."""
        n = num_points(x)
        if not self.weighted:
            return jnp.ones(n)
        site = self.trace(params, x)[self.observed]
        d = per_datum(site["fn"], n)
        scale = jnp.asarray(1.0 if site["scale"] is None else site["scale"])
        any_seen = _spread(observed_mask(d), d).reshape(n, -1).any(axis=1)
        return jnp.broadcast_to(scale, d.batch_shape).reshape(n, -1)[:, 0] * any_seen

    def weighted_log_likelihood(self, params: Params, x: Any, y: jax.Array) -> jax.Array:
        """What each datum adds to the log joint, (n,), in nats: `log_likelihood` times its weight."""
        value = self.log_likelihood(params, x, y)
        return value * self.weights(params, x) if self.weighted else value

    def gauged(self, phi: Any, x: Any) -> Any:
        """φ (NumPy or JAX), last axis the output, in the gauge: categorical logits sum to 0 over classes."""
        free = isinstance(unwrap(self.distribution({}, x)), (dist.CategoricalLogits, dist.CategoricalProbs))
        return phi - phi.mean(axis=-1, keepdims=True) if free else phi

    def log_likelihood(self, params: Params, x: Any, y: jax.Array) -> jax.Array:
        """Log-likelihood of each datum, shape (n,), in nats."""
        log_prob = self.distribution(params, x).log_prob(y)
        return log_prob.reshape(log_prob.shape[0], -1).sum(axis=1)

    def loss(self, params: Params, x: Any, y: jax.Array) -> jax.Array:
        """Training loss of each datum, shape (n,): (y − φ)² for Gaussian likelihoods, −log p for others."""
        d, n = self.distribution(params, x), num_points(x)
        if self.squared(params, x):
            square = (jnp.reshape(y, (n, -1)) - output_of(d, n)) ** 2
            if self.weighted:
                square = jnp.where(_spread(observed_mask(d), d).reshape(n, -1), square, 0.0)
            return jnp.sum(square, axis=1)
        return -self.log_likelihood(params, x, y)

    def squared(self, params: Params, x: Any) -> bool:
        """Whether the training loss is (y − φ)²: for Gaussian likelihoods whose location is the output."""
        if self.likelihood is not None:
            return self.likelihood.squared
        found: dict[str, bool] = {}

        def look(params):  # only traced: nothing is computed
            d = self.distribution(params, x)
            size = math.prod((*d.batch_shape, *d.event_shape))
            found["is"] = isinstance(unwrap(d), dist.Normal) and (not self.has_phi or self.phi(params, x).size == size)

        jax.eval_shape(look, params)
        return found["is"]

    def mean_loss(self, params: Params, x: Any, y: jax.Array) -> jax.Array:
        """Training loss, mean over data; weighted where data have weights, masked data being none."""
        loss = self.loss(params, x, y)
        if not self.weighted:
            return jnp.mean(loss)
        weights = self.weights(params, x)
        return jnp.sum(weights * loss) / jnp.sum(weights)

    def log_prior(self, params: Params, x: Any) -> jax.Array:
        """Log prior density, native coordinates, in nats."""
        trace = self.trace(params, x)
        return sum((jnp.sum(trace[s]["fn"].log_prob(params[s])) for s in self.names), start=jnp.zeros(()))

    def log_factors(self, params: Params, x: Any, y: jax.Array | None = None) -> jax.Array:
        """Sum of the `numpyro.factor` terms, and of sites always observed: neither prior nor likelihood of the data."""
        trace = self.trace(params, x, y)
        terms = [jnp.sum(site["fn"].log_prob(site["value"])) for name, site in trace.items() if is_factor(site)
                 or (site["type"] == "sample" and site["is_observed"] and name != self.observed)]
        return sum(terms, start=jnp.zeros(()))

    def log_joint(self, params: Params, x: Any, y: jax.Array) -> jax.Array:
        """Log of prior times likelihood (times factors), native coordinates, in nats."""
        with handlers.block():
            seeded = NamedSeed(self.fn, jax.random.key(0))
            return numpyro.infer.util.log_density(seeded, (x, y), {}, params)[0]

    def draw_prior(self, key: jax.Array, x: Any, given: Params | None = None, sites: Sequence[str] | None = None
                   ) -> Params:
        """One prior draw of `sites` (default all), ancestrally.

        Sites in `given` are held and their children drawn given them. The key of a site is folded from its name.
        """
        trace = self.trace(given or {}, x, key=key)
        return {s: trace[s]["value"] for s in (self.names if sites is None else sites)}

    def priors(self, params: Params, x: Any) -> dict[str, dist.Distribution]:
        """Prior of each site, given its parents in `params`."""
        trace = self.trace(params, x)
        return {s: trace[s]["fn"] for s in self.names}

    def undrawable(self) -> str:
        """Why no draw can be made of the prior, and what to do; "" where one can."""
        for site in self.sites:
            if site.improper:
                return (f"site {site.name!r} has an improper prior, from which nothing can be drawn; "
                        "give it a proper one")
        return ""

    def prior_mean(self, x: Any, given: Params, sites: tuple[str, ...]) -> Params:
        """Prior mean of `sites`, given the values of others; a child of one of `sites` has its mean at the parent's."""
        with handlers.block():
            trace = handlers.trace(handlers.substitute(
                NamedSeed(self.fn, jax.random.key(0), unseen=self.observed),
                substitute_fn=lambda msg: given.get(msg["name"],
                                                    msg["fn"].mean if msg["name"] in sites else None)
                if msg["type"] == "sample" else None,
            )).get_trace(x, None)
        return {s: jnp.broadcast_to(trace[s]["value"], self.site(s).shape) for s in sites}

    # -- unconstrained coordinates u ----------------------------------------------------------------------
    def _fixed(self) -> Callable:
        """The model with its randomness fixed."""
        return NamedSeed(self.fn, jax.random.key(0))

    def scales(self, sites: Sequence[str]) -> dict[str, Any]:
        """Width of one unit of u, in native units, where u is whitened; else 1."""
        return dict.fromkeys(sites, 1.0)

    def constrain(self, u: Params, x: Any, y: Any) -> Params:
        """Native values of the sites in `u`."""
        with handlers.block():
            return constrain_fn(self._fixed(), (x, y), {}, u)

    def unconstrain(self, params: Params, x: Any, y: Any) -> Params:
        """Coordinates u of native values."""
        with handlers.block():
            return unconstrain_fn(self._fixed(), (x, y), {}, params)

    def shapes(self, x: Any, y: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of u, which may differ from the native ones (a simplex)."""
        dtype = jnp.result_type(float)
        if any(s.improper for s in self.sites):
            return {s.name: jax.ShapeDtypeStruct(biject_to(s.support).inverse_shape(s.shape), dtype)
                    for s in self.sites}

        def u(x, y):
            return self.unconstrain(self.draw_prior(jax.random.key(0), x), x, y)

        return {s: jax.ShapeDtypeStruct(v.shape, dtype) for s, v in jax.eval_shape(u, x, y).items()}

    def log_prior_of(self, u: Params, x: Any, y: Any = None) -> jax.Array:
        """Log prior density of u, Jacobian included, without factors, in nats; of the sites in `u`."""
        params = self.constrain(u, x, y)
        with handlers.block():
            transforms = get_transforms(self._fixed(), (x, y), {}, params)
        jacobian = sum((jnp.sum(transforms[s].log_abs_det_jacobian(u[s], params[s])) for s in self.names),
                       start=jnp.zeros(()))
        return self.log_prior(params, x) + jacobian

    def log_density_of(self, u: Params, x: Any, y: Any) -> jax.Array:
        """Log of prior (Jacobian included) times likelihood times factors at u, in nats."""
        with handlers.block():
            return -potential_energy(self._fixed(), (x, y), {}, u)

    # -- coordinates z that are N(0, 1) under the prior, given the other sites -------------------------------
    def from_normal(self, z: Params, given: Params, x: Any) -> Params:
        """Native values of all sites: of those in `z` from coordinates that are N(0, 1) under the prior, of the others
        as `given`; the prior of a child is that given its parents."""
        def value(msg):
            if msg["type"] != "sample" or msg["name"] not in self.names:
                return None
            s = msg["name"]
            return from_normal(msg["fn"], z[s]) if s in z else given[s]

        with handlers.block():
            trace = handlers.trace(handlers.substitute(NamedSeed(self.fn, jax.random.key(0), unseen=self.observed),
                                                       substitute_fn=value)).get_trace(x, None)
        return {s: trace[s]["value"] for s in self.names}

    def to_normal(self, params: Params, x: Any, sites: Sequence[str]) -> Params:
        """Coordinates z of `sites` at native values of all sites."""
        priors = self.priors(params, x)
        return {s: to_normal(priors[s], params[s]) for s in sites}

    def unmapped(self, params: Params, x: Any, sites: Sequence[str]) -> tuple[str, str]:
        """The first of `sites` whose prior has no exact map from N(0, 1), and the name of that prior; or ("", "")."""
        found = ["", ""]

        def look(params):  # only traced: nothing is computed
            for s, prior in self.priors(params, x).items():
                law = unmapped(prior, self.site(s).shape) if s in sites else ""
                if law:
                    found[:] = s, law
                    return

        jax.eval_shape(look, params)
        return found[0], found[1]

    # -- targets, structure -------------------------------------------------------------------------------
    def targets(self, y: Any, outputs: int | None = None) -> jax.Array:
        """Bring targets to the observed site's shape, (n, 1) to (n,) and the like; refuse what would broadcast."""
        y, shape = check_array(y, "y", finite=False), self.target_shape
        if shape is None or y.shape[1:] == shape:
            return y
        if y.ndim and [k for k in y.shape[1:] if k != 1] == [k for k in shape if k != 1]:
            return y.reshape(y.shape[0], *shape)
        raise ValueError(f"y has shape {y.shape} but the model observes {(*y.shape[:1], *shape)}")

    def check_params(self, samples: Mapping, source: str, lead: int = 2) -> Params:
        """Values of the model's sites out of `samples`; refuse those whose sites or shapes are not the model's."""
        missing = [s for s in self.names if s not in samples]
        if missing:
            raise ValueError(f"{source} lacks the site(s) {', '.join(missing)} of the model; "
                             f"it has {', '.join(samples)}")
        params = {s: check_array(samples[s], f"{source}[{s!r}]", finite=False, axes=()) for s in self.names}
        for site in self.sites:
            shape, dtype = params[site.name].shape[lead:], params[site.name].dtype
            if lead and not site.discrete and not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(f"{source}: the draws of site {site.name!r} are whole numbers ({dtype}), and would "
                                 "stay such along a flow; pass them as floats")
            if shape != site.shape:
                local = "; it has one row a datum, and is known at the training inputs alone" if site.local else ""
                raise ValueError(f"{source}: site {site.name!r} has shape {shape} per draw, the model expects "
                                 f"{site.shape} for these inputs{local}")
        return params

    def parents(self, x: Any) -> dict[str, tuple[str, ...]]:
        """Latent sites on which each latent site's prior depends."""
        def model(x):
            return Unweighted(NamedSeed(self.fn, jax.random.key(0)))(x, None)
        with handlers.block():
            found = get_dependencies(model, (x,))["prior_dependencies"]
        return {s: tuple(p for p in found.get(s, {}) if p != s and p in self.names) for s in self.names}


def _spread(mask: Any, d: dist.Distribution) -> jax.Array:
    """A mask of `observed_mask`, over every entry of y."""
    mask = jnp.asarray(mask)
    mask = mask.reshape(mask.shape + (1,) * unwrap(d).event_dim) if mask.ndim else mask
    return jnp.broadcast_to(mask, (*d.batch_shape, *d.event_shape))


_BOUND: OrderedDict[Any, BoundModel] = OrderedDict()
KEPT = 256  # models whose examination is remembered


def bind(model: Callable, x: Any) -> BoundModel:
    """Find a model's parameters and its likelihood, and see that it keeps the model convention.

    Parameters
    ----------
    model : callable
        A `Network`, or any NumPyro model called as ``model(x, y)`` with ``y=None`` allowed.
    x : array or pytree
        Inputs; the first axis is the datum.

    Returns
    -------
    BoundModel

    Raises
    ------
    TypeError
        If the model cannot be called as ``model(x, None)``.
    ValueError
        If the model has no observed site, several, a subsampled plate, an event over data points that does not come
        apart, a datum that depends on other data (in its inputs or its targets), or a latent site counted by
        `handlers.scale`.

    Warns
    -----
    UserWarning
        For `numpyro.param` sites without a prior, by name.

    Notes
    -----
    ``log p(θ, y) = log prior + Σ_i w_i log p(y_i | θ, x_i) + factors``. The weight w_i is that of `handlers.scale` and
    `handlers.mask` (see `BoundModel.weights`). Survival data: `numpyro.distributions.RightCensoredDistribution` with
    the censoring indicator in x. A likelihood written as `numpyro.factor` is a factor of the joint, which samplers
    count; it has no datum of its own, so the model still needs an observed site: write it as a distribution with
    ``log_prob``. An error raised inside the model is passed on as it is, with a note that names its line.
    """
    x = check_inputs(x)
    if hasattr(model, "bind") and hasattr(model, "likelihood"):  # a Network knows itself
        if getattr(model, "foreign", False):
            _examined(model, x)
        return model.bind(x)
    if not callable(model):
        raise TypeError(f"model must be callable as model(x, y), got {type(model).__name__}")
    check_call(model)
    model = hashable(model)
    return _examined(model, x)


def _examined(model: Callable, x: Any) -> BoundModel:
    """A model that keeps the convention at these inputs: looked at once for each form of them."""
    leaves, structure = jax.tree.flatten(x)
    key = model, structure, tuple((a.shape, str(a.dtype)) for a in leaves), jnp.result_type(float)
    if key not in _BOUND:
        _BOUND[key] = _bound(model, examine(model, x))
        if len(_BOUND) > KEPT:
            _BOUND.popitem(last=False)
    _BOUND.move_to_end(key)
    return _BOUND[key]


def _bound(model: Callable, found: Findings) -> BoundModel:
    sites = []
    for name in latents(found.trace):
        if name == found.observed:
            continue
        d = found.trace[name]["fn"]
        sites.append(Site(
            name=name, shape=tuple(jnp.shape(found.trace[name]["value"])), support=d.support, event_dim=d.event_dim,
            improper=isinstance(unwrap(d), dist.ImproperUniform), discrete=bool(d.support.is_discrete),
            local=name in found.local,
        ))
    return BoundModel(model, tuple(sites), found.observed, None, found.has_phi, found.weighted,
                      target_shape=tuple(jnp.shape(found.trace[found.observed]["value"])[1:]))
