"""What removing lists of heads costs, compared between lists and tasks: differences, each with its own test.

That one list costs significantly much and another does not is no difference between them (Gelman and Stern 2006, The
American Statistician 60:328-331). Every statement about two lists or two tasks is therefore a test of the difference,
with documents paired wherever two tasks ask the same (`depthlens.analysis.means`). Costs are means over k > 0; nats are
clipped to 1 a document. Between two tasks costs are shares of what the whole model scores above the floor (chance, or 0
for scores that are never below), and nats as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, permutations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from depthlens.ablations import heads_condition
from depthlens.analysis.means import ALPHA, Mean
from depthlens.analysis.scores import Scores, scores_of
from depthlens.analysis.stats import BASELINE
from depthlens.metrics import metric_unit

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

TIMES = 3  # a list should cost so many times what random heads cost
INTERVAL = ["ci_low", "ci_high"]
OF_TASKS = ["task", "other_task", "metric", "other_metric", "effect", *INTERVAL, "p_value"]


@dataclass(frozen=True, eq=False)
class Costs:
    """What lists and their random rivals cost on one task.

    Attributes:
        task: Its name.
        metric: Its name.
        at_chance: Whether there is nothing to lose.
        lists: Cost of each list.
        random: Mean cost of its random rivals.
        room: What the whole model scores above the floor; None where costs are compared as they are.
    """

    task: str
    metric: str
    at_chance: bool
    lists: dict[str, Mean]
    random: dict[str, Mean]
    room: Mean | None

    @property
    def kind(self) -> str:
        """Costs of one kind can be compared between tasks."""
        return metric_unit(self.metric) or "share"

    def relative(self, cost: Mean) -> Mean:
        """A cost in the unit in which tasks are compared; NaN where the whole model is not above the floor."""
        return cost if self.room is None else cost / self.room


def costs(result: Result, record: dict[str, Any]) -> list[Costs]:
    """Costs on every task and metric of a removal curve.

    Args:
        result: Every document under every condition.
        record: Of the curve: its lists, draws and k.
    """
    suffix = record.get("suffix", "")  # curves that were saved before there was one have none
    names = [str(c) for c in result.docs["condition"].unique() if c != BASELINE]
    found = []
    for base in result.baselines.itertuples():
        scores = scores_of(result, base, "", names, np.zeros(len(names)))
        bounded = bool((np.abs(scores.loss) <= 1).all())

        def cost(orders: list, scores: Scores = scores, bounded: bool = bounded) -> Mean:
            removed = ([tuple(head) for head in heads[:k]] for heads in orders for k in record["k"])
            at = [names.index(str(heads_condition(heads, suffix))) for heads in removed]
            return scores.mean(scores.loss[:, at].mean(1), bounded=bounded)

        lists = {name: cost([heads]) for name, heads in record["lists"].items()}
        random = {name: cost(orders) for name, orders in record["draws"].items()}
        floor = np.nan if scores.floor is None else scores.floor
        room = None if metric_unit(base.metric) else scores.mean(scores.base - floor, bounded=False)
        found.append(Costs(base.task, base.metric, scores.at_chance, lists, random, room))
    return found


def contrast_table(found: list[Costs], column: str, times: int) -> pd.DataFrame:
    """Cost of every list minus so many times that of its random rivals, on every task.

    Returns:
        list, task, metric, the contrast under the name ``column``, ci_low, ci_high, n (units), at_chance.
    """
    rows = []
    for name in found[0].lists:
        for on in found:
            contrast = on.lists[name] - on.random[name] * times if times else on.lists[name]
            row = {"list": name, "task": on.task, "metric": on.metric, "n": contrast.n, "at_chance": on.at_chance}
            rows.append(row | contrast.columns(column))
    return pd.DataFrame(rows, columns=["list", "task", "metric", column, *INTERVAL, "n", "at_chance"])


def _two_tasks(one: Costs, two: Costs) -> dict[str, Any]:
    """What is the same in every row on two tasks; {} where their costs cannot be compared."""
    if one.task == two.task or one.kind != two.kind:
        return {}
    row = {"task": one.task, "other_task": two.task, "metric": one.metric, "other_metric": two.metric}
    return row | {"at_chance": one.at_chance or two.at_chance}


def interaction_table(found: list[Costs]) -> pd.DataFrame:
    """List x task interactions; see `depthlens.analysis.removal_curve.RemovalCurve.interactions`."""
    rows = []
    for (a, b), (one, two) in product(combinations(found[0].lists, 2), combinations(found, 2)):
        if row := _two_tasks(one, two):
            first, second = one.relative(one.lists[a] - one.lists[b]), two.relative(two.lists[b] - two.lists[a])
            every = first + second, first, second
            shown = all(part.p() < ALPHA for part in every)  # all of them have to be, so that none is corrected
            same = abs(sum(np.sign(part.value) for part in every)) == len(every)
            row |= {"list": a, "other_list": b, "n": every[0].n, "double": shown and same and not row["at_chance"]}
            row |= {"on_task": first.value, "p_on_task": first.p(), "on_other": second.value, "p_on_other": second.p()}
            rows.append(row | every[0].columns("effect"))
    columns = ["list", "other_list", *OF_TASKS, "on_task", "p_on_task", "on_other", "p_on_other"]
    return pd.DataFrame(rows, columns=[*columns, "n", "double", "at_chance"])


def specificity_table(found: list[Costs]) -> pd.DataFrame:
    """Excess on one task minus excess on another; see `depthlens.analysis.removal_curve.RemovalCurve.specificity`."""
    rows = []
    for name, (one, two) in product(found[0].lists, permutations(found, 2)):
        if row := _two_tasks(one, two):
            first, second = (on.relative(on.lists[name] - on.random[name]) for on in (one, two))
            rows.append(row | {"list": name, "n": (first - second).n, **(first - second).columns("effect")})
    return pd.DataFrame(rows, columns=["list", *OF_TASKS, "n", "at_chance"])
