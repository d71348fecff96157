"""Kinds of metric: how λ and its directions are found, kept and multiplied with. One class each, found by name here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.batching import default_chunk, map_draws
from ..core.checks import check_choice, num_points
from ..core.static import Static
from ..model.bound import Params
from ..posterior import work
from . import eigenmodes
from .eigenmodes import Modes
from .geometry import Geometry, State, draw_key, hold, ravel, unravel

__all__ = ["Block", "Diagonal", "Eigenmodes", "Found", "Full", "Kind", "Lowrank"]


class Found(NamedTuple):
    """What a kind finds of a metric at T draws, T the leading axis of everything."""

    modes: Any
    """What `spectrum`, `to_modes` and `from_modes` need."""
    good: Any
    """Whether all is finite, (T,)."""
    eigenvalues: Any = None
    noise_floor: Any = None
    sem: Any = None
    residuals: Any = None


class Kind(Static):
    """A kind of metric. Subclass it and pass an instance as ``kind=`` of `fisher`.

    `find` is called once, on the host; the three others inside compiled code with the `State` of one draw, in which
    ``held.modes`` is that draw's part of what `find` gave, ``held.scale`` the P₀^{−1/2} of a whitened metric.

    Attributes
    ----------
    name : str
    entrywise : bool
        Whether directions are the parameters themselves; then mode coordinates and λ are dicts of site to array.
    """

    name = "given"
    entrywise = False

    def plan(self, geometry: Geometry, rows: int) -> Geometry:
        """The geometry with what is static about this kind, `rows` being those of the factor B, n · R."""
        return geometry

    def find(self, geometry: Geometry, draws: State, shared: State, show: bool) -> Found:
        """λ and its directions at every draw of `draws`, leading axis T. λ is per datum, whitened where asked."""
        raise NotImplementedError

    def spectrum(self, geometry: Geometry, held: State) -> Any:
        """λ of one draw, (K,)."""
        raise NotImplementedError

    def to_modes(self, geometry: Geometry, held: State, delta: Params) -> Any:
        """Mode coordinates c = Vᵀ P₀^{1/2} δ, (K,)."""
        raise NotImplementedError

    def from_modes(self, geometry: Geometry, held: State, modes: Any) -> Params:
        """Displacement δ = P₀^{−1/2} V c."""
        raise NotImplementedError

    def scaled(self, modes: Any, factor: float) -> Any:
        """What is kept, with λ times `factor`."""
        raise NotImplementedError

    def restricted(self, modes: Any, site: str) -> Any:
        """What is kept of one site alone where that can be read off; None where it has to be found again."""
        return None


# -- the diagonal -----------------------------------------------------------------------------------------------
def _finite(tree: Any) -> jax.Array:
    """Whether every entry is a finite number."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]).all()


def _finite_one(params: Params) -> jax.Array:
    return _finite(params)


def diagonal_one(geometry: Geometry, own: State, shared: State) -> tuple[Params, Params | None, jax.Array]:
    """Diagonal at one draw, whitened where asked, the variance of its estimate, and whether all is finite."""
    held = hold((own, shared))
    total, spread = geometry.diagonal(held.params, held.data, draw_key(held))
    if held.scale is not None:
        total = {s: v * held.scale[s] ** 2 for s, v in total.items()}
        spread = spread and {s: v * held.scale[s] ** 4 for s, v in spread.items()}
    return total, spread, _finite([held.params, total])


class Diagonal(Kind):
    """λ of each parameter, exactly."""

    name = "diagonal"
    entrywise = True

    def find(self, geometry, draws, shared, show):
        chunk = default_chunk(work(geometry.bound, shared.data.x)) if geometry.layered else 1
        found, spread, good = map_draws(diagonal_one, (geometry,), draws, (shared,), desc="fisher", show=show,
                                        chunk=chunk)
        return Found(found, good, sem=None if spread is None else jax.tree.map(jnp.sqrt, spread))

    def spectrum(self, geometry, held):
        return held.modes

    def to_modes(self, geometry, held, delta):
        return delta if held.scale is None else {s: v / held.scale[s] for s, v in delta.items()}

    def from_modes(self, geometry, held, modes):
        return modes if held.scale is None else {s: v * held.scale[s] for s, v in modes.items()}

    def scaled(self, modes, factor):
        return {s: v * factor for s, v in modes.items()}

    def restricted(self, modes, site):
        return {site: modes[site]}


