"""Figures of a comparison of runs: profiles over relative depth, maps, differences, and stages of training.

See `depthlens.plots` for what all figures have in common. The numbers are those of
`depthlens.analysis.run_comparison.Comparison`. One figure is of one folder and one family of conditions, and has a
panel for each task, metric and group of runs with equal settings. Of the metrics of a task, the one that stands for it
is drawn, and log-likelihoods; the tables have all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from depthlens import arguments
from depthlens.analysis import written_answers
from depthlens.analysis.layer_profiles import AT_CHANCE
from depthlens.analysis.run_comparison import Comparison
from depthlens.analysis.run_differences import ABOVE_FLOOR, CENTRE, SCORE
from depthlens.analysis.run_families import Key
from depthlens.errors import UserError
from depthlens.look import INK, PALE
from depthlens.metrics import LOGPROBS
from depthlens.plots import panels, theme
from depthlens.plots.effects import named
from depthlens.plots.layers import CRITICAL_LAYER, SHARES, share_colours, share_ticks
from depthlens.plots.panels import MAX_OVERLAID, lines, stems, tidy
from depthlens.plots.theme import CANNOT_JUDGE, Plot, counts, figure, themed

DEPTH = "depth (layer / last layer)"


class Panel(NamedTuple):
    """What one panel shows.

    Attributes:
        key: Place, task, metric and parts.
        group: Number of the runs' settings.
        runs: The runs with these settings, in order.
        title: The task, its metric and, of several groups, which.
    """

    key: Key
    group: int
    runs: tuple[str, ...]
    title: str

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table that are of this panel."""
        chosen = np.ones(len(table), dtype=bool)
        for name, value in self.key._asdict().items():
            if name in table.columns:
                chosen &= (table[name] == value).to_numpy()
        if "group" in table.columns:
            chosen &= (table["group"] == self.group).to_numpy()
        return table[chosen & table["run"].isin(self.runs).to_numpy()]


def panels_of(comparison: Comparison, place: str, parts: str) -> list[Panel]:
    """The panels of a figure: groups of two runs or more that have a family over depth.

    Raises:
        UserError: it is no comparison, or it has no such family.
    """
    arguments.made_by(comparison, "profiles", "what depthlens.compare returned", "comparison")
    found = list(_panels(comparison, place, parts))
    if not found:
        known = dict.fromkeys(f"{p or '(own)'}: {k}" for p, k in families_over_depth(comparison))
        fault = f"no two runs with equal settings have {parts!r} in folder {place!r}"
        raise UserError(f"{fault}; to be drawn are: {', '.join(known) or 'none'}")
    return found


def families_over_depth(comparison: Comparison) -> list[tuple[str, str]]:
    """Folders and families that a figure can be made of, in order."""
    pairs = comparison.centres[["place", "parts"]].drop_duplicates().itertuples(index=False, name=None)
    return [(place, parts) for place, parts in pairs if list(_panels(comparison, place, parts))]


def _panels(comparison: Comparison, place: str, parts: str) -> Iterator[Panel]:
    table = comparison.centres
    table = table[(table["place"] == place) & (table["parts"] == parts)]
    for task, of_task in table.groupby("task", sort=False):
        several = of_task.groupby("metric", sort=False)["run"].nunique()
        metrics = list(several.index[several > 1])
        drawn = [m for m in metrics if m in LOGPROBS or m == written_answers.headline(task, metrics)]
        for metric in drawn:
            rows = of_task[of_task["metric"] == metric]
            groups = [(int(g), tuple(dict.fromkeys(r["run"]))) for g, r in rows.groupby("group", sort=False)]
            for group, runs in groups:
                if len(runs) > 1:
                    title = f"{task} {metric.removesuffix(',none')}" if len(drawn) > 1 else str(task)
                    title += f" ({', '.join(runs)})" if len(groups) > 1 else ""
                    yield Panel(Key(place, str(task), metric, parts), group, runs, title)


