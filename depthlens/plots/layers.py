"""What each removed layer costs: profiles, protocols side by side, shares of the losses, first mistakes.

See `depthlens.plots` for what all figures have in common.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm
from matplotlib.patches import Patch

from depthlens.analysis import depth, solution_errors
from depthlens.analysis.results import Result
from depthlens.analysis.scores import layer_scores
from depthlens.analysis.stats import GROUP
from depthlens.errors import UserError
from depthlens.look import EMPTY, GREY, INK, PALETTE
from depthlens.plots import panels, theme
from depthlens.plots.effects import FIELDS, PROVEN, Effects, Names, sweep_effects, sweep_title, varying
from depthlens.plots.theme import CANNOT_JUDGE, SMALL, Plot, figure, themed, with_legend

SHARES = "share of the row's summed loss (red: loss)"
CRITICAL_LAYER = f"critical layer (loss, {PROVEN})"
MAX_OVERLAID = 4  # series in one panel; more are drawn side by side
_THIRDS: dict[str, Any] = {"color": INK, "lw": 0.8, "ls": (0, (2, 2))}
# documents: the intervals of fewer scores that are not 0 or 1 are many times wider than the scores, and hide them
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
    effects = sweep_effects(result, tasks, metrics, _LAYER_SITES, _FIX)
    if value == "delta":
        effects = [e.as_change() for e in effects]
    groups, across, within = _groups(effects)
    labels = list(dict.fromkeys(_label(e, within) for e in effects))
    overlaid = len(labels) <= MAX_OVERLAID
    columns = {1: 1, 2: 2, 4: 2}.get(len(groups), 3)
    fig = figure(title, sweep_title(effects, _SEVERAL), height=2.2 * math.ceil(len(groups) / columns) + 1.1)
    goes = all(e.key["mode"] in ("removed", "mean") for e in effects)
    axis = "removed layer" if goes else "layer"  # one that is rounded, disturbed or run twice stays
    for ax, group in zip(panels.grid(fig, len(groups), columns, axis), groups, strict=True):
        lines = [(e, labels.index(_label(e, within)) if overlaid else 0) for e in group]
        for e, style in lines:
            _draw_line(ax, e, style)
            _chance(ax, e, style, [other for other, _ in lines])
            fig.points += [
                (ax, float(i), float(e.baseline + e.values[i]), _said(e, i, within)) for i in range(len(e.values))
            ]
        panels.layer_axis(ax, max(len(e.values) for e in group))
        panels.score_axis(ax, group[0].unit)
        if len(groups) > 1:
            panels.panel_title(ax, _label(group[0], across))
        elif len(group) > 1:
            _name_lines(ax, lines, within)
        if any(e.at_chance for e in group) and (len(groups) > 1 or len(group) == 1):
            panels.note(ax, 1, 0.95, CANNOT_JUDGE, ha="right", color=GREY)
    one = len(labels) == 1 or not overlaid
    colour = panels.colour_of(0, all(e.at_chance for e in effects)) if one else None
    keys = panels.series_keys(labels, mfc=None) if len(groups) > 1 and 1 < len(labels) and overlaid else []
    if panels.drawn(fig, "critical"):
        keys.append(panels.mark_key(CRITICAL_LAYER, color=colour or INK))
    bands = []
    if any(np.isfinite(e.low).any() for e in effects):
        bands.append(panels.band_key(panels.BAND, colour or INK))
    return with_legend(fig, [*keys, *panels.level_keys(fig, colour=colour), *bands])


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
    effects = sweep_effects(result, tasks, metrics, _LAYER_SITES, _FIX)
    if len(units := {e.unit: None for e in effects}) > 1:
        raise UserError(f"one colour scale cannot show {', '.join(units)} together; choose with metrics=[...]")
    grid = pd.DataFrame([e.values * np.nan if e.at_chance else e.values for e in effects]).to_numpy(dtype=float)
    limit = max(0.1, math.ceil(np.nanmax(np.abs(grid)) * 10) / 10) if np.isfinite(grid).any() else 1.0
    fields = varying([e.key for e in effects])
    names, idle = [_label(e, fields) for e in effects], [CANNOT_JUDGE if e.at_chance else "" for e in effects]
    cmap, label = "RdBu" if effects[0].worse < 0 else "RdBu_r", effects[0].as_change().unit
    fig = figure(title, sweep_title(effects, _SEVERAL), height=0.34 * len(effects) + 1.6)
    ax = panels.layer_rows(fig, grid, (-limit, limit), names, idle, cmap=cmap, gid="changes", label=label)
    for row, e in enumerate(effects):
        for layer in np.flatnonzero(e.critical | e.gain):
            ink = "white" if abs(e.values[layer]) > 0.6 * limit else "black"
            fill, gid = (ink, "critical") if e.critical[layer] else ("none", "gain")
            ax.plot(layer, row, "o", color=ink, mfc=fill, ms=4, gid=gid)
        ax.text(grid.shape[1] - 0.2, row, f"baseline {e.baseline:.2f}", va="center", fontsize=SMALL)
    keys = [panels.mark_key(CRITICAL_LAYER, ms=4)]
    if panels.drawn(fig, "gain"):
        keys.append(panels.mark_key("significant gain", ms=4, mfc="none"))
    return with_legend(fig, keys)


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
    grid = np.full((len(rows), n_layers), np.nan)
    for row, profile in enumerate(rows):
        if not profile.unplaced:
            grid[row, profile.layers] = profile.loss.mean(0) / profile.loss.mean(0).sum()
    default = f"{rows[0].model}: share of each row's losses, n = {n} documents"
    fig = figure(title, default, height=0.4 * len(rows) + 1.6)
    names = [p.label.replace(" ", "\n", 1) for p in rows]
    idle = [p.unplaced and f"{p.unplaced}: cannot judge" for p in rows]
    limit = max(float(np.nanmax(np.abs(grid), initial=0)), 3 / n_layers)
    scale: dict[str, Any] = {"label": SHARES, "ticks": share_ticks(limit), "format": "%g"}
    colours = share_colours(limit, n_layers)
    ax = panels.layer_rows(fig, grid, colours, names, idle, cmap="RdBu_r", gid="shares", **scale)
    places = (n_layers - 1) * centres[["centre", "ci_low", "ci_high"]].to_numpy(dtype=float)
    for row, (profile, (centre, *interval)) in enumerate(zip(rows, places, strict=True)):
        if profile.unplaced:
            continue
        for width, colour in ((3.5, "white"), (1.5, INK)):  # the line stands out from any cell
            ax.plot(interval, [row, row], color=colour, lw=width, solid_capstyle="butt")
        ax.plot(centre, row, "D", color=INK, mec="white", ms=6, gid="centre")
    for third in (1, 2):
        ax.axvline(np.ceil(third * n_layers / 3) - 0.5, **_THIRDS)
    keys = [panels.line_key("thirds of the depth", **_THIRDS)]
    if not all(p.unplaced for p in rows):
        keys.append(panels.line_key("centre of mass, 95% interval", lw=1.5, marker="D", mec="white", ms=6))
    return with_legend(fig, keys)


def share_colours(limit: float, n_layers: int) -> AsinhNorm:
    """Colours of shares of the losses: even up to an even share, and by the logarithm beyond.

    One early layer can hold nearly everything, and is not to hide the others.
    """
    return AsinhNorm(1 / n_layers, -limit, limit)


def share_ticks(limit: float) -> list[float]:
    """Shares for the scale of such colours."""
    return [t for t in (-1.0, -0.3, -0.1, -0.03, 0.0, 0.03, 0.1, 0.3, 1.0) if abs(t) <= limit]


@themed
def first_mistakes(table: pd.DataFrame, *, title: str | None = None) -> Plot:
    """What becomes of the solved problems without each layer: still right, or by what goes wrong first.

    Args:
        table: Of `depthlens.analysis.classify_solutions`.
        title: Above the figure.

    Raises:
        UserError: the whole model solves none of the problems, or no single layer was removed.
    """
    shares = solution_errors.by_layer(table)
    n, n_solved = (t["doc_id"].nunique() for t in (table, table[table["solved"]]))
    if not n_solved:
        raise UserError(f"the whole model solves none of {n} problems, so that no layer's removal can break any")
    if shares.empty:
        raise UserError("no condition removes a single layer; give the result of a layer sweep")
    default = f"First mistake without one layer, in the {n_solved} of {n} problems that the whole model solves"
    fig = figure(title, default, height=3.0)
    ax = fig.subplots()
    floor = np.zeros(len(shares))
    keys = []
    for kind, colour in zip((solution_errors.RIGHT, *solution_errors.MISTAKES), (EMPTY, *PALETTE), strict=True):
        ax.bar(shares.index, shares[kind], 0.92, bottom=floor, color=colour, lw=0)
        keys.append(Patch(facecolor=colour, label="still right" if kind == solution_errors.RIGHT else kind))
        floor += shares[kind].to_numpy()
    ax.set(xlabel="removed layer", ylabel="share of these problems", ylim=(0, 1))
    ax.set_xlim(shares.index.min() - 0.6, shares.index.max() + 0.6)
    panels.whole_numbers(ax.xaxis)
    return with_legend(fig, keys, 5)


def _label(effects: Effects, fields: Sequence[str]) -> str:
    return effects.label(fields or ["task"])


def _groups(effects: list[Effects]) -> tuple[list[list[Effects]], list[str], list[str]]:
    """Effects to overlay in each panel, and the fields that differ across panels and within them."""
    for across in ([], ["model", "task"], GROUP, FIELDS):
        groups: dict[tuple[str, ...], list[Effects]] = {}
        for e in effects:
            groups.setdefault((e.unit, *(e.key[f] for f in across)), []).append(e)
        if max(map(len, groups.values())) <= MAX_OVERLAID:
            break
    fields = varying([e.key for e in effects])
    outer, inner = [f for f in fields if f in across], [f for f in fields if f not in across]
    if len(groups) > 1 and not outer:  # split by unit alone: the metric names the panels
        outer, inner = ["metric"], [f for f in inner if f != "metric"]
    return list(groups.values()), outer, inner


def _draw_line(ax: Axes, e: Effects, style: int) -> None:
    x, curve = np.arange(len(e.values)), e.baseline + np.array([e.values, e.low, e.high])
    curve[1:] = np.clip(curve[1:], *e.limits)
    panels.curve(ax, x, curve, style, idle=e.at_chance)
    panels.marks(ax, x, curve[0], e.critical, style, "critical")
    panels.level(ax, e.baseline, "baseline", color=panels.colour_of(style, e.at_chance))


def _chance(ax: Axes, e: Effects, style: int, all_lines: Sequence[Effects]) -> None:
    """A dotted line in the colour of its series; those of series with one chance level take turns in its dots."""
    turns = [other is e for other in all_lines if other.chance == e.chance]
    if turns:  # a chance that is not known equals none, itself included
        dots = (3 * turns.index(True), (1, 3 * len(turns) - 1))
        panels.level(ax, e.chance, "chance", color=panels.colour_of(style, e.at_chance), ls=dots)


def _said(e: Effects, layer: int, fields: Sequence[str]) -> str:
    whose = _label(e, fields) if fields else ""
    return f"L{layer}{f' ({whose})' if whose else ''}: {e.said(layer)}"


def _name_lines(ax: Axes, lines: Sequence[tuple[Effects, int]], fields: Sequence[str]) -> None:
    """Name each line at its right end, spread so that names do not touch."""
    low, high = ax.get_ylim()
    line_height = (high - low) * 0.065  # 8 pt of an axis some 2.3 inches high
    last = [e.baseline + e.values[np.isfinite(e.values)][-1] for e, _ in lines]
    order = np.argsort(last, kind="stable")
    places = theme.spread(np.sort(last), [line_height * (2 if lines[i][0].at_chance else 1) for i in order])
    right = ax.get_yaxis_transform()
    for place, i in zip(places, order, strict=True):
        e, style = lines[i]
        look: dict[str, Any] = {"color": panels.colour_of(style, e.at_chance), "transform": right, "clip_on": False}
        ax.plot([1.02], [place], marker=theme.MARKERS[style], ms=5, **look)
        text = _label(e, fields) + (f"\n{CANNOT_JUDGE}" if e.at_chance else "")
        panels.note(ax, 1.04, place, text, color=GREY if e.at_chance else INK, transform=right)
    ax.set_ylim(low, high)
