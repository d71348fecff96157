"""The Fisher metric of one draw as pure functions: factor rows, products with the factor, eigenmodes.

The metric of n probe inputs is I = BᵀB with factor rows B = SᵀJ/√n, one for each datum and column of S. Nothing here
ever holds I where it is larger than B Bᵀ: eigenvectors are V = BᵀU λ^{−1/2}, so that a product with Vᵀ is a jvp and a
product with V a vjp (theory §1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to

from ..core.checks import num_points
from ..model.bound import BoundModel, Params
from .layers import _product, layer_labels, layers
from .output_fisher import Data, Estimator, Labels, labels, responses
from .prior_moments import is_real, prior_moments


# -- what a metric keeps ---------------------------------------------------------------------------------------
class State(NamedTuple):
    """What a metric keeps, in two parts: of each draw, with leading axis T, and shared by all draws.

    A field is None in the part that does not hold it, and in both where there is nothing of the kind.
    """

    params: Any = None
    """All sites, native coordinates."""
    draw: Any = None
    """Number of the draw, with which the key of its labels is folded."""
    scale: Any = None
    """P₀^{−1/2} of each entry of a whitened metric, in its coordinates."""
    modes: Any = None
    """What the metric's kind needs of λ and its directions."""
    data: Any = None
    """Probe inputs, a `Data`."""
    key: Any = None
    """Of drawn labels."""
    amount: Any = None
    """Data that `Metric.total` counts; None for a metric per datum."""


Arrays = tuple[State | None, State]


def hold(arrays: Arrays) -> State:
    """One draw's own part and the shared part together."""
    own, shared = arrays
    return State(*(b if a is None else a for a, b in zip(own or State(), shared, strict=True)))


