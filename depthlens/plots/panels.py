"""The parts that figures are made of: panels, axes, curves with bands, marks, levels, maps, legend keys.

Everything that two figures draw is drawn here, so that it looks the same in both. ``gid`` is the name of an artist, by
which tests find it. Series are numbered; the number (``style``) chooses colour and marker.
"""

from __future__ import annotations

import math
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
from numpy.typing import ArrayLike

from depthlens.errors import UserError
from depthlens.look import EMPTY, GREY, INK, PALE, PALETTE
from depthlens.plots import theme
from depthlens.plots.theme import DASHED, DOTTED, MARKERS, SMALL

Number = int | float
ACCURACY = "accuracy"
LINE: dict[str, Any] = {"lw": 1.2, "ms": 3.5, "mfc": "white", "mew": 0.8}
_REFERENCE, _NOTHING = {"color": INK, "ls": DASHED}, {"color": GREY, "ls": DOTTED}
_LEVELS: dict[str, dict[str, Any]] = dict.fromkeys(("baseline", "base", "threshold"), _REFERENCE)
_LEVELS |= {"donor": {"color": INK, "ls": theme.DASH_DOTTED}}
_LEVELS |= dict.fromkeys(("chance", "no change", "tolerance"), _NOTHING)


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
    """A title on the left, smaller where it is long because two panels share the width of a page."""
    size = None if len(text) <= 35 else 9 if len(text) <= 45 else SMALL
    ax.set_title(text, loc="left", **{"fontsize": size, **options}).set_parse_math(False)


def note(ax: Axes, x: Number, y: Number, text: str, **options: Any) -> None:
    """Small text at a place given as shares of the panel's width and height."""
    look = {"fontsize": SMALL, "va": "center", "transform": ax.transAxes, "parse_math": False}
    ax.text(x, y, text, **{**look, **options})


# -- curves, marks and levels --------------------------------------------------------------------------


def drawn(fig: Figure, gid: str) -> bool:
    """Whether a figure has an artist of this name."""
    return any(artist.get_gid() == gid for artist in fig.findobj())


def colour_of(style: int, idle: Any = False) -> str:
    """The colour of a series: grey where nothing can be judged."""
    return GREY if idle else PALETTE[style]


def band(
    ax: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, style: int, idle: Any = False, **options: Any
) -> None:
    """A range as a filled area, hatched where nothing can be judged."""
    colour = colour_of(style, idle)
    hatched = {"hatch": "////", "facecolor": "none", "edgecolor": colour, "alpha": 0.5}
    look: dict[str, Any] = hatched if idle else {"color": colour, "alpha": 0.16}
    ax.fill_between(np.asarray(x), low, high, lw=0, **look, **options)


def curve(
    ax: Axes, x: np.ndarray, values: np.ndarray | Sequence[np.ndarray], style: int, *, idle: Any = False, **options: Any
) -> None:
    """A line with open markers and its interval as a band.

    Args:
        ax: The panel.
        x: Places along the x axis. Shape [point].
        values: The values (NaN leaves a gap), and the ends of their intervals. Shape [3, point].
        style: Number of the series.
        idle: Whether the series cannot be judged: it is drawn in grey.
        **options: Of the line, for matplotlib; ``gid``, its name, also names the band, ``"GID band"``.
    """
    y, low, high = values
    look = {**LINE, "gid": "series", "color": colour_of(style, idle), **options}
    band(ax, x, low, high, style, idle, gid=f"{look['gid']} band")
    known = np.pad(np.isfinite(np.asarray(y) + low), 1)
    alone = known[1:-1] & ~known[:-2] & ~known[2:]  # a band has no width at a point without neighbours
    if alone.any():
        ax.vlines(x[alone], low[alone], high[alone], color=look["color"], lw=1)
    ax.plot(x, y, marker=MARKERS[style], **look)


def marks(ax: Axes, x: np.ndarray, y: np.ndarray, where: np.ndarray, style: int, gid: str) -> None:
    """Filled markers at the points that are proven; nothing where none is."""
    if where.any():
        look: dict[str, Any] = {"color": PALETTE[style], "mec": "white", "mew": 0.7, "gid": gid}
        look |= {"ms": 5 if style == 0 else 7, "zorder": 3 - style / 10}  # no mark hides one of another series
        ax.plot(x[where], y[where], MARKERS[style], ls="", **look)


def level(ax: Axes, value: Number | None, kind: str, **options: Any) -> None:
    """A horizontal line at a value that is there: of a kind that has a key, or at zero."""
    look = _LEVELS.get(kind, {"color": INK, "lw": 0.8})
    if value is not None and math.isfinite(value):
        ax.axhline(value, **{"lw": 1, "zorder": 1.5, "gid": kind, **look, **options})


# -- maps ----------------------------------------------------------------------------------------------


