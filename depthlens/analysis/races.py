"""Races: which parts matter, from as few documents as that takes.

Every condition has two tests on its paired losses, both by betting (`depthlens.analysis.betting`): that it costs more
than 0, which makes it *critical*, and that it costs less than a margin, which makes it *spared*. Both nulls cannot be
true together. A condition leaves as soon as one of them is rejected. With probability at least ``1 - alpha`` no
decision of the whole race is wrong, at whatever time it ends, for documents that are drawn at random.

A race for the k costliest parts asks something else: whether a part is one of them at all. If it is, at most ``k - 1``
parts cost more. Of any m rivals, at least ``m - k + 1`` then do not cost more, and the average of the ``m - k + 1``
smallest capitals that bet on "the rival costs more" is a valid capital. The part leaves when that reaches
``2 k / alpha``, because only k parts can be lost wrongly. Rivals are chosen before: half of the capital bets on the
first ``2 k`` of an order that is a guess, such as attribution's, half on all (the first 512). The race ends when k
parts are left, or when each of the k that have cost most is shown to cost as much as the k-th costliest, less the
margin. With probability at least ``1 - alpha`` every part that is chosen costs at most the margin less than the k-th
costliest, and no part that left is one of the k costliest. A part that is neither chosen nor out may be one of them.

Losses are within [-1, 1]. Scores between 0 and 1 are as they are. A loss in another unit, such as nats, is clipped to
[-1, 1]: such a race judges the mean of clipped losses, in which one document cannot count more than one unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy

from depthlens.analysis import displays
from depthlens.analysis.betting import BETS, closed_rejections, log_capital, log_gains
from depthlens.analysis.saving import Saveable
from depthlens.errors import UserError

CRITICAL, SPARED, UNDECIDED, AT_CHANCE = "critical", "spared", "undecided", "at chance"
TOP, NOT_TOP, NOT_EXCLUDED = "costliest within the margin", "not among the costliest", "not excluded"
RIVALS, MOST_RIVALS = 2, 512  # of a guess, times k; of all


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


class TopEvidence:
    """What documents have shown of each condition: whether it is one of the k costliest.

    Args:
        order: All conditions by number, those first that are thought to cost most.
        k: How many are looked for.
        margin: By how much those that are found may cost less than the k-th costliest.
        alpha: Probability of a wrong answer.
        bound: Largest difference of two losses of one document: 1 for scores between 0 and 1, else 2. It must be known
            before the documents are: bets on differences that are divided by it are fair only then.
    """

    def __init__(self, order: Sequence[int], k: int, margin: float, alpha: float, bound: float) -> None:
        n = len(order)
        self.k, self.margin, self.alpha, self.bound = k, margin, alpha, bound
        self._rivals = np.array(order[: max(MOST_RIVALS, RIVALS * k)])
        self._n_guessed = min(len(self._rivals), RIVALS * k)
        self._more = np.zeros((n, len(self._rivals), len(BETS)))  # bets that the rival costs more
        self._near = np.zeros((n, n, len(BETS)))  # bets that the first costs more than the second less the margin
        self._sum, self._seen = np.zeros(n), np.zeros(n)
        self.left = np.ones(n, dtype=bool)

    def add(self, at: Sequence[int] | np.ndarray, losses: np.ndarray) -> None:
        """Take in documents; see `Evidence.add`. Only conditions that are left are run.

        Raises:
            UserError: two losses of one document differ by more than the bound.
        """
        at = np.array(at)
        if (widest := np.ptp(losses, axis=1).max(initial=0.0)) > self.bound + 1e-9:
            fault = f"two losses of one document differ by {widest:.3g}, and its metric allows {self.bound:g} at most"
            raise UserError(f"{fault}; correct the task's scoring")
        self._sum[at] += losses.sum(0)
        self._seen[at] += len(losses)
        column = {condition: i for i, condition in enumerate(at)}
        for place, rival in enumerate(self._rivals):
            if rival in column:
                difference = (losses[:, [column[rival]]] - losses) / self.bound
                self._more[at, place] += log_gains(difference)
        for first in self._candidates(at):
            difference = losses[:, [column[first]]] - losses + self.margin
            self._near[first, at] += log_gains(difference / (self.bound - self.margin))
        self._leave()

    def _candidates(self, at: np.ndarray) -> np.ndarray:
        """Those whose bets on being near the top are followed: all, as long as not too many are left."""
        return at if len(at) <= 8 * self.k else at[:0]

    def _leave(self) -> None:
        capitals = log_capital(self._more)
        capitals[self._rivals, np.arange(len(self._rivals))] = np.inf  # no rival of its own
        found = np.logaddexp(self._outdone(capitals[:, : self._n_guessed]), self._outdone(capitals)) - np.log(2)
        limit = np.log(self.k / (self.alpha / 2))
        for i in np.flatnonzero(self.left & (found >= limit))[: max(0, self.left.sum() - self.k)]:
            self.left[i] = False

    def _outdone(self, capitals: np.ndarray) -> np.ndarray:
        """Logarithm of a capital that bets on k rivals that cost more. Shape [condition, rival] -> [condition]."""
        n_true = np.isfinite(capitals).sum(1) - self.k + 1  # the fewest that do not, if it is one of the k
        smallest = np.sort(capitals, axis=1)
        of_first = np.logaddexp.accumulate(smallest, axis=1)
        rows = np.arange(len(capitals))
        return np.where(n_true > 0, of_first[rows, n_true - 1] - np.log(np.maximum(1, n_true)), -np.inf)

    @property
    def best(self) -> np.ndarray:
        """The k of those left that have cost most so far."""
        left = np.flatnonzero(self.left)
        return left[np.argsort(-self._sum[left] / np.maximum(1, self._seen[left]), kind="stable")[: self.k]]

    @property
    def found(self) -> bool:
        """Whether the best are the answer."""
        left = np.flatnonzero(self.left)
        if len(left) <= self.k:
            return True
        limit = np.log((len(self.left) - self.k) / (self.alpha / 2))
        capitals = log_capital(self._near)
        for first in self.best:
            others = np.sort(capitals[first, left[left != first]])[: self.k]
            if scipy.special.logsumexp(others) - np.log(len(others)) < limit:
                return False
        return True

    def decisions(self) -> list[str]:
        """The decision on every condition as of now."""
        names = [(NOT_EXCLUDED if self.found else UNDECIDED) if left else NOT_TOP for left in self.left]
        for i in self.best if self.found else ():
            names[i] = TOP
        return names


@dataclass(frozen=True, eq=False, repr=False)
class Race(Saveable):
    """What a race decided, and after how many documents.

    Attributes:
        decisions: One row a task and condition: task, metric, condition, layer, head, decision, n (documents that the
            condition was run on), loss (mean over these, clipped; it is too large where a condition left early),
            ci_low, ci_high (interval that holds at every time together). A decision is ``critical``, ``spared`` or
            ``undecided``; or ``at chance`` where the whole model is not shown to be above it. In a race for the k
            costliest it is ``costliest within the margin`` (chosen: it costs at most the margin less than the k-th
            costliest), ``not among the costliest``, ``not excluded`` (not chosen, and it may be one of the k) or
            ``undecided``, where the race ended before k were found.
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
        alpha, margin, top = (self.record[name] for name in ("alpha", "margin", "top"))
        for (task, metric), rows in self.decisions.groupby(["task", "metric"], sort=False):
            counts = rows["decision"].value_counts()
            n_most = self.record["n_documents"][task]
            least, most = rows["n"].min(), rows["n"].max()
            span = f"{least}" if least == most else f"{least} to {most}"
            told = f"after {span} of {n_most} documents (mean {rows['n'].mean():.0f})"
            start = f"{task} ({metric}): of {len(rows)} conditions "
            if AT_CHANCE in counts:
                start = f"{task} ({metric}): none of {len(rows)} conditions is judged"
                lines.append(f"{start}, because {n_most} documents do not show the whole model to be above chance.")
            elif top is not None:
                lines.append(f"{start}{_costliest(rows, top, margin)}; {told}.")
            else:
                n = {name: int(counts.get(name, 0)) for name in (CRITICAL, SPARED, UNDECIDED)}
                said = f"**{n[CRITICAL]}** cost something, **{n[SPARED]}** cost less than {margin:g}"
                lines.append(f"{start}{said}, {n[UNDECIDED]} are undecided; {told}.")
        return [*lines, f"The probability that any of these decisions is wrong is at most {alpha:g}."]

    def __repr__(self) -> str:
        return displays.as_text("", *self._shown())

    def _repr_html_(self) -> str:
        return displays.as_html("", *self._shown())

    def _shown(self) -> tuple[pd.DataFrame, list[str]]:
        columns = ["task", "condition", "decision", "n", "loss", "ci_low", "ci_high"]
        table, rest = displays.cut(self.decisions[columns].round({"loss": 3, "ci_low": 3, "ci_high": 3}), ".decisions")
        return table, [*rest, *map(displays.plain, self.describe()), "next: dl.plots.race_course(...) draws it"]


def _costliest(rows: pd.DataFrame, top: int, margin: float) -> str:
    """What a race for the costliest has shown, without what it has not."""
    counts = rows["decision"].value_counts()
    n_out = f"shown not to be among the {top} costliest: {counts.get(NOT_TOP, 0)}"
    if UNDECIDED in counts:
        return f"the {top} costliest are not found; undecided: {counts[UNDECIDED]}; {n_out}"
    chosen = ", ".join(rows.loc[rows["decision"] == TOP, "condition"])
    if NOT_EXCLUDED not in counts:
        return f"the {top} costliest are {chosen}"
    near = f"each of {chosen} costs at most {margin:g} less than number {top} of the costliest"
    return f"{near}; not excluded: {counts[NOT_EXCLUDED]}; {n_out}"
