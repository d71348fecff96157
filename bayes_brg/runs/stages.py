"""The stages of a run: what each makes, the files that it leaves, and how an interrupted run goes on from them."""

from __future__ import annotations

import contextlib
import inspect
import io
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from ..core.batching import progress, quiet
from ..core.checks import check_choice, check_inputs
from ..core.files import Owner, WriteError, check_name, inside, listed, make_directory, sweep
from ..core.keys import name_key
from ..flow.cutoffs import check_cutoffs
from ..flow.cutoffs import cutoffs as spaced_cutoffs
from ..flow.flow import Flow
from ..flow.sampled import SampledFlow
from ..io import store
from ..io.manifest import fault_of, record
from ..io.netcdf import Netcdf, content_digest, to_bytes
from ..io.store import Run
from ..metric.fisher import KINDS, fisher
from ..metric.metric import spectrum_table
from ..posterior import Posterior
from .data import Data, data_dataset
from .flow_kinds import flow_kind
from .measures import measure, measure_couplings, summarize
from .provenance import NUMBERS, fingerprint, imported, is_file, machine, named, versions
from .settings import Settings, nearest

__all__ = ["make_data", "make_flow", "make_probe", "run_stages"]

ONE = threading.RLock()  # NumPyro's handlers are the process's: two threads at work would trace each other's models
OWN_FIGURES = {"phi_before_flow", "loss_along_flow", "phi_either_side", "phi_moments", "field_cumulants",
               "field_couplings"}
"""Figures of every run, or of those that measure couplings."""


class Stage(NamedTuple):
    """A step of a run, done once the manifest names it, with its files as they were written."""

    name: str
    files: tuple[str, ...]  # those that it always leaves
    make: Callable[[Work], None]
    after: Callable[[str], bool]  # of which stages' numbers its own are made
    weights: tuple[str, ...] = ()  # methods whose weights it needs


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
    stage: str = ""  # the one at work
    written: dict[str, dict[str, Any]] = field(default_factory=dict)  # by it: records of its files

    def posterior(self, method: str) -> Posterior:
        return self.fitted.get(method) or self.run.read_posterior(method)

    def write(self, name: str, content: bytes | memoryview, numbers: str | None = None) -> None:
        """A file of the run, whole or not at all, and its record."""
        for stage, done in self.run.manifest["stages"].items():
            if stage != self.stage and name in done.get("files", {}):
                raise ValueError(f"the stages {stage!r} and {self.stage!r} both leave {name}; give what the experiment "
                                 "itself makes of its run another name")
        store.write_file(self.run.path / name, content, root=self.run.path)
        self.written[name] = record(content, numbers)

    def write_datasets(self, path: Path, groups: dict, counted: Iterable[str | None] | None = None) -> None:
        """Datasets as NetCDF; the numbers of the groups in `counted` (default: all) are what later stages go by."""
        numbers = content_digest({g: d for g, d in groups.items() if counted is None or g in counted})
        self.write(path.name, to_bytes(groups), numbers)

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """A table as CSV."""
        self.write(name, table.to_csv(index=False).encode())

    def write_figure(self, name: str, figure: Any) -> None:
        """A figure as PNG."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        self.write(f"figures/{check_name(name, 'the name of a figure')}.png", buffer.getvalue())


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
    kind = flow_kind(flow)[0]
    own = [name for name in inspect.signature(fisher).parameters if name not in ("model", "posterior", "x")]
    for part, known, given in (("metric", own, metric), ("flow", kind.options, flow)):
        for name in given:
            if name not in known:
                raise TypeError(f"{part} of experiment {experiment.name!r} has no option {name!r}"
                                f"{nearest(name, known)}; its options are {', '.join(known)}")
    check_choice(metric.get("kind", "diagonal"), "kind", KINDS)
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
              cutoffs: Any, data: Data | None = None) -> Flow:
    """The flow of one method; without cutoffs they are spaced over its metric.

    Its key is that of the stream "flow", then of the method's name: two methods share no prior draw, so that they can
    be compared.
    """
    metric = fisher(model, posterior, probe, **options_of(experiment.metric, settings))
    kind, options = flow_kind(options_of(experiment.flow, settings))
    options["cutoffs"] = with_zero(spaced_cutoffs(metric) if cutoffs is None else cutoffs)
    key = name_key(name_key(jax.random.key(settings.seed), "flow"), method)
    return kind.make(model, posterior, metric, lambda: data or make_data(experiment, settings), key, options)


# -- what each stage makes ------------------------------------------------------------------------------------
def keep_data(work: Work) -> None:
    """The data and the probe inputs, as the model sees them."""
    if work.data.encoding is not None:
        work.write_table("encoding.csv", work.data.encoding)
    if work.data.encoder is not None:
        work.write("encoder.json", (work.data.encoder.record() + "\n").encode())
    work.write_datasets(work.run.path / "data.nc", {None: data_dataset(work.data, work.probe)})


def fit(work: Work, method: str) -> None:
    """Draws of a method's posterior."""
    key = name_key(jax.random.key(work.settings.seed), method)
    posterior = work.experiment.infer[method](work.model, work.data.x, work.data.y, key, work.settings)
    if not isinstance(posterior, Posterior):
        raise TypeError(f"infer[{method!r}] must return a Posterior, got {type(posterior).__name__}")
    groups = store.posterior_groups(posterior)
    work.write_datasets(work.run.file("posterior", method), groups,
                        [g for g in groups if str(g).endswith("posterior")])  # how long it took is no matter
    work.fitted = {method: posterior}


