"""One adapter between models and samplers: named native arrays outside, unconstrained arrays inside.

Every sampler of the package works on a `Target`. Its coordinates u are real, and for the Gaussian sites of a
`Network` whitened by the prior, θ = m_p + σ_p u, so that one step size suits layers of every width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from ..core.arrays import check_array
from ..core.checks import check_choice, check_data, check_key
from ..core.keys import name_key
from ..model.bound import BoundModel, bind
from ..model.readout import LinearReadout
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
        """The sites that are sampled, some of them in part where the readout is collapsed."""
        if not self.collapsed:
            return self.bound.names
        readout = self._readout
        return tuple(s for s in self.bound.names if s in readout.hidden or s in readout.kept)

    def narrow(self, values: Params) -> Params:
        """What is sampled of values or coordinates of all sites."""
        return self._readout.narrow(values) if self.collapsed else values

    def widen(self, u: Params) -> Params:
        """Coordinates of whole sites; of those columns that are integrated out, the prior mean."""
        return self._readout.widen(u) if self.collapsed else u

    @property
    def _readout(self) -> LinearReadout:
        readout = self.bound.readout
        assert readout is not None  # `prepare` collapses no other model
        return readout

    @property
    def whitened(self) -> bool:
        """Whether u is θ whitened by Gaussian priors at every site."""
        return self.bound.white(self.names)

    # -- coordinates --------------------------------------------------------------------------------------
    def scales(self) -> dict[str, Any]:
        """Width of one unit of each whitened site (at learned scales of 1); 1 for the others."""
        return self.narrow({s: jnp.broadcast_to(v, self.bound.site(s).shape)
                             for s, v in self.bound.scales(self.names).items()})

    def constrain(self, u: Params, x: Any, y: Any) -> Params:
        """Native values of the sampled sites."""
        return self.bound.constrain(self.widen(u), x, y)

    def unconstrain(self, params: Mapping, x: Any, y: Any) -> Params:
        """Unconstrained coordinates of native values."""
        return self.narrow(self.bound.unconstrain({s: jnp.asarray(params[s]) for s in self.names}, x, y))

    def unravel(self, x: Any, y: Any) -> Callable[[jax.Array], Params]:
        """From the flat vector, in the order of `jax.flatten_util.ravel_pytree`, to the named coordinates."""
        return ravel_pytree({s: jnp.zeros(v.shape, v.dtype) for s, v in self.shapes(x, y).items()})[1]

    def shapes(self, x: Any, y: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the coordinates, which may differ from the native ones (a simplex)."""
        found = self.bound.shapes(x, y)
        if not self.collapsed:
            return {s: found[s] for s in self.names}
        return dict(jax.eval_shape(self.narrow, {s: found[s] for s in self.names}))

    # -- densities, in nats -------------------------------------------------------------------------------
    def log_prior(self, u: Params, x: Any, y: Any = None) -> jax.Array:
        """Log prior density of u, Jacobian included; without factors."""
        value, whole = self.bound.log_prior_of(self.widen(u), x, y), 0
        if self.collapsed:  # zeros that stand for what is integrated out count for N(0, 1) each
            whole = sum(math.prod(self.bound.site(s).shape) - u[s].size for s in self._readout.kept)
        return value + 0.5 * whole * math.log(2 * math.pi) if whole else value

    def log_factors(self, u: Params, x: Any, y: Any) -> jax.Array:
        """Sum of the model's `numpyro.factor` terms."""
        return self.bound.log_factors(self.constrain(u, x, y), x, y)

    def log_likelihood(self, u: Params, x: Any, y: Any) -> jax.Array:
        """What each datum adds to the log density, (n,); of all data, (1,), where the readout is collapsed."""
        params = self.constrain(u, x, y)
        return (self._readout.log_marginal(params, x, y)[None] if self.collapsed
                else self.bound.weighted_log_likelihood(params, x, y))

    def log_density(self, u: Params, x: Any, y: Any) -> jax.Array:
        """Log posterior density of u, up to the evidence."""
        if self.collapsed:
            return self.log_prior(u, x, y) + self.log_likelihood(u, x, y)[0]
        return self.bound.log_density_of(u, x, y)

    def finish(self, key: jax.Array, u: Params, x: Any, y: Any) -> Params:
        """Native values of every site; a collapsed readout is drawn from its exact conditional."""
        params = self.constrain(u, x, y)
        if self.collapsed:
            params = self._readout.complete(key, params, x, y)
        return {s: params[s] for s in self.bound.names}


