"""Figures of heads: what is drawn, what is said, that names do not touch, and that nothing leaks."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
import warnings

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from drawn import by_gid, nothing_leaks, texts  # noqa: F401 (a fixture for all of them)
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from depthlens.analysis.head_lists import head_overlap
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.removal_curve import RemovalCurve
from depthlens.analysis.results import DOCS_COLUMNS, Result, concat
from depthlens.errors import UserError
from depthlens.plots import layers, theme

mpl.use("agg")  # else the first figure resolves the backend, which looks like a changed setting
N_LAYERS, N_HEADS, N_KV, N = 6, 4, 2, 40
SIZES = [(30, 9, 3), (36, 32, 8), (80, 64, 8)]  # SmolLM2-135M, Qwen3-8B, LLaMA-70B


def record(model="tiny", sizes=(N_LAYERS, N_HEADS, N_KV), **more):
    return {
        "model": {"name": model, "dims": dict(zip(("n_layers", "n_heads", "n_kv_heads"), sizes, strict=True))},
        **more,
    }


def sweep(
    task="kv_retrieval", metric="acc", kept=None, *, base=0.9, chance=0.25, better=True, letter="H", mode="",
    n_heads=N_HEADS, layers=range(N_LAYERS), scale=1.0, **more,
):  # fmt: skip
    """A deterministic head sweep; ``kept`` is what remains of the score where (layer, head) is removed."""
    kept = {(1, 2): 0.0, (3, 0): 0.5} if kept is None else kept
    rows = []
    conditions = [(la, h) for la in layers for h in range(n_heads)]
    for where in (None, *conditions):
        right = np.arange(N) < round(kept.get(where, 1.0) * base * N)
        name = "baseline" if where is None else f"L{where[0]}.{letter}{where[1]}{mode}"
        layer, head = where or (None, None)
        head = head if letter == "H" else None
        rows += [("tiny", task, metric, name, layer, head, d, scale * float(v), "x") for d, v in enumerate(right)]
    about = {"higher_is_better": better, "chance": chance}
    tasks = {task: {"version": 1, "num_fewshot": 0, "metrics": {metric: about}}}
    return Result(pd.DataFrame(rows, columns=DOCS_COLUMNS), record(tasks=tasks, **more))


def logprobs(task="kv_retrieval", effects=None, **more):
    """Answer log-probabilities in nats; ``effects`` are the changes by (layer, head)."""
    effects = {(1, 2): -2.0, (4, 1): 1.0} if effects is None else effects
    rng = np.random.default_rng(0)
    clean = rng.normal(-3, 1, N)
    rows = []
    for where in (None, *np.ndindex(N_LAYERS, N_HEADS)):
        values = clean + effects.get(where, 0.0) + (0 if where is None else rng.normal(0, 0.1, N))
        name = "baseline" if where is None else f"L{where[0]}.H{where[1]}"
        rows += [
            ("tiny", task, "answer_logprob", name, *(where or (None, None)), d, v, "x") for d, v in enumerate(values)
        ]
    tasks = {
        task: {
            "version": 1,
            "num_fewshot": 0,
            "metrics": {"answer_logprob": {"higher_is_better": True, "chance": None}},
        }
    }
    return Result(pd.DataFrame(rows, columns=DOCS_COLUMNS), record(tasks=tasks, **more))


def scores(values, name="copy-paste score", unit="", critical=None, **about):
    values = np.asarray(values, dtype=float)
    return HeadScores(name, unit, values, None, None, 25, critical, record(**about))


def planted(sizes, seed=0, *, loss=False, k=6):
    """Scores of a model of a real size: a few high, all others low."""
    rng = np.random.default_rng(seed)
    values = rng.beta(0.3, 9, sizes[:2])
    high = rng.choice(values.size, k, replace=False)
    values.ravel()[high] = np.linspace(0.6, 0.9, k)
    if loss:
        values = values * 2 - 0.05
        return scores(values, "loss on computed tokens", "nats", values > 1, sizes=sizes)
    return scores(values, sizes=sizes)


def points(fig, gid):
    """(layer, head) of the marks."""
    return sorted((int(x), int(y)) for line in by_gid(fig, gid) for x, y in line.get_xydata())


def mesh(ax):
    (found,) = [c for c in ax.collections if isinstance(c, mpl.collections.QuadMesh)]
    return found


def maps(fig):
    return [ax for ax in fig.axes if ax.get_xlabel() == "layer"]


def bars(fig):
    return [ax.get_xlabel() for ax in fig.axes if ax.get_label() == "<colorbar>"]


def names(fig, gid="name"):
    return [t.get_text() for t in by_gid(fig, gid)]


def draw(fig) -> np.ndarray:
    """Render as in a notebook: no warning, nothing cut off, no text below 8 pt, not wider than a page."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph or a layout that does not fit
        png, size = fig._repr_png_()
    image = matplotlib.image.imread(io.BytesIO(png))
    assert image.shape[1] == 2 * size["width"] and fig.get_size_inches()[0] <= theme.WIDTH
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border[:, :3] == 1).all(), "something is cut off at the edge"
    sizes = [t.get_fontsize() for t in fig.findobj(mpl.text.Text) if t.get_text()]
    assert sizes and min(sizes) >= 8
    return image


