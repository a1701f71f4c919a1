"""The plain path of the engine: rows (condition, request) one by one, each a whole forward pass.

For backends that only know whole forward passes, for models on a server, and for attention that the wavefront does not
compute. Long requests come first, in chunks that take about ten seconds, whose answers are stored as they come.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from depthlens.ablations import Condition
from depthlens.engine.work import Work, text_lengths
from depthlens.engine.work_rate import WorkRate
from depthlens.models.lens import Lens
from depthlens.models.rounded_weights import other_weights_resident
from depthlens.progress import Bar
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest
from depthlens.store.answer_rows import AnswerRows


class RowBatches(ABC):
    """Requests under conditions, row by row; see `depthlens.engine.engine.EnginePath`.

    Args:
        lens: A loaded model.
        batch_tokens: Token budget of one batch (rows x padded length); falls where memory runs out.
        work: Counts what is computed.
    """

    def __init__(self, lens: Lens, batch_tokens: int, work: Work) -> None:
        self.lens = lens
        self.batch_tokens = batch_tokens
        self.work = work

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
        with other_weights_resident(self.lens, rows.conditions):
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
            with rate.measured(work):
                answers = compute([requests[r] for r in members], [conditions[c] for c in group], bar)
            for c, of_condition in zip(group, answers, strict=True):
                for r, answer in zip(members, of_condition, strict=True):
                    rows.answers[c][r] = answer
                texts = [answer for answer in of_condition if isinstance(answer, str)]
                written = [len(self.lens.tokenizer(text).input_ids) + 1 for text in texts] if texts else None
                self._count([requests[r] for r in members], written)
            rows.put(members, group)

        order = sorted(range(len(requests)), key=lambda r: -lengths[r])
        while order:
            n_rows = max(1, int(max(rate.work / n_layers, self.batch_tokens) / max(1, lengths[order[0]])))
            n_conditions, n_requests = min(n_rows, len(conditions)), max(1, n_rows // len(conditions))
            for i in range(0, len(conditions), n_conditions):
                for product in rows.missing(order[:n_requests], range(len(conditions))[i : i + n_conditions]):
                    do(*product)
            order = order[n_requests:]

    def _count(self, requests: Sequence[Any], written: Sequence[int] | None) -> None:
        """Count rows of one condition, each a whole pass; and for a text one more for each token but the last."""
        read = sum(len(q.inputs if written is None else q.context) for q in requests)
        self.work.add(Work(len(requests), read, read, layer_tokens=self.lens.dims.n_layers * read))
        if written is not None:
            n, expected = sum(written), sum(text_lengths(self.lens, requests))
            again = self.lens.dims.n_layers * (n - len(requests))
            self.work.add(Work(written_tokens=n, layer_tokens=again, spared=expected - n))
