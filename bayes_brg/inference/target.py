"""One adapter between models and samplers: named native arrays outside, unconstrained arrays inside.

Every sampler of the package works on a `Target`. Its coordinates u are real, and for the Gaussian sites of a
`Network` whitened by the prior, θ = m_p + σ_p u, so that one step size suits layers of every width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer.util import constrain_fn, get_transforms, potential_energy, unconstrain_fn

from ..core.arrays import check_array
from ..core.checks import check_choice, check_count, check_data, check_key
from ..core.keys import name_key
from ..model.bound import BoundModel, NamedSeed, bind, unwrap
from ..model.networks import BoundNetwork
from ..model.readout import Readout, draw_readout, log_marginal
from ..posterior import Posterior, diverged

Params = dict[str, jax.Array]


@dataclass(frozen=True)
class Target:
    """A posterior in unconstrained coordinates. Hashable: it keys the compiled code of every sampler.

    Attributes
    ----------
    bound : BoundModel
    collapsed : bool
        Whether the linear readout is integrated out; the coordinates are then those of the hidden sites, and
        `finish` draws the readout.
    """

    bound: BoundModel
    collapsed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The sites that are sampled."""
        if not self.collapsed:
            return self.bound.names
        return tuple(s for s in self.bound.names if s not in self.network.readout_sites)

    @property
    def network(self):
        return self.bound.fn

    @property
    def fast(self) -> bool:
        return isinstance(self.bound, BoundNetwork)

    @property
    def whitened(self) -> bool:
        """Whether u is θ whitened by Gaussian priors at every site."""
        return self.fast and all(_is_normal(p) for p in self._priors().values())

    # -- coordinates --------------------------------------------------------------------------------------
    def _model(self, x: Any, y: Any) -> tuple[Callable, tuple]:
        """A general model with its randomness fixed, and its arguments."""
        return NamedSeed(self.bound.fn, jax.random.key(0)), (x, y)

    def _priors(self) -> dict[str, dist.Distribution]:
        priors = self.bound.network.priors(self.bound.dim)  # type: ignore[attr-defined]
        return {s: priors[s] for s in self.names}

    def scales(self) -> dict[str, Any]:
        """Width of one unit of each whitened site; 1 for the others."""
        if not self.fast:
            return dict.fromkeys(self.names, 1.0)
        return {s: unwrap(p).scale if _is_normal(p) else 1.0 for s, p in self._priors().items()}

    def constrain(self, u: Params, x: Any, y: Any) -> Params:
        """Native values of the sampled sites."""
        if not self.fast:
            fn, args = self._model(x, y)
            with handlers.block():
                return constrain_fn(fn, args, {}, u)
        return {s: unwrap(p).loc + unwrap(p).scale * u[s] if _is_normal(p) else biject_to(p.support)(u[s])
                for s, p in self._priors().items()}

    def unconstrain(self, params: Mapping, x: Any, y: Any) -> Params:
        """Unconstrained coordinates of native values."""
        params = {s: jnp.asarray(params[s]) for s in self.names}
        if not self.fast:
            fn, args = self._model(x, y)
            with handlers.block():
                return unconstrain_fn(fn, args, {}, params)
        return {s: (params[s] - unwrap(p).loc) / unwrap(p).scale if _is_normal(p)
                else biject_to(p.support).inv(params[s]) for s, p in self._priors().items()}

    def shapes(self, x: Any, y: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the coordinates, which may differ from the native ones (a simplex)."""
        dtype = jnp.result_type(float)
        if self.fast or not any(s.improper for s in self.bound.sites):
            def u(x, y):
                return self.unconstrain(self.bound.draw_prior(jax.random.key(0), x), x, y)

            return {s: jax.ShapeDtypeStruct(v.shape, dtype) for s, v in jax.eval_shape(u, x, y).items()}
        return {s.name: jax.ShapeDtypeStruct(biject_to(s.support).inverse_shape(s.shape), dtype)
                for s in self.bound.sites}

    def unravel(self, x: Any, y: Any) -> Callable[[jax.Array], Params]:
        """From the flat vector, in the order of `jax.flatten_util.ravel_pytree`, to the named coordinates."""
        return ravel_pytree({s: jnp.zeros(v.shape, v.dtype) for s, v in self.shapes(x, y).items()})[1]

    # -- densities, in nats -------------------------------------------------------------------------------
    def log_prior(self, u: Params, x: Any, y: Any = None) -> jax.Array:
        """Log prior density of u, Jacobian included; without factors."""
        if self.fast:
            terms = []
            for s, p in self._priors().items():
                if _is_normal(p):
                    terms.append(-0.5 * jnp.sum(u[s] ** 2) - 0.5 * u[s].size * math.log(2 * math.pi))
                    continue
                t = biject_to(p.support)
                value = t(u[s])
                terms.append(jnp.sum(p.log_prob(value)) + jnp.sum(t.log_abs_det_jacobian(u[s], value)))
            return sum(terms, start=jnp.zeros(()))
        params = self.constrain(u, x, y)
        fn, args = self._model(x, y)
        with handlers.block():
            transforms = get_transforms(fn, args, {}, params)
        jacobian = sum((jnp.sum(transforms[s].log_abs_det_jacobian(u[s], params[s])) for s in self.names),
                       start=jnp.zeros(()))
        return self.bound.log_prior(params, x) + jacobian

    def log_factors(self, u: Params, x: Any, y: Any) -> jax.Array:
        """Sum of the model's `numpyro.factor` terms."""
        return jnp.zeros(()) if self.fast else self.bound.log_factors(self.constrain(u, x, y), x, y)

    def log_likelihood(self, u: Params, x: Any, y: Any) -> jax.Array:
        """Log-likelihood of each datum, shape (n,); of all data, shape (1,), where the readout is collapsed."""
        params = self.constrain(u, x, y)
        if self.collapsed:
            return log_marginal(self.readout(), self.network.design(params, x), y)[None]
        return self.bound.log_likelihood(params, x, y)

    def log_density(self, u: Params, x: Any, y: Any) -> jax.Array:
        """Log posterior density of u, up to the evidence."""
        if self.fast:
            return self.log_prior(u, x) + jnp.sum(self.log_likelihood(u, x, y))
        fn, args = self._model(x, y)
        with handlers.block():
            return -potential_energy(fn, args, {}, u)

    # -- the collapsed readout ----------------------------------------------------------------------------
    def readout(self) -> Readout:
        """Prior and noise of the linear readout of a Gaussian network."""
        return gaussian_readout(self.bound)  # type: ignore[arg-type]

    def finish(self, key: jax.Array, u: Params, x: Any, y: Any) -> Params:
        """Native values of every site; a collapsed readout is drawn from its exact conditional."""
        params = self.constrain(u, x, y)
        return complete(self.bound, key, params, x, y) if self.collapsed else params  # type: ignore[arg-type]


def _is_normal(prior: dist.Distribution) -> bool:
    return isinstance(unwrap(prior), dist.Normal)


def collapsible(bound: BoundModel) -> str:
    """Why the readout of a model cannot be integrated out; "" where it can."""
    if not isinstance(bound, BoundNetwork):
        return "the model is not a Network, so its readout is not known to be linear; write it with brg.mlp"
    network = bound.network
    if network.likelihood.name != "gaussian":
        return f"the likelihood is {network.likelihood.name}, not Gaussian, so the readout has no closed form"
    if not set(bound.names) - set(network.readout_sites):
        return "the network has no hidden site; its posterior is exactly Gaussian: use brg.readout_posterior"
    with jax.ensure_compile_time_eval():  # the answer is needed in traced code too
        priors = [unwrap(p) for s, p in network.priors(bound.dim).items() if s in network.readout_sites]
        if not all(isinstance(p, dist.Normal) for p in priors):
            return "the prior of the readout is not Gaussian"
        if any(jnp.ndim(p.scale) and np.ptp(np.asarray(p.scale), axis=-1).any() for p in priors):
            return "the prior scale of the readout differs between outputs"
    return ""


def gaussian_readout(bound: BoundNetwork) -> Readout:
    """Prior of a network's readout, one row an input of the readout (bias last), and the noise."""
    network, priors = bound.network, bound.network.priors(bound.dim)
    mean, scale = [], []
    for site in network.readout_sites:
        base, shape = unwrap(priors[site]), (-1, network.outputs)
        full = tuple(priors[site].batch_shape + priors[site].event_shape)
        mean.append(jnp.broadcast_to(base.loc, full).reshape(shape))
        scale.append(jnp.broadcast_to(base.scale, full).reshape(shape)[:, 0])
    return Readout(jnp.concatenate(mean), jnp.concatenate(scale), network.likelihood.scale)


def complete(bound: BoundNetwork, key: jax.Array, params: Params, x: Any, y: Any) -> Params:
    """`params` with the readout drawn from its exact conditional given the hidden sites."""
    network = bound.network
    drawn = draw_readout(gaussian_readout(bound), key, network.design(params, x), y)
    out, row = dict(params), 0
    for site in network.readout_sites:
        shape = bound.site(site).shape
        rows = math.prod(shape) // network.outputs
        out[site] = drawn[row:row + rows].reshape(shape)
        row += rows
    return {s: out[s] for s in bound.names}


# -- from the arguments of a public function to a target ------------------------------------------------------
def prepare(model: Callable, x: Any, y: Any, key: Any, method: str,
            readout: str = "sampled") -> tuple[Target, Any, jax.Array, jax.Array]:
    """Check what every sampler takes; return the target, x, y and the method's own key."""
    key = name_key(check_key(key), method)
    x, y = check_data(x, y)
    bound = bind(model, x)
    y = bound.targets(y)
    for site in bound.sites:
        if site.discrete:
            raise ValueError(f"site {site.name!r} is discrete, and {method} needs gradients: sum it out of the model")
    if check_choice(readout, "readout", ("sampled", "collapsed")) == "collapsed":
        reason = collapsible(bound)
        if reason:
            raise ValueError(f"readout='collapsed' is not possible: {reason}, or pass readout='sampled'")
    return Target(bound, readout == "collapsed"), x, y, key


INITS = ("auto", "prior", "uniform")


def initial(target: Target, key: jax.Array, x: Any, y: Any, count: int, init: Any = "auto") -> Params:
    """Starting points of `count` chains, unconstrained, leading axis (count,).

    Parameters
    ----------
    init : str, Posterior or dict
        ``"prior"``: prior draws; the readout of a Gaussian network from its exact conditional. ``"uniform"``: uniform
        on (−2, 2) in unconstrained coordinates, as NumPyro does. ``"auto"``: the first for networks, the second for
        other models. A `Posterior`: its last draws where it has as many (dependent) chains, else draws of it at
        random, of an ensemble those that did not diverge. A dict of native values: one point for all chains, or one
        each with a leading axis (count,).
    """
    bound, names = target.bound, target.names
    key = name_key(key, "init")
    if isinstance(init, Posterior):
        bound.check_params(init.samples, "init")
        if init.num_chains == count and not init.stats.get("independent", False):
            start = {s: init.samples[s][:, -1] for s in names}
        else:
            sound = np.flatnonzero(~diverged(init))
            if not sound.size:
                raise ValueError(f"init: all {init.size} members are marked in stats['diverged']; train them at a "
                                 "lower rate, or start elsewhere")
            pick = jax.random.choice(key, jnp.asarray(sound), (count,), replace=sound.size < count)
            start = {s: init.flat()[s][pick] for s in names}
        return _checked(target, unconstrain_all(target, start, x, y), x, y, "init")
    if isinstance(init, Mapping):
        start = {}
        for s in names:
            shape = bound.site(s).shape
            if s not in init:
                raise ValueError(f"init lacks the site {s!r}; it has {', '.join(init)}")
            value = check_array(init[s], f"init[{s!r}]", axes=())
            if value.shape not in (shape, (count, *shape)):
                raise ValueError(f"init[{s!r}] has shape {value.shape}; expected {shape}, or {(count, *shape)} for "
                                 f"one point a chain")
            start[s] = jnp.broadcast_to(value, (count, *shape))
        return _checked(target, unconstrain_all(target, start, x, y), x, y, "init")
    how = check_choice(init, "init", INITS) if isinstance(init, str) else None
    if how is None:
        raise TypeError(f"init must be one of {', '.join(INITS)}, a Posterior or a dict of values, got {init!r}")
    if how == "auto":
        how = "prior" if target.fast else "uniform"
    if how == "prior":
        improper = [s.name for s in bound.sites if s.improper]
        if improper:
            raise ValueError(f"site {improper[0]!r} has an improper prior, from which nothing can be drawn; "
                             "pass init='uniform'")
    start, valid = _draw_starts(target, how, count, jax.random.fold_in(key, 0), x, y)
    for attempt in range(1, 20):  # a start of vanishing density is drawn again
        if bool(valid.all()):
            return start
        new, good = _draw_starts(target, how, count, jax.random.fold_in(key, attempt), x, y)
        start, valid = jax.tree.map(partial(_where, valid), start, new), valid | good
    raise ValueError("no starting point with a finite log density and gradient was found in 20 draws from "
                     f"init={how!r}; pass init= a dict of values inside the support, and check the model")


def _where(mask: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """a where the chain's entry of `mask` is set, else b."""
    return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _draw_starts(target: Target, how: str, count: int, key: jax.Array, x: Any, y: Any):
    def one(key):
        if how == "uniform":
            u = {s: jax.random.uniform(name_key(key, s), v.shape, minval=-2.0, maxval=2.0)
                 for s, v in target.shapes(x, y).items()}
        else:
            params = target.bound.draw_prior(key, x)
            if isinstance(target.bound, BoundNetwork) and not target.collapsed and not collapsible(target.bound):
                params = complete(target.bound, name_key(key, "readout"), params, x, y)
            u = target.unconstrain(params, x, y)
        return u, _valid(target, u, x, y)

    return jax.lax.map(one, jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count)))


