"""What all figures share: colours, room for names, notebooks, and that nothing needs torch."""

from __future__ import annotations

import base64
import io
import itertools
import subprocess
import sys

import matplotlib.image
import nbformat
import numpy as np
import pytest
from drawn import check, nothing_leaks  # noqa: F401 (a fixture for all of them)
from made_up_heads import luminance
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from nbclient import NotebookClient

from depthlens import plots
from depthlens.look import PALETTE
from depthlens.plots import panels, theme


def test_every_figure_is_reachable_without_torch():
    """A figure of a saved result must not cost the seconds that torch takes to load."""
    assert all(callable(getattr(plots, name)) for name in plots.__all__) and len(plots.__all__) > 20
    code = (
        "import sys, depthlens as dl; [getattr(dl.plots, n) for n in dl.plots.__all__]; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def lightness(colour) -> float:
    """CIE L* of a colour: what is left of it in greyscale."""
    y = luminance(colour)
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_colours_differ_in_greyscale():
    levels = [lightness(to_rgb(c)) for c in PALETTE]
    assert min(abs(a - b) for a, b in itertools.combinations(levels, 2)) > 10, levels
    assert max(levels) < 75, "a line must stand out from white paper"
    assert len(set(theme.MARKERS)) == len(PALETTE)


# what people without working medium-wave cones see, in linear RGB (Machado et al. 2009, severity 1)
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)


def test_scales_are_even_in_lightness_and_told_apart_without_red_and_green():
    """Perceptual uniformity is judged by lightness, which carries most of the perceived difference in both maps."""
    steps = np.diff([lightness(colormaps["vlag"](x)) for x in np.linspace(0, 1, 11)])
    assert (steps[:5] > 7).all() and (steps[5:] < -7).all() and np.abs(steps).max() < 15
    steps = np.diff([lightness(colormaps["mako_r"](x)) for x in np.linspace(0, 1, 11)])
    assert (steps < -6).all() and steps.min() > -13
    seen = [np.clip(DEUTERANOPIA @ np.array(colormaps["vlag"](x)[:3]) ** 2.2, 0, 1) ** (1 / 2.2) for x in (0.05, 0.95)]
    assert np.abs(seen[0] - seen[1]).max() > 0.4, "loss and gain look alike"


def test_spread_moves_names_as_little_as_possible():
    apart_already = theme.spread([0, 10, 20], [4, 4, 4])
    np.testing.assert_array_equal(apart_already, [0, 10, 20])
    np.testing.assert_allclose(theme.spread([5, 5], [4, 2]), [3.5, 6.5])  # both move equally far
    pushed = theme.spread([0, 0, 9, 9], [2, 2, 2, 2], low=-1.0, high=10.0)
    np.testing.assert_allclose(pushed, [0, 2, 7, 9])
    assert len(theme.spread([], [])) == 0


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0.0), (0.4217, 0.43), (0.83, 0.83), (1.0, 1.0), (12.01, 13.0)])
def test_round_up(value, expected):
    assert theme.round_up(value) == expected


def test_numbers_of_documents_in_words():
    assert theme.counts([16]) == theme.counts(n for n in (16, 16)) == "16"
    assert theme.counts([6, 4, 16]) == "4 to 16"


def test_a_notebook_shows_half_the_pixels_there_are():
    png, size = plots.prediction(["a"], [0.1], [0.2])._repr_png_()
    height, width, _ = matplotlib.image.imread(io.BytesIO(png)).shape
    assert (width, height) == (2 * size["width"], 2 * size["height"])


NOTEBOOK = """
from depthlens import plots
{setup}
plots.prediction(["a", "b"], [0.5, 0.2], [0.1, 0.6])
"""


def test_a_notebook_cell_shows_its_figure_exactly_once():
    """In a kernel without any setup, and in one where pyplot and its inline backend are active."""
    setups = ["", "import matplotlib.pyplot as plt; plt.plot([1]); plt.close()", "%matplotlib inline"]
    cells = [nbformat.v4.new_code_cell(NOTEBOOK.format(setup=setup)) for setup in setups]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    for cell in notebook.cells:
        images = [o["data"]["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
        assert len(images) == 1
        assert base64.b64decode(images[0]).startswith(b"\x89PNG")


def test_a_legend_is_not_wider_than_its_figure():
    for words, ncols in (("short", 4), ("as long as a sentence that explains a mark", 1)):
        fig = theme.figure(None, "title", height=2.0)
        fig.subplots()
        keys = [panels.mark_key(f"{words} {i}", color="k", marker="o") for i in range(4)]
        (legend,) = theme.with_legend(fig, keys).legends
        fig.draw_without_rendering()
        assert len({round(text.get_window_extent().x0) for text in legend.get_texts()}) == ncols
        assert legend.get_window_extent().width <= fig.bbox.width
