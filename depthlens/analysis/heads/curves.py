"""Scores as the first k heads of lists are removed, against random lists; see `depthlens.removal_curve`.

**Removal.** That one list costs significantly much and another does not is no difference between them (Gelman and Stern
2006, The American Statistician 60:328-331). What two lists cost on two tasks is therefore one test of the difference,
with documents paired wherever two tasks ask the same (`depthlens.analysis.numbers.means`). Costs are means over k > 0;
nats are clipped to 1 a document. Between two tasks costs are shares of what the whole model scores above the floor
(chance, or 0 for scores that are never below), and nats as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from depthlens.ablations import heads_condition
from depthlens.analysis.numbers.means import ALPHA, Mean
from depthlens.analysis.numbers.words import NOT_ABOVE_CHANCE
from depthlens.analysis.result.findings import Finding, derived
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.results import Result
from depthlens.metrics import metric_unit

TIMES = 3  # a list should cost so many times what random heads cost
KEYS = ["list", "task", "metric"]
Conditions = dict[str, list[list[str]]]  # by list, for the list itself and then each random list, one for each k

TESTED = (
    "{list} on {task} ({metric}): {verdict} from random heads; mean over k = {k}: {value:.3g} against {random:.3g} "
    "[{low:.3g}, {high:.3g}] of {n_draws} draws from the same layers, p = {p_value:.2g}{limit}."
)
DISSOCIATION = (
    "{verdict} of {list} and {other_list} between {task} ({metric}) and {other_task} ({other_metric}): interaction "
    "{effect:.2g} [{ci_low:.2g}, {ci_high:.2g}], p = {p_value:.2g}; {on_task:.2g} on {task} (p = {p_on_task:.2g}) and "
    "{on_other:.2g} on {other_task} (p = {p_on_other:.2g})."
)


@dataclass(frozen=True, eq=False, repr=False)
class RemovalCurve(Finding):
    """Scores of tasks as the first k heads of lists are removed, and as random heads are.

    Attributes:
        tests: list, task, metric, value, random (means over k > 0), low, high (range over draws), p_value, smallest_p
            (expected of the costliest list), separates (p_value below 0.05), at_chance.
        points: list, task, metric, k, value, ci_low, ci_high (95% interval of the value). k = 0: nothing removed.
        band: list, task, metric, k, low, high (range of all draws), mean, n_draws.
        result: Every document under every condition.
        record: Lists, draws and settings.

    Example:
        >>> curve.tests.query("separates")[["list", "task"]]
                list  task
        0  retrieval  copy
        3  reasoning  sums
    """

    RECORD: ClassVar[str] = "removal_curve.json"
    NEXT: ClassVar[str] = "next: describe() says it in words, plot() draws it"

    tests: pd.DataFrame
    points: pd.DataFrame
    band: pd.DataFrame
    result: Result
    record: dict[str, Any]

    def describe(self) -> list[str]:
        """Whether each list separates from its random heads on each task; and whether two lists dissociate.

        Lists dissociate between two tasks where each costs more than the other on a task of its own; see
        `interactions`.
        """
        lines = [self._tested(row) for row in self.tests.to_dict("records")]
        for row in self.interactions.to_dict("records"):
            verdict = "Double dissociation" if row["double"] else "No double dissociation is shown"
            said = f"{{list}} and {{other_list}} between {{task}} and {{other_task}}: {NOT_ABOVE_CHANCE}, cannot judge."
            lines.append((said if row["at_chance"] else DISSOCIATION).format(verdict=verdict, **row))
        return lines

    def _tested(self, row: dict[str, Any]) -> str:
        if row["at_chance"]:
            said = f"the whole model is {NOT_ABOVE_CHANCE}, cannot judge."
            return f"{row['list']} on {row['task']} ({row['metric']}): {said}"
        verdict, limit, ks = "separates" if row["separates"] else "does not separate", "", map(str, self.record["k"])
        if not row["separates"] and row["smallest_p"] >= ALPHA:
            n, p = self.record["n_lists"][row["list"]], row["smallest_p"]
            verdict = "cannot separate"
            limit = f"; there are {n} such lists, so that the costliest has a p of about {p:.2g}"
        return TESTED.format(verdict=verdict, k=", ".join(ks), n_draws=self.record["n_draws"], limit=limit, **row)

    @derived
    def interactions(self) -> pd.DataFrame:
        """Whether two lists do different things for two tasks: the list x task interaction.

        ``effect`` is the mean over documents of ``task`` of the cost of ``list`` minus that of ``other_list``, plus the
        mean over documents of ``other_task`` of the reverse. It is above 0 where ``list`` belongs to ``task`` and
        ``other_list`` to ``other_task``, and below in the reverse case.

        Returns:
            list, other_list, task, other_task, metric, other_metric, effect, ci_low, ci_high, p_value; on_task and
            on_other (its two terms) with p_on_task and p_on_other, n (units of the smaller task); double: a double
            dissociation, where interaction and both terms are shown, with the same sign; at_chance.
        """
        return interaction_table(costs(self.result.every_losses.values(), self.record))


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


def costs(every: Iterable[Losses], record: dict[str, Any]) -> list[Costs]:
    """Costs on every task and metric of a removal curve.

    Args:
        every: Losses of its conditions.
        record: Of the curve: its lists, draws and k.
    """
    found = []
    for losses in every:

        def cost(orders: list, losses: Losses = losses) -> Mean:
            removed = ([tuple(head) for head in heads[:k]] for heads in orders for k in record["k"])
            chosen = losses.select([str(heads_condition(heads)) for heads in removed])
            return chosen.mean(np.full(len(chosen.conditions), 1 / len(chosen.conditions)))

        lists = {name: cost([heads]) for name, heads in record["lists"].items()}
        random = {name: cost(orders) for name, orders in record["draws"].items()}
        floor = np.nan if losses.floor is None else losses.floor
        room = None if metric_unit(losses.metric) else losses.over(losses.base - floor)
        found.append(Costs(losses.task, losses.metric, losses.at_chance, lists, random, room))
    return found


def interaction_table(found: list[Costs]) -> pd.DataFrame:
    """List x task interactions of the costs on every task; see `RemovalCurve.interactions`."""
    rows = []
    for (a, b), (one, two) in product(combinations(found[0].lists, 2), combinations(found, 2)):
        if one.task == two.task or one.kind != two.kind:
            continue
        first, second = one.relative(one.lists[a] - one.lists[b]), two.relative(two.lists[b] - two.lists[a])
        every, at_chance = (first + second, first, second), one.at_chance or two.at_chance
        shown = all(part.p() < ALPHA for part in every)  # all of them have to be, so that none is corrected
        same = abs(sum(np.sign(part.value) for part in every)) == len(every)
        row: dict[str, Any] = {"list": a, "other_list": b, "task": one.task, "other_task": two.task}
        row |= {"metric": one.metric, "other_metric": two.metric, **every[0].columns("effect")}
        row |= {"on_task": first.value, "p_on_task": first.p(), "on_other": second.value, "p_on_other": second.p()}
        double = shown and same and not at_chance
        rows.append(row | {"n": every[0].n, "double": double, "at_chance": at_chance})
    return pd.DataFrame(rows)


def removal(result: Result, conditions: Conditions, record: dict[str, Any]) -> RemovalCurve:
    """The curve of a sweep that removes heads.

    Args:
        result: Every document under the baseline and every condition.
        conditions: See `Conditions`.
        record: See `RemovalCurve`.
    """
    ks, points, band, tests = [0, *record["k"]], [], [], []
    for losses in result.every_losses.values():
        sign = losses.sign
        low, high = sorted(sign * end for end in losses.limits)
        for name, orders in conditions.items():
            about = dict(zip(KEYS, (name, losses.task, losses.metric), strict=True))
            own, *draws = (sign * np.c_[losses.base, losses.select(order).values] for order in orders)  # [document, k]
            found = losses.over(own, (low, high))
            points.append(pd.DataFrame(about | {"k": ks} | found.columns("value")).drop(columns="p_value"))
            means = np.array([draw.mean(0) for draw in draws])  # [draw, k]
            band.append(_band(means, **about, k=ks))
            value, random = float(found.value[1:].mean()), means[:, 1:].mean(1)
            # the list itself may be drawn; its score then differs by rounding at most
            slack = 1e-9 * max(1.0, float(np.abs(random).max()))
            p = (1 + int(((value - random) * sign >= -slack).sum())) / (1 + len(random))
            row = about | {"higher_is_better": sign > 0, "value": value, "random": random.mean()}
            row |= {"low": random.min(), "high": random.max(), "p_value": p}
            row["smallest_p"] = (1 + len(random) / record["n_lists"][name]) / (1 + len(random))
            tests.append(row | {"separates": p < ALPHA, "at_chance": losses.at_chance})
    tables = [pd.concat(parts, ignore_index=True) for parts in (points, band)]
    return RemovalCurve(pd.DataFrame(tests), tables[0], tables[1], result, record)


def _band(draws: np.ndarray, **about: Any) -> pd.DataFrame:
    """Range and mean of the random lists. ``draws`` is of shape [draw, k]."""
    numbers = {"low": draws.min(0), "high": draws.max(0), "mean": draws.mean(0), "n_draws": len(draws)}
    return pd.DataFrame(about | numbers)
