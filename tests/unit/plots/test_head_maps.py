"""Layer x head maps: what is drawn, what is written, and that names do not touch."""

from __future__ import annotations

import itertools

import made_results
import numpy as np
import pytest
from drawn import Case, by_gid, check, holds, meshes, nothing_leaks, points  # noqa: F401 (a fixture for all of them)

from depthlens import plots
from depthlens.analysis.head_lists import head_overlap
from depthlens.analysis.results import Result, concat
from depthlens.errors import UserError
from depthlens.plots.heads import CRITICAL_HEAD

N_LAYERS, N_HEADS, N_KV, N = 6, 4, 2, 40
SIZES = [(30, 9, 3), (36, 32, 8), (80, 64, 8)]  # SmolLM2-135M, Qwen3-8B, LLaMA-70B


def sweep(
    task="kv_retrieval", kept=None, *, base=0.9, letter="H", mode="", n_heads=N_HEADS, layers=range(N_LAYERS), **more
):
    """A deterministic head sweep; ``kept`` is what remains of the score where (layer, head) is removed."""
    kept = {(1, 2): 0.0, (3, 0): 0.5} if kept is None else kept
    of_heads = {at: kept.get(at, 1.0) * base for at in itertools.product(layers, range(n_heads))}
    accuracies = {"baseline": base} | {f"L{la}.{letter}{h}{mode}": x for (la, h), x in of_heads.items()}
    return made_results.result({task: made_results.nested(accuracies, N)}, model="tiny", n_kv_heads=N_KV, **more)


def changes(result, shape=(N_LAYERS, N_HEADS)):
    """Cells of a map, [head, layer]."""
    return result.summary["delta"].iloc[1:].to_numpy().reshape(shape).T


def scores(values, name="copy-paste score", unit="", critical=None, sizes=(N_LAYERS, N_HEADS, N_KV)):
    dims = dict(zip(("n_layers", "n_heads", "n_kv_heads"), sizes, strict=True))
    return made_results.head_scores(values, name, unit, critical=critical, dims=dims)


def planted(sizes, seed=0, *, loss=False, k=6):
    """Scores of a model of a real size: a few high, all others low."""
    rng = np.random.default_rng(seed)
    values = rng.beta(0.3, 9, sizes[:2])
    values.ravel()[rng.choice(values.size, k, replace=False)] = np.linspace(0.6, 0.9, k)
    if not loss:
        return scores(values, sizes=sizes)
    values = values * 2 - 0.05
    return scores(values, "loss on computed tokens", "nats", values > 1, sizes=sizes)


def maps(fig):
    return [ax for ax in fig.axes if ax.get_xlabel() == "layer"]


def apart(artists):
    boxes = [t.get_window_extent() for t in artists]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2)), "names touch each other"


def cases():
    one, kv = sweep(), sweep(letter="KV", n_heads=N_KV, kept={(2, 1): 0.0})
    critical = {"critical": [(1, 2), (3, 0)]}
    about = ("tiny, kv_retrieval: one head removed at a time, n = 40", CRITICAL_HEAD, "the 2 largest losses")
    about += ("change of accuracy from baseline", "L1.H2", "L3.H0")
    two = {"name": 2, "top": 2}
    yield Case(
        plots.head_map(one, top=2),
        2,
        y={"group": [[1.5] * 2]},
        cells=[changes(one)],
        marks=critical,
        count=two,
        words=about,
    )
    hard = concat([one, sweep("hard", base=0.25)])
    cells = [changes(one), np.full((N_HEADS, N_LAYERS), np.nan)]
    yield Case(plots.head_map(hard, top=2), 3, cells=cells, marks=critical, count={"hatch": 1}, cannot_judge=1)
    yield Case(
        plots.head_map(kv, top=1),
        2,
        cells=[changes(kv, (N_LAYERS, N_KV))],
        count={"group": 0},
        words=("KV group", "L2.KV1"),
    )
    yield Case(plots.head_map(concat([one, kv])), 3, words=("head", "KV group"))
    yield Case(plots.head_map(concat([one, sweep(mode="@mean")])), 3, words=("removed", "mean"))
    some = np.full((N_HEADS, N_LAYERS), np.nan)
    some[:, [1, 3]] = changes(one)[:, [1, 3]]
    yield Case(plots.head_map(sweep(layers=[1, 3])), 2, cells=[some], words=("not measured",))
    values = np.full((N_LAYERS, N_HEADS), 0.01)
    values[2, 1] = 0.83
    said = ("copy-paste score", "the highest score", "L2.H1")
    yield Case(plots.head_map(scores(values), top=1), 2, cells=[values.T], marks={"critical": []}, words=said)
    losses = scores(values, "loss on needle tokens", "nats", values > 0.5)
    yield Case(plots.head_map(losses), 2, cells=[values.T], marks={"critical": [(2, 1)]}, words=(CRITICAL_HEAD,))