def apart(artists):
    boxes = [t.get_window_extent() for t in artists]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2)), "names touch each other"


def test_reachable_from_plots_and_without_torch():
    """A figure of a saved result must not cost the seconds that torch takes to load."""
    wanted = "attention depth_profile head_map head_overlap prediction protocol_comparison removal_curve".split()
    assert all(callable(getattr(layers, name)) for name in wanted) and {*wanted} <= {*layers.__all__}
    code = "import sys, depthlens as dl; dl.plots.head_map; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- head_map ------------------------------------------------------------------------------------------


def test_map_draws_the_summary():
    result = sweep()
    fig = layers.head_map(result, top=2)
    (ax,) = maps(fig)
    grid = mesh(ax).get_array()
    assert grid.shape == (N_HEADS, N_LAYERS) and not np.ma.is_masked(grid)
    for row in result.summary.iloc[1:].itertuples():
        assert grid[row.head, row.layer] == pytest.approx(row.delta)
    low, high = mesh(ax).get_clim()
    assert low == -high and high >= 0.9
    assert points(fig, "critical") == [(1, 2), (3, 0)]
    assert [tuple(x) for x in result.critical()[["layer", "head"]].to_numpy()] == [(1, 2), (3, 0)]
    assert names(fig) == ["L1H2", "L3H0"]
    assert sorted(p.get_xy() for p in by_gid(fig, "top")) == [(0.5, 1.5), (2.5, -0.5)]
    assert ax.get_ylabel() == "head" and ax.get_ylim() == (N_HEADS - 0.5, -0.5)
    assert bars(fig) == ["change of accuracy from baseline"]
    shown = texts(fig)
    assert "tiny, kv_retrieval: one head removed at a time, n = 40 documents" in shown.replace("\n", " ")
    for said in (plots_critical(), "the 2 largest losses", "between KV groups", "baseline 0.90"):
        assert said in shown
    assert "not measured" not in shown and "gain" not in shown
    assert [line.get_ydata()[0] for line in by_gid(fig, "group")] == [1.5]
    draw(fig)
    assert layers.head_map(result, title="Mine").get_suptitle() == "Mine"


def plots_critical():
    from depthlens.plots.heads import CRITICAL

    return CRITICAL


def test_losses_are_red_and_gains_blue_whichever_way_the_metric_runs():
    down = sweep(metric="error", better=False, chance=None)
    flipped = Result(down.docs.assign(value=1 - down.docs["value"]), down.record)
    for result in (sweep(), flipped):
        fig = layers.head_map(result)
        found = mesh(maps(fig)[0])
        red, _, blue, _ = found.cmap(found.norm(found.get_array()[2, 1]))
        assert red > 2 * blue, "a loss must be red"
        assert points(fig, "critical") == [(1, 2), (3, 0)]
    gain = sweep(base=0.5, kept={(2, 3): 1.9})
    fig = layers.head_map(gain, top=3)
    found = mesh(maps(fig)[0])
    red, _, blue, _ = found.cmap(found.norm(found.get_array()[3, 2]))
    assert blue > 2 * red and points(fig, "gain") == [(2, 3)] and points(fig, "critical") == []
    assert "significant gain" in texts(fig)
    assert names(fig) == [], "only losses are among the largest losses"


