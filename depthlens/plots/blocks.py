"""Figures of blocks, of greedy removal and of races: how much depth a task needs, and when each part was decided.

See `depthlens.plots` for what all figures have in common; the numbers are those of
`depthlens.experiments.block_removal` and `depthlens.experiments.race`.
"""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib import ticker

from depthlens import arguments
from depthlens.analysis import races, stats
from depthlens.analysis.block_losses import block_table
from depthlens.analysis.block_removal import Greedy
from depthlens.analysis.races import Race
from depthlens.analysis.results import Result
from depthlens.look import EMPTY, PALE, PALETTE
from depthlens.plots import panels
from depthlens.plots.effects import named
from depthlens.plots.panels import cells, lines, tidy
from depthlens.plots.theme import CANNOT_JUDGE, Plot, counts, figure, themed

PROVEN = "proven loss (corrected over blocks)"
MOST_ROWS = 40  # conditions in a panel; of more, those that took longest are shown
_COLOURS = {races.CRITICAL: PALETTE[1], races.SPARED: PALETTE[0], races.UNDECIDED: PALE, races.AT_CHANCE: EMPTY}


@themed
def block_map(result: Result, *, title: str | None = None) -> Plot:
    """Loss by removing every contiguous block: one panel a task and metric, first layer of the block by its size.

    A dot marks blocks whose loss is significant by step-down maxT. A task at chance is hatched.

    Args:
        result: A block sweep.
        title: Above the figure.

    Raises:
        UserError: the result has no blocks.
    """
    table = block_table(result)
    bases = result.baselines.to_dict("records")
    largest, n_layers = int(table["size"].max()), int((table["start"] + table["size"]).max())
    sizes = range(1, largest + 1)
    height = (0.16 * largest + 1.25) * len(bases) + 0.5
    fig = figure(title, "Loss by removing a block of layers", height=height)
    for ax, base in zip(fig.subplots(len(bases), 1, squeeze=False)[:, 0], bases, strict=True):
        idle = CANNOT_JUDGE if base["at_chance"] else ""
        rows = table[(table["task"] == base["task"]) & (table["metric"] == base["metric"])]
        rows = rows.assign(x=rows["start"], y=rows["size"], value=np.nan if idle else rows["loss"], idle=idle)
        rows["shown"] = (rows["p_adjusted"] < stats.ALPHA) & (rows["loss"] > 0) & (not idle)
        top = max(1e-9, float(np.nanmax(rows["value"], initial=0)))
        mesh = cells(
            ax, rows, (0, top), rows=sizes, columns=range(n_layers), edgecolors="none", mark=1.25, shown=PROVEN
        )
        if not idle:
            place = {"orientation": "vertical", "fraction": 0.15, "pad": 0.01, "aspect": 12}
            panels.colour_bar(mesh, ax, f"loss of {named(base['metric'], loss=True)}", **place)
        name = f"{base['task']}, {base['metric']}: {base['baseline']:.2f} with every layer, n = {base['n']}"
        panels.panel_title(ax, textwrap.shorten(name, 100), fontsize=9)
        ax.set(xlabel="first layer of the block", ylabel="layers", ylim=(0.5, largest + 0.5))
        panels.key(ax, "area", "no such block", facecolor=EMPTY, alpha=1)
    return fig


@themed
def greedy_curve(greedy: Greedy, *, title: str | None = None) -> Plot:
    """Change of the score as layers are removed one after another.

    One line is the half of the documents that judges, with its interval, the other the half that chose the layers.

    Args:
        greedy: From `depthlens.greedy_removal`.
        title: Above the figure.
    """
    arguments.made_by(greedy, "steps", "what depthlens.greedy_removal returned", "greedy")
    steps, record = greedy.steps, greedy.record
    default = f"Layers removed one after another: {record['task']}, judged on {steps['n'].iloc[0]} documents"
    table = tidy(steps, "step", "delta")
    table.loc[table["step"] == 0, ["low", "high"]] = 0.0  # with nothing removed nothing changes
    halves = ["judging half of the documents", "choosing half"]
    chosen = table.assign(y=table["chosen_by"], low=np.nan, high=np.nan, series=halves[1])
    better = greedy.result.metric_info(record["task"], record["metric"])["higher_is_better"]
    fig = figure(title, default, height=3.2)
    ax = fig.subplots()
    lines(ax, pd.concat([table.assign(series=halves[0]), chosen]), halves, ms=4.5)
    panels.level(ax, 0, "zero")
    tolerance = -record["tolerance"] if better else record["tolerance"]
    panels.level(ax, tolerance, "tolerance", f"tolerance {record['tolerance']:g}")
    names = ["none", *(f"L{layer}" for layer in steps["layer"].iloc[1:])]
    ax.set_xticks(steps["step"], names, rotation=90 if len(names) > 14 else 0)
    ylabel = f"change of {named(record['metric'], loss=True)} from the whole model"
    ax.set(xlabel="layer that was removed, in this order", ylabel=ylabel)
    ax.yaxis.set_major_locator(ticker.MaxNLocator(nbins=6))
    return fig


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
        panels.keep(ax, table.assign(series=table["decision"]), "n")
        ax.barh(places, table["n"], color=[_COLOURS[decision] for decision in table["decision"]], height=0.8)
        ax.set_yticks(places, table["condition"])
        ax.set(ylim=(len(table) - 0.4, -0.6), xlabel="documents" if ax is axes[-1] else "")
        cut = f", the {len(table)} of {len(rows)} that took longest" if len(table) < len(rows) else ""
        panels.panel_title(ax, f"{task} ({metric}): {race.record['n_documents'][task]} documents{cut}", fontsize=9)
    names = {
        races.CRITICAL: "costs something",
        races.SPARED: f"costs less than {race.record['margin']:g}",
        races.AT_CHANCE: CANNOT_JUDGE,
    }
    for name in race.decisions["decision"].unique():
        panels.key(axes[0], "area", names.get(name, name), facecolor=_COLOURS[name], alpha=1)
    return fig
