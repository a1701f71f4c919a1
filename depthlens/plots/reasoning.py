"""Figures of reasoning in depth: where each task's losses lie, and what goes wrong first in written solutions.

See `depthlens.plots` for what all figures have in common.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from depthlens.analysis import depth, solution_errors
from depthlens.analysis.layer_profiles import profiles
from depthlens.analysis.results import Result
from depthlens.errors import UserError
from depthlens.plots.theme import EMPTY, INK, PALETTE, WIDTH, counts, figure, legend, theme

_CAP = 3  # times an even share: where the colours end, since one early layer can hold nearly everything


def loss_shares(result: Result, *, title: str | None = None, seed: int = 0) -> Figure:
    """Where the losses lie: one row a task and metric, one column a removed layer, each row adding up to one.

    Colour is the share of the row's summed loss (red; blue where a removal helps), the diamond its centre of mass with
    a 95% interval. Shares make metrics of any unit comparable: how much is lost in all, they do not show.

    Args:
        result: A layer sweep.
        title: Above the figure.
        seed: Of the bootstrap.

    Raises:
        UserError: the result has no single-layer conditions.
    """
    found, centres = profiles(result), depth.centre_of_mass(result, seed=seed).table
    n_layers, n = found[0].n_layers, counts(len(p.documents) for p in found)
    grid = np.full((len(found), n_layers), np.nan)
    for row, profile in enumerate(found):
        if not profile.unplaced:
            grid[row, profile.layers] = profile.loss.mean(0) / profile.loss.mean(0).sum()
    named = f"{found[0].model}: share of each row's losses, n = {n} documents"
    with theme():
        fig = figure(named if title is None else title, height=0.4 * len(found) + 1.6)
        ax = fig.subplots()
        ax.set_facecolor(EMPTY)
        x, y = np.arange(n_layers + 1) - 0.5, np.arange(len(found) + 1) - 0.5
        colours = {
            "cmap": "RdBu_r",
            "vmin": -_CAP / n_layers,
            "vmax": _CAP / n_layers,
            "edgecolors": "white",
            "linewidth": 0.5,
        }
        mesh = ax.pcolormesh(x, y, np.ma.masked_invalid(grid), gid="shares", **colours)
        for row, (profile, centre) in enumerate(zip(found, centres.itertuples(), strict=True)):
            if profile.unplaced:
                text = f"{profile.unplaced}: cannot judge"
                hatch = {"hatch": "////", "fc": "none", "ec": "#A0A0A0", "lw": 0}
                ax.add_patch(Rectangle((-0.5, row - 0.5), n_layers, 1, **hatch))
                box = {"fc": "white", "ec": "none", "pad": 1.5}
                ax.text(n_layers / 2 - 0.5, row, text, ha="center", va="center", fontsize=8, bbox=box)
                continue
            at = [v * (n_layers - 1) for v in (centre.centre, centre.ci_low, centre.ci_high)]
            for width, colour in ((3.5, "white"), (1.5, INK)):  # the line stands out from any cell
                ax.plot(at[1:], [row, row], color=colour, lw=width, solid_capstyle="butt")
            ax.plot(at[0], row, "D", color=INK, mec="white", ms=6, gid="centre")
        for third in (1, 2):
            ax.axvline(np.ceil(third * n_layers / 3) - 0.5, color=INK, lw=0.8, ls=(0, (2, 2)))
        ax.set_yticks(range(len(found)), [p.label.replace(" ", "\n", 1) for p in found])
        ax.set(xlabel="removed layer", xlim=(x[0], x[-1]), ylim=(y[-1], y[0]))
        ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=12))
        ax.tick_params(length=0)
        place = {"orientation": "horizontal", "aspect": 45, "fraction": 0.06, "pad": 0.02, "extend": "both"}
        bar = fig.colorbar(mesh, ax=ax, label="share of the row's summed loss", **place)
        bar.outline.set_visible(False)
        marks = [Line2D([], [], color=INK, lw=0.8, ls=(0, (2, 2)), label="thirds of the depth")]
        if not all(p.unplaced for p in found):
            marks += [Line2D([], [], color=INK, marker="D", mec="white", ms=6, label="centre of mass, 95% interval")]
        legend(fig, marks)
        for side in ax.spines.values():
            side.set_visible(False)
    return fig


def first_mistakes(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """What becomes of the solved problems without each layer: still right, or by what goes wrong first.

    Args:
        table: Of `depthlens.analysis.classify_solutions`.
        title: Above the figure.

    Raises:
        UserError: the whole model solves none of the problems, or no single layer was removed.
    """
    shares = solution_errors.by_layer(table)
    n, n_solved = (t["doc_id"].nunique() for t in (table, table[table["solved"]]))
    if not n_solved:
        raise UserError(f"the whole model solves none of {n} problems, so that no layer's removal can break any")
    if shares.empty:
        raise UserError("no condition removes a single layer; give the result of a layer sweep")
    named = f"First mistake without one layer, in the {n_solved} of {n} problems that the whole model solves"
    with theme():
        fig = figure(named if title is None else title, height=3.0, width=WIDTH)
        ax = fig.subplots()
        floor = np.zeros(len(shares))
        handles = []
        for kind, colour in zip((solution_errors.RIGHT, *solution_errors.MISTAKES), (EMPTY, *PALETTE), strict=True):
            ax.bar(shares.index, shares[kind], 0.92, bottom=floor, color=colour, lw=0)
            handles.append(Patch(facecolor=colour, label="still right" if kind == solution_errors.RIGHT else kind))
            floor += shares[kind].to_numpy()
        ax.set(xlabel="removed layer", ylabel="share of these problems", ylim=(0, 1))
        ax.set_xlim(shares.index.min() - 0.6, shares.index.max() + 0.6)
        ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=12))
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        legend(fig, handles, ncols=5)
    return fig
