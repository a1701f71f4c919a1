"""What all tests of figures ask of a figure."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest

from depthlens.plots import theme

mpl.use("agg")


@pytest.fixture(autouse=True)
def nothing_leaks():
    before = mpl.rcParams.copy()
    yield
    assert plt.get_fignums() == [], "a figure was left open in pyplot"
    assert mpl.rcParams == before, "global settings were changed"


def by_gid(fig, gid):
    return [artist for artist in fig.findobj() if artist.get_gid() == gid]


def texts(fig) -> str:
    return "\n".join(t.get_text() for t in fig.findobj(mpl.text.Text))


def check(fig) -> None:
    """It can be drawn without warnings, nothing is cut off, no text is too small."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png, _ = fig._repr_png_()
    image = mpl.image.imread(io.BytesIO(png))
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border[:, :3] == 1).all(), "something is cut off at the edge"
    sizes = [t.get_fontsize() for t in fig.findobj(mpl.text.Text) if t.get_text()]
    assert min(sizes) >= 8 and fig.get_size_inches()[0] <= theme.WIDTH


def luminance(colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def meshes(fig) -> list:
    """The maps of a figure without those of its colour bars."""
    axes = [ax for ax in fig.axes if ax.get_label() != "<colorbar>"]
    return [c for ax in axes for c in ax.collections if isinstance(c, mpl.collections.QuadMesh)]


def points(fig, gid) -> list[tuple[int, int]]:
    """Places of the markers with a gid."""
    return sorted((round(x), round(y)) for line in by_gid(fig, gid) for x, y in line.get_xydata())


@dataclass
class Case:
    """A figure and what it must show.

    Attributes:
        fig: The figure.
        panels: Axes with data.
        y: Numbers of the artists with a gid: of lines their heights, of maps their cells.
        x: Places of the artists with a gid.
        cells: Numbers of each map that has no gid.
        marks: Places of all markers with a gid, by x and y.
        count: How many artists have a gid.
        words: Texts that stand in it; line breaks do not count.
        cannot_judge: How many panels or rows are called "at chance: cannot judge".
    """

    fig: Any
    panels: int
    y: dict[str, list] = field(default_factory=dict)
    x: dict[str, list] = field(default_factory=dict)
    cells: list = field(default_factory=list)
    marks: dict[str, list] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    cannot_judge: int = 0


def read(artist, what):
    if hasattr(artist, "get_array") and hasattr(artist, "get_coordinates"):
        return np.ma.filled(artist.get_array().astype(float), np.nan)
    return np.asarray(artist.get_ydata() if what == "y" else artist.get_xdata(), dtype=float)


def holds(case: Case) -> None:
    check(case.fig)
    assert len(case.fig.axes) == case.panels
    for what in ("y", "x"):
        for gid, wanted in getattr(case, what).items():
            found = by_gid(case.fig, gid)
            assert len(found) == len(wanted), gid
            for artist, values in zip(found, wanted, strict=True):
                values = np.asarray(values, dtype=float)
                np.testing.assert_allclose(
                    read(artist, what).reshape(values.shape), values, atol=0.15 if what == "x" else 1e-9
                )
    for mesh, grid in zip(meshes(case.fig) if case.cells else (), case.cells, strict=True):
        np.testing.assert_allclose(read(mesh, "y"), grid)
    assert {gid: points(case.fig, gid) for gid in case.marks} == case.marks
    assert {gid: len(by_gid(case.fig, gid)) for gid in case.count} == case.count
    written = texts(case.fig)
    flat = " ".join(written.split())
    assert [words for words in case.words if words not in flat] == []
    assert written.count(theme.CANNOT_JUDGE) == case.cannot_judge
