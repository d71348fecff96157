"""What particles along a path of powers say of energy, heat capacity and evidence, with errors (theory §9).

Particles that were resampled share ancestors, and those of neighbouring levels are the same ones, moved. An error is
therefore that of a sum over lineages: particles are grouped by where their ancestor stood so many levels before, and
of all such groupings the one with the largest error counts [1]_. Draws of one chain that follow each other are one
group from the start.

References
----------
.. [1] Olsson and Douc, Numerically stable online estimation of variance in particle filters, Bernoulli 25 (2019),
   arXiv:1701.01001.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import signal
from scipy.special import log_expit, logsumexp

from .critical_scale import CriticalScale
from .tempering import Level

LAGS = 40  # levels that ancestry is followed back
GRID = 301  # scales at which a curve is looked at
FEWEST = 8  # groups below which a grouping says nothing of an error


class Bridge(NamedTuple):
    """log Z of one power over that of another, from particles at both."""

    value: float
    near: np.ndarray
    """(T,): what each particle at the first power adds to the relative error; of weighted mean 0."""
    far: np.ndarray
    """(T,): likewise at the second."""


def bridge(near: np.ndarray, near_weights: np.ndarray, far: np.ndarray, far_weights: np.ndarray, width: float
           ) -> Bridge:
    """log Z_{t'}/Z_t by Bennett's acceptance ratio, the weights L^{t'−t} seen from both ends [1]_.

    Unlike the mean of the weights at one end it has no long tail where the law at t is the narrower one.

    Parameters
    ----------
    near, far : array (transition, T)
        Log-likelihoods of the particles at t and at t', −inf allowed.
    near_weights, far_weights : array (T,)
        Theirs, of sum 1.
    width : float
        t' − t.

    References
    ----------
    .. [1] Bennett, Efficient estimation of free energy differences from Monte Carlo data, J. Comput. Phys. 22 (1976).
    """
    def logs(value):  # of E_t[e^g/(1 + e^g/r)] / r and E_{t'}[1/(1 + e^g/r)], g = (t' − t) log L, r = e^value
        up, down = log_expit(width * near - value), log_expit(value - width * far)
        return (up, down, logsumexp(up, b=near_weights / len(near)), logsumexp(down, b=far_weights / len(far)))

    value = float(np.mean(logsumexp(width * near, axis=1, b=near_weights)))
    for _ in range(200):
        _, _, up, down = logs(value)
        step = float(up - down)
        value += step
        if abs(step) < 1e-10 * max(1.0, abs(value)):
            break
    up, down, mean_up, mean_down = logs(value)
    return Bridge(value, np.exp(up - mean_up).mean(axis=0) - 1, 1 - np.exp(down - mean_down).mean(axis=0))


def integral(powers: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """∫ E_t[log L] dt between neighbouring powers (level − 1,), and its coefficients of the means (level − 1, level).

    A curve E = c − b/(t + τ), as one direction has it, goes through both ends' slopes Var_t(log L): τ is 0 where the
    directions are determined, and far above t where the data have hardly said anything. c is integrated as it is, and
    E − c over log(t + τ), by the trapezoidal rule with its correction by slopes, of fourth order.
    """
    low, high = np.minimum(powers[1:], powers[:-1]), np.maximum(powers[1:], powers[:-1])
    rising = powers[1:] > powers[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.sqrt(np.where(rising, variance[:-1], variance[1:]) / np.where(rising, variance[1:], variance[:-1]))
        shift = np.where(ratio > 1, np.clip((high - ratio * low) / (ratio - 1), 0.0, 1e3 * high), 1e3 * high)
        near, far = powers[:-1] + shift, powers[1:] + shift
        span, width = np.diff(powers), np.log(far / near)
        ends = mean[:-1] + near * variance[:-1], mean[1:] + far * variance[1:]
        level = 0.5 * (ends[0] + ends[1])
        legs = (level * span + width / 2 * (near * (mean[:-1] - level) + far * (mean[1:] - level))
                - width**2 / 12 * (far * (ends[1] - level) - near * (ends[0] - level)))
        odd = width / 4 * (near - far) + width**2 / 24 * (near + far)
    place, coefficients = np.arange(len(legs)), np.zeros((len(legs), len(powers)))
    coefficients[place, place], coefficients[place, place + 1] = span / 2 + odd, span / 2 - odd
    return legs, coefficients


@dataclass(frozen=True)
class Path:
    """All levels of a walk, the start first.

    Attributes
    ----------
    start : array (transition, T)
        Log-likelihoods of the draws the walk starts from, first, and of copies of them after each of some transitions.
    single : bool
        Whether each particle is a system of its own (sites are held).
    groups : array (T,) of int
        Which of the draws go together.
    power : float
        Theirs.
    levels : sequence of Level
    anchor : tuple of (int, float, float), optional
        A level (0 is the start) whose log evidence is known, that number, and its variance.
    """

    start: np.ndarray
    single: bool
    groups: np.ndarray
    power: float
    levels: Sequence[Level]
    anchor: tuple[int, float, float] | None = None

    @property
    def powers(self) -> np.ndarray:
        """t of every level, (level,)."""
        return np.array([self.power, *(one.power for one in self.levels)])

    @cached_property
    def weights(self) -> list[np.ndarray]:
        size = self.start.shape[1]
        return [np.full(size, 1 / size), *(np.exp(one.log_weights) for one in self.levels)]

    @cached_property
    def _means(self) -> list[np.ndarray]:
        """Log-likelihood of each particle, averaged over the second half of its transitions."""
        return [energies.mean(axis=0) for energies in self.seen]

    @cached_property
    def seen(self) -> list[np.ndarray]:
        """Log-likelihoods after the second half of each level's transitions, (transition, T)."""
        return [self.start, *(one.energies[len(one.energies) // 2:] for one in self.levels)]

    @cached_property
    def mean(self) -> np.ndarray:
        """E_t[log L], (level,), nats."""
        return np.array([w @ np.where(w > 0, f, 0.0) for w, f in zip(self.weights, self._means, strict=True)])

    @cached_property
    def _squares(self) -> list[np.ndarray]:
        """Squared deviation of the log-likelihood of each particle, in the mean over its transitions."""
        if self.single:  # from two states that are many moves apart
            return [0.5 * (energies[0] - energies[-1]) ** 2 for energies in self.seen]
        found = []
        for weights, energies, mean in zip(self.weights, self.seen, self.mean, strict=True):
            number = 1 / np.sum(weights**2)
            with np.errstate(invalid="ignore", over="ignore"):
                found.append(((energies - mean) ** 2).mean(axis=0) * number / max(number - 1, 1))
        return found

    @cached_property
    def variance(self) -> np.ndarray:
        """Var_t(log L), (level,)."""
        return np.array([w @ np.where(w > 0, g, 0.0) for w, g in zip(self.weights, self._squares, strict=True)])

    @property
    def capacity(self) -> np.ndarray:
        """Heat capacity C = t² Var_t(log L), (level,)."""
        return np.where(self.powers > 0, self.powers**2 * np.where(self.powers > 0, self.variance, 0.0), 0.0)

    # -- errors ---------------------------------------------------------------------------------------------------
    def _lineage(self, level: int, back: int) -> np.ndarray:
        """Slot at `back` levels before `level` of each particle's ancestor."""
        slots = np.arange(self.start.shape[1])
        for k in range(level, level - back, -1):
            slots = self.levels[k - 1].ancestors[slots]
        return slots

    def ancestors(self, level: int) -> int:
        """Number of different draws of the start that particles at `level` descend from."""
        return len(np.unique(self._lineage(level, level)))

    def error(self, level: int, values: np.ndarray) -> float:
        """Variance of Σ W v of values (T,) whose weighted mean is 0, at the worst grouping."""
        terms = np.where(self.weights[level] > 0, self.weights[level] * values, 0.0)
        slots, worst = np.arange(len(terms)), 0.0
        for back in range(min(level, LAGS) + 1):
            labels = self.groups[slots] if back == level else slots
            sums = np.bincount(labels, terms)
            count = int(np.count_nonzero(np.bincount(labels)))
            if count < FEWEST and back:
                break
            worst = max(worst, float(np.sum(sums**2)) * count / max(count - 1, 1))
            if back < level:
                slots = self.levels[level - back - 1].ancestors[slots]
        return worst

    def covariance(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Covariance (level, level) of the sums Σ W v; of different levels by the lineages that join them."""
        count = len(values)
        single = np.array([self.error(k, v) for k, v in enumerate(values)])
        found = np.diag(single)
        spread = [math.sqrt(float(self.weights[k] @ v**2)) for k, v in enumerate(values)]
        for k in range(count):
            slots = np.arange(self.start.shape[1])
            for j in range(k - 1, max(-1, k - 1 - LAGS), -1):
                slots = self.levels[j].ancestors[slots]
                if not spread[j] * spread[k] > 0:
                    continue
                shared = float(self.weights[k] @ (values[k] * values[j][slots])) / (spread[j] * spread[k])
                if shared < 0.05:
                    break
                found[j, k] = found[k, j] = min(shared, 1.0) * math.sqrt(single[j] * single[k])
        return found

    def _finite(self, values: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(values), values, 0.0)

    @cached_property
    def _mean_covariance(self) -> np.ndarray:
        return self.covariance([self._finite(f - m) for f, m in zip(self._means, self.mean, strict=True)])

    @cached_property
    def capacity_covariance(self) -> np.ndarray:
        """Covariance of the heat capacities, (level, level)."""
        values = self.covariance([self._finite(g - v) for g, v in zip(self._squares, self.variance, strict=True)])
        return values * np.outer(self.powers**2, self.powers**2)

    @property
    def mean_sem(self) -> np.ndarray:
        return np.sqrt(np.diag(self._mean_covariance))

    @property
    def capacity_sem(self) -> np.ndarray:
        return np.sqrt(np.diag(self.capacity_covariance))

    # -- evidence -------------------------------------------------------------------------------------------------
    def _from_anchor(self, legs: np.ndarray, coefficients: np.ndarray, covariance: np.ndarray
                     ) -> tuple[np.ndarray, np.ndarray]:
        """Sums of legs (level − 1,) from the anchor to each level, and their standard errors."""
        count = len(legs) + 1
        if self.anchor is None:
            return np.full(count, np.nan), np.full(count, np.nan)
        at, value, variance = self.anchor
        total = np.concatenate([[0.0], np.cumsum(legs)])
        weights = np.concatenate([np.zeros((1, coefficients.shape[1])), np.cumsum(coefficients, axis=0)])
        weights = weights - weights[at]
        return value + total - total[at], np.sqrt(np.maximum(np.einsum("ja,ab,jb->j", weights, covariance, weights), 0)
                                                  + variance)

    def integrated(self) -> tuple[np.ndarray, np.ndarray]:
        """log ∫ π₀ L^t of every level by thermodynamic integration, d log Z/dt = E_t[log L] [1]_.

        See `integral`.

        References
        ----------
        .. [1] Friel, Hurn and Wyse, Improving power posterior estimation of statistical evidence, Statistics and
           Computing 24 (2014), arXiv:1209.3198.
        """
        legs, coefficients = integral(self.powers, self.mean, self.variance)
        if not self.powers[0]:  # the mean at the prior need not exist: that leg is by the weights
            legs[0], coefficients[0] = self.anchor[1] if self.anchor else np.nan, 0.0
        return self._from_anchor(legs, coefficients, self._mean_covariance)

    def weighted(self) -> tuple[np.ndarray, np.ndarray]:
        """log ∫ π₀ L^t of every level by the weights L^{t'−t} between neighbours; see `bridge`."""
        count = len(self.powers)
        legs, values = np.zeros(count - 1), [np.zeros(self.start.shape[1]) for _ in range(count)]
        for k, width in enumerate(np.diff(self.powers)):
            legs[k], near, far = self.bridge(k, width)
            values[k] = values[k] + near
            values[k + 1] = values[k + 1] + far
        # Of the two ends of a sum of legs half of what is counted here belongs to the next leg: not too little.
        coefficients = np.zeros((count - 1, count))
        coefficients[np.arange(count - 1), np.arange(count - 1)] = 1
        return self._from_anchor(legs, coefficients, self.covariance(values))

    def bridge(self, level: int, width: float) -> Bridge:
        """log Z of the next level over that of this one."""
        return bridge(self.seen[level], self.weights[level], self.seen[level + 1], self.weights[level + 1], width)

    # -- transitions ----------------------------------------------------------------------------------------------
    def peaks(self, num_data: int, level: float, num_bootstrap: int, seed: int, certain: float = 2.0
              ) -> list[CriticalScale]:
        """Maxima of C over log Λ that stand out of their surroundings by `certain` standard errors.

        Of the curve smoothed over a few levels, which stand as far apart as the law changes from one to the next.
        """
        use = np.flatnonzero(self.powers > 0)
        use = use[np.argsort(-self.powers[use])]  # Λ grows
        if len(use) < 5:
            return []
        scales = np.log(1 / (num_data * self.powers[use]))
        places = np.linspace(0, len(use) - 1, GRID)
        grid, smooth = np.interp(places, np.arange(len(use)), scales), _smoother(len(use), places)
        curve = smooth @ self.capacity[use]
        covariance = smooth @ self.capacity_covariance[np.ix_(use, use)] @ smooth.T
        values, vectors = np.linalg.eigh(covariance)
        noise = np.random.default_rng(seed).normal(size=(num_bootstrap, GRID)) @ (
            vectors * np.sqrt(np.maximum(values, 0))).T
        tops, about = signal.find_peaks(curve, prominence=0.0)
        found = []
        for top, left, right in zip(tops, about["left_bases"], about["right_bases"], strict=True):
            side = left if curve[left] > curve[right] else right
            error = covariance[top, top] + covariance[side, side] - 2 * covariance[top, side]
            if curve[top] - curve[side] < certain * math.sqrt(max(error, 0)):
                continue
            window = slice(left, right + 1)
            drawn = grid[window][np.argmax((curve + noise)[:, window], axis=1)]
            value, low, high = np.exp([grid[top], *np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])])
            found.append(CriticalScale(float(value), float(low), float(high), level, "peak of the heat capacity, "
                                       f"{curve[top]:.3g} ± {math.sqrt(covariance[top, top]):.2g}"))
        return found


def _smoother(count: int, places: np.ndarray, width: float = 1.5) -> np.ndarray:
    """The matrix (place, level) of lines fitted with Gaussian weights about each place between `count` levels."""
    u = np.arange(count) - places[:, None]
    weights = np.exp(-0.5 * (u / width) ** 2)
    zero, one, two = (np.sum(weights * u**k, axis=1, keepdims=True) for k in range(3))
    return weights * (two - one * u) / (zero * two - one**2)
