"""Figures of a comparison of runs: losses over relative depth, differences by layer, and centres run by run.

See `depthlens.plots` for what all figures have in common. The numbers are those of
`depthlens.analysis.run_comparison.Comparison`. One figure is of one folder and one kind of part, and has a panel for
each task, metric and group of runs with equal settings. Of the metrics of a task, the one that stands for it is drawn,
and log-likelihoods; the tables have all.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from depthlens import arguments
from depthlens.analysis import written_answers
from depthlens.analysis.run_comparison import ABOVE_FLOOR, CENTRE, KEY, Comparison
from depthlens.errors import UserError
from depthlens.metrics import LOGPROBS
from depthlens.plots import panels
from depthlens.plots.effects import PROVEN, named
from depthlens.plots.layers import CRITICAL_LAYER, MAX_OVERLAID
from depthlens.plots.theme import Plot, counts, figure, themed, with_legend

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
    table = _checked(comparison).profiles
    relative = table.groupby([*KEY, "group"])["share"].transform("count") > 0
    table = table.assign(
        x=table["depth"], series=table["run"], shown=table["critical"], unit=np.where(relative, SHARE, "")
    )
    for to, share, loss in (("y", "share", "loss"), ("low", "share_low", "ci_low"), ("high", "share_high", "ci_high")):
        table[to] = table[share].where(relative, table[loss])
    fig, keys = _figure(comparison, table, place, parts, title, "loss by removed part", DEPTH)
    for ax in fig.axes:
        panels.level(ax, 0, "zero")
    return with_legend(fig, [*keys, panels.mark_key(CRITICAL_LAYER), panels.band_key()], 3)


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
    table = _checked(comparison).differences.rename(columns={"layer": "x", "difference": "y"})
    series, unit = table["run"] + " minus " + table["reference"], np.where(table["scale"] == ABOVE_FLOOR, SHARE, "")
    table = table.assign(low=table["ci_low"], high=table["ci_high"], series=series, unit=unit)
    fig, keys = _figure(comparison, table, place, parts, title, "difference of losses", "removed layer")
    for ax in fig.axes:
        panels.level(ax, 0, "zero")
    return with_legend(fig, [*keys, panels.mark_key(f"shown ({PROVEN})"), panels.band_key()], 3)


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
    centres = _checked(comparison).centres
    centres = centres[(centres["measure"] == CENTRE) & (centres["parts"] == parts)]
    whole = comparison.baselines.assign(parts=parts, unit="whole model", value=comparison.baselines["baseline"])
    known = [pd.MultiIndex.from_frame(table[KEY[:3]]) for table in (whole, centres)]
    table = pd.concat([whole[known[0].isin(known[1])], centres.assign(unit="centre of mass\nshare of depth")])
    at = [comparison.runs.index(run) for run in table["run"]]
    table = table.assign(x=at, y=table["value"], low=table["ci_low"], high=table["ci_high"], series="")
    fig, _ = _figure(comparison, table, place, parts, title, "scores and centres", "")
    for ax in fig.axes:
        ax.set_xticks(range(len(comparison.runs)), comparison.runs, rotation=20, ha="right", parse_math=False)
    return with_legend(fig, [panels.mark_key(f"difference shown ({PROVEN})"), panels.band_key()])


def drawable(comparison: Comparison, table: pd.DataFrame) -> list[tuple[str, str]]:
    """Folders and kinds of part over depth that a table of the comparison has for two runs with equal settings."""
    pairs = comparison.centres[["place", "parts"]].drop_duplicates().itertuples(index=False, name=None)
    return [(place, parts) for place, parts in pairs if _panels(table, place, parts)]


def _checked(comparison: Comparison) -> Comparison:
    arguments.made_by(comparison, "profiles", "what depthlens.compare returned", "comparison")
    return comparison


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
    comparison: Comparison, table: pd.DataFrame, place: str, parts: str, title: str | None, what: str, xlabel: str
) -> tuple[Plot, list[Line2D]]:
    """A panel for each task, metric and unit, with a line for each series; and their keys."""
    shown = _panels(table, place, parts)
    if not shown:
        known = ", ".join(f"{p or '(own)'}: {k}" for p, k in drawable(comparison, comparison.profiles))
        fault = f"no two runs with equal settings have {parts!r} in folder {place!r}"
        raise UserError(f"{fault} to be drawn; profiles there are: {known or 'none'}")
    names = list(dict.fromkeys(name for *_, rows in shown for name in rows["series"]))
    if len(names) > MAX_OVERLAID:
        raise UserError(f"{len(names)} runs are more than {MAX_OVERLAID} colours; draw them with run_centres")
    columns = 1 if len(shown) <= 3 else 2
    n = counts(int(n) for *_, rows in shown for n in rows["n"])
    default = f"{place} {', '.join(comparison.runs)}: {what}, {parts}, n = {n} documents".strip()
    fig = figure(title, default, height=1.9 * math.ceil(len(shown) / columns) + 1.3)
    for ax, (task, metric, rows) in zip(panels.grid(fig, len(shown), columns, xlabel), shown, strict=True):
        for style, name in enumerate(names):
            of_series = rows[rows["series"] == name]
            x, *values = panels.numbers(of_series, "x", "y", "low", "high")
            panels.curve(ax, x, values, style, idle=of_series.get("at_chance", pd.Series()).any())
            panels.marks(ax, x, values[0], of_series["shown"].to_numpy(dtype=bool), style, "shown")
        panels.panel_title(ax, f"{task} {metric.removesuffix(',none')}")
        ax.set_ylabel(rows["unit"].iloc[0] or named(metric, loss=True).replace(" (", "\n(").replace(", ", ",\n"))
    return fig, panels.series_keys(names, mfc=None)
