"""Pieces of a self-contained HTML page, by the templates beside this file. No script, nothing from elsewhere.

Everything that goes into a template is escaped, but for what a template has made (`Markup`).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup, escape

__all__ = ["Section", "code", "facts", "figures", "heading", "join", "labelled", "note", "page", "paragraph",
           "picture", "table", "verdict"]


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its title, and its HTML."""

    name: str
    title: str
    body: Markup


def number(value: Any) -> str:
    """A number to four digits, – where there is none; text as it is."""
    if value is None or value == "" or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")
    return str(value)


def said(value: Any) -> Markup:
    """A number or words, escaped, Λ_C with its index, Λ = 0 on one line."""
    found = str(escape(number(value)))
    return Markup(found.replace("Λ_C", "Λ<sub>C</sub>").replace("Λ = ", "Λ\u00a0=\u00a0"))


@cache
def _templates() -> jinja2.Environment:
    found = jinja2.Environment(loader=jinja2.PackageLoader("bayes_brg.runs"), autoescape=True, trim_blocks=True,
                               lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    found.filters["said"] = said
    return found


def _piece(name: str, *values: Any) -> Markup:
    return getattr(_templates().get_template("pieces.html").module, name)(*values)


def join(*pieces: Markup) -> Markup:
    """Pieces one after the other."""
    return Markup("").join(pieces)


def paragraph(words: str) -> Markup:
    """A paragraph of plain words."""
    return _piece("paragraph", words)


def heading(words: str) -> Markup:
    """A heading within a section."""
    return _piece("heading", words)


def note(words: str) -> Markup:
    """What is missing, and how to get it."""
    return _piece("note", words)


def verdict(holds: bool | None, words: str, lead: str = "") -> Markup:
    """A sentence that judges, marked where its claim does not hold, or is open."""
    return _piece("verdict", {True: "", False: "no", None: "open"}[holds], words, lead)


def code(lines: str) -> Markup:
    """Lines to copy, in a box that scrolls."""
    return _piece("code", lines)


def labelled(label: str, value: str) -> Markup:
    """A name and what is to be copied letter by letter."""
    return _piece("labelled", label, value)


def table(data: pd.DataFrame | Mapping[str, Any], caption: str, *, index: str | None = None, tall: bool = False
          ) -> Markup:
    """A table in a box of its own that scrolls. A mapping becomes two columns of words."""
    if not isinstance(data, pd.DataFrame):
        return _piece("table", caption, [], list(data.items()), tall)
    named = index is not None
    rows = [[*([key] if named else []), *row] for key, row in
            zip(data.index, data.itertuples(index=False), strict=True)]
    return _piece("table", caption, [*([index] if named else []), *data.columns], rows, tall)


def facts(items: Iterable[tuple[str, str, str]]) -> Markup:
    """What to read first: (name, value, more words) each."""
    return _piece("facts", list(items))


def picture(source: Any, alt: str, caption: str, *, wide: bool = False) -> Markup:
    """A matplotlib Figure, or the bytes of a PNG, inside the page."""
    if not isinstance(source, bytes):
        buffer = io.BytesIO()
        source.savefig(buffer, format="png", dpi=170, facecolor="white")
        source = buffer.getvalue()
    width, height = (int.from_bytes(source[i:i + 4], "big") for i in (16, 20))
    return _piece("picture", base64.b64encode(source).decode("ascii"), alt, caption, width, height, wide)


def figures(*pictures: Markup) -> Markup:
    """Pictures side by side where the page is wide enough."""
    return _piece("figures", pictures)


def page(title: str, subtitle: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole page; its contents link to its sections."""
    return _templates().get_template("page.html").render(title=title, subtitle=subtitle, sections=sections)
