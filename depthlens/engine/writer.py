"""What rows write: the next token of each, when a text ends, and what of it is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from depthlens.ablations import Condition
from depthlens.engine.nonfinite import NotFinite
from depthlens.engine.sampling import Numbers, drawn
from depthlens.models import fingerprint
from depthlens.models.lens import Lens
from depthlens.requests import GenerateRequest, Sampling, WrittenAnswer

Row = tuple[int, int]  # condition, prompt


class Writer:
    """What each row has written, and when it is done: end-of-text token, stop string or length, as in lm-eval.

    Args:
        lens: A loaded model.
        requests: Of the rows.
        conditions: Of the rows; they decide which tokens are drawn where a request asks for sampling.
    """

    def __init__(self, lens: Lens, requests: Sequence[GenerateRequest], conditions: Sequence[Condition]) -> None:
        config = lens.model.generation_config
        self.eos = fingerprint.end_tokens(config, lens.tokenizer)
        penalty = fingerprint.penalty(config)
        self.penalty = RepetitionPenaltyLogitsProcessor(penalty) if penalty != 1.0 else None
        self.tokenizer = lens.tokenizer
        self.requests = requests
        self.conditions = conditions
        self.tokens: dict[Row, list[int]] = {}
        self._numbers: dict[Row, Numbers] = {}

    def write(self, rows: list[Row], logits: Float[Tensor, "row d_vocab"]) -> list[Row]:
        """Append a token to each row, the likeliest or one that is drawn; returns the rows that are not finished.

        Raises:
            NotFinite: the highest logit of a row is not finite.
        """
        if self.penalty is not None:
            read = [[*self.requests[row[1]].context, *self.tokens.get(row, [])] for row in rows]
            logits = torch.cat(
                [self.penalty(torch.tensor([t], device=x.device), x[None]) for t, x in zip(read, logits, strict=True)]
            )
        highest, likeliest = logits.max(-1)  # NaN is the highest of all
        if not (finite := highest.isfinite()).all():
            row = rows[int((~finite).nonzero()[0, 0])]
            raise NotFinite(row, self.tokens.get(row, ()))
        tokens = likeliest.tolist()
        for sampling, places in self._sampled(rows).items():
            numbers = [self._number(rows[i]) for i in places]
            for i, token in zip(places, drawn(logits[places], sampling, numbers), strict=True):
                tokens[i] = token
        for row, token in zip(rows, tokens, strict=True):
            self.tokens.setdefault(row, []).append(token)
        return [row for row in rows if not self._finished(row)]

    def _sampled(self, rows: Sequence[Row]) -> dict[Sampling, list[int]]:
        """Places of rows whose tokens are drawn, by how they are; rows of several draws are drawn alike."""
        found: dict[Sampling, list[int]] = {}
        for i, (_, r) in enumerate(rows):
            if (sampling := self.requests[r].sampling) is not None:
                found.setdefault(replace(sampling, draw=0), []).append(i)
        return found

    def _number(self, row: Row) -> float:
        if row not in self._numbers:
            self._numbers[row] = Numbers(self.requests[row[1]], self.conditions[row[0]])
        return self._numbers[row].at(len(self.tokens.get(row, ())))

    def replay(self, row: Row, tokens: Sequence[int]) -> WrittenAnswer:
        """The text of a row from tokens chosen elsewhere, as many of them as would have been written here."""
        self.tokens[row] = []
        for token in tokens:
            self.tokens[row].append(token)
            if self._finished(row):
                break
        return self.text(row)

    def last(self, rows: list[Row]) -> list[int]:
        """The last token of each row."""
        return [self.tokens[row][-1] for row in rows]

    def _finished(self, row: Row) -> bool:
        return self._ended(row) or len(self.tokens[row]) >= self.requests[row[1]].max_new_tokens

    def _ended(self, row: Row) -> bool:
        """Whether a row ended by itself or at a stop string."""
        tokens, request = self.tokens[row], self.requests[row[1]]
        if tokens[-1] in self.eos:
            return True
        text = cast(str, self.tokenizer.decode(tokens, skip_special_tokens=False))
        if request.think_end is not None:
            _, _, text = text.rpartition(request.think_end) if request.think_end in text else ("", "", "")
        return any(stop in text for stop in request.until)

    def text(self, row: Row) -> WrittenAnswer:
        """What a row has written after it thought, cut before its first stop string."""
        tokens, request = self.tokens[row], self.requests[row[1]]
        # what ends the thinking may be a special token
        text = cast(str, self.tokenizer.decode(tokens, skip_special_tokens=request.think_end is None))
        if request.think_end is not None:
            text = text.split(request.think_end)[-1].lstrip()
            for special in self.tokenizer.all_special_tokens:
                text = text.replace(special, "")
        return WrittenAnswer(cut(text, request.until), self._ended(row))


def cut(text: str, until: Sequence[str]) -> str:
    """``text`` before the first of the stop strings."""
    for stop in until:
        text = text.split(stop)[0]
    return text
