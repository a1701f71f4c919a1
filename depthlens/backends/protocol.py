"""What a backend is: rows of tokens in, logits out, one condition a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from depthlens.ablations import Condition


@dataclass(frozen=True)
class Means:
    """What ``@mean`` and ``@resample`` ablations put in place of a part, from a named reference.

    Attributes:
        name: What the reference set is, for the record.
        layer: Mean over all positions of what each whole layer adds to the residual stream. Shape [n_layers, d_model].
        attn: Mean output of each attention sublayer. Shape [n_layers, d_model].
        mlp: Mean output of each MLP sublayer. Shape [n_layers, d_model].
        z: Mean output of each head before ``o_proj``. Shape [n_layers, n_heads, d_head].
        sample: Output of each head at every position of one prompt, for ``@resample``; else None. Shape [n_layers,
            pos, n_heads, d_head].
    """

    name: str
    layer: Tensor
    attn: Tensor
    mlp: Tensor
    z: Tensor
    sample: Tensor | None = None

    def sampled(self, layer: int, position_ids: Tensor) -> Tensor:
        """What ``@resample`` puts at some positions: the reference prompt's z at the same ones.

        A longer row reads the reference again from its second token on, since the first draws attention for no
        reason of its content.

        Args:
            layer: Layer number.
            position_ids: Shape [row, pos].

        Returns:
            Shape [row, pos, n_heads, d_head].
        """
        n = self.sample.shape[1]
        again = 1 + (position_ids - 1) % max(1, n - 1)
        return self.sample[layer][position_ids.where(position_ids < n, again).clamp(max=n - 1)]


@runtime_checkable
class Backend(Protocol):
    """Applies conditions, one per row of a batch."""

    name: str

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor,
        conditions: Sequence[Condition],
        *,
        cache: Any = None,
        positions: Sequence[Sequence[int]] | None = None,
    ) -> tuple[list[Tensor], Any]:
        """Run rows of tokens, each under its own condition.

        Args:
            tokens: Token ids. Shape [row, pos].
            attention_mask: 1 for real tokens, 0 for padding, cached ones included. Shape [row, cached + pos].
            conditions: One per row.
            cache: What an earlier call returned; the rows go on from there. None starts afresh.
            positions: Per row, the positions in ``tokens`` whose logits are wanted; None: the last one.

        Returns:
            Logits per row, each of shape [n_positions, d_vocab], and the cache.
        """
        ...
