"""What a backend is: rows of tokens in, logits out, one condition a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from depthlens.ablations import Condition

Positions = Sequence[Sequence[int]]  # by row


@dataclass(frozen=True)
class Means:
    """What ``@mean`` and ``@resample`` ablations put in place of a part, from a named reference.

    Attributes:
        name: What the reference set is, for the record.
        layer: Mean over all positions of what each whole layer adds to the residual stream.
        attn: Mean output of each attention sublayer.
        mlp: Mean output of each MLP sublayer.
        z: Mean output of each head before ``o_proj``.
        sample: Output of each head at every position of one prompt, for ``@resample``; else None.
    """

    name: str
    layer: Float[Tensor, "n_layers d_model"]
    attn: Float[Tensor, "n_layers d_model"]
    mlp: Float[Tensor, "n_layers d_model"]
    z: Float[Tensor, "n_layers n_heads d_head"]
    sample: Float[Tensor, "n_layers pos n_heads d_head"] | None = None

    def sampled(self, layer: int, position_ids: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos n_heads d_head"]:
        """What ``@resample`` puts at some positions of a layer: the reference prompt's z at the same ones.

        A longer row reads the reference again from its second token on, because the first token draws attention
        whatever its content.
        """
        assert self.sample is not None, "conditions with @resample are refused where there is no reference prompt"
        n = self.sample.shape[1]
        again = 1 + (position_ids - 1) % max(1, n - 1)
        return self.sample[layer][position_ids.where(position_ids < n, again).clamp(max=n - 1)]


@runtime_checkable
class Backend(Protocol):
    """Applies conditions, one per row of a batch."""

    name: str
    means: Means | None

    def forward(
        self,
        tokens: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row cached_and_pos"],
        conditions: Sequence[Condition],
        *,
        cache: Any = None,
        positions: Positions | None = None,
    ) -> tuple[list[Float[Tensor, "_ d_vocab"]], Any]:
        """Run rows of tokens, each under its own condition.

        Args:
            tokens: Token ids.
            attention_mask: 1 for real tokens, 0 for padding, cached ones included.
            conditions: One per row.
            cache: What an earlier call returned; the rows continue from there. None starts anew.
            positions: Per row, the positions in ``tokens`` whose logits are returned; None: the last one.

        Returns:
            Logits per row, each of shape [n_positions, d_vocab], and the cache.
        """
        ...
