"""Figures of lists of heads: what removing their first k costs against random heads, and what two lists share.

See `depthlens.plots` for what all figures have in common, `depthlens.experiments.head_removal` for the numbers.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from depthlens import arguments
from depthlens.ablations import Head
from depthlens.analysis.head_scores import HeadScores
from depthlens.errors import UserError
from depthlens.plots.heads import unit_of
from depthlens.plots.theme import (
    CANNOT_JUDGE,
    DASHED,
    DOTTED,
    GREY,
    INK,
    MARKERS,
    PALETTE,
    WIDTH,
    counts,
    figure,
    legend,
    theme,
)

OUTSIDE = "worse than every random draw"
_NAMED = 10  # heads of each list, and all that are on both


def removal_curve(curve: Any, *, title: str | None = None) -> Figure:
    """Score by number of removed heads: one panel a task, one line a list, against random heads of the same layers.

    The shaded range holds all random draws of a list, the thin line is their mean. Markers are filled where the list is
    worse than every draw; the p-values above a panel are those of the rank test over the whole curve. Bars are 95%
    intervals of the score itself.

    Args:
        curve: A `depthlens.analysis.removal_curve.RemovalCurve`.
        title: Above the figure; by default the model and the numbers of draws and documents.

    Raises:
        UserError: more lists than can be told apart.
    """
    arguments.made_by(curve, "tests", "what depthlens.removal_curve returned", "curve")
    tests, lists = curve.tests, list(dict.fromkeys(curve.points["list"]))
    if len(lists) > len(PALETTE):
        raise UserError(f"{len(lists)} lists; a panel shows up to {len(PALETTE)}, draw fewer: {', '.join(lists)}")
    bases = {(row.task, row.metric): row for row in curve.result.baselines.itertuples()}
    columns = min(len(bases), 3) if len(bases) != 4 else 2
    rows = math.ceil(len(bases) / columns)
    width = WIDTH if columns > 1 else 0.75 * WIDTH
    with theme():
        fig = figure(_title(curve) if title is None else title, height=2.6 * rows + 1.1, width=width)
        for i, (key, base) in enumerate(bases.items()):
            ax = fig.add_subplot(rows, columns, i + 1)
            unit = unit_of(curve.result, base.model, *key)
            for style, name in enumerate(lists):
                where = {"list": name, "task": key[0], "metric": key[1]}
                points, band, test = (_rows(table, where) for table in (curve.points, curve.band, tests))
                _draw_list(ax, points, band, test.iloc[0], style, (style - (len(lists) - 1) / 2) * 0.08)
            _draw_levels(ax, base, unit)
            said = _verdict(_rows(tests, {"task": key[0], "metric": key[1]}), round(15 * (width / columns - 0.5)))
            ax.text(0, 1.02, said, fontsize=8, va="bottom", transform=ax.transAxes, parse_math=False)
            ax.set_title(base.task, loc="left", pad=11 * (said.count("\n") + 1) + 5).set_parse_math(False)
            if i + columns >= len(bases):
                ax.set_xlabel("heads removed together")
            if unit != "accuracy" or i % columns == 0:
                ax.set_ylabel(unit)
        legend(fig, _handles(curve, lists), ncols=3 if width == WIDTH else 2)
        for ax in fig.axes:
            ax.spines[["top", "right"]].set_visible(False)
    return fig


def _rows(table: pd.DataFrame, where: dict[str, str]) -> pd.DataFrame:
    return table[(table[list(where)] == pd.Series(where)).all(axis=1)]


def _title(curve: Any) -> str:
    models = ", ".join(curve.result.docs["model"].unique())
    count = counts(curve.result.baselines["n"])
    draws = int(curve.band["n_draws"].min())
    return f"{models}: first k heads of a list removed, {draws} random draws, n = {count} documents"


def _draw_list(ax: Axes, points: pd.DataFrame, band: pd.DataFrame, test: Any, style: int, aside: float) -> None:
    """One list and its random heads; bars stand a little aside, so that lists do not hide each other."""
    colour, marker = GREY if test.at_chance else PALETTE[style], MARKERS[style]
    k = points["k"].to_numpy(dtype=float)
    value, low, high = (points[c].to_numpy(dtype=float) for c in ("value", "ci_low", "ci_high"))
    hatch = {"facecolor": "none", "edgecolor": colour, "hatch": "////", "alpha": 0.5}
    look = hatch if test.at_chance else {"color": colour, "alpha": 0.16}
    ax.fill_between(band["k"], band["low"], band["high"], lw=0, gid="band", **look)
    ax.plot(band["k"], band["mean"], color=colour, lw=0.7, alpha=0.8, gid="random")
    ax.vlines(k + aside, low, high, color=colour, lw=0.8)
    ax.plot(k + aside, value, color=colour, lw=1.4, marker=marker, ms=4.5, mfc="white", mew=0.9, gid="list")
    edges = band.set_index("k").reindex(points["k"])
    outside = (value < edges["low"]) if test.higher_is_better else (value > edges["high"])
    if (outside := outside.to_numpy()).any() and not test.at_chance:
        ax.plot(k[outside] + aside, value[outside], marker, color=colour, ms=5, mew=0.9, gid="outside")


def _draw_levels(ax: Axes, base: Any, unit: str) -> None:
    ax.axhline(base.baseline, color=INK, lw=1, ls=DASHED, zorder=1.5, gid="baseline")
    if math.isfinite(base.chance):
        ax.axhline(base.chance, color=GREY, lw=1, ls=DOTTED, zorder=1.5, gid="chance")
    if unit == "accuracy":
        ax.set_ylim(-0.02, 1.02)
        ax.yaxis.set_major_locator(ticker.MultipleLocator(0.2))
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=9))


def _verdict(tests: pd.DataFrame, width: int) -> str:
    if tests["at_chance"].all():
        return CANNOT_JUDGE
    found = ", ".join(f"{row.list} p = {row.p_value:.2g}".replace(" ", "\xa0") for row in tests.itertuples())
    return textwrap.fill(f"against random: {found}", width).replace("\xa0", " ")


def _handles(curve: Any, lists: Sequence[str]) -> list[Artist]:
    handles: list[Artist] = [
        Line2D([], [], color=PALETTE[i], marker=MARKERS[i], ms=4.5, mfc="white", label=f"{name}, with 95% interval")
        for i, name in enumerate(lists)
    ]
    handles.append(Line2D([], [], ls="", marker="o", ms=5, color=INK, label=OUTSIDE))
    handles.append(Patch(fc=INK, alpha=0.2, lw=0, label="random heads of the same layers: all draws"))
    handles.append(Line2D([], [], color=INK, lw=0.7, label="their mean"))
    handles.append(Line2D([], [], color=INK, lw=1, ls=DASHED, label="baseline"))
    if np.isfinite(curve.result.baselines["chance"]).any():
        handles.append(Line2D([], [], color=GREY, lw=1, ls=DOTTED, label="chance"))
    return handles


def head_overlap(a: HeadScores, b: HeadScores, k: int = 10, *, title: str | None = None) -> Figure:
    """Two scores against each other, one dot a head: the top k of each, and which heads are on both lists.

    Named are the first ten of each list, and in bold those on both.

    The p-value is the probability that two random lists of k heads share at least as many
    (`depthlens.analysis.head_overlap`). Dashed lines lie between the last head on a list and the first that
    is not.

    Args:
        a: Scores for the x axis.
        b: Scores for the y axis, of the same heads.
        k: Length of both lists.
        title: Above the figure; by default the model and the overlap in numbers.

    Raises:
        UserError: scores of models of different sizes, no heads in common, or a ``k`` that does not fit.
    """
    from depthlens.analysis.head_lists import head_overlap as overlap_of

    if a.values.shape != b.values.shape:
        raise UserError(f"scores have shapes {a.values.shape} and {b.values.shape}; give two of one model")
    both = np.isfinite(a.values) & np.isfinite(b.values)
    n = int(both.sum())
    if not (type(k) is int and 1 <= k < n):
        raise UserError(f"k {k!r}: {n} heads have both scores; give a whole number from 1 to {max(n - 1, 1)}")
    a, b = (replace(s, values=np.where(both, s.values, np.nan)) for s in (a, b))
    tops = a.top(k), b.top(k)
    found = overlap_of(*tops, n)
    model = a.record.get("model", {}).get("name", "")
    said = f"{found.n} of the top {k} heads are on both lists; {found.expected:.2g} expected by chance"
    said = f"{model}: {said}, hypergeometric p = {found.p_value:.2g} ({n} heads)".removeprefix(": ")
    shared = set(tops[0]) & set(tops[1])
    kinds = [
        (f"top {k}: {a.name}", set(tops[0]) - shared, PALETTE[0], "o", "top"),
        (f"top {k}: {b.name}", set(tops[1]) - shared, PALETTE[1], "s", "top"),
        ("on both lists", shared, INK, "D", "both"),
    ]
    with theme():
        fig = figure(said if title is None else title, height=5.2)
        ax = fig.subplots()
        others = both.copy()
        others[tuple(zip(*tops[0], *tops[1], strict=True))] = False
        small = {"ms": 3, "color": "#B0B0B0", "mew": 0, "label": "other heads"}
        ax.plot(a.values[others], b.values[others], "o", gid="others", **small)
        large = {"ms": 6, "mec": "white", "mew": 0.5}
        for label, heads, colour, marker, gid in kinds:
            x, y = ([s.values[head] for head in sorted(heads)] for s in (a, b))
            ax.plot(x, y, marker, color=colour, label=label, gid=gid, **large)
        for s, line in ((a, ax.axvline), (b, ax.axhline)):
            ranked = np.sort(s.values[both])[::-1]
            line(ranked[k - 1 : k + 1].mean(), color=GREY, lw=0.8, ls=DASHED, zorder=1, gid="cut")
        ax.margins(0.08)
        for s, name in ((a, ax.set_xlabel), (b, ax.set_ylabel)):
            name(s.name + (f" ({s.unit})" if s.unit else ""))
        legend(fig, ax.get_legend_handles_labels()[0], ncols=2)
        ax.spines[["top", "right"]].set_visible(False)
        fig.draw_without_rendering()  # lays the figure out, so that names can be put where there is room
        dots = {head: (float(a.values[head]), float(b.values[head])) for head in sorted({*tops[0], *tops[1]})}
        _name_dots(ax, dots, {*tops[0][:_NAMED], *tops[1][:_NAMED], *shared}, shared)
    return fig


def _name_dots(ax: Axes, dots: dict[Head, tuple[float, float]], named: set[Head], bold: set[Head]) -> None:
    """Name dots at the nearest free place, outermost first, with a line where that is not next to it."""
    point = ax.get_figure().dpi / 72
    frame = ax.get_window_extent()
    at = {head: ax.transData.transform(place) / point for head, place in dots.items()}
    low, high = np.array([frame.x0, frame.y0]) / point, np.array([frame.x1, frame.y1]) / point
    taken = [np.array([*(xy - 4), *(xy + 4)]) for xy in at.values()]  # boxes: left, bottom, right, top
    middle = np.mean(list(at.values()), axis=0)
    for head in sorted(named, key=lambda h: -float(np.linalg.norm(at[h] - middle))):
        name, xy = f"L{head[0]}H{head[1]}", at[head]
        size = np.array([5.6 * len(name) + 2, 10.0])
        boxes = []
        for distance in (5, 12, 20, 30, 42, 56, 72, 90):
            for turn in np.arange(16) * np.pi / 8:
                way = np.array([np.cos(turn), np.sin(turn)])
                centre = xy + way * distance + way * size / 2
                box = np.array([*(centre - size / 2), *(centre + size / 2)])
                if (box[:2] >= low).all() and (box[2:] <= high).all():
                    crossed = sum(_overlaps(box, other) for other in taken)
                    boxes.append((crossed, distance, tuple(box)))
            if boxes and min(boxes)[0] == 0:
                break
        _, distance, box = min(boxes, key=lambda b: b[:2])
        taken.append(np.array(box))
        middle_of_box = (np.array(box[:2]) + np.array(box[2:])) / 2
        style = {"fontsize": 8, "ha": "center", "va": "center", "fontweight": "bold" if head in bold else "normal"}
        line = {"arrowstyle": "-", "lw": 0.5, "color": GREY, "shrinkA": 0, "shrinkB": 3} if distance > 5 else None
        offset = {"xytext": middle_of_box - xy, "textcoords": "offset points"}
        text = ax.annotate(name, dots[head], **offset, arrowprops=line, gid="name", **style)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def _overlaps(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((one[:2] < other[2:]).all() and (other[:2] < one[2:]).all())
