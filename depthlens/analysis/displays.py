"""A headline, a table and some lines, as text and as the HTML that notebooks show.

Tables are cut to a number of rows, so that no display grows with the model or the sweep; a line says where the rest is.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import pandas as pd

ROWS = 60  # of a table of numbers: all layers of most models


class Found(pd.DataFrame):
    """Rows that were searched for; shown as "none" where there are none. Columns and rows of it are one again."""

    @property
    def _constructor(self) -> type[Found]:
        return Found

    def __repr__(self) -> str:
        return super().__repr__() if len(self) else "none"

    def _repr_html_(self) -> str | None:
        if not len(self):
            return "<p>none</p>"
        shown = self.astype(object).where(self.notna(), "")
        return pd.DataFrame(shown).to_html(index=False, border=0, float_format="{:.3g}".format, max_rows=ROWS)


def plain(sentence: str) -> str:
    """A sentence without the marks of Markdown that make a part of it bold, for terminals."""
    return sentence.replace("**", "")


def as_text(head: str, table: pd.DataFrame, lines: Sequence[str] = ()) -> str:
    """Headline, table and lines as plain text; an empty headline or table is left out."""
    middle = table.to_string(index=False, na_rep="") if len(table) else ""
    return "\n".join(filter(None, [head, middle, *lines]))


def as_html(head: str, table: pd.DataFrame, lines: Sequence[str] = ()) -> str:
    """The same as HTML; every text is escaped."""
    middle = table.to_html(index=False, border=0, na_rep="") if len(table) else ""
    return paragraphs([head]) + middle + paragraphs(lines)


def cut(table: pd.DataFrame, where: str, rows: int = ROWS) -> tuple[pd.DataFrame, list[str]]:
    """The first rows of a table, and a line on the others if there are any.

    Args:
        table: The table.
        where: How to have them all, such as ``"result.summary"``.
        rows: How many to keep.
    """
    left = len(table) - rows
    return table.head(rows), [f"{left} more rows in {where}"] if left > 0 else []


def paragraphs(lines: Sequence[str]) -> str:
    """Lines as paragraphs of HTML, escaped; empty ones are left out."""
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)
