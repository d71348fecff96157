"""Tables of real data as people have them: from a file or a DataFrame to encoded inputs and targets."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from ..core.arrays import check_floats, read_array
from ..core.checks import check_choice, check_count, check_key
from ..io.units import TRANSFORMS, Units
from .columns import HEAVY, normal_scores, tail
from .data import Data
from .encoding import fit_encoder
from .reading import Read, is_table, problems_error, read_frame, read_npz, typed

__all__ = ["TASKS", "Table", "load_table"]

TASKS = ("auto", "regression", "classification")
FEW = 10  # different whole numbers up to which a target is taken for classes, where each is there ten times in the mean


@dataclass(frozen=True)
class Table:
    """Inputs and targets as they were measured.

    Attributes
    ----------
    x : array (n, dim) or DataFrame
        Inputs. Numbers where all columns are; else a DataFrame of numbers, booleans, times and text. Entries may be
        missing.
    y : array (n,)
        Numbers, or the index of each datum's class; none missing.
    columns : tuple of str
        Names of the inputs.
    target : str
    classes : tuple, optional
        Names of the classes, where targets are labels.
    notes : mapping of str to str
        What reading a column decided, by its name.
    whole : tuple of str
        What is to be said of the whole table.
    held_out : array (n,) of bool, optional
        Rows to hold out, where the table says so itself.
    """

    x: Any
    y: np.ndarray
    columns: tuple[str, ...] = ()
    target: str = "y"
    classes: tuple = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    held_out: Any = None

    def __post_init__(self):
        notes = dict(self.notes)
        if isinstance(self.x, pd.DataFrame):
            names = tuple(self.columns) or tuple(map(str, self.x.columns))
            read = [typed(self.x.iloc[:, i].rename(n)) for i, n in enumerate(names)]
            notes |= {n: r.note for n, r in zip(names, read, strict=True) if r.note}
            x: Any = pd.DataFrame({n: r.values for n, r in zip(names, read, strict=True)})
            if all(pd.api.types.is_float_dtype(x[n].dtype) for n in names):
                x = x.to_numpy(np.float64)
        else:
            x = check_floats(self.x, "x", finite=False)
        y = np.asarray(read_array(self.y, "y", finite=False))
        if x.ndim != 2 or y.shape != (len(x),):
            raise ValueError(f"a table needs inputs (n, dim) and targets (n,), got {x.shape} and {y.shape}")
        object.__setattr__(self, "columns", tuple(self.columns) or (
            tuple(map(str, x.columns)) if isinstance(x, pd.DataFrame) else tuple(f"x{i}" for i in range(x.shape[1]))))
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)
        object.__setattr__(self, "notes", notes)
        if problems := self._infinite():
            raise ValueError("; ".join(problems))

    def _infinite(self) -> list[str]:
        """What is said of entries that are no numbers and not missing either."""
        frame, found = self.frame, []
        for name in self.columns:
            values = frame[name]
            if pd.api.types.is_float_dtype(values.dtype) and (bad := np.isinf(values.to_numpy())).any():
                found.append(f"column {name!r} has no finite value at row {bad.argmax()} ({bad.sum()} such entries); "
                             "correct them, or leave them empty where nothing was measured")
        bad = ~np.isfinite(self.y)
        if bad.any():
            found.append(f"column {self.target!r} has no finite value at row {bad.argmax()} ({bad.sum()} such entries "
                         "in the table); it is the target: drop their rows")
        return found

    @property
    def frame(self) -> pd.DataFrame:
        """The inputs by name: float64, boolean, datetime64 or text (object)."""
        return self.x if isinstance(self.x, pd.DataFrame) else pd.DataFrame(self.x, columns=list(self.columns))

    # -- regression or classes ----------------------------------------------------------------------------
    def as_task(self, task: str = "auto") -> Table:
        """The table for a regression or for a classifier.

        Parameters
        ----------
        task : {"auto", "regression", "classification"}
            ``"auto"``: classes where the target is text or yes and no, or has at most ten values, all whole numbers,
            each of them ten times in the mean.
        """
        if check_choice(task, "task", TASKS) == "regression":
            return self.numeric()
        few = np.zeros(0) if self.classes else np.unique(self.y)
        whole = 2 <= len(few) <= FEW and len(self.y) >= 10 * len(few) and bool(np.all(few == np.round(few)))
        return self.labelled() if task == "classification" or whole else self

    def labelled(self) -> Table:
        """The table with targets as classes 0, 1, …: for a classifier, when they are numbers so far."""
        if self.classes:
            return self
        classes, index = np.unique(self.y, return_inverse=True)
        if len(classes) < 2 or len(classes) > max(50, len(self.y) // 10):
            raise ValueError(f"target {self.target!r} has {len(classes)} different values in {len(self.y)} rows, which "
                             "does not look like classes; name a column of labels, or use a regression model")
        names = tuple(int(c) if float(c).is_integer() else c for c in classes.tolist())
        return replace(self, y=index, classes=names)

    def numeric(self) -> Table:
        """The table, if its targets are numbers: for a regression."""
        if self.classes:
            raise ValueError(f"target {self.target!r} holds text ({', '.join(map(str, self.classes[:3]))}, …), which a "
                             "regression cannot fit; use a classifier such as models/digits.py")
        return self

    # -- data of an experiment ----------------------------------------------------------------------------
    def split(self, key: Any, *, num_test: int | None = None, num_train: int | None = None, max_rows: int = 0,
              target_transform: str | None = None, heavy: str = "auto") -> Data:
        """Encoded, standardised `Data` with a held-out part: the table's own, or else drawn at random.

        Parameters
        ----------
        key : jax.random.key
            Of the permutation of the rows.
        num_test : int, optional
            Held-out rows; default a quarter. Not for a table that says which.
        num_train : int, optional
            Training rows; default all others.
        max_rows, target_transform, heavy
            As in `take`.

        Returns
        -------
        Data
            As of `take`.

        Raises
        ------
        ValueError
            If there are too few rows, or as `take`.
        """
        n = len(self.y)
        order = np.asarray(jax.random.permutation(check_key(key), n))
        if self.held_out is not None:
            if num_test is not None:
                raise ValueError(f"the table says which of its rows are held out ({int(self.held_out.sum())}); leave "
                                 "num_test out")
            order = order[np.argsort(~self.held_out[order], kind="stable")]
            num_test = int(self.held_out.sum())
        test = max(1, n // 4) if num_test is None else num_test
        train = n - test if num_train is None else min(num_train, n - test)
        if test < 1 or train < 2:
            raise ValueError(f"the table has {n} rows: {test} to hold out leave {n - test} to learn from")
        return self.take(order[test:test + train], order[:test], max_rows=max_rows, target_transform=target_transform,
                         heavy=heavy)

    def take(self, train: Sequence[int] | np.ndarray, test: Sequence[int] | np.ndarray, *, max_rows: int = 0,
             target_transform: str | None = None, heavy: str = "auto") -> Data:
        """Encoded, standardised `Data` of chosen rows. Everything is fitted on the training rows alone.

        Numbers have mean 0 and standard deviation 1; so has a target of numbers. Missing entries get the median, and an
        input that marks them; text gets an input a level, rare ones pooled; times become days, and the sines and
        cosines of the cycles they span; columns that are constant, or say what an earlier one does, are left out.

        Parameters
        ----------
        train, test : array of int
            Rows.
        max_rows : int
            A model is given at most so many training rows, the first of them (as `split` has drawn them); all fit the
            encoder. 0: all.
        target_transform : {None, "log", "rank"}
            What a target of numbers goes through before it is standardised. Densities get its Jacobian.
        heavy : {"auto", "log", "rank", "none"}
            What is done about heavy tails of inputs: see `Encoder`.

        Returns
        -------
        Data
            With ``y_mean``, ``y_scale`` and the target's name, by which a run gives results in the target's own units,
            ``encoder``, and ``encoding``: every decision as a table.

        Raises
        ------
        ValueError
            If targets that are numbers are all the same in the training rows, cannot be transformed, or no column
            varies.
        """
        rows, held = np.asarray(train), np.asarray(test)
        limit = check_count(max_rows, "max_rows", 0)
        name = check_choice(target_transform or "", "target_transform", TRANSFORMS)
        frame = self.frame
        encoder = fit_encoder(frame.iloc[rows], heavy)
        fitted = rows[:limit] if limit else rows
        notes: list[str] = []
        x, x_test = encoder.encode(frame.iloc[fitted]), encoder.encode(frame.iloc[held], notes)
        units = Units() if self.classes else self._units(rows, name)
        if self.classes and name:
            raise ValueError(f"target {self.target!r} holds classes, which have no {name} transform")
        y: np.ndarray = self.y if self.classes else units.forward(self.y)[:, None]
        dtype = np.float64 if jax.config.jax_enable_x64 else np.float32
        y = y.astype(int if self.classes else dtype)
        own: dict[str, Any] = {} if self.classes else {
            "y_mean": units.mean, "y_scale": units.scale, "units": self.target, "y_transform": units.transform,
            "y_knots": (units.knots, units.scores)}
        encoding = self._encoding(encoder.table(), units, rows, fitted, held, notes)
        return Data(x.astype(dtype), y[fitted], x_test.astype(dtype), y[held], **own, encoder=encoder,
                    encoding=encoding)

    def _units(self, rows: np.ndarray, transform: str) -> Units:
        y = self.y[rows].astype(float)
        if np.ptp(y) == 0:
            raise ValueError(f"target {self.target!r} is {y[0]:g} in all {len(y)} training rows; there is nothing to "
                             "learn from them")
        if transform == "log" and (low := self.y <= 0).any():
            raise ValueError(f"target {self.target!r} is {self.y[low.argmax()]:g} at row {low.argmax()} ({low.sum()} "
                             "such rows), and has no logarithm there; target_transform='rank' takes any number")
        plain = Units(0.0, 1.0, self.target, transform, *(normal_scores(y) if transform == "rank" else ((), ())))
        moved = plain.forward(y)
        return replace(plain, mean=float(moved.mean()), scale=float(moved.std()))

    def _encoding(self, table: pd.DataFrame, units: Units, rows: np.ndarray, fitted: np.ndarray, held: np.ndarray,
                  notes: list[str]) -> pd.DataFrame:
        """Every decision: the encoder's table, the target, the rows."""
        told = [f"{text}; {self.notes[name]}" if name in self.notes else text
                for name, text in zip(table["column"], table["encoding"], strict=True)]
        target: dict[str, Any] = {"column": self.target, "missing": 0, "inputs": 0}
        if self.classes:
            share = np.bincount(self.y[rows], minlength=len(self.classes)) / len(rows)
            listed = ", ".join(f"{c} {s:.0%}" for c, s in zip(self.classes[:12], share, strict=False))
            target |= {"kind": "target, classes", "encoding": f"{len(self.classes)} classes: {listed}"
                       + ", …" * (len(self.classes) > 12)}
        else:
            form = {"": "as measured", "log": "its logarithm", "rank": "normal scores of its ranks, linear between "
                    f"{len(units.knots)} points"}[units.transform]
            heavy = not units.transform and tail(self.y[rows]) > HEAVY
            target |= {"kind": "target, numbers", "encoding": f"{form}, standardised (mean {units.mean:.6g}, sd "
                       f"{units.scale:.6g}); results are in its own units"
                       + ("" if units.linear else ", φ brought back (a median), densities with the Jacobian")
                       + ("; its tail is heavy: target_transform=log or rank may fit better" if heavy else "")}
        if self.target in self.notes:
            target["encoding"] += f"; {self.notes[self.target]}"
        said = [f"{len(rows)} rows to learn from, {len(held)} held out"]
        if len(fitted) < len(rows):
            said.append(f"models are fitted to {len(fitted)} of them, drawn at random, and the encoding to all")
        said += [*self.whole, *notes]
        last = {"column": "(rows)", "kind": "rows", "missing": 0, "inputs": 0, "encoding": "; ".join(said)}
        return pd.concat([table.assign(encoding=told), pd.DataFrame([target, last])], ignore_index=True)[
            list(table.columns)]


