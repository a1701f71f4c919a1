"""What each removed layer costs: depth profiles, and protocols side by side; see `depthlens.plots`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlens.analysis.results import Result
from depthlens.analysis.stats import GROUP
from depthlens.errors import UserError
from depthlens.plots import panels
from depthlens.plots.panels import ACCURACY, numbers
from depthlens.plots.sweeps import FIELDS, PROVEN, Names, Sweep, sweep_title, sweeps, varying
from depthlens.plots.theme import CANNOT_JUDGE, GREY, INK, MARKERS, SMALL, figure, legend, spread, theme

CRITICAL = f"critical layer (loss, {PROVEN})"
MAX_OVERLAID = 4  # series in one panel; more are drawn side by side


@dataclass(frozen=True)
class LayerCurve:
    """One line of a profile; arrays are of shape [n_layers], NaN (or False) where a layer was not removed."""

    sweep: Sweep
    delta: np.ndarray
    low: np.ndarray
    high: np.ndarray
    critical: np.ndarray
    gain: np.ndarray

    @property
    def unit(self) -> str:
        return self.sweep.unit

    @property
    def at_chance(self) -> bool:
        return self.sweep.at_chance

    def label(self, fields: Sequence[str]) -> str:
        return self.sweep.label(fields or ["task"])

    def last(self, value: str) -> float:
        """The value at the last layer that was removed."""
        return self.delta[np.isfinite(self.delta)][-1] + (self.sweep.baseline if value == "value" else 0)


def depth_profile(
    result: Result,
    *,
    tasks: Names = None,
    metrics: Names = None,
    value: str = "value",
    title: str | None = None,
) -> Figure:
    """Score by removed layer, with the 95% interval of the difference from baseline as a band.

    Dashed lines are baselines, dotted lines chance, filled markers critical layers. Up to four series share a
    panel (models, tasks, metrics, kinds of ablation), more are drawn side by side; so are different units.

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
    profiles = _layer_curves(result, tasks, metrics)
    groups, across, within = _groups(profiles)
    labels = list(dict.fromkeys(p.label(within) for p in profiles))
    overlaid = len(labels) <= MAX_OVERLAID
    columns = {1: 1, 2: 2, 4: 2}.get(len(groups), 3)
    rows = math.ceil(len(groups) / columns)
    with theme():
        fig = figure(title, _title(profiles), height=3.3 if rows == 1 else 2.1 * rows + 0.9)
        for ax, group in zip(panels.panels(fig, len(groups), columns, "removed layer"), groups, strict=True):
            styles = [labels.index(p.label(within)) if overlaid else 0 for p in group]
            for profile, style in zip(group, styles, strict=True):
                _draw_curve(ax, profile, style, value)
            panels.layer_axis(ax, len(group[0].delta))
            _value_axis(ax, group[0].unit, value)
            if len(groups) > 1:
                panels.panel_title(ax, group[0].label(across))
            elif len(group) > 1:
                _label_ends(ax, group, styles, within, value)
            if any(p.at_chance for p in group) and (len(groups) > 1 or len(group) == 1):
                panels.note(ax, 1, 0.95, CANNOT_JUDGE, ha="right", color=GREY)
        legend(fig, _keys(profiles, labels if len(groups) > 1 and 1 < len(labels) and overlaid else [], value))
    return fig


def protocol_comparison(
    result: Result, *, tasks: Names = None, metrics: Names = None, title: str | None = None
) -> Figure:
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
    profiles = _layer_curves(result, tasks, metrics)
    unit, better = profiles[0].unit, profiles[0].sweep.better
    if len(units := {p.unit: None for p in profiles}) > 1:
        raise UserError(f"one colour scale cannot show {', '.join(units)} together; choose with metrics=[...]")
    grid = np.array([np.full_like(p.delta, np.nan) if p.at_chance else p.delta for p in profiles])
    limit = max(0.1, math.ceil(np.nanmax(np.abs(grid)) * 10) / 10) if np.isfinite(grid).any() else 1.0
    with theme():
        fig = figure(title, _title(profiles), height=0.34 * len(profiles) + 1.6)
        ax = fig.subplots()
        mesh = panels.cells(ax, grid, (-limit, limit), cmap="RdBu" if better else "RdBu_r")
        for row, profile in enumerate(profiles):
            _draw_row(ax, profile, row, limit)
        fields = varying([p.sweep.key for p in profiles])
        panels.name_rows(ax, [p.label(fields) for p in profiles])
        ax.set_xlabel("removed layer")
        panels.colour_bar(mesh, ax, f"change of {unit} from baseline")
        keys = [panels.mark_key(CRITICAL, ms=4)]
        if any(p.gain.any() for p in profiles):
            keys.append(panels.mark_key("significant gain", mfc="none"))
        legend(fig, keys)
    return fig


