"""The causal check of a list of heads: remove its first k together, against k random heads of the same layers.

A list says something where its curve lies below what removing equally many random heads *of the same layers* does:
otherwise any heads there would have done. For every list, ``n_draws`` rivals are drawn, each a random order of heads
matched to the list position by position (same layer), so that the rival's first k are nested as the list's are. Heads
of the list itself are not drawn where its layer has enough others; where it has not, they are, and the record says in
which layers. All conditions of all lists are scored in one sweep, on the same documents.

The band is the range of all draws at each k. The verdict is a rank test over the whole curve: the mean over k of the
list against that of its draws, one-sided, p = (1 + number of draws at or below it) / (1 + n_draws). So with 19 draws or
fewer p cannot fall below 0.05, and the band is the plainer statement.

Two lists *dissociate doubly* on two tasks where each separates from its band on one of them and not on the other. Not
separating may be lack of data; it is no proof that the heads do not matter.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from random import Random
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as sps

from depthlens import arguments
from depthlens.analysis import stats
from depthlens.analysis.head_scores import Head
from depthlens.analysis.results import Result
from depthlens.errors import UserError, unknown
from depthlens.experiments.head_losses import condition
from depthlens.experiments.sweep import condition_sweep
from depthlens.tasks import harness

MIN_DRAWS = 10
Lists = dict[str, list[Head]]


@dataclass(frozen=True, eq=False, repr=False)
class RemovalCurve:
    """Scores of tasks as the first k heads of lists are removed, and as random heads are.

    Attributes:
        points: list, task, metric, k, value, ci_low, ci_high (95% interval of the value). k = 0: nothing removed.
        band: list, task, metric, k, low, high (range of all draws), mean, n_draws.
        tests: list, task, metric, value, random (means over k > 0), low, high (range over draws), p_value, separates
            (worse than every draw), at_chance.
        result: Every document under every condition.
        record: Lists, draws and settings.
    """

    points: pd.DataFrame
    band: pd.DataFrame
    tests: pd.DataFrame
    result: Result
    record: dict

    def __repr__(self) -> str:
        return f"{self._head()}\n{self._shown().to_string(index=False)}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self._head())}</p>{self._shown().to_html(index=False, border=0)}"

    def _head(self) -> str:
        lists, tasks = (", ".join(dict.fromkeys(self.tests[column])) for column in ("list", "task"))
        ks, draws = sorted(set(self.points["k"]) - {0}), int(self.band["n_draws"].max())
        size = f"{ks[0]} to {ks[-1]} heads" if len(ks) > 1 else f"{ks[0]} head{'s' * (ks[0] > 1)}"
        return f"RemovalCurve of {lists} on {tasks}: {size} removed together, against {draws} random lists each"

    def _shown(self) -> pd.DataFrame:
        """What the lists cost against random heads, a row a list and task; `verdict` says it in words."""
        columns = ["list", "task", "metric", "value", "random", "low", "high", "p_value", "separates", "at_chance"]
        return self.tests[columns].round({"value": 3, "random": 3, "low": 3, "high": 3, "p_value": 3})

    def separations(self) -> list[str]:
        """Whether each list separates from its random heads on each task: one sentence each."""
        return [self._sentence(row) for row in self.tests.itertuples()]

    def dissociations(self) -> list[str]:
        """Whether two lists dissociate doubly between two tasks: one sentence for each pair of both."""
        lines = []
        judged = self.tests[~self.tests["at_chance"]]
        separates = {(r.list, r.task): r.separates for r in judged.itertuples()}
        for one, other in combinations(dict.fromkeys(judged["list"]), 2):
            for task, rival in combinations(dict.fromkeys(judged["task"]), 2):
                found = [separates[heads, t] for heads in (one, other) for t in (task, rival)]
                if found in ([True, False, False, True], [False, True, True, False]):
                    lines.append(f"Double dissociation of {one} and {other} between {task} and {rival}.")
                else:
                    lines.append(f"No double dissociation of {one} and {other} between {task} and {rival}.")
        return lines

    def verdict(self) -> str:
        """`separations` and `dissociations`, a line each."""
        return "\n".join(self.separations() + self.dissociations())

    @cached_property
    def excess(self) -> pd.DataFrame:
        """How much more removing a list costs than removing random heads of the same layers, mean over k > 0.

        Per document, the mean over draws minus the list's own score (the other way round where lower is better), so
        that a list that costs more is above 0. The 95% interval is over documents, with the draws as they are.

        Returns:
            list, task, metric, excess, ci_low, ci_high, n (documents), at_chance.
        """
        rows = []
        for test in self.tests.itertuples():
            values = self.result.select(task=test.task, metric=test.metric).docs.pivot(
                index="doc_id", columns="condition", values="value"
            )
            # a record went through JSON, which knows no tuples
            lists = [self.record["lists"][test.list], *self.record["draws"][test.list]]
            names = [[str(condition([tuple(h) for h in heads[:k]])) for k in self.record["k"]] for heads in lists]
            own, drawn = names[0], [name for order in names[1:] for name in order]
            gap = (values[drawn].mean(axis=1) - values[own].mean(axis=1)).to_numpy()
            gap = gap if test.higher_is_better else -gap
            low, high = _interval(gap, False)
            rows.append((test.list, test.task, test.metric, gap.mean(), low, high, len(gap), test.at_chance))
        columns = ["list", "task", "metric", "excess", "ci_low", "ci_high", "n", "at_chance"]
        return pd.DataFrame(rows, columns=columns)

    def specificity(self, task: str) -> list[str]:
        """One sentence a list: what it costs beyond random heads on ``task`` and on the other tasks.

        A list is called specific to a task where it separates from its random heads there and on no other task that can
        be judged.

        Raises:
            UserError: the curve has no such task, or no other.
        """
        tasks = list(dict.fromkeys(self.tests["task"]))
        if task not in tasks:
            raise unknown("task", task, tasks)
        if len(tasks) < 2:
            raise UserError(f"the curve has the task {task} alone; specificity needs another to compare with")
        lines = []
        for name in dict.fromkeys(self.tests["list"]):
            costs = self.excess[self.excess["list"] == name].set_index("task")
            found = self.tests[self.tests["list"] == name].set_index("task")
            said = ", ".join(
                f"{row.excess:.2g} [{row.ci_low:.2g}, {row.ci_high:.2g}] on {row.Index}"
                for row in costs.loc[[task, *(t for t in tasks if t != task)]].itertuples()
            )
            others = found.drop(index=task)
            if found.loc[task, "at_chance"] or others["at_chance"].all():
                what = "at chance, so that its specificity cannot be judged"
            elif not found.loc[task, "separates"]:
                what = f"no more than random heads there, so not specific to {task}"
            else:
                more = [t for t, row in others.iterrows() if row["separates"] and not row["at_chance"]]
                what = f"more than random heads on {', '.join(more)}, too" if more else f"specific to {task}"
            lines.append(f"{name} costs, beyond random heads of the same layers, {said}: {what}.")
        return lines

    def _sentence(self, row: Any) -> str:
        where = f"{row.list} on {row.task} ({row.metric})"
        if row.at_chance:
            return f"{where}: the whole model is at chance, cannot judge."
        ks = sorted(set(self.points["k"]) - {0})
        span = f"k = {ks[0]}" if len(ks) == 1 else f"mean over k = {', '.join(map(str, ks))}"
        numbers = f"{span}: {row.value:.3g} against {row.random:.3g} [{row.low:.3g}, {row.high:.3g}]"
        tail = f"of {self.record['n_draws']} draws from the same layers, p = {row.p_value:.2g}"
        if not row.separates:
            return f"{where}: does not separate from random heads; {numbers} {tail}."
        outside = self._outside(row)
        return f"{where}: separates from random heads; {numbers} {tail}; outside the band at k = {outside}."

    def _outside(self, row: Any) -> str:
        """The k at which a list is worse than every draw."""
        key = {"list": row.list, "task": row.task}
        points, band = (
            table[(table[list(key)] == pd.Series(key)).all(axis=1)].set_index("k") for table in (self.points, self.band)
        )
        sign = -1 if row.higher_is_better else 1
        edge = band["low"] if row.higher_is_better else band["high"]
        return ", ".join(str(k) for k in points.index if sign * (points["value"][k] - edge[k]) > 0) or "no single k"


def removal_curve(
    lens: Any,
    task: str | Sequence[str],
    lists: dict[str, Sequence[Head]],
    *,
    k: int | Sequence[int] = 8,
    n_draws: int = 20,
    measure: str = "task",
    metric: str | None = None,
    seed: int = 0,
    **options: Any,
) -> RemovalCurve:
    """Score tasks as the first k heads of each list are removed together, against random heads of the same layers.

    Args:
        lens: A loaded model.
        task: One lm-eval task or several.
        lists: Heads as (layer, head), most important first, by name; see `HeadScores.top`.
        k: Remove 1, 2, ... up to so many; or the numbers themselves.
        n_draws: Random rivals of each list; at least 10.
        measure: ``task`` (the task's own metric) or ``answer_logprob``; see `depthlens.layer_sweep`.
        metric: Which metric of the tasks, where they have several; None takes each task's first.
        seed: Of the draws, and of the choice of examples.
        options: Passed on to `depthlens.condition_sweep`: limit, num_fewshot, batch_tokens, progress and so on.

    Raises:
        UserError: a list that is empty, too short for k or names a head twice or one that the model does not have; too
            few draws; or anything that the sweep refuses.
    """
    arguments.loaded(lens)
    arguments.check(seed=seed, measure=measure, limit=options.get("limit"), include_path=options.get("include_path"))
    ks = _ks(k)
    arguments.whole("n_draws", n_draws, MIN_DRAWS, fix="; fewer make no band")
    if measure == "both":
        raise UserError("measure 'both': a curve has one measure; give 'task' or 'answer_logprob'")
    chosen = _checked(lens, lists, ks[-1])
    names = arguments.names("task", task, "kv_retrieval_4")
    where = {key: options.get(key) for key in ("include_path", "num_fewshot", "limit")}
    tasks = harness.load_tasks(names, seed=seed, **where)
    for name, loaded in tasks.items():  # a wrong name should not be told after the sweep
        if measure == "task" and metric and metric.split(",")[0] not in (known := loaded.higher_is_better()):
            raise unknown(f"metric of task {name}", metric, known)
    rivals: dict[str, list[list[Head]]] = {}
    short: dict[str, list[int]] = {}
    for name, heads in chosen.items():
        random = Random(f"removal {seed} {name}")
        rivals[name] = [draw(heads, lens.dims.n_heads, random) for _ in range(n_draws)]
        short[name] = sorted(la for la, n in Counter(la for la, _ in heads).items() if 2 * n > lens.dims.n_heads)
    every = [order[:n] for name in chosen for order in (chosen[name], *rivals[name]) for n in ks]
    conditions = list(dict.fromkeys(str(condition(heads)) for heads in every))
    result = condition_sweep(lens, tasks, conditions, measure=measure, seed=seed, **options)
    result = _one_metric(result, metric)
    record = {
        **result.record,
        "k": ks,
        "n_draws": n_draws,
        "lists": {n: [list(h) for h in v] for n, v in chosen.items()},
    }
    record |= {
        "draws": {n: [[list(h) for h in order] for order in v] for n, v in rivals.items()},
        "drawn_from_list": short,
    }
    return _assemble(result, chosen, rivals, ks, record)


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


@dataclass(frozen=True)
class Overlap:
    """How much two lists of heads have in common.

    Attributes:
        n: Heads on both.
        expected: How many two random lists of these lengths have in common on average.
        p_value: Probability that two random lists have at least ``n`` in common (hypergeometric).
        jaccard: Heads on both, as a share of heads on either.
        heads: The common ones.
    """

    n: int
    expected: float
    p_value: float
    jaccard: float
    heads: tuple[Head, ...]

    def __str__(self) -> str:
        more = "more than" if self.p_value < stats.ALPHA else "no more than"
        return (
            f"{self.n} heads in common, {more} chance explains ({self.expected:.2g} expected, p = {self.p_value:.2g})"
        )


def overlap(one: Sequence[Head], other: Sequence[Head], n_heads_in_all: int) -> Overlap:
    """Compare two lists of heads of one model.

    Chance here means any heads of the model. Two lists that only prefer the same layers overlap more than that.

    Args:
        one: Heads as (layer, head).
        other: Heads as (layer, head).
        n_heads_in_all: n_layers x n_heads of the model.

    Raises:
        UserError: an empty list, a head twice, or more heads than there are.
    """
    sets = [set(arguments.heads("list", heads)) for heads in (one, other)]
    for heads, unique in zip((one, other), sets, strict=True):
        if not heads or len(unique) < len(heads) or len(unique) > n_heads_in_all:
            fault = f"a list of {len(heads)} heads, {len(unique)} of them different, of {n_heads_in_all}"
            raise UserError(f"{fault}; give at least one head, each once")
    common, a, b = sets[0] & sets[1], len(sets[0]), len(sets[1])
    p = float(sps.hypergeom.sf(len(common) - 1, n_heads_in_all, a, b))
    return Overlap(len(common), a * b / n_heads_in_all, p, len(common) / len(sets[0] | sets[1]), tuple(sorted(common)))


def _ks(k: int | Sequence[int]) -> list[int]:
    given = list(k) if isinstance(k, Sequence) and not isinstance(k, str) else [k]
    if not given or any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1 for n in given):
        raise UserError(f"k {k!r}: give a whole number from 1, or several")
    return list(range(1, int(k) + 1)) if isinstance(k, (int, np.integer)) else sorted({int(n) for n in given})


def _checked(lens: Any, lists: dict[str, Sequence[Head]], longest: int) -> Lists:
    if not isinstance(lists, dict) or not lists:
        raise UserError(f"lists {lists!r}: give at least one list of heads by name, e.g. {{'found': scores.top(8)}}")
    checked: Lists = {}
    for name, given in lists.items():
        heads = arguments.heads(f"list {name!r}", given)
        if len(heads) < longest:
            raise UserError(f"list {name!r} has {len(heads)} heads; k goes up to {longest}")
        checked[name] = heads[:longest]
        condition(checked[name]).validate(lens.dims)
    return checked


def _one_metric(result: Result, metric: str | None) -> Result:
    if metric is not None:
        found = result.select(metric=metric)
        if lost := set(result.docs["task"]) - set(found.docs["task"]):
            raise UserError(f"task {min(lost)} has no metric {metric!r}; leave metric out, or the task")
        return found
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
                found = values[str(condition(heads[:n]))]
                curve.append(found.mean())
                points.append((name, base.task, base.metric, n, found.mean(), *_interval(found, binary)))
            draws = np.array([[values[str(condition(order[:n]))].mean() for n in [0, *ks]] for order in rivals[name]])
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


def _interval(values: np.ndarray, binary: bool) -> tuple[float, float]:
    if binary:
        return stats.proportion_interval(int(values.sum()), len(values))
    low, high = stats.mean_interval(values)
    return (low, high) if not math.isnan(low) else (float(values[0]), float(values[0]))
