"""What a sweep would cost, told before anything is computed.

The tasks are loaded, their documents are tokenised, and packs are cut as the sweep would cut them, so that the tokens
and operations are those of the run, less what the store already has. A text has the length of the task's reference
answer, as far as that is known and allowed; else half of what is allowed. Ablated models often write on until they are
stopped, so that written tasks may take longer: the table says how many tokens they write at most.

Time here is from a rate that is measured for two seconds on the sweep's own requests. Time on a GPU is what the
operations take at `SHARE` of its peak, as its vendor states it for dense products in bfloat16.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack, cast

import pandas as pd
import psutil

from depthlens import arguments
from depthlens.ablations import Condition, expand
from depthlens.engine import memory_budget
from depthlens.engine.engine import Engine
from depthlens.engine.packed_trees import UNEMBED_ROWS
from depthlens.engine.work import Work
from depthlens.experiments import sweep
from depthlens.experiments.options import EvalOptions, load_tasks, settled
from depthlens.models import pairs
from depthlens.models.lens import Lens
from depthlens.requests import GenerateRequest
from depthlens.store.answer_cache import AnswerStore
from depthlens.tasks.answer_logprob import written_answer
from depthlens.tasks.prepared_task import Prepared, by_document

SECONDS = 2.0  # of trying
SHARE = 0.4  # of a GPU's peak
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}  # dense, bfloat16
ROW_BYTES = 40  # of an answer in the store; a text takes its letters more
COLUMNS = [
    "task", "conditions", "documents", "rows", "known", "tokens", "unshared_tokens", "written_tokens",
    "most_written_tokens", "flops",
]  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What a sweep would cost.

    Attributes:
        table: One row a task: conditions (the baseline included), documents, rows (answers of a request under a
            condition that are to be computed), known (that the store has), tokens (read, shared ones once),
            unshared_tokens (of every request under every condition), written_tokens, most_written_tokens, flops.
        seconds: Time here; 0 where everything is known, NaN where it was not tried.
        peak_bytes: Memory of this process when most is in use.
        store_bytes: What the answers add to the store.
        gpu_seconds: Time on GPUs, by name.
    """

    table: pd.DataFrame
    seconds: float
    peak_bytes: int
    store_bytes: int
    gpu_seconds: dict[str, float]

    def describe(self) -> list[str]:
        """The plan in sentences."""
        total = self.table.drop(columns="task").sum()
        if not total["rows"]:
            return ["The store has every answer: nothing is computed."]
        known = f"; the store has {total['known']:,} more" if total["known"] else ""
        shared = total["unshared_tokens"] / max(1, total["tokens"])
        lines = [
            f"{total['rows']:,} rows{known}.",
            f"{_short(total['tokens'])} tokens are read ({shared:.0f}x fewer than one by one), and about "
            f"{_short(total['written_tokens'])} written (at most {_short(total['most_written_tokens'])}).",
            f"{_short(total['flops'])} floating point operations.",
            f"Here: about {_time(self.seconds)}, {self.peak_bytes / 2**30:.1f} GiB of memory, "
            f"{self.store_bytes / 2**20:.1f} MiB in the store.",
        ]
        on = ", ".join(f"{name} {_time(seconds)}" for name, seconds in self.gpu_seconds.items())
        return [*lines, f"On a GPU at {SHARE:.0%} of its peak: {on}."]

    def __repr__(self) -> str:
        return "\n".join([self.table.to_string(index=False), *self.describe()])


