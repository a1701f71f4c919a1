"""Actors of Ray that hold the driver's model and compute shards of a sweep.

Ray places the actors, starts those again that are lost, and has their shards computed again, so that a lost worker
costs its shard. Actors live as long as this process, or until others are asked for.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import torch

from depthlens.ablations import Condition
from depthlens.cluster import LOCAL, AskedWorkers, asked
from depthlens.engine.engine import Engine
from depthlens.engine.work import Work
from depthlens.errors import UserError, first_line
from depthlens.models import loading, pairs
from depthlens.models.fingerprint import Identity
from depthlens.models.lens import Lens

Asked = tuple[list[Any], list[Condition]]  # requests and conditions, each combination of which is a row
Computed = tuple[int, list[list[Any]], Work]  # number of the shard, answers [condition][request], what was computed
# arguments of `depthlens.load`, and what is loaded here: of a model, and of the donor that it may have
Models = list[tuple[dict[str, Any], Identity]]


def workers_of(options: Mapping[str, Any]) -> Workers | None:
    """The workers that options or the environment ask for; None: this process computes.

    Raises:
        UserError: Ray is not installed, cannot be started or reached, or has no room for so many.
    """
    return Workers(wanted) if (wanted := asked(options)) else None


def models_of(lens: Lens, gpus: int | float) -> Models:
    """How a worker with so many GPUs gets a model that is loaded here, and its donor."""
    # a worker sees its own GPUs only, numbered from 0
    device = lens.device.type if gpus <= 1 else ",".join(f"cuda:{i}" for i in range(int(gpus)))
    load: dict[str, Any] = {"name": lens.name, "device": device, "dtype": str(lens.dtype).removeprefix("torch.")}
    load |= {"quantize": lens.quantize, "offload": "disk" if lens.stream else None}
    return [(load, lens.identify()), *(models_of(lens.donor, gpus) if lens.donor else [])]


def _loaded(models: Models) -> Lens:
    """A model, with its donor, here.

    Raises:
        UserError: it is another here.
    """
    (load, there), *donor = models
    lens = loading.load(**load)
    if (here := lens.identify()) != there:
        differ = [name for name, value in vars(here).items() if value != vars(there)[name]]
        fix = "load a model here that was saved where workers see it, and change nothing of it"
        raise UserError(f"model {lens.name!r} is another on a worker ({' and '.join(differ)}); {fix}")
    return pairs.with_donor(lens, _loaded(donor)) if donor else lens


class Worker:
    """One actor.

    Args:
        threads: Threads that torch computes with.
    """

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.models: Models | None = None
        self.lens: Any = None

    def compute(self, shared: tuple[Models, str, str, dict[str, Any]], number: int, shard: Asked) -> Computed:
        """Answers to a shard.

        Args:
            shared: Models, the driver's working directory, and the method and the options of its engine. Where that
                directory exists, relative paths mean the same here.
            number: Of the shard.
            shard: What is asked.

        Raises:
            UserError: the model is another here, or an answer is not finite.
        """
        models, folder, method, options = shared
        if models != self.models:
            if os.path.isdir(folder):
                os.chdir(folder)
            self.models = self.lens = None  # the model before goes first
            self.lens, self.models = _loaded(models), models
        means = options["means"] and options["means"].to(self.lens.device)
        engine = Engine(self.lens, progress=False, **options | {"means": means})
        return number, getattr(engine, method)(*shard), engine.work


class Workers:
    """Actors, for the ``workers`` of `depthlens.engine.engine.Engine`.

    Args:
        wanted: How many, of what size, and where.

    Raises:
        UserError: Ray is not installed, cannot be started or joined, or has no room for so many workers.
    """

    def __init__(self, wanted: AskedWorkers) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its makers unless this says 0
        os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")  # on a busy machine it starts slowly
        try:
            import ray
        except ImportError as error:
            fix = "pip install 'depthlens[ray]', or leave workers and ray out"
            raise UserError(f"workers need Ray, which is not installed here; {fix}") from error
        self.ray, self.wanted = ray, wanted
        if not ray.is_initialized():
            self._connect(wanted.ray)
        self.cpus, self.gpus = wanted.worker_cpus or 1, wanted.worker_gpus or 0.0
        if wanted.worker_cpus is None and wanted.ray == LOCAL and wanted.workers:
            self.cpus = max(1, int(ray.cluster_resources().get("CPU", 1)) // wanted.workers)
        self.n = self._room()

    def _connect(self, address: str) -> None:
        _actors.cache_clear()  # of a Ray that was shut down
        options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            if host:  # where nobody answers Ray itself tries for minutes
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            # else the first worker's model would stand beside the one here; a share of a GPU is asked for to share it
            with patch.dict(os.environ, _other_gpus() if options and (self.wanted.worker_gpus or 1) >= 1 else {}):
                self.ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # noqa: BLE001 - Ray raises plain Exceptions
            self.ray.shutdown()
            fix = f"give HOST:PORT as 'ray start --head' prints it, or {LOCAL!r} for a Ray on this machine"
            raise UserError(f"ray {address!r} cannot be joined or started ({first_line(error)}); {fix}") from error

    def _room(self) -> int:
        """How many workers there are to be: as many as were asked for, else as many as the cluster can hold."""
        has, size = self.ray.cluster_resources(), {"CPU": self.cpus, "GPU": self.gpus}
        most = min(int(has.get(kind, 0) / each) for kind, each in size.items() if each)
        if (self.wanted.workers or 1) > most:
            each = " and ".join(f"{of:g} {kind}s" for kind, of in size.items())
            fault = f"workers {self.wanted.workers}: Ray has room for {most} with {each} each, beside the model here"
            raise UserError(f"{fault}; ask for fewer, or for smaller ones (worker_cpus, worker_gpus)")
        return self.wanted.workers or most

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {"n": self.n, "ray": self.wanted.ray, "cpus": self.cpus, "gpus": self.gpus}

    def compute(self, lens: Lens, method: str, options: dict[str, Any], shards: Sequence[Asked]) -> Iterator[Computed]:
        """Answers of shards as they come, from workers that have loaded the model.

        Args:
            lens: The model.
            method: Of the engine; it answers a shard.
            options: Of the engine.
            shards: What is asked.
        """
        from ray.exceptions import RayTaskError
        from ray.util import ActorPool

        gpus = self.wanted.worker_gpus
        if gpus and lens.device.type != "cuda":
            fix = "load it with device='cuda', or leave worker_gpus out"
            raise UserError(f"worker_gpus {gpus}: model {lens.name!r} is on {lens.device.type} here; {fix}")
        self.gpus = float(gpus or sum(device.type == "cuda" for device in lens.devices))
        self.n = self._room()
        shared = self.ray.put((models_of(lens, self.gpus), os.getcwd(), method, options))
        actors = _actors(self.n, self.cpus, self.gpus)

        numbered = list(enumerate(shards))
        try:
            yield from ActorPool(actors).map_unordered(lambda actor, one: actor.compute.remote(shared, *one), numbered)
        except BaseException as error:  # an actor that is in the middle of a shard takes no message
            _actors.cache_clear()
            for actor in actors:
                self.ray.kill(actor)
            if isinstance(error, RayTaskError) and isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise


def _other_gpus() -> dict[str, str]:
    """The variable by which a Ray that starts sees the GPUs where this process holds nothing; none of them: not set."""
    here, variable = range(torch.cuda.device_count()), "CUDA_VISIBLE_DEVICES"
    names = (os.environ.get(variable) or ",".join(map(str, here))).split(",")
    free = [name for name, i in zip(names, here, strict=False) if not torch.cuda.memory_allocated(i)]
    return {variable: ",".join(free)} if free else {}


@lru_cache(maxsize=1)  # those of another size end when they are forgotten
def _actors(n: int, cpus: int, gpus: float) -> list[Any]:
    import ray

    # a shard is sent again as often as its worker is restarted: one that ends every worker ends the sweep after that
    size: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
    actor = ray.remote(max_restarts=10, max_task_retries=-1, **size)(Worker)
    return [actor.remote(cpus) for _ in range(n)]