# -- eigenmodes -------------------------------------------------------------------------------------------------
class Eigenmodes(Kind):
    """Eigenmodes of one or several blocks of sites, kept on the side of the data or of the parameters."""

    name = "eigenmodes"

    def groups(self, sites: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """Sites that share modes."""
        return (sites,)

    def shown(self, geometry: Geometry, parts: list) -> Any:
        """One array a block as the metric shows them."""
        return parts[0]

    def blocks(self, geometry: Geometry, draws: State, shared: State, responses: int, show: bool) -> list[Modes]:
        """Modes of each of the geometry's blocks, leading axis T."""
        return eigenmodes.exact(geometry, draws, shared, responses, show)

    def plan(self, geometry, rows):
        return replace(geometry, blocks=eigenmodes.plan(geometry, rows, self.groups(geometry.sites)))

    def find(self, geometry, draws, shared, show):
        one = jax.tree.map(lambda a: a[0], draws.params)
        responses = eigenmodes.num_responses(geometry, one, shared.data, shared.key)
        found = self.blocks(geometry, draws, shared, responses, show)
        dtype = jnp.result_type(*draws.params.values())
        modes = tuple(Modes(jnp.asarray(np.where(m.values > m.floor[:, None], m.values, 0.0), dtype),
                            weights=m.weights, vectors=m.vectors) for m in found)
        good = np.all([np.isfinite(m.values).all(axis=1) for m in found], axis=0)
        good &= np.asarray(map_draws(_finite_one, (), draws.params))
        sem = None
        if geometry.how.name == "montecarlo":
            spread = map_draws(eigenmodes.mode_variance, (geometry,), draws._replace(modes=modes), (shared,))
            ends = np.cumsum([m.values.shape[1] for m in found])[:-1]
            sem = self.shown(geometry, np.split(np.sqrt(np.asarray(spread, float)), ends, axis=1))
        residuals = [m.residual for m in found]
        return Found(modes, good, self.shown(geometry, [m.values for m in found]),
                     self.shown(geometry, [m.floor for m in found]), sem,
                     None if residuals[0] is None else self.shown(geometry, residuals))

    def spectrum(self, geometry, held):
        return jnp.concatenate([block.values for block in held.modes])

    def to_modes(self, geometry, held, delta):
        out = []
        for block, modes in zip(geometry.blocks, held.modes, strict=True):
            mine = {s: delta[s] for s in block.sites}
            if modes.weights is not None:
                b = geometry.push(held.params, held.data, draw_key(held), mine)
                out.append(jnp.einsum("nr,nrk->k", b, modes.weights))
            else:
                if held.scale is not None:
                    mine = {s: v / held.scale[s] for s, v in mine.items()}
                out.append(ravel(mine, block.sites) @ modes.vectors)
        return jnp.concatenate(out)

    def from_modes(self, geometry, held, modes):
        out, start, scale = {}, 0, held.scale
        for block, basis in zip(geometry.blocks, held.modes, strict=True):
            count = basis.values.shape[0]
            c, start = modes[start:start + count], start + count
            if basis.weights is not None:
                cotangent = jnp.einsum("nrk,k->nr", basis.weights, c)
                part = geometry.pull(held.params, held.data, draw_key(held), cotangent, block.sites)
                out.update({s: v if scale is None else v * scale[s] ** 2 for s, v in part.items()})
            else:
                part = unravel(basis.vectors @ c, geometry.shapes(block.sites))
                out.update({s: v if scale is None else v * scale[s] for s, v in part.items()})
        return out

    def scaled(self, modes, factor):
        return tuple(m._replace(values=m.values * factor) for m in modes)


class Full(Eigenmodes):
    """All eigenmodes, exactly."""

    name = "full"


class Block(Eigenmodes):
    """All eigenmodes of each site by itself."""

    name = "block"

    def groups(self, sites):
        return tuple((s,) for s in sites)

    def shown(self, geometry, parts):
        return dict(zip((b.sites[0] for b in geometry.blocks), parts, strict=True))


@dataclass(frozen=True)
class Lowrank(Eigenmodes):
    """The leading `rank` eigenmodes, by Lanczos."""

    rank: int = 20
    name = "lowrank"

    def blocks(self, geometry, draws, shared, responses, show):
        return eigenmodes.leading(geometry, draws, shared, responses, self.rank, show)


KINDS: dict[str, Callable[[int], Kind]] = {
    "diagonal": lambda rank: Diagonal(), "full": lambda rank: Full(), "block": lambda rank: Block(),
    "lowrank": Lowrank,
}


def as_kind(kind: Any, rank: int) -> Kind:
    """A `Kind` from its name, or from itself."""
    return kind if isinstance(kind, Kind) else KINDS[check_choice(kind, "kind", KINDS)](rank)


def num_rows(geometry: Geometry, params: Params, shared: State) -> int:
    """Rows of the factor B, n · R."""
    return num_points(shared.data.x) * eigenmodes.num_responses(geometry, params, shared.data, shared.key)
