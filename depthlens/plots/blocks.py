"""Figures of blocks and of greedy removal: how much depth a task needs.

See `depthlens.plots` for what all figures have in common, `depthlens.experiments.block_removal` for the numbers.
"""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from depthlens import arguments
from depthlens.analysis import stats
from depthlens.analysis.block_losses import block_table
from depthlens.analysis.block_removal import Greedy
from depthlens.analysis.results import Result
from depthlens.plots.theme import CANNOT_JUDGE, DOTTED, EMPTY, GREY, INK, PALETTE, SCORES, figure, legend, theme


def block_map(result: Result, *, title: str | None = None) -> Figure:
    """Loss by removing every contiguous block: one panel a task and metric, first layer of the block by its size.

    A dot marks blocks whose loss is significant after Holm's correction. A task at chance is left grey.

    Args:
        result: A block sweep.
        title: Above the figure.

    Raises:
        UserError: the result has no blocks.
    """
    table = block_table(result)
    bases = list(result.baselines.itertuples())
    largest, n_layers = int(table["size"].max()), int((table["start"] + table["size"]).max())
    with theme():
        height = (0.16 * largest + 1.25) * len(bases) + 0.5
        fig = figure(title or "Loss by removing a block of layers", height=height)
        for ax, base in zip(fig.subplots(len(bases), 1, squeeze=False)[:, 0], bases, strict=True):
            rows = table[(table["task"] == base.task) & (table["metric"] == base.metric)]
            grid = np.full((largest, n_layers), np.nan)
            grid[rows["size"] - 1, rows["start"]] = rows["loss"]
            name = f"{base.task}, {base.metric}: {base.baseline:.2f} with every layer, n = {base.n}"
            ax.set_title(textwrap.shorten(name, 100), fontsize=9, loc="left")
            ax.set_facecolor(EMPTY)
            if base.at_chance:
                ax.text(0.5, 0.5, CANNOT_JUDGE, transform=ax.transAxes, ha="center", va="center", color=GREY)
            else:
                most = max(1e-9, float(np.nanmax(grid)))
                mesh = ax.pcolormesh(np.ma.masked_invalid(grid), cmap=SCORES, vmin=0, vmax=most, gid="blocks")
                bar = fig.colorbar(mesh, ax=ax, label=f"loss of {base.metric}", pad=0.01, aspect=12)
                bar.outline.set_visible(False)
                sure = rows[(rows["p_adjusted"] < stats.ALPHA) & (rows["loss"] > 0)]
                ax.plot(sure["start"] + 0.5, sure["size"] - 0.5, ".", color=INK, ms=2.5, mew=0, gid="sure")
            ax.set(xlabel="first layer of the block", ylabel="layers", xlim=(0, n_layers), ylim=(0, largest))
            sizes = sorted({1, *range(2, largest + 1, max(1, largest // 4))})
            ax.set_yticks([n - 0.5 for n in sizes], [str(n) for n in sizes])
            ticks = range(0, n_layers, max(1, n_layers // 10))
            ax.set_xticks([t + 0.5 for t in ticks], [str(t) for t in ticks])
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
        dot = Line2D([], [], color=INK, marker=".", ls="", label="proven loss (Holm-corrected)")
        legend(fig, [dot, Patch(facecolor=EMPTY, label="no such block")])
    return fig


def greedy_curve(greedy: Greedy, *, title: str | None = None) -> Figure:
    """Change as layers go one after another: on the documents that judge, with its interval, and on those that chose.

    Args:
        greedy: From `depthlens.greedy_removal`.
        title: Above the figure.
    """
    arguments.made_by(greedy, "steps", "what depthlens.greedy_removal returned", "greedy")
    steps, record = greedy.steps, greedy.record
    n = f"{steps['n'].iloc[0]} documents judge"
    with theme():
        fig = figure(title or f"Layers removed one after another: {record['task']}, {n}", height=3.2)
        ax = fig.subplots()
        x = steps["step"].to_numpy()
        delta, low, high, chosen = (
            steps[c].to_numpy(dtype=float, copy=True) for c in ("delta", "ci_low", "ci_high", "chosen_by")
        )
        low[0] = high[0] = 0.0  # with nothing removed nothing changes
        ax.fill_between(x, low, high, color=PALETTE[0], alpha=0.16, lw=0)
        line = {"lw": 1.3, "ms": 4.5, "mfc": "white"}
        ax.plot(x, delta, color=PALETTE[0], marker="o", gid="judge", **line)
        ax.plot(x, chosen, color=PALETTE[1], marker="s", ls="--", gid="choose", **line)
        ax.axhline(0, color=GREY, lw=0.8)
        better = greedy.result.metric_info(record["task"], record["metric"])["higher_is_better"]
        ax.axhline(-record["tolerance"] if better else record["tolerance"], color=GREY, lw=0.8, ls=DOTTED)
        names = ["none", *(f"L{layer}" for layer in steps["layer"].iloc[1:])]
        ax.set_xticks(x, names, rotation=90 if len(x) > 14 else 0)
        ax.set(xlabel="layer that went, in this order", ylabel=f"change of {record['metric']} from the whole model")
        ax.yaxis.set_major_locator(ticker.MaxNLocator(nbins=6))
        ax.spines[["top", "right"]].set_visible(False)
        legend(
            fig,
            [
                Line2D([], [], color=PALETTE[0], marker="o", mfc="white", label="judging half"),
                Patch(facecolor=PALETTE[0], alpha=0.2, lw=0, label="95% interval"),
                Line2D([], [], color=PALETTE[1], marker="s", mfc="white", ls="--", label="choosing half"),
                Line2D([], [], color=GREY, lw=0.8, ls=DOTTED, label=f"tolerance {record['tolerance']:g}"),
            ],
        )
    return fig
