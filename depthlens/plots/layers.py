"""What each removed layer costs: depth profiles, and protocols side by side; see `depthlens.plots`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from depthlens import arguments
from depthlens.ablations import parse_condition
from depthlens.analysis import stats
from depthlens.analysis.results import Result
from depthlens.analysis.stats import ALPHA, BASELINE, GROUP
from depthlens.errors import UserError
from depthlens.plots.theme import (
    CANNOT_JUDGE,
    DASHED,
    DOTTED,
    EMPTY,
    GREY,
    INK,
    MARKERS,
    PALETTE,
    counts,
    figure,
    legend,
    spread,
    theme,
    varying,
)

CRITICAL = f"critical layer (loss, Holm-adjusted p < {ALPHA})"
FIELDS = [*GROUP, "site"]
_OVERLAID = 4  # series in one panel; more are drawn side by side
_SITES = {"layer": "whole layer", "attn": "attention", "mlp": "MLP"}
Names = str | Sequence[str] | None


@dataclass(frozen=True)
class _Series:
    """One line of a profile; arrays are [n_layers], NaN (or False) where a layer was not removed."""

    key: dict[str, str]  # by FIELDS
    unit: str
    better: bool  # higher is better
    base: Any  # row of `Result.baselines`
    delta: np.ndarray
    low: np.ndarray
    high: np.ndarray
    critical: np.ndarray
    gain: np.ndarray

    def label(self, fields: Sequence[str]) -> str:
        return " ".join(self.key[f] for f in fields) or self.key["task"]


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
    series = _series(result, tasks, metrics)
    panels, across, within = _panels(series)
    labels = list(dict.fromkeys(s.label(within) for s in series))
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    with theme():
        fig = figure(_title(series) if title is None else title, height=3.3 if rows == 1 else 2.1 * rows + 0.9)
        for i, panel in enumerate(panels):
            ax = fig.add_subplot(rows, columns, i + 1)
            styles = [labels.index(s.label(within)) if len(labels) <= _OVERLAID else 0 for s in panel]
            for s, style in zip(panel, styles, strict=True):
                _draw_series(ax, s, style, value)
            _draw_frame(ax, panel[0], value)
            if len(panels) > 1:
                ax.set_title(panel[0].label(across), loc="left")
            elif len(panel) > 1:
                _label_ends(ax, panel, styles, within, value)
            if any(s.base.at_chance for s in panel) and (len(panels) > 1 or len(panel) == 1):
                ax.set_title(CANNOT_JUDGE, loc="right", y=0.9, fontsize=8, color=GREY)
            if i + columns >= len(panels):
                ax.set_xlabel("removed layer")
        named = labels if len(panels) > 1 and 1 < len(labels) <= _OVERLAID else []
        legend(fig, _handles(series, named, value))
        sns.despine(fig)
    return fig


def protocol_comparison(
    result: Result, *, tasks: Names = None, metrics: Names = None, title: str | None = None
) -> Figure:
    """One row per task and metric, one column per removed layer: which layers matter under which protocol.

    Colour is the difference from baseline: white none, red worse, blue better. A dot is a critical layer, a
    ring a significant gain. A row at chance shows no differences, because there are none to judge.

    Raises:
        UserError: an unknown task or metric, no condition that is a single layer, or several units.
    """
    series = _series(result, tasks, metrics)
    unit, better, n_layers = series[0].unit, series[0].better, len(series[0].delta)
    if len(units := {s.unit: None for s in series}) > 1:
        raise UserError(f"one colour scale cannot show {', '.join(units)} together; choose with metrics=[...]")
    grid = np.ma.masked_invalid([s.delta * (np.nan if s.base.at_chance else 1) for s in series])
    limit = max(0.1, math.ceil(np.abs(grid).max() * 10) / 10) if grid.count() else 1.0
    with theme():
        fig = figure(_title(series) if title is None else title, height=0.34 * len(series) + 1.6)
        ax = fig.subplots()
        ax.set_facecolor(EMPTY)  # not removed, or not judged
        x, y = np.arange(n_layers + 1) - 0.5, np.arange(len(series) + 1) - 0.5
        colours = {"cmap": "RdBu" if better else "RdBu_r", "vmin": -limit, "vmax": limit}
        mesh = ax.pcolormesh(x, y, grid, edgecolors="white", linewidth=0.5, **colours)
        for row, s in enumerate(series):
            _draw_row(ax, s, row, limit)
        ax.set_yticks(range(len(series)), [s.label(varying([s.key for s in series])) for s in series])
        ax.set(xlabel="removed layer", xlim=(x[0], x[-1]), ylim=(y[-1], y[0]))
        ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=12))
        ax.tick_params(length=0)
        place = {"orientation": "horizontal", "aspect": 45, "fraction": 0.06, "pad": 0.02}
        bar = fig.colorbar(mesh, ax=ax, label=f"change of {unit} from baseline", **place)
        bar.outline.set_visible(False)
        handles = [Line2D([], [], ls="", marker="o", ms=4, color=INK, label=CRITICAL)]
        if any(s.gain.any() and not s.base.at_chance for s in series):
            handles.append(Line2D([], [], ls="", marker="o", mfc="none", color=INK, label="significant gain"))
        legend(fig, handles)
        sns.despine(fig, left=True, bottom=True)
    return fig


def _handles(series: Sequence[_Series], names: Sequence[str], value: str) -> list[Line2D | Patch]:
    styles = zip(names, PALETTE, MARKERS, strict=False)
    handles = [Line2D([], [], color=c, marker=m, ms=5, label=name) for name, c, m in styles]
    if any(s.critical.any() and not s.base.at_chance for s in series):
        handles.append(Line2D([], [], ls="", marker="o", ms=6, color=INK, label=CRITICAL))
    if value == "value":
        handles.append(Line2D([], [], color=INK, lw=1, ls=DASHED, label="baseline"))
        if any(math.isfinite(s.base.chance) for s in series):
            handles.append(Line2D([], [], color=GREY, lw=1, ls=DOTTED, label="chance"))
    return [*handles, Patch(facecolor=INK, alpha=0.2, lw=0, label="95% interval")]


def _series(result: Result, tasks: Names, metrics: Names) -> list[_Series]:
    """The single-layer sweeps of a result, one series per model, task, metric and site."""
    arguments.result(result)
    result = result if tasks is None and metrics is None else result.select(tasks=tasks, metrics=metrics)
    sites = {name: _site(name) for name in result.summary["condition"].unique()}
    profile = result.summary.assign(site=result.summary["condition"].map(sites)).dropna(subset="site")
    if profile.empty:
        names = ", ".join([n for n in sites if n != BASELINE][:5]) or "the baseline alone"
        raise UserError(f"no condition removes a single layer ({names}); sweep layers, attn or mlp")
    dims = result.record.get("model", {}).get("dims", {})
    n_layers = max(int(profile["layer"].max()) + 1, dims.get("n_layers", 0))
    bases = {(row.model, row.task, row.metric): row for row in result.baselines.itertuples()}
    shares = {names: stats.is_binary(docs["value"]) for names, docs in result.docs.groupby(GROUP)}
    found = []
    for (*names, site), rows in profile.groupby([*GROUP, "site"], sort=False):
        names, base = tuple(names), bases[tuple(names)]
        info = result.metric_info(*names[1:])
        better = info["higher_is_better"]
        metric = names[2].removesuffix(",none")
        table = rows.set_index("layer").reindex(range(n_layers))
        delta, low, high = (table[c].to_numpy(dtype=float) for c in ("delta", "ci_low", "ci_high"))
        sure = ((table["p_adjusted"] < ALPHA) & (table["delta"].abs() > info["min_effect"])).to_numpy(dtype=bool)
        worse = (delta < 0) if better else (delta > 0)
        unit = "accuracy" if better and shares[names] else metric
        key = dict(zip(FIELDS, (*names[:2], metric, site), strict=True))
        found.append(_Series(key, unit, better, base, delta, low, high, sure & worse, sure & ~worse))
    return found


def _site(condition: str) -> str | None:
    """What a condition removes, where that is one layer, its attention or its MLP."""
    ablations = parse_condition(condition).ablations
    if len(ablations) != 1 or ablations[0].site not in _SITES:
        return None
    return _SITES[ablations[0].site] + (f" ({ablations[0].mode})" if ablations[0].mode in ("mean", "donor") else "")


def _panels(series: list[_Series]) -> tuple[list[list[_Series]], list[str], list[str]]:
    """Groups of series to overlay, and the fields that differ across groups and within them."""
    for across in ([], ["model", "task"], GROUP, FIELDS):
        groups: dict[tuple, list[_Series]] = {}
        for s in series:
            groups.setdefault((s.unit, *(s.key[f] for f in across)), []).append(s)
        if max(map(len, groups.values())) <= _OVERLAID:
            break
    outer, inner = ([f for f in varying([s.key for s in series]) if (f in across) == out] for out in (True, False))
    if len(groups) > 1 and not outer:  # split by unit alone: the metric tells the panels apart
        outer, inner = ["metric"], [f for f in inner if f != "metric"]
    return list(groups.values()), outer, inner


def _draw_series(ax: Axes, s: _Series, style: int, value: str) -> None:
    x, colour, marker = np.arange(len(s.delta)), GREY if s.base.at_chance else PALETTE[style], MARKERS[style]
    base = s.base.baseline if value == "value" else 0.0
    y, low, high = base + s.delta, base + s.low, base + s.high
    if s.unit == "accuracy" and value == "value":
        low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
    hatch = {"hatch": "////", "facecolor": "none", "edgecolor": colour, "alpha": 0.5}
    ax.fill_between(x, low, high, lw=0, **(hatch if s.base.at_chance else {"color": colour, "alpha": 0.16}))
    known = np.pad(np.isfinite(y), 1)
    alone = known[1:-1] & ~known[:-2] & ~known[2:]  # a band has no width at a layer without neighbours
    ax.vlines(x[alone], low[alone], high[alone], color=colour, lw=1)
    if value == "value":
        ax.axhline(s.base.baseline, color=colour, lw=1, ls=DASHED, zorder=1.5, gid="baseline")
        if math.isfinite(s.base.chance):
            ax.axhline(s.base.chance, color=GREY, lw=1, ls=DOTTED, zorder=1.5, gid="chance")
    ax.plot(x, y, color=colour, lw=1.2, marker=marker, ms=3, mfc="white", mew=0.8, gid="series")
    if s.critical.any() and not s.base.at_chance:
        dots = {"marker": marker, "ms": 6, "color": colour, "mec": "white", "mew": 0.5}
        ax.plot(x[s.critical], y[s.critical], ls="", gid="critical", **dots)


def _draw_frame(ax: Axes, s: _Series, value: str) -> None:
    ax.set_xlim(-0.7, len(s.delta) - 0.3)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=8))
    if value == "delta":
        ax.axhline(0, color=INK, lw=0.8, zorder=1.5, gid="baseline")
    elif s.unit == "accuracy":
        ax.set_ylim(-0.02, 1.02)
        ax.yaxis.set_major_locator(ticker.MultipleLocator(0.2))
    if s.unit != "accuracy" or ax.get_subplotspec().is_first_col():
        ax.set_ylabel(s.unit if value == "value" else f"change of {s.unit} from baseline")


def _label_ends(ax: Axes, panel: Sequence[_Series], styles: Sequence[int], within: Sequence[str], value: str) -> None:
    """Name each line at its right end, spread so that names do not touch."""
    ends, (low, high) = [], ax.get_ylim()
    line = (high - low) * 0.065  # 8 pt of an axis some 2.3 inches high
    for s, style in zip(panel, styles, strict=True):
        last = s.delta[np.isfinite(s.delta)][-1] + (s.base.baseline if value == "value" else 0)
        ends.append((last, s, style, line * (2 if s.base.at_chance else 1)))
    ends.sort(key=lambda end: end[0])
    places = spread([end[0] for end in ends], [end[3] for end in ends])
    right = ax.get_yaxis_transform()
    for place, (_, s, style, _) in zip(places, ends, strict=True):
        colour, ink = (GREY, GREY) if s.base.at_chance else (PALETTE[style], INK)
        ax.plot([1.02], [place], marker=MARKERS[style], ms=5, color=colour, transform=right, clip_on=False)
        text = s.label(within) + (f"\n{CANNOT_JUDGE}" if s.base.at_chance else "")
        ax.text(1.04, place, text, color=ink, fontsize=8, va="center", transform=right)
    ax.set_ylim(low, high)


def _draw_row(ax: Axes, s: _Series, row: int, limit: float) -> None:
    n_layers = len(s.delta)
    if s.base.at_chance:
        ax.add_patch(Rectangle((-0.5, row - 0.5), n_layers, 1, hatch="////", fc="none", ec="#A0A0A0", lw=0))
        box = {"fc": "white", "ec": "none", "pad": 1.5}
        ax.text(n_layers / 2 - 0.5, row, CANNOT_JUDGE, ha="center", va="center", fontsize=8, bbox=box)
    else:
        for layer in np.flatnonzero(s.critical | s.gain):
            ink, full = "white" if abs(s.delta[layer]) > 0.6 * limit else "black", s.critical[layer]
            mark = {"ms": 4, "mfc": ink} if full else {"ms": 4.5, "mfc": "none"}
            ax.plot(layer, row, "o", color=ink, gid="critical" if full else "gain", **mark)
    ax.text(n_layers - 0.2, row, f"baseline {s.base.baseline:.2f}", va="center", fontsize=8)


def _title(series: Sequence[_Series]) -> str:
    """What is the same in all series: models, task, what was removed, number of documents."""
    models, tasks, sites = (list(dict.fromkeys(s.key[f] for s in series)) for f in ("model", "task", "site"))
    where = {"whole layer": "one layer", "attention": "attention of one layer", "MLP": "MLP of one layer"}
    place, _, mean = sites[0].partition(" (")
    removed = where[place] + (" replaced by its mean" if mean else " removed")
    removed = removed if len(sites) == 1 else "one layer or part of it removed"
    count = counts(s.base.n for s in series)
    task = f", {tasks[0]}" if len(tasks) == 1 else ""
    return f"{', '.join(models)}{task}: {removed} at a time, n = {count} documents"
