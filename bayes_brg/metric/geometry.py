"""The Fisher metric of one draw as pure functions: factor rows, products with the factor, eigenmodes.

The metric of n probe inputs is I = BᵀB with factor rows B = SᵀJ/√n, one for each datum and column of S. Nothing here
ever holds I where it is larger than B Bᵀ: eigenvectors are V = BᵀU λ^{−1/2}, so that a product with Vᵀ is a jvp and a
product with V a vjp (theory §1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to

from ..core.checks import num_points
from ..model.bound import BoundModel, Params
from .layers import _product, layers
from .output_fisher import Estimator, responses
from .prior_moments import is_real, prior_moments

Arrays = tuple[Any, Any]


# -- dense layers ---------------------------------------------------------------------------------------------


# -- prior ----------------------------------------------------------------------------------------------------


# -- the geometry ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Block:
    """Sites that share eigenmodes, and the side on which the modes are kept.

    ``"rows"``: λ and W = U λ^{−1/2}, shape (n, R, K), V = BᵀW. ``"columns"``: λ and V itself, shape (P, K).
    """

    sites: tuple[str, ...]
    side: str


@dataclass(frozen=True)
class Geometry:
    """What is static about a metric, with its pure functions. Hashable: pass it to compiled code as a static argument.

    Attributes
    ----------
    bound : BoundModel
    sites : tuple of str
        The sites the metric covers.
    kind : {"diagonal", "full", "block", "lowrank"}
    how : Estimator
    whiten : bool
    coordinates : {"native", "unconstrained"}
    layered : bool
        Whether every site enters through dense layers, so that the fast way is open.
    batch : int
        Probe inputs taken at once.
    blocks : tuple of Block
        Eigenmodes are those of each block, one block after the other; empty for a diagonal metric.
    hierarchical : bool
        Whether the prior of a flowing site depends on another site, so that prior scales differ from draw to draw.
    uniform : bool
        Whether the prior scale, where the metric is whitened, is one number a site.
    """

    bound: BoundModel
    sites: tuple[str, ...]
    kind: str
    how: Estimator
    whiten: bool = False
    coordinates: str = "native"
    layered: bool = False
    batch: int = 1024
    blocks: tuple[Block, ...] = ()
    hierarchical: bool = False
    uniform: bool = True

    @property
    def entrywise(self) -> bool:
        """Whether the metric's directions are the parameters themselves."""
        return self.kind == "diagonal"

    # -- coordinates --------------------------------------------------------------------------------------
    def _transform(self, site: str) -> Any:
        support = self.bound.site(site).support
        return None if self.coordinates == "native" or is_real(support) else biject_to(support)

    def coords(self, params: Params) -> Params:
        """Parameters of the covered sites in the metric's coordinates."""
        found = {s: (self._transform(s), params[s]) for s in self.sites}
        return {s: v if t is None else t.inv(v) for s, (t, v) in found.items()}

    def native(self, coords: Params) -> Params:
        """Covered sites from the metric's coordinates back to native ones."""
        found = {s: (self._transform(s), coords[s]) for s in self.sites}
        return {s: v if t is None else t(v) for s, (t, v) in found.items()}

    def prior(self, params: Params, x: Any) -> tuple[Params, Params]:
        """Prior mean m_p and scale P₀^{−1/2} of the covered sites, in the metric's coordinates, given other sites."""
        return prior_moments(self.bound, self.sites, self.coordinates, params, x)

    # -- the factor B -------------------------------------------------------------------------------------
    def respond(self, coords: Params, params: Params, batch: dict, key: Any) -> jax.Array:
        """Responses (n, R) as a function of the covered sites; their Jacobian is √n B."""
        return responses(self.bound, self.how, {**params, **self.native(coords)}, batch, key)

    def batches(self, data: dict) -> tuple[dict, int]:
        """Probe inputs as (number of batches, batch, ...), numbered, padded with data of weight zero."""
        n = num_points(data["x"])
        size = min(self.batch, n)
        pad = -n % size
        dtype = jnp.result_type(float)
        full = {"index": jnp.arange(n), **data, "weight": jnp.ones(n, dtype)}
        if pad:
            full = jax.tree.map(lambda a: jnp.concatenate([a, jnp.repeat(a[-1:], pad, axis=0)]), full)
            full["weight"] = full["weight"].at[n:].set(0)
        return jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), full), n

    def _sum(self, fn: Callable, data: dict) -> Any:
        """Σ of ``fn(batch)`` over batches of probe inputs, over n."""
        batches, n = self.batches(data)
        first = jax.tree.map(lambda a: a[0], batches)
        if jax.tree.leaves(batches)[0].shape[0] == 1:
            total = fn(first)
        else:
            start = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(fn, first))
            total, _ = jax.lax.scan(lambda t, b: (jax.tree.map(jnp.add, t, fn(b)), None), start, batches)
        return jax.tree.map(lambda a: a / n, total)

    def push(self, params: Params, data: dict, key: Any, delta: Params) -> jax.Array:
        """B δ, shape (n, R): a jvp."""
        coords = self.coords(params)
        free = {s: coords[s] for s in delta}

        def one(batch):
            return jax.jvp(lambda c: self.respond({**coords, **c}, params, batch, key), (free,), (delta,))[1]

        batches, n = self.batches(data)
        out = jax.lax.map(one, batches)
        return out.reshape(-1, out.shape[-1])[:n] / np.sqrt(n)

    def pull(self, params: Params, data: dict, key: Any, cotangent: jax.Array, sites: tuple[str, ...]) -> Params:
        """Bᵀ c for c of shape (n, R), restricted to `sites`: a vjp."""
        coords, n = self.coords(params), cotangent.shape[0]
        free = {s: coords[s] for s in sites}

        def one(batch):
            c = batch.pop("cotangent")
            return jax.vjp(lambda f: self.respond({**coords, **f}, params, batch, key), free)[1](c)[0]

        total = self._sum(lambda batch: one(dict(batch)), {**data, "cotangent": cotangent})
        return jax.tree.map(lambda a: a * np.sqrt(n), total)

    def rows(self, params: Params, batch: dict, key: Any, sites: tuple[str, ...]) -> Params:
        """√n B of one batch: site to (n, R, *shape), by per-example gradients. Holds them all."""
        coords = self.coords(params)
        free = {s: coords[s] for s in sites}

        def one(datum):
            r, pull = jax.vjp(lambda f: self.respond({**coords, **f}, params, datum, key)[0], free)
            return jax.vmap(lambda c: pull(c)[0])(jnp.eye(r.size, dtype=r.dtype))

        return jax.vmap(one)(jax.tree.map(lambda a: a[:, None], batch))

    def layers(self, params: Params, batch: dict, key: Any):
        """The dense layers of one batch; see `layers`."""
        return layers(self.bound, self.how, self.sites, params, batch, key)  # type: ignore[arg-type]

    # -- the diagonal -------------------------------------------------------------------------------------
    def diagonal(self, params: Params, data: dict, key: Any = None) -> tuple[Params, Params | None]:
        """Diagonal of the metric (not whitened), and the variance of its Monte-Carlo estimate.

        With per-datum squares g_s² of the S drawn labels, the estimate is (1/n) Σ_i mean_s g² and its variance, given
        the probe inputs, (1/n²) Σ_i [mean_s g⁴ − (mean_s g²)²]/(S − 1).
        """
        drawn = self.how.name == "montecarlo"
        total, spread = self._sum(lambda batch: self._powers(params, batch, key, drawn), data)
        if not drawn:
            return total, None
        n, count = num_points(data["x"]), self.how.num_samples
        unbiased = count - 1 if count > 1 else np.nan
        return total, jax.tree.map(lambda v: jnp.maximum(v, 0) / (n * unbiased), spread)

    def _powers(self, params: Params, batch: dict, key: Any, drawn: bool) -> tuple[Params, Params]:
        """Sums over data of Σ_s g² and (for drawn labels) S Σ_s g⁴ − (Σ_s g²)², g the rows of √n B."""
        count = self.how.num_samples
        if not self.layered:
            squares = jax.tree.map(lambda r: r**2, self.rows(params, batch, key, self.sites))
            spread = jax.tree.map(lambda q: jnp.sum(count * jnp.sum(q**2, 1) - jnp.sum(q, 1) ** 2, 0), squares)
            return jax.tree.map(lambda q: jnp.sum(q, (0, 1)), squares), spread if drawn else {}
        found, cotangents, rank = self.layers(params, batch, key)

        def terms(index):
            powers = [d**2 for d in cotangents(index)]
            return powers, [p**2 for p in powers] if drawn else []

        power, fourth = terms(0)
        if rank > 1:  # one response after the other: their cotangents together fall out of the cache
            (power, fourth), _ = jax.lax.scan(lambda sums, index: (jax.tree.map(jnp.add, sums, terms(index)), None),
                                              (power, fourth), jnp.arange(1, rank))
        total, spread = {}, {}
        for i, layer in enumerate(found):
            squares = layer.inputs**2
            total[layer.weight] = layer.scale**2 * _product(squares, power[i])
            total[layer.bias] = layer.bias_scale**2 * jnp.sum(power[i], 0)
            if drawn:
                varied = count * fourth[i] - power[i] ** 2
                spread[layer.weight] = layer.scale**4 * _product(squares**2, varied)
                spread[layer.bias] = layer.bias_scale**4 * jnp.sum(varied, 0)
        return {s: total[s] for s in self.sites}, {s: spread[s] for s in self.sites} if drawn else {}

    # -- eigenmodes ---------------------------------------------------------------------------------------
    def spectrum(self, arrays: Arrays) -> Any:
        """λ of one draw: a vector (K,), block after block; for a diagonal metric a dict of site to array."""
        held = hold(arrays)
        if self.kind == "diagonal":
            return held["stiffness"]
        return jnp.concatenate([block["values"] for block in held["modes"]])

    def to_modes(self, arrays: Arrays, delta: Params) -> Any:
        """Mode coordinates c = Vᵀ P₀^{1/2} δ of a displacement δ in the metric's coordinates (P₀ = 1 if not whitened).

        A vector (K,); zero for modes under the noise floor. A diagonal metric gives a dict like δ.
        """
        held = hold(arrays)
        scale = held.get("scale")
        if self.kind == "diagonal":
            return {s: delta[s] if scale is None else delta[s] / scale[s] for s in self.sites}
        out = []
        for block, modes in zip(self.blocks, held["modes"], strict=True):
            mine = {s: delta[s] for s in block.sites}
            if block.side == "rows":
                b = self.push(held["params"], held["data"], draw_key(held), mine)
                out.append(jnp.einsum("nr,nrk->k", b, modes["weights"]))
            else:
                if scale is not None:
                    mine = {s: v / scale[s] for s, v in mine.items()}
                out.append(ravel(mine, block.sites) @ modes["vectors"])
        return jnp.concatenate(out)

    def from_modes(self, arrays: Arrays, modes: Any) -> Params:
        """Displacement δ = P₀^{−1/2} V c in the metric's coordinates, from mode coordinates c."""
        held = hold(arrays)
        scale = held.get("scale")
        if self.kind == "diagonal":
            return {s: modes[s] if scale is None else modes[s] * scale[s] for s in self.sites}
        out, start = {}, 0
        for block, basis in zip(self.blocks, held["modes"], strict=True):
            count = basis["values"].shape[0]
            c, start = modes[start:start + count], start + count
            if block.side == "rows":
                cotangent = jnp.einsum("nrk,k->nr", basis["weights"], c)
                part = self.pull(held["params"], held["data"], draw_key(held), cotangent, block.sites)
                out.update({s: v if scale is None else v * scale[s] ** 2 for s, v in part.items()})
            else:
                part = unravel(basis["vectors"] @ c, self.shapes(block.sites))
                out.update({s: v if scale is None else v * scale[s] for s, v in part.items()})
        return {s: out[s] for s in self.sites}

    def shapes(self, sites: tuple[str, ...] | None = None) -> dict[str, tuple[int, ...]]:
        """Shape of each site in the metric's coordinates."""
        out = {}
        for s in sites or self.sites:
            transform = self._transform(s)
            shape = self.bound.site(s).shape
            out[s] = shape if transform is None else tuple(transform.inverse_shape(shape))
        return out


def hold(arrays: Arrays) -> dict[str, Any]:
    """What a metric keeps, one draw's own part and the shared part together."""
    per_draw, shared = arrays
    return {**shared, **(per_draw or {})}


def draw_key(held: dict[str, Any]) -> Any:
    """Key of the drawn labels of this draw; None where no labels are drawn."""
    return jax.random.fold_in(held["key"], held["draw"]) if "key" in held else None


def ravel(tree: Params, sites: tuple[str, ...]) -> jax.Array:
    """Entries of the named sites as one vector, in the order of the names."""
    return jnp.concatenate([jnp.ravel(tree[s]) for s in sites])


def unravel(vector: jax.Array, shapes: dict[str, tuple[int, ...]]) -> Params:
    """The inverse of `ravel`; a leading part of `vector` before the last axis is kept."""
    out, start = {}, 0
    for s, shape in shapes.items():
        size = int(np.prod(shape))
        out[s] = vector[..., start:start + size].reshape(*vector.shape[:-1], *shape)
        start += size
    return out
