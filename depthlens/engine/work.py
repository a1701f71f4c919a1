"""How much a sweep computes, counted in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from depthlens.models.lens import Lens
from depthlens.requests import GenerateRequest


@dataclass
class Work:
    """Counted work.

    Attributes:
        rows: Answers: of a request under a condition.
        tokens: Tokens that are read, those that requests share counted once (in every pack).
        unshared_tokens: Tokens that would be read without sharing: of every request under every condition.
        written_tokens: Tokens that are written.
        layer_tokens: Tokens that pass a layer, each layer and each condition counted.
        spared: Tokens that `text_lengths` expected of the texts that are written, and that they do not have.
    """

    rows: int = 0
    tokens: int = 0
    unshared_tokens: int = 0
    written_tokens: int = 0
    layer_tokens: int = 0
    spared: int = 0

    def add(self, other: Work) -> None:
        """Count what was counted elsewhere."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def described(self) -> dict[str, int]:
        """As a record has it."""
        return {name: value for name, value in vars(self).items() if name != "spared"}


def text_lengths(lens: Lens, requests: Sequence[GenerateRequest]) -> list[int]:
    """About how many tokens each text has: as many as its right answer and one that ends it, or half of what may be."""
    found = []
    for request in requests:
        most = request.max_new_tokens
        known = request.right
        n = most // 2 if known is None else len(lens.tokenizer(known, add_special_tokens=False).input_ids) + 1
        found.append(max(1, min(most, n)))
    return found
