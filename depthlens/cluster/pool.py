"""Actors of Ray that hold the driver's model and compute shards of a sweep.

Ray places the actors, starts those again that are lost, and has their shards computed again. So a lost worker costs its
shard. Actors live as long as this process, or until others are asked for.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthlens import provenance
from depthlens.ablations import Condition
from depthlens.cluster.options import LOCAL, AskedWorkers
from depthlens.engine.engine import Engine, Job
from depthlens.engine.work import Work
from depthlens.errors import UserError
from depthlens.models import loading, names, pairs
from depthlens.models.fingerprint import Identity
from depthlens.models.lens import Lens

LOOK_SECONDS = 0.5  # between looks at what has come, so that Ctrl-C is heard
RETRIES = 3  # of a shard whose workers are lost
SAME_VERSIONS = ("depthlens", "torch", "transformers")
Asked = tuple[list[Any], list[Condition]]  # requests and conditions, each combination of which is a row
Computed = tuple[int, list[list[Any]], Work]  # number of the shard, answers [condition][request], what was computed
_WORKERS: dict[AskedWorkers, Workers] = {}  # at most one


def connected(asked: AskedWorkers) -> Workers:
    """The workers of this process that are asked for; others are given back."""
    if asked not in _WORKERS or not _WORKERS[asked].ray.is_initialized():
        for other in _WORKERS.values():
            other.close()
        _WORKERS.clear()
        _WORKERS[asked] = Workers(asked)
    return _WORKERS[asked]


@dataclass(frozen=True)
class Model:
    """How a worker gets the driver's model.

    Attributes:
        name: The name in the driver.
        identity: Fingerprint, settings and versions, which must be equal there.
        load: Arguments of `depthlens.load`; a path is absolute.
        donor: The model that ``@donor`` conditions take parts from.
    """

    name: str
    identity: dict[str, Any]
    load: dict[str, Any]
    donor: Model | None = None


def model_of(lens: Lens, gpus: float) -> Model:
    """How a worker with so many GPUs gets a model that is loaded here.

    Raises:
        UserError: it was changed since it was loaded.
    """
    identity = lens.identify()
    if identity.obstacle:
        fix = "leave workers out, or take that away"
        raise UserError(f"workers load model {lens.name!r} from its files, but it {identity.obstacle} here; {fix}")
    # a worker sees its own GPUs only, numbered from 0
    device = lens.device.type if gpus <= 1 else ",".join(f"cuda:{i}" for i in range(int(gpus)))
    load: dict[str, Any] = {
        "name": _everywhere(lens.name),
        "device": device,
        "dtype": str(lens.dtype).removeprefix("torch."),
    }
    load |= {"quantize": lens.quantize, "offload": "disk" if lens.stream else None}
    return Model(lens.name, _described(identity), load, model_of(lens.donor.lens, gpus) if lens.donor else None)


def _everywhere(name: str) -> str:
    """A name that means the same in another working directory."""
    whole, cut, n_layers = name.partition("[:")
    if cut:
        return f"{_everywhere(whole)}{cut}{n_layers}"
    if names.is_own(name):
        return name
    parts = name.split("+") if not Path(name).expanduser().exists() else [name]
    there = [Path(part).expanduser() for part in parts]
    return "+".join(
        str(path.resolve()) if path.exists() and not names.is_own(part) else part
        for part, path in zip(parts, there, strict=True)
    )


def _described(identity: Identity) -> dict[str, Any]:
    versions: dict[str, Any] = {name: provenance.version(name) for name in SAME_VERSIONS}
    return {"fingerprint": identity.fingerprint, **identity.settings, **versions}


class Worker:
    """One actor.

    Args:
        threads: Threads that torch computes with.
    """

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.model: Model | None = None
        self.lens: Lens | None = None

    def compute(self, shared: tuple[Model, Job], number: int, shard: Asked) -> Computed:
        """Answers to a shard.

        Raises:
            UserError: the model is another here, or an answer is not finite.
        """
        model, job = shared
        if self.lens is None or model != self.model:
            self.model = self.lens = None  # the model before goes first
            self.lens, self.model = self._loaded(model), model
        means = job.means and job.means.to(self.lens.device)
        options: dict[str, Any] = {"path": job.path, "batch_tokens": job.batch_tokens, "means": means}
        engine = Engine(self.lens, backend=job.backend, progress=False, **options)
        run: Any = engine.generate_until if job.write else engine.loglikelihood
        return number, run(*shard), engine.work

    def _loaded(self, model: Model) -> Lens:
        lens = loading.load(**model.load)
        lens.name = model.name
        if model.donor:
            lens = pairs.with_donor(lens, self._loaded(model.donor))
        for name, value in _described(lens.identify()).items():
            if model.identity[name] != value:
                fix = "install the same versions, and load a model that was saved where workers see it"
                fault = f"model {model.name!r}: {name} is {value} on a worker and {model.identity[name]} here"
                raise UserError(f"{fault}; {fix}")
        return lens


class Workers:
    """See `depthlens.engine.engine.Workers`.

    Args:
        asked: How many, of what size, and where.

    Raises:
        UserError: Ray is not installed, cannot be started or joined, or has no room for so many workers.
    """

    def __init__(self, asked: AskedWorkers) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its makers unless this says 0
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its future default; else it warns
        os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")  # on a busy machine it starts slowly
        try:
            import ray
        except ImportError as error:
            fix = "pip install 'depthlens[ray]', or leave workers and ray out"
            raise UserError(f"workers need Ray, which is not installed here; {fix}") from error
        self.ray = ray
        self.asked = asked
        self._connect(asked.ray)
        self._actors: list[Any] = []
        self.cpus, self.gpus = max(1, asked.worker_cpus or 1), 0.0
        if asked.worker_cpus is None and asked.ray == LOCAL and asked.workers:
            self.cpus = max(1, int(ray.cluster_resources().get("CPU", 1)) // asked.workers)
        self.n = self._room() if not asked.worker_gpus else asked.workers or 0

    def _connect(self, address: str) -> None:
        if self.ray.is_initialized():
            return
        before = signal.getsignal(signal.SIGTERM)
        options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Ray, on its own future
                self.ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # noqa: BLE001 - Ray raises plain Exceptions
            self.ray.shutdown()
            said = " ".join(str(error).split())
            fix = f"give HOST:PORT as 'ray start --head' prints it, or {LOCAL!r} for a Ray on this machine"
            raise UserError(f"ray {address!r} cannot be joined or started ({said[:300]}); {fix}") from error
        finally:
            if threading.current_thread() is threading.main_thread():  # Ray sets another there
                signal.signal(signal.SIGTERM, before)

    def _room(self) -> int:
        """How many workers there are to be: as many as were asked for, else as many as the cluster can hold."""
        has = self.ray.cluster_resources()
        most = int(has.get("CPU", 0) // self.cpus)
        most = min(most, int(has.get("GPU", 0) / self.gpus)) if self.gpus else most
        if (self.asked.workers or 1) > most:
            each = f"{self.cpus} CPUs and {self.gpus:g} GPUs each"
            has_all = f"it has {has.get('CPU', 0):g} and {has.get('GPU', 0):g}"
            fault = f"workers {self.asked.workers or 1}: Ray has room for {most} with {each} ({has_all})"
            raise UserError(f"{fault}; ask for fewer, or for smaller ones (worker_cpus, worker_gpus)")
        return self.asked.workers or most

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {"n": self.n, "ray": self.asked.ray, "cpus": self.cpus, "gpus": self.gpus}

    def close(self) -> None:
        """End all actors; Ray itself goes on until the process ends."""
        if self.ray.is_initialized():
            for actor in self._actors:
                self.ray.kill(actor)
        self._actors = []

    def _start(self, lens: Lens) -> None:
        """Have as many actors as are asked for, of the size that the model needs."""
        on_gpu, gpus = lens.device.type == "cuda", self.asked.worker_gpus
        if lens.device.type not in ("cpu", "cuda") or (gpus and not on_gpu):
            fix = "load it with device='cuda', or leave worker_gpus out"
            raise UserError(f"workers: model {lens.name!r} is on {lens.device.type} here; {fix}")
        devices = {p.device for p in lens.model.parameters() if p.device.type == "cuda"}
        before, self.gpus = self.gpus, float(gpus or max(1, len(devices))) if on_gpu else 0.0
        if self.gpus != before:
            self.close()
        self.n = self._room()
        if not self._actors:
            size: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": "SPREAD"}
            actor = self.ray.remote(max_restarts=-1, max_task_retries=RETRIES, **size)(Worker)
            self._actors = [actor.remote(self.cpus) for _ in range(self.n)]

    def compute(self, lens: Lens, job: Job, shards: Sequence[Asked]) -> Generator[Computed, None, None]:
        """See `depthlens.engine.engine.Workers.compute`."""
        from ray.exceptions import RayTaskError
        from ray.util import ActorPool

        self._start(lens)
        pool, shared, finished = ActorPool(self._actors), self.ray.put((model_of(lens, self.gpus), job)), False
        for shard in enumerate(shards):
            pool.submit(lambda actor, shard: actor.compute.remote(shared, *shard), shard)
        try:
            while pool.has_next():
                with suppress(TimeoutError):
                    yield pool.get_next_unordered(timeout=LOOK_SECONDS)
            finished = True
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        finally:
            if not finished:  # an actor that is in the middle of a shard takes no message
                self.close()
