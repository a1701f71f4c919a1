"""Figures of what training changed: weights by matrix and layer, activations by layer.

See `depthlens.plots` for what all figures have in common, `depthlens.experiments.distillation` for the numbers.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from depthlens.errors import UserError, unknown
from depthlens.look import PALETTE
from depthlens.plots import panels
from depthlens.plots.theme import Plot, figure, round_up, themed, with_legend

_WEIGHTS = {"relative": "size of the change relative to the weights", "cosine": "1 − cosine of old and new weights"}
_ACTIVATIONS = {"relative": "size of the difference\nrelative to the base's", "cosine": "cosine of base and donor"}
_SAME = {"relative": 0, "cosine": 1}  # where nothing has changed
_FIX = "give some deltas"


@themed
def weight_deltas(deltas: pd.DataFrame, *, value: str = "relative", title: str | None = None) -> Plot:
    """How much training changed each weight matrix: a map of matrices by layer, with those outside the layers beside.

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
    panels.require(deltas, ("layer", "matrix", value), _FIX)
    change = deltas[value].astype(float).replace(np.inf, np.nan)
    table = deltas.assign(
        change=change if value == "relative" else 1 - change, matrix=deltas["matrix"].str.removesuffix(".weight")
    )
    inside, outside = table[table["layer"].notna()], table[table["layer"].isna()]
    if inside.empty:
        raise UserError("the table has no matrix in a layer; give the weight deltas of a pair")
    names, n_layers = list(dict.fromkeys(inside["matrix"])), int(inside["layer"].max()) + 1
    grid = inside.pivot(index="matrix", columns="layer", values="change").reindex(index=names, columns=range(n_layers))
    # cosines of equal weights differ from 1 by rounding
    limits = 0, round_up(float(table["change"].max())) if table["change"].max() > 1e-9 else 1.0
    fig = figure(title, "Change of the weights", height=0.24 * max(len(names), len(outside)) + 1.5)
    ratios = [n_layers, max(1.0, n_layers / 30)] if len(outside) else [1]
    axes = fig.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
    mesh = panels.cells(axes[0], grid.to_numpy(dtype=float), limits, gid="weights")
    panels.name_rows(axes[0], names)
    axes[0].set_xlabel("layer")
    if len(outside):
        panels.cells(axes[1], outside[["change"]].to_numpy(dtype=float), limits, gid="outside", empty="none")
        panels.name_rows(axes[1], list(outside["matrix"]))
        axes[1].yaxis.tick_right()
        axes[1].set_xticks([])
        axes[1].tick_params(length=0)
        axes[1].set_ylim(len(names) - 0.5, -0.5)  # cells as high as those of the layers
    panels.colour_bar(mesh, axes, _WEIGHTS[value])
    return fig


@themed
def activation_deltas(deltas: pd.DataFrame, *, title: str | None = None) -> Plot:
    """How far two models' activations are apart by layer: size of the difference and cosine, one line a part.

    Args:
        deltas: From `depthlens.experiments.distillation.activation_deltas`: layer, part, relative and cosine with their
            ``_low`` and ``_high``.
        title: Above the figure; by default with the number of prompts, where the table has it (``n``).

    Raises:
        UserError: a missing column, no rows, or more parts than there are colours.
    """
    columns = {measure: (measure, f"{measure}_low", f"{measure}_high") for measure in _ACTIVATIONS}
    panels.require(deltas, ("layer", "part", *sum(columns.values(), ())), _FIX)
    parts = list(dict.fromkeys(deltas["part"]))
    if len(parts) > len(PALETTE):
        raise UserError(f"{len(parts)} parts; a panel shows up to {len(PALETTE)}: {', '.join(map(str, parts))}")
    count = f", n = {deltas['n'].max()} shared prompts" if "n" in deltas else ""
    fig = figure(title, f"Change of the activations{count}", height=3.1)
    for ax, (measure, label) in zip(fig.subplots(1, 2), _ACTIVATIONS.items(), strict=True):
        for style, part in enumerate(parts):
            rows = deltas[deltas["part"] == part].sort_values("layer")
            x, *values = panels.numbers(rows, "layer", *columns[measure])
            panels.curve(ax, x, values, style, gid=measure)
        panels.level(ax, _SAME[measure], "no change")
        panels.layer_axis(ax, int(deltas["layer"].max()) + 1)
        ax.set(xlabel="layer", ylabel=label)
    return with_legend(fig, [*panels.series_keys(parts), *panels.level_keys(fig), panels.band_key()])
