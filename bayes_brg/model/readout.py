"""The linear readout of a model: its sites as one matrix, integrated out where it is Gaussian, and drawn exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve, solve_triangular
from scipy.linalg import LinAlgError, blas, cho_factor
from scipy.linalg import cho_solve as host_cho_solve

from .distributions import unwrap
from .likelihoods import Likelihood

__all__ = ["LinearReadout", "Readout", "draw_readout", "exact_shift", "log_marginal", "matheron", "noise_factor"]


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
    hidden, hidden_shapes : tuple
        The model's other sites, and their shapes.
    outputs : int
    design : callable
        ``design(params, x)``: H; of `params` only the hidden sites are read.
    priors : callable
        ``priors(params)``: the prior of each site, given the scales among `params`.
    likelihood : Likelihood
    gains : tuple of float
        What the forward pass multiplies each site by: its scale inside H.
    """

    sites: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    hidden: tuple[str, ...]
    hidden_shapes: tuple[tuple[int, ...], ...]
    outputs: int
    design: Callable[[Any, Any], jax.Array]
    priors: Callable[[Any], Mapping[str, dist.Distribution]]
    likelihood: Likelihood
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
    @property
    def means(self) -> int:
        """The outputs, the first ones, that are means of Gaussians: their columns of R can be integrated out."""
        return self.likelihood.gaussian_outputs(self.outputs)

    def inexact(self) -> str:
        """Why the readout given the hidden sites is not exactly Gaussian; "" where it is."""
        if self.means < self.outputs:
            return (f"the likelihood is {self.likelihood.name}, not Gaussian with a width that hidden sites give, so "
                    "the readout has no closed form" if self.means else
                    f"the likelihood is {self.likelihood.name}, not Gaussian, so the readout has no closed form")
        return self.uncollapsible()

    def uncollapsible(self) -> str:
        """Why no part of the readout can be integrated out; "" where one can."""
        if not self.means:
            return self.inexact()
        with jax.ensure_compile_time_eval():  # the answer is needed in traced code too
            shapes = zip(self.hidden, self.hidden_shapes, strict=True)
            known = {s: np.ones(shape, jnp.result_type(float)) for s, shape in shapes}
            bases = [unwrap(p) for s, p in self.priors(known).items() if s in self.sites]
            if not all(isinstance(p, dist.Normal) for p in bases):
                return "the prior of the readout is not Gaussian"
            if any(jnp.ndim(p.scale) and np.ptp(np.asarray(p.scale)[..., :self.means], axis=-1).any() for p in bases):
                return "the prior scale of the readout differs between outputs"
        return ""

    def moments(self, params: Mapping) -> tuple[jax.Array, jax.Array]:
        """Prior mean and standard deviation, each (rows, outputs), of a Gaussian readout given its scales."""
        found = self.priors(params)
        bases = {s: unwrap(found[s]) for s in self.sites}
        shapes = dict(zip(self.sites, self.shapes, strict=True))
        mean, std = (self.stack({s: jnp.broadcast_to(getattr(p, name), shapes[s]) for s, p in bases.items()})
                     for name in ("loc", "scale"))
        return mean, std

    def noise(self, params: Mapping) -> jax.Array:
        """Standard deviation of y around φ where the readout is not `inexact`: (), or (outputs,)."""
        return self.likelihood.given(params).widths(jnp.zeros((1, 0)))

    def problem(self, params: Mapping, x: Any) -> tuple[Readout, jax.Array]:
        """Prior and noise of the columns of R that can be integrated out, given everything else, and H.

        The widths of data that have their own come from the other columns, which `params` then hold.
        """
        design, (mean, std) = self.design(params, x), self.moments(params)
        rest = design @ self.stack(params)[:, self.means:] if self.means < self.outputs else design[:, :0]
        noise = self.likelihood.given(params).widths(rest)
        return Readout(mean[:, :self.means], std[:, 0], noise), design

    def log_marginal(self, params: Mapping, x: Any, y: jax.Array) -> jax.Array:
        """log p(y | everything but those columns), in nats; of `params` these columns are not read."""
        readout, design = self.problem(params, x)
        return log_marginal(readout, design, y)

    def complete(self, key: jax.Array, params: Mapping, x: Any, y: jax.Array) -> dict[str, jax.Array]:
        """`params` with those columns drawn from their exact conditional given everything else."""
        readout, design = self.problem(params, x)
        drawn = draw_readout(readout, key, design, y)
        if self.means < self.outputs:
            drawn = jnp.concatenate([drawn, self.stack(params)[:, self.means:]], axis=1)
        return {**params, **self.split(drawn)}

    # -- the columns that are sampled where the others are integrated out ------------------------------------
    @property
    def kept(self) -> tuple[str, ...]:
        """Sites of R of which columns are left."""
        return self.sites if self.means < self.outputs else ()

    def narrow(self, values: Mapping) -> dict[str, Any]:
        """Arrays named by site with the columns that are integrated out left away, and sites of nothing else."""
        return {s: v[..., self.means:] if s in self.kept else v for s, v in values.items()
                if s not in self.sites or s in self.kept}

    def widen(self, values: Mapping) -> dict[str, Any]:
        """The inverse of `narrow`, with zeros for what was left away."""
        return {s: jnp.concatenate([jnp.zeros((*v.shape[:-1], self.means), v.dtype), v], axis=-1)
                if s in self.kept else v for s, v in values.items()}


