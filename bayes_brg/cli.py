"""Command line: ``bayes-brg run FILE``, ``bayes-brg board TABLE``, ``bayes-brg compare RUN RUN`` and so on."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .core.files import WriteError, listed, plain, short

__all__ = ["main"]

# The columns of summary.csv that fit a terminal, and how they are written there.
COLUMNS = {"cutoff": "Λ", "sloppy_fraction": "sloppy", "loss_median": "loss median", "loss_mean": "mean",
           "loss_q05": "5 %", "loss_q95": "95 %", "phi_mean": "φ mean", "phi_std": "φ sd", "phi_skewness": "skew",
           "phi_excess_kurtosis": "kurtosis"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; default those of the process.

    Returns
    -------
    int
        0 where all went well, 1 where a file could not be written, 2 for another error (told in one line), 130 for
        an interrupt, 128 and its number for another signal that ends (SIGTERM, SIGHUP).
    """
    for stream in (sys.stdout, sys.stderr):  # Λ and φ on a terminal that has no such letters
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    arguments = _parser().parse_args(argv)
    status = _status(arguments)
    if status and getattr(arguments, "joined", False):
        # At its exit JAX would wait, minutes long, for processes that wait for this one.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
    return status


def _status(arguments: argparse.Namespace) -> int:
    """Do what the arguments say; the exit status, after a line about what went wrong."""
    try:
        with signals():
            arguments.command(arguments)
    except KeyboardInterrupt as interrupt:
        number = getattr(interrupt, "signal", signal.SIGINT)
        name = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        print(f"{name}; the same command goes on from the finished stages", file=sys.stderr)
        return 128 + number
    except BrokenPipeError:  # the reader of our output went away
        return 0
    except Failed as failed:
        return int(failed.args[0])
    except Exception as error:
        if arguments.traceback:
            raise
        name = "" if isinstance(error, (ValueError, TypeError, OSError)) else f"{type(error).__name__}: "
        message = plain(" ".join(str(error).split())) or type(error).__name__
        print(f"bayes-brg: error: {name}{message}", file=sys.stderr)
        return 1 if isinstance(error, WriteError) else 2
    return 0


class Ended(KeyboardInterrupt):
    """A signal that ends the process, as Ctrl-C does: what runs is left as it is, and can be gone on with."""

    signal: int = signal.SIGTERM


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP where it is not ignored, end as Ctrl-C does."""
    before: dict[int, Any] = {}

    def end(number: int, frame: Any) -> None:
        found = Ended()
        found.signal = number
        raise found

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def say(*words: Any) -> None:
    """Print, without what a terminal would obey: a run may be a stranger's."""
    print(plain(" ".join(map(str, words))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bayes-brg", description="Bayesian neural networks seen through the "
                                     "renormalisation group: run experiments, look at runs.")
    parser.add_argument("--version", action="version", version=f"bayes-brg {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run the experiment that a file declares, or fit a table",
                              description="Run the experiment that FILE declares, or fit the table that it holds and "
                              "write a report; an interrupted run goes on.")
    run.add_argument("file", metavar="FILE", help="a Python file with an Experiment, such as models/wide_relu.py; or a "
                     "table (.csv, .tsv, .txt, plain or packed, .npz), with --target")
    run.add_argument("--out", metavar="DIR", help="run directory (default: runs/NAME, of a table its file's)")
    run.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], nargs="+", dest="settings",
                     help="replace settings; may be repeated")
    run.add_argument("--data", metavar="TABLE", help="a table's file in place of the experiment's own table")
    run.add_argument("--target", metavar="COLUMN", help="the column of TABLE to predict")
    run.add_argument("--no-weights", action="store_true", help="keep function values on disk, not the weights")
    run.add_argument("--accept-changed", action="store_true", help="keep the finished stages though a version, the "
                     "model file or a file that it imports has changed since")
    run.add_argument("--quiet", action="store_true", help="print nothing but errors")
    run.add_argument("--distributed", action="store_true", help="be one process of a job that Slurm, Open MPI or "
                     "Kubernetes started")
    run.add_argument("--coordinator", metavar="HOST:PORT", help="be one process of a job: where process 0 listens")
    run.add_argument("--num-processes", metavar="N", type=int, help="how many processes the job has")
    run.add_argument("--process-id", metavar="I", type=int, help="which of them this is, from 0")
    run.set_defaults(command=_run)
    several = commands.add_parser("launch", help="run in several processes of this machine",
                                  description="Run FILE in N processes of one job on this machine, which share draws "
                                  "and chains out; one of them owns the run directory.")
    several.add_argument("-n", "--processes", metavar="N", type=int, required=True, help="how many")
    several.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    several.add_argument("arguments", metavar="run FILE ...", nargs=argparse.REMAINDER,
                         help="the command, as without launch")
    several.set_defaults(command=_launch)

    page = commands.add_parser("report", help="write one HTML page about a run")
    page.add_argument("run", metavar="RUN", help="a run directory")
    page.add_argument("--out", metavar="FILE", help="the file to write (default: RUN/report.html)")
    page.add_argument("--experiment", metavar="FILE", help="the file that declares the run's experiment: for the "
                      "calibration of NumPyro models of your own, and the spectrum of older runs")
    page.set_defaults(command=_report)
    _compare_parser(commands)
    _board_parser(commands)

    info = commands.add_parser("info", help="versions, or what a run contains")
    info.add_argument("run", metavar="RUN", nargs="?", help="a run directory")
    info.add_argument("--verify", action="store_true", help="compare every file of the run with its SHA-256")
    info.set_defaults(command=_info)
    for command in (run, page, info):
        command.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    return parser


