"""Scorecards of several runs side by side: verdicts and estimates of every part of a claim.

See `depthlens.plots` for what all figures have in common. Verdicts differ in word, symbol and lightness. The estimates
of one part share an axis. That two verdicts differ is no difference between the models: it may be noise.
"""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from depthlens import arguments
from depthlens.analysis.run_comparison import Comparison
from depthlens.claims.scorecard_html import CHIPS
from depthlens.errors import UserError
from depthlens.look import GREY, INK, PALETTE
from depthlens.plots import panels
from depthlens.plots.layers import MAX_OVERLAID
from depthlens.plots.theme import MARKERS, SMALL, Plot, figure, themed, with_legend

_WHAT = 34  # characters in a line


@themed
def scorecards(comparison: Comparison, *, place: str = "", title: str | None = None) -> Plot:
    """One row a part of a claim: the verdict of every run, and all estimates with their intervals on one axis.

    Args:
        comparison: Of `depthlens.compare`, of up to four runs with verdicts.
        place: Folder of the results that the verdicts are of.
        title: Above the figure.

    Raises:
        UserError: no verdicts there, or more runs than there are colours.
    """
    arguments.made_by(comparison, "verdicts", "what depthlens.compare returned", "comparison")
    table = comparison.verdicts[comparison.verdicts["place"] == place]
    runs = [run for run in comparison.runs if run in set(table["run"])]
    if not runs or len(comparison.runs) > MAX_OVERLAID:
        fault = f"{len(runs)} runs have verdicts in folder {place!r}"
        raise UserError(f"{fault}; draw up to {MAX_OVERLAID} runs, some with verdicts of 09_claims")
    rows = list(table.groupby(["claim", "part"], sort=False))
    bare = 0.18 + 0.24 * len(runs)  # inches; an axis needs more
    heights = [bare + 0.3 * bool(np.isfinite(of["effect"].astype(float)).any()) for _, of in rows]
    fig = figure(title, f"Claims: {', '.join(runs)}", height=sum(heights) + 1.0)
    axes = fig.subplots(len(rows), 3, width_ratios=(2.3, 1.9, 2.6), height_ratios=heights, squeeze=False)
    for (what, verdicts, estimates), ((claim, part), of) in zip(axes, rows, strict=True):
        for ax in (what, verdicts):
            ax.set_axis_off()
        panels.note(what, 0, 0.5, f"{claim}{part}", fontsize=9, fontweight="bold", color=INK)
        panels.note(what, 0.16, 0.5, textwrap.fill(str(of["what"].iloc[0]), _WHAT), color=INK)
        by_run = of.set_index("run")
        for i, run in enumerate(runs):
            y = 1 - (i + 0.5) / len(runs)
            if run in by_run.index:
                _chip(verdicts, y, str(by_run.loc[run, "verdict"]), run)
        _estimates(estimates, by_run, runs, comparison.runs)
    of_all = zip(comparison.runs, panels.series_keys(comparison.runs, ls="-", mfc=None), strict=False)
    keys = [key for run, key in of_all if run in runs]
    keys += [panels.line_key("threshold", ls="--")]
    return with_legend(fig, keys, 3)


def _chip(ax: Axes, y: float, verdict: str, run: str) -> None:
    symbol, colour, ink = CHIPS[verdict]
    box = {"boxstyle": "round,pad=0.25", "facecolor": colour, "edgecolor": INK, "linewidth": 0.8}
    panels.note(ax, 0.08, y, f"{symbol} {verdict}", color=ink, bbox=box, gid=f"{verdict} {run}")


def _estimates(ax: Axes, by_run: pd.DataFrame, runs: list[str], all_runs: list[str]) -> None:
    """Estimates of the runs below each other, on one axis with the threshold."""
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set_ylim(-len(runs) + 0.4, 0.6)
    known = by_run[np.isfinite(by_run["effect"].astype(float))]
    if not len(known):
        panels.note(ax, 0, 0.5, "no estimate", color=GREY)
        ax.set_xticks([])
        ax.spines["bottom"].set_visible(False)
        return
    ax.axvline(float(known["threshold"].iloc[0]), color=INK, lw=1, ls="--", zorder=1, gid="threshold")
    for i, run in enumerate(runs):
        if run not in known.index:
            continue
        row, style = known.loc[run], all_runs.index(run)
        ends = [float(row["ci_low"]), float(row["ci_high"])]
        ax.plot(ends, [-i, -i], color=PALETTE[style], lw=1.4, gid="interval")
        ax.plot([float(row["effect"])], [-i], MARKERS[style], color=PALETTE[style], ms=4, gid="effect")
    ax.margins(x=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.set_xlabel(str(known["unit"].iloc[0]), fontsize=SMALL, labelpad=1)
