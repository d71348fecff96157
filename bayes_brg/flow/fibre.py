"""A flow along the fibre: what the data can tell apart at Λ is kept, everything else goes to the prior (theory §9)."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from ..core.batching import map_draws, progress, quiet
from ..core.checks import check_choice, check_count, check_positive
from ..core.keys import name_key
from ..metric.geometry import State
from ..metric.metric import Metric
from ..model.bound import BoundModel, Params
from ..posterior import Posterior
from .cutoffs import working
from .fibre_kernel import Fibre, FibreSpec, Tuning, Walk, fibre_of, land, walk, white
from .renormalize import check_request
from .sampled import SampledFlow, check_held, prior_refills

__all__ = ["renormalize_fibre"]

GROUP = 8  # draws in step on a CPU: fewer pay for each operation's start, more wait for their slowest
FIRST = 0.2  # radians, where nothing is known of the walls' curvature
ACCELERATED = 64
SHORT = 0.5  # share of the asked angle under which a trajectory is called short


def renormalize_fibre(model, posterior: Posterior, metric: Metric, *, cutoffs, key, tolerance: float = 0.1,
                      num_transitions: int = 20, num_tuning: int = 20, trajectory_length: float = 1.2,
                      target_accept_prob: float = 0.65, max_steps: int = 10_000, start: str = "posterior",
                      readout: str = "auto", progress_bar: bool = True) -> SampledFlow:
    """The sharp BRG flow along curved fibres: stiff functions of the parameters are kept, the rest is the prior.

    At a draw θ*, with G = F_out^{1/2} J P₀^{−1/2}/√n = U S Vᵀ at the metric's probe inputs and λ_k = S_k², the function
    coordinates are s_k(θ) = U_kᵀ F_out^{1/2} φ_θ(x)/√n, F_out frozen at θ*. Then θ_Λ is a draw of

        π_Λ(θ | θ*) ∝ π₀(θ) Π_{λ_k ≥ Λ} N(s_k(θ); s_k(θ*), ηΛ),

    what the data tell apart at Λ being held within a shell of width √(ηΛ), and everything else given to the prior π₀.
    Λ = 0 is θ* and a Λ above all its λ the prior draw θ₀ of `renormalize`, both bit for bit. For a linear readout it
    is the sharp flow in the metric's eigenmodes, up to a shrinkage of mode k by 1/(1 + ηΛ/λ_k).

    Parameters
    ----------
    model : callable
        A `Network` or any NumPyro model.
    posterior : Posterior
    metric : Metric
        Whitened, with eigenmodes, at every draw: ``brg.fisher(model, posterior, x, kind="full", whiten=True)``. Of a
        low-rank one the modes that it has are all that can be kept. Its sites flow, the others stay.
    cutoffs : array
        Increasing Λ ≥ 0, in the units of the metric's stiffness, 1/datum.
    key : jax.random.key
        Of θ₀, which depends on it and the number of the draw alone, and of the walks, which go from cutoff to cutoff.
    tolerance : float
        η, the variance of a kept coordinate over Λ. A kept mode shrinks by 1/(1 + ηΛ/λ), at most η/(1+η): 9 % at .1,
        1 % at .01. Steps grow as √(λ_max/(ηΛ)).
    num_transitions, num_tuning : int
        Trajectories at each cutoff after and while the step is tuned. A cutoff starts from where the one below ended,
        which lies on its fibre too, and the lowest from θ*.
    trajectory_length : float
        Mean angle of a trajectory, radians: of a direction that nothing holds, cos(angle) is left after one.
    target_accept_prob : float
        Mean acceptance the step is tuned to.
    max_steps : int
        At most so many gradients a trajectory; a warning says where it shortened the angle by half or more.
    start : {"posterior", "prior"}
        Where the lowest cutoff starts: at θ*, or at θ₀, with walls that come in from far during the tuning. The law is
        the same where the walk mixes: compare the two.
    readout : {"auto", "sampled", "collapsed"}
        Whether a linear Gaussian readout walks with the rest, or is integrated out and drawn exactly, whatever the
        likelihood (s is linear in it). Collapsed, a step may be longer, and costs more; it helps where the readout is
        wider than the number of kept coordinates. ``"auto"``: collapsed where nothing else flows, when draws are exact
        and independent.
    progress_bar : bool
        Show a bar on a terminal.

    Returns
    -------
    SampledFlow
        Its ``diagnostics`` (cutoff, chain, draw): ``acceptance``; ``num_gradients``; ``step_size`` and ``angle``,
        radians, the latter what a trajectory reached; ``deviation``, the largest |s_k − s_k*|/√(ηΛ) over kept
        coordinates; ``overlap``, the correlation of the whitened parameters with those of θ*; ``move``, their squared
        distance from θ* over what a prior draw's would be; ``num_kept``.

    Raises
    ------
    ValueError
        As `renormalize`; for a metric that is not whitened, has no eigenmodes of all its sites together, is shared by
        the draws or made of observed labels; for a prior that is not mapped onto N(0, 1) exactly, or draws too far in
        its tails.

    Warns
    -----
    UserWarning
        Where trajectories were shortened, or hardly any were accepted.

    Notes
    -----
    The cost of one draw at one Λ is (num_tuning + num_transitions) · angle/step gradients of the output at the probe
    inputs; the step is about √(ηΛ/λ_max) and shorter for relu networks. It explodes below Λ ≈ 1/n.

    ``move`` levels off somewhat above 1: given its function, the weights of a finite network are wider than the prior.
    ``overlap`` near 0 says that the walk has forgotten θ* in most directions; whether it has in all is told by
    ``start="prior"``.

    References
    ----------
    .. [1] Neal, MCMC using Hamiltonian dynamics, Handbook of MCMC (2011), section 5.5.1: splitting off a Gaussian.
    .. [2] Hron, Novak, Pennington and Sohl-Dickstein, Wide Bayesian neural networks have a simple weight posterior,
       ICML 2022, arXiv:2206.07673.

    Examples
    --------
    >>> import jax, bayes_brg as brg
    >>> net, x = brg.mlp((4,), activation="tanh"), jax.numpy.linspace(-1.0, 1.0, 5)[:, None]
    >>> post = brg.prior(net, x, key=jax.random.key(0), num_samples=8)
    >>> metric = brg.fisher(net, post, x, kind="full", whiten=True)
    >>> flow = brg.renormalize_fibre(net, post, metric, cutoffs=[0.0, 0.1], key=jax.random.key(1), num_transitions=2)
    >>> flow.predict(x).shape
    (2, 4, 2, 5, 1)
    """
    bound, scales, key = check_request(model, posterior, metric, cutoffs, key)
    options = Options(
        check_positive(tolerance, "tolerance"), check_count(num_transitions, "num_transitions"),
        check_count(num_tuning, "num_tuning", 0), check_positive(trajectory_length, "trajectory_length"),
        _probability(target_accept_prob), check_count(max_steps, "max_steps"),
        check_choice(start, "start", ("posterior", "prior")) == "prior")
    _check_metric(metric)
    _check_prior(bound, metric)
    check_held(bound, metric.sites, metric.x)
    collapsed = _collapses(bound, metric, check_choice(readout, "readout", ("auto", "sampled", "collapsed")))
    refill_key = name_key(key, "refill")
    refill = prior_refills(bound, posterior, metric, refill_key)
    with quiet(not progress_bar):
        samples, report = sample_fibres(bound, metric, posterior, refill, name_key(key, "fibre"), scales, options,
                                        collapsed)
    lead = len(scales), posterior.num_chains, posterior.num_draws
    shaped = {s: np.asarray(v).reshape(*lead, *v.shape[2:]) for s, v in samples.items()}
    dims = ("cutoff", "chain", "draw")
    diagnostics = xr.Dataset({k: (dims, np.asarray(v).reshape(lead)) for k, v in report.items()}, {"cutoff": scales})
    diagnostics = diagnostics.assign_attrs(tolerance=options.tolerance, trajectory_length=options.angle,
                                           start=start, readout="collapsed" if collapsed else "sampled")
    _warn(diagnostics)
    kept = report["num_kept"].mean(axis=1) / metric.geometry.size()
    return SampledFlow(model=model, posterior=posterior, cutoffs=scales, key=refill_key, samples=shaped,
                       fraction=kept, x=metric.x, diagnostics=diagnostics, metric=metric)


@dataclass(frozen=True)
class Options:
    """How fibres are walked; see `renormalize_fibre`."""

    tolerance: float = 0.1
    num_transitions: int = 20
    num_tuning: int = 20
    angle: float = 1.2
    accept: float = 0.65
    max_steps: int = 10_000
    distant: bool = False


# -- what can be asked ----------------------------------------------------------------------------------------
def _probability(value: Any) -> float:
    value = check_positive(value, "target_accept_prob")
    if value >= 1:
        raise ValueError(f"target_accept_prob must lie between 0 and 1, got {value!r}")
    return value


def _check_metric(metric: Metric) -> None:
    make = "compute it with brg.fisher(model, posterior, x, kind='full', whiten=True)"
    if not metric.whiten:
        raise ValueError("a fibre flow needs a whitened metric, in which the prior is N(0, 1) and one cutoff suits all "
                         f"layers; {make}")
    if not metric.per_draw:
        raise ValueError(f"the metric is one for all draws (at={metric.at!r}), but each draw has a fibre of its own; "
                         f"{make}, which is at='draw'")
    if metric.geometry.entrywise or len(metric.geometry.blocks) != 1:
        raise ValueError(f"the metric is of kind {metric.kind!r}, and a fibre is given by the eigenmodes of all "
                         f"flowing parameters together; {make} (or kind='lowrank')")
    if metric.estimator == "empirical":
        raise ValueError("the metric is made of observed labels, which give no function coordinates; pass "
                         "estimator='exact' to brg.fisher")


def _check_prior(bound: BoundModel, metric: Metric) -> None:
    site, law = bound.unmapped(metric.first_params(), metric.x, metric.sites)
    if site:
        raise ValueError(f"the prior of site {site!r} is a {law}, for which no exact map from N(0, 1) is known, so "
                         "that no walk can solve it; leave the site out with sites= of brg.fisher, write it as a "
                         "transformed Normal, or use brg.renormalize_tempered, which takes any prior")


def _collapses(bound: BoundModel, metric: Metric, readout: str) -> bool:
    if readout == "sampled":
        return False
    reason = ""
    if bound.readout is None:
        reason = "the model is not known to be linear in a readout"
    elif not set(bound.readout.sites) & set(metric.sites):
        reason = "no readout site flows"
    elif metric.geometry.how.varies or not bound.white(bound.readout.sites):
        reason = "the readout's prior is not Gaussian, or what the likelihood learns flows with it"
    if readout == "collapsed" and reason:
        raise ValueError(f"readout='collapsed' is not possible: {reason}; pass readout='sampled'")
    return not reason and (readout == "collapsed" or set(metric.sites) <= set(bound.readout.sites))  # type: ignore[union-attr]


def _warn(diagnostics: xr.Dataset) -> None:
    """Say where trajectories were cut short, or stood still."""
    walked = diagnostics.where(diagnostics["num_gradients"] > 0)
    if not np.isfinite(walked["angle"]).any():
        return
    angle, accept = (walked[name].median(("chain", "draw")) for name in ("angle", "acceptance"))
    short = np.flatnonzero(angle < SHORT * diagnostics.attrs["trajectory_length"])
    if short.size:
        i = short[0]
        warnings.warn(f"renormalize_fibre: at Λ = {float(angle['cutoff'][i]):.3g} trajectories reached an angle of "
                      f"{float(angle[i]):.2g} radians only: max_steps ended them. Such draws remember θ*; raise "
                      "max_steps or tolerance, or leave out the smallest cutoffs", UserWarning, stacklevel=3)
    stuck = np.flatnonzero(accept < 0.2)
    if stuck.size:
        i = stuck[0]
        warnings.warn(f"renormalize_fibre: at Λ = {float(accept['cutoff'][i]):.3g} the median acceptance is "
                      f"{float(accept[i]):.2g}; raise num_tuning", UserWarning, stacklevel=3)


# -- sampling -------------------------------------------------------------------------------------------------
NUMBERS = ("acceptance", "num_gradients", "step_size", "angle", "deviation", "overlap", "move")
Draws = tuple[State, Params, Params, jax.Array]


def sample_fibres(bound: BoundModel, metric: Metric, posterior: Posterior, refill: Params, key: jax.Array,
                  cutoffs: np.ndarray, options: Options, collapsed: bool) -> tuple[dict, dict]:
    """Draws at every cutoff, site to (cutoff, T, *site shape), and numbers of the walks, name to (cutoff, T).

    Parameters
    ----------
    bound, metric, posterior
        As checked by `renormalize_fibre`.
    refill : dict
        θ₀ of each draw, leading axis T.
    key : jax.random.key
        Folded with the number of the draw.
    cutoffs : array (cutoff,)
        In the metric's units.
    options : Options
    collapsed : bool
    """
    own, shared = metric.arrays()
    assert own is not None
    total, flat, levels = posterior.size, posterior.flat(), working(cutoffs) / metric.amount
    own = own._replace(modes=metric.geometry.kind.scaled(own.modes, 1 / metric.amount))
    kept = np.sum(np.asarray(own.modes[0].values)[None] >= levels[:, None, None], axis=2)
    kept[levels == 0] = metric.geometry.size()
    most = [int(kept[i].max()) for i in range(len(levels)) if levels[i] > 0]
    spec = FibreSpec(replace(metric.geometry, bound=bound), collapsed, max([1, *most]))
    theta = {s: flat[s] for s in bound.names}
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(total))
    draws = own, theta, refill, keys
    groups: Groups | None = None
    samples, numbers = [], []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool, \
            progress(desc="fibre", total=sum(m > 0 for m in most) * total, unit="draw") as bar:
        for number, level in enumerate(levels):
            if level == 0 or not kept[number].any():  # the ends: θ* and θ₀ themselves
                ends = theta if level == 0 else refill
                found = {s: np.asarray(ends[s]) for s in spec.sites}, dict.fromkeys(NUMBERS, np.zeros(total))
                overlap, move = map_draws(_forgotten_ends, (spec,), (theta, ends), (shared,))
                found[1].update(overlap=overlap, move=move)
            else:
                if groups is None:
                    groups = Groups(spec, draws, shared, options, pool)
                    _check_coordinates(spec, posterior, theta, groups.white)
                found = groups.walk(number, float(level), bar)
            samples.append(found[0])
            numbers.append(found[1])
    return ({s: np.stack([np.asarray(found[s]) for found in samples]) for s in spec.sites},
            {name: np.stack([np.asarray(found[name]) for found in numbers]) for name in NUMBERS} | {"num_kept": kept})


def _check_coordinates(spec: FibreSpec, posterior: Posterior, theta: Params, whitened: jax.Array) -> None:
    """Refuse finite draws whose coordinates N(0, 1) are not, from which no walk could start."""
    bad, start = ~np.isfinite(np.asarray(whitened[:posterior.size])), 0
    known = np.all([np.isfinite(np.asarray(v)).reshape(posterior.size, -1).all(axis=1) for v in theta.values()], axis=0)
    bad &= known[:, None]  # members that are known to have diverged go to the prior
    for s, shape in spec.shapes(spec.sites).items():
        size = math.prod(shape)
        off = np.flatnonzero(bad[:, start:start + size].any(axis=1))
        start += size
        if off.size:
            chain, draw = divmod(int(off[0]), posterior.num_draws)
            raise ValueError(f"posterior: {off.size} draw(s) of site {s!r}, the first at chain {chain}, draw {draw}, "
                             f"lie so far in a tail of its prior that in {whitened.dtype} nothing is left of it; widen "
                             "the prior, take 64 bits (jax.config.update('jax_enable_x64', True)), or leave the site "
                             "out with sites= of brg.fisher")


class Groups:
    """Draws that walk in step, group by group, each group in a thread of its own while there are cores.

    Parameters
    ----------
    spec : FibreSpec
    draws : tuple
        Of all draws, leading axis T: own part of the metric's arrays, θ*, θ₀, keys.
    shared : State
    options : Options
    pool : ThreadPoolExecutor
    """

    def __init__(self, spec: FibreSpec, draws: Draws, shared: State, options: Options, pool: ThreadPoolExecutor):
        self.spec, self.shared, self.options, self.pool = spec, shared, options, pool
        self.total = draws[3].shape[0]
        size = min(GROUP if jax.default_backend() == "cpu" else ACCELERATED, self.total)
        self.size = -(-self.total // -(-self.total // size))  # equal groups: less padding
        pad = -self.total % self.size
        if pad:
            draws = jax.tree.map(lambda a: jnp.concatenate([a, jnp.repeat(a[-1:], pad, axis=0)]), draws)
        fibres, starts, self.white = map_draws(_begin_one, (spec, options.distant), draws, (shared,))
        self.fibres = self._grouped(fibres)
        self.tops = np.asarray(fibres.values, float).reshape(-1, self.size, fibres.values.shape[1])[:, :, 0]
        self.tops = np.nan_to_num(self.tops)  # a diverged member has no modes
        self.chains = [Walk(z, jnp.zeros(self.size, z.dtype)) for z in self._grouped(starts)]
        self.before: float | None = None

    def _grouped(self, tree: Any) -> list:
        count = jax.tree.leaves(tree)[0].shape[0] // self.size
        return [jax.tree.map(lambda a, i=i: a[i * self.size:(i + 1) * self.size], tree) for i in range(count)]

    def _tuning(self, number: int, level: float) -> Tuning:
        o, dtype = self.options, self.white.dtype
        width = (o.tolerance * level) ** 0.5
        first = self.before is None
        far = float(self.tops.max()) ** 0.5 / width if first and o.distant else 1.0
        walks = bool(self.spec.moved)  # of a collapsed readout alone, nothing
        floats = (jnp.asarray(v, dtype) for v in (level, width, max(far, 1.0), o.angle, o.accept))
        cutoff, width_, heat, angle, accept = floats
        counts = (number, o.num_tuning if walks else 0, o.num_transitions if walks else 0, o.max_steps)
        index, tuning, transitions, most = (jnp.asarray(v, jnp.int32) for v in counts)
        return Tuning(cutoff, width_, heat, index, tuning, transitions, angle, accept, most)

    def _first_steps(self, i: int, level: float) -> jax.Array:
        """Logs of steps (B,): of walls alone, by their curvature; after, by those at the cutoff before."""
        o = self.options
        if self.before is not None:
            grown = 0.0 if self.spec.collapsed else 0.5 * np.log(level / self.before)
            return jnp.minimum(self.chains[i].log_step + grown, np.log(o.angle))
        tops = np.maximum(self.tops[i], level)
        steps = FIRST if self.spec.collapsed else np.minimum(2 * np.sqrt(o.tolerance * level / tops), o.angle)
        return jnp.log(jnp.broadcast_to(jnp.asarray(steps, self.white.dtype), self.size))

    def walk(self, number: int, level: float, bar: Any) -> tuple[dict, dict]:
        """Draws of all members at a cutoff, per datum, and the numbers of their walks; `bar` is told of each group."""
        tuning, wide = self._tuning(number, level), jax.config.jax_enable_x64
        steps = [self._first_steps(i, level) for i in range(len(self.chains))]
        tasks = [(fibres, Walk(chain.z, step), white_, tuning, self.shared) for fibres, chain, step, white_ in
                 zip(self.fibres, self.chains, steps, self._grouped(self.white), strict=True)]
        tasks = jax.tree.map(jnp.asarray, tasks)
        leaves, structure = jax.tree.flatten(tasks[0])
        compiled = _compiled(self.spec, structure, tuple((a.shape, a.dtype) for a in leaves), wide)

        def run(task):
            with jax.enable_x64(wide):  # JAX keeps its precision by thread
                out = jax.block_until_ready(compiled(*task))
            bar.update(self.size)
            return out

        ends, moved, report = zip(*self.pool.map(run, tasks), strict=True)
        self.chains, self.before = list(ends), level
        samples, numbers = jax.tree.map(lambda *a: np.concatenate([np.asarray(v) for v in a])[:self.total],
                                        *zip(moved, report, strict=True))
        return samples, numbers


@lru_cache(maxsize=16)
def _compiled(spec: FibreSpec, structure: Any, forms: tuple, wide: bool) -> Callable:
    """`_level`, compiled before there are threads: a model is traced in one alone, as NumPyro's handlers need."""
    args = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*form) for form in forms])
    return _level.lower(spec, *args).compile()


