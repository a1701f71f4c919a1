"""Actors of Ray that hold the driver's model and compute shards of a sweep.

Ray places the actors, starts those again that are lost, and has their shards computed again; where it has no room for
them, other actors compute their shards in the end. So a lost worker costs its shard. Actors live as long as this
process, or until others are asked for.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from depthlens import provenance
from depthlens.ablations import Condition
from depthlens.cluster import LOCAL, AskedWorkers, asked
from depthlens.engine.engine import Engine, Job
from depthlens.engine.work import Work
from depthlens.errors import UserError, first_line
from depthlens.models import loading, pairs
from depthlens.models.lens import Lens

CONNECT_SECONDS = 5  # until an address at which nobody answers is refused; Ray itself tries for minutes
RESTARTS = 10  # of a worker; a shard that ends every worker ends the sweep then
LOST_SECONDS = 30  # without any answer, until workers that have nothing to do compute what others were given
SAME_VERSIONS = ("depthlens", "torch", "transformers")
Asked = tuple[list[Any], list[Condition]]  # requests and conditions, each combination of which is a row
Computed = tuple[int, list[list[Any]], Work]  # number of the shard, answers [condition][request], what was computed
# arguments of `depthlens.load`, and fingerprint, settings and versions: of a model, and of the donor that it may have
Models = list[tuple[dict[str, Any], dict[str, Any]]]
_WORKERS: dict[AskedWorkers, Workers] = {}  # at most one


def workers_of(options: Mapping[str, Any]) -> Workers | None:
    """The workers that options or the environment ask for; None: this process computes.

    Workers that were asked for before are given back, where they are others.

    Raises:
        UserError: Ray is not installed, cannot be started or reached, or has no room for so many.
    """
    wanted = asked(options)
    if wanted is None:
        return None
    if wanted not in _WORKERS or not _WORKERS[wanted].ray.is_initialized():
        for other in _WORKERS.values():
            other.close()
        _WORKERS.clear()
        _WORKERS[wanted] = Workers(wanted)
    return _WORKERS[wanted]


def models_of(lens: Lens, gpus: int | float) -> Models:
    """How a worker with so many GPUs gets a model that is loaded here, and its donor.

    Raises:
        UserError: it was changed since it was loaded.
    """
    identity = lens.identify()
    if identity.obstacle:
        fix = "leave workers out, or take that away"
        raise UserError(f"workers load model {lens.name!r} from its files, but it {identity.obstacle} here; {fix}")
    # a worker sees its own GPUs only, numbered from 0
    device = lens.device.type if gpus <= 1 else ",".join(f"cuda:{i}" for i in range(int(gpus)))
    load: dict[str, Any] = {"name": lens.name, "device": device, "dtype": str(lens.dtype).removeprefix("torch.")}
    load |= {"quantize": lens.quantize, "offload": "disk" if lens.stream else None}
    return [(load, _described(lens)), *(models_of(lens.donor, gpus) if lens.donor else [])]


def _described(lens: Lens) -> dict[str, Any]:
    """What must be equal on a worker."""
    identity, versions = lens.identify(), {name: provenance.version(name) for name in SAME_VERSIONS}
    return {"fingerprint": identity.fingerprint, **identity.settings, **versions}


def _loaded(models: Models) -> Lens:
    """A model, with its donor, here.

    Raises:
        UserError: it is another here.
    """
    (load, described), *donor = models
    lens = loading.load(**load)
    for name, value in _described(lens).items():
        if described[name] != value:
            fix = "install the same versions, and load a model that was saved where workers see it"
            fault = f"model {lens.name!r}: {name} is {value} on a worker and {described[name]} here"
            raise UserError(f"{fault}; {fix}")
    return pairs.with_donor(lens, _loaded(donor)) if donor else lens


class Worker:
    """One actor.

    Args:
        threads: Threads that torch computes with.
        folder: The driver's working directory. Where it exists, relative paths mean the same here.
    """

    def __init__(self, threads: int, folder: str) -> None:
        import torch

        torch.set_num_threads(threads)
        if os.path.isdir(folder):
            os.chdir(folder)
        self.models: Models | None = None
        self.lens: Lens | None = None

    def compute(self, shared: tuple[Models, Job], number: int, shard: Asked) -> Computed:
        """Answers to a shard.

        Raises:
            UserError: the model is another here, or an answer is not finite.
        """
        models, job = shared
        if self.lens is None or models != self.models:
            self.models = self.lens = None  # the model before goes first
            self.lens, self.models = _loaded(models), models
        means = job.means and job.means.to(self.lens.device)
        options: dict[str, Any] = {"path": job.path, "batch_tokens": job.batch_tokens, "means": means}
        engine = Engine(self.lens, backend=job.backend, progress=False, **options)
        run: Any = engine.generate_until if job.write else engine.loglikelihood
        return number, run(*shard), engine.work


class Workers:
    """Actors, for the ``workers`` of `depthlens.engine.engine.Engine`.

    Args:
        wanted: How many, of what size, and where.

    Raises:
        UserError: Ray is not installed, cannot be started or joined, or has no room for so many workers.
    """

    def __init__(self, wanted: AskedWorkers) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its makers unless this says 0
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its future default; else it warns
        os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")  # on a busy machine it starts slowly
        try:
            import ray
        except ImportError as error:
            fix = "pip install 'depthlens[ray]', or leave workers and ray out"
            raise UserError(f"workers need Ray, which is not installed here; {fix}") from error
        self.ray = ray
        self.wanted = wanted
        self._actors: list[Any] = []
        if not ray.is_initialized():
            self._connect(wanted.ray)
        self.cpus, self.gpus = wanted.worker_cpus or 1, wanted.worker_gpus or 0.0
        if wanted.worker_cpus is None and wanted.ray == LOCAL and wanted.workers:
            self.cpus = max(1, int(ray.cluster_resources().get("CPU", 1)) // wanted.workers)
        self.n = self._room()

    def _connect(self, address: str) -> None:
        before = signal.getsignal(signal.SIGTERM)
        options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            if host:
                socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
            self.ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # noqa: BLE001 - Ray raises plain Exceptions
            self.ray.shutdown()
            fix = f"give HOST:PORT as 'ray start --head' prints it, or {LOCAL!r} for a Ray on this machine"
            raise UserError(f"ray {address!r} cannot be joined or started ({first_line(error)}); {fix}") from error
        finally:
            if threading.current_thread() is threading.main_thread():  # Ray sets another there
                signal.signal(signal.SIGTERM, before)

    def _room(self) -> int:
        """How many workers there are to be: as many as were asked for, else as many as the cluster can hold."""
        has, n = self.ray.cluster_resources(), self.wanted.workers or 1
        size = {"CPU": self.cpus, "GPU": self.gpus}
        most = min(int(has.get(kind, 0) / each) for kind, each in size.items() if each)
        if n > most:
            each, has_all = (" and ".join(f"{of.get(kind, 0):g} {kind}s" for kind in size) for of in (size, has))
            fault = f"workers {n}: Ray has room for {most} with {each} each (it has {has_all})"
            raise UserError(f"{fault}; ask for fewer, or for smaller ones (worker_cpus, worker_gpus)")
        return self.wanted.workers or most

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {"n": self.n, "ray": self.wanted.ray, "cpus": self.cpus, "gpus": self.gpus}

    def close(self) -> None:
        """End all actors; Ray itself goes on until the process ends."""
        if self.ray.is_initialized():
            for actor in self._actors:
                self.ray.kill(actor)
        self._actors = []

    def _start(self, lens: Lens) -> None:
        """Have as many actors as are asked for, of the size that the model needs."""
        on_gpu, gpus = lens.device.type == "cuda", self.wanted.worker_gpus
        if lens.device.type not in ("cpu", "cuda") or (gpus and not on_gpu):
            fix = "load it with device='cuda', or leave worker_gpus out"
            raise UserError(f"workers: model {lens.name!r} is on {lens.device.type} here; {fix}")
        gpus = float(gpus or sum(device.type == "cuda" for device in lens.devices))
        if gpus != self.gpus:
            self.close()
        self.gpus = gpus
        if not self._actors:
            self.n = self._room()
            size: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": "SPREAD"}
            # without a bound of its own a shard is computed again until its worker was lost too often
            actor = self.ray.remote(max_restarts=RESTARTS, max_task_retries=-1, **size)(Worker)
            self._actors = [actor.remote(self.cpus, os.getcwd()) for _ in range(self.n)]

    def compute(self, lens: Lens, job: Job, shards: Sequence[Asked]) -> Generator[Computed, None, None]:
        """Answers of shards as they come, from workers that have loaded the model."""
        from ray.exceptions import RayTaskError
        from ray.util import ActorPool

        self._start(lens)
        pool, shared = ActorPool(self._actors), self.ray.put((models_of(lens, self.gpus), job))
        left = set(range(len(shards)))

        def submit(number: int) -> None:
            pool.submit(lambda actor, shard: actor.compute.remote(shared, number, shard), shards[number])

        try:
            for number in left:
                submit(number)
            while left:
                try:
                    done = pool.get_next_unordered(timeout=LOST_SECONDS)
                except TimeoutError:  # a worker may be lost, and Ray may have no room for another
                    for number in left:
                        if pool.has_free():
                            submit(number)
                    continue
                if done[0] in left:
                    left.remove(done[0])
                    yield done
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        finally:
            if left:  # an actor that is in the middle of a shard takes no message
                self.close()
