"""How a condition is applied: one protocol, one small file per library.

A backend turns token rows and one condition per row into logits. It knows nothing of tasks or of the engine that
makes the batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from depthlens.ablations import Condition
from depthlens.errors import unknown


@dataclass(frozen=True)
class Means:
    """Means over every position of a named reference set, which ``@mean`` ablations put in place of a part.

    Attributes:
        name: What the reference set is, for the record.
        layer: What each whole layer adds to the residual stream. Shape [n_layers, d_model].
        attn: Output of each attention sublayer. Shape [n_layers, d_model].
        mlp: Output of each MLP sublayer. Shape [n_layers, d_model].
        z: Output of each head before ``o_proj``. Shape [n_layers, n_heads, d_head].
    """

    name: str
    layer: Tensor
    attn: Tensor
    mlp: Tensor
    z: Tensor


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


BACKENDS = ("torch",)


def get(name: str, lens: Any, means: Means | None = None) -> Backend:
    """The backend of a given name over a loaded model.

    Raises:
        UserError: for a name that is not a backend.
    """
    if name == "torch":
        from depthlens.backends.torch import TorchBackend

        return TorchBackend(lens, means)
    raise unknown("backend", name, BACKENDS)
