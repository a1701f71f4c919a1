"""What every test of figures asks."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def nothing_leaks():
    before = mpl.rcParams.copy()
    yield
    assert plt.get_fignums() == [], "a figure was left open in pyplot"
    assert mpl.rcParams == before, "global settings were changed"
