"""Reading NumPyro distributions, and the counts among them with log densities that hold in float32."""

from __future__ import annotations

import copy
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln

__all__ = ["CENSORED", "censoring", "observed_mask", "stable", "unwrap"]

WRAPPERS = (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)
CENSORED = tuple(getattr(dist, name) for name in (
    "LeftCensoredDistribution", "RightCensoredDistribution", "IntervalCensoredDistribution") if hasattr(dist, name))


def unwrap(d: dist.Distribution) -> dist.Distribution:
    """The distribution under `Independent`, `expand` and `mask`."""
    while isinstance(d, WRAPPERS):
        d = d.base_dist
    return d


def observed_mask(d: dist.Distribution) -> Any:
    """Product of the masks around a distribution, broadcasting to the batch of what is inside; True for no mask."""
    mask: Any = True
    events = 0  # batch axes of the inner distribution that are event axes out here
    found = []
    while isinstance(d, WRAPPERS):
        if isinstance(d, dist.MaskedDistribution):
            found.append((events, jnp.asarray(d._mask, bool)))
        if isinstance(d, dist.Independent):
            events += d.reinterpreted_batch_ndims
        d = d.base_dist
    for outside, m in found:
        inner = events - outside  # axes that this mask does not see
        m = m.reshape(m.shape + (1,) * inner) if m.ndim else m
        mask = m & mask
    return mask


def censoring(d: dist.Distribution) -> Any:
    """Which entries of y are limits of what was not seen; None for a law that knows of none."""
    base = unwrap(d)
    if not isinstance(base, CENSORED):
        return None
    if hasattr(base, "censored"):
        return jnp.broadcast_to(base.censored, d.shape())
    return jnp.ones(d.shape(), bool)  # intervals, of which points are a limit


# -- counts ---------------------------------------------------------------------------------------------------
# log p of a large count is a small difference of large terms (y log λ − λ − log y!, some 1e8 for a count of 1e7), so
# that float32 has no digit of it left. Loader's form has small terms only: deviances and Stirling errors [1]_.
#
# .. [1] Loader, Fast and accurate computation of binomial probabilities (2000), as in R's dpois, dbinom and dnbinom.
LARGE = 16.0
EXTREME = 60.0  # logits beyond which one of the two outcomes may have no digits left as a probability


def _stirling_error(n: jax.Array) -> jax.Array:
    """log n! − log(√(2πn) (n/e)ⁿ), n > 0."""
    large = n >= LARGE
    big, small = jnp.where(large, n, LARGE), jnp.where(large, 1.0, n)
    series = (1 / 12 - (1 / 360 - 1 / (1260 * big**2)) / big**2) / big
    direct = gammaln(small + 1) - (small + 0.5) * jnp.log(small) + small - 0.5 * math.log(2 * math.pi)
    return jnp.where(large, series, direct)


def _deviance(x: jax.Array, m: jax.Array) -> jax.Array:
    """x log(x/m) + m − x, x > 0: how far the count x is from its mean m, in nats."""
    r = (m - x) / x
    near = jnp.abs(r) < 0.5
    log_ratio = jnp.where(near, jnp.log1p(jnp.where(near, r, 0.0)), jnp.log(jnp.where(near, 1.0, m / x)))
    return x * (r - log_ratio)


def _poisson(x: jax.Array, rate: jax.Array) -> jax.Array:
    large = x >= LARGE
    big, small = jnp.where(large, x, LARGE), jnp.where(large, 0.0, x)
    loader = -_stirling_error(big) - _deviance(big, jnp.where(large, rate, LARGE)) - 0.5 * jnp.log(2 * math.pi * big)
    some = jnp.where(large, 1.0, rate)
    direct = jax.scipy.special.xlogy(small, some) - some - gammaln(small + 1)
    return jnp.where(large, loader, direct)


