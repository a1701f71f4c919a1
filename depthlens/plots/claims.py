"""The scorecard of the study's claims: every part of a claim beside what matters.

Effects have different units. Each is drawn in multiples of what matters to it, so that all parts share one axis. States
differ in word, symbol and lightness, so that they can be read in grey, too.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from depthlens.claims.parts import CONTROLLED, LEVEL, MOVED, STUDY, UNDER
from depthlens.claims.scorecard_html import CHIPS
from depthlens.claims.verdicts import DECIDES, Verdicts
from depthlens.look import CLAIMED, CLAIMED_OPACITY, GREY, INK, PALETTE
from depthlens.plots import panels
from depthlens.plots.theme import DASHED, SMALL, figure, themed

_WHAT = 48  # characters in a line
_LEAST, _MOST = -2.0, 4.0  # times what matters; what is beyond is drawn at the edge, as an arrow
_BEYOND = [(1.0, 3.2)]  # where a claim would be shown: from where, and how far
_CLAIMED = {UNDER: [(-2.2, 3.2)], MOVED: [(-2.2, 1.2), *_BEYOND]}
_SHADE: dict[str, Any] = {"facecolor": CLAIMED, "alpha": CLAIMED_OPACITY, "lw": 0}


@themed
def scorecard(verdicts: Verdicts) -> None:
    """One row a part of a claim: its effect with its interval in multiples of what matters, and its state.

    Args:
        verdicts: Of `depthlens.claims.judge`.

    Example:
        >>> figure = verdicts.plot()
    """
    rows = verdicts.parts[verdicts.parts["view"] == DECIDES]
    names = {"effect": "value", "ci_low": "low", "ci_high": "high"}
    times = rows[[*names]].div(rows["matters"], axis=0).rename(columns=names)
    models = f"{', '.join(verdicts.record.get('models', []))}: ".removeprefix(": ")
    figure(models + verdicts.headline, height=0.45 * len(rows) + 1.1)
    (ax,) = panels.grid(1, 1)
    panels.keep(ax, rows.assign(**times), "value")
    ax.set(xlim=(_LEAST - 0.2, _MOST + 0.2), ylim=(len(rows) - 0.5, -0.5))
    for y, (row, ends) in enumerate(zip(rows.itertuples(), times.to_numpy(dtype=float), strict=True)):
        ax.broken_barh(_CLAIMED.get(row.claimed, _BEYOND), (y - 0.4, 0.8), gid="claimed", zorder=0, **_SHADE)
        x, low, high = np.clip(ends, _LEAST, _MOST)
        if np.isfinite(x):
            marker = "<" if x == _LEAST else ">" if x == _MOST else "o"
            ax.plot([low, high], [y, y], color=PALETTE[0], lw=1.4, zorder=2, gid="interval")
            ax.plot([x], [y], marker, color=PALETTE[0], ms=4, zorder=3, gid="effect")
        else:
            panels.note(ax, _LEAST, y, "no estimate", transform=ax.transData, color=GREY)
        symbol, colour, ink = CHIPS[row.state]
        box = {"boxstyle": "round,pad=0.25", "facecolor": colour, "edgecolor": INK, "linewidth": 0.8}
        text = f"{symbol} {row.state}" + (f", n = {row.n}" if row.n else "")
        panels.note(ax, 1.03, y, text, color=ink, bbox=box, transform=ax.get_yaxis_transform(), gid=row.state)
    marks = {STUDY: "", CONTROLLED: " (controlled)"}
    texts = [textwrap.fill(f"{r.claim}{r.part}{marks[r.row]}  {r.what}", _WHAT) for r in rows.itertuples()]
    ax.set_yticks(range(len(texts)), texts, multialignment="left", parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.axvline(0, color=INK, lw=0.8, zorder=1)
    ax.axvline(1, color=INK, lw=1, ls=DASHED, zorder=1, gid="matters")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("effect, in multiples of what matters", fontsize=SMALL)
    panels.key(ax, "series", f"effect, {LEVEL:.1%} interval", color=PALETTE[0], marker="o")
    panels.key(ax, "line", "what matters", ls=DASHED)
    panels.key(ax, "area", "claimed", **_SHADE)
