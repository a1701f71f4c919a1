"""Rows (condition, request) in padded batches, each a whole forward pass of a backend.

Rows share nothing but the batch; the scores are those of the fast path (`depthlens.engine.packed_trees`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor

from depthlens.ablations import Condition
from depthlens.backends.protocol import Backend
from depthlens.engine.memory_budget import out_of_memory
from depthlens.engine.row_batches import RowBatches
from depthlens.engine.work import Work
from depthlens.engine.writer import Row, Writer
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens
from depthlens.progress import Bar
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest


class PaddedRows(RowBatches):
    """Requests under conditions, row by row; ``batch_tokens`` falls where memory runs out.

    Args:
        lens: A loaded model.
        backend: Applies the conditions.
        batch_tokens: Token budget of one batch (rows x padded length).
        work: Counts what is computed.
    """

    def __init__(self, lens: Lens, backend: Backend, batch_tokens: int, work: Work) -> None:
        super().__init__(lens, batch_tokens, work)
        self.backend = backend

    def score(
        self, requests: Sequence[LoglikelihoodRequest], conditions: Sequence[Condition], bar: Bar
    ) -> list[list[LoglikelihoodAnswer]]:
        """See `RowBatches.score`."""
        answers = [[LoglikelihoodAnswer(math.nan, False)] * len(requests) for _ in conditions]

        def run(batch: list[Row]) -> None:
            tokens = [requests[r].inputs for _, r in batch]
            padded, mask = self._pad(tokens, left=False)
            positions = [range(len(requests[r].context) - 1, len(t)) for (_, r), t in zip(batch, tokens, strict=True)]
            under = [conditions[c] for c, _ in batch]
            logits, _ = self.backend.forward(padded, mask, under, positions=positions)
            for (c, r), values in zip(batch, logits, strict=True):
                answers[c][r] = answer = score_continuation(values, requests[r].continuation)
                if not math.isfinite(answer.logprob):
                    raise self.lens.not_finite(conditions[c])

        self._run([len(q.inputs) for q in requests], len(conditions), run, bar)
        return answers

    def write(self, requests: Sequence[GenerateRequest], conditions: Sequence[Condition], bar: Bar) -> list[list[str]]:
        """See `RowBatches.write`."""
        texts = [[""] * len(requests) for _ in conditions]

        def run(batch: list[Row]) -> None:
            writer = Writer(self.lens, requests, conditions)
            tokens, mask = self._pad([requests[r].context for _, r in batch], left=True)
            alive, cache = batch, None
            while True:
                under = [conditions[c] for c, _ in alive]
                logits, cache = self.backend.forward(tokens, mask, under, cache=cache)
                unfinished = writer.write(alive, torch.cat(logits))
                if not unfinished:
                    break
                if len(unfinished) < len(alive):
                    keep = torch.tensor([alive.index(row) for row in unfinished])  # the cache may be on several devices
                    cache.batch_select_indices(keep)
                    mask, alive = mask[keep], unfinished
                tokens = torch.tensor(writer.last(alive), device=self.lens.device)[:, None]
                mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            for c, r in batch:
                texts[c][r] = writer.text((c, r))

        # in float64 nothing is padded: eager attention takes its softmax in float32, where what padding sees is NaN
        alike = [len(q.context) for q in requests] if self.lens.dtype == torch.float64 else None
        self._run([len(q.context) + q.max_new_tokens for q in requests], len(conditions), run, bar, alike)
        return texts

    def _pad(self, rows: list[tuple[int, ...]], *, left: bool) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]:
        """Token ids and attention mask."""
        width = max(map(len, rows))
        tokens, mask = torch.zeros(2, len(rows), width, dtype=torch.long).unbind()
        for i, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            tokens[i, place] = torch.tensor(row)
            mask[i, place] = 1
        return tokens.to(self.lens.device), mask.to(self.lens.device)

    def _run(
        self,
        lengths: Sequence[int],
        n_conditions: int,
        run: Callable[[list[Row]], None],
        bar: Bar,
        alike: Sequence[int] | None = None,
    ) -> None:
        """Run all rows, long ones first, in batches under the budget; halve the budget where memory runs out.

        A batch has requests of one kind only, where there are numbers that tell which are ``alike``.
        """
        rows = [(c, r) for r in range(len(lengths)) for c in range(n_conditions)]
        rows.sort(key=lambda row: -lengths[row[1]])
        start = 0
        while start < len(rows):
            longest = lengths[rows[start][1]]
            batch = rows[start : start + max(1, self.batch_tokens // longest)]
            if alike is not None:
                batch = list(next(groupby(batch, lambda row: alike[row[1]]))[1])
            try:
                run(batch)
            except (torch.OutOfMemoryError, RuntimeError) as e:
                if not out_of_memory(e) or len(batch) == 1:
                    raise
                self.batch_tokens = max(1, len(batch) // 2 * longest)
                continue
            start += len(batch)
            bar.update(len(batch))


def score_continuation(
    logits: Float[Tensor, "n_continuation d_vocab"], continuation: Sequence[int]
) -> LoglikelihoodAnswer:
    """Log-likelihood of a continuation from the logits that predict it."""
    targets = torch.tensor(continuation, device=logits.device)
    logprobs = torch.log_softmax(wide(logits), -1).gather(-1, targets[:, None])
    return LoglikelihoodAnswer(float(logprobs.sum()), bool((logits.argmax(-1) == targets).all()))
