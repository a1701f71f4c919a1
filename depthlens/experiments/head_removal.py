"""The causal check of a list of heads: remove its first k together, against k random heads of the same layers.

A list is specific where its curve is below the curve of equally many random heads *of the same layers*; otherwise any
heads of these layers would do. For every list, ``n_draws`` rivals are drawn. Each rival is a random order of heads
that matches the list position by position (same layer), so that its first k are nested as those of the list are. Heads
of the list are drawn only where their layer has too few others; the record names these layers. All conditions of all
lists are scored in one sweep, on the same documents.

The band is the range of all draws at each k. The verdict is a rank test over the whole curve: the mean over k of the
list against that of its draws, one-sided, p = (1 + number of draws at or below it) / (1 + n_draws). With 19 draws or
fewer, p cannot be below 0.05, and the band is the plainer statement.

Two lists *dissociate doubly* on two tasks where each separates from its band on one of them and not on the other. A
list that does not separate may lack data; this does not prove that its heads do not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Unpack

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.ablations import Head, heads_condition
from depthlens.analysis import stats
from depthlens.analysis.removal_curve import RemovalCurve, mean_interval
from depthlens.analysis.results import Result
from depthlens.errors import UserError, unknown
from depthlens.experiments.options import EvalOptions, load_tasks, settled
from depthlens.experiments.sweep import condition_sweep
from depthlens.models.lens import Lens

MIN_DRAWS = 10
Lists = dict[str, list[Head]]


def removal_curve(
    lens: Lens,
    tasks: str | Sequence[str],
    lists: dict[str, Sequence[Head]],
    *,
    k: int | Sequence[int] = 8,
    n_draws: int = 20,
    metric: str | None = None,
    **options: Unpack[EvalOptions],
) -> RemovalCurve:
    """Score tasks as the first k heads of each list are removed together, against random heads of the same layers.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task or several.
        lists: Heads as (layer, head), most important first, by name; see `HeadScores.top`.
        k: Remove 1, 2, ... up to so many; or the numbers themselves.
        n_draws: Random rivals of each list; at least 10.
        metric: Which metric of the tasks, where they have several; None takes each task's first.
        options: `EvalOptions`; ``measure`` is ``task`` or ``answer_logprob``, and ``seed`` also that of the draws.

    Raises:
        UserError: a list that is empty, too short for k or names a head twice or one that the model does not have; too
            few draws; or anything that the sweep refuses.
    """
    arguments.loaded(lens)
    settings = settled(options)
    measure, seed = settings["measure"], settings["seed"]
    ks = _ks(k)
    arguments.whole("n_draws", n_draws, MIN_DRAWS, fix="; fewer make no band")
    if measure == "both":
        raise UserError("measure 'both': a curve has one measure; give 'task' or 'answer_logprob'")
    chosen = _checked(lens, lists, ks[-1])
    loaded = load_tasks(tasks, settings)
    for name, task in loaded.items():  # a wrong name is refused before the sweep
        if measure == "task" and metric and metric.split(",")[0] not in (known := task.higher_is_better()):
            raise unknown(f"metric of task {name}", metric, known)
    rivals: dict[str, list[list[Head]]] = {}
    for name, heads in chosen.items():
        random = Random(f"removal {seed} {name}")
        rivals[name] = [draw(heads, lens.dims.n_heads, random) for _ in range(n_draws)]
    every = [order[:n] for name in chosen for order in (chosen[name], *rivals[name]) for n in ks]
    conditions = list(dict.fromkeys(str(heads_condition(heads)) for heads in every))
    result = _one_metric(condition_sweep(lens, loaded, conditions, **options), metric)
    record = {
        **result.record,
        "k": ks,
        "n_draws": n_draws,
        "lists": {name: [list(head) for head in heads] for name, heads in chosen.items()},
        "draws": {name: [[list(head) for head in order] for order in orders] for name, orders in rivals.items()},
        "drawn_from_list": {name: _short(heads, lens.dims.n_heads) for name, heads in chosen.items()},
    }
    return _assemble(result, chosen, rivals, ks, record)


def _short(heads: Sequence[Head], n_heads: int) -> list[int]:
    """Layers of which a list has more than half of the heads, so that its rivals have some of them, too."""
    return sorted(layer for layer, n in Counter(layer for layer, _ in heads).items() if 2 * n > n_heads)


def draw(heads: Sequence[Head], n_heads: int, random: Random) -> list[Head]:
    """Random heads matched to a list position by position: the same layer, and not on the list if others suffice."""
    order: dict[int, list[int]] = {}
    for layer in dict.fromkeys(layer for layer, _ in heads):
        own = [head for la, head in heads if la == layer]
        others = [head for head in range(n_heads) if head not in own]
        pool = random.sample(others, len(others))
        if len(others) < len(own):  # too few: heads of the list make up for what is missing, at random places
            pool += random.sample(own, len(own) - len(others))
            random.shuffle(pool)
        order[layer] = pool[: len(own)]
    return [(layer, order[layer].pop()) for layer, _ in heads]


def _ks(k: int | Sequence[int]) -> list[int]:
    numbers = list(k) if isinstance(k, Sequence) and not isinstance(k, str) else [k]
    if not numbers or any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1 for n in numbers):
        raise UserError(f"k {k!r}: give a whole number from 1, or several")
    return list(range(1, int(k) + 1)) if isinstance(k, (int, np.integer)) else sorted({int(n) for n in numbers})


def _checked(lens: Lens, lists: dict[str, Sequence[Head]], longest: int) -> Lists:
    if not isinstance(lists, dict) or not lists:
        raise UserError(f"lists {lists!r}: give at least one list of heads by name, e.g. {{'found': scores.top(8)}}")
    checked: Lists = {}
    for name, named in lists.items():
        heads = arguments.heads(f"list {name!r}", named)
        if len(heads) < longest:
            raise UserError(f"list {name!r} has {len(heads)} heads; k goes up to {longest}")
        checked[name] = heads[:longest]
        heads_condition(checked[name]).validate(lens.dims)
    return checked


def _one_metric(result: Result, metric: str | None) -> Result:
    if metric is not None:
        selected = result.select(metrics=metric)
        if lost := set(result.docs["task"]) - set(selected.docs["task"]):
            raise UserError(f"task {min(lost)} has no metric {metric!r}; leave metric out, or the task")
        return selected
    first = result.baselines.drop_duplicates("task").set_index("task")["metric"]
    docs = result.docs[result.docs["metric"] == result.docs["task"].map(first)]
    return Result(docs, result.record, result.asked)


def _assemble(
    result: Result, lists: Lists, rivals: dict[str, list[list[Head]]], ks: list[int], record: dict
) -> RemovalCurve:
    points, band, tests = [], [], []
    for base in result.baselines.itertuples():
        docs = result.docs[result.docs["task"] == base.task]
        values = {c: g["value"].to_numpy() for c, g in docs.groupby("condition")}
        better = result.metric_info(base.task, base.metric)["higher_is_better"]
        binary = stats.is_binary(docs["value"])
        for name, heads in lists.items():
            curve = []
            for n in [0, *ks]:
                scores = values[str(heads_condition(heads[:n]))]
                curve.append(scores.mean())
                points.append((name, base.task, base.metric, n, scores.mean(), *mean_interval(scores, binary=binary)))
            draws = np.array(
                [[values[str(heads_condition(order[:n]))].mean() for n in [0, *ks]] for order in rivals[name]]
            )
            for i, n in enumerate([0, *ks]):
                drawn = draws[:, i]
                band.append((name, base.task, base.metric, n, drawn.min(), drawn.max(), drawn.mean(), len(drawn)))
            whole, random = float(np.mean(curve[1:])), draws[:, 1:].mean(1)
            worse = (random <= whole) if better else (random >= whole)
            p = (1 + int(worse.sum())) / (1 + len(random))
            row = (name, base.task, base.metric, better, whole, random.mean(), random.min(), random.max(), p)
            tests.append((*row, not worse.any(), bool(base.at_chance)))
    keys = ["list", "task", "metric"]
    tests_columns = ["higher_is_better", "value", "random", "low", "high", "p_value", "separates", "at_chance"]
    return RemovalCurve(
        pd.DataFrame(points, columns=[*keys, "k", "value", "ci_low", "ci_high"]),
        pd.DataFrame(band, columns=[*keys, "k", "low", "high", "mean", "n_draws"]),
        pd.DataFrame(tests, columns=[*keys, *tests_columns]),
        result,
        record,
    )
