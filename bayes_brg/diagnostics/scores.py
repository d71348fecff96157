"""Predictive scores and calibration on held-out data, for every likelihood."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import xarray as xr
from scipy import special

from ..core.arrays import check_floats, read_array
from ..core.batching import default_chunk, map_draws
from ..core.checks import check_count, check_data, num_points
from ..core.jackknife import block_jackknife
from ..field.draws import largest
from ..io import arviz_bridge
from ..model.bound import BoundModel, bind, unwrap
from ..model.distributions import censoring
from ..posterior import Posterior, diverged, work

__all__ = ["Scores", "loo", "scores"]

PARETO_LIMIT = 0.7  # above it importance weights have too heavy a tail (Vehtari et al.)
LEVELS = (0.5, 0.8, 0.9, 0.95)
CURVE_LEVELS = np.linspace(0.05, 0.95, 19)


# -- the predictive law, draw by draw -------------------------------------------------------------------------
def components(d: dist.Distribution, n: int, key: jax.Array) -> dict[str, jax.Array]:
    """What one draw predicts, (n, outputs): parameters for the families that are known, else a draw of y."""
    base, shape = unwrap(d), (*d.batch_shape, *d.event_shape)

    def full(value):
        return jnp.broadcast_to(value, shape).reshape(n, -1)

    if isinstance(base, dist.Normal):
        return {"loc": full(base.loc), "scale": full(base.scale)}
    if isinstance(base, (dist.BernoulliLogits, dist.BernoulliProbs)):
        return {"probs": full(base.probs)}
    if isinstance(base, (dist.CategoricalLogits, dist.CategoricalProbs)) and len(shape) == 1:
        return {"classes": jnp.broadcast_to(base.probs, (n, base.probs.shape[-1]))}
    drawn = jnp.asarray(d.sample(key), jnp.result_type(float)).reshape(n, -1)
    if isinstance(base, dist.Poisson):
        return {"rate": full(base.rate), "draws": drawn}
    return {"draws": drawn}


def counted_data(bound: BoundModel, posterior: Posterior, x: Any) -> np.ndarray:
    """Which entries of each datum count, (n, outputs): those that no `numpyro.handlers.mask` takes out."""
    d = bound.distribution({s: posterior.draw(0, 0)[s] for s in bound.names}, x)
    shape = (*d.batch_shape, *d.event_shape)
    counted = np.ones(shape, bool)
    while isinstance(d, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        if isinstance(d, dist.MaskedDistribution):  # a mask has the batch's shape, the first axes of the whole
            mask = np.asarray(d._mask, bool)
            counted &= mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim))
        d = d.base_dist
    counted = counted.reshape(num_points(x), -1)
    if not counted.any():
        raise ValueError("the model masks all data, so that there is nothing to score")
    return counted


def _predict_one(bound: BoundModel, member: dict, x: Any, y: Any, key: jax.Array) -> dict[str, jax.Array]:
    d = bound.distribution(member["theta"], x)
    return components(d, num_points(x), jax.random.fold_in(key, member["index"])) | {
        "log_likelihood": bound.log_likelihood(member["theta"], x, y)}


@partial(jax.jit, static_argnums=(0,))
def _predict_phi(likelihood: Any, phi: jax.Array, y: Any, key: jax.Array, learned: dict[str, jax.Array]
                 ) -> dict[str, jax.Array]:
    def one(f, k, values):
        d = likelihood.given(values).distribution(f)
        return components(d, f.shape[0], k) | {"log_likelihood": d.log_prob(y)}

    return jax.vmap(one)(phi, jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(phi.shape[0])), learned)


def predictive(bound: BoundModel, posterior: Posterior, x: Any, y: Any, key: jax.Array) -> dict[str, np.ndarray]:
    """Components (draw, n, outputs) and ``log_likelihood`` (draw, n) of all draws."""
    members = {"theta": {s: posterior.flat()[s] for s in bound.names}, "index": jnp.arange(posterior.size)}
    found = map_draws(_predict_one, (bound,), members, (x, y, key), chunk=default_chunk(work(bound, x)))
    return {k: np.asarray(v, np.float64) for k, v in found.items()}


def predictive_of_phi(likelihood: Any, phi: np.ndarray, y: Any, key: jax.Array, learned: Any = None
                      ) -> dict[str, np.ndarray]:
    """The same from outputs φ (draw, n, outputs) under a `Likelihood`, and the draws (draw, …) of what it learns."""
    held = {s: jnp.asarray(v) for s, v in (learned or {}).items()}
    found = _predict_phi(likelihood, jnp.asarray(phi), y, key, held)
    return {k: np.asarray(v, np.float64) for k, v in found.items()}


# -- scores from components -----------------------------------------------------------------------------------
def _some(law: dict[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
    count = next(iter(law.values())).shape[0]
    keep = np.linspace(0, count - 1, min(most, count)).round().astype(int)
    return {k: v[keep] for k, v in law.items()}


def pit(law: dict[str, np.ndarray], y: np.ndarray) -> np.ndarray:
    """Probability integral transform as an interval, (n, outputs, 2): the predictive P(Y < y) and P(Y ≤ y).

    For classes, the same with the most probable class first: where the true class lies in that order. Calibrated
    predictions spread a point drawn uniformly from each interval uniformly over [0, 1] [1]_.

    .. [1] Czado, Gneiting and Held, Biometrics 65 (2009) 1254.
    """
    if "loc" in law:
        below = special.ndtr((y - law["loc"]) / law["scale"]).mean(axis=0)
        return np.stack([below, below], axis=-1)
    if "probs" in law:
        one = law["probs"].mean(axis=0)
        true = np.where(y > 0, one, 1 - one)
        before = np.where(true < 0.5, 1 - true, 0.0)
        return np.stack([before, before + true], axis=-1)
    if "classes" in law:
        p = law["classes"].mean(axis=0)
        true = np.take_along_axis(p, y.astype(int), axis=1)
        before = np.where(p > true, p, 0.0).sum(axis=1, keepdims=True)
        return np.stack([before, before + true], axis=-1)
    if "rate" in law:
        return np.stack([np.where(y > 0, special.pdtr(np.maximum(y - 1, 0), law["rate"]), 0.0).mean(axis=0),
                         special.pdtr(y, law["rate"]).mean(axis=0)], axis=-1)
    # One more than the draws: y is as likely to fall into each of the gaps between them.
    count = len(law["draws"]) + 1
    return np.stack([(law["draws"] < y).sum(axis=0) / count, ((law["draws"] <= y).sum(axis=0) + 1) / count], axis=-1)


def overlap(interval: np.ndarray, low: float, high: float) -> np.ndarray:
    """Fraction of each PIT interval (..., 2) within [low, high]: the chance that a uniform point of it falls there."""
    start, stop = interval[..., 0], interval[..., 1]
    width = stop - start
    inside = np.clip(np.minimum(stop, high) - np.maximum(start, low), 0.0, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(width > 1e-12, inside / width, (start >= low) & (start <= high))


def coverage(interval: np.ndarray, level: float, classes: bool) -> np.ndarray:
    """How far a central interval (for classes, the smallest set) of this probability holds each y, in [0, 1]."""
    return overlap(interval, 0.0, level) if classes else overlap(interval, (1 - level) / 2, (1 + level) / 2)


def proper_score(law: dict[str, np.ndarray], y: np.ndarray) -> tuple[str, np.ndarray]:
    """A score of the whole predictive law, (n, outputs), smaller better: its name and values.

    CRPS = E|Y − y| − ½E|Y − Y'|, where Y and Y' come from different draws, so that few draws are no disadvantage (of
    a single draw, the law of its own); in closed form for Gaussians. For counts it is the ranked probability score; for
    classes the Brier score Σ_k (p_k − 1[y = k])², for one binary output (p − y)², which is its CRPS.
    """
    if "probs" in law:
        return "brier", (law["probs"].mean(axis=0) - y) ** 2
    if "classes" in law:
        p = law["classes"].mean(axis=0)
        return "brier", ((p - np.eye(p.shape[1])[y[:, 0].astype(int)]) ** 2).sum(axis=1, keepdims=True)
    if "loc" not in law:
        drawn = np.sort(law["draws"], axis=0)
        count = len(drawn)
        rank = (2 * np.arange(1, count + 1) - count - 1)[:, None, None]
        spread = (rank * drawn).sum(axis=0) / (count * max(count - 1, 1))
        return "rps" if "rate" in law else "crps", np.abs(drawn - y).mean(axis=0) - spread

    def absolute(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
        """E|Z| of a Gaussian."""
        t = mean / sd
        return sd * np.sqrt(2 / np.pi) * np.exp(-(t**2) / 2) + mean * special.erf(t / np.sqrt(2))

    out = absolute(y - law["loc"], law["scale"]).mean(axis=0)
    i, j = np.triu_indices(len(law["loc"]), 1) if len(law["loc"]) > 1 else (np.zeros(1, int),) * 2
    for n in range(len(y)):
        loc, scale = law["loc"][:, n], law["scale"][:, n]
        out[n] -= 0.5 * absolute(loc[i] - loc[j], np.hypot(scale[i], scale[j])).mean(axis=0)
    return "crps", out


def log_mean_exp(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """log of the mean of exp(values) along an axis, without overflow."""
    return special.logsumexp(values, axis=axis) - np.log(values.shape[axis])


def mean_sem(values: np.ndarray, counted: np.ndarray | None = None) -> tuple[float, float]:
    """Mean over data and its standard error over data; first averaged over the outputs that count."""
    values = values.reshape(len(values), -1)
    values = values.mean(axis=1) if counted is None or values.shape != counted.shape else np.average(
        np.where(counted, values, 0.0), axis=1, weights=counted)
    known = len(values) > 1 and np.isfinite(values).all()
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if known else np.nan


# -- public ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Scores:
    """Predictive scores on held-out data; made by `scores`.

    Attributes
    ----------
    dataset : xarray.Dataset
        By datum: ``log_predictive_density`` (nats), ``crps``, ``rps`` or ``brier``, ``pit`` (with ``bound``: P(Y < y)
        and P(Y ≤ y)). Summaries with standard errors over data, suffix ``_sem``: ``mean_log_predictive_density``
        (and ``_mcse``, its Monte-Carlo error over draws), ``mean_crps`` and so on, ``accuracy`` or ``rmse``,
        ``coverage`` (level). Calibration curve (bin): ``calibration_predicted``, ``calibration_observed`` with
        ``_lower`` and ``_upper`` (95 %), ``calibration_count``; for classes also ``calibration_error``.
    name : str
        ``"crps"``, ``"rps"`` or ``"brier"``.
    kind : str
        ``"pit"`` (regression, counts) or ``"reliability"`` (classes): which calibration curve it is.
    """

    dataset: xr.Dataset
    name: str
    kind: str

    def __str__(self) -> str:
        d = self.dataset
        lines = [f"{d.sizes['point']} data, {d.attrs['num_draws']} draws"]
        for key in ("mean_log_predictive_density", f"mean_{self.name}", "rmse", "accuracy"):
            if key in d:
                lines.append(f"  {key.replace('_', ' '):30s}{float(d[key]):10.4g} ± {float(d[key + '_sem']):.2g}")
        if "calibration_error" in d:
            lines.append(f"  {'calibration error':30s}{float(d['calibration_error']):10.4g}")
        for level, value, error in zip(d["level"].values, d["coverage"].values, d["coverage_sem"].values, strict=True):
            lines.append(f"  {f'coverage of {level:.0%} intervals':30s}{value:10.1%} ± {error:.1%}")
        return "\n".join(lines)

    def plot(self, ax=None):
        """Calibration curve; see `plots.calibration_curve`."""
        from .. import plots
        return plots.calibration_curve(self, ax=ax)


def scores(model, posterior: Posterior, x, y, *, levels=LEVELS, num_bins: int = 10, max_draws: int = 400,
           key: Any = None) -> Scores:
    """Log predictive density, CRPS or Brier score, coverage and calibration on data the posterior has not seen.

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model; Gaussian, Bernoulli, categorical and Poisson observations are scored from
        their parameters, any other from one draw of y a posterior draw.
    posterior : Posterior
    x : array (n, dim)
    y : array (n, ...)
        Held-out targets.
    levels : sequence of float
        Probabilities of the central predictive intervals whose coverage is measured; for classes, of the smallest
        sets of classes. Where a boundary falls inside the predicted mass of y, y counts in part, so that calibrated
        predictions of counts and classes have the nominal coverage.
    num_bins : int
        Bins of a reliability curve.
    max_draws : int
        Draws used for CRPS, evenly spaced; its cost grows with their square.
    key : jax.random.key, optional
        For observations scored from draws of y; left out, a fixed one.

    Returns
    -------
    Scores

    Warns
    -----
    UserWarning
        When draws are left out, naming them: members marked in ``stats["diverged"]``, and draws whose predictions are
        not finite, of no spread, or so large that their squares are not. ``dataset.attrs["num_left_out"]`` counts
        them. When a datum's score is not finite, naming it: the mean then says no more than that.

    Raises
    ------
    ValueError
        If no draw is left, or for levels that are no probabilities.

    Notes
    -----
    Data that the model masks (`numpyro.handlers.mask`) are not scored: they are in no average, and their number is in
    ``dataset.attrs["num_masked"]``. Where data are censored only the log predictive density is given, the rest is NaN.
    The predictive law is the mixture over draws. log p(y|x) = log mean_θ p(y|x, θ) is too low by half its variance over
    draws at finite numbers of draws; ``mean_log_predictive_density_mcse`` says how well it is known.
    """
    x, y = check_data(x, y)
    bound = bind(model, x)
    bound.check_params(posterior.samples, "posterior")
    targets = bound.targets(y)
    key = jax.random.key(0) if key is None else key
    counted = counted_data(bound, posterior, x)
    seen = np.flatnonzero(counted.any(axis=1))
    law = {k: v[:, seen] for k, v in predictive(bound, posterior, x, targets, key).items()}
    kept = _usable(law, posterior)
    law = {k: v[kept] for k, v in law.items()}
    ll = law.pop("log_likelihood")
    dataset, name, kind = score_table(law, np.asarray(targets, np.float64).reshape(num_points(x), -1)[seen], ll, levels,
                                      check_count(num_bins, "num_bins", 2), check_count(max_draws, "max_draws", 2),
                                      None if counted[seen].all() else counted[seen])
    _name_infinite(dataset, name, np.asarray(y)[seen])
    dataset = _without_censored(dataset, name, bound.distribution({s: posterior.draw(0, 0)[s] for s in bound.names}, x))
    if len(seen) < len(counted):
        dataset = dataset.assign_coords(point=seen)
    dataset.attrs |= {"num_draws": int(kept.sum()), "num_left_out": int((~kept).sum()), "method": posterior.method,
                      "num_masked": len(counted) - len(seen)}
    return Scores(dataset, name, kind)


def _usable(law: dict[str, np.ndarray], posterior: Posterior) -> np.ndarray:
    """Which draws did not diverge and have finite predictions; the others are named in a warning."""
    good = ~np.isnan(law["log_likelihood"]).any(axis=1)
    for k, v in law.items():
        if k != "log_likelihood":  # which may be −inf where a datum is impossible
            good &= ((np.abs(v) <= largest(2)) & ((v > 0) | (k != "scale"))).reshape(len(v), -1).all(axis=1)
    good &= ~diverged(posterior)
    if not good.any():
        raise ValueError(f"all {good.size} draws diverged or predict what is not finite; nothing can be scored")
    if not good.all():
        bad = [divmod(int(i), posterior.num_draws) for i in np.flatnonzero(~good)]
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        warnings.warn(f"{len(bad)} of {good.size} draws diverged or predict what is not finite and are left out: "
                      f"(chain, draw) {', '.join(map(str, bad[:5]))}{more}", UserWarning, stacklevel=3)
    return good


def _without_censored(dataset: xr.Dataset, name: str, d: dist.Distribution) -> xr.Dataset:
    """Scores without those that take a limit for the value: NaN where data are censored."""
    limits = censoring(d)
    if limits is None or not np.asarray(limits).any():
        return dataset
    warnings.warn(f"{int(np.asarray(limits).sum())} of {np.asarray(limits).size} targets are censored: what lies "
                  f"beyond their limits was not seen, so that {name}, coverage, calibration and errors are not known "
                  "(NaN); the log predictive density is", UserWarning, stacklevel=3)
    known = {"log_predictive_density", *(f"mean_log_predictive_density{s}" for s in ("", "_sem", "_mcse"))}
    return dataset.assign({n: v * np.nan for n, v in dataset.items() if n not in known})


def _name_infinite(dataset: xr.Dataset, name: str, y: Any) -> None:
    """Warn of data whose scores are not finite."""
    for score, label in (("log_predictive_density", "log predictive density"), (name, name)):
        values = dataset[score].values.reshape(dataset.sizes["point"], -1)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if bad.size:
            at, kind = int(bad[0]), np.asarray(y).dtype
            warnings.warn(
                f"the {label} of {bad.size} of {len(values)} data is not finite, the first {values[at, 0]} at y[{at}]"
                f" = {np.ravel(np.asarray(y)[at])[0]:.4g}: no draw gives it a density that {kind} can hold. Check its "
                "units, or leave it out", UserWarning, stacklevel=3)


def scores_of_phi(likelihood: Any, phi: Any, y: Any, *, levels=LEVELS, num_bins: int = 10, max_draws: int = 400,
                  method: str = "", learned: Any = None) -> Scores:
    """`scores` from outputs φ (draw, n, outputs) that are already there, under a `Likelihood`.

    `learned`: draws (draw, …) of each site that the likelihood learns.
    """
    phi = np.asarray(read_array(phi, "phi", finite=False))
    targets = likelihood.targets(y, phi.shape[-1])
    law = predictive_of_phi(likelihood, phi, targets, jax.random.key(0), learned)
    ll = law.pop("log_likelihood")
    flat = np.asarray(targets, np.float64).reshape(phi.shape[1], -1)
    dataset, name, kind = score_table(law, flat, ll, levels, num_bins, max_draws)
    dataset.attrs |= {"num_draws": len(phi), "method": method}
    return Scores(dataset, name, kind)


def check_levels(levels: Any) -> list[float]:
    """Probabilities of intervals, one or several, as a list."""
    found = np.atleast_1d(check_floats(levels, "levels", finite=False)).tolist()
    if not found:
        raise ValueError("levels must be one probability or several, got none")
    for level in found:
        if not 0 < level < 1:
            raise ValueError(f"levels must lie between 0 and 1, got {level}")
    return found


def score_table(law: dict[str, np.ndarray], y: np.ndarray, ll: np.ndarray, levels, num_bins: int, max_draws: int,
                counted: np.ndarray | None = None) -> tuple[xr.Dataset, str, str]:
    """The Dataset of `Scores`, from components (draw, n, outputs), targets (n, outputs), log-likelihoods (draw, n).

    Of targets of several outputs, ``counted`` (n, outputs) says which entries do.
    """
    levels = check_levels(levels)
    classes = "classes" in law
    discrete = classes or "probs" in law
    lpd = log_mean_exp(ll, axis=0)
    name, score = proper_score(_some(law, max_draws), y)
    interval = pit(law, y)
    data: dict[str, Any] = {
        "log_predictive_density": ("point", lpd), name: (("point", "output"), score),
        "pit": (("point", "output", "bound"), interval),
    }
    summary = {"mean_log_predictive_density": mean_sem(lpd), f"mean_{name}": mean_sem(score, counted)}
    if discrete:
        p = law["classes" if classes else "probs"].mean(axis=0)
        right = (p.argmax(axis=1) == y[:, 0])[:, None] if classes else (p > 0.5) == (y > 0.5)
        summary["accuracy"] = mean_sem(right.astype(float), counted)
        kind, confidence = "reliability", p.max(axis=1) if classes else p.ravel()
        happened = right[:, 0] if classes else y.ravel() > 0.5
        if counted is not None and not classes:
            confidence, happened = confidence[counted.ravel()], happened[counted.ravel()]
        curve = reliability(confidence, happened, num_bins)
        seen = curve["calibration_count"] > 0
        gap = np.abs(curve["calibration_observed"] - curve["calibration_predicted"])[seen]
        data["calibration_error"] = float(np.average(gap, weights=curve["calibration_count"][seen]))
    else:
        mean = law["loc" if "loc" in law else "rate" if "rate" in law else "draws"].mean(axis=0)
        squares, error = mean_sem((mean - y) ** 2, counted)
        summary["rmse"] = (np.sqrt(squares), error / (2 * np.sqrt(squares)) if squares > 0 else 0.0)
        kind, curve = "pit", pit_curve(interval, counted)
    covered = [mean_sem(coverage(interval, level, discrete), counted) for level in levels]
    data |= {"coverage": ("level", [c for c, _ in covered]), "coverage_sem": ("level", [e for _, e in covered])}
    data |= {k: ("bin", v) for k, v in curve.items()}
    for k, (value, error) in summary.items():
        data |= {k: value, f"{k}_sem": error}
    data["mean_log_predictive_density_mcse"] = float(block_jackknife(lambda d: log_mean_exp(d).mean(), ll.T))
    return xr.Dataset(data, coords={"level": list(levels), "bound": ["below", "at"]}), name, kind


def reliability(confidence: np.ndarray, happened: np.ndarray, num_bins: int) -> dict[str, np.ndarray]:
    """Predicted probability against observed frequency, in bins of equal width, with 95 % Wilson intervals."""
    index = np.clip((confidence * num_bins).astype(int), 0, num_bins - 1)
    count = np.bincount(index, minlength=num_bins).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        predicted = np.bincount(index, confidence, num_bins) / count
        observed = np.bincount(index, happened.astype(float), num_bins) / count
    lower, upper = _wilson(observed, count)
    return {"calibration_predicted": predicted, "calibration_observed": observed, "calibration_lower": lower,
            "calibration_upper": upper, "calibration_count": count}


def pit_curve(interval: np.ndarray, counted: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Fraction of data below each predictive quantile, with 95 % Wilson intervals; outputs of a datum count as one."""
    below = np.stack([overlap(interval, 0.0, q) for q in CURVE_LEVELS])
    observed = np.average(below.reshape(len(below), -1), axis=1, weights=None if counted is None else counted.ravel())
    count = np.full(len(CURVE_LEVELS), float(interval.shape[0]))
    lower, upper = _wilson(observed, count)
    return {"calibration_predicted": CURVE_LEVELS.copy(), "calibration_observed": observed, "calibration_lower": lower,
            "calibration_upper": upper, "calibration_count": count}


