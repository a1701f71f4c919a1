"""What all tests of figures ask of a figure."""

import io
import warnings
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import matplotlib.image
import numpy as np

from depthlens.plots import theme

mpl.use("agg")


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


def points(fig, gid) -> list[tuple[int, int]]:
    """Places of the markers with a gid."""
    return sorted((round(x), round(y)) for line in by_gid(fig, gid) for x, y in line.get_xydata())


@dataclass
class Case:
    """A figure and what it must show.

    Attributes:
        fig: The figure.
        panels: Axes with data, and colour bars.
        values: Numbers of its table: of a series by its name, or of all rows.
        shown: Layers of the table that are proven (or places along the x axis).
        count: How many artists have a gid.
        words: Texts that stand in it; line breaks do not count.
        cannot_judge: How many texts say "not shown to be above chance".
    """

    fig: Any
    panels: int
    values: Any = None
    shown: Any = None
    count: dict[str, int] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    cannot_judge: int = 0


def holds(case: Case) -> None:
    check(case.fig)
    assert len(case.fig.axes) == case.panels
    table = case.fig.table
    assert set(table) <= set(theme.COLUMNS) and "value" in table
    wanted = {} if case.values is None else case.values if isinstance(case.values, dict) else {None: case.values}
    for series, values in wanted.items():
        found = table["value"] if series is None else table.loc[table["series"] == series, "value"]
        np.testing.assert_allclose(found.astype(float), np.ravel(np.asarray(values, dtype=float)), atol=1e-9)
    if case.shown is not None:
        rows = table[table["shown"].eq(True)] if "shown" in table else table[:0]
        assert list(rows["layer" if "layer" in table else "x"]) == list(case.shown)
    assert {gid: len(by_gid(case.fig, gid)) for gid in case.count} == case.count
    flat = " ".join(texts(case.fig).split())
    assert [words for words in case.words if words not in flat] == []
    assert flat.count(theme.CANNOT_JUDGE) == case.cannot_judge
