"""Pieces of a self-contained HTML page: tables, pictures inside it, its style. No script, nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["Section", "code", "facts", "figures", "note", "page", "paragraph", "picture", "table"]

CSS = """
:root { --ink: #1c1c1c; --soft: #5a5a5a; --line: #d4d4d4; --shade: #f4f4f2; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; color: var(--ink); background: #fff; font: 17px/1.55 Charter, "Bitstream Charter", "Sitka Text",
  Cambria, Georgia, serif; }
.page { max-width: 1200px; margin: 0 auto; padding: 0 28px 80px; display: grid;
  grid-template-columns: 210px minmax(0, 1fr); column-gap: 48px; }
header { grid-column: 2; padding: 44px 0 4px; }
header p { margin: 0 0 6px; color: var(--soft); }
h1 { font-size: 34px; line-height: 1.15; margin: 0 0 8px; font-weight: 700; overflow-wrap: anywhere; }
h2 { font-size: 24px; line-height: 1.25; margin: 0 0 6px; padding-top: 26px; border-top: 2px solid var(--ink); }
h3 { font-size: 18px; margin: 26px 0 4px; }
section { margin-top: 44px; }
p { max-width: 44em; margin: 8px 0 12px; }
a { color: inherit; text-underline-offset: 3px; text-decoration-color: #999; }
nav { grid-column: 1; grid-row: 1 / span 2; font: 14px/1.4 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
nav > div { position: sticky; top: 0; padding-top: 52px; }
nav strong { display: block; margin-bottom: 6px; }
nav ol { list-style: none; margin: 0; padding: 0; }
nav a { display: block; padding: 5px 0; text-decoration: none; }
nav a:hover, nav a:focus { text-decoration: underline; }
main { grid-column: 2; min-width: 0; }
.scroll { overflow-x: auto; margin: 12px 0 18px; max-width: 100%; }
.scroll.tall { max-height: 560px; overflow-y: auto; border-bottom: 1px solid var(--line); }
.tall thead th { position: sticky; top: 0; background: #fff; }
table { border-collapse: collapse; font: 14px/1.35 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
sub { font-size: 0.75em; line-height: 0; }
th, td { padding: 5px 14px 5px 0; text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th:last-child, td:last-child { padding-right: 2px; }
thead th { border-bottom: 1px solid var(--ink); font-weight: 600; vertical-align: bottom; white-space: normal; }
tbody tr + tr td, tbody tr + tr th { border-top: 1px solid #ececec; }
tbody th { font-weight: 500; }
table.words td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.words th { text-align: left; }
caption { caption-side: top; text-align: left; color: var(--soft); padding-bottom: 6px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 18px 28px; margin: 18px 0; }
.facts > div { border-left: 3px solid var(--ink); padding-left: 12px; }
.facts dt, .facts .name { font: 13px/1.35 system-ui, "Segoe UI", Roboto, Arial, sans-serif; color: var(--soft); }
.facts .value { font-size: 20px; line-height: 1.3; overflow-wrap: anywhere; }
.facts .more { font-size: 14px; line-height: 1.35; color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 22px 32px;
  margin: 16px 0; align-items: start; }
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; overflow-x: auto; }
img { display: block; max-width: min(100%, 500px); height: auto; }
figure.wide img { max-width: 100%; }
figcaption { font-size: 15px; line-height: 1.4; color: var(--soft); margin-top: 6px; max-width: 40em; }
.verdict { border: 1px solid var(--ink); padding: 10px 14px; max-width: 44em; margin: 12px 0; }
.verdict.no { border-width: 1px 1px 1px 7px; }
.missing { border: 1px dashed #888; background: var(--shade); padding: 10px 14px; max-width: 44em; margin: 12px 0; }
pre { background: var(--shade); padding: 12px 14px; overflow-x: auto; font: 14px/1.5 ui-monospace, "SF Mono", Menlo,
  Consolas, "DejaVu Sans Mono", monospace; margin: 10px 0 16px; }
code { font: 0.88em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
pre code { font-size: 1em; overflow-wrap: normal; }
@media (max-width: 860px) {
  body { font-size: 16px; }
  .page { display: block; padding: 0 16px 48px; }
  header { padding-top: 24px; }
  h1 { font-size: 27px; } h2 { font-size: 21px; }
  nav > div { position: static; padding: 14px 0 0; }
  nav ol { columns: 2; column-gap: 20px; }
  nav a { padding: 6px 0; break-inside: avoid; }
  figure.wide img { max-width: none; width: max(100%, 620px); }
}
@media print { .page { display: block; } nav { display: none; } section { break-inside: avoid-page; }
  .scroll.tall { max-height: none; } }
"""


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its title, and its HTML."""

    name: str
    title: str
    body: str


def number(value: Any) -> str:
    """A number to four digits, – where there is none; text as it is."""
    if value is None or value == "" or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")
    return str(value)


def text(value: Any) -> str:
    """A number or words as HTML, Λ_C with its index, Λ = 0 on one line."""
    found = html.escape(number(value), quote=True)
    return found.replace("Λ_C", "Λ<sub>C</sub>").replace("Λ = ", "Λ\u00a0=\u00a0")


def paragraph(words: str) -> str:
    """A paragraph of plain words."""
    return f"<p>{text(words)}</p>"


def note(words: str) -> str:
    """What is missing, and how to get it."""
    return f'<p class="missing"><strong>Not here.</strong> {text(words)}</p>'


def code(lines: str) -> str:
    """Lines to copy, in a box that scrolls."""
    return f'<pre tabindex="0"><code>{html.escape(lines)}</code></pre>'


def table(data: pd.DataFrame | Mapping[str, Any], caption: str, *, index: str | None = None, tall: bool = False) -> str:
    """A table in a box of its own that scrolls. A mapping becomes two columns of words."""
    if isinstance(data, pd.DataFrame):
        names = [*([index] if index is not None else []), *data.columns]
        rows = [[*([key] if index is not None else []), *row] for key, row in
                zip(data.index, data.itertuples(index=False), strict=True)]
        head = "<thead><tr>" + "".join(f'<th scope="col">{text(n)}</th>' for n in names) + "</tr></thead>"
        kind = ""
    else:
        rows, head, kind = [[k, v] for k, v in data.items()], "", ' class="words"'
    body = "".join(f'<tr><th scope="row">{text(row[0])}</th>' + "".join(f"<td>{text(v)}</td>" for v in row[1:])
                   + "</tr>" for row in rows)
    return (f'<div class="scroll{" tall" if tall else ""}" tabindex="0"><table{kind}><caption>{text(caption)}'
            f"</caption>{head}<tbody>{body}</tbody></table></div>")


def facts(items: Iterable[tuple[str, str, str]]) -> str:
    """What to read first: (name, value, more words) each."""
    return '<div class="facts">' + "".join(
        f'<div><div class="name">{text(name)}</div><div class="value">{text(value)}</div>'
        f'<div class="more">{text(more)}</div></div>' for name, value, more in items) + "</div>"


def picture(source: Any, alt: str, caption: str, *, wide: bool = False) -> str:
    """A matplotlib Figure, or the bytes of a PNG, inside the page."""
    if not isinstance(source, bytes):
        buffer = io.BytesIO()
        source.savefig(buffer, format="png", dpi=170, facecolor="white")
        source = buffer.getvalue()
    width, height = (int.from_bytes(source[i:i + 4], "big") for i in (16, 20))
    data = base64.b64encode(source).decode("ascii")
    shown = f' width="{width}" height="{height}"'
    return (f'<figure{" class=wide" if wide else ""}><img src="data:image/png;base64,{data}" '
            f'alt="{html.escape(alt, quote=True)}"{shown}><figcaption>{text(caption)}</figcaption></figure>')


def figures(*pictures: str) -> str:
    """Pictures side by side where the page is wide enough."""
    return '<div class="figures">' + "".join(pictures) + "</div>"


def page(title: str, subtitle: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole page; its contents link to its sections."""
    contents = "".join(f'<li><a href="#{s.name}">{text(s.title)}</a></li>' for s in sections)
    body = "".join(f'<section id="{s.name}"><h2>{text(s.title)}</h2>{s.body}</section>' for s in sections)
    lines = "".join(f"<p>{text(line)}</p>" for line in subtitle)
    return ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{html.escape(title)}</title>\n<link rel="icon" href="data:,">\n<style>{CSS}</style>\n</head>\n'
            f'<body><div class="page"><header><h1>{html.escape(title)}</h1>{lines}</header>'
            f'<nav aria-label="Contents"><div><strong>Contents</strong><ol>{contents}</ol></div></nav>'
            f"<main>{body}</main></div></body>\n</html>\n")
