"""The causal check of a list of heads: remove its first k together, and score what is left.

**Random lists.** A list matters where its curve differs from that of equally many random heads *of the same layers*;
otherwise any heads of these layers would do. For every list, ``n_draws`` rivals are drawn. Each matches the list
position by position (same layer), so that its first k are nested as those of the list are. It is drawn uniformly from
*all* heads of these layers, those of the list included, so that the list is exchangeable with its rivals where nothing
distinguishes its heads. All conditions of all lists are scored in one sweep, on the same documents.

The list must come from other documents than those of the curve, because a list that was chosen on them looks worse than
random for that alone; `depthlens.analysis.layers.removal.halves` gives two sets of documents.

**Removal** asks whether heads are necessary. The band is the range of all draws at each k. The verdict is a rank test
over the whole curve: the mean over k of the list against that of its draws, one-sided, p = (1 + number of draws at or
below it) / (1 + n_draws), which is exact (Phipson and Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39). With 19 draws or
fewer, p cannot be below 0.05. Where the layers have few heads, the list itself is often drawn; ``smallest_p`` of the
tests says what p can then be expected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb
from random import Random
from typing import Any, Unpack

from depthlens import arguments
from depthlens.ablations import AnyHead, Head, heads_condition, heads_of
from depthlens.analysis.heads import curves
from depthlens.arguments import EvalOptions
from depthlens.errors import UserError
from depthlens.experiments.condition_runs import settled
from depthlens.experiments.sweep import condition_sweep
from depthlens.models.lens import Lens, one_thread

MIN_DRAWS = 10


@one_thread
def removal_curve(
    lens: Lens,
    tasks: str | Sequence[str],
    lists: dict[str, Sequence[AnyHead]],
    *,
    k: int | Sequence[int] = 8,
    n_draws: int = 20,
    **options: Unpack[EvalOptions],
) -> curves.RemovalCurve:
    """Score tasks as the first k heads of each list are removed together, against random heads of the same layers.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task or several.
        lists: Heads, most important first, by name; see `HeadScores.top`.
        k: Remove 1, 2, ... up to so many; or the numbers themselves.
        n_draws: Random rivals of each list; at least 10.
        options: `EvalOptions`; ``measure="both"`` gives the metric that stands for a task and nats, and ``seed`` is
            also that of the draws.

    Raises:
        UserError: a list that is empty, too short for k or names a head twice or one that the model does not have; too
            few draws; or anything that the sweep refuses.

    Example:
        >>> curve = dl.removal_curve(lens, "organism_one_hop", {"copying": copying.top(2)}, k=2, n_draws=10, limit=4)
        >>> curve.points["k"].tolist()
        [0, 1, 2]
    """
    settings, dims = settled(options), lens.dims
    n_draws = arguments.whole("n_draws", n_draws, MIN_DRAWS, fix="; fewer make no band")
    ks, chosen = _taken(lens, k, lists)
    draws: dict[str, list[list[Head]]] = {}
    for name, heads in chosen.items():
        random = Random(f"removal {settings['seed']} {name}")
        draws[name] = [same_layers(heads, dims.n_heads, random) for _ in range(n_draws)]
    conditions = {
        name: [[str(heads_condition(order[:n])) for n in ks] for order in (heads, *draws[name])]
        for name, heads in chosen.items()
    }
    every = dict.fromkeys(c for orders in conditions.values() for order in orders for c in order)
    result = condition_sweep(lens, tasks, list(every), **options).primary(with_logprob=True)
    counts = {name: n_lists(heads, ks, dims.n_heads) for name, heads in chosen.items()}
    about = {"k": ks, "n_draws": n_draws, "lists": chosen, "draws": draws, "n_lists": counts}
    return curves.removal(result, conditions, result.record | about)


def _taken(
    lens: Lens, k: int | Sequence[int], given: dict[str, Sequence[AnyHead]]
) -> tuple[list[int], dict[str, list[Head]]]:
    """How many heads are taken, and these of each list: 1 to ``k``, or the numbers themselves.

    Raises:
        UserError: no list, one with a head twice or one that the model does not have, or sizes that are no whole
            numbers from 1 or more than a list has.
    """
    if not isinstance(given, dict) or not given:
        raise UserError(f"lists {given!r}: give at least one list of heads by name, e.g. {{'found': scores.top(8)}}")
    lists = {name: heads_of(f"list {name!r}", heads) for name, heads in given.items()}
    for heads in lists.values():
        heads_condition(heads).validate(lens.dims)
    sizes: Any = arguments.plain(k)
    several = isinstance(sizes, list | tuple) and len(sizes) > 0
    ks = sorted({arguments.whole("k", n, 1) for n in (sizes if several else [sizes])})
    ks = ks if several else list(range(1, ks[0] + 1))
    name = min(lists, key=lambda name: len(lists[name]))
    if ks[-1] > len(lists[name]):
        raise UserError(f"list {name!r} has {len(lists[name])} heads; k goes up to {ks[-1]}")
    return ks, {name: heads[: ks[-1]] for name, heads in lists.items()}


def same_layers(heads: Sequence[tuple[int, int]], n_heads: int, random: Random) -> list[Head]:
    """A random list matched to a list position by position: of the same layer, from all heads of that layer.

    The list itself is one of the possible draws. So where it does not matter which heads of a layer are named, the list
    and its draws are exchangeable, and the rank of the list among them is a test.
    """
    counts = Counter(layer for layer, _ in heads)
    order = {layer: random.sample(range(n_heads), count) for layer, count in sorted(counts.items())}
    return [Head(layer, order[layer].pop()) for layer, _ in heads]


def n_lists(heads: Sequence[Head], ks: Sequence[int], n_heads: int) -> int:
    """How many different curves can be drawn for a list: in each layer, the ways to choose heads for each step of k."""
    ways = 1
    for layer in {layer for layer, _ in heads}:
        left = n_heads
        for start, end in zip([0, *ks[:-1]], ks, strict=True):
            size = sum(la == layer for la, _ in heads[start:end])
            ways, left = ways * comb(left, size), left - size
    return ways
