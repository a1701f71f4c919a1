"""The plain path of the engine: rows (condition, request) one by one, each a whole forward pass.

For backends that only know whole forward passes, for models on a server, and for attention that the wavefront does not
compute. Long requests come first, in chunks that take about ten seconds, whose answers are stored as they come.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from depthlens.ablations import Condition
from depthlens.engine.nonfinite import renumbered
from depthlens.engine.work_rate import WorkRate
from depthlens.models.lens import Lens, donor_layers_resident
from depthlens.progress import Bar
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest
from depthlens.store.answer_rows import AnswerRows


class RowBatches(ABC):
    """Requests under conditions, row by row; see `depthlens.engine.engine.EnginePath`.

    Args:
        lens: A loaded model.
        batch_tokens: Token budget of one batch (rows x padded length); falls where memory runs out.
    """

    def __init__(self, lens: Lens, batch_tokens: int) -> None:
        self.lens = lens
        self.batch_tokens = batch_tokens

    @abstractmethod
    def score(
        self, requests: Sequence[LoglikelihoodRequest], conditions: Sequence[Condition], bar: Bar
    ) -> list[list[LoglikelihoodAnswer]]:
        """Log-likelihoods, indexed [condition][request]; see `depthlens.engine.engine.Engine.loglikelihood`."""

    @abstractmethod
    def write(self, requests: Sequence[GenerateRequest], conditions: Sequence[Condition], bar: Bar) -> list[list[str]]:
        """Texts, indexed [condition][request]; see `depthlens.engine.engine.Engine.generate_until`."""

    def loglikelihood(self, rows: AnswerRows, bar: Bar) -> None:
        """Score every request under every condition."""
        self._answer(self.score, [len(q.inputs) for q in rows.requests], rows, bar)

    def generate_until(self, rows: AnswerRows, bar: Bar) -> None:
        """Write the greedy text of every request under every condition."""
        with donor_layers_resident(self.lens.donor, rows.conditions):
            self._answer(self.write, [len(q.context) + q.max_new_tokens for q in rows.requests], rows, bar)

    def _answer(
        self,
        compute: Callable[[Sequence[Any], Sequence[Condition], Bar], list[list[Any]]],
        lengths: Sequence[int],
        rows: AnswerRows,
        bar: Bar,
    ) -> None:
        requests, conditions = rows.requests, rows.conditions
        rate, n_layers = WorkRate(self.lens), self.lens.dims.n_layers

        def do(members: list[int], group: list[int]) -> None:
            work = n_layers * len(group) * sum(lengths[r] for r in members)
            with renumbered(group, members), rate.measured(work):
                answers = compute([requests[r] for r in members], [conditions[c] for c in group], bar)
            for c, of_condition in zip(group, answers, strict=True):
                for r, answer in zip(members, of_condition, strict=True):
                    rows.answers[c][r] = answer
            rows.put(members, group)

        order = sorted(range(len(requests)), key=lambda r: -lengths[r])
        while order:
            n_rows = max(1, int(max(rate.work / n_layers, self.batch_tokens) / max(1, lengths[order[0]])))
            n_conditions, n_requests = min(n_rows, len(conditions)), max(1, n_rows // len(conditions))
            for i in range(0, len(conditions), n_conditions):
                rows.run(order[:n_requests], range(len(conditions))[i : i + n_conditions], do, bar.update)
            order = order[n_requests:]
        rows.finish(do, bar.update)