def test_maps_draw_their_numbers():
    for case in cases():
        holds(case)


def test_losses_are_red_and_gains_blue_whichever_way_the_metric_runs():
    error = sweep(info={"higher_is_better": False, "chance": None})
    flipped = Result(error.docs.assign(value=1 - error.docs["value"]), error.record)
    gain = sweep(base=0.5, kept={(2, 3): 1.9})
    for result, at, gid in ((sweep(), (1, 2), "critical"), (flipped, (1, 2), "critical"), (gain, (2, 3), "gain")):
        fig = plots.head_map(result, top=2)
        (cells,) = meshes(fig)
        red, _, blue, _ = cells.cmap(cells.norm(cells.get_array()[at[::-1]]))
        assert (red > 2 * blue) if gid == "critical" else (blue > 2 * red)
        assert at in points(fig, gid) and len(by_gid(fig, "name")) == (0 if gid == "gain" else 2), (
            "only losses are named"
        )


@pytest.mark.parametrize(("sizes", "panels"), [(SIZES[0], 2), (SIZES[1], 1), (SIZES[2], 2)])
def test_three_sizes_of_model(sizes, panels):
    top = 8
    chosen = [planted(sizes, k=top), planted(sizes, 1, loss=True, k=top)][:panels]
    fig = plots.head_map(chosen, top=top)
    check(fig)
    assert fig.get_size_inches()[1] <= 10, "does not fit a page"
    assert len(maps(fig)) == panels
    assert [mesh.get_array().size for mesh in meshes(fig)] == [sizes[0] * sizes[1]] * panels
    for ax, s in zip(maps(fig), chosen, strict=True):
        assert sorted(t.get_text() for t in ax.texts) == sorted(f"L{la}.H{h}" for la, h in s.top(top))
        apart([t for t in ax.get_yticklabels() if t.get_text()])
        apart([t for t in ax.get_xticklabels() if t.get_text()])
        for text in ax.texts:
            assert text.get_window_extent().y0 > ax.get_window_extent().y1, "a name hides cells"
    apart(by_gid(fig, "name"))
    if panels == 2:
        assert len(fig.axes) == 4 and points(fig, "critical") == sorted(chosen[1].top(top))


def test_scores_run_from_zero_and_losses_around_it_with_one_scale_a_unit():
    values = np.full((N_LAYERS, N_HEADS), 0.01)
    values[2, 1] = 0.83
    (cells,) = meshes(plots.head_map(scores(values)))
    assert cells.get_clim() == (0, 0.83) and cells.cmap.name == "mako_r"
    for losses in (scores(values, "loss", "nats", values > 0.5), scores(values - 0.05, "contrast", "nats")):
        (cells,) = meshes(plots.head_map(losses))
        low, high = cells.get_clim()
        assert low == -high and cells.cmap.name == "vlag"
    costs = {f"L{la}.H{h}": {(1, 2): 2.0, (4, 1): -1.0}.get((la, h), 0) for la, h in np.ndindex(N_LAYERS, N_HEADS)}
    sizes = {"n_layers": N_LAYERS, "n_heads": N_HEADS, "n_kv_heads": N_KV, "method": "attribution"}
    nats = made_results.nats(costs, n=N, noise=0.1, task="kv_retrieval", model="tiny", **sizes)
    many = concat([sweep(), sweep("other", kept={(0, 0): 0.9}), nats])
    fig = plots.head_map(many)
    first, second, third = (mesh.get_clim() for mesh in meshes(fig))
    assert first == second != third
    holds(
        Case(
            fig,
            5,
            words=("other, acc", "kv_retrieval, answer_logprob", "change of answer_logprob (nats) from baseline"),
        )
    )
    assert len(maps(plots.head_map(many, metrics="acc"))) == 2


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
