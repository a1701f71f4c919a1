"""What all tests of figures ask of a figure."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

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
