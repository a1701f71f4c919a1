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
from depthlens.analysis.run_comparison import Comparison
from depthlens.analysis.run_differences import ABOVE_FLOOR, CENTRE, SCORE
from depthlens.analysis.run_families import Key
from depthlens.analysis.scores import AT_CHANCE
from depthlens.errors import UserError
from depthlens.look import GREY, INK, PALE, PALETTE
from depthlens.metrics import LOGPROBS
from depthlens.plots import panels, theme
from depthlens.plots.effects import PROVEN, named
from depthlens.plots.layers import CRITICAL_LAYER, MAX_OVERLAID, SHARES, share_colours, share_ticks
from depthlens.plots.panels import numbers
from depthlens.plots.theme import CANNOT_JUDGE, MARKERS, Plot, counts, figure, themed, with_legend

DEPTH = "depth (layer / last layer)"
_FAR = 3.0  # times the third largest loss: one beyond it is written, not drawn


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
        relative = bool(rows.groupby("run")["share"].apply(lambda s: s.notna().any()).any())
        panels.level(ax, 0, "zero")
        for run in panel.runs:
            _profile(ax, rows[rows["run"] == run], names.index(run), relative)
        if not relative:
            _end_before_far(ax, rows)
        bottom, top = ax.get_ylim()
        ax.set_ylim(bottom, top + (top - bottom) * 0.13 * len(panel.runs))
        for row, run in enumerate(panel.runs):
            _centre(ax, panel, comparison, run, names.index(run), 0.95 - 0.11 * row)
        panels.panel_title(ax, panel.title)
        unit = "share of score\nabove floor" if relative else f"loss of {_in_lines(panel.key.metric)}"
        ax.set(xlim=(-0.03, 1.03), ylabel=unit)
    drawn = {run for panel in shown for run in panel.runs}
    of_all = zip(names, panels.series_keys(names, mfc=None), strict=True)
    keys = [*(key for run, key in of_all if run in drawn), panels.mark_key(CRITICAL_LAYER)]
    keys.append(panels.line_key("centre of mass, 95% interval", lw=1.5, marker="|", ms=9, mew=2))
    return with_legend(fig, [*keys, panels.band_key()], 3)


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
    keys = [panels.mark_key(CRITICAL_LAYER.replace("layer", "part"), ms=4)]
    keys.append(panels.line_key("centre of mass, 95% interval", lw=1.5, marker="D", mec="white", ms=6))
    return with_legend(fig, keys)


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
    pairs = {}
    for ax, panel in zip(panels.grid(fig, len(shown), columns, "removed layer"), shown, strict=True):
        panels.level(ax, 0, "zero")
        of_panel = panel.rows(table)
        for (run, reference), rows in of_panel.groupby(["run", "reference"], sort=False):
            style = names.index(run)
            pairs[style] = f"{run} minus {reference}"
            x, y, low, high = numbers(rows, "layer", "difference", "ci_low", "ci_high")
            x = x + (style - (len(names)) / 2) * 0.22
            proven = rows["shown"].to_numpy(dtype=bool)
            ax.vlines(x, low, high, color=PALETTE[style], lw=1, gid="interval")
            ax.plot(x, y, MARKERS[style], ms=3.5, color=PALETTE[style], mfc="white", mew=0.9, gid="difference")
            panels.marks(ax, x, y, proven, style, "shown")
        panels.panel_title(ax, panel.title)
        ax.set_ylabel("difference of\n" + ("shares" if scale == ABOVE_FLOOR else _in_lines(panel.key.metric)))
        panels.layer_axis(ax, _n_layers(panel.rows(comparison.profiles)))
    keys = [
        panels.line_key(label, color=PALETTE[style], marker=MARKERS[style], mfc="white", ms=4)
        for style, label in sorted(pairs.items())
    ]
    return with_legend(fig, [*keys, panels.mark_key(f"shown ({PROVEN})"), panels.line_key("95% interval")], 2)


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
    keys = [
        panels.mark_key("step shown (p < 0.05, corrected)"),
        panels.line_key("stage, 95% interval", marker="o", mfc="white"),
    ]
    return with_legend(fig, [*keys, *panels.level_keys(fig)])


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


def _profile(ax: Axes, rows: pd.DataFrame, style: int, relative: bool) -> None:
    idle = bool(rows["at_chance"].any())
    names = ("share", "share_low", "share_high") if relative and not idle else ("loss", "ci_low", "ci_high")
    if relative and idle:
        return  # its losses are not shares of anything; the bar at the top says so
    x, *values = numbers(rows, "depth", *names)
    panels.curve(ax, x, values, style, idle=idle)
    panels.marks(ax, x, values[0], rows["critical"].to_numpy(dtype=bool), style, "critical")


def _end_before_far(ax: Axes, rows: pd.DataFrame) -> None:
    """Where few losses are far beyond all others, end the axis before them and write what they are."""
    loss, low, high = numbers(rows, "loss", "ci_low", "ci_high")
    ranked = np.sort(np.abs(loss))
    n_runs = rows["run"].nunique()
    far = np.abs(loss) > (_FAR * ranked[-2 * n_runs - 1] if len(loss) > 3 * n_runs else np.inf)
    if not far.any():
        return
    bottom, top = panels.reach(loss[~far], low[~far], high[~far])
    ax.set_ylim(bottom - 0.08 * (top - bottom), top + 0.08 * (top - bottom))
    beyond = rows[far]
    values = ", ".join(f"{row.condition} {row.loss:.3g}" for row in beyond.itertuples())
    panels.note(ax, 1.01, 0.5, f"beyond the axis:\n{values}", rotation=90, ha="left", color=INK)


def _centre(ax: Axes, panel: Panel, comparison: Comparison, run: str, style: int, height: float) -> None:
    """The centre of mass of a run at the top of a panel, or why there is none."""
    row = _centre_row(panel, comparison, run)
    if row["why"]:
        text = CANNOT_JUDGE if row["why"] == AT_CHANCE else f"{row['why']}: cannot judge"
        panels.note(ax, 0.995, height, f"{run} {text}", ha="right", color=GREY)
        return
    look: dict[str, Any] = {"color": PALETTE[style], "transform": ax.get_xaxis_transform()}
    ax.plot([row["ci_low"], row["ci_high"]], [height] * 2, lw=1.5, solid_capstyle="butt", **look)
    ax.plot([row["value"]], [height], marker="|", ms=9, mew=2, gid="centre", **look)


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
    x = np.array([runs.index(run) for run in rows["run"]])
    y, low, high = numbers(rows, column, "ci_low", "ci_high")
    ax.vlines(x, low, high, color=PALETTE[0], lw=1.2, gid="interval")
    ax.plot(x, y, "o-", color=PALETTE[0], ms=4, lw=1, mfc="white", gid="stages")
    panels.marks(ax, x, y, rows["shown"].to_numpy(dtype=bool), 0, "shown")
    ax.set_xlim(-0.5, len(runs) - 0.5)
    if not np.isfinite(y).any():
        ax.set_yticks([])
        panels.note(ax, 0.5, 0.5, "at chance, or no loss shown", ha="center", color=INK)
