"""The causal check of a list of heads: remove its first k together, or keep them alone, and score what is left.

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

**Sufficiency** asks whether they are enough: only the first k are kept, all others are at their mean. Faithfulness of k
kept heads is the share of what heads do for the score that is left,

    f(k) = (m(kept) - m(none)) / (m(all) - m(none)),

with m(none) the score where every head is at its mean (`@mean`), and m(all) that of the whole model. f is 0 where none
is kept and 1 where all are. Its areas over the share of heads kept are **CPR**, the area under f, high where few heads
restore the score, and **CMD**, the area between f and 1, low where they restore it and not more. CPR is ranked among
those of the draws. Source: Mueller et al. 2025, MIB: A Mechanistic Interpretability Benchmark, arXiv 2504.13151. Theirs
keeps edges or nodes and MLPs among them; here MLPs stay as they are, and only heads are kept or put at their mean.

It misleads where the score without any head is not proven to be lower than the whole model's, because there is nothing
to restore: such tasks are not judged. A list may be sufficient only together with MLPs that compensate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb
from random import Random
from typing import Any, Unpack

from depthlens import arguments
from depthlens.ablations import Ablation, AnyHead, Condition, Dims, Head, heads_condition, heads_of
from depthlens.analysis.heads import curves
from depthlens.analysis.result.results import Result
from depthlens.arguments import EvalOptions
from depthlens.errors import UserError
from depthlens.experiments.condition_runs import settled
from depthlens.experiments.sweep import condition_sweep
from depthlens.models.lens import Lens, one_thread

MIN_DRAWS = 10
SUFFIXES = ("", "[1:]", "@mean")
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of all heads, as in MIB from its fourth on: heads are fewer than edges


@one_thread
def removal_curve(
    lens: Lens,
    tasks: str | Sequence[str],
    lists: dict[str, Sequence[AnyHead]],
    *,
    k: int | Sequence[int] = 8,
    n_draws: int = 20,
    suffix: str = "",
    **options: Unpack[EvalOptions],
) -> curves.RemovalCurve:
    """Score tasks as the first k heads of each list are removed together, against random heads of the same layers.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task or several.
        lists: Heads, most important first, by name; see `HeadScores.top`.
        k: Remove 1, 2, ... up to so many; or the numbers themselves.
        n_draws: Random rivals of each list; at least 10.
        suffix: How heads are removed, as it stands behind them in a condition: "" sets their z to zero, ``[1:]`` spares
            the first token, ``@mean`` puts the mean in its place (see `condition_sweep`).
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
    arguments.one_of(*SUFFIXES)("suffix", suffix)
    return curves.removal(*_swept(lens, tasks, lists, options, k=k, n_draws=n_draws, suffix=suffix))


@one_thread
def sufficiency_curve(
    lens: Lens,
    tasks: str | Sequence[str],
    lists: dict[str, Sequence[AnyHead]],
    *,
    k: int | Sequence[int] | None = None,
    n_draws: int = 20,
    **options: Unpack[EvalOptions],
) -> curves.SufficiencyCurve:
    """Score tasks with only the first k heads of each list, all others at their mean, against random lists.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task or several.
        lists: Heads, most important first, by name; rank many, e.g. by ``HeadScores.top``.
        k: Keep 1, 2, ... up to so many; or the numbers themselves; None: 1, 2, 5, 10, 20 and 50% of all heads, as far
            as the shortest list goes. Areas are exact only as far as these numbers reach: between the last one and all
            heads a straight line is assumed.
        n_draws: Random lists beside each list; at least 10.
        options: `EvalOptions`; ``measure`` is ``task`` or ``answer_logprob``, and ``seed`` also that of the draws.

    Raises:
        UserError: a list that is empty, too short for k or names a head twice or one that the model does not have; too
            few draws; or anything that the sweep refuses.

    Example:
        >>> kept = dl.sufficiency_curve(lens, "organism_one_hop", {"copying": copying.top(2)}, k=2, n_draws=10, limit=4)
        >>> kept.points["k"].tolist()
        [0, 1, 2, 24]
    """
    if options.get("measure") == "both":
        raise UserError("measure 'both': a curve has one measure; give 'task' or 'answer_logprob'")
    swept = _swept(lens, tasks, lists, options, k=k, n_draws=n_draws, suffix="@mean", keep=True)
    return curves.sufficiency(*swept, none=str(keep_only([], lens.dims)))


