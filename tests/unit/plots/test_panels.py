"""What all figures share: colours, the four pictures and their tables, and what goes into notebooks."""

import base64
import io
import itertools
from pathlib import Path

import geometries
import made_results
import matplotlib as mpl
import matplotlib.image
import nbformat
import numpy as np
import pandas as pd
import pytest
from drawn import by_gid, check, luminance, points, texts
from made_results import EARLY, sweep
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from nbclient import NotebookClient
from refusals import refused

from depthlens.analysis.result.tables import DescribedTable
from depthlens.errors import UserError
from depthlens.look import GREY, MIME, PALETTE
from depthlens.plots import panels, theme
from depthlens.plots.theme import themed


def test_colours_differ_in_greyscale():
    """By CIE L*: what is left of a colour in greyscale."""
    levels = [116 * luminance(to_rgb(c)) ** (1 / 3) - 16 for c in PALETTE]
    assert min(abs(a - b) for a, b in itertools.combinations(levels, 2)) > 10, levels
    assert max(levels) < 75, "a line must stand out from white paper"
    assert len(set(theme.MARKERS)) == len(PALETTE)


def test_white_space_and_what_the_font_lacks_are_made_visible():
    texts = [theme.visible(token) for token in (" Paris", "\n", " $x$", " 巴", "")]
    assert texts == ["␣Paris", "⏎", "␣$x$", "␣\\u5df4", "(empty)"]


def test_numbers_of_documents_in_words():
    assert theme.counts([16]) == theme.counts(n for n in (16, 16)) == "16"
    assert theme.counts([6, 4, 16]) == "4 to 16"


def test_a_notebook_shows_half_the_pixels_there_are():
    png, size = sweep(EARLY).plot()._repr_png_()
    height, width, _ = matplotlib.image.imread(io.BytesIO(png)).shape
    assert (width, height) == (2 * size["width"], 2 * size["height"])


TESTS = Path(made_results.__file__).parent
NOTEBOOK = f"""
import sys
sys.path.append({str(TESTS)!r})
import made_results
{{setup}}
made_results.sweep(made_results.EARLY).plot()
"""


@pytest.mark.slow
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


A = [(0.5, -0.1, 0.7, False), (0.6, 0.5, 0.7, True), (np.nan, np.nan, np.nan, False)]
B = [(0.1, 0.0, 0.2, True), (0.2, 0.1, 0.3, False), (0.3, 0.2, 1.4, False)]
TABLE = pd.DataFrame([*A, *B], columns=["y", "low", "high", "shown"])
TABLE = TABLE.assign(series=[*"aaabbb"], x=[0, 1, 2] * 2, idle=[""] * 3 + [theme.CANNOT_JUDGE] * 3, task="t")


@themed
def drawing(draw, *args, **options):
    draw(theme.figure("", height=2.5).subplots(), *args, **options)


curves = themed(panels.curves)


def test_more_series_than_colours_are_refused():
    refused("5 series; a figure shows up to 4, draw fewer: a, b, c, d, e", curves, "", TABLE, "abcde")


def heights(fig, gid):
    return [line.get_ydata().tolist() for line in by_gid(fig, gid)]


@pytest.mark.parametrize("bars", [False, True])
def test_lines_draw_their_table(bars):
    fig = curves("", TABLE.assign(least=0, greatest=1), ("a", "b"), bars=bars)
    check(fig)
    np.testing.assert_equal(heights(fig, "series"), [[0.5, 0.6, np.nan], [0.1, 0.2, 0.3]])
    assert heights(fig, "shown") == [[0.6]], "nothing is shown where nothing can be judged"
    assert [line.get_color() for line in by_gid(fig, "series")] == [PALETTE[0], GREY]
    ranges = by_gid(fig, "interval" if bars else "band")
    ends = np.vstack([path.vertices for range_ in ranges for path in range_.get_paths()])[:, 1]
    assert ends.min() == 0 and ends.max() == 1, "an interval leaves the range of its metric"
    for label in ("a", f"b ({theme.CANNOT_JUDGE})", panels.INTERVAL, panels.SHOWN):
        assert label in texts(fig)
    assert list(fig.table) == ["series", "task", "x", "value", "low", "high", "shown"]
    np.testing.assert_array_equal(fig.table["value"], TABLE["y"])
    np.testing.assert_array_equal(fig.table["high"], TABLE["high"].clip(upper=1))


