"""Output-space Fisher matrices: what one datum says about the parameters of its own distribution.

For a datum with distribution parameters η the Fisher matrix is F_out = S Sᵀ. Everything above this module needs only
*responses*: functions r(θ) = S(θ₀)ᵀ η(θ) whose Jacobian at θ₀ is the rows SᵀJ of the metric's factor, so that
I = (1/n) Σ (∂r/∂θ)ᵀ (∂r/∂θ) (theory §1). The Monte-Carlo and the empirical Fisher are responses too: log-probabilities
of drawn and of observed labels.

For a family known here η are natural coordinates and S is a formula; for any other distribution with a KL divergence
registered in NumPyro, F_out is the Hessian of that KL at coincidence (52); else only labels can be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.lax import stop_gradient
from jax.scipy.special import polygamma

from ..core.programs import depends
from ..model.bound import BoundModel, Params, unwrap
from ..model.likelihoods import Likelihood, categorical_root

__all__ = ["Estimator", "choose", "responses"]


@dataclass(frozen=True)
class Estimator:
    """How the output Fisher matrix is had. Hashable: it keys compiled code.

    Attributes
    ----------
    name : {"exact", "montecarlo", "empirical"}
    num_samples : int
        Labels drawn for each datum (Monte-Carlo only).
    family : {"formula", "kl"}
        Where an exact matrix comes from (general models).
    varies : tuple of str or of int
        Parameters of the observed distribution that depend on the flowing sites: names, or leaf numbers for "kl".
        The others bring rows of zeros and are left out.
    copies : int
        2 for a model that loses the datum axis of a single datum (a bare ``squeeze``), which is then shown twice.
    """

    name: str = "exact"
    num_samples: int = 1
    family: str = "formula"
    varies: tuple = ()
    copies: int = 1


# -- families with a formula ----------------------------------------------------------------------------------
# Fisher information of location and of scale, times scale²; they are orthogonal for a symmetric density.
LOCATION_SCALE = {
    dist.Normal: (1.0, 2.0),
    dist.LogNormal: (1.0, 2.0),
    dist.Laplace: (1.0, 1.0),
    dist.Cauchy: (0.5, 0.5),
    dist.Logistic: (1 / 3, (3 + math.pi**2) / 9),
}
# name → the parameters that its formula takes as known, so that it applies only where they do not vary
FIXED: dict[type, tuple[str, ...]] = {
    dist.GammaPoisson: ("concentration", "total_count"),
    dist.BinomialLogits: ("total_count",), dist.BinomialProbs: ("total_count",),
    dist.MultinomialLogits: ("total_count",), dist.MultinomialProbs: ("total_count",),
}


def _columns(*parts: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Orthogonal scalar parameters (η_k, s_k) with F = diag(s_k²): η (..., k) and S (..., k, k)."""
    eta = jnp.stack([p for p, _ in parts], axis=-1)
    roots = jnp.stack([s for _, s in parts], axis=-1)
    return eta, roots[..., None] * jnp.eye(len(parts), dtype=roots.dtype)


