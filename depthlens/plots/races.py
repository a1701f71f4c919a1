"""The figure of a race: who was decided when.

See `depthlens.plots` for what all figures have in common, `depthlens.experiments.race` for the numbers.
"""

from __future__ import annotations

from matplotlib.patches import Patch

from depthlens import arguments
from depthlens.analysis import races
from depthlens.analysis.races import Race
from depthlens.look import EMPTY, PALE, PALETTE
from depthlens.plots import panels
from depthlens.plots.theme import CANNOT_JUDGE, Plot, counts, figure, themed, with_legend

MOST_ROWS = 40  # conditions in a panel; of more, those that took longest are shown
_COLOURS = {
    races.CRITICAL: PALETTE[1],
    races.SPARED: PALETTE[0],
    races.UNDECIDED: PALE,
    races.AT_CHANCE: EMPTY,
}


@themed
def race_course(race: Race, *, title: str | None = None) -> Plot:
    """Documents until each condition was decided, and how: one panel a task.

    Conditions stand in the order of the race. Of more than 40 in a task, those that took longest are shown.

    Args:
        race: From `depthlens.race`.
        title: Above the figure.
    """
    arguments.made_by(race, "decisions", "what depthlens.race returned", "race")
    groups = list(race.decisions.groupby(["task", "metric"], sort=False))
    shown = [rows.nlargest(MOST_ROWS, "n").sort_index() for _, rows in groups]
    seen = counts(race.decisions["n"])
    fig = figure(
        title, f"Documents until each part was decided: {seen}", height=sum(0.16 * len(t) + 1.1 for t in shown)
    )
    ratios = [len(table) + 4 for table in shown]
    axes = fig.subplots(len(groups), 1, squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
    for ax, ((task, metric), rows), table in zip(axes, groups, shown, strict=True):
        places = range(len(table))
        ax.barh(places, table["n"], color=[_COLOURS[decision] for decision in table["decision"]], height=0.8)
        ax.set_yticks(places, table["condition"])
        ax.set(ylim=(len(table) - 0.4, -0.6), xlabel="documents" if ax is axes[-1] else "")
        cut = f", the {len(table)} of {len(rows)} that took longest" if len(table) < len(rows) else ""
        panels.panel_title(ax, f"{task} ({metric}): {race.record['n_documents'][task]} documents{cut}", fontsize=9)
    present = list(dict.fromkeys(race.decisions["decision"]))
    names = {
        races.CRITICAL: "costs something",
        races.SPARED: f"costs less than {race.record['margin']:g}",
        races.AT_CHANCE: CANNOT_JUDGE,
    }
    return with_legend(fig, [Patch(facecolor=_COLOURS[name], label=names.get(name, name)) for name in present])
