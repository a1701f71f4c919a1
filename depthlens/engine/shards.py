"""Requests under conditions in shards, each of which a worker computes: the engine's way to use several processes.

What workers are is not known here (`depthlens.cluster` has those of Ray). The driver stores the answers as they come,
so that the workers need no store.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from depthlens.ablations import Condition
from depthlens.backends.protocol import Means
from depthlens.engine.work import Work
from depthlens.models.lens import Lens
from depthlens.store.answer_rows import Product

# that each worker gets at least: the fewer there are, the longer wait those who end first
PER_WORKER = 6

Asked = tuple[list[Any], list[Condition]]  # requests and conditions, each combination of which is a row
Computed = tuple[int, list[list[Any]], Work]  # number of the shard, answers [condition][request], what was computed


@dataclass(frozen=True)
class Job:
    """What the shards of one call share.

    Attributes:
        write: Whether texts are asked for, or log-likelihoods.
        backend: What applies the conditions.
        path: How; see `depthlens.engine.engine.PATHS`.
        batch_tokens: Token budget of one batch; None: each worker chooses by its own memory.
        means: Reference means, if conditions ask for some; on a CPU.
    """

    write: bool
    backend: str
    path: str
    batch_tokens: int | None
    means: Means | None


@runtime_checkable
class Workers(Protocol):
    """Processes that compute shards.

    Attributes:
        n: How many there are.
    """

    n: int

    def compute(self, lens: Lens, job: Job, shards: Sequence[Asked]) -> Generator[Computed, None, None]:
        """Compute shards in any order.

        Raises:
            UserError: the workers do not hold the model, or what the model refuses.
        """
        ...


def cut(requests: Sequence[Any], products: Sequence[Product], n: int) -> list[Product]:
    """Products in about ``n`` shards: runs of requests, of which neighbours share their beginnings.

    Where a product has fewer requests than it is to have shards, its conditions are dealt out, too.
    """
    n_rows = max(1, sum(len(members) * len(group) for members, group in products))
    shards: list[Product] = []
    for members, group in products:
        wanted = max(1, round(n * len(members) * len(group) / n_rows))
        order = sorted(members, key=lambda r: requests[r].context)
        size = -(-len(order) // wanted)
        runs = [order[i : i + size] for i in range(0, len(order), size)]
        # every n-th condition: those that leave the clean row early and late are in each
        hands = min(len(group), -(-wanted // len(runs)))
        shards += [(run, list(group[i::hands])) for run in runs for i in range(hands)]
    return shards
