"""Cheap signs of what a model computes beside the hash of its weights: changed weights, how it writes, hooks on it.

A store finds answers by the model's fingerprint. These say when that must be taken again, what else decides a text, and
when weights no longer tell what a model does.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn


def state(model: nn.Module) -> tuple:
    """Sign of the weights: where they are, how often they were written, and some of their values."""
    tensors = [*model.parameters(), *model.buffers()]
    # writing through `.data` leaves the version as it is
    values = [t.detach().flatten()[:: max(1, t.numel() // 8)][:8].tolist() for t in tensors]
    return tuple((t.data_ptr(), t._version, repr(v)) for t, v in zip(tensors, values, strict=True))


def hash_weight(entry: tuple[str, Tensor]) -> bytes:
    """Hash of an entry of a state dict: name, shape, dtype and bytes; lets other threads run meanwhile."""
    key, tensor = entry
    digest = hashlib.blake2b(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy())
    return digest.digest()


def writing(tokenizer: Any, config: Any) -> str:
    """Hash of the tokenizer and of what a generation configuration says of ends and repetition."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        about = tokenizer.get_vocab()
    else:  # encoding leaves its last padding and truncation there
        about = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("padding", "truncation")}
    rules = [tokenizer.eos_token_id, config.eos_token_id, config.repetition_penalty]
    return hashlib.blake2b(json.dumps([about, rules], sort_keys=True).encode(), digest_size=16).hexdigest()


def changed_by_hand(model: nn.Module) -> tuple[str, str] | None:
    """First module with hooks or a forward method of its own, and which; None where there is none."""
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return name or type(module).__name__, "hooks"
        if "forward" in vars(module):
            return name or type(module).__name__, "a forward method of its own"
    return None
