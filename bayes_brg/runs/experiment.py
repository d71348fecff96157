"""Experiment: what a file in models/ declares, and the stages that run it."""

from __future__ import annotations

import inspect
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from ..core.batching import progress, quiet
from ..core.checks import check_choice, check_count, check_inputs
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
from ..model.networks import Network
from ..posterior import Posterior
from .data import Data, data_dataset
from .measures import measure, measure_couplings, summarize
from .provenance import fingerprint, is_file, machine, versions
from .settings import Settings, like, nearest

__all__ = ["Data", "Experiment", "Settings", "load_experiment"]


@dataclass(frozen=True)
class Experiment:
    """An experiment: a model, its data, ways to infer, a metric and a flow. A file in models/ declares one.

    Every stream of random numbers (data, probe, each method, flow) has a key of its own, folded from the stream's
    name into ``jax.random.key(settings.seed)``. Data and probe are made once, so they are the same for all members.

    Attributes
    ----------
    name : str
        Names the default run directory, ``runs/<name>``.
    model : callable
        ``model(settings)`` returns the NumPyro model or `Network`.
    data : callable
        ``data(settings, key)`` returns `Data`.
    probe : callable or None
        ``probe(settings, key)`` returns the inputs (n, dim) over which the Fisher metric is averaged; None: the
        training inputs.
    infer : mapping of str to callable
        Name of a method to ``method(model, x, y, key, settings)``, which returns a `Posterior`. The first is the main
        one; the others are shown beside it.
    metric : mapping, or callable of settings
        Keywords of `fisher`, such as ``{"at": "mean"}``.
    flow : mapping, or callable of settings
        Keywords of `renormalize`, such as ``{"cutoffs": [0, .1, 1], "refill": "zero"}``; Λ per datum. Without
        ``cutoffs`` they are spaced over the main metric by `cutoffs`.
    settings : mapping
        Names and default values, which ``--set name=value`` replaces by values of the same type. ``seed`` is always
        there (0).
    max_loss : float
        A member whose test loss at Λ = 0 is not below this, or not finite, has diverged: it is counted, listed and
        left out of the statistics. Units of the loss.
    couplings : int
        Follow the field on so many points, the characteristic input and then test inputs, along the flow: its
        cumulants to fourth order and the couplings of its action, with standard errors, in ``couplings.nc`` and two
        figures. 0 for none; an action of M points needs far more than M draws.
    extras : callable, optional
        ``extras(run, flows)`` returns further results by name, made when all else is done: matplotlib Figures, kept as
        ``figures/NAME.png``, and pandas DataFrames, kept as ``NAME.csv``. `run` is the `Run`, `flows` the `Flow` of
        each method.

    Raises
    ------
    TypeError
        If a part is not what it must be, by name.
    """

    name: str
    model: Callable[[Settings], Any]
    data: Callable[[Settings, jax.Array], Data]
    probe: Callable[[Settings, jax.Array], Any] | None
    infer: Mapping[str, Callable[..., Posterior]]
    metric: Mapping[str, Any] | Callable[[Settings], Mapping] = field(default_factory=dict)
    flow: Mapping[str, Any] | Callable[[Settings], Mapping] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    max_loss: float = 1e3
    couplings: int = 0
    extras: Callable[[Run, Mapping[str, Flow]], Mapping[str, Any]] | None = None

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name or Path(self.name).name != self.name:
            raise TypeError(f"an experiment's name must be text that can name a directory, got {self.name!r}")
        for part in ("model", "data", "probe"):
            value = getattr(self, part)
            if part == "probe" and value is None:
                continue
            if isinstance(value, Network) or not callable(value):
                raise TypeError(f"{part} of experiment {self.name!r} must be a function of settings, got "
                                f"{type(value).__name__}; write {part}=lambda settings"
                                f"{', key' * (part != 'model')}: ...")
        if not isinstance(self.infer, Mapping) or not self.infer:
            raise TypeError(f"infer of experiment {self.name!r} must name at least one method: "
                            "{'ensemble': function(model, x, y, key, settings)}")
        for method, function in self.infer.items():
            if not callable(function):
                raise TypeError(f"infer[{method!r}] must be a function, got {type(function).__name__}")
            if not str(method).replace("_", "").isalnum():  # it names files
                raise TypeError(f"infer: method name {method!r} must be letters, digits and underscores")
        for part in ("metric", "flow"):
            value = getattr(self, part)
            if not isinstance(value, Mapping) and not callable(value):
                raise TypeError(f"{part} of experiment {self.name!r} must be a mapping of keywords, got "
                                f"{type(value).__name__}")
        check_count(self.couplings, f"couplings of experiment {self.name!r}", minimum=0)
        if self.extras is not None and not callable(self.extras):
            raise TypeError(f"extras of experiment {self.name!r} must be a function of (run, flows), got "
                            f"{type(self.extras).__name__}")
        object.__setattr__(self, "settings", {"seed": 0, **self.settings})

    def with_settings(self, overrides: Mapping[str, Any] | None = None) -> Settings:
        """Default settings with some replaced. Text is read as the default's type.

        Raises
        ------
        ValueError
            If a name is unknown (the nearest is given) or a value is not of the default's type.
        """
        values = dict(self.settings)
        for name, value in (overrides or {}).items():
            if name not in values:
                raise ValueError(f"experiment {self.name!r} has no setting {name!r}{nearest(name, values)}; "
                                 f"its settings are {', '.join(values)}")
            values[name] = like(values[name], value, name)
        check_count(values["seed"], "seed", minimum=0)
        return Settings(values)

    def run(self, out: str | Path | None = None, settings: Mapping[str, Any] | None = None, *,
            progress_bar: bool = True, source: str | Path | None = None, keep_weights: bool = True) -> Run:
        """Run every stage and leave a directory that `load_run` reads.

        A stage that an interrupted run of the same experiment and settings finished is read, not run again; since
        every stream has its own key, the result is the same.

        Parameters
        ----------
        out : str or Path, optional
            The run directory; default ``runs/<name>``.
        settings : mapping, optional
            Replaces default settings.
        progress_bar : bool
            Show stages and progress on a terminal.
        source : str or Path, optional
            The file that declares the experiment; a changed file is another experiment.
        keep_weights : bool
            Whether the weights of every draw stay on disk when all stages are done. Function values, φ and the loss
            along the flow, always do, and so do the sampler's reports.

        Returns
        -------
        Run

        Raises
        ------
        ValueError
            If `out` holds another experiment's run or this one's with other settings, naming the difference.
        """
        path = Path(out) if out is not None else Path("runs") / self.name
        return _run(self, path, self.with_settings(settings), progress_bar, source, keep_weights)

    def flow_of(self, run: Run, method: str | None = None) -> Flow:
        """The `Flow` behind a run's flow data: the same draws, refills and cutoffs, to ask it for more.

        Parameters
        ----------
        run : Run
            Of this experiment.
        method : str, optional
            Default the main one.

        Returns
        -------
        Flow
        """
        if run.name != self.name:
            raise ValueError(f"{run.path} is a run of {run.name!r}, not of {self.name!r}")
        method = run.methods[0] if method is None else method
        if method not in run.methods:
            raise ValueError(f"the run has no method {method!r}; its methods are {', '.join(run.methods)}")
        settings = self.with_settings(run.settings)
        key = jax.random.key(settings.seed)
        data = self.data(settings, name_key(key, "data")) if self.probe is None else None
        x_probe = _probe(self, settings, key, data)
        return _renormalized(self, settings, self.model(settings), run.posteriors[method], x_probe,
                             run.flows[method]["cutoff"].values)


