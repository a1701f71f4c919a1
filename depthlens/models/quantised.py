"""Weights of a few bits: how models that store them are made, and copies of layers whose weights are rounded so.

Models that store them (``quantize``):

- ``int8``: each row of a matrix has one scale (torchao, ``Int8WeightOnlyConfig``);
- ``int4``: groups of 32 to 128 weights have one (torchao; on a GPU ``Int4WeightOnlyConfig``, elsewhere
  ``IntxWeightOnlyConfig``, which stores a byte a weight, because torchao has no packed kernel there);
- ``nf4``: groups of 64 weights, levels by quantiles of the normal distribution (bitsandbytes; Dettmers et al. 2023,
  arXiv 2305.14314).

transformers quantises all linear layers but the unembedding while it reads a checkpoint, and loads checkpoints that
were quantised before. Inputs and outputs of layers keep the model's dtype, so that conditions, which act on these,
are as exact as in any model. Only what reads weights has to know.

Copies of layers (``@int8`` and ``@int4``): round to nearest, symmetric (absmax; Dettmers et al. 2022, arXiv 2208.07339,
section 2). A group of weights w has one scale s = max |w| / (2^(bits - 1) - 1), and w becomes s * round(w / s). Under
``int8`` a group is a row of a matrix: what one output reads. Under ``int4`` it is 128 neighbours of a row (64 or 32
where the width wants it), as is usual for so few bits (Frantar et al. 2023, arXiv 2210.17323). All matrices of a part
are rounded, biases and norms are not. The part computes with the rounded weights in the model's own dtype, so that any
machine can say what a precision would cost, and no kernel for integers is needed. Methods that choose roundings by data
(GPTQ, AWQ) lose less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from depthlens.ablations import Condition, modes
from depthlens.errors import UserError
from depthlens.models.architectures import wide
from depthlens.models.placement import held, twin

if TYPE_CHECKING:
    from depthlens.models.lens import Lens

GROUPS = (128, 64, 32)  # how many weights share a scale under int4, the most that the widths allow
_kept: dict[Lens, dict[tuple[int, str], nn.Module]] = {}  # within `other_weights_resident`


def configuration(scheme: str, layers: nn.Module, device: torch.device, dtype: torch.dtype | str) -> Any:
    """What transformers' loaders call ``quantization_config``.

    Args:
        scheme: ``int8``, ``int4`` or ``nf4``.
        layers: The model's layers, whose linear modules are quantised.
        device: Where the model computes.
        dtype: In what it computes; ``auto``: bfloat16 where the library has to be told.

    Raises:
        UserError: widths have no common group.
        ImportError: the library is not installed.
    """
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if scheme == "nf4":
        compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup

    if scheme == "int8":
        return TorchAoConfig(Int8WeightOnlyConfig())
    widths = {module.in_features for module in layers.modules() if isinstance(module, nn.Linear)}
    size = next((n for n in GROUPS if all(width % n == 0 for width in widths)), None)
    if size is None:
        raise UserError(f"quantize 'int4' needs widths that are multiples of {GROUPS[-1]}; use 'int8'")
    if device.type == "cuda":
        return TorchAoConfig(Int4WeightOnlyConfig(group_size=size, int4_packing_format="tile_packed_to_4d"))
    # torch's stubs lack int4
    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=vars(torch)["int4"], granularity=PerGroup(size)))


def settle(model: nn.Module) -> None:
    """Let bitsandbytes' layers keep what they hold: their first call would pack it anew for some processors.

    What such a processor computes, and the fingerprint, would differ from those of others, and before and after it.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module).update(support_avx512bf16_for_cpu=False, compute_type_is_set=True)


def method_of(config: Any) -> str | None:
    """How a configuration says that the weights are quantised (``torchao``, ``gptq`` ..); None: they are not.

    Those of a .gguf file are dequantised on loading.
    """
    said = getattr(config, "quantization_config", None) or {}
    method = said.get("quant_method") if isinstance(said, dict) else said.quant_method
    return None if method in (None, "gguf") else str(getattr(method, "value", method))


