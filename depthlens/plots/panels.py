"""The pictures that figures are made of: lines with bands or bars in panels, and grids of cells.

A figure is a tidy table and one call of `curves` or `maps`. The table has a row for each point or cell. Of its columns
these are read; all but the places are optional:

- ``x`` and ``y``, and the ends ``low`` and ``high`` of the interval (of a grid column, row and ``value``);
- ``panel`` (its title), ``unit`` (the name of its y axis) and ``group``: each has panels of its own;
- ``series``: what is a line of its own;
- ``shown``, whether a point is proven, ``gain``, whether it is a proven gain, and ``idle``, why nothing can be judged,
  "" where it can;
- ``text``: what is written in a cell;
- ``least`` and ``greatest``: the range of the metric, which nothing leaves;
- ``n_layers``: the x axis is the layers of such a model, and a line is broken where some are missing.

Its other columns, such as ``task`` and ``p_adjusted``, stay in the table of the figure (`depthlens.plots.Plot.table`).
``gid`` is the name of an artist, by which tests find it. The place of a series among all chooses colour and marker.
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
from matplotlib.colors import Colormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from depthlens.analysis.numbers.stats import ALPHA
from depthlens.errors import UserError
from depthlens.look import EMPTY, GREY, INK, PALE, PALETTE
from depthlens.plots import theme
from depthlens.plots.theme import DASHED, DOTTED, MARKERS, SMALL

Number = int | float
Limits = tuple[Number, Number]
ACCURACY = "accuracy"
PROVEN, GAIN = f"adjusted p < {ALPHA}", "significant gain"
SHOWN, INTERVAL = f"proven ({PROVEN})", "95% interval"
MAX_OVERLAID = len(PALETTE)  # series in one panel
LINE: dict[str, Any] = {"lw": 1.2, "ms": 3.5, "mfc": "white", "mew": 0.8}
RANDOM = ": random heads"  # added to the name of a list: its random lists, drawn as a band with their mean
ZERO = "zero"
LEVELS: dict[str, dict[str, Any]] = {ZERO: {"color": INK, "lw": 0.8}}
LEVELS |= dict.fromkeys(("baseline", "base"), {"color": INK, "ls": DASHED})
LEVELS |= {"donor": {"color": INK, "ls": theme.DASH_DOTTED}}
LEVELS |= dict.fromkeys(("chance",), {"color": GREY, "ls": DOTTED})

_KEYS: dict[str, dict[str, Any]] = {
    "series": {"ms": 5, "mfc": "white"},
    "mark": {"color": INK, "ls": "", "marker": "o", "ms": 6},
    "line": {"color": INK, "lw": 1},
    "area": {"facecolor": INK, "alpha": 0.2, "lw": 0},
}


# -- panels and axes -----------------------------------------------------------------------------------


def grid(n: int, columns: int, xlabel: str = "") -> list[Axes]:
    """Axes of n panels in rows, with the x axis named at the foot of each column; or those of a user.

    Args:
        n: Number of panels.
        columns: Panels in a row.
        xlabel: Of the x axes.

    Raises:
        UserError: several panels for one Axes.
    """
    fig = theme.DRAWN.get()
    if fig.into and n > 1:
        raise UserError(f"one ax cannot hold the {n} panels of this figure; draw it without ax=, or fewer panels")
    axes = [fig.into or fig.add_subplot(math.ceil(n / columns), columns, i + 1) for i in range(n)]
    for ax in axes[-columns:]:
        ax.set_xlabel(xlabel)
    return axes


def whole_numbers(axis: Axis, nbins: int = 12) -> None:
    """Ticks at whole numbers, ``nbins`` of them or fewer."""
    axis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=nbins))


def panel_title(ax: Axes, text: str, **options: Any) -> None:
    """A title on the left, wrapped to the width of the panel."""
    if theme.DRAWN.get().into:  # below that of the user
        text = "\n".join(filter(None, [ax.get_title("left"), text]))
    spec, figure = ax.get_subplotspec(), ax.figure
    columns = spec.get_gridspec().ncols if spec else 1
    width = round(14 * (figure.bbox.width / figure.dpi / columns - 0.5))
    ax.set_title(_wrapped(text, width), loc="left", **options).set_parse_math(False)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width) for line in text.split("\n"))


def key(ax: Axes, kind: str, label: str, **options: Any) -> None:
    """Explain something in the legend, once: a series, a mark, a line, or an area."""
    look = {**_KEYS[kind], **options}
    artist = Patch(label=label, **look) if kind == "area" else Line2D([], [], label=label, **look)
    theme.DRAWN.get().keys.setdefault(label, (list(_KEYS).index(kind), artist))


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
    theme.DRAWN.get().drawn.append((ax, rows))


def idle_where(at_chance: Any) -> Any:
    """The column ``idle`` from whether nothing can be judged."""
    return np.where(at_chance, theme.CANNOT_JUDGE, "")


# -- lines and stems -----------------------------------------------------------------------------------


def curves(
    title: str,
    table: pd.DataFrame,
    names: Sequence[str] = ("",),
    *,
    levels: Sequence[str] = (),
    xlabel: str = "",
    each: Number = 2.2,
    columns: int | None = None,
    **look: Any,
) -> list[tuple[Axes, pd.DataFrame]]:
    """A figure of lines with bands or bars: each panel with its rows.

    Args:
        title: The default title.
        table: See `depthlens.plots.panels`. A missing ``y`` leaves a gap.
        names: Of all series of the figure, in order: the place of a series here is its style.
        levels: Names of `LEVELS`: columns with values at which each panel has a horizontal line, or ``zero``.
        xlabel: Of the x axes.
        each: Inches: height of a panel.
        columns: Panels in a row.
        **look: See `_lines`.

    Raises:
        UserError: more series than there are colours.
    """
    if len(names) > MAX_OVERLAID:
        raise UserError(f"{len(names)} series; a figure shows up to {MAX_OVERLAID}, draw fewer: {', '.join(names)}")
    missing: dict[str, Any] = dict.fromkeys(("panel", "unit", "group", "series", "idle"), "") | {ZERO: 0.0}
    table = table.assign(**{column: value for column, value in missing.items() if column not in table})
    parts = [rows for _, rows in table.groupby(["panel", "unit", "group"], sort=False)]
    columns = columns or {1: 1, 2: 2, 4: 2}.get(len(parts), 3)
    theme.figure(title, height=each * math.ceil(len(parts) / columns) + 1.2)
    axes = grid(len(parts), columns, xlabel)
    for i, (ax, rows) in enumerate(zip(axes, parts, strict=True)):
        first = rows.iloc[0]
        for kind in levels:
            _level(ax, rows, names, kind)
        _lines(ax, rows, names, **look)
        if pd.api.types.is_integer_dtype(rows["x"]):
            whole_numbers(ax.xaxis, 12 if columns == 1 else 7)
        if "n_layers" in rows:
            ax.set_xlim(-0.7, rows["n_layers"].max() - 0.3)
        if first["unit"] == ACCURACY:
            ax.set_ylim(-0.02, 1.02)
            ax.yaxis.set_major_locator(ticker.MultipleLocator(0.2))
        if i % columns == 0 or parts[i - 1]["unit"].iloc[0] != first["unit"]:
            ax.set_ylabel(_wrapped(first["unit"].replace(" (", "\n("), round(13 * each))).set_parse_math(False)
        panel_title(ax, first["panel"])
    return list(zip(axes, parts, strict=True))


def _level(ax: Axes, rows: pd.DataFrame, names: Sequence[str], kind: str) -> None:
    """A horizontal line of one kind in a panel; baselines that differ have the colours of their series."""
    own = rows.dropna(subset=kind).drop_duplicates(["series", kind])
    by_series = kind == "baseline" and own[kind].nunique() > 1
    for row in (own if by_series else own.drop_duplicates(kind)).to_dict("records"):
        colour = {"color": GREY if row["idle"] else PALETTE[names.index(row["series"])]} if by_series else {}
        ax.axhline(row[kind], **{"lw": 1, "zorder": 1.5, "gid": kind, **LEVELS[kind], **colour})
    if len(own) and kind != ZERO:
        key(ax, "line", kind, **LEVELS[kind])


def _lines(
    ax: Axes,
    table: pd.DataFrame,
    names: Sequence[str],
    *,
    bars: bool = False,
    shown: str = SHOWN,
    random: str = "",
    aside: Number = 0,
    **look: Any,
) -> None:
    """A line for each series, with its interval as a band; markers are filled where a point is shown.

    Args:
        ax: The panel.
        table: Its rows.
        names: Of all series of the figure.
        bars: Whether intervals are drawn as bars.
        shown: What filled markers are, for the legend.
        random: What the band of a series whose name ends with `RANDOM` is.
        aside: How far neighbouring series are drawn apart along the x axis, so that they do not hide each other.
        **look: Of the lines, for matplotlib.
    """
    if "least" in table:
        drawn = ["y", "low", "high"]
        table = table.assign(**table[drawn].clip(table["least"], table["greatest"], axis=0))
    keep(ax, table)
    for style, name in enumerate(names):
        rows = table[table["series"] == name]
        if rows.empty:
            continue
        why = rows["idle"].max()
        colour = GREY if why else PALETTE[style]
        beside = table[table["series"] == name + RANDOM]
        if len(beside):
            x, low, high = beside[["x", "low", "high"]].to_numpy(dtype=float).T
            _band(ax, x, low, high, colour, hatched=why, gid="random band")
            ax.plot(beside["x"], beside["y"], color=colour, lw=0.7, alpha=0.8, gid="random")
            key(ax, "area", random)
            key(ax, "line", "their mean", lw=0.7)
        if "n_layers" in rows:
            whole = range(int(rows["x"].min()), int(rows["x"].max()) + 1)
            rows = rows.set_index("x").reindex(whole).rename_axis("x").reset_index()
        x, y, low, high = (rows[column].to_numpy(dtype=float) for column in ("x", "y", "low", "high"))
        x = x + (style - (len(names) - 1) / 2) * aside
        ax.plot(x, y, marker=MARKERS[style], **{**LINE, "gid": "series", "color": colour, **look})
        if name:
            label = f"{name} ({why})" if why else name
            key(ax, "series", label, color=colour, marker=MARKERS[style], ls=look.get("ls", "-"))
        elif why:
            ax.text(1, 1, why, ha="right", va="top", color=GREY, fontsize=SMALL, transform=ax.transAxes)
        known = np.pad(np.isfinite(y + low), 1)
        alone = known[1:-1] & ~known[:-2] & ~known[2:]  # a band has no width at a point without neighbours
        barred = known[1:-1] if bars else alone
        ax.vlines(x[barred], low[barred], high[barred], color=colour, lw=1, gid="interval")
        if not bars:
            _band(ax, x, low, high, colour, hatched=why, gid="band")
        if known.any():
            kind, paint = ("line", "color") if bars else ("area", "facecolor")
            key(ax, kind, INTERVAL, **{paint: colour if len(names) == 1 else INK})
        where = rows["shown"].eq(True).to_numpy() if "shown" in rows and not why else np.zeros(len(rows), dtype=bool)
        if where.any():
            size = 5 if style == 0 else 7  # no mark hides one of another series
            mark: dict[str, Any] = {"color": colour, "mec": "white", "mew": 0.7, "ms": size, "zorder": 3 - style / 10}
            ax.plot(x[where], y[where], MARKERS[style], ls="", gid="shown", **mark)
            key(ax, "mark", shown, color=colour if len(names) == 1 else INK)


def _band(ax: Axes, x: Any, low: Any, high: Any, colour: str, *, hatched: str, gid: str) -> None:
    """A range as a filled area, hatched where nothing can be judged."""
    look: dict[str, Any] = {"hatch": "////", "facecolor": "none", "edgecolor": colour, "alpha": 0.5}
    ax.fill_between(x, low, high, lw=0, gid=gid, **(look if hatched else {"color": colour, "alpha": 0.16}))


# -- a grid of cells -----------------------------------------------------------------------------------


def maps(
    title: str,
    table: pd.DataFrame,
    limits: Limits | None,
    label: str,
    *,
    height: Number,
    width: Number = theme.WIDTH,
    xlabel: str = "",
    ylabel: str = "",
    **look: Any,
) -> list[Axes]:
    """A figure of grids of cells: its panels.

    Args:
        title: The default title.
        table: See `cells` and `depthlens.plots.panels`.
        limits: See `cells`; None: each panel has colours from 0 up to its own largest value, and a scale beside it.
        label: Of the scale; with the ``unit`` of the panel where each has its own.
        height: Of the figure, in inches.
        width: Of the figure, in inches.
        xlabel: Of the x axes.
        ylabel: Of the y axes.
        **look: See `cells`.
    """
    table = table if "panel" in table else table.assign(panel="")
    parts = [rows for _, rows in table.groupby("panel", sort=False)]
    theme.figure(title, height=height, width=width)
    axes = grid(len(parts), 1, xlabel)
    for ax, rows in zip(axes, parts, strict=True):
        top = max(1e-9, float(np.nanmax(rows["value"].to_numpy(dtype=float), initial=0)))
        mesh = cells(ax, rows, limits or (0, top), **look)
        panel_title(ax, rows["panel"].iloc[0])
        ax.set_ylabel(ylabel)
        if limits is None and not ("idle" in rows and rows["idle"].iloc[0]):
            beside = {"orientation": "vertical", "fraction": 0.15, "pad": 0.01, "aspect": 12}
            colour_bar(mesh, ax, label + rows["unit"].iloc[0], **beside)
    if limits is not None:
        colour_bar(mesh, axes, label)
    return axes


def cells(
    ax: Axes,
    table: pd.DataFrame,
    limits: Limits,
    *,
    rows: range | Sequence[str],
    columns: range | Sequence[str],
    cmap: str | Colormap = theme.SCORES,
    shown: str = SHOWN,
    mark: Number = 4,
    **options: Any,
) -> Any:
    """A cell for each row of a table: dots where it is ``shown``, rings where it is a proven ``gain``.

    The first row is on top. Rows and columns are numbered at the middles of the cells.

    Args:
        ax: The panel.
        table: ``x`` is the column, ``y`` the row (its place among named ones), ``value`` what the colour says; NaN is
            left empty. A row that is ``idle`` is hatched and says why.
        limits: The numbers at the ends of the colours.
        rows: Numbers or names of the rows.
        columns: Numbers or names of the columns.
        cmap: The colours.
        shown: What dots are, for the legend.
        mark: Points: size of dots and rings.
        **options: Of the mesh, for matplotlib.
    """
    down, across = (names if isinstance(names, range) else range(len(names)) for names in (rows, columns))
    named = table if down is rows else table.drop(columns="y").assign(series=[rows[y] for y in table["y"]])
    keep(ax, named, "value")
    values = table.pivot(index="y", columns="x", values="value").reindex(index=down, columns=across)
    x, y = (np.array([*numbers, numbers[-1] + 1]) - 0.5 for numbers in (across, down))
    look: dict[str, Any] = {"edgecolors": "white", "linewidth": 0.5, "gid": "cells", **options}
    look |= {"cmap": cmap, "vmin": limits[0], "vmax": limits[1]}
    mesh = ax.pcolormesh(x, y, np.ma.masked_invalid(values.to_numpy(dtype=float)), **look)
    ax.set(xlim=(x[0], x[-1]), ylim=(y[-1], y[0]), facecolor=EMPTY)
    for axis, names, rotation in ((ax.xaxis, columns, 90), (ax.yaxis, rows, 0)):
        if isinstance(names, range):
            whole_numbers(axis)
        else:
            axis.set_ticks(range(len(names)), names, rotation=rotation, parse_math=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    why = table.groupby("y")["idle"].first() if "idle" in table else pd.Series(dtype=str)
    if len(why) and why.nunique() == 1 and why.iloc[0]:
        hatch(ax, down, across, why.iloc[0])  # all of them are: once is enough
    else:
        for row, text in why[why != ""].items():
            hatch(ax, range(int(row), int(row) + 1), across, text)
    for kind, fill, label in (("shown", True, shown), ("gain", False, GAIN)):
        for row in table[table[kind]].itertuples() if kind in table else ():
            ink = theme.ink_on(mesh.to_rgba(row.value))
            style: dict[str, Any] = {"mfc": ink if fill else "none", "mew": 0 if fill else 0.8, "ms": mark}
            ax.plot(row.x, row.y, "o", color=ink, gid=kind, **style)
            key(ax, "mark", label, ms=4, mfc=INK if fill else "none")
    for cell in table.itertuples() if "text" in table else ():
        ink = theme.ink_on(mesh.to_rgba(cell.value))
        ax.text(cell.x, cell.y, cell.text, color=ink, ha="center", va="center", fontsize=SMALL, gid="text")
    return mesh


def hatch(ax: Axes, rows: range, columns: range, text: str = "") -> None:
    """Hatch rows of a map, and write why they have no numbers."""
    look: dict[str, Any] = {"hatch": "////", "fc": "none", "ec": PALE, "lw": 0, "zorder": 0.5, "gid": "hatch"}
    ax.add_patch(Rectangle((columns[0] - 0.5, rows[0] - 0.5), len(columns), len(rows), **look))
    if text:
        box = {"fc": "white", "ec": "none", "pad": 1.5}
        middle = (columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2
        ax.text(*middle, text, ha="center", va="center", fontsize=SMALL, bbox=box)


def colour_bar(mesh: Any, axes: Axes | Iterable[Axes], label: str, **options: Any) -> None:
    """The scale of a map below its panels."""
    axes = [axes] if isinstance(axes, Axes) else list(axes)
    place = {"orientation": "horizontal", "aspect": 45, "fraction": 0.06, "pad": 0.02, **options}
    if theme.DRAWN.get().into:  # beside it, because the legend is below
        place = {"extend": options.get("extend", "neither")}
    figure: Any = axes[0].figure
    bar = figure.colorbar(mesh, ax=axes, label=label, **place)
    bar.outline.set_visible(False)
