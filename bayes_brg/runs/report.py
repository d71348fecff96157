"""One self-contained HTML page about a run: what was run, whether to believe it, what it found, how to run it again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr
from markupsafe import Markup

from ..core.batching import chains as as_chains
from ..diagnostics.convergence import Convergence, judge
from ..diagnostics.scores import predictive_of_phi, scores_of_phi
from ..io.store import Run, learned_sites, load_run, replacing
from ..io.units import Units
from ..metric.metric import spectrum_table
from ..model.likelihoods import Likelihood
from ..posterior import Posterior
from . import html, verdicts
from .experiment import Experiment, load_experiment, named_figures
from .measures import own_scores, scores_in_units
from .provenance import warn_of_change
from .sampling import figure_of, how_sampled
from .stages import OWN_FIGURES, caption, make_data
from .verdicts import Verdict, plus_minus

__all__ = ["report"]

ENTRIES = 200  # of φ, and of a site's weights, that convergence is judged at
OWN_TABLES = ("summary", "encoding")


def report(run: Run | str | Path, path: str | Path | None = None, *,
           experiment: Experiment | str | Path | None = None,
           figures: Mapping[str, Callable[[Run], Any]] | Sequence[Callable[[Run], Any]] = ()) -> Path:
    """Write one HTML page about a run, with its figures inside; it needs neither network nor script.

    Parameters
    ----------
    run : Run, str or Path
        A run, finished or not, or its directory. A section whose data the run lacks says so and how to get them.
    path : str or Path, optional
        The file to write; default ``report.html`` in the run directory.
    experiment : Experiment, str or Path, optional
        The experiment of the run, or the file that declares it. With it, calibration is known for any NumPyro model,
        and the spectrum for runs that did not keep it; both are made anew from the stored draws.
    figures : sequence of callables, or mapping of str to callable
        Further figures: each ``draw(run)`` returns a matplotlib Figure, shown with the first line of its docstring.

    Returns
    -------
    Path
        The file written. Cutoffs Λ and stiffness are per datum; φ, its moments, losses and scores in the data's own
        units, also where an experiment has standardised its targets.

    Raises
    ------
    FileNotFoundError, NotADirectoryError, ValueError
        If `run` is not a run, or `experiment` is that of another one.
    """
    run = run if isinstance(run, Run) else load_run(run)
    if experiment is not None and not isinstance(experiment, Experiment):
        warn_of_change(experiment, run.manifest)
        experiment = load_experiment(experiment)
    if experiment is not None and experiment.name != run.name:
        raise ValueError(f"{run.path} is a run of {run.name!r}, not of {experiment.name!r}; give the file that "
                         f"declares {run.name!r}")
    target = Path(path) if path is not None else run.path / "report.html"
    if target.is_dir():
        raise ValueError(f"{target} is a directory; name the file to write, such as {target / 'report.html'}")
    seen = _Seen(run, experiment, named_figures(figures))
    sections = [html.Section(name, title, _guarded(body, seen)) for name, (title, body) in SECTIONS.items()
                if name != "table" or run.encoding is not None]
    state = "finished" if run.finished else "not finished: the sections below say what is missing"
    subtitle = [f"A run of bayes_brg {run.manifest.get('versions', {}).get('bayes_brg', '')}; {state}.",
                "The posterior of a network, flowed to its prior: parameters whose Fisher information is below the "
                "cutoff Λ are given back to the prior."]
    text = html.page(run.name, subtitle, sections)
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be no text
    return target


class Missing(Exception):
    """A section's data are not in the run; the message says how to get them."""


def _guarded(body: Callable[[_Seen], Markup], seen: _Seen) -> Markup:
    """A section, or what it lacks. A section that fails must not lose the others."""
    try:
        return body(seen)
    except (Missing, FileNotFoundError) as error:
        return html.note(str(error))
    except Exception as error:
        return html.note(f"This section could not be made: {type(error).__name__}: {error}")


