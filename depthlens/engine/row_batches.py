"""The plain path of the engine: rows (condition, request) in padded batches, each a whole forward pass of a backend.

For backends that only know whole forward passes, for models on a server, and for attention that the wavefront does not
compute. Rows share nothing but the batch; the scores are those of the fast path (`depthlens.engine.packed_trees`). Long
requests come first, and answers are stored about every ten seconds. Where memory runs out, the batch is halved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from depthlens.backends.torch import Backend
from depthlens.engine.work import Work, text_lengths, tried
from depthlens.engine.writer import Row, Writer
from depthlens.errors import UserError
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens
from depthlens.models.quantised import other_weights_resident
from depthlens.progress import Bar
from depthlens.requests import LoglikelihoodAnswer
from depthlens.store.answer_cache import AnswerRows


class RowBatches:
    """Requests under conditions, row by row.

    Args:
        lens: A loaded model.
        backend: Applies the conditions.
        batch_tokens: Token budget of one batch (rows x padded length); falls where memory runs out.
        work: Counts what is computed.
        rows: Requests, conditions, and their answers, which are filled in and kept.
        bar: Moves by rows.
        writes: Whether texts are asked for, or log-likelihoods.
    """

    def __init__(
        self, lens: Lens, backend: Backend, batch_tokens: int, work: Work, rows: AnswerRows, bar: Bar, *, writes: bool
    ) -> None:
        self.lens = lens
        self.backend: Any = backend
        self.batch_tokens = batch_tokens
        self.work = work
        self.rows, self.bar, self.writes = rows, bar, writes

    def run(self) -> None:
        """Answer every request under every condition.

        Raises:
            UserError: a server is to draw tokens.
        """
        if self.writes and self.lens.remote and any(request.sampling for request in self.rows.requests):
            raise UserError(
                f"model {self.lens.name}: a server draws tokens in its own way; load the model here to sample"
            )
        with other_weights_resident(self.lens, self.rows.conditions) if self.writes else nullcontext():
            self._run()

    def _run(self) -> None:
        """Run all rows that lack an answer, long ones first, in batches under the budget."""
        rows, requests = self.rows, self.rows.requests
        lengths = [len(q.context) + q.max_new_tokens if self.writes else len(q.inputs) for q in requests]
        todo = [(c, r) for c, answers in enumerate(rows.answers) for r, answer in enumerate(answers) if answer is None]
        # in float64 nothing is padded: eager attention takes its softmax in float32, where what padding sees is NaN
        padded = not self.writes or self.lens.dtype != torch.float64
        widths = lengths if padded else [len(q.context) for q in requests]
        todo.sort(key=lambda row: (-widths[row[1]], -lengths[row[1]]))
        while todo:
            longest = max(1, lengths[todo[0][1]])
            batch = todo[: max(1, self.batch_tokens // longest)]
            if not padded:
                batch = [row for row in batch if widths[row[1]] == widths[batch[0][1]]]
            run = partial(self._write if self.writes else self._score, batch)
            answers = tried(run, smaller=len(batch) > 1)
            if answers is None:
                self.batch_tokens = max(1, len(batch) // 2 * longest)
                continue
            for (c, r), answer in zip(batch, answers, strict=True):
                rows.answers[c][r] = answer
            todo = todo[len(batch) :]
            self.bar.update(len(batch))
            rows.keep(batch, wait=True)

    def _score(self, batch: list[Row]) -> Sequence[Any]:
        under = [self.rows.conditions[c] for c, _ in batch]
        asked = [self.rows.requests[r] for _, r in batch]
        tokens, mask = self._padded([q.inputs for q in asked], "right")
        positions = [range(len(q.context) - 1, len(q.inputs)) for q in asked]
        if self.lens.remote:
            found = self.backend.score(tokens, under, positions, [q.continuation for q in asked])
        else:
            logits, _ = self.backend.forward(tokens, mask, under, positions=positions)
            found = [_scored(of_row, q.continuation) for of_row, q in zip(logits, asked, strict=True)]
        for condition, (logprob, _) in zip(under, found, strict=True):
            if not math.isfinite(logprob):
                raise self.lens.not_finite(condition)
        read = sum(len(q.inputs) for q in asked)
        self.work.add(Work(len(batch), read, read, layer_tokens=self.lens.dims.n_layers * read))
        return [LoglikelihoodAnswer(*answer) for answer in found]

    def _write(self, batch: list[Row]) -> Sequence[Any]:
        rows = self.rows
        asked = [rows.requests[r] for _, r in batch]
        writer = Writer(self.lens, rows.requests, rows.conditions)
        tokens, mask = self._padded([q.context for q in asked], "left")
        if self.lens.remote:
            under, most = [rows.conditions[c] for c, _ in batch], max(q.max_new_tokens for q in asked)
            new = self.backend.write(tokens, mask, under, most, writer.rules, writer.eos)
            texts = [writer.replay(row, of_row) for row, of_row in zip(batch, new, strict=True)]
        else:
            self._write_together(writer, batch, tokens, mask)
            texts = [writer.text(row) for row in batch]
        read = sum(len(q.context) for q in asked)
        written, expected = sum(len(writer.tokens[row]) for row in batch), sum(text_lengths(self.lens, asked))
        n_layers = self.lens.dims.n_layers
        passed, spared = n_layers * (read + written - len(batch)), n_layers * (expected - written)
        self.work.add(Work(len(batch), read, read, written, passed, spared))
        return texts

    def _write_together(
        self, writer: Writer, alive: list[Row], tokens: Int[Tensor, "row pos"], mask: Int[Tensor, "row pos"]
    ) -> None:
        cache = None
        while alive:
            under = [writer.conditions[c] for c, _ in alive]
            logits, cache = self.backend.forward(tokens, mask, under, cache=cache)
            unfinished = writer.write(alive, torch.cat(logits))
            if len(unfinished) < len(alive):
                keep = torch.tensor([alive.index(row) for row in unfinished], dtype=torch.long)
                cache.batch_select_indices(keep)  # which may be on several devices
                mask, alive = mask[keep], unfinished
            tokens = torch.tensor(writer.last(alive), device=self.lens.device)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)

    def _padded(self, rows: Sequence[Sequence[int]], side: str) -> list[Int[Tensor, "row pos"]]:
        """Token ids and attention mask; those for a server are here."""
        ids = [torch.tensor(row, device="cpu" if self.lens.remote else self.lens.device) for row in rows]
        padded = partial(pad_sequence, batch_first=True, padding_side=side)
        return [padded(ids), padded([torch.ones_like(row) for row in ids])]


def _scored(logits: Float[Tensor, "n_continuation d_vocab"], continuation: Sequence[int]) -> tuple[float, bool]:
    """Log-likelihood of a continuation from the logits that predict it, and whether it is the likeliest."""
    targets = torch.tensor(continuation, device=logits.device)
    logprobs = wide(logits).log_softmax(-1).gather(-1, targets[:, None])
    return float(logprobs.sum()), bool((logits.argmax(-1) == targets).all())