def test_a_mark_stands_out_from_its_cell():
    fig = layers.head_map(logprobs())
    found = mesh(maps(fig)[0])
    for gid in ("critical", "gain"):
        for line in by_gid(fig, gid):
            for layer, head in line.get_xydata().astype(int):
                cell = found.cmap(found.norm(found.get_array()[head, layer]))
                assert abs(luminance(cell) - luminance(to_rgb(line.get_color()))) > 0.15
    assert points(fig, "critical") == [(1, 2)] and points(fig, "gain") == [(4, 1)]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("panels", [1, 2])
def test_three_sizes_of_model(sizes, panels):
    top = 8
    chosen = [planted(sizes, k=top), planted(sizes, 1, loss=True, k=top)][:panels]
    fig = layers.head_map(chosen, top=top)
    draw(fig)
    assert fig.get_size_inches()[1] <= 10, "does not fit a page"
    assert len(maps(fig)) == panels
    for ax, s in zip(maps(fig), chosen, strict=True):
        assert mesh(ax).get_array().size == sizes[0] * sizes[1]
        assert sorted(t.get_text() for t in ax.texts) == sorted(f"L{la}H{h}" for la, h in s.top(top))
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
        fig = layers.head_map(scores(values, sizes=SIZES[0]), top=len(crowd))
        draw(fig)
        assert sorted(names(fig)) == sorted(f"L{la}H{h}" for la, h in crowd)
        apart(by_gid(fig, "name"))
    # lines from name to cell end above the first frame, or run from frame to frame
    ends = [line.get_ydata()[-1] for line in by_gid(fig, "leader") if line.get_xdata()[0] == line.get_xdata()[-1] == 29]
    assert max(ends) == 7.5


def test_colours_end_early_only_where_heads_lie_far_out_and_say_so():
    noise = {(la, h): 0.98 for la in range(30) for h in range(0, 9, 3)}
    far = sweep(kept=noise | {(9, 6): 0.0}, n_heads=9, layers=range(30), base=1.0)
    fig = layers.head_map(far)
    _, high = mesh(maps(fig)[0]).get_clim()
    assert 0.3 <= high < 0.5, "one far head must neither hide the others nor turn noise into colour"
    (label,) = bars(fig)
    assert "colours end at ±0.34: 1 head lies beyond, at\xa0−1" in label.replace("\n", " ")
    draw(fig)
    even = sweep(kept={(la, h): 0.5 for la in range(4) for h in range(4)})
    assert bars(layers.head_map(even)) == ["change of accuracy from baseline"]
    none = layers.head_map(sweep(kept={}))
    assert mesh(maps(none)[0]).get_clim() == (-0.1, 0.1)


def test_scores_run_from_zero_and_losses_around_it():
    values = np.full((N_LAYERS, N_HEADS), 0.01)
    values[2, 1] = 0.83
    fig = layers.head_map(scores(values), top=1)
    found = mesh(maps(fig)[0])
    assert found.get_clim() == (0, 0.83) and found.cmap.name == "mako_r"
    assert bars(fig) == ["copy-paste score"] and names(fig) == ["L2H1"]
    assert "tiny: copy-paste score, n = 25" in texts(fig) and "highest score" in texts(fig)
    assert plots_critical() not in texts(fig), "nothing was tested"
    draw(fig)
    critical = values > 0.5
    fig = layers.head_map(scores(values, "loss on needle tokens", "nats", critical))
    found = mesh(maps(fig)[0])
    low, high = found.get_clim()
    assert low == -high and found.cmap.name == "vlag" and points(fig, "critical") == [(2, 1)]
    assert bars(fig)[0].startswith("loss on needle tokens (nats)")
    untested = layers.head_map(scores(values - 0.05, "contrast", "nats"))
    assert mesh(maps(untested)[0]).cmap.name == "vlag", "values below 0 need a scale with a middle"