def _layer_curves(result: Result, tasks: Names, metrics: Names) -> list[LayerCurve]:
    """The single-layer sweeps of a result."""
    what = "a single layer; sweep layers, attn or mlp"
    found = sweeps(result, tasks, metrics, ["layer", "attn", "mlp"], what)
    n_layers = max(max(int(s.rows["layer"].max()) + 1, s.dims.get("n_layers", 0)) for s in found)
    profiles = []
    for s in found:
        rows = s.rows.set_index("layer").reindex(range(n_layers))
        marked = (rows[column].eq(True).to_numpy(dtype=bool) for column in ("critical", "gain"))
        profiles.append(LayerCurve(s, *numbers(rows, "delta", "ci_low", "ci_high"), *marked))
    return profiles


def _title(profiles: Sequence[LayerCurve]) -> str:
    return sweep_title([p.sweep for p in profiles], "one layer or part of it")


def _groups(profiles: list[LayerCurve]) -> tuple[list[list[LayerCurve]], list[str], list[str]]:
    """Profiles to overlay in each panel, and the fields that differ across panels and within them."""
    for across in ([], ["model", "task"], GROUP, FIELDS):
        groups: dict[tuple[str, ...], list[LayerCurve]] = {}
        for p in profiles:
            groups.setdefault((p.unit, *(p.sweep.key[f] for f in across)), []).append(p)
        if max(map(len, groups.values())) <= MAX_OVERLAID:
            break
    fields = varying([p.sweep.key for p in profiles])
    outer, inner = [f for f in fields if f in across], [f for f in fields if f not in across]
    if len(groups) > 1 and not outer:  # split by unit alone: the metric tells the panels apart
        outer, inner = ["metric"], [f for f in inner if f != "metric"]
    return list(groups.values()), outer, inner


def _draw_curve(ax: Axes, p: LayerCurve, style: int, value: str) -> None:
    x, base = np.arange(len(p.delta)), p.sweep.baseline if value == "value" else 0.0
    y, low, high = base + p.delta, base + p.low, base + p.high
    if p.unit == ACCURACY and value == "value":
        low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
    panels.curve(ax, x, y, low, high, style, idle=p.at_chance)
    panels.marks(ax, x, y, p.critical, style, "critical")
    if value == "value":
        panels.level(ax, base, "baseline", color=panels.colour_of(style, p.at_chance))
        panels.level(ax, p.sweep.chance, "chance")
    else:
        panels.level(ax, 0, "zero", gid="baseline")


def _value_axis(ax: Axes, unit: str, value: str) -> None:
    if value == "value":
        panels.score_axis(ax, unit)
    else:
        ax.set_ylabel(f"change of {unit} from baseline")


def _label_ends(
    ax: Axes, group: Sequence[LayerCurve], styles: Sequence[int], fields: Sequence[str], value: str
) -> None:
    """Name each line at its right end, spread so that names do not touch."""
    low, high = ax.get_ylim()
    line = (high - low) * 0.065  # 8 pt of an axis some 2.3 inches high
    ends = sorted(zip(group, styles, strict=True), key=lambda end: end[0].last(value))
    places = spread([p.last(value) for p, _ in ends], [line * (2 if p.at_chance else 1) for p, _ in ends])
    right = ax.get_yaxis_transform()
    for place, (p, style) in zip(places, ends, strict=True):
        colour = panels.colour_of(style, p.at_chance)
        ax.plot([1.02], [place], marker=MARKERS[style], ms=5, color=colour, transform=right, clip_on=False)
        text = p.label(fields) + (f"\n{CANNOT_JUDGE}" if p.at_chance else "")
        panels.note(ax, 1.04, place, text, color=GREY if p.at_chance else INK, transform=right)
    ax.set_ylim(low, high)


def _draw_row(ax: Axes, p: LayerCurve, row: int, limit: float) -> None:
    n_layers = len(p.delta)
    if p.at_chance:
        panels.hatch(ax, row - 0.5, 1, n_layers, CANNOT_JUDGE)
    for layer in np.flatnonzero(p.critical | p.gain):
        ink = "white" if abs(p.delta[layer]) > 0.6 * limit else "black"
        if p.critical[layer]:
            ax.plot(layer, row, "o", color=ink, ms=4, gid="critical")
        else:
            ax.plot(layer, row, "o", color=ink, ms=4.5, mfc="none", gid="gain")
    ax.text(n_layers - 0.2, row, f"baseline {p.sweep.baseline:.2f}", va="center", fontsize=SMALL)


def _keys(profiles: Sequence[LayerCurve], names: Sequence[str], value: str) -> list[Artist]:
    keys: list[Artist] = [*panels.series_keys(names, mfc=None)]
    if any(p.critical.any() for p in profiles):
        keys.append(panels.mark_key(CRITICAL))
    if value == "value":
        keys.append(panels.level_key("baseline"))
        if any(math.isfinite(p.sweep.chance) for p in profiles):
            keys.append(panels.level_key("chance"))
    return [*keys, panels.band_key()]