@dataclass(frozen=True)
class _Seen:
    """What sections read of a run, each thing once."""

    run: Run
    experiment: Experiment | None
    figures: Mapping[str, Callable[[Run], Any]] = field(default_factory=dict)

    @property
    def main(self) -> str:
        return self.run.methods[0]

    @cached_property
    def kept(self) -> dict[str, xr.Dataset]:
        """Flows in the data's own units, without the members that diverged."""
        return {m: flow.where(~flow["diverged"]) for m, flow in self.run.own_units.items()}

    @cached_property
    def phi(self) -> dict[str, xr.DataArray]:
        """φ at the characteristic input, first output."""
        return {m: f["phi"].isel(point=f.attrs["characteristic_point"], output=0) for m, f in self.kept.items()}

    @cached_property
    def critical(self) -> tuple[float, float, float]:
        found = self.run.flow.attrs
        value, low, high = (float(found.get(f"critical_scale{s}", np.nan)) for s in ("", "_lower", "_upper"))
        return value, low, high

    @property
    def units(self) -> str:
        """Units of y, in words."""
        return self.run.data.attrs.get("units") or "units of y"

    @cached_property
    def flat(self) -> dict[str, Verdict]:
        """Whether the loss is flat up to Λ_C, of each method."""
        found = {}
        for m, flow in self.kept.items():
            spectrum = self.run.spectra.get(m)
            found[m] = verdicts.flat(flow["loss"], self.run.flows[m]["stiff_fraction"].values,
                                     None if spectrum is None else verdicts.zero_share(spectrum))
        return found

    @cached_property
    def gaussian(self) -> dict[str, Verdict]:
        """Whether φ at the characteristic input is Gaussian at Λ = 0, of each method."""
        return {m: verdicts.gaussian(phi.sel(cutoff=0).transpose("chain", "draw").values,
                                     independent=self.run.independent(m)) for m, phi in self.phi.items()}

    def right(self, method: str) -> Verdict | None:
        """Whether φ at the characteristic input has its true value in the mean, where that is known."""
        first = self.start(method)
        return None if self.run.truth is None else verdicts.agree(
            first["phi_mean"], first["phi_mean_se"], self.run.truth,
            "The mean of φ at the characteristic input, against its true value")

    @cached_property
    def convergence(self) -> dict[str, Convergence]:
        return {m: _converged(self.run.flows[m], self.run.posteriors[m]) for m in self.run.methods}

    def start(self, method: str) -> pd.Series:
        """The summary's row of Λ = 0."""
        table = self.run.summaries[method]
        return table[table["cutoff"] == 0].iloc[0]


def _converged(flow: xr.Dataset, posterior: Posterior) -> Convergence:
    """Convergence of the stored φ and test loss at Λ = 0; independent members that diverged are left out."""
    now = flow.sel(cutoff=0)
    phi, loss = now["phi"].transpose("chain", "draw", "point", "output"), now["loss"].transpose("chain", "draw")
    values = phi.values.reshape(*phi.shape[:2], -1)
    if "likelihood" in flow.attrs:  # a shift of all logits says nothing
        values = Likelihood.restore(flow.attrs["likelihood"]).gauged(phi.values).reshape(values.shape)
    values = values[..., _spaced(values.shape[-1])]
    sites = {s: np.asarray(v).reshape(*phi.shape[:2], -1) for s, v in posterior.samples.items()
             if posterior.trained is None or s in posterior.trained}
    sites = {s: v[..., _spaced(v.shape[-1])] for s, v in sites.items()}
    kept = ~flow["diverged"].transpose("chain", "draw").values

    def select(array: np.ndarray) -> np.ndarray:
        flat = array.reshape(-1, *array.shape[2:])[kept.ravel()]
        return flat.reshape(as_chains(len(flat)), -1, *flat.shape[1:])

    every = {"phi": values, "loss": loss.values, **sites}
    if not kept.all() and np.all(np.asarray(posterior.stats.get("independent", False))):
        every = {k: select(v) for k, v in every.items()}
    data = xr.Dataset({"phi": (("chain", "draw", "point"), every.pop("phi")),
                       "loss": (("chain", "draw"), every.pop("loss"))})
    stats = {k: v for k, v in posterior.stats.items() if k in ("independent", "diverging")}
    return judge(data, Posterior({s: jax.numpy.asarray(v) for s, v in every.items()}, stats, posterior.method))


