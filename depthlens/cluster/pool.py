"""Actors of Ray that hold one model, and the deal of shards to them.

An actor has one shard at a time and gets the next before the answers of the last are stored. A shard whose actor or
node is lost goes to another actor, and a new actor takes the place of the lost one if the cluster has room for it. A
shard that fails by itself is tried once more elsewhere, and then its error ends the work. Whatever ends the work early
also ends the actors that still compute.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from typing import Any

from depthlens.cluster import session
from depthlens.cluster.options import LOCAL, Asked
from depthlens.cluster.recipes import recipe_of, refuse_other
from depthlens.cluster.room import Need, room
from depthlens.cluster.worker import Proof, Recipe, Worker, proof
from depthlens.engine.shards import Computed, Job, Shard
from depthlens.errors import UserError, one_line
from depthlens.models.lens import Lens

PLACE_SECONDS = 300.0  # in which some worker must have found a place and imported torch
LOOK_SECONDS = 0.5  # between looks, so that Ctrl-C is heard
MOST_LOSSES = 5  # of one shard, or of workers in a row while they load the model
_POOLS: dict[Asked, RayWorkers] = {}  # at most one


def connected(asked: Asked) -> RayWorkers:
    """The workers of this process that are asked for; others are given back.

    Raises:
        UserError: see `RayWorkers`.
    """
    found = _POOLS.get(asked)
    if found is None or not found.alive:
        for other in _POOLS.values():
            other.close()
        _POOLS.clear()
        found = _POOLS[asked] = RayWorkers(asked)
    return found


class RayWorkers:
    """Workers on Ray; see `depthlens.engine.shards.Workers`. The actors live as long as this process, or until `close`.

    Args:
        asked: How many, of what size, and where.

    Attributes:
        repeated: Shards that were computed again because their worker or node was lost.

    Raises:
        UserError: Ray cannot be started or reached, or has no room for so many workers.
    """

    def __init__(self, asked: Asked) -> None:
        self._ray = session.library()
        session.connect(asked.ray)
        self._session = self._ray.get_runtime_context().get_job_id()
        self.asked = asked
        self.repeated = 0
        self._need: Need | None = None  # what each takes; None: not settled yet
        self._n = asked.workers or 0
        self._recipe: Recipe | None = None
        self._wanted: Proof | None = None
        self._forget()
        if not asked.worker_gpus:  # else the model says whether there are GPUs
            self._settle(0.0)

    def _forget(self) -> None:
        self._ready: list[Any] = []  # actors that hold the model and have nothing to do
        self._empty: list[Any] = []  # actors that could not load it
        self._placing: dict[Any, Any] = {}  # actors by what they answer when they have a place
        self._loading: dict[Any, Any] = {}  # and by what they answer when they hold the model
        self._busy: dict[Any, tuple[Any, Shard]] = {}  # and by the answers to a shard
        self._losses = 0  # of workers in a row that loaded

    @property
    def alive(self) -> bool:
        """Whether Ray is still connected, by the same connection."""
        return self._ray.is_initialized() and self._ray.get_runtime_context().get_job_id() == self._session

    @property
    def n(self) -> int:
        """How many workers there are to be."""
        return self._n

    @property
    def threads(self) -> int | None:
        """Threads of each on a CPU."""
        return None if self._need is None or self._need.gpus else self._need.cpus

    def describe(self) -> dict[str, Any]:
        """For the record."""
        size = {} if self._need is None else {"cpus": self._need.cpus, "gpus": self._need.gpus}
        return {"n": self.n, "ray": self.asked.ray, **size, "repeated_shards": self.repeated}

    def close(self) -> None:
        """End all actors; Ray itself goes on until the process ends."""
        if self.alive:
            busy = [actor for actor, _ in self._busy.values()]
            for actor in (*self._ready, *self._empty, *self._placing.values(), *self._loading.values(), *busy):
                self._ray.kill(actor)
        self._forget()

    def prepare(self, lens: Lens) -> None:
        """Settle the GPUs of each worker, and how many workers there are."""
        on_gpu = lens.device.type == "cuda"
        gpus = self.asked.worker_gpus
        if gpus and not on_gpu:
            fix = "load it with device='cuda', or leave worker_gpus out"
            raise UserError(f"worker_gpus {gpus:g}: model {lens.name!r} is on {lens.device.type} here; {fix}")
        if lens.device.type not in ("cpu", "cuda"):
            raise UserError(
                f"workers: model {lens.name!r} is on {lens.device.type}; load it with device='cpu' or 'cuda'"
            )
        devices = {p.device for p in lens.model.parameters() if p.device.type == "cuda"}
        self._settle(float(gpus or max(1, len(devices))) if on_gpu else 0.0)

    def _settle(self, gpus: float) -> None:
        cpus = self.asked.worker_cpus
        if cpus is None and self.asked.ray == LOCAL and self.asked.workers:
            cpus = int(self._ray.cluster_resources().get("CPU", 1)) // self.asked.workers
        need = Need(max(1, cpus or 1), gpus)
        if need == self._need:
            return  # a node may have been lost meanwhile: those that are left go on
        self.close()
        self._n = room(self._ray, need, self.asked.workers)
        self._need = need

    def compute(self, lens: Lens, job: Job, shards: Iterator[Shard]) -> Generator[tuple[Shard, Computed], None, None]:
        """See `depthlens.engine.shards.Workers.compute`."""
        self._hold(lens)
        deal = _Deal(shards)
        shared = self._ray.put(job)
        done: list[tuple[Shard, Computed]] = []
        idle_since = time.monotonic()
        try:
            while True:
                while self._ready and (shard := deal.next()):
                    actor = self._ready.pop()
                    self._busy[actor.compute.remote(shared, shard.asked)] = actor, shard
                yield from done
                done.clear()
                if not self._busy and (self._ready or deal.empty):
                    return
                if self._busy or self._loading:
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since > PLACE_SECONDS:
                    self._refuse_full()
                refs = [*self._busy, *self._loading, *self._placing]
                for ref in self._ray.wait(refs, timeout=LOOK_SECONDS)[0]:
                    if ref in self._busy:
                        done += self._collected(ref, deal)
                    else:
                        self._started(ref)
        except UserError:  # the others end their shards for nothing, and are there for what comes next
            self._ready += [actor for actor, _ in self._busy.values()]
            self._busy.clear()
            raise
        finally:  # an actor that is in the middle of a shard takes no message
            for actor, _ in self._busy.values():
                self._ray.kill(actor)
            self._busy.clear()

    def _hold(self, lens: Lens) -> None:
        """Have the workers hold the model as it is now."""
        identity = lens.identify()
        if identity.obstacle:
            fix = "leave workers out, or take that away"
            raise UserError(f"workers load model {lens.name!r} from its files, but it {identity.obstacle} here; {fix}")
        assert self._need is not None
        recipe, wanted = recipe_of(lens, self._need.gpus), proof(lens, identity)
        load, self._empty = self._empty, []
        if (recipe, wanted) != (self._recipe, self._wanted):
            self._recipe, self._wanted = recipe, wanted
            load += [*self._ready, *self._loading.values()]
            self._ready, self._loading = [], {}
        self._loading |= {actor.hold.remote(recipe): actor for actor in load}
        for _ in range(self.n - len(self._ready) - len(self._placing) - len(self._loading)):
            self._place()

    def _place(self) -> None:
        """Ask for one more actor."""
        assert self._need is not None
        size: dict[str, Any] = {"num_cpus": self._need.cpus, "num_gpus": self._need.gpus}
        actor = (
            self._ray.remote(Worker)
            .options(scheduling_strategy="SPREAD", max_restarts=0, **size)
            .remote(self._need.cpus, min(1.0, self._need.gpus or 1.0))
        )
        self._placing[actor.where.remote()] = actor

    def _started(self, ref: Any) -> None:
        """Go on with an actor that has a place, or holds the model."""
        errors = self._ray.exceptions
        placed = ref in self._placing
        actor = (self._placing if placed else self._loading).pop(ref)
        assert self._wanted is not None and self._recipe is not None
        try:
            answer = self._ray.get(ref)
            if placed:
                host, versions = answer
                refuse_other(self._recipe.name, host, Proof(versions), Proof(self._wanted.versions))
                self._loading[actor.hold.remote(self._recipe)] = actor
                return
            refuse_other(self._recipe.name, "workers", answer, self._wanted)
        except errors.RayTaskError as e:
            self._empty.append(actor)
            fault = f"workers cannot load model {self._recipe.name!r}: {one_line(e.cause)}"
            if isinstance(e.cause, UserError):
                fault = f"workers cannot load model {self._recipe.name!r}: {e.cause}"
            fix = "; every worker must see its files by the same path or name" if self._is_path() else ""
            raise UserError(fault + fix) from e
        except errors.RayError as e:
            self._lost_while_starting(e)
            return
        except UserError:
            self._empty.append(actor)
            raise
        self._losses = 0
        self._ready.append(actor)

    def _is_path(self) -> bool:
        assert self._recipe is not None
        return self._recipe.load.startswith("/")

    def _lost_while_starting(self, error: Exception) -> None:
        """Try another actor, unless what ended this one would end all."""
        text = " ".join(str(error).split())
        if "ModuleNotFoundError" in text or "ImportError" in text:
            why = str(error).strip().splitlines()[-1].strip()
            fix = "install depthlens, in the driver's version, on every machine of the cluster"
            raise UserError(f"workers cannot import what they need ({why}); {fix}") from error
        self._losses += 1
        if self._losses >= MOST_LOSSES:
            assert self._recipe is not None
            fix = "does it fit into their memory? try dtype=bfloat16, or fewer workers on a machine"
            fault = f"{self._losses} workers in a row ended while they loaded model {self._recipe.name!r}"
            raise UserError(f"{fault} ({text[:200]}); {fix}") from error
        self._place()

    def _collected(self, ref: Any, deal: _Deal) -> list[tuple[Shard, Computed]]:
        """The answers to a shard; none where it has to be computed again."""
        errors = self._ray.exceptions
        actor, shard = self._busy.pop(ref)
        try:
            computed = self._ray.get(ref)
        except errors.RayTaskError as e:
            self._ready.insert(0, actor)  # another one tries it first
            if isinstance(e.cause, UserError):
                raise UserError(str(e.cause)) from None
            if deal.failed(shard):
                rows = sum(len(m) * len(g) for m, g in shard.products)
                raise UserError(f"{rows} rows failed twice on workers: {one_line(e.cause)}") from e
            return []
        except errors.RayError as e:
            self.repeated += 1
            if deal.lost(shard) >= MOST_LOSSES:
                fault = f"{MOST_LOSSES} workers ended one after another over the same rows"
                raise UserError(f"{fault} ({' '.join(str(e).split())[:200]}); is their memory full?") from e
            self._ray.kill(actor)  # it may live on behind a broken connection
            self._place()
            return []
        self._ready.append(actor)
        return [(shard, computed)]

    def _refuse_full(self) -> None:
        free = self._ray.available_resources()
        have = f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free"
        self.close()
        fault = f"no worker found a place within {PLACE_SECONDS:g} seconds: each needs {self._need}, and {have}"
        raise UserError(f"{fault}; wait for what else runs on the cluster, or ask for smaller workers")


class _Deal:
    """Shards that wait: those that were given back, then those that nobody had."""

    def __init__(self, shards: Iterator[Shard]) -> None:
        self._shards = shards
        self._back: deque[Shard] = deque()
        self._failed: set[Shard] = set()
        self._lost: dict[Shard, int] = {}
        self._exhausted = False

    def next(self) -> Shard | None:
        """The next shard; None: there is none now."""
        if self._back:
            return self._back.popleft()
        shard = None if self._exhausted else next(self._shards, None)
        self._exhausted |= shard is None
        return shard

    @property
    def empty(self) -> bool:
        """Whether none waits, as far as `next` has found out."""
        return self._exhausted and not self._back

    def lost(self, shard: Shard) -> int:
        """Take back a shard whose worker was lost; returns how often that happened to it."""
        self._back.append(shard)
        self._lost[shard] = self._lost.get(shard, 0) + 1
        return self._lost[shard]

    def failed(self, shard: Shard) -> bool:
        """Take back a shard that failed by itself; returns whether it did so before."""
        before = shard in self._failed
        self._failed.add(shard)
        self._back.append(shard)
        return before
