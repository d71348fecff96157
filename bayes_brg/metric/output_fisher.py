"""Output-space Fisher matrices: what one datum says about the parameters of its own distribution.

For a datum with distribution parameters η the Fisher matrix is F_out = S Sᵀ. Everything above this module needs only
*responses*: functions r(θ) = S(θ₀)ᵀ η(θ) whose Jacobian at θ₀ is the rows SᵀJ of the metric's factor, so that
I = (1/n) Σ (∂r/∂θ)ᵀ (∂r/∂θ) (theory §1). The Monte-Carlo and the empirical Fisher are responses too: log-probabilities
of drawn and of observed labels.

For a family known here η are natural coordinates and S is a formula; for any other distribution with a KL divergence
registered in NumPyro, F_out is the Hessian of that KL at coincidence (52); for any other of one number, E[score scoreᵀ]
is summed over all labels or integrated (`quadrature`); else only labels can be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.lax import stop_gradient
from jax.scipy.special import polygamma

from ..core.batching import map_draws
from ..core.checks import num_points
from ..core.programs import depends
from ..model.bound import BoundModel, Params, unwrap
from ..model.distributions import CENSORED, censoring
from ..model.likelihoods import Likelihood, categorical_root
from . import quadrature

__all__ = ["Estimator", "Outputs", "choose", "outputs", "responses"]


class Data(NamedTuple):
    """Probe inputs, all of them or a batch; the first axis of each array is the datum."""

    x: Any
    y: Any = None
    """Observed labels, for the empirical Fisher."""
    index: Any = None
    """Number of each datum, with which the key of its labels is folded."""
    weight: Any = None
    """1, or 0 for padding."""
    cotangent: Any = None
    """(n, R): what a product with Bᵀ is made with."""

    def numbered(self) -> Data:
        """With numbers (kept where there are any) and weights of 1."""
        n = num_points(self.x)
        index = jnp.arange(n) if self.index is None else self.index
        return self._replace(index=index, weight=jnp.ones(n, jnp.result_type(float)))


@dataclass(frozen=True)
class Estimator:
    """How the output Fisher matrix is had. Hashable: it keys compiled code.

    Attributes
    ----------
    name : {"exact", "montecarlo", "empirical"}
    num_samples : int
        Labels drawn for each datum (Monte-Carlo only).
    family : {"formula", "kl", "quadrature"}
        Where an exact matrix comes from (general models).
    varies : tuple of str or of int
        Parameters of the observed distribution that depend on the flowing sites: names for "formula", else leaf
        numbers. The others bring rows of zeros and are left out. Empty for a network that knows its own output Fisher.
    labels : int
        Whole numbers, from the lowest, that quadrature sums over.
    copies : int
        2 for a model that loses the datum axis of a single datum (a bare ``squeeze``), which is then shown twice.
    """

    name: str = "exact"
    num_samples: int = 1
    family: str = "formula"
    varies: tuple = ()
    copies: int = 1
    labels: int = 0


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


class Outputs(NamedTuple):
    """Distribution parameters of some data, entry by entry of each, and F_out = S Sᵀ; the responses are Sᵀη."""

    eta: jax.Array
    """(n, entries, k)"""
    root: jax.Array
    """S, (n, entries, k, r), with masks and weights."""

    def responses(self) -> jax.Array:
        """Sᵀη, (n, entries · r), with S frozen."""
        r = jnp.einsum("nek,nekr->ner", self.eta, stop_gradient(self.root))
        return r.reshape(r.shape[0], -1)


def _formula_outputs(d: dist.Distribution, varies: tuple[str, ...]) -> Outputs:
    """Of an observed distribution, leading axis the datum."""
    base, full = unwrap(d), (*d.batch_shape, *d.event_shape)
    found = _formula(base, varies)
    assert found is not None
    eta, root = found
    batch = full[: len(full) - base.event_dim]
    eta = jnp.broadcast_to(eta, (*batch, eta.shape[-1])).reshape(full[0], -1, eta.shape[-1])
    root = jnp.broadcast_to(root, (*batch, *root.shape[-2:])) * jnp.broadcast_to(_observed_mask(d), batch)[..., None,
                                                                                                            None]
    return Outputs(eta, root.reshape(*eta.shape, root.shape[-1]))


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


def _kl_outputs(d: dist.Distribution, varies: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """η and S of the first datum of `d`, S Sᵀ the Hessian of KL(d(η₀) ‖ d(η)) at η = η₀."""
    eta, rebuild = _leaf_function(d, varies)
    start = stop_gradient(eta)
    here = rebuild(start)

    def divergence(vector):
        kl = dist.kl_divergence(here, rebuild(vector))
        return jnp.sum(jnp.broadcast_to(kl, d.batch_shape).reshape(d.batch_shape[0], -1)[0])

    values, vectors = jnp.linalg.eigh(jax.hessian(divergence)(start))
    return eta, vectors * jnp.sqrt(jnp.where(values < 0, 0.0, values))  # keeps NaN, drops rounding below zero


# -- any distribution of one number -----------------------------------------------------------------------------
def _nodes(d: dist.Distribution, labels: int) -> quadrature.Rule:
    full = (*d.batch_shape, *d.event_shape)
    return quadrature.rule(unwrap(d), full, labels)


def _quadrature_outputs(d: dist.Distribution, varies: tuple[int, ...], labels: int) -> tuple[jax.Array, jax.Array]:
    """η and S of the first datum of `d`, S Sᵀ = Σ over its numbers of E[score scoreᵀ]."""
    eta, rebuild = _leaf_function(d, varies)
    start = stop_gradient(eta)
    nodes = jax.tree.map(stop_gradient, _nodes(rebuild(start), labels))
    mask = jnp.broadcast_to(_observed_mask(d), nodes.values.shape[1:])

    def log_density(vector):
        return unwrap(rebuild(vector)).log_prob(nodes.values)

    log_p, slopes = log_density(start), jax.jacfwd(log_density)(start)
    weight = nodes.mass(log_p) * mask
    # At the ends of the rule labels leave the range of floating point, and slopes with them.
    rows = jnp.where((weight > jnp.finfo(weight.dtype).eps ** 3)[..., None], slopes * jnp.sqrt(weight)[..., None], 0.0)
    rows = rows[:, 0].reshape(-1, eta.size)  # of the first datum
    values, vectors = jnp.linalg.eigh(rows.T @ rows)
    return eta, vectors * jnp.sqrt(jnp.where(values < 0, 0.0, values))


def quadrature_mass(d: dist.Distribution, labels: int) -> jax.Array:
    """Σ of the probability that the rule finds, for each number of `d`: 1 where it holds."""
    nodes = _nodes(d, labels)
    return jnp.sum(nodes.mass(unwrap(d).log_prob(nodes.values)), axis=0)


# -- responses ------------------------------------------------------------------------------------------------
def _scores(log_prob: Callable, sample: Callable, eta: jax.Array, count: int, key: Any) -> jax.Array:
    """Scores ∂ log p/∂η of `count` drawn labels over √count, (count, K)."""
    labels = sample(key, (count,))
    return stop_gradient(jax.vmap(jax.grad(log_prob), (None, 0))(stop_gradient(eta), labels)) / math.sqrt(count)


class Labels(NamedTuple):
    """Outputs η (n, K) of some data as a function of the parameters, and scores (n, S, K) of drawn labels, frozen.

    The scores carry 1/√S, so that the Monte-Carlo metric is their outer products, summed over labels, averaged over n.
    """

    outputs: jax.Array
    scores: jax.Array


def network_labels(likelihood: Likelihood, how: Estimator, phi: jax.Array, batch: Data, key: Any) -> Labels:
    """Drawn labels of a network's output φ (n, outputs)."""
    def one(phi, index):
        def log_prob(phi, y):
            return likelihood.distribution(phi[None]).log_prob(y[None])[0]

        def sample(key, shape):
            return likelihood.distribution(stop_gradient(phi)[None]).sample(key, shape)[:, 0]

        return _scores(log_prob, sample, phi, how.num_samples, jax.random.fold_in(key, index))

    return Labels(phi, jax.vmap(one)(phi, batch.index))