# -- the stages -----------------------------------------------------------------------------------------------
def _options(part: Mapping[str, Any] | Callable[[Settings], Mapping], settings: Settings) -> dict[str, Any]:
    return dict(part(settings) if callable(part) else part)


def _with_zero(cutoffs: Any) -> np.ndarray:
    """Cutoffs from Λ = 0 on, with which all others are compared."""
    cutoffs = check_cutoffs(cutoffs)
    return cutoffs if cutoffs[0] == 0 else np.concatenate([[0.0], cutoffs])


def _check_options(experiment: Experiment, metric: Mapping[str, Any], flow: Mapping[str, Any]) -> None:
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
        _with_zero(flow["cutoffs"])


def _probe(experiment: Experiment, settings: Settings, key: jax.Array, data: Data | None) -> Any:
    if experiment.probe is None:
        assert data is not None
        return data.x
    return check_inputs(experiment.probe(settings, name_key(key, "probe")), "probe")


def _renormalized(experiment: Experiment, settings: Settings, model: Any, posterior: Posterior, x_probe: Any,
                  cutoffs: Any) -> Flow:
    """The flow of one method; without cutoffs they are spaced over its metric."""
    made = fisher(model, posterior, x_probe, **_options(experiment.metric, settings))
    options = _options(experiment.flow, settings)
    options["cutoffs"] = _with_zero(spaced_cutoffs(made) if cutoffs is None else cutoffs)
    return renormalize(model, posterior, made, key=name_key(jax.random.key(settings.seed), "flow"), **options)


