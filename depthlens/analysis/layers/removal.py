"""Layers removed one after another: the steps on two halves of the documents, and what they prove.

One half of the questions chooses the layer that costs least, and says when to stop. Its losses are too small, because
the cheapest of many removals is so partly by luck. The other half judges the layers that are gone in the end, once. It
has no say in how many these are: a rule that stopped on it would keep the last step that looked harmless there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from depthlens.analysis.numbers.words import bounds
from depthlens.analysis.result.findings import Finding
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.results import Result


@dataclass(frozen=True, repr=False, eq=False)
class Greedy(Finding):
    """Layers that were removed one after another.

    Attributes:
        steps: One row a step: step (0: nothing removed), layer (the one that went), removed (the condition); of the
            judging half of the documents value, delta (against the whole model), ci_low, ci_high, p_value, n; then
            ``chosen_by``, the same delta on the half that chose the layer, which the choice flatters, and ``within``,
            whether that half stayed within the tolerance.
        result: All conditions tried, on all documents.
        stopped: Why it ended.
        record: task, metric, tolerance, n_layers, higher_is_better.

    Example:
        >>> greedy.removed
        [5]
        >>> greedy.verdict
        'within'
    """

    RECORD: ClassVar[str] = "greedy.json"

    steps: pd.DataFrame
    result: Result
    stopped: str
    record: dict[str, Any]

    @property
    def removed(self) -> list[int]:
        """Layers that are gone in the end, in order: those with which the choosing half stayed within the tolerance."""
        return [int(layer) for layer in self.steps.loc[self.steps["within"], "layer"].dropna()]

    @property
    def verdict(self) -> str:
        """What the judging half says of the loss: ``within`` the tolerance, ``beyond`` it, or ``open``.

        The first two need the whole 95% interval of the loss on that side. In simulations where the layers that went
        cost as much as the tolerance or more, at most 2.5% of verdicts were ``within``.
        """
        sign, tolerance = -1 if self.record.get("higher_is_better", True) else 1, self.record["tolerance"]
        last = self.steps[self.steps["within"]].iloc[-1]
        low, high = sorted(sign * last[["ci_low", "ci_high"]])
        return "within" if high <= tolerance or not self.removed else "beyond" if low > tolerance else "open"

    def describe(self) -> list[str]:
        """How many layers one half of the documents let go, and what that costs on the other: one sentence."""
        last = self.steps[self.steps["within"]].iloc[-1]
        task, tolerance = "{task} ({metric})".format_map(self.record), f"{self.record['tolerance']:g}"
        if not self.removed:
            return [f"{task}: no layer can go within {tolerance} ({self.stopped})."]
        what = f"one half of the documents lets **{len(self.removed)} of {self.record['n_layers']}** layers go"
        shown = {"within": "shown within", "beyond": "shown beyond", "open": "not shown within or beyond"}
        said = f"on the other half that is {shown[self.verdict]} {tolerance} of the whole model"
        interval = f"{last.delta:+.2g} {bounds(last.ci_low, last.ci_high, '+.2g')}, n = {last.n}"
        return [f"{task}: {what} ({last.removed}); {said}: {interval}; {self.stopped}."]


def follow(
    tried: Callable[[list[int]], tuple[list[int], Losses]], *, tolerance: float, max_removed: int
) -> tuple[list[dict[str, Any]], str]:
    """Remove the layer that costs least, step by step, until the choosing half has lost more than allowed.

    Args:
        tried: The layers that are left, and what each of them costs, given the layers that are gone.
        tolerance: Loss that the choosing half may have.
        max_removed: Largest number of layers.

    Returns:
        The rows of `Greedy.steps` but for ``removed``, and why it ended.
    """
    rows: list[dict[str, Any]] = []
    gone: list[int] = []
    while len(gone) < max_removed:
        left, losses = tried(gone)
        choose, judge = losses.halves()
        costs = (choose.base[:, None] - choose.values).mean(0)
        best = int(np.argmin(costs))
        change, sign = judge.mean() * -losses.sign, losses.sign
        whole = {"value": sign * judge.base.mean(), **(change[best] * 0.0).columns("delta"), "chosen_by": 0.0}
        rows = rows or [{"step": 0, "layer": None, **whole, "n": len(judge.base), "within": True}]
        row = {"step": len(rows), "layer": left[best], "value": sign * judge.values[:, best].mean()}
        row |= change[best].columns("delta") | {"n": len(judge.base), "chosen_by": -sign * costs[best]}
        rows.append(row | {"within": bool(costs[best] <= tolerance)})
        if costs[best] > tolerance:
            return rows, f"one more (L{left[best]}) costs the choosing half {costs[best]:.2g}"
        gone.append(left[best])
    return rows, f"max_layers is {max_removed}"
