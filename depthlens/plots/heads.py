"""Figures of attention heads: layer x head maps, removal curves, and the overlap of two lists of heads.

Changes from baseline are coloured from red (worse) over white (none) to blue (better), scores from 0 to 1 from light to
dark; both scales are perceptually uniform and told apart by colour-blind readers and in grey (seaborn's vlag and mako).
One scale holds for all panels of a unit. It ends at the largest value, or earlier where a few heads lie far beyond the
rest, which would otherwise look white; the figure then says so. Heads are named L9H6: layer 9, head 6.

See `depthlens.plots` for what all figures have in common.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps, ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from depthlens import arguments
from depthlens.ablations import Head, parse_condition
from depthlens.analysis import stats
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.results import Result
from depthlens.analysis.stats import ALPHA, BASELINE, GROUP
from depthlens.errors import UserError
from depthlens.metrics import metric_unit
from depthlens.plots.theme import (
    CANNOT_JUDGE,
    EMPTY,
    INK,
    SCORES,
    WIDTH,
    counts,
    figure,
    ink_on,
    legend,
    round_up,
    spread,
    theme,
    varying,
)

HATCH = "#B4B4B4"
LOSS_IS_NEGATIVE, LOSS_IS_POSITIVE = "vlag_r", "vlag"  # red to blue, blue to red
CRITICAL = f"critical head (loss, Holm-adjusted p < {ALPHA})"
MAX_TOP = 20  # more names do not fit above a map
_SITES = {"head": ("head", "H"), "kv": ("KV group", "KV")}
_FAR = 2.0  # times the 99th percentile: from here on the largest value ends no scale
_MANY = 0.2  # share of heads that are marked
_LINE = 11.0  # points: height of a line of 8 pt


@dataclass(frozen=True)
class _Map:
    """One panel; arrays are [n_layers, n_heads], NaN (or False) where a head was not removed."""

    key: dict[str, str]
    unit: str
    values: np.ndarray
    worse: int  # sign of a loss; 0 for scores from 0 to 1
    critical: np.ndarray
    gain: np.ndarray
    part: str  # head or KV group
    letter: str
    group: int  # query heads that share keys and values
    n: int
    base: float = math.nan
    at_chance: bool = False
    tested: bool = True

    def top(self, k: int) -> list[Head]:
        """The k heads with the largest loss or score above 0."""
        ranked = np.where(np.isfinite(self.values), self.values * (self.worse or 1), -np.inf).ravel()
        order = [i for i in np.argsort(-ranked, kind="stable")[:k] if ranked[i] > 0]
        return [] if self.at_chance else [divmod(int(i), self.values.shape[1]) for i in order]


@dataclass(frozen=True)
class _Scale:
    """Colours of one unit."""

    cmap: Colormap
    norm: Normalize
    extend: str
    label: str


def head_map(
    scores: Result | HeadScores | Sequence[HeadScores],
    *,
    tasks: str | Sequence[str] | None = None,
    metrics: str | Sequence[str] | None = None,
    top: int | None = None,
    title: str | None = None,
) -> Figure:
    """Layer x head: what removing each head, or group of heads that share keys and values, changes; or its score.

    A dot is a critical head, a ring a significant gain. A task at chance shows no differences, because there are none
    to judge. Several tasks, metrics or scores are drawn as panels with one scale a unit.

    Args:
        scores: A head sweep (conditions that are not one head or KV group are left out), or scores of heads.
        tasks: The task or tasks of a sweep to draw; all by default.
        metrics: The metric or metrics of a sweep to draw; all by default.
        top: Frame and name so many heads with the largest loss or score in each panel, up to 20.
        title: Above the figure; by default the model, what was done, and the number of documents.

    Raises:
        UserError: an unknown task or metric, no condition that is a single head, scores of no heads, or a number of
            names that does not fit.
    """
    if isinstance(scores, Result):
        maps, said = _of_result(scores, tasks, metrics)
    else:
        if tasks is not None or metrics is not None:
            raise UserError("tasks= and metrics= choose within a Result; give the scores themselves to draw fewer")
        maps, said = _of_scores(
            [scores] if isinstance(scores, HeadScores) else list(scores) if isinstance(scores, Sequence) else [scores]
        )
    if top is not None and not (type(top) is int and 1 <= top <= MAX_TOP):
        raise UserError(f"top {top!r}: give a whole number of heads from 1 to {MAX_TOP}")
    by_unit: dict[tuple[str, int], list[_Map]] = {}
    for m in maps:
        by_unit.setdefault((m.unit, m.worse), []).append(m)
    groups = list(by_unit.values())
    n_layers, n_heads = (max(m.values.shape[i] for m in maps) for i in (0, 1))
    columns = _columns(len(maps), n_layers, n_heads)
    apart = any(len(g) > 1 for g in groups)  # then a unit begins a row of its own, else a scale a panel
    rows = [g[i : i + columns] for g in (groups if apart else [maps]) for i in range(0, len(g), columns)]
    width = min(WIDTH, max(4.8, columns * (0.45 * n_layers + 0.9)))
    wide = width / columns - 0.65  # inches
    high = min(max(n_heads * min(wide / n_layers, 0.22), 1.1), max(1.6, 8.2 / len(rows) - 0.7))
    named = {id(m): m.top(top or 0) for m in maps}
    room = max((_label_room(named[id(m)], wide) for m in maps), default=0.0)
    keys = varying([m.key for m in maps])
    handles = _handles(maps, named, top)
    with theme():
        n_lines = math.ceil(len(handles) / max(1, int(width / 2.3)))
        bars = len(groups) if apart else 1
        height = len(rows) * (high + room / 72 + 0.75) + 0.85 * bars + 0.2 * n_lines + 0.35
        fig = figure(said if title is None else title, height=height, width=width)
        grid = fig.add_gridspec(len(rows), columns)
        axes = {id(m): fig.add_subplot(grid[r, c]) for r, row in enumerate(rows) for c, m in enumerate(row)}
        for g in groups:
            across = min(len(g), columns) * wide
            scale = _scale(g, int(14 * across))
            for m in g:
                ax = axes[id(m)]
                mesh = _draw_map(ax, m, scale, 72 * wide / m.values.shape[0], 72 * high / m.values.shape[1])
                _name_heads(ax, m, named[id(m)], wide, high)
                name = ", ".join(m.key[k] for k in keys)
                _titles(ax, m, name, room)
            # a bar of 0.1 inches, whatever the panels above it measure
            place = {"fraction": 0.1 / high / math.ceil(len(g) / columns), "shrink": 0.8, "aspect": 8 * across}
            on = [axes[id(m)] for m in g]
            options = {"orientation": "horizontal", "pad": 0.02, "label": scale.label, "extend": scale.extend} | place
            bar = fig.colorbar(mesh, ax=on, extendfrac=0.03, **options)
            bar.ax.locator_params(nbins=8)
            bar.outline.set_visible(False)
        legend(fig, handles, ncols=max(1, min(len(handles), int(width / 2.3))))
    return fig


def _of_result(
    result: Result, task: str | Sequence[str] | None, metric: str | Sequence[str] | None
) -> tuple[list[_Map], str]:
    """The panels of a head sweep, one per model, task, metric and kind of removal; and what all have in common."""
    result = result if task is None and metric is None else result.select(tasks=task, metrics=metric)
    kinds = {name: _kind(name) for name in result.summary["condition"].unique()}
    table = result.summary.assign(kind=result.summary["condition"].map(kinds)).dropna(subset="kind")
    if table.empty:
        names = ", ".join([n for n in kinds if n != BASELINE][:5]) or "the baseline alone"
        raise UserError(f"no condition removes a single head ({names}); sweep heads or kv")
    table["index"] = [parse_condition(name).ablations[0].index for name in table["condition"]]
    bases = {(row.model, row.task, row.metric): row for row in result.baselines.itertuples()}
    maps = []
    for (*names, (site, mode)), rows in table.groupby([*GROUP, "kind"], sort=False):
        base, dims = bases[tuple(names)], _dims(result.record, names[0])
        part, letter = _SITES[site]
        shape = [int(rows[c].max()) + 1 for c in ("layer", "index")]
        shape = np.maximum(shape, [dims.get("n_layers", 0), dims.get("n_heads" if site == "head" else "n_kv_heads", 0)])
        info = result.metric_info(*names[1:])
        better = info["higher_is_better"]
        at = rows["layer"].to_numpy(int), rows["index"].to_numpy(int)
        values, sure = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
        values[at], sure[at] = rows["delta"], (rows["p_adjusted"] < ALPHA) & (rows["delta"].abs() > info["min_effect"])
        loss = (values < 0) if better else (values > 0)
        group = dims["n_heads"] // dims["n_kv_heads"] if site == "head" and dims.get("n_kv_heads") else 1
        key = dict(zip((*GROUP, "site"), (*names[:2], names[2].removesuffix(",none"), part), strict=True)) | {
            "mode": mode
        }
        unit = f"change of {unit_of(result, *names)} from baseline"
        judged = (sure & loss, sure & ~loss, part, letter, group)
        maps.append(_Map(key, unit, values, -1 if better else 1, *judged, base.n, base.baseline, bool(base.at_chance)))
    return maps, _title(maps, result.record.get("method") == "attribution")


def _kind(condition: str) -> tuple[str, str] | None:
    """Site and mode of a condition that removes one head or one KV group."""
    ablations = parse_condition(condition).ablations
    return (ablations[0].site, ablations[0].mode) if len(ablations) == 1 and ablations[0].site in _SITES else None


def _dims(record: dict, model: str) -> dict[str, int]:
    """Sizes of a model, from the record or from the part of a joined record that is about it."""
    found = [
        r["model"].get("dims") for r in (record, *record.get("parts", ())) if r.get("model", {}).get("name") == model
    ]
    return next((dims for dims in found if dims), {})


def unit_of(result: Result, model: str, task: str, metric: str) -> str:
    """What a metric is called on an axis: accuracy where it is a share of documents, else its name and unit."""
    docs = result.docs
    values = docs.loc[(docs["model"] == model) & (docs["task"] == task) & (docs["metric"] == metric), "value"]
    if result.metric_info(task, metric)["higher_is_better"] and stats.is_binary(values):
        return "accuracy"
    unit = metric_unit(metric)
    return metric.removesuffix(",none") + (f" ({unit})" if unit else "")


def _title(maps: Sequence[_Map], estimated: bool) -> str:
    fields = ("model", "task", "site", "mode")
    models, tasks, sites, modes = (list(dict.fromkeys(m.key[f] for m in maps)) for f in fields)
    done = (
        {"zero": "removed", "donor": "taken from the donor"}.get(modes[0], f"replaced by its {modes[0]}")
        if len(modes) == 1
        else "removed or replaced"
    )
    what = f"one {' or '.join(sites)} {done} at a time"
    how = " (estimated by attribution)" if estimated else ""
    count = counts(m.n for m in maps)
    task = f", {tasks[0]}" if len(tasks) == 1 else ""
    return f"{', '.join(models)}{task}: {what}{how}, n = {count} documents"


def _of_scores(scores: Sequence[HeadScores]) -> tuple[list[_Map], str]:
    """One panel per score; scores that were tested against 0, or that pass below it, are losses."""
    maps = []
    for s in scores:
        arguments.made_by(s, "critical", "a head sweep, or scores of heads", "scores")
        if not np.isfinite(s.values).any():
            raise UserError(f"{s.name}: no head has a score; give scores of at least one")
        finite = s.values[np.isfinite(s.values)]
        worse = int(s.critical is not None or finite.min() < 0 or finite.max() > 1)
        none = np.zeros(s.values.shape, dtype=bool)
        tested = s.critical is not None
        critical = s.critical if tested else none
        about = s.record.get("model", {})
        dims = about.get("dims", {})
        group = dims["n_heads"] // dims["n_kv_heads"] if dims.get("n_kv_heads") else 1
        unit = ("loss" if worse else "score") + (f" ({s.unit})" if s.unit else "")
        key = {"model": about.get("name", ""), "name": s.name}
        unit = unit.replace("loss" if worse else "score", s.name) if len(scores) == 1 else unit
        maps.append(_Map(key, unit, s.values, worse, critical, none, *_SITES["head"], group, s.n, tested=tested))
    if not maps:
        raise UserError("no scores; give at least one")
    models, names = (list(dict.fromkeys(m.key[f] for m in maps)) for f in ("model", "name"))
    count = counts(m.n for m in maps)
    what = names[0] if len(names) == 1 else "scores of heads"
    return maps, f"{', '.join(filter(None, models))}: {what}, n = {count}".removeprefix(": ")


def _columns(n_panels: int, n_layers: int, n_heads: int) -> int:
    """Panels in a row: few wide maps are stacked, so that their layers line up; square ones stand side by side."""
    if n_panels == 1 or (n_panels <= 3 and n_layers >= 2 * n_heads and n_layers > 12):
        return 1
    return 3 if n_panels > 4 and n_layers <= 12 else 2


def _scale(maps: Sequence[_Map], width: int) -> _Scale:
    """One scale for all panels of a unit, centred at 0 for changes; its label is ``width`` characters wide."""
    shown = np.concatenate([m.values[np.isfinite(m.values)] for m in maps if not m.at_chance] or [[0.0]])
    unit, worse = maps[0].unit, maps[0].worse
    size = np.abs(shown)
    # a document or two must not fill the scale of an accuracy
    least = 0.1 if "accuracy" in unit and worse else 0.0
    largest = max(round_up(float(size.max())), least) or 1.0
    if not worse:
        return _Scale(colormaps[SCORES], Normalize(0, largest), "neither", unit)
    usual, far = float(np.quantile(size, 0.99)), float(shown[np.argmax(size)])
    limit = largest
    if abs(far) > _FAR * usual:
        limit = max(round_up(max(usual, abs(far) / 3)), least)
    below, above = int((shown < -limit).sum()), int((shown > limit).sum())
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max"}.get((below > 0, above > 0), "both")
    label = textwrap.fill(unit, width)
    if beyond := below + above:
        heads = "1 head lies beyond, at" if beyond == 1 else f"{beyond} heads lie beyond, up to"
        said = f"colours end at ±{limit:.2g}: {heads}\xa0{far:.2g}".replace("-", "−")
        label += "\n" + textwrap.fill(said, width)
    cmap = colormaps[LOSS_IS_NEGATIVE if worse < 0 else LOSS_IS_POSITIVE]
    return _Scale(cmap, Normalize(-limit, limit), extend, label)


def _draw_map(ax: Axes, m: _Map, scale: _Scale, wide: float, high: float) -> Any:
    """Cells, marks and axes; a cell measures ``wide`` x ``high`` points."""
    n_layers, n_heads = m.values.shape
    x, y = np.arange(n_layers + 1) - 0.5, np.arange(n_heads + 1) - 0.5
    ax.set_facecolor(EMPTY)
    if m.at_chance or not np.isfinite(m.values).all():  # not judged, or not removed
        box = (x[0], y[0]), n_layers, n_heads
        ax.add_patch(Rectangle(*box, hatch="////", fc="none", ec=HATCH, lw=0, zorder=0.5, gid="hatch"))
    shown = np.ma.masked_invalid(np.full_like(m.values, np.nan) if m.at_chance else m.values).T
    edges = {"edgecolors": "white", "linewidth": 0.5} if min(wide, high) > 7 and not m.at_chance else {}
    mesh = ax.pcolormesh(x, y, shown, cmap=scale.cmap, norm=scale.norm, **edges)
    if m.at_chance:
        box = {"fc": "white", "ec": "none", "pad": 1.5}
        middle = {"ha": "center", "va": "center", "fontsize": 8, "transform": ax.transAxes}
        ax.text(0.5, 0.5, CANNOT_JUDGE, bbox=box, **middle)
    else:
        size = min(4.0, max(1.4, 0.5 * min(wide, high)))
        if (m.critical | m.gain).mean() > _MANY:
            size *= 0.6  # so that the colours are seen
        for kind, which in (("critical", m.critical), ("gain", m.gain)):
            inks = np.array(
                [ink_on(scale.cmap(scale.norm(m.values[at]))) for at in zip(*np.nonzero(which), strict=True)]
            )
            for ink in set(inks):
                layers, heads = (where[inks == ink] for where in np.nonzero(which))
                fill = {"ms": size} if kind == "critical" else {"ms": size + 0.5, "mfc": "none", "mew": 0.8}
                ax.plot(layers, heads, "o", color=ink, gid=kind, **({"mew": 0} | fill))
    for border in np.arange(m.group, n_heads, m.group) - 0.5 if m.group > 1 else ():
        ax.axhline(border, color="#8C8C8C", lw=0.5, gid="group")
    ax.set(xlim=(x[0], x[-1]), ylim=(y[-1], y[0]), xlabel="layer", ylabel=m.part)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=12))
    step = 1 if high > 10 else m.group * 2 ** max(0, math.ceil(math.log2(11 / high / m.group)))
    ax.set_yticks(range(0, n_heads, step))
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return mesh


def _label_room(heads: Sequence[Head], wide: float) -> float:
    """Points that the names above a panel need; upright names take more."""
    return 0.0 if not heads else (_LINE + 10 if _fits(heads, wide) else 46.0)


def _fits(heads: Sequence[Head], wide: float) -> bool:
    return 36 * len(heads) <= 72 * wide


def _name_heads(ax: Axes, m: _Map, heads: Sequence[Head], wide: float, high: float) -> None:
    """Frame heads and name them above the map, with a line from name to cell."""
    if not heads:
        return
    n_layers, n_heads = m.values.shape
    flat = _fits(heads, wide)
    point = n_layers / (72 * wide)  # of the page, in layers
    heads = sorted(heads)
    sizes = np.full(len(heads), (36 if flat else 11) * point)
    places = spread([layer for layer, _ in heads], sizes, -0.5, n_layers - 0.5)
    foot = -0.5 - 9 * n_heads / (72 * high)  # 9 points above the map
    for place, (layer, head) in zip(places, heads, strict=True):
        box = {"fc": "none", "ec": INK, "lw": 1.0, "clip_on": False, "zorder": 3, "gid": "top"}
        ax.add_patch(Rectangle((layer - 0.5, head - 0.5), 1, 1, **box))
        line = {"color": INK, "lw": 0.5, "clip_on": False, "zorder": 2.5, "gid": "leader"}
        ax.plot([place, layer], [foot, -0.5], **line)
        start = max([h for la, h in heads if la == layer and h < head], default=-1) + 0.5  # below the frame above
        ax.plot([layer, layer], [start, head - 0.5], **line)
        side = {} if flat else {"rotation": 90}
        name = f"L{layer}{m.letter}{head}"
        ax.text(place, foot, name, ha="center", va="bottom", fontsize=8, gid="name", **side)
    ax.set(xlim=(-0.5, n_layers - 0.5), ylim=(n_heads - 0.5, -0.5))


def _titles(ax: Axes, m: _Map, name: str, room: float) -> None:
    if name:
        size = None if len(name) <= 40 else 9  # two panels share the width of the page
        ax.set_title(name, loc="left", pad=room + 4, fontsize=size).set_parse_math(False)
    if math.isfinite(m.base):
        said = f"baseline {m.base:.2f}".replace("-", "−")
        ax.set_title(said, loc="right", pad=room + 4, fontsize=8)


def _handles(maps: Sequence[_Map], named: dict[int, list[Head]], top: int | None) -> list[Artist]:
    judged = [m for m in maps if not m.at_chance]
    dot: dict[str, Any] = {"ls": "", "marker": "o", "ms": 4, "color": INK}
    handles: list[Artist] = []
    if any(m.tested for m in judged):
        handles.append(Line2D([], [], label=CRITICAL, **dot))
    if any(m.gain.any() for m in judged):
        handles.append(Line2D([], [], label="significant gain", **(dot | {"mfc": "none"})))
    if any(named.values()):
        what = "largest losses" if any(m.worse for m in judged) else "highest scores"
        frame = dot | {"marker": "s", "ms": 7, "mfc": "none"}
        handles.append(Line2D([], [], label=f"the {top} {what}" if top != 1 else f"the {what[:-1]}", **frame))
    if any(m.group > 1 for m in maps):
        handles.append(Line2D([], [], color="#8C8C8C", lw=0.8, label="between KV groups"))
    if any(not np.isfinite(m.values).all() for m in judged):
        handles.append(Patch(fc=EMPTY, ec=HATCH, hatch="////", lw=0, label="not measured"))
    return handles
