"""The flow of a fitted readout in closed form: mean and covariance of the output at every Λ, from a `Flow` (§4.1).

A renormalised readout is w_Λ = m_p + α(w − m_p) + β(θ₀ − m_p) with a Gaussian θ₀, so that nothing has to be drawn at
Λ. What is known of w and of the hidden features h decides which closed form holds; `closed_form_flow` has three.
Everything is NumPy in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy.linalg import cho_solve, solve_triangular

from .. import theory
from ..core.batching import map_draws, progress
from ..core.checks import check_choice, check_data, check_inputs
from ..core.jackknife import block_jackknife
from ..model.bound import BoundModel
from ..model.cosnet import CosNet
from ..model.networks import MLP
from ..model.readout import LinearReadout, noise_factor
from .cutoffs import check_cutoffs
from .mapped import MappedFlow
from .regulators import Regulator

__all__ = ["closed_form_differences", "closed_form_flow"]

FEATURES = ("frozen", "random")
BLOCKS = 25
MEMBERS_AT_ONCE = 16  # whose features are in memory together
MOST_BYTES = 2 << 30


def closed_form_flow(flow: MappedFlow, x, *, features: str = "frozen", data: tuple | None = None,
                     moments: tuple | None = None, keep: Any = None, cutoffs: Any = None,
                     progress_bar: bool = True) -> xr.Dataset:
    """Mean and covariance of a network's output along the flow of its readout, without a draw at Λ.

    Three closed forms, by what is averaged over:

    - ``features="frozen"``: over the refill θ₀. Each member keeps its hidden weights and its readout w; its output at Λ
      is Gaussian, and the members are a mixture of such Gaussians. Exact for any posterior, an ensemble included.
    - ``features="frozen", data=(x, y)``: over w too, which given the member's features h has the exact Gaussian
      posterior of these data, N(w̄, Ξ). Exact for members drawn so, as `readout_posterior` draws them.
    - ``features="random"``: over the features as well, (65)–(76): the readout's mean and covariance over members meet
      the moments V¹, V² of the hidden units under the prior. It assumes that *the readout is independent of the
      features*, which holds at Λ = ∞ and where readouts were fitted on other features than they are read with, and not
      where every member fits its own.

    Parameters
    ----------
    flow : MappedFlow
        Of a `Network`, whose readout flows and nothing else; diagonal metric, any regulator.
    x : array (point, dim)
        Inputs; the covariance is over all pairs of them.
    features : {"frozen", "random"}
    data : (x, y), optional
        The training data, for an exact readout posterior with a Gaussian likelihood.
    moments : (V1 (point,), V1 (point,), V2 (point, point)), optional
        Of one hidden unit before any readout scale, for ``features="random"``. Default: those of the network's
        description, exact for one hidden layer and its infinite-width limit for more (`theory.feature_moments`).
    keep : array of bool (chain, draw), optional
        Members to use; default all.
    cutoffs : array, optional
        Λ instead of the flow's own, in its units.
    progress_bar : bool

    Returns
    -------
    xarray.Dataset
        ``mean`` (cutoff, point, output) in units of φ and ``covariance`` (cutoff, point, output, point2, output2), with
        standard errors ``mean_sem``, ``covariance_sem`` from a jackknife over blocks of members: how far the members
        speak for all members (NaN for one). Where features are frozen also ``member_mean`` and ``member_variance``
        (cutoff, chain, draw, point, output), NaN for members not kept. Attributes: ``features``, ``law`` (what is
        averaged over, in words), ``num_members``, ``keep`` (0 or 1 a member).

    Raises
    ------
    ValueError
        For a flow that is not that of a network's readout, a metric that is not diagonal, `data` with a posterior that
        is not exact or whose noise vanishes beside repeated inputs, options that do not go together, or a result above
        2 GiB.
    """
    check_choice(features, "features", FEATURES)
    readout = _Readout.of(flow)
    x = check_inputs(x)
    cutoffs = flow.cutoffs if cutoffs is None else check_cutoffs(cutoffs)
    shape = flow.posterior.num_chains, flow.posterior.num_draws
    keep = np.ones(shape, bool) if keep is None else np.asarray(keep, bool)
    if keep.shape != shape:
        raise ValueError(f"keep has shape {keep.shape}, the posterior has (chain, draw) = {shape}")
    if not keep.any():
        raise ValueError("keep leaves no member")
    members = np.flatnonzero(keep)
    for s in readout.sites:
        good = np.isfinite(np.asarray(flow.posterior.flat()[s]).reshape(keep.size, -1)).all(1)
        if not good[members].all():
            bad = members[~good[members]]
            raise ValueError(f"{bad.size} members have a readout {s!r} that is not finite, the first number {bad[0]}; "
                             "leave them out with keep=")
    fields = x.shape[0] * readout.outputs
    blocks = min(BLOCKS, members.size)
    if 8 * (blocks + 3) * len(cutoffs) * fields**2 > MOST_BYTES:
        raise ValueError(f"the covariance of {fields} fields at {len(cutoffs)} cutoffs with its errors needs more than "
                         f"{MOST_BYTES >> 30} GiB; pass fewer points or cutoffs")
    if features == "random":
        if data is not None:
            raise ValueError("data= is for features='frozen': random features average over the members' readouts")
        law = _random(readout, x, moments, members, cutoffs)
    else:
        if moments is not None:
            raise ValueError("moments= is for features='random': frozen features are the members' own")
        law = _frozen(readout, x, data, members, cutoffs, progress_bar)
    return law.dataset(cutoffs, x.shape[0], readout.outputs, keep, features)


def closed_form_differences(phi: xr.DataArray, closed: xr.Dataset) -> xr.Dataset:
    """Numerical flow less closed form, mean and variance, with standard errors.

    Parameters
    ----------
    phi : DataArray (cutoff, chain, draw, point, output)
        `Flow.predict` at the inputs and cutoffs of `closed`.
    closed : Dataset
        From `closed_form_flow` on the same flow. Where features are frozen the comparison is member by member: given
        the member, φ is Gaussian with mean ``member_mean`` and variance ``member_variance``, which gives the standard
        errors without another estimate. Where they are random it is between estimates, whose errors are added in
        square; both are of the same members, so that they are, if anything, too large.

    Returns
    -------
    xarray.Dataset
        ``mean``, ``variance`` of the members of `closed`, in units of φ and φ²; ``mean_difference`` and
        ``variance_difference`` from the closed form, with ``*_se``; and ``mean_z``, ``variance_z``, their ratios: all
        (cutoff, point, output).
    """
    members = ("cutoff", "chain", "draw", "point", "output")
    values = phi.transpose(*members).values.astype(np.float64)
    expected = tuple(closed.sizes[d] for d in ("cutoff", "point", "output"))
    if (values.shape[0], *values.shape[3:]) != expected:
        raise ValueError(f"phi has (cutoff, point, output) = {(values.shape[0], *values.shape[3:])}, closed {expected}")
    values = values.reshape(len(values), -1, *values.shape[3:])
    keep = np.asarray(closed.attrs["keep"], bool)
    values = values[:, keep]
    count, (mean, variance) = keep.sum(), (values.mean(1), values.var(1, ddof=1))
    exact = np.einsum("lpapa->lpa", closed["covariance"].values)
    rounding = 1e-5 * np.sqrt(np.mean(values**2, axis=1))  # of a φ that is a long sum in float32
    if "member_mean" in closed:
        own, spread = (closed[name].values.reshape(len(values), -1, *values.shape[2:])[:, keep]
                       for name in ("member_mean", "member_variance"))
        mean_se = np.sqrt(np.sum(spread, axis=1)) / count
        off = own - own.mean(1, keepdims=True)
        variance_se = np.sqrt(np.sum(4 * off**2 * spread + 2 * spread**2, axis=1)) / count
    else:
        sem = np.einsum("lpapa->lpa", closed["covariance_sem"].values)
        errors = [block_jackknife(statistic, np.moveaxis(values, 1, -1), BLOCKS)
                  for statistic in (lambda a: a.mean(-1), lambda a: a.var(-1, ddof=1))]
        mean_se, variance_se = np.hypot(errors[0], closed["mean_sem"].values), np.hypot(errors[1], sem)
    differences = {"mean": (mean, mean - closed["mean"].values, np.hypot(mean_se, rounding / np.sqrt(count))),
                   "variance": (variance, variance - exact,
                                np.hypot(variance_se, 2 * rounding * np.sqrt(variance / count)))}
    variables: dict[str, np.ndarray] = {}
    for name, (value, difference, error) in differences.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            z = np.where(difference == 0, 0.0, difference / error)
        variables |= {name: value, f"{name}_difference": difference, f"{name}_difference_se": error, f"{name}_z": z}
    dims = ("cutoff", "point", "output")
    return xr.Dataset({k: (dims, v) for k, v in variables.items()}, {d: closed[d] for d in dims}, closed.attrs)


@partial(jax.jit, static_argnums=0)
def _regulated(regulator: Regulator, stiffness, cutoffs) -> tuple[jax.Array, jax.Array]:
    """α and β, (cutoff, *stiffness shape)."""
    cutoffs = cutoffs.reshape(-1, *[1] * stiffness.ndim)
    return regulator.weights(stiffness[None], cutoffs)


# -- the readout of a flow ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Readout:
    """A flow seen as a law of the readout: arrays over rows (units, then the bias) and outputs."""

    flow: MappedFlow
    bound: BoundModel
    linear: LinearReadout
    prior_mean: np.ndarray  # (row, output)
    prior_var: np.ndarray

    @classmethod
    def of(cls, flow: MappedFlow) -> _Readout:
        bound = flow.metric.bound
        linear = bound.readout
        if linear is None:
            raise ValueError("closed forms need a brg.mlp or brg.cosnet, in whose readout φ is linear; "
                             f"got {flow.model!r}")
        hidden = [s for s in flow.metric.sites if s not in linear.sites]
        if hidden:
            raise ValueError(f"hidden sites {', '.join(hidden)} flow, in which φ is not linear; pass "
                             f"sites={list(linear.sites)} to brg.fisher")
        if not flow.spec.geometry.entrywise:
            raise ValueError(f"the closed forms (74), (75) need a diagonal metric, got kind={flow.metric.kind!r}")
        flow.spec.refill.variance(np.zeros(()))  # refuses a rule whose law is not known
        learned = [s for s in bound.hyperparameters(flow.metric.x) if s not in linear.sites]
        if learned:
            raise ValueError(f"site {learned[0]!r} is learned, so that each member has a prior or a noise of its own; "
                             "closed forms are for a network of known noise and scales. flow.predict has the members' "
                             "own numbers")
        mean, std = (np.asarray(a, np.float64) for a in linear.moments({}))
        return cls(flow, bound, linear, mean, std**2)

    @property
    def network(self) -> Any:
        return self.bound.fn

    @property
    def sites(self) -> tuple[str, ...]:
        return self.linear.sites

    @property
    def outputs(self) -> int:
        return self.linear.outputs

    @property
    def units(self) -> int:
        """Hidden units: the rows but for the bias."""
        return self.linear.sizes[0]

    def draws(self, members: np.ndarray) -> Callable[[int], np.ndarray]:
        """The readout (row, output) of one member, by its place in `members`."""
        host = {s: np.asarray(self.flow.posterior.flat()[s])[members] for s in self.sites}
        return lambda i: self.linear.stack({s: v[i] for s, v in host.items()}, np)

    def weights(self, members: np.ndarray, cutoffs: np.ndarray) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        """α and β²σ₀², (cutoff, row, output), of one member: what stays of w, and the variance of the refill."""
        metric, shared = self.flow.metric, not self.flow.metric.per_draw
        host = {s: np.asarray(v) if shared else np.asarray(v)[members] for s, v in metric.flat_stiffness().items()}
        spread = self.flow.spec.refill.variance(self.prior_var)

        def one(i):
            parts: tuple[list, list] = [], []
            for s in self.sites:
                if s not in host:
                    site = (len(cutoffs), *self.bound.site(s).shape)
                    alpha, beta = np.ones(site), np.zeros(site)
                else:
                    # In JAX's precision, so that a stiffness equal to Λ falls on the same side as in the flow itself.
                    stiffness = host[s] if shared else host[s][i]
                    alpha, beta = (np.asarray(v, np.float64) for v in
                                   _regulated(self.flow.regulator, stiffness, jnp.asarray(cutoffs)))
                for part, value in zip(parts, (alpha, beta), strict=True):
                    part.append(value if value.ndim == 3 else value[:, None])
            alpha, beta = (np.concatenate(part, axis=1) for part in parts)
            return alpha, beta**2 * spread

        if not shared:
            return one
        same = one(0)
        return lambda i: same


# -- members to mixture ---------------------------------------------------------------------------------------
@dataclass
class _Law:
    """A mixture over members: each has a mean, and the members' own covariances are summed block by block."""

    words: str
    mean: np.ndarray  # (member, cutoff, field)
    inner: np.ndarray  # (block, cutoff, field, field): sums over members
    count: np.ndarray  # (block,)
    variance: np.ndarray | None = None  # (member, cutoff, field), frozen features
    lift: Callable | None = None  # (mean, mixed covariance, extra) of the replicates to fields of the output
    extra: np.ndarray | None = None  # (block, cutoff, ...): sums over members

    def replicates(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the mixture, of all members and with each block left out: leading axis 1 + blocks."""
        starts = np.concatenate([[0], np.cumsum(self.count)])
        centre = self.mean.mean(0)
        first, second = [], []
        for a, b in zip(starts, starts[1:], strict=False):
            part = (self.mean[a:b] - centre).transpose(1, 2, 0)  # (cutoff, field, member)
            first.append(part.sum(-1))
            second.append(part @ part.swapaxes(-1, -2))

        def rest(sums):
            total = np.sum(sums, axis=0)
            return np.stack([total, *(total - s for s in sums)]) if len(sums) > 1 else total[None]

        n = rest(self.count.astype(float)).reshape(-1, 1, 1)
        shift, square, inner = rest(first), rest(second), rest(self.inner)
        mean = shift / n
        n = n[..., None]
        between = (square - n * mean[..., :, None] * mean[..., None, :]) / np.maximum(n - 1, 1)
        covariance = inner / n + between
        mean = mean + centre
        if self.lift is None:
            return mean, covariance
        assert self.extra is not None
        return self.lift(mean, covariance, rest(self.extra) / n)

    def dataset(self, cutoffs, points: int, outputs: int, keep: np.ndarray, features: str) -> xr.Dataset:
        means, covariances = self.replicates()

        def error(replicates):
            groups = len(replicates) - 1
            if groups < 2:
                return np.full_like(replicates[0], np.nan)
            return np.sqrt((groups - 1) * np.var(replicates[1:], axis=0))

        field = ("point", "output")
        single, pair = (len(cutoffs), points, outputs), (len(cutoffs), points, outputs, points, outputs)
        variables: dict[str, Any] = {}
        for name, values, shape, dims in (("mean", means, single, field),
                                          ("covariance", covariances, pair, (*field, "point2", "output2"))):
            variables[name] = (("cutoff", *dims), values[0].reshape(shape))
            variables[f"{name}_sem"] = (("cutoff", *dims), error(values).reshape(shape))
        if self.variance is not None:
            for name, values in (("member_mean", self.mean), ("member_variance", self.variance)):
                every = np.full((keep.size, *values.shape[1:]), np.nan)
                every[keep.ravel()] = values
                variables[name] = (("cutoff", "chain", "draw", *field),
                                   np.moveaxis(every, 1, 0).reshape(len(cutoffs), *keep.shape, points, outputs))
        coords = {"cutoff": np.asarray(cutoffs), "point": np.arange(points), "output": np.arange(outputs),
                  "point2": np.arange(points), "output2": np.arange(outputs)}
        return xr.Dataset(variables, coords, {
            "features": features, "law": self.words, "num_members": int(keep.sum()),
            "keep": keep.ravel().astype(np.int8), "cutoff_units": "Fisher information per datum"})


def _blocks(members: int) -> np.ndarray:
    """Block of each member: consecutive and as equal as can be."""
    return np.repeat(np.arange(min(BLOCKS, members)), [len(g) for g in np.array_split(np.arange(members),
                                                                                     min(BLOCKS, members))])


# -- frozen features ------------------------------------------------------------------------------------------
def _design_one(bound, params, x):
    return bound.readout.design(params, x)


def _designs(readout: _Readout, members: np.ndarray, x, show: bool):
    """(place, H) of each member in turn, features computed a few members at a time."""
    hidden = {s: v for s, v in readout.flow.posterior.flat().items() if s not in readout.sites}
    with progress(desc="closed form", total=members.size, show=show, unit="member") as bar:
        for start in range(0, members.size, MEMBERS_AT_ONCE):
            chosen = members[start:start + MEMBERS_AT_ONCE]
            if hidden:
                block = {s: v[chosen] for s, v in hidden.items()}
                h = np.asarray(map_draws(_design_one, (readout.bound,), block, (x,)))
            else:  # a linear model: the features are the inputs
                h = np.broadcast_to(np.asarray(readout.linear.design({}, x)),
                                    (len(chosen), len(x), len(readout.prior_mean)))
            yield from enumerate(h.astype(np.float64), start)
            bar.update(len(chosen))


def _frozen(readout: _Readout, x, data, members, cutoffs, show) -> _Law:
    outputs, points = readout.outputs, x.shape[0]
    known = None if data is None else _Conjugate.of(readout, *data)
    inputs = x if known is None else jnp.concatenate([x, known.x])
    draw, weights, block = readout.draws(members), readout.weights(members, cutoffs), _blocks(members.size)
    fields = points * outputs
    mean = np.empty((members.size, len(cutoffs), fields))
    variance = np.empty_like(mean)
    inner = np.zeros((block[-1] + 1, len(cutoffs), points, outputs, points, outputs))
    for i, design in _designs(readout, members, inputs, show):
        h, (alpha, refill), w = design[:points], weights(i), draw(i)
        spread: np.ndarray | None = None
        roots: list[np.ndarray] = []
        if known is not None:
            w, spread, roots = known.posterior(design[points:], w)
        for c in range(outputs):
            kept = readout.prior_mean[:, c] + alpha[..., c] * (w - readout.prior_mean)[:, c]
            center = kept @ h.T
            own = (h * refill[:, None, :, c]) @ h.T  # (cutoff, point, point)
            if spread is not None:  # Ξ = S − S Hᵀ(H S Hᵀ + s²)⁻¹ H S, never as a matrix over units
                stiff = h * alpha[:, None, :, c]
                scaled = stiff * spread[:, c]
                through = scaled.reshape(-1, len(w)) @ design[points:].T
                through = solve_triangular(roots[c], through.T, lower=True).T.reshape(*stiff.shape[:2], -1)
                own += scaled @ stiff.swapaxes(1, 2) - through @ through.swapaxes(1, 2)
            mean[i].reshape(-1, points, outputs)[..., c] = center
            variance[i].reshape(-1, points, outputs)[..., c] = np.einsum("kpp->kp", own)
            inner[block[i], :, :, c, :, c] += own
    words = ("each member's features are its own; averaged over refills" +
             (" and over the exact readout posterior given the features" if known else ", given its readout"))
    return _Law(words, mean, inner.reshape(len(inner), len(cutoffs), fields, fields), np.bincount(block), variance)


@dataclass(frozen=True)
class _Conjugate:
    """Exact Gaussian posterior of a readout given a member's features."""

    x: Any
    y: np.ndarray
    noise: float
    trained: np.ndarray  # (row,)
    readout: _Readout

    @classmethod
    def of(cls, readout: _Readout, x, y) -> _Conjugate:
        noise, method = readout.linear.likelihood.noise, readout.flow.posterior.method
        if noise is None:
            raise ValueError(f"data= needs a Gaussian likelihood, got {readout.linear.likelihood.name!r}, under which "
                             "the readout has no Gaussian posterior")
        if method.startswith("ensemble (loss"):
            raise ValueError(f"data= says that readouts are exact posterior draws, but these are of {method!r}; leave "
                             "data out to average over refills alone")
        x, y = check_data(x, y)
        rows = {s: np.full(readout.bound.site(s).shape, s in readout.flow.posterior.trained) for s in readout.sites}
        trained = readout.linear.stack(rows, np)[:, 0] > 0
        return cls(x, np.asarray(readout.bound.targets(y), np.float64), noise, trained, readout)

    def posterior(self, h: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """w̄ and S (row, output), and for each output the Cholesky factor of H S Hᵀ + s²; untrained rows stay at w."""
        on = self.trained[:, None]
        mean, spread = np.where(on, self.readout.prior_mean, w), np.where(on, self.readout.prior_var, 0.0)
        roots: list[np.ndarray] = []
        for c in range(w.shape[1]):
            if c and (spread[:, c] == spread[:, 0]).all():
                roots.append(roots[0])
            else:
                gram = (h * spread[:, c]) @ h.T
                gram[np.diag_indices(len(h))] += self.noise**2
                roots.append(noise_factor(gram, self.noise)[0])
            mean[:, c] += spread[:, c] * (h.T @ cho_solve((roots[c], True), self.y[:, c] - h @ mean[:, c]))
        return mean, spread, roots


# -- random features ------------------------------------------------------------------------------------------
def _random(readout: _Readout, x, moments, members, cutoffs) -> _Law:
    """(73), (76) for a readout whose law is that of the members.

    With alike and independent units only sums over units count: with u = (Σ_i w_i, b) and e(x) = (V¹(x), 1),

        μ(x) = e(x)·E u,   Σ(x, y) = e(x)·Cov(u)·e(y) + (V²(x, y) − V¹(x)V¹(y)) Σ_i E[w_i w_i].
    """
    network, outputs, units = readout.network, readout.outputs, readout.units
    gain, bias_gain = (*readout.linear.gains, 1.0)[:2]
    V1_x, V1_y, V2 = _unit_moments(network, x, x.shape[1]) if moments is None else moments
    V1, V2 = np.asarray(V1_x, np.float64), np.asarray(V2, np.float64)
    if V1.shape != (x.shape[0],) or np.shape(V1_y) != V1.shape or V2.shape != V1.shape * 2:
        raise ValueError(f"moments must have shapes ({x.shape[0]},), ({x.shape[0]},), ({x.shape[0]}, {x.shape[0]}); "
                         f"got {V1.shape}, {np.shape(V1_y)}, {V2.shape}")
    biased = units < len(readout.prior_mean)
    e = np.stack([gain * V1, np.full_like(V1, bias_gain)])[:1 + biased]  # (part, point)
    alone = gain**2 * (V2 - np.multiply.outer(V1, V1))
    draw, weights, block = readout.draws(members), readout.weights(members, cutoffs), _blocks(members.size)
    parts, blocks = len(e), block[-1] + 1
    mean = np.empty((members.size, len(cutoffs), parts, outputs))
    inner = np.zeros((blocks, len(cutoffs), parts, outputs, parts, outputs))
    squares = np.zeros((blocks, len(cutoffs), outputs, outputs))
    outs = np.arange(outputs)
    for i in range(members.size):
        alpha, refill = weights(i)
        kept = readout.prior_mean + alpha * (draw(i) - readout.prior_mean)  # (cutoff, row, output)
        own = kept[:, :units]
        mean[i, :, 0] = own.sum(1)
        inner[block[i], :, 0, outs, 0, outs] += refill[:, :units].sum(1).T
        squares[block[i]] += own.swapaxes(1, 2) @ own
        squares[block[i]][:, outs, outs] += refill[:, :units].sum(1)
        if biased:
            mean[i, :, 1] = kept[:, units]
            inner[block[i], :, 1, outs, 1, outs] += refill[:, units].T
    fields, small = x.shape[0] * outputs, parts * outputs

    def lift(mean, covariance, squares):
        lead = mean.shape[:2]
        u, cov = mean.reshape(*lead, parts, outputs), covariance.reshape(*lead, parts, outputs, parts, outputs)
        sigma = np.einsum("kx,RLkalb,ly->RLxayb", e, cov, e, optimize=True)
        sigma += np.einsum("xy,RLab->RLxayb", alone, squares)
        return np.einsum("kx,RLka->RLxa", e, u).reshape(*lead, fields), sigma.reshape(*lead, fields, fields)

    return _Law("the readout is taken as independent of the features, which are averaged over their prior (65)",
                mean.reshape(members.size, len(cutoffs), small), inner.reshape(blocks, len(cutoffs), small, small),
                np.bincount(block), lift=lift, extra=squares)


def _unit_moments(network: Any, x, dim: int) -> tuple:
    """V¹ and V² of one hidden unit under the prior, from the network's description (66), (67), (85)."""
    if isinstance(network, CosNet):
        if not 1 <= network.dim <= 3:
            raise ValueError(f"the cos-net's covariance is known for dim 1, 2 and 3, not {network.dim}; pass moments=")
        x = np.asarray(x, np.float64)
        distance = np.linalg.norm(x[:, None] - x, axis=-1)
        zero = np.zeros(len(x))
        return zero, zero, theory.cosnet_covariance(distance, dim=network.dim, mass=network.mass, radius=network.radius)
    if not isinstance(network, MLP):
        raise ValueError(f"the moments of the hidden units of {network!r} are not known in closed form; pass moments=")
    if not network.depth:
        raise ValueError("a network without hidden layers has no random features; use features='frozen'")
    fan_in = (dim, *network.widths)
    stds: Any = network.weight_std  # numbers: `_Readout.of` refuses learned ones
    variances = [std**2 * (n if network.scaling == "none" else 1)
                 for std, n in zip(stds, fan_in, strict=True)]
    biases = 0.0 if network.bias_std is None else np.square(np.asarray(network.bias_std, float))
    return theory.kernels.in_float64(theory.feature_moments, x, depth=network.depth, activation=network.activation,
                                     weight_var=np.asarray(variances), bias_var=biases)
