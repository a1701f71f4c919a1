"""Depth profiles and protocols side by side: what is drawn and what is written."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from drawn import by_gid, check, nothing_leaks, texts  # noqa: F401 (a fixture for all of them)

from depthlens import plots
from depthlens.analysis import depth
from depthlens.analysis.results import DOCS_COLUMNS, Result, concat
from depthlens.errors import UserError
from depthlens.look import GREY
from depthlens.plots import theme
from depthlens.plots.layers import CRITICAL_LAYER

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


# -- depth_profile -------------------------------------------------------------------------------------


def test_profile_draws_the_summary():
    result = sweep()
    fig = plots.depth_profile(result)
    (line,), (critical,) = by_gid(fig, "series"), by_gid(fig, "critical")
    table = result.summary.iloc[1:]
    np.testing.assert_array_equal(line.get_xdata(), range(N_LAYERS))
    np.testing.assert_allclose(line.get_ydata(), table["value"])
    assert critical.get_xdata().tolist() == [0, 3] == result.critical()["layer"].tolist()
    assert [c.get_ydata()[0] for c in by_gid(fig, "baseline")] == [0.9]
    assert [c.get_ydata()[0] for c in by_gid(fig, "chance")] == [0.25]
    (ax,) = fig.axes
    assert table["ci_low"].notna().tolist() == [True, False, False, True, False, False]  # the others change nothing
    at_0, at_3 = ax.collections[1].get_segments()  # a band has no width without neighbours, so that lines are drawn
    assert at_3[:, 1] == pytest.approx([0.9 + table["ci_low"].iloc[3], 0.9 + table["ci_high"].iloc[3]])
    assert at_0[:, 1].min() >= 0  # an accuracy
    assert ax.get_ylim() == (-0.02, 1.02) and ax.get_ylabel() == "accuracy"
    assert ax.get_xlabel() == "removed layer"
    written = texts(fig)
    assert "tiny, capitals: one layer removed at a time, n = 40 documents" in written
    for label in ("95% interval (none where fewer than 4 documents change)", "baseline", "chance", CRITICAL_LAYER):
        assert label in written
    assert theme.CANNOT_JUDGE not in written
    check(fig)


def test_no_key_for_a_band_that_is_not_drawn():
    many = sweep()
    few = Result(many.docs[many.docs["doc_id"] < 3], many.record)
    assert "95% interval" in texts(plots.depth_profile(many))
    assert "95% interval" not in texts(plots.depth_profile(few))


def test_delta():
    result = sweep()
    fig = plots.depth_profile(result, value="delta", title="My title")
    (line,) = by_gid(fig, "series")
    np.testing.assert_allclose(line.get_ydata(), result.summary["delta"].iloc[1:])
    assert by_gid(fig, "baseline")[0].get_ydata()[0] == 0 and by_gid(fig, "chance") == []
    assert fig.axes[0].get_ylabel() == "change of accuracy from baseline"
    assert fig.get_suptitle() == "My title"
    check(fig)


def test_each_chance_line_has_the_colour_of_its_series():
    same, other = sweep("one"), sweep("two", base=0.8)
    fig = plots.depth_profile(concat([same, other, sweep("written", chance=0.1)]))
    lines = by_gid(fig, "chance")
    assert [line.get_ydata()[0] for line in lines] == [0.25, 0.25, 0.1]
    assert [line.get_color() for line in lines] == [line.get_color() for line in by_gid(fig, "series")]
    (first, *_), (second, *_) = (line._dash_pattern for line in lines[:2])  # matplotlib has no getter
    assert first != second, "series with one chance level take turns"
    alone = plots.depth_profile(same)
    (of_series,) = {line.get_color() for line in by_gid(alone, "series")}
    keys = alone.legends[0].get_lines()
    assert {line.get_color() for line in keys} == {of_series}


def test_chance_is_written_and_never_marked(protocols):
    fig = plots.depth_profile(protocols)
    assert texts(fig).count(theme.CANNOT_JUDGE) == 1
    lines = by_gid(fig, "series")
    assert len(lines) == 3 and len(by_gid(fig, "critical")) == 2
    assert [line.get_color() for line in lines].count(GREY) == 1
    hatched = [c for c in fig.axes[0].collections if c.get_hatch()]
    assert len(hatched) == 1
    check(fig)
    alone = plots.depth_profile(protocols, tasks="default")
    assert theme.CANNOT_JUDGE in texts(alone) and by_gid(alone, "critical") == []
    assert CRITICAL_LAYER not in texts(alone)


def test_series_differ_in_colour_and_marker(protocols):
    result = concat([protocols.select(tasks=["continuation", "generative"]), sweep("continuation", site=".attn")])
    lines = by_gid(plots.depth_profile(result), "series")
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3


def test_labels_at_the_line_ends_do_not_touch(protocols):
    more = concat([sweep(f"task_{i}") for i in range(4)])  # four equal lines: their ends coincide
    for fig in (plots.depth_profile(more), plots.depth_profile(protocols)):
        check(fig)
        ax = fig.axes[0]
        boxes = [t.get_window_extent() for t in ax.texts]
        assert len(boxes) in (3, 4)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        for box in boxes:
            assert box.x1 <= fig.bbox.x1 + 1 and box.y0 >= 0, "a label is cut off"


def test_sites_are_series_of_their_own():
    result = concat([sweep(), sweep(site=".attn"), sweep(site=".mlp")])
    fig = plots.depth_profile(result)
    assert len(by_gid(fig, "series")) == 3 and len(fig.axes) == 1
    assert all(name in texts(fig) for name in ("whole layer", "attention", "MLP"))
    assert "one layer or part of it removed" in fig.get_suptitle()


@pytest.mark.parametrize(
    ("condition", "done"),
    [
        ("", "one layer removed at a time"),
        ("@mean", "one layer replaced by the mean of what it adds at a time"),
        ("@donor", "one layer replaced by the donor's at a time"),
        (".mlp@mean", "MLP of one layer replaced by the mean of what it adds at a time"),
        (".attn@donor", "attention of one layer replaced by the donor's at a time"),
    ],
)
def test_the_title_says_what_takes_a_layers_place(condition, done):
    assert f"tiny, capitals: {done}," in plots.depth_profile(sweep(site=condition)).get_suptitle().replace("\n", " ")


def test_modes_are_series_of_their_own():
    fig = plots.depth_profile(concat([sweep(), sweep(site="@donor")]))
    assert "one layer removed or replaced at a time" in fig.get_suptitle()
    assert [t.get_text() for t in fig.axes[0].texts] == ["removed", "donor"]


def test_many_series_become_small_multiples(protocols):
    result = concat([protocols, *(sweep(f"kv_{i}") for i in range(4))])
    fig = plots.depth_profile(result)
    assert len(fig.axes) == 7
    assert [ax.get_title(loc="left") for ax in fig.axes][:3] == ["continuation", "default", "generative"]
    assert {ax.get_ylim() for ax in fig.axes} == {(-0.02, 1.02)}
    assert texts(fig).count(theme.CANNOT_JUDGE) == 1
    check(fig)


def test_few_documents_have_no_band_that_hides_their_scores():
    graded = sweep("summaries", "rouge", info={"higher_is_better": True, "chance": None})
    docs = graded.docs.assign(value=graded.docs["value"] * (1 + graded.docs["doc_id"]))
    n = {5: False, 6: True}
    for few, has_band in n.items():
        fig = plots.depth_profile(Result(docs[docs["doc_id"] < few], graded.record))
        (band,) = fig.axes[0].collections
        assert (len(band.get_paths()) > 0) == has_band


@pytest.mark.parametrize(
    ("metric", "better", "least", "greatest"),
    [("chance_of_answer", True, 0, 1), ("misses", False, 0, 1), ("answer_logprob", True, -np.inf, 0)],
)
def test_no_interval_leaves_the_range_of_its_metric(metric, better, least, greatest):
    """Graded scores near an end of their range, of so few documents that Student's interval passes it."""
    right = sweep("t", metric, info={"higher_is_better": better, "chance": None})
    close = np.random.default_rng(0).beta(0.3, 5, len(right.docs))  # to 0
    values = np.where(right.docs["value"] == 1, 1 - close, close) if greatest == 1 else -close
    few = right.docs.assign(value=values)
    result = Result(few[few["doc_id"] < 8], right.record)
    base, table = result.baselines.iloc[0], result.summary
    assert least <= base["ci_low"] and base["ci_high"] <= greatest
    width = greatest - least
    assert (table["ci_low"] >= -width).all() and (table["ci_high"] <= width).all()
    fig = plots.depth_profile(result)
    points = np.vstack([path.vertices for c in fig.axes[0].collections for path in c.get_paths()])
    assert points[:, 1].min() >= least - 1e-12 and points[:, 1].max() <= greatest + 1e-12
    assert greatest in points[:, 1].round(12) or least in points[:, 1].round(12), "an end was cut off"


