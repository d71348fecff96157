"""Experiment: what a file in models/ declares."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from ..core.checks import check_count
from ..core.files import check_name
from ..flow.flow import Flow
from ..io.store import Run
from ..model.networks import Network
from ..posterior import Posterior
from .data import Data
from .settings import Settings, like, nearest
from .stages import make_flow, make_probe, run_stages

__all__ = ["Data", "Experiment", "Settings", "load_experiment"]


@dataclass(frozen=True)
class Experiment:
    """An experiment: a model, its data, ways to infer, a metric and a flow. A file in models/ declares one.

    Every stream of random numbers (data, probe, each method, the flow of each method) has a key of its own, folded from
    the stream's name into ``jax.random.key(settings.seed)``. Data and probe are made once, so they are the same for all
    members.

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
        ``kind``: "straight" (the default), the flow of `renormalize`; "fibre", that of `renormalize_fibre`;
        "tempered", that of `renormalize_tempered`; and the keywords of that function, such as
        ``{"cutoffs": [0, .1, 1], "refill": "zero"}``; Λ per datum. Without ``cutoffs`` they are spaced over the main
        metric by `cutoffs`. `flow_of` samples the last two anew.
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
    figures : sequence of callables, or mapping of str to callable
        Further figures of the run: each ``draw(run)`` returns a matplotlib Figure, which is kept as
        ``figures/NAME.png`` and shown in the report with the first line of its docstring. A function names its figure.
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
    figures: Mapping[str, Callable[[Run], Any]] | Sequence[Callable[[Run], Any]] = ()
    extras: Callable[[Run, Mapping[str, Flow]], Mapping[str, Any]] | None = None

    def __post_init__(self):
        try:
            check_name(self.name, "an experiment's name")
        except ValueError as error:
            raise TypeError(str(error)) from None
        self._check_functions()
        for part in ("metric", "flow"):
            value = getattr(self, part)
            if not isinstance(value, Mapping) and not callable(value):
                raise TypeError(f"{part} of experiment {self.name!r} must be a mapping of keywords, got "
                                f"{type(value).__name__}")
        check_count(self.couplings, f"couplings of experiment {self.name!r}", minimum=0)
        if self.extras is not None and not callable(self.extras):
            raise TypeError(f"extras of experiment {self.name!r} must be a function of (run, flows), got "
                            f"{type(self.extras).__name__}")
        object.__setattr__(self, "figures", named_figures(self.figures))
        object.__setattr__(self, "settings", {"seed": 0, **self.settings})

    def _check_functions(self) -> None:
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
            if not isinstance(method, str) or not method.replace("_", "").isalnum() or len(method.encode()) > 100:
                raise TypeError(f"infer: method name {method!r} must be text of letters, digits and underscores, at "
                                "most 100 bytes: it names files")

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
        if check_count(values["seed"], "seed", minimum=0) >= 2**63:
            raise ValueError(f"seed must be below 2**63, got {values['seed']}")
        return Settings(values)

    def run(self, out: str | Path | None = None, settings: Mapping[str, Any] | None = None, *,
            progress_bar: bool = True, source: str | Path | None = None, keep_weights: bool = True,
            accept_changed: bool = False) -> Run:
        """Run every stage and leave a directory that `load_run` reads.

        A stage that an interrupted run of the same experiment and settings finished is read, not run again; since
        every stream has its own key, the result is the same. So it is with a file that was damaged or removed: a
        warning names it, and its stage alone is made anew. Runs in threads of one process wait for each other.

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
        accept_changed : bool
            Whether stages stay that other versions made, or the experiment's file, or one that it imports, before it
            changed. The manifest then says so.

        Returns
        -------
        Run

        Raises
        ------
        ValueError
            If `out` holds another experiment's run or this one's with other settings, naming the difference; or stages
            of other versions or of a file that has changed; or if another process is at work there.
        WriteError
            An `OSError`: if a file cannot be written, naming it, the room it needs and the room there is. What was
            finished stays.
        """
        path = Path(out) if out is not None else Path("runs") / self.name
        return run_stages(self, path, self.with_settings(settings), progress_bar, source, keep_weights,
                          accept_changed)

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
        return make_flow(self, settings, method, self.model(settings), run.posteriors[method],
                         make_probe(self, settings), run.flows[method]["cutoff"].values)


def named_figures(figures: Any) -> dict[str, Callable[..., Any]]:
    """Functions that draw, by the names of their figures."""
    if not isinstance(figures, Mapping):
        figures = {getattr(draw, "__name__", type(draw).__name__): draw for draw in figures}
    for name, draw in figures.items():
        if not callable(draw) or not str(name).isidentifier():  # it names a file
            raise TypeError(f"figures must be functions of a run that return a Figure, by name, got {name!r}: "
                            f"{type(draw).__name__}; a lambda has no name: write {{'name': lambda run: ...}}")
    return dict(figures)


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
