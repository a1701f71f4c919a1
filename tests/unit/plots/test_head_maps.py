"""Layer x head maps: what is drawn, what is written, and that names do not touch."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from drawn import by_gid, check, nothing_leaks, texts  # noqa: F401 (a fixture for all of them)
from made_up_heads import (
    N_HEADS,
    N_KV,
    N_LAYERS,
    SIZES,
    apart,
    bars,
    logprobs,
    luminance,
    maps,
    mesh,
    names,
    planted,
    points,
    scores,
    sweep,
)
from matplotlib.colors import to_rgb

from depthlens import plots
from depthlens.analysis.results import Result, concat
from depthlens.errors import UserError
from depthlens.plots import theme
from depthlens.plots.heads import CRITICAL_HEAD


def test_map_draws_the_summary():
    result = sweep()
    fig = plots.head_map(result, top=2)
    (ax,) = maps(fig)
    grid = mesh(ax).get_array()
    assert grid.shape == (N_HEADS, N_LAYERS) and not np.ma.is_masked(grid)
    for row in result.summary.iloc[1:].itertuples():
        assert grid[row.head, row.layer] == pytest.approx(row.delta)
    low, high = mesh(ax).get_clim()
    assert low == -high and high >= 0.9
    assert points(fig, "critical") == [(1, 2), (3, 0)]
    assert [tuple(x) for x in result.critical()[["layer", "head"]].to_numpy()] == [(1, 2), (3, 0)]
    assert names(fig) == ["L1.H2", "L3.H0"]
    assert sorted(p.get_xy() for p in by_gid(fig, "top")) == [(0.5, 1.5), (2.5, -0.5)]
    assert ax.get_ylabel() == "head" and ax.get_ylim() == (N_HEADS - 0.5, -0.5)
    assert bars(fig) == ["change of accuracy from baseline"]
    written = texts(fig)
    assert "tiny, kv_retrieval: one head removed at a time, n = 40 documents" in written.replace("\n", " ")
    for label in (CRITICAL_HEAD, "the 2 largest losses", "between KV groups", "baseline 0.90"):
        assert label in written
    assert "not measured" not in written and "gain" not in written
    assert [line.get_ydata()[0] for line in by_gid(fig, "group")] == [1.5]
    check(fig)
    assert plots.head_map(result, title="Mine").get_suptitle() == "Mine"


def test_losses_are_red_and_gains_blue_whichever_way_the_metric_runs():
    down = sweep(metric="error", better=False, chance=None)
    flipped = Result(down.docs.assign(value=1 - down.docs["value"]), down.record)
    for result in (sweep(), flipped):
        fig = plots.head_map(result)
        cells = mesh(maps(fig)[0])
        red, _, blue, _ = cells.cmap(cells.norm(cells.get_array()[2, 1]))
        assert red > 2 * blue, "a loss must be red"
        assert points(fig, "critical") == [(1, 2), (3, 0)]
    gain = sweep(base=0.5, kept={(2, 3): 1.9})
    fig = plots.head_map(gain, top=3)
    cells = mesh(maps(fig)[0])
    red, _, blue, _ = cells.cmap(cells.norm(cells.get_array()[3, 2]))
    assert blue > 2 * red and points(fig, "gain") == [(2, 3)] and points(fig, "critical") == []
    assert "significant gain" in texts(fig)
    assert names(fig) == [], "only losses are among the largest losses"


def test_a_mark_stands_out_from_its_cell():
    fig = plots.head_map(logprobs())
    cells = mesh(maps(fig)[0])
    for gid in ("critical", "gain"):
        for line in by_gid(fig, gid):
            for layer, head in line.get_xydata().astype(int):
                cell = cells.cmap(cells.norm(cells.get_array()[head, layer]))
                assert abs(luminance(cell) - luminance(to_rgb(line.get_color()))) > 0.15
    assert points(fig, "critical") == [(1, 2)] and points(fig, "gain") == [(4, 1)]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("panels", [1, 2])
def test_three_sizes_of_model(sizes, panels):
    top = 8
    chosen = [planted(sizes, k=top), planted(sizes, 1, loss=True, k=top)][:panels]
    fig = plots.head_map(chosen, top=top)
    check(fig)
    assert fig.get_size_inches()[1] <= 10, "does not fit a page"
    assert len(maps(fig)) == panels
    for ax, s in zip(maps(fig), chosen, strict=True):
        assert mesh(ax).get_array().size == sizes[0] * sizes[1]
        assert sorted(t.get_text() for t in ax.texts) == sorted(f"L{la}.H{h}" for la, h in s.top(top))
        apart([t for t in ax.get_yticklabels() if t.get_text()])
        apart([t for t in ax.get_xticklabels() if t.get_text()])
        for text in ax.texts:
            assert text.get_window_extent().y0 > ax.get_window_extent().y1, "a name hides cells"
    apart(by_gid(fig, "name"))
    if panels == 2:
        assert len(bars(fig)) == 2 and points(fig, "critical") == sorted(chosen[1].top(top))


def test_names_of_heads_that_stand_side_by_side_or_above_each_other():
    for crowd in (
        [(3, h) for h in range(9)],
        [(la, 0) for la in range(9)],
        [(29, 8), (29, 7), (28, 8), (0, 0), (0, 1)],
    ):
        values = np.zeros((30, 9))
        values[tuple(np.transpose(crowd))] = 0.5
        fig = plots.head_map(scores(values, sizes=SIZES[0]), top=len(crowd))
        check(fig)
        assert sorted(names(fig)) == sorted(f"L{la}.H{h}" for la, h in crowd)
        apart(by_gid(fig, "name"))
    # lines from name to cell end above the first frame, or run from frame to frame
    ends = [line.get_ydata()[-1] for line in by_gid(fig, "leader") if line.get_xdata()[0] == line.get_xdata()[-1] == 29]
    assert max(ends) == 7.5


def test_colours_end_early_only_where_heads_lie_far_out_and_say_so():
    noise = {(la, h): 0.98 for la in range(30) for h in range(0, 9, 3)}
    far = sweep(kept=noise | {(9, 6): 0.0}, n_heads=9, layers=range(30), base=1.0)
    fig = plots.head_map(far)
    _, high = mesh(maps(fig)[0]).get_clim()
    assert 0.3 <= high < 0.5, "one far head must neither hide the others nor turn noise into colour"
    (label,) = bars(fig)
    assert "colours end at ±0.34: 1 head is beyond, at\xa0−1" in label.replace("\n", " ")
    check(fig)
    even = sweep(kept={(la, h): 0.5 for la in range(4) for h in range(4)})
    assert bars(plots.head_map(even)) == ["change of accuracy from baseline"]
    none = plots.head_map(sweep(kept={}))
    assert mesh(maps(none)[0]).get_clim() == (-0.1, 0.1)


def test_scores_run_from_zero_and_losses_around_it():
    values = np.full((N_LAYERS, N_HEADS), 0.01)
    values[2, 1] = 0.83
    fig = plots.head_map(scores(values), top=1)
    cells = mesh(maps(fig)[0])
    assert cells.get_clim() == (0, 0.83) and cells.cmap.name == "mako_r"
    assert bars(fig) == ["copy-paste score"] and names(fig) == ["L2.H1"]
    assert "tiny: copy-paste score, n = 25" in texts(fig) and "highest score" in texts(fig)
    assert CRITICAL_HEAD not in texts(fig), "nothing was tested"
    check(fig)
    critical = values > 0.5
    fig = plots.head_map(scores(values, "loss on needle tokens", "nats", critical))
    cells = mesh(maps(fig)[0])
    low, high = cells.get_clim()
    assert low == -high and cells.cmap.name == "vlag" and points(fig, "critical") == [(2, 1)]
    assert bars(fig)[0].startswith("loss on needle tokens (nats)")
    untested = plots.head_map(scores(values - 0.05, "contrast", "nats"))
    assert mesh(maps(untested)[0]).cmap.name == "vlag", "values below 0 need a scale with a middle"


def test_chance_is_written_and_never_marked():
    result = concat([sweep(), sweep("hard", base=0.25)])
    fig = plots.head_map(result, top=2)
    judged, hard = maps(fig)
    assert mesh(hard).get_array().mask.all() and not np.ma.is_masked(mesh(judged).get_array())
    assert texts(fig).count(theme.CANNOT_JUDGE) == 1
    assert [t.get_text() for t in hard.texts] == [theme.CANNOT_JUDGE]
    assert len(by_gid(fig, "hatch")) == 1 and points(fig, "critical") == [(1, 2), (3, 0)]
    check(fig)
    alone = plots.head_map(result, tasks="hard", top=1)
    assert CRITICAL_HEAD not in texts(alone) and names(alone) == []
    check(alone)


def test_panels_share_a_scale_by_unit():
    many = concat([sweep(), sweep("other", kept={(0, 0): 0.9}), logprobs()])
    fig = plots.head_map(many)
    first, second, third = (mesh(ax).get_clim() for ax in maps(fig))
    assert first == second != third
    assert [b.replace("\n", " ").split(" colours end")[0] for b in bars(fig)] == [
        "change of accuracy from baseline",
        "change of answer_logprob (nats) from baseline",
    ]
    assert [ax.get_title(loc="left") for ax in maps(fig)] == [
        "kv_retrieval, acc",
        "other, acc",
        "kv_retrieval, answer_logprob",
    ]
    assert "baseline −" in texts(fig)
    check(fig)
    assert len(maps(plots.head_map(many, metrics="acc"))) == 2
    assert len(maps(plots.head_map(many, tasks=["kv_retrieval"], metrics="acc"))) == 1


def test_kv_groups_and_means_are_panels_of_their_own():
    kv = sweep(letter="KV", n_heads=N_KV, kept={(2, 1): 0.0})
    fig = plots.head_map(kv, top=1)
    (ax,) = maps(fig)
    assert mesh(ax).get_array().shape == (N_KV, N_LAYERS) and mesh(ax).get_array()[1, 2] == pytest.approx(-0.9)
    assert ax.get_ylabel() == "KV group" and names(fig) == ["L2.KV1"] and points(fig, "critical") == [(2, 1)]
    assert "one KV group removed at a time" in fig.get_suptitle() and by_gid(fig, "group") == []
    both = plots.head_map(concat([sweep(), kv]))
    assert [ax.get_title(loc="left") for ax in maps(both)] == ["head", "KV group"]
    assert "one head or KV group removed" in both.get_suptitle()
    modes = plots.head_map(concat([sweep(), sweep(mode="@mean")]))
    assert [ax.get_title(loc="left") for ax in maps(modes)] == ["removed", "mean"]


@pytest.mark.parametrize(
    ("mode", "done"),
    [
        ("", "removed"),
        ("@mean", "replaced by the mean of what it adds"),
        ("@resample", "replaced by another prompt's"),
        ("@donor", "replaced by the donor's"),
    ],
)
def test_the_title_says_what_takes_a_heads_place(mode, done):
    title = plots.head_map(sweep(mode=mode)).get_suptitle().replace("\n", " ")
    assert title == f"tiny, kv_retrieval: one head {done} at a time, n = 40 documents"


def test_the_title_says_where_losses_are_estimates():
    title = plots.head_map(logprobs(method="attribution")).get_suptitle().replace("\n", " ")
    assert "one head removed at a time (estimated by attribution)" in title


def test_one_named_head_is_a_loss_or_a_score():
    assert "the largest loss\n" in texts(plots.head_map(sweep(), top=1)) + "\n"
    assert "the highest score\n" in texts(plots.head_map(planted(SIZES[0]), top=1)) + "\n"


def test_heads_that_were_not_removed_are_hatched():
    fig = plots.head_map(sweep(layers=[1, 3]))
    grid = mesh(maps(fig)[0]).get_array()
    assert grid.shape == (N_HEADS, N_LAYERS), "the sizes of the model are in the record"
    assert np.flatnonzero(~grid.mask.all(0)).tolist() == [1, 3] and "not measured" in texts(fig)
    check(fig)


def test_other_conditions_are_left_out():
    result = sweep()
    pair = result.docs[result.docs["condition"] == "L1.H2"].assign(condition="L1.H2+L3.H0", layer=None, head=None)
    layer = result.docs[result.docs["condition"] == "L1.H2"].assign(condition="L1", head=None)
    mixed = Result(pd.concat([result.docs, pair, layer]), result.record)
    assert mesh(maps(plots.head_map(mixed))[0]).get_array().count() == N_LAYERS * N_HEADS
    with pytest.raises(UserError, match=r"no condition removes a single head \(L1.H2\+L3.H0, L1\)"):
        plots.head_map(mixed.select(conditions=["L1", "L1.H2+L3.H0"]))


@pytest.mark.parametrize(
    ("scores_or_sweep", "options", "message"),
    [
        (sweep(), {"tasks": "kv_retrival"}, "unknown task 'kv_retrival'; did you mean kv_retrieval"),
        (sweep(), {"metrics": ["f1"]}, "unknown metric 'f1'"),
        (sweep(), {"top": 0}, "top 0: give a whole number of heads, at least 1"),
        (scores(np.ones((2, 2))), {"tasks": "x"}, "tasks= and metrics= choose within a Result"),
        (scores(np.full((2, 2), np.nan)), {}, "copy-paste score: no head has a score"),
        ([], {}, "no scores; give at least one"),
    ],
)
def test_map_refusals(scores_or_sweep, options, message):
    with pytest.raises(UserError, match=message):
        plots.head_map(scores_or_sweep, **options)
