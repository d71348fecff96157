"""Cells of a board: one method on one split of one table, made in this process or in others, kept as a small file."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from threadpoolctl import threadpool_limits

from ..core.files import plain, seal, unseal, write_file
from ..io import arviz_bridge
from ..io.manifest import jsonable
from .data import Data
from .predictive import as_predictive, score_predictive
from .tables import Table

__all__ = ["Cell", "MEASURES", "make_cells", "read_cell"]

MEASURES = ("rmse", "log_density", "crps", "accuracy", "brier", "coverage_50", "coverage_80", "coverage_90",
            "coverage_95", "rhat_worst", "rhat_median")

PARTS = {"table", "split", "method", "error", "seconds", "guess", "num_train", "num_test", "num_inputs"}


class Split(NamedTuple):
    """Rows of one split of a table."""

    train: np.ndarray
    test: np.ndarray


class Cell(NamedTuple):
    """What is to be done: one method on one split of one table.

    Attributes
    ----------
    table, method : str
        Labels.
    split : int
    source : Table
    rows : Split
    call : callable
        ``method(x, y, x_test, key=, num_classes=)``.
    key_data : tuple of int, str
        Raw numbers of the cell's random key, and how they are meant: a key cannot be sent to another process.
    options : dict
        Of `Table.take`.
    identity : dict
        What a file must agree with to stand for this cell.
    path : Path
    """

    table: str
    method: str
    split: int
    source: Table
    rows: Split
    call: Callable[..., Any]
    key_data: tuple[tuple[int, ...], str]
    options: dict[str, Any]
    identity: dict[str, Any]
    path: Path


def read_cell(cell: Cell) -> dict[str, Any] | None:
    """What a cell's file holds; None where there is none.

    Raises
    ------
    ValueError
        If it is that of other data, another key or other options, by name.
    """
    if not cell.path.is_file():
        return None
    try:
        found = unseal(cell.path, lambda value: False)  # those of older versions have no seal
    except (ValueError, OSError) as error:
        raise ValueError(f"{error}; remove it, and it is made anew, or choose another path") from None
    there = found.get("identity")
    if not isinstance(there, dict) or not PARTS <= set(found):
        raise ValueError(f"{plain(str(cell.path))} is no cell of a board; remove it, or choose another path")
    for name, value in cell.identity.items():
        if there.get(name) != value:
            raise ValueError(f"{cell.path} is that of another board: {name} = {there.get(name)!r} there, {value!r} "
                             "now; choose another path, or remove the file")
    return found


def _guess(data: Data, num_classes: int) -> dict[str, float]:
    """Scores of a guess that looks at no input: the training targets' Gaussian, or the shares of their classes."""
    y, n = np.asarray(data.y), len(data.y_test)
    if num_classes:
        share = (np.bincount(y.ravel(), minlength=num_classes) + 0.5) / (y.size + 0.5 * num_classes)
        law = as_predictive(np.broadcast_to(share, (n, num_classes)), n, num_classes)
    else:
        law = as_predictive({"loc": np.full(n, y.mean()), "scale": np.full(n, y.std())}, n, 0)
    return _numbers(score_predictive(law, data.y_test, data.own, num_classes).dataset)


def _numbers(d: xr.Dataset) -> dict[str, float]:
    names = {"mean_log_predictive_density": "log_density", "mean_crps": "crps", "mean_brier": "brier", "rmse": "rmse",
             "accuracy": "accuracy"}
    found = {short: float(d[long]) for long, short in names.items() if long in d}
    return found | {f"coverage_{round(100 * level)}": float(c) for level, c in
                    zip(d["level"].values, d["coverage"].values, strict=True)}


def make_cell(cell: Cell) -> dict[str, Any]:
    """Fit, predict, score. What a method raises is kept as its error; what the table raises is not its fault."""
    data = cell.source.take(cell.rows.train, cell.rows.test, **cell.options)
    num_classes = len(cell.source.classes)
    key = jax.random.wrap_key_data(np.array(cell.key_data[0], np.uint32), impl=cell.key_data[1])
    x, x_test = (np.asarray(a, np.float64) for a in (data.x, data.x_test))
    y = np.asarray(data.y).ravel() if num_classes else np.asarray(data.y, np.float64).ravel()
    found: dict[str, Any] = {"guess": _guess(data, num_classes), "num_train": len(x), "num_test": len(x_test),
                             "num_inputs": x.shape[1], "error": None}
    start = time.perf_counter()
    try:
        law = as_predictive(cell.call(x, y, x_test, key=key, num_classes=num_classes), len(x_test), num_classes)
        found["seconds"] = time.perf_counter() - start
        scored = score_predictive(law, data.y_test, data.own, num_classes, cell.method)
        found |= _numbers(scored.dataset)
        if not np.isfinite(found["log_density"]):
            raise ValueError(f"the log density of held-out data is {found['log_density']}")
        if law.phi is not None and len(law.phi) > 1:
            rhat = arviz_bridge.rhat(xr.Dataset({"phi": (("chain", "draw", "point", "output"), law.phi)}))["phi"].values
            if np.isfinite(rhat).any():
                found |= {"rhat_worst": float(np.nanmax(rhat)), "rhat_median": float(np.nanmedian(rhat))}
    except Exception as error:
        found |= {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc(limit=-6),
                  "seconds": time.perf_counter() - start}
        for name in MEASURES:
            found.pop(name, None)
    return found


