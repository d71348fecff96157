"""Engineered theories (44): a network's prior weighted by exp(−O(φ_θ)), by sampling it or by importance weights.

The weight depends on the parameters through the field on the mesh alone, so the action on that mesh is exactly that of
the network's own prior plus O: S(φ) = S_free(φ) + O(φ) + constant.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers

from ..core.batching import as_chains, default_chunk, map_draws
from ..core.checks import check_count, check_inputs, check_key
from ..model.bound import BoundModel, Params, bind
from ..posterior import Posterior, work
from .correlators import log_generating_functional

__all__ = ["Deformed", "ImportanceWeights", "deform", "importance_weights"]

_LOW_ESS = 100


class _Silent(numpyro.primitives.Messenger):
    """Give the likelihood no say: its log-density counts as 0."""

    def __init__(self, observed: str):
        self.observed = observed
        super().__init__()

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "sample" and msg["name"] == self.observed:
            msg["fn"] = msg["fn"].mask(False)


@dataclass(frozen=True, eq=False)
class Deformed:
    """A NumPyro model ``deformed(x, y)`` whose prior is weighted by exp(−O(φ_θ)); make one with `deform`.

    Attributes
    ----------
    model : callable
        The undeformed model.
    operator : callable
        O, from φ on the mesh, (points, outputs), to a number.
    mesh : array (points, dim)
    likelihood : bool
        Whether the model's likelihood counts.
    """

    model: Callable
    operator: Callable[[jax.Array], Any]
    mesh: Any
    likelihood: bool
    _on_mesh: BoundModel = field(repr=False)

    def __call__(self, x, y=None):
        with handlers.trace() as trace:
            if self.likelihood:
                out = self.model(x, y)
            else:
                with _Silent(self._on_mesh.observed):
                    out = self.model(x, y)
        params = {s: trace[s]["value"] for s in self._on_mesh.names}
        numpyro.factor(f"deformation{self._level or ''}", -self.action(params))
        return out

    @property
    def _level(self) -> int:
        """How many deformations are below this one: each factor needs a name of its own."""
        return self.model._level + 1 if isinstance(self.model, Deformed) else 0

    def action(self, params: Params) -> jax.Array:
        """O(φ_θ) of one draw, in nats."""
        return self.operator(self._on_mesh.phi(params, self.mesh))

    def bind(self, x: Any) -> BoundDeformed:
        """The model as `bayes_brg.model.bind` knows it: the undeformed model's sites and likelihood."""
        base = bind(self.model, x)
        if base.sites != self._on_mesh.sites:
            raise ValueError("the model's sites at x differ from those at the mesh: "
                             f"{_shapes(base)} and {_shapes(self._on_mesh)}; give both the same coordinates")
        return BoundDeformed(self, base.sites, base.observed, base.likelihood, base.has_phi, base.weighted, base=base)


def _shapes(bound: BoundModel) -> str:
    return ", ".join(f"{s.name} {s.shape}" for s in bound.sites)


@dataclass(frozen=True)
class BoundDeformed(BoundModel):
    """A `Deformed` model's answers: those of the undeformed one, and −O among the factors."""

    base: BoundModel = field(default=None, repr=False)  # type: ignore[assignment]

    @property
    def deformed(self) -> Deformed:
        return self.fn  # type: ignore[return-value]

    def phi(self, params, x):
        return self.base.phi(params, x)

    def distribution(self, params, x):
        return self.base.distribution(params, x)

    def log_likelihood(self, params, x, y):
        value = self.base.log_likelihood(params, x, y)
        return value if self.deformed.likelihood else jnp.zeros_like(value)

    def loss(self, params, x, y):
        return self.base.loss(params, x, y)

    def log_prior(self, params, x):
        return self.base.log_prior(params, x)

    def log_factors(self, params, x, y=None):
        return self.base.log_factors(params, x, y) - self.deformed.action(params)

    def log_joint(self, params, x, y):
        return (self.log_prior(params, x) + self.log_factors(params, x, y)
                + jnp.sum(self.weighted_log_likelihood(params, x, y)))

    def draw_prior(self, key, x, given=None, sites=None):
        """A draw of the undeformed prior: where chains may start, but no draw of this one (see `undrawable`)."""
        return self.base.draw_prior(key, x, given, sites)

    def undrawable(self):
        return ("the prior is deformed, and a draw of its model would leave the operator out. For the deformed prior "
                "itself take brg.prior(deformed.model, ...) with brg.importance_weights, or brg.nuts on "
                "brg.deform(..., likelihood=False). A flow, or an ensemble, takes the undeformed deformed.model: its "
                "sloppy parameters go back to the free prior, and the interaction is forgotten with the data")

    def prior_mean(self, x, given, sites):
        return self.base.prior_mean(x, given, sites)

    def targets(self, y, outputs=None):
        return self.base.targets(y, outputs)

    def parents(self, x):
        return self.base.parents(x)

    def hyperparameters(self, x):
        return self.base.hyperparameters(x)