def _observed_one(bound: BoundModel, how: Estimator, params: Params, datum: Data) -> dist.Distribution:
    """Observed distribution of one datum of any model; of two that are alike where one alone would lose its axis."""
    return bound.distribution(params, jax.tree.map(lambda leaf: jnp.stack([leaf] * how.copies), datum.x))


def _log_prob_one(d: dist.Distribution, y: jax.Array, copies: int) -> jax.Array:
    terms = d.log_prob(jnp.stack([y] * copies))
    return jnp.sum(terms.reshape(d.batch_shape[0], -1)[0])


def _labels_one(bound: BoundModel, how: Estimator, params: Params, datum: Data, key: Any) -> Labels:
    """Drawn labels of one datum of any model, without the leading n."""
    eta, rebuild = _leaf_function(_observed_one(bound, how, params, datum), how.varies)

    def log_prob(vector, y):
        return _log_prob_one(rebuild(vector), y, how.copies)

    def sample(key, shape):
        return rebuild(stop_gradient(eta)).sample(key, shape)[:, 0]

    scores = _scores(log_prob, sample, eta, how.num_samples, jax.random.fold_in(key, datum.index))
    return Labels(eta, scores)


def labels(bound: BoundModel, how: Estimator, params: Params, batch: Data, key: Any) -> Labels:
    """Drawn labels of a batch of data (Monte Carlo); data of weight zero have scores of zero."""
    if bound.likelihood is not None and not how.varies:
        found = network_labels(bound.likelihood_at(params), how, bound.phi(params, batch.x), batch, key)
    else:
        found = jax.vmap(lambda datum: _labels_one(bound, how, params, datum, key))(batch)
        root = jax.vmap(lambda datum: _weight(bound, params, datum) * jnp.ones(()))(batch)
        found = found._replace(scores=found.scores * root[:, None, None])
    return found._replace(scores=found.scores * batch.weight[:, None, None])


