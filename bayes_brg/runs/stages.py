"""The stages of a run: what each makes, the files that it leaves, and how an interrupted run goes on from them."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from ..core.batching import progress, quiet
from ..core.checks import check_choice, check_inputs
from ..core.keys import name_key
from ..flow.cutoffs import check_cutoffs
from ..flow.cutoffs import cutoffs as spaced_cutoffs
from ..flow.flow import Flow
from ..flow.regulators import as_regulator
from ..flow.renormalize import REFILLS, renormalize
from ..io import store
from ..io.store import Run
from ..metric.fisher import KINDS, fisher
from ..metric.metric import spectrum_table
from ..posterior import Posterior
from .data import Data, data_dataset
from .measures import measure, measure_couplings, summarize
from .provenance import fingerprint, is_file, machine, versions
from .settings import Settings, nearest

__all__ = ["make_data", "make_flow", "make_probe", "run_stages"]


class Stage(NamedTuple):
    """A step of a run, done once the manifest names it and its files are there."""

    name: str
    files: tuple[Path, ...]
    make: Callable[[Work], None]


@dataclass
class Work:
    """What the stages of a run share.

    Model, data and probe are made anew when a run is resumed: they follow from the settings and the key.
    """

    experiment: Any
    settings: Settings
    run: Run
    model: Any
    data: Data
    probe: Any
    fitted: dict[str, Posterior] = field(default_factory=dict)  # the last method's, which its flow need not read

    def posterior(self, method: str) -> Posterior:
        return self.fitted.get(method) or store.load_posterior(self.run.file("posterior", method))


# -- parts of an experiment -----------------------------------------------------------------------------------
def options_of(part: Mapping[str, Any] | Callable[[Settings], Mapping], settings: Settings) -> dict[str, Any]:
    """Keywords for `fisher` or `renormalize`."""
    return dict(part(settings) if callable(part) else part)


def with_zero(cutoffs: Any) -> np.ndarray:
    """Cutoffs from Λ = 0 on, with which all others are compared."""
    cutoffs = check_cutoffs(cutoffs)
    return cutoffs if cutoffs[0] == 0 else np.concatenate([[0.0], cutoffs])


def check_options(experiment: Any, metric: Mapping[str, Any], flow: Mapping[str, Any]) -> None:
    """Refuse at the start what `fisher` and `renormalize` would refuse once everything is inferred."""
    for part, function, given, own in (("metric", fisher, metric, ("model", "posterior", "x")),
                                       ("flow", renormalize, flow, ("model", "posterior", "metric", "key"))):
        known = [name for name in inspect.signature(function).parameters if name not in own]
        for name in given:
            if name not in known:
                raise TypeError(f"{part} of experiment {experiment.name!r} has no option {name!r}"
                                f"{nearest(name, known)}; its options are {', '.join(known)}")
    check_choice(metric.get("kind", "diagonal"), "kind", KINDS)
    check_choice(flow.get("refill", "prior"), "refill", REFILLS)
    as_regulator(flow.get("regulator", "sharp"))
    if flow.get("cutoffs") is not None:
        with_zero(flow["cutoffs"])


def make_data(experiment: Any, settings: Settings) -> Data:
    """Data of an experiment, from the stream "data" of its seed."""
    data = experiment.data(settings, name_key(jax.random.key(settings.seed), "data"))
    if not isinstance(data, Data):
        raise TypeError(f"data of experiment {experiment.name!r} must return brg.Data, got {type(data).__name__}")
    return data


def make_probe(experiment: Any, settings: Settings, data: Data | None = None) -> Any:
    """Probe inputs, from the stream "probe"; the training inputs where the experiment has none of its own."""
    if experiment.probe is None:
        return (data or make_data(experiment, settings)).x
    return check_inputs(experiment.probe(settings, name_key(jax.random.key(settings.seed), "probe")), "probe")


def make_flow(experiment: Any, settings: Settings, method: str, model: Any, posterior: Posterior, probe: Any,
              cutoffs: Any) -> Flow:
    """The flow of one method; without cutoffs they are spaced over its metric.

    Its key is that of the stream "flow", then of the method's name: two methods share no prior draw, so that they can
    be compared.
    """
    metric = fisher(model, posterior, probe, **options_of(experiment.metric, settings))
    options = options_of(experiment.flow, settings)
    options["cutoffs"] = with_zero(spaced_cutoffs(metric) if cutoffs is None else cutoffs)
    key = name_key(name_key(jax.random.key(settings.seed), "flow"), method)
    return renormalize(model, posterior, metric, key=key, **options)


# -- what each stage makes ------------------------------------------------------------------------------------
def keep_data(work: Work) -> None:
    """The data and the probe inputs, as the model sees them."""
    if work.data.encoding is not None:
        write_table(work.run.path / "encoding.csv", work.data.encoding)
    if work.data.encoder is not None:
        with store.replacing(work.run.path / "encoder.json") as temporary:
            temporary.write_text(work.data.encoder.record() + "\n", encoding="utf-8")
    store.write_datasets(work.run.path / "data.nc", {None: data_dataset(work.data, work.probe)})


def fit(work: Work, method: str) -> None:
    """Draws of a method's posterior."""
    key = name_key(jax.random.key(work.settings.seed), method)
    posterior = work.experiment.infer[method](work.model, work.data.x, work.data.y, key, work.settings)
    if not isinstance(posterior, Posterior):
        raise TypeError(f"infer[{method!r}] must return a Posterior, got {type(posterior).__name__}")
    store.save_posterior(work.run.file("posterior", method), posterior)
    work.fitted = {method: posterior}


