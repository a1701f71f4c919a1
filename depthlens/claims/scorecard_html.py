"""The scorecard as a table of HTML: a chip for each verdict, a bar for each effect, and how sure it is.

It has its styles inside, so that JupyterLab, a page and an index show the same; an index finds it by its class.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from depthlens import look
from depthlens.claims.decision import ABOVE, BELOW, CANNOT, CONTRADICTED, SUPPORTED, UNDECIDED

if TYPE_CHECKING:
    from depthlens.claims.verdicts import Verdict

CLASS = "depthlens-scorecard"
# symbol, ground, text: symbol and word say the same as the colour, and text keeps a contrast of 4.5 to 1
CHIPS = {
    SUPPORTED: ("✓", look.PALETTE[0], "#FFFFFF"),
    CONTRADICTED: ("✗", look.PALETTE[1], look.PALETTE[2]),
    UNDECIDED: ("?", "#FFFFFF", look.PALETTE[2]),
    CANNOT: ("–", look.EMPTY, look.PALETTE[2]),
}
_WIDE, _HIGH = 150, 22  # of a bar, in pixels
_REASON = 200  # characters
_STYLE = f"""<style>
.{CLASS} {{ border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }}
.{CLASS} th, .{CLASS} td {{ text-align: left; vertical-align: middle; padding: .3rem .6rem .3rem 0 }}
.{CLASS} tbody th {{ font-weight: 400 }} .{CLASS} tbody th a {{ font-weight: 700 }}
.{CLASS} span {{ white-space: nowrap }}
.{CLASS} .chip {{ display: inline-block; white-space: nowrap; border: 1px solid {look.GREY}; border-radius: 999px;
  padding: .1rem .6rem; font-weight: 600; font-size: .85em }}
@media (max-width: 44rem) {{ .{CLASS} thead {{ display: none }}
  .{CLASS} tr {{ display: block; border-bottom: 1px solid {look.GREY}; padding: .4rem 0 }}
  .{CLASS} tr > * {{ display: inline-block; border: 0 !important; padding: .1rem .6rem .1rem 0 !important }}
  .{CLASS} th {{ width: 100% }} }}
</style>"""


def scorecard(verdicts: Sequence[Verdict], headline: str) -> str:
    """A heading and the table, one row a claim; its id is that of the claim.

    Args:
        verdicts: One a claim.
        headline: How many came out how.
    """
    titles = ("claim", "verdict", "beside the threshold", "effect, 95% interval", "documents", "holds under")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    rows = "".join(map(_row, verdicts))
    table = f'<table class="{CLASS}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f"{_STYLE}<p><strong>{html.escape(headline)}</strong></p>{table}"


def _row(v: Verdict) -> str:
    symbol, ground, ink = CHIPS[v.verdict]
    chip = f'<span class="chip" style="background:{ground};color:{ink}">{symbol} {v.verdict}</span>'
    effect, ends, _ = v.numbers
    numbers = _why(v)
    if effect:
        what = f"<br><small>{html.escape(v.what)}</small>"
        numbers = f"<strong>{v.effect:.2f}</strong> <span>{ends}</span> {html.escape(v.unit)}{what}"
    cells = [chip, _bar(v), numbers, f"n = {v.n}" if v.n else "–", html.escape(v.under) or "–"]
    name = f'<th scope="row"><a href="#{v.claim.id}">{v.claim.id}</a> {html.escape(v.claim.statement)}</th>'
    return f'<tr id="{v.claim.id}">{name}{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _why(v: Verdict) -> str:
    """Why there is no effect, as far as it fits; the rest is in the title."""
    (reason, *_) = v.reasons or ["–"]
    short = reason if len(reason) <= _REASON else f"{reason[:_REASON].rsplit(' ', 1)[0]} …"
    return f'<small title="{html.escape(reason)}">{html.escape(short)}</small>'


def _bar(v: Verdict) -> str:
    """Effect and interval beside the threshold, whose claimed side is shaded."""
    if v.effect is None or v.ci_low is None or v.ci_high is None:
        return "no estimate"
    drawn = (v.threshold, v.ci_low, v.ci_high)
    low, span = min(drawn), (max(drawn) - min(drawn)) or 1.0

    def at(value: float) -> float:
        return round(8 + (_WIDE - 16) * (value - low) / span, 1)

    side = v.deciding.spec.side
    shaded = {ABOVE: (at(v.threshold), _WIDE), BELOW: (0.0, at(v.threshold))}.get(side)
    shade = ""
    if shaded:
        size = f'width="{shaded[1] - shaded[0]:.1f}" height="{_HIGH}"'
        shade = f'<rect x="{shaded[0]}" {size} fill="{look.CLAIMED}" opacity="{look.CLAIMED_OPACITY}"/>'
    text = f"{v.what}: {v.effect:.2f} [{v.ci_low:.2f}, {v.ci_high:.2f}] {v.unit}, claimed {v.claimed}"
    middle = _HIGH / 2
    return (
        f'<svg role="img" aria-label="{html.escape(text)}" width="{_WIDE}" height="{_HIGH}" '
        f'viewBox="0 0 {_WIDE} {_HIGH}"><title>{html.escape(text)}</title>{shade}'
        f'<line x1="{at(v.threshold)}" x2="{at(v.threshold)}" y1="0" y2="{_HIGH}" stroke="currentColor" '
        f'stroke-dasharray="3 2"/><line x1="{at(v.ci_low)}" x2="{at(v.ci_high)}" y1="{middle}" y2="{middle}" '
        f'stroke="currentColor" stroke-width="2"/>'
        f'<circle cx="{at(v.effect)}" cy="{middle}" r="4" fill="currentColor"/></svg>'
    )