def test_chance_is_said_and_never_marked():
    result = concat([sweep(), sweep("hard", base=0.25)])
    fig = layers.head_map(result, top=2)
    judged, hard = maps(fig)
    assert mesh(hard).get_array().mask.all() and not np.ma.is_masked(mesh(judged).get_array())
    assert texts(fig).count(theme.CANNOT_JUDGE) == 1
    assert [t.get_text() for t in hard.texts] == [theme.CANNOT_JUDGE]
    assert len(by_gid(fig, "hatch")) == 1 and points(fig, "critical") == [(1, 2), (3, 0)]
    draw(fig)
    alone = layers.head_map(result, tasks="hard", top=1)
    assert plots_critical() not in texts(alone) and names(alone) == []
    draw(alone)


def test_panels_share_a_scale_by_unit():
    many = concat([sweep(), sweep("other", kept={(0, 0): 0.9}), logprobs()])
    fig = layers.head_map(many)
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
    draw(fig)
    assert len(maps(layers.head_map(many, metrics="acc"))) == 2
    assert len(maps(layers.head_map(many, tasks=["kv_retrieval"], metrics="acc"))) == 1


def test_kv_groups_and_means_are_panels_of_their_own():
    kv = sweep(letter="KV", n_heads=N_KV, kept={(2, 1): 0.0})
    fig = layers.head_map(kv, top=1)
    (ax,) = maps(fig)
    assert mesh(ax).get_array().shape == (N_KV, N_LAYERS) and mesh(ax).get_array()[1, 2] == pytest.approx(-0.9)
    assert ax.get_ylabel() == "KV group" and names(fig) == ["L2KV1"] and points(fig, "critical") == [(2, 1)]
    assert "one KV group removed at a time" in fig.get_suptitle() and by_gid(fig, "group") == []
    both = layers.head_map(concat([sweep(), kv]))
    assert [ax.get_title(loc="left") for ax in maps(both)] == ["head", "KV group"]
    assert "one head or KV group removed" in both.get_suptitle()
    mean = layers.head_map(sweep(mode="@mean"))
    assert "one head replaced by its mean" in mean.get_suptitle()
    modes = layers.head_map(concat([sweep(), sweep(mode="@mean")]))
    assert [ax.get_title(loc="left") for ax in maps(modes)] == ["zero", "mean"]
    estimated = layers.head_map(logprobs(method="attribution"))
    assert "(estimated by attribution)" in estimated.get_suptitle().replace("\n", " ")


def test_heads_that_were_not_removed_are_hatched():
    fig = layers.head_map(sweep(layers=[1, 3]))
    grid = mesh(maps(fig)[0]).get_array()
    assert grid.shape == (N_HEADS, N_LAYERS), "the sizes of the model are in the record"
    assert np.flatnonzero(~grid.mask.all(0)).tolist() == [1, 3] and "not measured" in texts(fig)
    draw(fig)


def test_other_conditions_are_left_out():
    result = sweep()
    pair = result.docs[result.docs["condition"] == "L1.H2"].assign(condition="L1.H2+L3.H0", layer=None, head=None)
    layer = result.docs[result.docs["condition"] == "L1.H2"].assign(condition="L1", head=None)
    mixed = Result(pd.concat([result.docs, pair, layer]), result.record)
    assert mesh(maps(layers.head_map(mixed))[0]).get_array().count() == N_LAYERS * N_HEADS
    with pytest.raises(UserError, match=r"no condition removes a single head \(L1.H2\+L3.H0, L1\)"):
        layers.head_map(mixed.select(conditions=["L1", "L1.H2+L3.H0"]))


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (sweep(), {"task": "kv_retrival"}, "unknown task 'kv_retrival'; did you mean kv_retrieval"),
        (sweep(), {"metric": ["f1"]}, "unknown metric 'f1'"),
        (sweep(), {"top": 0}, "top 0: give a whole number of heads from 1 to 20"),
        (sweep(), {"top": 21}, "top 21: give a whole number of heads from 1 to 20"),
        (scores(np.ones((2, 2))), {"tasks": "x"}, "tasks= and metrics= choose within a Result"),
        (scores(np.full((2, 2), np.nan)), {}, "copy-paste score: no head has a score"),
        ([], {}, "no scores; give at least one"),
    ],
)
def test_map_refusals(given, options, message):
    with pytest.raises(UserError, match=message):
        layers.head_map(given, **options)


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
    fig = layers.removal_curve(curve(chance=0.25))
    assert [ax.get_title(loc="left") for ax in fig.axes] == list(TASKS)
    for t, ax in enumerate(fig.axes):
        lines = [line for line in ax.get_lines() if line.get_gid() == "list"]
        assert [line.get_color() for line in lines] == list(theme.PALETTE[:2])
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
        assert outside.get_color() == theme.PALETTE[t] and outside.get_ydata().tolist() == FALL[1:]
        assert ax.get_ylim() == (-0.02, 1.02) and ax.get_xlabel() == "heads removed together"
    assert [line.get_ydata()[0] for line in by_gid(fig, "baseline")] == [0.9, 0.9]
    assert [line.get_ydata()[0] for line in by_gid(fig, "chance")] == [0.25, 0.25]
    assert fig.axes[0].get_ylabel() == "accuracy"
    shown = texts(fig)
    assert "tiny: first k heads of a list removed, 20 random draws, n = 40 documents" in shown
    for said in ("retrieval p = 0.048", "reasoning p = 0.6", "worse than every random draw", "chance", "95% interval"):
        assert said in shown
    draw(fig)