def flow(work: Work, method: str) -> None:
    """A method's metric, its flow, and what is measured along it."""
    cutoffs = options_of(work.experiment.flow, work.settings).get("cutoffs")
    if cutoffs is None and method != work.run.methods[0]:
        cutoffs = work.run.flow["cutoff"].values
    made = make_flow(work.experiment, work.settings, method, work.model, work.posterior(method), work.probe, cutoffs)
    measured = measure(made, work.data, work.experiment.max_loss)
    work.run.manifest["results"][method] = dict(measured.attrs)
    metric = getattr(made, "metric", None)
    kept: dict[str | None, Any] = {None: measured}
    if metric is not None:
        kept["spectrum"] = spectrum_table(metric)
    store.write_datasets(work.run.file("flow", method), kept)
    work.fitted = {}


def summarise(work: Work) -> None:
    """A table along the flow for each method, in the data's own units."""
    for method in work.run.methods:
        write_table(work.run.file("summary", method, ".csv"), summarize(work.run.own_units[method]))


def couplings(work: Work) -> None:
    """Couplings of the action along the flow of each method, in the data's own units."""
    for method in work.run.methods:
        found = measure_couplings(work.run.own_units[method], work.experiment.couplings)
        store.write_datasets(work.run.file("couplings", method), {None: found})


def figures(work: Work) -> None:
    """The figures of every run, then the experiment's own, with the first line of what each says of itself."""
    from .. import plots

    made = plots.run_figures(work.run)
    for name, draw in work.experiment.figures.items():
        made[name] = draw(work.run)
        if not hasattr(made[name], "savefig"):
            raise TypeError(f"figures[{name!r}] must return a matplotlib Figure, got {type(made[name]).__name__}")
    for name, figure in made.items():
        write_figure(work.run.path, name, figure)
    work.run.manifest["captions"] = {n: caption(draw) for n, draw in work.experiment.figures.items()}


def extras(work: Work) -> None:
    """What the experiment itself makes of its run: tables and figures."""
    flows = {m: work.experiment.flow_of(work.run, m) for m in work.run.methods}
    for name, result in work.experiment.extras(work.run, flows).items():
        if isinstance(result, pd.DataFrame):
            write_table(work.run.path / f"{name}.csv", result)
        elif hasattr(result, "savefig"):
            write_figure(work.run.path, name, result)
        else:
            raise TypeError(f"extras: {name!r} must be a Figure or a DataFrame, got {type(result).__name__}")


