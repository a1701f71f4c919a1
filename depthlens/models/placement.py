"""Where the parts of a model are put and compute, and how a walk over its layers gets from one device to the next.

A model may be spread over several devices by accelerate, which puts hooks on modules (`accelerate.dispatch_model`). A
call of the whole model needs nothing else. A walk (`depthlens.models.architectures.Architecture.step`) moves residual
streams, rotary angles and the layout of the tokens where the next layer is. On one device nothing is copied.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from depthlens.errors import UserError
from depthlens.models.devices import free_bytes
from depthlens.models.quantised import stored_bytes, tensors_of
from depthlens.models.structure import find as find_structure

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedModel

T = TypeVar("T")
WEIGHTS_SHARE = 0.9  # of the free memory of a device that weights may take: the work needs the rest


def room(devices: Sequence[torch.device]) -> list[int]:
    """Bytes of weights that each device has room for."""
    return [int(WEIGHTS_SHARE * free_bytes(device)) for device in devices]


def n_bytes(model: PreTrainedModel) -> int:
    """Bytes of all weights; those that are tied count once."""
    return sum(map(stored_bytes, {id(t): t for t in (*model.parameters(), *model.buffers())}.values()))


def spread(name: str, model: PreTrainedModel, devices: Sequence[torch.device]) -> None:
    """Put whole layers of a model on several devices, by the room that each has, and let accelerate move what passes.

    Raises:
        UserError: they have no room for the model together.
    """
    from accelerate import dispatch_model, infer_auto_device_map  # slow to import

    whole = {type(layer).__name__ for layer in model.get_submodule(find_structure(model).layers).children()}
    rooms, needed = room(devices), n_bytes(model)
    largest = max(sum(t.nbytes for t in part.parameters()) for part in model.modules() if type(part).__name__ in whole)
    # shares by room; accelerate rounds to whole layers, and keeps a layer free on the first device
    shares = [needed * one // max(1, sum(rooms)) + largest for one in rooms]
    shares[0] += largest
    for limits in ([min(pair) for pair in zip(shares, rooms, strict=True)], [rooms[0] + largest, *rooms[1:]]):
        device_map = infer_auto_device_map(model, dict(enumerate(limits)), [*whole])
        if all(isinstance(place, int) for place in device_map.values()):
            places = {name: str(devices[cast(int, i)]) for name, i in device_map.items()}
            dispatch_model(model, places, force_hooks=True)
            return
    have = " + ".join(f"{one / 2**30:.1f}" for one in rooms)
    fault = f"model {name!r} does not fit: its weights take {needed / 2**30:.1f} GiB"
    fault += f", {', '.join(map(str, devices))} have room for {have} GiB"
    raise UserError(f"{fault}; try dtype=bfloat16, offload=disk or more GPUs")


def weights_state(module: nn.Module) -> tuple:
    """What differs after a weight of a module was replaced, or written to in place."""
    tensors = (tensor for w in module.parameters() for tensor in tensors_of(w))
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


def place_of(module: nn.Module, without_weights: torch.device | None = None) -> torch.device:
    """Where a module computes: where accelerate brings its weights for a call, else where they are.

    Args:
        module: Of a model.
        without_weights: What is returned for a module that has none.
    """
    for hook in _hooks(module):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    weight = next(module.parameters(), None)
    if weight is None and without_weights is not None:
        return without_weights
    assert weight is not None, type(module).__name__
    return weight.device


def _hooks(module: nn.Module) -> list[Any]:
    """What accelerate does before and after calls of a module."""
    hook = vars(module).get("_hf_hook")
    return [] if hook is None else [*getattr(hook, "hooks", [hook])]


def moved(value: T, device: torch.device) -> T:
    """A value on a device: a tensor, tensors in lists and tuples, or an object that has some; itself if it is there.

    Of an object a shallow copy is made, once for each device, whose tensors are moved; its dictionaries stay shared.
    """
    if all(place == device for place in _places(value)):
        return value
    if isinstance(value, Tensor):
        return cast(T, value.to(device))
    if isinstance(value, (list, tuple)):
        return cast(T, type(value)(moved(item, device) for item in value))
    copies: dict[torch.device, Any] = vars(value).setdefault("_copies", {})
    if device not in copies:
        copies[device] = other = copy.copy(value)
        carried = {key: moved(item, device) for key, item in vars(value).items() if _carries(item)}
        vars(other).update(carried)
    return cast(T, copies[device])


def _places(value: Any) -> Iterator[torch.device]:
    """Where the tensors of a value are."""
    if isinstance(value, Tensor):
        yield value.device
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _places(item)
    elif not isinstance(value, nn.Module):
        for item in getattr(value, "__dict__", {}).values():
            if _carries(item):
                yield from _places(item)


def _carries(item: Any) -> bool:
    """Whether an attribute may have tensors that go along."""
    return isinstance(item, (Tensor, list, tuple)) or is_dataclass(item)


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Within the context weights are there that accelerate reads for every call of a module (its offload)."""
    offloaded = [(part, hook) for part in module.modules() for hook in _hooks(part) if getattr(hook, "offload", False)]
    try:
        for part, hook in offloaded:
            hook.pre_forward(part)
            hook.offload = False  # calls leave them
        yield
    finally:
        for part, hook in offloaded:
            hook.offload = True
            hook.post_forward(part, None)