def flow(work: Work, method: str) -> None:
    """A method's metric, its flow, and what is measured along it."""
    cutoffs = options_of(work.experiment.flow, work.settings).get("cutoffs")
    if cutoffs is None and method != work.run.methods[0]:
        cutoffs = work.run.flow["cutoff"].values
    made = make_flow(work.experiment, work.settings, method, work.model, work.posterior(method), work.probe, cutoffs,
                     work.data)
    measured = measure(made, work.data, work.experiment.max_loss)
    work.run.manifest["results"][method] = dict(measured.attrs)
    metric = getattr(made, "metric", None)
    kept: dict[str | None, Any] = {None: measured}
    if metric is not None:
        kept["spectrum"] = spectrum_table(metric)
    if isinstance(made, SampledFlow):
        kept["sampling"] = made.report()
    work.write_datasets(work.run.file("flow", method), kept)
    work.fitted = {}


def summarise(work: Work) -> None:
    """A table along the flow for each method, in the data's own units."""
    for method in work.run.methods:
        work.write_table(work.run.file("summary", method, ".csv").name, summarize(work.run.own_units[method]))


def couplings(work: Work) -> None:
    """Couplings of the action along the flow of each method, in the data's own units."""
    for method in work.run.methods:
        found = measure_couplings(work.run.own_units[method], work.experiment.couplings)
        work.write_datasets(work.run.file("couplings", method), {None: found})


def figures(work: Work) -> None:
    """The figures of every run, then the experiment's own, with the first line of what each says of itself."""
    from .. import plots

    made = plots.run_figures(work.run)
    for name, draw in work.experiment.figures.items():
        made[name] = draw(work.run)
        if not hasattr(made[name], "savefig"):
            raise TypeError(f"figures[{name!r}] must return a matplotlib Figure, got {type(made[name]).__name__}")
    for name, figure in made.items():
        work.write_figure(name, figure)
    work.run.manifest["captions"] = {n: caption(draw) for n, draw in work.experiment.figures.items()}


def extras(work: Work) -> None:
    """What the experiment itself makes of its run: tables and figures."""
    flows = {m: work.experiment.flow_of(work.run, m) for m in work.run.methods}
    for name, result in work.experiment.extras(work.run, flows).items():
        if isinstance(result, pd.DataFrame):
            work.write_table(f"{check_name(name, 'the name of a table')}.csv", result)
        elif hasattr(result, "savefig"):
            work.write_figure(name, result)
        else:
            raise TypeError(f"extras: {name!r} must be a Figure or a DataFrame, got {type(result).__name__}")


def caption(draw: Callable[..., Any]) -> str:
    """What a function that draws says of its figure: the first line of its docstring."""
    return (inspect.getdoc(draw) or "").partition("\n")[0]


def stages(experiment: Any, run: Run) -> list[Stage]:
    """The table of stages, in the order in which they are run."""
    def files(stem: str, suffix: str = ".nc") -> tuple[str, ...]:
        return tuple(run.file(stem, method, suffix).name for method in run.methods)

    def of_flows(name: str) -> bool:
        return name == "data" or name.startswith("flow ")

    every = tuple(run.methods)
    found = [Stage("data", ("data.nc",), keep_data, lambda name: False)]
    for m in every:
        before = {"data", f"posterior {m}", f"flow {every[0]}"}  # the first one's cutoffs may be all others'
        found += [Stage(f"posterior {m}", (run.file("posterior", m).name,), partial(fit, method=m),
                        lambda name: name == "data"),
                  Stage(f"flow {m}", (run.file("flow", m).name,), partial(flow, method=m), before.__contains__, (m,))]
    found.append(Stage("summary", files("summary", ".csv"), summarise, of_flows))
    if experiment.couplings:
        found.append(Stage("couplings", files("couplings"), couplings, of_flows))
    found.append(Stage("figures", (), figures, lambda name: True, every if experiment.figures else ()))
    if experiment.extras:
        found.append(Stage("extras", (), extras, lambda name: True, every))
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
    if source is not None and (others := imported(Path(source))):
        found["imports"] = others
    return found | ({"data": fingerprint(Path(settings["data"]))} if is_file(settings.get("data")) else {})