def _spaced(size: int) -> np.ndarray:
    return np.linspace(0, size - 1, min(size, ENTRIES)).round().astype(int)


def _scale(attrs: Mapping[str, Any]) -> str:
    value, low, high = (attrs.get(f"critical_scale{s}") for s in ("", "_lower", "_upper"))
    if value is None or not np.isfinite(value):
        return "none"
    if low is None or high is None or np.isnan([low, high]).any():
        return f"{value:.3g}"
    return f"{value:.3g} [{low:.3g}, {f'{high:.3g}' if np.isfinite(high) else 'beyond the last cutoff'}]"


# -- sections -------------------------------------------------------------------------------------------------
def _summary(seen: _Seen) -> Markup:
    run, first = seen.run, seen.start(seen.main)
    attrs = run.flow.attrs
    verdict = seen.convergence[seen.main]
    items = [
        ("critical scale Λ_C, per datum", _scale(attrs), f"{seen.main}: {attrs['critical_scale_text']}"),
        ("test loss at Λ = 0, median", plus_minus(first["loss_median"], first["loss_median_se"]),
         f"5 % to 95 % of members: {first['loss_q05']:.4g} to {first['loss_q95']:.4g}"),
        ("φ at the characteristic input, Λ = 0, mean", plus_minus(first["phi_mean"], first["phi_mean_se"]),
         f"sd {plus_minus(first['phi_std'], first['phi_std_se'])}"
         + (f"; true value {seen.run.truth:.4g}" if seen.run.truth is not None else "")),
        ("converged in function space", "nothing to converge" if verdict and verdict.independent else
         "yes" if verdict else "no", verdict.reason),
        ("members used", f"{int(first['num_members'])}", f"{int(first['num_diverged'])} diverged and are left out"),
    ]
    judged = [seen.flat[seen.main], seen.gaussian[seen.main], seen.right(seen.main)]
    return html.join(html.paragraph(
        f"The main method, {seen.main}; errors are one standard error, φ and losses in {seen.units}. Λ_C is where the "
        "median loss along the flow has grown by as much as its definition says."), html.facts(items),
        *(html.verdict(v.holds, v.text) for v in judged if v is not None))


def _what(seen: _Seen) -> Markup:
    run, m = seen.run, seen.run.manifest
    out = [html.paragraph("Settings of the experiment, the data it made or read, its random key, and the versions it "
                          "ran with. With the same key and versions, the draws are the same."),
           *(html.note(f"Taken over though changed since: {said}") for said in m.get("accepted", [])),
           html.table({"methods, the main one first": ", ".join(run.methods), **run.settings}, "Settings")]
    options = {f"{part}: {k}" if isinstance(v, Mapping) else part: _words(x)
               for part, v in m.get("options", {}).items()
               for k, x in (v.items() if isinstance(v, Mapping) else (("", v),))}
    out.append(html.table(options, "Metric, flow and other options of the experiment (Λ per datum)"))
    shapes = {name: f"{' × '.join(map(str, v.shape)) or 'one number'}, {v.dtype}" for name, v in run.data.items()}
    out.append(html.table(shapes, "Data: shape and type"))
    key = m.get("key", {})
    out.append(html.table({"seed": key.get("seed"), "key": f"{key.get('data')} ({key.get('implementation')})",
                           "precision": m.get("precision"), **m.get("versions", {}),
                           **{k: _words(v) for k, v in m.get("platform", {}).items()}}, "Key, versions, platform"))
    return html.join(*out)


