"""Linear readouts in closed form: gradient descent by the power of one matrix.

With frozen features H (n × N) the squared loss of a linear readout makes every epoch of descent an affine map
(theory §8), so that any number of epochs costs a few small matrix products. All of it is NumPy in float64, whatever
JAX's default: repeated squaring overflows and loses its digits in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack
from scipy.sparse.linalg import ArpackError, eigs

__all__ = ["Descent", "descend"]

TOLERANCE = 1e-9  # a spectral radius this far above 1 is rounding, not growth
TRIES = 3


@dataclass(frozen=True)
class Descent:
    """What descent did to one member.

    Attributes
    ----------
    weights : list of array (N, C)
        Readout after each of the epochs asked for.
    stable : bool
        Whether the epoch map has spectral radius at most 1.
    largest_stable_rate : float
        Full batch: n/s_max², exact. Per sample: exact (to 1 %) where unstable; where stable, a rate known to be stable.
    """

    weights: list[np.ndarray]
    stable: bool
    largest_stable_rate: float


def descend(h: np.ndarray, y: np.ndarray, w: np.ndarray, *, optimizer: str, learning_rate: float,
            epochs: Sequence[int]) -> Descent:
    """Gradient descent on Σ_c (y_c − h·w_c)² from `w`, read out at each of the (increasing) `epochs`.

    Parameters
    ----------
    h : array (n, N)
    y : array (n, C)
    w : array (N, C)
    optimizer : {"gd", "sgd"}
        Full batch on the mean over points, w ← w + (2η/n) Hᵀr; or per sample in order, w ← w + 2η r_i h_i.
    learning_rate : float
        η, in units of 1/(loss curvature).
    epochs : sequence of int
        Increasing; 0 returns `w`.
    """
    h, y, w = (np.asarray(a, dtype=np.float64) for a in (h, y, w))
    return (_descend_gd if optimizer == "gd" else _descend_sgd)(h, y, w, learning_rate, epochs)


def _descend_gd(h, y, w, rate, epochs):
    """Along each singular direction of H the error shrinks by 1 − μ, μ = 2ηs²/n, each epoch."""
    n, width = h.shape
    small = n <= width
    square, u = np.linalg.eigh(h @ h.T if small else h.T @ h)
    square = np.maximum(square, 0.0)
    mu = 2 * rate / n * square
    r = y - h @ w
    start = u.T @ r if small else u.T @ (h.T @ r)
    out = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for t in epochs:
            # Σ_{s<t} (1 − μ)^s = (1 − (1 − μ)^t)/μ, which tends to t for directions without curvature.
            left = np.where(mu < 0.5, -np.expm1(t * np.log1p(-np.minimum(mu, 0.5))), 1 - (1 - mu) ** t)
            gain = np.where(mu > 1e-300, left / np.where(mu > 1e-300, mu, 1.0), t) * (2 * rate / n)
            step = u @ (gain[:, None] * start)
            out.append(w + (h.T @ step if small else step))
    top = square.max(initial=0.0)
    limit = n / top if top > 0 else np.inf
    return Descent(out, bool(rate <= limit * (1 + TOLERANCE)), float(limit))


def _descend_sgd(h, y, w, rate, epochs):
    """One epoch in order is one affine map; many are powers of its matrix.

    Data space (n ≤ 2N): with K = HHᵀ and L = 1/(2η) + strict_lower(K) one epoch adds Hᵀc, c = L⁻¹r, and takes r to
    Mr, M = 1 − K L⁻¹. After t epochs w = w₀ + Hᵀ L⁻¹ Σ_{s<t} Mˢ r₀. Weight space (n > 2N): w ← A w + b, composed from
    blocks of N rows.
    """
    n, width = h.shape
    if n <= 2 * width:
        gram = h @ h.T
        norms, metric = np.diagonal(gram), gram
        inverse = _inverse_lower(gram, rate)
        powers = [_data_map(gram, inverse)]
        out = [w + h.T @ (inverse @ v) for _, v in _power_sums(powers, y - h @ w, epochs)]
        def epoch_map(eta):
            return _data_map(gram, _inverse_lower(gram, eta))
    else:
        norms, metric = np.einsum("ij,ij->i", h, h), np.eye(width)
        matrix, offset = _weight_map(h, y, rate)
        powers = [matrix]
        # w_t = A^t w0 + Σ_{s<t} A^s b, both from one pass over stacked columns.
        c = w.shape[1]
        out = [p[:, :c] + v[:, c:] for p, v in _power_sums(powers, np.hstack([w, offset]), epochs)]
        def epoch_map(eta):
            return _weight_map(h, y, eta)[0]
    safe = 1.0 / norms.max() if norms.max() > 0 else np.inf  # each step contracts if η|h_i|² ≤ 1
    if rate <= safe or _is_stable(powers[0], metric, powers[-1]):
        return Descent(out, True, float(max(rate, safe)))
    low, high = safe, rate
    while high > 1.01 * low:
        middle = np.sqrt(low * high)
        low, high = (middle, high) if _is_stable(epoch_map(middle), metric) else (low, middle)
    return Descent(out, False, float(low))


def _inverse_lower(gram: np.ndarray, rate: float, leaf: int = 32) -> np.ndarray:
    """L⁻¹, L = 1/(2η) + strict_lower(K): [[A, 0], [C, B]]⁻¹ = [[A⁻¹, 0], [−B⁻¹CA⁻¹, B⁻¹]], from small blocks up.

    Mostly by products, which run on several threads at once: SciPy's triangular routines hold Python's lock.
    """
    lower = np.tril(gram, -1)
    lower[np.diag_indices(len(gram))] = 0.5 / rate
    inverse = np.zeros_like(lower)

    def fill(start: int, stop: int) -> None:
        if stop - start <= leaf:
            inverse[start:stop, start:stop] = lapack.dtrtri(lower[start:stop, start:stop], lower=1)[0]
            return
        middle = (start + stop) // 2
        fill(start, middle)
        fill(middle, stop)
        inverse[middle:stop, start:middle] = -inverse[middle:stop, middle:stop] @ (
            lower[middle:stop, start:middle] @ inverse[start:middle, start:middle])

    fill(0, len(lower))
    return inverse


def _data_map(gram: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """M = 1 − K L⁻¹."""
    matrix = -(gram @ inverse)
    matrix[np.diag_indices(len(gram))] += 1.0
    return matrix


def _weight_map(h: np.ndarray, y: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """(A, b) of one epoch w ← A w + b, block by block: w ← w + H_Bᵀ L_B⁻¹ (y_B − H_B w)."""
    n, width = h.shape
    size = min(n, max(width, 16))
    a, b = np.eye(width), np.zeros((width, y.shape[1]))
    for start in range(0, n, size):
        block, target = h[start:start + size], y[start:start + size]
        pull = block.T @ _inverse_lower(block @ block.T, rate)
        a = a - pull @ (block @ a)
        b = b + pull @ (target - block @ b)
    return a, b


def _power_sums(powers: list[np.ndarray], x: np.ndarray, epochs: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(Mᵗ x, Σ_{s<t} Mˢ x) at each t. `powers`, [M] at first, is left with M, M², M⁴, … as far as they were needed.

    A squaring costs dozens of matrix–vector products, so powers are squared only while more than a few dozen
    applications remain: with B = M^(2^J) and t = q 2^J + rest, Σ_{s<t} Mˢ x = Π_{j<J}(1 + M^(2^j)) Σ_{i<q} Bⁱ x + ….
    """
    out: list[tuple[np.ndarray, np.ndarray]] = []
    power, total, done = x, np.zeros_like(x), 0
    with np.errstate(over="ignore", invalid="ignore"):
        for t in epochs:
            left, done = t - done, t
            level = max(0, left.bit_length() - 5)
            while len(powers) <= level:
                powers.append(powers[-1] @ powers[-1])
            for j in range(level, -1, -1):
                count, left = divmod(left, 2**j)
                if count:
                    block = np.zeros_like(x)
                    for _ in range(count):
                        block += power
                        power = powers[j] @ power
                    for lower in powers[:j]:
                        block = block + lower @ block
                    total = total + block
            out.append((power.copy(), total.copy()))
    return out


