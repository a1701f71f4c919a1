"""Maps of heads, and attention of one head on one prompt as a map and as shaded text."""

import itertools

import made_results
import numpy as np
import pytest
from drawn import (  # noqa: F401 (a fixture for all of them)
    Case,
    by_gid,
    check,
    holds,
    meshes,
    nothing_leaks,
    points,
    texts,  # noqa: F401 (a fixture for all of them)
)
from matplotlib import colormaps
from matplotlib.collections import QuadMesh

from depthlens import plots
from depthlens.analysis.results import Result, concat
from depthlens.errors import UserError
from depthlens.look import GREY
from depthlens.plots import theme
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
            words=("other, acc", "kv_retrieval, answer_logprob", "change of answer_logprob (nats, at most 1 a"),
        )
    )
    assert len(maps(plots.head_map(many, metrics="acc"))) == 2


PROMPT = ["<s>", "The", " key", " of", " 7f", "$x$", " is", " 巴", ".", "\n", "\t", "Key", ":"]


def causal(n, seed=0):
    logits = np.where(np.tri(n) > 0, np.random.default_rng(seed).normal(size=(n, n)) * 2, -np.inf)
    weights = np.exp(logits)
    return weights / weights.sum(1, keepdims=True)


def test_attention_map():
    n, weights = len(PROMPT), causal(len(PROMPT))
    fig = plots.attention(PROMPT, weights, "L9.H6")
    ax = fig.axes[0]
    (mesh,) = (c for c in ax.collections if isinstance(c, QuadMesh))
    grid = mesh.get_array()
    assert grid.shape == (n, n) and (grid.mask == (np.tri(n) == 0)).all(), "the half above the diagonal is empty"
    np.testing.assert_allclose(grid[np.tri(n) > 0].data, weights[np.tri(n) > 0])
    rows, columns = ([t.get_text() for t in axis.get_ticklabels()] for axis in (ax.yaxis, ax.xaxis))
    assert rows == columns and rows[:6] == ["<s>", "The", "·key", "·of", "·7f", "$x$"]
    assert rows[7:11] == ["·\\u5df4", ".", "⏎", "⇥"]
    assert ax.get_ylim() == (n - 0.5, -0.5) and mesh.get_clim() == (0, 1.0)
    assert "L9.H6" in fig.get_suptitle() and "query" in ax.get_ylabel() and "key" in ax.get_xlabel()
    check(fig)


def test_attention_of_one_query_shades_the_prompt():
    weights = causal(len(PROMPT))
    fig = plots.attention(PROMPT, weights, "L9.H6", query=6)
    tokens = by_gid(fig, "token")
    written = "".join(PROMPT).replace("巴", "\\u5df4").replace("\n", "⏎").replace("\t", "⇥")
    assert "".join(t.get_text() for t in tokens) == written
    (boxes,) = by_gid(fig, "weights")
    assert len(boxes.get_paths()) == 7, "later tokens are out of sight"
    shades = colormaps["mako_r"](weights[6, :7] / theme.round_up(weights[6].max()))
    np.testing.assert_allclose(boxes.get_facecolor(), shades)
    inks = [t.get_color() for t in tokens]
    assert set(inks[7:]) == {GREY} and set(inks[:7]) <= {"black", "white"}
    assert len({t.get_position()[1] for t in tokens}) == 2, "a line break in the prompt breaks the line"
    best, said = int(weights[6].argmax()), texts(fig)
    assert f"(token {best}) {weights[6, best]:.2f}" in said and "L9.H6: what token 6 (␣is) attends to" in said
    check(fig)
    last, chosen = plots.attention(PROMPT, weights[-1], "L9.H6"), plots.attention(PROMPT, weights, "L9.H6", query=-1)
    assert "what token 12 (:) attends to" in last.get_suptitle() == chosen.get_suptitle()


def test_a_long_prompt_wraps_within_the_page():
    fig = plots.attention([" word", "ing", ".", " retrieval"] * 100, np.full(400, 1 / 400), "L17.H24", title="Long")
    check(fig)
    assert len(by_gid(fig, "token")) == 400 and fig.get_suptitle() == "Long" and fig.get_size_inches()[1] < 8
    places = [t.get_window_extent() for t in by_gid(fig, "token")]
    for _, line in itertools.groupby(places, key=lambda p: round((p.y0 + p.y1) / 2 / 10)):
        assert all(a.x1 <= b.x1 and a.x0 < b.x0 for a, b in itertools.pairwise(line)), "tokens run into each other"


def test_a_very_long_prompt_is_shown_in_excerpts():
    weights = np.zeros(4096)
    weights[[0, 1500, 1501, 4000]] = 0.2, 0.5, 0.1, 0.1
    weights[2000:2100] = 0.001
    fig = plots.attention([f" {i}" for i in range(4096)], weights, "L17.H24", query=4000)
    shown = [int(t.get_text()) for t in by_gid(fig, "token")]
    assert {0, 1500, 1501, 4000, 1495, 1505} <= {*shown} and len(shown) < 120
    assert "[2474 tokens: 0.10]" in texts(fig), "the figure says what is left out, with its weight"
    assert "[83 tokens]" in texts(fig)
    check(fig)


@pytest.mark.parametrize(
    ("tokens", "weights", "options", "message"),
    [
        (["a"] * 3, causal(4), {}, r"3 tokens and weights of shape \(4, 4\); give \[query, key\]"),
        (["a"] * 4, causal(4) * 3, {}, "the largest row sums to 3; give attention weights after the softmax"),
        (["a"] * 61, causal(61), {}, "61 tokens do not fit a map of up to 60; choose an attending token with query="),
    ],
)
def test_attention_refusals(tokens, weights, options, message):
    with pytest.raises(UserError, match=message):
        plots.attention(tokens, weights, "L0.H0", **options)


def test_prediction():
    tokens = [" Paris", "\n", " $x$", " 巴", ""]
    fig = plots.prediction(tokens, [0.6, 0.2, 0.1, 0.05, 0], [0.1, 0.3, 0.2, 0.05, 0], condition="L3", title="T")
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ['"␣Paris"', '"␣\\u5df4"', "(empty)", '"⏎"', '"␣$x$"']
    points = {line.get_label(): line.get_xdata().tolist() for line in ax.get_lines()}
    assert points == {"nothing removed": [0.6, 0.05, 0, 0.2, 0.1], "L3 removed": [0.1, 0.05, 0, 0.3, 0.2]}
    assert ax.get_ylim()[1] < ax.get_ylim()[0], "tokens that lose on top, the likeliest first"
    check(fig)