def _words(value: Any) -> str:
    return ", ".join(map(_words, value)) if isinstance(value, (list, tuple)) else html.number(value)


def _table(seen: _Seen) -> Markup:
    encoding = seen.run.encoding
    assert encoding is not None
    left = int((encoding["kind"] == "left out").sum())
    return html.join(html.paragraph(
        "What became of each column before the network saw it, by the training rows alone, and what was done to the "
        f"target and the rows. {int(pd.to_numeric(encoding['inputs']).sum())} inputs"
        + (f"; {left} columns are left out." if left else ".")), html.table(encoding, "Encoding", tall=True))


def _convergence(seen: _Seen) -> Markup:
    out = [html.paragraph(
        "Weights of a network can be permuted or rescaled without a change of its output, so the verdict is about φ at "
        "the test inputs and the test loss alone (function space); weight-space rows are for information. R-hat near "
        "1: chains agree. ESS: how many independent draws they are worth. At most 200 entries of φ and of each trained "
        "site, evenly spaced, are looked at.")]
    for method, found in seen.convergence.items():
        lead = "Independent draws." if found.independent and found else (
            f"Converged in function space: {'yes' if found else 'no'}.")
        out += [html.heading(method), html.verdict(bool(found), found.reason[:1].upper() + found.reason[1:], lead)]
        table = found.table.rename(columns=lambda c: c.replace("rhat", "R-hat").replace("ess", "ESS")
                                   .replace("mcse_per_sd", "MCSE/sd").replace("_", " "))
        out.append(html.table(table, f"{method}: worst and median over entries", index="quantity"))
    return html.join(*out, how_sampled(seen.run.sampling))


def _spectrum(seen: _Seen) -> Markup:
    from .. import plots

    spectra = dict(seen.run.spectra)
    if not spectra and seen.experiment is not None:
        metrics = {m: getattr(seen.experiment.flow_of(seen.run, m), "metric", None) for m in seen.run.methods}
        spectra = {m: spectrum_table(metric) for m, metric in metrics.items() if metric is not None}
    if not spectra:
        raise Missing("This run did not keep the spectrum of its metric. Give the file that declares the "
                      f"experiment: bayes-brg report {seen.run.path} --experiment FILE makes the metric anew "
                      "from the stored draws.")
    pictures = []
    for method, table in spectra.items():
        top = float(np.nanmax(table["stiffness"].values))
        total = int(table["num_directions"].sum())
        pictures.append(html.picture(
            figure_of(plots.spectrum, table, size=(5.8, 4.2)),
            f"Stiffness of {total} directions of the {method} metric in descending order; the largest is {top:.3g}.",
            f"{method}: {total} directions, {table.attrs['kind']} metric, "
            + (f"median and 5 % to 95 % of {table.attrs['num_draws']} draws" if table.attrs["num_draws"] > 1
               else "one metric for all draws") + f"; stiffest λ = {top:.4g} per datum."))
    return html.paragraph(
        "How many directions of parameter space the data hold, and how firmly. A sloppy model spreads over many "
        "decades; the flow gives directions back to the prior from right to left, each when Λ passes its stiffness."
    ) + html.figures(*pictures)


def _loss(seen: _Seen) -> Markup:
    from .. import plots

    loss = {m: f["loss"] for m, f in seen.kept.items()}
    fraction = {m: f["stiff_fraction"] for m, f in seen.run.flows.items()}
    start = seen.start(seen.main)
    where = _scale(seen.run.flow.attrs)
    return html.paragraph(
        f"The test loss as sloppy directions are given back to the prior, then stiffer ones; y in {seen.units}. Dashed "
        "line and grey band: Λ_C of the main method with its interval. Behind the break at the left edge: Λ = 0."
    ) + html.join(*(html.verdict(v.holds, v.text, f"{m}:") for m, v in seen.flat.items())) + html.figures(
        html.picture(figure_of(plots.loss_along_flow, loss, critical_scale=seen.critical),
                     f"Test loss against cutoff: median {start['loss_median']:.4g} at cutoff 0; critical scale "
                     f"{where}.",
                     "Median over members with 95 % intervals; band: 5 % to 95 % of the main method's members."),
        html.picture(figure_of(plots.stiff_fraction_along_flow, fraction, critical_scale=seen.critical),
                     f"Fraction of directions that are stiff against cutoff, from 1 to "
                     f"{float(seen.run.flow['stiff_fraction'].values[-1]):.3g}.",
                     "Share of directions with λ of at least Λ, which the flow leaves as the posterior has them; of a "
                     "tempered flow, of those that the data determine."))


