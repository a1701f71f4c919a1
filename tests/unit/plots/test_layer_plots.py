"""Figures: what is drawn, what is said, and that nothing leaks into pyplot or the settings."""

from __future__ import annotations

import base64
import io
import itertools
import warnings

import matplotlib as mpl
import matplotlib.image
import nbformat
import numpy as np
import pandas as pd
import pytest
from drawn import by_gid, nothing_leaks, texts  # noqa: F401 (a fixture for all of them)
from matplotlib.colors import to_rgb
from nbclient import NotebookClient

from depthlens.analysis import stats
from depthlens.analysis.results import DOCS_COLUMNS, Result, concat
from depthlens.errors import UserError
from depthlens.plots import layers, next_token, theme

mpl.use("agg")  # else the first figure resolves the backend, which looks like a changed setting
N_LAYERS, N = 6, 40
CAUSES = {0: 0.0, 3: 0.3}  # what is left of the score where these layers are removed


def sweep(task="capitals", metric="acc", site="", *, base=0.9, chance=0.25, model="tiny", layers=N_LAYERS, info=None):
    """A deterministic sweep: layers 0 and 3 are critical, the others change nothing."""
    right = np.arange(N) < round(base * N)
    rows = []
    for layer in (None, *range(layers)):
        kept = right & (np.arange(N) < round(CAUSES.get(layer, 1.0) * base * N))
        condition = "baseline" if layer is None else f"L{layer}{site}"
        rows += [(model, task, metric, condition, layer, None, d, float(v), "x") for d, v in enumerate(kept)]
    metric_info = info or {"higher_is_better": True, "chance": chance, "binary": True}
    record = {
        "model": {"name": model, "dims": {"n_layers": N_LAYERS}},
        "tasks": {task: {"version": 1, "num_fewshot": 0, "metrics": {metric: metric_info}}},
    }
    return Result(pd.DataFrame(rows, columns=DOCS_COLUMNS), record)


@pytest.fixture
def protocols() -> Result:
    """Three protocols; the second is at chance."""
    return concat(
        [
            sweep("continuation"),
            sweep("default", base=0.25),
            sweep("generative", "exact_match", base=0.8, chance=None),
        ]
    )


def draw(fig) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph or a layout that does not fit
        png, size = fig._repr_png_()
    image = matplotlib.image.imread(io.BytesIO(png))
    assert image.shape[1] == 2 * size["width"] and image.shape[0] == 2 * size["height"]
    return image


# -- depth_profile -------------------------------------------------------------------------------------


def test_profile_draws_the_summary():
    result = sweep()
    fig = layers.depth_profile(result)
    (line,), (critical,) = by_gid(fig, "series"), by_gid(fig, "critical")
    table = result.summary.iloc[1:]
    np.testing.assert_array_equal(line.get_xdata(), range(N_LAYERS))
    np.testing.assert_allclose(line.get_ydata(), table["value"])
    assert critical.get_xdata().tolist() == [0, 3] == result.critical()["layer"].tolist()
    assert [c.get_ydata()[0] for c in by_gid(fig, "baseline")] == [0.9]
    assert [c.get_ydata()[0] for c in by_gid(fig, "chance")] == [0.25]
    (ax,) = fig.axes
    band = ax.collections[0].get_paths()[0].vertices
    at_3 = band[band[:, 0] == 3][:, 1]
    assert at_3.min() == pytest.approx(0.9 + table["ci_low"].iloc[3])
    assert at_3.max() == pytest.approx(0.9 + table["ci_high"].iloc[3])
    assert band[:, 1].max() <= 1.0  # an accuracy
    assert ax.get_ylim() == (-0.02, 1.02) and ax.get_ylabel() == "accuracy"
    assert ax.get_xlabel() == "removed layer"
    shown = texts(fig)
    assert "tiny, capitals: one layer removed at a time, n = 40 documents" in shown
    for said in ("95% interval", "baseline", "chance", layers.CRITICAL):
        assert said in shown
    assert layers.CANNOT_JUDGE not in shown
    draw(fig)


def test_delta():
    result = sweep()
    fig = layers.depth_profile(result, value="delta", title="My title")
    (line,) = by_gid(fig, "series")
    np.testing.assert_allclose(line.get_ydata(), result.summary["delta"].iloc[1:])
    assert by_gid(fig, "baseline")[0].get_ydata()[0] == 0 and by_gid(fig, "chance") == []
    assert fig.axes[0].get_ylabel() == "change of accuracy from baseline"
    assert fig.get_suptitle() == "My title"
    draw(fig)


