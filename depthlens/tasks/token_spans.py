"""Which tokens encode which characters of a text.

The token ids are lm-eval's (`encoding`), and the characters of each come from the tokenizer's own offset mapping. A
token belongs to a span if it contains a character of it that is not white space, because tokenizers differ in whether
the space before a word is a token, a part of the next token, or left out of its offsets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from depthlens.errors import UserError
from depthlens.models.lens import Lens
from depthlens.requests import LoglikelihoodRequest

if TYPE_CHECKING:  # slow to import
    from depthlens.tasks.encoding import Encoder


@dataclass(frozen=True)
class Text:
    """A context and a continuation, as characters and as tokens.

    Attributes:
        context: Characters before the continuation.
        continuation: Characters that follow.
        request: The tokens of both, as a request to the engine.
        offsets: Start and end of each token in ``context + continuation``; (0, 0) for tokens without characters.
    """

    context: str
    continuation: str
    request: LoglikelihoodRequest
    offsets: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The token ids of context and continuation."""
        return (*self.request.context, *self.request.continuation)

    def positions(self, start: int, end: int) -> list[int]:
        """Positions of the tokens that contain a character of ``[start, end)`` other than white space."""
        text = self.context + self.continuation
        overlaps = ((i, max(a, start), min(b, end)) for i, (a, b) in enumerate(self.offsets))
        return [i for i, a, b in overlaps if a < b and text[a:b].strip()]


def align(lens: Lens, name: str, context: str, continuation: str, encoder: Encoder | None = None) -> Text:
    """Encode a context with its continuation as lm-eval does, and find the characters of every token.

    Args:
        lens: The model, whose tokenizer and length decide the tokens.
        name: Source of the text, for messages.
        context: Not empty.
        continuation: Not empty.
        encoder: For many texts: ``Encoder(lens)``, made once.

    Raises:
        UserError: the tokenizer encodes context and continuation in another way than lm-eval does.
    """
    from depthlens.tasks.encoding import Encoder  # slow to import

    request = (encoder or Encoder(lens)).pair(name, context, continuation)
    encoded = lens.tokenizer(context + continuation, return_offsets_mapping=True, add_special_tokens=False)
    ids, offsets = tuple(encoded.input_ids), list(encoded.offset_mapping)
    tokens = (*request.context, *request.continuation)
    n = min(len(ids), len(tokens))  # lm-eval adds <bos> in front, or cuts the left to the model's length
    if ids[-n:] != tokens[-n:]:
        raise UserError(f"{name}: the tokenizer of {lens.name} encodes a text in two ways; its spans cannot be found")
    return Text(context, continuation, request, tuple([(0, 0)] * (len(tokens) - n) + offsets[-n:]))


def occurrences(text: str, phrase: str) -> Iterator[tuple[int, int]]:
    """Start and end of every occurrence of a phrase in a text that is not a part of a longer word or number."""
    before = r"(?<!\w)(?<!\d[.,])" if phrase[:1].isalnum() else ""
    after = r"(?!\w)(?![.,]\d)" if phrase[-1:].isalnum() else ""
    for match in re.finditer(before + re.escape(phrase) + after, text):
        yield match.span()