def _distributions(seen: _Seen) -> Markup:
    from ..plots.flow import _either_side, distribution
    from ..plots.style import _power

    value = seen.critical[0]
    scales = seen.run.flow["cutoff"].values
    finite = np.isfinite(value)
    pictures = []
    for index in _either_side(np.asarray(scales, float), float(value) if finite else None):
        scale = float(scales[index])
        side = "" if not finite else (" (below Λ_C)" if scale < value else " (above Λ_C)")
        draws = {m: p.isel(cutoff=index) for m, p in seen.phi.items()}
        one = draws[seen.main].values[~seen.run.flow["diverged"].transpose(*draws[seen.main].dims).values]
        title = rf"$\Lambda$ = {_power(scale)}" + side.replace("Λ_C", r"$\Lambda_C$")
        pictures.append(html.picture(
            figure_of(distribution, draws, seen.run.truth, title=title, size=(5.6, 4.6)),
            f"Distribution of φ at cutoff {scale:g}{side}: mean {np.mean(one):.4g}, sd "
            f"{np.std(one, ddof=1):.4g}.",
            f"Λ = {scale:.4g}{side}."))
    return html.paragraph(
        "φ at the characteristic input (first output) before the flow, "
        + ("on either side of Λ_C" if finite else "on its way (there is no Λ_C)") + ", and at its end. Lines: "
        "the Gaussian of the same mean and variance; bars on the histogram: one standard error of independent draws a "
        "bin.") + html.join(*(html.verdict(v.holds, v.text, f"{m}, Λ = 0:") for m, v in seen.gaussian.items())
                            ) + html.figures(*pictures)


def _moments(seen: _Seen) -> Markup:
    import matplotlib
    from matplotlib.figure import Figure

    from .. import plots

    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        plots.moments_along_flow(seen.phi, truth=seen.run.truth, critical_scale=seen.critical,
                                 axes=list(figure.subplots(1, 2)))
    first, last = seen.run.summary.iloc[0], seen.run.summary.iloc[-1]
    return html.paragraph("Mean and variance of φ at the characteristic input, with 95 % intervals.") + html.figures(
        html.picture(figure, f"Mean of φ from {first['phi_mean']:.4g} at cutoff 0 to {last['phi_mean']:.4g}, its "
                     f"variance from {first['phi_std']**2:.4g} to {last['phi_std']**2:.4g} at {last['cutoff']:g}.",
                     "Left the mean, right the variance, on a logarithmic scale.", wide=True))


def _numbers(seen: _Seen) -> Markup:
    out = [html.paragraph("Everything above as numbers, one row a cutoff Λ (per datum): the test loss over members, φ "
                          "at the characteristic input; _se: one standard error. The same is in summary.csv.")]
    for method, table in seen.run.summaries.items():
        out.append(html.table(table.rename(columns=lambda c: c.replace("_", " ")), f"{method}, along the flow",
                              tall=True))
    return html.join(*out)


