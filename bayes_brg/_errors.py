"""Standard errors of anything computed from draws, correlated or not."""

from __future__ import annotations

from collections.abc import Callable
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
