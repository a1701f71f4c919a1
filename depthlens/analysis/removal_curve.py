"""Scores as heads are removed, against random heads of the same layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from depthlens.analysis import questions, removal_contrasts, stats
from depthlens.analysis.findings import Finding, derived
from depthlens.analysis.means import mean
from depthlens.analysis.results import Result
from depthlens.errors import UserError, unknown
from depthlens.metrics import ANSWER_LOGPROB, TOKEN_LOGPROB, limits


@dataclass(frozen=True, eq=False, repr=False)
class RemovalCurve(Finding):
    """Scores of tasks as the first k heads of lists are removed, and as random heads are.

    Attributes:
        points: list, task, metric, k, value, ci_low, ci_high (95% interval of the value). k = 0: nothing removed.
        band: list, task, metric, k, low, high (range of all draws), mean, n_draws.
        tests: list, task, metric, value, random (means over k > 0), low, high (range over draws), p_value, smallest_p
            (expected of the costliest list), separates (p_value below 0.05), at_chance.
        result: Every document under every condition.
        record: Lists, draws and settings.
    """

    RECORD: ClassVar[str] = "removal_curve.json"
    NEXT: ClassVar[str] = "next: describe() says it in words, dl.plots.removal_curve(...) draws it"

    points: pd.DataFrame
    band: pd.DataFrame
    tests: pd.DataFrame
    result: Result
    record: dict[str, Any]

    def display(self) -> tuple[str, pd.DataFrame, list[str]]:
        """What is shown: the tests of lists against random heads."""
        lists, tasks = (", ".join(dict.fromkeys(self.tests[column])) for column in ("list", "task"))
        ks, draws = sorted(set(self.points["k"]) - {0}), int(self.band["n_draws"].max())
        size = f"{ks[0]} to {ks[-1]} heads" if len(ks) > 1 else "1 head" if ks == [1] else f"{ks[0]} heads"
        head = f"RemovalCurve of {lists} on {tasks}: {size} removed together, against {draws} random lists each"
        columns = ["list", "task", "metric", "value", "random", "low", "high", "p_value", "separates", "at_chance"]
        return head, self.tests[columns], []

    def describe(self, specific_to: str | None = None) -> list[str]:
        """What the curve says, one sentence each.

        Args:
            specific_to: A task. For each list, what it costs beyond random heads on this task, and how much more than
                on each other task. A list is called specific where it separates from random heads on this task and all
                these differences are shown to be above 0 (Bonferroni).

        Returns:
            Without ``specific_to``: whether each list separates from its random heads on each task, and whether two
            lists dissociate between two tasks; see `interactions`.

        Raises:
            UserError: the curve has no such task, or no other.
        """
        if specific_to is not None:
            return self._specificity(specific_to)
        lines = [self._sentence(row) for row in self.tests.itertuples()]
        return lines + [self._dissociation(row) for row in self.interactions.itertuples()]

    @derived
    def _costs(self) -> list[removal_contrasts.Costs]:
        return removal_contrasts.costs(self.result, self.record)

    @derived
    def cost(self) -> pd.DataFrame:
        """What removing a list costs, mean over k > 0, in the metric's unit; nats are clipped to 1 a document.

        Returns:
            list, task, metric, cost, ci_low, ci_high (95% interval), n (units), at_chance.
        """
        return removal_contrasts.contrast_table(self._costs, "cost", 0)

    @derived
    def excess(self) -> pd.DataFrame:
        """How much more removing a list costs than removing random heads of the same layers, mean over k > 0.

        It is the list's own cost minus the mean over draws, so that a list that costs more is above 0. The interval is
        over documents, with the draws as they are.

        Returns:
            list, task, metric, excess, ci_low, ci_high, n, at_chance; see `cost`.
        """
        return removal_contrasts.contrast_table(self._costs, "excess", 1)

    @derived
    def ratio(self) -> pd.DataFrame:
        """Whether removing a list costs at least three times what random heads of the same layers cost.

        It is the list's cost minus three times the mean cost over draws, mean over k > 0, so that more than three times
        is above 0. A difference has an interval where a ratio of two noisy means has none: the cost of random heads may
        be 0. Where they cost less than nothing, the list may cost nothing and be above 0; look at `cost`, too.

        Returns:
            list, task, metric, effect, ci_low, ci_high, n, at_chance; see `cost`.
        """
        return removal_contrasts.contrast_table(self._costs, "effect", removal_contrasts.TIMES)

    @derived
    def interactions(self) -> pd.DataFrame:
        """Whether two lists do different things for two tasks: the list x task interaction.

        ``effect`` is the mean over documents of ``task`` of the cost of ``list`` minus that of ``other_list``, plus the
        mean over documents of ``other_task`` of the reverse; see `depthlens.analysis.removal_contrasts`. It is above 0
        where ``list`` belongs to ``task`` and ``other_list`` to ``other_task``, and below in the reverse case.

        Returns:
            list, other_list, task, other_task, metric, other_metric, effect, ci_low, ci_high, p_value; on_task and
            on_other (its two terms) with p_on_task and p_on_other, n (units of the smaller task); double: a double
            dissociation, where interaction and both terms are shown, with the same sign; at_chance.
        """
        return removal_contrasts.interaction_table(self._costs)

    @derived
    def specificity(self) -> pd.DataFrame:
        """How much more a list costs beyond random heads on one task than on another, for every two tasks.

        Returns:
            list, task, other_task, metric, other_metric, effect, ci_low, ci_high, p_value, n, at_chance.
        """
        return removal_contrasts.specificity_table(self._costs)

    def _dissociation(self, row: Any) -> str:
        lists = f"{row.list} and {row.other_list}"
        tasks = f"{row.task} and {row.other_task}"
        if len(set(self.tests["metric"])) > 1:
            tasks += f" ({row.metric} and {row.other_metric})"
        if row.at_chance:
            return f"{lists} between {tasks}: at chance, cannot judge."
        numbers = f"{row.effect:.2g} {_interval(row)}, p = {row.p_value:.2g}"
        terms = f"{row.on_task:.2g} on {row.task} (p = {row.p_on_task:.2g})"
        terms += f" and {row.on_other:.2g} on {row.other_task} (p = {row.p_on_other:.2g})"
        start = "Double dissociation" if row.double else "No double dissociation is shown"
        return f"{start} of {lists} between {tasks}: interaction {numbers}; {terms}."

    def _specificity(self, task: str) -> list[str]:
        if task not in (tasks := list(dict.fromkeys(self.tests["task"]))):
            raise unknown("task", task, tasks)
        if len(tasks) < 2:
            raise UserError(f"the curve has the task {task} alone; specificity needs another to compare with")
        n_metrics = self.tests["metric"].nunique()  # each metric is a chance to call a list specific
        keys, lines = ["list", "task", "metric"], []
        for own in self.excess.merge(self.tests[[*keys, "separates"]], on=keys).query("task == @task").itertuples():
            where = f"{task} ({own.metric})" if n_metrics > 1 else task
            amount = f"{own.excess:.2g} {_interval(own)} on {where}"
            start = f"{own.list} costs, beyond random heads of the same layers, {amount}"
            rows = self.specificity.query("list == @own.list and task == @task and metric == @own.metric")
            rows = rows[~rows["at_chance"] & rows["effect"].notna()]
            if own.at_chance or rows.empty:
                lines.append(f"{start}: at chance, so that its specificity cannot be judged.")
                continue
            rows = rows.assign(p=np.minimum(1.0, n_metrics * len(rows) * rows["p_value"]))
            differences = [
                f"difference to {row.other_task} {row.effect:.2g} {_interval(row)} (p = {row.p:.2g})"
                for row in rows.itertuples()
            ]
            if own.metric == ANSWER_LOGPROB:
                what = f"longer answers have more nats to lose, so {TOKEN_LOGPROB} has to say whether it is specific"
            elif not own.separates:
                what = f"not shown to be more than random heads cost, so not specific to {task}"
            else:
                shown = (rows["effect"] > 0) & (rows["p"] < stats.ALPHA)
                what = f"specific to {task}" if shown.all() else f"not shown to be specific to {task}"
            lines.append(f"{start}, {', '.join(differences)}: {what}.")
        return lines

    def _sentence(self, row: Any) -> str:
        where = f"{row.list} on {row.task} ({row.metric})"
        if row.at_chance:
            return f"{where}: the whole model is at chance, cannot judge."
        ks = sorted(set(self.points["k"]) - {0})
        span = f"k = {ks[0]}" if len(ks) == 1 else f"mean over k = {', '.join(map(str, ks))}"
        numbers = f"{span}: {row.value:.3g} against {row.random:.3g} [{row.low:.3g}, {row.high:.3g}]"
        tail = f"of {self.record['n_draws']} draws from the same layers, p = {row.p_value:.2g}"
        if row.separates:
            outside = self.outside_band(row)
            return f"{where}: separates from random heads; {numbers} {tail}; outside the band at k = {outside}."
        if row.smallest_p >= stats.ALPHA:
            n = self.record["n_lists"][row.list]
            limit = f"; there are {n} such lists, so that the costliest has a p of about {row.smallest_p:.2g}"
            return f"{where}: cannot separate from random heads; {numbers} {tail}{limit}."
        return f"{where}: does not separate from random heads; {numbers} {tail}."

    def outside_band(self, row: Any) -> str:
        """The k at which a list is worse than every draw."""
        keys = ["list", "task", "metric"]
        points, band = (
            table[(table[keys] == [row.list, row.task, row.metric]).all(axis=1)].set_index("k")
            for table in (self.points, self.band)
        )
        if row.higher_is_better:
            worse = points["value"] < band["low"]
        else:
            worse = points["value"] > band["high"]
        return ", ".join(str(k) for k in points.index[worse]) or "no single k"


def _interval(row: Any) -> str:
    return f"[{row.ci_low:.2g}, {row.ci_high:.2g}]"


def assemble(result: Result, conditions: dict[str, list[list[str]]], record: dict[str, Any]) -> RemovalCurve:
    """The curve of a sweep.

    Args:
        result: Every document under the baseline and every condition.
        conditions: By list, for the list itself and then each random list, one condition for each k.
        record: See `RemovalCurve`.
    """
    ks, points, band, tests = [0, *record["k"]], [], [], []
    for base in result.baselines.itertuples():
        scores = result.scores(base.task, base.metric)
        values, units = scores.mean(), questions.units(result, base.task).loc[scores.index]
        better = result.metric_info(base.task, base.metric)["higher_is_better"]
        low, high = limits(base.metric, scores.min(axis=None), scores.max(axis=None))
        for name, orders in conditions.items():
            key = name, base.task, base.metric
            for n, condition in zip(ks, [stats.BASELINE, *orders[0]], strict=True):
                found = mean(scores[condition], units, bounded=(low, high) == (0, 1))
                points.append((*key, n, found.value, *np.clip(found.interval(), low, high)))
            own, *draws = np.array([values[[stats.BASELINE, *order]] for order in orders])  # each [k]
            band += [
                (*key, n, d.min(), d.max(), d.mean(), len(d)) for n, d in zip(ks, np.transpose(draws), strict=True)
            ]
            whole, random = float(own[1:].mean()), np.array(draws)[:, 1:].mean(1)
            # the list itself may be drawn; its score then differs by rounding at most
            slack = 1e-9 * max(1.0, float(np.abs(random).max()))
            worse, cheaper = random <= whole + slack, random >= whole - slack
            worse, cheaper = (worse, cheaper) if better else (cheaper, worse)
            p, p_cheaper = ((1 + int(drawn.sum())) / (1 + len(random)) for drawn in (worse, cheaper))
            smallest = (1 + len(random) / record["n_lists"][name]) / (1 + len(random))
            numbers = whole, random.mean(), random.min(), random.max(), p, p_cheaper, smallest
            tests.append((*key, better, *numbers, p < stats.ALPHA, bool(base.at_chance)))
    keys = ["list", "task", "metric"]
    of_test = ["value", "random", "low", "high", "p_value", "p_cheaper", "smallest_p", "separates", "at_chance"]
    return RemovalCurve(
        pd.DataFrame(points, columns=[*keys, "k", "value", "ci_low", "ci_high"]),
        pd.DataFrame(band, columns=[*keys, "k", "low", "high", "mean", "n_draws"]),
        pd.DataFrame(tests, columns=[*keys, "higher_is_better", *of_test]),
        result,
        record,
    )
