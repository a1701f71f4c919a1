"""What decides the answers of a model, as one fingerprint, and what no fingerprint can say.

A store finds answers by the fingerprint of the model that gave them, so everything that decides a forward pass goes in,
and it is taken anew for every experiment:

- every parameter and buffer in full, those that no file holds included (rotary frequencies), by XXH3 (128 bits);
- the tree of modules: names, classes, and their numbers and texts (scaling, epsilons, adapters in force);
- the configuration, without what only says where a file was.

`Identity.obstacle` names what remains: a hook, a forward method of its own, a class that is not of a library. Such a
model is computed without the store. Code of the libraries is not looked at: where you patch it, give ``store=None``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any, cast

import numpy as np
import torch
import xxhash
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig

from depthlens.models.in_force import LIBRARIES, foreign, home
from depthlens.models.placement import hooks_of, tensors_of

# where a file was and which library wrote it do not change what the model computes
_NOT_THE_MODEL = {"_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures"}
_NOT_THE_MODEL |= {"auto_map"}
_NUMBERS = (np.generic, np.ndarray, Tensor)  # as a scan of a setting makes them
_SETTINGS: tuple[type, ...] = (bool, int, float, str, type(None), torch.dtype, dict, list, tuple)
_SETTINGS += (*_NUMBERS, FunctionType, BuiltinFunctionType, partial)  # a partial one is such as the tanh form of GELU
# of a module: what torch keeps for itself, and how transformers and accelerate load, name and place it
_NOT_THE_MODULE = {*vars(nn.Module())} - {"training"}
_NOT_THE_MODULE |= {"_is_hf_initialized", "name_or_path", "loss_type", "_use_kernels", "_weight_conversions", "forward"}
# is_quantized: False of a .gguf file that transformers reads; weights say what they are
_NOT_THE_MODULE |= {"hf_device_map", "_hf_hook", "_old_forward", "to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa"}
_NOT_THE_MODULE |= {"is_quantized", *(f"_{which}_plan" for which in ("ep", "fsdp", "pp", "tp"))}


@dataclass(frozen=True)
class Identity:
    """Which model it is, as far as that can be said.

    Attributes:
        fingerprint: Equal for models that compute the same, wherever they were loaded from.
        obstacle: What the fingerprint does not cover, as a sentence without its subject; None where it covers all.
        settings: What else decides answers: how it writes text, its attention kernel, torch's precision.
    """

    fingerprint: str
    obstacle: str | None = None
    settings: dict[str, str] = field(default_factory=dict)


def of_model(model: nn.Module) -> Identity:
    """Identity of a Hugging Face causal language model as it is now; weights that are on disk are read for it."""
    from accelerate.utils import align_module_device  # slow to import

    digest = xxhash.xxh3_128(_configuration(cast(PreTrainedConfig, model.config)).encode())
    for name, module in model.named_modules(remove_duplicate=False):
        digest.update(f"{name} {kind_of(module)}".encode())
        with align_module_device(module):
            kept: dict[str, Tensor] = dict(module.named_buffers(recurse=False))
            module._save_to_state_dict(kept, "", False)  # what bitsandbytes has beside its weights, too
            for key in sorted(kept):
                _add(digest, key, kept[key])
    return Identity(digest.hexdigest(), _obstacle(model))


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    """Name, kind, shape, dtype and every byte of a tensor."""
    digest.update(f"{name} {type(tensor).__qualname__} {tuple(tensor.shape)} {tensor.dtype}".encode())
    for part in tensors_of(tensor):
        if part is not tensor:
            _add(digest, "", part)
            continue
        # so many bytes are moved from another device at once
        for chunk in tensor.detach().contiguous().reshape(-1).view(torch.uint8).split(1 << 28):
            digest.update(cast(Any, chunk.cpu().numpy()))


def kind_of(module: nn.Module, *, without: Collection[str] = ()) -> str:
    """The class of a module, and its numbers, texts and functions by name, as JSON."""
    left_out = {*_NOT_THE_MODULE, *without}
    settings = [(k, v) for k, v in sorted(vars(module).items()) if k not in left_out and isinstance(v, _SETTINGS)]
    return json.dumps([type(module).__module__, type(module).__qualname__, settings], default=_named, skipkeys=True)


def _named(value: Any) -> Any:
    """What stands for a value that JSON has no form for: not its address in memory, which differs everywhere."""
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, _NUMBERS):
        _add(digest := xxhash.xxh3_128(), "", torch.as_tensor(value))
        return digest.hexdigest()
    return str(value if isinstance(value, torch.dtype) else type(value))


def of_config(config: PreTrainedConfig, *where: object) -> str:
    """Fingerprint of a model whose weights are not here, from its configuration and where it is."""
    return xxhash.xxh3_128_hexdigest(json.dumps([_configuration(config), *map(str, where)]).encode())


def settings(config: GenerationConfig, tokenizer: Any, kernel: str | None) -> dict[str, str]:
    """What decides answers and is not part of the model; under ``writing`` a hash of what decides a written text.

    Args:
        config: How the model generates.
        tokenizer: Its tokenizer.
        kernel: Its attention kernel.
    """
    backends: Any = torch.backends
    parts = {"all": backends, "cuda": backends.cuda.matmul, "mkldnn": backends.mkldnn.matmul}
    precision = {name: part.fp32_precision for name, part in parts.items()}
    flags = ("allow_fp16_accumulation", "allow_bf16_reduced_precision_reduction")
    precision |= {flag: getattr(backends.cuda.matmul, flag) for flag in flags}
    precision |= {name: os.environ.get(name) for name in ("NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE")}
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else ""
    # version, truncation and padding come first, and encoding leaves its last ones there
    about = vocabulary or backend.to_str().partition('"added_tokens"')[2]
    left_out = ("_from_model_config", "transformers_version")
    generation = [(k, v) for k, v in config.to_diff_dict().items() if k not in left_out]
    spaces = getattr(tokenizer, "clean_up_tokenization_spaces", None)
    rules = [end_tokens(config, tokenizer), sorted(generation, key=str), spaces]
    writing = xxhash.xxh3_128_hexdigest(f"{rules} {about}".encode())
    return {"writing": writing, "attention": str(kernel), "matmul": str(precision)}


def end_tokens(config: GenerationConfig, tokenizer: Any) -> list[int]:
    """Tokens that end a text, sorted: those of the generation configuration, else the tokenizer's."""
    eos = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    return sorted({*eos} if isinstance(eos, (list, tuple)) else {eos} - {None})