def _field(seen: _Seen) -> Markup:
    from .. import plots
    from ..plots.field import FIELD_FIGURES, FIELD_LABELS

    if not seen.run.manifest.get("options", {}).get("couplings"):
        raise Missing("This experiment does not follow the field: give it Experiment(..., couplings=3), which keeps "
                      "the cumulants and the couplings of the action at three inputs along the flow.")
    tables = seen.run.couplings
    words = {"variance": "variance κ2", "skewness": "skewness κ3/κ2^(3/2)", "kurtosis": "excess kurtosis κ4/κ2²",
             "mass": "mass-like term", "cubic": "cubic coupling g3", "quartic": "quartic coupling g4",
             "effective_quartic": "effective quartic coupling g4 κ2²"}
    pictures, rows = [], []
    for name in (n for names in FIELD_FIGURES.values() for n in names):
        one = tables[seen.main].isel(point=0)
        if name not in one or name not in FIELD_LABELS:
            continue
        value = one[name].values
        pictures.append(html.picture(
            figure_of(plots.coupling_along_flow, tables, name, critical_scale=seen.critical),
            f"{words[name]} along the flow: {value[0]:.3g} at cutoff 0, {value[-1]:.3g} at the end.",
            f"{words[name][:1].upper()}{words[name][1:]}, with 95 % intervals."))
    for method, table in tables.items():
        one = table.isel(point=0)
        for i, cutoff in enumerate(one["cutoff"].values):
            rows.append({"method": method, "Λ": float(cutoff)} | {
                words[n]: plus_minus(float(one[n][i]), float(one[f"{n}_sem"][i]) if f"{n}_sem" in one else np.nan)
                for n in words if n in one})
    return html.paragraph(
        "The outputs as a field at the characteristic input: its cumulants, and the couplings of the action of order "
        "1/N that has them. A Gaussian field has no cumulant above the second. Where κ4/κ2² is not small against 1 the "
        "couplings are only formal. Units: powers of φ; κ3/κ2^(3/2), κ4/κ2² and g4 κ2² have none."
    ) + html.figures(*pictures) + html.table(pd.DataFrame(rows), "Cumulants and running couplings ± one standard error",
                                             tall=True)


def _calibration(seen: _Seen) -> Markup:
    from .. import plots

    scored = {m: _scored(seen, m) for m in seen.run.methods}
    first = scored[seen.main]
    names = {"mean_log_predictive_density": "log predictive density (nats per datum)", f"mean_{first.name}":
             {"crps": f"CRPS ({seen.units})", "rps": "ranked probability score", "brier": "Brier score"}[first.name],
             "rmse": f"root mean squared error ({seen.units})", "accuracy": "accuracy"}
    columns: dict[str, list[str]] = {}
    for m, one in scored.items():
        d = one.dataset
        columns[m] = [plus_minus(float(d[k]), float(d[f"{k}_sem"])) for k in names if k in d]
        columns[m] += [plus_minus(100 * c, 100 * e) for c, e in
                       zip(d["coverage"].values, d["coverage_sem"].values, strict=True)]
    index = [v for k, v in names.items() if k in first.dataset]
    index += [f"coverage of {level:.0%} intervals (%)" for level in first.dataset["level"].values]
    quantiles = first.kind == "pit"
    few = " So few targets say little." if first.dataset.sizes["point"] < 20 else ""
    picture = html.picture(
        figure_of(plots.calibration_curve, scored, size=(4.8, 5.0)),
        f"Calibration curve of {', '.join(scored)} on {first.dataset.sizes['point']} test points; on the diagonal "
        "where calibrated.",
        ("Fraction of test targets below each predictive quantile" if quantiles else
         "Observed frequency against predicted probability") + ", with 95 % Wilson intervals.")
    judged = []
    for m, one in scored.items():
        nine = one.dataset.sel(level=0.9, method="nearest")
        judged.append(verdicts.calibrated(float(nine["coverage"]), float(nine["coverage_sem"]), float(nine["level"]),
                                          nine.sizes["point"], m))
    return html.paragraph(
        f"The predictive law at Λ = 0, noise included, against the {first.dataset.sizes['point']} targets of the "
        "experiment's test points; errors are one standard error over data." + few) + html.join(
            *(html.verdict(v.holds, v.text) for v in judged)) + html.figures(picture) + html.table(
            pd.DataFrame(columns, index=index), "Scores at Λ = 0", index="score")


