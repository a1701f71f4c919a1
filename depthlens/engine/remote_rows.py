"""Requests under conditions on a server: as many of both in one trace as a token budget holds.

All conditions of a request share a trace, so that a sweep makes about (documents x conditions x tokens) / budget round
trips, and two numbers a row come back. Text is written by Hugging Face's ``generate`` there; stop strings are found
here, so that it costs the longest answer that is allowed.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Sequence

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from depthlens.ablations import Condition
from depthlens.backends.remote import RemoteNnsight, padded
from depthlens.engine.row_batches import RowBatches
from depthlens.engine.work import Work
from depthlens.engine.writer import Writer
from depthlens.errors import UserError
from depthlens.models.lens import Lens
from depthlens.models.remote import Overfull
from depthlens.progress import Bar
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest


class RemoteRows(RowBatches):
    """Requests under conditions, as many of both in one trace as the budget holds.

    Args:
        lens: A model loaded with ``remote``.
        backend: Sends the traces.
        batch_tokens: Token budget of one trace (rows x padded length); falls where the server runs out.
        work: Counts what is computed.
    """

    def __init__(self, lens: Lens, backend: RemoteNnsight, batch_tokens: int, work: Work) -> None:
        super().__init__(lens, batch_tokens, work)
        self.backend = backend

    def score(
        self, requests: Sequence[LoglikelihoodRequest], conditions: Sequence[Condition], bar: Bar
    ) -> list[list[LoglikelihoodAnswer]]:
        """See `RowBatches.score`."""
        edits = [self.backend.edits(c) for c in conditions]
        answers = [[LoglikelihoodAnswer(math.nan, False)] * len(requests) for _ in conditions]

        def run(members: list[int], group: list[int]) -> None:
            # causal attention: padding to the right of a row's end does not reach it, so that no mask is needed
            tokens = padded([requests[r].inputs for r in members])
            lengths = torch.tensor([len(requests[r].continuation) for r in members] * len(group))
            places = [p for r in members for p in range(len(requests[r].context) - 1, len(requests[r].inputs))]
            targets = [t for r in members for t in requests[r].continuation]
            scores = self.backend.remote.attempt(
                lambda sender: self.backend.send(
                    sender,
                    [(tokens, None, edits[c]) for c in group],
                    rows=torch.arange(len(lengths)).repeat_interleave(lengths),
                    places=torch.tensor(places * len(group)),
                    targets=torch.tensor(targets * len(group)),
                ),
                bar,
            )
            rows = [(c, r) for c in group for r in members]
            for (c, r), logprob, misses in zip(rows, *scores.tolist(), strict=True):
                if not math.isfinite(logprob):
                    raise self.lens.not_finite(conditions[c])
                answers[c][r] = LoglikelihoodAnswer(logprob, misses == 0)

        self._run([len(q.inputs) for q in requests], len(conditions), run, bar)
        return answers

    def write(self, requests: Sequence[GenerateRequest], conditions: Sequence[Condition], bar: Bar) -> list[list[str]]:
        """See `RowBatches.write`."""
        edits = [self.backend.edits(c) for c in conditions]
        texts = [[""] * len(requests) for _ in conditions]
        if any(request.sampling for request in requests):
            raise UserError(
                f"model {self.lens.name}: a server draws tokens in its own way; load the model here to sample"
            )
        writer = Writer(self.lens, requests, conditions)
        # the others depend on the length of a prompt, which is padded there
        if others := [rule for rule in writer.rules if not isinstance(rule, RepetitionPenaltyLogitsProcessor)]:
            fault = f"a server applies {type(others[0]).__name__} of its generation configuration in its own way"
            raise UserError(f"model {self.lens.name}: {fault}; load the model here to write texts")
        options = {
            "do_sample": False,
            "num_beams": 1,
            "repetition_penalty": float(self.lens.model.generation_config.repetition_penalty or 1.0),
            "eos_token_id": writer.eos or None,
            "pad_token_id": writer.eos[0] if writer.eos else 0,  # only ever after the end
        }

        def run(members: list[int], group: list[int]) -> None:
            contexts = [requests[r].context for r in members]
            tokens, mask = padded(contexts, left=True), padded([[1] * len(c) for c in contexts], left=True)
            written = self.backend.remote.attempt(
                lambda sender: self.backend.send(
                    sender,
                    [(tokens, mask, edits[c]) for c in group],
                    n_new=max(requests[r].max_new_tokens for r in members),
                    options=options,
                ),
                bar,
            )
            rows = [(c, r) for c in group for r in members]
            for row, new in zip(rows, written.tolist(), strict=True):
                texts[row[0]][row[1]] = writer.replay(row, new)

        with warnings.catch_warnings():  # a trace has a step for every token that may be written; often fewer are
            warnings.filterwarnings("ignore", message=".*the loop asked for a step the run did not make")
            self._run([len(q.context) + q.max_new_tokens for q in requests], len(conditions), run, bar)
        return texts

    def _run(
        self, lengths: list[int], n_conditions: int, run: Callable[[list[int], list[int]], None], bar: Bar
    ) -> None:
        """Run requests under conditions, long ones first; halve the budget when the server runs out."""
        order = sorted(range(len(lengths)), key=lambda r: -lengths[r])
        todo = deque([(order, list(range(n_conditions)))]) if order else deque()
        while todo:
            members, group = todo.popleft()
            width = lengths[members[0]]
            fits = max(1, self.batch_tokens // width)
            if len(group) > fits:
                todo.appendleft((members, group[fits:]))
                group = group[:fits]
            n = max(1, fits // len(group))
            if len(members) > n:
                todo.appendleft((members[n:], group))
                members = members[:n]
            n_rows = len(members) * len(group)
            try:
                run(members, group)
            except Overfull as e:
                if n_rows == 1:
                    raise UserError(f"one row of {width} tokens is too much for the server: {e}") from e
                self.batch_tokens = n_rows // 2 * width
                todo.appendleft((members, group))
                continue
            bar.update(n_rows)