# -- from a file ----------------------------------------------------------------------------------------------
def load_table(path: str | Path | pd.DataFrame, target: str = "", test_column: str = "") -> Table:
    """A table from a CSV file, from a DataFrame, or from arrays in an NPZ file.

    Parameters
    ----------
    path : str, Path or DataFrame
        ``*.csv``, ``*.tsv`` or ``*.txt``, plain or packed (``.gz``, ``.bz2``, ``.xz``): a header, values separated by
        commas, semicolons, tabs or bars, every column but the target an input. Numbers may have a decimal comma,
        thousands marked, a currency; dates, yes and no, and text are read as such; entries may be missing. Or
        ``*.npz`` with arrays ``x`` (n, dim) and ``y`` (n,) or (n, 1), or one array (n,) for each column.
    target : str
        The column to predict. Text, or yes and no, there is taken as names of classes; rows without it are left out.
        It may be left out for an NPZ file with ``y``.
    test_column : str
        A column that says which rows are to be held out, by 1 and 0, yes and no, or ``test`` and anything else. It is
        no input. Left out: `Table.split` draws them.

    Returns
    -------
    Table

    Raises
    ------
    FileNotFoundError, ValueError
        For no such file, or another kind of file. For all that is wrong with a table at once, each with what mends it:
        columns without a name or with the same one, lines of other lengths, no such target (the nearest is named), a
        target that is text without being classes, infinite values.
    """
    whole: list[str] = []
    problems: list[str] = []
    label: Any = path
    read: Read | None
    if isinstance(path, pd.DataFrame):
        label, read = "the DataFrame", Read(path.rename(columns=str), {}, [])
        if len(set(read.frame.columns)) < len(read.frame.columns):
            problems.append("several of its columns have one name; rename or drop all but one")
    else:
        label, read, target = _read_file(Path(path), target, problems)
    if read is not None and not len(read.frame):
        problems.append("it has no rows")
    if problems or read is None:
        raise problems_error(label, problems)
    frame, notes = read.frame, dict(read.notes)
    whole += read.whole
    names = [str(n) for n in frame.columns]
    if not target:
        problems.append(f"say which column is the target; its columns are {', '.join(names)}")
    for asked in filter(None, (target, test_column)):
        if asked not in names:
            close = difflib.get_close_matches(asked, names, n=1)
            problems.append(f"it has no column {asked!r}" + (f" (did you mean {close[0]!r}?)" if close else "")
                            + f"; its columns are {', '.join(names)}")
    if len(names) < 2 + bool(test_column):
        problems.append(f"it has {names[0]!r} alone, and needs at least one input column beside the target")
    columns: dict[str, pd.Series] = {}
    for name in names:
        found = typed(frame[name])
        if found.note:
            notes[name] = found.note
        values = columns[name] = found.values
        if pd.api.types.is_float_dtype(values.dtype) and (bad := np.isinf(values.to_numpy())).any():
            problems.append(f"column {name!r} has no finite value at row {bad.argmax()} ({bad.sum()} such entries); "
                            "correct them, or leave them empty where nothing was measured")
    y, classes, kept = np.zeros(0), (), np.zeros(0, bool)  # type: np.ndarray, tuple, np.ndarray
    if target in columns:
        y, classes, kept = _targets(columns[target], target, problems)
    held = _held_out(columns.pop(test_column), test_column, problems)[kept] if test_column in columns else None
    if problems:
        raise problems_error(label, problems)
    if not kept.all():
        whole.append(f"{int((~kept).sum())} rows without a target are left out")
    inputs = pd.DataFrame({n: c[kept].reset_index(drop=True) for n, c in columns.items() if n != target})
    if held is not None:
        whole.append(f"the column {test_column!r} says which rows are held out")
    return Table(inputs, y[kept], tuple(inputs.columns), target, classes, notes, tuple(whole), held)