def test_curve_of_one_and_of_three_tasks():
    draw(layers.removal_curve(curve(("kv_retrieval",), ("retrieval",)), title="One"))
    three = layers.removal_curve(curve(("kv_retrieval", "arithmetic_cot", "capitals_continuation"), ("a", "b", "c")))
    draw(three)
    assert len(three.axes) == 3
    for ax in three.axes:  # the p-values stand above their own panel
        (said,) = ax.texts
        assert said.get_window_extent().x1 <= ax.get_window_extent().x1 + 20


def test_curve_where_lower_is_better_marks_the_rise():
    fig = layers.removal_curve(curve(("kv_retrieval",), ("retrieval",), better=False))
    (outside,) = by_gid(fig, "outside")
    assert outside.get_ydata().tolist() == [1 - v for v in FALL[1:]]


def test_curve_at_chance_is_grey_and_said():
    fig = layers.removal_curve(curve(("kv_retrieval",), ("retrieval",), base=0.25, chance=0.25, at_chance=True))
    assert theme.CANNOT_JUDGE in texts(fig) and "retrieval p =" not in texts(fig) and by_gid(fig, "outside") == []
    assert [line.get_color() for line in by_gid(fig, "list")] == [theme.GREY]
    draw(fig)


def test_curve_refuses_more_lists_than_colours():
    with pytest.raises(UserError, match="5 lists; a panel shows up to 4, draw fewer: a, b, c, d, e"):
        layers.removal_curve(curve(lists=tuple("abcde")))


# -- head_overlap --------------------------------------------------------------------------------------


def test_overlap_says_what_the_lists_share():
    a, b = planted(SIZES[0]), planted(SIZES[0], 1, loss=True)
    values = b.values.copy()
    values[a.top(1)[0]] = 2.5
    b = scores(values, b.name, "nats", sizes=SIZES[0])
    fig = layers.head_overlap(a, b, k=5)
    found = head_overlap(a.top(5), b.top(5), 270)
    assert found.n == 1
    title = fig.get_suptitle().replace("\n", " ")
    assert f"tiny: 1 of the top 5 heads are on both lists; {found.expected:.2g} expected by chance" in title
    assert f"hypergeometric p = {found.p_value:.2g} (270 heads)" in title
    (ax,) = fig.axes
    assert ax.get_xlabel() == "copy-paste score" and ax.get_ylabel() == "loss on computed tokens (nats)"
    (shared,) = by_gid(fig, "both")
    assert shared.get_xydata().tolist() == [[a.values[a.top(1)[0]], 2.5]]
    assert sum(len(line.get_xdata()) for line in by_gid(fig, "others")) == 270 - 9
    assert sorted(names(fig)) == sorted({f"L{la}H{h}" for la, h in a.top(5) + b.top(5)})
    bold = [t.get_text() for t in by_gid(fig, "name") if t.get_fontweight() == "bold"]
    assert bold == ["L{}H{}".format(*a.top(1)[0])]
    cuts = [line.get_xydata()[0] for line in by_gid(fig, "cut")]
    assert (a.values > cuts[0][0]).sum() == (b.values > cuts[1][1]).sum() == 5
    draw(fig)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_overlap_names_do_not_touch(sizes):
    a, b = planted(sizes, 3), planted(sizes, 4, loss=True)
    fig = layers.head_overlap(a, b, k=12)
    draw(fig)
    found = by_gid(fig, "name")
    both = {*a.top(12)} & {*b.top(12)}
    assert {t.get_text() for t in found} == {f"L{la}H{h}" for la, h in {*a.top(10), *b.top(10), *both}}
    boxes = [mpl.text.Text.get_window_extent(t) for t in found]  # without the lines to the dots
    close = 2  # pixels of 200 per inch: the room for a name is estimated from its number of characters
    assert not any(one.padded(-close).overlaps(other) for one, other in itertools.combinations(boxes, 2))
    frame = fig.axes[0].get_window_extent()
    assert all(frame.x0 - close <= box.x0 and box.x1 <= frame.x1 + close for box in boxes)