class Failed(Exception):
    """A command that has said what went wrong, and its exit status."""


def _launch(arguments: argparse.Namespace) -> None:
    from .runs.jobs import launch

    words = arguments.arguments
    if words[:1] != ["run"] or len(words) < 2:
        raise ValueError(f"launch starts a run: bayes-brg launch -n 4 run FILE; got {' '.join(words) or 'nothing'}")
    if arguments.processes < 1:
        raise ValueError(f"-n must be 1 or more, got {arguments.processes}")
    if status := launch(arguments.processes, words):
        raise Failed(status)


def _run(arguments: argparse.Namespace) -> None:
    joined = (arguments.coordinator, arguments.num_processes, arguments.process_id)
    if arguments.distributed or any(v is not None for v in joined):
        from .runs.jobs import join

        join(*joined)
        import jax

        arguments.joined = True
        if jax.process_index() > 0:  # process 0 speaks
            arguments.quiet = True
            warnings.simplefilter("ignore")
    _run_here(arguments)


def _run_here(arguments: argparse.Namespace) -> None:
    from .runs.experiment import load_experiment
    from .runs.jobs import place
    from .runs.reading import is_table
    from .runs.table_experiment import TABLE_FILE

    settings = {}
    for item in (item for group in arguments.settings for item in group):
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ValueError(f"--set takes NAME=VALUE, got {item!r}")
        settings[name.strip()] = value.strip()
    file, data, out = arguments.file, arguments.data, arguments.out
    if alone := is_table(file):
        if data is not None:
            raise ValueError(f"{file} is a table, and --data {data} another; name one of them")
        if "target" in settings and arguments.target is None:
            arguments.target = settings.pop("target")
        file, data, out = TABLE_FILE, file, out or Path("runs") / Path(file).name.split(".")[0]
    experiment = load_experiment(file)
    for name, value in (("data", data), ("target", arguments.target)):
        if value is None:
            continue
        if name not in experiment.settings:
            raise ValueError(f"experiment {experiment.name!r} makes its own data and takes no --{name}; "
                             "models/table.py, diabetes.py, breast_cancer.py and digits.py take a table")
        settings[name] = value
    with place(Path(out or Path("runs") / experiment.name)) as directory:
        run = experiment.run(directory, settings, progress_bar=not arguments.quiet, source=file,
                             keep_weights=not arguments.no_weights, accept_changed=arguments.accept_changed)
        page = None
        if alone:
            from .runs.report import report as write

            page = write(run, experiment=experiment)
    if not arguments.quiet:
        say(report(run))
        if page is not None:
            say(f"report: {page}")


def _report(arguments: argparse.Namespace) -> None:
    from .runs.report import report as write

    say(write(arguments.run, arguments.out, experiment=arguments.experiment))


def _compare_parser(commands) -> None:
    parser = commands.add_parser(
        "compare", help="compare two runs, or two methods of one, scale by scale",
        description="Compare the flows of two runs, or of two methods of one run, at every cutoff: distance of their "
                    "laws, cumulants, held-out predictive density, coverage, critical scales.")
    parser.add_argument("runs", metavar="RUN[:METHOD]", nargs="+",
                        help="one or two run directories; the main method, or the two of a run that has two")
    parser.add_argument("--out", metavar="DIR", help="where table, data and figure go (default: RUN/comparisons)")
    parser.add_argument("--experiment", metavar="FILE", help="the file that declares the runs' experiment: flows are "
                        "then made anew, for models of your own")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    parser.set_defaults(command=_compare)


