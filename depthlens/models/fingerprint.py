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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any, cast

import torch
import xxhash
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig

from depthlens.models import placement
from depthlens.models.quantised import depends_on_batch, is_quantised, said, tensors_of

# whose code does what its version says; anything else may change between two runs
LIBRARIES = {"torch", "transformers", "peft", "torchao", "bitsandbytes", "depthlens"}
_PRECISION_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE")
_OURS = "_part_of_depthlens"
_CHUNK = 1 << 28  # bytes that are moved from another device at once
# where a file was and which library wrote it do not change what the model computes
_NOT_THE_MODEL = {
    "_name_or_path",
    "name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "architectures",
    "auto_map",
}
# of a module: what torch keeps for itself, and how transformers and accelerate load, name and place it
_NOT_THE_MODULE = {*vars(nn.Module())} - {"training"}
_NOT_THE_MODULE |= {"_is_hf_initialized", "name_or_path", "loss_type", "_use_kernels", "_weight_conversions", "forward"}
_NOT_THE_MODULE |= {"hf_device_map", "_hf_hook", "_old_forward", "to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa"}
_NOT_THE_MODULE |= {f"_{which}_plan" for which in ("ep", "fsdp", "pp", "tp")}
# of a generation configuration: what decides no text, what `of_writing` has apart, and what a request says itself
_NOT_TEXT = {
    *("_from_model_config", "transformers_version", "bos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory"),
    *("compile_config", "disable_compile", "continuous_batching_config", "return_dict_in_generate"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("eos_token_id", "repetition_penalty"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "max_length", "max_new_tokens"),
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


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


def ours(call: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a forward method that this library puts in place of a module's own and that changes no number."""
    setattr(call, _OURS, True)
    return call


def of_model(model: nn.Module, weights: Iterable[tuple[str, bytes]] | None = None) -> Identity:
    """Identity of a model as it is now.

    Args:
        model: A Hugging Face causal language model.
        weights: Name and checksum of its parameters and buffers, where they are not in memory.
    """
    digest = xxhash.xxh3_128(_configuration(cast(PreTrainedConfig, model.config)).encode())
    for name, module in model.named_modules(remove_duplicate=False):
        plain = [(k, said) for k, v in sorted(vars(module).items()) if k not in _NOT_THE_MODULE and (said := _text(v))]
        digest.update(f"{name} {type(module).__module__}.{type(module).__qualname__} {plain}".encode())
    for name, checksum in sorted(_all_checksums(model) if weights is None else weights):
        digest.update(name.encode() + checksum)
    return Identity(digest.hexdigest(), _obstacle(model))


def _text(value: Any) -> str | None:
    """A number, a text, a function of a library, or what consists of such, as text; None of anything else."""
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, partial):  # such as the tanh form of GELU
        return _text([value.func, value.args, value.keywords])
    if isinstance(value, dict):
        return _text([item for pair in value.items() for item in pair])
    if isinstance(value, list | tuple):
        inside = [_text(item) for item in value]
        return None if None in inside else str(inside)
    return repr(value) if value is None or isinstance(value, bool | int | float | str | torch.dtype) else None


def of_config(config: PreTrainedConfig, *where: object) -> str:
    """Fingerprint of a model whose weights are not here, from its configuration and where it is."""
    return xxhash.xxh3_128_hexdigest(json.dumps([_configuration(config), *map(str, where)]).encode())


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer under each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _all_checksums(model: nn.Module) -> list[tuple[str, bytes]]:
    """Checksums of every parameter and buffer; those that accelerate keeps on disk are read module by module."""
    away = {name.rpartition(".")[0] for name, tensor in named_tensors(model) if tensor.is_meta}
    found = checksums((name, tensor) for name, tensor in named_tensors(model) if name.rpartition(".")[0] not in away)
    for owner in sorted(away):
        with placement.held(module := model.get_submodule(owner)):
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            found += checksums((f"{owner}.{name}" if owner else name, tensor) for name, tensor in own)
    return found


def checksums(tensors: Iterable[tuple[str, Tensor]]) -> list[tuple[str, bytes]]:
    """Checksums of named tensors: shape, dtype and every byte; one that has two names is read once."""
    named = list(tensors)
    distinct = {_place(tensor): tensor for _, tensor in named}
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        known = dict(zip(distinct, pool.map(_checksum, distinct.values()), strict=True))
    return [(name, known[_place(tensor)]) for name, tensor in named]


def settings(config: GenerationConfig, tokenizer: Any, kernel: str | None) -> dict[str, str]:
    """What decides answers and is not part of the model.

    Args:
        config: How the model generates.
        tokenizer: Its tokenizer.
        kernel: Its attention kernel.
    """
    return {
        "writing": of_writing(config, tokenizer),
        "attention": str(kernel),
        "matmul": _matmul_precision(),
    }


def _matmul_precision() -> str:
    """How matrix products are rounded, as torch's flags and two variables of libraries say."""
    try:
        known = [torch.get_float32_matmul_precision()]
    except RuntimeError:  # torch refuses to say once the flags of its parts, which follow, were set apart
        known = ["by part"]
    known.append(getattr(torch.backends, "fp32_precision", ""))
    matmul = torch.backends.cuda.matmul
    for name, part in (("cuda", matmul), ("mkldnn", getattr(torch.backends.mkldnn, "matmul", None))):
        if (precision := getattr(part, "fp32_precision", "none")) != "none":
            known.append(f"{name} {precision}")
    for flag, usual in (("allow_fp16_accumulation", False), ("allow_bf16_reduced_precision_reduction", True)):
        if (value := getattr(matmul, flag, usual)) != usual:
            known.append(f"{flag} {value}")
    known += [f"{name} {os.environ[name]}" for name in _PRECISION_VARIABLES if os.environ.get(name)]
    return " ".join(known).strip()


def end_tokens(config: GenerationConfig, tokenizer: Any) -> list[int]:
    """Tokens that end a text, sorted: those of the generation configuration, else the tokenizer's."""
    eos = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    return sorted({*eos} if isinstance(eos, (list, tuple)) else {eos} - {None})


def of_writing(config: GenerationConfig, tokenizer: Any) -> str:
    """Hash of what decides a written text and is not part of the model: its tokenizer, and how the model generates."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        about = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    else:  # version, truncation and padding come first, and encoding leaves its last ones there
        about = backend.to_str().partition('"added_tokens"')[2]
    penalty = float(config.repetition_penalty or 1.0)
    rules = [end_tokens(config, tokenizer), penalty, getattr(tokenizer, "clean_up_tokenization_spaces", None)]
    usual = config._get_default_generation_params()
    settings = {k: v for k, v in config.to_dict().items() if k not in _NOT_TEXT and v not in (None, usual.get(k))}
    if settings:  # most models have none, and keep the address that they had before these were looked at
        rules.append(sorted((settings | {"eos_token_id": config.eos_token_id}).items()))
    return xxhash.xxh3_128_hexdigest(f"{rules} {about}".encode())


def _place(tensor: Tensor) -> tuple:
    parts = tensors_of(tensor)
    return tuple((t.data_ptr(), t.dtype, tuple(t.shape), t.stride(), str(t.device)) for t in parts)


def _checksum(tensor: Tensor) -> bytes:
    """Shape, dtype and bytes of a tensor; other threads run meanwhile."""
    if is_quantised(tensor):
        digest = xxhash.xxh3_128(said(tensor).encode())
        for part in tensors_of(tensor):
            digest.update(_checksum(part))
        return digest.digest()
    about = f"{tuple(tensor.shape)} {tensor.dtype}".encode()
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    digest = xxhash.xxh3_128(about)
    for chunk in data.split(_CHUNK):
        digest.update(cast(Any, chunk.cpu().numpy()))
    return digest.digest()


def _configuration(config: PreTrainedConfig) -> str:
    entries = {k: v for k, v in config.to_dict().items() if k not in _NOT_THE_MODEL}
    if (entries.get("quantization_config") or {}).get("quant_method") == "gguf":
        del entries["quantization_config"]  # dequantised on loading; only the name of the file is left
    return json.dumps(entries, sort_keys=True, default=str)


def _obstacle(model: nn.Module) -> str | None:
    """The first part of a model whose computation a fingerprint does not cover."""
    if nn.modules.module._has_any_global_hook():
        return "runs under global hooks of torch"
    for name, module in model.named_modules():
        kind, what = type(module), name or type(module).__name__
        if module.training and (not kind.__module__.startswith("torch.nn.") or "dropout" in kind.__name__.lower()):
            return f"is in training mode ({what}); call model.eval()"
        if any(word in str(getattr(module, "rope_type", "")) for word in ("dynamic", "longrope")):
            return f"has {what}, whose frequencies depend on the longest text of a batch"
        if any(getattr(module, hooks) for hooks in _HOOKS):
            return f"has hooks on {what}"
        if function := next((k for k, v in vars(module).items() if k not in _NOT_THE_MODULE and _foreign(v)), None):
            return f"has {what}, whose {function} was written in no library"
        own = vars(module).get("forward")
        if own is not None and not hasattr(own, _OURS) and not _only_moves(module):
            return f"has a forward method of its own in {what}"
        if kind.__module__.partition(".")[0] not in LIBRARIES:
            return f"has {what} of class {kind.__module__}.{kind.__qualname__}, whose code is not part of the address"
        if own_method := next((base for base in kind.__mro__ if _foreign(vars(base).get("forward"))), None):
            return f"has {what}, whose {own_method.__qualname__}.forward was replaced"
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if depends_on_batch(tensor):
                return f"has {name}.{key} of bitsandbytes' LLM.int8, which rounds activations by what is in a batch"
    return None


def _foreign(method: Any) -> bool:
    """Whether a function was written in no library."""
    home = getattr(method, "__globals__", {}).get("__name__", "torch")
    return home.partition(".")[0] not in LIBRARIES


def _only_moves(module: nn.Module) -> bool:
    """Whether a forward method of its own is that of its class, with accelerate moving tensors before and after it."""
    from accelerate import hooks  # slow to import

    hook, whole = vars(module).get("_hf_hook"), vars(module).get("_old_forward")
    return (
        all(type(h) is hooks.AlignDevicesHook for h in getattr(hook, "hooks", [hook]))
        and getattr(whole, "__func__", None) is type(module).forward
        and getattr(getattr(vars(module)["forward"], "func", None), "__module__", "") == hooks.__name__
    )
