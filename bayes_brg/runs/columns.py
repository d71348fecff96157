"""What each kind of column becomes: numbers, booleans, dates, categories. Fitted on training rows, kept as plain data.

An encoding is a frozen dataclass of numbers and text, found again by its name in the file of a run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from scipy import special

__all__ = ["COLUMNS", "Categories", "Column", "Dates", "Numbers", "fit_column", "normal_scores"]

COLUMNS: dict[str, type[Column]] = {}
"""Every encoding by its name."""

HEAVY = 10.0  # how many interquartile ranges from the median a column's last value lies where its tail is called heavy
RARE, FEWEST, MOST = 0.01, 5, 20  # share and number of rows below which a level is pooled; levels that get an input
KNOTS = 65
DAY = 86_400.0 * 1e6  # microseconds
YEAR = 365.2425


@dataclass(frozen=True)
class Column:
    """A fitted encoding of one column, the base of all.

    Attributes
    ----------
    name : str
        Of the column.
    missing : int
        Entries without a value among the training rows.
    mark : str
        Of the class: what becomes of missing values, in words.
    """

    kind: ClassVar[str] = ""
    mark: ClassVar[str] = "missing: the median, and an input that says so"
    name: str
    missing: int

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        COLUMNS[cls.kind] = cls

    def outputs(self) -> list[str]:
        """Names of the inputs it becomes; last, where training rows lacked a value, the one that says so."""
        return [*self.names(), *([f"{self.name} is missing"] if self.missing else [])]

    def names(self) -> list[str]:
        """Names of the inputs but the one that says that there is no value."""
        return [self.name]

    def transform(self, values: pd.Series, notes: list[str]) -> np.ndarray:
        """The inputs (n, outputs), before they are standardised; what a reader must know is appended to `notes`."""
        raise NotImplementedError

    def said(self) -> str:
        """The encoding in words."""
        return "; ".join([*self.parts(), *([self.mark] if self.missing else [])])

    def parts(self) -> list[str]:
        """The encoding in words, without what becomes of missing values."""
        raise NotImplementedError

    def warn(self, gone: np.ndarray, notes: list[str], what: str = "value", become: str = "get its median") -> None:
        """Note the rows (n,) that have no value, where no training row lacked one."""
        if gone.any() and not self.missing:
            notes.append(f"column {self.name!r}: {int(gone.sum())} rows have no {what}, which no training row lacked; "
                         f"they {become}")


def normal_scores(values: np.ndarray, knots: int = KNOTS) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Values and their normal scores Φ⁻¹((rank − ½)/n), ties at their middle rank, at evenly spaced ranks.

    Parameters
    ----------
    values : array (n,)
    knots : int
        How many are kept; between them one interpolates.

    Returns
    -------
    tuple, tuple
        Distinct values, ascending, and their scores, strictly ascending.
    """
    levels, count = np.unique(values, return_counts=True)
    scores = special.ndtri((np.cumsum(count) - count / 2) / count.sum())
    ranks = (np.arange(knots) + 0.5) / knots
    at = np.searchsorted(np.cumsum(count), ranks * count.sum(), side="left").clip(0, len(levels) - 1)
    at = np.unique(np.concatenate([[0], at, [len(levels) - 1]]))
    return tuple(levels[at].tolist()), tuple(scores[at].tolist())


@dataclass(frozen=True)
class Numbers(Column):
    """Numbers and booleans: transformed where their tail is heavy, gaps filled with the median and marked.

    Attributes
    ----------
    transform_name : {"", "log", "rank"}
    fill : float
        Median of the training rows, after the transform.
    knots, scores : tuple of float
        Of the rank transform, by `normal_scores`; beyond the last knot it stays constant.
    boolean : bool
    """

    kind: ClassVar[str] = "numbers"
    transform_name: str = ""
    fill: float = 0.0
    knots: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    boolean: bool = False

    def warped(self, values: np.ndarray, notes: list[str]) -> np.ndarray:
        if self.transform_name == "log":
            bad = values <= 0
            if bad.any():
                notes.append(f"column {self.name!r}: {int(bad.sum())} values are not above 0, where its logarithm is "
                             "taken, and count as missing")
            return np.log(np.where(bad, np.nan, values))
        if self.transform_name == "rank":
            return np.where(np.isnan(values), np.nan, np.interp(values, self.knots, self.scores))
        return values

    def transform(self, values, notes):
        given = values.to_numpy(np.float64, na_value=np.nan)
        warped = self.warped(given, notes)
        gone = np.isnan(warped)
        filled = np.where(gone, self.fill, warped)
        self.warn(gone, notes)
        return np.stack([filled, gone.astype(float)], 1) if self.missing else filled[:, None]

    def parts(self):
        return ["no as 0, yes as 1" if self.boolean else {
            "": "as measured", "log": "its logarithm (heavy tail)", "rank": "normal scores of its ranks (heavy tail)"
        }[self.transform_name]]