def compressed(found: Labels) -> Outputs:
    """With S of min(S, K) columns whose outer products are those of all S labels: memory is linear in S."""
    eta, scores = found
    if scores.shape[1] > scores.shape[2]:
        values, vectors = jnp.linalg.eigh(jnp.einsum("nsk,nsl->nkl", scores, scores))
        scores = jnp.swapaxes(vectors * jnp.sqrt(jnp.where(values < 0, 0.0, values))[:, None, :], 1, 2)
    return Outputs(eta[:, None], jnp.swapaxes(scores, 1, 2)[:, None])


def network_outputs(likelihood: Likelihood, how: Estimator, phi: jax.Array, batch: Data, key: Any) -> Outputs:
    """Of a network's output φ (n, outputs)."""
    if how.name == "montecarlo":
        return compressed(network_labels(likelihood, how, phi, batch, key))
    return Outputs(phi[:, None], likelihood.fisher_root(phi)[:, None])


def output_responses(likelihood: Likelihood, how: Estimator, phi: jax.Array, batch: Data, key: Any) -> jax.Array:
    """Responses (n, R) of a network's output φ (n, outputs)."""
    if how.name == "empirical":
        return likelihood.distribution(phi).log_prob(batch.y).reshape(-1, 1)
    return network_outputs(likelihood, how, phi, batch, key).responses()


def _outputs_one(bound: BoundModel, how: Estimator, params: Params, datum: Data, key: Any) -> Outputs:
    """Of one datum of any model, without the leading n."""
    if how.name == "montecarlo":
        found = compressed(jax.tree.map(lambda a: a[None], _labels_one(bound, how, params, datum, key)))
        return jax.tree.map(lambda a: a[0], found)
    d = _observed_one(bound, how, params, datum)
    match how.family:
        case "formula":
            return jax.tree.map(lambda a: a[0], _formula_outputs(d, how.varies))
        case "kl":
            eta, root = _kl_outputs(d, how.varies)
        case _:
            eta, root = _quadrature_outputs(d, how.varies, how.labels)
    return Outputs(eta[None], root[None])


def _weight(bound: BoundModel, params: Params, datum: Data) -> Any:
    """Root of the weight of one datum (`handlers.scale`)."""
    x = jax.tree.map(lambda leaf: leaf[None], datum.x)
    return jnp.sqrt(bound.weights(params, x)[0]) if bound.weighted else 1.0


