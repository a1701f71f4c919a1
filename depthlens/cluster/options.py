"""Which workers are asked for: by options of an experiment, or by the environment, as kernels of notebooks learn it.

The options are ``workers``, ``ray``, ``worker_cpus`` and ``worker_gpus``. Each may also be an environment variable
(DEPTHLENS_WORKERS, DEPTHLENS_RAY and so on), which counts where the option is not given. Neither Ray nor torch is
imported here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from depthlens import arguments
from depthlens.errors import UserError

NAMES = ("workers", "ray", "worker_cpus", "worker_gpus")
LOCAL = "local"  # a Ray of this process, on this machine


@dataclass(frozen=True)
class AskedWorkers:
    """Workers that are asked for.

    Attributes:
        ray: Address of a Ray cluster, or `LOCAL`.
        workers: How many; None: as many as fit.
        worker_cpus: Threads of each; None: of a local Ray its share of the cores, else 1.
        worker_gpus: GPUs of each, below 1 a share of one; None: as many as the model has here.
    """

    ray: str = LOCAL
    workers: int | None = None
    worker_cpus: int | None = None
    worker_gpus: float | None = None


def environment(name: str) -> str:
    """The environment variable of an option."""
    return f"DEPTHLENS_{name.upper()}"


def asked(options: Mapping[str, Any]) -> AskedWorkers | None:
    """The workers that options or the environment ask for; None: this process computes.

    Raises:
        UserError: a value that an option cannot have, or workers are described and none are asked for.
    """
    found: dict[str, Any] = {}
    for name in NAMES:
        value = options.get(name)
        if value is None:
            value = os.environ.get(environment(name), "").strip() or None
        if (value := arguments.read({name: value})[name]) is not None:
            found[name] = value
    if not found:
        return None
    if "workers" not in found and "ray" not in found:
        name, value = next(iter(found.items()))
        raise UserError(f"{name} {value}: no workers are asked for; give workers=N or ray={LOCAL!r} as well")
    return AskedWorkers(**found)


def configure(options: Mapping[str, Any]) -> None:
    """Ask for workers in this process and in the kernels that it starts; what is None is left as it is."""
    asked(options)
    os.environ.update({environment(name): str(options[name]) for name in NAMES if options.get(name) is not None})
