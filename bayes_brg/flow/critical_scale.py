"""Critical scales: where a curve along the flow leaves its flat region."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from ..core.checks import check_choice, check_count, check_positive

__all__ = ["CriticalScale", "critical_scale", "variance_scale"]


@dataclass(frozen=True)
class CriticalScale:
    """Where the loss, or another curve along the flow, leaves its flat region.

    Attributes
    ----------
    value : float
        Λ_C, in units of 1/datum; NaN where there is none, and `reason` says why.
    lower, upper : float
        Bootstrap interval over members.
    level : float
        Its probability.
    definition : str
    reason : str
    """

    value: float
    lower: float
    upper: float
    level: float
    definition: str
    reason: str = ""

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        if np.isnan(self.value):
            return f"no critical scale: {self.reason}"
        return (f"critical scale {self.value:.3g} ({self.level:.0%} interval {self.lower:.3g} to {self.upper:.3g}; "
                f"{self.definition})")


def critical_scale(loss: xr.DataArray, *, definition: str = "loss_ratio", ratio: float = 2.0, level: float = 0.9,
                   num_bootstrap: int = 500, seed: int = 0) -> CriticalScale:
    """Λ_C from a loss along a flow, such as one read back from a run; see `Flow.critical_scale`.

    Parameters
    ----------
    loss : DataArray (cutoff, chain, draw)
        Members whose loss is not finite at Λ = 0 are left out.
    definition : {"loss_ratio", "knee"}
    ratio : float
        Growth of the median loss that counts, above 1.
    level : float
        Probability of the bootstrap interval over members.
    num_bootstrap, seed : int
        Number of resampled ensembles, and the seed of the resampling.

    Returns
    -------
    CriticalScale
    """
    check_choice(definition, "definition", ("loss_ratio", "knee"))
    scales = _check(loss, ratio)
    values = np.asarray(loss.transpose("cutoff", "chain", "draw")).reshape(len(scales), -1)
    values = values[:, np.isfinite(values[0])]
    label = f"median loss × {ratio:g}" if definition == "loss_ratio" else "knee of the median loss"
    if not values.size:
        return CriticalScale(np.nan, np.nan, np.nan, level, label, "no member has a finite loss at Λ = 0")

    def find(members):
        curve = np.median(values[:, members], axis=1)
        return _crossing(scales, curve, ratio) if definition == "loss_ratio" else _knee(scales, curve)

    return _with_interval(find, values.shape[1], level, num_bootstrap, seed, label)


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

    def find(members):
        return _crossing(scales, values[:, members].var(axis=1).sum(axis=-1), ratio)

    return _with_interval(find, values.shape[1], level, num_bootstrap, seed, label)


def _check(curve: xr.DataArray, ratio: float) -> np.ndarray:
    if check_positive(ratio, "ratio") <= 1:
        raise ValueError(f"ratio must be above 1, got {ratio}")
    scales = np.asarray(curve["cutoff"])
    if scales[0] != 0:
        raise ValueError(f"a critical scale compares with Λ = 0, but the first cutoff is {scales[0]}; add 0")
    return scales


def _with_interval(find: Callable, members: int, level: float, num: int, seed: int, label: str) -> CriticalScale:
    """The scale of all members, and the bootstrap interval over resampled ones."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    found, reason = find(np.arange(members))
    rng = np.random.default_rng(seed)
    boot = np.array([find(rng.integers(members, size=members))[0]
                     for _ in range(check_count(num, "num_bootstrap"))])
    boot = boot[np.isfinite(boot)]
    lower, upper = np.quantile(boot, [(1 - level) / 2, (1 + level) / 2]) if boot.size else (np.nan, np.nan)
    return CriticalScale(float(found), float(lower), float(upper), level, label, reason)


def _crossing(scales: np.ndarray, curve: np.ndarray, ratio: float) -> tuple[float, str]:
    """First crossing of ratio × curve[0], log–log; NaN with a reason where there is none."""
    target = ratio * curve[0]
    above = np.flatnonzero(~(curve < target))
    if not above.size:
        return np.nan, f"the curve grows by less than {ratio:g} up to the largest cutoff, {scales[-1]:.3g}"
    i = int(above[0])
    if i <= 1:
        grown = curve[min(1, len(curve) - 1)] / curve[0] if curve[0] > 0 else np.inf
        return np.nan, (f"no flat region: growth by {grown:.3g} already at the smallest positive cutoff, "
                        f"{scales[min(1, len(scales) - 1)]:.3g}")
    if not np.isfinite(scales[i]) or not np.isfinite(curve[i]) or curve[i - 1] <= 0:
        return float(scales[i - 1]), ""
    step = (np.log(target) - np.log(curve[i - 1])) / (np.log(curve[i]) - np.log(curve[i - 1]))
    return float(np.exp(np.log(scales[i - 1]) + step * (np.log(scales[i]) - np.log(scales[i - 1])))), ""


def _knee(scales: np.ndarray, curve: np.ndarray) -> tuple[float, str]:
    """Corner of the best flat-then-rising broken line in log–log; the flat part passes through the level at Λ = 0.

    With u = ln Λ and v = ln(curve/curve[0]) the broken line is s·max(u − k, 0). For each k on a fine grid the slope s
    is a least-squares ratio; the knee is the k of least squared error. Points past half of the rise are left out:
    there the curve saturates at the prior.
    """
    ok = (scales > 0) & np.isfinite(scales) & np.isfinite(curve) & (curve > 0)
    if ok.sum() < 4 or not curve[0] > 0:
        return np.nan, "a knee needs at least four positive cutoffs with a finite, positive curve"
    u, v = np.log(scales[ok]), np.log(curve[ok] / curve[0])
    if v.max() < np.log(1.1):
        return np.nan, "the curve stays within 10 % of its level at Λ = 0"
    if v[0] > 0.25 * v.max():
        return np.nan, (f"no flat region: growth by {np.exp(v[0]):.3g} already at the smallest positive cutoff, "
                        f"{np.exp(u[0]):.3g}")
    keep = slice(0, max(4, int(np.argmax(v > 0.5 * v.max())) + 1))
    u, v = u[keep], v[keep]
    corners = np.linspace(u[0], u[-1], 400)[:-1]
    ramps = np.maximum(u[None] - corners[:, None], 0)
    slope = (ramps @ v) / np.sum(ramps**2, axis=1)
    error = np.sum((v - slope[:, None] * ramps) ** 2, axis=1)
    return float(np.exp(corners[np.argmin(error)])), ""
