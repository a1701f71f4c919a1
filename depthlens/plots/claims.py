"""The scorecard of the study's claims: verdicts in, a `Figure` out that was neither shown nor saved.

Verdicts are told apart by word and symbol, and by fills that differ in lightness, so that they read in grey, too. Every
effect has an axis of its own, because units differ; its threshold is the dashed line, and the claimed side is shaded.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from depthlens.claims.decision import ABOVE, BELOW, CANNOT, CONTRADICTED, SUPPORTED, UNDECIDED
from depthlens.claims.verdicts import Verdict, headline
from depthlens.errors import UserError
from depthlens.plots.theme import DASHED, EMPTY, GREY, INK, PALETTE, figure, ink_on, legend, theme

CHIPS = {
    SUPPORTED: ("✓", PALETTE[0]),
    CONTRADICTED: ("✗", PALETTE[1]),
    UNDECIDED: ("?", "#FFFFFF"),
    CANNOT: ("–", EMPTY),
}
_WIDTHS = (1.4, 2.9, 2.2, 0.6)  # of the verdict, the statement, the effect and the number of documents
_STATEMENT, _EFFECT = 44, 40  # characters in a line
_REASON = 150  # characters in all, as many as fit beside a statement
_CLAIMED = "#CFE3F1"


def scorecard(verdicts: Sequence[Verdict], *, title: str | None = None) -> Figure:
    """One row a claim: verdict, statement, effect with its interval against the threshold, documents.

    Args:
        verdicts: Of `depthlens.claims.judge`.
        title: Above the figure; by default how many claims came out how.

    Raises:
        UserError: no verdicts.
    """
    if not isinstance(verdicts, Sequence) or not verdicts or not all(isinstance(v, Verdict) for v in verdicts):
        raise UserError("no verdicts to draw; give those of depthlens.claims.judge")
    with theme():
        fig = figure(headline(verdicts) if title is None else title, height=0.92 * len(verdicts) + 0.9)
        axes = fig.subplots(len(verdicts), 4, width_ratios=_WIDTHS, squeeze=False)
        for row, verdict in zip(axes, verdicts, strict=True):
            for ax in (row[0], row[1], row[3]):
                ax.set_axis_off()
            _chip(row[0], verdict)
            _write(row[1], 0.0, textwrap.fill(verdict.claim.statement, _STATEMENT), INK)
            _effect(row[2], verdict)
            _write(row[3], 0.1, f"n = {verdict.n}" if verdict.n else "–", INK if verdict.n else GREY)
        handles = [
            Line2D([], [], color=INK, marker="o", ms=4, lw=1.4, label="effect, corrected interval"),
            Line2D([], [], color=INK, lw=1, ls=DASHED, label="threshold"),
            Patch(facecolor=_CLAIMED, lw=0, label="claimed side"),
        ]
        legend(fig, handles)
    return fig


def _chip(ax: Axes, verdict: Verdict) -> None:
    symbol, colour = CHIPS[verdict.verdict]
    box = {"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": INK, "linewidth": 0.8}
    ax.text(0, 0.5, verdict.claim.id, fontsize=9, fontweight="bold", color=INK, va="center", transform=ax.transAxes)
    place = {"va": "center", "ha": "left", "transform": ax.transAxes}
    text = f"{symbol} {verdict.verdict}"
    ax.text(0.3, 0.5, text, fontsize=8, color=ink_on(to_rgb(colour)), bbox=box, gid=verdict.verdict, **place)


def _effect(ax: Axes, verdict: Verdict) -> None:
    ax.set_yticks([])
    if verdict.effect is None or verdict.ci_low is None or verdict.ci_high is None:
        reason = textwrap.shorten(verdict.sentence.partition(": ")[2], _REASON, placeholder=" …")
        _write(ax, 0.0, textwrap.fill(reason, _EFFECT), GREY)
        ax.set_title("\n", fontsize=8, pad=2)  # the height of a row with an axis
        ax.set_xticks([0], [" "])
        ax.set_xlabel(" ", fontsize=8, labelpad=1)
        ax.tick_params(length=0)
        sns.despine(ax=ax, left=True, bottom=True)
        return
    threshold, low, high = verdict.threshold, verdict.ci_low, verdict.ci_high
    ends = [threshold, low, high, verdict.effect]
    margin = 0.12 * max(max(ends) - min(ends), 0.05)
    left, right = min(ends) - margin, max(ends) + margin
    sides = {ABOVE: [(threshold, right)], BELOW: [(left, threshold)]}
    for one, other in sides.get(_side(verdict), []):
        ax.axvspan(one, other, color=_CLAIMED, lw=0, zorder=0, gid="claimed")
    ax.axvline(threshold, color=INK, lw=1, ls=DASHED, zorder=1, gid="threshold")
    ax.plot([low, high], [0, 0], color=INK, lw=1.4, zorder=2, gid="interval")
    ax.plot([verdict.effect], [0], "o", color=INK, ms=4, zorder=3, gid="effect")
    ax.set(xlim=(left, right), ylim=(-1, 1))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.set_title(textwrap.fill(verdict.what, _EFFECT), fontsize=8, loc="left", pad=2).set_parse_math(False)
    ax.set_xlabel(verdict.unit, fontsize=8, labelpad=1)
    sns.despine(ax=ax, left=True)


def _side(verdict: Verdict) -> int:
    """Side that is claimed of the part that is drawn."""
    return next(p.spec.side for p in verdict.parts if p.spec.what == verdict.what)


def _write(ax: Axes, x: float, text: str, colour: str) -> None:
    shown = ax.text(x, 0.5, text, fontsize=8, color=colour, va="center", ha="left", transform=ax.transAxes)
    shown.set_parse_math(False)
