"""The tempered flow: learning undone exactly, for any likelihood and any prior (theory §9)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr

from ..core.batching import default_chunk, map_draws, progress
from ..core.checks import check_count, check_data, check_key, check_positive, num_points
from ..core.keys import name_key
from ..model.bound import BoundModel, bind
from ..posterior import Posterior, work
from .critical_scale import CriticalScale
from .cutoffs import check_cutoffs
from .sampled import SampledFlow, check_held, prior_draws
from .tempering import Coordinates, Level, Options, Particle, Walk, effective, start_one
from .thermodynamics import Path, bridge

__all__ = ["TemperedFlow", "renormalize_tempered"]

STARTS = ("posterior", "prior")
OFF = 5.0  # standard errors by which moves may change the log-likelihood of what should be posterior draws
HELD_MOVES = 6  # where each particle is a system of its own
GROUPS = 40  # blocks of draws that follow each other, over all chains


@dataclass(frozen=True, repr=False)
class TemperedFlow(SampledFlow):
    """π_Λ ∝ π₀ L^t with t = min(1, 1/(nΛ)), and its thermodynamics; made by `renormalize_tempered`.

    Attributes
    ----------
    y : array
        Targets.
    start : str
        Which end the particles came from.
    options : Options
    num_data : int
        n.
    path : Path
        Every level of the walk, those between the cutoffs too.
    """

    y: Any = field(default=None, repr=False)
    start: str = "posterior"
    options: Options | None = field(default=None, repr=False)
    num_data: int = 1
    path: Path | None = field(default=None, repr=False)

    @property
    def independent(self) -> bool:
        """Whether the draws at one Λ are: those of the posterior, none of them resampled."""
        return super().independent and all((one.ancestors == np.arange(len(one.ancestors))).all()
                                           for one in (self.path.levels if self.path else ()))

    @property
    def power(self) -> np.ndarray:
        """Power t of the likelihood at each cutoff, (cutoff,)."""
        return powers(self.cutoffs, self.num_data)

    def _of_cutoff(self, name: str) -> np.ndarray:
        return self.diagnostics[name].values

    @property
    def log_evidence(self) -> np.ndarray:
        """log ∫ π₀ L^t, (cutoff,), nats, by the weights; at Λ ≤ 1/n that of the data, NaN if the prior is improper.

        Where sites are held, the mean over draws of that given them, by thermodynamic integration.
        """
        return self._of_cutoff("log_evidence")

    @property
    def log_evidence_sem(self) -> np.ndarray:
        return self._of_cutoff("log_evidence_sem")

    @property
    def mean_log_likelihood(self) -> np.ndarray:
        """E_t[log L], (cutoff,), nats: minus the mean energy."""
        return self._of_cutoff("mean_log_likelihood")

    @property
    def mean_log_likelihood_sem(self) -> np.ndarray:
        return self._of_cutoff("mean_log_likelihood_sem")

    @property
    def heat_capacity(self) -> np.ndarray:
        """C = t² Var_t(log L), (cutoff,)."""
        return self._of_cutoff("heat_capacity")

    @property
    def heat_capacity_sem(self) -> np.ndarray:
        return self._of_cutoff("heat_capacity_sem")

    @property
    def effective_directions(self) -> np.ndarray:
        """2C, (cutoff,): how many directions the data still determine at Λ, those of a linear model counted so."""
        return self._of_cutoff("effective_directions")

    @property
    def effective_directions_sem(self) -> np.ndarray:
        return self._of_cutoff("effective_directions_sem")

    @property
    def levels(self) -> xr.Dataset:
        """The diagnostics of every level of the walk, (level,), Λ falling from the prior's end or growing to it."""
        assert self.path is not None
        return level_table(self.path, self.num_data)

    def critical_scales(self, *, level: float = 0.9, num_bootstrap: int = 500, seed: int = 0) -> list[CriticalScale]:
        """Scales at which the data lose hold of many directions at once: peaks of C over log Λ.

        Parameters
        ----------
        level : float
            Probability of the interval of each.
        num_bootstrap, seed : int
            Curves drawn with the errors of C (correlated between levels), in each of which the peak is found again.

        Returns
        -------
        list of CriticalScale
            By growing Λ; empty where no maximum stands two standard errors out of its surroundings.
        """
        assert self.path is not None
        return self.path.peaks(self.num_data, level, check_count(num_bootstrap, "num_bootstrap", 10), seed)

    def report(self) -> xr.Dataset:
        """The diagnostics, and the critical scales in words."""
        words = "; ".join(str(one) for one in self.critical_scales()) or "The heat capacity has no clear peak."
        return self.diagnostics.assign_attrs(critical_scales=words)

    def hysteresis(self, *, key, progress_bar: bool = True) -> xr.Dataset:
        """The same path walked from the other end: do both walks say the same?

        Parameters
        ----------
        key : jax.random.key
            Of the other walk.

        Returns
        -------
        Dataset (cutoff,)
            ``mean_log_likelihood``, ``heat_capacity`` and ``log_evidence`` of this flow and, as ``*_back``, of the
            other; ``*_z``, their difference in standard errors. |z| far above 2 means that one of the walks has not
            seen what the other has: too few moves, or, at Λ ≤ 1/n, a posterior that was not that of the data.
        """
        assert self.options is not None and self.path is not None
        other = STARTS[1 - STARTS.index(self.start)]
        if other == "prior" and self.bound.undrawable():
            raise ValueError(f"hysteresis starts from the prior: {self.bound.undrawable()}")
        run = _Run(self.bound, self.posterior, self.x, self.y, check_key(key), self.sites, self.options, other,
                   len(self.path.levels) * 10 + 100, progress_bar)
        path = walk(run, self.power, keep=False)[0]
        back = at_cutoffs(level_table(path, self.num_data), self.power)
        found: dict[str, Any] = {}
        for name in ("mean_log_likelihood", "heat_capacity", "log_evidence"):
            one, two = self.diagnostics[name].values, back[name].values
            error = np.hypot(self.diagnostics[f"{name}_sem"].values, back[f"{name}_sem"].values)
            with np.errstate(invalid="ignore", divide="ignore"):
                z = np.where(error > 0, (one - two) / error, 0.0)
            found |= {name: ("cutoff", one), f"{name}_back": ("cutoff", two), f"{name}_z": ("cutoff", z)}
        return xr.Dataset(found, {"cutoff": self.cutoffs}, {"start": self.start, "back": other})


