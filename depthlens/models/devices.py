"""Devices: which a name means, how much memory they have free, whether their matrix products are right and fast."""

from __future__ import annotations

import itertools
import timeit
from functools import cache, partial

import psutil
import torch
from torch.nn import functional

from depthlens.errors import UserError

# rows, inputs, outputs of the products that are compared: one row, a narrow product, and one as wide as a small layer
LINEAR_SHAPES = ((1, 64, 64), (33, 48, 160), (128, 576, 1536))
# of the largest value: float32 sums differ by 1e-6 of it, and a product that ignores strides by about all of it
LINEAR_TOLERANCE = 1e-2


def torch_device(name: str) -> torch.device:
    """The device that a name means here.

    Args:
        name: ``auto`` (cuda, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        UserError: this machine does not have it.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cuda" and not cuda:
        raise UserError(f"device {name!r}: torch finds no CUDA GPU here; use device=cpu")
    if index and int(index) >= torch.cuda.device_count():
        raise UserError(f"device {name!r}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    if kind == "mps" and not mps:
        raise UserError("device 'mps': torch finds no Apple GPU here; use device=cpu")
    return torch.device(name)


def torch_devices(name: str) -> list[torch.device]:
    """The devices that a name means here: one, those of a list (``cuda:0,cuda:1``), or with ``auto`` every GPU.

    Raises:
        UserError: this machine does not have them.
    """
    if name == "auto" and torch.cuda.is_available():
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [torch_device(one) for one in name.split(",")]


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return psutil.virtual_memory().available


def auto_dtype(device: torch.device) -> torch.dtype | str:
    """float32 on a CPU; elsewhere ``auto``, which transformers reads as the checkpoint's own."""
    return torch.float32 if device.type == "cpu" else "auto"


@cache
def times_float32(dtype: torch.dtype) -> float:
    """How long a matrix product of a type takes on this CPU, in those of float32; few CPUs multiply in half precision.

    The shortest of three runs, of the product of a small layer and a few prompts.
    """
    n_rows, n_in, n_out = 512, 576, 1536
    seconds = []
    for kind in (torch.float32, dtype):
        x, weight = torch.ones(n_rows, n_in, dtype=kind), torch.ones(n_out, n_in, dtype=kind)
        functional.linear(x, weight)
        seconds.append(min(timeit.repeat(partial(functional.linear, x, weight), number=1, repeat=3)))
    return seconds[1] / seconds[0]


def check_linear(device: torch.device) -> None:
    """Refuse a device on which ``torch.nn.functional.linear`` differs from the CPU's.

    On MPS torch 2.8.0 returns wrong products of non-contiguous tensors without an error
    (https://github.com/pytorch/pytorch/issues/161640, TransformerLens pull request 1271). So products of contiguous and
    of transposed inputs and weights are compared, with a bias.

    Raises:
        UserError: a product differs.
    """
    generator = torch.Generator().manual_seed(0)
    for n_rows, n_in, n_out in LINEAR_SHAPES:
        x, weight, bias = (
            torch.randn(*n, generator=generator, dtype=torch.float32) for n in ((n_rows, n_in), (n_out, n_in), (n_out,))
        )
        expected = x @ weight.T + bias
        for x_on_device, weight_on_device in itertools.product(_layouts(x, device), _layouts(weight, device)):
            product = functional.linear(x_on_device, weight_on_device, bias.to(device)).cpu()
            # not "greater": a NaN is refused as well
            if not (product - expected).abs().max() <= LINEAR_TOLERANCE * expected.abs().max():
                fault = f"device {str(device)!r}: torch {torch.__version__} computes wrong matrix products on it"
                raise UserError(f"{fault}; install torch 2.9 or later, or use device=cpu")


def _layouts(matrix: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix on a device, row by row in memory and column by column."""
    return matrix.to(device), matrix.T.contiguous().to(device).T
