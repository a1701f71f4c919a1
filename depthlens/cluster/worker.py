"""What runs in an actor: it loads the driver's model once, proves that it is the same, and computes shards."""

from __future__ import annotations

import gc
import socket
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from depthlens import provenance
from depthlens.engine.engine import Engine
from depthlens.engine.shards import Asked, Computed, Job
from depthlens.errors import UserError
from depthlens.models import loading, pairs
from depthlens.models.fingerprint import Identity
from depthlens.models.lens import Lens
from depthlens.store.answer_cache import NUMERICS

SAME_VERSIONS = ("depthlens", "torch", "transformers")


@dataclass(frozen=True)
class Recipe:
    """How a worker gets the driver's model.

    Attributes:
        name: The name in the driver, for messages.
        load: What `depthlens.load` takes for it; a path is absolute.
        dtype: As `depthlens.load` takes it.
        device: As `depthlens.load` takes it.
        quantize: As `depthlens.load` takes it.
        offload: As `depthlens.load` takes it.
        n_bytes: Of its weights; 0 where they are not held in memory.
        donor: The model that ``@donor`` conditions take parts from.
    """

    name: str
    load: str
    dtype: str
    device: str
    quantize: str | None
    offload: str | None
    n_bytes: int
    donor: Recipe | None = None


@dataclass(frozen=True)
class Proof:
    """What must be equal in the driver and in every worker.

    Attributes:
        versions: Of what decides scores.
        fingerprint: Of the model.
        donor: Fingerprint of the donor.
        settings: What else decides answers (`depthlens.models.fingerprint.settings`).
    """

    versions: dict[str, str | None]
    fingerprint: str = ""
    donor: str | None = None
    settings: tuple[tuple[str, str], ...] = ()


def versions() -> dict[str, str | None]:
    """Versions of what decides scores, here."""
    return {name: provenance.version(name) for name in SAME_VERSIONS} | {"numerics": str(NUMERICS)}


def proof(lens: Lens, identity: Identity | None = None) -> Proof:
    """What a model is, here and now; its identity is given where it was taken already."""
    identity = identity or lens.identify()
    donor = lens.donor.lens.identify().fingerprint if lens.donor else None
    return Proof(versions(), identity.fingerprint, donor, tuple(sorted(identity.settings.items())))


class Worker:
    """One actor.

    Args:
        threads: Threads that torch computes with.
        gpu_share: Share of one GPU's memory that it may take; 1: all.
    """

    def __init__(self, threads: int, gpu_share: float) -> None:
        torch.set_num_threads(threads)
        if gpu_share < 1 and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(gpu_share)
        self.gpu_share = gpu_share
        self.lens: Lens | None = None

    def where(self) -> tuple[str, dict[str, str | None]]:
        """Machine and versions; answers as soon as the actor has a place."""
        return socket.gethostname(), versions()

    def hold(self, recipe: Recipe) -> Proof:
        """Load a model.

        Raises:
            UserError: it cannot be loaded here, or does not fit.
        """
        self.lens = None  # the model before goes first
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.lens = self._loaded(recipe)
        if recipe.donor is not None:
            self.lens = pairs.with_donor(self.lens, self._loaded(recipe.donor))
        return proof(self.lens)

    def _loaded(self, recipe: Recipe) -> Lens:
        on_gpu = recipe.device.startswith("cuda") and torch.cuda.is_available()
        total = sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())) if on_gpu else 0
        free = int(total * self.gpu_share) if on_gpu else psutil.virtual_memory().available
        if recipe.n_bytes > free:
            sizes = f"{recipe.n_bytes / 2**30:.1f} GiB of weights, {free / 2**30:.1f} GiB are free"
            raise UserError(f"it does not fit ({sizes}); try dtype=bfloat16, or fewer workers on a machine")
        options: dict[str, Any] = {"dtype": recipe.dtype, "device": recipe.device, "offload": recipe.offload}
        options["quantize"] = recipe.quantize
        lens = loading.load(recipe.load, **options)
        lens.name = recipe.name
        return lens

    def compute(self, job: Job, asked: list[Asked]) -> Computed:
        """Answers to requests under conditions.

        Raises:
            UserError: an answer is not finite.
        """
        assert self.lens is not None
        means = job.means and job.means.to(self.lens.device)
        options: dict[str, Any] = {"path": job.path, "batch_tokens": job.batch_tokens, "means": means}
        engine = Engine(self.lens, backend=job.backend, progress=False, **options)
        run: Any = engine.generate_until if job.write else engine.loglikelihood
        answers = [run(requests, conditions) for requests, conditions in asked]
        return Computed(answers, engine.work)