@dataclass(frozen=True)
class Dates(Column):
    """Times: days since the first training row, and sines and cosines of the cycles that the rows span.

    Attributes
    ----------
    start : float
        Microseconds since 1970 of the first training row.
    fill : float
        Median, in days since `start`.
    cycles : tuple of str
        Of ``"year"``, ``"week"``, ``"day"``.
    """

    kind: ClassVar[str] = "dates"
    start: float = 0.0
    fill: float = 0.0
    cycles: tuple[str, ...] = ()

    def names(self):
        return [f"{self.name} (days)",
                *(f"{self.name} ({wave} of {cycle})" for cycle in self.cycles for wave in ("sine", "cosine"))]

    def transform(self, values, notes):
        elapsed = days_since(values, self.start)
        gone = np.isnan(elapsed)
        self.warn(gone, notes, "time")
        elapsed = np.where(gone, self.fill, elapsed)
        since = elapsed + self.start / DAY  # days since 1970, a Thursday
        parts = [elapsed]
        for cycle in self.cycles:
            turn = 2 * np.pi * since / {"year": YEAR, "week": 7.0, "day": 1.0}[cycle]
            parts += [np.where(gone, 0.0, np.sin(turn)), np.where(gone, 0.0, np.cos(turn))]
        return np.stack([*parts, gone.astype(float)] if self.missing else parts, 1)

    def parts(self):
        first = np.datetime64(int(self.start), "us").astype("datetime64[m]")
        return [f"days since {first}", *([f"sine and cosine of the {', '.join(self.cycles)}"] if self.cycles else [])]


@dataclass(frozen=True)
class Categories(Column):
    """Levels: an input of 0 and 1 each; rare levels, and later ones that training has not seen, are pooled.

    Attributes
    ----------
    levels : tuple of str
        That have an input. Of two levels and nothing else, only the second has.
    pooled : tuple of str
        Seen in training, but rarely.
    alone : str
        The level without an input, where there are two.
    """

    kind: ClassVar[str] = "categories"
    mark: ClassVar[str] = "one for what is missing"
    levels: tuple[str, ...] = ()
    pooled: tuple[str, ...] = ()
    alone: str | None = None

    def names(self):
        return [*(f"{self.name} = {level}" for level in self.levels), *([f"{self.name}: other"] if self.pooled else [])]

    def transform(self, values, notes):
        codes, found = pd.factorize(values.to_numpy(dtype=object))
        found = [as_text(v) for v in found]
        place = {level: i for i, level in enumerate(self.levels)}
        other = len(self.levels) if self.pooled else -1
        where = np.array([*(place.get(v, other) for v in found), -1], dtype=int)
        if self.alone is not None and self.alone in found:
            where[found.index(self.alone)] = -1
        new = [v for v in found if v not in place and v not in self.pooled and v != self.alone]
        if new:
            rows = int(np.isin(codes, [found.index(v) for v in new]).sum())
            notes.append(f"column {self.name!r}: {rows} rows hold levels that training has not seen ("
                         f"{', '.join(map(repr, new[:3]))}{', …' if len(new) > 3 else ''}); they count as "
                         + ("other" if self.pooled else "none of its levels"))
        gone = codes < 0
        self.warn(gone, notes, become="count as none of its levels")
        out = np.zeros((len(codes), len(self.outputs())))
        at = where[codes]
        out[np.flatnonzero(at >= 0), at[at >= 0]] = 1.0
        if self.missing:
            out[gone, -1] = 1.0
        return out

    def parts(self):
        if self.alone is not None:
            parts = [f"{self.alone!r} as 0, {self.levels[0]!r} as 1"]
        else:
            parts = [f"an input each for {len(self.levels)} levels"]
        if self.pooled:
            parts.append(f"one for the {len(self.pooled)} rare ones together, and for new ones")
        return parts


def as_text(value: object) -> str:
    """A level as text; booleans as no and yes."""
    return {True: "yes", False: "no"}[bool(value)] if isinstance(value, (bool, np.bool_)) else str(value)