def test_missing_layers_leave_a_gap_and_a_point_alone_has_a_bar():
    rows = TABLE.iloc[[0, 1, 1]].assign(x=[0, 1, 4], layer=[0, 1, 4], n_layers=6)
    fig = curves("", rows, ["a"])
    np.testing.assert_equal(heights(fig, "series"), [[0.5, 0.6, np.nan, np.nan, 0.6]])
    (bars,) = by_gid(fig, "interval")
    assert [path.vertices[:, 0].tolist() for path in bars.get_paths()] == [[4, 4]]
    assert list(fig.table) == ["series", "task", "layer", "value", "low", "high", "shown"], "x is the layer"


def test_cells_draw_their_table():
    rows = pd.DataFrame({"x": [0, 1, 0, 1], "y": [0, 0, 1, 1], "value": [0.5, -1.0, np.nan, np.nan]})
    rows = rows.assign(shown=[True, False] * 2, gain=[False, True] * 2, idle=["", "", "why", "why"])
    rows.loc[2:, ["shown", "gain"]] = False
    fig = drawing(panels.cells, rows, (-1, 1), rows=["one", "two"], columns=range(3))
    check(fig)
    (mesh,) = by_gid(fig, "cells")
    wanted = np.array([[0.5, -1, np.nan], [np.nan] * 3])
    np.testing.assert_array_equal(np.ma.filled(mesh.get_array(), np.nan), wanted)
    assert (points(fig, "shown"), points(fig, "gain")) == ([(0, 0)], [(1, 0)])
    (hatch,) = by_gid(fig, "hatch")
    assert hatch.get_xy() == (-0.5, 0.5) and hatch.get_height() == 1
    assert {"one", "two", "why", panels.SHOWN, panels.GAIN} <= {*texts(fig).split("\n")}
    assert list(fig.table["series"]) == ["one", "one", "two", "two"]
    whole = drawing(panels.cells, rows.assign(idle="why"), (-1, 1), rows=range(2), columns=range(2))
    assert by_gid(whole, "hatch")[0].get_height() == 2 and texts(whole).count("why") == 1


def test_a_legend_is_not_wider_than_its_figure():
    for words, ncols in (("short", 4), ("as long as a sentence that explains a mark in a figure", 1)):
        fig = drawing(lambda ax, words=words: [panels.key(ax, "mark", f"{words} {i}") for i in range(4)])
        (legend,) = fig.legends
        fig.draw_without_rendering()
        assert len({round(text.get_window_extent().x0) for text in legend.get_texts()}) == ncols
        assert legend.get_window_extent().width <= fig.bbox.width


def test_a_figure_carries_its_table_and_saves_it(tmp_path):
    result = sweep(EARLY)
    fig = result.plot("depth_profile")
    rows = result.summary.iloc[1:]
    assert list(fig.table) == [c for c in theme.COLUMNS if c not in ("claim", "part", "head", "x", "y", "series")]
    for column in ("layer", "value", "p_adjusted"):
        np.testing.assert_allclose(fig.table[column].astype(float), rows[column].astype(float))
    np.testing.assert_allclose(fig.table["low"], (rows["baseline"] + rows["ci_low"]).clip(lower=0))
    about = fig._repr_mimebundle_()[MIME]
    assert about["title"].startswith("base, sums") and "<svg " in about["svg"]
    np.testing.assert_allclose(pd.read_csv(io.StringIO(about["csv"]))["value"], rows["value"], atol=1e-6)
    for suffix in theme.SUFFIXES:
        fig.save(tmp_path / "new" / f"profile{suffix}")
    pdf, svg = (tmp_path / "new" / f"profile{suffix}" for suffix in (".pdf", ".svg"))
    assert sorted(path.suffix for path in pdf.parent.iterdir()) == sorted(theme.SUFFIXES)
    assert b"/CIDFontType2" in pdf.read_bytes() and b"/Type3" not in pdf.read_bytes(), "text is embedded as text"
    assert "removed layer</text>" in svg.read_text(encoding="utf-8")
    assert "<text" not in fig.svg(), "a page need not have the font"
    pd.testing.assert_frame_equal(pd.read_csv(pdf.with_suffix(".csv")), fig.table, check_dtype=False)
    for name in ("profile", "profile.jpg"):
        refused(r"end its name with \.png, \.pdf, \.svg, \.csv", fig.save, tmp_path / name)
    (tmp_path / "file").touch()
    refused("cannot write to", fig.save, tmp_path / "file" / "profile.png")