def test_overlap_of_a_score_with_itself_and_of_heads_that_both_have():
    a = planted(SIZES[0])
    fig = layers.head_overlap(a, a, k=3)
    assert "3 of the top 3 heads are on both lists" in fig.get_suptitle()
    half = a.values.copy()
    half[15:] = np.nan
    assert "(135 heads)" in layers.head_overlap(a, scores(half, sizes=SIZES[0]), k=3).get_suptitle().replace("\n", " ")


def test_overlap_refusals():
    a = planted(SIZES[0])
    with pytest.raises(UserError, match=r"shapes \(30, 9\) and \(36, 32\); give two of one model"):
        layers.head_overlap(a, planted(SIZES[1]))
    for k in (0, 270, True):
        with pytest.raises(UserError, match=f"k {k}: 270 heads have both scores; give a whole number from 1 to 269"):
            layers.head_overlap(a, a, k=k)


# -- attention -----------------------------------------------------------------------------------------

PROMPT = ["<s>", "The", " key", " of", " 7f", "$x$", " is", " 巴", ".", "\n", "\t", "Key", ":"]


def causal(n, seed=0):
    logits = np.where(np.tri(n) > 0, np.random.default_rng(seed).normal(size=(n, n)) * 2, -np.inf)
    weights = np.exp(logits)
    return weights / weights.sum(1, keepdims=True)


def test_attention_map():
    n, weights = len(PROMPT), causal(len(PROMPT))
    fig = layers.attention(PROMPT, weights, "L9H6")
    ax = fig.axes[0]
    grid = mesh(ax).get_array()
    assert grid.shape == (n, n) and (grid.mask == (np.tri(n) == 0)).all(), "the half above the diagonal is empty"
    np.testing.assert_allclose(grid[np.tri(n) > 0].data, weights[np.tri(n) > 0])
    rows, columns = ([t.get_text() for t in axis.get_ticklabels()] for axis in (ax.yaxis, ax.xaxis))
    assert rows == columns and rows[:6] == ["<s>", "The", "·key", "·of", "·7f", "$x$"]
    assert rows[7:11] == ["·\\u5df4", ".", "⏎", "⇥"]
    assert ax.get_ylim() == (n, 0) and mesh(ax).get_clim() == (0, 1.0)
    assert "L9H6" in fig.get_suptitle() and "query" in ax.get_ylabel() and "key" in ax.get_xlabel()
    draw(fig)


def test_attention_map_of_sixty_tokens_is_readable():
    tokens = [f" tok{i}" for i in range(59)] + ["antidisestablishmentarianism"]
    fig = layers.attention(tokens, causal(60), "L9H6")
    draw(fig)
    labels = fig.axes[0].get_yticklabels()
    assert labels[-1].get_text() == "antidisesta…"
    middles = [t.get_window_extent().y0 + t.get_window_extent().height / 2 for t in labels]
    pitch = np.abs(np.diff(middles)).min() * 72 / fig.dpi
    assert pitch > 6.5, "lower-case letters of 8 pt are 4.4 pt high"


def strip(fig):
    return [t for t in by_gid(fig, "token")]


