"""A second module tree over the same weights, for a library that changes the modules it is given.

TransformerLens replaces submodules and switches the attention kernel; nnsight puts controllers on every module. Given
``lens.model`` itself, they would change what it returns. A twin is a deep copy whose parameters share the storage of
the original's, so it costs the module objects and the rotary frequencies, and a weight that is changed in place
changes for all. Hooks that are on the original at that moment are left behind.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from depthlens.errors import UserError


def twin(lens: Any, library: str) -> nn.Module:
    """A copy of ``lens.model`` whose parameters share the original's storage.

    Args:
        lens: A loaded model.
        library: What needs it, for the error.

    Raises:
        UserError: the weights are not in memory.
    """
    lens.needs_weights(library)
    if any(p.is_meta for p in lens.model.parameters()):
        raise UserError(
            f"model {lens.name!r} is loaded with its weights left on disk, which {library} cannot use; "
            "use backend 'torch', or load the model without offload"
        )
    # new Parameter objects: moving or casting the twin then leaves the original where it is
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in lens.model.parameters()}
    model = copy.deepcopy(lens.model, shared)
    for module in model.modules():
        vars(module).pop("forward", None)  # a transplant that is in force belongs to the original too
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
        for flags in (module._forward_hooks_with_kwargs, module._forward_pre_hooks_with_kwargs):
            flags.clear()
    # a model built from its configuration does not name its class there, and libraries look it up
    model.config.architectures = [type(lens.model).__name__]
    return model


def arguments(lens: Any, tokens: Tensor, attention_mask: Tensor, cache: Any, keep_cache: bool) -> dict[str, Any]:
    """Keyword arguments of the Hugging Face model's forward; see `depthlens.backends.Backend.forward`.

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