def powers(cutoffs: Any, num_data: int) -> np.ndarray:
    """t = min(1, 1/(nΛ)) at each cutoff."""
    with np.errstate(divide="ignore"):
        found = 1 / (num_data * np.asarray(cutoffs, float))
    return np.where(found > 1 - 1e-12, 1.0, found)


def renormalize_tempered(model, posterior: Posterior, x, y, *, cutoffs, key, sites: Sequence[str] | None = None,
                         start: str = "posterior", target_ess: float = 0.8, num_moves: int = 10,
                         trajectory_length: float = 1.2, target_accept_prob: float = 0.8, max_steps: int = 64,
                         max_levels: int = 500, progress_bar: bool = True) -> TemperedFlow:
    """The flow π_Λ(θ) ∝ π₀(θ) L(θ)^t with t = min(1, 1/(nΛ)): learning undone exactly.

    Λ ≤ 1/n is the posterior and Λ = ∞ the prior. For a linear Gaussian model it is the un-learning flow,
    `renormalize` with the whitened full metric and ``regulator=unlearning(n)``, and it needs no metric, so that it
    holds where a network is not linear. The posterior's draws are heated: they come to each power with weights
    L^{t′−t}, are resampled where these have become unequal, and are moved by Hamiltonian Monte Carlo that leaves
    π₀ L^{t′} invariant [1]_.

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model, hierarchical and constrained ones too; `numpyro.factor` terms are tempered
        with the likelihood.
    posterior : Posterior
        Draws given `x` and `y`, the particles. Of an ensemble that is no posterior the moves make π_t only in time:
        a warning says where they change its log-likelihood at once.
    x, y : arrays
        The data that the posterior has seen, n of them.
    cutoffs : array
        Increasing Λ ≥ 0, per datum; infinity may be among them. Levels in between are put where they are needed.
    key : jax.random.key
        The draws at Λ = ∞ are those of `renormalize` with the same key.
    sites : sequence of str, optional
        The sites that flow; default those that were trained. Each particle keeps the others as it has them; it then
        is a system of its own, is never resampled, and its law is right as far as the moves reach.
    start : {"posterior", "prior"}
        Which end particles come from: heating, or cooling from prior draws. Either way Λ ≤ 1/n is `posterior` itself;
        what is measured there after cooling is of the cooled particles.
    target_ess : float
        Conditional effective share of the weights between neighbouring levels; nearer to 1, more levels.
    num_moves : int
        Transitions at each level; 6 or more where sites are held.
    trajectory_length : float
        Mean angle of a transition, radians.
    target_accept_prob : float
        Acceptance that the step follows.
    max_steps : int
        Most gradients of a transition; a shorter step then shortens the angle, and ``diagnostics`` say by how much.
    max_levels : int
        Give up after so many.
    progress_bar : bool

    Returns
    -------
    TemperedFlow
        A `SampledFlow` with ``log_evidence``, ``mean_log_likelihood``, ``heat_capacity`` and ``effective_directions``,
        each (cutoff,) with its standard error under the same name and ``_sem``; ``critical_scales()``,
        ``hysteresis(key=)``; ``diagnostics`` with, over cutoff, ``power``, ``weight_ess`` (effective number of the
        weights before resampling), ``ess`` (draws as good as independent for the mean energy), ``ancestors``
        (different draws of the start that are left), ``acceptance``, ``angle`` (radians reached), ``num_steps``
        (gradients a transition), ``forgotten`` (correlation of the log-likelihood with that before the moves),
        ``num_gradients`` (a particle, since the cutoff before on the walk), and ``log_evidence_integrated`` with its
        ``_sem``, the evidence by thermodynamic integration, which must agree with that by the weights (Bennett's ratio
        between neighbours);
        over (cutoff, chain, draw) ``log_likelihood``. ``levels`` has the same for each level.

    Raises
    ------
    ValueError
        For cutoffs that do not increase, discrete sites, held sites whose prior depends on flowing ones, draws whose
        likelihood is not finite or that do not differ, or Λ = ∞ or ``start="prior"`` with an improper prior.
    RuntimeError
        If `max_levels` do not reach the last cutoff.

    Warns
    -----
    UserWarning
        Where the posterior's draws are not at rest under moves at t = 1.

    Notes
    -----
    With E_t the mean under π₀ L^t: d log Z/dt = E_t[log L], heat capacity C = t² Var_t(log L), and 2C is the number of
    directions that the data still determine at Λ (for a linear Gaussian model, whitened stiffness λ̃ and estimates û,
    with a = n t λ̃: C = Σ ½(a/(1+a))² + a²û²/(1+a)³, `theory.tempered_linear`). Errors count particles of one ancestor
    as one (see `bayes_brg.flow.thermodynamics`). The reference and the step of the moves follow the particles, which
    is a bias of order 1/draws. Every particle costs about ``num_moves · levels · num_steps`` gradients; levels grow as
    the square root of the number of determined directions. A mode that no draw of the start is in is not found.

    References
    ----------
    .. [1] Del Moral, Doucet and Jasra, Sequential Monte Carlo samplers, JRSS B 68 (2006).
    """
    key = check_key(key)
    x, y = check_data(x, y)
    scales = check_cutoffs(cutoffs)
    bound = bind(model, x)
    bound.check_params(posterior.samples, "posterior")
    if start not in STARTS:
        raise ValueError(f"start must be 'posterior' (heating) or 'prior' (cooling), got {start!r}")
    sites = _flowing(bound, posterior, x, sites)
    share, accept = (check_positive(v, name) for v, name in ((target_ess, "target_ess"),
                                                            (target_accept_prob, "target_accept_prob")))
    for name, value in (("target_ess", share), ("target_accept_prob", accept)):
        if value >= 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value!r}")
    angle = check_positive(trajectory_length, "trajectory_length")
    options = Options(share, check_count(num_moves, "num_moves"), angle, accept, check_count(max_steps, "max_steps"))
    if bound.undrawable() and (start == "prior" or np.isinf(scales[-1])):
        raise ValueError(bound.undrawable())
    run = _Run(bound, posterior, x, bound.targets(y), key, sites, options, start, check_count(max_levels, "max_levels"),
               progress_bar)
    if run.space.single and options.moves < HELD_MOVES:
        raise ValueError(f"num_moves must be at least {HELD_MOVES} where sites are held, got {options.moves}: the heat "
                         "capacity of a particle is then had from two of its own states, many moves apart")
    count = num_points(x)
    path, kept = walk(run, powers(scales, count), keep=True)
    return _flow(run, model, path, kept, scales, count)


