"""Modules with their own weights rounded to a few bits (``@int8`` and ``@int4``), as a quantised model would have them.

Round to nearest, symmetric (absmax; Dettmers et al. 2022, arXiv 2208.07339, section 2): a group of weights w has one
scale s = max |w| / (2^(bits - 1) - 1), and w becomes s * round(w / s). Under ``int8`` a group is a row of a matrix:
what one output reads. Under ``int4`` it is `GROUP` neighbours of a row, as is usual for so few bits (Frantar et al.
2023, arXiv 2210.17323). All matrices of a part are rounded, biases and norms are not. The part computes with the
rounded weights in the model's own dtype, so that any machine can say what a precision would cost, and no kernel for
integers is needed. Methods that choose roundings by data (GPTQ, AWQ) lose less.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from depthlens.ablations import ROUNDED, Condition
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens, donor_layers_resident
from depthlens.models.placement import held, weights_state

GROUP = 128  # weights that share a scale under int4; fewer, by halves, where the width of a matrix wants it
_TINY = torch.finfo(torch.float32).tiny
# what a copy of a module must not share with it: hooks, and what accelerate puts in place
_NOT_COPIED = ("forward", "_hf_hook", "_old_forward")


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


def copied(module: nn.Module, mode: str) -> nn.Module:
    """A module that computes as another one does, but with rounded weights; it has no hooks."""
    made = copy.copy(module)
    own: dict[str, Any] = vars(made)
    for name in _NOT_COPIED:
        own.pop(name, None)
    for name, value in vars(module).items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and isinstance(value, dict):
            own[name] = OrderedDict()
    weights = {k: None if w is None else rounded(w, mode) for k, w in module._parameters.items()}
    own["_parameters"] = {k: None if w is None else nn.Parameter(w, requires_grad=False) for k, w in weights.items()}
    own["_modules"] = {k: None if m is None else copied(m, mode) for k, m in module._modules.items()}
    return made


class RoundedLayers:
    """Copies of layers of a model with rounded weights, kept for as many layers as are computed at once.

    Args:
        lens: The model.
    """

    def __init__(self, lens: Lens) -> None:
        self._layers = lens.arch.layers
        self._most = len(lens.devices)  # each device computes one layer
        self._kept: OrderedDict[tuple[int, str], tuple[tuple, nn.Module]] = OrderedDict()
        self._holders = 0

    def of(self, layer: int, mode: str) -> nn.Module:
        """The copy of a layer; its weights are in memory, or accelerate brings them."""
        with held(module := self._layers[layer]):
            state = weights_state(module)
            found, copy_of = self._kept.pop((layer, mode), (None, module))
            # one copy of each: an offloaded layer is read into other memory every time
            self._kept[layer, mode] = state, copy_of if found == state else copied(module, mode)
        while not self._holders and len({n for n, _ in self._kept}) > self._most:
            self._kept.popitem(last=False)
        return self._kept[layer, mode][1]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the context all copies are kept, as decoding needs them, which passes all layers for each token."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            self.clear()

    def clear(self) -> None:
        """Forget copies that nobody holds: a weight that was edited through ``.data`` or numpy looks unchanged."""
        if not self._holders:
            self._kept.clear()


_layers: WeakKeyDictionary[Lens, RoundedLayers] = WeakKeyDictionary()


def rounded_layers(lens: Lens) -> RoundedLayers:
    """The copies of a model's layers; one thread at a time works with a model."""
    return _layers.setdefault(lens, RoundedLayers(lens))


def rounded_bytes(lens: Lens, conditions: Sequence[Condition]) -> int:
    """Bytes of the copies that conditions need: of whole layers, each once for a mode."""
    layers = {(a.layer, a.mode) for c in conditions for a in c.ablations if a.mode in ROUNDED}
    return len(layers) * sum(w.nbytes for w in lens.arch.layers[0].parameters())


@contextmanager
def other_weights_resident(lens: Lens, conditions: Sequence[Condition]) -> Iterator[None]:
    """Within the context what conditions put in place of weights is in memory, as decoding needs it."""
    with donor_layers_resident(lens.donor, conditions), rounded_layers(lens).held():
        yield