def test_units_do_not_share_an_axis():
    graded = sweep("summaries", "rouge", info={"higher_is_better": True, "chance": None})
    graded = Result(graded.docs.assign(value=graded.docs["value"] * 37.5), graded.record)
    fig = plots.depth_profile(concat([sweep(), graded]))
    assert [ax.get_ylabel() for ax in fig.axes] == ["accuracy", "rouge"]
    assert fig.axes[1].get_ylim()[1] > 1.02
    check(fig)


def test_lower_is_better_marks_the_rise():
    result = sweep(metric="error", info={"higher_is_better": False, "chance": None})
    flipped = Result(result.docs.assign(value=1 - result.docs["value"]), result.record)
    (critical,) = by_gid(plots.depth_profile(flipped), "critical")
    assert critical.get_xdata().tolist() == [0, 3]
    assert by_gid(plots.depth_profile(result), "critical") == []  # fewer errors are no loss


def test_layers_that_were_not_removed_are_gaps():
    result = sweep().select(conditions=["L0", "L3", "L4"])
    (line,) = by_gid(plots.depth_profile(result), "series")
    assert np.flatnonzero(np.isfinite(line.get_ydata())).tolist() == [0, 3, 4]
    alone = [c for c in plots.depth_profile(result).axes[0].collections if hasattr(c, "get_segments")]
    assert [segment[0][0] for segment in alone[0].get_segments()] == [0, 3]  # no neighbours with an interval: bars