def _valid(target: Target, u: Params, x: Any, y: Any) -> jax.Array:
    value, grad = jax.value_and_grad(target.log_density)(u, x, y)
    return jnp.isfinite(value) & jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(grad)]).all()


@partial(jax.jit, static_argnums=0)
def unconstrain_all(target: Target, start: Params, x: Any, y: Any) -> Params:
    """Unconstrained coordinates of several starts, leading axis (chain,)."""
    return jax.lax.map(lambda params: target.unconstrain(params, x, y), start)


@partial(jax.jit, static_argnums=0)
def _all_valid(target: Target, u: Params, x: Any, y: Any) -> jax.Array:
    return jax.lax.map(lambda one: _valid(target, one, x, y), u)


def _checked(target: Target, u: Params, x: Any, y: Any, source: str) -> Params:
    bad = np.flatnonzero(~np.asarray(_all_valid(target, u, x, y)))
    if bad.size:
        raise ValueError(f"{source}: the log density or its gradient is not finite at the starting point of chain "
                         f"{bad[0]}; pass values inside the support")
    return u


def check_chains(num_chains: Any, num_warmup: Any, num_samples: Any, thinning: Any) -> tuple[int, int, int, int]:
    """The four counts every chain sampler takes."""
    return (check_count(num_chains, "num_chains"), check_count(num_warmup, "num_warmup", 0),
            check_count(num_samples, "num_samples"), check_count(thinning, "thinning"))