def _binomial(k: jax.Array, m: jax.Array, n: jax.Array, p: jax.Array, q: jax.Array) -> jax.Array:
    """log C(n, k) pᵏ qᵐ, m = n − k, for n that need not be whole; m, and p and q = 1 − p, each with its own digits."""
    inside = (k > 0) & (m > 0)
    k_, m_, n_ = jnp.where(inside, k, 1.0), jnp.where(inside, m, 1.0), jnp.where(inside, n, 2.0)
    p_, q_ = jnp.where(inside, p, 0.5), jnp.where(inside, q, 0.5)
    errors = _stirling_error(n_) - _stirling_error(k_) - _stirling_error(m_)
    deviances = _deviance(k_, n_ * p_) + _deviance(m_, n_ * q_)
    loader = errors - deviances - 0.5 * (math.log(2 * math.pi) + jnp.log(k_) + jnp.log(m_ / n_))
    one_sided = jax.scipy.special.xlogy(k, p) + jax.scipy.special.xlogy(m, q)
    return jnp.where(inside, loader, one_sided)


def _negative_binomial(x: jax.Array, size: jax.Array, rate: jax.Array) -> jax.Array:
    """log C(x + size − 1, x) pˢⁱᶻᵉ qˣ with p = rate/(1 + rate), size > 0 not whole: mean size/rate."""
    some = jnp.log(size / (size + x)) + _binomial(size, x, x + size, rate / (1 + rate), 1 / (1 + rate))
    return jnp.where(x > 0, some, -size * jnp.log1p(1 / rate))


def _floats(*arrays: Any) -> list[jax.Array]:
    dtype = jnp.result_type(float, *(a for a in arrays if jnp.issubdtype(jnp.result_type(a), jnp.floating)))
    return [jnp.asarray(a, dtype) for a in arrays]


class Counts:
    """Mixed into a NumPyro family of counts: the same law, its log density by `_log_mass`."""

    _log_mass: Any
    _validate_args: Any
    support: Any

    def log_prob(self, value):
        log_p = self._log_mass(value)
        return jnp.where(self.support(value), log_p, -jnp.inf) if self._validate_args else log_p


def _poisson_mass(d, value):
    return _poisson(*_floats(value, d.rate))


def _negative_binomial_mass(d, value):
    return _negative_binomial(*_floats(value, d.concentration, d.rate))


def _binomial_logit_mass(d, value):
    k, n, logits = _floats(value, d.total_count, d.logits)
    clipped = jnp.clip(logits, -EXTREME, EXTREME)
    stable_form = _binomial(k, n - k, n, jax.nn.sigmoid(clipped), jax.nn.sigmoid(-clipped))
    return jnp.where(jnp.abs(logits) < EXTREME, stable_form, dist.BinomialLogits.log_prob(d, value))


def _binomial_mass(d, value):
    k, n, p = _floats(value, d.total_count, d.probs)
    return _binomial(k, n - k, n, p, 1 - p)


def _multinomial_mass(d, value):
    """Class after class: each count is binomial among those that are left, C − 1 of them."""
    left = jnp.flip(jnp.cumsum(jnp.flip(jnp.asarray(value), -1), -1), -1)  # as whole numbers, if they came as such
    log_p = jax.nn.log_softmax(d.logits, axis=-1)
    log_tail = jax.lax.cumlogsumexp(log_p, axis=log_p.ndim - 1, reverse=True)
    k, total, p, q = _floats(jnp.asarray(value)[..., :-1], left, jnp.exp(log_p[..., :-1] - log_tail[..., :-1]),
                             jnp.exp(log_tail[..., 1:] - log_tail[..., :-1]))
    return jnp.sum(_binomial(k, total[..., 1:], total[..., :-1], p, q), axis=-1)


# Draws of classes of unknown probability are negative binomials of any common rate, given their sum. That rate is
# chosen for which the sum is what is expected.
def _beta_binomial_mass(d, value):
    k, n, a, b = _floats(value, d.total_count, d.concentration1, d.concentration0)
    rate = (a + b) / jnp.maximum(n, 1.0)
    return (_negative_binomial(k, a, rate) + _negative_binomial(n - k, b, rate)) - _negative_binomial(n, a + b, rate)


def _dirichlet_multinomial_mass(d, value):
    k, n, a = _floats(value, d.total_count, d.concentration)
    size = a.sum(-1)
    rate = size / jnp.maximum(n, 1.0)
    return jnp.sum(_negative_binomial(k, a, rate[..., None]), axis=-1) - _negative_binomial(n, size, rate)