def test_attention_of_one_query_shades_the_prompt():
    weights = causal(len(PROMPT))
    fig = layers.attention(PROMPT, weights, "L9H6", query=6)
    assert "".join(t.get_text() for t in strip(fig)) == "".join(PROMPT).replace("巴", "\\u5df4").replace(
        "\n", "⏎"
    ).replace("\t", "⇥")
    (boxes,) = by_gid(fig, "weights")
    assert len(boxes.get_paths()) == 7, "later tokens are out of sight"
    cmap = colormaps["mako_r"]
    np.testing.assert_allclose(boxes.get_facecolor(), cmap(weights[6, :7] / theme.round_up(weights[6].max())))
    inks = [t.get_color() for t in strip(fig)]
    assert set(inks[7:]) == {theme.GREY} and set(inks[:7]) <= {"black", "white"}
    lines = {t.get_position()[1] for t in strip(fig)}
    assert len(lines) == 2, "a line break in the prompt breaks the line"
    best = int(weights[6].argmax())
    assert f"(token {best}) {weights[6, best]:.2f}" in texts(fig) and "L9H6: what token 6 (␣is) attends to" in texts(
        fig
    )
    draw(fig)
    one = layers.attention(PROMPT, weights[-1], "L9H6")  # [key]: of the last token
    assert "what token 12 (:) attends to" in one.get_suptitle()
    two = layers.attention(PROMPT, weights, "L9H6", query=-1)
    np.testing.assert_array_equal(by_gid(one, "weights")[0].get_facecolor(), by_gid(two, "weights")[0].get_facecolor())


def test_a_long_prompt_wraps_within_the_page():
    tokens = [" word", "ing", ".", " retrieval"] * 100
    weights = np.full(400, 1 / 400)
    fig = layers.attention(tokens, weights, "L17H24", title="Long")
    draw(fig)
    found = strip(fig)
    assert len(found) == 400 and fig.get_suptitle() == "Long"
    places = [t.get_window_extent() for t in found]
    assert max(p.x1 for p in places) <= fig.bbox.x1
    by_line = itertools.groupby(places, key=lambda p: round((p.y0 + p.y1) / 2 / 10))
    for _, line in by_line:
        assert all(a.x1 <= b.x1 and a.x0 < b.x0 for a, b in itertools.pairwise(line)), "tokens run into each other"
    assert fig.get_size_inches()[1] < 8


def test_a_very_long_prompt_is_shown_in_excerpts():
    weights = np.zeros(4096)
    weights[[0, 1500, 1501, 4000]] = 0.2, 0.5, 0.1, 0.1
    weights[2000:2100] = 0.001
    fig = layers.attention([f" {i}" for i in range(4096)], weights, "L17H24", query=4000)
    shown = [int(t.get_text()) for t in strip(fig)]
    assert {0, 1500, 1501, 4000, 1495, 1505} <= {*shown} and len(shown) < 120
    assert "[2474 tokens: 0.10]" in texts(fig), "what is left out is said, with the weight it holds"
    assert "[83 tokens]" in texts(fig)
    draw(fig)


@pytest.mark.parametrize(
    ("tokens", "weights", "options", "message"),
    [
        ([], np.zeros((0, 0)), {}, r"0 tokens and weights of shape \(0, 0\)"),
        (["a"] * 3, causal(4), {}, r"3 tokens and weights of shape \(4, 4\); give \[query, key\]"),
        (["a"] * 4, causal(4), {"query": 4}, r"query 4 does not exist; the prompt has tokens 0..3"),
        (["a"] * 4, causal(4).T, {}, "which sum to 1 at most|attends to the later token"),
        (["a"] * 4, np.full((4, 4), 0.25), {}, "query 0 attends to the later token 1; give causal weights"),
        (["a"] * 4, causal(4)[2], {"query": 1}, "query 1 attends to the later token 2"),
        (["a"] * 4, causal(4) * 3, {}, "the largest row sums to 3; give attention weights after the softmax"),
        (["a"] * 4, causal(4) - 0.5, {}, "weights run from -0.5"),
        (["a"] * 61, causal(61), {}, "61 tokens do not fit a map of up to 60; choose a token that looks with query="),
    ],
)
def test_attention_refusals(tokens, weights, options, message):
    with pytest.raises(UserError, match=message):
        layers.attention(tokens, weights, "L0H0", **options)


# -- colours and room ----------------------------------------------------------------------------------


def luminance(colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def lightness(colour) -> float:
    """CIE L* of a colour."""
    y = luminance(colour)
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


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
