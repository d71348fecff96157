"""Files of tables as other programs write them: separators, packing, text that means a number, a date or nothing.

All that is wrong with a file is said in one error, each fault with what mends it; what was merely decided is noted.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..core.archives import load_arrays
from ..core.files import MIB, amount, bounded, listed, open_regular

__all__ = ["Read", "Typed", "is_table", "kind_of", "problems_error", "read_frame", "typed"]

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
TEXT = (".csv", ".tsv", ".tab", ".txt")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Nothing was measured: always, and where everything else in the column is a number or a date.
MISSING = {"", "na", "n/a", "nan", "null", "#n/a", "<na>", "?", "#value!", "nat"}
DASHES = {"-", "--", "—", "–", ".", "none", "missing", "unknown", "n.a.", "k.a.", "*"}
BOOLEANS = [("false", "true"), ("no", "yes"), ("n", "y"), ("f", "t"), ("off", "on")]
ROOM = 64 * MIB  # what a packed file may hold beyond 50 times its own bytes
MOSTLY = 0.9  # share of numbers from which a column is one of numbers with slips, and not one of text
# Formats of dates: (as pandas writes them, in words). Where several fit all entries, the first is taken, and said.
DATES = [("%Y-%m-%d", "year-month-day"), ("%Y/%m/%d", "year/month/day"), ("%d.%m.%Y", "day.month.year"),
         ("%m/%d/%Y", "month/day/year"), ("%d/%m/%Y", "day/month/year"), ("%d-%m-%Y", "day-month-year"),
         ("%m/%d/%y", "month/day/year"), ("%d/%m/%y", "day/month/year"), ("%d.%m.%y", "day.month.year"),
         ("%d %b %Y", "day month year"), ("%b %d, %Y", "month day, year"), ("%d-%b-%Y", "day-month-year"),
         ("%d %B %Y", "day month year"), ("%B %d, %Y", "month day, year"), ("%Y-%m", "year-month")]
TIMES = ["", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p"]
POINT = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d*)?([eE][+-]?\d+)?")  # 1,234.5
COMMA = re.compile(r"[+-]?(\d{1,3}(\.\d{3})+|\d+)(,\d*)?([eE][+-]?\d+)?")  # 1.234,5
CURRENCY = str.maketrans("", "", "$€£¥%' \u00a0\u202f’")


class Typed(NamedTuple):
    """A column read: its values, and what was decided on the way.

    Attributes
    ----------
    values : Series
        float64 with NaN, ``boolean`` with NA, datetime64 with NaT, or text with None.
    note : str
        How text became numbers or dates, where that is not plain; empty where it is.
    """

    values: pd.Series
    note: str = ""


class Read(NamedTuple):
    """A file read: its columns, notes by column, and what is to be said of the whole file."""

    frame: pd.DataFrame
    notes: dict[str, str]
    whole: list[str]


def is_table(path: Any) -> bool:
    """Whether a name is that of a table: text or arrays, packed or not."""
    kinds = [s.lower() for s in Path(str(path)).suffixes[-2:]]
    last = kinds[-2] if len(kinds) == 2 and kinds[-1] in OPENERS else kinds[-1] if kinds else ""
    return last in (*TEXT, ".npz")


def problems_error(path: Any, problems: Sequence[str]) -> ValueError:
    """One error of all that is wrong with a table."""
    if len(problems) == 1:
        return ValueError(f"{path} cannot be read as a table: {problems[0]}")
    told = "; ".join(f"({i}) {p}" for i, p in enumerate(problems, 1))
    return ValueError(f"{path} cannot be read as a table, for {len(problems)} reasons: {told}")


# -- files ----------------------------------------------------------------------------------------------------
def read_frame(path: Path, problems: list[str]) -> Read | None:
    """The columns of a file of text; what is wrong with it is appended to `problems` (None where that is all)."""
    opener = OPENERS.get(path.suffix.lower())
    try:
        file, size = open_regular(path)
        with file:
            data = file.read() if opener is None else bounded(opener(file, "rb"), 50 * size + ROOM)
        if data is None:
            problems.append(f"it has {amount(size)} and holds more than {amount(50 * size + ROOM)} packed; if that is "
                            "as it should be, unpack it, and name the plain file")
            return None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        problems.append(f"it cannot be unpacked ({error}); pack it again, or leave it plain")
        return None
    text, whole = _decoded(data)
    if "\0" in text:
        problems.append("it is no text (it holds bytes of value 0); save the table as CSV in UTF-8")
        return None
    try:
        separator, rows = _rows(text)
    except csv.Error as error:
        problems.append(f"its quotes cannot be read ({error}); save it again as CSV")
        return None
    if not rows:
        problems.append("it is empty")
        return None
    names, first = _header(rows, separator, whole, problems)
    wrong = [(number, len(row)) for number, row in rows[first:] if len(row) != len(names)]
    if wrong and not problems:
        line, count = wrong[0]
        shown = ", ".join(names[:5]) + ", …" * (len(names) > 5)
        problems.append(f"its header has {len(names)} names ({shown}) but "
                        + ("its first row" if line == rows[first][0] else f"line {line}")
                        + f" {count} values ({len(wrong)} such lines); give every column a name and every line as many "
                        "values, in quotes where they hold the separator")
    if len(rows) <= first:
        problems.append("it has a header but no rows")
    if problems:
        return None
    columns = list(zip(*(row for _, row in rows[first:]), strict=True))
    frame, notes = {}, {}
    decimal = _decimal(columns, separator)
    for name, column in zip(names, columns, strict=True):
        if name == "":
            whole.append("the first column, without a name, counts the rows and is left out")
            continue
        found = kind_of(column, decimal)
        frame[name] = found.values
        if found.note:
            notes[name] = found.note
    if separator != ",":
        whole.append(f"values are separated by {SEPARATORS[separator]}")
    if decimal == ",":
        whole.append("numbers have a decimal comma")
    return Read(pd.DataFrame(frame), notes, whole)


def _decoded(data: bytes) -> tuple[str, list[str]]:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16"), ["the text is in UTF-16"]
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace"), ["the text is not in UTF-8 and was read as Windows-1252"]


def _rows(text: str) -> tuple[str, list[tuple[int, list[str]]]]:
    """The separator and the lines that hold something, each with its number (from 1)."""
    head = text[:65536].splitlines()[:30]

    def fit(separator: str) -> tuple[bool, int]:
        counts = [len(row) for row in csv.reader(head, delimiter=separator) if row]
        most, share = Counter(counts).most_common(1)[0] if counts else (1, 0)
        return (most > 1 and counts[0] == most and 2 * share > len(counts)), counts[0] if counts else 0

    separator = max(SEPARATORS, key=fit)
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    rows = [(reader.line_num, row) for row in reader if row and any(row)]
    return separator, rows


def _header(rows: list[tuple[int, list[str]]], separator: str, whole: list[str], problems: list[str]
            ) -> tuple[list[str], int]:
    """Names of the columns, and the row at which values begin."""
    names = [name.strip() for name in rows[0][1]]
    if all(POINT.fullmatch(n) for n in names) and len(rows) > 1:
        whole.append(f"the file has no header: columns are named c0 to c{len(names) - 1}")
        return [f"c{i}" for i in range(len(names))], 0
    if names and names[0] == "" and len(rows) > 1 and len(rows[1][1]) == len(names):
        counted = [row[0] for _, row in rows[1:]]  # an index that was saved along
        if counted in ([str(i) for i in range(len(counted))], [str(i + 1) for i in range(len(counted))]):
            unnamed = [i for i, n in enumerate(names) if n == "" and i]
        else:
            unnamed = [i for i, n in enumerate(names) if n == ""]
    else:
        unnamed = [i for i, n in enumerate(names) if n == ""]
    for i in unnamed:
        problems.append(f"column {i} has no name; name it or drop it")
    for name, count in Counter(n for n in names if n).items():
        if count > 1:
            problems.append(f"several columns have the name {name!r}; rename or drop all but one")
    return names, 1


def read_npz(path: Path, target: str) -> tuple[pd.DataFrame, str]:
    """Columns of an archive of arrays, and the target's name."""
    file, size = open_regular(path)
    with file:
        held = load_arrays(file, 50 * size + ROOM)
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
                         + listed(f"{k} {v.shape}" for k, v in held.items()))
    return pd.DataFrame(held), target