def caption(draw: Callable[..., Any]) -> str:
    """What a function that draws says of its figure: the first line of its docstring."""
    return (inspect.getdoc(draw) or "").partition("\n")[0]


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A table as CSV, whole or not at all."""
    with store.replacing(path) as temporary:
        table.to_csv(temporary, index=False)


def write_figure(path: Path, name: str, figure: Any) -> None:
    """A figure as PNG, whole or not at all."""
    with store.replacing(path / "figures" / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def stages(experiment: Any, run: Run) -> list[Stage]:
    """The table of stages, in the order in which they are run."""
    def files(stem: str, suffix: str = ".nc") -> tuple[Path, ...]:
        return tuple(run.file(stem, method, suffix) for method in run.methods)

    found = [Stage("data", (run.path / "data.nc",), keep_data)]
    for method in run.methods:
        found += [Stage(f"posterior {method}", (run.file("posterior", method),), partial(fit, method=method)),
                  Stage(f"flow {method}", (run.file("flow", method),), partial(flow, method=method))]
    found.append(Stage("summary", files("summary", ".csv"), summarise))
    if experiment.couplings:
        found.append(Stage("couplings", files("couplings"), couplings))
    found.append(Stage("figures", (), figures))
    if experiment.extras:
        found.append(Stage("extras", (), extras))
    return found


# -- a run ----------------------------------------------------------------------------------------------------
def identity(experiment: Any, settings: Settings, source: str | Path | None) -> dict[str, Any]:
    """What must agree for the stages of an earlier run to be taken over."""
    metric, flow = (options_of(part, settings) for part in (experiment.metric, experiment.flow))
    check_options(experiment, metric, flow)
    options = {"metric": metric, "flow": flow, "max_loss": experiment.max_loss}
    if experiment.couplings:
        options["couplings"] = experiment.couplings
    found = {"experiment": experiment.name, "settings": dict(settings), "methods": list(experiment.infer),
             "options": options, "precision": "float64" if jax.config.jax_enable_x64 else "float32",
             "source": None if source is None else fingerprint(Path(source))}
    return found | ({"data": fingerprint(Path(settings["data"]))} if is_file(settings.get("data")) else {})


def surroundings(settings: Settings) -> dict[str, Any]:
    """The key a run starts from, versions, and the machine."""
    key = jax.random.key(settings.seed)
    return {"key": {"seed": settings.seed, "implementation": str(jax.random.key_impl(key)),
                    "data": np.asarray(jax.random.key_data(key)).tolist()},
            "versions": versions(), "platform": machine()}


def run_stages(experiment: Any, path: Path, settings: Settings, show: bool, source: str | Path | None,
               keep_weights: bool) -> Run:
    """Run the stages that are not done yet; see `Experiment.run`."""
    manifest = store.open_run(path, identity(experiment, settings, source))
    if source is not None:  # as it was named: the command that runs it again
        manifest["file"] = Path(source).name if Path(source).is_absolute() else Path(source).as_posix()
    run = Run(path, manifest)
    if run.finished and all(file.is_file() for file in run.files):
        return run
    manifest |= surroundings(settings)
    todo = stages(experiment, run)
    with progress(desc=experiment.name, total=len(todo), unit="stage", show=show) as bar, quiet(not show):
        data = make_data(experiment, settings)
        work = Work(experiment, settings, run, experiment.model(settings), data, make_probe(experiment, settings, data))
        for stage in todo:
            if stage.name not in manifest["stages"] or not all(file.is_file() for file in stage.files):
                bar.set_postfix_str(stage.name)
                timed(stage, work)
            bar.update()
        if not keep_weights:
            for method in run.methods:
                store.drop_weights(run.file("posterior", method))
        manifest["finished"] = True
        store.write_json(path / store.MANIFEST, manifest)
    return run


def timed(stage: Stage, work: Work) -> None:
    """Run a stage and write it down in the manifest: only then is it finished."""
    start = time.perf_counter()
    stage.make(work)
    work.run.manifest["stages"][stage.name] = {"seconds": round(time.perf_counter() - start, 3),
                                               "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    store.write_json(work.run.path / store.MANIFEST, work.run.manifest)
