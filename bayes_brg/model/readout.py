"""The linear readout of a model: its sites as one matrix, integrated out where it is Gaussian, and drawn exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve, solve_triangular
from scipy.linalg import LinAlgError, blas, cho_factor
from scipy.linalg import cho_solve as host_cho_solve

from .distributions import unwrap

__all__ = ["LinearReadout", "Readout", "draw_readout", "exact_shift", "log_marginal", "noise_factor"]


@dataclass(frozen=True)
class LinearReadout:
    """The sites in which a model's output is linear: φ = H R, with H (n, rows) of the hidden sites and x.

    R (rows, outputs) has the weights first, one row a unit, and the bias last where there is one.

    Attributes
    ----------
    sites : tuple of str
        In the order of R's rows.
    shapes : tuple of tuple of int
        Their shapes, (rows of the site, outputs), or (outputs,) of a bias.
    hidden : tuple of str
        The model's other sites.
    outputs : int
    design : callable
        ``design(params, x)``: H; of `params` only the hidden sites are read.
    priors : callable
        ``priors()``: the prior of each site.
    noise : float or None
        Standard deviation s of y around φ, in the units of y; None where the likelihood is not Gaussian.
    likelihood : str
        Name of the likelihood.
    gains : tuple of float
        What the forward pass multiplies each site by: its scale inside H.
    """

    sites: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    hidden: tuple[str, ...]
    outputs: int
    design: Callable[[Any, Any], jax.Array]
    priors: Callable[[], Mapping[str, dist.Distribution]]
    noise: float | None
    likelihood: str
    gains: tuple[float, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each site."""
        return tuple(math.prod(shape) // self.outputs for shape in self.shapes)

    @property
    def biased(self) -> bool:
        return len(self.sites) > 1

    # -- between sites and rows ---------------------------------------------------------------------------
    def stack(self, params: Mapping, xp: Any = jnp) -> Any:
        """R, (..., rows, outputs), of arrays named by site, with any leading axes; in JAX, or in NumPy's float64."""
        parts = [xp.asarray(params[s]) if xp is jnp else np.asarray(params[s], np.float64) for s in self.sites]
        return xp.concatenate([p.reshape(*p.shape[:p.ndim - len(shape)], rows, self.outputs)
                               for p, shape, rows in zip(parts, self.shapes, self.sizes, strict=True)], axis=-2)

    def split(self, matrix: Any) -> dict[str, Any]:
        """Back from R, (..., rows, outputs), to arrays named by site."""
        ends = np.cumsum(self.sizes)
        return {s: matrix[..., end - rows:end, :].reshape(*matrix.shape[:-2], *shape)
                for s, shape, rows, end in zip(self.sites, self.shapes, self.sizes, ends, strict=True)}

    def rows(self, sites: Sequence[str]) -> slice | np.ndarray:
        """Rows of R, which are columns of H, of those of `sites` that belong to the readout."""
        inside = np.repeat([s in sites for s in self.sites], self.sizes)
        found = np.flatnonzero(inside)
        return slice(found[0], found[-1] + 1) if found.size and inside[found[0]:found[-1] + 1].all() else found

    # -- its law ------------------------------------------------------------------------------------------
    def inexact(self) -> str:
        """Why the readout given the features is not exactly Gaussian; "" where it is."""
        if self.noise is None:
            return f"the likelihood is {self.likelihood}, not Gaussian, so the readout has no closed form"
        with jax.ensure_compile_time_eval():  # the answer is needed in traced code too
            found = self.priors()
            bases = [unwrap(found[s]) for s in self.sites]
            if not all(isinstance(p, dist.Normal) for p in bases):
                return "the prior of the readout is not Gaussian"
            if any(jnp.ndim(p.scale) and np.ptp(np.asarray(p.scale), axis=-1).any() for p in bases):
                return "the prior scale of the readout differs between outputs"
        return ""

    def moments(self) -> tuple[jax.Array, jax.Array]:
        """Prior mean and standard deviation, each (rows, outputs), of a Gaussian readout."""
        found = self.priors()
        bases = {s: unwrap(found[s]) for s in self.sites}
        shapes = dict(zip(self.sites, self.shapes, strict=True))
        mean, std = (self.stack({s: jnp.broadcast_to(getattr(p, name), shapes[s]) for s, p in bases.items()})
                     for name in ("loc", "scale"))
        return mean, std

    def gaussian(self) -> Readout:
        """Prior and noise of a readout that `inexact` finds nothing against."""
        assert self.noise is not None
        mean, std = self.moments()
        return Readout(mean, std[:, 0], self.noise)

    def log_marginal(self, params: Mapping, x: Any, y: jax.Array) -> jax.Array:
        """log p(y | hidden sites), the readout integrated out, in nats."""
        return log_marginal(self.gaussian(), self.design(params, x), y)

    def complete(self, key: jax.Array, params: Mapping, x: Any, y: jax.Array) -> dict[str, jax.Array]:
        """`params` with the readout drawn from its exact conditional given the hidden sites."""
        return {**params, **self.split(draw_readout(self.gaussian(), key, self.design(params, x), y))}


class Readout(NamedTuple):
    """Prior N(mean, diag(scale²)) of each output's readout weights, and the noise."""

    mean: jax.Array
    """(p, outputs)"""
    scale: jax.Array
    """(p,), shared by the outputs"""
    noise: float
    """Standard deviation s of y around φ."""


def log_marginal(readout: Readout, design: jax.Array, y: jax.Array) -> jax.Array:
    """log p(y | H) with the readout integrated out, in nats; y of shape (n, outputs), H of shape (n, p)."""
    return _log_evidence(readout.noise, design * readout.scale, y - design @ readout.mean)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_evidence(noise: float, g: jax.Array, r: jax.Array) -> jax.Array:
    """Σ_c log N(r_c; 0, S) with S = GGᵀ + s²1, for G (n, p) and r (n, C); theory §8.

    L = −½ tr(rᵀS⁻¹r) − (C/2) log det S − (nC/2) log 2π. With A = S⁻¹r and dS = dG Gᵀ + G dGᵀ,

        dL = ½ tr(Aᵀ dS A) − (C/2) tr(S⁻¹ dS)   ⇒   ∂L/∂G = A(AᵀG) − C S⁻¹G,   ∂L/∂r = −A.

    Data space (n ≤ p): the inverse of S. Feature space (p < n): with M = s²1 + GᵀG and m = M⁻¹Gᵀr, S⁻¹G = G M⁻¹,
    A = (r − Gm)/s², AᵀG = mᵀ, tr(rᵀS⁻¹r) = |r − Gm|²/s² + |m|², log det S = (n − p) log s² + log det M. One inverse
    serves the value and the derivative, and nothing is differentiated through it.
    """
    return _evidence_fwd(noise, g, r)[0]


def _evidence_fwd(noise, g, r):
    n, p, outputs = g.shape[0], g.shape[1], r.shape[1]
    data_space = n <= p
    small = g @ g.T if data_space else g.T @ g
    inverse, log_det = inverse_and_log_det(small + noise**2 * jnp.eye(min(n, p), dtype=g.dtype))
    if data_space:
        a = inverse @ r
        square = jnp.sum(r * a)
    else:
        # m is the minimiser of |r − Gm|² + s²|m|², so that its error enters the value squared; dividing what is left of
        # r by s² would magnify it in A, and in float32 two steps of refinement take it out.
        inner = inverse @ (g.T @ r)
        for _ in range(2):
            inner = inner + inverse @ (g.T @ (r - g @ inner) - noise**2 * inner)
        left = r - g @ inner
        a, square = left / noise**2, jnp.sum(left**2) / noise**2 + jnp.sum(inner**2)
        log_det = log_det + 2 * (n - p) * math.log(noise)
    value = -0.5 * square - 0.5 * outputs * (log_det + n * math.log(2 * math.pi))
    # A(AᵀG) − C S⁻¹G
    slope = (a @ a.T - outputs * inverse) @ g if data_space else a @ inner.T - outputs * g @ inverse
    return value, (slope, a)


def _evidence_bwd(noise, kept, cotangent):
    slope, a = kept
    return cotangent * slope, -cotangent * a


_log_evidence.defvjp(_evidence_fwd, _evidence_bwd)


LARGEST_BLOCKED = 128
BLOCKS = (20, 5)  # seen to be fastest for a hundred points


def inverse_and_log_det(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inverse and log determinant of a symmetric positive definite matrix (m, m).

    Small matrices by Gauss–Jordan elimination in blocks of blocks, which needs no pivots here. A sampler asks for one
    at every gradient, and LAPACK's threads, woken for each, were seen to cost a hundred times the arithmetic on busy
    cores.
    """
    if a.shape[0] <= LARGEST_BLOCKED:
        return _eliminate(a, BLOCKS)
    factor = jnp.linalg.cholesky(a)
    return cho_solve((factor, True), jnp.eye(len(a), dtype=a.dtype)), 2 * jnp.sum(jnp.log(jnp.diag(factor)))


def _eliminate(a: jax.Array, blocks: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Inverse by Gauss–Jordan in blocks of about blocks[0], themselves inverted in blocks of blocks[1], and so on."""
    if not blocks:
        return _eliminate_entries(a)
    m = a.shape[0]
    count = -(-m // blocks[0])
    size = -(-m // count)
    padded = count * size
    full = jnp.eye(padded, dtype=a.dtype).at[:m, :m].set(a)

    def eliminate(k, carry):
        full, log_det = carry
        i = k * size
        pivot, more = _eliminate(jax.lax.dynamic_slice(full, (i, i), (size, size)), blocks[1:])
        rows = pivot @ jax.lax.dynamic_slice(full, (i, 0), (size, padded))
        columns = jax.lax.dynamic_slice(full, (0, i), (padded, size))
        full = jax.lax.dynamic_update_slice(full - columns @ rows, -columns @ pivot, (0, i))
        full = jax.lax.dynamic_update_slice(full, rows, (i, 0))
        return jax.lax.dynamic_update_slice(full, pivot, (i, i)), log_det + more

    full, log_det = jax.lax.fori_loop(0, count, eliminate, (full, jnp.zeros((), a.dtype)))
    return full[:m, :m], log_det


def _eliminate_entries(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gauss–Jordan entry by entry: inverse, and log determinant as the sum of the pivots' logs."""
    index = jnp.arange(a.shape[0])

    def eliminate(k, carry):
        a, log_det = carry
        here, pivot = index == k, a[k, k]
        row, column = jnp.where(here, 1, a[k]) / pivot, a[:, k]
        rest = jnp.where(here, 0, a) - column[:, None] * row
        return jnp.where(here[:, None], row, rest), log_det + jnp.log(pivot)

    return jax.lax.fori_loop(0, a.shape[0], eliminate, (a, jnp.zeros((), a.dtype)))


def draw_readout(readout: Readout, key: jax.Array, design: jax.Array, y: jax.Array) -> jax.Array:
    """One exact draw of the readout given the features, shape (p, outputs).

    Whitened weights v = (w − mean)/scale have prior N(0, 1) and r = Gv + noise. Data space (n ≤ p), Matheron: with
    prior draws v₀, ε₀, v = v₀ + GᵀS⁻¹(r − Gv₀ − ε₀). Feature space (p < n), with M = s²1 + GᵀG:
    v = M⁻¹Gᵀr + s M^{−1/2}ξ.
    """
    g, r, s = design * readout.scale, y - design @ readout.mean, readout.noise
    n, p = g.shape
    weight_key, noise_key = jax.random.split(key)
    prior = jax.random.normal(weight_key, (p, r.shape[1]), g.dtype)
    if n <= p:
        noise = s * jax.random.normal(noise_key, r.shape, g.dtype)
        factor = jnp.linalg.cholesky(g @ g.T + s**2 * jnp.eye(n, dtype=g.dtype))
        white = prior + g.T @ cho_solve((factor, True), r - g @ prior - noise)
    else:
        factor = jnp.linalg.cholesky(g.T @ g + s**2 * jnp.eye(p, dtype=g.dtype))
        white = cho_solve((factor, True), g.T @ r) + s * solve_triangular(factor.T, prior, lower=False)
    return readout.mean + readout.scale[:, None] * white


def exact_shift(h: np.ndarray, residual: np.ndarray, prior_std: np.ndarray, noise: float) -> np.ndarray:
    """Shift of a prior draw that makes it an exact posterior draw (Matheron's rule, theory §8), in NumPy's float64.

    Parameters
    ----------
    h : array (n, N)
    residual : array (n, C)
        y + ε − H w₀ with w₀ ~ prior and ε ~ N(0, noise²) fresh.
    prior_std : array (N,)
    noise : float

    Returns
    -------
    array (N, C)
        Σ_w Hᵀ (H Σ_w Hᵀ + s²)⁻¹ residual, by the smaller of the two Gram matrices. It is also the minimiser of
        |residual − H d|²/s² + |d/σ₀|²: randomised MAP.
    """
    n, width = h.shape
    scaled = np.asarray(h, dtype=np.float64) * prior_std
    if n <= width:
        gram = blas.dsyrk(1.0, scaled, lower=1)
        gram[np.diag_indices(n)] += noise**2
        factor = noise_factor(gram, noise)
        return prior_std[:, None] * (scaled.T @ host_cho_solve(factor, residual))
    gram = scaled.T @ scaled
    gram[np.diag_indices(width)] += noise**2
    return prior_std[:, None] * host_cho_solve(noise_factor(gram, noise), scaled.T @ residual)


def noise_factor(gram: np.ndarray, noise: float) -> tuple[np.ndarray, bool]:
    """Cholesky factor (lower) of a Gram matrix to whose diagonal noise² was added, as SciPy's `cho_solve` takes it.

    Raises
    ------
    ValueError
        Where rounding leaves nothing of the noise in some direction: what is solved with it would be of any size.
    """
    top = float(np.diagonal(gram).max())
    try:
        factor = cho_factor(gram, lower=True, overwrite_a=True)
        sound = bool(np.diagonal(factor[0]).min() ** 2 > 10 * len(gram) * np.finfo(np.float64).eps * top)
    except LinAlgError:
        sound = False
    if not sound:
        scale = math.sqrt(top)
        raise ValueError(f"the noise, {noise:g}, vanishes beside the output's scale, {scale:.3g}: with repeated or "
                         "nearly dependent inputs the covariance of the targets is singular to rounding; raise the "
                         f"likelihood's scale above {5e-8 * math.sqrt(len(gram)) * scale:.1g}") from None
    return factor
