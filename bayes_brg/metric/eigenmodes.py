"""Eigenmodes of the metric: exact from the smaller of B Bᵀ and BᵀB in float64, or the leading ones by Lanczos.

The factor is evaluated in the precision of the parameters and its Gram matrix accumulated in float64, since squaring
the factor squares its condition number (theory §1). Draws are taken in groups, so that memory does not grow with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matfree import decomp

from ..core.batching import map_draws, progress
from ..core.checks import num_points
from ..model.bound import Params
from .geometry import Block, Geometry, State, draw_key, hold, ravel, unravel
from .output_fisher import Data


class Modes(NamedTuple):
    """Eigenmodes of one block of sites, of one draw or with leading axis T."""

    values: Any
    """λ (K,), descending."""
    floor: Any = None
    """Noise floor."""
    weights: Any = None
    """(n, R, K) with V = BᵀW, of a block on the side of the rows."""
    vectors: Any = None
    """V itself, (P, K), on the side of the columns."""
    residual: Any = None
    """‖I v − λ v‖ of each Lanczos pair (K,), NaN under the noise floor."""

    def on_host(self) -> Modes:
        """Numbers that are reported, in NumPy's float64."""
        def host(a):
            return None if a is None else np.asarray(a, np.float64)
        return self._replace(values=host(self.values), floor=host(self.floor), residual=host(self.residual))


# Numbers held at once: rows of the factor, and the draws of one group.
ROWS = 2**25
GROUP = 2**26


def num_responses(geometry: Geometry, params: Params, data: Data, key: Any) -> int:
    """R: columns of S."""
    def first(p, data, key):
        return geometry.respond(geometry.coords(p), p, jax.tree.map(lambda a: a[0], geometry.batches(data)[0]), key)

    return jax.eval_shape(first, params, data, key).shape[1]


def plan(geometry: Geometry, rows: int, groups: tuple[tuple[str, ...], ...]) -> tuple[Block, ...]:
    """Blocks of sites, each with the side on which its modes are fewer: data rows or parameter columns."""
    shapes = geometry.shapes()
    sizes = {s: math.prod(shape) for s, shape in shapes.items()}
    return tuple(Block(g, "rows" if rows <= sum(sizes[s] for s in g) else "columns") for g in groups)


def noise_floor(top: Any, size: int, dtype: Any) -> Any:
    """Eigenvalues that rounding may have made: λ_max · max((16 ε)², 4 size · 2⁻⁵²), ε that of the factor's dtype.

    Rounding of relative size ε in the factor moves its singular values by some ε σ_max, thus makes eigenvalues of
    ε² λ_max out of nothing; the Gram matrix adds float64 rounding. Above the floor eigenvalues hold to about 10 %, from
    10⁶ times higher on to about 1e-4.
    """
    eps = float(jnp.finfo(dtype).eps)
    return top * max((16 * eps) ** 2, 4 * size * 2.0**-52)


# -- stage one, in the precision of the parameters: the factor --------------------------------------------------
def _layer_pieces(geometry: Geometry, block: Block, held: State) -> list:
    """Per dense layer (A, Δ) with their scales inside: (inputs (n, f) or None, cotangents (n, R, g)), one a site."""
    batches, n = geometry.batches(held.data)
    key, scale, pieces = draw_key(held), held.scale, {}
    facts: list = []

    def one(batch):
        found, cotangents, rank = geometry.layers(held.params, batch, key)
        facts[:] = [(y.weight, y.bias, y.scale, y.bias_scale) for y in found]
        stacked = jax.lax.map(cotangents, jnp.arange(rank))
        return [(y.inputs, jnp.swapaxes(d, 0, 1)) for y, d in zip(found, stacked, strict=True)]

    def site_scale(site):
        return 1.0 if scale is None else jnp.ravel(scale[site])[0]

    arrays = jax.lax.map(one, batches)
    for (weight, bias, c, bias_c), (inputs, cotangents) in zip(facts, arrays, strict=True):
        inputs, cotangents = (a.reshape(-1, *a.shape[2:])[:n] for a in (inputs, cotangents))
        if weight in geometry.sites:
            pieces[weight] = inputs * (c * site_scale(weight)), cotangents
        if bias in geometry.sites:
            pieces[bias] = None, cotangents * (bias_c * site_scale(bias))
    return [pieces[s] for s in block.sites]