def _is_stable(m: np.ndarray, metric: np.ndarray, power: np.ndarray | None = None) -> bool:
    """Whether the spectral radius of M is at most 1, by powers of it (`power` is one), for descent on a square.

    Mᵏ G (Mᵏ)ᵀ ≤ G, with G = K in data space and 1 in weight space, says that k epochs bring no two readouts further
    apart: stable. |tr Mᵏ| > n says that an eigenvalue is above 1. Where neither holds after a few squarings, as for
    maps that first bring readouts apart and then together, all eigenvalues decide, at the price of seven of the tries.
    """
    count, slack = len(m), 1e-11 * np.diag(np.diagonal(metric).max() * np.ones(len(m)))
    power = m if power is None else power
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(TRIES):
            if not np.isfinite(power).all() or abs(np.trace(power)) > count * (1 + TOLERANCE):
                return False
            try:
                np.linalg.cholesky(metric + slack - power @ metric @ power.T)
                return True
            except np.linalg.LinAlgError:
                power = power @ power
    return _radius(m) <= 1 + TOLERANCE


def _radius(m: np.ndarray) -> float:
    """Spectral radius."""
    if not np.isfinite(m).all():
        return np.inf
    if len(m) > 500:  # below, all eigenvalues cost less than Arnoldi's slow convergence on clustered ones
        try:
            return float(np.abs(eigs(m, k=1, which="LM", v0=np.ones(len(m)), return_eigenvectors=False, tol=1e-6))[0])
        except ArpackError:
            pass  # a slow case: fall through to the dense eigenvalues
    return float(np.abs(np.linalg.eigvals(m)).max())