def outputs(bound: BoundModel, how: Estimator, params: Params, batch: Data, key: Any = None) -> Outputs:
    """Distribution parameters η of a batch of data and the root of F_out; of an estimator that is not empirical.

    Parameters as in `responses`.
    """
    if bound.likelihood is not None and not how.varies:
        found = network_outputs(bound.likelihood_at(params), how, bound.phi(params, batch.x), batch, key)
    else:
        def one(datum):
            eta, root = _outputs_one(bound, how, params, datum, key)
            return Outputs(eta, root * _weight(bound, params, datum))

        found = jax.vmap(one)(batch)
    return found._replace(root=found.root * batch.weight[:, None, None, None])


def responses(bound: BoundModel, how: Estimator, params: Params, batch: Data, key: Any = None) -> jax.Array:
    """Responses r, shape (n, R), whose Jacobian in the parameters is the rows SᵀJ of the metric's factor.

    Parameters
    ----------
    bound : BoundModel
    how : Estimator
    params : dict
        Parameters of one draw; differentiate with respect to these.
    batch : Data
        Numbered.
    key : jax.random.key, optional
        For drawn labels.
    """
    if how.name != "empirical":
        return outputs(bound, how, params, batch, key).responses()
    if bound.likelihood is not None and not how.varies:
        r = output_responses(bound.likelihood_at(params), how, bound.phi(params, batch.x), batch, key)
        return r * batch.weight[:, None]

    def one(datum):
        d = _observed_one(bound, how, params, datum)
        return _log_prob_one(d, datum.y, how.copies)[None] * _weight(bound, params, datum)

    return jax.vmap(one)(batch) * batch.weight[:, None]


# -- which of them, decided once ------------------------------------------------------------------------------
class Observed(NamedTuple):
    """The observed distribution of one datum, as a function of the flowing sites."""

    at: Callable[[Params], dist.Distribution]
    copies: int
    family: type
    names: list[str]
    """Documented parameters that it has values for."""


def _observe(bound: BoundModel, params: Params, x: Any, sites: tuple[str, ...]) -> Observed:
    rest = {s: v for s, v in params.items() if s not in sites}

    def made(copies):
        datum = jax.tree.map(lambda leaf: jnp.concatenate([leaf[:1]] * copies), x)
        return lambda free: bound.distribution({**rest, **free}, datum)

    for copies in (1, 2):
        at, facts = made(copies), dict[str, Any]()

        def inspect(free, at=at, facts=facts):  # only traced: nothing is computed
            d = at(free)
            base = unwrap(d)
            facts.update(batch=d.batch_shape, family=type(base),
                         names=[p for p in base.arg_constraints if has_parameter(base, p)])

        jax.eval_shape(inspect, {s: params[s] for s in sites})
        if facts["batch"][:1] == (copies,):
            break
    return Observed(at, copies, facts["family"], facts["names"])


def choose(bound: BoundModel, name: str, num_samples: int, params: Params, x: Any, sites: tuple[str, ...],
           draws: Params | None = None) -> Estimator:
    """Decide how the output Fisher of a model is had.

    Returns an `Estimator` named ``"montecarlo"`` where an exact one was asked for and there is no way to it; the caller
    says so. `draws` are all draws, leading axis T, over which counts may reach; default `params` alone.

    Raises
    ------
    ValueError
        If the Fisher matrix does not exist: a support that moves with the parameters, a deterministic output, or
        censored data.
    """
    if bound.likelihood is not None and not set(sites) & set(bound.likelihood.learned.values()):
        return Estimator(name, num_samples)
    seen, free = _observe(bound, params, x, sites), {s: params[s] for s in sites}
    if issubclass(seen.family, dist.Delta):
        raise ValueError("the observed distribution is Delta: an output without noise has a singular output Fisher "
                         "matrix; give the likelihood a positive scale")
    if any(depends(lambda f: jax.tree.leaves(unwrap(seen.at(f)).support), free)):
        raise ValueError(f"the support of the observed {seen.family.__name__} moves with the parameters, so its Fisher "
                         "matrix does not exist; use a likelihood of fixed support")
    if name == "empirical":
        return Estimator(name, num_samples, copies=seen.copies)
    if issubclass(seen.family, CENSORED):
        _check_uncensored(bound, params, x)
    flags = depends(lambda f: [jnp.asarray(leaf) for leaf in jax.tree.leaves(seen.at(f))], free)
    moving = tuple(i for i, flag in enumerate(flags) if flag) or (0,)
    drawn = Estimator("montecarlo", num_samples, varies=moving, copies=seen.copies)
    if name == "montecarlo":
        return drawn
    formula = _formula_way(seen, free)
    if formula is not None:
        return Estimator("exact", 1, "formula", formula, seen.copies)
    if _has_kl(seen, free):
        return Estimator("exact", 1, "kl", moving, seen.copies)
    labels = _quadrature_way(bound, params if draws is None else draws, x, draws is None)
    return drawn if labels is None else Estimator("exact", 1, "quadrature", moving, seen.copies, labels)


