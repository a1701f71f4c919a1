"""Devices, and where the parts of a model are put and compute.

A model may be spread over several devices, memory and disk by accelerate, which puts hooks on modules
(`accelerate.dispatch_model`). A call of the whole model needs nothing else. A walk moves residual streams, rotary
angles and positions of tokens where the next layer is (`moved`), and has the weights of one layer there at a time
(`held`). On one device nothing is copied.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, TypeVar, cast

import psutil
import torch
from torch import Tensor, nn

from depthlens.errors import UserError

T = TypeVar("T")
CPU = torch.device("cpu")


def torch_devices(name: str) -> list[torch.device]:
    """The devices that a name means here.

    Args:
        name: ``auto`` (every GPU, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:N``, ``mps``, or several with commas.

    Raises:
        UserError: this machine does not have them.
    """
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if name == "auto":
        kind = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
        return [torch.device(kind, i) for i in range(there[kind])] if kind == "cuda" else [torch.device(kind)]
    devices = [torch.device(one) for one in name.split(",")]
    for device in devices:
        if (n := there[device.type]) <= (device.index or 0):
            raise UserError(f"device {str(device)!r}: torch finds {n} {device.type.upper()} GPUs here; use device=cpu")
    return devices


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, or that torch holds there and does not use, in bytes."""
    if device.type == "cuda":  # the driver counts what torch holds and does not use as taken
        free = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return psutil.virtual_memory().available


def device_map(outline: Any, layers: str, devices: Sequence[torch.device], *, spread: bool) -> dict[str, torch.device]:
    """Where the parts of a model go, as ``from_pretrained`` takes it: on the first device, or whole layers on several.

    Args:
        outline: The model without its weights, in the dtype that they will have.
        layers: Path of its layers.
        devices: At least one.
        spread: Whether all of them share the model; False: only if the first has no room for it.

    Raises:
        MemoryError: they have no room for it together.
    """
    from accelerate import infer_auto_device_map  # slow to import

    # of the free memory of a device weights may take a share: the work needs the rest
    size, room = outline.get_memory_footprint(), [int(0.9 * free_bytes(device)) for device in devices]
    if len(devices) == 1 or not (spread or size > room[0]):
        return {"": devices[0]}
    blocks = [*outline.get_submodule(layers).children()]
    # equal shares; accelerate rounds to whole layers, and keeps a layer free on the first device
    share = size // len(devices) + 2 * max(sum(weight.nbytes for weight in block.parameters()) for block in blocks)
    limits = [*(min(share, free) for free in room[:-1]), room[-1]]
    places = infer_auto_device_map(outline, dict(enumerate(limits)), [type(block).__name__ for block in blocks])
    if "disk" in places.values():
        raise MemoryError
    return {path: devices[cast(int, i)] for path, i in places.items()}


def tensors_of(weight: Tensor) -> list[Tensor]:
    """The plain tensors that a weight of torchao consists of; any other is its own only one."""
    if not hasattr(weight, "__tensor_flatten__"):
        return [weight]
    parts = [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
    return [part for part in parts if part is not None]


def place_of(module: nn.Module, without_weights: torch.device = CPU) -> torch.device:
    """Where a module computes: where accelerate brings its weights for a call, else where they are.

    Args:
        module: Of a model.
        without_weights: What is returned for a module that has none.
    """
    found = [getattr(hook, "execution_device", None) for hook in hooks_of(module)]
    found += [weight.device for weight in islice(module.parameters(), 1)]
    return next((torch.device(device) for device in found if device is not None), without_weights)


def hooks_of(module: nn.Module) -> list[Any]:
    """What accelerate does before and after calls of a module."""
    hook = vars(module).get("_hf_hook")
    return [] if hook is None else [*getattr(hook, "hooks", [hook])]


def twin(module: nn.Module, instead: dict[int, Any]) -> Any:
    """A deep copy of a module without hooks, and without forwards that were put in place of those of its classes.

    Args:
        module: Any; its weights are in memory.
        instead: What stands in place of an object in the copy, by the object's id.
    """
    put_in_place = ("forward", "_old_forward", "_hf_hook")
    for own in map(vars, module.modules()):
        instead |= {id(own[name]): None for name in put_in_place if name in own}
        hooks = [own[name] for name in own if name.startswith(("_forward", "_backward"))]
        instead |= {id(value): OrderedDict() for value in hooks if isinstance(value, dict)}
    made = copy.deepcopy(module, instead)
    for part in made.modules():
        for name in put_in_place:
            vars(part).pop(name, None)
    return made


def moved(value: T, device: torch.device) -> T:
    """A tensor on a device, or tensors in lists and tuples; anything else as it is."""
    if isinstance(value, (list, tuple)):
        return cast(T, type(value)(moved(item, device) for item in value))
    return cast(T, value.to(device)) if isinstance(value, Tensor) else value


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Within the context weights are there that accelerate reads for every call of a module (its offload)."""
    from accelerate.utils import align_module_device  # slow to import

    with ExitStack() as stack:
        for part in module.modules():
            for hook in hooks_of(part):
                if getattr(hook, "offload", False):
                    stack.enter_context(align_module_device(part))
                    hook.offload = False  # calls leave them
                    stack.callback(setattr, hook, "offload", True)
        yield