def _begin_one(spec: FibreSpec, distant: bool, draw: Draws, shared: State) -> tuple[Fibre, jax.Array, jax.Array]:
    """The fibre of one draw, where its walk starts, and its whitened parameters."""
    fibre = fibre_of(spec, draw, shared)
    begin = {**fibre.theta, **fibre.refill} if distant else fibre.theta
    return fibre, white(spec, begin, shared, spec.moved), white(spec, fibre.theta, shared, spec.sites)


def _forgotten(z: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Correlation with the start, and squared distance from it over what is expected of a prior draw."""
    overlap = jnp.sum(z * start) / jnp.sqrt(jnp.sum(z**2) * jnp.sum(start**2))
    return overlap, jnp.sum((z - start) ** 2) / (jnp.sum(start**2) + start.size)


def _forgotten_ends(spec: FibreSpec, draw: tuple[Params, Params], shared: State) -> tuple[jax.Array, jax.Array]:
    theta, moved = draw
    return _forgotten(white(spec, {**theta, **moved}, shared, spec.sites), white(spec, theta, shared, spec.sites))


@partial(jax.jit, static_argnums=0)
def _level(spec: FibreSpec, fibres: Fibre, start: Walk, whitened: jax.Array, tuning: Tuning, shared: State
           ) -> tuple[Walk, Params, dict]:
    """One group at one cutoff: where its walks end, its draws, and the numbers of them."""
    end, found = walk(spec, fibres, start, tuning, shared)
    moved, deviation = jax.vmap(lambda f, z: land(spec, f, z, tuning.cutoff, tuning.width, shared))(fibres, end.z)
    held = fibres.values[:, 0] >= tuning.cutoff

    def rest(fibre, params, start):
        return _forgotten(white(spec, {**fibre.theta, **params}, shared, spec.sites), start)

    overlap, move = jax.vmap(rest)(fibres, moved, whitened)
    numbers = {name: jnp.where(held, value, 0) for name, value in found._asdict().items()}
    return end, moved, numbers | {"deviation": deviation, "overlap": overlap, "move": move}
