"""Requests under conditions in shards, each of which a worker computes: the engine's way to use several processes.

A shard is some requests under some conditions. All shards have about the same work, counted as `depthlens plan` counts
it. Shards repeat what they share: those of the same conditions the common prefix of all requests, and those of the same
requests the clean row. How requests and conditions are cut is what repeats least; without a long prefix that is by
requests alone.

What workers are is not known here (`depthlens.cluster` has those of Ray). The driver stores the answers as they come,
so that the workers need no store.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol, runtime_checkable

import torch

from depthlens.ablations import Condition
from depthlens.backends.protocol import Means
from depthlens.engine import prefix_tree
from depthlens.engine.wavefront import fork_layer
from depthlens.engine.work import Work
from depthlens.engine.work_rate import WorkRate
from depthlens.models.lens import Lens
from depthlens.progress import Bar
from depthlens.store.answer_rows import AnswerRows, Product

# shards that each worker gets, unless they repeat too much: the fewer there are, the longer wait those who end first
MOST_PER_WORKER = 6
# rows (condition, prompt) that make a decoding step worth its weights
MIN_DECODED_ROWS = 64

Asked = tuple[list[Any], list[Condition]]  # requests and conditions, each combination of which is a row


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


@dataclass(eq=False)
class Shard:
    """Rows that a worker computes at once.

    Attributes:
        products: Requests and conditions by their indices in the whole.
        asked: The same as values.
    """

    products: list[Product]
    asked: list[Asked]


@dataclass(frozen=True)
class Computed:
    """What a worker returns.

    Attributes:
        answers: One for each of ``asked``, indexed [condition][request].
        work: What it computed.
    """

    answers: list[list[list[Any]]]
    work: Work


@runtime_checkable
class Workers(Protocol):
    """Processes that compute shards."""

    @property
    def n(self) -> int:
        """How many there are."""
        ...

    @property
    def threads(self) -> int | None:
        """How many threads each computes with on a CPU; None where it does not matter."""
        ...

    def prepare(self, lens: Lens) -> None:
        """Settle what depends on the model, such as how many workers there are."""
        ...

    def compute(self, lens: Lens, job: Job, shards: Iterator[Shard]) -> Generator[tuple[Shard, Computed], None, None]:
        """Compute shards in any order; the next one is taken when a worker is free.

        Raises:
            UserError: the workers do not hold the model, or what the model refuses.
        """
        ...


class ShardedRows:
    """Requests under conditions on workers.

    Args:
        lens: A loaded model.
        job: What all shards share.
        workers: Compute the shards.
        work: Counts what is computed.
        needed: What the missing answers need, as `depthlens.engine.engine.Engine.plan` counts it.
    """

    def __init__(self, lens: Lens, job: Job, workers: Workers, work: Work, needed: Work) -> None:
        self.lens = lens
        self.job = job
        self.workers = workers
        self.work = work
        self.needed = needed

    def compute(self, rows: AnswerRows, bar: Bar) -> None:
        """Fill in and store all answers that rows lack."""
        if not rows.unfinished:
            return
        self.workers.prepare(self.lens)
        n_missing = sum(row.count(None) for row in rows.answers)

        def shards() -> Iterator[Shard]:
            for members, group in rows.missing():
                for m, g in self._cut(rows, members, group, len(members) * len(group) / n_missing):
                    yield Shard([(m, g)], [([rows.requests[r] for r in m], [rows.conditions[c] for c in g])])

        with closing(self.workers.compute(self.lens, self.job, shards())) as done:
            for shard, computed in done:
                self._store(rows, bar, shard, computed)

    def _cut(self, rows: AnswerRows, members: list[int], group: list[int], share: float) -> list[Product]:
        """Some requests under some conditions, which are a share of all that are missing, in shards."""
        n_layers, write = self.lens.dims.n_layers, self.job.write
        per_keep = WorkRate(self.lens).work
        if self.workers.threads is not None:
            per_keep *= min(1.0, self.workers.threads / torch.get_num_threads())
        # none is longer than the rhythm of the store, and each decodes enough rows
        at_least = max(1, math.ceil(share * self.needed.layer_tokens / max(1.0, per_keep)))
        at_most = len(members) * len(group)
        if write:
            at_most = min(at_most, max(math.ceil(share * self.workers.n), at_most // MIN_DECODED_ROWS))
        forks = [n_layers - fork_layer(rows.conditions[c], n_layers) for c in group if rows.conditions[c]]
        requests = [rows.requests[r] for r in members]
        return shards_of(
            [q.context if write else q.inputs for q in requests],
            members,
            group,
            n_workers=share * self.workers.n,
            n_shards=(at_least, at_most),
            passes=(n_layers, sum(forks)),
            max_new=max(q.max_new_tokens for q in requests) if write else 0,
        )

    def _store(self, rows: AnswerRows, bar: Bar, shard: Shard, computed: Computed) -> None:
        for (members, group), answers in zip(shard.products, computed.answers, strict=True):
            for c, of_condition in zip(group, answers, strict=True):
                for r, answer in zip(members, of_condition, strict=True):
                    rows.answers[c][r] = answer
            rows.put(members, group)
        self.work.add(computed.work)
        bar.update(sum(len(members) * len(group) for members, group in shard.products))


def shards_of(
    tokens: Sequence[Sequence[int]],
    members: Sequence[int],
    group: Sequence[int],
    *,
    n_workers: float,
    n_shards: tuple[int, int],
    passes: tuple[int, int],
    max_new: int = 0,
) -> list[Product]:
    """Requests under conditions in products of even work.

    How many there are, and how many of them share requests or conditions, is what takes least time if the last shard of
    a worker leaves it idle for half of its length on average.

    Args:
        tokens: What is read of each request.
        members: What the requests are called.
        group: What the conditions are called.
        n_workers: How many workers share the products.
        n_shards: Fewest and most products, roughly.
        passes: Layers that a token of the clean row passes, and that one of all other rows together passes.
        max_new: Most tokens that a request writes.

    Returns:
        Products, each combination of request and condition in one of them.
    """
    order = sorted(range(len(tokens)), key=lambda i: tuple(tokens[i]))
    prefix = prefix_tree.common_prefix(tokens[order[0]], tokens[order[-1]])
    # what each adds to the tree of those before it
    shared = [prefix, *(prefix_tree.common_prefix(tokens[i], tokens[j]) for i, j in pairwise(order))]
    sizes = [len(tokens[i]) - n + max_new for i, n in zip(order, shared, strict=True)]
    own = sum(sizes) - max_new * len(order)
    clean, forked = passes
    written = max_new * len(order) * len(group) * clean

    def seconds(n: int, parts: int) -> float:
        """Time, in tokens that pass a layer."""
        work = (prefix * parts + own) * (clean * _ceil(n, parts) + forked) + written
        return work * (1 + n_workers / (2 * n))

    least, most = n_shards
    numbers = {min(most, max(least, math.ceil(k * n_workers))) for k in range(1, MOST_PER_WORKER + 1)}
    n, n_parts = min(
        ((n, parts) for n in sorted(numbers) for parts in range(1, n + 1) if _ceil(n, parts) <= len(group)),
        key=lambda cut: seconds(*cut),
        default=(most, len(order)),
    )
    requests: list[list[int]] = [[] for _ in range(n_parts)]
    for i, before, size in zip(order, accumulate(sizes, initial=0), sizes, strict=False):
        part = int(n_parts * (before + size / 2) / max(1, sum(sizes)))
        requests[min(part, n_parts - 1)].append(members[i])  # one that adds nothing may come after the end
    # every n-th condition: those that leave the clean row early and late are in each
    n_groups = min(len(group), _ceil(n, n_parts))
    return [(some, list(group[i::n_groups])) for some in requests if some for i in range(n_groups)]


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
