"""Two flows side by side, scale by scale: an ensemble against MCMC, or any two posteriors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import xarray as xr

from ..core.batching import quiet
from ..core.checks import check_choice, check_count, check_data, check_inputs, num_points, warn_unfinite
from ..core.jackknife import block_jackknife
from ..core.keys import name_key
from ..field.correlators import cumulants
from ..field.draws import Draws
from ..flow.critical_scale import CriticalScale, critical_scale
from ..flow.cutoffs import check_cutoffs
from ..flow.flow import Flow
from ..flow.stepwise import StepwiseFlow
from ..io.store import Run
from .distances import CORRECTIONS, adjust, energy_distance, gaussian_wasserstein, ks_columns, thinned
from .flow_sources import Made, Side, Stored, same_data
from .scores import check_levels, counted_data, coverage, log_mean_exp, pit

__all__ = ["Comparison", "compare"]

CUMULANTS = ("mean", "k2", "k3", "k4")
MESH_POINTS = 32  # the most that are compared where no mesh is given
NUMBERS_AT_ONCE = 1 << 24  # cutoff × draw × datum of held-out predictions


@dataclass(frozen=True)
class Comparison:
    """What two flows have and have not in common; made by `compare`.

    Attributes
    ----------
    dataset : xarray.Dataset
        By cutoff: ``energy`` (distance, √ of field units), ``energy_p`` and ``energy_p_adjusted`` (Holm, over
        cutoffs), ``differs`` (that p below ``alpha``); ``wasserstein`` with ``_sem`` (field units) and
        ``wasserstein_relative``, over the root of the mean total variance of both.
        By (cutoff, mesh): ``ks``, ``ks_p``, ``ks_p_adjusted`` (over all of them).
        By (cutoff, cumulant, mesh): ``cumulant_difference`` (first less second) with ``_sem``, and ``cumulant_z``,
        their ratio, for the mean, variance and third and fourth cumulant of each point.
        By (flow, cutoff): ``log_predictive_density`` (mean over held-out data, nats) with ``_sem``, over data, and
        ``_mcse``, over draws; by cutoff: ``log_predictive_density_difference`` with both, the first paired by datum.
        By (flow, cutoff, level): ``coverage`` with ``_sem`` over data.
        By flow: ``critical_scale``, ``critical_scale_lower``, ``critical_scale_upper``.
    """

    dataset: xr.Dataset

    @property
    def differs(self) -> bool:
        """Whether the laws differ at any cutoff."""
        return bool(self.dataset["differs"].any())

    @property
    def verdict(self) -> str:
        """In words: whether the laws differ, and where."""
        d = self.dataset
        alpha, cutoffs, found = d.attrs["alpha"], d["cutoff"].values, d["differs"].values
        p = d["energy_p_adjusted"].values
        lost = int(np.isnan(p).sum())
        if lost == len(cutoffs):
            return "nothing could be compared: the energy distance has a p-value at no cutoff"
        untested = f"; {lost} could not be tested" if lost else ""
        if not found.any():
            return (f"no difference found at any of {len(cutoffs)} cutoffs (smallest adjusted p = "
                    f"{np.min(p[~np.isnan(p)]):.3g}, alpha = {alpha:g}{untested})")
        runs, start = [], None
        for i, here in enumerate([*found, False]):
            if here and start is None:
                start = i
            elif not here and start is not None:
                first, last = cutoffs[start], cutoffs[i - 1]
                runs.append(f"Λ = {first:.3g}" if start == i - 1 else f"Λ = {first:.3g} to {last:.3g}")
                start = None
        return (f"the predictive laws differ at {', '.join(runs)}: {int(found.sum())} of {len(cutoffs)} cutoffs "
                f"(energy distance, family-wise alpha = {alpha:g}{untested})")

    def __str__(self) -> str:
        d = self.dataset
        a, b = (str(f) for f in d["flow"].values)
        lines = [f"{a} against {b}: {self.verdict}"]
        if d.attrs["shared_key"]:
            lines.append("Both flows share one key, so their prior draws: p-values are conservative.")
        lines.append(f"{'Λ':>10s} {'energy p':>9s} {'adjusted':>9s} {'W2':>20s} {'W2/sd':>7s} {'KS':>7s} "
                     f"{'max|z|':>6s} {'Δ log p per datum':>22s} {'coverage':>13s}")
        level = float(d["level"].values[-1])
        for i, cutoff in enumerate(d["cutoff"].values):
            at = d.isel(cutoff=i)
            rejected = int((at["ks_p_adjusted"] < d.attrs["alpha"]).sum())
            cover = " ".join(f"{float(v):6.1%}" for v in at["coverage"].sel(level=level).values)
            w2 = f"{float(at['wasserstein']):.4g} ± {float(at['wasserstein_sem']):.2g}"
            error = np.linalg.norm([float(at[f"log_predictive_density_difference_{e}"]) for e in ("sem", "mcse")])
            gain = f"{float(at['log_predictive_density_difference']):.3g} ± {error:.2g}"
            z = float(np.abs(at["cumulant_z"]).max())
            lines.append(f"{cutoff:10.4g} {float(at['energy_p']):9.3g} {float(at['energy_p_adjusted']):9.3g} {w2:>20s} "
                         f"{float(at['wasserstein_relative']):7.3g} {rejected:3d}/{d.sizes['mesh']:<3d}{z:7.1f} "
                         f"{gain:>22s} {cover:>13s}" + (" *" if bool(at["differs"]) else ""))
        lines.append(f"KS: mesh points that differ after correction; max|z|: cumulants, over {d.sizes['mesh']} points "
                     f"and 4 orders; coverage of {level:.0%} intervals, both; *: differs")
        for flow in d["flow"].values:
            one = d.sel(flow=flow)
            value, low, high = (float(one[f"critical_scale{s}"]) for s in ("", "_lower", "_upper"))
            lines.append(f"critical scale of {flow}: " + (f"{value:.3g} ({low:.3g} to {high:.3g})" if np.isfinite(value)
                                                          else "none"))
        return "\n".join(lines)

    __repr__ = __str__

    def table(self) -> pd.DataFrame:
        """One row a cutoff: the numbers of the printed table and their errors, flows by name."""
        d = self.dataset
        columns: dict[str, Any] = {"cutoff": d["cutoff"].values}
        columns |= {str(name): d[name].values for name in d.data_vars if d[name].dims == ("cutoff",)}
        columns["ks_rejected"] = (d["ks_p_adjusted"] < d.attrs["alpha"]).sum("mesh").values
        columns["cumulant_z_largest"] = np.abs(d["cumulant_z"]).max(("cumulant", "mesh")).values
        for flow in d["flow"].values:
            one = d.sel(flow=flow)
            columns |= {f"log_predictive_density{s}_{flow}": one[f"log_predictive_density{s}"].values
                        for s in ("", "_sem", "_mcse")}
            columns |= {f"coverage_{level:g}_{flow}": one["coverage"].sel(level=level).values
                        for level in d["level"].values}
        return pd.DataFrame(columns)

    def plot(self, axes=None):
        """Distances, cumulants and predictive density along the flow; see `plots.comparison`."""
        from .. import plots
        return plots.comparison(self, axes=axes)


def compare(flow_a: Any, flow_b: Any, x=None, y=None, *, labels: Sequence[str] | None = None,
            cutoffs: Any = "union", mesh: Any = None, alpha: float = 0.05, correction: str = "holm",
            levels: Sequence[float] = (0.5, 0.9), num_permutations: int = 999, max_samples: int = 500,
            key: Any = None, progress_bar: bool = True) -> Comparison:
    """Compare two flows scale by scale: an ensemble against MCMC, or any two posteriors of one model.

    Parameters
    ----------
    flow_a, flow_b : Flow, StepwiseFlow, Run or (Run, str)
        Of models with the same inputs and outputs. Made with different keys: flows of one key share their prior draws
        θ₀, which makes p-values conservative. A `Run`, or a run and the name of one of its methods, stands for the
        flow that is stored there, without the members that diverged.
    x : array (n, dim), optional
    y : array (n, ...), optional
        Held-out data. Left out where one flow is a run's, which is known at the run's held-out data only.
    labels : two str, optional
        Names of the flows; default the methods of their posteriors.
    cutoffs : {"union", "shared"} or array
        Which Λ: those of either flow, those of both, or these. Flows of runs and stepwise flows are known at their own
        cutoffs only, and where one is, "union" leaves out what it does not have.
    mesh : array (m, dim), optional
        Inputs at which the laws of φ are compared; default `x`, or 32 of it evenly spaced where it has more. Not for
        flows of runs.
    alpha : float
        Family-wise chance to report a difference between equal laws, over all cutoffs.
    correction : {"holm", "bh"}
        Of the Kolmogorov–Smirnov tests, over all cutoffs and mesh points; see `diagnostics.adjust`.
    levels : sequence of float
        Probabilities of the predictive intervals whose coverage is measured.
    num_permutations, max_samples : int
        Of the energy distance, as in `diagnostics.energy_distance`. p is at least 1/(num_permutations + 1), which
        must be below alpha divided by the number of cutoffs for a difference at one cutoff to be found.
    key : jax.random.key, optional
        Of permutations and simulated observations; left out, a fixed one.
    progress_bar : bool

    Returns
    -------
    Comparison
        With ``.dataset``, a printed table and ``.plot()``.

    Raises
    ------
    ValueError
        For flows whose outputs differ in number or in what they mean (likelihoods), no shared cutoff, or too few
        permutations for `alpha`; for runs with other held-out data, or whose likelihood is not known.

    Notes
    -----
    Whether the laws differ is decided by the energy distance alone, Holm-corrected over cutoffs; the other columns
    say how. The metrics of the flows may differ; equal cutoffs then mean equal Fisher information under each flow's
    own metric. Each critical scale is that of the flow along all its own cutoffs, whichever are compared.
    """
    mesh = mesh if mesh is None else check_inputs(mesh, "mesh")
    sides, x, y, keep = _sides(flow_a, flow_b, x, y, mesh)
    check_choice(correction, "correction", CORRECTIONS)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    probabilities = check_levels(levels)
    permutations = check_count(num_permutations, "num_permutations", 19)
    scales = _cutoffs(sides[0], sides[1], cutoffs)
    if (permutations + 1) * alpha <= len(scales):
        raise ValueError(f"{permutations} permutations cannot give a p-value below alpha/{len(scales)} = "
                         f"{alpha / len(scales):.3g}; pass num_permutations={int(np.ceil(2 * len(scales) / alpha))}")
    names = _names(labels, sides)
    base = jax.random.key(0) if key is None else key
    where = x if mesh is None else mesh
    with quiet(not progress_bar):
        fields = [_fields(side, where, keep, scales, progress_bar) for side in sides]
        size, other = (f[0].values.shape[-1] for f in fields)
        if size != other:
            raise ValueError(f"the flows' outputs have {size} and {other} entries on the mesh; compare flows of one "
                             "kind of model")
        held = [_held_out(side, x, y, scales, probabilities, name_key(base, f"flow {i}"), progress_bar)
                for i, side in enumerate(sides)]
    data = _laws(fields, permutations, max_samples, correction, base) | _scored(held)
    data["differs"] = ("cutoff", data["energy_p_adjusted"][1] < alpha)
    outputs = size // (num_points(where) if keep is None else len(keep))
    coords = {"cutoff": scales, "flow": names, "level": probabilities, "cumulant": list(CUMULANTS),
              "mesh": np.arange(size), "mesh_point": ("mesh", np.arange(size) // outputs),
              "mesh_output": ("mesh", np.arange(size) % outputs)}
    shared = sides[0].stream == sides[1].stream
    return Comparison(xr.Dataset(data, coords, {
        "alpha": alpha, "correction": correction, "shared_key": int(shared), "num_permutations": permutations,
        "critical_scale_definition": held[0].critical.definition}))


def _names(labels: Sequence[str] | None, sides: list[Side]) -> list[str]:
    """Two names that differ."""
    names = [str(label) for label in labels] if labels is not None else [side.label for side in sides]
    if len(names) != 2:
        raise ValueError(f"labels must be two names, got {names}")
    return [f"{n} {suffix}" for n, suffix in zip(names, "ab", strict=True)] if names[0] == names[1] else names


def _sides(flow_a: Any, flow_b: Any, x: Any, y: Any, mesh: Any) -> tuple[list[Side], Any, Any, np.ndarray | None]:
    """Both flows, the held-out data, and which of them make the mesh (None: all, or a mesh of one's own)."""
    stored = []
    for flow in (flow_a, flow_b):
        if isinstance(flow, Run):
            flow = (flow, None)
        known = isinstance(flow, tuple) and len(flow) == 2 and isinstance(flow[0], Run)
        if not known and not isinstance(flow, (Flow, StepwiseFlow)):
            raise TypeError(f"compare takes two flows, got {type(flow_a).__name__} and {type(flow_b).__name__}; make "
                            "them with brg.renormalize, or pass runs, brg.load_run(path), or (run, method)")
        stored.append(Stored(*flow) if known else None)
    held = [side for side in stored if side is not None]
    if held:
        if mesh is not None:
            raise ValueError("a run's stored flow is known at its held-out inputs only; leave mesh out, or pass the "
                             "flow, experiment.flow_of(run, method)")
        x, y = same_data(held, x, y)
    elif x is None or y is None:
        raise ValueError("compare needs held-out data x and y; only runs have their own")
    x, y = check_data(x, y)
    sides: list[Side] = [Made(flow, x) if side is None else side
                         for flow, side in zip((flow_a, flow_b), stored, strict=True)]
    kinds = [side.likelihood.name for side in sides if side.likelihood is not None]
    if len(set(kinds)) > 1:
        raise ValueError(f"the flows' models have a {kinds[0]} and a {kinds[1]} likelihood, so their outputs mean "
                         "different things; compare flows of one kind of model")
    keep = None
    if mesh is None and num_points(x) > MESH_POINTS:
        keep = np.linspace(0, num_points(x) - 1, MESH_POINTS).round().astype(int)
    return sides, x, y, keep


def _cutoffs(a: Side, b: Side, wanted: Any) -> np.ndarray:
    fixed = [side for side in (a, b) if side.available is not None]
    if not isinstance(wanted, str):
        scales = check_cutoffs(wanted)
        for side in fixed:
            missing = scales[~_near(scales, side.available).any(axis=1)]
            if len(missing):
                raise ValueError(f"{side.label} is known at its own cutoffs only, not at {missing[0]:g}; they are "
                                 f"{', '.join(f'{c:g}' for c in side.cutoffs)}")
        return scales
    check_choice(wanted, "cutoffs", ("union", "shared"))
    # Schedules of one recipe differ by rounding; such cutoffs are one.
    near = _near(a.cutoffs, b.cutoffs)
    if wanted == "shared":
        if not near.any():
            raise ValueError("the flows share no cutoff; pass cutoffs='union' or an array")
        return a.cutoffs[near.any(axis=1)]
    scales = np.sort(np.concatenate([a.cutoffs, b.cutoffs[~near.any(axis=0)]]))
    for side in fixed:
        scales = scales[_near(scales, side.available).any(axis=1)]
    if not len(scales):
        raise ValueError("the flows are known at their own cutoffs only and share none; make one of them with "
                         "brg.renormalize, which can be asked at any")
    return scales


def _near(first: np.ndarray, second: Any) -> np.ndarray:
    return np.isclose(first[:, None], np.asarray(second)[None], rtol=1e-6, atol=0.0)


def _fields(side: Side, mesh: Any, keep: np.ndarray | None, scales: np.ndarray, show: bool) -> list[Draws]:
    """Draws of φ on the mesh at each cutoff, marked as independent where the posterior's are."""
    values = side.gauged(side.phi(mesh, keep, scales, show), mesh)
    finite = np.isfinite(values).all(axis=(0, 3, 4))  # (chain, draw)
    if not finite.all():
        raise ValueError(f"{int((~finite).sum())} of {finite.size} draws of {side.label} give outputs that "
                         "are not finite; leave those members out")
    values = values.reshape(*values.shape[:3], -1)
    if side.independent:
        return [Draws(v.reshape(1, 1, -1, v.shape[-1]), None, None, False) for v in values]
    return [Draws(v[None], None, None, True) for v in values]


def _given(draws: Draws) -> np.ndarray:
    """Draws as the public functions take them."""
    return draws.pooled(0) if not draws.correlated else draws.values[0][..., None]


class _At(NamedTuple):
    """How two laws differ at one cutoff, or at all of them, stacked; names as in the dataset."""

    energy: Any
    energy_p: Any
    wasserstein: Any
    wasserstein_sem: Any
    wasserstein_relative: Any
    ks: np.ndarray
    ks_p: np.ndarray
    cumulant_difference: np.ndarray
    cumulant_difference_sem: np.ndarray


def _at(a: Draws, b: Draws, permutations: int, most: int, key: Any) -> _At:
    first, second = _given(a), _given(b)
    energy = energy_distance(first, second, key=key, num_permutations=permutations, max_samples=most)
    moved = gaussian_wasserstein(first, second)
    total = 0.5 * sum(float(d.pooled(0).var(axis=0, ddof=1).sum()) for d in (a, b))
    one, other = _marginal_cumulants(first), _marginal_cumulants(second)
    return _At(energy.value, energy.p_value, moved.value, moved.sem,
               moved.value / np.sqrt(total) if total > 0 else np.nan, *ks_columns(thinned(a), thinned(b)),
               one[0] - other[0], np.hypot(one[1], other[1]))


def _laws(fields: list[list[Draws]], permutations: int, most: int, correction: str, key: Any) -> dict[str, Any]:
    """Distances and cumulants at each cutoff."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        rows = [_at(a, b, permutations, most, name_key(key, f"energy {i}"))
                for i, (a, b) in enumerate(zip(*fields, strict=True))]
    few = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    if few:  # once, and not for every cutoff
        warnings.warn(f"in {len(few)} laws {few[0]}", UserWarning, stacklevel=3)
    found = _At._make(np.asarray(column) for column in zip(*rows, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = found.cumulant_difference / found.cumulant_difference_sem
    points, tensors = ("cutoff", "mesh"), ("cutoff", "cumulant", "mesh")
    dims = {"ks": points, "ks_p": points, "cumulant_difference": tensors, "cumulant_difference_sem": tensors}
    data: dict[str, Any] = {k: (dims.get(k, ("cutoff",)), v) for k, v in found._asdict().items()}
    data["energy_p_adjusted"] = ("cutoff", adjust(found.energy_p))
    data["ks_p_adjusted"] = (points, adjust(found.ks_p, correction))
    data["cumulant_z"] = (tensors, np.where(found.cumulant_difference_sem > 0, z, np.nan))
    return data


def _marginal_cumulants(phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, variance, third and fourth cumulant of each mesh entry, (4, mesh), with standard errors."""
    size = phi.shape[1] if phi.ndim == 2 else phi.shape[2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few blocks show in the errors
        k = cumulants(phi, 4, indices=[(i,) * r for r in (2, 3, 4) for i in range(size)])
    assert k.sem is not None
    return (np.stack([getattr(k, c) for c in CUMULANTS]), np.stack([getattr(k.sem, c) for c in CUMULANTS]))


class _HeldOut(NamedTuple):
    """What one flow predicts of held-out data, by cutoff: ``lpd`` (cutoff, datum) with its Monte-Carlo error ``mcse``
    (cutoff,), ``covered`` (cutoff, level, datum); and its critical scale."""

    lpd: np.ndarray
    mcse: np.ndarray
    covered: np.ndarray
    critical: CriticalScale


def _held_out(side: Side, x: Any, y: Any, scales: np.ndarray, levels: Sequence[float], key: Any,
              show: bool) -> _HeldOut:
    targets = side.targets(y)
    flat = np.asarray(targets, np.float64).reshape(num_points(x), -1)
    counted = counted_data(side.bound, side.flow.posterior, x) if isinstance(side, Made) else np.ones(flat.shape, bool)
    seen = np.flatnonzero(counted.any(axis=1))
    flat, counted = flat[seen], counted[seen]
    # A critical scale compares with Λ = 0, and is the flow's own: not all of its cutoffs need be compared.
    own = side.cutoffs if side.cutoffs[0] == 0 else np.concatenate([[0.0], side.cutoffs])
    loss = side.loss(x, y, np.sort(np.concatenate([own, scales[~_near(scales, own).any(axis=1)]])), show)
    rows = []
    size = max(1, NUMBERS_AT_ONCE // (loss.size // loss.sizes["cutoff"] * flat.size))
    for first in range(0, len(scales), size):
        along = side.phi(x, None, scales[first:first + size], show)
        for i, cutoff in enumerate(scales[first:first + size], first):
            values = along[i - first].reshape(-1, *along.shape[3:])
            law = side.law(values, float(cutoff), x, targets, name_key(key, f"cutoff {i}"))
            law = {k: v[:, seen] for k, v in law.items()}
            ll = law.pop("log_likelihood")
            interval, discrete = pit(law, flat), "classes" in law or "probs" in law
            rows.append((log_mean_exp(ll, axis=0), block_jackknife(lambda d: log_mean_exp(d).mean(), ll.T),
                         [np.average(coverage(interval, level, discrete), axis=1, weights=counted)
                          for level in levels]))
    lpd, mcse, covered = (np.asarray(column) for column in zip(*rows, strict=True))
    return _HeldOut(lpd, mcse, covered, critical_scale(loss))


def _scored(held: list[_HeldOut]) -> dict[str, Any]:
    lpd = np.stack([h.lpd for h in held])  # (flow, cutoff, datum)
    covered = np.stack([h.covered for h in held])  # (flow, cutoff, level, datum)
    count = lpd.shape[-1]

    def sem(values: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # a density of 0 has no error: NaN
            return values.std(axis=-1, ddof=1) / np.sqrt(count) if count > 1 else np.full(values.shape[:-1], np.nan)

    warn_unfinite(lpd, "compare: log predictive densities", ("flow", "cutoff", "datum"), "No draw gives such a datum a "
                  "density that floating point holds: check the units of y")
    mcse = np.stack([h.mcse for h in held])  # (flow, cutoff)
    scale = {f"critical_scale{s}": ("flow", [getattr(h.critical, part) for h in held])
             for s, part in (("", "value"), ("_lower", "lower"), ("_upper", "upper"))}
    by_flow, by_level = ("flow", "cutoff"), ("flow", "cutoff", "level")
    with np.errstate(invalid="ignore"):
        gap = lpd[0] - lpd[1]
    return scale | {
        "log_predictive_density": (by_flow, lpd.mean(axis=-1)), "log_predictive_density_sem": (by_flow, sem(lpd)),
        "log_predictive_density_mcse": (by_flow, mcse),
        "log_predictive_density_difference": ("cutoff", gap.mean(axis=-1)),
        "log_predictive_density_difference_sem": ("cutoff", sem(gap)),
        "log_predictive_density_difference_mcse": ("cutoff", np.hypot(*mcse)),
        "coverage": (by_level, covered.mean(axis=-1)), "coverage_sem": (by_level, sem(covered)),
    }
