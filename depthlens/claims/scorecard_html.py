"""The scorecard as a table of HTML: a chip for each state, a bar for each effect, and the part that decides in words.

It has its styles inside, so that JupyterLab, a page and an index show the same; an index finds it by its class.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jinja2

from depthlens import look
from depthlens.claims.parts import OPEN, REVERSED, SHOWN, SIGN, SMALLER, UNDER

if TYPE_CHECKING:
    from depthlens.claims.verdicts import Verdicts

# symbol, ground, text: symbol and word say the same as the colour, and text keeps a contrast of 4.5 to 1
CHIPS = {
    SHOWN: ("✓", look.PALETTE[0], "#FFFFFF"),
    SIGN: ("+", look.CLAIMED, look.PALETTE[2]),
    SMALLER: ("≈", look.EMPTY, look.PALETTE[2]),
    REVERSED: ("✗", look.PALETTE[1], look.PALETTE[2]),
    OPEN: ("?", "#FFFFFF", look.PALETTE[2]),
}
WIDE = 150  # of a bar, in pixels
FAR = 10.0  # times what matters
TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("depthlens.claims"), autoescape=True)


def scorecard(verdicts: Verdicts) -> str:
    """A heading and the table: under each claim its two rows; the first has the id of the claim."""
    rows = [
        (row, CHIPS[row.state], _bar(row) if math.isfinite(row.effect) else None) for row in verdicts.table.itertuples()
    ]
    template = TEMPLATES.get_template("scorecard.html.j2")
    return template.render(rows=rows, headline=verdicts.headline, look=look, wide=WIDE)


def _bar(row: Any) -> dict[str, float]:
    """Where on its bar effect, interval, 0 and what matters are, and the claimed side."""
    ends = -FAR * row.matters, FAR * row.matters  # beyond, an interval is cut
    shown = {"zero": 0.0, "matters": row.matters, "low": row.ci_low, "high": row.ci_high, "effect": row.effect}
    shown = {name: min(max(value, ends[0]), ends[1]) for name, value in shown.items()}
    least, span = min(shown.values()), max(shown.values()) - min(shown.values())
    at = {name: round(8 + (WIDE - 16) * (value - least) / span, 1) for name, value in shown.items()}
    claimed = (0.0, at["matters"]) if row.claimed == UNDER else (at["matters"], float(WIDE))
    return at | dict(zip(("start", "end"), claimed, strict=True))
