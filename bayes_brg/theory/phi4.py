"""A scalar field with a φ⁴ self-interaction on a ring, solved exactly by its transfer matrix (theory §11)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["Phi4Ring", "phi4_ring"]

NEGLIGIBLE = 45.0  # nats above the lowest potential at which a site is never found: e^-45 is under 1e-19
NODES = 401
MOST_NODES = 1601
CONVERGED = 1e-11


@dataclass(frozen=True)
class Phi4Ring:
    """Exact answers for a ring; make one with `phi4_ring`.

    Attributes
    ----------
    log_evidence : float
        log Z, Z = ∫ Π dφ_i e^{−S}, in nats.
    correlator : array (sites // 2 + 1,)
        ⟨φ_0 φ_d⟩ at distance d = 0, 1, ....
    magnetization_moments : array (2,)
        ⟨m²⟩ and ⟨m⁴⟩ of m = (1/M) Σ φ_i.
    binder : float
        U = 1 − ⟨m⁴⟩/(3⟨m²⟩²): 0 for a Gaussian field, 2/3 deep in the broken phase.
    """

    log_evidence: float
    correlator: np.ndarray
    magnetization_moments: np.ndarray
    binder: float


def phi4_ring(sites: int, hopping: float, mass2: float, coupling: float) -> Phi4Ring:
    """Exact partition function, correlator and Binder cumulant of a φ⁴ field on a ring.

        S = Σ_i ½κ(φ_{i+1} − φ_i)² + ½m²φ_i² + (λ/24)φ_i⁴

    With T(φ, φ') = exp(−½κ(φ − φ')² − ½V(φ) − ½V(φ')) the partition function is Tr T^M, taken on Gauss–Legendre nodes;
    moments of the magnetisation are the coefficients in J of Tr Π T e^{Jφ}.

    Parameters
    ----------
    sites : int
        M, at least 2.
    hopping : float
        κ ≥ 0, in units of 1/φ².
    mass2 : float
        m², in units of 1/φ²; negative for a double well, which needs a positive coupling.
    coupling : float
        λ ≥ 0, in units of 1/φ⁴.

    Returns
    -------
    Phi4Ring

    Raises
    ------
    ValueError
        For fewer than two sites, a negative hopping or coupling, or a potential that does not bind the field.
    RuntimeError
        If the integral has not converged on the largest grid.

    Examples
    --------
    >>> ring = phi4_ring(8, hopping=1.0, mass2=1.0, coupling=0.5)
    >>> round(ring.log_evidence, 10)
    3.4093818908
    """
    if isinstance(sites, bool) or not isinstance(sites, (int, np.integer)) or sites < 2:
        raise ValueError(f"sites must be a whole number of at least 2, got {sites!r}")
    for name, value in (("hopping", hopping), ("mass2", mass2), ("coupling", coupling)):
        if not np.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
    if hopping < 0 or coupling < 0:
        raise ValueError(f"hopping and coupling must not be negative, got {hopping!r} and {coupling!r}")
    if coupling == 0 and mass2 <= 0:
        raise ValueError(f"a free field needs mass2 above 0, got {mass2!r}: else nothing binds it")
    nodes, last = NODES, None
    while nodes <= MOST_NODES:
        ring = _solve(int(sites), hopping, mass2, coupling, nodes)
        found = np.r_[ring.log_evidence, ring.correlator, ring.magnetization_moments]
        if last is not None and np.allclose(found, last, rtol=CONVERGED, atol=CONVERGED):
            return ring
        nodes, last = 2 * nodes - 1, found
    raise RuntimeError(f"the transfer matrix of hopping={hopping}, mass2={mass2}, coupling={coupling} is too narrow "
                       f"for {MOST_NODES} nodes; it is resolved where fluctuations and wells are of like size")


def _reach(mass2: float, coupling: float) -> float:
    """|φ| beyond which V − min V is above `NEGLIGIBLE`: the larger root of a quadratic in φ²."""
    lowest = -1.5 * mass2**2 / coupling if mass2 < 0 else 0.0  # at φ² = −6m²/λ
    top = NEGLIGIBLE + lowest
    if coupling == 0:
        return math.sqrt(2 * top / mass2)
    # (λ/24) s² + ½m² s − top = 0, in the form that does not cancel
    root = math.sqrt(0.25 * mass2**2 + coupling * top / 6)
    square = 2 * top / (0.5 * mass2 + root) if mass2 > 0 else (root - 0.5 * mass2) * 12 / coupling
    return math.sqrt(square)


def _solve(sites: int, hopping: float, mass2: float, coupling: float, nodes: int) -> Phi4Ring:
    points, weights = np.polynomial.legendre.leggauss(nodes)
    reach = _reach(mass2, coupling)
    phi, weights = reach * points, reach * weights
    half = 0.25 * mass2 * phi**2 + coupling / 48 * phi**4
    shift = half.min()  # taken out, so that nothing under- or overflows
    half = half - shift
    matrix = np.exp(-0.5 * hopping * (phi[:, None] - phi) ** 2 - half[:, None] - half + 0.5 * np.log(
        weights[:, None] * weights))
    values, vectors = np.linalg.eigh(matrix)
    top = values[-1]
    keep = values > 1e-16 * top  # the others are rounding
    values, vectors = values[keep] / top, vectors[:, keep]
    trace = np.sum(values**sites)
    fields = [(vectors.T * (phi**n / math.factorial(n))) @ vectors for n in range(5)]  # φⁿ/n! between eigenvectors
    apart = [values ** (sites - d) @ fields[1] ** 2 @ values**d for d in range(1, sites // 2 + 1)]
    correlator = np.array([2 * values**sites @ np.diag(fields[2]), *apart]) / trace
    series = _power([values[:, None] * f for f in fields], sites)
    moments = [math.factorial(n) * np.trace(series[n]) / trace / sites**n for n in (2, 4)]
    return Phi4Ring(float(sites * (math.log(top) - 2 * shift) + math.log(trace)), correlator, np.array(moments),
                    float(1 - moments[1] / (3 * moments[0] ** 2)))


def _power(series: list[np.ndarray], exponent: int) -> list[np.ndarray]:
    """A power of a matrix series in J, to the order of its length, by squaring."""
    def product(a, b):
        return [sum(a[i] @ b[n - i] for i in range(n + 1)) for n in range(len(a))]

    result = None
    while exponent:
        if exponent & 1:
            result = series if result is None else product(result, series)
        exponent >>= 1
        if exponent:
            series = product(series, series)
    assert result is not None
    return result
