"""What all tests of figures ask of a figure."""

from __future__ import annotations

import io
import warnings

import matplotlib as mpl
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest

from depthlens.plots.theme import WIDTH

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
    assert min(sizes) >= 8 and fig.get_size_inches()[0] <= WIDTH


def luminance(colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