# -- from the arguments of a public function to a target ------------------------------------------------------
def checked(model: Callable, x: Any, y: Any, key: Any) -> tuple[BoundModel, Any, Any, jax.Array]:
    """The bound model, x, y and the key, checked: what every way to a posterior starts from."""
    key = check_key(key)
    x, y = check_data(x, y)
    bound = bind(model, x)
    return bound, x, bound.targets(y), key


def aim(bound: BoundModel, method: str, readout: str = "sampled") -> Target:
    """The target of a bound model, if `method` can sample it."""
    for site in bound.sites:
        if site.discrete:
            raise ValueError(f"site {site.name!r} is discrete, and {method} needs gradients: sum it out of the model")
    if check_choice(readout, "readout", ("sampled", "collapsed")) == "collapsed":
        reason = bound.uncollapsible()
        if reason:
            raise ValueError(f"readout='collapsed' is not possible: {reason}, or pass readout='sampled'")
    return Target(bound, readout == "collapsed")


def prepare(model: Callable, x: Any, y: Any, key: Any, method: str,
            readout: str = "sampled") -> tuple[Target, Any, Any, jax.Array]:
    """Check what every sampler takes; return the target, x, y and the method's own key."""
    bound, x, y, key = checked(model, x, y, key)
    return aim(bound, method, readout), x, y, name_key(key, method)


INITS = ("auto", "prior", "uniform", "ensemble")
CLIMB_STEPS, CLIMB_RATE = 600, 0.02


def initial(target: Target, key: jax.Array, x: Any, y: Any, count: int, init: Any = "auto") -> Params:
    """Starting points of `count` chains, unconstrained, leading axis (count,).

    Parameters
    ----------
    init : str, Posterior or dict
        ``"prior"``: prior draws; the readout of a Gaussian network from its exact conditional. ``"uniform"``: uniform
        on (−2, 2) in unconstrained coordinates, as NumPyro does. ``"auto"``: the first for networks, the second for
        other models. ``"ensemble"``: each chain from the end of an ascent of its own, by Adam, from where ``"auto"``
        would start: a deep ensemble, whose members lie in modes that a chain from the prior takes long to find. A
        `Posterior`: its last draws where it has as many (dependent) chains, else draws of it at random, of an ensemble
        those that did not diverge. A dict of native values: one point for all chains, or one each with a leading axis
        (count,).
    """
    key = name_key(key, "init")
    if isinstance(init, Posterior):
        return _sound(target, _from_posterior(target, key, count, init), x, y)
    if isinstance(init, Mapping):
        return _sound(target, _from_values(target, count, init), x, y)
    if not isinstance(init, str):
        raise TypeError(f"init must be one of {', '.join(INITS)}, a Posterior or a dict of values, got {init!r}")
    return _from_name(target, key, x, y, count, check_choice(init, "init", INITS))


def _from_posterior(target: Target, key: jax.Array, count: int, init: Posterior) -> Params:
    """Native values at the last draws of as many chains, else at draws picked at random."""
    target.bound.check_params(init.samples, "init")
    if init.num_chains == count and not init.stats.get("independent", False):
        return {s: init.samples[s][:, -1] for s in target.names}
    sound = np.flatnonzero(~diverged(init))
    if not sound.size:
        raise ValueError(f"init: all {init.size} members are marked in stats['diverged']; train them at a lower rate, "
                         "or start elsewhere")
    pick = jax.random.choice(key, jnp.asarray(sound), (count,), replace=sound.size < count)
    return {s: init.flat()[s][pick] for s in target.names}


def _from_values(target: Target, count: int, init: Mapping) -> Params:
    """Native values as given, one point for all chains or one each."""
    start = {}
    for s in target.names:
        shape = target.bound.site(s).shape
        if s not in init:
            raise ValueError(f"init lacks the site {s!r}; it has {', '.join(init)}")
        value = check_array(init[s], f"init[{s!r}]", axes=())
        if value.shape not in (shape, (count, *shape)):
            raise ValueError(f"init[{s!r}] has shape {value.shape}; expected {shape}, or {(count, *shape)} for one "
                             "point a chain")
        start[s] = jnp.broadcast_to(value, (count, *shape))
    return start