def test_chance_is_said_and_never_marked(protocols):
    fig = layers.depth_profile(protocols)
    assert texts(fig).count(layers.CANNOT_JUDGE) == 1
    lines = by_gid(fig, "series")
    assert len(lines) == 3 and len(by_gid(fig, "critical")) == 2
    assert [line.get_color() for line in lines].count(layers.GREY) == 1
    hatched = [c for c in fig.axes[0].collections if c.get_hatch()]
    assert len(hatched) == 1
    draw(fig)
    alone = layers.depth_profile(protocols, tasks="default")
    assert layers.CANNOT_JUDGE in texts(alone) and by_gid(alone, "critical") == []
    assert layers.CRITICAL not in texts(alone)


def test_series_differ_in_colour_and_marker(protocols):
    result = concat([protocols.select(tasks=["continuation", "generative"]), sweep("continuation", site=".attn")])
    lines = by_gid(layers.depth_profile(result), "series")
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3


def test_labels_at_the_line_ends_do_not_touch(protocols):
    more = concat([sweep(f"task_{i}") for i in range(4)])  # four equal lines: their ends coincide
    for fig in (layers.depth_profile(more), layers.depth_profile(protocols)):
        draw(fig)
        ax = fig.axes[0]
        boxes = [t.get_window_extent() for t in ax.texts]
        assert len(boxes) in (3, 4)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        for box in boxes:
            assert box.x1 <= fig.bbox.x1 + 1 and box.y0 >= 0, "a label is cut off"


def test_sites_are_series_of_their_own():
    result = concat([sweep(), sweep(site=".attn"), sweep(site=".mlp")])
    fig = layers.depth_profile(result)
    assert len(by_gid(fig, "series")) == 3 and len(fig.axes) == 1
    assert all(name in texts(fig) for name in ("whole layer", "attention", "MLP"))
    assert "one layer or part of it removed" in fig.get_suptitle()
    mean = layers.depth_profile(sweep(site=".mlp@mean"))
    assert "MLP of one layer replaced by its mean" in mean.get_suptitle()


def test_many_series_become_small_multiples(protocols):
    result = concat([protocols, *(sweep(f"kv_{i}") for i in range(4))])
    fig = layers.depth_profile(result)
    assert len(fig.axes) == 7
    assert [ax.get_title(loc="left") for ax in fig.axes][:3] == ["continuation", "default", "generative"]
    assert {ax.get_ylim() for ax in fig.axes} == {(-0.02, 1.02)}
    assert texts(fig).count(layers.CANNOT_JUDGE) == 1
    image = draw(fig)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border[:, :3] == 1).all(), "something is cut off at the edge"


def test_units_do_not_share_an_axis():
    graded = sweep("summaries", "rouge", info={"higher_is_better": True, "chance": None})
    graded = Result(graded.docs.assign(value=graded.docs["value"] * 37.5), graded.record)
    fig = layers.depth_profile(concat([sweep(), graded]))
    assert [ax.get_ylabel() for ax in fig.axes] == ["accuracy", "rouge"]
    assert fig.axes[1].get_ylim()[1] > 1.02
    draw(fig)


def test_lower_is_better_marks_the_rise():
    result = sweep(metric="error", info={"higher_is_better": False, "chance": None})
    flipped = Result(result.docs.assign(value=1 - result.docs["value"]), result.record)
    (critical,) = by_gid(layers.depth_profile(flipped), "critical")
    assert critical.get_xdata().tolist() == [0, 3]
    assert by_gid(layers.depth_profile(result), "critical") == []  # fewer errors are no loss


def test_layers_that_were_not_removed_are_gaps():
    result = sweep().select(conditions=["L0", "L3", "L4"])
    (line,) = by_gid(layers.depth_profile(result), "series")
    assert np.flatnonzero(np.isfinite(line.get_ydata())).tolist() == [0, 3, 4]
    alone = [c for c in layers.depth_profile(result).axes[0].collections if hasattr(c, "get_segments")]
    assert [segment[0][0] for segment in alone[0].get_segments()] == [0]  # L0 has no neighbours: a bar


def test_other_conditions_are_left_out():
    result = sweep()
    block = result.docs[result.docs["condition"] == "L3"].assign(condition="L3-4", layer=pd.NA)
    head = result.docs[result.docs["condition"] == "L3"].assign(condition="L3.H1", head=1)
    mixed = Result(pd.concat([result.docs, block, head]), result.record)
    (line,) = by_gid(layers.depth_profile(mixed), "series")
    assert len(line.get_xdata()) == N_LAYERS
    for call in (layers.depth_profile, layers.protocol_comparison):
        with pytest.raises(UserError, match=r"no condition removes a single layer \(L3-4, L3.H1\)"):
            call(mixed.select(conditions=["L3-4", "L3.H1"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "capital"}, "unknown task 'capital'; did you mean capitals"),
        ({"metrics": ["f1"]}, "unknown metric 'f1'"),
        ({"value": "ratio"}, "value 'ratio' is not known; allowed: 'value', 'delta'"),
    ],
)
def test_profile_refusals(options, message):
    with pytest.raises(UserError, match=message):
        layers.depth_profile(sweep(), **options)


