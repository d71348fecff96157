"""Standard errors of anything computed from draws, correlated or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


def block_jackknife(statistic: Callable[..., Any], draws: np.ndarray, blocks: int = 25) -> np.ndarray:
    """Standard error of a statistic by leaving out one block of consecutive draws at a time.

    Consecutive draws of a chain are correlated; whole blocks hardly are, so this holds for Markov chains (where a
    block is long against their autocorrelation time) as for independent members. Its own relative error is about
    1/√(2 · blocks). Leaving out blocks rather than single draws makes it hold for medians too.

    Parameters
    ----------
    statistic : callable
        (..., draw) to an array without the last axis.
    draws : array (..., draw)
        Chain after chain.
    blocks : int
        Fewer where there are fewer draws.

    Returns
    -------
    array
        NaN where fewer than two draws are there.
    """
    count = draws.shape[-1]
    groups = np.array_split(np.arange(count), min(blocks, count))
    if len(groups) < 2:
        return np.full(np.shape(statistic(draws)), np.nan)
    left = np.stack([statistic(np.delete(draws, group, axis=-1)) for group in groups])
    return np.sqrt((len(groups) - 1) * np.var(left, axis=0))


@dataclass
class Jackknife:
    """Accumulates delete-a-block replicates of a dict of arrays; blocks may differ in size.

    Busing, Meijer & van der Leeden, Statistics and Computing 9 (1999) 3: with h_j = samples / (samples in
    block j), bias = -sum u_j / h_j and variance = mean (u_j - sum u/h)^2 / (h_j - 1), u_j = (h_j -
    1)(estimate - replicate).
    """

    estimate: dict[str, np.ndarray]
    blocks: int = 0
    weight: float = 0.0

    def __post_init__(self) -> None:
        self._shift = {n: np.zeros_like(v) for n, v in self.estimate.items()}
        self._first = {n: np.zeros_like(v) for n, v in self.estimate.items()}
        self._second = {n: np.zeros_like(v) for n, v in self.estimate.items()}

    def add(self, ratio: float, replicate: dict[str, np.ndarray]) -> None:
        """One replicate, with ``ratio`` = h_j of the block left out."""
        self.blocks += 1
        self.weight += 1 / (ratio - 1)
        for name, value in self.estimate.items():
            u = (ratio - 1) * (value - replicate[name])
            self._shift[name] += u / ratio
            u /= np.sqrt(ratio - 1)
            self._first[name] += u / np.sqrt(ratio - 1)
            u *= u
            self._second[name] += u

    def bias(self) -> dict[str, np.ndarray]:
        """Estimated bias of the estimate."""
        return {name: -shift for name, shift in self._shift.items()}

    def sem(self) -> dict[str, np.ndarray]:
        """Standard error; NaN with fewer than two blocks."""
        out = {}
        for name, shift in self._shift.items():
            variance = self._second[name] - 2 * shift * self._first[name] + shift**2 * self.weight
            enough = self.blocks > 1
            out[name] = (
                np.sqrt(np.maximum(variance, 0) / self.blocks) if enough else np.full_like(variance, np.nan)
            )
        return out
