"""Every method on every table and split, and for each pair of methods the probability that one is better."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from ..core.batching import progress
from ..core.checks import check_choice, check_count, check_key, check_positive
from ..core.files import short, sweep
from ..core.keys import name_key
from ..diagnostics.better import Better, correlated_t, signed_rank
from ..io.manifest import ADDRESS, jsonable
from ..io.store import replacing
from .cells import MEASURES, Cell, Split, make_cells, read_cell
from .methods import METHODS, method_by_name
from .reading import is_table
from .tables import Table, load_table

__all__ = ["Board", "board"]

FOLDER = "BAYES_BRG_TABLES"  # environment variable: where tables with fixed splits lie
BUNDLED = ("diabetes", "breast_cancer", "digits", "iris", "wine")
# How a score is compared: the difference first less second, larger better, and half the width of what counts as equal.
SCORES: dict[str, tuple[Callable[[Any, Any], Any], float, str]] = {
    "log_density": (lambda a, b: a - b, 0.01, "nats a datum"),
    "rmse": (lambda a, b: np.log(b / a), 0.01, "relative"),
    "crps": (lambda a, b: np.log(b / a), 0.01, "relative"),
    "accuracy": (lambda a, b: a - b, 0.005, "share of the data"),
    "brier": (lambda a, b: np.log(b / a), 0.01, "relative"),
}
LARGER = ("log_density", "accuracy")


class Source(NamedTuple):
    """A table of a board: its rows, and its fixed splits where it has some."""

    table: Table
    masks: np.ndarray | None = None  # (n, splits), true where a row is held out


@dataclass(frozen=True)
class Board:
    """What `board` found.

    Attributes
    ----------
    table : DataFrame
        One row a cell: ``table, split, method, rmse, log_density, crps`` (in the target's own units), ``accuracy,
        brier`` (of classes), ``coverage_50`` … ``coverage_95``, ``rhat_worst, rhat_median`` (of φ at the test points,
        of methods with chains), ``seconds``, ``error`` (text where the method failed), and the scores of a guess that
        looks at no input, ``guess_…``.
    test_fraction : Series
        Share of the rows held out, by table.
    """

    table: pd.DataFrame
    test_fraction: pd.Series

    def filled(self, score: str = "log_density") -> pd.DataFrame:
        """A score by (table, split) and method. A failed cell counts against its method: it has the worst of what the
        others and the guess have there."""
        check_choice(score, "score", SCORES)
        order = pd.MultiIndex.from_frame(self.table[["table", "split"]].drop_duplicates())
        wide = self.table.pivot(index=["table", "split"], columns="method", values=score).reindex(order)
        guess = self.table.groupby(["table", "split"])[f"guess_{score}"].first()
        both = pd.concat([wide, guess.rename("guess").reindex(order)], axis=1)
        worst = both.min(axis=1) if score in LARGER else both.max(axis=1)
        failed = self.table.pivot(index=["table", "split"], columns="method", values="error").notna().reindex(order)
        wide = wide.mask(failed, pd.DataFrame({m: worst for m in wide.columns}))
        return wide.dropna(how="all")

    def comparison(self, score: str = "log_density", rope: float | None = None) -> pd.DataFrame:
        """For each pair of methods, the probability that the first is better, equal, worse.

        Parameters
        ----------
        score : {"log_density", "rmse", "crps", "accuracy", "brier"}
            Errors are compared by the logarithm of their ratio, so that tables can be put together.
        rope : float, optional
            Differences up to this count as equal; default .01 nats, 1 %, or .005 of the accuracy.

        Returns
        -------
        DataFrame
            ``table, first, second, difference`` (mean; larger: the first is better), ``better, equal, worse``, and
            ``test``: on each table with two splits or more the correlated t-test over its splits (`correlated_t`); over
            all tables, ``table`` empty, the Bayesian signed-rank test of their mean differences (`signed_rank`). A
            signed-rank test of few tables says little: one table alone cannot make a method better with probability 1.
        """
        difference, width, _ = SCORES[check_choice(score, "score", SCORES)]
        width = width if rope is None else check_positive(rope, "rope", zero=True)
        filled, rows = self.filled(score), []
        methods = [m for m in dict.fromkeys(self.table["method"]) if m in filled]
        for first, second in itertools.combinations(methods, 2):
            pair = filled[[first, second]].dropna()
            d = difference(pair[first], pair[second])
            means = d.groupby(level="table", sort=False).mean()
            for name, one in d.groupby(level="table", sort=False):
                if len(one) > 1:
                    found = correlated_t(one.to_numpy(), test_fraction=float(self.test_fraction[name]), rope=width)
                    rows.append({"table": name, "first": first, "second": second, "difference": one.mean(),
                                 **found._asdict(), "test": f"correlated t, {len(one)} splits"})
            if len(means):
                found = signed_rank(means.to_numpy(), rope=width)
                rows.append({"table": "", "first": first, "second": second, "difference": means.mean(),
                             **found._asdict(), "test": f"signed rank, {len(means)} tables"})
        return pd.DataFrame(rows, columns=["table", "first", "second", "difference", *Better._fields, "test"])

    def summary(self) -> pd.DataFrame:
        """Mean over splits by table and method, failed cells counted in ``failed`` and left out of the means."""
        numbers = [c for c in (*MEASURES, "seconds") if c in self.table and self.table[c].notna().any()]
        ok = self.table.assign(failed=self.table["error"].notna().astype(int))
        kept = ok[[*numbers]].where(ok["failed"] == 0)
        return pd.concat([ok[["table", "method"]], kept, ok["failed"]], axis=1).groupby(
            ["table", "method"], sort=False).agg({**dict.fromkeys(numbers, "mean"), "failed": "sum"})

    def figure(self, score: str = "log_density") -> Any:
        """Scores by table, and the matrix of probabilities; see `plots.board`."""
        from .. import plots

        return plots.board(self, score)

    def __str__(self) -> str:
        scores = [s for s in ("log_density", "rmse", "accuracy") if s in self.table and self.table[s].notna().any()]
        lines = ["means over splits, in the targets' own units:",
                 self.summary().to_string(float_format=lambda v: f"{v:.4g}", na_rep="–")]
        for method, errors in self.table.groupby("method", sort=False)["error"]:
            if errors.notna().all():
                lines += [f"{method} failed in every cell, which counts as the worst: {short(errors.iloc[0], 500)}"]
        for score in scores:
            found = self.comparison(score)
            over = found[found["table"] == ""].drop(columns="table")
            if len(over):
                lines += ["", f"{score} ({SCORES[score][2]}), over all tables: is the first of two better?",
                          over.to_string(index=False, float_format=lambda v: f"{v:.3g}")]
        return "\n".join(lines)


def board(tables: Any, methods: Any, *, splits: int | Sequence[int] = 10, key: Any, path: str | Path = "board",
          target: str = "", task: str = "auto", target_transform: str | None = None, test_fraction: float = 0.1,
          num_processes: int = 1, timeout: float | None = None, retry_failed: bool = False, progress_bar: bool = True
          ) -> Board:
    """Fit every method on every table and split, and score what was held out.

    Parameters
    ----------
    tables : str, Path, Table, DataFrame, or a sequence or mapping (label: table) of such
        A name of a table of scikit-learn's (``"diabetes"``, ``"breast_cancer"``, ``"digits"``, ``"iris"``, ``"wine"``);
        a file that `load_table` reads (with `target`); a folder of pairs ``NAME.data.csv.gz`` and
        ``NAME.test_mask.csv.gz`` (no header; the last column is the target, numbers; column k of the mask marks the
        test rows of split k), or ``FOLDER/NAME`` for one of them. Names alone are also looked up in the folder that the
        environment variable ``BAYES_BRG_TABLES`` names, first.
    methods : str, callable, or a sequence or mapping (label: method) of such
        A name: ``"default"`` (`sample` with the default network), ``"stacked"`` (the same, its chains weighed by
        leave-one-out), ``"map"``, ``"ensemble"`` (deep ensemble by Adam), ``"mc_dropout"``, ``"bde"``
        (sklearn-contrib-bde, in an environment that the variable ``BAYES_BRG_BDE_PYTHON`` names); by scikit-learn
        ``"ridge"``, ``"forest"``, ``"boosting"``, ``"gp"``. Or a function ``method(x, y, x_test, *, key,
        num_classes)``, which is given standardised inputs and targets (n,) (classes 0, 1, …) and returns a
        `Predictive`, a dict of its fields, or an array of draws (draw, n) (of classes: probabilities), in the units of
        `y`. `functools.partial` sets options. Cells know a function by its name and what it holds, not by its code:
        give a changed one another label.
    splits : int or sequence of int
        How many splits of each table, or which; of fixed splits those that are there.
    key : jax.random.key
        Each cell's is folded from it by table, split and method; random splits by table and split.
    path : str or Path
        Where the cells lie, ``path/TABLE/SPLIT/METHOD.json``: those that are there are not made again.
    target : str
        Of files and DataFrames.
    task : {"auto", "regression", "classification"}
        As in `Table.as_task`; pairs with fixed splits are regressions.
    target_transform : {None, "log", "rank"}
        As in `Table.take`, for tables of numbers.
    test_fraction : float
        Share of the rows that a random split holds out.
    num_processes : int
        Cells at work at a time, each in a process of its own; 1: in this one. A script that asks for more must stand
        under ``if __name__ == "__main__":``.
    timeout : float, optional
        Seconds that a cell may take; then it counts as failed.
    retry_failed : bool
        Make cells anew that failed earlier.
    progress_bar : bool

    Returns
    -------
    Board
        A cell that failed keeps its error and counts against its method. ``path/board.csv`` has the table.

    Raises
    ------
    ValueError
        For unknown names, files that cannot be read, methods that cannot be sent to other processes, or cells in `path`
        of other data, another key or other options.
    """
    key, root = check_key(key), Path(path)
    check_count(num_processes, "num_processes")
    if timeout is not None:
        check_positive(timeout, "timeout")
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}")
    numbers = list(range(check_count(splits, "splits"))) if isinstance(splits, (int, np.integer)) else [
        check_count(s, "a split", 0) for s in splits]
    sources, calls = _sources(tables, target, task), _methods(methods, num_processes > 1 or timeout is not None)
    cells: list[Cell] = []
    fraction: dict[str, float] = {}
    for name, source in sources.items():
        options = {"target_transform": None if source.table.classes else target_transform}
        digest = _digest(source.table)
        for split in numbers if source.masks is None else [s for s in numbers if s < source.masks.shape[1]]:
            rows = _rows(source, name_key(key, name), split, test_fraction)
            fraction[name] = len(rows.test) / len(source.table.y)
            for label, call in calls.items():
                one = jax.random.fold_in(name_key(name_key(key, name), label), split)
                data = tuple(np.asarray(jax.random.key_data(one)).ravel().tolist())
                identity = {"data": digest, "method": _described(call), "key": list(data), "rows": _digest_rows(rows),
                            "options": options, "precision": "float64" if jax.config.jax_enable_x64 else "float32"}
                cells.append(Cell(name, label, split, source.table, rows, call, (data, str(jax.random.key_impl(one))),
                                  options, identity, root / name / str(split) / f"{label}.json"))
    for folder in {root, *(cell.path.parent for cell in cells)}:
        sweep(folder)
    found = {cell.path: read_cell(cell) for cell in cells}
    todo = [c for c in cells if (there := found[c.path]) is None or (retry_failed and there["error"])]
    with progress(desc="board", total=len(cells), unit="cell", show=progress_bar) as bar:
        bar.update(len(cells) - len(todo))
        for one in make_cells(todo, num_processes, timeout):
            found[root / one["table"] / str(one["split"]) / f"{one['method']}.json"] = one
            bar.set_postfix_str(f"{one['table']} {one['split']} {one['method']}")
            bar.update()
    result = Board(_tidy([found[c.path] for c in cells]), pd.Series(fraction))
    with replacing(root / "board.csv") as temporary:
        result.table.to_csv(temporary, index=False)
    return result


def _tidy(cells: Sequence[Any]) -> pd.DataFrame:
    rows = [{"table": c["table"], "split": c["split"], "method": c["method"],
             **{m: np.nan if c.get(m) is None else c[m] for m in MEASURES}, "seconds": c["seconds"],
             "error": c["error"], "num_train": c["num_train"], "num_test": c["num_test"], "num_inputs": c["num_inputs"],
             **{f"guess_{s}": c["guess"].get(s, np.nan) for s in SCORES}} for c in cells]
    return pd.DataFrame(rows).astype({"error": object})


# -- tables and methods by name -------------------------------------------------------------------------------
def _labelled(values: Any, single: tuple[type, ...]) -> list[tuple[str, Any]]:
    """Pairs of a label ("" where there is none) and a value."""
    if isinstance(values, Mapping):
        return [(str(k), v) for k, v in values.items()]
    if isinstance(values, single) or callable(values):
        return [("", values)]
    return [("", v) for v in values]


def _methods(methods: Any, sent: bool) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for label, value in _labelled(methods, (str,)):
        if isinstance(value, str):
            label, call = label or value, method_by_name(value)
        elif callable(value):
            inner = value.func if isinstance(value, functools.partial) else value
            label, call = label or getattr(inner, "__name__", type(inner).__name__), value
        else:
            raise ValueError(f"a method is a function or one of {', '.join(METHODS)}, got {value!r}")
        if not label.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"a method's label names files: letters, digits, - and _, got {label!r}; give another in "
                             "a mapping, {'label': method}")
        if label in found:
            raise ValueError(f"two methods are called {label!r}; tell them apart in a mapping, {{'label': method}}")
        if sent:
            try:
                pickle.dumps(call)
            except Exception as error:
                raise ValueError(f"the method {label!r} cannot be sent to another process ({error}); define it with "
                                 "def at the top of a file, or take num_processes=1 without a timeout") from None
        found[label] = call
    if not found:
        raise ValueError(f"name a method: {', '.join(METHODS)}, or a function")
    return found


def _sources(tables: Any, target: str, task: str) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for label, value in _labelled(tables, (str, Path, Table, pd.DataFrame)):
        if isinstance(value, Table):
            each = {label or value.target: Source(value.as_task(task))}
        elif isinstance(value, pd.DataFrame):
            each = {label or target: Source(load_table(value, target).as_task(task))}
        else:
            each = _named(str(value), label, target, task)
        for name, source in each.items():
            if name in found:
                raise ValueError(f"two tables are called {name!r}; tell them apart in a mapping, {{'label': table}}")
            found[name] = source
    if not found:
        raise ValueError("name a table")
    return found


def _named(name: str, label: str, target: str, task: str) -> dict[str, Source]:
    """Tables by a name or a path."""
    path, folder = Path(name), os.environ.get(FOLDER)
    bases = [path, *([Path(folder) / name] if folder and path.name == name else [])]
    for base in bases:
        if (pair := _pair(base)) is not None:
            return {label or base.name: pair}
    if path.is_dir():
        stems = sorted(p.name.removesuffix(".data.csv.gz") for p in path.glob("*.data.csv.gz"))
        pairs = {s: _pair(path / s) for s in stems}
        if not stems or label:
            raise ValueError(f"{path} holds {len(stems)} tables NAME.data.csv.gz with NAME.test_mask.csv.gz; name "
                             f"a folder of such, or one of them, {path}/NAME")
        return {s: p for s, p in pairs.items() if p is not None}
    if is_table(path):
        stem = path.name
        for suffix in reversed(path.suffixes):
            stem = stem.removesuffix(suffix)
        return {label or stem: Source(load_table(path, target).as_task(task))}
    if name in BUNDLED:
        try:
            from sklearn import datasets
        except ModuleNotFoundError:
            raise ValueError(f"{name!r} is a table of scikit-learn's: pip install 'bayes-brg[data]'") from None
        held = getattr(datasets, f"load_{name}")()
        classes = tuple(str(c) for c in held.target_names) if name != "diabetes" else ()
        return {label or name: Source(Table(held.data, held.target, tuple(held.feature_names), name, classes))}
    where = f", nor in {folder}" if folder else f" (the variable {FOLDER} names no folder)"
    raise ValueError(f"no table {name!r}: it is no file, no folder of pairs{where}, and none of {', '.join(BUNDLED)}")


def _pair(base: Path) -> Source | None:
    """A table with fixed splits, from its two files."""
    data, mask = (base.with_name(f"{base.name}.{part}.csv.gz") for part in ("data", "test_mask"))
    if not data.is_file() or not mask.is_file():
        return None
    values, held = np.loadtxt(data, delimiter=",", ndmin=2), np.loadtxt(mask, delimiter=",", ndmin=2) > 0.5
    if len(values) != len(held):
        raise ValueError(f"{data} has {len(values)} rows and {mask} {len(held)}; they belong to other tables")
    names = tuple(f"c{i}" for i in range(values.shape[1]))
    return Source(Table(values[:, :-1], values[:, -1], names[:-1], names[-1]), held)


def _rows(source: Source, key: jax.Array, split: int, test_fraction: float) -> Split:
    """Rows of a split; the training rows in random order, so that the first of them are a random part."""
    n = len(source.table.y)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, split), n))
    if source.masks is not None:
        held = source.masks[order, split]
        return Split(order[~held], order[held])
    count = max(1, round(test_fraction * n))
    return Split(order[count:], order[:count])


def _digest(table: Table) -> str:
    whole = hashlib.sha256(pd.util.hash_pandas_object(table.frame.astype(object) if table.frame.dtypes.eq(object).any()
                                                      else table.frame, index=False).to_numpy().tobytes())
    whole.update(np.ascontiguousarray(table.y, np.float64).tobytes())
    return whole.hexdigest()[:16]


def _digest_rows(rows: Split) -> str:
    return hashlib.sha256(np.concatenate([rows.train, [-1], rows.test]).astype(np.int64).tobytes()).hexdigest()[:16]


def _described(call: Callable[..., Any]) -> str:
    """A method and its options in words, the same in every process; of a function, its name and what it holds."""
    if isinstance(call, functools.partial):
        options = ", ".join(f"{k}={v!r}" for k, v in sorted(call.keywords.items()))
        return ADDRESS.sub("", f"{_described(call.func)}({options})")
    held = [*(getattr(call, "__defaults__", None) or ()), *(getattr(call, "__kwdefaults__", None) or {}).values()]
    for cell in getattr(call, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # one that is empty still
            held.append(cell.cell_contents)
    try:
        words = repr(jsonable(held)) if held else ""
    except (TypeError, ValueError, RecursionError):  # what has no plain form
        words = ADDRESS.sub("", repr(held))
    words = words if len(words) < 200 else hashlib.sha256(words.encode()).hexdigest()[:16]
    return f"{getattr(call, '__module__', '')}.{jsonable(call)}{words}"
