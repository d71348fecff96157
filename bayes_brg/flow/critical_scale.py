"""Critical scales: where a curve along the flow leaves its flat region."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from ..core.checks import check_choice, check_count, check_positive
from ..core.jackknife import block_jackknife

__all__ = ["CriticalScale", "critical_scale", "flow_differences", "variance_scale"]


FLAT = 0.05


@dataclass(frozen=True)
class CriticalScale:
    """Where the loss, or another curve along the flow, leaves its flat region.

    Attributes
    ----------
    value : float
        Λ_C, in units of 1/datum; NaN where there is none, and `reason` says why.
    lower, upper : float
        Bootstrap interval over members. A resample whose curve does not leave its flat region counts as beyond the last
        cutoff, so that `upper` may be infinite; one without a flat region as below the first, so that `lower` may be 0.
        NaN for one member.
    level : float
        Its probability.
    definition : str
    reason : str
    beyond, below : float
        Shares of the resamples that count so.
    growth : float
        Growth of the curve at the last cutoff below Λ_C (of all where there is no Λ_C): a factor, or nats.
    flat : float
        Largest cutoff up to which the growth is within 5 % (or .05 nats).
    """

    value: float
    lower: float
    upper: float
    level: float
    definition: str
    reason: str = ""
    beyond: float = 0.0
    below: float = 0.0
    growth: float = np.nan
    flat: float = np.nan

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        share = f"; {self.beyond:.0%} of resamples beyond the last cutoff" if self.beyond > 0 else ""
        if np.isnan(self.value):
            return f"no critical scale: {self.reason}{share}"
        if np.isnan(self.lower):
            return f"critical scale {self.value:.3g} (no interval from one member; {self.definition})"
        upper = f"{self.upper:.3g}" if np.isfinite(self.upper) else "beyond the last cutoff"
        return (f"critical scale {self.value:.3g} ({self.level:.0%} interval {self.lower:.3g} to {upper}{share}; "
                f"{self.definition})")


@dataclass(frozen=True)
class Growth:
    """How growth above Λ = 0 is read off a curve.

    A squared loss or a variance grows by a factor, which has no units. A −log p in nats has an origin that depends on
    the units of y, so that only its rise means something: of a rise r every datum is e^{−r} times as probable.
    """

    nats: bool

    def of(self, curve: np.ndarray) -> np.ndarray:
        """Log of the factor, or the rise; 0 at Λ = 0."""
        if self.nats:
            return curve - curve[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(curve / curve[0])

    def say(self, growth: float) -> str:
        return f"{growth:.3g} nats" if self.nats else f"a factor of {np.exp(growth):.3g}"

    def shown(self, growth: float) -> float:
        return float(growth if self.nats else np.exp(growth))


DEFINITIONS = ("loss_ratio", "loss_rise", "knee")


def critical_scale(loss: xr.DataArray, *, definition: str | None = None, ratio: float = 2.0, rise: float = 0.1,
                   level: float = 0.9, num_bootstrap: int = 500, seed: int = 0) -> CriticalScale:
    """Λ_C from a loss along a flow, such as one read back from a run; see `Flow.critical_scale`.

    Parameters
    ----------
    loss : DataArray (cutoff, chain, draw)
        Members whose loss is not finite at Λ = 0 are left out. ``loss.attrs["units"]`` is ``"nats"`` for a −log p, as
        `Flow.loss` writes it; without it a loss that is negative somewhere is one.
    definition : {"loss_ratio", "loss_rise", "knee"}, optional
        Growth of the median loss by the factor `ratio`; its rise by `rise`; or the corner of a broken line. Default:
        the ratio for a squared loss, the rise for one in nats.
    ratio : float
        Growth that counts for "loss_ratio", above 1.
    rise : float
        Rise that counts for "loss_rise", in nats per datum: .1 makes each datum 10 % less probable.
    level : float
        Probability of the bootstrap interval over members.
    num_bootstrap, seed : int
        Number of resampled ensembles, and the seed of the resampling.

    Returns
    -------
    CriticalScale
    """
    scales = _check(loss, ratio)
    values = np.asarray(loss.transpose("cutoff", "chain", "draw"), np.float64).reshape(len(scales), -1)
    values = values[:, np.isfinite(values[0])]
    values = np.where(np.isfinite(values), values, np.inf)  # a member that is lost on the way is above all others
    nats = loss.attrs.get("units") == "nats" or bool((values < 0).any())
    if definition is None:
        definition = "loss_rise" if nats else "loss_ratio"
    check_choice(definition, "definition", DEFINITIONS)
    if definition == "loss_ratio" and nats:
        raise ValueError("definition='loss_ratio' has no meaning for a −log p, whose zero depends on the units of y; "
                         "use 'loss_rise'")
    growth = Growth(nats or definition == "loss_rise")
    amount = check_positive(rise, "rise") if growth.nats else np.log(ratio)
    label = {"loss_ratio": f"median loss × {ratio:g}", "loss_rise": f"median loss + {rise:g} nats",
             "knee": "knee of the median loss"}[definition]
    if not values.size:
        return CriticalScale(np.nan, np.nan, np.nan, level, label, "no member has a finite loss at Λ = 0")

    def curve(members):
        return np.median(values[:, members], axis=1)

    return _with_interval(scales, curve, growth, None if definition == "knee" else amount, values.shape[1], level,
                          num_bootstrap, seed, label)


def variance_scale(phi: xr.DataArray, *, ratio: float = 2.0, level: float = 0.9, num_bootstrap: int = 500,
                   seed: int = 0) -> CriticalScale:
    """Λ at which the variance of φ over members, summed over points and outputs, has grown by `ratio`."""
    scales = _check(phi, ratio)
    values = np.asarray(phi.transpose("cutoff", "chain", "draw", "point", "output"), dtype=np.float64)
    values = values.reshape(len(scales), -1, values.shape[3] * values.shape[4])
    values = values[:, np.isfinite(values[0]).all(axis=-1)]
    label = f"variance of φ × {ratio:g}"
    if values.shape[1] < 2:
        return CriticalScale(np.nan, np.nan, np.nan, level, label, "fewer than two members are finite at Λ = 0")

    def curve(members):
        return values[:, members].var(axis=1).sum(axis=-1)

    return _with_interval(scales, curve, Growth(False), np.log(ratio), values.shape[1], level, num_bootstrap, seed,
                          label)


def _check(curve: xr.DataArray, ratio: float) -> np.ndarray:
    if check_positive(ratio, "ratio") <= 1:
        raise ValueError(f"ratio must be above 1, got {ratio}")
    scales = np.asarray(curve["cutoff"])
    if scales[0] != 0:
        raise ValueError(f"a critical scale compares with Λ = 0, but the first cutoff is {scales[0]}; add 0")
    return scales


def _with_interval(scales: np.ndarray, curve: Callable, growth: Growth, amount: float | None, members: int,
                   level: float, num: int, seed: int, label: str) -> CriticalScale:
    """The scale of all members, and the bootstrap interval over resampled ones; the knee where `amount` is None."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")

    def find(grown):
        return _knee(scales, grown, growth) if amount is None else _crossing(scales, grown, amount, growth)

    grown = growth.of(curve(np.arange(members)))
    found, reason = find(grown)
    value = found if np.isfinite(found) and found > 0 else np.nan
    last = np.flatnonzero(scales < value)[-1] if np.isfinite(value) else len(scales) - 1
    within = np.flatnonzero(np.cumprod(grown <= (FLAT if growth.nats else np.log1p(FLAT))))
    facts = {"growth": growth.shown(grown[last]), "flat": float(scales[within[-1]]) if within.size else np.nan}
    num = check_count(num, "num_bootstrap")
    if members == 1:
        return CriticalScale(value, np.nan, np.nan, level, label, reason, **facts)
    rng = np.random.default_rng(seed)
    boot = np.array([find(growth.of(curve(rng.integers(members, size=members))))[0] for _ in range(num)])
    boot = boot[~np.isnan(boot)]
    # Order statistics, since there is nothing between a number and "beyond".
    lower, upper = np.quantile(boot, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf") if boot.size else (
        np.nan, np.nan)
    beyond, none = (float(np.mean(boot == end)) if boot.size else np.nan for end in (np.inf, 0))
    return CriticalScale(value, float(lower), float(upper), level, label, reason, beyond, none, **facts)