def _row_pieces(geometry: Geometry, sites: tuple[str, ...], held: State, data: Data) -> jax.Array:
    """√n B of some data, whitened, flat: (n · R, P). Activations are held for one batch of them at a time."""
    def one(batch):
        rows = geometry.rows(held.params, batch, draw_key(held), sites)
        if held.scale is not None:
            rows = {s: r * held.scale[s] for s, r in rows.items()}
        return jnp.concatenate([rows[s].reshape(*rows[s].shape[:2], -1) for s in sites], axis=2)

    batches, n = geometry.batches(data)
    rows = jax.lax.map(one, batches)
    return rows.reshape(-1, *rows.shape[2:])[:n].reshape(-1, rows.shape[-1])


def _pieces(geometry: Geometry, own: State, shared: State) -> list:
    """What the Gram matrix of each block is made of, for all probe inputs."""
    held, out = hold((own, shared)), []
    for block in geometry.blocks:
        fast = geometry.layered and geometry.uniform and block.side == "rows"
        out.append(_layer_pieces(geometry, block, held) if fast else
                   _row_pieces(geometry, block.sites, held, held.data))
    return out


# -- stage two, in float64: Gram matrix and eigenvalues -----------------------------------------------------------
def _gram(pieces: Any, side: str) -> jax.Array:
    """The smaller Gram matrix of √n B, accumulated in float64."""
    if not isinstance(pieces, list):
        b = pieces.astype(jnp.float64)
        return b @ b.T if side == "rows" else b.T @ b
    total = jnp.zeros(())
    for inputs, cotangents in pieces:
        n, r, _ = cotangents.shape
        d = cotangents.reshape(n * r, -1).astype(jnp.float64)
        outer = (d @ d.T).reshape(n, r, n, r)
        if inputs is not None:
            a = inputs.astype(jnp.float64)
            outer = outer * (a @ a.T)[:, None, :, None]
        total = total + outer.reshape(n * r, n * r)
    return total


def _solve(gram: jax.Array, side: str, n: int, dtype: Any) -> Modes:
    """Eigenvalues of (1/n) · Gram in descending order, noise floor, and modes in `dtype`."""
    values, vectors = jnp.linalg.eigh(0.5 * (gram + gram.T) / n)
    values, vectors = jnp.maximum(values[::-1], 0.0), vectors[:, ::-1]
    floor = noise_floor(values[0], gram.shape[0], dtype)
    above = values > floor
    if side == "columns":
        return Modes(values, floor, vectors=jnp.where(above, vectors, 0.0).astype(dtype))
    weights = jnp.where(above, vectors / jnp.sqrt(jnp.where(above, values, 1.0)), 0.0)
    return Modes(values, floor, weights.astype(dtype).reshape(n, -1, weights.shape[1]))


def _solve_all(geometry: Geometry, n: int, pieces: list) -> list:
    dtype = jax.tree.leaves(pieces)[0].dtype
    return [_solve(_gram(p, block.side), block.side, n, dtype)
            for p, block in zip(pieces, geometry.blocks, strict=True)]


# -- one draw whose rows do not fit at once -----------------------------------------------------------------------
_rows = jax.jit(_row_pieces, static_argnums=(0, 1))
_product = jax.jit(lambda a, b: a.astype(jnp.float64) @ b.astype(jnp.float64).T)
_add_columns = jax.jit(lambda g, a: g + a.astype(jnp.float64).T @ a.astype(jnp.float64), donate_argnums=0)
_solve_jit = jax.jit(_solve, static_argnums=(1, 2, 3))


def _streamed(geometry: Geometry, block: Block, held: State, rows_at_once: int) -> Modes:
    """Modes of one block of one draw from batches of factor rows; pairs of batches for the row side."""
    full, n = held.data.numbered(), num_points(held.data.x)
    starts = range(0, n, rows_at_once)

    def rows(start):
        return _rows(geometry, block.sites, held, jax.tree.map(lambda a: a[start:start + rows_at_once], full))

    dtype = jax.tree.leaves({s: held.params[s] for s in block.sites})[0].dtype
    if block.side == "columns":
        size = sum(math.prod(s) for s in geometry.shapes(block.sites).values())
        with jax.enable_x64(True):
            gram = jnp.zeros((size, size), jnp.float64)
        for start in starts:
            b = rows(start)
            with jax.enable_x64(True):
                gram = _add_columns(gram, b)
    else:
        parts: dict[tuple[int, int], np.ndarray] = {}
        for i, start in enumerate(starts):
            first = rows(start)
            for j, other in enumerate(starts):
                if j >= i:
                    second = first if i == j else rows(other)
                    with jax.enable_x64(True):
                        parts[i, j] = np.asarray(_product(first, second))
        count = len(starts)
        gram = np.block([[parts[i, j] if j >= i else parts[j, i].T for j in range(count)] for i in range(count)])
        parts.clear()
    with jax.enable_x64(True):
        return _solve_jit(jnp.asarray(gram), block.side, n, dtype)