def cells(
    ax: Axes,
    grid: np.ndarray,
    limits: tuple[Number, Number] | Normalize,
    *,
    cmap: str | Colormap = theme.SCORES,
    first_row: int = 0,
    empty: str = EMPTY,
    **options: Any,
) -> QuadMesh:
    """A map of numbers with row 0 on top, whose rows and columns are numbered at the middles of the cells.

    Args:
        ax: The panel.
        grid: Numbers; NaN is left empty. Shape [row, column].
        limits: The numbers at the ends of the colours, between which they are even; or how numbers become colours.
        cmap: The colours.
        first_row: Number of the first row.
        empty: Colour of an empty cell.
        **options: Of the mesh, for matplotlib.
    """
    rows, columns = grid.shape
    x, y = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5 + first_row
    look: dict[str, Any] = {"edgecolors": "white", "linewidth": 0.5, **options}
    norm = limits if isinstance(limits, Normalize) else Normalize(*limits)
    mesh = ax.pcolormesh(x, y, np.ma.masked_invalid(grid), cmap=cmap, norm=norm, **look)
    ax.set(xlim=(x[0], x[-1]), ylim=(y[-1], y[0]), facecolor=empty)
    for axis in (ax.xaxis, ax.yaxis):
        whole_numbers(axis)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return mesh


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Name the rows of a map, the first of which is row 0."""
    ax.set_yticks(range(len(names)), names)
    for text in ax.get_yticklabels():
        text.set_parse_math(False)


def hatch(ax: Axes, row: Number, n_rows: int, n_columns: int, text: str = "") -> None:
    """Hatch rows of a map, from the top edge ``row`` on, and write why they have no numbers."""
    look: dict[str, Any] = {"hatch": "////", "fc": "none", "ec": PALE, "lw": 0, "zorder": 0.5, "gid": "hatch"}
    ax.add_patch(Rectangle((-0.5, row), n_columns, n_rows, **look))
    if text:
        box = {"fc": "white", "ec": "none", "pad": 1.5}
        middle = (n_columns - 1) / 2, row + n_rows / 2
        ax.text(*middle, text, ha="center", va="center", fontsize=SMALL, bbox=box)


def layer_rows(
    fig: Figure,
    grid: np.ndarray,
    limits: tuple[Number, Number] | Normalize,
    names: Sequence[str],
    idle: Sequence[str],
    *,
    cmap: str,
    gid: str,
    **bar: Any,
) -> Axes:
    """A map with a named row for each task and a column for each removed layer, and the scale of its changes.

    Args:
        fig: Where it is added.
        grid: Changes. Shape [task, layer].
        limits: See `cells`.
        names: Of the rows.
        idle: Why a row has no numbers: it is hatched; "" where it has.
        cmap: The colours.
        gid: Name of the map.
        **bar: Of the scale: its ``label``, and other options for matplotlib.
    """
    ax = fig.subplots()
    mesh = cells(ax, grid, limits, cmap=cmap, gid=gid)
    for row, why in enumerate(idle):
        if why:
            hatch(ax, row - 0.5, 1, grid.shape[1], why)
    name_rows(ax, names)
    ax.set_xlabel("removed layer")
    colour_bar(mesh, ax, **bar)
    return ax


def colour_bar(mesh: Any, axes: Axes | Iterable[Axes], label: str, **options: Any) -> Colorbar:
    """The scale of a map below its panels."""
    axes = [axes] if isinstance(axes, Axes) else list(axes)
    place = {"orientation": "horizontal", "aspect": 45, "fraction": 0.06, "pad": 0.02, **options}
    figure: Any = axes[0].figure
    bar = figure.colorbar(mesh, ax=axes, label=label, **place)
    bar.outline.set_visible(False)
    return bar


# -- keys of the legend --------------------------------------------------------------------------------


def series_keys(names: Iterable[object], **options: Any) -> list[Line2D]:
    """One key a series, with its colour and marker."""
    styles = zip(names, PALETTE, MARKERS, strict=False)
    look = {"ms": 5, "mfc": "white", **options}
    return [Line2D([], [], color=c, marker=m, label=str(name), **look) for name, c, m in styles]


def line_key(label: str, **options: Any) -> Line2D:
    return Line2D([], [], label=label, **{"color": INK, "lw": 1, **options})


def mark_key(label: str, **options: Any) -> Line2D:
    return Line2D([], [], label=label, **{"color": INK, "ls": "", "marker": "o", "ms": 6, **options})


def level_keys(fig: Figure, *, colour: str | None = None, **labels: str) -> list[Line2D]:
    """Keys of all levels that a figure has, named for their kinds unless ``labels`` say otherwise.

    Args:
        fig: The figure.
        colour: Of all; by default those of their kinds.
        **labels: What to call a kind.
    """
    own = {} if colour is None else {"color": colour}
    return [line_key(labels.get(kind, kind), **look | own) for kind, look in _LEVELS.items() if drawn(fig, kind)]


def reach(*values: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest of some values and of 0; NaN is left out."""
    every = np.concatenate([np.zeros(1), *values])
    return float(np.nanmin(every)), float(np.nanmax(every))


BAND = "95% interval"


def band_key(label: str = BAND, colour: str = INK) -> Patch:
    return Patch(facecolor=colour, alpha=0.2, lw=0, label=label)


# -- tables --------------------------------------------------------------------------------------------


def require(table: pd.DataFrame, columns: Sequence[str], fix: str) -> None:
    """Refuse a table that has no rows or lacks a column.

    Raises:
        UserError: naming the columns that are missing, or how to get rows.
    """
    if missing := [c for c in columns if c not in table.columns]:
        raise UserError(f"the table lacks column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    if table.empty:
        raise UserError(f"the table has no rows; {fix}")


def numbers(table: pd.DataFrame, *columns: str) -> list[np.ndarray]:
    """Columns of a table as floats. Each of shape [row]."""
    return [table[column].to_numpy(dtype=float, copy=True) for column in columns]
