"""Attention over a packed prefix tree: every token sees the prefix and its ancestors, nothing else.

`depthlens.engine.attention_choice` says which kernel computes it. Registered with transformers' attention interface;
any family that calls it can be walked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

from depthlens.engine import attention_choice
from depthlens.engine.attention_choice import TREES, Case, Tree
from depthlens.engine.prefix_tree import Pack
from depthlens.models.architectures import AttentionLayout

NAME = "depthlens_tree"


class Layout:
    """A pack as tensors: token ids, positions, and which keys each branch token sees.

    Attributes:
        tokens: Shape [pos].
        position_ids: Shape [1, pos].
        n_prefix: Number of prefix tokens; they come first.
        rows: Condition of each row that now passes a layer, -1 for the clean one; set by the walk.
    """

    rows: list[int]

    def __init__(self, pack: Pack, device: torch.device) -> None:
        self.rows = []
        self.tokens = torch.tensor(pack.tokens, device=device)
        self.position_ids: Tensor = torch.tensor([pack.depths], device=device)
        self.n_prefix = len(pack.prefix)
        self._make = lambda kernel, device, dtype: TREES[kernel](pack, device, dtype)
        self._trees: dict[tuple[str, torch.device, torch.dtype], Tree] = {}

    def attention(
        self,
        layer: int,
        query: Float[Tensor, "row n_heads pos d_head"],
        key: Float[Tensor, "row n_kv_heads pos d_head"],
        value: Float[Tensor, "row n_kv_heads pos d_value"],
        scale: float,
    ) -> Float[Tensor, "row n_heads pos d_value"]:
        """Attention of rows that all have this layout.

        Args:
            layer: Layer number (for layouts that keep what they see).
            query: Query heads.
            key: Key heads.
            value: Value heads.
            scale: Factor on the scores.
        """
        case = Case.of(query, key, value)
        made = attention_choice.kernel(case), case.device, case.dtype
        if made not in self._trees:
            self._trees[made] = self._make(*made)
        return self._trees[made].attention(query, key, value, scale)


def tree_attention(
    module: nn.Module,
    query: Float[Tensor, "row n_heads pos d_head"],
    key: Float[Tensor, "row n_kv_heads pos d_head"],
    value: Float[Tensor, "row n_kv_heads pos d_value"],
    attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: AttentionLayout,
    **kwargs: Any,
) -> tuple[Float[Tensor, "row pos n_heads d_value"], None]:
    """Transformers' attention interface: the layout, which knows which keys each token sees, computes z.

    A mask that a changed model makes for itself is not used; `walk_check` finds that its layers give something else.

    Returns:
        z, and no weights.

    Raises:
        NotImplementedError: the model caps scores or has attention sinks, which no layout knows.
    """
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux")):
        raise NotImplementedError("scores are capped, or some attention goes nowhere")
    z = layout.attention(cast(int, module.layer_idx), query, key, value, scaling)
    return z.transpose(1, 2).contiguous(), None  # as transformers' own kernels give it


@contextmanager
def walking(model: nn.Module) -> Iterator[None]:
    """Within the context the model's attention modules use tree attention and need ``layout=``."""
    from transformers import AttentionInterface  # slow to import

    AttentionInterface.register(NAME, tree_attention)
    config = cast(PreTrainedConfig, model.config)
    before = config._attn_implementation
    try:
        config._attn_implementation = NAME
        yield
    finally:
        config._attn_implementation = before
