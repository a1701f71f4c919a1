"""Lists of heads: curves of their removal, and what two lists share."""

from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from drawn import by_gid, check, nothing_leaks, texts  # noqa: F401 (a fixture for all of them)
from made_up_heads import SIZES, N, names, planted, record, scores

from depthlens import plots
from depthlens.analysis.head_lists import head_overlap
from depthlens.analysis.removal_curve import RemovalCurve
from depthlens.analysis.results import DOCS_COLUMNS, Result
from depthlens.errors import UserError
from depthlens.look import GREY, PALETTE
from depthlens.plots import theme

# -- removal_curve -------------------------------------------------------------------------------------

KS = [0, 1, 2, 4]
FALL = [0.9, 0.5, 0.2, 0.1]
FLAT = [0.9, 0.875, 0.9, 0.85]
TASKS = ("kv_retrieval", "arithmetic_cot")


def curve(tasks=TASKS, lists=("retrieval", "reasoning"), *, base=0.9, chance=None, better=True, at_chance=False):
    """A list falls on the task of the same position and is flat elsewhere; random heads lose up to 0.1."""
    docs, points, band, tests = [], [], [], []
    for t, task in enumerate(tasks):
        docs += [("tiny", task, "acc", "baseline", None, None, d, float(d < base * N), "x") for d in range(N)]
        for i, name in enumerate(lists):
            for k, fall, flat in zip(KS, FALL, FLAT, strict=True):
                value = (fall if i == t else flat) if better else 1 - (fall if i == t else flat)
                points.append((name, task, "acc", k, value, value - 0.05, value + 0.05))
                low, high = (0.8, 0.9) if better else (0.1, 0.2)
                edges = (low, high) if k else (value, value)
                band.append((name, task, "acc", k, *edges, sum(edges) / 2, 20))
            row = (name, task, "acc", better, 0.3, 0.85, 0.8, 0.9, 1 / 21 if i == t else 0.6, i == t, at_chance)
            tests.append(row)
    about = {t: {"metrics": {"acc": {"higher_is_better": better, "chance": chance}}} for t in tasks}
    keys = ["list", "task", "metric"]
    return RemovalCurve(
        pd.DataFrame(points, columns=[*keys, "k", "value", "ci_low", "ci_high"]),
        pd.DataFrame(band, columns=[*keys, "k", "low", "high", "mean", "n_draws"]),
        pd.DataFrame(
            tests,
            columns=[*keys, "higher_is_better", "value", "random", "low", "high", "p_value", "separates", "at_chance"],
        ),
        Result(pd.DataFrame(docs, columns=DOCS_COLUMNS), record(tasks=about)),
        record(n_draws=20),
    )


def test_curve_draws_lists_bands_and_levels():
    fig = plots.removal_curve(curve(chance=0.25))
    assert [ax.get_title(loc="left") for ax in fig.axes] == list(TASKS)
    for t, ax in enumerate(fig.axes):
        lines = [line for line in ax.get_lines() if line.get_gid() == "list"]
        assert [line.get_color() for line in lines] == list(PALETTE[:2])
        for i, line in enumerate(lines):
            np.testing.assert_allclose(line.get_ydata(), FALL if i == t else FLAT)
            np.testing.assert_allclose(line.get_xdata(), KS, atol=0.1)  # lists stand a little aside of each other
        bands = [c for c in ax.collections if c.get_gid() == "band"]
        assert len(bands) == 2
        edge = bands[0].get_paths()[0].vertices
        assert sorted(set(edge[edge[:, 0] == 2][:, 1])) == [0.8, 0.9]
        random = [line for line in ax.get_lines() if line.get_gid() == "random"]
        assert [line.get_ydata()[-1] for line in random] == pytest.approx([0.85, 0.85])
        (outside,) = [line for line in ax.get_lines() if line.get_gid() == "outside"]
        assert outside.get_color() == PALETTE[t] and outside.get_ydata().tolist() == FALL[1:]
        assert ax.get_ylim() == (-0.02, 1.02) and ax.get_xlabel() == "heads removed together"
    assert [line.get_ydata()[0] for line in by_gid(fig, "baseline")] == [0.9, 0.9]
    assert [line.get_ydata()[0] for line in by_gid(fig, "chance")] == [0.25, 0.25]
    assert fig.axes[0].get_ylabel() == "accuracy"
    written = texts(fig)
    assert "tiny: first k heads of a list removed, 20 random draws, n = 40 documents" in written
    for label in ("retrieval p = 0.048", "reasoning p = 0.6", "worse than every random draw", "chance", "95% interval"):
        assert label in written
    check(fig)


def test_curve_of_one_and_of_three_tasks():
    check(plots.removal_curve(curve(("kv_retrieval",), ("retrieval",)), title="One"))
    three = plots.removal_curve(curve(("kv_retrieval", "arithmetic_cot", "capitals_continuation"), ("a", "b", "c")))
    check(three)
    assert len(three.axes) == 3
    for ax in three.axes:  # the p-values stand above their own panel
        (p_values,) = ax.texts
        assert p_values.get_window_extent().x1 <= ax.get_window_extent().x1 + 20


def test_curve_where_lower_is_better_marks_the_rise():
    fig = plots.removal_curve(curve(("kv_retrieval",), ("retrieval",), better=False))
    (outside,) = by_gid(fig, "outside")
    assert outside.get_ydata().tolist() == [1 - v for v in FALL[1:]]