def deform(model: Callable, operator: Callable[[jax.Array], Any], mesh: Any, *, likelihood: bool = True) -> Deformed:
    """The model with its prior weighted by exp(−O(φ_θ)), φ_θ on a mesh: an engineered theory (44).

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model ``model(x, y)``; also a deformed one, whose operator is then added to.
    operator : callable
        O: φ on the mesh, shape (points, outputs), to one number, in nats, such as
        ``lambda phi: coupling / 24 * (phi**4).sum()``. Differentiable JAX code where a sampler needs gradients.
        exp(−O) must be integrable under the prior.
    mesh : array (points, dim)
        Inputs at which φ enters O; they need not be data.
    likelihood : bool
        False: the likelihood counts for nothing, and a sampler draws from the deformed prior itself, whatever y.

    Returns
    -------
    Deformed
        Itself a NumPyro model ``deformed(x, y)``, with the sites and the likelihood of `model` and a `numpyro.factor`
        of −O. ``deformed.model`` is the undeformed one.

    Raises
    ------
    TypeError, ValueError
        If the operator is not a function from φ to one real number, or `model` breaks the model convention.

    Notes
    -----
    Samplers (`nuts`, `hmc`, ...) draw from prior × exp(−O) × likelihood. What needs independent draws of the prior,
    `prior`, `renormalize` (its refill) and `ensemble`, refuses a deformed model, since an ancestral draw leaves O out.
    A flow of its posterior takes the undeformed model, ``brg.renormalize(deformed.model, posterior, metric, ...)``:
    sloppy parameters then go back to the *free* prior, and at Λ = ∞ the interaction is forgotten together with the
    data. (The Fisher metric is that of the likelihood: O makes no direction stiff.)

    Examples
    --------
    >>> net = cosnet(32, 1, mass=1.0, radius=4.0)
    >>> phi4 = deform(net, lambda phi: 0.1 / 24 * (phi**4).sum(), [[0.0], [1.0]])
    """
    if not callable(operator):
        raise TypeError(f"operator must be a function of φ on the mesh, got {type(operator).__name__}; write "
                        "lambda phi: coupling / 24 * (phi**4).sum()")
    mesh = check_inputs(mesh, "mesh")
    mesh = jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.floating) else a.astype(jnp.result_type(float)),
                        mesh)
    bound = bind(model, mesh)
    params = {s.name: jax.ShapeDtypeStruct(s.shape, jnp.result_type(int if s.discrete else float))
              for s in bound.sites}
    out = jax.eval_shape(lambda p: jnp.asarray(operator(bound.phi(p, mesh))), params)
    if out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"operator must return one real number, got shape {out.shape} and dtype {out.dtype}; sum over "
                         "the mesh and the outputs")
    return Deformed(model, operator, mesh, bool(likelihood), bound)