def _scored(seen: _Seen, method: str) -> Any:
    flow, run = seen.run.flows[method], seen.run
    if "likelihood" in flow.attrs and "y_test" in run.data:
        likelihood = Likelihood.restore(str(flow.attrs["likelihood"]))
        y = run.data["y_test"].values
        phi = flow["phi"].sel(cutoff=0).isel(point=slice(len(y))).transpose("chain", "draw", "point", "output").values
        kept = ~flow["diverged"].transpose("chain", "draw").values.ravel()
        phi, learned = phi.reshape(-1, *phi.shape[2:])[kept], {s: v[kept] for s, v in learned_sites(flow).items()}
        return scores_in_units(
            scores_of_phi(likelihood, phi, y, method=method, learned=learned), Units.of(flow.attrs),
            lambda: predictive_of_phi(likelihood, phi, likelihood.targets(y, phi.shape[-1]), jax.random.key(0),
                                      learned), y)
    if seen.experiment is None:
        raise Missing("The run does not say what its model observes (it is a NumPyro model of its own, or an older "
                      "run). Give the file that declares the experiment, which then scores the stored draws: "
                      f"bayes-brg report {run.path} --experiment FILE.")
    settings = seen.experiment.with_settings(run.settings)
    data = make_data(seen.experiment, settings)
    posterior, kept = run.posteriors[method], ~flow["diverged"].transpose("chain", "draw").values.ravel()
    if not kept.all():
        posterior = Posterior({s: v[None, kept] for s, v in posterior.flat().items()}, {}, posterior.method)
    return own_scores(seen.experiment.model(settings), posterior, data)


def _methods(seen: _Seen) -> Markup:
    run = seen.run
    rows, reference = {}, seen.start(seen.main)
    for method in run.methods:
        first, attrs = seen.start(method), run.flows[method].attrs
        error = float(np.hypot(first["phi_mean_se"], reference["phi_mean_se"]))
        apart = (first["phi_mean"] - reference["phi_mean"]) / error if method != seen.main and error > 0 else np.nan
        rows[method] = {
            "Λ_C [interval]": _scale(attrs), "test loss, median": plus_minus(first["loss_median"],
                                                                           first["loss_median_se"]),
            "φ mean": plus_minus(first["phi_mean"], first["phi_mean_se"]),
            "φ sd": plus_minus(first["phi_std"], first["phi_std_se"]),
            f"φ mean less {seen.main}'s, in standard errors": f"{apart:.1f}" if np.isfinite(apart) else "–",
            "members": int(first["num_members"]), "diverged": int(first["num_diverged"]),
            "seconds": float(run.manifest["stages"].get(f"posterior {method}", {}).get("seconds", np.nan))}
    judged = [verdicts.agree(first["phi_mean"] - reference["phi_mean"],
                             np.hypot(first["phi_mean_se"], reference["phi_mean_se"]), 0.0,
                             f"The mean of φ by {m}, less that by {seen.main}")
              for m, first in ((m, seen.start(m)) for m in run.methods[1:])]
    words = ("Each method's posterior at Λ = 0, and its critical scale. Whole laws, scale by scale, are compared by "
             "bayes_brg.compare." if len(rows) > 1 else
             "The experiment has one method, so there is nothing to compare it with: name others in "
             "Experiment(infer=...).")
    return html.join(html.paragraph(words), *(html.verdict(v.holds, v.text) for v in judged),
                     html.table(pd.DataFrame(rows).T, "Methods at Λ = 0, ± one standard error", index="method"))


