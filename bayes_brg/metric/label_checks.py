"""What a Monte-Carlo Fisher metric takes for granted of the labels it draws: looked at before any is drawn in earnest.

Scores of a law's own labels have mean zero (Bartlett's first identity); where they have not, the labels are not drawn
from the law whose density is given. And a standard error from finitely many labels is one only if their squared scores
have no heavy tail.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.checks import num_points
from ..core.keys import name_key
from ..core.lazy import stats
from ..model.bound import BoundModel, Params, unwrap
from .geometry import Geometry, State
from .output_fisher import Data, Estimator, labels

__all__ = ["check_labels", "check_memory"]

LOOKED_AT, DRAWN = 64, 256  # data and labels of each that are looked at
SURELY = 8.0  # standard errors from zero, twice
ENOUGH = 4.0  # labels over the square of the skewness of their squared scores
MOST_BYTES = 4 << 30


@partial(jax.jit, static_argnums=0)
def _look(geometry: Geometry, params: Params, data: Data, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scores of drawn labels (n, S, K), and for each site their derivatives along a direction in it, (site, n, S)."""
    found = labels(geometry.bound, geometry.how, params, data.numbered(), key).scores * geometry.how.num_samples**0.5
    random = {s: jax.random.normal(name_key(key, s), shape) for s, shape in geometry.shapes().items()}
    sites = jnp.eye(len(random))
    return found, jax.lax.map(lambda on: geometry.drawn(params, data, key, {
        s: on[i] * v for i, (s, v) in enumerate(random.items())}), sites)


def check_labels(geometry: Geometry, params: Params, shared: State) -> None:
    """Refuse labels whose mean score is not zero; warn where their squared scores have too long a tail for `how`.

    Raises
    ------
    ValueError
        If the labels are not those of the density, by far more than chance, twice.

    Warns
    -----
    UserWarning
        If so many labels give no standard error that can be believed: the mean of N numbers of skewness γ, over its own
        estimated error, is off by −γ/(2√N) on average and wider by as much [1]_. N must be above 4γ²; measured, the
        error is then too small by 15 % at most.

    References
    ----------
    .. [1] Hall, The Bootstrap and Edgeworth Expansion (1992), section 2.6.
    """
    x, how = shared.data.x, geometry.how
    some = Data(jax.tree.map(lambda leaf: leaf[:LOOKED_AT], x))
    few = replace(geometry, how=replace(how, num_samples=DRAWN), batch=LOOKED_AT, blocks=())  # one for all numbers
    looks = [_look(few, params, some, name_key(shared.key, f"look {i}")) for i in (1, 2)]
    seen, along = ([np.asarray(part, np.float64) for part in parts] for parts in zip(*looks, strict=True))
    if not all(np.isfinite(s).all() for s in (*seen, *along)):
        return  # said elsewhere, by draw and datum
    z = np.stack([_from_zero(s.reshape(-1, s.shape[-1])) for s in seen])
    wrong = (np.abs(z) > SURELY).all(axis=0) & (np.sign(z[0]) == np.sign(z[1]))
    name = type(unwrap(geometry.bound.distribution(params, some.x))).__name__
    if wrong.any():
        j = int(np.argmax(wrong))
        raise ValueError(f"labels drawn from the observed {name} are not those of its density: their mean score is "
                         f"{z[0][j]:.0f} standard errors from zero, where it must vanish. Its log_prob and its sample "
                         "are of two laws, or log_prob is no density (as a survival function is none); without both "
                         "there is no expectation over labels. Write the law of what is seen, or pass "
                         "estimator='empirical' with y")
    total, skewness = num_points(x) * how.num_samples, _skewness(np.concatenate(along, axis=2))
    if total < ENOUGH * skewness**2:
        warnings.warn(f"the squared scores of labels of the observed {name} have a long tail (skewness "
                      f"{skewness:.3g}): a few of the {total} labels make up most of the metric, which is then more "
                      "often too small than too large, and metric.sem is too small. It takes at least "
                      f"{ENOUGH * skewness**2:.1g} labels in all; estimator='exact', where there is a way to it, has "
                      "no such error", UserWarning, stacklevel=3)


def _from_zero(scores: np.ndarray) -> np.ndarray:
    """Mean of each column (N, K) in standard errors; 0 where all are equal."""
    error = scores.std(axis=0, ddof=1) / np.sqrt(len(scores))
    return np.where(error > 1e-12 * np.abs(scores).max(axis=0), scores.mean(axis=0) / np.where(error > 0, error, 1), 0)


def _skewness(derivatives: np.ndarray) -> float:
    """Largest skewness of the squares of any site's derivatives (site, ...), over data and labels."""
    squares = derivatives.reshape(len(derivatives), -1) ** 2
    return max((float(stats.skew(s)) for s in squares if np.ptp(s) > 0), default=0.0)


def check_memory(bound: BoundModel, how: Estimator, params: Params, x: Any, batch: int, entrywise: bool) -> None:
    """Refuse numbers of labels whose scores do not fit, before any is drawn.

    Raises
    ------
    ValueError
        With the number of labels that would fit.
    """
    one = jax.tree.map(lambda leaf: leaf[:1], x)
    small = replace(how, num_samples=2)
    found = jax.eval_shape(lambda p, x: labels(bound, small, p, Data(x).numbered(), jax.random.key(0)), params, one)
    width = found.scores.shape[-1]
    # The labels, their scores, and once more what is summed; for eigenmodes also the derivative of each label.
    each = (3 * width + 1) * batch + (0 if entrywise else num_points(x))
    size = each * np.dtype(found.scores.dtype).itemsize
    needed = size * how.num_samples
    if needed > MOST_BYTES:
        raise ValueError(f"num_samples={how.num_samples} labels of each datum need about {needed / 2**30:.3g} GiB at "
                         f"once for their scores ({width} each, {batch} data at a time), more than {MOST_BYTES >> 30}; "
                         f"pass at most num_samples={MOST_BYTES // size}, or average metrics of several keys")
