"""What decides the answers of a model, as one fingerprint, and what no fingerprint can say.

A store finds answers by the fingerprint of the model that gave them, so everything that decides a forward pass goes in,
and it is taken anew for every experiment:

- every parameter and buffer in full, those that no file holds included (rotary frequencies), by a checksum;
- the tree of modules: names, classes, and every plain value that a module holds (scaling, epsilons, adapters in force);
- the configuration, without what only says where a file was.

`Identity.obstacle` names what remains: a hook, a replaced forward method, a class or function whose code is not that of
a library we know. Such a model is computed without the store. The code of the libraries themselves is not part of it.

The checksum of weights on a CPU is XXH3 (128 bits, as fast as memory). Weights on another device are summed there after
64-bit mixing of value and place (the finaliser of SplitMix64, Steele et al. 2014), so that only sums travel; the two
differ, so that a fingerprint also says on what kind of device the weights were.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, is_dataclass
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import numpy as np
import torch
import transformers
import xxhash
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig

from depthlens.models import placement
from depthlens.models.quantised import depends_on_batch, is_quantised, said, tensors_of

# whose code does what its version says; anything else may change between two runs
LIBRARIES = {"torch", "transformers", "peft", "torchao", "bitsandbytes", "depthlens", "numpy", *sys.stdlib_module_names}
_PRECISION_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE")
_OURS = "_part_of_depthlens"
_TENSORS = (Tensor, nn.Parameter, nn.Buffer)
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
# of a generation configuration: what decides no text, what `of_writing` has apart, and what a request says itself
_NOT_TEXT = {
    *("_from_model_config", "transformers_version", "bos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory"),
    *("compile_config", "disable_compile", "continuous_batching_config", "return_dict_in_generate"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("eos_token_id", "repetition_penalty"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "max_length", "max_new_tokens"),
}
# of every module: what `nn.Module` keeps for itself, and how transformers loads, saves and spreads a model
_BOOKKEEPING = {*vars(nn.Module())} - {"training"}
_BOOKKEEPING |= {
    *("_is_hf_initialized", "generation_config", "name_or_path", "loss_type", "_weight_conversions", "_use_kernels"),
    "extra_repr",  # how a module is printed; torchao puts its own there
}
_BOOKKEEPING |= {f"_{which}_plan" for which in ("ep", "fsdp", "pp", "tp")}
# how accelerate spreads a model; `_changed_code` looks at its hooks
_BOOKKEEPING |= {"_hf_hook", "_old_forward", "hf_device_map", "to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MASK = (1 << 64) - 1
_CHUNK = 1 << 22  # 64-bit words that are mixed at once: 32 MiB and as much again


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


class _Unaddressable(Exception):
    """A value whose meaning cannot be written down; the message says what it is."""


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
    digest = xxhash.xxh3_128()
    obstacle = _changed_code(model)
    try:
        text = "\n".join(_structure(model))
    except _Unaddressable as e:
        obstacle, text = obstacle or str(e), ""
    digest.update(text.encode())
    for name, checksum in sorted(_all_checksums(model) if weights is None else weights):
        digest.update(name.encode() + checksum)
    return Identity(digest.hexdigest(), obstacle)


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
    if data.device.type != "cpu":
        return xxhash.xxh3_128_digest(about + mixed_sum(data).to_bytes(8, "little"))
    digest = xxhash.xxh3_128(about)
    digest.update(cast(Any, data.numpy()))
    return digest.digest()


def mixed_sum(data: Tensor) -> int:
    """Sum over 64-bit words of a mix of each word with its place, modulo 2^64; on the tensor's own device.

    A word that changes, or changes places with another, changes the sum: each mix is a bijection of 64 bits.

    Args:
        data: Bytes. Shape [n], uint8.
    """
    pad = -len(data) % 8
    words = (torch.cat([data, data.new_zeros(pad)]) if pad else data).view(torch.int64)

    def shifted(z: Tensor, n: int) -> Tensor:
        return (z >> n) & ((1 << (64 - n)) - 1)  # int64 shifts copy the sign

    def signed(constant: int) -> int:
        return constant - (1 << 64) if constant >> 63 else constant

    total = len(data)
    for start in range(0, len(words), _CHUNK):
        chunk = words[start : start + _CHUNK]
        place = torch.arange(start + 1, start + 1 + len(chunk), device=data.device)
        # the word is mixed before its place comes in, so that no difference of words can undo one of places
        z = (chunk ^ shifted(chunk, 32)) * signed(0xD6E8FEB86659FD93)
        z = (z ^ shifted(z, 32)) + place * signed(0x9E3779B97F4A7C15)
        z = (z ^ shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
        z = (z ^ shifted(z, 27)) * signed(0x94D049BB133111EB)
        total += int((z ^ shifted(z, 31)).sum())
    return total & _MASK


def _configuration(config: PreTrainedConfig) -> str:
    entries = {k: v for k, v in config.to_dict().items() if k not in _NOT_THE_MODEL}
    if (entries.get("quantization_config") or {}).get("quant_method") == "gguf":
        del entries["quantization_config"]  # dequantised on loading; only the name of the file is left
    return json.dumps(entries, sort_keys=True, default=str)


def _structure(model: nn.Module) -> Iterator[str]:
    """A line a module: its name, its class and its attributes that are neither tensors nor modules."""
    shared: dict[int, str] = {}  # configurations, which most modules hold
    for name, module in model.named_modules(remove_duplicate=False):
        own = {k: v for k, v in vars(module).items() if k not in _BOOKKEEPING and k != "forward"}
        try:
            values = [f"{key}={_text(value, shared)}" for key, value in sorted(own.items())]
        except _Unaddressable as e:
            raise _Unaddressable(f"{_name_of(name, module)} holds {e}") from e
        yield f"{name} {type(module).__module__}.{type(module).__qualname__} {' '.join(values)}"


def _text(value: Any, shared: dict[int, str]) -> str:
    """A value as text that says all of it."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device, range)):
        return repr(value)
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, dict):
        items = sorted((_text(k, shared), _text(v, shared)) for k, v in value.items())
        return "{" + ", ".join(f"{k}: {v}" for k, v in items) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_text(v, shared) for v in value) + "]"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(_text(v, shared) for v in value)) + "}"
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if type(value) in _TENSORS:
        return checksums([("", value)])[0][1].hex()
    if isinstance(value, PreTrainedConfig):
        if id(value) not in shared:
            shared[id(value)] = _configuration(value)
        return shared[id(value)]
    if type(value).__module__.startswith("bitsandbytes."):  # how a module's weights are stored
        return f"{type(value).__qualname__} {_text(vars(value), shared)}"
    if is_dataclass(value) and not isinstance(value, type) and _of_library(type(value)):
        return f"{type(value).__qualname__} {_text(vars(value), shared)}"
    if isinstance(value, partial):  # such as the tanh form of GELU
        return _text([value.func, value.args, value.keywords], shared)
    if isinstance(value, (FunctionType, BuiltinFunctionType, MethodType, type)) and _of_library(value):
        return f"{value.__module__}.{value.__qualname__}"
    raise _Unaddressable(f"a {type(value).__module__}.{type(value).__qualname__}, which cannot be written down")