class Readout(NamedTuple):
    """Prior N(mean, diag(scale²)) of each output's readout weights, and the noise."""

    mean: jax.Array
    """(p, outputs)"""
    scale: jax.Array
    """(p,), shared by the outputs"""
    noise: Any
    """Standard deviation s of y around φ: (), (outputs,), or (n, outputs) where each datum has its own."""


# -- in float64, whatever the session's default ---------------------------------------------------------------
# With noise of a hundredth of the targets' spread the covariance of the targets has a condition number of 1e6 and more:
# float32 loses the log-likelihood whole (theory §13). What is made of the features is therefore computed in float64
# *inside* the compiled float32 program, which keeps every sampler and every mapping over chains as it is.
def in_float64(fn: Callable) -> Callable:
    """`fn` of arrays, traced in float64 in any session; its result has the precision of its first argument.

    JAX's switch of precision holds while code is traced, and mapping traces anew: the rule below turns it on there too.
    Not to be differentiated: `fn` returns its own derivatives.
    """
    @jax.custom_batching.custom_vmap
    def call(*args):
        dtype = args[0].dtype
        with jax.enable_x64(True):
            wide = [a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in args]
            return jax.tree.map(lambda a: a.astype(dtype), fn(*wide))

    @call.def_vmap
    def rule(size, batched, *args):
        out = in_float64(jax.vmap(fn, [0 if b else None for b in batched], axis_size=size))(*args)
        return out, jax.tree.map(lambda _: True, out)

    return call


