"""Panels, and the pictures that figures are made of: lines with bands, stems, a grid of cells, and a forest.

Each picture is drawn from a table with a row for each point. Its columns are ``x`` and ``y`` (of a grid ``value``,
too), the ends ``low`` and ``high`` of the interval, and where there are several ``series``. ``shown`` is whether a
point is proven, and ``idle`` why nothing can be judged, "" where it can. `tidy` makes such a table of another one. Its
other columns, such as ``task`` and ``p_adjusted``, stay in the table of the figure (`depthlens.plots.Plot.table`).

``gid`` is the name of an artist, by which tests find it. The number of a series (``style``) chooses colour and marker.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from depthlens.analysis.stats import ALPHA
from depthlens.errors import UserError
from depthlens.look import EMPTY, GREY, INK, PALE, PALETTE
from depthlens.plots import theme
from depthlens.plots.theme import DASHED, DOTTED, MARKERS, SMALL

Number = int | float
Limits = tuple[Number, Number]
ACCURACY = "accuracy"
PROVEN, GAIN = f"adjusted p < {ALPHA}", "significant gain"
SHOWN, INTERVAL, CENTRE = f"proven ({PROVEN})", "95% interval", "centre of mass, 95% interval"
MAX_OVERLAID = len(PALETTE)  # series in one panel
LINE: dict[str, Any] = {"lw": 1.2, "ms": 3.5, "mfc": "white", "mew": 0.8}
_REFERENCE, _NOTHING = {"color": INK, "ls": DASHED}, {"color": GREY, "ls": DOTTED}
_LEVELS: dict[str, dict[str, Any]] = dict.fromkeys(("baseline", "base", "threshold"), _REFERENCE)
_LEVELS |= {"donor": {"color": INK, "ls": theme.DASH_DOTTED}}
_LEVELS |= dict.fromkeys(("chance", "no change", "tolerance"), _NOTHING)

_KEYS: dict[str, dict[str, Any]] = {
    "series": {"ms": 5, "mfc": "white"},
    "mark": {"color": INK, "ls": "", "marker": "o", "ms": 6},
    "line": {"color": INK, "lw": 1},
    "area": {"facecolor": INK, "alpha": 0.2, "lw": 0},
}


# -- panels and axes -----------------------------------------------------------------------------------


def grid(fig: Figure, n: int, columns: int, xlabel: str, *, stacked: bool = False) -> list[Axes]:
    """Axes of n panels in rows, with the x axis named at the foot of each column.

    Args:
        fig: Where they are added.
        n: Number of panels.
        columns: Panels in a row.
        xlabel: Of the x axis.
        stacked: Whether the x axis has numbers only at the foot of each column, because all panels have the same.
    """
    axes = [fig.add_subplot(math.ceil(n / columns), columns, i + 1) for i in range(n)]
    for i, ax in enumerate(axes):
        if i + columns >= n:
            ax.set_xlabel(xlabel)
        elif stacked:
            ax.tick_params(labelbottom=False)
    return axes


def facets(
    title: str | None,
    default: str,
    n: int,
    xlabel: str,
    *,
    each: Number = 2.2,
    columns: int | None = None,
    stacked: bool = False,
) -> tuple[theme.Plot, list[Axes]]:
    """A figure of n panels, each so many inches high: see `depthlens.plots.theme.figure` and `grid`."""
    columns = columns or {1: 1, 2: 2, 4: 2}.get(n, 3)
    fig = theme.figure(title, default, height=each * math.ceil(n / columns) + 1.2)
    return fig, grid(fig, n, columns, xlabel, stacked=stacked)


def whole_numbers(axis: Axis, nbins: int = 12) -> None:
    """Ticks at whole numbers, ``nbins`` of them or fewer."""
    axis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=nbins))


def layer_axis(ax: Axes, n_layers: int) -> None:
    """An x axis of layers with room for markers on both sides."""
    spec = ax.get_subplotspec()
    ax.set_xlim(-0.7, n_layers - 0.3)
    whole_numbers(ax.xaxis, 12 if spec is None or spec.get_gridspec().ncols == 1 else 7)


def score_axis(ax: Axes, unit: str) -> None:
    """A y axis of scores; accuracies share one range, so that only the first panel of a row names it."""
    if unit == ACCURACY:
        ax.set_ylim(-0.02, 1.02)
        ax.yaxis.set_major_locator(ticker.MultipleLocator(0.2))
    spec = ax.get_subplotspec()
    if unit != ACCURACY or spec is None or spec.is_first_col():
        ax.set_ylabel(unit)


def panel_title(ax: Axes, text: str, **options: Any) -> None:
    """A title on the left, wrapped to the width of the panel."""
    spec, figure = ax.get_subplotspec(), ax.figure
    columns = spec.get_gridspec().ncols if spec else 1
    width = round(14 * (figure.bbox.width / figure.dpi / columns - 0.5))
    text = "\n".join(textwrap.fill(line, width) for line in text.split("\n"))
    ax.set_title(text, loc="left", **options).set_parse_math(False)


def note(ax: Axes, x: Number, y: Number, text: str, **options: Any) -> None:
    """Small text at a place given as shares of the panel's width and height."""
    look = {"fontsize": SMALL, "va": "center", "transform": ax.transAxes, "parse_math": False}
    ax.text(x, y, text, **{**look, **options})


