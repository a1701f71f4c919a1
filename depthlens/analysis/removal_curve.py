"""Scores as heads are removed, against random heads of the same layers."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from depthlens.ablations import heads_condition
from depthlens.analysis import stats
from depthlens.analysis.results import Result
from depthlens.analysis.saving import Saveable
from depthlens.errors import UserError, unknown


@dataclass(frozen=True, eq=False, repr=False)
class RemovalCurve(Saveable):
    """Scores of tasks as the first k heads of lists are removed, and as random heads are.

    Attributes:
        points: list, task, metric, k, value, ci_low, ci_high (95% interval of the value). k = 0: nothing removed.
        band: list, task, metric, k, low, high (range of all draws), mean, n_draws.
        tests: list, task, metric, value, random (means over k > 0), low, high (range over draws), p_value, separates
            (worse than every draw), at_chance.
        result: Every document under every condition.
        record: Lists, draws and settings.
    """

    RECORD: ClassVar[str] = "removal_curve.json"
    INSIDE: ClassVar[type[Saveable] | None] = Result
    OPTIONAL: ClassVar[tuple[str, ...]] = Result.OPTIONAL

    points: pd.DataFrame
    band: pd.DataFrame
    tests: pd.DataFrame
    result: Result
    record: dict[str, Any]

    def __repr__(self) -> str:
        return f"{self._head()}\n{self._rounded().to_string(index=False)}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self._head())}</p>{self._rounded().to_html(index=False, border=0)}"

    def _head(self) -> str:
        lists, tasks = (", ".join(dict.fromkeys(self.tests[column])) for column in ("list", "task"))
        ks, draws = sorted(set(self.points["k"]) - {0}), int(self.band["n_draws"].max())
        size = f"{ks[0]} to {ks[-1]} heads" if len(ks) > 1 else "1 head" if ks == [1] else f"{ks[0]} heads"
        return f"RemovalCurve of {lists} on {tasks}: {size} removed together, against {draws} random lists each"

    def _rounded(self) -> pd.DataFrame:
        columns = ["list", "task", "metric", "value", "random", "low", "high", "p_value", "separates", "at_chance"]
        return self.tests[columns].round({"value": 3, "random": 3, "low": 3, "high": 3, "p_value": 3})

    def describe(self, specific_to: str | None = None) -> list[str]:
        """What the curve says, one sentence each.

        Args:
            specific_to: A task. For each list, what it costs beyond random heads on this task and on the other tasks. A
                list is called specific to a task where it separates from its random heads there and on no other task
                that can be judged.

        Returns:
            Without ``specific_to``: whether each list separates from its random heads on each task, and whether two
            lists dissociate doubly between two tasks.

        Raises:
            UserError: the curve has no such task, or no other.
        """
        if specific_to is not None:
            return self._specificity(specific_to)
        return [self._sentence(row) for row in self.tests.itertuples()] + self._dissociations()

    def _dissociations(self) -> list[str]:
        lines = []
        judged = self.tests[~self.tests["at_chance"]]
        separates = {(r.list, r.task): r.separates for r in judged.itertuples()}
        for a, b in combinations(dict.fromkeys(judged["list"]), 2):
            for task, rival in combinations(dict.fromkeys(judged["task"]), 2):
                pattern = [separates[heads, t] for heads in (a, b) for t in (task, rival)]
                is_double = pattern in ([True, False, False, True], [False, True, True, False])
                start = "Double" if is_double else "No double"
                lines.append(f"{start} dissociation of {a} and {b} between {task} and {rival}.")
        return lines

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
            scores = self.result.scores(test.task, test.metric)
            lists = [self.record["lists"][test.list], *self.record["draws"][test.list]]
            names = [[str(heads_condition([tuple(h) for h in heads[:k]])) for k in self.record["k"]] for heads in lists]
            random = [name for order in names[1:] for name in order]
            extra = (scores[random].mean(axis=1) - scores[names[0]].mean(axis=1)).to_numpy()
            extra = extra if test.higher_is_better else -extra
            low, high = mean_interval(extra, binary=False)
            rows.append((test.list, test.task, test.metric, extra.mean(), low, high, len(extra), test.at_chance))
        columns = ["list", "task", "metric", "excess", "ci_low", "ci_high", "n", "at_chance"]
        return pd.DataFrame(rows, columns=columns)

    def _specificity(self, task: str) -> list[str]:
        tasks = list(dict.fromkeys(self.tests["task"]))
        if task not in tasks:
            raise unknown("task", task, tasks)
        if len(tasks) < 2:
            raise UserError(f"the curve has the task {task} alone; specificity needs another to compare with")
        lines = []
        for name in dict.fromkeys(self.tests["list"]):
            costs = self.excess[self.excess["list"] == name].set_index("task")
            tests = self.tests[self.tests["list"] == name].set_index("task")
            amounts = ", ".join(
                f"{row.excess:.2g} [{row.ci_low:.2g}, {row.ci_high:.2g}] on {row.Index}"
                for row in costs.loc[[task, *(t for t in tasks if t != task)]].itertuples()
            )
            others = tests.drop(index=task)
            if tests.loc[task, "at_chance"] or others["at_chance"].all():
                what = "at chance, so that its specificity cannot be judged"
            elif not tests.loc[task, "separates"]:
                what = f"no more than random heads there, so not specific to {task}"
            else:
                more = [t for t, row in others.iterrows() if row["separates"] and not row["at_chance"]]
                what = f"more than random heads on {', '.join(more)}, too" if more else f"specific to {task}"
            lines.append(f"{name} costs, beyond random heads of the same layers, {amounts}: {what}.")
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
        outside = self.outside_band(row)
        return f"{where}: separates from random heads; {numbers} {tail}; outside the band at k = {outside}."

    def outside_band(self, row: Any) -> str:
        """The k at which a list is worse than every draw."""
        points, band = (
            table[(table["list"] == row.list) & (table["task"] == row.task)].set_index("k")
            for table in (self.points, self.band)
        )
        if row.higher_is_better:
            worse = points["value"] < band["low"]
        else:
            worse = points["value"] > band["high"]
        return ", ".join(str(k) for k in points.index[worse]) or "no single k"


def mean_interval(values: np.ndarray, *, binary: bool) -> tuple[float, float]:
    """95% interval of a mean over documents: Wilson's for 0/1 values, else `depthlens.analysis.stats.mean_interval`.

    Of one value it is the value itself.

    Args:
        values: Shape [document].
        binary: Whether they are 0 or 1.
    """
    if binary:
        return stats.proportion_interval(int(values.sum()), len(values))
    low, high = stats.mean_interval(values)
    return (low, high) if not math.isnan(low) else (float(values[0]), float(values[0]))
