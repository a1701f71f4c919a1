"""Several made-up devices on a machine without a GPU: tensors that say where they are, and refuse to be mixed.

A `Placed` tensor holds a CPU tensor and the name of a device (``cpu:1``, ``cpu:2``; torch's own CPU tensors have no
number, and a build for CPUs lets no tensor claim to be on CUDA). Operations compute on the CPU. As on CUDA, all tensors
of an operation must be on one device, but for numbers on the CPU, indices on the CPU, and copies. So a tensor that is
left behind raises an error. `made_up_devices` lets torch's factories and ``.to`` make such tensors, in all threads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import dispatch_model
from torch.nn import functional
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves, tree_map

from depthlens.models.lens import Lens

MEETS = ("_to_copy", "copy_", "index.Tensor", "index_put", "_index_put_impl")  # may meet tensors of other devices
FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "eye", "rand", "randn")


class Mixed(RuntimeError):
    """Tensors of two devices met."""


class Placed(torch.Tensor):
    """A CPU tensor under the name of another device."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> Placed:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
            requires_grad=False,
        )

    def __init__(self, inner: torch.Tensor, device: torch.device) -> None:
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        places = [x.device for x in tensors if isinstance(x, Placed)]
        target = kwargs.pop("device", None) or (places[0] if places else None)
        target = torch.device(target) if target is not None else None
        name = str(func).removeprefix("aten.")
        if not name.startswith(MEETS):
            elsewhere = {x.device for x in tensors if x.dim() or isinstance(x, Placed)}
            if len(elsewhere) > 1:
                raise Mixed(f"{func}: tensors on {sorted(map(str, elsewhere))}")
        elif name.startswith("index") and len({x.device for x in tensors if isinstance(x, Placed)}) > 1:
            raise Mixed(f"{func}: indices on another device")
        out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if func._schema.is_mutable and isinstance(args[0], torch.Tensor) and out is _inner(args[0]):
            return args[0]
        return tree_map(lambda x: placed(x, target) if isinstance(x, torch.Tensor) else x, out)

    def tolist(self) -> Any:
        return self.inner.tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def numpy(self, **kwargs: Any) -> Any:
        return self.inner.numpy(**kwargs)

    def __repr__(self) -> str:
        return f"Placed({self.inner!r}, {self.device})"


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, Placed) else x


def placed(x: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    """A tensor on a device; that of a real one is itself."""
    inner = _inner(x)
    return inner if device is None or device.index is None else Placed(inner, device)


@contextmanager
def made_up_devices(monkeypatch: Any) -> Iterator[None]:
    """Within the context factories and ``.to`` know the devices."""
    to = torch.Tensor.to
    _device_constructors()  # torch remembers its factories at the first call: let it be the true ones

    def moving(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = to(self, *args, **kwargs)
        device = _device_of((*args, *kwargs.values()))
        return out if device is None or isinstance(out, Placed) else placed(out, device)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", moving)
        patch.setattr(functional, "scaled_dot_product_attention", _attention)
        for name in FACTORIES:
            patch.setattr(torch, name, _on_device(getattr(torch, name)))
        yield


def _on_device(factory: Any) -> Any:
    def make(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != "cpu":
            return factory(*args, **kwargs) if device is None else factory(*args, device=device, **kwargs)
        return placed(factory(*args, device="cpu", **kwargs), torch.device(device))

    return make


def _attention(query: torch.Tensor, *args: Any, plain: Any = functional.scaled_dot_product_attention, **kwargs: Any):
    """Where it is written out in C++ it makes masks of its own, which would be on no made-up device."""
    tensors = [x for x in (query, *args, *kwargs.values()) if isinstance(x, torch.Tensor)]
    if any(x.requires_grad for x in tensors):
        return plain(query, *args, **kwargs)
    if len(found := {x.device for x in tensors}) > 1:
        raise Mixed(f"attention: tensors on {sorted(map(str, found))}")
    out = plain(_inner(query), *map(_inner, args), **{key: _inner(x) for key, x in kwargs.items()})
    return placed(out, query.device)


def _device_of(values: Any) -> torch.device | None:
    for value in values:
        if isinstance(value, torch.Tensor):
            return value.device
        if isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cpu")):
            return torch.device(value)
    return None


ONE = dict.fromkeys(("embed", "low", "high", "ends"), "cpu:1")
TWO = {"embed": "cpu:1", "low": "cpu:1", "high": "cpu:2", "ends": "cpu:2"}


def spread(lens: Lens, places: dict[str, str], border: int = 2) -> Lens:
    """A copy of a model on these devices, with accelerate's hooks; layers below the border are low."""
    model = copy.deepcopy(lens.model)
    where = {f"model.layers.{i}": places["low" if i < border else "high"] for i in range(lens.dims.n_layers)}
    where |= {"model.embed_tokens": places["embed"], "model.rotary_emb": places["embed"]}
    where |= {"model.norm": places["ends"], "lm_head": places["ends"]}
    dispatch_model(model, where, force_hooks=True)
    return Lens(model, lens.tokenizer, lens.name)
