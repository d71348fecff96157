"""A Fisher metric as a result: numbers, products with it, eigenmodes, a table by name. `fisher` makes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from ..core.batching import map_draws
from ..core.checks import check_count, check_positive
from ..model.bound import BoundModel, Params
from .geometry import Geometry, State, hold, ravel, unravel
from .kinds import Diagonal


def prior_one(geometry: Geometry, params: Params, x: Any) -> tuple[Params, Params]:
    """Prior means and standard deviations, site by site, given one draw's hyperparameters."""
    return geometry.prior(params, x)


prior_shared = jax.jit(prior_one, static_argnums=0)


@dataclass(frozen=True, repr=False)
class Metric:
    """A Fisher metric at every draw, or one shared by all; make one with `fisher`.

    Attributes
    ----------
    geometry : Geometry
        What is static, and the pure functions `spectrum`, `to_modes`, `from_modes` for use in compiled code.
    x : array or pytree
        The probe inputs.
    at : str
        ``"draw"``, ``"mean"``, ``"map"`` or ``"given"``.
    lead : (int, int) or None
        (chain, draw) of a metric at every draw; None for a shared one.
    eigenvalues : array (chain, draw, K) or (K,), or None
        λ in descending order, per datum, in float64 (NumPy); for ``kind="block"`` a dict of site to such arrays. They
        include those under `noise_floor`, which no mode of the flow uses. None for a diagonal metric.
    noise_floor : array (chain, draw) or scalar, or None
        Eigenvalues that rounding may have made; for ``kind="block"`` a dict.
    sem : dict or array, or None
        Standard error of the Monte-Carlo estimate, shaped like `stiffness` (diagonal) or `eigenvalues`: that of the
        drawn labels, at these probe inputs. To first order for eigenvalues; NaN for one label a datum.
    residuals : array like `eigenvalues`, or None
        ‖I v − λ v‖ of each Lanczos pair (``kind="lowrank"``), NaN under the noise floor.

    Notes
    -----
    λ is per datum: the information of a data set is |D| times as large (71), see `total`. A whitened λ̃ = λσ₀², the
    eigenvalues of P₀^{−1/2} I P₀^{−1/2}, is in units of 1/datum too, and a cutoff on it is one over an amount of data.
    """

    geometry: Geometry
    x: Any = field(repr=False)
    at: str = "draw"
    lead: tuple[int, int] | None = None
    eigenvalues: Any = field(default=None, repr=False)
    noise_floor: Any = field(default=None, repr=False)
    sem: Any = field(default=None, repr=False)
    residuals: Any = field(default=None, repr=False)
    own: State | None = field(default=None, repr=False)
    shared: State = field(default=State(), repr=False)

    # -- what it is ---------------------------------------------------------------------------------------
    @property
    def kind(self) -> str:
        """Name of its kind."""
        return self.geometry.kind.name

    @property
    def estimator(self) -> str:
        return self.geometry.how.name

    @property
    def whiten(self) -> bool:
        return self.geometry.whiten

    @property
    def coordinates(self) -> str:
        return self.geometry.coordinates

    @property
    def sites(self) -> tuple[str, ...]:
        return self.geometry.sites

    @property
    def bound(self) -> BoundModel:
        return self.geometry.bound

    @property
    def per_draw(self) -> bool:
        """Whether each draw has its own metric."""
        return self.lead is not None

    def __repr__(self) -> str:
        where = f"{self.lead[0]} × {self.lead[1]} draws" if self.lead else f"at={self.at!r}, for all draws"
        said = (f"Metric(kind={self.kind!r}, estimator={self.estimator!r}, whiten={self.whiten}; "
                f"{', '.join(self.sites)}: {self.geometry.size()} parameters; {where}")
        values = self.values()
        values = values[np.isfinite(values)]
        if values.size:
            unit = "per datum" if self.amount == 1 else f"for {self.amount:g} data"
            said += f"; stiffness {values[0]:.3g} to {values[-1]:.3g} {unit}, median {np.median(values):.3g}"
        return f"{said})"

    def arrays(self) -> tuple[State | None, State]:
        """(own, shared): what the functions of `geometry` need, `own` with leading axis T = chain · draw.

        Give ``(slice of own, shared)`` to ``geometry.spectrum``, ``to_modes`` and ``from_modes`` inside compiled code;
        `own` is None for a shared metric.
        """
        return self.own, self.shared

    def _at(self, chain: int, draw: int) -> tuple[State | None, State]:
        """`arrays` of one draw."""
        if self.lead is None:
            return None, self.shared
        if not (-self.lead[0] <= chain < self.lead[0] and -self.lead[1] <= draw < self.lead[1]):
            raise IndexError(f"there is no chain {chain}, draw {draw}: the metric has (chain, draw) = {self.lead}")
        index = (chain % self.lead[0]) * self.lead[1] + draw % self.lead[1]
        return jax.tree.map(lambda a: a[index], self.own), self.shared

    def _shaped(self, tree: Any) -> Any:
        """Leading axis T to (chain, draw), where there is one."""
        lead = self.lead
        return tree if lead is None else jax.tree.map(lambda a: a.reshape(*lead, *a.shape[1:]), tree)

    @property
    def _held(self) -> State:
        return hold(self.arrays())

    @property
    def amount(self) -> float:
        """Data that `total` counts; 1 for a metric per datum."""
        return 1.0 if self.shared.amount is None else float(self.shared.amount)

    def draws(self) -> Params:
        """Parameters at every draw, leading axis T, or at the shared point."""
        return self._held.params

    def first_params(self) -> Params:
        """Parameters at the first draw, or at the shared point."""
        return jax.tree.map(lambda a: a[0], self.draws()) if self.per_draw else self.draws()

    # -- numbers ------------------------------------------------------------------------------------------
    @cached_property
    def stiffness(self) -> dict[str, jax.Array]:
        """Diagonal λ of each parameter, per datum: (chain, draw, *site shape), or (*site shape) when shared.

        For the other kinds it is computed when first asked for (exactly, whatever the rank).
        """
        if self.geometry.entrywise:
            return self._shaped(self.geometry.kind.spectrum(self.geometry, self._held))
        diagonal = replace(self.geometry, kind=Diagonal(), blocks=())
        own, shared = self.lifted()
        found = diagonal.kind.find(diagonal, own, shared, False).modes
        found = jax.tree.map(lambda a: a * self.amount, found)
        return self._shaped(found if self.per_draw else jax.tree.map(lambda a: a[0], found))

    def lifted(self) -> tuple[State, State]:
        """`arrays` without modes and per datum, a shared metric as that of one draw, leading axis 1."""
        if self.own is not None:
            return self.own._replace(modes=None), self.shared._replace(amount=None)
        moved = State(self.shared.params, self.shared.draw)
        return (jax.tree.map(lambda a: jnp.asarray(a)[None], moved),
                self.shared._replace(params=None, draw=None, modes=None, amount=None))

    def flat_stiffness(self) -> dict[str, jax.Array]:
        """Stiffness with one leading draw axis (chain · draw), or as it is when shared."""
        if not self.per_draw:
            return self.stiffness
        return {s: v.reshape(-1, *v.shape[2:]) for s, v in self.stiffness.items()}

    def values(self) -> np.ndarray:
        """All stiffnesses as one increasing vector: of parameters (diagonal), or of modes, zero under the floor."""
        spectrum = self.geometry.kind.spectrum
        found = jax.vmap(lambda own: spectrum(self.geometry, hold((own, self.shared))))(self.own) \
            if self.per_draw else spectrum(self.geometry, self.shared)
        return np.sort(np.concatenate([np.ravel(np.asarray(v)) for v in jax.tree.leaves(found)]))

    @property
    def below_floor(self) -> Any:
        """Number of eigenvalues under the noise floor, (chain, draw) or a scalar; for ``kind="block"`` a dict."""
        if self.eigenvalues is None:
            return None
        return jax.tree.map(lambda v, f: np.sum(v <= f[..., None], axis=-1), self.eigenvalues, self.noise_floor)

    @property
    def prior_mean(self) -> dict[str, jax.Array]:
        """Prior mean m_p of each site in the metric's coordinates, shaped like `stiffness` where the prior is
        hierarchical and the metric is per draw, else (*site shape)."""
        return self._prior[0]

    @property
    def prior_scale(self) -> dict[str, jax.Array]:
        """Prior standard deviation of each entry, the diagonal of P₀^{−1/2}; shaped like `prior_mean`."""
        return self._prior[1]

    @cached_property
    def _prior(self) -> tuple[Params, Params]:
        for s in self.sites:
            if self.bound.site(s).improper:
                raise ValueError(f"site {s!r} has an improper prior, which has no mean and no scale")
        params = self.draws()
        if not (self.per_draw and self.geometry.hierarchical):
            one = jax.tree.map(lambda a: a[0], params) if self.per_draw else params
            return prior_shared(self.geometry, one, self.x)
        return self._shaped(map_draws(prior_one, (self.geometry,), params, (self.x,)))

    def total(self, num_data: float) -> Metric:
        """The metric of `num_data` data, |D| · I (71): λ in absolute units instead of per datum."""
        num_data = check_positive(num_data, "num_data")

        def times(tree):
            return None if tree is None else jax.tree.map(lambda a: a * num_data, tree)

        def scaled(held):
            if held is None or held.modes is None:
                return held
            return held._replace(modes=self.geometry.kind.scaled(held.modes, num_data))

        return replace(self, eigenvalues=times(self.eigenvalues), noise_floor=times(self.noise_floor),
                       sem=times(self.sem), residuals=times(self.residuals), own=scaled(self.own),
                       shared=scaled(self.shared)._replace(amount=num_data * self.amount))

    # -- products -----------------------------------------------------------------------------------------
    def to_modes(self, delta: Params, chain: int = 0, draw: int = 0) -> Any:
        """Coordinates c = Vᵀ P₀^{1/2} δ of a displacement in the eigenmodes of one draw, (K,); P₀ = 1 if not whitened.

        `delta` holds displacements of the covered sites in the metric's coordinates; sites left out do not move. A
        diagonal metric gives a dict like `delta`.
        """
        return self.geometry.to_modes(self._at(chain, draw), self._full(delta))

    def from_modes(self, modes: Any, chain: int = 0, draw: int = 0) -> Params:
        """Displacement δ = P₀^{−1/2} V c, a dict over the covered sites, from mode coordinates c, (K,)."""
        return self.geometry.from_modes(self._at(chain, draw), modes)

    def quadratic(self, delta: Params, chain: int = 0, draw: int = 0) -> jax.Array:
        """δᵀ I δ of one draw: twice the mean KL between the outputs at θ and θ + δ, to third order (52); in nats.

        δ is not whitened, whatever the metric is.
        """
        modes, values = self.to_modes(delta, chain, draw), self.geometry.spectrum(self._at(chain, draw))
        terms = jax.tree.map(lambda c, v: jnp.sum(v * c**2), modes, values)
        return sum(jax.tree.leaves(terms), start=jnp.zeros(()))

    def matvec(self, vector: Params, chain: int = 0, draw: int = 0) -> Params:
        """Product of one draw's metric (the whitened one where it is whitened) with a dict of arrays."""
        arrays = self._at(chain, draw)
        scale = hold(arrays).scale
        vector = self._full(vector)
        if scale is not None:
            vector = {s: v * scale[s] for s, v in vector.items()}
        modes, values = self.geometry.to_modes(arrays, vector), self.geometry.spectrum(arrays)
        out = self.geometry.from_modes(arrays, jax.tree.map(jnp.multiply, values, modes))
        return out if scale is None else {s: v / scale[s] for s, v in out.items()}

    def basis(self, chain: int = 0, draw: int = 0) -> jax.Array:
        """Orthonormal eigenbasis V of one draw, (P, K): parameters in the order of `sites`, modes as `eigenvalues`.

        Columns of modes under the noise floor are zero. Built when asked for: P × K numbers. In whitened coordinates
        P₀^{1/2}θ where the metric is whitened. Use `ravel` and `unravel` to go between vectors and dicts.
        """
        if self.geometry.entrywise:
            raise ValueError("a diagonal metric has no eigenbasis but the parameters themselves; use kind='full', "
                             "'block' or 'lowrank'")
        arrays = self._at(chain, draw)
        scale, count = hold(arrays).scale, self.geometry.spectrum(arrays).shape[0]

        def column(c):
            out = self.geometry.from_modes(arrays, c)
            return ravel(out if scale is None else {s: v / scale[s] for s, v in out.items()}, self.sites)

        return jax.lax.map(column, jnp.eye(count, dtype=jnp.result_type(*self.draws().values()))).T

    def ravel(self, tree: Params) -> jax.Array:
        """A dict over the covered sites as one vector (P,), sites left out being zero."""
        return ravel(self._full(tree), self.sites)

    def unravel(self, vector: jax.Array) -> Params:
        """A vector (P,) as a dict over the covered sites."""
        return unravel(jnp.asarray(vector), self.geometry.shapes())

    def _full(self, tree: Params) -> Params:
        shapes = self.geometry.shapes()
        if not isinstance(tree, Mapping):
            raise TypeError(f"expected a dict of site to array, got {type(tree).__name__}; unravel makes one")
        for s, v in tree.items():
            if s not in shapes:
                raise ValueError(f"the metric does not cover site {s!r}; it covers {', '.join(self.sites)}")
            if jnp.shape(v) != shapes[s]:
                raise ValueError(f"site {s!r} has shape {jnp.shape(v)}, the metric expects {shapes[s]} "
                                 f"({self.coordinates} coordinates, one draw)")
        dtype = jnp.result_type(*self.draws().values())
        return {s: jnp.asarray(tree[s], dtype) if s in tree else jnp.zeros(shapes[s], dtype) for s in self.sites}

    # -- looking at it ------------------------------------------------------------------------------------
    def table(self, num: int = 10) -> Ranking:
        """The stiffest and the sloppiest parameters by name, by their stiffness averaged over draws."""
        num = check_count(num, "num")
        names, mean, spread = [], [], []
        for s, value in self.stiffness.items():
            draws = np.asarray(value, float)
            shape = draws.shape[2:] if self.per_draw else draws.shape
            draws = draws.reshape(-1, int(np.prod(shape)))
            names += [s + (f"[{', '.join(map(str, i))}]" if i else "") for i in np.ndindex(*shape)]
            mean.append(draws.mean(0))
            spread.append(draws.std(0))
        means, spreads = np.concatenate(mean), np.concatenate(spread)
        order = np.argsort(-means, kind="stable")
        rows = [Row(rank + 1, names[i], float(means[i]), float(spreads[i])) for rank, i in enumerate(order)]
        return Ranking(tuple(rows if len(rows) <= 2 * num else rows[:num] + rows[-num:]), len(rows), self.whiten)


