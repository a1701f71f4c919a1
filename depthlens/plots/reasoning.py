"""Figures of reasoning in depth: where in depth each task's losses are, and what goes wrong first in solutions.

See `depthlens.plots` for what all figures have in common.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from depthlens.analysis import depth, solution_errors
from depthlens.analysis.layer_profiles import profiles
from depthlens.analysis.results import Result
from depthlens.errors import UserError
from depthlens.plots import panels
from depthlens.plots.theme import EMPTY, INK, PALETTE, counts, figure, legend, theme

_CAP = 3  # times an even share: where the colours end, since one early layer can hold nearly everything
_THIRDS: dict[str, Any] = {"color": INK, "lw": 0.8, "ls": (0, (2, 2))}


def loss_shares(result: Result, *, title: str | None = None, seed: int = 0) -> Figure:
    """Where in depth the losses are: one row a task and metric, one column a removed layer; each row adds up to one.

    Colour is the share of the row's summed loss (red; blue where a removal helps), the diamond its centre of mass with
    a 95% interval. Shares make metrics of any unit comparable. They do not show how much is lost in all.

    Args:
        result: A layer sweep.
        title: Above the figure.
        seed: Of the bootstrap.

    Raises:
        UserError: the result has no single-layer conditions.
    """
    rows, centres = profiles(result), depth.centre_of_mass(result, seed=seed).table
    n_layers, n = rows[0].n_layers, counts(len(p.documents) for p in rows)
    grid = np.full((len(rows), n_layers), np.nan)
    for row, profile in enumerate(rows):
        if not profile.unplaced:
            grid[row, profile.layers] = profile.loss.mean(0) / profile.loss.mean(0).sum()
    with theme():
        default = f"{rows[0].model}: share of each row's losses, n = {n} documents"
        fig = figure(title, default, height=0.4 * len(rows) + 1.6)
        ax = fig.subplots()
        limit = _CAP / n_layers
        mesh = panels.cells(ax, grid, (-limit, limit), cmap="RdBu_r", gid="shares")
        places = (n_layers - 1) * centres[["centre", "ci_low", "ci_high"]].to_numpy(dtype=float)
        for row, (profile, (centre, *interval)) in enumerate(zip(rows, places, strict=True)):
            if profile.unplaced:
                panels.hatch(ax, row - 0.5, 1, n_layers, f"{profile.unplaced}: cannot judge")
                continue
            for width, colour in ((3.5, "white"), (1.5, INK)):  # the line stands out from any cell
                ax.plot(interval, [row, row], color=colour, lw=width, solid_capstyle="butt")
            ax.plot(centre, row, "D", color=INK, mec="white", ms=6, gid="centre")
        for third in (1, 2):
            ax.axvline(np.ceil(third * n_layers / 3) - 0.5, **_THIRDS)
        panels.name_rows(ax, [p.label.replace(" ", "\n", 1) for p in rows])
        ax.set_xlabel("removed layer")
        panels.colour_bar(mesh, ax, "share of the row's summed loss", extend="both")
        keys = [panels.line_key("thirds of the depth", **_THIRDS)]
        if not all(p.unplaced for p in rows):
            keys.append(panels.line_key("centre of mass, 95% interval", lw=1.5, marker="D", mec="white", ms=6))
        legend(fig, keys)
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
    default = f"First mistake without one layer, in the {n_solved} of {n} problems that the whole model solves"
    with theme():
        fig = figure(title, default, height=3.0)
        ax = fig.subplots()
        floor = np.zeros(len(shares))
        keys = []
        for kind, colour in zip((solution_errors.RIGHT, *solution_errors.MISTAKES), (EMPTY, *PALETTE), strict=True):
            ax.bar(shares.index, shares[kind], 0.92, bottom=floor, color=colour, lw=0)
            keys.append(Patch(facecolor=colour, label="still right" if kind == solution_errors.RIGHT else kind))
            floor += shares[kind].to_numpy()
        ax.set(xlabel="removed layer", ylabel="share of these problems", ylim=(0, 1))
        ax.set_xlim(shares.index.min() - 0.6, shares.index.max() + 0.6)
        panels.whole_numbers(ax.xaxis)
        legend(fig, keys, 5)
    return fig