def _flowing(bound: BoundModel, posterior: Posterior, x: Any, sites: Sequence[str] | None) -> tuple[str, ...]:
    """The sites that flow, in the model's order."""
    known = tuple(s for s in posterior.trained if s in bound.names)  # what a model only computes may be among draws
    wanted = known if sites is None else (sites,) if isinstance(sites, str) else tuple(sites)
    for s in wanted:
        bound.site(s)
    chosen = tuple(s for s in bound.names if s in wanted)
    if not chosen:
        raise ValueError("sites names none; pass names of the model's sites, or leave it out")
    for s in chosen:
        if bound.site(s).discrete:
            raise ValueError(f"site {s!r} is discrete, and the moves need gradients: sum it out of the model, or leave "
                             "it out of sites=")
    check_held(bound, chosen, x)
    return chosen


class _Run(NamedTuple):
    """What a walk is made of."""

    bound: BoundModel
    posterior: Posterior
    x: Any
    y: Any
    key: jax.Array
    sites: tuple[str, ...]
    options: Options
    start: str
    max_levels: int
    show: bool

    @property
    def refills(self) -> jax.Array:
        """Key of the prior draws, that of `renormalize`."""
        return name_key(self.key, "refill")

    @property
    def space(self) -> Coordinates:
        return Coordinates(self.bound, self.sites)

    def draws(self) -> dict[str, jax.Array]:
        flat = self.posterior.flat()
        return {s: flat[s] for s in self.bound.names}

    def groups(self) -> np.ndarray:
        """Which draws go together, (T,)."""
        chains, length = self.posterior.num_chains, self.posterior.num_draws
        if self.start == "prior" or np.all(self.posterior.stats.get("independent", False)):
            return np.arange(self.posterior.size)
        blocks = min(length, max(1, math.ceil(GROUPS / chains)))
        within = np.arange(length) * blocks // length
        return (np.arange(chains)[:, None] * blocks + within).ravel()