# -- protocol_comparison -------------------------------------------------------------------------------


def test_comparison(protocols):
    fig = layers.protocol_comparison(protocols)
    ax, bar = fig.axes
    grid = ax.collections[0].get_array()
    assert grid.shape == (3, N_LAYERS)
    np.testing.assert_allclose(grid[0], protocols.select(tasks="continuation").summary["delta"].iloc[1:])
    assert grid.mask[1].all(), "a row at chance must show no differences"
    low, high = ax.collections[0].get_clim()
    assert low == -high and high >= 0.9
    dots = sorted((line.get_ydata()[0], line.get_xdata()[0]) for line in by_gid(fig, "critical"))
    assert dots == [(0, 0), (0, 3), (2, 0), (2, 3)]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["continuation", "default", "generative"]
    assert bar.get_xlabel() == "change of accuracy from baseline"
    assert texts(fig).count(layers.CANNOT_JUDGE) == 1 and "baseline 0.90" in texts(fig)
    draw(fig)


def test_comparison_shows_gains_as_rings():
    result = sweep(base=0.6)
    values = np.where(result.docs["condition"] == "L5", 1.0, result.docs["value"])
    fig = layers.protocol_comparison(Result(result.docs.assign(value=values), result.record))
    (ring,) = by_gid(fig, "gain")
    assert ring.get_xdata()[0] == 5 and ring.get_markerfacecolor() == "none"
    assert "significant gain" in texts(fig)


def test_comparison_of_chance_alone_and_of_units():
    draw(layers.protocol_comparison(sweep(base=0.25)))
    graded = sweep("summaries", "rouge", info={"higher_is_better": True, "chance": None})
    graded = Result(graded.docs.assign(value=graded.docs["value"] * 0.5), graded.record)
    with pytest.raises(UserError, match="cannot show accuracy, rouge together"):
        layers.protocol_comparison(concat([sweep(), graded]))


# -- prediction ----------------------------------------------------------------------------------------


def test_prediction():
    tokens = [" Paris", "\n", " $x$", " 巴", ""]
    fig = next_token.prediction(tokens, [0.6, 0.2, 0.1, 0.05, 0], [0.1, 0.3, 0.2, 0.05, 0], condition="L3", title="T")
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["␣Paris", "⏎", "␣$x$", "␣\\u5df4", "(empty)"]
    points = {line.get_label(): line.get_xdata().tolist() for line in ax.get_lines()}
    assert points == {"before": [0.6, 0.2, 0.1, 0.05, 0], "after L3": [0.1, 0.3, 0.2, 0.05, 0]}
    top, bottom = ax.get_ylim()[1], ax.get_ylim()[0]
    assert top < bottom  # first token on top
    draw(fig)


@pytest.mark.parametrize(
    ("tokens", "before", "after", "message"),
    [
        ([], [], [], "0 tokens"),
        (["a", "b"], [0.1], [0.1], r"2 tokens, probabilities of shape \(1,\)"),
        (["a"], [0.1], [1.7], "probabilities run from 0.1 to 1.7; allowed: 0 to 1"),
        (["a"], [float("nan")], [0.5], "allowed: 0 to 1"),
    ],
)
def test_prediction_refusals(tokens, before, after, message):
    with pytest.raises(UserError, match=message):
        next_token.prediction(tokens, before, after)


# -- print, colour blindness, notebooks ----------------------------------------------------------------


def lightness(colour: str) -> float:
    """CIE L* of a colour: what is left of it in greyscale."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    y = float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_colours_differ_in_greyscale():
    levels = [lightness(c) for c in layers.PALETTE]
    assert min(abs(a - b) for a, b in itertools.combinations(levels, 2)) > 10, levels
    assert max(levels) < 75, "a line must stand out from white paper"
    assert len(set(layers.MARKERS)) == len(layers.PALETTE)


def test_no_text_is_below_8_points_at_page_width(protocols):
    figures = [layers.depth_profile(protocols), layers.protocol_comparison(protocols)]
    figures.append(next_token.prediction(["a"], [0.1], [0.2]))
    for fig in figures:
        assert fig.get_size_inches()[0] <= layers.WIDTH
        sizes = [t.get_fontsize() for t in fig.findobj(mpl.text.Text) if t.get_text()]
        assert sizes and min(sizes) >= 8


def test_statistics_decide_what_is_critical():
    few = sweep()
    few = Result(few.docs[few.docs["doc_id"] < 4], few.record)
    assert few.summary["delta"].min() == -1.0
    assert stats.smallest_p(4, N_LAYERS) > 0.05
    assert by_gid(layers.depth_profile(few), "critical") == []


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


def test_numbers_of_documents_in_words():
    assert theme.counts([16]) == theme.counts(n for n in (16, 16)) == "16"
    assert theme.counts([6, 4, 16]) == "4 to 16"
