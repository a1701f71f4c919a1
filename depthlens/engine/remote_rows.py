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
from typing import Any

import torch
from tqdm import tqdm

from depthlens.ablations import Condition
from depthlens.backends.remote import RemoteNnsight, padded
from depthlens.engine.decoding import Writer
from depthlens.engine.nonfinite import NotFinite
from depthlens.errors import UserError
from depthlens.models.remote import Overfull
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest


class RemoteRows:
    """Requests under conditions, as many of both in one trace as the budget holds; see `padded_rows.PaddedRows`.

    Args:
        lens: A model loaded with ``remote``.
        backend: Sends the traces.
        batch_tokens: Token budget of one trace (rows x padded length); falls where the server runs out.
    """

    def __init__(self, lens: Any, backend: RemoteNnsight, batch_tokens: int) -> None:
        self.lens = lens
        self.backend = backend
        self.batch_tokens = batch_tokens

    def loglikelihood(
        self, requests: Sequence[LoglikelihoodRequest], conditions: Sequence[Condition], bar: tqdm
    ) -> list[list[LoglikelihoodAnswer]]:
        """See `depthlens.engine.engine.Engine.loglikelihood`."""
        edits = [self.backend.edits(c) for c in conditions]
        answers: list[list[Any]] = [[None] * len(requests) for _ in conditions]
        # the last token of a continuation is predicted, never read
        inputs = [(*q.context, *q.continuation)[:-1] for q in requests]

        def run(members: list[int], group: list[int]) -> None:
            # causal attention: what stands right of a row's end does not reach it, so that no mask is needed
            tokens = padded([inputs[r] for r in members])
            lengths = torch.tensor([len(requests[r].continuation) for r in members] * len(group))
            places = [p for r in members for p in range(len(requests[r].context) - 1, len(inputs[r]))]
            targets = [t for r in members for t in requests[r].continuation]
            found = self.lens.remote.attempt(
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
            for (c, r), logprob, misses in zip(rows, *found.tolist(), strict=True):
                if not math.isfinite(logprob):
                    raise NotFinite((c, r))
                answers[c][r] = LoglikelihoodAnswer(logprob, misses == 0)

        self._run([len(t) for t in inputs], len(conditions), run, bar)
        return answers

    def generate_until(
        self, requests: Sequence[GenerateRequest], conditions: Sequence[Condition], bar: tqdm
    ) -> list[list[str]]:
        """See `depthlens.engine.engine.Engine.generate_until`."""
        edits = [self.backend.edits(c) for c in conditions]
        texts: list[list[str]] = [[""] * len(requests) for _ in conditions]
        writer = Writer(self.lens, requests)
        options = {
            "do_sample": False,
            "num_beams": 1,
            "eos_token_id": writer.eos or None,
            "pad_token_id": writer.eos[0] if writer.eos else 0,  # only ever after the end
        }

        def run(members: list[int], group: list[int]) -> None:
            contexts = [requests[r].context for r in members]
            tokens, mask = padded(contexts, left=True), padded([[1] * len(c) for c in contexts], left=True)
            found = self.lens.remote.attempt(
                lambda sender: self.backend.send(
                    sender,
                    [(tokens, mask, edits[c]) for c in group],
                    n_new=max(requests[r].max_new_tokens for r in members),
                    options=options,
                ),
                bar,
            )
            rows = [(c, r) for c in group for r in members]
            for (c, r), new in zip(rows, found.tolist(), strict=True):
                texts[c][r] = writer.replay((c, r), new)

        with warnings.catch_warnings():  # an invoke is there for every token that may come; often fewer do
            warnings.filterwarnings("ignore", message=".*the loop asked for a step the run did not make")
            self._run([len(q.context) + q.max_new_tokens for q in requests], len(conditions), run, bar)
        return texts

    def _run(
        self, lengths: list[int], n_conditions: int, run: Callable[[list[int], list[int]], None], bar: tqdm
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