# -- columns of text ------------------------------------------------------------------------------------------
def _decimal(columns: Sequence[Sequence[str]], separator: str) -> str:
    """Whether numbers of the file have a decimal point or comma: by what only one of the two can be."""
    point = comma = 0
    for column in columns:
        some = [v.strip().translate(CURRENCY) for v in column[:1000] if v.strip()]
        readable = [v for v in some if POINT.fullmatch(v) or COMMA.fullmatch(v)]
        if len(readable) < MOSTLY * len(some):
            continue
        point += sum("." in v and not COMMA.fullmatch(v) for v in readable)
        comma += sum("," in v and not POINT.fullmatch(v) for v in readable)
    return "," if comma > point else "."


def kind_of(column: Sequence[Any], decimal: str = ".") -> Typed:
    """A column of text as numbers, booleans, dates or text, with None for what is missing."""
    if decimal == ".":
        try:  # most columns are numbers and nothing else
            plain = pd.to_numeric(pd.Series(list(column), dtype=object)).to_numpy(np.float64, na_value=np.nan)
            return Typed(pd.Series(plain))
        except (ValueError, TypeError):
            pass
    codes, levels = pd.factorize(np.array([v.strip() if isinstance(v, str) else v for v in column], dtype=object))
    words = [str(v) for v in levels]
    lower = [w.lower() for w in words]
    soft = [w in DASHES or w in MISSING for w in lower]
    hard = [w in MISSING for w in lower]
    count = np.bincount(codes[codes >= 0], minlength=len(words)) if words else np.zeros(0)

    def spread(values: np.ndarray, empty: Any) -> pd.Series:
        return pd.Series(np.append(values, np.array([empty], values.dtype))[codes])

    known = [w for w, gone in zip(words, soft, strict=True) if not gone]
    if not known:
        return Typed(pd.Series(np.full(len(codes), np.nan)))
    plain = {w.lower() for w in known}
    for pair in BOOLEANS:
        if plain <= set(pair) and len(plain) == 2:
            truth: list[Any] = [pd.NA if gone else w == pair[1] for w, gone in zip(lower, soft, strict=True)]
            return Typed(pd.Series(pd.array(np.array([*truth, pd.NA], dtype=object)[codes], dtype="boolean")))
    numbers, note = _numbers(words, soft, count, decimal)
    if numbers is not None:
        return Typed(spread(numbers, np.nan), note)
    dates, note = _dates(words, soft)
    if dates is not None:
        return Typed(pd.Series(np.append(dates, np.datetime64("NaT", "us"))[codes]), note)
    return Typed(pd.Series(np.array([*(None if gone else w for w, gone in zip(words, hard, strict=True)), None],
                                    dtype=object)[codes], dtype=object))


