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

from depthlens.analysis.run_comparison import Comparison
from depthlens.claims.parts import MOVED, UNDER
from depthlens.claims.scorecard_html import CHIPS
from depthlens.claims.verdicts import DECIDES, Verdicts
from depthlens.errors import UserError
from depthlens.look import CLAIMED, CLAIMED_OPACITY, INK
from depthlens.plots import panels
from depthlens.plots.panels import MAX_OVERLAID
from depthlens.plots.theme import DASHED, SMALL, Plot, figure, themed

_WHAT = 48  # characters in a line
_LEAST, _MOST = -2.0, 4.0  # times what matters; what is beyond is drawn at the edge, as an arrow


@themed
def scorecard(verdicts: Verdicts, *, title: str | None = None) -> Plot:
    """One row a part of a claim: its effect with its interval in multiples of what matters, and its state.

    Args:
        verdicts: Of `depthlens.claims.judge`.
        title: Above the figure; by default the models, and how many claims are in which state.
    """
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
    table = comparison.verdicts[comparison.verdicts["place"] == place]
    by_run = {run: table[table["run"] == run] for run in comparison.runs if run in set(table["run"])}
    if not by_run or len(comparison.runs) > MAX_OVERLAID:
        fault = f"{len(by_run)} runs have verdicts in folder {place!r}"
        raise UserError(f"{fault}; draw up to {MAX_OVERLAID} runs, some with verdicts of 09_claims")
    return _forest(by_run, title, f"Claims: {', '.join(by_run)}")


def _forest(by_run: Mapping[str, pd.DataFrame], title: str | None, default: str) -> Plot:
    names = list(by_run)
    rows = pd.concat([table.assign(series=run) for run, table in by_run.items()], ignore_index=True)
    parts = rows.groupby(["claim", "part"], sort=True)
    rows["y"] = parts.ngroup() + (rows["series"].map(names.index) + 0.5) / len(names)
    for end, column in (("x", "effect"), ("low", "ci_low"), ("high", "ci_high")):
        rows[end] = rows[column] / rows["matters"]
    fig = figure(title, default, height=parts.ngroups * max(0.45, 0.22 * len(names) + 0.14) + 1.1)
    ax = fig.subplots()
    texts = [textwrap.fill(f"{claim}{part}  {of['what'].iloc[0]}", _WHAT) for (claim, part), of in parts]
    for i, (_, of) in enumerate(parts):
        _claimed(ax, str(of["claimed"].iloc[0]), i)
    panels.forest(ax, rows, names, (_LEAST, _MOST))
    for row in rows.itertuples():
        symbol, colour, ink = CHIPS[row.state]
        box = {"boxstyle": "round,pad=0.25", "facecolor": colour, "edgecolor": INK, "linewidth": 0.8}
        text = f"{symbol} {row.state}" + (f", n = {row.n}" if row.n else "")
        panels.note(ax, 1.03, row.y, text, color=ink, bbox=box, transform=ax.get_yaxis_transform(), gid=row.state)
    ax.set_yticks(np.arange(len(texts)) + 0.5, texts, multialignment="left", parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_xticks(range(int(_LEAST), int(_MOST) + 1))
    ax.axvline(0, color=INK, lw=0.8, zorder=1)
    ax.axvline(1, color=INK, lw=1, ls=DASHED, zorder=1, gid="matters")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("effect, in multiples of what matters", fontsize=SMALL)
    panels.key(ax, "line", "what matters", ls=DASHED)
    panels.key(ax, "area", "claimed", facecolor=CLAIMED, alpha=CLAIMED_OPACITY)
    return fig


def _claimed(ax: panels.Axes, claimed: str, row: int) -> None:
    """Shade where the claim would be shown."""
    below, above = (_LEAST - 0.2, -1.0 if claimed == MOVED else 1.0), (1.0, _MOST + 0.2)
    for low, high in {UNDER: [below], MOVED: [below, above]}.get(claimed, [above]):
        look: dict[str, Any] = {"color": CLAIMED, "alpha": CLAIMED_OPACITY, "lw": 0, "zorder": 0}
        ax.fill_between([low, high], row + 0.1, row + 0.9, **look)