def walk(run: _Run, targets: np.ndarray, keep: bool) -> tuple[Path, dict[float, dict[str, np.ndarray]]]:
    """All levels from one end of the path to the other, through the powers in `targets`.

    Returns the path, and the native draws at each of those powers if they are to be kept.
    """
    proper = not run.bound.undrawable()
    begin = partial(_begin, run)
    prior = begin({**run.draws(), **prior_draws(run.bound, run.posterior, run.refills, run.x, run.sites)}) if proper \
        else None
    heating = run.start == "posterior"
    if heating:
        first = begin(run.draws())
        _check_finite(run, first.energy)
        _check_spread(run, first.particles.u)
    else:
        assert prior is not None
        first = prior
    inner = np.unique(targets[(targets > 0) & (targets < 1)])
    goals = [float(t) for t in (inner[::-1] if heating else [*inner, 1.0])]
    mover = Walk(run.space, run.options, name_key(run.key, f"moves from the {run.start}"), run.x, run.y,
                 _reference(run, prior), first.particles, first.energy, 1.0 if heating else 0.0,
                 step=0.2 if heating else run.options.angle)
    begun = first.energy[None]
    if heating:
        begun = np.concatenate([begun, _tune(run, mover)])
    levels: list[Level] = []
    with progress(desc="tempered flow", total=None, unit="level", show=run.show) as bar:
        def go(goal, keep):
            levels.append(mover.to(goal, keep))
            bar.set_postfix(power=f"{mover.power:.2g}")
            bar.update(1)

        for goal in goals:
            while mover.power != goal:
                if len(levels) == run.max_levels:
                    raise RuntimeError(f"the particles are at power {mover.power:.3g} of the likelihood after "
                                       f"{run.max_levels} levels; pass more draws, more moves, or raise max_levels")
                go(goal, keep)
        if heating and prior is not None:  # on to where the prior's own draws have weights that are not too unequal
            def near():
                return effective(mover.power * prior.energy) >= run.options.share * mover.size

            most = len(levels) + run.max_levels
            while not near() and len(levels) < most:
                go(mover.power * 1e-12, False)
    kept = {one.power: one.samples for one in levels if one.samples is not None}
    path = Path(begun, run.space.single, run.groups(), 1.0 if heating else 0.0, levels)
    if prior is not None and (not heating or near()):
        path = replace(path, anchor=_anchor(run, path, prior.energy))
    return path, kept