def test_other_conditions_are_left_out():
    result = sweep()
    block = result.docs[result.docs["condition"] == "L3"].assign(condition="L3-4", layer=pd.NA)
    head = result.docs[result.docs["condition"] == "L3"].assign(condition="L3.H1", head=1)
    mixed = Result(pd.concat([result.docs, block, head]), result.record)
    (line,) = by_gid(plots.depth_profile(mixed), "series")
    assert len(line.get_xdata()) == N_LAYERS
    for call in (plots.depth_profile, plots.protocol_comparison):
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
        plots.depth_profile(sweep(), **options)


def test_statistics_decide_what_is_critical():
    few = sweep()
    few = Result(few.docs[few.docs["doc_id"] < 4], few.record)
    assert few.summary["delta"].min() == -1.0
    assert few.summary["p_adjusted"].min() > 0.05
    assert by_gid(plots.depth_profile(few), "critical") == []


# -- protocol_comparison -------------------------------------------------------------------------------


def test_comparison(protocols):
    fig = plots.protocol_comparison(protocols)
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
    assert texts(fig).count(theme.CANNOT_JUDGE) == 1 and "baseline 0.90" in texts(fig)
    check(fig)


def test_comparison_shows_gains_as_rings():
    result = sweep(base=0.6)
    values = np.where(result.docs["condition"] == "L5", 1.0, result.docs["value"])
    fig = plots.protocol_comparison(Result(result.docs.assign(value=values), result.record))
    (ring,) = by_gid(fig, "gain")
    assert ring.get_xdata()[0] == 5 and ring.get_markerfacecolor() == "none"
    assert "significant gain" in texts(fig)


def test_comparison_of_chance_alone_and_of_units():
    check(plots.protocol_comparison(sweep(base=0.25)))
    graded = sweep("summaries", "rouge", info={"higher_is_better": True, "chance": None})
    graded = Result(graded.docs.assign(value=graded.docs["value"] * 0.5), graded.record)
    with pytest.raises(UserError, match="cannot show accuracy, rouge together"):
        plots.protocol_comparison(concat([sweep(), graded]))


# -- shares of the losses ------------------------------------------------------------------------------


def test_every_row_of_shares_adds_up_to_one_with_its_centre():
    result = concat([sweep("solved"), sweep("guess", base=0.25)])
    fig = plots.loss_shares(result)
    (ax, bar) = fig.axes
    (mesh,) = by_gid(fig, "shares")
    grid = mesh.get_array()
    assert grid[0].sum() == pytest.approx(1) and grid.mask[1].all(), "a row at chance has no losses to place"
    losses = -result.select(tasks="solved").summary["delta"].iloc[1:].to_numpy()
    np.testing.assert_allclose(grid[0], losses / losses.sum())
    low, high = mesh.get_clim()
    assert high == -low == pytest.approx(np.abs(grid).max()), "no colour stands for several shares"
    assert mesh.norm(1 / N_LAYERS) > 0.6, "one early layer must not hide all others"
    (centre,) = by_gid(fig, "centre")
    place = depth.centre_of_mass(result).table.set_index("task")["centre"]["solved"]
    assert centre.get_xdata()[0] == pytest.approx(place * (N_LAYERS - 1))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["solved", "guess"]
    assert [t.get_text() for t in ax.texts] == [theme.CANNOT_JUDGE]
    assert bar.get_xlabel() == "share of the row's summed loss (red: loss)" and "thirds of the depth" in texts(fig)
    check(fig)
    nothing = plots.loss_shares(sweep("guess", base=0.25))
    assert by_gid(nothing, "centre") == [] and "centre of mass" not in texts(nothing)
