"""What all figures share: colours, room for names, notebooks, and the numbers that travel with a picture."""

import base64
import io
import itertools
from dataclasses import replace

import made_results
import matplotlib.image
import nbformat
import numpy as np
import pandas as pd
import pytest
from drawn import by_gid, check, luminance, nothing_leaks  # noqa: F401 (a fixture for all of them)
from made_results import EARLY, sweep
from matplotlib.colors import to_rgb
from nbclient import NotebookClient

from depthlens import plots
from depthlens.analysis.head_scores import HeadScores
from depthlens.look import PALETTE
from depthlens.plots import panels, theme
from depthlens.plots.figure_data import COLUMNS, MIME


def test_colours_differ_in_greyscale():
    """By CIE L*: what is left of a colour in greyscale."""
    levels = [116 * luminance(to_rgb(c)) ** (1 / 3) - 16 for c in PALETTE]
    assert min(abs(a - b) for a, b in itertools.combinations(levels, 2)) > 10, levels
    assert max(levels) < 75, "a line must stand out from white paper"
    assert len(set(theme.MARKERS)) == len(PALETTE)


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


def test_a_legend_is_not_wider_than_its_figure():
    for words, ncols in (("short", 4), ("as long as a sentence that explains a mark", 1)):
        fig = theme.figure(None, "title", height=2.0)
        fig.subplots()
        keys = [panels.mark_key(f"{words} {i}", color="k", marker="o") for i in range(4)]
        (legend,) = theme.with_legend(fig, keys).legends
        fig.draw_without_rendering()
        assert len({round(text.get_window_extent().x0) for text in legend.get_texts()}) == ncols
        assert legend.get_window_extent().width <= fig.bbox.width


def test_labels_at_the_line_ends_do_not_touch_and_chance_lines_have_the_colour_of_their_series():
    right = (np.arange(40) < 36).astype(float)
    same = dict.fromkeys(("baseline", "L0", "L1"), right)  # equal lines: their ends coincide
    fig = plots.depth_profile(made_results.result({f"task_{i}": same for i in range(4)}))
    check(fig)
    boxes = [t.get_window_extent() for t in fig.axes[0].texts]
    assert len(boxes) == 4 and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x1 <= fig.bbox.x1 + 1 and box.y0 >= 0 for box in boxes), "a label is cut off"
    colours = [[line.get_color() for line in by_gid(fig, gid)] for gid in ("chance", "series")]
    assert (
        colours[0] == colours[1] and len(set(colours[1])) == len({x.get_marker() for x in by_gid(fig, "series")}) == 4
    )


@pytest.mark.parametrize(
    ("metric", "better", "least", "greatest"),
    [("chance_of_answer", True, 0, 1), ("misses", False, 0, 1), ("answer_logprob", True, -np.inf, 0)],
)
def test_no_interval_leaves_the_range_of_its_metric(metric, better, least, greatest):
    """Graded scores near an end of their range, of so few documents that Student's interval passes it."""
    rng = np.random.default_rng(0)
    values = {c: (1 - rng.beta(0.3, 5, 8)) if greatest == 1 else -rng.beta(0.3, 5, 8) for c in ("baseline", "L0", "L1")}
    result = made_results.result({"t": values}, metric=metric, info={"higher_is_better": better, "chance": None})
    base = result.baselines.iloc[0]
    assert least <= base["ci_low"] and base["ci_high"] <= greatest
    fig = plots.depth_profile(result)
    points = np.vstack([path.vertices for c in fig.axes[0].collections for path in c.get_paths()])
    assert points[:, 1].min() >= least - 1e-12 and points[:, 1].max() <= greatest + 1e-12
    assert greatest in points[:, 1].round(12) or least in points[:, 1].round(12), "an end was cut off"


def bundle(fig):
    about = fig._repr_mimebundle_()[MIME]
    return about, pd.read_csv(io.StringIO(about["csv"]))


def test_a_profile_tells_layer_score_interval_and_p():
    result = sweep(EARLY)
    about, table = bundle(plots.depth_profile(result))
    rows = result.summary.iloc[1:]
    assert len(about["points"]) == len(rows) and about["title"].startswith("base, sums")
    for (left, top, text), row in zip(about["points"], rows.itertuples(), strict=True):
        assert 0 < left < 1 and 0 < top < 1
        assert text.startswith(f"L{row.layer}: accuracy {row.value:.3g}, change {row.delta:+.3g} [")
        assert text.endswith(f"adjusted p = {row.p_adjusted:.2g}") and (np.isnan(row.ci_low)) == ("too few" in text)
    assert about["points"][0][1] > about["points"][-1][1], "the first layer loses most, so it lies lowest"
    drawn = table[table["series"] == "series"]
    np.testing.assert_allclose(drawn["y"], rows["value"], atol=1e-6)
    assert list(table.columns) == COLUMNS and list(drawn["x"]) == list(range(len(rows)))


def test_a_map_of_heads_tells_each_head_and_has_its_cells_as_numbers():
    cases = np.random.default_rng(0).uniform(0.1, 0.9, (20, 3, 4))
    scores = HeadScores.of_cases("retrieval score", "", cases, {}, tested=False, bounded=True)
    about, table = bundle(plots.head_map(scores))
    assert [text.split(":")[0] for *_, text in about["points"]] == [f"L{a}.H{b}" for a in range(3) for b in range(4)]
    first = scores.frame.iloc[0]
    assert f"{first['value']:.3g} [{first['low']:.3g}, {first['high']:.3g}]" in about["points"][0][2]
    without = bundle(plots.head_map(replace(scores, frame=scores.frame.assign(low=np.nan, high=np.nan))))[0]["points"]
    assert without[0][2] == f"L0.H0: retrieval score {scores.values[0, 0]:.3g}", (
        "no interval was made, so none is missed"
    )
    cells = table[table["kind"] == "cell"].pivot(index="x", columns="y", values="value").to_numpy()
    np.testing.assert_allclose(cells, scores.values, atol=1e-6)


def test_other_figures_have_their_numbers_and_no_points():
    about, table = bundle(plots.loss_shares(sweep(EARLY)))
    assert about["points"] == [] and len(table)
