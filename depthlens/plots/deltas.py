"""Figures of what training changed: weights by matrix and layer, activations by layer.

See `depthlens.plots` for what all figures have in common, `depthlens.experiments.distillation` for the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from depthlens.errors import UserError, unknown
from depthlens.plots.theme import DOTTED, EMPTY, GREY, INK, MARKERS, PALETTE, SCORES, figure, legend, round_up, theme

_WEIGHTS = {"relative": "size of the change relative to the weights", "cosine": "1 − cosine of old and new weights"}
_ACTIVATIONS = {"relative": "size of the difference\nrelative to the base's", "cosine": "cosine of base and donor"}


def weight_deltas(deltas: pd.DataFrame, *, value: str = "relative", title: str | None = None) -> Figure:
    """How much training changed each weight matrix: a map of matrices by layer, with what lies outside the layers.

    Args:
        deltas: From `depthlens.experiments.distillation.weight_deltas`: layer (missing outside the layers), matrix,
            relative, cosine.
        value: ``relative``, or ``cosine`` (drawn as 1 - cosine). A value that is missing or infinite is left grey.
        title: Above the figure.

    Raises:
        UserError: an unknown value, a missing column, or no matrix in a layer.
    """
    if value not in _WEIGHTS:
        raise unknown("value", value, _WEIGHTS)
    _check(deltas, ("layer", "matrix", value))
    shown = deltas[value].astype(float).replace(np.inf, np.nan)
    shown = deltas.assign(shown=shown if value == "relative" else 1 - shown)
    shown["matrix"] = shown["matrix"].str.removesuffix(".weight")
    inside, outside = shown[shown["layer"].notna()], shown[shown["layer"].isna()]
    if inside.empty:
        raise UserError("the table has no matrix in a layer; give the weight deltas of a pair")
    names, n_layers = list(dict.fromkeys(inside["matrix"])), int(inside["layer"].max()) + 1
    grid = inside.pivot(index="matrix", columns="layer", values="shown").reindex(index=names, columns=range(n_layers))
    # cosines of equal weights differ from 1 by rounding
    top = round_up(float(shown["shown"].max())) if shown["shown"].max() > 1e-9 else 1.0
    look = {"cmap": SCORES, "vmin": 0, "vmax": top, "edgecolors": "white", "linewidth": 0.4}
    with theme():
        fig = figure(title or "Change of the weights", height=0.24 * max(len(names), len(outside)) + 1.5)
        ratios = [n_layers, max(1.0, n_layers / 30)] if len(outside) else [1]
        axes = fig.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
        mesh = axes[0].pcolormesh(np.ma.masked_invalid(grid.to_numpy(dtype=float)), gid="weights", **look)
        _name_rows(axes[0], names)
        ticks = [int(t) for t in ticker.MaxNLocator(integer=True, nbins=12).tick_values(0, n_layers - 1)]
        ticks = [t for t in ticks if 0 <= t < n_layers]
        axes[0].set_xticks([t + 0.5 for t in ticks], [str(t) for t in ticks])
        axes[0].set_xlabel("layer")
        if len(outside):
            cells = np.ma.masked_invalid(outside["shown"].to_numpy(dtype=float)[:, None])
            axes[1].pcolormesh(cells, gid="outside", **look)
            _name_rows(axes[1], list(outside["matrix"]))
            axes[1].yaxis.tick_right()
            axes[1].set_xticks([])
            axes[1].set_ylim(len(names), 0)  # cells as high as those of the layers
        place = {"orientation": "horizontal", "aspect": 45, "fraction": 0.06, "pad": 0.02}
        bar = fig.colorbar(mesh, ax=list(axes), label=_WEIGHTS[value], **place)
        bar.outline.set_visible(False)
        for ax in axes:
            ax.set_facecolor(EMPTY if ax is axes[0] else "none")
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
    return fig


def activation_deltas(deltas: pd.DataFrame, *, title: str | None = None) -> Figure:
    """How far two models' activations are apart by layer: size of the difference and cosine, one line a part.

    Args:
        deltas: From `depthlens.experiments.distillation.activation_deltas`: layer, part, relative and cosine with their
            ``_low`` and ``_high``.
        title: Above the figure; by default with the number of prompts, where the table has it (``n``).

    Raises:
        UserError: a missing column, no rows, or more parts than can be told apart.
    """
    measures = [f"{m}{end}" for m in _ACTIVATIONS for end in ("", "_low", "_high")]
    _check(deltas, ("layer", "part", *measures))
    parts = list(dict.fromkeys(deltas["part"]))
    if len(parts) > len(PALETTE):
        raise UserError(f"{len(parts)} parts; a panel shows up to {len(PALETTE)}: {', '.join(map(str, parts))}")
    count = f", n = {deltas['n'].max()} shared prompts" if "n" in deltas else ""
    with theme():
        fig = figure(title or f"Change of the activations{count}", height=3.1)
        for ax, (measure, label) in zip(fig.subplots(1, 2), _ACTIVATIONS.items(), strict=True):
            for style, part in enumerate(parts):
                rows = deltas[deltas["part"] == part].sort_values("layer")
                layer, *y = (rows[c].to_numpy(dtype=float) for c in ("layer", *(m for m in measures if measure in m)))
                colour = PALETTE[style]
                ax.fill_between(layer, y[1], y[2], color=colour, alpha=0.16, lw=0)
                line = {"lw": 1.2, "marker": MARKERS[style], "ms": 3.5, "mfc": "white", "mew": 0.8}
                ax.plot(layer, y[0], color=colour, gid=measure, **line)
            same = {"relative": 0, "cosine": 1}[measure]  # where nothing has changed
            ax.axhline(same, color=GREY, lw=0.8, ls=DOTTED, zorder=1)
            ax.set(xlabel="layer", ylabel=label, xlim=(-0.7, deltas["layer"].max() + 0.7))
            ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=7))
            ax.spines[["top", "right"]].set_visible(False)
        handles: list[Any] = [
            Line2D([], [], color=PALETTE[i], marker=MARKERS[i], ms=5, mfc="white", label=str(part))
            for i, part in enumerate(parts)
        ]
        handles.append(Line2D([], [], color=GREY, lw=0.8, ls=DOTTED, label="no change"))
        legend(fig, [*handles, Patch(facecolor=INK, alpha=0.2, lw=0, label="95% interval")])
    return fig


def _name_rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks([i + 0.5 for i in range(len(names))], names)
    ax.set_ylim(len(names), 0)
    for text in ax.get_yticklabels():
        text.set_parse_math(False)


def _check(table: pd.DataFrame, wanted: Sequence[str]) -> None:
    if missing := [c for c in wanted if c not in table.columns]:
        raise UserError(f"the table lacks column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise UserError("the table has no rows; give some deltas")
