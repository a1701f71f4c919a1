"""Layer x head maps: what is drawn, what is written, and that names do not touch."""

from __future__ import annotations

import itertools

import made_results
import matplotlib as mpl
import numpy as np
import pytest
from drawn import by_gid, check, luminance, nothing_leaks, texts  # noqa: F401 (a fixture for all of them)

from depthlens import plots
from depthlens.analysis.head_lists import head_overlap
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.results import Result, concat
from depthlens.errors import UserError
from depthlens.plots import theme
from depthlens.plots.heads import CRITICAL_HEAD

N_LAYERS, N_HEADS, N_KV, N = 6, 4, 2, 40
SIZES = [(30, 9, 3), (36, 32, 8), (80, 64, 8)]  # SmolLM2-135M, Qwen3-8B, LLaMA-70B


def sweep(
    task="kv_retrieval", kept=None, *, base=0.9, letter="H", mode="", n_heads=N_HEADS, layers=range(N_LAYERS), **more
):
    """A deterministic head sweep; ``kept`` is what remains of the score where (layer, head) is removed."""
    kept = {(1, 2): 0.0, (3, 0): 0.5} if kept is None else kept
    scores = {"baseline": np.arange(N) < round(base * N)}
    for at in itertools.product(layers, range(n_heads)):
        scores[f"L{at[0]}.{letter}{at[1]}{mode}"] = np.arange(N) < round(kept.get(at, 1.0) * base * N)
    return made_results.result({task: scores}, model="tiny", n_kv_heads=N_KV, **more)


def logprobs(**more):
    """Answer log-probabilities in nats: one head costs two, one gains one."""
    rng, effects = np.random.default_rng(0), {(1, 2): -2.0, (4, 1): 1.0}
    scores = {"baseline": (clean := rng.normal(-3, 1, N))}
    for at in np.ndindex(N_LAYERS, N_HEADS):
        scores["L{}.H{}".format(*at)] = clean + effects.get(at, 0.0) + rng.normal(0, 0.1, N)
    sizes = {"model": "tiny", "n_kv_heads": N_KV, "info": {"chance": None}}
    return made_results.result({"kv_retrieval": scores}, metric="answer_logprob", **sizes, **more)


def scores(values, name="copy-paste score", unit="", critical=None, sizes=(N_LAYERS, N_HEADS, N_KV)):
    values = np.asarray(values, dtype=float)
    dims = dict(zip(("n_layers", "n_heads", "n_kv_heads"), sizes, strict=True))
    return HeadScores(name, unit, values, None, None, 25, critical, {"model": {"name": "tiny", "dims": dims}})


def planted(sizes, seed=0, *, loss=False, k=6):
    """Scores of a model of a real size: a few high, all others low."""
    rng = np.random.default_rng(seed)
    values = rng.beta(0.3, 9, sizes[:2])
    values.ravel()[rng.choice(values.size, k, replace=False)] = np.linspace(0.6, 0.9, k)
    if not loss:
        return scores(values, sizes=sizes)
    values = values * 2 - 0.05
    return scores(values, "loss on computed tokens", "nats", values > 1, sizes=sizes)


def points(fig, gid):
    """(layer, head) of the marks."""
    return sorted((int(x), int(y)) for line in by_gid(fig, gid) for x, y in line.get_xydata())


def mesh(ax):
    (only,) = [c for c in ax.collections if isinstance(c, mpl.collections.QuadMesh)]
    return only


def maps(fig):
    return [ax for ax in fig.axes if ax.get_xlabel() == "layer"]


def bars(fig):
    return [ax.get_xlabel().replace("\n", " ") for ax in fig.axes if ax.get_label() == "<colorbar>"]


def names(fig):
    return [t.get_text() for t in by_gid(fig, "name")]


def apart(artists):
    boxes = [t.get_window_extent() for t in artists]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2)), "names touch each other"


def test_map_draws_the_summary():
    result = sweep()
    fig = plots.head_map(result, top=2)
    (ax,) = maps(fig)
    grid = mesh(ax).get_array()
    for row in result.summary.iloc[1:].itertuples():
        assert grid[row.head, row.layer] == pytest.approx(row.delta)
    low, high = mesh(ax).get_clim()
    assert low == -high and high >= 0.9 and grid.shape == (N_HEADS, N_LAYERS)
    assert points(fig, "critical") == [(1, 2), (3, 0)] and names(fig) == ["L1.H2", "L3.H0"]
    assert sorted(p.get_xy() for p in by_gid(fig, "top")) == [(0.5, 1.5), (2.5, -0.5)]
    assert ax.get_ylabel() == "head" and ax.get_ylim() == (N_HEADS - 0.5, -0.5)
    assert bars(fig) == ["change of accuracy from baseline"]
    written = texts(fig).replace("\n", " ")
    for label in ("tiny, kv_retrieval: one head removed at a time, n = 40", CRITICAL_HEAD, "the 2 largest losses"):
        assert label in written
    assert [line.get_ydata()[0] for line in by_gid(fig, "group")] == [1.5]
    check(fig)


