"""Maps of heads, and attention of one head on one prompt as a map and as shaded text."""

import itertools

import made_results
import numpy as np
import pytest
from drawn import Case, by_gid, check, holds, points

from depthlens.analysis.result.concat import concat
from depthlens.analysis.result.results import Result
from depthlens.plots import heads
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


def changes(result):
    return result.summary["delta"].iloc[1:]


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


def cases():
    one, kv = sweep(), sweep(letter="KV", n_heads=N_KV, kept={(2, 1): 0.0})
    said = ("tiny, kv_retrieval: one head removed at a time, n = 40", CRITICAL_HEAD, "largest: L1.H2, L3.H0")
    said += ("change of accuracy from baseline", "baseline 0.90")
    yield Case(heads.head_map(one, top=2), 2, changes(one), [1, 3], {"top": 2}, said)
    hard = concat([one, sweep("hard", base=0.25)])
    values = [*changes(one), *[np.nan] * 24]
    yield Case(heads.head_map(hard, top=2), 4, values, [1, 3], {"hatch": 1, "top": 2}, cannot_judge=1)
    yield Case(heads.head_map(kv, top=1), 2, changes(kv), [2], words=("KV group", "L2.KV1"))
    yield Case(heads.head_map(concat([one, sweep(mode="@mean")])), 4, words=("removed", "mean"))
    yield Case(heads.head_map(sweep(layers=[1, 3])), 2, changes(sweep(layers=[1, 3])), words=("not measured",))
    gain = sweep(base=0.5, kept={(2, 3): 1.9})
    yield Case(heads.head_map(gain, top=2), 2, changes(gain), [], {"gain": 1, "top": 0}, ("significant gain",))
    values = np.full((N_LAYERS, N_HEADS), 0.01)
    values[2, 1] = 0.83
    said = ("copy-paste score", "the largest", "L2.H1")
    yield Case(heads.head_map(scores(values), top=1), 2, values, [], words=said)
    losses = scores(values, "loss on needle tokens", "nats", values > 0.5)
    yield Case(heads.head_map(losses), 2, values, [2], words=(CRITICAL_HEAD, "(nats)"))


def test_maps_draw_their_numbers():
    for case in cases():
        holds(case)


def mesh(fig, i=0):
    return by_gid(fig, "cells")[i]


def test_losses_are_red_and_gains_blue_whichever_way_the_metric_runs():
    error = sweep(info={"higher_is_better": False, "chance": None})
    flipped = Result(error.docs.assign(value=1 - error.docs["value"]), error.record)
    gain = sweep(base=0.5, kept={(2, 3): 1.9})
    for result, at, gid in ((sweep(), (1, 2), "shown"), (flipped, (1, 2), "shown"), (gain, (2, 3), "gain")):
        fig = heads.head_map(result)
        cells = mesh(fig)
        red, _, blue, _ = cells.cmap(cells.norm(cells.get_array()[at[::-1]]))
        assert (red > 2 * blue) if gid == "shown" else (blue > 2 * red)
        assert at in points(fig, gid)


@pytest.mark.parametrize("sizes", SIZES)
def test_three_sizes_of_model(sizes):
    top = 8
    of_both = [planted(sizes, k=top), planted(sizes, 1, loss=True, k=top)]
    fig = heads.head_map(of_both[0], others=of_both[1:], top=top)
    check(fig)
    assert fig.get_size_inches()[1] <= 10, "does not fit a page"
    assert points(fig, "shown") == sorted(of_both[1].top(top))
    for i, s in enumerate(of_both):
        assert mesh(fig, i).get_array().size == sizes[0] * sizes[1]
        ax = mesh(fig, i).axes
        names = ", ".join(f"L{layer}.H{head}" for layer, head in s.top(top))
        assert names in " ".join(ax.get_title("left").split())
        for labels in (ax.get_yticklabels(), ax.get_xticklabels()):
            boxes = [t.get_window_extent() for t in labels if t.get_text()]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2)), "numbers touch each other"


def test_scores_run_from_zero_and_losses_around_it_with_one_scale_a_unit():
    values = np.full((N_LAYERS, N_HEADS), 0.01)
    values[2, 1] = 0.83
    cells = mesh(heads.head_map(scores(values)))
    assert cells.get_clim() == (0, 0.83) and cells.cmap.name == "mako_r"
    for losses in (scores(values, "loss", "nats", values > 0.5), scores(values - 0.05, "contrast", "nats")):
        cells = mesh(heads.head_map(losses))
        low, high = cells.get_clim()
        assert low == -high and cells.cmap.name == "vlag"
    costs = {f"L{la}.H{h}": {(1, 2): 2.0, (4, 1): -1.0}.get((la, h), 0) for la, h in np.ndindex(N_LAYERS, N_HEADS)}
    sizes = {"n_layers": N_LAYERS, "n_heads": N_HEADS, "n_kv_heads": N_KV, "method": "attribution"}
    nats = made_results.nats(costs, n=N, noise=0.1, task="kv_retrieval", model="tiny", **sizes)
    many = concat([sweep(), sweep("other", kept={(0, 0): 0.9}), nats])
    fig = heads.head_map(many)
    first, second, third = (cells.get_clim() for cells in by_gid(fig, "cells"))
    assert first == second != third
    said = ("other, acc", "kv_retrieval, answer_logprob", "change of answer_logprob (nats, at most 1 a")
    holds(Case(fig, 6, words=said))
    assert len(by_gid(heads.head_map(many.select(metrics="acc")), "cells")) == 2
