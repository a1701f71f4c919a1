"""What a figure shows, as numbers: a table of its data, and what to say of each point under the pointer.

Both go into the notebook beside the picture (`MIME`), and pages make of them a download and a layer of tooltips that
need neither a network nor a script.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

MIME = "application/vnd.depthlens.figure+json"
COLUMNS = ["panel", "kind", "series", "x", "y", "value"]
_DECORATION = re.compile("group|leader|top|name|far|third")  # gids of what is not data


def drawn_data(fig: Figure) -> pd.DataFrame:
    """What is drawn, one row a point of a line, dot, bar or cell: `COLUMNS`.

    ``panel`` is the title of the panel or its number, ``series`` what the figure calls the line (or its label), ``x``
    and ``y`` are in the units of the axes (names where an axis has names), and ``value`` is that of a cell.
    """
    rows: list[tuple[Any, ...]] = []
    for number, ax in enumerate(fig.axes):
        if ax.get_label() == "<colorbar>":
            continue
        panel = ax.get_title("left") or ax.get_title("center") or ax.get_title("right") or str(number)
        places = [_named(ax.get_xticks(), ax.get_xticklabels()), _named(ax.get_yticks(), ax.get_yticklabels())]
        for kind, series, x, y, value in _artists(ax):
            ends = (names.get(float(at), float(at)) for names, at in zip(places, (x, y), strict=True))
            rows.append((panel, kind, series, *ends, value))
    return pd.DataFrame(rows, columns=COLUMNS)


def _artists(ax: Axes) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for line in ax.lines:
        name = str(line.get_gid() or line.get_label())
        if _DECORATION.fullmatch(name) or not line.get_transform().contains_branch(ax.transData):
            continue
        found += [("point", name, x, y, np.nan) for x, y in zip(*_numbers(line.get_data()), strict=True)]
    for collection in ax.collections:
        name = str(collection.get_gid() or collection.get_label())
        if isinstance(collection, QuadMesh):
            corners: Any = collection.get_coordinates()
            array: Any = collection.get_array()
            values = np.ma.filled(array, np.nan)
            middles = (corners[:-1, :-1] + corners[1:, 1:]) / 2
            flat = zip(middles.reshape(-1, 2), np.ravel(values), strict=False)
            found += [("cell", name, x, y, value) for (x, y), value in flat]
        elif isinstance(collection, PathCollection):
            offsets: Any = np.ma.filled(collection.get_offsets(), np.nan)
            found += [("point", name, x, y, np.nan) for x, y in offsets]
    for patch in ax.patches:
        if isinstance(patch, Rectangle) and not _DECORATION.fullmatch(str(patch.get_gid())):
            x, y = patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height()
            found.append(("bar", str(patch.get_gid() or patch.get_label()), x, y, np.nan))
    return [row for row in found if np.isfinite(row[2]) and np.isfinite(row[3])]


def _numbers(data: Any) -> tuple[np.ndarray, np.ndarray]:
    x: Any = np.ma.filled(np.ma.asarray(data[0], dtype=float), np.nan)
    y: Any = np.ma.filled(np.ma.asarray(data[1], dtype=float), np.nan)
    return x, y


def _named(ticks: Any, labels: Any) -> dict[float, str]:
    """Names on an axis by place; empty where it has numbers."""
    names = {float(at): label.get_text() for at, label in zip(ticks, labels, strict=False)}
    return {at: name for at, name in names.items() if re.search(r"[A-Za-z]", name)}


def payload(fig: Figure, points: list[tuple[Axes, float, float, str]]) -> dict[str, Any]:
    """What goes into a notebook: title, table as CSV, and points as [left, top, text] in shares of the picture."""
    fig.draw_without_rendering()  # the layout moves the panels when the figure is drawn
    width, height = fig.bbox.width, fig.bbox.height
    at = [(*ax.transData.transform((x, y)), text) for ax, x, y, text in points if np.isfinite(y)]
    shares = [[round(float(x / width), 4), round(float(1 - y / height), 4), text] for x, y, text in at]
    inside = [point for point in shares if 0 <= point[0] <= 1 and 0 <= point[1] <= 1]
    title = " ".join(fig.get_suptitle().split())
    return {"title": title, "csv": drawn_data(fig).round(6).to_csv(index=False), "points": inside}