class _Start(NamedTuple):
    particles: Particle
    energy: np.ndarray


def _begin(run: _Run, draws: dict[str, jax.Array]) -> _Start:
    """Particles of draws, and their log-likelihood (−inf where it is not a number)."""
    u, held, energy = map_draws(start_one, (run.space,), draws, (run.x, run.y),
                                chunk=default_chunk(work(run.bound, run.x)))
    energy = np.asarray(energy, np.float64)
    return _Start(Particle(u, held, np.arange(run.posterior.size)), np.where(np.isnan(energy), -np.inf, energy))


def _check_finite(run: _Run, energy: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(energy))
    if bad.size:
        chain, draw = divmod(int(bad[0]), run.posterior.num_draws)
        raise ValueError(f"posterior: the log-likelihood of {bad.size} of {energy.size} draws is not finite, the first "
                         f"at chain {chain}, draw {draw}; leave such draws out")


def _check_spread(run: _Run, u: jax.Array) -> None:
    """Refuse draws that agree in a coordinate: moves are as wide as the particles, and would leave them there."""
    same = np.ptp(np.asarray(u), axis=0) == 0
    if same.any():
        named = run.space.unravel(run.x, run.y)(np.asarray(same, np.asarray(u).dtype))
        site = next(s for s, v in named.items() if np.any(np.asarray(v)))
        raise ValueError(f"posterior: its {len(u)} draw(s) all have the same value in site {site!r}, from which "
                         "nothing can be heated; pass several different draws, and in sites= only what was inferred")