def _compare(arguments: argparse.Namespace) -> None:
    from . import plots
    from .diagnostics.compare import compare
    from .io import store

    if len(arguments.runs) > 2:
        raise ValueError(f"compare takes one or two runs, got {len(arguments.runs)}")
    chosen = [_run_and_method(text) for text in arguments.runs]
    if len(chosen) == 1:
        run, method = chosen[0]
        if method is not None or len(run.methods) != 2:
            raise ValueError(f"{run.path} has the methods {', '.join(run.methods)}; name two: "
                             f"{run.path}:{run.methods[0]} {run.path}:{run.methods[-1]}")
        chosen = [(run, m) for m in run.methods]
    pair = [(run, method or run.methods[0]) for run, method in chosen]
    if pair[0] == pair[1]:
        raise ValueError(f"both are {pair[0][1]} of {pair[0][0].path}; name two methods or two runs")
    (first, a), (second, b) = pair
    labels = (a, b) if first.path == second.path else (f"{first.path.name}:{a}", f"{second.path.name}:{b}")
    if arguments.experiment is None:
        found = compare(pair[0], pair[1], labels=labels, progress_bar=not arguments.quiet)
    else:
        from .runs.experiment import load_experiment
        from .runs.provenance import warn_of_change
        experiment = load_experiment(arguments.experiment)
        for run, method in pair:
            warn_of_change(arguments.experiment, run.manifest)
            if diverged := int(run.read_flow(method)["diverged"].sum()):
                raise ValueError(f"{diverged} members of {method!r} in {run.path} diverged, and flows made anew "
                                 "hold all members; leave --experiment out")
        flows = [experiment.flow_of(run, method) for run, method in pair]
        found = compare(flows[0], flows[1], first.inputs("x_test"), first.data["y_test"].values, labels=labels,
                        progress_bar=not arguments.quiet)
    out, root = (Path(arguments.out), None) if arguments.out else (first.path / "comparisons", first.path)
    stem = "_".join(label.replace(":", "-") for label in labels)
    store.write_file(out / f"{stem}.csv", found.table().to_csv(index=False).encode(), root=root)
    store.write_datasets(out / f"{stem}.nc", {None: found.dataset}, root=root)
    picture = io.BytesIO()
    plots.comparison(found).savefig(picture, format="png", dpi=150)
    store.write_file(out / f"{stem}.png", picture.getvalue(), root=root)
    if not arguments.quiet:
        if "y_scale" in first.data.attrs:
            form = first.data.attrs.get("y_transform", "")
            say(f"φ, loss and log density are those of standardised targets, whose unit is "
                f"{first.data.attrs['y_scale']:.4g} of {form + ' ' if form else ''}"
                f"{first.data.attrs['units'] or 'the data'}")
        say(f"{found}\n{out}: {stem}.csv, {stem}.nc, {stem}.png")


def _board_parser(commands) -> None:
    parser = commands.add_parser(
        "board", help="fit several methods to several tables, and say which is better",
        description="Fit every method on every table and split, score what was held out, and give for each pair of "
                    "methods the probability that one is better. Cells that are done are not made again.")
    parser.add_argument("tables", metavar="TABLE", nargs="+", help="a name of scikit-learn's, a table's file (with "
                        "--target), a folder of NAME.data.csv.gz and NAME.test_mask.csv.gz, or FOLDER/NAME")
    parser.add_argument("--methods", metavar="METHOD", nargs="+", default=["default", "ridge", "forest"],
                        help="default, stacked, map, ensemble, mc_dropout, bde, ridge, forest, boosting, gp "
                        "(default: %(default)s)")
    parser.add_argument("--splits", metavar="N", type=int, default=10, help="splits of each table (default: 10)")
    parser.add_argument("--target", metavar="COLUMN", default="", help="the column of files to predict")
    parser.add_argument("--task", default="auto", help="auto, regression or classification")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", metavar="N", type=int, default=1, help="cells at work at a time (default: 1)")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, help="of a cell, which then counts as failed")
    parser.add_argument("--retry-failed", action="store_true", help="make cells anew that failed")
    parser.add_argument("--out", metavar="DIR", default="board", help="where cells and results go (default: board)")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    parser.set_defaults(command=_board)


def _board(arguments: argparse.Namespace) -> None:
    import jax
    import pandas as pd

    from .io import store
    from .runs.board import board

    out = Path(arguments.out)
    found = board(arguments.tables, arguments.methods, splits=arguments.splits, key=jax.random.key(arguments.seed),
                  path=out, target=arguments.target, task=arguments.task, num_processes=arguments.processes,
                  timeout=arguments.timeout, retry_failed=arguments.retry_failed, progress_bar=not arguments.quiet)
    scores = [s for s in ("log_density", "rmse", "crps", "accuracy", "brier") if found.table[s].notna().any()]
    if scores:
        compared = pd.concat([found.comparison(s).assign(score=s) for s in scores])
        with store.replacing(out / "comparison.csv") as temporary:
            compared.to_csv(temporary, index=False)
        for score in scores:
            with store.replacing(out / f"{score}.png") as temporary:
                found.figure(score).savefig(temporary, format="png", dpi=150)
    if not arguments.quiet:
        print(found)
        for row in found.table[found.table["error"].notna()].itertuples():
            print(f"{row.method} failed on {row.table}, split {row.split}: {short(row.error, 500)}")
        files = ["board.csv", *(["comparison.csv"] if scores else []), *(f"{s}.png" for s in scores)]
        print(f"{out}: {', '.join(files)}")


