"""The scorecard of the study's claims: every part of a claim beside what matters, for one model or several runs.

Effects have different units. Each is drawn in multiples of what matters to it, so that all parts share one axis. States
differ in word, symbol and lightness, so that they can be read in grey, too. That two runs differ in a state is no
difference between the models: it may be noise.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from depthlens import arguments
from depthlens.analysis.run_comparison import Comparison
from depthlens.claims.parts import MOVED, UNDER
from depthlens.claims.scorecard_html import CHIPS
from depthlens.claims.verdicts import DECIDES, Verdicts
from depthlens.errors import UserError
from depthlens.look import CLAIMED, CLAIMED_OPACITY, GREY, INK, PALETTE
from depthlens.plots import panels
from depthlens.plots.layers import MAX_OVERLAID
from depthlens.plots.theme import DASHED, MARKERS, SMALL, Plot, figure, themed, with_legend

_WHAT, _LINE, _RUN = 48, 0.15, 0.22  # characters in a line; inches of a line of text, and of a run
_LEAST, _MOST = -2.0, 4.0  # times what matters; what is beyond is drawn at the edge, as an arrow


@themed
def scorecard(verdicts: Verdicts, *, title: str | None = None) -> Plot:
    """One row a part of a claim: its effect with its interval in multiples of what matters, and its state.

    Args:
        verdicts: Of `depthlens.claims.judge`.
        title: Above the figure; by default the models, and how many claims are in which state.

    Raises:
        UserError: no verdicts.
    """
    arguments.made_by(verdicts, "states", "what depthlens.claims.judge returned", "verdicts")
    models = verdicts.record.get("models", [])
    rows = verdicts.parts[verdicts.parts["view"] == DECIDES]
    return _forest({"": rows}, title, f"{', '.join(models)}: {verdicts.headline}" if models else verdicts.headline)


@themed
def scorecards(comparison: Comparison, *, place: str = "", title: str | None = None) -> Plot:
    """One row a part of a claim, with the effects and the states of every run.

    Args:
        comparison: Of `depthlens.compare`, of up to four runs with verdicts.
        place: Folder of the results that the verdicts are of.
        title: Above the figure.

    Raises:
        UserError: no verdicts there, or more runs than there are colours.
    """
    arguments.made_by(comparison, "verdicts", "what depthlens.compare returned", "comparison")
    table = comparison.verdicts[comparison.verdicts["place"] == place]
    by_run = {run: table[table["run"] == run] for run in comparison.runs if run in set(table["run"])}
    if not by_run or len(comparison.runs) > MAX_OVERLAID:
        fault = f"{len(by_run)} runs have verdicts in folder {place!r}"
        raise UserError(f"{fault}; draw up to {MAX_OVERLAID} runs, some with verdicts of 09_claims")
    return _forest(by_run, title, f"Claims: {', '.join(by_run)}")


def _forest(by_run: Mapping[str, pd.DataFrame], title: str | None, default: str) -> Plot:
    rows = pd.concat([table.assign(run=run) for run, table in by_run.items()])
    parts = list(rows.groupby(["claim", "part"], sort=True))
    texts = [textwrap.fill(f"{claim}{part}  {of['what'].iloc[0]}", _WHAT) for (claim, part), of in parts]
    heights = [max(_LINE * (text.count("\n") + 1), _RUN * len(by_run)) + 0.14 for text in texts]
    fig = figure(title, default, height=sum(heights) + 1.1)
    what, ax, states = fig.subplots(1, 3, width_ratios=(2.9, 2.3, 2.0), sharey=True)
    tops = np.cumsum([0.0, *heights])
    for text, top, height, (_, of) in zip(texts, tops, heights, parts, strict=False):
        panels.note(what, 0, top + height / 2, text, transform=what.get_yaxis_transform(), color=INK)
        _claimed(ax, str(of["claimed"].iloc[0]), top, height)
        for i, run in enumerate(by_run):
            for row in of[of["run"] == run].itertuples():
                y = top + height * (i + 0.5) / len(by_run)
                _estimate(ax, row, y, i)
                symbol, colour, ink = CHIPS[row.state]
                box = {"boxstyle": "round,pad=0.25", "facecolor": colour, "edgecolor": INK, "linewidth": 0.8}
                chip = f"{symbol} {row.state}"
                panels.note(
                    states, 0.02, y, chip, transform=states.get_yaxis_transform(), color=ink, bbox=box, gid=row.state
                )
                panels.note(
                    states,
                    0.62,
                    y,
                    f"n = {row.n}" if row.n else "–",
                    transform=states.get_yaxis_transform(),
                    color=GREY,
                )
    for side in (what, states):
        side.set_axis_off()
    ax.set(ylim=(tops[-1], 0), xlim=(_LEAST - 0.2, _MOST + 0.2), yticks=[], xticks=range(int(_LEAST), int(_MOST) + 1))
    ax.axvline(0, color=INK, lw=0.8, zorder=1)
    ax.axvline(1, color=INK, lw=1, ls=DASHED, zorder=1, gid="matters")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("effect, in multiples of what matters", fontsize=SMALL)
    keys = [
        panels.line_key("what matters", ls=DASHED),
        Patch(facecolor=CLAIMED, alpha=CLAIMED_OPACITY, lw=0, label="claimed"),
    ]
    if len(by_run) > 1:
        keys += panels.series_keys(by_run, ls="-", mfc=None)
    else:
        keys.append(panels.line_key("effect, 95% interval", marker="o", ms=4, lw=1.4))
    return with_legend(fig, keys, 3)


def _claimed(ax: panels.Axes, claimed: str, top: float, height: float) -> None:
    """Shade where the claim would be shown."""
    below, above = (_LEAST - 0.2, -1.0 if claimed == MOVED else 1.0), (1.0, _MOST + 0.2)
    for low, high in {UNDER: [below], MOVED: [below, above]}.get(claimed, [above]):
        ax.fill_between(
            [low, high], top + 0.04, top + height - 0.04, color=CLAIMED, alpha=CLAIMED_OPACITY, lw=0, zorder=0
        )


def _estimate(ax: panels.Axes, row: Any, y: float, style: int) -> None:
    effect, low, high = (np.array([row.effect, row.ci_low, row.ci_high]) / row.matters).clip(_LEAST, _MOST)
    if not np.isfinite(effect):
        panels.note(ax, _LEAST, y, "no estimate", color=GREY, transform=ax.transData)
        return
    colour = PALETTE[style]
    ax.plot([low, high], [y, y], color=colour, lw=1.4, zorder=2, gid="interval")
    marker = "<" if effect == _LEAST else ">" if effect == _MOST else MARKERS[style]
    ax.plot([effect], [y], marker, color=colour, ms=4, zorder=3, gid="effect")
