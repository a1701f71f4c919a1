"""Layer x head maps of losses and scores.

Changes from baseline are coloured from red (worse) over white (none) to blue (better), scores from 0 to 1 from light
to dark; both scales are perceptually uniform, and colour-blind readers and grey prints distinguish them (seaborn's
vlag and mako). One scale holds for all panels of a unit. It ends at the largest value, or earlier where a few heads
are far beyond the rest, which would otherwise look white; the figure then says so. Heads are named as in conditions:
L9.H6 is head 6 of layer 9.

See `depthlens.plots` for what all figures have in common.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap
from matplotlib.patches import Patch, Rectangle

from depthlens import arguments
from depthlens.ablations import INDEXED, Head
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.results import Result
from depthlens.errors import UserError
from depthlens.look import EMPTY, GREY, INK, PALE
from depthlens.plots import panels, theme
from depthlens.plots.effects import PROVEN, Effects, Names, group_size, sweep_effects, sweep_title, varying
from depthlens.plots.theme import CANNOT_JUDGE, SMALL, Plot, figure, themed, with_legend

LOSS_IS_NEGATIVE, LOSS_IS_POSITIVE = "vlag_r", "vlag"  # red to blue, blue to red
CRITICAL_HEAD = f"critical head (loss, {PROVEN})"
MAX_TOP = 20  # more names do not fit above a map
_TOP_LOSSES, _TOP_SCORES = ("largest loss", "largest losses"), ("highest score", "highest scores")
_GROUP_LINE = GREY
_FAR = 2.0  # times the 99th percentile: a largest value from here on does not end the scale
_MANY = 0.2  # share of heads that are marked
_LINE = 11.0  # points: height of a line of 8 pt
_NAME = 38.0  # points: width of a name such as L17.H24


@dataclass(frozen=True)
class Layout:
    """Which panels are in each row, their sizes in inches, and which heads are named above each."""

    rows: list[Sequence[int]]
    columns: int
    width: float
    wide: float
    high: float
    named: list[list[Head]]

    @property
    def upright(self) -> bool:
        """Whether names are written upright, because side by side they do not fit."""
        return any(_NAME * len(heads) > 72 * self.wide for heads in self.named)

    @property
    def room(self) -> float:
        """Points above each panel that the names take."""
        return (50.0 if self.upright else _LINE + 10) if any(self.named) else 0.0


@themed
def head_map(
    scores: Result | HeadScores | Sequence[HeadScores],
    *,
    tasks: Names = None,
    metrics: Names = None,
    top: int | None = None,
    title: str | None = None,
) -> Plot:
    """Layer x head: what removing each head, or group of heads that share keys and values, changes; or its score.

    A dot is a critical head, a ring a significant gain. A task at chance shows no differences, because there are none
    to judge. Several tasks, metrics or scores are drawn as panels with one scale a unit.

    Args:
        scores: A head sweep (conditions that are not one head or KV group are left out), or scores of heads.
        tasks: The task or tasks of a sweep to draw; all by default.
        metrics: The metric or metrics of a sweep to draw; all by default.
        top: Frame and name so many heads with the largest loss or score in each panel, at most 20.
        title: Above the figure; by default the model, what was done, and the number of documents.

    Raises:
        UserError: an unknown task or metric, no condition that is a single head, scores of no heads, or no number of
            names.
    """
    if isinstance(scores, Result):
        heads, default = _of_result(scores, tasks, metrics)
    else:
        if tasks is not None or metrics is not None:
            raise UserError("tasks= and metrics= choose within a Result; give the scores themselves to draw fewer")
        heads, default = _of_scores([scores] if isinstance(scores, HeadScores | str) else scores)
    if top is not None:
        arguments.whole("top", top, 1, of=" of heads")
        top = min(top, MAX_TOP)
    units: dict[tuple[str, int], list[int]] = {}
    for i, e in enumerate(heads):
        units.setdefault((e.unit, e.worse), []).append(i)
    apart = any(len(group) > 1 for group in units.values())  # then a unit begins a row of its own, else a scale a panel
    layout = _layout(heads, list(units.values()) if apart else [[*range(len(heads))]], top or 0)
    keys = _keys(heads, top if any(layout.named) else None)
    key_columns = max(1, int(layout.width / 2.3))
    height = len(layout.rows) * (layout.high + layout.room / 72 + 0.75) + 0.85 * (len(units) if apart else 1)
    height += 0.2 * math.ceil(len(keys) / key_columns) + 0.35
    fig = figure(title, default, height=height, width=layout.width)
    grid = fig.add_gridspec(len(layout.rows), layout.columns)
    axes = {i: fig.add_subplot(grid[r, c]) for r, row in enumerate(layout.rows) for c, i in enumerate(row)}
    fields = varying([e.key for e in heads])
    for group in units.values():
        across = min(len(group), layout.columns) * layout.wide
        scale = _scale([heads[i] for i in group], int(14 * across))
        for i in group:
            mesh = _draw_map(axes[i], heads[i], scale, layout)
            fig.points += _points(axes[i], heads[i])
            _name_heads(axes[i], heads[i], layout.named[i], layout)
            _titles(axes[i], heads[i], fields, layout.room)
        # a bar of 0.1 inches, whatever the panels above it measure
        fraction = 0.1 / layout.high / math.ceil(len(group) / layout.columns)
        look = {"fraction": fraction, "shrink": 0.8, "aspect": 8 * across, "extendfrac": 0.03}
        bar = panels.colour_bar(mesh, [axes[i] for i in group], scale.label, extend=scale.extend, **look)
        bar.ax.locator_params(nbins=8)
    return with_legend(fig, keys, max(1, min(len(keys), key_columns)))


# -- what is drawn -------------------------------------------------------------------------------------


def _of_result(result: Result, tasks: Names, metrics: Names) -> tuple[list[Effects], str]:
    """The panels of a head sweep, one per model, task, metric and kind of removal; and what all have in common."""
    heads = sweep_effects(result, tasks, metrics, tuple(INDEXED), "sweep heads, kv or experts")
    method = result.record.get("method", "exact").replace("_", " ")
    how = "" if method == "exact" else f" (estimated by {method})"
    sites = dict.fromkeys(e.key["site"] for e in heads)
    title = sweep_title(heads, f"one {' or '.join(sites)}", how)
    return [replace(e, unit=f"change of {e.unit} from baseline") for e in heads], title


def _of_scores(scores: Sequence[HeadScores]) -> tuple[list[Effects], str]:
    """One panel per score; scores that were tested against 0, or that pass below it, are losses."""
    if not scores:
        raise UserError("no scores; give at least one")
    heads = []
    for s in scores:
        arguments.made_by(s, "critical", "a head sweep, or scores of heads", "scores")
        finite = s.values[np.isfinite(s.values)]
        if not len(finite):
            raise UserError(f"{s.name}: no head has a score; give scores of at least one")
        worse = int(s.critical is not None or finite.min() < 0 or finite.max() > 1)
        none, model = np.zeros(s.values.shape, dtype=bool), s.record.get("model", {})
        key = {"model": model.get("name", ""), "name": s.name}
        unit = (s.name if len(scores) == 1 else "loss" if worse else "score") + (f" ({s.unit})" if s.unit else "")
        arrays = s.values, s.grid("low"), s.grid("high"), none if s.critical is None else s.critical, none
        tested, group = s.critical is not None, group_size(model.get("dims", {}))
        heads.append(Effects(key, unit, worse, *arrays, s.n, group, tested=tested))
    models, names = (list(dict.fromkeys(e.key[f] for e in heads)) for f in ("model", "name"))
    what = names[0] if len(names) == 1 else "scores of heads"
    count = theme.counts(e.n for e in heads)
    return heads, f"{', '.join(filter(None, models))}: {what}, n = {count}".removeprefix(": ")


def _top(e: Effects, k: int) -> list[Head]:
    """The k heads with the largest loss or score above 0, by layer and head."""
    ranked = np.where(np.isfinite(e.values), e.values * (e.worse or 1), -np.inf).ravel()
    order = [i for i in np.argsort(-ranked, kind="stable")[:k] if ranked[i] > 0]
    return [] if e.at_chance else sorted(divmod(int(i), e.values.shape[1]) for i in order)


def _columns(n_panels: int, n_layers: int, n_heads: int) -> int:
    """Panels in a row: few wide maps are stacked, so that their layers line up; square ones are side by side."""
    if n_panels == 1 or (n_panels <= 3 and n_layers >= 2 * n_heads and n_layers > 12):
        return 1
    return 3 if n_panels > 4 and n_layers <= 12 else 2


def _layout(heads: Sequence[Effects], groups: Sequence[Sequence[int]], top: int) -> Layout:
    n_layers, n_heads = (max(e.values.shape[i] for e in heads) for i in (0, 1))
    columns = _columns(len(heads), n_layers, n_heads)
    rows = [group[i : i + columns] for group in groups for i in range(0, len(group), columns)]
    width = min(theme.WIDTH, max(4.8, columns * (0.45 * n_layers + 0.9)))
    wide = width / columns - 0.65
    high = min(max(n_heads * min(wide / n_layers, 0.22), 1.1), max(1.6, 8.2 / len(rows) - 0.7))
    return Layout(rows, columns, width, wide, high, [_top(e, top) for e in heads])


class Scale(NamedTuple):
    """Colours of one unit."""

    cmap: Colormap
    low: float
    high: float
    label: str
    extend: str = "neither"


def _scale(heads: Sequence[Effects], width: int) -> Scale:
    """One scale for all panels of a unit, centred at 0 for changes; its label is ``width`` characters wide."""
    values = np.concatenate([e.values[np.isfinite(e.values)] for e in heads if not e.at_chance] or [[0.0]])
    unit, worse, size = heads[0].unit, heads[0].worse, np.abs(values)
    smallest = 0.1 if "accuracy" in unit and worse else 0.0  # a document or two must not fill the scale
    limit = max(theme.round_up(float(size.max())), smallest) or 1.0
    if not worse:
        return Scale(colormaps[theme.SCORES], 0.0, limit, unit)
    usual, far = float(np.quantile(size, 0.99)), float(values[np.argmax(size)])
    if abs(far) > _FAR * usual:
        limit = max(theme.round_up(max(usual, abs(far) / 3)), smallest)
    below, above = int((values < -limit).sum()), int((values > limit).sum())
    label = textwrap.fill(unit, width)
    if beyond := below + above:
        which = "1 head is beyond, at" if beyond == 1 else f"{beyond} heads are beyond, up to"
        limits = f"colours end at ±{limit:.2g}: {which}\xa0{far:.2g}".replace("-", "−")
        label += "\n" + textwrap.fill(limits, width)
    extend = ("neither", "min", "max", "both")[(below > 0) + 2 * (above > 0)]
    return Scale(colormaps[LOSS_IS_NEGATIVE if worse < 0 else LOSS_IS_POSITIVE], -limit, limit, label, extend)


# -- drawing -------------------------------------------------------------------------------------------


def _draw_map(ax: Axes, e: Effects, scale: Scale, layout: Layout) -> QuadMesh:
    """Cells, marks and axes."""
    n_layers, n_heads = e.values.shape
    wide, high = 72 * layout.wide / n_layers, 72 * layout.high / n_heads  # points: size of a cell
    if e.at_chance or not np.isfinite(e.values).all():  # not judged, or not removed
        panels.hatch(ax, -0.5, n_heads, n_layers, CANNOT_JUDGE if e.at_chance else "")
    values = np.full_like(e.values, np.nan) if e.at_chance else e.values
    edges = "white" if min(wide, high) > 7 and not e.at_chance else "none"
    mesh = panels.cells(ax, values.T, (scale.low, scale.high), cmap=scale.cmap, edgecolors=edges)
    size = min(4.0, max(1.4, 0.5 * min(wide, high)))
    if (e.critical | e.gain).mean() > _MANY:
        size *= 0.6  # so that the colours are seen
    for kind, marked in (("critical", e.critical), ("gain", e.gain)):
        look = {"ms": size, "mew": 0} if kind == "critical" else {"ms": size + 0.5, "mfc": "none", "mew": 0.8}
        inks = [theme.ink_on(mesh.to_rgba(value)) for value in e.values[marked]]
        for ink in set(inks):
            layers, heads = np.argwhere(marked)[np.array(inks) == ink].T
            ax.plot(layers, heads, "o", color=ink, gid=kind, **look)
    for border in range(e.group, n_heads, e.group) if e.group > 1 else ():
        ax.axhline(border - 0.5, color=_GROUP_LINE, lw=0.5, gid="group")
    ax.set(xlabel="layer", ylabel=e.key.get("site", "head"))
    step = 1 if high > 10 else e.group * 2 ** max(0, math.ceil(math.log2(11 / high / e.group)))
    ax.set_yticks(range(0, n_heads, step))
    return mesh


def _letter(e: Effects) -> str:
    return {"KV group": "KV", "expert": "E"}.get(e.key.get("site", ""), "H")


def _points(ax: Axes, e: Effects) -> list[tuple[Axes, float, float, str]]:
    """What to say of each head under the pointer."""
    measured = [] if e.at_chance else np.argwhere(np.isfinite(e.values)).tolist()
    return [
        (ax, float(layer), float(head), f"L{layer}.{_letter(e)}{head}: {e.said(layer, head)}")
        for layer, head in measured
    ]


def _name_heads(ax: Axes, e: Effects, heads: Sequence[Head], layout: Layout) -> None:
    """Frame heads and name them above the map, with a line from name to cell."""
    n_layers, n_heads = e.values.shape
    point = n_layers / (72 * layout.wide)  # of the page, in layers
    sizes = np.full(len(heads), (_LINE if layout.upright else _NAME) * point)
    places = theme.spread([layer for layer, _ in heads], sizes, -0.5, n_layers - 0.5)
    foot = -0.5 - 9 * n_heads / (72 * layout.high)  # 9 points above the map
    for place, (layer, head) in zip(places, heads, strict=True):
        frame = Rectangle((layer - 0.5, head - 0.5), 1, 1, fc="none", ec=INK, lw=1, zorder=3, gid="top")
        ax.add_patch(frame).set_clip_on(False)
        start = max([h for la, h in heads if la == layer and h < head], default=-1) + 0.5  # below the frame above
        for x, y in (([place, layer], [foot, -0.5]), ([layer, layer], [start, head - 0.5])):
            ax.plot(x, y, color=INK, lw=0.5, clip_on=False, zorder=2.5, gid="leader")
        look: dict[str, Any] = {"ha": "center", "va": "bottom", "rotation": 90 if layout.upright else 0, "gid": "name"}
        ax.text(place, foot, f"L{layer}.{_letter(e)}{head}", fontsize=SMALL, **look)
    ax.set(xlim=(-0.5, n_layers - 0.5), ylim=(n_heads - 0.5, -0.5))


def _titles(ax: Axes, e: Effects, fields: Sequence[str], room: float) -> None:
    if fields:
        panels.panel_title(ax, e.label(fields), pad=room + 4)
    if math.isfinite(e.baseline):
        baseline = f"baseline {e.baseline:.2f}".replace("-", "−")
        ax.set_title(baseline, loc="right", pad=room + 4, fontsize=SMALL)


def _keys(heads: Sequence[Effects], top: int | None) -> list[Artist]:
    judged = [e for e in heads if not e.at_chance]
    keys: list[Artist] = []
    if any(e.tested for e in judged):
        experts = all(e.key.get("site") == "expert" for e in judged)
        keys.append(panels.mark_key(CRITICAL_HEAD.replace("head", "expert") if experts else CRITICAL_HEAD, ms=4))
    if any(e.gain.any() for e in judged):
        keys.append(panels.mark_key("significant gain", ms=4, mfc="none"))
    if top is not None:
        one, several = _TOP_LOSSES if any(e.worse for e in judged) else _TOP_SCORES
        label = f"the {one}" if top == 1 else f"the {top} {several}"
        keys.append(panels.mark_key(label, marker="s", ms=7, mfc="none"))
    if any(e.group > 1 for e in heads):
        keys.append(panels.line_key("between KV groups", color=_GROUP_LINE, lw=0.8))
    if any(not np.isfinite(e.values).all() for e in judged):
        keys.append(Patch(fc=EMPTY, ec=PALE, hatch="////", lw=0, label="not measured"))
    return keys
