"""The scorecard as a table of HTML: a chip for each state, a bar for each effect, and the part that decides in words.

It has its styles inside, so that JupyterLab, a page and an index show the same; an index finds it by its class.
"""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any

from depthlens import look
from depthlens.claims.parts import OPEN, REVERSED, SHOWN, SIGN, SMALLER, UNDER

if TYPE_CHECKING:
    from depthlens.claims.verdicts import Verdicts

CLASS = "depthlens-scorecard"
# symbol, ground, text: symbol and word say the same as the colour, and text keeps a contrast of 4.5 to 1
CHIPS = {
    SHOWN: ("✓", look.PALETTE[0], "#FFFFFF"),
    SIGN: ("+", look.CLAIMED, look.PALETTE[2]),
    SMALLER: ("≈", look.EMPTY, look.PALETTE[2]),
    REVERSED: ("✗", look.PALETTE[1], look.PALETTE[2]),
    OPEN: ("?", "#FFFFFF", look.PALETTE[2]),
}
_WIDE, _HIGH = 150, 22  # of a bar, in pixels
_STYLE = f"""<style>
.{CLASS} {{ border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }}
.{CLASS} th, .{CLASS} td {{ text-align: left; vertical-align: middle; padding: .3rem .6rem .3rem 0 }}
.{CLASS} tbody th {{ font-weight: 400 }} .{CLASS} tbody th a {{ font-weight: 700 }}
.{CLASS} .chip {{ display: inline-block; white-space: nowrap; border: 1px solid {look.GREY}; border-radius: 999px;
  padding: .1rem .6rem; font-weight: 600; font-size: .85em }}
@media (max-width: 44rem) {{ .{CLASS} thead {{ display: none }}
  .{CLASS} tr {{ display: block; border-bottom: 1px solid {look.GREY}; padding: .4rem 0 }}
  .{CLASS} tr > * {{ display: inline-block; border: 0 !important; padding: .1rem .6rem .1rem 0 !important }}
  .{CLASS} th {{ width: 100% }} }}
</style>"""


def scorecard(verdicts: Verdicts) -> str:
    """A heading and the table, one row a claim; its id is that of the claim."""
    titles = ("claim", "state", "0 and what matters", "the part that decides")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    rows = "".join(map(_row, verdicts.table.itertuples()))
    table = f'<table class="{CLASS}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f"{_STYLE}<p><strong>{html.escape(verdicts.headline)}</strong></p>{table}"


def _row(row: Any) -> str:
    symbol, ground, ink = CHIPS[row.state]
    chip = f'<span class="chip" style="background:{ground};color:{ink}">{symbol} {row.state}</span>'
    name = f'<th scope="row"><a href="#{row.claim}">{row.claim}</a> {html.escape(row.statement)}</th>'
    cells = (chip, _bar(row), html.escape(row.sentence))
    return f'<tr id="{row.claim}">{name}{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _bar(row: Any) -> str:
    """Effect and interval beside 0 and what matters; the claimed side is shaded."""
    if not math.isfinite(row.effect):
        return "no estimate"
    drawn = (0.0, row.matters, row.ci_low, row.ci_high)
    low, span = min(drawn), max(drawn) - min(drawn)

    def at(value: float) -> float:
        return round(8 + (_WIDE - 16) * (value - low) / span, 1)

    start, end = (0.0, at(row.matters)) if row.claimed == UNDER else (at(row.matters), float(_WIDE))
    middle, text = _HIGH / 2, html.escape(row.sentence)
    lines = "".join(
        f'<line x1="{at(x)}" x2="{at(x)}" y1="0" y2="{_HIGH}" stroke="currentColor" stroke-dasharray="{dash}"/>'
        for x, dash in ((0.0, "1 0"), (row.matters, "3 2"))
    )
    return (
        f'<svg role="img" aria-label="{text}" width="{_WIDE}" height="{_HIGH}" viewBox="0 0 {_WIDE} {_HIGH}">'
        f'<title>{text}</title><rect x="{start}" width="{end - start:.1f}" height="{_HIGH}" fill="{look.CLAIMED}" '
        f'opacity="{look.CLAIMED_OPACITY}"/>{lines}<line x1="{at(row.ci_low)}" x2="{at(row.ci_high)}" y1="{middle}" '
        f'y2="{middle}" stroke="currentColor" stroke-width="2"/>'
        f'<circle cx="{at(row.effect)}" cy="{middle}" r="4" fill="currentColor"/></svg>'
    )
