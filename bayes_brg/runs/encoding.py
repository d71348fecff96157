"""The encoder of a table: from columns as people have them to standardised inputs, by training rows alone."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..core.arrays import read_array
from ..io.store import load_run
from .columns import COLUMNS, Column, fit_column
from .reading import typed

__all__ = ["Encoder", "fit_encoder"]

HEAVY = ("auto", "log", "rank", "none")


@dataclass(frozen=True)
class Encoder:
    """What columns become before a network sees them; made by `Table.split`, and kept in a run as ``encoder.json``.

    Attributes
    ----------
    names : tuple of str
        Columns of the table, in order, the target not among them.
    columns : tuple of Column
        The encodings of those that are used.
    kept : tuple of int
        Which of their inputs are: those that vary and say what no earlier one does.
    mean, scale : tuple of float
        Of these inputs over the training rows.
    left_out : dict of str to str
        Columns and inputs that are not used, and why.
    """

    names: tuple[str, ...]
    columns: tuple[Column, ...]
    kept: tuple[int, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    left_out: Mapping[str, str]

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs, in order."""
        every = [name for column in self.columns for name in column.outputs()]
        return [every[i] for i in self.kept]

    def transform(self, x: Any) -> np.ndarray:
        """Standardised inputs (n, len(inputs)) of new rows.

        Parameters
        ----------
        x : DataFrame or array (n, len(names))
            Columns by name (others are not looked at), or all of them in order.

        Returns
        -------
        array (n, inputs)
            float64; the training rows have mean 0 and standard deviation 1 in each column.

        Warns
        -----
        UserWarning
            For what training rows did not hold: new levels, missing values where there were none.

        Raises
        ------
        ValueError
            If a column is missing or of another kind than in training.
        """
        notes: list[str] = []
        out = self.encode(self._frame(x), notes)
        if notes:
            warnings.warn("; ".join(notes), UserWarning, stacklevel=2)
        return out

    def _frame(self, x: Any) -> pd.DataFrame:
        if not isinstance(x, pd.DataFrame):
            x = np.asarray(read_array(x, "x", finite=False))
            if x.ndim != 2 or x.shape[1] != len(self.names):
                raise ValueError(f"x has shape {x.shape}, but the table has {len(self.names)} columns: "
                                 f"{', '.join(self.names)}")
            return pd.DataFrame(x.astype(float), columns=list(self.names))
        lacking = [c.name for c in self.columns if c.name not in x.columns]
        if lacking:
            raise ValueError(f"the new rows lack {', '.join(map(repr, lacking))} of the columns "
                             f"{', '.join(map(repr, self.names))}")
        frame = {}
        for column in self.columns:
            found = typed(x[column.name]).values
            kind = "dates" if pd.api.types.is_datetime64_any_dtype(found.dtype) else "numbers" if (
                pd.api.types.is_numeric_dtype(found.dtype) or pd.api.types.is_bool_dtype(found.dtype)) else "categories"
            if column.kind == "categories" and kind == "numbers":
                found = pd.Series([None if pd.isna(v) else f"{v:.15g}" if isinstance(v, float) else v for v in found],
                                  dtype=object)
            elif kind != column.kind and found.notna().any():
                raise ValueError(f"column {column.name!r} held {column.kind} in training, and now {kind} (such as "
                                 f"{found.dropna().iloc[0]!r})")
            elif kind != column.kind:
                found = pd.Series(np.full(len(found), np.datetime64("NaT", "us")) if column.kind == "dates" else
                                  np.full(len(found), np.nan))
            frame[column.name] = found
        return pd.DataFrame(frame)

    def encode(self, frame: pd.DataFrame, notes: list[str] | None = None) -> np.ndarray:
        """`transform` of columns whose kinds are known, with what there is to say appended to `notes`."""
        raw = _raw(self.columns, frame, [] if notes is None else notes)[:, list(self.kept)]
        return (raw - np.array(self.mean)) / np.array(self.scale)

    def table(self) -> pd.DataFrame:
        """Every decision, one row a column: ``column``, ``kind``, ``missing`` (training rows without a value),
        ``inputs`` (how many it becomes), ``encoding`` in words."""
        used = {c.name: c for c in self.columns}
        place, at = {}, 0
        for c in self.columns:
            width = len(c.outputs())
            place[c.name] = [i for i in range(at, at + width) if i in set(self.kept)]
            at += width
        rows: list[dict[str, Any]] = []
        for name in self.names:
            if name in used and place[name]:
                c = used[name]
                gone = [f"left out: {n} ({self.left_out[n]})" for n in c.outputs() if n in self.left_out and n != name]
                rows.append({"column": name, "kind": "boolean" if getattr(c, "boolean", False) else c.kind,
                             "missing": c.missing, "inputs": len(place[name]),
                             "encoding": "; ".join([c.said(), *gone]) + "; standardised"})
            else:
                rows.append({"column": name, "kind": "left out", "missing": used[name].missing if name in used else 0,
                             "inputs": 0, "encoding": self.left_out.get(name) or "; ".join(
                                 f"{n}: {self.left_out[n]}" for n in used[name].outputs())})
        return pd.DataFrame(rows, columns=["column", "kind", "missing", "inputs", "encoding"])

    # -- in the files of a run ----------------------------------------------------------------------------
    def record(self) -> str:
        """As JSON; `restore` reads it."""
        held = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        held["columns"] = [{"kind": c.kind, **dataclasses.asdict(c)} for c in self.columns]
        held["left_out"] = dict(self.left_out)
        return json.dumps(held)

    @staticmethod
    def restore(record: str) -> Encoder:
        """The encoder that `record` wrote down."""
        held = json.loads(record)

        def tuples(value: Any) -> Any:
            return tuple(value) if isinstance(value, list) else value

        columns = tuple(COLUMNS[c.pop("kind")](**{k: tuples(v) for k, v in c.items()}) for c in held.pop("columns"))
        return Encoder(columns=columns, **{k: tuples(v) for k, v in held.items()})

    @staticmethod
    def load(run: str | Path) -> Encoder:
        """The encoder of a run, from its directory."""
        found = load_run(run, verify=False)
        if "encoder.json" not in found.recorded:
            raise FileNotFoundError(f"{run} has no encoder.json: it is no run of a table, or of an older version")
        content = found.read_bytes("encoder.json")
        try:
            return Encoder.restore(content.decode("utf-8"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{found.path / 'encoder.json'} holds no encoder that can be read: "
                             f"{type(error).__name__}") from None


def _raw(columns: tuple[Column, ...], frame: pd.DataFrame, notes: list[str]) -> np.ndarray:
    parts = [c.transform(frame[c.name], notes) for c in columns]
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(frame), 0))


