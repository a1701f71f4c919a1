"""Figures of a comparison of runs: losses over relative depth, differences by layer, and centres run by run.

See `depthlens.plots` for what all figures have in common. The numbers are those of
`depthlens.analysis.run_comparison.Comparison`. One figure is of one folder and one kind of part, and has a panel for
each task, metric and group of runs with equal settings. Of the metrics of a task, the one that stands for it is drawn,
and log-likelihoods; the tables have all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from depthlens.analysis import written_answers
from depthlens.analysis.run_comparison import ABOVE_FLOOR, CENTRE, KEY, Comparison
from depthlens.errors import UserError
from depthlens.metrics import LOGPROBS
from depthlens.plots import panels
from depthlens.plots.effects import named
from depthlens.plots.layers import CRITICAL_LAYER
from depthlens.plots.theme import Plot, counts, themed

SHARE, DEPTH = "share of score\nabove floor", "depth (layer / last layer)"


@themed
def run_profiles(comparison: Comparison, *, place: str = "", parts: str = "layers", title: str | None = None) -> Plot:
    """What removing each layer costs in every run, over relative depth: one panel a task, one line a run.

    Losses are shares of the score above the floor where the metric has one, else in its unit. Filled markers are
    critical layers, bands 95% intervals.

    Args:
        comparison: Of `depthlens.compare`, of up to four runs.
        place: Folder of the results below the runs.
        parts: Kind of part, such as ``layers`` or ``attn@mean``.
        title: Above the figure.

    Raises:
        UserError: more runs than there are colours, or nothing to draw.
    """
    table = comparison.profiles
    relative = table.groupby([*KEY, "group"])["share"].transform("count") > 0
    table = panels.tidy(table, "depth", "loss", series=table["run"], shown=table["critical"])
    for to, share in (("y", "share"), ("low", "share_low"), ("high", "share_high")):
        table[to] = table[share].where(relative, table[to])
    table = table.assign(idle=panels.idle_where(table["at_chance"]), unit=np.where(relative, SHARE, ""))
    fig, axes = _figure(comparison, table, place, parts, title, "loss by removed part", DEPTH, shown=CRITICAL_LAYER)
    places = comparison.centres[comparison.centres["measure"] == CENTRE]
    for ax, rows in axes:
        panels.level(ax, 0, "zero")
        own = rows[[*KEY, "run"]].drop_duplicates().merge(places)
        ends = own[["value", "ci_low", "ci_high"]].to_numpy(dtype=float)
        why = [f"{row.run} {row.why}: cannot judge" if row.why else "" for row in own.itertuples()]
        panels.centres(ax, zip(map(comparison.runs.index, own["run"]), ends, why, strict=True))
    return fig


@themed
def run_differences(
    comparison: Comparison, *, place: str = "", parts: str = "layers", title: str | None = None
) -> Plot:
    """Loss of each run minus that of the run that it is compared with, by removed layer: one panel a task and scale.

    Bands are 95% intervals, and markers are filled where the difference is shown.

    Args:
        comparison: Of `depthlens.compare`, of up to four pairs of runs.
        place: Folder of the results below the runs.
        parts: Kind of part over depth.
        title: Above the figure.

    Raises:
        UserError: more pairs than there are colours, or no differences, as of models with other numbers of layers.
    """
    table = comparison.differences
    series, unit = table["run"] + " minus " + table["reference"], np.where(table["scale"] == ABOVE_FLOOR, SHARE, "")
    table = panels.tidy(table, "layer", "difference", series=series, unit=unit)
    fig, axes = _figure(comparison, table, place, parts, title, "difference of losses", "removed layer")
    for ax, _ in axes:
        panels.level(ax, 0, "zero")
    return fig


@themed
def run_centres(comparison: Comparison, *, place: str = "", parts: str = "layers", title: str | None = None) -> Plot:
    """The whole model's score and the centre of mass of the losses, run by run or stage by stage.

    Bands are 95% intervals. A marker is filled where the difference from the run that it is compared with is shown.

    Args:
        comparison: Of `depthlens.compare`, of any number of runs.
        place: Folder of the results below the runs.
        parts: Kind of part over depth.
        title: Above the figure.

    Raises:
        UserError: nothing to draw.
    """
    centres = comparison.centres
    centres = centres[(centres["measure"] == CENTRE) & (centres["parts"] == parts)]
    whole = comparison.baselines.assign(parts=parts, unit="whole model", value=comparison.baselines["baseline"])
    known = [pd.MultiIndex.from_frame(table[KEY[:3]]) for table in (whole, centres)]
    table = pd.concat([whole[known[0].isin(known[1])], centres.assign(unit="centre of mass\nshare of depth")])
    table["at"] = [comparison.runs.index(run) for run in table["run"]]
    table = panels.tidy(table, "at", "value", series="")
    fig, axes = _figure(comparison, table, place, parts, title, "scores and centres", "")
    for ax, _ in axes:
        ax.set_xticks(range(len(comparison.runs)), comparison.runs, rotation=20, ha="right", parse_math=False)
    return fig


def drawable(comparison: Comparison, table: pd.DataFrame) -> list[tuple[str, str]]:
    """Folders and kinds of part over depth that a table of the comparison has for two runs with equal settings."""
    pairs = comparison.centres[["place", "parts"]].drop_duplicates().itertuples(index=False, name=None)
    return [(place, parts) for place, parts in pairs if _panels(table, place, parts)]


def _panels(table: pd.DataFrame, place: str, parts: str) -> list[tuple[str, str, pd.DataFrame]]:
    """Task, metric and rows of each panel: of pairs, or of two runs or more with equal settings."""
    rows = table[(table["place"] == place) & (table["parts"] == parts)]
    metrics = rows.groupby("task")["metric"].unique()
    by = ["task", "metric", *(column for column in ("group", "unit") if column in rows)]
    return [
        (task, metric, of_panel)
        for (task, metric, *_), of_panel in rows.groupby(by, sort=False)
        if (of_panel["run"].nunique() > 1 or "scale" in rows)
        and (metric in LOGPROBS or metric == written_answers.headline(task, list(metrics[task])))
    ]


def _figure(
    comparison: Comparison,
    table: pd.DataFrame,
    place: str,
    parts: str,
    title: str | None,
    what: str,
    xlabel: str,
    **look: Any,
) -> tuple[Plot, list[tuple[Axes, pd.DataFrame]]]:
    """A panel for each task, metric and unit, with a line for each series; the figure, and what each panel shows."""
    shown = _panels(table, place, parts)
    if not shown:
        known = ", ".join(f"{p or '(own)'}: {k}" for p, k in drawable(comparison, comparison.profiles))
        fault = f"no two runs with equal settings have {parts!r} in folder {place!r}"
        raise UserError(f"{fault} to be drawn; profiles there are: {known or 'none'}")
    names = list(dict.fromkeys(table["series"]))
    panels.at_most_four(names, "runs")
    columns, n = 1 if len(shown) <= 3 else 2, counts(int(n) for *_, rows in shown for n in rows["n"])
    default = f"{place} {', '.join(comparison.runs)}: {what}, {parts}, n = {n} documents".strip()
    fig, axes = panels.facets(title, default, len(shown), xlabel, each=1.9, columns=columns)
    for ax, (task, metric, rows) in zip(axes, shown, strict=True):
        panels.lines(ax, rows, names, **look)
        panels.panel_title(ax, f"{task} {metric.removesuffix(',none')}")
        ax.set_ylabel(rows["unit"].iloc[0] or named(metric, loss=True).replace(" (", "\n(").replace(", ", ",\n"))
    return fig, [(ax, rows) for ax, (*_, rows) in zip(axes, shown, strict=True)]