def surroundings(settings: Settings) -> dict[str, Any]:
    """The key a run starts from, versions, and the machine."""
    key = jax.random.key(settings.seed)
    return {"key": {"seed": settings.seed, "implementation": str(jax.random.key_impl(key)),
                    "data": np.asarray(jax.random.key_data(key)).tolist()},
            "versions": versions(), "platform": machine()}


def run_stages(experiment: Any, path: Path, settings: Settings, show: bool, source: str | Path | None,
               keep_weights: bool, accept_changed: bool = False) -> Run:
    """Run the stages that are not done yet; see `Experiment.run`."""
    who = identity(experiment, settings, source)
    store.check_place(path)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ONE)
        try:
            make_directory(path)
            stack.enter_context(Owner(path))
        except WriteError:  # a finished run may lie where nothing can be written
            if not (path / store.MANIFEST).is_file():
                raise
            run = Run(path, store.open_run(path, who, accept_changed))
            if not run.finished or to_do(experiment, run):
                raise
            return run
        for folder in (path, inside(path, "figures")):
            sweep(folder)
        return continue_run(experiment, path, settings, show, source, keep_weights, accept_changed, who)


def continue_run(experiment: Any, path: Path, settings: Settings, show: bool, source: str | Path | None,
                 keep_weights: bool, accept_changed: bool, who: dict[str, Any]) -> Run:
    """The stages of a run whose directory is ours."""
    manifest = store.open_run(path, who, accept_changed)
    if source is not None:
        manifest["file"] = named(source, settings)
    run = Run(path, manifest)
    if not manifest["stages"]:  # before anything else: from now on the directory is a run
        manifest |= surroundings(settings)
        store.write_manifest(path, manifest)
    todo = to_do(experiment, run)
    if manifest["format"] == store.FORMAT and not copies_agree(path):
        store.write_manifest(path, manifest)
    if run.finished and not todo and (keep_weights or manifest.get("weights") is False):
        check_versions(experiment, run, accept_changed, refuse=False)
        if accept_changed:
            store.write_manifest(path, manifest)
        return run
    check_versions(experiment, run, accept_changed)
    manifest |= surroundings(settings)
    every = stages(experiment, run)
    with progress(desc=experiment.name, total=len(every), unit="stage", show=show) as bar, quiet(not show):
        data = make_data(experiment, settings)
        work = Work(experiment, settings, run, experiment.model(settings), data, make_probe(experiment, settings, data))
        check_same_data(work, accept_changed)
        if todo:
            manifest["finished"] = False
        for stage in every:
            if stage.name in todo:
                bar.set_postfix_str(stage.name)
                todo |= timed(stage, work, every)
            bar.update()
        if not keep_weights or manifest.get("weights") is False:
            manifest["weights"] = False
            for method in run.methods:
                drop_weights(run, method)
        manifest["finished"] = True
        store.write_manifest(path, manifest)
    return run