def _floats(readout: Readout, design: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
    """Design, prior mean, prior scale, noise and y as arrays of the design's precision."""
    return (design, *(jnp.asarray(a, design.dtype) for a in (readout.mean, readout.scale, readout.noise, y)))


def log_marginal(readout: Readout, design: jax.Array, y: jax.Array) -> jax.Array:
    """log p(y | H) with the readout integrated out, in nats; y of shape (n, outputs), H of shape (n, p).

    Value and derivative (with respect to H, the prior and the noise) are computed in float64 and rounded after.
    """
    return _log_marginal(*_floats(readout, design, y))


@jax.custom_vjp
def _log_marginal(*arrays: jax.Array) -> jax.Array:
    return in_float64(_evidence)(*arrays)


def _log_marginal_fwd(*arrays):
    return in_float64(jax.value_and_grad(_evidence, tuple(range(5))))(*arrays)


_log_marginal.defvjp(_log_marginal_fwd, lambda slopes, cotangent: tuple(cotangent * s for s in slopes))


def _evidence(design, mean, scale, noise, y):
    """Σ_c log N(y_c; H m_c, H Σ_w Hᵀ + diag(s_c²)), with G = H Σ_w^{1/2}/s and t = (y − H m)/s for each output c."""
    n, outputs = y.shape
    constant = -0.5 * n * outputs * math.log(2 * math.pi) - jnp.sum(jnp.log(jnp.broadcast_to(noise, y.shape)))
    g, t = design * scale, y - design @ mean
    if noise.size == 1:
        return constant + _log_white(g / noise, t / noise)
    each = jnp.broadcast_to(noise, y.shape).T[:, :, None]  # (outputs, n, 1)
    return constant + jnp.sum(jax.vmap(_log_white)(g / each, t.T[:, :, None] / each))


@jax.custom_vjp
def _log_white(g: jax.Array, t: jax.Array) -> jax.Array:
    """Σ_c [log N(t_c; 0, S) + (n/2) log 2π] with S = GGᵀ + 1, for G (n, p) and t (n, C); theory §8, §13.

    L = −½ tr(tᵀS⁻¹t) − (C/2) log det S. With A = S⁻¹t and dS = dG Gᵀ + G dGᵀ,

        dL = ½ tr(Aᵀ dS A) − (C/2) tr(S⁻¹ dS)   ⇒   ∂L/∂G = A(AᵀG) − C S⁻¹G,   ∂L/∂t = −A.

    Data space (n ≤ p): the inverse of S. Feature space (p < n): with M = 1 + GᵀG and m = M⁻¹Gᵀt, S⁻¹G = G M⁻¹,
    A = t − Gm, AᵀG = mᵀ, tr(tᵀS⁻¹t) = |t − Gm|² + |m|², log det S = log det M. One inverse serves the value and the
    derivative, and nothing is differentiated through it.
    """
    return _white_fwd(g, t)[0]


def _white_fwd(g, t):
    n, p, outputs = g.shape[0], g.shape[1], t.shape[1]
    data_space = n <= p
    small = g @ g.T if data_space else g.T @ g
    inverse, log_det = inverse_and_log_det(small + jnp.eye(min(n, p), dtype=g.dtype))
    if data_space:
        a = inverse @ t
        for _ in range(REFINED):
            a = a + inverse @ (t - g @ (g.T @ a) - a)
        square = jnp.sum(t * a)
        slope = a @ (a.T @ g) - outputs * inverse @ g
    else:
        # m is the minimiser of |t − Gm|² + |m|², so that its error enters the value squared.
        inner = inverse @ (g.T @ t)
        for _ in range(REFINED):
            inner = inner + inverse @ (g.T @ (t - g @ inner) - inner)
        a = t - g @ inner
        square = jnp.sum(a**2) + jnp.sum(inner**2)
        slope = a @ inner.T - outputs * g @ inverse
    return -0.5 * square - 0.5 * outputs * log_det, (slope, a)


def _white_bwd(kept, cotangent):
    slope, a = kept
    return cotangent * slope, -cotangent * a


_log_white.defvjp(_white_fwd, _white_bwd)
REFINED = 2  # steps that take what rounding left in the solution of an ill-conditioned system out of it


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
    beyond = jnp.where(jnp.arange(padded) < m, 0, 1).astype(a.dtype)
    full = jnp.pad(a, (0, padded - m)) + jnp.diag(beyond) if padded > m else a

    zero = np.int32(0)  # indices of 64 bits are lost in a float32 session, where code traced in float64 is compiled

    def eliminate(k, carry):
        full, log_det = carry
        i = k * np.int32(size)
        pivot, more = _eliminate(jax.lax.dynamic_slice(full, (i, i), (size, size)), blocks[1:])
        rows = pivot @ jax.lax.dynamic_slice(full, (i, zero), (size, padded))
        columns = jax.lax.dynamic_slice(full, (zero, i), (padded, size))
        full = jax.lax.dynamic_update_slice(full - columns @ rows, -columns @ pivot, (zero, i))
        full = jax.lax.dynamic_update_slice(full, rows, (i, zero))
        return jax.lax.dynamic_update_slice(full, pivot, (i, i)), log_det + more

    full, log_det = jax.lax.fori_loop(zero, np.int32(count), eliminate, (full, jnp.zeros((), a.dtype)))
    return full[:m, :m], log_det


def _eliminate_entries(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gauss–Jordan entry by entry: inverse, and log determinant as the sum of the pivots' logs."""
    index, size = jnp.arange(a.shape[0], dtype=jnp.int32), a.shape[0]

    def eliminate(k, carry):
        a, log_det = carry
        here = index == k
        row, column = (jax.lax.dynamic_index_in_dim(a, k, axis, keepdims=False) for axis in (0, 1))
        pivot = jax.lax.dynamic_index_in_dim(row, k, keepdims=False)
        row = jnp.where(here, 1, row) / pivot
        rest = jnp.where(here, 0, a) - column[:, None] * row
        return jnp.where(here[:, None], row, rest), log_det + jnp.log(pivot)

    return jax.lax.fori_loop(np.int32(0), np.int32(size), eliminate, (a, jnp.zeros((), a.dtype)))


def draw_readout(readout: Readout, key: jax.Array, design: jax.Array, y: jax.Array) -> jax.Array:
    """One exact draw of the readout given the features, shape (p, outputs); computed in float64, as `log_marginal`.

    With G = H Σ_w^{1/2}/s and t = (y − H m)/s, whitened weights v = (w − m)/σ_w have prior N(0, 1) and t = Gv + ε. Data
    space (n ≤ p), Matheron: with prior draws v₀, ε₀, v = v₀ + GᵀS⁻¹(t − Gv₀ − ε₀), S = GGᵀ + 1. Feature space (p < n),
    with M = 1 + GᵀG: v = M⁻¹Gᵀt + M^{−1/2}ξ.
    """
    weight_key, noise_key = jax.random.split(key)
    prior = jax.random.normal(weight_key, (design.shape[1], y.shape[1]), design.dtype)
    noise = jax.random.normal(noise_key, y.shape, design.dtype)
    return in_float64(_drawn)(*_floats(readout, design, y), prior, noise)


def _drawn(design, mean, scale, noise, y, prior, epsilon):
    g, t = design * scale, y - design @ mean
    if noise.size == 1:
        white = _white_draw(g / noise, t / noise, prior, epsilon)
    else:
        each = jnp.broadcast_to(noise, y.shape).T[:, :, None]  # (outputs, n, 1)
        t, prior, epsilon = (a.T[:, :, None] for a in (t, prior, epsilon))
        white = jax.vmap(_white_draw)(g / each, t / each, prior, epsilon)[..., 0].T
    return mean + scale[:, None] * white


def _white_draw(g, t, prior, epsilon):
    n, p = g.shape
    if n <= p:
        factor = jnp.linalg.cholesky(g @ g.T + jnp.eye(n, dtype=g.dtype))
        return prior + g.T @ cho_solve((factor, True), t - g @ prior - epsilon)
    factor = jnp.linalg.cholesky(g.T @ g + jnp.eye(p, dtype=g.dtype))
    return cho_solve((factor, True), g.T @ t) + solve_triangular(factor.T, prior, lower=False)


def matheron(readout: Readout, design: jax.Array, y: jax.Array, prior: jax.Array, epsilon: jax.Array) -> jax.Array:
    """The draw of `draw_readout` that goes with given N(0, 1) numbers: v₀ (p, outputs) and ε₀ (n, outputs).

    v = v₀ + GᵀS⁻¹(t − Gv₀ − ε₀), in either space: where nothing is seen of a direction it is v₀. A scale of 0 holds a
    weight at its mean. One noise for all outputs and data.
    """
    return in_float64(_conditioned)(*_floats(readout, design, y), prior, epsilon)


def _conditioned(design, mean, scale, noise, y, prior, epsilon):
    g, t = design * (scale / noise), (y - design @ mean) / noise
    n, p = g.shape
    gap = t - g @ prior - epsilon
    if n <= p:
        shift = g.T @ cho_solve((jnp.linalg.cholesky(g @ g.T + jnp.eye(n, dtype=g.dtype)), True), gap)
    else:
        shift = cho_solve((jnp.linalg.cholesky(g.T @ g + jnp.eye(p, dtype=g.dtype)), True), g.T @ gap)
    return mean + scale[:, None] * (prior + shift)


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
