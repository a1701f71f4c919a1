"""The plain way: rows (condition, request) in padded batches, each a whole forward pass of a backend.

For backends that only know whole forward passes, and for attention that the fast path does not walk. Shares nothing
but the batch; the scores are those of the fast path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from depthlens.ablations import Condition
from depthlens.backends.protocol import Backend
from depthlens.engine.decoding import Row, Writer
from depthlens.engine.memory_budget import out_of_memory
from depthlens.engine.nonfinite import NotFinite
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest


class PaddedRows:
    """Requests under conditions, row by row; ``batch_tokens`` falls where memory runs out.

    Args:
        lens: A loaded model.
        backend: Applies the conditions.
        batch_tokens: Token budget of one batch (rows x padded length).
    """

    def __init__(self, lens: Any, backend: Backend, batch_tokens: int) -> None:
        self.lens = lens
        self.backend = backend
        self.batch_tokens = batch_tokens

    def loglikelihood(
        self, requests: Sequence[LoglikelihoodRequest], conditions: Sequence[Condition], bar: tqdm
    ) -> list[list[LoglikelihoodAnswer]]:
        """See `depthlens.engine.engine.Engine.loglikelihood`."""
        answers: list[list[Any]] = [[None] * len(requests) for _ in conditions]
        # the last token of a continuation is predicted, never read
        inputs = [(*q.context, *q.continuation)[:-1] for q in requests]
        rows = [(c, r) for r in range(len(requests)) for c in range(len(conditions))]
        rows.sort(key=lambda row: -len(inputs[row[1]]))

        def run(batch: list[tuple[int, int]]) -> None:
            picked = [requests[r] for _, r in batch]
            tokens = [inputs[r] for _, r in batch]
            padded, mask = self._pad(tokens, left=False)
            positions = [range(len(q.context) - 1, len(t)) for q, t in zip(picked, tokens, strict=True)]
            logits, _ = self.backend.forward(padded, mask, [conditions[c] for c, _ in batch], positions=positions)
            for (c, r), q, values in zip(batch, picked, logits, strict=True):
                answers[c][r] = score(values, q.continuation)
                if not math.isfinite(answers[c][r].logprob):
                    raise NotFinite((c, r))

        self._run(rows, lambda row: len(inputs[row[1]]), run, bar)
        return answers

    def generate_until(
        self, requests: Sequence[GenerateRequest], conditions: Sequence[Condition], bar: tqdm
    ) -> list[list[str]]:
        """See `depthlens.engine.engine.Engine.generate_until`."""
        texts: list[list[str]] = [[""] * len(requests) for _ in conditions]
        rows = [(c, r) for r in range(len(requests)) for c in range(len(conditions))]
        rows.sort(key=lambda row: -len(requests[row[1]].context))

        def run(batch: list[Row]) -> None:
            writer = Writer(self.lens, requests)
            tokens, mask = self._pad([requests[r].context for _, r in batch], left=True)
            alive, cache = batch, None
            while True:
                logits, cache = self.backend.forward(tokens, mask, [conditions[c] for c, _ in alive], cache=cache)
                going_on = writer.write(alive, torch.cat(logits))
                if not going_on:
                    break
                if len(going_on) < len(alive):
                    keep = torch.tensor([alive.index(row) for row in going_on], device=self.lens.device)
                    cache.batch_select_indices(keep)
                    mask, alive = mask[keep], going_on
                tokens = torch.tensor(writer.last(alive), device=self.lens.device)[:, None]
                mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            for c, r in batch:
                texts[c][r] = writer.text((c, r))

        self._run(rows, lambda row: len(requests[row[1]].context) + requests[row[1]].max_new_tokens, run, bar)
        return texts

    def _pad(self, rows: list[tuple[int, ...]], *, left: bool) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, each of shape [row, pos]."""
        width = max(map(len, rows))
        tokens, mask = torch.zeros(2, len(rows), width, dtype=torch.long).unbind()
        for i, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            tokens[i, place] = torch.tensor(row)
            mask[i, place] = 1
        return tokens.to(self.lens.device), mask.to(self.lens.device)

    def _run(self, rows: list[Any], length: Callable[[Any], int], run: Callable[[list[Any]], None], bar: tqdm) -> None:
        """Run rows, sorted long first, in batches under the budget; halve the budget when memory runs out."""
        start = 0
        while start < len(rows):
            size = max(1, self.batch_tokens // length(rows[start]))
            batch = rows[start : start + size]
            try:
                run(batch)
            except (torch.OutOfMemoryError, RuntimeError) as e:
                if not out_of_memory(e) or len(batch) == 1:
                    raise
                self.batch_tokens = max(1, len(batch) // 2 * length(rows[start]))
                continue
            start += len(batch)
            bar.update(len(batch))


def score(logits: Tensor, continuation: Sequence[int]) -> LoglikelihoodAnswer:
    """Log-likelihood of a continuation from the logits that predict it. Shape [n_continuation, d_vocab]."""
    wanted = torch.tensor(continuation, device=logits.device)
    logprobs = torch.log_softmax(logits.float(), -1).gather(-1, wanted[:, None])
    return LoglikelihoodAnswer(float(logprobs.sum()), bool((logits.argmax(-1) == wanted).all()))
