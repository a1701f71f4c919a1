"""Figures of lists of heads: what removing their first k costs against random heads, and what two lists share.

See `depthlens.plots` for what all figures have in common, `depthlens.experiments.head_curves` for the numbers.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from depthlens import arguments
from depthlens.ablations import Head
from depthlens.analysis import head_lists
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.removal_curve import RemovalCurve
from depthlens.analysis.scores import labels
from depthlens.errors import UserError
from depthlens.look import GREY, INK, PALE, PALETTE
from depthlens.plots import panels, theme
from depthlens.plots.effects import unit_of
from depthlens.plots.panels import numbers
from depthlens.plots.theme import SMALL, Plot, figure, themed, with_legend

OUTSIDE = "worse than every random draw"
_DISTANCES = (5, 12, 20, 30, 42, 56, 72, 90)  # points from a dot to its name
MAX_NAMED = 10  # heads of each list; all that are on both are named, too


@themed
def removal_curve(curve: RemovalCurve, *, title: str | None = None) -> Plot:
    """Score by number of removed heads: one panel a task, one line a list, against random heads of the same layers.

    The shaded range holds all random draws of a list, the thin line is their mean. Markers are filled where the list is
    worse than every draw; the p-values above a panel are those of the rank test over the whole curve. Bars are 95%
    intervals of the score itself.

    Args:
        curve: From `depthlens.removal_curve`.
        title: Above the figure; by default the model and the numbers of draws and documents.

    Raises:
        UserError: more lists than there are colours.
    """
    arguments.made_by(curve, "tests", "what depthlens.removal_curve returned", "curve")
    lists = list(dict.fromkeys(curve.points["list"]))
    if len(lists) > len(PALETTE):
        raise UserError(f"{len(lists)} lists; a panel shows up to {len(PALETTE)}, draw fewer: {', '.join(lists)}")
    bases, names = curve.result.baselines.to_dict("records"), labels(curve.result)
    columns = min(len(bases), 3) if len(bases) != 4 else 2
    width = theme.WIDTH if columns > 1 else 0.75 * theme.WIDTH
    models, n = ", ".join(curve.result.docs["model"].unique()), theme.counts(curve.result.baselines["n"])
    drawn = f"{models}: first k heads of a list removed, {curve.band['n_draws'].min()} random draws"
    fig = figure(title, f"{drawn}, n = {n} documents", height=2.6 * math.ceil(len(bases) / columns) + 1.1, width=width)
    for ax, base in zip(panels.grid(fig, len(bases), columns, "heads removed together"), bases, strict=True):
        points, bands, tests = (_of_task(t, base) for t in (curve.points, curve.band, curve.tests))
        for style, name in enumerate(lists):
            aside = (style - (len(lists) - 1) / 2) * 0.08  # so that lists do not hide each other's bars
            rows, band, test = (table[table["list"] == name] for table in (points, bands, tests))
            _draw_list(ax, rows, band, test.iloc[0], style, aside)
        panels.level(ax, base["baseline"], "baseline")
        panels.level(ax, base["chance"], "chance")
        panels.score_axis(ax, unit_of(curve.result, base["model"], base["task"], base["metric"]))
        panels.whole_numbers(ax.xaxis, 9)
        verdict = _verdict(tests, round(15 * (width / columns - 0.5)))
        panels.note(ax, 0, 1.02, verdict, va="bottom")
        panels.panel_title(ax, names[base["task"], base["metric"]], pad=11 * (verdict.count("\n") + 1) + 5)
    keys = [
        *panels.series_keys(f"{name}, with 95% interval" for name in lists),
        panels.mark_key(OUTSIDE),
        panels.band_key("random heads of the same layers: all draws"),
        panels.line_key("mean of these draws", lw=0.7),
        *panels.level_keys(fig),
    ]
    return with_legend(fig, keys, 3 if width == theme.WIDTH else 2)


def _of_task(table: pd.DataFrame, base: dict[Any, Any]) -> pd.DataFrame:
    return table[(table["task"] == base["task"]) & (table["metric"] == base["metric"])]


def _draw_list(ax: Axes, points: pd.DataFrame, bands: pd.DataFrame, test: pd.Series, style: int, aside: float) -> None:
    """One list, drawn ``aside`` of the whole numbers, and its random heads."""
    colour = panels.colour_of(style, test["at_chance"])
    k, value, low, high = numbers(points, "k", "value", "ci_low", "ci_high")
    drawn, lowest, highest, mean = numbers(bands, "k", "low", "high", "mean")
    panels.band(ax, drawn, lowest, highest, style, test["at_chance"], gid="band")
    ax.plot(drawn, mean, color=colour, lw=0.7, alpha=0.8, gid="random")
    ax.vlines(k + aside, low, high, color=colour, lw=0.8)
    ax.plot(k + aside, value, color=colour, marker=panels.MARKERS[style], gid="list", **panels.LINE)
    lowest, highest = numbers(bands.set_index("k").reindex(points["k"]), "low", "high")
    outside = (value < lowest) if test["higher_is_better"] else (value > highest)
    if not test["at_chance"]:
        panels.marks(ax, k + aside, value, outside, style, "outside")


def _verdict(tests: pd.DataFrame, width: int) -> str:
    if tests["at_chance"].all():
        return theme.CANNOT_JUDGE
    p_values = (f"{name} p = {p:.2g}".replace(" ", "\xa0") for name, p in tests[["list", "p_value"]].to_numpy())
    return textwrap.fill(f"against random: {', '.join(p_values)}", width).replace("\xa0", " ")


@themed
def head_overlap(a: HeadScores, b: HeadScores, k: int = 10, *, title: str | None = None) -> Plot:
    """Two scores against each other, one dot a head: the top k of each, and which heads are on both lists.

    The first ten heads of each list are named, and in bold those on both. Dashed lines separate the heads on a list
    from the others. The p-value is the probability that random lists with as many heads in each layer share at least as
    many (`depthlens.analysis.head_overlap`).

    Args:
        a: Scores for the x axis.
        b: Scores for the y axis, of the same heads.
        k: Length of both lists.
        title: Above the figure; by default the model and the overlap in numbers.

    Raises:
        UserError: scores of models of different sizes, no heads in common, or a ``k`` that does not fit.
    """
    *tops, scored = head_lists.both_tops(a, b, k)
    shared = set(tops[0]) & set(tops[1])
    listed = sorted({*tops[0], *tops[1]})
    others = scored.copy()
    others[tuple(np.transpose(listed))] = False
    fig = figure(title, _overlap_title(a, b, k, int(scored.sum())), height=5.2)
    ax = fig.subplots()
    ax.plot(a.values[others], b.values[others], "o", ms=3, color=PALE, mew=0, label="other heads", gid="others")
    for label, heads, colour, marker, gid in (
        (f"top {k}: {a.name}", set(tops[0]) - shared, PALETTE[0], "o", "top"),
        (f"top {k}: {b.name}", set(tops[1]) - shared, PALETTE[1], "s", "top"),
        ("on both lists", shared, INK, "D", "both"),
    ):
        x, y = ([s.values[head] for head in sorted(heads)] for s in (a, b))
        ax.plot(x, y, marker, color=colour, ms=6, mec="white", mew=0.5, label=label, gid=gid)
    for s, line in ((a, ax.axvline), (b, ax.axhline)):
        ranked = np.sort(s.values[scored])[::-1]
        line(ranked[k - 1 : k + 1].mean(), color=GREY, lw=0.8, ls=theme.DASHED, zorder=1, gid="cut")
    ax.margins(0.08)
    ax.set(**{f"{axis}label": s.name + (f" ({s.unit})" if s.unit else "") for axis, s in (("x", a), ("y", b))})
    with_legend(fig, ax.get_legend_handles_labels()[0], 2)
    fig.draw_without_rendering()  # lays the figure out, so that names can be put where there is room
    places = {head: (float(a.values[head]), float(b.values[head])) for head in listed}
    _name_dots(ax, places, {*tops[0][:MAX_NAMED], *tops[1][:MAX_NAMED], *shared}, shared, fig.dpi)
    return fig


def _overlap_title(a: HeadScores, b: HeadScores, k: int, n: int) -> str:
    common = head_lists.head_overlap(a, b, k=k)
    model = a.record.get("model", {}).get("name", "")
    are = "is" if common.n == 1 else "are"
    counted = f"{common.n} of the top {k} heads {are} on both lists; {common.expected:.2g} expected"
    chance = f"of lists with as many heads in each layer, p = {common.p_value:.2g} ({n} heads)"
    return f"{model}: {counted} {chance}".removeprefix(": ")


def _name_dots(
    ax: Axes, places: dict[Head, tuple[float, float]], named: set[Head], bold: set[Head], dpi: int | float
) -> None:
    """Name dots at the nearest free place, outermost first, with a line where that is not next to it."""
    point = dpi / 72
    frame = ax.get_window_extent()
    low, high = np.array([frame.x0, frame.y0]) / point, np.array([frame.x1, frame.y1]) / point
    at = {head: ax.transData.transform(place) / point for head, place in places.items()}
    taken = [np.array([*(xy - 4), *(xy + 4)]) for xy in at.values()]  # boxes: left, bottom, right, top
    middle = np.mean(list(at.values()), axis=0)
    for head in sorted(named, key=lambda h: -float(np.linalg.norm(at[h] - middle))):
        name = f"L{head[0]}.H{head[1]}"
        distance, box = _free_box(at[head], np.array([5.4 * len(name) + 2, 10.0]), low, high, taken)
        taken.append(box)
        line = {"arrowstyle": "-", "lw": 0.5, "color": GREY, "shrinkA": 0, "shrinkB": 3} if distance > 5 else None
        place = tuple((box[:2] + box[2:]) / 2 - at[head])
        look: dict[str, Any] = {"fontsize": SMALL, "ha": "center", "va": "center", "arrowprops": line, "gid": "name"}
        look["fontweight"] = "bold" if head in bold else "normal"
        text = ax.annotate(name, places[head], xytext=place, textcoords="offset points", **look)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def _free_box(
    dot: np.ndarray, size: np.ndarray, low: np.ndarray, high: np.ndarray, taken: Sequence[np.ndarray]
) -> tuple[int, np.ndarray]:
    """The box of a size around a dot that crosses the fewest others, and of these the nearest; and its distance.

    Args:
        dot: Its place. Shape [2].
        size: Width and height of the box. Shape [2].
        low: Lower left corner of the panel. Shape [2].
        high: Upper right corner. Shape [2].
        taken: Boxes in use: left, bottom, right, top. Each of shape [4].
    """
    turns = np.arange(16) * np.pi / 8
    ways = np.tile(np.stack([np.cos(turns), np.sin(turns)], axis=1), (len(_DISTANCES), 1))  # [box, axis]
    distances = np.repeat(_DISTANCES, len(turns))
    centres = dot + ways * (distances[:, None] + size / 2)
    boxes = np.hstack([centres - size / 2, centres + size / 2])
    inside = (boxes[:, :2] >= low).all(axis=1) & (boxes[:, 2:] <= high).all(axis=1)
    others = np.array(taken)
    crossed = ((boxes[:, None, :2] < others[:, 2:]) & (others[:, :2] < boxes[:, None, 2:])).all(axis=2).sum(axis=1)
    best = np.lexsort((distances, crossed, ~inside))[0]
    return int(distances[best]), boxes[best]