def is_quantised(weight: Tensor) -> bool:
    """Whether a weight holds integers and scales, as torchao's and bitsandbytes' do."""
    return type(weight).__module__.startswith(("torchao.", "bitsandbytes."))


def shape_of(weight: Tensor) -> list[int]:
    """Shape of the numbers that a weight stands for; bitsandbytes stores two in a byte, and says how many bytes."""
    state = getattr(weight, "quant_state", None)
    return [*(weight if state is None else state).shape]


def matrix(projection: Any) -> Tensor:
    """Weight of a linear layer, shape [out_features, in_features]; of a quantised one what unit vectors give."""
    weight, bias = projection.weight, projection.bias
    if not is_quantised(weight):
        return weight.T if isinstance(projection, Conv1D) else weight
    dtype = getattr(projection, "compute_dtype", None) or weight.dtype
    out = projection.forward(torch.eye(projection.in_features, dtype=dtype, device=weight.device))
    return (out if bias is None else out - bias).T


def rounded(weight: Tensor, mode: str) -> Tensor:
    """A matrix, or a stack of them, with its weights rounded. Shape [..., width].

    Args:
        weight: Whatever is not a floating-point matrix is returned as it is.
        mode: ``int8`` or ``int4``.
    """
    if weight.ndim < 2 or not weight.is_floating_point():
        return weight
    width = weight.shape[-1]
    size = next((n for n in GROUPS if mode == "int4" and width % n == 0), width)
    top = 2 ** (modes.of(mode).bits - 1) - 1
    groups = wide(weight.detach()).unflatten(-1, (-1, size))
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / top
    return ((groups / scale).round() * scale).flatten(-2).to(weight.dtype)


def rounded_layer(lens: Lens, layer: int, mode: str) -> nn.Module:
    """A copy of a layer that computes as it does, with rounded weights; its weights are in memory meanwhile.

    It is made anew at each call, except within `other_weights_resident`.
    """
    copies = _kept.get(lens, {})
    if (layer, mode) not in copies:
        with held(module := lens.arch.layers[layer]):
            instead: dict[int, Any] = {id(w): nn.Parameter(rounded(w, mode), False) for w in module.parameters()}
            # the kernel of attention is a setting of the configuration, and changes for the copy, too
            instead |= {id(part.config): part.config for part in module.modules() if hasattr(part, "config")}
            copies[layer, mode] = twin(module, instead)
    return copies[layer, mode]


def other_weights_bytes(lens: Lens, conditions: Sequence[Condition]) -> int:
    """Bytes of the layers that conditions need beside the model: rounded copies, and those of an offloaded donor."""
    streams = lens.donor is not None and lens.donor.stream
    every = (a for c in conditions for a in c.ablations if a.kind == "weights" and a.layer >= 0)
    layers = {(a.layer, a.mode) for a in every if streams or modes.of(a.mode).needs != "donor"}
    return len(layers) * max(sum(w.nbytes for w in layer.parameters()) for layer in lens.arch.layers) if layers else 0


def donor_layers(conditions: Sequence[Condition]) -> list[int]:
    """Layers that take weights from the donor under some condition, sorted."""
    every = (a for c in conditions for a in c.ablations if a.layer >= 0)
    return sorted({a.layer for a in every if modes.of(a.mode).needs == "donor"})


@contextmanager
def other_weights_resident(lens: Lens, conditions: Sequence[Condition]) -> Iterator[None]:
    """Within the context what conditions put in place of weights is in memory, as decoding needs it.

    Each token that is written passes all layers.
    """
    with ExitStack() as stack:
        if lens.donor:
            for layer in donor_layers(conditions):
                stack.enter_context(lens.donor.resident(layer))
        _kept[lens] = {}
        stack.callback(_kept.pop, lens)
        yield
