"""Layer x head maps of losses and scores.

Changes from baseline are coloured from red (worse) over white (none) to blue (better), scores from 0 to 1 from light
to dark; both scales are perceptually uniform, and colour-blind readers and grey prints distinguish them (seaborn's
vlag and mako). One scale holds for all panels of a unit. It ends at the largest value, or earlier where a few heads
are far beyond the rest, which would otherwise look white; the figure then says so. Heads are named as in conditions:
L9.H6 is head 6 of layer 9.

See `depthlens.plots` for what all figures have in common.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from depthlens import arguments
from depthlens.ablations import INDEXED
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.results import Result
from depthlens.errors import UserError
from depthlens.look import EMPTY, GREY, INK, PALE
from depthlens.plots import panels, theme
from depthlens.plots.effects import (
    FIELDS,
    Names,
    group_size,
    labels,
    model_dims,
    sweep_table,
    sweep_title,
    varying,
)
from depthlens.plots.panels import PROVEN, cells
from depthlens.plots.theme import SMALL, Plot, figure, themed

LOSS_IS_NEGATIVE, LOSS_IS_POSITIVE = "vlag_r", "vlag"  # red to blue, blue to red
CRITICAL_HEAD = f"critical head (loss, {PROVEN})"
MAX_TOP = 20  # more names do not fit above a map
_COUNTS = {"head": "n_heads", "KV group": "n_kv_heads", "expert": "n_experts"}
_FAR = 2.0  # times the 99th percentile: a largest value from here on does not end the scale


@themed
def head_map(
    scores: Result | HeadScores | Sequence[HeadScores],
    *,
    tasks: Names = None,
    metrics: Names = None,
    top: int | None = None,
    title: str | None = None,
) -> Plot:
    """Layer x head: what removing each head, or group of heads that share keys and values, changes; or its score.

    A dot is a critical head, a ring a significant gain. A task at chance shows no differences, because there are none
    to judge. Several tasks, metrics or scores are drawn as panels with one scale a unit.

    Args:
        scores: A head sweep (conditions that are not one head or KV group are left out), or scores of heads.
        tasks: The task or tasks of a sweep to draw; all by default.
        metrics: The metric or metrics of a sweep to draw; all by default.
        top: Frame so many heads with the largest loss or score in each panel, and name them above it, the largest
            first; at most 20.
        title: Above the figure; by default the model, what was done, and the number of documents.

    Raises:
        UserError: an unknown task or metric, no condition that is a single head, scores of no heads, or no number of
            names.
    """
    if isinstance(scores, Result):
        maps, default = _of_result(scores, tasks, metrics)
    else:
        if tasks is not None or metrics is not None:
            raise UserError("tasks= and metrics= choose within a Result; give the scores themselves to draw fewer")
        maps, default = _of_scores([scores] if isinstance(scores, HeadScores | str) else scores)
    if top is not None:
        arguments.whole("top", top, 1, of=" of heads")
        top = min(top, MAX_TOP)
    table = pd.concat(maps, ignore_index=True)
    n_layers, n_heads = table["layers"].max(), table["heads"].max()
    columns = 1 if len(maps) == 1 or n_layers > 12 else 2
    wide = min(theme.WIDTH, max(4.8, columns * (0.45 * n_layers + 0.9))) / columns - 0.65  # inches, as is the height
    n_rows = math.ceil(len(maps) / columns)
    high = min(max(n_heads * min(wide / n_layers, 0.22), 1.1), max(1.2, 8.2 / n_rows - 1.2))
    fig = figure(title, default, height=n_rows * (high + 1.4) + 1.0, width=columns * (wide + 0.65))
    for ax, rows in zip(panels.grid(fig, len(maps), columns, "layer"), maps, strict=True):
        of_unit = table[(table["unit"] == rows["unit"].iloc[0]) & (table["worse"] == rows["worse"].iloc[0])]
        limits, label, extend = _scale(of_unit)
        named = _top(rows, top)
        mesh = _draw(ax, rows, limits, named, (72 * wide, 72 * high))
        panels.panel_title(ax, _title(rows, named), fontsize=SMALL)
        panels.colour_bar(mesh, ax, textwrap.fill(label, int(14 * wide)), extend=extend, aspect=8 * wide)
    return fig


def _of_result(result: Result, tasks: Names, metrics: Names) -> tuple[list[pd.DataFrame], str]:
    """A table for each panel of a head sweep: model, task, metric and kind of removal; and what all have in common."""
    table = sweep_table(result, tasks, metrics, tuple(INDEXED), "sweep heads, kv or experts")
    method = result.record.get("method", "exact").replace("_", " ")
    how = "" if method == "exact" else f" (estimated by {method})"
    title = sweep_title(table, f"one {' or '.join(table['site'].unique())}", how)
    fields, maps = varying(table), []
    for i, (_, rows) in enumerate(table.groupby(FIELDS, sort=False)):
        first = rows.iloc[0]
        dims = model_dims(result.record, first["model"])
        maps.append(
            rows.assign(
                map=i,
                name=labels(rows, fields) if fields else "",
                head=rows["index"],
                value=rows["bounded"].where(rows["idle"] == ""),
                unit=f"change of {first['unit']} from baseline",
                group=group_size(dims) if first["site"] == "head" else 1,
                layers=max(rows["layer"].max() + 1, dims.get("n_layers", 0)),
                heads=max([rows["index"].max() + 1, *np.atleast_1d(dims.get(_COUNTS[first["site"]], 0))]),
            )
        )
    return maps, title


def _of_scores(scores: Sequence[HeadScores]) -> tuple[list[pd.DataFrame], str]:
    """A table for each score; scores that were tested against 0, or that pass below it, are losses."""
    if not scores:
        raise UserError("no scores; give at least one")
    maps = []
    for i, s in enumerate(scores):
        finite = s.values[np.isfinite(s.values)]
        if not len(finite):
            raise UserError(f"{s.name}: no head has a score; give scores of at least one")
        worse = int(s.critical is not None or finite.min() < 0 or finite.max() > 1)
        unit = (s.name if len(scores) == 1 else "loss" if worse else "score") + (f" ({s.unit})" if s.unit else "")
        model = s.record.get("model", {})
        maps.append(
            s.frame.assign(
                map=i,
                series=s.name,
                name=s.name if len(scores) > 1 else "",
                shown=False if s.critical is None else s.critical.ravel(),
                gain=False,
                idle="",
                site="head",
                baseline=np.nan,
                unit=unit,
                worse=worse,
                group=group_size(model.get("dims", {})),
                layers=s.values.shape[0],
                heads=s.values.shape[1],
            )
        )
    models = filter(None, dict.fromkeys(s.record.get("model", {}).get("name", "") for s in scores))
    names = list(dict.fromkeys(s.name for s in scores))
    what = names[0] if len(names) == 1 else "scores of heads"
    return maps, f"{', '.join(models)}: {what}, n = {theme.counts(s.n for s in scores)}".removeprefix(": ")


def _top(rows: pd.DataFrame, k: int | None) -> pd.DataFrame:
    """The k heads with the largest loss or score above 0, the largest first."""
    size = rows["value"] * (rows["worse"] if rows["worse"].iloc[0] else 1)
    return rows.loc[size[size > 0].sort_values(ascending=False, kind="stable").index[: k or 0]]


def _title(rows: pd.DataFrame, named: pd.DataFrame) -> str:
    """What is above a map: its name, the score of the whole model, and the heads that are framed."""
    first = rows.iloc[0]
    baseline = f"baseline {first['baseline']:.2f}".replace("-", "−") if math.isfinite(first["baseline"]) else ""
    heads = ", ".join(name.partition("@")[0] for name in named["condition"])
    lines = (", ".join(filter(None, (first["name"], baseline))), f"largest: {heads}" if heads else "")
    return "\n".join(filter(None, lines))


def _scale(table: pd.DataFrame) -> tuple[tuple[float, float], str, str]:
    """One scale for all panels of a unit: its ends, around 0 for changes; its label; and at which ends it is cut."""
    values = table["value"].dropna().to_numpy() if table["value"].notna().any() else np.zeros(1)
    unit, worse, size = table["unit"].iloc[0], table["worse"].iloc[0], np.abs(values)
    smallest = 0.1 if "accuracy" in unit and worse else 0.0  # a document or two must not fill the scale
    usual, far = float(np.quantile(size, 0.99)), float(values[np.argmax(size)])
    cut = bool(worse) and abs(far) > _FAR * usual
    limit = max(theme.round_up(max(usual, abs(far) / 3) if cut else abs(far)), smallest) or 1.0
    label = f"{unit}; the largest is {far:.2g}".replace("-", "−") if cut else unit
    extend = ("neither", "min", "max", "both")[(values < -limit).any() + 2 * (values > limit).any()]
    return (-limit if worse else 0.0, limit), label, extend


def _draw(
    ax: Axes, rows: pd.DataFrame, limits: tuple[float, float], named: pd.DataFrame, size: tuple[float, float]
) -> Any:
    """Cells, marks and frames of a map of so many points."""
    first = rows.iloc[0]
    layers, heads = range(first["layers"]), range(first["heads"])
    wide, high = size[0] / len(layers), size[1] / len(heads)  # points: size of a cell
    whole = rows["value"].notna().sum() == len(layers) * len(heads)
    if not whole and not first["idle"]:  # some were not removed
        panels.hatch(ax, heads, layers)
        panels.key(ax, "area", "not measured", facecolor=EMPTY, edgecolor=PALE, hatch="////", alpha=1)
    edges = "white" if min(wide, high) > 7 and not first["idle"] else "none"
    many = (rows["shown"] | rows["gain"]).sum() > 0.2 * len(layers) * len(heads)  # small, so that colours are seen
    mark = min(4.0, max(1.4, 0.5 * min(wide, high))) * (0.6 if many else 1)
    cmap = {-1: LOSS_IS_NEGATIVE, 0: theme.SCORES, 1: LOSS_IS_POSITIVE}[first["worse"]]
    shown = CRITICAL_HEAD.replace("head", "expert") if first["site"] == "expert" else CRITICAL_HEAD
    table = rows.assign(x=rows["layer"], y=rows["head"])
    mesh = cells(ax, table, limits, rows=heads, columns=layers, cmap=cmap, edgecolors=edges, mark=mark, shown=shown)
    for border in range(first["group"], len(heads), first["group"]) if first["group"] > 1 else ():
        ax.axhline(border - 0.5, color=GREY, lw=0.5, gid="group")
        panels.key(ax, "line", "between KV groups", color=GREY, lw=0.8)
    for head in named.itertuples():
        frame = Rectangle((head.layer - 0.5, head.head - 0.5), 1, 1, fc="none", ec=INK, lw=1, zorder=3, gid="top")
        ax.add_patch(frame).set_clip_on(False)
        panels.key(ax, "mark", "the largest, named above the map", marker="s", ms=7, mfc="none")
    ax.set(ylabel=first["site"])
    step = 1 if high > 10 else first["group"] * 2 ** max(0, math.ceil(math.log2(11 / high / first["group"])))
    ax.set_yticks(range(0, len(heads), step))
    return mesh
