"""What every backend gives a Hugging Face model, and what it makes of the model's final states."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from depthlens.backends.protocol import Positions
from depthlens.models.architectures import head
from depthlens.models.lens import Lens


class TwoRuns(DynamicCache):
    """A cache with another one, ``again``, for layers that run twice."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.again = DynamicCache(config=config)

    def batch_select_indices(self, indices: Int[Tensor, " row"]) -> None:
        """Keep some rows of both."""
        super().batch_select_indices(indices)
        self.again.batch_select_indices(indices)


def arguments(
    lens: Lens,
    tokens: Int[Tensor, "row pos"],
    attention_mask: Int[Tensor, "row cached_and_pos"],
    cache: Any,
    keep_cache: bool,
) -> dict[str, Any]:
    """Keyword arguments of the Hugging Face model's forward; see `depthlens.backends.protocol.Backend.forward`.

    The model itself unembeds the last position only: `logits` unembeds those that are asked for.
    """
    if cache is None and keep_cache:
        cache = TwoRuns(lens.model.config)
    return {
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :],
        "cache": cache,
        "use_cache": keep_cache,
        "logits_to_keep": 1,
    }


def logits(
    lens: Lens, states: Float[Tensor, "row pos d_model"], positions: Positions | None
) -> list[Float[Tensor, "_ d_vocab"]]:
    """Logits of the positions that are asked for, per row; None: the last one.

    Args:
        lens: Its own head makes logits from states.
        states: Final residual stream after the last norm.
        positions: Per row.
    """
    # the unembedding costs as much as several layers: only the positions that are asked for go through it
    positions = [[states.shape[1] - 1]] * len(states) if positions is None else positions
    picked = torch.cat([states[row, list(places)] for row, places in enumerate(positions)])
    return list(head(lens.model, picked).split([len(places) for places in positions]))