def test_curve_at_chance_is_grey_and_written():
    fig = plots.removal_curve(curve(("kv_retrieval",), ("retrieval",), base=0.25, chance=0.25, at_chance=True))
    assert theme.CANNOT_JUDGE in texts(fig) and "retrieval p =" not in texts(fig) and by_gid(fig, "outside") == []
    assert [line.get_color() for line in by_gid(fig, "list")] == [GREY]
    check(fig)


def test_curve_refuses_more_lists_than_colours():
    with pytest.raises(UserError, match="5 lists; a panel shows up to 4, draw fewer: a, b, c, d, e"):
        plots.removal_curve(curve(lists=tuple("abcde")))


# -- head_overlap --------------------------------------------------------------------------------------


def test_overlap_says_what_the_lists_share():
    a, b = planted(SIZES[0]), planted(SIZES[0], 1, loss=True)
    values = b.values.copy()
    values[a.top(1)[0]] = 2.5
    b = scores(values, b.name, "nats", sizes=SIZES[0])
    fig = plots.head_overlap(a, b, k=5)
    common = head_overlap(a.top(5), b.top(5), [SIZES[0][1]] * SIZES[0][0])
    assert common.n == 1
    title = fig.get_suptitle().replace("\n", " ")
    assert f"tiny: 1 of the top 5 heads is on both lists; {common.expected:.2g} expected of lists" in title
    assert f"with as many heads in each layer, p = {common.p_value:.2g} (270 heads)" in title
    (ax,) = fig.axes
    assert ax.get_xlabel() == "copy-paste score" and ax.get_ylabel() == "loss on computed tokens (nats)"
    (shared,) = by_gid(fig, "both")
    assert shared.get_xydata().tolist() == [[a.values[a.top(1)[0]], 2.5]]
    assert sum(len(line.get_xdata()) for line in by_gid(fig, "others")) == 270 - 9
    assert sorted(names(fig)) == sorted({f"L{la}.H{h}" for la, h in a.top(5) + b.top(5)})
    bold = [t.get_text() for t in by_gid(fig, "name") if t.get_fontweight() == "bold"]
    assert bold == ["L{}.H{}".format(*a.top(1)[0])]
    cuts = [line.get_xydata()[0] for line in by_gid(fig, "cut")]
    assert (a.values > cuts[0][0]).sum() == (b.values > cuts[1][1]).sum() == 5
    check(fig)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_overlap_names_do_not_touch(sizes):
    a, b = planted(sizes, 3), planted(sizes, 4, loss=True)
    fig = plots.head_overlap(a, b, k=12)
    check(fig)
    labels = by_gid(fig, "name")
    both = {*a.top(12)} & {*b.top(12)}
    assert {t.get_text() for t in labels} == {f"L{la}.H{h}" for la, h in {*a.top(10), *b.top(10), *both}}
    boxes = [mpl.text.Text.get_window_extent(t) for t in labels]  # without the lines to the dots
    close = 2  # pixels of 200 per inch: the room for a name is estimated from its number of characters
    assert not any(a.padded(-close).overlaps(b) for a, b in itertools.combinations(boxes, 2))
    frame = fig.axes[0].get_window_extent()
    assert all(frame.x0 - close <= box.x0 and box.x1 <= frame.x1 + close for box in boxes)


def test_overlap_of_a_score_with_itself_and_of_heads_that_both_have():
    a = planted(SIZES[0])
    fig = plots.head_overlap(a, a, k=3)
    assert "3 of the top 3 heads are on both lists" in fig.get_suptitle()
    half = a.values.copy()
    half[15:] = np.nan
    assert "(135 heads)" in plots.head_overlap(a, scores(half, sizes=SIZES[0]), k=3).get_suptitle().replace("\n", " ")


def test_the_figure_and_the_sentence_have_one_number():
    """Where one score is of some heads alone, only these could be on both lists."""
    a = planted(SIZES[0])
    values = a.values.copy()
    chosen = np.zeros(values.shape, dtype=bool)
    chosen[tuple(np.transpose(a.top(12)))] = True
    some = scores(np.where(chosen, values[::-1], np.nan), sizes=SIZES[0])
    common = head_overlap(a, some, k=5)
    title = plots.head_overlap(a, some, k=5).get_suptitle().replace("\n", " ")
    assert f"{common.expected:.2g} expected" in title and f"p = {common.p_value:.2g} (12 heads)" in title
    assert f"({common.expected:.2g} expected, p = {common.p_value:.2g})" in str(common)
    among_all = head_overlap(a.top(5), some.top(5), [SIZES[0][1]] * SIZES[0][0])
    assert among_all.n == common.n and among_all.p_value < common.p_value
    with pytest.raises(UserError, match="two scores and k, or two lists and the number of heads"):
        head_overlap(a.top(5), some.top(5))


def test_overlap_refusals():
    a = planted(SIZES[0])
    with pytest.raises(UserError, match=r"shapes \(30, 9\) and \(36, 32\); give two of one model"):
        plots.head_overlap(a, planted(SIZES[1]))
    for k in (0, 270, True):
        with pytest.raises(UserError, match=f"k {k}: 270 heads have both scores; give a whole number from 1 to 269"):
            plots.head_overlap(a, a, k=k)