def _numbers(words: list[str], soft: list[bool], count: np.ndarray, decimal: str) -> tuple[np.ndarray | None, str]:
    """Numbers that different texts of a column mean, NaN where nothing was measured; None where they mean none."""
    gone = np.array(soft)
    plain = pd.to_numeric(pd.Series(words, dtype=object), errors="coerce").to_numpy(np.float64, na_value=np.nan)
    plain = np.where(gone, np.nan, plain)
    if decimal == "." and not (np.isnan(plain) & ~gone).any():
        return plain, ""
    pattern = COMMA if decimal == "," else POINT
    found, dressed = np.full(len(words), np.nan), ""
    for i, word in enumerate(words):
        bare = word.translate(CURRENCY)
        if not soft[i] and bare[:1] + bare[-1:] in ("()",):  # an accountant's minus
            bare = "-" + bare[1:-1]
        if not soft[i] and pattern.fullmatch(bare):
            bare = bare.replace(".", "").replace(",", ".") if decimal == "," else bare.replace(",", "")
            found[i] = float(bare)
            if np.isnan(plain[i]) and not dressed:
                dressed = f"text such as {word!r} is the number {found[i]:.15g}"
        elif not soft[i]:
            found[i] = plain[i] if decimal == "." else np.nan
    slips = np.isnan(found) & ~gone
    share = count[slips].sum() / max(count[~gone].sum(), 1)
    if share > 1 - MOSTLY or (~slips & ~gone).sum() < 2:
        return None, ""
    if slips.any():
        shown = ", ".join(repr(words[i]) for i in np.flatnonzero(slips)[:3])
        dressed = "; ".join(filter(None, [dressed, f"{int(count[slips].sum())} entries are no numbers ({shown}"
                                          f"{', …' if slips.sum() > 3 else ''}) and count as missing"]))
    return found, dressed