def _write(cell: Cell, found: dict[str, Any]) -> dict[str, Any]:
    whole = {"table": cell.table, "split": cell.split, "method": cell.method, **found, "identity": cell.identity}
    write_file(cell.path, seal(jsonable(whole)))
    return whole


# -- in other processes ---------------------------------------------------------------------------------------
def _work(connection: Any, threads: int, x64: bool) -> None:
    """A process that makes cells as they come."""
    if threads == 1:  # read when JAX first computes
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    jax.config.update("jax_enable_x64", x64)
    with threadpool_limits(threads):
        while True:
            try:
                cell = connection.recv()
            except EOFError:
                return
            try:
                connection.send((make_cell(cell), None))
            except Exception as error:
                connection.send((None, f"{type(error).__name__}: {error}"))


class _Worker:
    """A process and the cell that it works at."""

    def __init__(self, threads: int):
        context = multiprocessing.get_context("spawn")  # JAX does not outlive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, threads, bool(jax.config.jax_enable_x64)),
                                       daemon=True)
        self.process.start()
        theirs.close()
        self.cell: Cell | None = None
        self.since = 0.0

    def give(self, cell: Cell) -> None:
        self.cell, self.since = cell, time.perf_counter()
        with contextlib.suppress(ConnectionError):  # it has ended, which is seen when it does not answer
            self.connection.send(cell)

    def end(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join(5)


def _lost(cell: Cell, why: str, seconds: float) -> dict[str, Any]:
    """The entry of a cell whose process did not answer."""
    data = cell.source.take(cell.rows.train, cell.rows.test, **cell.options)
    return {"guess": _guess(data, len(cell.source.classes)), "num_train": len(data.x), "num_test": len(data.x_test),
            "num_inputs": data.x.shape[1], "error": why, "seconds": seconds}


def make_cells(cells: Sequence[Cell], num_processes: int, timeout: float | None) -> Iterator[dict[str, Any]]:
    """Make cells and write their files, as they come.

    Parameters
    ----------
    cells : sequence of Cell
    num_processes : int
        1: in this process, without a limit of time.
    timeout : float, optional
        Seconds that a cell may take, in other processes; it then counts as failed.
    """
    if num_processes == 1 and timeout is None:
        for cell in cells:
            yield _write(cell, make_cell(cell))
        return
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    left, workers = list(cells)[::-1], []  # type: list[Cell], list[_Worker]
    try:
        while left or any(w.cell for w in workers):
            for worker in [w for w in workers if w.cell is None]:
                if not worker.process.is_alive():  # not over a cell: nobody's fault
                    worker.end()
                    workers.remove(worker)
                elif left:
                    worker.give(left.pop())
            while left and len(workers) < num_processes:
                workers.append(_Worker(threads))
                workers[-1].give(left.pop())
            busy = [w for w in workers if w.cell is not None]
            ready = wait([w.connection for w in busy], timeout=1.0)
            for worker in busy:
                now, seconds = worker.cell, time.perf_counter() - worker.since
                assert now is not None
                if worker.connection in ready:
                    try:
                        found, fault = worker.connection.recv()
                    except (EOFError, ConnectionError):
                        worker.process.join(5)
                        found, fault = _lost(now, f"its process ended (exit status {worker.process.exitcode}), as "
                                             "when memory runs out", seconds), None
                        workers.remove(worker)
                    if fault is not None:
                        raise ValueError(f"{now.table}, split {now.split}: {fault}")
                    worker.cell = None
                    yield _write(now, found)
                elif timeout is not None and seconds > timeout:
                    worker.end()
                    workers.remove(worker)
                    yield _write(now, _lost(now, f"TimeoutError: not done in {timeout:g} s", seconds))
    finally:
        for worker in workers:
            worker.end()
