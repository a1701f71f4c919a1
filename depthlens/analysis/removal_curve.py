"""Scores as heads are removed, against random heads of the same layers; how much two lists of heads share."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as sps

from depthlens import arguments
from depthlens.ablations import Head, heads_condition
from depthlens.analysis import stats
from depthlens.analysis.results import Result
from depthlens.errors import UserError, unknown


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
            values = self.result.select(tasks=test.task, metrics=test.metric).docs.pivot(
                index="doc_id", columns="condition", values="value"
            )
            # a record went through JSON, which knows no tuples
            lists = [self.record["lists"][test.list], *self.record["draws"][test.list]]
            names = [[str(heads_condition([tuple(h) for h in heads[:k]])) for k in self.record["k"]] for heads in lists]
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


def _interval(values: np.ndarray, binary: bool) -> tuple[float, float]:
    if binary:
        return stats.proportion_interval(int(values.sum()), len(values))
    low, high = stats.mean_interval(values)
    return (low, high) if not math.isnan(low) else (float(values[0]), float(values[0]))