def _swept(
    lens: Lens,
    tasks: str | Sequence[str],
    lists: dict[str, Sequence[AnyHead]],
    options: EvalOptions,
    *,
    k: int | Sequence[int] | None,
    n_draws: int,
    suffix: str,
    keep: bool = False,
) -> tuple[Result, dict[str, list[list[str]]], dict[str, Any]]:
    """The sweep of lists and their random lists; conditions by list, for it and then each draw, by k; the record."""
    settings, dims = settled(options), lens.dims
    n_draws = arguments.whole("n_draws", n_draws, MIN_DRAWS, fix="; fewer make no band")
    n_all = dims.n_layers * dims.n_heads
    ks, chosen = _taken(lens, k, lists, n_all)
    draws: dict[str, list[list[Head]]] = {}
    for name, heads in chosen.items():
        random = Random(f"{'sufficiency' if keep else 'removal'} {settings['seed']} {name}")
        draws[name] = [same_layers(heads, dims.n_heads, random) for _ in range(n_draws)]

    def named(heads: list[Head]) -> str:
        return str(keep_only(heads, dims) if keep else heads_condition(heads, suffix))

    conditions = {
        name: [[named(order[:n]) for n in ks] for order in (heads, *draws[name])] for name, heads in chosen.items()
    }
    every = [c for orders in conditions.values() for order in orders for c in order]
    every = [named([]), *every] if keep else every
    result = condition_sweep(lens, tasks, list(dict.fromkeys(every)), **options).primary(with_logprob=True)
    counts = {name: n_lists(heads, ks, dims.n_heads) for name, heads in chosen.items()}
    about = {"k": ks, "n_draws": n_draws, "lists": chosen, "draws": draws, "n_heads": n_all, "n_lists": counts}
    return result, conditions, result.record | about | {"suffix": suffix}


def _taken(
    lens: Lens, k: int | Sequence[int] | None, given: dict[str, Sequence[AnyHead]], n_all: int
) -> tuple[list[int], dict[str, list[Head]]]:
    """How many heads are taken, and these of each list: 1 to ``k``, or the numbers themselves; None: `SHARES`.

    Raises:
        UserError: no list, one with a head twice or one that the model does not have, or sizes that are no whole
            numbers from 1 or more than a list has.
    """
    if not isinstance(given, dict) or not given:
        raise UserError(f"lists {given!r}: give at least one list of heads by name, e.g. {{'found': scores.top(8)}}")
    lists = {name: heads_of(f"list {name!r}", heads) for name, heads in given.items()}
    for heads in lists.values():
        heads_condition(heads).validate(lens.dims)
    name = min(lists, key=lambda name: len(lists[name]))
    shortest = len(lists[name])
    if k is None:
        ks = sorted({min(max(1, round(share * n_all)), n_all - 1, shortest) for share in SHARES})
    else:
        sizes: Any = arguments.plain(k)
        several = isinstance(sizes, list | tuple) and len(sizes) > 0
        ks = sorted({arguments.whole("k", n, 1) for n in (sizes if several else [sizes])})
        ks = ks if several else list(range(1, ks[0] + 1))
    if ks[-1] > shortest:
        raise UserError(f"list {name!r} has {shortest} heads; k goes up to {ks[-1]}")
    return ks, {name: heads[: ks[-1]] for name, heads in lists.items()}


def keep_only(kept: Sequence[tuple[int, int]], dims: Dims) -> Condition:
    """The condition under which every head but those ``kept`` is at its mean.

    A layer without any of them is one ablation of its attention, since the output projection is linear and so the mean
    of what attention adds is the projected mean of z; a KV group likewise.
    """
    others: list[Ablation] = []
    for layer in range(dims.n_layers):
        own = {head for at, head in kept if at == layer}
        if not own:
            others.append(Ablation(layer, "attn", mode="mean"))
            continue
        for group in range(dims.n_kv_heads):
            heads = dims.query_heads(group)
            if own.isdisjoint(heads) and len(heads) > 1:
                others.append(Ablation(layer, "kv", group, "mean"))
            else:
                others += [Ablation(layer, "head", head, "mean") for head in heads if head not in own]
    return Condition(tuple(others))


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
