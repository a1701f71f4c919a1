"""Which tokens stand for which characters: spans of a text found again in the token ids that a model reads.

The token ids are lm-eval's (`encoding`); the characters of each come from the tokenizer's own offset mapping. A token
belongs to a span where it holds a character of it that is not white space: tokenizers differ in whether the space
before a word is its own token, a part of the next or cut from its offsets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance

from depthlens.errors import UserError
from depthlens.requests import LoglikelihoodRequest
from depthlens.tasks.encoding import Encoder


@dataclass(frozen=True)
class Text:
    """A context and a continuation, as characters and as tokens.

    Attributes:
        context: Characters before the continuation.
        continuation: Characters that follow.
        request: The tokens of both, as the engine is asked for them.
        offsets: Start and end of each token in ``context + continuation``; (0, 0) for tokens that stand for none.
    """

    context: str
    continuation: str
    request: LoglikelihoodRequest
    offsets: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        return (*self.request.context, *self.request.continuation)

    def positions(self, start: int, end: int) -> list[int]:
        """Positions of the tokens that hold a character of ``[start, end)`` which is not white space."""
        text = self.context + self.continuation
        held = ((i, max(a, start), min(b, end)) for i, (a, b) in enumerate(self.offsets))
        return [i for i, a, b in held if a < b and text[a:b].strip()]


def align(lens: Any, name: str, context: str, continuation: str, encoder: Encoder | None = None) -> Text:
    """Encode a context with its continuation as lm-eval does, and find the characters of every token.

    Args:
        lens: The model, whose tokenizer and length decide the tokens.
        name: What the text is of, for messages.
        context: Not empty.
        continuation: Not empty.
        encoder: For many texts: ``Encoder(lens)``, made once.

    Raises:
        UserError: the tokenizer cannot tell which characters a token stands for.
    """
    instance = Instance("loglikelihood", {}, (context, continuation), 0, (name, 0, 1))
    (request,) = (encoder or Encoder(lens)).requests(instance)
    if not lens.tokenizer.is_fast:
        raise UserError(f"tokenizer of {lens.name} gives no offsets of its tokens; a fast tokenizer is needed")
    encoded = lens.tokenizer(context + continuation, return_offsets_mapping=True, add_special_tokens=False)
    ids, offsets = tuple(encoded.input_ids), list(encoded.offset_mapping)
    tokens = (*request.context, *request.continuation)
    n = min(len(ids), len(tokens))  # tokens were put before (<bos>) or cut from the left (the model's length)
    if ids[-n:] != tokens[-n:]:
        raise UserError(f"{name}: the tokenizer of {lens.name} encodes a text in two ways; its spans cannot be found")
    return Text(context, continuation, request, tuple([(0, 0)] * (len(tokens) - n) + offsets[-n:]))


def words(text: str, wanted: str) -> Iterator[tuple[int, int]]:
    """Start and end of every place where ``wanted`` stands in ``text`` and is not a part of a longer word or number."""
    pattern = re.escape(wanted)
    before = r"(?<!\w)(?<!\d[.,])" if wanted[:1].isalnum() else ""
    after = r"(?!\w)(?![.,]\d)" if wanted[-1:].isalnum() else ""
    for match in re.finditer(before + pattern + after, text):
        yield match.span()