def test_losses_are_red_and_gains_blue_whichever_way_the_metric_runs():
    error = sweep(info={"higher_is_better": False, "chance": None})
    flipped = Result(error.docs.assign(value=1 - error.docs["value"]), error.record)
    gain = sweep(base=0.5, kept={(2, 3): 1.9})
    for result, at, gid in ((sweep(), (1, 2), "critical"), (flipped, (1, 2), "critical"), (gain, (2, 3), "gain")):
        fig = plots.head_map(result, top=2)
        cells = mesh(maps(fig)[0])
        red, _, blue, _ = cells.cmap(cells.norm(cells.get_array()[at[::-1]]))
        assert (red > 2 * blue) if gid == "critical" else (blue > 2 * red)
        assert at in points(fig, gid) and len(names(fig)) == (0 if gid == "gain" else 2), "only losses are named"


@pytest.mark.parametrize(("sizes", "panels"), [(SIZES[0], 2), (SIZES[1], 1), (SIZES[2], 2)])
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


def test_scores_run_from_zero_and_losses_around_it():
    values = np.full((N_LAYERS, N_HEADS), 0.01)
    values[2, 1] = 0.83
    fig = plots.head_map(scores(values), top=1)
    cells = mesh(maps(fig)[0])
    assert cells.get_clim() == (0, 0.83) and cells.cmap.name == "mako_r"
    assert bars(fig) == ["copy-paste score"] and names(fig) == ["L2.H1"]
    assert "the highest score" in texts(fig) and CRITICAL_HEAD not in texts(fig), "nothing was tested"
    fig = plots.head_map(scores(values, "loss on needle tokens", "nats", values > 0.5))
    cells = mesh(maps(fig)[0])
    low, high = cells.get_clim()
    assert low == -high and cells.cmap.name == "vlag" and points(fig, "critical") == [(2, 1)]
    assert mesh(maps(plots.head_map(scores(values - 0.05, "contrast", "nats")))[0]).cmap.name == "vlag"


def test_chance_is_written_and_never_marked():
    fig = plots.head_map(concat([sweep(), sweep("hard", base=0.25)]), top=2)
    judged, hard = maps(fig)
    assert mesh(hard).get_array().mask.all() and not np.ma.is_masked(mesh(judged).get_array())
    assert [t.get_text() for t in hard.texts] == [theme.CANNOT_JUDGE]
    assert len(by_gid(fig, "hatch")) == 1 and points(fig, "critical") == [(1, 2), (3, 0)]
    check(fig)


def test_panels_share_a_scale_by_unit():
    many = concat([sweep(), sweep("other", kept={(0, 0): 0.9}), logprobs(method="attribution")])
    fig = plots.head_map(many)
    first, second, third = (mesh(ax).get_clim() for ax in maps(fig))
    assert first == second != third
    nats = "change of answer_logprob (nats) from baseline"
    assert [b.split(" colours end")[0] for b in bars(fig)] == ["change of accuracy from baseline", nats]
    titles = ["kv_retrieval, acc", "other, acc", "kv_retrieval, answer_logprob"]
    assert [ax.get_title(loc="left") for ax in maps(fig)] == titles
    check(fig)
    assert len(maps(plots.head_map(many, metrics="acc"))) == 2


def test_kv_groups_and_means_are_panels_of_their_own():
    kv = sweep(letter="KV", n_heads=N_KV, kept={(2, 1): 0.0})
    fig = plots.head_map(kv, top=1)
    (ax,) = maps(fig)
    assert mesh(ax).get_array().shape == (N_KV, N_LAYERS) and mesh(ax).get_array()[1, 2] == pytest.approx(-0.9)
    assert ax.get_ylabel() == "KV group" and names(fig) == ["L2.KV1"] and by_gid(fig, "group") == []
    both = plots.head_map(concat([sweep(), kv]))
    assert [ax.get_title(loc="left") for ax in maps(both)] == ["head", "KV group"]
    modes = plots.head_map(concat([sweep(), sweep(mode="@mean")]))
    assert [ax.get_title(loc="left") for ax in maps(modes)] == ["removed", "mean"]


def test_heads_that_were_not_removed_are_hatched():
    fig = plots.head_map(sweep(layers=[1, 3]))
    grid = mesh(maps(fig)[0]).get_array()
    assert grid.shape == (N_HEADS, N_LAYERS), "the sizes of the model are in the record"
    assert np.flatnonzero(~grid.mask.all(0)).tolist() == [1, 3] and "not measured" in texts(fig)
    check(fig)


def test_the_figure_and_the_sentence_have_one_number():
    """Where one score is of some heads alone, only these could be on both lists."""
    a = planted(SIZES[0])
    chosen = np.zeros(a.values.shape, dtype=bool)
    chosen[tuple(np.transpose(a.top(12)))] = True
    some = scores(np.where(chosen, a.values[::-1], np.nan), sizes=SIZES[0])
    common = head_overlap(a, some, k=5)
    title = plots.head_overlap(a, some, k=5).get_suptitle().replace("\n", " ")
    assert f"{common.expected:.2g} expected" in title and f"p = {common.p_value:.2g} (12 heads)" in title
    assert f"({common.expected:.2g} expected, p = {common.p_value:.2g})" in str(common)
    with pytest.raises(UserError, match=r"shapes \(30, 9\) and \(36, 32\); give two of one model"):
        plots.head_overlap(a, planted(SIZES[1]))
