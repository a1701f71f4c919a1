"""Races: which parts matter, from as few documents as that takes.

Every condition has two tests on its paired losses, both by betting (`depthlens.analysis.betting`): that it costs more
than 0, which makes it *critical*, and that it costs less than a margin, which makes it *spared*. Both nulls cannot be
true together. A condition leaves as soon as one of them is rejected. With probability at least ``1 - alpha`` no
decision of the whole race is wrong, at whatever time it ends, for documents that are drawn at random. Documents that
ask the same question count once.

Losses are within [-1, 1]. Scores between 0 and 1 are as they are. A loss in another unit, such as nats, is clipped to
[-1, 1]: such a race judges the mean of clipped losses, in which one document cannot count more than one unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from depthlens.analysis import displays
from depthlens.analysis.betting import BETS, closed_rejections, log_capital, log_gains
from depthlens.analysis.saving import Saveable

CRITICAL, SPARED, UNDECIDED, AT_CHANCE = "critical", "spared", "undecided", "at chance"


class Evidence:
    """What documents have shown of each condition: that it costs more than 0, and that it costs less than a margin.

    Args:
        n: Conditions, those of several tasks one after another.
        margin: Loss that a spared condition stays below.
        alpha: Probability of any wrong decision.
    """

    def __init__(self, n: int, margin: float, alpha: float) -> None:
        self.margin, self.alpha = margin, alpha
        self._gains = np.zeros((n, 2, len(BETS)))

    def add(self, at: Sequence[int] | np.ndarray, losses: np.ndarray) -> None:
        """Take in documents.

        Args:
            at: The conditions that were run.
            losses: Within [-1, 1]. Shape [document, len(at)].
        """
        self._gains[list(at), 0] += log_gains(losses)
        self._gains[list(at), 1] += log_gains((self.margin - losses) / (1 - self.margin))

    @property
    def log_capitals(self) -> np.ndarray:
        """Shape [condition, (critical, spared)]."""
        return log_capital(self._gains)

    def decisions(self) -> list[str]:
        """The decision on every condition as of now."""
        capitals = self.log_capitals
        rejected = closed_rejections(capitals, self.alpha)
        names = (CRITICAL, SPARED)
        return [
            names[int(capital.argmax())] if one.any() else UNDECIDED
            for one, capital in zip(rejected, capitals, strict=True)
        ]


@dataclass(frozen=True, eq=False, repr=False)
class Race(Saveable):
    """What a race decided, and after how many documents.

    Attributes:
        decisions: One row a task and condition: task, metric, condition, layer, head, decision, n (documents that the
            condition was run on), loss (mean over these, clipped; it is too large where a condition left early),
            ci_low, ci_high (interval that holds at every time together). A decision is ``critical``, ``spared`` or
            ``undecided``; or ``at chance`` where the whole model is not shown to be above it.
        losses: One row a task, condition and document: task, condition, doc_id, wave, loss.
        record: What was asked, with ``n_documents`` and ``n_baseline`` by task (`docs/files.md`), and ``work``.
    """

    decisions: pd.DataFrame
    losses: pd.DataFrame
    record: dict[str, Any]

    def of(self, decision: str, task: str | None = None) -> list[str]:
        """Conditions with a decision, such as ``race.of("critical")``.

        Args:
            decision: One of those in `decisions`.
            task: Of this task; None: of any.
        """
        rows = self.decisions[self.decisions["decision"] == decision]
        return list(dict.fromkeys(rows["condition"] if task is None else rows.loc[rows["task"] == task, "condition"]))

    def describe(self) -> list[str]:
        """What was decided for each task, and from how many documents: a sentence each, in Markdown."""
        lines = []
        for (task, metric), rows in self.decisions.groupby(["task", "metric"], sort=False):
            counts, n = rows["decision"].value_counts(), self.record["n_documents"][task]
            critical, spared, undecided = (counts.get(name, 0) for name in (CRITICAL, SPARED, UNDECIDED))
            said = (
                f"of {len(rows)} conditions **{critical}** cost something, **{spared}** cost less than "
                f"{self.record['margin']:g}, {undecided} are undecided; after {rows['n'].min()} to {rows['n'].max()} "
                f"of {n} documents (mean {rows['n'].mean():.0f})"
            )
            if AT_CHANCE in counts:
                said = f"no condition is judged, because {n} documents do not show the whole model to be above chance"
            lines.append(f"{task} ({metric}): {said}.")
        return [*lines, f"The probability that any of these decisions is wrong is at most {self.record['alpha']:g}."]

    def __repr__(self) -> str:
        return displays.as_text("", *self._shown())

    def _repr_html_(self) -> str:
        return displays.as_html("", *self._shown())

    def _shown(self) -> tuple[pd.DataFrame, list[str]]:
        columns = ["task", "condition", "decision", "n", "loss", "ci_low", "ci_high"]
        table, rest = displays.cut(self.decisions[columns].round({"loss": 3, "ci_low": 3, "ci_high": 3}), ".decisions")
        return table, [*rest, *map(displays.plain, self.describe()), "next: dl.plots.race_course(...) draws it"]