def _reference(run: _Run, prior: _Start | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Centre and width of the coordinates under the prior, by the quartiles of its draws where they are not known."""
    if prior is None:
        return None
    u = np.asarray(prior.particles.u, np.float64)
    if run.bound.white(run.sites):
        return np.zeros(u.shape[1]), np.ones(u.shape[1])
    low, middle, high = np.quantile(u, (0.25, 0.5, 0.75), axis=0)
    return middle, np.maximum((high - low) / 1.349, 1e-12)


def _tune(run: _Run, mover: Walk) -> np.ndarray:
    """Find the step at the start; say where the draws are not at rest there."""
    seen = mover.tune()
    change, groups = seen[-1] - mover.energy, run.groups()
    sums = np.bincount(groups, change - change.mean()) / change.size
    error = math.sqrt(np.sum(sums**2))
    if error > 0 and abs(change.mean()) > OFF * error:
        warnings.warn(
            f"posterior ({run.posterior.method}): moves that leave the posterior invariant change the mean "
            f"log-likelihood of its draws by {change.mean():.3g} ± {error:.2g} nats, so they are not draws of it (an "
            "ensemble trained otherwise, chains that have not converged, other data). The flow goes to the right law "
            "only in time; compare with flow.hysteresis(key=key)", UserWarning, stacklevel=5)
    return seen


def _anchor(run: _Run, path: Path, prior: np.ndarray) -> tuple[int, float, float]:
    """The level next to the prior, its log evidence from there, and the variance of that."""
    heating = bool(path.powers[0])
    at, power = (len(path.levels), path.powers[-1]) if heating else (1, path.powers[1])
    weights, far = np.full(prior.size, 1 / prior.size), path.seen[at]
    if run.space.held:  # each particle has an evidence of its own: their mean logarithm
        ends = prior, far.mean(axis=0)
        return (at, power / 2 * float(sum(e.mean() for e in ends)),
                power**2 / 4 * float(sum(e.var(ddof=1) / e.size for e in ends)))
    found = bridge(prior[None], weights, far, path.weights[at], power)
    return at, found.value, float(np.sum((weights * found.near) ** 2)) + path.error(at, found.far)


# -- from levels to a flow ------------------------------------------------------------------------------------
def level_table(path: Path, num_data: int) -> xr.Dataset:
    """What is known of each level, the start first: (level,)."""
    integral, integral_sem = path.integrated()
    evidence, evidence_sem = (integral, integral_sem) if path.single else path.weighted()
    size = path.start.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1 / (num_data * path.powers)
        ess = path.variance / path.mean_sem**2
    moves = [len(one.energies) for one in path.levels]
    rows = {
        "power": path.powers, "mean_log_likelihood": path.mean, "mean_log_likelihood_sem": path.mean_sem,
        "heat_capacity": path.capacity, "heat_capacity_sem": path.capacity_sem,
        "effective_directions": 2 * path.capacity, "effective_directions_sem": 2 * path.capacity_sem,
        "log_evidence": evidence, "log_evidence_sem": evidence_sem,
        "log_evidence_integrated": integral, "log_evidence_integrated_sem": integral_sem,
        "weight_ess": [float(size), *(one.weight_ess for one in path.levels)], "ess": ess,
        "ancestors": [path.ancestors(k) for k in range(len(path.powers))],
        "acceptance": [np.nan, *(one.accept for one in path.levels)],
        "angle": [np.nan, *(one.angle for one in path.levels)],
        "num_steps": [np.nan, *(one.steps for one in path.levels)],
        "step_size": [np.nan, *(one.step for one in path.levels)],
        "forgotten": [1.0, *(one.forgotten for one in path.levels)],
        "num_gradients": [0.0, *(one.steps * m for one, m in zip(path.levels, moves, strict=True))],
    }
    return xr.Dataset({name: ("level", np.asarray(values, float)) for name, values in rows.items()},
                      {"cutoff": ("level", scale)})


def at_cutoffs(table: xr.Dataset, targets: np.ndarray) -> xr.Dataset:
    """The rows of a level table at given powers; at t = 0, the prior, what is known there without particles."""
    place = [int(np.flatnonzero(table["power"].values == t)[0]) if (table["power"].values == t).any() else -1
             for t in targets]
    found = table.isel(level=place).drop_vars("cutoff").rename(level="cutoff")
    so_far = np.cumsum(table["num_gradients"].values)
    spent, before = np.zeros(len(place)), 0.0
    for k in np.argsort(place, kind="stable"):
        if place[k] >= 0:
            spent[k], before = so_far[place[k]] - before, so_far[place[k]]
    found["num_gradients"] = ("cutoff", spent)
    exact = dict.fromkeys(("num_gradients", "power", "heat_capacity", "effective_directions", "log_evidence",
                           "log_evidence_integrated"), 0.0)  # without particles
    prior = np.asarray(targets) == 0
    for name in found.data_vars:
        if prior.any():
            value = exact.get(str(name).removesuffix("_sem"), np.nan)
            found[name] = ("cutoff", np.where(prior, value, found[name].values))
    return found


def _flow(run: _Run, model: Any, path: Path, kept: dict[float, dict[str, np.ndarray]], scales: np.ndarray, count: int
          ) -> TemperedFlow:
    """The flow at its cutoffs, from the levels that reached them."""
    targets = powers(scales, count)
    table = at_cutoffs(level_table(path, count), targets)
    lead = run.posterior.num_chains, run.posterior.num_draws
    own = run.draws()
    top = prior_draws(run.bound, run.posterior, run.refills, run.x, run.sites) if (targets == 0).any() else {}
    energies = {one.power: one.energies[-1] for one in path.levels}
    prior_energy = _begin(run, {**own, **top}).energy if top else None
    samples, every = [], []
    for t in targets:
        found = own if t == 1 else top if t == 0 else kept[float(t)]
        samples.append({s: np.asarray(found[s]).reshape(*lead, *np.shape(found[s])[1:]) for s in run.sites})
        value = prior_energy if t == 0 else energies[float(t)] if t < 1 or run.start == "prior" else path.start[0]
        every.append(np.asarray(value).reshape(lead))
    for k, t in enumerate(targets):
        if t == 0:  # the mean of the prior's own draws
            table["mean_log_likelihood"][k] = every[k].mean()
            table["mean_log_likelihood_sem"][k] = every[k].std(ddof=1) / math.sqrt(every[k].size)
    size = sum(math.prod(run.bound.site(s).shape) for s in run.sites)
    diagnostics = table.assign_coords(cutoff=scales).assign(
        log_likelihood=(("cutoff", "chain", "draw"), np.stack(every)))
    diagnostics.attrs |= {"start": run.start, "cutoff_units": "per datum", "num_data": count,
                          "levels": len(path.levels)}
    stacked = {s: np.stack([one[s] for one in samples]) for s in run.sites}
    return TemperedFlow(model, run.posterior, scales, run.refills, stacked,
                        diagnostics["effective_directions"].values / size, run.x, diagnostics, None, run.y, run.start,
                        run.options, count, path)