def _crossing(scales: np.ndarray, grown: np.ndarray, amount: float, growth: Growth) -> tuple[float, str]:
    """First Λ at which the growth reaches `amount`, interpolated over log Λ.

    ∞ with a reason where it never does, 0 with one where it has at the smallest positive cutoff, NaN where the curve
    has no growth at all.
    """
    if np.isnan(grown[0]):
        return np.nan, "the curve is zero at Λ = 0, so that it has no relative growth"
    above = np.flatnonzero(~(grown < amount))
    if not above.size:
        return np.inf, (f"the curve grows by less than {growth.shown(amount):g}{' nats' * growth.nats} up to the "
                        f"largest cutoff, {scales[-1]:.3g}")
    i = int(above[0])
    if i <= 1:
        return 0.0, (f"no flat region: growth by {growth.say(grown[i])} already at the smallest positive cutoff, "
                     f"{scales[min(1, len(scales) - 1)]:.3g}")
    if not np.isfinite(scales[i]) or not np.isfinite(grown[i]) or not np.isfinite(grown[i - 1]):
        return float(scales[i - 1]), ""
    step = (amount - grown[i - 1]) / (grown[i] - grown[i - 1])
    return float(np.exp(np.log(scales[i - 1]) + step * (np.log(scales[i]) - np.log(scales[i - 1])))), ""