def fit_encoder(frame: pd.DataFrame, heavy: str = "auto") -> Encoder:
    """The encoder of columns whose kinds are known, by these (training) rows.

    Parameters
    ----------
    frame : DataFrame
        float64, boolean, datetime64 and object columns, as `Table.frame` has them.
    heavy : {"auto", "log", "rank", "none"}
        What is done about heavy tails of inputs: where a value lies over ten interquartile ranges from the median, the
        logarithm if all are positive and it mends that, else normal scores of ranks; one of the two everywhere; or
        nothing.

    Raises
    ------
    ValueError
        If no column is left.
    """
    if heavy not in HEAVY:
        raise ValueError(f"heavy must be one of {', '.join(map(repr, HEAVY))}, got {heavy!r}")
    names = tuple(map(str, frame.columns))
    columns, left_out = [], {}
    for name in names:
        found = fit_column(frame[name], name, heavy)
        if isinstance(found, str):
            left_out[name] = found
        else:
            columns.append(found)
    raw = _raw(tuple(columns), frame, [])
    every = [name for c in columns for name in c.outputs()]
    mean = raw.mean(axis=0)
    # By its range: the standard deviation of a constant such as 0.1 is not 0 but its rounding.
    scale = np.where(np.ptp(raw, axis=0) > 0, raw.std(axis=0), 0.0)
    kept: list[int] = []
    seen: dict[bytes, str] = {}
    for i, name in enumerate(every):
        if scale[i] == 0:
            left_out[name] = "constant in the training rows"
            continue
        unit = (raw[:, i] - mean[i]) / scale[i]
        unit = np.round(unit * np.sign(unit[np.argmax(np.abs(unit) > 1e-3)]), 6) + 0.0  # of either sign
        if (same := seen.setdefault(unit.tobytes(), name)) != name:
            left_out[name] = f"says the same as {same}"
            continue
        kept.append(i)
    if not kept:
        why = "; ".join(f"{n}: {w}" for n, w in list(left_out.items())[:5])
        raise ValueError(f"no column of the table says anything about the target ({why})")
    return Encoder(names, tuple(columns), tuple(kept), tuple(mean[kept].tolist()), tuple(scale[kept].tolist()),
                   left_out)