def _extras(seen: _Seen) -> Markup:
    run = seen.run
    pictures = {k: v for k, v in run.figures.items() if k not in OWN_FIGURES}
    tables = sorted(n for n in run.recorded if n.endswith(".csv") and not n.startswith(OWN_TABLES))
    if not pictures and not tables and not seen.figures:
        if not run.finished:
            raise Missing("What the experiment makes of its own comes last, and the run is not finished: run it again "
                          "to go on")
        raise Missing("The experiment left no figures or tables of its own: Experiment(extras=...) makes them, some "
                      "only when a setting asks for it.")
    out = [html.paragraph("Figures and tables of this experiment's own; its file says what they show.")]
    for name, file in pictures.items():
        title = run.manifest.get("captions", {}).get(name) or name.replace("_", " ")
        out.append(html.figures(html.picture(run.read_bytes(file), f"{title}, a figure of the experiment {run.name}",
                                             f"{title} ({file.name})", wide=True)))
    for name, draw in seen.figures.items():
        title = caption(draw) or name.replace("_", " ")
        out.append(html.figures(html.picture(draw(run), f"{title}, a figure made for this report", title, wide=True)))
    for held in tables:
        table = run.table(held)
        cut = len(table) > 200
        out.append(html.table(table.iloc[:200, :200].rename(columns=lambda c: str(c).replace("_", " ")),
                              held + (f", the first 200 of {len(table)} rows" if cut else ""), tall=True))
    return html.join(*out)


def _timings(seen: _Seen) -> Markup:
    stages = seen.run.manifest["stages"]
    if not stages:
        raise Missing("No stage is finished yet: run the same command again to go on.")
    total = sum(s["seconds"] for s in stages.values())
    table = pd.DataFrame([{"stage": name, "seconds": f"{s['seconds']:.1f}",
                           "share": f"{s['seconds'] / max(total, 1e-9):.0%}", "ended": s.get("ended", "–")}
                          for name, s in stages.items()]
                         + [{"stage": "all", "seconds": f"{total:.1f}", "share": "100%", "ended": ""}])
    return html.paragraph("Wall time of each stage, compilation included.") + html.table(table, "Seconds a stage")


def _reproduce(seen: _Seen) -> Markup:
    run, m = seen.run, seen.run.manifest

    def written(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value).lower() if isinstance(
            value, bool) else str(value)

    sets = [shlex.quote(f"{k}={written(v)}") for k, v in run.settings.items()]
    file = m.get("file")
    command = ["bayes-brg", "run", shlex.quote(file or "FILE.py"), "--out", shlex.quote(f"runs/{run.name}"), "--set",
               *sets]
    digest = (m.get("source") or {}).get("sha256")
    out = [html.paragraph("Every stream of random numbers has a key of its own, from the seed; the same command with "
                          "the versions above gives the same draws. All settings are written out, so that it also "
                          "holds when defaults change."),
           html.code(" ".join(command))]
    if file is None:
        out.append(html.paragraph("The run does not know the file that declares it (it was started from Python): put "
                                  "its name in place of FILE.py."))
    if digest:
        out.append(html.labelled("SHA-256 of the file", digest))
    out.append(html.paragraph("To read the run in Python:"))
    out.append(html.code(f'import bayes_brg as brg\nrun = brg.load_run("{run.path.name}")\nrun.flow, run.summary'))
    return html.join(*out)


SECTIONS: dict[str, tuple[str, Callable[[_Seen], Markup]]] = {
    "summary": ("In short", _summary),
    "what": ("What was run", _what),
    "table": ("The table", _table),
    "convergence": ("Convergence", _convergence),
    "spectrum": ("Sloppiness spectrum", _spectrum),
    "loss": ("Loss and stiff fraction", _loss),
    "distributions": ("Before and after Λ_C", _distributions),
    "moments": ("Mean and variance", _moments),
    "field": ("Cumulants and couplings", _field),
    "calibration": ("Calibration", _calibration),
    "methods": ("Methods compared", _methods),
    "extras": ("The experiment's own", _extras),
    "numbers": ("All numbers", _numbers),
    "timings": ("Timings", _timings),
    "reproduce": ("How to reproduce", _reproduce),
}