def _wilson(frequency: np.ndarray, count: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(invalid="ignore", divide="ignore"):
        shrink = 1 + z**2 / count
        middle = (frequency + z**2 / (2 * count)) / shrink
        half = z / shrink * np.sqrt(frequency * (1 - frequency) / count + (z / (2 * count)) ** 2)
    return middle - half, middle + half


def _log_likelihood_one(bound: BoundModel, params: dict, x: Any, y: Any) -> jax.Array:
    return bound.log_likelihood(params, x, y)


def training_density(model, posterior: Posterior, x, y) -> tuple[BoundModel, np.ndarray, np.ndarray]:
    """The model bound to `x`, log p(y | θ) of each training datum, float64 (chain, draw, point), and which data these
    are: those that the likelihood counts.

    Raises
    ------
    ValueError
        If a draw has no log-likelihood (NaN).
    """
    x, y = check_data(x, y)
    bound = bind(model, x)
    bound.check_params(posterior.samples, "posterior")
    draws = {s: posterior.flat()[s] for s in bound.names}
    ll = map_draws(_log_likelihood_one, (bound,), draws, (x, bound.targets(y)), chunk=default_chunk(work(bound, x)))
    seen = np.flatnonzero(counted_data(bound, posterior, x).any(axis=1))
    ll = np.asarray(ll, np.float64)[:, seen]
    bad = np.flatnonzero(np.isnan(ll).any(axis=1))
    if bad.size:
        raise ValueError(f"{bad.size} of {posterior.size} draws have no log-likelihood (NaN), the first at (chain, "
                         f"draw) {divmod(int(bad[0]), posterior.num_draws)}; leave them out of the posterior")
    return bound, ll.reshape(posterior.num_chains, posterior.num_draws, -1), seen


def loo(model, posterior: Posterior, x, y) -> xr.Dataset:
    """Leave-one-out log predictive density of the training data, by Pareto-smoothed importance sampling (ArviZ).

    Parameters
    ----------
    model : callable
    posterior : Posterior
        Trained on (x, y); draws of a posterior, since a gradient-descent ensemble has no likelihood to leave out.
    x, y : arrays
        Its training data.

    Returns
    -------
    xarray.Dataset
        ``elpd`` (point), ``pareto_k`` (point); ``elpd_sum`` with ``elpd_sum_sem`` over data, in nats; ``p_loo``;
        ``num_bad``: data with ``pareto_k`` above ``good_k``, for which the estimate fails; ``usable``, and in
        ``attrs["verdict"]`` why or why not.

    Warns
    -----
    UserWarning
        Where the estimate is unusable: most data have ``pareto_k`` above 0.7, ``p_loo`` is above the number of
        parameters, or a number is not finite.

    Raises
    ------
    ValueError
        If a draw has no log-likelihood (NaN), or there are fewer than 10.

    References
    ----------
    .. [1] Vehtari, Gelman and Gabry, Statistics and Computing 27 (2017) 1413, arXiv:1507.04544.
    """
    bound, ll, seen = training_density(model, posterior, x, y)
    if posterior.size < 10:
        raise ValueError("leave-one-out by importance sampling needs draws to weigh, 10 and more, got "
                         f"{posterior.size}; score data that were held out (diagnostics.scores)")
    found = arviz_bridge.loo(ll)
    elpd, k, p_loo = found["elpd"].values, found["pareto_k"].values, float(found["p_loo"])
    each = log_mean_exp(ll.reshape(posterior.size, -1), axis=0) - elpd
    faults = _loo_faults(each, k, p_loo, sum(int(np.prod(s.shape)) for s in bound.sites))
    total, error = float(elpd.sum()), len(elpd) * mean_sem(elpd)[1]
    verdict = (f"leave-one-out is unusable here: {'; '.join(faults)}. Score data that were held out "
               "(diagnostics.scores), or refit without each part of the data in turn") if faults else (
               f"elpd {total:.4g} ± {error:.2g}, p_loo {p_loo:.3g}; Pareto k of {len(k)} data up to {k.max():.2f}")
    if faults:
        warnings.warn(verdict, UserWarning, stacklevel=2)
    out = found.assign(elpd_sum=total, elpd_sum_sem=error, num_bad=int((k > found.attrs["good_k"]).sum()),
                       usable=not faults)
    return out.assign_coords(point=seen).assign_attrs(verdict=verdict)


def _loo_faults(each: np.ndarray, k: np.ndarray, p_loo: float, parameters: int) -> list[str]:
    """Why leave-one-out by importance sampling cannot be believed; `each`: what a datum adds to p_loo."""
    count, high = len(k), int((~(k <= PARETO_LIMIT)).sum())  # NaN is no good k
    faults = [f"{high} of {count} data have a Pareto k above {PARETO_LIMIT:g}"] if 2 * high > count else []
    # Where data determine all parameters p_loo scatters about their number, by √n times the spread of its parts.
    slack = min(2 * np.sqrt(count) * np.std(each), 0.5 * parameters) if np.isfinite(each).all() else 0.0
    if not p_loo <= parameters + slack:
        faults.append(f"p_loo = {p_loo:.3g} is above the model's {parameters} parameters")
    if not np.isfinite(each).all():
        faults.append(f"the elpd of {int((~np.isfinite(each)).sum())} of {count} data are not finite")
    return faults
