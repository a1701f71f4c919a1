"""Modules with their own weights rounded to a few bits (``@int8`` and ``@int4``), as a quantised model would have them.

Round to nearest, symmetric (absmax; Dettmers et al. 2022, arXiv 2208.07339, section 2): a group of weights w has one
scale s = max |w| / (2^(bits - 1) - 1), and w becomes s * round(w / s). Under ``int8`` a group is a row of a matrix:
what one output reads. Under ``int4`` it is `GROUP` neighbours of a row, as is usual for so few bits (Frantar et al.
2023, arXiv 2210.17323). All matrices of a part are rounded, biases and norms are not. The part computes with the
rounded weights in the model's own dtype, so that any machine can say what a precision would cost, and no kernel for
integers is needed. Methods that choose roundings by data (GPTQ, AWQ) lose less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from depthlens.ablations import ROUNDED, Condition
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens, donor_layers
from depthlens.models.placement import held, twin

GROUP = 128  # weights that share a scale under int4; fewer, by halves, where the width of a matrix wants it
_TINY = torch.finfo(torch.float32).tiny
_kept: WeakKeyDictionary[Lens, dict[tuple[int, str], nn.Module]] = WeakKeyDictionary()


def rounded(weight: Tensor, mode: str) -> Tensor:
    """A matrix, or a stack of them, with its weights rounded. Shape [..., width].

    Args:
        weight: Whatever is not a floating-point matrix is returned as it is.
        mode: ``int8`` or ``int4``.
    """
    if weight.ndim < 2 or not weight.is_floating_point():
        return weight
    width = weight.shape[-1]
    size = width
    if mode == "int4":
        size = next((n for n in (GROUP, GROUP // 2, GROUP // 4) if width % n == 0), width)
    top = 2 ** (ROUNDED[mode] - 1) - 1
    groups = wide(weight.detach()).unflatten(-1, (-1, size))
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(_TINY) / top
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
    modes = {*ROUNDED, "donor"} if lens.donor and lens.donor.lens.stream else {*ROUNDED}
    layers = {(a.layer, a.mode) for c in conditions for a in c.ablations if a.mode in modes and a.layer >= 0}
    return len(layers) * max(sum(w.nbytes for w in layer.parameters()) for layer in lens.arch.layers)


@contextmanager
def other_weights_resident(lens: Lens, conditions: Sequence[Condition]) -> Iterator[None]:
    """Within the context what conditions put in place of weights is in memory, as decoding needs it.

    Each token that is written passes all layers.
    """
    with ExitStack() as stack:
        for layer in donor_layers(conditions) if lens.donor else ():
            stack.enter_context(lens.donor.lens.resident(layer))
        _kept[lens] = {}
        stack.callback(_kept.pop, lens)
        yield
