"""Tokens drawn from what a model predicts, so that a text depends on nothing that runs beside it.

Which token is drawn depends on one number between 0 and 1, which a hash gives for the seed, the condition, the prompt,
the number of the draw and the place in the text. It is looked up in the cumulative probabilities, in the order of the
vocabulary. Batches, order, and what was computed before therefore do not matter, except where rounding moves the border
between two tokens over the number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from depthlens.ablations import Condition
from depthlens.requests import GenerateRequest

_BITS = 52  # of the numbers: as many as a product with a float64 near 1 keeps below 1


def drawn(scores: Float[Tensor, "row d_vocab"], numbers: Sequence[float]) -> list[int]:
    """The tokens that numbers from 0 to 1 stand for, one a row.

    Args:
        scores: Logits, as transformers draws from them (`depthlens.engine.writer.processors`).
        numbers: One a row.
    """
    cumulative = scores.cpu().double().softmax(-1).cumsum(-1)
    places = torch.tensor(numbers, dtype=torch.float64)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, places, right=True)[:, 0].tolist()


class Numbers:
    """The number from 0 to 1 for every token of a text.

    Args:
        request: The prompt, and how it is to be answered.
        condition: What is ablated.
    """

    def __init__(self, request: GenerateRequest, condition: Condition) -> None:
        assert request.sampling is not None
        said = f"{request.sampling.seed} {request.sampling.draw} {condition} {request.context}"
        self._hash = hashlib.blake2b(said.encode(), digest_size=8)

    def at(self, place: int) -> float:
        """The number for the token at a place in the text."""
        found = self._hash.copy()
        found.update(f" {place}".encode())
        return (int.from_bytes(found.digest()) >> (64 - _BITS)) / 2**_BITS
