"""Figures of heads: maps of losses and scores, and what removing or keeping the first k of lists does.

**Maps.** Changes from baseline are coloured from red (worse) over white (none) to blue (better), scores from 0 to 1
from light to dark; both scales are perceptually uniform, and colour-blind readers and grey prints distinguish them
(seaborn's vlag and mako). One scale holds for all panels of a unit. It ends at the largest value, or earlier where a
few heads are far beyond the rest, which would otherwise look white; the figure then says so. Heads are named as in
conditions: L9.H6 is head 6 of layer 9.

See `depthlens.plots` for what all figures have in common; the numbers are those of `depthlens.experiments.head_curves`.
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
from depthlens.analysis.heads.curves import RemovalCurve
from depthlens.analysis.heads.scores import HeadScores
from depthlens.analysis.result.results import Result
from depthlens.look import EMPTY, INK, PALE
from depthlens.plots import panels, theme
from depthlens.plots.effects import FIELDS, axis_of, labels, model_dims, sweep_table, sweep_title, varying
from depthlens.plots.panels import PROVEN, RANDOM, cells, curves, idle_where, tidy
from depthlens.plots.theme import SMALL, figure, themed

LOSS_IS_NEGATIVE, LOSS_IS_POSITIVE = "vlag_r", "vlag"  # red to blue, blue to red
CRITICAL_HEAD = f"critical head (loss, {PROVEN})"
MAX_TOP = 20  # more names do not fit above a map
_COUNTS = {"head": "n_heads", "KV group": "n_kv_heads"}
OUTSIDE = "worse than every random draw"
_FAR = 2.0  # times the 99th percentile: a largest value from here on does not end the scale


@themed
def head_map(scores: Result | HeadScores, *, others: Sequence[HeadScores] = (), top: int | None = None) -> None:
    """Layer x head: what removing each head, or group of heads that share keys and values, changes; or its score.

    A dot is a critical head, a ring a significant gain. A task at chance shows no differences, because there are none
    to judge. Several tasks, metrics or scores are drawn as panels with one scale a unit.

    Args:
        scores: A head sweep (conditions that are not one head or KV group are left out), or scores of heads.
        others: More scores of heads, for panels beside that of the first.
        top: Frame so many heads with the largest loss or score in each panel, and name them above it, the largest
            first; at most 20.

    Raises:
        UserError: no condition that is a single head, or no number of names.

    Example:
        >>> figure = heads.select(metrics="acc").plot(top=2)
        >>> figure.table[["task", "condition", "value"]].shape
        (48, 3)
    """
    maps, default = _of_result(scores) if isinstance(scores, Result) else _of_scores([scores, *others])
    if top is not None:
        arguments.whole("top", top, 1, of=" of heads")
        top = min(top, MAX_TOP)
    table = pd.concat(maps, ignore_index=True)
    n_layers, n_heads = table["layers"].max(), table["heads"].max()
    columns = 1 if len(maps) == 1 or n_layers > 12 else 2
    wide = min(theme.WIDTH, max(4.8, columns * (0.45 * n_layers + 0.9))) / columns - 0.65  # inches, as is the height
    n_rows = math.ceil(len(maps) / columns)
    high = min(max(n_heads * min(wide / n_layers, 0.22), 1.1), max(1.2, 8.2 / n_rows - 1.2))
    figure(default, height=n_rows * (high + 1.4) + 1.0, width=columns * (wide + 0.65))
    axes = panels.grid(len(maps), columns, "layer")
    if ax := theme.DRAWN.get().into:
        wide, high = ax.bbox.width / ax.figure.dpi, ax.bbox.height / ax.figure.dpi
    for panel, rows in zip(axes, maps, strict=True):
        of_unit = table[(table["unit"] == rows["unit"].iloc[0]) & (table["worse"] == rows["worse"].iloc[0])]
        limits, label, extend = _scale(of_unit)
        named = _top(rows, top)
        mesh = _draw(panel, rows, limits, named, (72 * wide, 72 * high))
        largest = ", ".join(name.partition("@")[0] for name in named["condition"])
        lines = rows["name"].iloc[0], f"largest: {largest}" if largest else ""
        panels.panel_title(panel, "\n".join(filter(None, lines)), fontsize=SMALL)
        panels.colour_bar(mesh, panel, textwrap.fill(label, int(14 * wide)), extend=extend, aspect=8 * wide)


def _of_result(result: Result) -> tuple[list[pd.DataFrame], str]:
    """A table for each panel of a head sweep: task, metric and kind of removal; and what all have in common."""
    table = sweep_table(result, tuple(INDEXED), "sweep heads or kv")
    method = result.record.get("method", "exact").replace("_", " ")
    how = "" if method == "exact" else f" (estimated by {method})"
    title = sweep_title(table, f"one {' or '.join(table['site'].unique())}", how)
    fields = varying(table)
    baseline = "baseline " + table["baseline"].map("{:.2f}".format).str.replace("-", "−")
    table = table.assign(
        name=labels(table, fields) + ", " + baseline if fields else baseline,
        head=table["index"],
        value=table["bounded"].where(table["idle"] == ""),
        unit="change of " + table["unit"] + " from baseline",
    )
    parts = table.groupby(FIELDS, sort=False)
    return [_sized(rows, result.record, key[FIELDS.index("site")]) for key, rows in parts], title


def _of_scores(scores: Sequence[HeadScores]) -> tuple[list[pd.DataFrame], str]:
    """A table for each score; scores that were tested against 0, or that pass below it, are losses."""
    maps, models = [], []
    for s in scores:
        finite = s.values[np.isfinite(s.values)]
        worse = int(s.critical is not None or finite.min() < 0 or finite.max() > 1)
        unit = (s.name if len(scores) == 1 else "loss" if worse else "score") + (f" ({s.unit})" if s.unit else "")
        about = {"series": s.name, "name": s.name if len(scores) > 1 else "", "unit": unit, "worse": worse}
        about |= {"shown": s.frame["critical"].eq(True).fillna(False), "gain": False, "idle": ""}
        models.append(s.record.get("model", {}).get("name", ""))
        maps.append(_sized(s.frame.assign(**about), s.record, "head"))
    names = list(dict.fromkeys(s.name for s in scores))
    what = names[0] if len(names) == 1 else "scores of heads"
    title = f"{', '.join(filter(None, dict.fromkeys(models)))}: {what}, n = {theme.counts(s.n for s in scores)}"
    return maps, title.removeprefix(": ")


def _sized(rows: pd.DataFrame, record: dict[str, Any], site: str) -> pd.DataFrame:
    """The table of a panel with the numbers of layers and of heads in each."""
    dims = model_dims(record)
    heads = max([rows["head"].max() + 1, *np.atleast_1d(dims.get(_COUNTS[site], 0))])
    return rows.assign(site=site, layers=max(rows["layer"].max() + 1, dims.get("n_layers", 0)), heads=heads)


def _top(rows: pd.DataFrame, k: int | None) -> pd.DataFrame:
    """The k heads with the largest loss or score above 0, the largest first."""
    size = rows["value"] * (rows["worse"] if rows["worse"].iloc[0] else 1)
    return rows.loc[size[size > 0].sort_values(ascending=False, kind="stable").index[: k or 0]]


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
    table = rows.assign(x=rows["layer"], y=rows["head"])
    mesh = cells(
        ax, table, limits, rows=heads, columns=layers, cmap=cmap, edgecolors=edges, mark=mark, shown=CRITICAL_HEAD
    )
    for head in named.itertuples():
        frame = Rectangle((head.layer - 0.5, head.head - 0.5), 1, 1, fc="none", ec=INK, lw=1, zorder=3, gid="top")
        ax.add_patch(frame).set_clip_on(False)
        panels.key(ax, "mark", "the largest, named above the map", marker="s", ms=7, mfc="none")
    ax.set_ylabel(first["site"])
    panels.whole_numbers(ax.yaxis, int(size[1] / 14))
    return mesh


@themed
def removal_curve(curve: RemovalCurve) -> None:
    """Score by number of removed heads: one panel a task, one line a list, against random heads of the same layers.

    The shaded range holds all random draws of a list, the thin line is their mean. Markers are filled where the list is
    worse than every draw; the p-values above a panel are those of the rank test over the whole curve. Bars are 95%
    intervals of the score itself.

    Args:
        curve: From `depthlens.removal_curve`.

    Raises:
        UserError: more lists than there are colours.

    Example:
        >>> figure = curve.plot()
    """
    of_list = ["list", "task", "metric"]
    points = curve.points.merge(curve.band[[*of_list, "k", "low", "high"]], "left", on=[*of_list, "k"])
    points = points.merge(curve.tests[[*of_list, "at_chance", "higher_is_better"]], on=of_list)
    worse = points["value"] < points["low"], points["value"] > points["high"]
    outside = np.where(points["higher_is_better"], *worse) & ~points["at_chance"]
    table = tidy(points, "k", "value", shown=outside, idle=idle_where(points["at_chance"]))
    said = []
    for row, losses in zip(curve.result.baselines.itertuples(), curve.result.every_losses.values(), strict=True):
        tests = curve.tests[(curve.tests["task"] == row.task) & (curve.tests["metric"] == row.metric)]
        p_values = ", ".join(f"{test.list} p = {test.p_value:.2g}" for test in tests.itertuples())
        verdict = theme.CANNOT_JUDGE if tests["at_chance"].all() else f"against random: {p_values}"
        about = {"task": row.task, "metric": row.metric, "panel": f"{losses.label}\n{verdict}"}
        about |= axis_of(curve.result, losses)
        said.append(about | {"baseline": row.baseline, "chance": row.chance})
    of_panel = pd.DataFrame(said).drop(columns="n_layers")  # the x axis is of heads
    what = f"first k heads of a list removed, {curve.band['n_draws'].min()} random draws"
    look: dict[str, Any] = {"xlabel": "heads removed together", "each": 2.6, "aside": 0.08}
    look |= {"levels": ("baseline", "chance"), "shown": OUTSIDE, "random": "random heads of the same layers: all draws"}
    random = curve.band[curve.band["k"].isin(table["k"])]
    random = random.assign(series=random["list"] + RANDOM, x=random["k"], y=random["mean"])
    names = list(table["list"].unique())
    table = pd.concat([table.assign(series=table["list"]), random]).merge(of_panel)
    n = theme.counts(curve.result.baselines["n"])
    curves(f"{curve.result.model}: {what}, n = {n} documents", table, names, bars=True, **look)