def _run_and_method(text: str):
    """``RUN`` or ``RUN:METHOD``; a directory may have a colon in its name."""
    from .io.store import load_run

    path, colon, method = text.rpartition(":")
    if Path(text).exists() or not colon or not Path(path).exists():
        return load_run(text), None
    run = load_run(path)
    if method not in run.methods:
        raise ValueError(f"{run.path} has no method {method!r}; its methods are {', '.join(run.methods)}")
    return run, method


def _info(arguments: argparse.Namespace) -> None:
    from .io.store import load_run
    from .runs.provenance import machine, versions

    if arguments.run is not None:
        run = load_run(arguments.run, verify=True if arguments.verify else None)
        say(report(run))
        if arguments.verify:
            say(f"verified: {len(run.recorded)} files are, byte by byte, what their stages wrote")
        return
    if arguments.verify:
        raise ValueError("--verify needs a run directory: bayes-brg info RUN --verify")
    for name, value in {**versions(), **machine()}.items():
        say(f"{name:<12} {', '.join(value) if isinstance(value, list) else value}")


def report(run) -> str:
    """What a run found, as text: settings, the summary of the main method, Λ_C of each, seconds, files."""
    manifest = run.manifest
    lines = [f"{run.name}: " + ", ".join(
        short(f"{k}={v}", 200) for k, v in itertools.islice(run.settings.items(), 200))]
    if not run.finished:
        lines.append("not finished; stages done: " + (listed(manifest["stages"], 100) or "none"))
    if run.file("summary", None, ".csv").name in run.recorded:
        table = run.summary
        lacking = [name for name in COLUMNS if name not in table]
        if lacking:
            raise ValueError(f"{run.file('summary', None, '.csv')} lacks the columns {listed(lacking)}")
        lines += ["", f"{run.methods[0]}: test loss and φ at the characteristic input{units_of(run)}, by cutoff Λ (per "
                  "datum)",
                  table[list(COLUMNS)].rename(columns=COLUMNS).to_string(
                      index=False, float_format=lambda v: f"{v:.4g}", max_rows=200)]
    results = manifest.get("results", {})
    if results:
        lines.append("")
    for method, found in itertools.islice(results.items(), 100):
        diverged, total = found.get("num_diverged", 0), found.get("num_members", 0)
        scale = short(found.get("critical_scale_text", "Λ_C is not known"), 300)
        lines.append(f"{method}: {scale}; {diverged} of {total} members diverged"
                     + (" and are left out" if diverged else "")
                     + (f"; {found['num_unstable']} more were unstable in training but are kept"
                        if found.get("num_unstable") else ""))
    seconds = {name: entry["seconds"] for name, entry in manifest["stages"].items()}
    lines.append("")
    lines.append(f"{sum(seconds.values()):.1f} s: " + listed((f"{n} {s:.1f}" for n, s in seconds.items()), 100))
    if "scores.csv" in run.recorded:
        lines += ["", "held out, at Λ = 0" + units_of(run), scores_text(run.table("scores.csv"))]
    lines.append(f"{run.path}: {files_text(run.path)}")
    return "\n".join(lines)


def files_text(path: Path, most: int = 100) -> str:
    """Names of the files in a directory and the folders in it; links are not gone after."""
    def every(folder: str, depth: int = 0) -> Iterator[str]:
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False) and depth < 2:
                yield from every(entry.path, depth + 1)
            elif entry.is_file(follow_symlinks=False) and not entry.name.startswith("."):
                yield str(Path(entry.path).relative_to(path))

    found = list(itertools.islice(every(str(path)), most + 1))
    return listed(sorted(found[:most]), most) + ", …" * (len(found) > most)


def units_of(run) -> str:
    """Units of a run's results, in words."""
    return f", in units of {run.data.attrs['units']}" if run.data.attrs.get("units") else ""


def scores_text(table: Any) -> str:
    """Held-out scores of each method, without their errors."""
    names = {"rmse": "RMSE", "mean_crps": "CRPS", "accuracy": "accuracy", "mean_brier": "Brier",
             "mean_log_predictive_density": "log density", "coverage_50": "50 %", "coverage_90": "90 %"}
    return table[[n for n in ("method", *names) if n in table]].rename(columns=names).to_string(
        index=False, float_format=lambda v: f"{v:.4g}", max_rows=200)


if __name__ == "__main__":
    sys.exit(main())
