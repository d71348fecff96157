"""Standard errors of anything computed from draws, correlated or not, by leaving out one block of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class Jackknife:
    """Accumulates delete-a-block replicates of a dict of arrays; blocks may differ in size.

    Parameters
    ----------
    estimate : dict of str to array
        The statistics of all draws.

    Notes
    -----
    Busing, Meijer & van der Leeden, Statistics and Computing 9 (1999) 3: with h_j = samples / (samples in
    block j), bias = -sum u_j / h_j and variance = mean (u_j - sum u/h)^2 / (h_j - 1), u_j = (h_j -
    1)(estimate - replicate).
    """

    def __init__(self, estimate: Mapping[str, Any]):
        self.estimate = {n: np.asarray(v, dtype=np.float64) for n, v in estimate.items()}
        self.blocks, self._weight = 0, 0.0
        # Sums of u/h, u/(h - 1) and u²/(h - 1) over blocks.
        self._sums = {n: np.zeros((3, *v.shape)) for n, v in self.estimate.items()}

    def add(self, ratio: Any, replicates: Mapping[str, Any]) -> None:
        """Some replicates, each (block, ...), with ``ratio`` (block,) = h_j of the blocks left out."""
        ratio = np.asarray(ratio, dtype=np.float64)
        self.blocks += len(ratio)
        self._weight += float((1 / (ratio - 1)).sum())
        for name, value in self.estimate.items():
            h = ratio.reshape(-1, *(1,) * value.ndim)
            with np.errstate(invalid="ignore"):  # ∞ − ∞: a replicate that does not exist has no error either
                u = (h - 1) * (value - np.asarray(replicates[name]))
                for i, term in enumerate((u / h, u / (h - 1), u * u / (h - 1))):
                    self._sums[name][i] += term.sum(axis=0)

    def bias(self) -> dict[str, np.ndarray]:
        """Estimated bias of the estimate."""
        return {name: -shift for name, (shift, _, _) in self._sums.items()}

    def sem(self) -> dict[str, np.ndarray]:
        """Standard error; NaN with fewer than two blocks."""
        if self.blocks < 2:
            return {name: np.full(v.shape, np.nan) for name, v in self.estimate.items()}
        with np.errstate(invalid="ignore"):
            return {name: np.sqrt(np.maximum(second - 2 * shift * first + shift**2 * self._weight, 0) / self.blocks)
                    for name, (shift, first, second) in self._sums.items()}


def jackknife(values: Any, sizes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Standard error and bias of a statistic, given with all draws first, then without each block.

    Parameters
    ----------
    values : array (1 + block, ...)
    sizes : array (block,)
        Draws in each block.

    Returns
    -------
    sem, bias : arrays (...)
    """
    values, sizes = np.asarray(values, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    table = Jackknife({"": values[0]})
    if len(sizes) > 1:
        table.add(sizes.sum() / sizes, {"": values[1:]})
    return table.sem()[""], table.bias()[""]


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
    groups = np.array_split(np.arange(draws.shape[-1]), min(blocks, draws.shape[-1]))
    left = groups if len(groups) > 1 else []
    values = [statistic(draws), *(statistic(np.delete(draws, group, axis=-1)) for group in left)]
    return jackknife(np.stack(values), [len(group) for group in left])[0]