def _read_file(path: Path, target: str, problems: list[str]) -> tuple[Path, Read | None, str]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if not is_table(path):
        raise ValueError(f"{path} is neither .csv nor .npz (nor .tsv, .txt, packed or not); save the table as one of "
                         "them, as pandas.read_excel(path).to_csv(path, index=False) does")
    if path.suffix.lower() != ".npz":
        return path, read_frame(path, problems), target
    try:
        frame, target = read_npz(path, target)
    except (OSError, ValueError) as error:
        problems.append(str(error))
        return path, None, target
    return path, Read(frame, {}, []), target


def _held_out(values: pd.Series, name: str, problems: list[str]) -> np.ndarray:
    """Which rows a column marks."""
    text = values.astype(object).map(lambda v: str(v).strip().lower())
    known = text.isin(["1", "1.0", "true", "yes", "test"])
    plain = known | text.isin(["0", "0.0", "false", "no", "train", "training", "validation", "valid"])
    if not plain.all() or not known.any() or known.all():
        problems.append(f"column {name!r} must mark the rows to hold out by 1 and 0, yes and no, or test and train; "
                        + (f"row {int((~plain).to_numpy().argmax())} is {values[int((~plain).to_numpy().argmax())]!r}"
                           if not plain.all() else f"it marks {int(known.sum())} of {len(known)} rows"))
    return known.to_numpy()


def _targets(values: pd.Series, name: str, problems: list[str]) -> tuple[np.ndarray, tuple, np.ndarray]:
    """Targets, the names of their classes, and which rows have one."""
    kept = values.notna().to_numpy()
    if not kept.any():
        problems.append(f"target {name!r} has no value in any row; name another column")
        return np.zeros(len(kept)), (), kept
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        problems.append(f"target {name!r} holds dates; predict a length of time, as a number of days")
        return np.zeros(len(kept)), (), kept
    if pd.api.types.is_bool_dtype(values.dtype):
        codes = np.where(kept, values.to_numpy(dtype=object, na_value=False), False).astype(int)
        return codes, ("no", "yes"), kept
    if pd.api.types.is_numeric_dtype(values.dtype):
        return values.to_numpy(np.float64), (), kept
    codes, names = pd.factorize(values.to_numpy(dtype=object), sort=True)
    if len(names) < 2 or len(names) > max(50, kept.sum() // 10):
        problems.append(f"target {name!r} holds text of {len(names)} kinds in {int(kept.sum())} rows (such as "
                        f"{str(names[0])!r}), which does not look like classes; correct what should be numbers, or "
                        "name another column")
    return codes, tuple(str(c) for c in names), kept