def _run(experiment: Experiment, path: Path, settings: Settings, progress_bar: bool,
         source: str | Path | None, keep_weights: bool) -> Run:
    metric, flow = (_options(part, settings) for part in (experiment.metric, experiment.flow))
    _check_options(experiment, metric, flow)
    methods, key = list(experiment.infer), jax.random.key(settings.seed)
    manifest = store.open_run(path, {
        "experiment": experiment.name, "settings": dict(settings), "methods": methods,
        "options": {"metric": metric, "flow": flow, "max_loss": experiment.max_loss,
                    **({"couplings": experiment.couplings} if experiment.couplings else {})},
        "precision": "float64" if jax.config.jax_enable_x64 else "float32",
        "source": None if source is None else fingerprint(Path(source)),
        **({"data": fingerprint(Path(settings["data"]))} if is_file(settings.get("data")) else {}),
    })
    if source is not None:  # as it was named: the command that runs it again
        manifest["file"] = Path(source).name if Path(source).is_absolute() else Path(source).as_posix()
    run = Run(path, manifest)
    if run.finished and all(file.is_file() for file in run.files):
        return run
    manifest["key"] = {"seed": settings.seed, "implementation": str(jax.random.key_impl(key)),
                       "data": np.asarray(jax.random.key_data(key)).tolist()}
    manifest["versions"], manifest["platform"] = versions(), machine()
    todo = {stage for m in methods for stage in (f"posterior {m}", f"flow {m}")} | {"data", "summary", "figures"}
    todo |= {"extras"} if experiment.extras else set()
    todo |= {"couplings"} if experiment.couplings else set()
    bar = progress(desc=experiment.name, total=len(todo), unit="stage", show=progress_bar)
    bar.update(len(todo & set(manifest["stages"])))

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        bar.set_postfix_str(name)
        start = time.perf_counter()
        yield
        manifest["stages"][name] = {"seconds": round(time.perf_counter() - start, 3),
                                    "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        store.write_json(path / store.MANIFEST, manifest)  # only now is the stage finished
        bar.update()

    def missing(name: str, file: Path) -> bool:
        return name not in manifest["stages"] or not file.is_file()

    with bar, quiet(not progress_bar):
        # Model, data and probe are made anew when a run is resumed: they follow from the settings and the key.
        model = experiment.model(settings)
        data = experiment.data(settings, name_key(key, "data"))
        if not isinstance(data, Data):
            raise TypeError(f"data of experiment {experiment.name!r} must return brg.Data, got {type(data).__name__}")
        x_probe = _probe(experiment, settings, key, data)
        if missing("data", path / "data.nc"):
            with stage("data"):
                store.write_datasets(path / "data.nc", {None: data_dataset(data, x_probe)})
        cutoffs = flow.get("cutoffs")
        for method, infer in experiment.infer.items():
            posterior_file, flow_file = run.file("posterior", method), run.file("flow", method)
            posterior = None
            if missing(f"posterior {method}", posterior_file):
                with stage(f"posterior {method}"):
                    posterior = infer(model, data.x, data.y, name_key(key, method), settings)
                    if not isinstance(posterior, Posterior):
                        raise TypeError(f"infer[{method!r}] must return a Posterior, got {type(posterior).__name__}")
                    store.save_posterior(posterior_file, posterior)
            if missing(f"flow {method}", flow_file):
                with stage(f"flow {method}"):
                    posterior = posterior or store.load_posterior(posterior_file)
                    if cutoffs is None and method != methods[0]:
                        cutoffs = run.flow.cutoff.values
                    flowed = _renormalized(experiment, settings, model, posterior, x_probe, cutoffs)
                    measured = measure(flowed, data, experiment.max_loss)
                    manifest["results"][method] = dict(measured.attrs)
                    store.write_datasets(flow_file, {None: measured, "spectrum": spectrum_table(flowed.metric)})
        if "summary" not in manifest["stages"] or not all(run.file("summary", m, ".csv").is_file() for m in methods):
            with stage("summary"):
                for method in methods:
                    with store.replacing(run.file("summary", method, ".csv")) as temporary:
                        summarize(run.flows[method]).to_csv(temporary, index=False)
        if experiment.couplings and not ("couplings" in manifest["stages"]
                                         and all(run.file("couplings", m).is_file() for m in methods)):
            with stage("couplings"):
                for method in methods:
                    store.write_datasets(run.file("couplings", method),
                                         {None: measure_couplings(run.flows[method], experiment.couplings)})
        if "figures" not in manifest["stages"]:
            with stage("figures"):
                from .. import plots
                for name, figure in plots.run_figures(run).items():
                    with store.replacing(path / "figures" / f"{name}.png") as temporary:
                        figure.savefig(temporary, format="png", dpi=150)
        if experiment.extras and "extras" not in manifest["stages"]:
            with stage("extras"):
                results = experiment.extras(run, {m: experiment.flow_of(run, m) for m in methods})
                for name, result in results.items():
                    if isinstance(result, pd.DataFrame):
                        with store.replacing(path / f"{name}.csv") as temporary:
                            result.to_csv(temporary, index=False)
                    elif hasattr(result, "savefig"):
                        with store.replacing(path / "figures" / f"{name}.png") as temporary:
                            result.savefig(temporary, format="png", dpi=150)
                    else:
                        raise TypeError(f"extras: {name!r} must be a Figure or a DataFrame, got "
                                        f"{type(result).__name__}")
        if not keep_weights:
            for method in methods:
                store.drop_weights(run.file("posterior", method))
        manifest["finished"] = True
        store.write_json(path / store.MANIFEST, manifest)
    return run


# -- files, surroundings ----------------------------------------------------------------------------
def load_experiment(path: str | Path) -> Experiment:
    """The `Experiment` that a Python file declares.

    Parameters
    ----------
    path : str or Path
        A file such as ``models/wide_relu.py``; it is run.

    Returns
    -------
    Experiment

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it is not Python, it fails, or it declares no experiment or several.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if not path.is_file():
        raise ValueError(f"{path} is a directory; name a Python file that declares an Experiment")
    try:
        text = path.read_bytes().decode("utf-8")
        code = compile(text, str(path), "exec")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file; name a Python file that declares an Experiment") from None
    except SyntaxError as error:
        raise ValueError(f"{path} is not Python: {error.msg} (line {error.lineno})") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    module = types.ModuleType(f"bayes_brg_experiment_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)  # as `python file.py` does, so that a file may import its neighbours
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} fails when it is run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    found = {id(v): v for v in vars(module).values() if isinstance(v, Experiment)}
    if len(found) != 1:
        raise ValueError(f"{path} declares {len(found) or 'no'} Experiment{'s' * (len(found) > 1)}; it needs one: "
                         "experiment = brg.Experiment(name=..., model=..., ...)")
    return next(iter(found.values()))