# -- what lies beyond a limit ---------------------------------------------------------------------------------
def _log_tail(base: dist.Distribution, x: jax.Array, upper: bool) -> jax.Array | None:
    """log P(T > x), or log P(T < x), for families in which it keeps its digits far out; None for others.

    NumPyro takes the log of one less the distribution function, which is 1 to rounding 16 (in float32) e-folds out.
    """
    def standard(d, value):
        return (value - d.loc) / d.scale * (-1.0 if upper else 1.0)

    def from_upper(log_upper):
        return log_upper if upper else jnp.log(-jnp.expm1(log_upper))

    match base:
        case dist.Exponential():
            return from_upper(-base.rate * x)
        case dist.Weibull():
            return from_upper(-(x / base.scale) ** base.concentration)
        case dist.Normal():
            return jax.scipy.special.log_ndtr(standard(base, x))
        case dist.LogNormal():
            return jax.scipy.special.log_ndtr(standard(base, jnp.log(x)))
        case dist.Logistic():
            return jax.nn.log_sigmoid(standard(base, x))
        case dist.Cauchy():
            return jnp.log(jnp.arctan2(1.0, -standard(base, x)) / math.pi)
        case dist.Gumbel():
            below = -jnp.exp(-(x - base.loc) / base.scale)
            return jnp.log(-jnp.expm1(below)) if upper else below
    return None


class Tails:
    """Mixed into a NumPyro law of data censored on one side: the same law, with `_log_tail`."""

    upper: bool
    base_dist: Any
    censored: Any

    def log_prob(self, value):
        inside = jnp.where(self.censored, value, 1.0) if self.base_dist.support is dist.constraints.positive else value
        tail = _log_tail(self.base_dist, inside, self.upper)
        if tail is None:
            return super().log_prob(value)  # type: ignore[misc]
        return jnp.where(self.censored, tail, self.base_dist.log_prob(value))


STABLE = {family: type(family.__name__, (Tails, family), {"upper": upper}) for family, upper in zip(
    CENSORED[:2], (False, True), strict=False)}
def _bernoulli_mass(d, value):
    """log σ(±logit): NumPyro's form has no derivative at a logit of 0, where JAX makes it 0 or 1 for ±½."""
    k, logits = _floats(value, d.logits)
    return jax.nn.log_sigmoid((2 * k - 1) * logits)


STABLE |= {family: type(family.__name__, (Counts, family), {"_log_mass": mass}) for family, mass in (
    (dist.Poisson, _poisson_mass),
    (dist.GammaPoisson, _negative_binomial_mass),
    (dist.NegativeBinomial2, _negative_binomial_mass),
    (dist.conjugate.NegativeBinomialProbs, _negative_binomial_mass),
    (dist.conjugate.NegativeBinomialLogits, _negative_binomial_mass),
    (dist.BernoulliLogits, _bernoulli_mass),
    (dist.BinomialLogits, _binomial_logit_mass),
    (dist.BinomialProbs, _binomial_mass),
    (dist.MultinomialLogits, _multinomial_mass),
    (dist.MultinomialProbs, _multinomial_mass),
    (dist.BetaBinomial, _beta_binomial_mass),
    (dist.DirichletMultinomial, _dirichlet_multinomial_mass),
)}


INSIDE = {dist.Independent: "base_dist", dist.ExpandedDistribution: "base_dist", dist.MaskedDistribution: "base_dist",
          dist.discrete.ZeroInflatedProbs: "base_dist", dist.MixtureSameFamily: "_component_distribution",
          dist.MixtureGeneral: "_component_distributions", **dict.fromkeys(CENSORED, "base_dist")}


def stable(d: dist.Distribution) -> dist.Distribution:
    """The same law, with a log density that keeps its digits for large counts, and far limits of censored data."""
    for kind, name in INSIDE.items():
        if isinstance(d, kind):
            held = getattr(d, name)
            new = [stable(c) for c in held] if isinstance(held, (list, tuple)) else stable(held)
            if new is not held and (not isinstance(held, (list, tuple)) or any(
                    a is not b for a, b in zip(new, held, strict=True))):
                d = copy.copy(d)
                setattr(d, name, new)
    family = STABLE.get(type(d))
    if family is None:
        return d
    d = copy.copy(d)
    d.__class__ = family
    return d
