"""Slow, obvious answers for fields: loops over index tuples, enumerated pairings, quadrature, rationals.

Nothing here calls the package.
"""

import functools
import itertools
import math
from fractions import Fraction

import numpy as np


def set_partitions(items):
    items = list(items)
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for partition in set_partitions(rest):
        yield [[first], *partition]
        for i, block in enumerate(partition):
            yield [*partition[:i], [first, *block], *partition[i + 1 :]]


def cumulant(moment, legs):
    """Joint cumulant of ``legs`` from ``moment(tuple of legs)``, by Moebius inversion over set partitions."""
    total = 0
    for partition in set_partitions(range(len(legs))):
        term = (-1) ** (len(partition) - 1) * math.factorial(len(partition) - 1)
        for block in partition:
            term = term * moment(tuple(legs[i] for i in block))
        total = total + term
    return total


def discrete_moment(atoms, weights):
    @functools.cache
    def moment(legs):
        total = Fraction(0)
        for atom, weight in zip(atoms, weights, strict=True):
            term = weight
            for leg in legs:
                term = term * atom[leg]
            total += term
        return total

    return lambda legs: moment(tuple(sorted(legs)))


def all_cumulants(moment, num_points, rank):
    """Full tensor, every index tuple by itself."""
    out = np.empty((num_points,) * rank)
    for legs in itertools.product(range(num_points), repeat=rank):
        out[legs] = cumulant(moment, legs)
    return out


@functools.cache
def partial_pairings(legs):
    """All ways to join some of the legs in pairs: ((pairs), (legs left))."""
    if not legs:
        return [((), ())]
    first, rest = legs[0], legs[1:]
    found = [(pairs, (first, *left)) for pairs, left in partial_pairings(rest)]
    for i in range(len(rest)):
        joined = (first, rest[i])
        found += [((joined, *pairs), left) for pairs, left in partial_pairings(rest[:i] + rest[i + 1 :])]
    return found


def hermite_contraction(tensor, z, precision):
    """tensor . H with H^{i1..in} = (-1)^n p0^(-1) d^n p0, from all partial pairings of the legs."""
    y = precision @ z
    total = 0.0
    for legs in itertools.product(range(len(z)), repeat=tensor.ndim):
        if tensor[legs] == 0:
            continue
        entry = 0.0
        for pairs, left in partial_pairings(tuple(range(tensor.ndim))):
            term = (-1.0) ** len(pairs)
            for a, b in pairs:
                term *= precision[legs[a], legs[b]]
            for a in left:
                term *= y[legs[a]]
            entry += term
        total += tensor[legs] * entry
    return total


def outer(a, b):
    return np.multiply.outer(a, b)


def symmetric(rng, num_points, rank, scale):
    raw = rng.normal(size=(num_points,) * rank)
    turns = list(itertools.permutations(range(rank)))
    return scale * sum(np.transpose(raw, p) for p in turns) / len(turns)


def covariance(rng, num_points):
    a = rng.normal(size=(num_points, num_points))
    return a @ a.T / num_points + np.eye(num_points)


def phi4(num_sites, coupling, width=9.0):
    """Lattice phi^4 by quadrature: S = phi A phi / 2 + coupling/24 sum phi^4, A = -laplacian + 1 (periodic).

    Returns A, log Z and the tensors k2, k4, k6. The trapezoid rule converges exponentially here.
    """
    num = {1: 400, 2: 81, 3: 61}[num_sites]
    a = np.eye(num_sites)
    if num_sites > 1:
        for i in range(num_sites):
            j = (i + 1) % num_sites
            a[i, i] += 1
            a[j, j] += 1
            a[i, j] -= 1
            a[j, i] -= 1
    grid = np.linspace(-width, width, num)
    mesh = np.stack([g.ravel() for g in np.meshgrid(*[grid] * num_sites, indexing="ij")])
    weight = np.exp(-0.5 * np.einsum("it,ij,jt->t", mesh, a, mesh) - coupling / 24 * (mesh**4).sum(0))
    z = weight.sum() * (grid[1] - grid[0]) ** num_sites
    weight = weight / weight.sum()

    @functools.cache
    def even(legs):
        return 0.0 if len(legs) % 2 else float((weight * np.prod(mesh[list(legs)], axis=0)).sum())

    def moment(legs):
        return even(tuple(sorted(legs)))

    @functools.cache
    def joint(legs):
        return cumulant(moment, legs)

    tensors = []
    for rank in (2, 4, 6):
        out = np.empty((num_sites,) * rank)
        for legs in itertools.product(range(num_sites), repeat=rank):
            out[legs] = joint(tuple(sorted(legs)))
        tensors.append(out)
    return a, np.log(z), *tensors


def ar1(rng, correlation, num_chains, length, num_points):
    """Stationary Gaussian AR(1) chains of unit variance, (chain, draw, point)."""
    noise = rng.normal(size=(length, num_chains, num_points))
    x = np.empty_like(noise)
    x[0] = noise[0]
    for t in range(1, length):
        x[t] = correlation * x[t - 1] + math.sqrt(1 - correlation**2) * noise[t]
    return x.transpose(1, 0, 2)