def test_fonts_and_resolution_of_a_user_are_kept():
    result = sweep(EARLY)
    labels = [text for ax in result.plot().axes for text in (ax.xaxis.label, ax.title, *ax.get_xticklabels())]
    before = [text.get_fontsize() for text in labels]
    assert {text.get_fontfamily()[0] for text in labels} == {"DejaVu Sans"}
    with mpl.rc_context({"font.family": "serif", "font.size": 2 * 9.61, "figure.dpi": 50, "xtick.labelsize": 5}):
        fig = result.plot()
        labels = [text for ax in fig.axes for text in (ax.xaxis.label, ax.title, *ax.get_xticklabels())]
        assert {text.get_fontfamily()[0] for text in labels} == {"serif"} and fig.dpi == 50
        wanted = [2 * size for size in before[:2]] + [5] * len(before[2:])
        np.testing.assert_allclose([text.get_fontsize() for text in labels], wanted)
    with mpl.rc_context({"font.sans-serif": ["STIXGeneral"]}):
        assert result.plot().axes[0].xaxis.label.get_fontname() == "STIXGeneral"


def test_a_figure_of_one_panel_is_drawn_into_axes(tmp_path):
    result, scores = sweep(EARLY), made_results.head_scores(np.eye(4), "score", "")
    user = Figure(figsize=(9, 4), layout="constrained")
    axes = user.subplots(1, 2)
    for found, ax, gid in ((result, axes[0], "series"), (scores, axes[1], "cells")):
        fig = found.plot(ax=ax, title="Mine")
        assert ax.get_title("left").startswith("Mine") or gid == "cells"
        assert by_gid(ax, gid) and (ax.get_legend() or gid == "cells") and not fig.axes and fig.get_suptitle() == "Mine"
        own, alone = (each.table.drop(columns="panel", errors="ignore") for each in (fig, found.plot()))
        assert own.equals(alone)
        assert fig._repr_mimebundle_() == {}
    fig.save(tmp_path / "both.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "both.png").shape
    assert (width, height) == (900, 400), "the whole figure of the user"
    geometry = geometries.measured()
    refused("one ax cannot hold the 4 panels of this figure", geometry.plot, ax=axes[0])


def test_each_finding_has_its_figures():
    result, tables = sweep(EARLY), made_results.removal_curve()
    heads = made_results.result({"t": {"baseline": np.ones(9)} | {f"L0.H{i}@mean": np.ones(9) for i in range(3)}})
    blocks = made_results.result({"t": {"baseline": np.ones(9)} | dict.fromkeys(("L0", "L1", "L0-1"), np.ones(9))})
    given = made_results.result({"t": {"baseline": np.ones(9)} | dict.fromkeys(("L0", "L0-1@donor"), np.ones(9))})
    wanted = {"layer removed": result, "under @mean": heads, "Loss by removing a block": blocks, "one layer": given}
    for words, found in wanted.items():
        assert words in " ".join(found.plot().get_suptitle().split())
    refused("unknown figure of RemovalCurve 'map'; allowed: removal_curve", tables.plot, "map")
    with pytest.raises(UserError, match="a DescribedTable has no figure of its own; those that have one: Result"):
        DescribedTable(result.summary, [], {}).plot()
