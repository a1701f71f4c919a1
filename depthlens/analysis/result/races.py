"""What a race decided: see `depthlens.race` and, for the test, `depthlens.analysis.numbers.betting`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from depthlens.analysis.numbers.betting import AT_CHANCE, CRITICAL, SPARED, UNDECIDED
from depthlens.analysis.result.findings import Finding


@dataclass(frozen=True, eq=False, repr=False)
class Race(Finding):
    """What a race decided, and after how many documents.

    Attributes:
        decisions: One row a task and condition: task, metric, condition, layer, head, decision, n (documents that the
            condition was run on), loss (mean over these, clipped; it is too large where a condition left early),
            ci_low, ci_high (interval that holds at every time together). A decision is ``critical``, ``spared`` or
            ``undecided``; or ``at chance`` where the whole model is not shown to be above it.
        losses: One row a task, condition and document: task, condition, doc_id, wave, loss.
        record: What was asked, with ``n_documents`` and ``n_baseline`` by task (`docs/files.md`), and ``work``.

    Example:
        >>> race.of("critical")
        ['L0']
        >>> race.decisions[["condition", "decision", "n"]]
          condition   decision   n
        0        L0   critical  20
        1        L1     spared  21
        2        L2  undecided  22
    """

    NEXT: ClassVar[str] = "next: describe() says it in words, decisions has when each was decided"

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
