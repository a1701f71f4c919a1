"""A second module tree over the same weights, for a library that changes the modules it is given.

TransformerLens replaces submodules and switches the attention kernel; nnsight puts controllers on every module. Applied
to ``lens.model`` itself, they would change what it returns. So they get a deep copy whose parameters share the storage
of the original's. The copy costs the module objects and the rotary frequencies, and a weight that is changed in place
changes for all.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from nnsight import TransformersModel
from torch import nn
from transformers import PreTrainedModel

from depthlens.errors import UserError
from depthlens.models.placement import twin
from depthlens.models.quantised import is_quantised
from depthlens.progress import quiet

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from depthlens.models.lens import Lens


def shared_copy(lens: Lens, library: str) -> PreTrainedModel:
    """A copy of ``lens.model`` whose parameters share the original's storage, without its hooks.

    Args:
        lens: A loaded model.
        library: What needs it, for the error.

    Raises:
        UserError: the weights are not in memory.
    """
    lens.needs_weights(library)
    if len(lens.devices) > 1 or any(p.is_meta for p in lens.model.parameters()):
        raise UserError(f"{library} needs {lens.name!r} whole on one device; load it so, or use backend 'torch'")
    # new Parameter objects: moving or casting the copy then leaves the original where it is
    shared: dict[int, Any] = {
        id(p): p if is_quantised(p) else nn.Parameter(p.detach(), requires_grad=p.requires_grad)
        for p in lens.model.parameters()
    }
    model: PreTrainedModel = twin(lens.model, shared)
    # a model built from its configuration does not name its class there, and libraries look it up
    model.config.architectures = [type(lens.model).__name__]
    return model


def bridge(lens: Lens) -> TransformerBridge:
    """A `TransformerBridge` over the weights of a loaded model.

    Whatever is done to it (hooks, compatibility mode, another device) leaves ``lens.model`` as it is.

    Raises:
        UserError: TransformerLens does not know the architecture, or the weights are not in memory.
    """
    with quiet():  # the import changes transformers' level of logging
        from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
        from transformer_lens.model_bridge import TransformerBridge

    name = type(lens.model).__name__
    if name not in SUPPORTED_ARCHITECTURES:
        raise UserError(f"TransformerLens does not support {name}; use backend 'torch' or 'nnsight'")
    model = shared_copy(lens, "TransformerLens")
    tokenizer = copy.deepcopy(lens.tokenizer)
    # else the bridge loads the tokenizer a second time, by its name, which a .gguf file does not allow
    tokenizer.init_kwargs = {"name_or_path": lens.name, **tokenizer.init_kwargs, "add_bos_token": True}
    made = TransformerBridge.boot_transformers(
        lens.name, hf_model=model, tokenizer=tokenizer, device=lens.device, dtype=lens.dtype
    )
    # strings are encoded as the tokenizer does, with a first token of its own where it adds one and no other
    made.cfg.default_prepend_bos = made.cfg.tokenizer_prepends_bos
    # with transformers 5.24 a step of `generate` would not see the cache, nor anything that was written before
    made.adapter.supports_kv_cache = False
    # folding norms replaces most weights, but stacked experts are scaled in place, where lens.model has them too
    if any(p.ndim > 2 for p in model.parameters()):
        made.adapter.supports_fold_ln = False  # type: ignore[attr-defined]  # its subclasses have it
    return made


def wrap(lens: Lens) -> TransformersModel:
    """An nnsight model over the weights of a loaded model.

    Whatever is done to it (edits, another device) leaves ``lens.model`` as it is.

    Raises:
        UserError: the weights are not in memory.
    """
    # nnsight pads on the left and sets a pad token: on a tokenizer of its own
    return TransformersModel(shared_copy(lens, "nnsight"), tokenizer=copy.deepcopy(lens.tokenizer))
