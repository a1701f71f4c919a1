"""Figures in pages: what they show in words, tooltips without a script, and their numbers as a file to download."""

from __future__ import annotations

import base64
import html
import re
from typing import Any

from nbformat import NotebookNode

from depthlens.plots.theme import MIME

_DOT = 9  # pixels: radius within which the pointer finds a point


def dress(output: NotebookNode, name: str, alt: str) -> None:
    """Turn a picture among a cell's outputs into a figure of HTML; other outputs stay as they are.

    Args:
        output: Of a cell; it is changed.
        name: Of the file to download.
        alt: What the figure shows, where it does not say itself.
    """
    png = output.get("data", {}).get("image/png")
    if not png:
        return
    about = output.data.pop(MIME, {})
    size = output.get("metadata", {}).get("image/png", {})
    wide, high = size.get("width"), size.get("height")
    title = about.get("title", "")
    text = html.escape(f"{title.rstrip('.')}. {alt}" if title else alt)
    measures = f' width="{wide}" height="{high}"' if wide and high else ""
    data = re.sub(r"\s", "", png)
    picture = f'<img alt="{text}"{measures} src="data:image/png;base64,{data}">'
    points = _points(about.get("points", []), wide, high) if wide and high else ""
    caption = _download(about.get("csv", ""), name)
    output.data = NotebookNode({"text/html": f'<figure class="plot"><div>{picture}{points}</div>{caption}</figure>'})


def _points(points: list[list[Any]], wide: int, high: int) -> str:
    """A layer over the picture: each point tells its text under the pointer, as browsers show titles."""
    circles = "".join(
        f'<circle cx="{left * wide:.1f}" cy="{top * high:.1f}" r="{_DOT}"><title>{html.escape(text)}</title></circle>'
        for left, top, text in points
    )
    return f'<svg aria-hidden="true" viewBox="0 0 {wide} {high}">{circles}</svg>' if circles else ""


def _download(csv: str, name: str) -> str:
    """A link to the numbers, which are in the page itself."""
    if not csv:
        return ""
    data = base64.b64encode(csv.encode()).decode()
    link = f'<a download="{html.escape(name)}.csv" href="data:text/csv;base64,{data}">Data of this figure (CSV)</a>'
    return f"<figcaption>{link}</figcaption>"