def _changed_code(model: nn.Module) -> str | None:
    """The first part of a model whose code is not that of a library."""
    if nn.modules.module._has_any_global_hook():
        return "runs under global hooks of torch"
    if replaced := _replaced(nn.functional, "runs with torch.nn.functional, whose"):
        return replaced
    checked: dict[type, str | None] = {}
    for name, module in model.named_modules():
        if module.training and (
            not type(module).__module__.startswith("torch.nn.") or "dropout" in type(module).__name__.lower()
        ):
            return f"is in training mode ({_name_of(name, module)}); call model.eval()"
        if any(kind in str(getattr(module, "rope_type", "")) for kind in ("dynamic", "longrope")):
            return f"has {_name_of(name, module)}, whose frequencies depend on the longest text of a batch"
        if any(getattr(module, hooks) for hooks in _HOOKS):
            return f"has hooks on {_name_of(name, module)}"
        own = vars(module).get("forward")
        if own is not None and not hasattr(own, _OURS) and not _only_moves(module):
            return f"has a forward method of its own in {_name_of(name, module)}"
        kind = type(module)
        if kind not in checked:
            checked[kind] = _changed_class(kind)
        if checked[kind]:
            return f"has {_name_of(name, module)} {checked[kind]}"
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if depends_on_batch(tensor):
                return f"has {name}.{key} of bitsandbytes' LLM.int8, which rounds activations by what is in a batch"
            if type(tensor) not in _TENSORS and not is_quantised(tensor):
                return f"has {name}.{key} of {type(tensor).__module__}.{type(tensor).__qualname__}, not a plain tensor"
    name = cast(PreTrainedConfig, model.config)._attn_implementation
    kernel = transformers.AttentionInterface().get(name)
    if kernel is not None and not _of_library(kernel):
        return f"has attention kernel {name!r} of {kernel.__module__}"
    return None


def _only_moves(module: nn.Module) -> bool:
    """Whether a forward method of its own is that of its class, with accelerate moving tensors before and after it."""
    from accelerate import hooks  # slow to import

    hook, whole = vars(module).get("_hf_hook"), vars(module).get("_old_forward")
    return (
        all(type(h) is hooks.AlignDevicesHook for h in getattr(hook, "hooks", [hook]))
        and getattr(whole, "__func__", None) is type(module).forward
        and getattr(getattr(vars(module)["forward"], "func", None), "__module__", "") == hooks.__name__
    )


def _changed_class(kind: type) -> str | None:
    """What of a class's code is not its library's: the class, its forward, or a function that it calls by name."""
    if not _of_library(kind):
        return f"of class {kind.__module__}.{kind.__qualname__}, whose code is not part of the address"
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for key, method in vars(base).items():
            if _is_foreign(method):
                return f"whose {base.__qualname__}.{key} was replaced by one of {_home(method)}"
        if (method := vars(base).get("forward")) is not None and method.__qualname__.rpartition(".")[0] not in (
            "",  # a helper that torch or transformers put in place
            *(c.__qualname__ for c in base.__mro__),
        ):
            return f"whose {base.__qualname__}.forward was replaced by {method.__qualname__}"
    return _replaced(sys.modules[kind.__module__], "whose function")


def _replaced(module: ModuleType, what: str) -> str | None:
    """The first function of a module of a library that is not the library's."""
    for key, value in vars(module).items():
        function = value.func if isinstance(value, partial) else value
        if _is_foreign(function):
            return f"{what} {key} was replaced by one of {_home(function)}"
    return None


def _is_foreign(value: Any) -> bool:
    return isinstance(value, FunctionType) and _home(value).partition(".")[0] not in LIBRARIES


def _home(function: Any) -> str:
    """The module that a function was written in; a decorator such as functools.wraps gives it another's name."""
    return str(function.__globals__.get("__name__", function.__module__))


def _of_library(value: Any) -> bool:
    module = getattr(value, "__module__", None) or ""
    return module.partition(".")[0] in LIBRARIES or isinstance(value, BuiltinFunctionType)


def _name_of(name: str, module: nn.Module) -> str:
    return name or type(module).__name__