@dataclass(frozen=True)
class Row:
    """One parameter: rank (1 the stiffest), name, stiffness per datum, its standard deviation over draws."""

    rank: int
    name: str
    stiffness: float
    spread: float


@dataclass(frozen=True)
class Ranking:
    """Stiffest and sloppiest parameters, stiffest first; ``str`` of it is a table."""

    rows: tuple[Row, ...]
    size: int
    whiten: bool = False

    def __iter__(self):
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        width = max([len(r.name) for r in self.rows] + [9])
        head = "λσ₀²" if self.whiten else "λ"
        lines = [f"{'rank':>7}  {'parameter':<{width}}  {head + ' per datum':>15}  {'sd over draws':>13}"]
        for before, row in zip((None, *self.rows), self.rows, strict=False):
            if before is not None and row.rank != before.rank + 1:
                lines.append(f"{'...':>7}  ({row.rank - before.rank - 1} more)")
            lines.append(f"{row.rank:>7}  {row.name:<{width}}  {row.stiffness:>15.4e}  {row.spread:>13.1e}")
        return "\n".join(lines)


# -- how the directions are spread over decades of stiffness ----------------------------------------------------
QUANTILES = (0.05, 0.5, 0.95)


def spectrum_table(metric: Any, num: int | None = 300) -> xr.Dataset:
    """Stiffness of a metric's directions in descending order, as quantiles over draws.

    Parameters
    ----------
    metric : Metric
        Diagonal: directions are parameters, grouped by site. Other kinds: eigenmodes, by site for ``kind="block"``.
    num : int, optional
        Ranks kept of a group, evenly spaced; None for all.

    Returns
    -------
    xarray.Dataset
        ``stiffness`` (group, rank, quantile), λ per datum, 0 at or under the noise floor; ``share`` (group, rank), the
        share of directions at least as stiff; NaN beyond a group's ranks. ``num_directions``, ``zero_fraction``,
        ``num_parameters`` (group): parameters beyond the number of modes are directions of stiffness zero (of a
        low-rank metric, unknown) that the others leave out. Attributes ``kind``, ``at``, ``whitened``, ``num_draws``.
    """
    if metric.geometry.entrywise:
        groups = metric.stiffness
    else:
        groups = metric.eigenvalues if isinstance(metric.eigenvalues, dict) else {"eigenvalues": metric.eigenvalues}
    sizes = {s: int(np.prod(shape)) for s, shape in metric.geometry.shapes().items()}
    draws = int(np.prod(metric.lead)) if metric.per_draw else 1
    found = []
    for label, values in groups.items():
        table = -np.sort(-np.asarray(values, float).reshape(draws, -1), axis=1)
        if not metric.geometry.entrywise:
            floor = metric.noise_floor[label] if isinstance(metric.noise_floor, dict) else metric.noise_floor
            table = np.where(table > np.asarray(floor, float).reshape(draws, -1), table, 0.0)
        size = table.shape[1]
        keep = np.arange(size) if num is None or size <= num else np.linspace(0, size - 1, num).round().astype(int)
        found.append((size, float(np.mean(table <= 0)), (keep + 1) / size,
                      np.quantile(table[:, keep], QUANTILES, axis=0).T))
    most = max(len(share) for _, _, share, _ in found)

    def padded(array: np.ndarray) -> np.ndarray:
        return np.pad(array, [(0, most - len(array)), *[(0, 0)] * (array.ndim - 1)], constant_values=np.nan)

    return xr.Dataset(
        {"stiffness": (("group", "rank", "quantile"), np.stack([padded(f[3]) for f in found])),
         "share": (("group", "rank"), np.stack([padded(f[2]) for f in found])),
         "num_directions": ("group", [f[0] for f in found]), "zero_fraction": ("group", [f[1] for f in found]),
         "num_parameters": ("group", [sizes.get(label, sum(sizes.values())) for label in groups])},
        {"group": [str(label) for label in groups], "quantile": list(QUANTILES)},
        {"kind": metric.kind, "at": metric.at, "whitened": int(bool(metric.whiten)), "num_draws": draws},
    )
