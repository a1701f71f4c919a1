"""The causal check of a list of heads: remove its first k together, against k random heads of the same layers.

A list matters where its curve is below that of equally many random heads *of the same layers*; otherwise any heads of
these layers would do. For every list, ``n_draws`` rivals are drawn. Each matches the list position by position (same
layer), so that its first k are nested as those of the list are. It is drawn uniformly from *all* heads of these layers,
those of the list included, so that the list is exchangeable with its rivals where nothing distinguishes its heads. All
conditions of all lists are scored in one sweep, on the same documents.

The band is the range of all draws at each k. The verdict is a rank test over the whole curve: the mean over k of the
list against that of its draws, one-sided, p = (1 + number of draws at or below it) / (1 + n_draws), which is exact
(Phipson and Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39). With 19 draws or fewer, p cannot be below 0.05. Where the
layers have few heads, the list itself is often drawn; ``smallest_p`` of the tests says what p can then be expected.

The list must come from other documents than those of the curve, because a list that was chosen on them looks worse than
random for that alone; `depthlens.analysis.halves` gives two sets of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from random import Random
from typing import Unpack

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.ablations import Head, heads_condition
from depthlens.analysis import questions, stats
from depthlens.analysis.means import mean
from depthlens.analysis.removal_curve import RemovalCurve
from depthlens.analysis.results import Result
from depthlens.errors import unknown
from depthlens.experiments import lists_of_heads
from depthlens.experiments.options import EvalOptions, load_tasks, settled
from depthlens.experiments.sweep import condition_sweep
from depthlens.metrics import limits
from depthlens.models.lens import Lens, one_thread

MIN_DRAWS = 10
SUFFIXES = ("", "[1:]", "@mean")
Lists = dict[str, list[Head]]


@one_thread
def removal_curve(
    lens: Lens,
    tasks: str | Sequence[str],
    lists: dict[str, Sequence[Head]],
    *,
    k: int | Sequence[int] = 8,
    n_draws: int = 20,
    metric: str | None = None,
    suffix: str = "",
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
        suffix: How heads are removed, as it stands behind them in a condition: "" sets their z to zero, ``[1:]`` spares
            the first token, ``@mean`` puts the mean in its place (see `condition_sweep`).
        options: `EvalOptions`; ``measure="both"`` gives the task's metric and nats, and ``seed`` is also that of the
            draws.

    Raises:
        UserError: a list that is empty, too short for k or names a head twice or one that the model does not have; too
            few draws; or anything that the sweep refuses.
    """
    arguments.loaded(lens)
    settings = settled(options)
    measure, seed = settings["measure"], settings["seed"]
    ks = lists_of_heads.sizes(k)
    n_draws = arguments.whole("n_draws", n_draws, MIN_DRAWS, fix="; fewer make no band")
    found = lists_of_heads.checked(lens, lists, ks[-1])
    chosen = {name: heads[: ks[-1]] for name, heads in found.items()}
    if suffix not in SUFFIXES:
        raise unknown("suffix", suffix, SUFFIXES)
    loaded = load_tasks(tasks, settings)
    for name, task in loaded.items():  # a wrong name is refused before the sweep
        if measure in ("task", "both") and metric and metric.split(",")[0] not in (known := task.higher_is_better()):
            raise unknown(f"metric of task {name}", metric, known)
    rivals: dict[str, list[list[Head]]] = {}
    for name, heads in chosen.items():
        random = Random(f"removal {seed} {name}")
        rivals[name] = [lists_of_heads.same_layers(heads, lens.dims.n_heads, random) for _ in range(n_draws)]
    every = [order[:n] for name in chosen for order in (chosen[name], *rivals[name]) for n in ks]
    conditions = list(dict.fromkeys(str(heads_condition(heads, suffix)) for heads in every))
    result = lists_of_heads.one_metric(condition_sweep(lens, loaded, conditions, **options), metric)
    record = {
        **result.record,
        "k": ks,
        "n_draws": n_draws,
        "suffix": suffix,
        "lists": {name: [list(head) for head in heads] for name, heads in chosen.items()},
        "draws": {name: [[list(head) for head in order] for order in orders] for name, orders in rivals.items()},
        "n_lists": {name: n_lists(heads, ks, lens.dims.n_heads) for name, heads in chosen.items()},
    }
    return _assemble(result, chosen, rivals, ks, record)


def n_lists(heads: Sequence[Head], ks: Sequence[int], n_heads: int) -> int:
    """How many different curves can be drawn for a list: in each layer, the ways to choose heads for each step of k."""
    ways = 1
    for layer in {layer for layer, _ in heads}:
        left = n_heads
        for start, end in zip([0, *ks[:-1]], ks, strict=True):
            size = sum(la == layer for la, _ in heads[start:end])
            ways, left = ways * comb(left, size), left - size
    return ways


def _assemble(
    result: Result, lists: Lists, rivals: dict[str, list[list[Head]]], ks: list[int], record: dict
) -> RemovalCurve:
    def named(heads: list[Head]) -> str:
        return str(heads_condition(heads, record["suffix"])) if heads else stats.BASELINE

    points, band, tests = [], [], []
    for base in result.baselines.itertuples():
        scores = result.scores(base.task, base.metric)
        values, units = scores.mean(), questions.units(result, base.task).loc[scores.index]
        better = result.metric_info(base.task, base.metric)["higher_is_better"]
        low, high = limits(base.metric, scores.min(axis=None), scores.max(axis=None))
        bounded = (low, high) == (0, 1)
        for name, heads in lists.items():
            key = name, base.task, base.metric
            curve = []
            for n in [0, *ks]:
                found = mean(scores[named(heads[:n])], units, bounded=bounded)
                curve.append(found.value)
                points.append((*key, n, found.value, *np.clip(found.interval(), low, high)))
            draws = np.array([[values[named(order[:n])] for n in [0, *ks]] for order in rivals[name]])
            for i, n in enumerate([0, *ks]):
                drawn = draws[:, i]
                band.append((*key, n, drawn.min(), drawn.max(), drawn.mean(), len(drawn)))
            whole, random = float(np.mean(curve[1:])), draws[:, 1:].mean(1)
            # the list itself may be drawn; its score then differs by rounding at most
            slack = 1e-9 * max(1.0, float(np.abs(random).max()))
            worse, cheaper = random <= whole + slack, random >= whole - slack
            worse, cheaper = (worse, cheaper) if better else (cheaper, worse)
            p, p_cheaper = ((1 + int(drawn.sum())) / (1 + len(random)) for drawn in (worse, cheaper))
            smallest = (1 + len(random) / record["n_lists"][name]) / (1 + len(random))
            numbers = whole, random.mean(), random.min(), random.max(), p, p_cheaper, smallest
            tests.append((*key, better, *numbers, p < stats.ALPHA, bool(base.at_chance)))
    keys = ["list", "task", "metric"]
    numbers_columns = ["value", "random", "low", "high", "p_value", "p_cheaper", "smallest_p"]
    return RemovalCurve(
        pd.DataFrame(points, columns=[*keys, "k", "value", "ci_low", "ci_high"]),
        pd.DataFrame(band, columns=[*keys, "k", "low", "high", "mean", "n_draws"]),
        pd.DataFrame(tests, columns=[*keys, "higher_is_better", *numbers_columns, "separates", "at_chance"]),
        result,
        record,
    )
