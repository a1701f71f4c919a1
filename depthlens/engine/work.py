"""How much a sweep computes: tokens, and floating point operations.

Operations are those that the answers need: 2 for each parameter that a token passes, those of attention from a token to
itself and to all before it, and the product with the unembedding of every position whose logits are read (Kaplan et al.
2020, arXiv 2001.08361, section 2.1). What a kernel does beyond that, such as masked squares, is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from depthlens.models.lens import Lens
from depthlens.models.quantised import n_weights
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
        attended: Pairs of a token that passes a layer and a token that it attends to there.
        unembedded: Positions whose logits are computed.
        states: Most residual streams that are kept at once; no sum.
        keys: Most tokens whose keys and values are kept at once; no sum.
        spared: Tokens that `text_lengths` expected of the texts that are written, and that they do not have.
    """

    rows: int = 0
    tokens: int = 0
    unshared_tokens: int = 0
    written_tokens: int = 0
    layer_tokens: int = 0
    attended: float = 0.0
    unembedded: int = 0
    states: int = 0
    keys: int = 0
    spared: int = 0

    def add(self, other: Work) -> None:
        """Count what was counted elsewhere."""
        for name, value in vars(other).items():
            before = getattr(self, name)
            setattr(self, name, max(before, value) if name in ("states", "keys") else before + value)

    def passed(self, n: int, context: float) -> None:
        """Count tokens that passed a layer and attended to so many tokens on average."""
        self.layer_tokens += n
        self.attended += n * context

    def described(self, lens: Lens) -> dict[str, Any]:
        """As a record has it."""
        names = ("rows", "tokens", "unshared_tokens", "written_tokens", "layer_tokens")
        return {name: getattr(self, name) for name in names} | {"flops": self.flops(lens)}

    def flops(self, lens: Lens) -> float:
        """Floating point operations on a model."""
        dims = lens.dims
        attention = 2 * dims.n_heads * 2 * dims.d_head  # a query with a key, and a weight with a value
        unembedding = 2 * dims.d_model * lens.model.get_output_embeddings().weight.shape[0]
        per_token = 2 * parameters_per_token(lens)
        return per_token * self.layer_tokens + attention * self.attended + unembedding * self.unembedded


def text_lengths(lens: Lens, requests: Sequence[GenerateRequest]) -> list[int]:
    """About how many tokens each text has: as many as its right answer and one that ends it, or half of what may be."""
    found = []
    for request in requests:
        most = request.max_new_tokens
        known = request.right
        n = most // 2 if known is None else len(lens.tokenizer(known, add_special_tokens=False).input_ids) + 1
        found.append(max(1, min(most, n)))
    return found


def parameters_per_token(lens: Lens) -> float:
    """Parameters of a layer that one token passes, on average over layers: of experts only those that it is sent to."""
    config = lens.model.config
    chosen = getattr(config, "num_experts_per_tok", None)
    total = 0.0
    for layer in lens.arch.layers:
        for p in layer.parameters():
            total += n_weights(p) * (chosen / p.shape[0] if chosen is not None and p.dim() == 3 else 1)
    return total / len(lens.arch.layers)
