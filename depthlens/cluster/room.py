"""How many workers a cluster can ever hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from depthlens.errors import UserError


@dataclass(frozen=True)
class Need:
    """What one worker takes.

    Attributes:
        cpus: CPUs, as Ray counts them.
        gpus: GPUs; below 1 a share of one.
    """

    cpus: int
    gpus: float

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else ""
        return f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}{gpus}"


def room(ray: Any, need: Need, wanted: int | None) -> int:
    """How many workers there are to be: as many as were wanted, else as many as the nodes can hold.

    Raises:
        UserError: the nodes can never hold so many, or none.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = sum(_held(node.get("CPU", 0.0), node.get("GPU", 0.0), need) for node in nodes)
    if (wanted or 1) > most:
        cpus, gpus = (sum(node.get(what, 0) for node in nodes) for what in ("CPU", "GPU"))
        has = f"its {len(nodes)} node{'s have' if len(nodes) > 1 else ' has'} {cpus:g} CPUs and {gpus:g} GPUs"
        fault = f"workers {wanted or 1}: Ray has room for {most} with {need} each ({has})"
        raise UserError(f"{fault}; ask for fewer, or for smaller ones (worker_cpus, worker_gpus)")
    return wanted or most


def _held(cpus: float, gpus: float, need: Need) -> int:
    """How many workers one node can hold."""
    by_cpu = int(cpus // need.cpus)
    if not need.gpus:
        return by_cpu
    # a share of a GPU is of one GPU: 0.4 of each of two GPUs are four workers, not five
    by_gpu = int(gpus) * math.floor(1 / need.gpus + 1e-9) if need.gpus < 1 else int(gpus // need.gpus)
    return min(by_cpu, by_gpu)
