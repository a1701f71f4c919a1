"""What a sweep would cost, told before it is computed: its tokens are counted, and a few of its rows are timed.

The tasks are loaded and their documents tokenised, less what the store already has. Time is that of some requests under
some of the conditions, which are computed and not stored, times the tokens that are left over those that were timed.
The means of ``@mean``, over 64 texts at most, are not in it. How long texts are is tried, too, because ablated models
often write on until they are stopped. Where trying would take longer, a text has the length of the task's reference
answer.

For a machine that is not here nothing is tried. Counted are operations and bytes that no run can do without: two
operations for each weight of a layer and token that passes it (of experts those that a token has), and the layers'
weights in bfloat16, read once and again for each token of the longest text. Over the machine's peaks this is the least
time. Scores of attention, unembedding, caches and the rate that kernels reach are not in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Unpack

import pandas as pd

from depthlens import arguments, cluster
from depthlens.ablations import BASELINE, Condition
from depthlens.arguments import EvalOptions
from depthlens.engine import prefix_tree, work
from depthlens.engine.engine import Engine
from depthlens.experiments.condition_runs import Ablate, AskedTask, ConditionRuns, Tasks, settled
from depthlens.models import quantised
from depthlens.models.lens import Lens, one_thread


class Machine(NamedTuple):
    """Published peaks of a machine: operations a second in bfloat16 without sparsity, and bytes a second of memory."""

    operations: float
    bytes: float
    source: str


MACHINES = {
    "a100": Machine(312e12, 2.039e12, "NVIDIA A100 80GB SXM data sheet"),
    "h100": Machine(989e12, 3.35e12, "NVIDIA H100 SXM data sheet"),
    "h200": Machine(989e12, 4.8e12, "NVIDIA H200 SXM data sheet"),
    "rtx4090": Machine(165.2e12, 1.008e12, "NVIDIA Ada GPU architecture white paper, with float32 sums"),
}
SECONDS = 2.0  # of trying
TOKENS = 8  # that are written to try how fast it goes, where whole texts would take longer
COUNTS = ("rows", "known", "tokens", "unshared_tokens", "written_tokens", "operations", "bytes")
UNITS = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))  # in seconds


@dataclass(frozen=True)
class Plan:
    """What a sweep would cost.

    Attributes:
        table: One row a task: conditions (the baseline included), documents, rows (answers of a request under a
            condition that are to be computed), known (that the store has), tokens (read, shared ones once),
            unshared_tokens (of every request under every condition), written_tokens, operations and bytes (see above).
        seconds: Time here, or the least on ``machine``; 0 where everything is known.
        machine: One that is not here, of `MACHINES`; None: this one.
    """

    table: pd.DataFrame
    seconds: float
    machine: str | None = None

    def describe(self) -> list[str]:
        """The plan in sentences."""
        total = {name: int(self.table[name].sum()) for name in COUNTS}
        if not total["rows"]:
            return ["The store has every answer: nothing is computed."]
        known = f"; the store has {total['known']:,} more" if total["known"] else ""
        shared = total["unshared_tokens"] / max(1, total["tokens"])
        unit, size = next((unit, size) for unit, size in UNITS if self.seconds >= 1.5 * size or size == 1)
        time_in_words = f"{self.seconds / size:.{int(size > 1 or self.seconds < 1)}f} {unit}"
        where = f"Here: about {time_in_words}."
        if self.machine:
            least = f"{total['operations']:.2g} operations, and {total['bytes']:.2g} bytes of weights are read"
            peak = MACHINES[self.machine]
            where = (
                f"On {self.machine}: at least {time_in_words}, a bound that no run reaches ({least}; peaks of "
                f"{peak.operations:.3g} and {peak.bytes:.3g} a second: {peak.source})."
            )
        return [
            f"{total['rows']:,} rows{known}.",
            f"{total['tokens']:,} tokens are read ({shared:.0f}x fewer than one by one), and about "
            f"{total['written_tokens']:,} written.",
            where,
        ]

    def __repr__(self) -> str:
        return "\n".join([self.table.to_string(index=False), *self.describe()])


@one_thread
def plan(
    lens: Lens, tasks: Tasks, ablate: Ablate, *, machine: str | None = None, **options: Unpack[EvalOptions]
) -> Plan:
    """What `depthlens.condition_sweep` with the same arguments would cost; two seconds of each task are tried.

    Args:
        lens: A loaded model.
        tasks: See `depthlens.condition_sweep`.
        ablate: See `depthlens.condition_sweep`.
        machine: One that is not here, whose least time is estimated: ``a100``, ``h100``, ``h200`` or ``rtx4090``.
        options: `EvalOptions`.

    Raises:
        UserError: for anything asked for that does not exist.

    Example:
        >>> plan = dl.plan(lens, "organism_one_hop", "layers", limit=8)
        >>> plan.table[["conditions", "documents"]]
           conditions  documents
        0           7          8
    """
    lens.needs_weights("plan")
    if machine is not None:
        arguments.one_of(*MACHINES)("machine", machine)
    chosen = settled(options, without=cluster.NAMES)
    runs = ConditionRuns(lens, tasks, ablate, chosen)
    counts, seconds = zip(*(_costs(runs, task, machine) for task in runs.asked), strict=True)
    about = [{"task": of.name, "conditions": len(runs.conditions), "documents": len(of.asked)} for of in runs.asked]
    return Plan(pd.DataFrame(about).join(pd.DataFrame(counts)), sum(seconds), machine)


def _costs(runs: ConditionRuns, task: AskedTask, machine: str | None) -> tuple[dict[str, int], float]:
    """`COUNTS` of a task, and the seconds that all of it takes."""
    shapes = [quantised.shape_of(weight) for layer in runs.lens.arch.layers for weight in layer.parameters()]
    experts = getattr(runs.lens.model.config, "num_experts_per_tok", 1)
    used = sum(experts * math.prod(shape[1:]) if len(shape) == 3 else math.prod(shape) for shape in shapes)
    counts, seconds, tried = dict.fromkeys(COUNTS, 0), 0.0, None
    requests: Sequence[Any] = task.requests
    for reference in runs.references[task.name]:
        how: Any = {name: runs.options[name] for name in ("backend", "batch_tokens")}
        engine = Engine(runs.joined, cache=runs.cache(task, reference), progress=False, **how)
        lengths = None
        if task.written:
            engine.check_writing()
            lengths = work.text_lengths(runs.lens, requests)
        rows = engine.cache.rows(requests, runs.conditions)
        counts["known"] += rows.n_known
        if not rows.unfinished:
            continue
        if not machine:
            tried = tried or _tried(engine, requests, runs.conditions, writes=task.written)
            if lengths and tried[1] is not None:
                lengths = [round(tried[1])] * len(lengths)
        passed = engine.expected(rows, lengths)
        counts["operations"] += 2 * used // runs.lens.dims.n_layers * passed
        counts["bytes"] += 2 * sum(map(math.prod, shapes)) * max(lengths or [1])
        seconds += passed / tried[0] if tried else 0.0
        read = [q.context if task.written else q.inputs for q in requests]
        for members, group in rows.missing():
            counts["rows"] += len(members) * len(group)
            counts["tokens"] += prefix_tree.n_distinct([read[r] for r in members])
            counts["unshared_tokens"] += len(group) * sum(len(read[r]) for r in members)
            counts["written_tokens"] += len(group) * sum(lengths[r] for r in members) if lengths else 0
    peak = MACHINES.get(machine or "")
    return counts, max(counts["operations"] / peak.operations, counts["bytes"] / peak.bytes) if peak else seconds


def _tried(
    engine: Engine, requests: Sequence[Any], conditions: Sequence[Condition], *, writes: bool
) -> tuple[float, float | None]:
    """Tokens through a layer a second, and the mean length of a text; None where that was not tried.

    From some requests under some conditions, twice as many as before until it took half of `SECONDS`, or all of it for
    texts. Where one text may take longer, a few of its tokens are written.
    """

    def timed(requests: Sequence[Any], conditions: Sequence[Condition]) -> tuple[float, work.Work]:
        """Seconds of some work that is not stored, and what it was."""
        trial, began = engine.like(), time.monotonic()
        (trial.generate_until if writes else trial.loglikelihood)(requests, conditions)
        return time.monotonic() - began, trial.work

    usable = [c for c in conditions if not c.uses("reference")] or [BASELINE]
    some = usable[:: max(1, len(usable) // (16 if writes else 8))]  # decoding steps are faster with many rows
    asked = list(requests)
    if writes:
        few = [replace(request, max_new_tokens=min(TOKENS, request.max_new_tokens)) for request in asked]
        took, _ = timed(few[:1], [BASELINE])
        if took * asked[0].max_new_tokens / few[0].max_new_tokens > SECONDS:
            asked = few
    n, start = 4, time.monotonic()
    while True:
        took, done = timed(asked[:n], some)
        if time.monotonic() - start > (SECONDS if writes else SECONDS / 2) or n >= len(asked):
            break
        n *= 2
    whole_texts = writes and asked[0] == requests[0]
    return done.layer_tokens / max(took, 1e-9), done.written_tokens / max(1, done.rows) if whole_texts else None
