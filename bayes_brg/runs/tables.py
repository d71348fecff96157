"""Tables of real data: from a file, to inputs and targets, to an experiment with held-out scores."""

from __future__ import annotations

import csv
import difflib
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from ..core.arrays import check_floats, read_array
from ..core.checks import check_key
from ..diagnostics.scores import Scores, scores
from ..inference.approximations import map_estimate
from ..inference.default import sample
from ..inference.ensemble import ensemble
from ..posterior import Posterior
from .data import Data
from .experiment import Experiment
from .measures import scores_in_units
from .verdicts import ahead

__all__ = ["Table", "load_table", "table_experiment"]


@dataclass(frozen=True)
class Table:
    """Inputs and targets as they were measured.

    Attributes
    ----------
    x : array (n, dim)
    y : array (n,)
        Numbers, or the index of each datum's class.
    columns : tuple of str
        Names of the inputs.
    target : str
    classes : tuple, optional
        Names of the classes, where targets are labels.
    """

    x: np.ndarray
    y: np.ndarray
    columns: tuple[str, ...] = ()
    target: str = "y"
    classes: tuple = ()

    def __post_init__(self):
        x, y = check_floats(self.x, "x", finite=False), np.asarray(read_array(self.y, "y", finite=False))
        if x.ndim != 2 or y.shape != (len(x),):
            raise ValueError(f"a table needs inputs (n, dim) and targets (n,), got {x.shape} and {y.shape}")
        object.__setattr__(self, "columns", tuple(self.columns) or tuple(f"x{i}" for i in range(x.shape[1])))
        for values, names in ((x, self.columns), (y[:, None], (self.target,))):
            bad = ~np.isfinite(values)
            if bad.any():
                row, column = np.argwhere(bad)[0]
                raise ValueError(f"column {names[column]!r} has no finite value at row {row} ({bad.sum()} such entries "
                                 "in the table); fill them in or drop their rows")
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)

    def labelled(self) -> Table:
        """The table with targets as classes 0, 1, …: for a classifier, when they are numbers so far."""
        if self.classes:
            return self
        classes, index = np.unique(self.y, return_inverse=True)
        if len(classes) < 2 or len(classes) > max(50, len(self.y) // 10):
            raise ValueError(f"target {self.target!r} has {len(classes)} different values in {len(self.y)} rows, which "
                             "does not look like classes; name a column of labels, or use a regression model")
        return Table(self.x, index, self.columns, self.target, tuple(classes.tolist()))

    def numeric(self) -> Table:
        """The table, if its targets are numbers: for a regression."""
        if self.classes:
            raise ValueError(f"target {self.target!r} holds text ({', '.join(map(str, self.classes[:3]))}, …), which a "
                             "regression cannot fit; use a classifier such as models/digits.py")
        return self

    def split(self, key: Any, *, num_test: int | None = None, num_train: int | None = None) -> Data:
        """Standardised `Data` with a held-out part.

        Inputs, and targets that are numbers, are brought to mean 0 and standard deviation 1 by the training rows
        alone. Columns that are constant there are 0 in all rows.

        Parameters
        ----------
        key : jax.random.key
            Of the permutation of the rows.
        num_test : int, optional
            Held-out rows; default a quarter.
        num_train : int, optional
            Training rows; default all others.

        Returns
        -------
        Data
            With ``y_mean``, ``y_scale`` and the target's name, by which a run gives results in the target's own units.

        Raises
        ------
        ValueError
            If there are too few rows, or targets that are numbers are all the same in the training rows.
        """
        n = len(self.y)
        test = max(1, n // 4) if num_test is None else num_test
        train = n - test if num_train is None else min(num_train, n - test)
        if test < 1 or train < 2:
            raise ValueError(f"the table has {n} rows: {test} to hold out leave {n - test} to learn from")
        order = np.asarray(jax.random.permutation(check_key(key), n))
        rows, held = order[test:test + train], order[:test]
        # By its range: the standard deviation of a constant such as 0.1 is not 0 but its rounding.
        varies = np.ptp(self.x[rows], axis=0) > 0
        mean, scale = self.x[rows].mean(0), np.where(varies, self.x[rows].std(0), 1.0)
        x = np.where(varies, (self.x - mean) / scale, 0.0)
        y: np.ndarray = self.y
        own: dict[str, Any] = {}
        if not self.classes:
            if np.ptp(self.y[rows]) == 0:
                raise ValueError(f"target {self.target!r} is {self.y[rows][0]:g} in all {train} training rows; there "
                                 "is nothing to learn from them")
            own = {"y_mean": float(self.y[rows].mean()), "y_scale": float(self.y[rows].std()), "units": self.target}
            y = ((self.y - own["y_mean"]) / own["y_scale"])[:, None]
        dtype = np.float64 if jax.config.jax_enable_x64 else np.float32
        x, y = x.astype(dtype), y.astype(int if self.classes else dtype)
        return Data(x[rows], y[rows], x[held], y[held], **own)


def load_table(path: str | Path, target: str = "") -> Table:
    """A table from a CSV file, or from arrays in an NPZ file.

    Parameters
    ----------
    path : str or Path
        ``*.csv`` with commas and a header, every column but the target an input; or ``*.npz`` with arrays ``x``
        (n, dim) and ``y`` (n,) or (n, 1), or one array (n,) for each column.
    target : str
        The column to predict. Text there is taken as names of classes. It may be left out for an NPZ file with ``y``.

    Returns
    -------
    Table

    Raises
    ------
    FileNotFoundError, ValueError
        For no such file, another kind of file, other separators than commas, columns without a name or with the same
        one, no such column (the nearest is named), a column of text among the inputs, or missing values, by column and
        row (from 0, below the header).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    kind = path.suffix.lower()
    if kind not in (".csv", ".npz"):
        raise ValueError(f"{path} is neither .csv nor .npz; save the table as one of them")
    try:
        frame, target = _frame_of_npz(path, target) if kind == ".npz" else (_frame_of_csv(path), target)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8; save it in that encoding") from None
    except (OSError, ValueError, csv.Error) as error:  # pandas's parser errors are ValueErrors
        raise ValueError(f"{path} cannot be read as a table: {error}") from None
    if not target:
        raise ValueError(f"say which column of {path} is the target; its columns are {', '.join(frame.columns)}")
    if target not in frame.columns:
        close = difflib.get_close_matches(target, list(frame.columns), n=1)
        raise ValueError(f"{path} has no column {target!r}" + (f" (did you mean {close[0]!r}?)" if close else "")
                         + f"; its columns are {', '.join(frame.columns)}")
    if len(frame.columns) < 2:
        raise ValueError(f"{path} has the target {target!r} alone; it needs at least one input column")
    inputs = frame.drop(columns=target)
    for name in frame.columns:
        missing = frame[name].isna().to_numpy()
        if missing.any():
            raise ValueError(f"column {name!r} of {path} has no value at row {missing.argmax()} ({missing.sum()} of "
                             f"{len(frame)} rows); fill them in or drop the rows")
    for name in inputs.columns:
        if not pd.api.types.is_numeric_dtype(inputs[name]):
            row = int(pd.to_numeric(inputs[name], errors="coerce").isna().to_numpy().argmax())
            raise ValueError(f"column {name!r} of {path} holds text (row {row}: {str(inputs[name].iloc[row])!r}); turn "
                             "it into numbers (pandas.get_dummies for categories) or drop it")
    y, classes = frame[target], ()  # type: tuple[pd.Series, tuple]
    if not pd.api.types.is_numeric_dtype(y) or pd.api.types.is_bool_dtype(y):
        codes, names = pd.factorize(y, sort=True)
        y, classes = pd.Series(codes), tuple(str(c) for c in names)
    return Table(inputs.to_numpy(float), y.to_numpy(), tuple(inputs.columns), target, classes)


def _frame_of_csv(path: Path) -> pd.DataFrame:
    # The header by itself: pandas renames columns of one name and of none, and takes a first column that the header
    # does not count for row labels, which would move every value to another name.
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = (row for row in csv.reader(file) if row)
        names, first = [name.strip() for name in next(rows, [])], next(rows, [])
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and separator in names[0]:
            raise ValueError(f"its values are separated by {word}; save it with commas between them and points in "
                             f"numbers, as pandas.read_csv(path, sep={separator!r}).to_csv(path, index=False) does")
    if "" in names:
        raise ValueError(f"column {names.index('')} has no name (is it an index that was saved along?); name it or "
                         "drop it")
    if twice := [n for n, count in Counter(names).items() if count > 1]:
        raise ValueError(f"several columns have the name {twice[0]!r}; rename or drop all but one")
    if not first:
        raise ValueError("it has a header but no rows" if names else "it is empty")
    if len(first) != len(names):
        raise ValueError(f"its header has {len(names)} names ({', '.join(names)}) but its first row {len(first)} "
                         "values; give every column a name")
    frame = pd.read_csv(path, encoding="utf-8-sig")
    frame.columns = names
    return frame


def _frame_of_npz(path: Path, target: str) -> tuple[pd.DataFrame, str]:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive of arrays; write it with numpy.savez")
    with np.load(path, allow_pickle=False) as arrays:
        held = {name: arrays[name] for name in arrays.files}
    if imaginary := [name for name, v in held.items() if v.dtype.kind == "c"]:
        raise ValueError(f"{imaginary[0]} holds complex numbers; give their parts as columns")
    if set(held) >= {"x", "y"} and held["x"].ndim == 2 and target in ("", "y"):
        if held["y"].shape == (len(held["x"]), 1):
            held["y"] = held["y"][:, 0]
        if held["y"].shape != held["x"].shape[:1]:
            raise ValueError(f"y has shape {held['y'].shape} but x has {held['x'].shape}")
        return pd.DataFrame({**{f"x{i}": c for i, c in enumerate(held["x"].T)}, "y": held["y"]}), "y"
    wrong = [f"{k} {v.shape}" for k, v in held.items() if v.ndim != 1]
    if wrong or len({len(v) for v in held.values()}) > 1:
        raise ValueError("it needs arrays x (n, dim) and y (n,), or arrays (n,) of one length, one a column; it has "
                         + ", ".join(f"{k} {v.shape}" for k, v in held.items()))
    return pd.DataFrame(held), target


def _sample(model, x, y, key, settings):
    return sample(model, x, y, key=key, num_warmup=settings.num_warmup, num_samples=settings.num_samples)


def _ensemble(model, x, y, key, settings):
    return ensemble(model, x, y, key=key, num_members=settings.num_members, train="all", objective="randomized_map",
                    optimizer="adam", learning_rate=0.01, num_epochs=settings.num_epochs)


def ahead_of_one(found: Scores, single: Scores, method: str) -> dict[str, Any]:
    """Whether averaging over draws predicts better than one network: errors are those of the paired difference."""
    gain = (found.dataset["log_predictive_density"] - single.dataset["log_predictive_density"]).values
    said = ahead(gain.mean(), gain.std(ddof=1) / np.sqrt(gain.size) if gain.size > 1 else np.nan, method,
                 "the single most probable network", "nats of log predictive density per held-out datum")
    return {"method": method, "holds": said.holds, "verdict": said.text}


# -- an experiment on a table ---------------------------------------------------------------------------------
def table_experiment(name: str, table: Callable[[], Table], model: Callable[[Any, Table], Any],
                     infer: Mapping[str, Callable[..., Posterior]] | None = None, *, classes: bool,
                     settings: Mapping[str, Any], metric: Any = None, flow: Any = None, couplings: int = 0
                     ) -> Experiment:
    """An experiment on real data, in whose place a user's table can be put.

    ``bayes-brg run FILE --data file.csv --target column`` sets the settings ``data`` and ``target``, which it has
    besides its own, as it has ``num_train`` (0: three quarters of the rows). The Fisher metric is averaged over the
    training inputs. When all is done, the held-out scores at Λ = 0 of every method, and of the single most probable
    network (`map_estimate`), are left in ``scores.csv`` and ``figures/calibration.png``, in the target's own
    units, and whether a method predicts better than that network in ``verdicts.csv``.

    Parameters
    ----------
    name : str
    table : callable
        ``table()`` returns the bundled `Table`.
    model : callable
        ``model(settings, table)`` returns the network; ``table.x`` and ``table.classes`` say its sizes.
    infer : mapping of str to callable, optional
        As in `Experiment`; default: all weights by the default method of `sample` (settings ``num_warmup``,
        ``num_samples``), and a randomised-MAP `ensemble` trained by Adam (``num_members``, ``num_epochs``).
    metric, flow, couplings
        As in `Experiment`.
    classes : bool
        Whether targets are labels.
    settings : mapping
        Names and default values.

    Returns
    -------
    Experiment
    """
    @lru_cache(maxsize=4)
    def read(path: str, target: str) -> Table:
        if target and not path:
            raise ValueError(f"target {target!r} is a column of no table; name its file, --data FILE")
        found = load_table(path, target) if path else table()
        return found.labelled() if classes else found.numeric()

    def network(chosen):
        return model(chosen, read(chosen.data, chosen.target))

    def data(chosen, key):
        return read(chosen.data, chosen.target).split(key, num_train=chosen.num_train or None)

    def extras(run, flows):
        chosen = experiment.with_settings(run.settings)
        net, held = network(chosen), run.data
        best = map_estimate(net, held["x"].values, held["y"].values, key=jax.random.key(chosen.seed))
        single = Posterior({s: v[None, None] for s, v in best.items()}, {"independent": True}, "map")
        methods = {m: flows[m].posterior for m in flows} | {"map": single}
        found = {m: scores_in_units(scores(net, p, held["x_test"].values, held["y_test"].values),
                                    held.attrs.get("y_scale", 1.0)) for m, p in methods.items()}
        rows = []
        for label, one in found.items():
            names = [n for n in one.dataset if not one.dataset[n].dims and not str(n).endswith("_mcse")]
            rows.append({"method": label, **{str(n): float(one.dataset[n]) for n in names}})
        judged = [ahead_of_one(found[m], found["map"], m) for m in flows]
        from .. import plots
        return {"scores": pd.DataFrame(rows), "verdicts": pd.DataFrame(judged),
                "calibration": plots.calibration_curve(found).get_figure()}

    experiment = Experiment(name=name, model=network, data=data, probe=None,
                            infer=infer or {"sample": _sample, "ensemble": _ensemble}, metric=metric or {},
                            flow=flow or {}, couplings=couplings, extras=extras,
                            settings={"data": "", "target": "", "num_train": 0, **settings})
    return experiment
