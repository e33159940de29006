"""A report as one HTML file: no second file, no network, readable on a phone, on paper and in the dark.

Every function returns a piece of HTML with its texts escaped; `write_page` puts pieces into a page. Plots are
inline SVG in the page's own colours, pictures are base64 PNG.
"""

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NewType

import matplotlib
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from fcmae.report.assets import SCRIPT, STYLE

Html = NewType("Html", str)
"""HTML whose texts are already escaped."""

Cell = str | int | float | None
"""Of a table: a text, a number (aligned right, sorted by value), or nothing."""

INK, MUTED, GRID, FIRST, SECOND = "#010203", "#010204", "#010205", "#010206", "#010207"
"""Colours to draw plots in: `figure` replaces each by the page's own, which follow
the reader's light or dark theme.
"""

_PLOT_COLOURS = {INK: "--ink", MUTED: "--muted", GRID: "--line", FIRST: "--first", SECOND: "--second"}

_NUMBER = ' class="number"'


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table."""

    title: str
    format: str = ""
    """Python's format of numbers, such as `.3f`."""


def paragraph(text: str) -> Html:
    """A paragraph of plain text."""
    return Html(f"<p>{escape(text)}</p>")


def notice(text: str, *, tone: str = "plain") -> Html:
    """A paragraph that stands out; `tone` is `good`, `bad` or `plain`."""
    return Html(f'<p class="notice {escape(tone)}">{escape(text)}</p>')


def tiles(values: Sequence[tuple[str, str, str]]) -> Html:
    """The few numbers that count: (name, value, remark)."""
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd><strong>{escape(value)}</strong><small>{escape(remark)}</small></dd></div>"
        for name, value, remark in values
    )
    return Html(f'<dl class="tiles">{cells}</dl>')


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, caption: str) -> Html:
    """A table that a click on a column's title sorts."""
    numeric = [all(not isinstance(row[index], str) for row in rows) for index in range(len(columns))]
    head = "".join(
        f'<th scope="col"{_NUMBER if right else ""}>'
        f'<button type="button">{escape(column.title)}</button></th>'
        for column, right in zip(columns, numeric, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(_cell(column, cell) for column, cell in zip(columns, row, strict=True)) + "</tr>"
        for row in rows
    )
    return Html(
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="sortable">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(column: Column, cell: Cell) -> str:
    if cell is None:
        return "<td>-</td>"
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    return f'<td{_NUMBER} data-value="{cell!r}">{cell:{column.format}}</td>'


def figure(plot: Figure, *, alt: str, caption: str) -> Html:
    """A matplotlib figure as inline SVG; `alt` says what a reader who cannot see it should know."""
    buffer = io.StringIO()
    # Without metadata: it would hold the only addresses of the file.
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fcmae"}):  # same plot, same bytes
        plot.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg)  # HTML knows both namespaces
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    for drawn, variable in _PLOT_COLOURS.items():
        svg = svg.replace(drawn, f"var({variable})")
    # Ids are unique in a page, and every figure brings the same ones.
    prefix = f"f{hashlib.blake2b(svg.encode(), digest_size=4).hexdigest()}-"
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
    return Html(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>")


def columns(*blocks: Html) -> Html:
    """Blocks side by side where the page is wide enough, one below the other where it is not."""
    return Html(f'<div class="columns">{"".join(blocks)}</div>')


def gallery(rows: Sequence[tuple[str, Tensor]], *, names: Sequence[str], caption: str) -> Html:
    """Pictures in labelled rows, one column an image; the columns wrap, and each keeps its rows together.

    Args:
        rows: (label, pictures) from top to bottom; pictures are uint8 [B, H, W, 3] of the same B.
        names: What each column is called.
        caption: Below the gallery.
    """
    labels = "".join(f"<span>{escape(label)}</span>" for label, _ in rows)
    stacks = "".join(
        '<div class="stack">'
        + "".join(
            f'<img src="{_data_uri(pictures[index])}" alt="{escape(f"{name}, {label}")}">'
            for label, pictures in rows
        )
        + "</div>"
        for index, name in enumerate(names)
    )
    return Html(
        f'<figure class="gallery"><div class="labels" aria-hidden="true">{labels}</div>'
        f'<div class="stacks">{stacks}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _data_uri(picture: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture.numpy()).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def details(summary: str, text: str) -> Html:
    """Text in fixed width, folded away under its summary; printing unfolds it."""
    return Html(f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>")


def section(title: str, *blocks: Html) -> Html:
    """Blocks under a heading."""
    return Html(f"<section><h2>{escape(title)}</h2>{''.join(blocks)}</section>")


def write_page(path: Path, *, title: str, subtitle: str, blocks: Sequence[Html]) -> None:
    """Write a page that needs nothing else.

    Args:
        path: The .html file; its folder is made where it is missing.
        title: Heading of the page, and its name in a browser's tab.
        subtitle: One line below the heading.
        blocks: What the functions of this module return.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>
{"".join(blocks)}
</main>
<script>
{SCRIPT}</script>
</body>
</html>
""",
        encoding="utf-8",
    )
