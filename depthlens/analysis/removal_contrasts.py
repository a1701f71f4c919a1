"""What removing lists of heads costs, compared between lists and tasks: differences, each with its own test.

That one list costs significantly much and another does not is no difference between them (Gelman and Stern 2006, The
American Statistician 60:328-331). Every statement about two lists or two tasks is therefore a test of the difference,
with documents paired wherever two tasks ask the same (`depthlens.analysis.means`). Costs are means over k > 0; nats are
clipped to 1 a document. Between two tasks costs are shares of what the whole model scores above the floor (chance, or 0
for scores that are never below), and nats as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from depthlens.ablations import heads_condition
from depthlens.analysis import questions
from depthlens.analysis.means import ALPHA, Mean, mean
from depthlens.analysis.scores import floor_of
from depthlens.analysis.stats import BASELINE
from depthlens.metrics import in_nats, metric_unit

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

TIMES = 3  # a list should cost so many times what random heads cost
INTERVAL = ["ci_low", "ci_high"]


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
    found = []
    for base in result.baselines.itertuples():
        losses = result.document_losses(base.task, base.metric)
        losses = losses.clip(-1, 1) if in_nats(base.metric) else losses
        units = questions.units(result, base.task).loc[losses.index].to_numpy()
        bounded = bool((losses.abs() <= 1).all(axis=None))

        def cost(
            orders: list, losses: pd.DataFrame = losses, units: np.ndarray = units, bounded: bool = bounded
        ) -> Mean:
            removed = ([tuple(head) for head in heads[:k]] for heads in orders for k in record["k"])
            names = [str(heads_condition(heads, suffix)) for heads in removed]
            return mean(losses[names].mean(axis=1).to_numpy(), units, bounded=bounded)

        lists = {name: cost([heads]) for name, heads in record["lists"].items()}
        random = {name: cost(orders) for name, orders in record["draws"].items()}
        room = _room(result, base, units)
        found.append(Costs(base.task, base.metric, bool(base.at_chance), lists, random, room))
    return found


def _room(result: Result, base: Any, units: np.ndarray) -> Mean | None:
    if metric_unit(base.metric):
        return None
    scores, info = result.scores(base.task, base.metric), result.metric_info(base.task, base.metric)
    floor = floor_of(result, base.task, info, bool((scores >= 0).all(axis=None)))
    sign = 1.0 if info["higher_is_better"] else -1.0
    return mean(sign * scores[BASELINE].to_numpy() - (np.nan if floor is None else floor), units, bounded=False)


def contrast_table(found: list[Costs], column: str, times: int) -> pd.DataFrame:
    """Cost of every list minus so many times that of its random rivals, on every task.

    Returns:
        list, task, metric, the contrast under the name ``column``, ci_low, ci_high, n (units), at_chance.
    """
    rows = []
    for name in found[0].lists:
        for on in found:
            contrast = on.lists[name] - on.random[name] * times if times else on.lists[name]
            rows.append((name, on.task, on.metric, *_tested(contrast)[:3], contrast.n, on.at_chance))
    return pd.DataFrame(rows, columns=["list", "task", "metric", column, *INTERVAL, "n", "at_chance"])


def interaction_table(found: list[Costs]) -> pd.DataFrame:
    """List x task interactions; see `depthlens.analysis.removal_curve.RemovalCurve.interactions`."""
    rows = []
    for a, b in combinations(found[0].lists, 2):
        for one, two in combinations(found, 2):
            if one.task == two.task or one.kind != two.kind:
                continue
            terms = one.relative(one.lists[a] - one.lists[b]), two.relative(two.lists[b] - two.lists[a])
            whole, at_chance = terms[0] + terms[1], one.at_chance or two.at_chance
            every = whole, *terms
            shown = max(float(part.p()) for part in every) < ALPHA  # all of them have to be, so that none is corrected
            double = shown and len({float(np.sign(part.value)) for part in every}) == 1 and not at_chance
            of_terms = [float(x) for term in terms for x in (term.value, term.p())]
            names = a, b, one.task, two.task, one.metric, two.metric
            rows.append((*names, *_tested(whole), *of_terms, whole.n, double, at_chance))
    columns = ["list", "other_list", "task", "other_task", "metric", "other_metric", "effect", *INTERVAL, "p_value"]
    columns += ["on_task", "p_on_task", "on_other", "p_on_other", "n", "double", "at_chance"]
    return pd.DataFrame(rows, columns=columns)


def specificity_table(found: list[Costs]) -> pd.DataFrame:
    """Excess on one task minus excess on another; see `depthlens.analysis.removal_curve.RemovalCurve.specificity`."""
    rows = []
    for name in found[0].lists:
        for one, two in permutations(found, 2):
            if one.task == two.task or one.kind != two.kind:
                continue
            first, second = (on.relative(on.lists[name] - on.random[name]) for on in (one, two))
            gap = first - second
            names = name, one.task, two.task, one.metric, two.metric
            rows.append((*names, *_tested(gap), gap.n, one.at_chance or two.at_chance))
    columns = ["list", "task", "other_task", "metric", "other_metric", "effect", *INTERVAL, "p_value", "n", "at_chance"]
    return pd.DataFrame(rows, columns=columns)


def _tested(found: Mean) -> tuple[float, ...]:
    """Value, interval and p-value."""
    return float(found.value), *map(float, found.interval()), float(found.p())