# -- all draws --------------------------------------------------------------------------------------------------
def _sizes(geometry: Geometry, rows: int, n: int) -> tuple[int, int]:
    """Numbers held for one draw, and the width of the widest block whose factor rows do not fit at once, or 0."""
    numbers, large = 0, 0
    for block in geometry.blocks:
        width = geometry.size(block.sites)
        if geometry.layered and geometry.uniform and block.side == "rows":
            fans = [geometry.bound.site(s).shape for s in block.sites]  # a layer's inputs and its cotangents
            numbers += sum((n * fan[0] if len(fan) == 2 else 0) + rows * fan[-1] for fan in fans)
        else:
            numbers, large = numbers + rows * width, max(large, width if rows * width > ROWS else 0)
        numbers += 4 * min(rows, width) ** 2
    return numbers, large


def exact(geometry: Geometry, draws: State, shared: State, responses: int, show: bool) -> list[Modes]:
    """Modes of every block at every draw: leading axis T; eigenvalues and floor NumPy float64.

    Parameters
    ----------
    geometry : Geometry
    draws, shared : State
        What `hold` joins; `draws` with leading axis T.
    responses : int
        R.
    show : bool
        Show a progress bar.
    """
    total, n = jax.tree.leaves(draws)[0].shape[0], num_points(shared.data.x)
    numbers, large = _sizes(geometry, n * responses, n)
    group = 1 if large else max(1, min(total, GROUP // max(numbers, 1)))

    def of(part: State) -> list[Modes]:
        if large:
            one = hold((jax.tree.map(lambda a: a[0], part), shared))
            chunk = max(1, ROWS // (responses * large))
            return [jax.tree.map(lambda a: a[None], _streamed(geometry, b, one, chunk)) for b in geometry.blocks]
        pieces = map_draws(_pieces, (geometry,), part, (shared,))
        with jax.enable_x64(True):
            return map_draws(_solve_all, (geometry, n), pieces)

    found = [[m.on_host() for m in of(jax.tree.map(lambda a, s=start: a[s:s + group], draws))]
             for start in progress(range(0, total, group), desc="fisher", show=show and total > group)]

    def join(*parts):
        return (np if isinstance(parts[0], np.ndarray) else jnp).concatenate(parts)

    return [jax.tree.map(join, *(f[i] for f in found)) for i in range(len(geometry.blocks))]


# -- Lanczos ------------------------------------------------------------------------------------------------------
def _ritz(matvec: Callable, start: jax.Array, steps: int, rank: int) -> tuple[jax.Array, jax.Array]:
    """Leading Ritz values (rank,) and vectors (size, rank) by Lanczos with full reorthogonalisation.

    Where the Krylov space ends before `steps`, matfree divides 0 by 0; the vectors from there on are taken as zero.
    """
    result = decomp.tridiag_sym(steps, custom_vjp=False)(matvec, start)
    small, basis = (jnp.where(jnp.isnan(a), 0.0, a) for a in (result.J_small, result.Q_tall))
    values, inner = jnp.linalg.eigh(0.5 * (small + small.T))
    return jnp.maximum(values[::-1][:rank], 0.0), basis.T @ inner[:, ::-1][:, :rank]  # matfree has vectors as rows


def _leading_pairs(matvec: Callable, size: int, steps: int, rank: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Leading eigenvalues (rank,) and eigenvectors (size, rank), each as often as it is there.

    One Krylov space holds one vector of an eigenspace, while several outputs under one noise repeat every eigenvalue of
    a readout. So pairs that have converged are locked and the rest is searched again, from a new start, as long as that
    finds one stiffer than the last of them.
    """
    eps = jnp.finfo(dtype).eps

    def stiffest(values, vectors, others, more):
        both = jnp.concatenate([values, others])
        order = jnp.argsort(-both)[:rank]
        return both[order], jnp.concatenate([vectors, more], axis=1)[:, order]

    def again(state):
        values, vectors, *_, turn = state

        def rest(v):
            return v - vectors @ (vectors.T @ v)

        start = rest(jax.random.normal(jax.random.fold_in(jax.random.key(0), turn), (size,), dtype))
        found, ritz = _ritz(lambda v: rest(matvec(rest(v))), start, steps, rank)
        ritz = rest(ritz)
        top = jnp.maximum(values[0], found[0])
        gaps = jnp.linalg.norm(jax.lax.map(matvec, ritz.T).T - ritz * found, axis=0)
        good = (gaps <= jnp.sqrt(eps) * top) & (found > values[-1] + 16 * eps * top)
        locked = stiffest(values, vectors, jnp.where(good, found, 0.0), jnp.where(good, ritz, 0.0))
        return *locked, *stiffest(values, vectors, found, ritz), good.any(), turn + 1

    nothing = jnp.zeros(rank, dtype), jnp.zeros((size, rank), dtype)
    _, _, values, vectors, *_ = jax.lax.while_loop(lambda state: state[4] & (state[5] <= 2 * rank), again,
                                                   (*nothing, *nothing, True, 0))
    return jnp.where(jnp.isfinite(matvec(jnp.ones(size, dtype))).all(), values, jnp.nan), vectors


def _lanczos(geometry: Geometry, rank: int, steps: int, responses: int, own: State, shared: State) -> list[Modes]:
    """Leading modes of the one block by Lanczos, with residuals ‖I v − λ v‖."""
    held, (block,) = hold((own, shared)), geometry.blocks
    params, data, key, sites = held.params, held.data, draw_key(held), block.sites
    scale = held.scale
    n, shapes = num_points(data.x), geometry.shapes(sites)
    dtype = jnp.result_type(*(params[s] for s in sites))

    def weigh(tree, power):
        return tree if scale is None else {s: v * scale[s] ** power for s, v in tree.items()}

    def up(c):  # Bᵀ, whitened
        return weigh(geometry.pull(params, data, key, c.reshape(n, responses), sites), 1)

    def down(tree):  # B, whitened
        return geometry.push(params, data, key, weigh(tree, 1)).ravel()

    rows = block.side == "rows"

    def matvec(v):
        return down(up(v)) if rows else ravel(up(down(unravel(v, shapes))), sites)

    size = n * responses if rows else sum(math.prod(s) for s in shapes.values())
    values, ritz = _leading_pairs(matvec, size, steps, min(rank, size), dtype)
    floor = values[0] * 16 * jnp.finfo(dtype).eps
    above = values > floor

    def residual(pair):
        value, v = pair
        r = matvec(v) - value * v
        length = jnp.linalg.norm(ravel(up(r), sites)) / jnp.sqrt(value) if rows else jnp.linalg.norm(r)
        return length

    residuals = jax.lax.map(residual, (jnp.where(above, values, 1.0), ritz.T))
    modes = Modes(values, floor, residual=jnp.where(above, residuals, jnp.nan))
    if not rows:
        return [modes._replace(vectors=jnp.where(above, ritz, 0.0))]
    weights = jnp.where(above, ritz / jnp.sqrt(jnp.where(above, values, 1.0)), 0.0)
    return [modes._replace(weights=weights.reshape(n, responses, -1))]


def leading(geometry: Geometry, draws: State, shared: State, responses: int, rank: int, show: bool) -> list[Modes]:
    """The `rank` leading modes at every draw, leading axis T, with their residuals."""
    size = min(num_points(shared.data.x) * responses, geometry.size())
    steps = min(size, 2 * rank + 20)
    modes = map_draws(_lanczos, (geometry, rank, steps, responses), draws, (shared,), desc="fisher", show=show,
                      passes=steps)
    return [m.on_host() for m in modes]


def mode_variance(geometry: Geometry, own: State, shared: State) -> jax.Array:
    """Variance (K,) of the Monte-Carlo eigenvalues of one draw, to first order: that of v_kᵀ I v_k at fixed v_k."""
    arrays, held = (own, shared), hold((own, shared))
    count, total = geometry.how.num_samples, geometry.spectrum(arrays).shape[0]

    def one(k):
        chosen = (jnp.arange(total) == k).astype(jnp.result_type(*held.params.values()))
        b = geometry.drawn(held.params, held.data, draw_key(held), geometry.from_modes(arrays, chosen))
        return count * jnp.sum(b**4) - jnp.sum(jnp.sum(b**2, axis=1) ** 2)

    return jnp.maximum(jax.lax.map(one, jnp.arange(total)), 0.0) / (count - 1 if count > 1 else np.nan)