def _knee(scales: np.ndarray, grown: np.ndarray, growth: Growth) -> tuple[float, str]:
    """Corner of the best flat-then-rising broken line; the flat part passes through the level at Λ = 0.

    With u = ln Λ and v the growth (log of the factor, or nats) the broken line is s·max(u − k, 0). For each k on a fine
    grid the slope s is a least-squares ratio; the knee is the k of least squared error. Points past half of the rise
    are left out: there the curve saturates at the prior. Results without a knee as in `_crossing`.
    """
    ok = (scales > 0) & np.isfinite(scales) & np.isfinite(grown)
    if ok.sum() < 4 or not np.isfinite(grown[0]):
        return np.nan, "a knee needs at least four positive cutoffs with a finite, positive curve"
    u, v = np.log(scales[ok]), grown[ok]
    if v.max() < np.log(1.1):
        return np.inf, f"the curve stays within {'.1 nats' if growth.nats else '10 %'} of its level at Λ = 0"
    if v[0] > 0.25 * v.max():
        return 0.0, (f"no flat region: growth by {growth.say(v[0])} already at the smallest positive cutoff, "
                     f"{np.exp(u[0]):.3g}")
    keep = slice(0, max(4, int(np.argmax(v > 0.5 * v.max())) + 1))
    u, v = u[keep], v[keep]
    corners = np.linspace(u[0], u[-1], 400)[:-1]
    ramps = np.maximum(u[None] - corners[:, None], 0)
    slope = (ramps @ v) / np.sum(ramps**2, axis=1)
    error = np.sum((v - slope[:, None] * ramps) ** 2, axis=1)
    return float(np.exp(corners[np.argmin(error)])), ""


def flow_differences(values: xr.DataArray, blocks: int = 25) -> xr.Dataset:
    """What a quantity has changed by along a flow, Λ against Λ = 0, member by member.

    A member keeps its draw and its refill at every Λ, so that most of the scatter over members is the same at both
    scales and leaves the difference: its standard error is far below that of two independent means.

    Parameters
    ----------
    values : DataArray (cutoff, chain, draw, ...)
        From `Flow.loss` or `Flow.predict`, Λ = 0 first.
    blocks : int
        Blocks of consecutive members that are left out in turn, so that it holds for chains too.

    Returns
    -------
    Dataset
        ``difference`` of the means over members and ``median_difference`` of the medians, (cutoff, ...), each with its
        paired standard error ``*_sem`` (block jackknife; NaN for one member), in units of `values`.
    """
    _check(values, 2.0)
    rest = tuple(d for d in values.dims if d not in ("cutoff", "chain", "draw"))
    ordered = values.transpose("cutoff", *rest, "chain", "draw")
    array = np.asarray(ordered, np.float64).reshape(*ordered.shape[:-2], -1)

    def found(statistic):
        def difference(a):
            middle = statistic(a, axis=-1)
            return middle - middle[:1]
        return difference(array), block_jackknife(difference, array, blocks)

    out = {}
    for name, statistic in (("difference", np.mean), ("median_difference", np.median)):
        for label, number in zip((name, f"{name}_sem"), found(statistic), strict=True):
            out[label] = (("cutoff", *rest), number)
    return xr.Dataset(out, {d: values[d] for d in ("cutoff", *rest) if d in values.coords})