def _dates(words: list[str], soft: list[bool]) -> tuple[np.ndarray | None, str]:
    """Times that different texts of a column mean."""
    kept = [w for w, gone in zip(words, soft, strict=True) if not gone]
    if not all(any(c.isdigit() for c in w) and len(w) >= 6 for w in kept[:20]):
        return None, ""
    texts = pd.Series([w.replace("T", " ").removesuffix("Z") if re.match(r"\d{4}-\d\d-\d\dT", w) else w for w in kept],
                      dtype=object)
    fits = []
    for form, name in DATES:
        for time in TIMES:
            if pd.to_datetime(texts.iloc[:20], format=form + time, errors="coerce").isna().any():
                continue
            found = pd.to_datetime(texts, format=form + time, errors="coerce")
            if not found.isna().any():
                fits.append((found, name + (" and a time" if time else "")))
    if not fits:
        return None, ""
    found, name = fits[0]
    other = next((n for f, n in fits[1:] if (f != found).any()), "")
    out = np.full(len(words), np.datetime64("NaT", "us"), dtype="datetime64[us]")
    out[~np.array(soft)] = found.to_numpy().astype("datetime64[us]")
    return out, f"text is read as {name}" + (f" ({other} would fit too: write years first to be sure)" if other else "")


def typed(column: pd.Series) -> Typed:
    """A column of a DataFrame by its own type; objects and text by what they say."""
    values = column.reset_index(drop=True)
    dtype = values.dtype
    if pd.api.types.is_bool_dtype(dtype):
        return Typed(values.astype("boolean"))
    if pd.api.types.is_datetime64_any_dtype(dtype):
        zone = getattr(dtype, "tz", None)
        return Typed(pd.Series((values.dt.tz_convert("UTC").dt.tz_localize(None) if zone else values).to_numpy().astype(
            "datetime64[us]")), "times are taken to UTC" if zone else "")
    if pd.api.types.is_timedelta64_dtype(dtype):
        return Typed(values / pd.Timedelta(days=1), "a length of time, in days")
    if pd.api.types.is_complex_dtype(dtype):
        raise ValueError(f"column {column.name!r} holds complex numbers; give their parts as columns")
    if pd.api.types.is_numeric_dtype(dtype):
        return Typed(pd.Series(values.to_numpy(np.float64, na_value=np.nan)))
    if isinstance(dtype, pd.CategoricalDtype):
        return Typed(pd.Series([None if pd.isna(v) else str(v) for v in values], dtype=object))
    entries = values.to_numpy(dtype=object)
    gone = pd.isna(entries)
    if gone.all():
        return Typed(pd.Series(np.full(len(entries), np.nan)))
    if all(isinstance(v, (bool, np.bool_)) for v in entries[~gone]):
        return Typed(pd.Series(pd.array(np.where(gone, pd.NA, entries), dtype="boolean")))
    if all(hasattr(v, "isoformat") for v in entries[~gone]):
        return Typed(pd.Series(pd.to_datetime(pd.Series(entries), utc=True).dt.tz_localize(None).to_numpy().astype(
            "datetime64[us]")))
    return kind_of(["" if g else str(v) for v, g in zip(entries, gone, strict=True)])
