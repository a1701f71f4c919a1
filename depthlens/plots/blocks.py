"""Figures of blocks and of greedy removal: how much depth a task needs.

See `depthlens.plots` for what all figures have in common, `depthlens.experiments.block_removal` for the numbers.
"""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib import ticker
from matplotlib.patches import Patch

from depthlens import arguments
from depthlens.analysis import stats
from depthlens.analysis.block_losses import block_table
from depthlens.analysis.block_removal import Greedy
from depthlens.analysis.results import Result
from depthlens.look import EMPTY, INK, PALETTE
from depthlens.plots import panels
from depthlens.plots.effects import named
from depthlens.plots.theme import CANNOT_JUDGE, Plot, figure, themed, with_legend


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
    height = (0.16 * largest + 1.25) * len(bases) + 0.5
    fig = figure(title, "Loss by removing a block of layers", height=height)
    for ax, base in zip(fig.subplots(len(bases), 1, squeeze=False)[:, 0], bases, strict=True):
        rows = table[(table["task"] == base["task"]) & (table["metric"] == base["metric"])]
        grid = np.full((largest, n_layers), np.nan)
        if base["at_chance"]:
            panels.hatch(ax, 0.5, largest, n_layers, CANNOT_JUDGE)
        else:
            grid[rows["size"] - 1, rows["start"]] = rows["loss"]
        top = max(1e-9, float(np.nanmax(grid, initial=0)))
        mesh = panels.cells(ax, grid, (0, top), first_row=1, gid="blocks", edgecolors="none")
        if not base["at_chance"]:
            place = {"orientation": "vertical", "fraction": 0.15, "pad": 0.01, "aspect": 12}
            panels.colour_bar(mesh, ax, f"loss of {named(base['metric'], loss=True)}", **place)
            proven = rows[(rows["p_adjusted"] < stats.ALPHA) & (rows["loss"] > 0)]
            ax.plot(proven["start"], proven["size"], ".", color=INK, ms=2.5, mew=0, gid="proven")
        name = f"{base['task']}, {base['metric']}: {base['baseline']:.2f} with every layer, n = {base['n']}"
        panels.panel_title(ax, textwrap.shorten(name, 100), fontsize=9)
        ax.set(xlabel="first layer of the block", ylabel="layers", ylim=(0.5, largest + 0.5))
    dot = panels.mark_key("proven loss (corrected over blocks)", marker=".")
    return with_legend(fig, [dot, Patch(facecolor=EMPTY, label="no such block")])


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
    x, delta, low, high, chosen = panels.numbers(steps, "step", "delta", "ci_low", "ci_high", "chosen_by")
    low[0] = high[0] = 0.0  # with nothing removed nothing changes
    better = greedy.result.metric_info(record["task"], record["metric"])["higher_is_better"]
    fig = figure(title, default, height=3.2)
    ax = fig.subplots()
    panels.curve(ax, x, [delta, low, high], 0, gid="judge", ms=4.5)
    ax.plot(x, chosen, color=PALETTE[1], marker=panels.MARKERS[1], ls="--", gid="choose", **panels.LINE | {"ms": 4.5})
    panels.level(ax, 0, "zero")
    panels.level(ax, -record["tolerance"] if better else record["tolerance"], "tolerance")
    names = ["none", *(f"L{layer}" for layer in steps["layer"].iloc[1:])]
    ax.set_xticks(x, names, rotation=90 if len(x) > 14 else 0)
    ylabel = f"change of {named(record['metric'], loss=True)} from the whole model"
    ax.set(xlabel="layer that was removed, in this order", ylabel=ylabel)
    ax.yaxis.set_major_locator(ticker.MaxNLocator(nbins=6))
    judging, choosing = panels.series_keys(["judging half of the documents", "choosing half"])
    choosing.set_linestyle("--")
    levels = panels.level_keys(fig, tolerance=f"tolerance {record['tolerance']:g}")
    return with_legend(fig, [judging, panels.band_key(colour=PALETTE[0]), choosing, *levels])