def plan(
    lens: Lens,
    tasks: str | Sequence[str] | dict[str, Any],
    ablate: str | Iterable[str | Condition],
    *,
    donor: Any = None,
    measured: bool = True,
    **options: Unpack[EvalOptions],
) -> Plan:
    """What `depthlens.condition_sweep` with the same arguments would cost.

    Args:
        lens: A loaded model.
        tasks: See `depthlens.condition_sweep`.
        ablate: See `depthlens.condition_sweep`.
        donor: See `depthlens.condition_sweep`.
        measured: Try for two seconds how fast this machine is; else there is no time here.
        options: `EvalOptions`.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    arguments.loaded(lens)
    chosen = settled(options)
    conditions = expand(ablate, lens.dims)
    both = pairs.join_donor(lens, donor, conditions, chosen["backend"])
    answers = AnswerStore(chosen["store"], both)
    if not isinstance(tasks, dict) or not tasks:
        tasks = load_tasks(cast(Sequence[str], tasks), chosen)
    views = sweep.views_of(lens, tasks, chosen)
    references = sweep.references_of(lens, views, chosen, conditions)
    rows, most, store_bytes, rates = [], Work(), 0, []
    for view in views:
        reference = references.get(view.name)
        cache = answers.entry(view.name, backend=chosen["backend"], reference=reference.keys if reference else None)
        engine = Engine(
            both, backend=chosen["backend"], batch_tokens=chosen["batch_tokens"], progress=False, cache=cache
        )
        lengths = _lengths(lens, view) if view.output_type == "generate_until" else None
        work, known = engine.plan(view.requests, conditions, lengths)
        most.add(work)
        n_written = sum(q.max_new_tokens for q in view.requests if isinstance(q, GenerateRequest))
        longest = round(n_written * work.rows / max(1, len(view.requests)))
        flops = work.flops(both)
        rows.append((view.name, len(conditions), len(view.asked), work.rows, known, work.tokens, work.unshared_tokens,
                     work.written_tokens, longest, flops))  # fmt: skip
        store_bytes += ROW_BYTES * work.rows + 4 * work.written_tokens
        if work.rows and measured:
            rates.append(flops / _rate(both, view, conditions, chosen, lengths))
    table = pd.DataFrame(rows, columns=COLUMNS)
    total = float(table["flops"].sum())
    return Plan(
        table,
        seconds=sum(rates) if measured else float("nan"),
        peak_bytes=_peak_bytes(both, most, engine.batch_tokens, len(conditions)),
        store_bytes=store_bytes,
        gpu_seconds={name: total / (SHARE * peak) for name, peak in PEAKS.items()},
    )


def _lengths(lens: Lens, view: Any) -> list[int]:
    """About how many tokens each text has: as many as its reference answer, and one that ends it."""
    found = []
    groups = by_document(view.task.instances) if isinstance(view, Prepared) else {}
    known = {d: written_answer(view.task, group[0].doc) for d, group in groups.items()}
    documents = [d for d, group in groups.items() for _ in range(len(view.requests) // max(1, len(groups)))]
    for i, request in enumerate(view.requests):
        answer = known.get(documents[i]) if i < len(documents) else None
        most = request.max_new_tokens
        n = most // 2 if answer is None else len(lens.tokenizer(str(answer), add_special_tokens=False).input_ids) + 1
        found.append(max(1, min(most, n)))
    return found


def _rate(lens: Lens, view: Any, conditions: Sequence[Condition], options: EvalOptions, lengths: Any) -> float:
    """Operations a second, of some documents of a task under some conditions, for about two seconds."""
    every = max(1, (len(conditions) - 1) // 8)
    some = [conditions[0], *conditions[1::every]]
    means = None
    n, start = 1, time.monotonic()
    while True:
        engine = Engine(lens, batch_tokens=options["batch_tokens"], means=means, progress=False)
        ask = engine.loglikelihood if lengths is None else engine.generate_until
        began = time.monotonic()
        ask(view.requests[: n * 4], [c for c in some if not c.uses_mean] or some[:1])
        took = time.monotonic() - began
        if time.monotonic() - start > SECONDS / 2 or n * 4 >= len(view.requests):
            return engine.work.flops(lens) / max(took, 1e-9)
        n *= 2


def _peak_bytes(lens: Lens, work: Work, batch_tokens: int, n_conditions: int) -> int:
    """What this process holds now, and most of what a sweep adds."""
    dims, size = lens.dims, lens.dtype.itemsize
    states = work.states * dims.d_model * size * 2  # twice, while rows join
    keys = work.keys * 2 * dims.n_layers * dims.n_kv_heads * dims.d_head * size
    vocabulary = lens.model.get_output_embeddings().weight.shape[0]
    logits = min(UNEMBED_ROWS, max(1, work.unembedded)) * vocabulary * (4 + size)
    return int(psutil.Process().memory_info().rss + states + keys + logits + batch_tokens * memory_budget.chunk_bytes(lens))


def _short(number: float) -> str:
    """A large number in words: ``1.2 million``."""
    for size, name in ((1e18, "e18"), (1e15, "e15"), (1e12, "e12"), (1e9, "e9"), (1e6, "e6"), (1e3, "e3")):
        if number >= size:
            return f"{number / size:.3g}{name}"
    return f"{number:.0f}"


def _time(seconds: float) -> str:
    """A time in words."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} seconds"