def _from_name(target: Target, key: jax.Array, x: Any, y: Any, count: int, how: str) -> Params:
    """Unconstrained points drawn until their density and its gradient are finite."""
    bound = target.bound
    if how == "ensemble":
        return _climbed(target, _from_name(target, key, x, y, count, "auto"), x, y)
    if how == "auto":
        how = "prior" if bound.familiar else "uniform"
    improper = [s.name for s in bound.sites if s.improper]
    if how == "prior" and improper:
        raise ValueError(f"site {improper[0]!r} has an improper prior, from which nothing can be drawn; pass "
                         "init='uniform'")
    start, valid = _draw_starts(target, how, count, jax.random.fold_in(key, 0), x, y)
    for attempt in range(1, 20):  # a start of vanishing density is drawn again
        if not valid.all():
            new, good = _draw_starts(target, how, count, jax.random.fold_in(key, attempt), x, y)
            start, valid = jax.tree.map(partial(_where, valid), start, new), valid | good
    if valid.all():
        return start
    raise ValueError("no starting point with a finite log density and gradient was found in 20 draws from "
                     f"init={how!r}; pass init= a dict of values inside the support, and check the model"
                     + _small_noise(target))


@partial(jax.jit, static_argnums=0)
def _climbed(target: Target, start: Params, x: Any, y: Any) -> Params:
    """The highest point on an ascent of the log density from each start, leading axis (chain,)."""
    optimizer = optax.adam(optax.cosine_decay_schedule(CLIMB_RATE, CLIMB_STEPS))

    def ascend(begin):
        def step(carry, _):
            u, state, best, top = carry
            value, slope = jax.value_and_grad(target.log_density)(u, x, y)
            best, top = _where_tree(value > top, u, best), jnp.fmax(value, top)
            change, state = optimizer.update(jax.tree.map(lambda g: -jnp.nan_to_num(g), slope), state, u)
            return (optax.apply_updates(u, change), state, best, top), None

        top = target.log_density(begin, x, y)
        (last, _, best, top), _ = jax.lax.scan(step, (begin, optimizer.init(begin), begin, top), None, CLIMB_STEPS)
        return _where_tree(target.log_density(last, x, y) > top, last, best)

    return jax.vmap(ascend)(start)


def _where_tree(mask: jax.Array, a: Params, b: Params) -> Params:
    return jax.tree.map(lambda a, b: jnp.where(mask, a, b), a, b)


def _small_noise(target: Target) -> str:
    """What to say of the noise of a readout that starts are integrated over, or completed with, exactly."""
    if target.bound.uncollapsible():
        return ""
    likelihood = target.bound.likelihood
    noise = "The noise" if likelihood is None or likelihood.noise is None else f"Noise of {likelihood.noise:g}"
    remedy = ", or pass readout='sampled'" if target.collapsed else ", or pass init='uniform'"
    return (f". {noise} may be too small for the precision of the exact readout, above all with "
            f"repeated inputs: raise it{remedy}")


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
            if not target.collapsed and not target.bound.uncollapsible():
                params = target.bound.readout.complete(name_key(key, "readout"), params, x, y)  # type: ignore[union-attr]
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


def _sound(target: Target, start: Params, x: Any, y: Any) -> Params:
    """Unconstrained coordinates of given starts, at each of which the density must be finite."""
    u = unconstrain_all(target, start, x, y)
    bad = np.flatnonzero(~np.asarray(_all_valid(target, u, x, y)))
    if bad.size:
        raise ValueError("init: the log density or its gradient is not finite at the starting point of chain "
                         f"{bad[0]}; pass values inside the support")
    return u


def trained_sites(bound: BoundModel, train: str | Sequence[str]) -> tuple[str, ...]:
    """The sites named by `train`, in the model's order."""
    if train == "all":
        return bound.names
    if train == "readout":
        if bound.readout is None:
            raise ValueError("train='readout' needs a brg.mlp or brg.cosnet; for this model pass train='all' or the "
                             f"names of sites: {', '.join(bound.names)}")
        return bound.readout.sites
    names = (train,) if isinstance(train, str) else tuple(train)
    for name in names:
        bound.site(name)
    if not names:
        raise ValueError("train names no site; pass 'readout', 'all' or site names")
    return tuple(s for s in bound.names if s in names)
