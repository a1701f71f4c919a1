"""Workers of Ray: actors that hold the model and compute shards (`depthlens.engine.engine`) for an engine.

The options ``workers``, ``ray``, ``worker_cpus`` and ``worker_gpus`` ask for them, or environment variables
(DEPTHLENS_WORKERS, DEPTHLENS_RAY and so on), as kernels of notebooks learn it. A variable counts where its option is
not given. `pool` has the workers. Ray and torch are imported when workers are asked for, and not before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from depthlens import arguments
from depthlens.errors import UserError

LOCAL = "local"  # a Ray of this process, on this machine


class AskedWorkers(NamedTuple):
    """Workers that are asked for; the fields are options.

    Attributes:
        workers: How many; None: as many as fit.
        ray: Address of a Ray cluster, or `LOCAL`.
        worker_cpus: Threads of each; None: of a local Ray its share of the cores, else 1.
        worker_gpus: GPUs of each, below 1 a share of one; None: as many as the model has here.
    """

    workers: int | None = None
    ray: str = LOCAL
    worker_cpus: int | None = None
    worker_gpus: float | None = None


NAMES = AskedWorkers._fields
ENVIRONMENT = {name: f"DEPTHLENS_{name.upper()}" for name in NAMES}


def asked(options: Mapping[str, Any]) -> AskedWorkers | None:
    """The workers that options or the environment ask for; None: this process computes.

    Raises:
        UserError: a value that an option cannot have, or workers are described and none are asked for.
    """
    given: dict[str, Any] = {name: os.environ.get(ENVIRONMENT[name], "").strip() or None for name in NAMES}
    given |= {name: options[name] for name in NAMES if options.get(name) is not None}
    found = {name: value for name, value in arguments.read(given).items() if value is not None}
    if found and "workers" not in found and "ray" not in found:
        name, value = next(iter(found.items()))
        raise UserError(f"{name} {value}: no workers are asked for; give workers=N or ray={LOCAL!r} as well")
    return AskedWorkers(**found) if found else None


def configure(options: Mapping[str, Any]) -> None:
    """Ask for workers in this process and in the kernels that it starts; what is None is left as it is."""
    asked(options)
    os.environ.update({ENVIRONMENT[name]: str(options[name]) for name in NAMES if options.get(name) is not None})
