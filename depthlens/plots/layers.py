"""What each removed layer costs: profiles, protocols side by side, shares of the losses, open book.

See `depthlens.plots` for what all figures have in common.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import AsinhNorm

from depthlens.analysis import depth
from depthlens.analysis.results import Result
from depthlens.analysis.scores import layer_scores
from depthlens.analysis.stats import ALPHA, GROUP, loss_unit
from depthlens.errors import UserError
from depthlens.look import GREY, INK, PALETTE
from depthlens.metrics import ANSWER_LOGPROB
from depthlens.plots import panels, theme
from depthlens.plots.effects import (
    FIELDS,
    Names,
    labels,
    model_dims,
    sweep_table,
    sweep_title,
    varying,
)
from depthlens.plots.panels import MAX_OVERLAID, PROVEN, cells, lines, stems, tidy
from depthlens.plots.theme import SMALL, Plot, figure, themed

SHARES = "share of the row's summed loss (red: loss)"
CRITICAL_LAYER = f"critical layer (loss, {PROVEN})"
_THIRDS: dict[str, Any] = {"color": INK, "lw": 0.8, "ls": (0, (2, 2))}
_LAYER_SITES, _FIX, _SEVERAL = ("layer", "attn", "mlp"), "sweep layers, attn or mlp", "one layer or part of it"


@themed
def depth_profile(
    result: Result, *, tasks: Names = None, metrics: Names = None, value: str = "value", title: str | None = None
) -> Plot:
    """Score by removed layer, with the 95% interval of the difference from baseline as a band.

    Dashed lines are baselines, dotted lines chance, filled markers critical layers. Fewer than six documents have
    a band only where scores are 0 or 1. Up to four series share a panel (models, tasks, metrics, kinds of ablation),
    more are drawn side by side; so are different units.

    Args:
        result: Of a sweep over layers, their attention or their MLPs; other conditions are left out.
        tasks: The task or tasks to draw; all by default.
        metrics: The metric or metrics to draw; all by default.
        value: ``"value"`` draws the score, ``"delta"`` its difference from baseline.
        title: Above the figure; by default the model, what was removed, and the number of documents.

    Raises:
        UserError: an unknown task, metric or value, or no condition that is a single layer.
    """
    if value not in ("value", "delta"):
        raise UserError(f"value {value!r} is not known; allowed: 'value', 'delta'")
    table = sweep_table(result, tasks, metrics, _LAYER_SITES, _FIX)
    default = sweep_title(table, _SEVERAL)
    if value == "delta":
        span = table["greatest"] - table["least"]
        unit = "change of " + table["unit"] + " from baseline"
        table = table.assign(baseline=0.0, chance=np.nan, least=-span, greatest=span, unit=unit)
    fields = varying(table)
    for across in ([], ["model", "task"], GROUP, FIELDS):
        inner = [f for f in fields if f not in across]
        if labels(table, inner).nunique() <= MAX_OVERLAID or across is FIELDS:
            break
    groups = [rows for _, rows in table.groupby(["unit", *across], sort=False)]
    outer = [f for f in fields if f in across]
    if len(groups) > 1 and not outer:  # split by unit alone: the metric names the panels
        outer, inner = ["metric"], [f for f in inner if f != "metric"]
    names = list(labels(table, inner).unique()) if inner else [""]
    goes = table["mode"].isin(("removed", "mean")).all()
    axis = "removed layer" if goes else "layer"  # one that is rounded, disturbed or run twice stays
    fig, axes = panels.facets(title, default, len(groups), axis)
    for ax, rows in zip(axes, groups, strict=True):
        rows = rows.assign(series=labels(rows, inner) if inner else "", x=rows["layer"], y=rows["baseline"])
        for column, change in (("y", "bounded"), ("low", "ci_low"), ("high", "ci_high")):
            rows[column] = (rows["baseline"] + rows[change]).clip(rows["least"], rows["greatest"])
        lines(ax, rows, names, shown=CRITICAL_LAYER, gaps=True)
        for (name, idle, baseline), _ in rows.groupby(["series", "idle", "baseline"], sort=False):
            panels.level(ax, baseline, "baseline", color=GREY if idle else PALETTE[names.index(name)])
        for chance in rows["chance"].unique():
            panels.level(ax, chance, "chance")
        panels.layer_axis(ax, _n_layers(result, rows))
        panels.score_axis(ax, rows["unit"].iloc[0])
        if len(groups) > 1:
            panels.panel_title(ax, labels(rows, outer).iloc[0])
    return fig


@themed
def protocol_comparison(
    result: Result, *, tasks: Names = None, metrics: Names = None, title: str | None = None
) -> Plot:
    """One row per task and metric, one column per removed layer: which layers matter under which protocol.

    Colour is the difference from baseline: white none, red worse, blue better. A dot is a critical layer, a
    ring a significant gain. A row at chance shows no differences, because there are none to judge.

    Args:
        result: Of a sweep over layers, their attention or their MLPs; other conditions are left out.
        tasks: The task or tasks to draw; all by default.
        metrics: The metric or metrics to draw; all by default.
        title: Above the figure; by default the model, what was removed, and the number of documents.

    Raises:
        UserError: an unknown task or metric, no condition that is a single layer, or several units.
    """
    table = sweep_table(result, tasks, metrics, _LAYER_SITES, _FIX)
    if len(units := list(table["unit"].unique())) > 1:
        raise UserError(f"one colour scale cannot show {', '.join(units)} together; choose with metrics=[...]")
    rows = table.groupby(FIELDS, sort=False)
    judged = table["bounded"].where(table["idle"] == "")
    table = table.assign(x=table["layer"], y=rows.ngroup(), value=judged)
    limit = max(0.1, theme.round_up(float(judged.abs().max()))) if judged.notna().any() else 1.0
    names = list(labels(table.drop_duplicates("y"), varying(table)))
    fig = figure(title, sweep_title(table, _SEVERAL), height=0.34 * len(names) + 1.6)
    ax = fig.subplots()
    cmap = "RdBu" if table["worse"].iloc[0] < 0 else "RdBu_r"
    columns = range(_n_layers(result, table))
    mesh = cells(ax, table, (-limit, limit), rows=names, columns=columns, cmap=cmap, shown=CRITICAL_LAYER)
    for y, baseline in rows["baseline"].first().reset_index(drop=True).items():
        ax.text(len(columns) - 0.2, y, f"baseline {baseline:.2f}", va="center", fontsize=SMALL)
    ax.set_xlabel("removed layer")
    panels.colour_bar(mesh, ax, f"change of {units[0]} from baseline")
    return fig


@themed
def loss_shares(result: Result, *, title: str | None = None) -> Plot:
    """Where in depth the losses are: one row a task and metric, one column a removed layer; each row adds up to one.

    Colour is the share of the row's summed loss (red; blue where a removal helps), the diamond its centre of mass with
    a 95% interval. Shares make metrics of any unit comparable. They do not show how much is lost in all.

    Args:
        result: A layer sweep.
        title: Above the figure.

    Raises:
        UserError: the result has no single-layer conditions.
    """
    rows, centres = layer_scores(result), depth.centre_of_mass(result).table
    n_layers, n = rows[0].n_layers, theme.counts(len(p.documents) for p in rows)
    parts = []
    for y, p in enumerate(rows):
        share = np.nan if p.unplaced else p.loss.mean(0) / p.loss.mean(0).sum()
        idle = p.unplaced and f"{p.unplaced}: cannot judge"
        parts.append(
            pd.DataFrame({"task": p.task, "metric": p.metric, "layer": p.layers, "value": share, "idle": idle, "y": y})
        )
    table = pd.concat(parts).assign(x=lambda t: t["layer"])
    default = f"{rows[0].model}: share of each row's losses, n = {n} documents"
    fig = figure(title, default, height=0.4 * len(rows) + 1.6)
    ax = fig.subplots()
    names = [p.label.replace(" ", "\n", 1) for p in rows]
    limit = max(float(np.nanmax(np.abs(table["value"]), initial=0)), 3 / n_layers)
    colours = share_colours(limit, n_layers)
    mesh = cells(ax, table, colours, rows=names, columns=range(n_layers), cmap="RdBu_r")
    ax.set_xlabel("removed layer")
    panels.colour_bar(mesh, ax, SHARES, ticks=share_ticks(limit), format="%g")
    places = (n_layers - 1) * centres[["centre", "ci_low", "ci_high"]].to_numpy(dtype=float)
    for row, (centre, *interval) in enumerate(places):
        if np.isnan(centre):
            continue
        for width, colour in ((3.5, "white"), (1.5, INK)):  # the line stands out from any cell
            ax.plot(interval, [row, row], color=colour, lw=width, solid_capstyle="butt")
        ax.plot(centre, row, "D", color=INK, mec="white", ms=6, gid="centre")
        panels.key(ax, "line", panels.CENTRE, lw=1.5, marker="D", mec="white", ms=6)
    for third in (1, 2):
        ax.axvline(np.ceil(third * n_layers / 3) - 0.5, **_THIRDS)
    panels.key(ax, "line", "thirds of the depth", **_THIRDS)
    return fig


def share_colours(limit: float, n_layers: int) -> AsinhNorm:
    """Colours of shares of the losses: even up to an even share, and by the logarithm beyond.

    One early layer can hold nearly everything, and is not to hide the others.
    """
    return AsinhNorm(1 / n_layers, -limit, limit)


def share_ticks(limit: float) -> list[float]:
    """Shares for the scale of such colours."""
    return [t for t in (-1.0, -0.3, -0.1, -0.03, 0.0, 0.03, 0.1, 0.3, 1.0) if abs(t) <= limit]


@themed
def open_book_losses(versus: pd.DataFrame, *, unit: str = loss_unit(ANSWER_LOGPROB), title: str | None = None) -> Plot:
    """Loss in the open-book task minus loss in the closed-book one, by layer.

    Bars are 95% intervals; a marker is filled where the difference is proven.

    Args:
        versus: From `depthlens.analysis.open_book_losses`.
        unit: Of the losses.
        title: Above the figure.

    Raises:
        UserError: no rows, or rows that are of no single layer.
    """
    if versus.empty or versus["layer"].isna().any():
        raise UserError("the table has rows that are of no single layer, or none; give that of a layer sweep")
    table = tidy(versus.sort_values("layer"), "layer", "difference")
    names = [f"costs more in the {book}-book task" for book in ("open", "closed")]
    table = table.assign(series=panels.by_sign(table, names), shown=table["p_adjusted"] < ALPHA)
    fig = figure(title, f"Loss in the open-book minus loss in the closed-book task, n = {table['n'].max()}", height=2.9)
    ax = fig.subplots()
    stems(ax, table, names)
    panels.layer_axis(ax, int(table["layer"].max()) + 1)
    ax.set(xlabel="layer", ylabel=f"open minus closed\n({unit})")
    return fig


def _n_layers(result: Result, table: pd.DataFrame) -> int:
    """Layers of the largest model: those that it has, or up to the last one of a table."""
    known = [model_dims(result.record, model).get("n_layers", 0) for model in table["model"].unique()]
    return max(*known, int(table["layer"].max()) + 1)
