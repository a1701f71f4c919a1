"""Lists of heads that an experiment is given: their check, how many of each are taken, and random lists beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

from depthlens import arguments
from depthlens.ablations import Head, heads_condition
from depthlens.analysis.results import Result
from depthlens.errors import UserError
from depthlens.metrics import ANSWER_LOGPROB
from depthlens.models.lens import Lens


def sizes(k: int | Sequence[int]) -> list[int]:
    """The numbers of heads that are taken: 1, 2, ... up to ``k``, or the numbers themselves, sorted.

    Raises:
        UserError: not a whole number from 1, or several.
    """
    k = arguments.plain(k)
    numbers = list(k) if isinstance(k, Sequence) and not isinstance(k, str) else [k]
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
        raise UserError(f"k {k!r}: give a whole number from 1, or several")
    return list(range(1, k + 1)) if isinstance(k, int) else sorted(set(numbers))


def checked(lens: Lens, lists: dict[str, Sequence[Head]], longest: int = 1) -> dict[str, list[Head]]:
    """Lists by name, each of at least ``longest`` heads that the model has, none of them twice.

    Raises:
        UserError: no list, one that is too short, or one with a head twice or one that the model does not have.
    """
    if not isinstance(lists, dict) or not lists:
        raise UserError(f"lists {lists!r}: give at least one list of heads by name, e.g. {{'found': scores.top(8)}}")
    found = {}
    for name, named in lists.items():
        heads = arguments.heads(f"list {name!r}", named)
        if not heads:
            raise UserError(f"list {name!r} is empty; name at least one head")
        if len(heads) < longest:
            raise UserError(f"list {name!r} has {len(heads)} heads; k goes up to {longest}")
        found[name] = heads
        heads_condition(heads).validate(lens.dims)
    return found


def same_layers(heads: Sequence[Head], n_heads: int, random: Random) -> list[Head]:
    """A random list matched to a list position by position: of the same layer, from all heads of that layer.

    The list itself is one of the possible draws. So where it does not matter which heads of a layer are named, the list
    and its draws are exchangeable, and the rank of the list among them is a test.
    """
    counts = Counter(layer for layer, _ in heads)
    order = {layer: random.sample(range(n_heads), count) for layer, count in sorted(counts.items())}
    return [(layer, order[layer].pop()) for layer, _ in heads]


def one_metric(result: Result, metric: str | None) -> Result:
    """The metric that is named, or each task's own first, and `answer_logprob` beside it where it was measured.

    Raises:
        UserError: a task does not have it.
    """
    if metric is None:
        return result.primary(with_logprob=True)
    selected = result.select(metrics=metric)
    if lost := set(result.docs["task"]) - set(selected.docs["task"]):
        raise UserError(f"task {min(lost)} has no metric {metric!r}; leave metric out, or the task")
    both = {*selected.docs["metric"], *({ANSWER_LOGPROB} & set(result.docs["metric"]))}
    return result.select(metrics=list(both))