def draw_key(held: State) -> Any:
    """Key of the drawn labels of this draw; None where no labels are drawn."""
    return None if held.key is None else jax.random.fold_in(held.key, held.draw)


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
    kind : Kind, optional
        How λ and its directions are kept; not needed for products with the factor.
    """

    bound: BoundModel
    sites: tuple[str, ...]
    how: Estimator
    whiten: bool = False
    coordinates: str = "native"
    layered: bool = False
    batch: int = 1024
    blocks: tuple[Block, ...] = ()
    hierarchical: bool = False
    uniform: bool = True
    kind: Any = None

    @property
    def entrywise(self) -> bool:
        """Whether the metric's directions are the parameters themselves."""
        return self.kind.entrywise

    def size(self, sites: tuple[str, ...] | None = None) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes(sites).values())

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
    def respond(self, coords: Params, params: Params, batch: Data, key: Any) -> jax.Array:
        """Responses (n, R) as a function of the covered sites; their Jacobian is √n B."""
        return responses(self.bound, self.how, {**params, **self.native(coords)}, batch, key)

    def labels(self, coords: Params, params: Params, batch: Data, key: Any) -> Labels:
        """Outputs as a function of the covered sites, and the scores of drawn labels; see `output_fisher.labels`."""
        return labels(self.bound, self.how, {**params, **self.native(coords)}, batch, key)

    def batches(self, data: Data) -> tuple[Data, int]:
        """Probe inputs as (number of batches, batch, ...), numbered, padded with data of weight zero."""
        n = num_points(data.x)
        size = min(self.batch, n)
        pad = -n % size
        full = data.numbered()
        if pad:
            full = jax.tree.map(lambda a: jnp.concatenate([a, jnp.repeat(a[-1:], pad, axis=0)]), full)
            full = full._replace(weight=full.weight.at[n:].set(0))
        return jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), full), n

    def _sum(self, fn: Callable, data: Data) -> Any:
        """Σ of ``fn(batch)`` over batches of probe inputs, over n."""
        batches, n = self.batches(data)
        first = jax.tree.map(lambda a: a[0], batches)
        if jax.tree.leaves(batches)[0].shape[0] == 1:
            total = fn(first)
        else:
            start = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(fn, first))
            total, _ = jax.lax.scan(lambda t, b: (jax.tree.map(jnp.add, t, fn(b)), None), start, batches)
        return jax.tree.map(lambda a: a / n, total)

    def push(self, params: Params, data: Data, key: Any, delta: Params) -> jax.Array:
        """B δ, shape (n, R): a jvp."""
        coords = self.coords(params)
        free = {s: coords[s] for s in delta}

        def one(batch):
            return jax.jvp(lambda c: self.respond({**coords, **c}, params, batch, key), (free,), (delta,))[1]

        batches, n = self.batches(data)
        out = jax.lax.map(one, batches)
        return out.reshape(-1, out.shape[-1])[:n] / np.sqrt(n)

    def pull(self, params: Params, data: Data, key: Any, cotangent: jax.Array, sites: tuple[str, ...]) -> Params:
        """Bᵀ c for c of shape (n, R), restricted to `sites`: a vjp."""
        coords, n = self.coords(params), cotangent.shape[0]
        free = {s: coords[s] for s in sites}

        def one(batch):
            return jax.vjp(lambda f: self.respond({**coords, **f}, params, batch, key), free)[1](batch.cotangent)[0]

        total = self._sum(one, data._replace(cotangent=cotangent))
        return jax.tree.map(lambda a: a * np.sqrt(n), total)

    def rows(self, params: Params, batch: Data, key: Any, sites: tuple[str, ...]) -> Params:
        """√n B of one batch: site to (n, R, *shape), by per-example gradients. Holds them all."""
        return self._rows(params, batch, sites, lambda coords, datum: self.respond(coords, params, datum, key))[0]

    def _rows(self, params: Params, batch: Data, sites: tuple[str, ...], outputs: Callable, has_aux: bool = False
              ) -> tuple[Params, Any]:
        """Gradients of each datum's outputs (R,), site to (n, R, *shape), and what else `outputs` gives."""
        coords = self.coords(params)
        free = {s: coords[s] for s in sites}

        def one(datum):
            def fn(f):
                found = outputs({**coords, **f}, datum)
                return (found[0][0], found[1]) if has_aux else found[0]

            r, pull, *more = jax.vjp(fn, free, has_aux=has_aux)
            return jax.vmap(lambda c: pull(c)[0])(jnp.eye(r.size, dtype=r.dtype)), more

        return jax.vmap(one)(jax.tree.map(lambda a: a[:, None], batch))

    def layers(self, params: Params, batch: Data, key: Any):
        """The dense layers of one batch; see `layers`."""
        return layers(self.bound, self.how, self.sites, params, batch, key)

    # -- the diagonal -------------------------------------------------------------------------------------
    def diagonal(self, params: Params, data: Data, key: Any = None) -> tuple[Params, Params | None]:
        """Diagonal of the metric (not whitened), and the variance of its Monte-Carlo estimate.

        With per-datum squares g_s² of the S drawn labels, the estimate is (1/n) Σ_i mean_s g² and its variance, given
        the probe inputs, (1/n²) Σ_i [mean_s g⁴ − (mean_s g²)²]/(S − 1).
        """
        if self.how.name != "montecarlo":
            return self._sum(lambda batch: self._squares(params, batch, key), data), None
        total, spread = self._sum(lambda batch: self._drawn_powers(params, batch, key), data)
        n, count = num_points(data.x), self.how.num_samples
        unbiased = count - 1 if count > 1 else np.nan
        return total, jax.tree.map(lambda v: jnp.maximum(v, 0) / (n * unbiased), spread)

    def _squares(self, params: Params, batch: Data, key: Any) -> Params:
        """Σ over data of Σ_r g², g the rows of √n B."""
        if not self.layered:
            return jax.tree.map(lambda r: jnp.sum(r**2, (0, 1)), self.rows(params, batch, key, self.sites))
        found, cotangents, rank = self.layers(params, batch, key)
        power = [d**2 for d in cotangents(0)]
        if rank > 1:  # one response after the other: their cotangents together fall out of the cache
            power, _ = jax.lax.scan(lambda sums, r: (jax.tree.map(lambda p, d: p + d**2, sums, cotangents(r)), None),
                                    power, jnp.arange(1, rank))
        total: dict[Any, jax.Array] = {}
        for layer, p in zip(found, power, strict=True):
            total[layer.weight] = layer.scale**2 * _product(layer.inputs**2, p)
            total[layer.bias] = layer.bias_scale**2 * jnp.sum(p, 0)
        return {s: total[s] for s in self.sites}

    def _drawn_powers(self, params: Params, batch: Data, key: Any) -> tuple[Params, Params]:
        """Σ over data of Σ_s g², and of S Σ_s g⁴ − (Σ_s g²)², g_s the gradient of drawn label s over √S.

        One gradient an output serves all labels, g_s = Σ_k score_sk ∂η_k, so that memory does not grow with S²; the
        labels are taken one after the other.
        """
        if self.layered:
            found, cotangents, outputs, scores = layer_labels(self.bound, self.how, self.sites, params, batch, key)
            gradients = jax.lax.map(cotangents, jnp.arange(outputs))  # a layer: (K, n, fan_out)
            gradients = [jnp.swapaxes(g, 0, 1) for g in gradients]
        else:
            rows, (scores,) = self._rows(params, batch, self.sites, lambda c, d: self.labels(c, params, d, key), True)
            scores, gradients = scores[:, 0], rows

        def add(sums, score):  # of one label: (n, K)
            squares = jax.tree.map(lambda g: jnp.einsum("nk,nk...->n...", score, g) ** 2, gradients)
            return jax.tree.map(lambda s, q: (s[0] + q, s[1] + q**2), sums, squares,
                                is_leaf=lambda leaf: isinstance(leaf, tuple)), None

        start = jax.tree.map(lambda g: (jnp.zeros_like(g[:, 0]), jnp.zeros_like(g[:, 0])), gradients)
        sums, _ = jax.lax.scan(add, start, jnp.swapaxes(scores, 0, 1))
        count = self.how.num_samples
        if not self.layered:
            pairs = {s: (jnp.sum(q, 0), jnp.sum(count * f - q**2, 0)) for s, (q, f) in sums.items()}
            return {s: p[0] for s, p in pairs.items()}, {s: p[1] for s, p in pairs.items()}
        total: dict[Any, jax.Array] = {}
        spread: dict[Any, jax.Array] = {}
        for layer, (power, fourth) in zip(found, sums, strict=True):
            squares, varied = layer.inputs**2, count * fourth - power**2
            total[layer.weight] = layer.scale**2 * _product(squares, power)
            total[layer.bias] = layer.bias_scale**2 * jnp.sum(power, 0)
            spread[layer.weight] = layer.scale**4 * _product(squares**2, varied)
            spread[layer.bias] = layer.bias_scale**4 * jnp.sum(varied, 0)
        return {s: total[s] for s in self.sites}, {s: spread[s] for s in self.sites}

    def drawn(self, params: Params, data: Data, key: Any, delta: Params) -> jax.Array:
        """Derivative of each drawn label's log-probability over √(S n) along δ, shape (n, S)."""
        coords = self.coords(params)
        free = {s: coords[s] for s in delta}

        def one(batch):
            def fn(c):
                return self.labels({**coords, **c}, params, batch, key)
            _, moved, scores = jax.jvp(fn, (free,), (delta,), has_aux=True)
            return jnp.einsum("nsk,nk->ns", scores, moved)

        batches, n = self.batches(data)
        out = jax.lax.map(one, batches)
        return out.reshape(-1, out.shape[-1])[:n] / np.sqrt(n)

    # -- directions ---------------------------------------------------------------------------------------
    def spectrum(self, arrays: Arrays) -> Any:
        """λ of one draw: a vector (K,); for a diagonal metric a dict of site to array."""
        return self.kind.spectrum(self, hold(arrays))

    def to_modes(self, arrays: Arrays, delta: Params) -> Any:
        """Mode coordinates c = Vᵀ P₀^{1/2} δ of a displacement δ in the metric's coordinates (P₀ = 1 if not whitened).

        A vector (K,); zero for modes under the noise floor. A diagonal metric gives a dict like δ.
        """
        return self.kind.to_modes(self, hold(arrays), {s: delta[s] for s in self.sites})

    def from_modes(self, arrays: Arrays, modes: Any) -> Params:
        """Displacement δ = P₀^{−1/2} V c in the metric's coordinates, from mode coordinates c."""
        found = self.kind.from_modes(self, hold(arrays), modes)
        return {s: found[s] for s in self.sites}

    def shapes(self, sites: tuple[str, ...] | None = None) -> dict[str, tuple[int, ...]]:
        """Shape of each site in the metric's coordinates."""
        out = {}
        for s in sites or self.sites:
            transform = self._transform(s)
            shape = self.bound.site(s).shape
            out[s] = shape if transform is None else tuple(transform.inverse_shape(shape))
        return out


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