@themed
def run_profiles(comparison: Comparison, *, place: str = "", parts: str = "layers", title: str | None = None) -> Plot:
    """What removing each layer costs in every run, over relative depth: one panel a task, one line a run.

    Losses are shares of the score above the floor where the metric has one, else in its unit. Filled markers are
    critical layers, bands 95% intervals, and the bars at the top centres of mass.

    Args:
        comparison: Of `depthlens.compare`, of up to four runs.
        place: Folder of the results below the runs.
        parts: Family of conditions, such as ``layers`` or ``attn@mean``.
        title: Above the figure.

    Raises:
        UserError: more runs than there are colours, or nothing to draw.
    """
    shown = panels_of(comparison, place, parts)
    names = comparison.runs
    if len(names) > MAX_OVERLAID:
        raise UserError(f"{len(names)} runs are more than {MAX_OVERLAID} colours; draw them with run_map")
    columns = 1 if len(shown) <= 4 else 2
    fig = figure(
        title, _title(comparison, shown, f"loss by removed part, {parts}"), height=_height(len(shown), columns, 1.9)
    )
    for ax, panel in zip(panels.grid(fig, len(shown), columns, DEPTH, stacked=True), shown, strict=True):
        rows = panel.rows(comparison.profiles)
        relative = bool(rows["share"].notna().any())
        panels.level(ax, 0, "zero")
        names_of = ("share", "share_low", "share_high") if relative else ("loss", "ci_low", "ci_high")
        table = tidy(rows, "depth", *names_of, series=rows["run"], shown=rows["critical"])
        table["idle"] = panels.idle_where(rows["at_chance"])
        lines(ax, table, names, shown=CRITICAL_LAYER)
        panels.centres(ax, [(names.index(run), *_centre(panel, comparison, run)) for run in panel.runs])
        panels.panel_title(ax, panel.title)
        unit = "share of score\nabove floor" if relative else f"loss of {_in_lines(panel.key.metric)}"
        ax.set(xlim=(-0.03, 1.03), ylabel=unit)
    return fig


@themed
def run_map(comparison: Comparison, *, place: str = "", parts: str = "layers", title: str | None = None) -> Plot:
    """Where in depth the losses of every run are: one row a run, one column a layer; each row adds up to one.

    Dots are critical parts, and the diamond is the centre of mass with its 95% interval. For stages of training the
    rows are the steps, so that the figure shows how all three move.

    Args:
        comparison: Of `depthlens.compare`.
        place: Folder of the results below the runs.
        parts: Family of conditions, such as ``layers`` or ``attn@mean``.
        title: Above the figure.

    Raises:
        UserError: nothing to draw.
    """
    shown = panels_of(comparison, place, parts)
    height = sum(0.26 * len(p.runs) + 0.55 for p in shown) + 1.7
    fig = figure(title, _title(comparison, shown, f"share of each row's losses, {parts}"), height=height)
    ratios = [0.26 * len(p.runs) + 0.2 for p in shown]
    axes = fig.subplots(len(shown), 1, height_ratios=ratios, squeeze=False)[:, 0]
    norm = share_colours(1.0, max(_n_layers(panel.rows(comparison.profiles)) for panel in shown))
    for ax, panel in zip(axes, shown, strict=True):
        rows = panel.rows(comparison.profiles)
        n_layers = max(_n_layers(rows), 2)
        for i, run in enumerate(panel.runs):
            mesh = _map_row(ax, panel, comparison, rows[rows["run"] == run], run, i, norm)
        ax.set(xlim=(-0.5 / (n_layers - 1), 1 + 0.5 / (n_layers - 1)), ylim=(len(panel.runs) - 0.5, -0.5))
        panels.name_rows(ax, panel.runs)
        ax.tick_params(axis="y", length=0)
        ax.spines[:].set_visible(False)
        panels.panel_title(ax, panel.title)
    axes[-1].set_xlabel(DEPTH)
    panels.colour_bar(mesh, list(axes), SHARES, extend="both", ticks=share_ticks(1.0), format="%g")
    panels.key(axes[0], "mark", CRITICAL_LAYER.replace("layer", "part"), ms=4)
    panels.key(axes[0], "line", panels.CENTRE, lw=1.5, marker="D", mec="white", ms=6)
    return fig


