"""A second module tree over the same weights, for a library that changes the modules it is given.

TransformerLens replaces submodules and switches the attention kernel; nnsight puts controllers on every module. Given
``lens.model`` itself, they would change what it returns. A twin is a deep copy whose parameters share the storage of
the original's, so it costs the module objects and the rotary frequencies, and a weight that is changed in place
changes for all. Hooks that are on the original at that moment are left behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


def arguments(lens: Any, tokens: Tensor, attention_mask: Tensor, cache: Any, keep_cache: bool) -> dict[str, Any]:
    """Keyword arguments of the Hugging Face model's forward; see `depthlens.backends.protocol.Backend.forward`.

    Only the last position is unembedded by the model: `logits` unembeds those that are asked for.
    """
    if cache is None and keep_cache:
        cache = DynamicCache(config=lens.model.config)
    return {
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :],
        "cache": cache,
        "use_cache": keep_cache,
        "logits_to_keep": 1,
    }


def logits(states: Tensor, unembed: Any, positions: Sequence[Sequence[int]] | None) -> list[Tensor]:
    """Logits of the positions that are asked for, per row; None: the last one.

    Args:
        states: Final residual stream after the last norm. Shape [row, pos, d_model].
        unembed: From states to logits.
        positions: Per row.
    """
    wanted = [[states.shape[1] - 1]] * len(states) if positions is None else positions
    picked = torch.cat([states[i, list(p)] for i, p in enumerate(wanted)])
    return list(unembed(picked).split([len(p) for p in wanted]))
