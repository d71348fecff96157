"""Sentences that judge: each is made of numbers and their errors, and can come out either way.

Reports, notebooks and models take what they conclude from here, so that no conclusion is typed ahead of the numbers.
`VERDICTS` lists them all; a test runs each on data that bear it out and on data that contradict it. No number is
left out because it is not finite: such a number bears nothing out, and a claim with one in it does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from ..core.jackknife import block_jackknife
from ..field.draws import autocorrelation_time
from ..flow.critical_scale import critical_scale

__all__ = ["VERDICTS", "Verdict", "agree", "ahead", "calibrated", "flat", "follow", "gaussian", "signed", "told_apart",
           "trained"]

ALPHA = 0.01  # chance at which a right statement is called wrong
VERDICTS: dict[str, Callable[..., Verdict]] = {}


@dataclass(frozen=True)
class Verdict:
    """A sentence and whether its claim holds; None where the numbers do not decide."""

    holds: bool | None
    text: str

    def __str__(self) -> str:
        return self.text

    def __bool__(self) -> bool:
        return self.holds is True


def _listed(function: Callable[..., Verdict]) -> Callable[..., Verdict]:
    VERDICTS[function.__name__] = function
    return function


def plus_minus(value: float, error: float) -> str:
    """A value with its standard error, to two digits of the error."""
    if not np.isfinite(error) or error <= 0:
        return f"{value:.4g}"
    if not 1e-4 <= error < 1e5:
        return f"{value:.3g} ± {error:.1g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} ± {error:.{places}f}"


def _limit(count: int) -> float:
    """How many standard errors the largest of `count` deviations exceeds by chance with probability ALPHA (Šidák)."""
    return float(stats.norm.isf((1 - (1 - ALPHA) ** (1 / max(count, 1))) / 2))


# -- the flow -------------------------------------------------------------------------------------------------
@_listed
def flat(loss: xr.DataArray, stiff_fraction: Any = None, zero_share: float | None = None, *, tolerance: float = 0.05,
         level: float = 0.9) -> Verdict:
    """Is the loss flat up to Λ_C, and up to where is it?

    Parameters
    ----------
    loss : DataArray (cutoff, chain, draw)
        Of the members that count, the others NaN at Λ = 0. ``attrs["units"]`` is "nats" for a −log p, whose growth is
        then a rise in nats. A loss that is lost further on counts as infinite.
    stiff_fraction : array (cutoff,), optional
    zero_share : float, optional
        Share of the directions whose stiffness is 0 on the probe inputs, of which the flow says nothing but that they
        go first.
    tolerance : float
        Growth of the median loss that still counts as flat: 5 %, or .05 nats.
    level : float
        Probability of the interval of the growth (from a jackknife over members).

    Returns
    -------
    Verdict
        Holds if the whole interval of the growth at the last cutoff below Λ_C is within `tolerance`; not if all of it
        is beyond.
    """
    scales = np.asarray(loss["cutoff"].values, float)
    values = loss.transpose("cutoff", "chain", "draw").values.astype(float).reshape(len(scales), -1)
    values = values[:, np.isfinite(values[0])]
    if not values.size:
        return Verdict(None, "Whether the loss is flat cannot be said: no member has a finite loss at Λ = 0.")
    values = np.where(np.isfinite(values), values, np.inf)
    nats = loss.attrs.get("units") == "nats" or bool((values < 0).any())
    critical = critical_scale(loss)

    def growth(members):
        middle = np.median(members, axis=-1)
        return middle - middle[0] if nats else middle / middle[0] - 1

    def say(amount: float) -> str:
        return f"{amount:.2g} nats" if nats else f"{amount:.0%}"

    with np.errstate(invalid="ignore"):  # infinite losses in a median
        grown, error = growth(values), block_jackknife(growth, values)
    until = int(np.argmin(np.append(grown <= tolerance, False))) - 1  # the last before the first that is beyond
    region = f"It stays within {say(tolerance)} of its level at Λ = 0 up to Λ = {scales[until]:.3g}"
    if until + 1 < len(scales):
        region += f", and is up by {say(grown[until + 1])} at Λ = {scales[until + 1]:.3g}"
    if not np.isfinite(critical.value):
        return Verdict(None, f"There is no Λ_C to be flat up to: {critical}. {region}.")
    last = int(np.flatnonzero(scales < critical.value)[-1])
    if not last:
        return Verdict(None, f"Whether the loss is flat up to Λ_C = {critical.value:.3g} is open: there is no cutoff "
                             f"between 0 and it. {region}.")
    half = stats.norm.isf((1 - level) / 2) * error[last]
    low, high = grown[last] - half, grown[last] + half
    if not np.isfinite([low, high]).all():
        return Verdict(None, f"Whether the loss is flat up to Λ_C is open: its growth at Λ = {scales[last]:.3g} is "
                             f"{say(grown[last])}, with no error that is known. {region}.")
    holds = True if high <= tolerance else False if low > tolerance else None
    words = {True: "The loss is flat up to Λ_C", False: "The loss is not flat up to Λ_C",
             None: "Whether the loss is flat up to Λ_C is open"}[holds]
    text = (f"{words}: at Λ = {scales[last]:.3g}, the last cutoff below it, the median has grown by {say(grown[last])} "
            f"({level:.0%} interval {say(low)} to {say(high)}). {region}.")
    if stiff_fraction is not None:
        gone = 1 - float(np.asarray(stiff_fraction)[last])
        text += f" {gone:.1%} of the directions are given back at Λ = {scales[last]:.3g}"
        text += "." if zero_share is None else (
            f"; {zero_share:.1%} have no stiffness at all on the probe inputs, and go at the first cutoff.")
    return Verdict(holds, text)


def zero_share(spectrum: xr.Dataset) -> float:
    """Share of the directions of a metric, from `spectrum_table`, that have no stiffness."""
    modes, parameters = spectrum["num_directions"].values, spectrum["num_parameters"].values
    return float(((spectrum["zero_fraction"].values * modes) + parameters - modes).sum() / parameters.sum())


# -- numbers against numbers ----------------------------------------------------------------------------------
@_listed
def agree(value: Any, error: Any, expected: Any, what: str) -> Verdict:
    """Do measured numbers have their expected values, within their standard errors?

    Parameters
    ----------
    value, error, expected : float or array
        The largest deviation of all is judged, as the largest of so many.
    what : str
        What they are, to begin the sentence with.

    Returns
    -------
    Verdict
        Holds if all are. Not where any is not finite; undecided where an error is not known.
    """
    value, error, expected = np.broadcast_arrays(*(np.asarray(a, float) for a in (value, error, expected)))
    lost = ~(np.isfinite(value) & np.isfinite(expected))
    if lost.any():
        return Verdict(False, f"{what}: not as expected, {_not_finite(lost)}.")
    exact = (error == 0) & (value == expected)  # nothing to doubt
    usable = (error > 0) & np.isfinite(error)
    if not usable.any():
        return Verdict(None, f"{what} cannot be compared: no error is known.")
    z = np.where(usable, (value - expected) / np.where(usable, error, 1.0), 0.0)
    worst = np.unravel_index(np.abs(z).argmax(), z.shape)
    size, count = abs(float(z[worst])), int(usable.sum())
    with np.errstate(divide="ignore"):  # no deviation at all: p = 1
        chance = float(-np.expm1(count * np.log1p(-2 * stats.norm.sf(size)))) if size < 38 else 0.0
    pair = f"{plus_minus(float(value[worst]), float(error[worst]))} against {float(expected[worst]):.4g}"
    where = f"{pair}, {size:.1f} standard errors" if count == 1 else (
        f"at most {size:.1f} standard errors apart in {count} comparisons ({pair})")
    holds: bool | None = size <= _limit(count)
    words, unknown = "as expected" if holds else "not as expected", int((~usable & ~exact).sum())
    if unknown:
        where += f"; {unknown} of {value.size} have no error that is known"
        holds, words = (None, "undecided") if holds else (False, words)
    return Verdict(holds, f"{what}: {words}, {where} (p = {chance:.2g}).")


def _not_finite(lost: np.ndarray) -> str:
    return f"{int(lost.sum())} of {lost.size} numbers are not finite" if lost.size > 1 else "it is not finite"


@_listed
def ahead(gain: Any, error: Any, first: str, second: str, measure: str) -> Verdict:
    """Is one ahead of another, by a difference whose standard error is known?"""
    gain, error = float(gain), float(error)
    told = f"{plus_minus(gain, error)} {measure}"
    if not np.isfinite(gain) or not error > 0:
        return Verdict(None, f"{first} and {second} cannot be compared ({told}).")
    if abs(gain) <= _limit(1) * error:
        return Verdict(None, f"{first} and {second} are not told apart: {told}.")
    return Verdict(gain > 0, f"{first} is {'ahead of' if gain > 0 else 'behind'} {second}: {told}.")


@_listed
def signed(value: Any, error: Any, what: str, sign: int = -1) -> Verdict:
    """Have numbers the sign that is claimed (−1 or 1)? Holds if all do by more than their errors allow to doubt."""
    value, error = np.broadcast_arrays(*(np.atleast_1d(np.asarray(a, float)) for a in (value, error)))
    lost = ~(np.isfinite(value) & (error > 0) & np.isfinite(error))
    if lost.all():
        return Verdict(None, f"{what}: of no certain sign, no number with an error is finite.")
    z, limit = np.where(lost, np.inf, sign * value / np.where(lost, 1.0, error)), _limit(value.size)
    worst = int(np.argmin(z))
    name = "negative" if sign < 0 else "positive"
    told = f"{plus_minus(float(value[worst]), float(error[worst]))}" + (" at the least clear" if value.size > 1 else "")
    if lost.any():
        told += f"; {int(lost.sum())} of {lost.size} numbers or their errors are not finite"
    if z[worst] < -limit:
        return Verdict(False, f"{what}: not {name} ({told}).")
    if (z > limit).all() and not lost.any():
        return Verdict(True, f"{what}: {name} ({told}).")
    return Verdict(None, f"{what}: of no certain sign ({told}).")


@_listed
def follow(cutoffs: Any, value: Any, error: Any, expected: Any, what: str) -> Verdict:
    """Is a curve along the flow where a closed form puts it, and where not? A scale whose numbers, or their errors, are
    not finite is off."""
    cutoffs, value, error, expected = (np.asarray(a, float) for a in (cutoffs, value, error, expected))
    value, error, expected = (a.reshape(len(cutoffs), -1) for a in np.broadcast_arrays(value, error, expected))
    same, known = value == expected, np.isfinite(value) & np.isfinite(error) & (error > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(same, 0.0, np.where(known, np.abs(value - expected) / error, np.inf))
    off = np.flatnonzero((z > _limit(z.size)).any(axis=1))
    if not off.size:
        return Verdict(True, f"{what} is met at every Λ: at most {z.max():.1f} standard errors off, of {z.size} "
                             "comparisons.")
    lost = int((~np.isfinite(z)).any(axis=1).sum())
    told = f"by up to {z[np.isfinite(z)].max(initial=0):.3g} standard errors" + (
        f"; at {lost} of them numbers or errors are not finite" if lost else "")
    return Verdict(False, f"{what} is off at {off.size} of {len(cutoffs)} scales, the last Λ = {cutoffs[off[-1]]:.3g}, "
                          f"{told}.")


@_listed
def told_apart(p_values: Any, what: str) -> Verdict:
    """Do two families of laws differ anywhere? Holds if they do, by Simes' test of all p-values together.

    It stands for scales that share draws, whose p-values rise and fall together, and for permutation tests, whose
    p-values cannot be as small as a correction by their number would ask.
    """
    p = np.asarray(p_values, float).ravel()
    lost = int((~np.isfinite(p)).sum())
    if lost == p.size:
        return Verdict(None, f"{what}: nothing was tested.")
    sure = np.where(np.isfinite(p), p, 1.0)  # what was not tested tells nothing apart
    whole = float(np.min(p.size * np.sort(sure) / np.arange(1, p.size + 1)))
    count = f"p < .05 at {int((sure < 0.05).sum())} of {p.size} scales; all together p = {whole:.2g}"
    count += f"; {lost} could not be tested" if lost else ""
    if whole < 0.05:
        return Verdict(True, f"{what} differ ({count}).")
    return Verdict(None if lost else False, f"{what} are not told apart by so many draws ({count}).")


# -- a posterior ----------------------------------------------------------------------------------------------
@_listed
def gaussian(phi: Any, what: str = "φ at the characteristic input", *, independent: bool = False) -> Verdict:
    """Are draws of an output Gaussian? Goodness of fit by skewness and kurtosis together (D'Agostino and Pearson).

    Parameters
    ----------
    phi : array (chain, draw)
        Draws that are NaN, as of members that are left out, are no draws; an infinite one is.
    independent : bool
        Whether the draws are; chains are thinned by their autocorrelation time.
    """
    phi = np.atleast_2d(np.asarray(phi, float))
    infinite = int(np.isinf(phi).sum())
    if infinite:
        return Verdict(False, f"{what} is not Gaussian: {infinite} of {phi.size} draws are infinite.")
    size = np.abs(phi).max(initial=0, where=~np.isnan(phi))
    phi = phi / size if size > 0 else phi  # no power of it overflows or vanishes then
    middle = np.nanmean(phi) if not np.isnan(phi).all() else 0.0
    width = np.abs(phi - middle).max(initial=0, where=~np.isnan(phi))
    phi = (phi - middle) / width if width > 0 else phi
    chain = phi[:, :, None]
    finite = bool(np.isfinite(phi).all())
    if not finite and not independent:
        return Verdict(None, f"Whether {what} is Gaussian, chains with {int(np.isnan(phi).sum())} of {phi.size} draws "
                             "missing do not tell.")
    step = 1 if independent else math.ceil(autocorrelation_time(np.concatenate(
        [chain, (chain - chain.mean()) ** 2], axis=2)))
    draws = phi[:, ::step].ravel()
    draws = draws[~np.isnan(draws)]
    if draws.size < 20 or np.ptp(draws) == 0:
        return Verdict(None, f"Whether {what} is Gaussian, {draws.size} independent draws do not tell.")
    p = float(stats.normaltest(draws).pvalue)
    kurtosis = float(stats.kurtosis(draws, bias=False))
    error = float(block_jackknife(lambda d: stats.kurtosis(d, axis=-1, bias=False), draws))
    told = f"excess kurtosis {plus_minus(kurtosis, error)}, skewness {stats.skew(draws, bias=False):.2g}, " \
           f"goodness of fit p = {p:.2g} of {draws.size} draws"
    if not p >= ALPHA:
        return Verdict(False, f"{what} is not Gaussian: {told}.")
    return Verdict(True, f"{what} is Gaussian as far as these draws tell: {told}.")


@_listed
def calibrated(coverage: float, error: float, level: float, count: int, what: str) -> Verdict:
    """Do predictive intervals of a probability hold that share of the data?"""
    coverage = float(coverage)
    if not np.isfinite(coverage):
        return Verdict(False, f"{what}: how many of {count} data {level:.0%} intervals hold is not a finite number.")
    if not error > 0:  # none or all of the data: the binomial's own error instead
        error = math.sqrt(level * (1 - level) / max(count, 1))
    z = (coverage - level) / error
    told = f"{level:.0%} intervals hold {plus_minus(100 * coverage, 100 * error)} % of {count} data"
    if abs(z) <= _limit(1):
        return Verdict(True, f"{what}: {told}, as they should within their errors.")
    return Verdict(False, f"{what}: {told}; they are too {'wide' if z > 0 else 'narrow'}.")


@_listed
def trained(loss: Any, reference: Any, what: str, than: str, *, factor: float = 2.0) -> Verdict:
    """Does one way of training bring the loss down to what another reaches, within a factor?

    Parameters
    ----------
    loss, reference : array (member,)
        Final loss of each member by either way.
    what, than : str
        Names of the two.
    """
    loss, reference = (np.asarray(a, float).ravel() for a in (loss, reference))
    lost, unknown = (~np.isfinite(a) for a in (loss, reference))
    if unknown.mean() >= 0.5:
        return Verdict(None, f"{what} cannot be compared with {than}: {int(unknown.sum())} of {unknown.size} members "
                             "of that have no finite loss.")
    if lost.mean() >= 0.5:
        return Verdict(False, f"{what} diverges: {int(lost.sum())} of {lost.size} members have no finite loss.")
    loss, reference = (np.where(np.isfinite(a), a, np.inf) for a in (loss, reference))  # beyond every other

    def middle(values):
        return np.log(np.median(values, axis=-1))

    middling = float(np.median(loss))
    ratio = float(middle(loss) - middle(reference))
    with np.errstate(invalid="ignore"):
        error = float(np.hypot(block_jackknife(middle, loss), block_jackknife(middle, reference)))
    told = (f"its median loss is {middling:.3g}, {np.exp(ratio):.3g} times that of {than} "
            f"({np.exp(ratio - 1.96 * error):.3g} to {np.exp(ratio + 1.96 * error):.3g}, 95 %)")
    told += f"; {int(lost.sum())} of {lost.size} members have no finite loss" if lost.any() else ""
    edge = math.log(factor)
    if ratio + _limit(1) * error < edge:
        return Verdict(True, f"{what} trains as well as {than}: {told}.")
    if ratio - _limit(1) * error > edge:
        return Verdict(False, f"{what} does not train as {than} does: {told}.")
    return Verdict(None, f"Whether {what} trains as well as {than} is open: {told}.")