def beside(ax: Axes, x: Number, y: Number, name: str) -> None:
    """Name a dot, on the side that is towards the middle of the panel."""
    left = x > sum(ax.get_xlim()) / 2
    place = {"xytext": (-6 if left else 6, 0), "textcoords": "offset points", "ha": "right" if left else "left"}
    ax.annotate(name, (x, y), va="center", fontsize=SMALL, gid="name", **place)  # type: ignore[arg-type]


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Name the rows of a map, the first of which is row 0."""
    ax.set_yticks(range(len(names)), names)
    for text in ax.get_yticklabels():
        text.set_parse_math(False)


def level(ax: Axes, value: Number | None, kind: str, label: str = "", **options: Any) -> None:
    """A horizontal line at a value that is there, with a key of its kind (or another label); at zero without one."""
    look = _LEVELS.get(kind, {"color": INK, "lw": 0.8})
    if value is not None and math.isfinite(value):
        ax.axhline(value, **{"lw": 1, "zorder": 1.5, "gid": kind, **look, **options})
        if kind in _LEVELS:
            key(ax, "line", label or kind, **look)


def key(ax: Axes, kind: str, label: str, **options: Any) -> None:
    """Explain something in the legend, once: a series, a mark, a line, or an area."""
    look = {**_KEYS[kind], **options}
    artist = Patch(label=label, **look) if kind == "area" else Line2D([], [], label=label, **look)
    figure: Any = ax.figure
    figure.keys.setdefault(label, (list(_KEYS).index(kind), artist))


# -- tables --------------------------------------------------------------------------------------------


def tidy(rows: pd.DataFrame, x: str, y: str, low: str = "ci_low", high: str = "ci_high", **more: Any) -> pd.DataFrame:
    """A table that can be drawn: the columns of another, with those that are drawn under the names of pictures.

    Args:
        rows: The table.
        x: Its column along the x axis.
        y: Its column along the y axis.
        low: Its column of lower ends of intervals; NaN where it has none.
        high: Its column of upper ends.
        **more: Other columns, such as ``series``, ``shown`` and ``idle``.
    """
    ends = {"low": rows[low] if low in rows else np.nan, "high": rows[high] if high in rows else np.nan}
    return rows.assign(**{"x": rows[x], "y": rows[y], **ends, **more})


def keep(ax: Axes, rows: pd.DataFrame, number: str = "y") -> None:
    """Add what a panel shows to the table of its figure, where the column of its numbers is called ``value``."""
    if number != "value":
        rows = rows.drop(columns="value", errors="ignore").rename(columns={number: "value"})
    figure: Any = ax.figure
    figure.drawn.append((ax, rows))


def idle_where(at_chance: Any) -> Any:
    """The column ``idle`` from whether nothing can be judged."""
    return np.where(at_chance, theme.CANNOT_JUDGE, "")


def require(table: pd.DataFrame, columns: Sequence[str], fix: str) -> None:
    """Refuse a table that has no rows or lacks a column.

    Raises:
        UserError: naming the columns that are missing, or how to get rows.
    """
    if missing := [c for c in columns if c not in table.columns]:
        raise UserError(f"the table lacks column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise UserError(f"the table has no rows; {fix}")


def at_most_four(names: Sequence[str], what: str) -> None:
    """Refuse more series than there are colours.

    Raises:
        UserError: naming them.
    """
    if len(names) > MAX_OVERLAID:
        fault = f"{len(names)} {what}; a panel shows up to {MAX_OVERLAID}, draw fewer"
        raise UserError(f"{fault}: {', '.join(map(str, names))}")


# -- lines and stems -----------------------------------------------------------------------------------


def lines(
    ax: Axes,
    table: pd.DataFrame,
    names: Sequence[str] = ("",),
    *,
    shown: str = SHOWN,
    interval: str = INTERVAL,
    bars: bool = False,
    gaps: bool = False,
    aside: Number = 0,
    limits: Limits = (-math.inf, math.inf),
    **look: Any,
) -> None:
    """A line for each series, with its interval as a band; markers are filled where a point is shown.

    Args:
        ax: The panel.
        table: See `depthlens.plots.panels`. A missing ``y`` leaves a gap.
        names: Of all series of the figure, in order: the place of a series here is its style.
        shown: What filled markers are, for the legend.
        interval: What bands or bars are.
        bars: Whether intervals are drawn as bars.
        gaps: Whether the line is broken where whole numbers along the x axis are missing.
        aside: How far neighbouring series are drawn apart along the x axis, so that they do not hide each other.
        limits: The least and the greatest value that there can be: no interval goes beyond.
        **look: Of the lines, for matplotlib.
    """
    table = table.assign(low=table["low"].clip(*limits), high=table["high"].clip(*limits))
    keep(ax, table)
    for style, name in enumerate(names):
        rows = table[table["series"] == name] if "series" in table else table
        if rows.empty:
            continue
        why = rows["idle"].max() if "idle" in rows else ""
        if gaps:
            whole = range(int(rows["x"].min()), int(rows["x"].max()) + 1)
            rows = rows.set_index("x").reindex(whole).rename_axis("x").reset_index()
        x, y, low, high = (rows[column].to_numpy(dtype=float) for column in ("x", "y", "low", "high"))
        x = x + (style - (len(names) - 1) / 2) * aside
        colour = GREY if why else PALETTE[style]
        ax.plot(x, y, marker=MARKERS[style], **{**LINE, "gid": "series", "color": colour, **look})
        if name:
            label = f"{name} ({why})" if why else name
            key(ax, "series", label, color=colour, marker=MARKERS[style], ls=look.get("ls", "-"))
        elif why:
            note(ax, 1, 1, why, ha="right", va="top", color=GREY)
        beside = np.pad(np.isfinite(y + low), 1)
        alone = beside[1:-1] & ~beside[:-2] & ~beside[2:]  # a band has no width at a point without neighbours
        barred = beside[1:-1] if bars else alone
        ax.vlines(x[barred], low[barred], high[barred], color=colour, lw=1, gid="interval")
        if not bars:
            band(ax, x, low, high, style, why, gid="band")
        if beside.any():
            kind, paint = ("line", "color") if bars else ("area", "facecolor")
            key(ax, kind, interval, **{paint: colour if len(names) == 1 else INK})
        where = rows["shown"].eq(True).to_numpy() if "shown" in rows and not why else np.zeros(len(rows), dtype=bool)
        if where.any():
            size = 5 if style == 0 else 7  # no mark hides one of another series
            mark: dict[str, Any] = {"color": colour, "mec": "white", "mew": 0.7, "ms": size, "zorder": 3 - style / 10}
            ax.plot(x[where], y[where], MARKERS[style], ls="", gid="shown", **mark)
            key(ax, "mark", shown, color=colour if len(names) == 1 else INK)


def stems(ax: Axes, table: pd.DataFrame, names: Sequence[str] = ("",), **options: Any) -> None:
    """A marker with its interval as a bar for each point; filled where it is shown. See `lines`."""
    level(ax, 0, "zero")
    lines(ax, table, names, bars=True, **{"ls": "", "ms": 4, **options})


def centres(ax: Axes, rows: Iterable[tuple[int, np.ndarray, str]]) -> None:
    """Centres of mass with their intervals at the top of a panel, one below another; or why there is none.

    Args:
        ax: The panel, with all else that it shows.
        rows: Of each centre its style, the centre with both ends of its interval, and why there is none.
    """
    rows = list(rows)
    bottom, top = ax.get_ylim()
    ax.set_ylim(bottom, top + (top - bottom) * 0.13 * len(rows))
    for i, (style, (centre, *interval), why) in enumerate(rows):
        height = 0.95 - 0.11 * i
        if why:
            note(ax, 0.995, height, why, ha="right", color=GREY)
            continue
        look: dict[str, Any] = {"color": PALETTE[style], "transform": ax.get_xaxis_transform()}
        ax.plot(interval, [height] * 2, lw=1.5, solid_capstyle="butt", **look)
        ax.plot([centre], [height], marker="|", ms=9, mew=2, gid="centre", **look)
        key(ax, "line", CENTRE, lw=1.5, marker="|", ms=9, mew=2)


def by_sign(rows: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """The series of differences: the first name where ``y`` is positive, else the second."""
    return np.where(rows["y"] > 0, *names)


def band(ax: Axes, x: Any, low: Any, high: Any, style: int, idle: Any = False, **options: Any) -> None:
    """A range as a filled area, hatched where nothing can be judged."""
    colour = GREY if idle else PALETTE[style]
    hatched = {"hatch": "////", "facecolor": "none", "edgecolor": colour, "alpha": 0.5}
    look: dict[str, Any] = hatched if idle else {"color": colour, "alpha": 0.16}
    ax.fill_between(np.asarray(x, dtype=float), low, high, lw=0, **look, **options)


# -- a grid of cells -----------------------------------------------------------------------------------


def cells(
    ax: Axes,
    table: pd.DataFrame,
    limits: Limits | Normalize,
    *,
    rows: range | Sequence[str],
    columns: range,
    cmap: str | Colormap = theme.SCORES,
    empty: str = EMPTY,
    shown: str = SHOWN,
    mark: Number = 4,
    **options: Any,
) -> QuadMesh:
    """A cell for each row of a table: dots where it is ``shown``, rings where it is a proven ``gain``.

    The first row is on top. Rows and columns are numbered at the middles of the cells.

    Args:
        ax: The panel.
        table: ``x`` is the column, ``y`` the row (its place among named ones), ``value`` what the colour says; NaN is
            left empty. A row that is ``idle`` is hatched and says why.
        limits: The numbers at the ends of the colours, between which they are even; or how numbers become colours.
        rows: Numbers or names of the rows.
        columns: Numbers of the columns.
        cmap: The colours.
        empty: Colour of an empty cell.
        shown: What dots are, for the legend.
        mark: Points: size of dots and rings.
        **options: Of the mesh, for matplotlib.
    """
    numbers = rows if isinstance(rows, range) else range(len(rows))
    named = table if numbers is rows else table.drop(columns="y").assign(series=[rows[y] for y in table["y"]])
    keep(ax, named, "value")
    values = table.pivot(index="y", columns="x", values="value").reindex(index=numbers, columns=columns)
    x, y = np.array([*columns, columns[-1] + 1]) - 0.5, np.array([*numbers, numbers[-1] + 1]) - 0.5
    look: dict[str, Any] = {"edgecolors": "white", "linewidth": 0.5, "gid": "cells", **options}
    norm = limits if isinstance(limits, Normalize) else Normalize(*limits)
    mesh = ax.pcolormesh(x, y, np.ma.masked_invalid(values.to_numpy(dtype=float)), cmap=cmap, norm=norm, **look)
    ax.set(xlim=(x[0], x[-1]), ylim=(y[-1], y[0]), facecolor=empty)
    whole_numbers(ax.xaxis)
    if isinstance(rows, range):
        whole_numbers(ax.yaxis)
    else:
        name_rows(ax, rows)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    why = table.groupby("y")["idle"].first() if "idle" in table else pd.Series(dtype=str)
    if len(why) and why.nunique() == 1 and why.iloc[0]:
        hatch(ax, numbers, columns, why.iloc[0])  # all of them are: once is enough
    else:
        for row, text in why[why != ""].items():
            hatch(ax, range(int(row), int(row) + 1), columns, text)
    for kind, fill, label in (("shown", True, shown), ("gain", False, GAIN)):
        for row in table[table[kind]].itertuples() if kind in table else ():
            ink = theme.ink_on(mesh.to_rgba(row.value))
            style: dict[str, Any] = {"mfc": ink if fill else "none", "mew": 0 if fill else 0.8, "ms": mark}
            ax.plot(row.x, row.y, "o", color=ink, gid=kind, **style)
            key(ax, "mark", label, ms=4, mfc=INK if fill else "none")
    return mesh


def hatch(ax: Axes, rows: range, columns: range, text: str = "") -> None:
    """Hatch rows of a map, and write why they have no numbers."""
    look: dict[str, Any] = {"hatch": "////", "fc": "none", "ec": PALE, "lw": 0, "zorder": 0.5, "gid": "hatch"}
    ax.add_patch(Rectangle((columns[0] - 0.5, rows[0] - 0.5), len(columns), len(rows), **look))
    if text:
        box = {"fc": "white", "ec": "none", "pad": 1.5}
        middle = (columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2
        ax.text(*middle, text, ha="center", va="center", fontsize=SMALL, bbox=box)


def colour_bar(mesh: Any, axes: Axes | Iterable[Axes], label: str, **options: Any) -> Colorbar:
    """The scale of a map below its panels."""
    axes = [axes] if isinstance(axes, Axes) else list(axes)
    place = {"orientation": "horizontal", "aspect": 45, "fraction": 0.06, "pad": 0.02, **options}
    figure: Any = axes[0].figure
    bar = figure.colorbar(mesh, ax=axes, label=label, **place)
    bar.outline.set_visible(False)
    return bar


# -- a forest ------------------------------------------------------------------------------------------


def forest(ax: Axes, table: pd.DataFrame, names: Sequence[str], limits: Limits) -> None:
    """An estimate with its interval along the x axis for each row; what is beyond the limits is an arrow at the edge.

    Args:
        ax: The panel.
        table: ``x`` is the estimate, ``y`` its height, from 0 at the top; see `lines`.
        names: Of all series.
        limits: Ends of the x axis.
    """
    keep(ax, table.drop(columns="y"), "x")
    ax.set(xlim=(limits[0] - 0.2, limits[1] + 0.2), ylim=(math.ceil(table["y"].max()), 0))
    for row in table.itertuples():
        style = names.index(row.series)
        x, low, high = np.clip([row.x, row.low, row.high], *limits)
        if not math.isfinite(x):
            note(ax, limits[0], row.y, "no estimate", transform=ax.transData, color=GREY)
            continue
        marker = "<" if x == limits[0] else ">" if x == limits[1] else MARKERS[style]
        ax.plot([low, high], [row.y, row.y], color=PALETTE[style], lw=1.4, zorder=2, gid="interval")
        ax.plot([x], [row.y], marker, color=PALETTE[style], ms=4, zorder=3, gid="effect")
        label = row.series or "effect, 95% interval"
        key(ax, "series", label, color=PALETTE[style], marker=MARKERS[style])