def _configuration(config: PreTrainedConfig) -> str:
    entries = {k: v for k, v in config.to_dict().items() if k not in _NOT_THE_MODEL}
    return json.dumps(entries, sort_keys=True, default=str)


def _obstacle(model: nn.Module) -> str | None:
    """The first part of a model whose computation a fingerprint does not cover."""
    if found := foreign(model):
        return found
    for name, module in model.named_modules():
        kind, what = type(module), name or type(module).__name__
        if any(word in str(getattr(module, "rope_type", "")) for word in ("dynamic", "longrope")):
            return f"has {what}, whose frequencies depend on the longest text of a batch"
        code = [("class", kind), ("forward", kind.forward), *vars(module).items()]
        code += [("hook of accelerate", hook.pre_forward) for hook in hooks_of(module)]
        if own := next((key for key, value in code if home(value) not in LIBRARIES), None):
            return f"has {what}, whose {own} was written in no library"
    return None


def state_of(model: nn.Module, *, copied: bool = False) -> tuple[object, ...]:
    """What differs after a module, a tensor, a plain value, a method or the configuration of a model was changed.

    A hash of every weight would tell more, and take seconds: this is for what is made of a model in this process.

    Args:
        model: The model.
        copied: What is made is a copy over the same weights: it sees what is written into them, and has methods of its
            own.
    """

    def written(tensor: Tensor, shared: bool = False) -> tuple[int, int]:
        return tensor.data_ptr(), 0 if shared or tensor.is_inference() else tensor._version

    def method(module: nn.Module) -> int | None:
        own = None if copied else vars(module).get("forward")
        return None if own is None or home(own) == "depthlens" else id(own)

    modules = [(id(module), kind_of(module), method(module)) for module in model.modules()]
    weights = [written(part, copied) for weight in model.parameters() for part in tensors_of(weight)]
    return modules, weights, [*map(written, model.buffers())], cast(PreTrainedConfig, model.config).to_json_string()