def timed(stage: Stage, work: Work, every: Iterable[Stage]) -> set[str]:
    """Run a stage and write it down in the manifest: only then is it finished.

    Where its numbers are others than before, the stages that were made of them are finished no more, and returned.
    """
    done, start = work.run.manifest["stages"], time.perf_counter()
    before = done.get(stage.name, {}).get("files", {})
    work.stage, work.written = stage.name, {}
    stage.make(work)
    changed = any(found.get("content") != before[name].get("content") for name, found in work.written.items()
                  if "content" in before.get(name, {}))
    done[stage.name] = {"seconds": round(time.perf_counter() - start, 3), "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                        "versions": versions(), "files": work.written}
    others = made_of(stage.name, every) if changed else set()
    for name in others & set(done):  # in the same breath: whoever comes after a death must not take them for whole
        del done[name]
        if name.startswith("flow "):
            work.run.manifest["results"].pop(name.removeprefix("flow "), None)
    store.write_manifest(work.run.path, work.run.manifest)
    return others


def made_of(name: str, every: Iterable[Stage]) -> set[str]:
    """Stages whose numbers are made of a stage's, at first or further hand."""
    found = [name]
    for stage in every:  # in the order in which they are run
        if stage.name != name and any(stage.after(one) for one in found):
            found.append(stage.name)
    return set(found[1:])


# -- what is done already -------------------------------------------------------------------------------------
def to_do(experiment: Any, run: Run) -> set[str]:
    """Stages that are not done, or whose files are not what was written; the latter are named in a warning."""
    done, every, found = run.manifest["stages"], stages(experiment, run), set()
    for stage in every:
        files = done.get(stage.name, {}).get("files")
        if stage.name not in done:
            found.add(stage.name)
        elif files is None:  # of an older version, without checksums
            if not all((run.path / name).is_file() for name in stage.files):
                found.add(stage.name)
        elif faults := [f for f in (fault_of(run.path, name, one) for name, one in files.items()) if f]:
            warnings.warn(f"{'; '.join(faults[:3])}; the stage {stage.name!r} is made anew", UserWarning, stacklevel=4)
            found.add(stage.name)
        elif not set(stage.files) <= set(files):
            found.add(stage.name)
    if run.manifest.get("weights") is False:  # what needs weights that were not kept needs them again
        found |= {f"posterior {m}" for stage in every if stage.name in found for m in stage.weights}
    return found


def check_versions(experiment: Any, run: Run, accept: bool, refuse: bool = True) -> None:
    """Name the stages that other versions made, and refuse them unless they are accepted."""
    now, old = versions(), []
    for name, stage in run.manifest["stages"].items():
        if "files" not in stage:
            old.append(f"{name} (an older version, without checksums)")
        elif then := [f"{k} {held.get(k)}" for held in [stage.get("versions", {})] for k in NUMBERS
                      if held.get(k) != now.get(k)]:
            old.append(f"{name} ({', '.join(then)})")
    if not old:
        return
    said = f"{run.path} has stages of other versions than these: {listed(old, 4)}"
    if accept:
        noted = run.manifest.setdefault("accepted", [])
        noted += [] if said in noted else [said]
        if run.manifest["format"] != store.FORMAT:
            know_files(experiment, run)
    elif refuse:
        raise ValueError(f"{said}; keep them with --accept-changed (accept_changed=True), or choose another directory "
                         "with --out")
    else:
        warnings.warn(f"{said}; they are left as they are", UserWarning, stacklevel=4)


def know_files(experiment: Any, run: Run) -> None:
    """From now on the files of a run without checksums are known by their bytes."""
    every, there = stages(experiment, run), run.recorded
    claimed = {name: stage.name for stage in every for name in stage.files}
    for name in there:
        if name not in claimed and not name.startswith(("manifest", "report")):
            own = Path(name).stem in {*OWN_FIGURES, *experiment.figures} or not experiment.extras
            claimed[name] = "data" if name.startswith("encod") else "figures" if "/" in name and own else "extras"
    for name, stage in run.manifest["stages"].items():
        stage["files"] = {f: record(inside(run.path, f).read_bytes()) for f in there if claimed.get(f) == name}
        stage["versions"] = dict(run.manifest.get("versions", {}))
    run.manifest["format"] = store.FORMAT


def check_same_data(work: Work, accept: bool) -> None:
    """Refuse to go on with other data than the first stages had: a model file may read what no setting names."""
    then = work.run.manifest["stages"].get("data", {}).get("files", {}).get("data.nc", {}).get("content")
    if then is None or then == content_digest({None: data_dataset(work.data, work.probe)}):
        return
    if accept:
        said = "the data that later stages had are not those in data.nc: what the model file reads has changed since"
        noted = work.run.manifest.setdefault("accepted", [])
        noted += [] if said in noted else [said]
        return
    raise ValueError(f"the data that the experiment makes now are not those in {work.run.path / 'data.nc'}: what its "
                     "model file reads has changed since; choose another directory with --out, or mix the two with "
                     "--accept-changed (accept_changed=True)")


def copies_agree(path: Path) -> bool:
    """Whether the manifest and its copy are the same, where there are both."""
    try:
        one, other = ((path / name).read_bytes() for name in (store.MANIFEST, store.COPY))
    except FileNotFoundError:
        return False
    return one == other


def drop_weights(run: Run, method: str) -> None:
    """Leave only what the sampler reported in a posterior's file. Killed at any time, one of the two is there."""
    name = run.file("posterior", method).name
    files = run.manifest["stages"][f"posterior {method}"]["files"]
    with Netcdf(run.open(name), name) as file:
        if "posterior" not in file.groups:
            files[name] = files[name].get("next", files[name])
            return
        content = to_bytes({"sample_stats": file.read("sample_stats")})
    bare = record(content, files[name].get("content"))
    files[name]["next"] = bare
    store.write_manifest(run.path, run.manifest)
    store.write_file(run.path / name, content, root=run.path)
    files[name] = bare
