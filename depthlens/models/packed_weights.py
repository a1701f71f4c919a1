"""Quantised checkpoints read as the plain matrices that they stand for, one at a time.

Where the library of a method is not installed, where it has no kernel for this machine, and where layers stay in their
files (`depthlens.models.offload`), a packed matrix becomes a plain one when it is read. The numbers are those that the
checkpoint stands for; memory is that of a plain model.

transformers 5.24 unpacks ``fp8`` itself off GPUs, and takes the size of a block from the number of scales, which is
wrong where the last block is smaller (as in DeepSeek V3's ``kv_a_proj_with_mqa``, 576 rows in blocks of 128).

- ``gptq`` (Frantar et al. 2023, arXiv 2210.17323): ``w = scale * (q - zero)`` by group of inputs, groups in any order
  (``g_idx``), 2, 3, 4 or 8 bits packed along the inputs; the first form of the file stores ``zero - 1``;
- ``awq`` (Lin et al. 2024, arXiv 2306.00978): the same in 4 bits, packed along the outputs in AutoAWQ's order;
- ``fp8``: ``w = q * scale`` by block of rows and columns;
- ``mxfp4``: gpt-oss' experts; transformers' own function unpacks them;
- ``bitsandbytes``: 4 bits (bitsandbytes unpacks them) and LLM.int8, ``w = q * scale / 127`` by row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from depthlens.errors import UserError, unknown
from depthlens.models import quantised

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each 4 bits of an integer hold, from the lowest on
GPTQ_FORMS = {"gptq": 1, "gptq_v2": 0}  # and what is added to their zeros
LIBRARIES = {"gptq": ("optimum", "gptqmodel"), "awq": ("gptqmodel",)}  # that compute with packed weights
WORD = 32  # bits of an integer that holds several weights


@runtime_checkable
class Readable(Protocol):
    """A tensor in a file that is read when indexed."""

    shape: Sequence[int]
    dtype: str

    def __getitem__(self, index: Any) -> Tensor: ...


class Unpacked:
    """A plain matrix, made of its packed tensors when indexed.

    Args:
        shape: Of the matrix.
        parts: The tensors that it is made of, by name.
        unpack: Makes it of them.
    """

    dtype = "F32"

    def __init__(
        self, shape: Sequence[int], parts: Mapping[str, Readable], unpack: Callable[[dict[str, Tensor]], Tensor]
    ) -> None:
        self.shape: Sequence[int] = list(shape)
        self._parts, self._unpack = dict(parts), unpack

    def __getitem__(self, index: Any) -> Tensor:
        return self._unpack({name: part[...] for name, part in self._parts.items()})[index]


def unpacked(name: str, config: Any, tensors: Mapping[str, Readable]) -> dict[str, Readable]:
    """The tensors of a quantised checkpoint with plain matrices in the place of packed ones.

    Args:
        name: The model's, for errors.
        config: The model's configuration, which says how it is quantised.
        tensors: All tensors in its files, by name.

    Raises:
        UserError: a method or a form of it that cannot be unpacked, or a matrix that lacks one of its tensors.
    """
    method, settings = str(quantised.method_of(config)), quantised.settings_of(config)
    if method not in METHODS:
        fault = f"model {name!r} is quantised by {method!r}; offload reads {', '.join(METHODS)}"
        raise UserError(f"{fault}; load it without offload")
    if method == "bitsandbytes" and not quantised.installed(method):
        raise UserError(f"model {name!r} needs {method}, which is not installed; {quantised.INSTALL}")
    plain = dict(tensors)
    try:
        for prefix, suffixes, matrix in METHODS[method](settings, tensors):
            for suffix in suffixes:
                plain.pop(prefix + suffix, None)
            plain[prefix + ("" if method == "mxfp4" else ".weight")] = matrix
    except KeyError as e:
        raise UserError(f"model {name!r} ({method}) lacks its tensor {e.args[0]}; get the whole model again") from e
    except UserError as e:
        raise UserError(f"model {name!r}: {e}") from None
    return plain


def needed(method: str | None, device: torch.device) -> bool:
    """Whether this module has to read a checkpoint for a device, because transformers cannot."""
    if method == "fp8":
        return device.type != "cuda"
    return not all(quantised.installed(library) for library in LIBRARIES.get(method or "", ()))


def integers(packed: Tensor, bits: int) -> Tensor:
    """The integers that a tensor packs into its first dimension, lowest bits first.

    Args:
        packed: Integers of 32 bits. Shape [n_words, column].
        bits: Of each integer; it may begin in one word and end in the next.

    Returns:
        Shape [n_words * 32 // bits, column].
    """
    words = packed.to(torch.int64) & 0xFFFFFFFF
    begins = torch.arange(len(words) * WORD // bits, device=packed.device) * bits
    word, shift = begins // WORD, (begins % WORD)[:, None]
    following = words[(word + 1).clamp(max=len(words) - 1)]
    return ((words[word] >> shift) | (following << (WORD - shift))) & (2**bits - 1)


_Found = Iterator[tuple[str, tuple[str, ...], Unpacked]]  # name of a matrix, endings of its tensors, the matrix


def _named(tensors: Mapping[str, Readable], ending: str) -> Iterator[str]:
    """What stands before an ending in names that have it."""
    return (key.removesuffix(ending) for key in tensors if key.endswith(ending))


def _gptq(settings: Mapping[str, Any], tensors: Mapping[str, Readable]) -> _Found:
    form = settings.get("checkpoint_format") or "gptq"
    if form not in GPTQ_FORMS:
        raise unknown("checkpoint_format", form, GPTQ_FORMS)
    added, suffixes = GPTQ_FORMS[form], ("qweight", "qzeros", "scales", "g_idx")
    for prefix in _named(tensors, ".qweight"):
        parts = {s: tensors[f"{prefix}.{s}"] for s in suffixes if s != "g_idx" or f"{prefix}.{s}" in tensors}
        n_words, out = parts["qweight"].shape
        if "g_idx" not in parts and not settings.get("bits"):
            raise UserError("its config.json does not say of how many bits its weights are; get the whole model again")
        n_in = parts["g_idx"].shape[0] if "g_idx" in parts else n_words * WORD // int(settings["bits"])
        bits = n_words * WORD // n_in  # a file may have other bits for some layers

        def unpack(held: dict[str, Tensor], bits: int = bits, n_in: int = n_in, out: int = out) -> Tensor:
            zeros = integers(held["qzeros"].T, bits).T[:, :out]
            zeros = (zeros + added) & (2**bits - 1)
            n_groups = len(zeros)
            group = held["g_idx"].long() if "g_idx" in held else torch.arange(n_in) // -(-n_in // n_groups)
            return (held["scales"].float()[group] * (integers(held["qweight"], bits)[:n_in] - zeros[group])).T

        yield prefix, tuple("." + s for s in suffixes), Unpacked((out, n_in), parts, unpack)


def _awq(settings: Mapping[str, Any], tensors: Mapping[str, Readable]) -> _Found:
    version, bits = str(settings.get("version", "gemm")).lower(), settings.get("bits", 4)
    if (version, bits) != ("gemm", 4):
        raise UserError(f"awq of version {version!r} with {bits} bits cannot be unpacked; only 'gemm' with 4 bits can")
    suffixes = ("qweight", "qzeros", "scales")
    for prefix in _named(tensors, ".qweight"):
        parts = {s: tensors[f"{prefix}.{s}"] for s in suffixes}
        n_in, n_words = parts["qweight"].shape
        yield prefix, tuple("." + s for s in suffixes), Unpacked((n_words * 8, n_in), parts, _unpack_awq)


def _unpack_awq(held: dict[str, Tensor]) -> Tensor:
    def columns(packed: Tensor) -> Tensor:
        """Shape [row, column]."""
        found = integers(packed.T, 4).T.unflatten(1, (-1, 8))
        ordered = torch.empty_like(found)
        ordered[:, :, list(AWQ_ORDER)] = found
        return ordered.flatten(1)

    weight, scales = columns(held["qweight"]), held["scales"].float()
    size = len(weight) // len(scales)
    return (scales.repeat_interleave(size, 0) * (weight - columns(held["qzeros"]).repeat_interleave(size, 0))).T


def _fp8(settings: Mapping[str, Any], tensors: Mapping[str, Readable]) -> _Found:
    suffixes = ".weight", ".weight_scale_inv", ".activation_scale"
    for prefix in _named(tensors, ".weight_scale_inv"):
        parts = {"weight": tensors[prefix + ".weight"], "scale": tensors[prefix + ".weight_scale_inv"]}
        block = settings.get("weight_block_size")
        if not parts["weight"].dtype.startswith("F8"):
            raise UserError(f"its weight {prefix}.weight is stored as {parts['weight'].dtype}, not in 8 bits")

        def unpack(held: dict[str, Tensor], block: Sequence[int] | None = block) -> Tensor:
            weight, scale = held["weight"].float(), held["scale"].float()
            if held["scale"].dtype == torch.uint8:  # exponents
                scale = torch.exp2(scale - 127)
            if block is not None and scale.ndim == 2:
                rows, columns = weight.shape
                scale = scale.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
            return weight * scale

        yield prefix, suffixes, Unpacked(parts["weight"].shape, parts, unpack)


def _mxfp4(settings: Mapping[str, Any], tensors: Mapping[str, Readable]) -> _Found:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    for prefix in _named(tensors, "_blocks"):
        parts = {s: tensors[f"{prefix}_{s}"] for s in ("blocks", "scales")}
        experts, out, n_groups, n_bytes = parts["blocks"].shape

        def unpack(held: dict[str, Tensor]) -> Tensor:
            return convert_moe_packed_tensors(held["blocks"], held["scales"], dtype=torch.float32)

        yield prefix, ("_blocks", "_scales"), Unpacked((experts, n_groups * n_bytes * 2, out), parts, unpack)


def _bitsandbytes(settings: Mapping[str, Any], tensors: Mapping[str, Readable]) -> _Found:
    for prefix in _named(tensors, ".SCB"):
        parts = {"weight": tensors[prefix + ".weight"], "SCB": tensors[prefix + ".SCB"]}
        shape = parts["weight"].shape
        yield prefix, (".weight", ".SCB", ".weight_format"), Unpacked(shape, parts, _unpack_llm_int8)
    kinds = (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4")
    for kind in kinds:
        for prefix in _named(tensors, kind):
            start = f"{prefix}.weight"
            parts = {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(start)}
            shape = json.loads(bytes(tensors[prefix + kind][...].tolist()))["shape"]
            yield prefix, tuple(parts), Unpacked(shape, parts, _unpack_4bit)


def _unpack_llm_int8(held: dict[str, Tensor]) -> Tensor:
    return held["weight"].float() * held["SCB"].float()[:, None] / 127


def _unpack_4bit(held: dict[str, Tensor]) -> Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    weight = held[".weight"]
    about = {name.removeprefix(".weight."): tensor for name, tensor in held.items() if name != ".weight"}
    state = QuantState.from_dict(about, weight.device)
    return dequantize_4bit(weight, state)


METHODS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Readable]], _Found]] = {
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "bitsandbytes": _bitsandbytes,
}