def _student(d: dist.StudentT, varies: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """Student's t: location ⟂ (scale, degrees of freedom ν). Lange, Little & Taylor, JASA 84 (1989) 881, appendix B."""
    df, loc, scale = jnp.broadcast_arrays(d.df, d.loc, d.scale)
    f_loc, f_scale = (df + 1) / (df + 3) / scale**2, 2 * df / (df + 3) / scale**2
    if "df" not in varies:
        known = [(loc, jnp.sqrt(f_loc))] + ([(scale, jnp.sqrt(f_scale))] if "scale" in varies else [])
        return _columns(*known)
    f_df = 0.25 * (polygamma(1, df / 2) - polygamma(1, (df + 1) / 2)) - (df + 5) / (2 * df * (df + 1) * (df + 3))
    cross = -2 / (scale * (df + 1) * (df + 3))
    low = cross / jnp.sqrt(f_scale)
    zero = jnp.zeros_like(loc)
    root = jnp.stack([jnp.stack([jnp.sqrt(f_loc), zero, zero], -1), jnp.stack([zero, jnp.sqrt(f_scale), zero], -1),
                      jnp.stack([zero, low, jnp.sqrt(f_df - low**2)], -1)], -2)
    return jnp.stack([loc, scale, df], -1), root


def _multivariate(d: dist.Distribution, varies: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """Multivariate normal, Σ = L Lᵀ: F = Σ⁻¹ for the mean; ½ tr(Σ⁻¹dΣ)² = Σ_{i>j} M_ij² + 2 Σ_i M_ii², M = L⁻¹dL."""
    tril = d.scale_tril if isinstance(d, dist.MultivariateNormal) else jnp.linalg.cholesky(d.covariance_matrix)
    dim = tril.shape[-1]
    loc = jnp.broadcast_to(d.loc, (*tril.shape[:-2], dim)) if tril.ndim > d.loc.ndim else d.loc
    tril = jnp.broadcast_to(tril, (*loc.shape, dim))
    inverse = jax.scipy.linalg.solve_triangular(tril, jnp.broadcast_to(jnp.eye(dim, dtype=tril.dtype), tril.shape),
                                                lower=True)
    if set(varies) <= {"loc"}:
        return loc, jnp.swapaxes(inverse, -1, -2)
    i, j = jnp.tril_indices(dim)
    weight = jnp.where(i == j, math.sqrt(2.0), 1.0).astype(tril.dtype)
    # row (k, l) of η is L_kl, column (i, j) of S is M_ij = Σ_k (L⁻¹)_ik dL_kj
    moved = jnp.where(j[:, None] == j[None, :], jnp.swapaxes(inverse, -1, -2)[..., i[:, None], i[None, :]], 0) * weight
    top = jnp.concatenate([jnp.swapaxes(inverse, -1, -2), jnp.zeros((*loc.shape, len(i)), loc.dtype)], -1)
    low = jnp.concatenate([jnp.zeros((*moved.shape[:-1], dim), loc.dtype), moved], -1)
    return jnp.concatenate([loc, tril[..., i, j]], -1), jnp.concatenate([top, low], -2)


def _formula(base: dist.Distribution, varies: tuple[str, ...]) -> tuple[jax.Array, jax.Array] | None:
    """(η, S) of a distribution, shapes (*batch, k) and (*batch, k, r); None where no formula is known."""
    for family, (of_loc, of_scale) in LOCATION_SCALE.items():
        if isinstance(base, family):
            loc, scale = jnp.broadcast_arrays(base.loc, base.scale)
            parts = [(loc, math.sqrt(of_loc) / scale)] if "loc" in varies or "scale" not in varies else []
            return _columns(*parts, *([(scale, math.sqrt(of_scale) / scale)] if "scale" in varies else []))
    match base:
        case dist.StudentT():
            return _student(base, varies)
        case dist.MultivariateNormal() | dist.LowRankMultivariateNormal():
            return _multivariate(base, varies)
        case dist.HalfNormal():
            return _columns((base.scale, math.sqrt(2.0) / base.scale))
        case dist.Exponential():
            return _columns((jnp.log(base.rate), jnp.ones_like(base.rate)))
        case dist.Poisson():
            return _columns((jnp.log(base.rate), jnp.sqrt(base.rate)))
        case dist.GammaPoisson():  # negative binomial of mean μ and known concentration c: F = μc/(μ + c) for log μ
            size, rate = jnp.broadcast_arrays(base.concentration, base.rate)
            return _columns((-jnp.log(rate), jnp.sqrt(size / (1 + rate))))
        case dist.CategoricalLogits() | dist.CategoricalProbs():
            return base.logits, categorical_root(base.logits)
        case dist.MultinomialLogits() | dist.MultinomialProbs():
            count = jnp.sqrt(jnp.asarray(base.total_count, base.logits.dtype))[..., None, None]
            return base.logits, count * categorical_root(base.logits)
        case dist.BernoulliLogits() | dist.BernoulliProbs() | dist.BinomialLogits() | dist.BinomialProbs():
            root = _bernoulli_root(base.logits)
            logits, root = jnp.broadcast_arrays(base.logits, root * jnp.sqrt(getattr(base, "total_count", 1.0)))
            return _columns((logits, root))
        case dist.GeometricLogits() | dist.GeometricProbs():  # F = 1 − p for the logit
            return _columns((base.logits, jnp.exp(0.5 * jax.nn.log_sigmoid(-base.logits))))
    return None


def _bernoulli_root(logits: jax.Array) -> jax.Array:
    """√(p(1 − p)), written so that it keeps its digits for large |logit|."""
    return jnp.exp(0.5 * (jax.nn.log_sigmoid(logits) + jax.nn.log_sigmoid(-logits)))


def _observed_mask(d: dist.Distribution) -> Any:
    """Product of the masks around a distribution; 1 where there is none."""
    mask: Any = 1.0
    while isinstance(d, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        if isinstance(d, dist.MaskedDistribution):
            mask = mask * jnp.asarray(d._mask, jnp.result_type(float))
        d = d.base_dist
    return mask


def _formula_responses(d: dist.Distribution, varies: tuple[str, ...]) -> jax.Array:
    """Sᵀη of an observed distribution, (leading axis, r), with S frozen."""
    base, full = unwrap(d), (*d.batch_shape, *d.event_shape)
    found = _formula(base, varies)
    assert found is not None
    eta, root = found
    batch = full[: len(full) - base.event_dim]
    r = jnp.einsum("...k,...kr->...r", eta, stop_gradient(root))
    r = jnp.broadcast_to(r, (*batch, r.shape[-1])) * jnp.broadcast_to(_observed_mask(d), batch)[..., None]
    return r.reshape(full[0], -1)


# -- any distribution with a KL -------------------------------------------------------------------------------
def _leaf_function(d: dist.Distribution, varies: tuple[int, ...]) -> tuple[jax.Array, Callable]:
    """Varying leaves of a distribution as one vector, and the distribution as a function of that vector."""
    leaves, treedef = jax.tree.flatten(d)
    chosen = [jnp.asarray(leaves[i]) for i in varies]
    vector = jnp.concatenate([leaf.ravel() for leaf in chosen])

    def rebuild(vector):
        new, start = [stop_gradient(leaf) for leaf in leaves], 0
        for i, leaf in zip(varies, chosen, strict=True):
            new[i] = vector[start:start + leaf.size].reshape(leaf.shape)
            start += leaf.size
        return jax.tree.unflatten(treedef, new)

    return vector, rebuild


def _kl_responses(d: dist.Distribution, varies: tuple[int, ...]) -> jax.Array:
    """Sᵀη of the first datum of `d`, S Sᵀ the Hessian of KL(d(η₀) ‖ d(η)) at η = η₀."""
    eta, rebuild = _leaf_function(d, varies)
    start = stop_gradient(eta)
    here = rebuild(start)

    def divergence(vector):
        kl = dist.kl_divergence(here, rebuild(vector))
        return jnp.sum(jnp.broadcast_to(kl, d.batch_shape).reshape(d.batch_shape[0], -1)[0])

    values, vectors = jnp.linalg.eigh(jax.hessian(divergence)(start))
    root = vectors * jnp.sqrt(jnp.where(values < 0, 0.0, values))  # keeps NaN, drops rounding below zero
    return eta @ stop_gradient(root)


# -- responses ------------------------------------------------------------------------------------------------
def _scores(log_prob: Callable, sample: Callable, how: Estimator, y: Any, key: Any) -> jax.Array:
    """Log-probabilities (R,) of the observed label, or of drawn ones over √(their number)."""
    if how.name == "empirical":
        return log_prob(y)[None]
    labels = stop_gradient(sample(key, (how.num_samples,)))
    return jax.vmap(log_prob)(labels) / math.sqrt(how.num_samples)


def output_responses(likelihood: Likelihood, how: Estimator, phi: jax.Array, batch: dict, key: Any) -> jax.Array:
    """Responses (n, R) of a network's output φ (n, outputs)."""
    if how.name == "exact":
        return jnp.einsum("nk,nkr->nr", phi, stop_gradient(likelihood.fisher_root(phi)))

    def one(phi, index, y):
        d = likelihood.distribution(phi[None])
        return _scores(lambda y: d.log_prob(y[None])[0], lambda k, shape: d.sample(k, shape)[:, 0], how, y,
                       None if key is None else jax.random.fold_in(key, index))

    return jax.vmap(one)(phi, batch["index"], batch.get("y", batch["index"]))


def _general_one(bound: BoundModel, how: Estimator, params: Params, datum: dict, key: Any) -> jax.Array:
    """Responses (R,) of one datum of any model."""
    d = bound.distribution(params, jax.tree.map(lambda leaf: jnp.stack([leaf] * how.copies), datum["x"]))
    if how.name == "exact":
        return _kl_responses(d, how.varies) if how.family == "kl" else _formula_responses(d, how.varies)[0]

    def log_prob(y):
        terms = d.log_prob(jnp.stack([y] * how.copies))
        return jnp.sum(terms.reshape(d.batch_shape[0], -1)[0])

    return _scores(log_prob, lambda k, shape: d.sample(k, shape)[:, 0], how, datum.get("y"),
                   None if key is None else jax.random.fold_in(key, datum["index"]))


def responses(bound: BoundModel, how: Estimator, params: Params, batch: dict, key: Any = None) -> jax.Array:
    """Responses r, shape (n, R), whose Jacobian in the parameters is the rows SᵀJ of the metric's factor.

    Parameters
    ----------
    bound : BoundModel
    how : Estimator
    params : dict
        Parameters of one draw; differentiate with respect to these.
    batch : dict
        ``"x"``; ``"index"`` (n,), the number of each datum, from which its key is folded; ``"weight"`` (n,), zero for
        padding; and ``"y"`` for the empirical Fisher.
    key : jax.random.key, optional
        For drawn labels.
    """
    if bound.likelihood is not None:
        r = output_responses(bound.likelihood, how, bound.phi(params, batch["x"]), batch, key)
    else:
        def one(datum):
            x = jax.tree.map(lambda leaf: leaf[None], datum["x"])
            weight = jnp.sqrt(bound.weights(params, x)[0]) if bound.weighted else 1.0
            return _general_one(bound, how, params, datum, key) * weight

        r = jax.vmap(one)(batch)
    return r * batch["weight"][:, None]


# -- which of them, decided once ------------------------------------------------------------------------------
def choose(bound: BoundModel, name: str, num_samples: int, params: Params, x: Any, sites: tuple[str, ...]) -> Estimator:
    """Decide how the output Fisher of a model is had.

    Returns an `Estimator` named ``"montecarlo"`` where an exact one was asked for and there is no way to it; the caller
    says so.

    Raises
    ------
    ValueError
        If the Fisher matrix does not exist: a support that moves with the parameters, or a deterministic output.
    """
    if bound.likelihood is not None:
        return Estimator(name, num_samples)
    free, rest = {s: params[s] for s in sites}, {s: v for s, v in params.items() if s not in sites}
    copies = 1

    def observed(free):
        datum = jax.tree.map(lambda leaf: jnp.concatenate([leaf[:1]] * copies), x)
        return bound.distribution({**rest, **free}, datum)

    facts: dict[str, Any] = {}

    def inspect(free):  # only traced: nothing is computed
        d = observed(free)
        base = unwrap(d)
        names = [p for p in base.arg_constraints if has_parameter(base, p)]
        facts.update(batch=d.batch_shape, type=type(base), names=names)

    jax.eval_shape(inspect, free)
    if facts["batch"][:1] != (1,):
        copies = 2
        jax.eval_shape(inspect, free)
    family, names = facts["type"], facts["names"]
    if issubclass(family, dist.Delta):
        raise ValueError("the observed distribution is Delta: an output without noise has a singular output Fisher "
                         "matrix; give the likelihood a positive scale")
    if any(depends(lambda f: jax.tree.leaves(unwrap(observed(f)).support), free)):
        raise ValueError(f"the support of the observed {family.__name__} moves with the parameters, so its Fisher "
                         "matrix does not exist; use a likelihood of fixed support")
    if name != "exact":
        return Estimator(name, num_samples, copies=copies)
    flags = depends(lambda f: [jnp.asarray(getattr(unwrap(observed(f)), p)) for p in names], free)
    varies = tuple(p for p, flag in zip(names, flags, strict=True) if flag)
    fixed = next((f for known, f in FIXED.items() if issubclass(family, known)), ())

    def has_formula(free):
        facts["formula"] = _formula(unwrap(observed(free)), varies) is not None

    jax.eval_shape(has_formula, free)
    if facts["formula"] and not set(fixed) & set(varies):
        return Estimator("exact", 1, "formula", varies, copies)
    flags = depends(lambda f: [jnp.asarray(leaf) for leaf in jax.tree.leaves(observed(f))], free)
    moving = tuple(i for i, flag in enumerate(flags) if flag)

    def divergence(free):
        d = observed(free)
        return dist.kl_divergence(d, d)

    try:
        jax.eval_shape(divergence, free)
    except (NotImplementedError, AttributeError, TypeError):
        return Estimator("montecarlo", num_samples, copies=copies)
    return Estimator("exact", 1, "kl", moving or (0,), copies)


def has_parameter(base: dist.Distribution, name: str) -> bool:
    """Whether a distribution has a value for one of its documented parameters."""
    try:
        return getattr(base, name) is not None
    except (AttributeError, NotImplementedError):
        return False