def _check_uncensored(bound: BoundModel, params: Params, x: Any) -> None:
    """Refuse censored data: that one lies beyond its limit is no label, and the limit is not known ahead of y."""
    d = bound.distribution(params, x)
    censored = np.asarray(censoring(d))
    if censored.any():
        law = type(unwrap(d)).__name__
        raise ValueError(f"{int(censored.sum())} of {num_points(x)} probe inputs are censored, and the "
                         f"observed {law} knows that they are but not their limits, over which the Fisher information "
                         "of a censored datum is an expectation. Ask at inputs that are not censored, for the "
                         "information of a datum that is seen; pass estimator='empirical' with y; or write the law of "
                         "what is seen, min(time, limit) with the limit in x, as a distribution with log_prob and "
                         "sample")


def _formula_way(seen: Observed, free: Params) -> tuple[str, ...] | None:
    """Parameters that vary, where a formula holds for them."""
    flags = depends(lambda f: [jnp.asarray(getattr(unwrap(seen.at(f)), p)) for p in seen.names], free)
    varies = tuple(p for p, flag in zip(seen.names, flags, strict=True) if flag)
    fixed = next((f for known, f in FIXED.items() if issubclass(seen.family, known)), ())
    facts: dict[str, bool] = {}

    def look(free):
        facts["known"] = _formula(unwrap(seen.at(free)), varies) is not None

    jax.eval_shape(look, free)
    return varies if facts["known"] and not set(fixed) & set(varies) else None


def _has_kl(seen: Observed, free: Params) -> bool:
    def divergence(free):
        d = seen.at(free)
        return dist.kl_divergence(d, d)

    try:
        jax.eval_shape(divergence, free)
    except (NotImplementedError, AttributeError, TypeError):
        return False
    return True


def _reach_one(bound: BoundModel, params: Params, x: Any) -> jax.Array:
    return jnp.max(quadrature.reach(unwrap(bound.distribution(params, x))))


def _mass_one(bound: BoundModel, labels: int, params: Params, x: Any) -> jax.Array:
    return jnp.max(jnp.abs(quadrature_mass(bound.distribution(params, x), labels) - 1))


def _quadrature_way(bound: BoundModel, draws: Params, x: Any, single: bool) -> int | None:
    """Whole numbers to sum over (0 for others) where quadrature holds at every draw, else None."""
    draws = jax.tree.map(lambda a: jnp.asarray(a)[None], draws) if single else draws
    base = unwrap(jax.eval_shape(lambda p: bound.distribution(p, x), jax.tree.map(lambda a: a[0], draws)))
    if base.event_dim:
        return None
    try:
        labels = 0
        if base.support.is_discrete:
            reach = float(jnp.max(map_draws(_reach_one, (bound,), draws, (x,))))
            if not reach < quadrature.MOST_LABELS:  # NaN and infinity too
                return None
            labels = 2 ** math.ceil(math.log2(reach + 1))  # few sizes: few programs
        missing = map_draws(_mass_one, (bound, labels), draws, (x,))
    except (NotImplementedError, AttributeError, TypeError):  # no mean, no sampler
        return None
    allowed = 1e-3 if jnp.result_type(float) == jnp.float32 else 1e-5  # as well as log densities are known
    return labels if bool((missing <= allowed).all()) else None


def has_parameter(base: dist.Distribution, name: str) -> bool:
    """Whether a distribution has a value for one of its documented parameters."""
    try:
        return getattr(base, name) is not None
    except (AttributeError, NotImplementedError):
        return False