@themed
def run_differences(
    comparison: Comparison, *, place: str = "", parts: str = "layers", scale: str = SCORE, title: str | None = None
) -> Plot:
    """Loss of each run minus that of the run that it is compared with, by removed layer: one panel a task.

    Bars are 95% intervals, and markers are filled where the difference is shown.

    Args:
        comparison: Of `depthlens.compare`, of up to four runs.
        place: Folder of the results below the runs.
        parts: Family of conditions over depth.
        scale: ``score`` for the metric's unit, or ``above floor``.
        title: Above the figure.

    Raises:
        UserError: an unknown scale, more runs than there are colours, or no differences, as of models with other
            numbers of layers.
    """
    if scale not in (SCORE, ABOVE_FLOOR):
        raise UserError(f"scale {scale!r} is not known; allowed: {SCORE!r}, {ABOVE_FLOOR!r}")
    table = comparison.differences
    table = table[table["scale"] == scale]
    shown = [p for p in panels_of(comparison, place, parts) if len(p.rows(table))]
    names = comparison.runs
    if not shown or len(names) > MAX_OVERLAID:
        fault = f"{len(names)} runs" if shown else f"no differences of {parts!r} in folder {place!r} on scale {scale!r}"
        raise UserError(
            f"{fault}; draw up to {MAX_OVERLAID} runs whose models have as many layers and are not at chance"
        )
    columns = 1 if len(shown) <= 4 else 2
    unit = "" if scale == SCORE else ", as shares of the score above the floor"
    fig = figure(
        title,
        _title(comparison, shown, f"difference of losses, {parts}{unit}"),
        height=_height(len(shown), columns, 1.75),
    )
    for ax, panel in zip(panels.grid(fig, len(shown), columns, "removed layer"), shown, strict=True):
        rows = panel.rows(table)
        pairs = dict(zip(rows["run"], rows["run"] + " minus " + rows["reference"], strict=True))
        series = [pairs.get(run, run) for run in names]
        stems(ax, tidy(rows, "layer", "difference", series=rows["run"].map(pairs)), series, aside=0.22)
        panels.panel_title(ax, panel.title)
        ax.set_ylabel("difference of\n" + ("shares" if scale == ABOVE_FLOOR else _in_lines(panel.key.metric)))
        panels.layer_axis(ax, _n_layers(panel.rows(comparison.profiles)))
    return fig


@themed
def run_stages(comparison: Comparison, *, place: str = "", parts: str = "layers", title: str | None = None) -> Plot:
    """How the whole model's score and the centre of mass of the losses move from stage to stage.

    Bars are 95% intervals. A marker is filled where the step from the stage before is shown.

    Args:
        comparison: Of ``depthlens.compare(..., stages=True)``.
        place: Folder of the results below the runs.
        parts: Family of conditions over depth.
        title: Above the figure.

    Raises:
        UserError: the runs are no stages, or nothing to draw.
    """
    shown = panels_of(comparison, place, parts)
    if not comparison.stages:
        raise UserError("the runs were not compared as stages; compare them with stages=True")
    longest = max(len(run) for run in comparison.runs)
    steep = sum(len(run) for run in comparison.runs) > 30
    height = 1.6 * len(shown) + 1.0 + (0.04 * longest if steep else 0)
    fig = figure(title, _title(comparison, shown, f"stages, {parts}"), height=height)
    axes = fig.subplots(len(shown), 2, squeeze=False, sharex=True)
    for (left, right), panel in zip(axes, shown, strict=True):
        whole, centre = panel.rows(comparison.baselines), panel.rows(comparison.centres)
        centre = centre[centre["measure"] == CENTRE]
        _steps(left, whole, "baseline", comparison.runs)
        panels.level(left, float(whole["chance"].iloc[0]), "chance")
        _steps(right, centre, "value", comparison.runs)
        panels.panel_title(left, panel.title)
        left.set_ylabel(f"whole model\n{named(panel.key.metric)}")
        right.set_ylabel("centre of mass\nshare of depth")
    for ax in axes[-1]:
        turned: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if steep else {}
        ax.set_xticks(range(len(comparison.runs)), comparison.runs, **turned)
        for text in ax.get_xticklabels():
            text.set_parse_math(False)
    return fig


# -- parts of the figures ------------------------------------------------------------------------------


