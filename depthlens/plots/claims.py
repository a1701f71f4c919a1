"""The scorecard of the study's claims: verdicts in, a `Figure` out that was neither shown nor saved.

Verdicts differ in word, symbol and lightness, so that they can be read in grey, too. Every
effect has an axis of its own, because units differ; its threshold is the dashed line, and the claimed side is shaded.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from depthlens.claims.decision import ABOVE, BELOW
from depthlens.claims.scorecard_html import CHIPS
from depthlens.claims.verdicts import LETTERS, Verdict, Verdicts, headline
from depthlens.errors import UserError
from depthlens.look import CLAIMED, CLAIMED_OPACITY, GREY, INK
from depthlens.plots import panels
from depthlens.plots.theme import DASHED, SMALL, Plot, figure, themed, with_legend

_WIDTHS = (1.4, 2.9, 2.2, 0.9)  # of the verdict, the statement, the effect, and the documents and views
_STATEMENT, _REASON, _EFFECT = 44, 40, 31  # characters in a line
_ROW, _LINE, _LINES = 0.92, 0.17, 5  # inches of a row and of a line of 8 pt; lines that a row has room for
_TITLE = 2  # lines above an axis that a row has room for


@themed
def scorecard(verdicts: Sequence[Verdict], *, title: str | None = None) -> Plot:
    """One row a claim: verdict, statement, effect with its interval against the threshold, documents and views.

    Args:
        verdicts: Of `depthlens.claims.judge`.
        title: Above the figure; by default the models, and how many claims came out how.

    Raises:
        UserError: no verdicts.
    """
    if not isinstance(verdicts, Sequence) or not verdicts or not all(isinstance(v, Verdict) for v in verdicts):
        raise UserError("no verdicts to draw; give those of depthlens.claims.judge")
    reasons = {v.claim.id: _reason(v) for v in verdicts}
    titles = {v.claim.id: _title(v) for v in verdicts}
    heights = [_height(reasons[v.claim.id], titles[v.claim.id]) for v in verdicts]
    models = verdicts.record.get("models", []) if isinstance(verdicts, Verdicts) else []
    default = f"{', '.join(models)}: {headline(verdicts)}" if models else headline(verdicts)
    fig = figure(title, default, height=sum(heights) + 0.9)
    axes = fig.subplots(len(verdicts), len(_WIDTHS), width_ratios=_WIDTHS, height_ratios=heights, squeeze=False)
    for (chip, statement, effect, documents), verdict in zip(axes, verdicts, strict=True):
        for ax in (chip, statement, documents):
            ax.set_axis_off()
        _chip(chip, verdict)
        panels.note(statement, 0, 0.5, textwrap.fill(verdict.claim.statement, _STATEMENT), color=INK)
        _effect(effect, verdict, titles[verdict.claim.id], reasons[verdict.claim.id])
        panels.note(documents, 0.1, 0.5, _measured(verdict), color=INK if verdict.n else GREY)
    keys = [
        panels.line_key("effect, 95% interval", marker="o", ms=4, lw=1.4),
        *panels.level_keys(fig),
        Patch(facecolor=CLAIMED, alpha=CLAIMED_OPACITY, lw=0, label="claimed side"),
    ]
    if any(len(v.parts) > 1 for v in verdicts):
        meaning = ", ".join(f"{symbol} {verdict}" for verdict, (symbol, *_) in CHIPS.items())
        keys.append(panels.mark_key(f"a, b, …: parts of a claim ({meaning})", marker=""))
    return with_legend(fig, keys)


def _measured(verdict: Verdict) -> str:
    """How many documents and seeds, what each part came to, and under how many views the claim holds."""
    if not verdict.n:
        return "–"
    lines = [f"n = {verdict.n}, {verdict.seeds} seed{'s' * (verdict.seeds != 1)}"]
    if len(verdict.parts) > 1:
        came_to = [f"{letter}\xa0{CHIPS[p.verdict][0]}" for letter, p in zip(LETTERS, verdict.parts, strict=False)]
        lines += textwrap.wrap("  ".join(came_to), 15)
    if verdict.swept and verdict.effect is not None:
        lines.append(f"holds in {len(verdict.holds)}\nof {len(verdict.swept)} views")
    return "\n".join(lines)


def _chip(ax: Axes, verdict: Verdict) -> None:
    symbol, colour, ink = CHIPS[verdict.verdict]
    box = {"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": INK, "linewidth": 0.8}
    panels.note(ax, 0, 0.5, verdict.claim.id, fontsize=9, fontweight="bold", color=INK)
    text = f"{symbol} {verdict.verdict}"
    panels.note(ax, 0.3, 0.5, text, color=ink, bbox=box, gid=verdict.verdict)


def _reason(verdict: Verdict) -> str:
    """Why there is no effect to draw, in lines; "" where there is one."""
    if verdict.effect is not None and verdict.ci_low is not None and verdict.ci_high is not None:
        return ""
    return textwrap.fill("; ".join(verdict.reasons) or verdict.sentence.partition(": ")[2], _REASON)


def _title(verdict: Verdict) -> str:
    """What the effect is, in lines, with the letter of the part that decides."""
    letter = LETTERS[verdict.parts.index(verdict.deciding)] if len(verdict.parts) > 1 else ""
    return textwrap.fill(f"{letter} {verdict.what}".strip(), _EFFECT)


def _height(reason: str, title: str) -> float:
    """Inches of a row, which shows why there is no effect, or a title and an axis."""
    shown, room = (reason, _LINES) if reason else (title, _TITLE)
    return _ROW + _LINE * max(0, shown.count("\n") + 1 - room)


def _effect(ax: Axes, verdict: Verdict, title: str, reason: str) -> None:
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if verdict.effect is None or verdict.ci_low is None or verdict.ci_high is None:
        panels.note(ax, 0, 0.5, reason, color=GREY)
        ax.set_title("\n", fontsize=SMALL, pad=2)  # the height of a row with an axis
        ax.set_xticks([0], [" "])
        ax.set_xlabel(" ", fontsize=SMALL, labelpad=1)
        ax.tick_params(length=0)
        ax.spines["bottom"].set_visible(False)
        return
    drawn = [verdict.threshold, verdict.ci_low, verdict.ci_high, verdict.effect]
    margin = 0.12 * max(max(drawn) - min(drawn), 0.05)
    left, right = min(drawn) - margin, max(drawn) + margin
    side = verdict.deciding.spec.side
    if side in (ABOVE, BELOW):
        shade: dict[str, Any] = {"color": CLAIMED, "alpha": CLAIMED_OPACITY, "lw": 0, "zorder": 0}
        ax.axvspan(verdict.threshold, right if side == ABOVE else left, gid="claimed", **shade)
    ax.axvline(verdict.threshold, color=INK, lw=1, ls=DASHED, zorder=1, gid="threshold")
    ax.plot([verdict.ci_low, verdict.ci_high], [0, 0], color=INK, lw=1.4, zorder=2, gid="interval")
    ax.plot([verdict.effect], [0], "o", color=INK, ms=4, zorder=3, gid="effect")
    ax.set(xlim=(left, right), ylim=(-1, 1))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=3))
    panels.panel_title(ax, title, fontsize=SMALL, pad=2)
    ax.set_xlabel(verdict.unit, fontsize=SMALL, labelpad=1)
