"""What two parts cost together beyond the sum of what each of them costs, on the same questions.

The interaction of two parts is what both cost together minus what each costs alone, question by question. It is above 0
where one part does what the other did until then, as a backup does, and where two parts add to one sum that has room
for the loss of one. It is below 0 where one of them is in the way of the other: a question that is lost without either
part cannot be lost twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from depthlens.analysis.numbers.means import ALPHA, max_t
from depthlens.analysis.numbers.words import NOT_ABOVE_CHANCE, estimate
from depthlens.analysis.result.findings import Finding
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.results import Result
from depthlens.metrics import in_nats

NAMED = 5  # pairs that a sentence names


@dataclass(frozen=True, repr=False, eq=False)
class PairLosses(Finding):
    """What every two of some parts cost together; see `depthlens.pair_sweep`.

    Attributes:
        table: One row a task and pair: task, metric, condition, first, second (the parts), n, loss, loss_first,
            loss_second (of the pair and of each alone), interaction (the first minus the others), ci_low, ci_high,
            p_value, p_adjusted (over all pairs of the task), more, less (whether the pair is shown to cost more, or
            less, than the sum), at_chance.
        result: All conditions, by question: its pages and figures are those of a sweep.
        record: The parts, and those of each pair.

    Example:
        >>> pairs.table.loc[pairs.table["more"], "condition"].tolist()
        ['L2.H0+L2.H1']
    """

    RECORD: ClassVar[str] = "pairs.json"
    FILES: ClassVar[dict[str, str]] = {"table": "pairs.parquet"}

    table: pd.DataFrame
    result: Result
    record: dict[str, Any]

    def describe(self) -> list[str]:
        """How many pairs of each task cost more than their sum, and how many less; one or two sentences a task."""
        lines = []
        for (task, metric), rows in self.table.groupby(["task", "metric"], sort=False):
            about = f"{task} ({metric}, n = {rows['n'].iloc[0]})"
            if rows["at_chance"].iloc[0]:
                lines.append(f"{about}: {NOT_ABOVE_CHANCE}, so that no pair is judged.")
                continue
            more = rows[rows["more"]].sort_values("interaction", ascending=False, kind="stable")
            named = [
                f"**{row.condition}** by {estimate(row.interaction, row.ci_low, row.ci_high)}"
                for row in more.head(NAMED).itertuples()
            ]
            left = f", and {len(more) - NAMED} more" if len(more) > NAMED else ""
            found = f"pairs that are shown to cost more than the sum of their parts: {len(more)} of {len(rows)}"
            lines.append(f"{about}: {found}{', ' if named else ''}{', '.join(named)}{left}.")
            if rows["less"].any():
                why = "what is lost without one part cannot be lost again"
                lines.append(f"{about}: pairs that are shown to cost less: {rows['less'].sum()}; {why}.")
        return lines

    def display(self) -> tuple[str, pd.DataFrame, list[str]]:
        """The pairs whose interaction is largest, with the sentences below."""
        largest = self.table.sort_values("interaction", key=lambda column: -column.abs(), kind="stable")
        return "", largest.drop(columns=["metric", "at_chance", "p_value"]).head(10), self.describe()


def interaction_table(result: Result, pairs: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """The rows of `PairLosses.table`.

    Args:
        result: Scores of all parts and pairs, of one metric a task.
        pairs: The parts of each pair, by its condition.
    """
    return pd.concat([_of_task(losses, pairs) for losses in result.every_losses.values()], ignore_index=True)


def _of_task(losses: Losses, pairs: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    names = [[*pairs], *([both[i] for both in pairs.values()] for i in (0, 1))]
    together, first, second = (losses.select(of).loss for of in names)
    # losses differ by the score of the whole model, which is in all three; nats are clipped before
    times = 3 if in_nats(losses.metric) else 2
    low, high = (times * end for end in losses.loss_limits)
    found = losses.over(together - first - second, (low, high))
    p_adjusted = max_t(found)
    shown = (p_adjusted < ALPHA) & (not losses.at_chance)
    columns: dict[str, Any] = {"task": losses.task, "metric": losses.metric, "condition": names[0], "first": names[1]}
    columns |= {"second": names[2], "n": len(losses.base), "loss": together.mean(0), "loss_first": first.mean(0)}
    columns |= {"loss_second": second.mean(0), **found.columns("interaction"), "p_adjusted": p_adjusted}
    columns |= {"more": shown & (found.value > losses.min_effect), "less": shown & (-found.value > losses.min_effect)}
    return pd.DataFrame(columns | {"at_chance": losses.at_chance})