# -- importance weights ---------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class ImportanceWeights:
    """How much each draw of an undeformed law counts in the deformed one; make them with `importance_weights`.

    Attributes
    ----------
    log_weights : array (chain, draw)
        −O(φ_θ), in nats, not normalised.
    weights : array (chain, draw)
        exp(−O), scaled to mean 1: what ``brg.cumulants(phi, weights=...)`` takes.
    ess : float
        Effective number of draws, (Σw)²/Σw². Draws that are themselves correlated count for less.
    log_evidence, log_evidence_sem : float
        log E exp(−O) = log Z/Z₀ over the undeformed law, and its standard error, by a block jackknife.
    posterior : Posterior
        The draws.
    """

    log_weights: np.ndarray
    weights: np.ndarray
    ess: float
    log_evidence: float
    log_evidence_sem: float
    posterior: Posterior

    def resample(self, key: jax.Array, num_samples: int | None = None) -> Posterior:
        """Draws of the deformed law: each draw as often as its weight says, by systematic resampling.

        Parameters
        ----------
        key : jax.random.key
        num_samples : int, optional
            As many as there are draws, if left out.

        Returns
        -------
        Posterior
            Copies of a draw stand side by side, so that errors from blocks of consecutive draws count them once.
            ``stats["ess"]`` is the effective number of distinct draws, ``stats["log_joint"]`` that of the deformed
            model.

        References
        ----------
        .. [1] Douc, Cappé and Moulines, Comparison of resampling schemes for particle filtering, ISPA 2005.
        """
        key = check_key(key)
        count = self.weights.size if num_samples is None else check_count(num_samples, "num_samples")
        edges = np.cumsum(self.weights.ravel(), dtype=np.float64)
        places = (np.arange(count) + float(jax.random.uniform(key))) / count
        pick = np.minimum(np.searchsorted(edges / edges[-1], places, side="right"), edges.size - 1)
        draws = as_chains({s: v[pick] for s, v in self.posterior.flat().items()})
        stats: dict[str, Any] = {"independent": False, "ess": self.ess}
        if "log_joint" in self.posterior.stats:
            total = np.asarray(self.posterior.stats["log_joint"], np.float64) + self.log_weights
            stats["log_joint"] = as_chains(jnp.asarray(total.ravel()[pick]))
        return Posterior(draws, stats, f"{self.posterior.method}, reweighted", self.posterior.trained)


def _action_one(deformed: Deformed, params: Params) -> jax.Array:
    return deformed.action(params)


def importance_weights(deformed: Deformed, posterior: Posterior) -> ImportanceWeights:
    """Weights exp(−O(φ_θ)) that turn draws of the undeformed law into the deformed one.

    Parameters
    ----------
    deformed : Deformed
        From `deform`.
    posterior : Posterior
        Draws of ``deformed.model``: of its prior (``brg.prior(deformed.model, ...)``), or of its posterior given data,
        which become draws of the deformed posterior given the same data.

    Returns
    -------
    ImportanceWeights

    Warns
    -----
    UserWarning
        Where fewer than 100 effective draws are left: weaken the operator, take fewer mesh points or more draws, or
        sample the deformed model with `nuts`.
    """
    if not isinstance(deformed, Deformed):
        raise TypeError(f"expected a model from brg.deform, got {type(deformed).__name__}")
    bound = deformed._on_mesh
    bound.check_params(posterior.samples, "posterior")
    draws = {s: posterior.flat()[s] for s in bound.names}
    values = map_draws(_action_one, (deformed,), draws, chunk=default_chunk(work(bound, deformed.mesh)))
    log_weights = -np.asarray(values, np.float64)
    if np.isnan(log_weights).any() or (log_weights == np.inf).any():
        i = int(np.argmax(np.isnan(log_weights) | (log_weights == np.inf)))
        raise ValueError(f"the operator is {-log_weights[i]} at draw {i}; it must be a number above −∞")
    if not np.isfinite(log_weights).any():
        raise ValueError("the operator is ∞ at every draw, so no draw has any weight")
    weights = np.exp(log_weights - log_weights.max())
    ess = float(weights.sum() ** 2 / (weights**2).sum())
    if ess < _LOW_ESS:
        warnings.warn(
            f"the weights leave {ess:.3g} effective draws of {weights.size}: what is measured with them means little. "
            "Weaken the operator, take fewer mesh points or more draws, or sample the deformed model with brg.nuts.",
            stacklevel=2,
        )
    lead = posterior.num_chains, posterior.num_draws
    floor = np.maximum(log_weights, log_weights.max() - 700)  # a weight of zero is no field value
    independent = posterior.stats.get("independent", False)
    draws_of_one = floor.reshape(-1, 1) if independent else floor.reshape(*lead, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said above
        evidence = log_generating_functional(draws_of_one, np.ones(1))
    assert evidence.sem is not None  # there are draws
    return ImportanceWeights(
        log_weights.reshape(lead), (weights / weights.mean()).reshape(lead), ess, float(evidence.value),
        float(evidence.sem), posterior)