def days_since(values: pd.Series, start: float) -> np.ndarray:
    """Days since `start`, NaN where there is no time."""
    ticks = values.to_numpy().astype("datetime64[us]")
    gone = np.isnat(ticks)
    return np.where(gone, np.nan, (np.where(gone, np.datetime64(0, "us"), ticks).astype(np.int64) - start) / DAY)


# -- fitted on training rows ----------------------------------------------------------------------------------
def fit_column(values: pd.Series, name: str, heavy: str = "auto") -> Column | str:
    """The encoding of a column by its training rows, or why it is left out."""
    gone = int(values.isna().sum())
    if gone == len(values):
        return "no training row has a value"
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return _fit_dates(values, name, gone)
    if pd.api.types.is_bool_dtype(values.dtype):
        known = values.dropna().to_numpy(dtype=float)
        if np.ptp(known) == 0 and not gone:
            return f"constant in the training rows ({'yes' if known[0] else 'no'})"
        return Numbers(name, gone, fill=float(np.median(known)), boolean=True)
    if pd.api.types.is_numeric_dtype(values.dtype):
        return _fit_numbers(values.to_numpy(np.float64), name, gone, heavy)
    return _fit_categories(values, name, gone)


def tail(values: np.ndarray) -> float:
    """How many interquartile ranges the farthest value lies from the median; standard deviations where that is 0."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    width = high - low if high > low else values.std()
    return float(np.abs(values - middle).max() / width) if width > 0 else 0.0


def _fit_numbers(values: np.ndarray, name: str, gone: int, heavy: str) -> Column | str:
    known = values[~np.isnan(values)]
    if np.ptp(known) == 0 and not gone:
        return f"constant in the training rows ({known[0]:.6g})"
    counts = np.diff(np.sort(known))
    if name.strip().lower() in ("id", "index", "row", "unnamed: 0") and not gone and (counts == 1).all():
        return "it counts the rows"
    transform, knots, scores = "", (), ()  # type: str, tuple[float, ...], tuple[float, ...]
    distinct = len(np.unique(known)) if heavy != "none" else 0
    if heavy in ("log", "rank") and distinct > 2:
        transform = heavy if heavy == "rank" or known.min() > 0 else ""
    elif heavy == "auto" and distinct > 20 and tail(known) > HEAVY:
        transform = "log" if known.min() > 0 and tail(np.log(known)) <= HEAVY else "rank"
    if transform == "rank":
        knots, scores = normal_scores(known)
    fitted = Numbers(name, gone, transform, 0.0, knots, scores)
    return Numbers(name, gone, transform, float(np.median(fitted.warped(known, []))), knots, scores)


def _fit_dates(values: pd.Series, name: str, gone: int) -> Column | str:
    ticks = values.dropna().to_numpy().astype("datetime64[us]").astype(np.int64)
    days = (ticks - ticks.min()) / DAY
    if days.max() == 0 and not gone:
        return "constant in the training rows"
    span, since = days.max(), ticks / DAY
    cycles = []
    if span >= 2 * YEAR and len(np.unique(np.floor(since % YEAR / 31))) > 2:
        cycles.append("year")
    if span >= 14 and len(np.unique(np.floor(since) % 7)) > 2:
        cycles.append("week")
    if span >= 2 and len(np.unique(np.floor(since % 1 * 24))) > 2:
        cycles.append("day")
    return Dates(name, gone, float(ticks.min()), float(np.median(days)), tuple(cycles))


def _fit_categories(values: pd.Series, name: str, gone: int) -> Column | str:
    count = Counter(as_text(v) for v in values.dropna())
    total = len(values)
    if len(count) == 1 and not gone:
        return f"constant in the training rows ({next(iter(count))!r})"
    often = [v for v, c in count.most_common(MOST) if c >= max(FEWEST, RARE * total)]
    if len(count) > MOST and 2 * len(count) > total - gone:
        return f"text that tells rows apart, not kinds of rows ({len(count)} different texts in {total - gone} rows)"
    if len(count) == 2 and not gone:
        alone, level = sorted(count)
        return Categories(name, 0, (level,), (), alone)
    if len(count) <= 5:  # so few that none need be pooled
        often = list(count)
    if len(count) - len(often) == 1:
        often = list(count)
    return Categories(name, gone, tuple(sorted(often)), tuple(sorted(v for v in count if v not in often)))