def _title(comparison: Comparison, shown: Sequence[Panel], what: str) -> str:
    sizes = [n for panel in shown for n in panel.rows(comparison.baselines)["n"]]
    names = ", ".join(dict.fromkeys(run for panel in shown for run in panel.runs))
    place = f"{shown[0].key.place}: " if shown[0].key.place else ""
    return f"{place}{names}: {what}, n = {counts(map(int, sizes))} documents"


def _in_lines(metric: str) -> str:
    """A metric, and below it the unit of its losses."""
    return named(metric, loss=True).replace(" (", "\n(").replace(", ", ",\n")


def _height(n: int, columns: int, each: float) -> float:
    return each * math.ceil(n / columns) + 1.3


def _n_layers(rows: pd.DataFrame) -> int:
    """Layers of the largest model: depth is layer / (n_layers - 1)."""
    known = rows[rows["depth"] > 0]
    return round(float((known["layer"].astype(float) / known["depth"]).max())) + 1 if len(known) else 1


def _centre(panel: Panel, comparison: Comparison, run: str) -> tuple[list[float], str]:
    """The centre of mass of a run with its interval; or why there is none."""
    row = _centre_row(panel, comparison, run)
    why = CANNOT_JUDGE if row["why"] == AT_CHANCE else f"{row['why']}: cannot judge"
    return [row["value"], row["ci_low"], row["ci_high"]], f"{run} {why}" if row["why"] else ""


def _centre_row(panel: Panel, comparison: Comparison, run: str) -> pd.Series:
    rows = panel.rows(comparison.centres)
    return rows[(rows["run"] == run) & (rows["measure"] == CENTRE)].iloc[0]


def _map_row(
    ax: Axes, panel: Panel, comparison: Comparison, rows: pd.DataFrame, run: str, at: int, norm: Normalize
) -> Any:
    """The losses of one run as a row of cells as wide as its layers are deep; hatched where they cannot be placed."""
    n_layers = max(_n_layers(rows), 2)
    loss = np.full(n_layers, np.nan)
    centre = _centre_row(panel, comparison, run)
    if not centre["why"]:
        loss[rows["layer"].to_numpy(int)] = rows["loss"].to_numpy(float) / rows["loss"].sum()
    panels.keep(ax, rows.assign(series=run, value=loss[rows["layer"].to_numpy(int)]), "value")
    edges = (np.arange(n_layers + 1) - 0.5) / (n_layers - 1)
    look: dict[str, Any] = {"cmap": "RdBu_r", "norm": norm, "edgecolors": "white", "linewidth": 0.5}
    mesh = ax.pcolormesh(edges, [at - 0.46, at + 0.46], np.ma.masked_invalid(loss[None]), gid="shares", **look)
    if centre["why"]:
        why = CANNOT_JUDGE if centre["why"] == AT_CHANCE else f"{centre['why']}: cannot judge"
        ax.axhspan(at - 0.46, at + 0.46, hatch="////", fc="none", ec=PALE, lw=0, gid="hatch")
        box = {"fc": "white", "ec": "none", "pad": 1.5}
        ax.text(0.5, at, why, ha="center", va="center", fontsize=theme.SMALL, bbox=box)
        return mesh
    critical = rows[rows["critical"].astype(bool)]
    ax.plot(
        critical["depth"], np.full(len(critical), at - 0.24), "o", color=INK, mec="white", mew=0.5, ms=4, gid="critical"
    )
    for width, colour in ((3.5, "white"), (1.5, INK)):  # the line stands out from any cell
        ax.plot([centre["ci_low"], centre["ci_high"]], [at + 0.2] * 2, color=colour, lw=width, solid_capstyle="butt")
    ax.plot(centre["value"], at + 0.2, "D", color=INK, mec="white", ms=5, gid="centre")
    return mesh


def _steps(ax: Axes, rows: pd.DataFrame, column: str, runs: Sequence[str]) -> None:
    """A value of every stage with its interval; filled where its step is shown."""
    table = rows.assign(x=[runs.index(run) for run in rows["run"]])
    lines(ax, tidy(table, "x", column), bars=True, shown="step shown (p < 0.05, corrected)")
    ax.set_xlim(-0.5, len(runs) - 0.5)
    if rows[column].isna().all():
        ax.set_yticks([])
        panels.note(ax, 0.5, 0.5, "at chance, or no loss shown", ha="center", color=INK)
