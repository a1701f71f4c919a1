"""Results of removing layers one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from depthlens.analysis.results import Result
from depthlens.analysis.saving import Saveable


@dataclass(frozen=True, repr=False, eq=False)
class Greedy(Saveable):
    """Layers that were removed one after another.

    Attributes:
        steps: One row a step: step (0: nothing removed), layer (the one that went), removed (the condition); of the
            judging half of the documents value, delta (against the whole model), ci_low, ci_high, p_value, n; then
            ``chosen_by``, the same delta on the half that chose the layer, which the choice flatters, and ``within``.
        result: All conditions tried, on all documents.
        stopped: Why it ended.
        record: task, metric, tolerance.
    """

    RECORD: ClassVar[str] = "greedy.json"
    INSIDE: ClassVar[type[Saveable] | None] = Result
    OPTIONAL: ClassVar[tuple[str, ...]] = Result.OPTIONAL

    steps: pd.DataFrame
    result: Result
    stopped: str
    record: dict[str, Any]

    @property
    def removed(self) -> list[int]:
        """Layers that can go: those of the steps whose loss stayed within the tolerance, in order."""
        return [int(layer) for layer in self.steps.loc[self.steps["within"], "layer"].dropna()]

    def __repr__(self) -> str:
        return "\n".join([*self.describe(), self.steps.to_string(index=False)])

    def describe(self) -> list[str]:
        """How many layers can go, and what that costs: one sentence."""
        last = self.steps[self.steps["within"]].iloc[-1]
        n, of, task = len(self.removed), self.record["n_layers"], self.record["task"]
        what = f"{task} ({self.record['metric']}) stays within {self.record['tolerance']:g} of the whole model"
        if not n:
            return [f"{task}: no layer can go within {self.record['tolerance']:g} ({self.stopped})."]
        interval = f"{last.delta:+.2g} [{last.ci_low:+.2g}, {last.ci_high:+.2g}], n = {last.n}"
        return [f"{what} with **{n} of {of}** layers gone ({last.removed}): {interval}; {self.stopped}."]
