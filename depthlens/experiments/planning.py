"""What a sweep would cost, told before anything is computed.

The tasks are loaded, their documents are tokenised, and packs are cut as the sweep would cut them, so that the tokens
and operations are those of the run, less what the store already has.

Time here is from a rate that is tried for about two seconds, on the first documents of each task under some of the
conditions. How long texts are is tried with it: ablated models often write on until they are stopped. Where trying
would take longer, a text has the length of the task's reference answer; the table says how many tokens are written at
most. Time on a GPU is what the
operations take at `SHARE` of its peak, as its vendor states it for dense products in bfloat16.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, cast

import pandas as pd
import psutil

from depthlens import arguments
from depthlens.ablations import BASELINE, Condition, expand
from depthlens.engine import memory_budget
from depthlens.engine.engine import Engine
from depthlens.engine.packed_trees import UNEMBED_ROWS
from depthlens.engine.work import Work
from depthlens.errors import UserError
from depthlens.experiments.options import EvalOptions, load_tasks, settled
from depthlens.experiments.views import references_of, tokens_of_prompts, views_of
from depthlens.models import loading, pairs
from depthlens.models.lens import Lens
from depthlens.requests import GenerateRequest
from depthlens.store.answer_cache import AnswerStore
from depthlens.tasks.answer_logprob import written_answer
from depthlens.tasks.prepared_task import Prepared, by_document

SECONDS = 2.0  # of trying
TOKENS = 8  # that are written to try how fast it goes, where whole texts would take longer
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
        total = {name: int(value) for name, value in self.table.drop(columns="task").sum().items()}
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
    donor: str | Path | Lens | None = None,
    resample_prompts: Sequence[str] | None = None,
    measured: bool = True,
    **options: Unpack[EvalOptions],
) -> Plan:
    """What `depthlens.condition_sweep` with the same arguments would cost.

    Args:
        lens: A loaded model.
        tasks: See `depthlens.condition_sweep`.
        ablate: See `depthlens.condition_sweep`.
        donor: See `depthlens.condition_sweep`.
        resample_prompts: See `depthlens.condition_sweep`.
        measured: Try for two seconds how fast this machine is; else there is no time here.
        options: `EvalOptions`.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    arguments.loaded(lens)
    lens.needs_weights("plan")
    chosen = settled(options)
    conditions = expand(ablate, lens.dims)
    both = pairs.join_donor(lens, donor, conditions, chosen["backend"])
    answers = AnswerStore(chosen["store"], both)
    if not isinstance(tasks, dict) or not tasks:
        tasks = load_tasks(cast(Sequence[str], tasks), chosen)
    views = views_of(lens, tasks, chosen)
    prompts = tokens_of_prompts(lens, conditions, resample_prompts)
    references = references_of(lens, views, chosen, conditions, with_prompts=bool(prompts))
    rows, most, store_bytes, seconds = [], Work(), 0, 0.0
    for view in views:
        reference = references.get(view.name)
        lengths = _reference_lengths(lens, view) if view.output_type == "generate_until" else None
        rate = mean = None
        if measured:
            rate, mean = _tried(both, view, conditions, chosen, lengths)
        if lengths is not None and mean is not None:
            lengths = [round(mean)] * len(lengths)
        work, known = Work(), 0
        for one in reference.with_prompts(prompts) if reference and prompts else [reference]:
            cache = answers.entry(view.name, backend=chosen["backend"], reference=one.keys if one else None)
            engine = Engine(
                both, backend=chosen["backend"], batch_tokens=chosen["batch_tokens"], progress=False, cache=cache
            )
            once, n_known = engine.plan(view.requests, conditions, lengths)
            work.add(once)
            known += n_known
        seconds += work.flops(both) / rate if rate else 0.0
        most.add(work)
        allowed = sum(q.max_new_tokens for q in view.requests if isinstance(q, GenerateRequest))
        longest = round(allowed * work.rows / max(1, len(view.requests)))
        counts = work.rows, known, work.tokens, work.unshared_tokens, work.written_tokens, longest
        n_docs = len(cast(pd.DataFrame, view.asked))
        rows.append((view.name, len(conditions), n_docs, *counts, work.flops(both)))
        store_bytes += ROW_BYTES * work.rows + 4 * work.written_tokens
    table = pd.DataFrame(rows, columns=COLUMNS)
    total = float(table["flops"].sum())
    return Plan(
        table,
        seconds=seconds if measured else float("nan"),
        peak_bytes=_peak_bytes(both, most, engine.batch_tokens),
        store_bytes=store_bytes,
        gpu_seconds={name: total / (SHARE * peak) for name, peak in PEAKS.items()},
    )


def run_plan(
    model: str,
    tasks: str | Sequence[str],
    ablate: str | Iterable[str | Condition],
    *,
    donor: str | Path | Lens | None = None,
    resample_prompts: Sequence[str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    offload: str | None = None,
    remote: bool = False,
    **options: Unpack[EvalOptions],
) -> Plan:
    """`plan` of a model by name; see `depthlens.experiments.sweep.run_sweep`.

    Raises:
        UserError: for anything asked for that does not exist; a model on a server, whose time nobody here can tell.
    """
    if remote:
        raise UserError("plan: a server's time and memory cannot be told from here; leave remote out")
    loaded = load_tasks(cast(Sequence[str], tasks), settled(options))  # its errors come before the model is loaded
    lens = loading.load(model, dtype=dtype, device=device, offload=offload)
    return plan(lens, loaded, ablate, donor=donor, resample_prompts=resample_prompts, **options)


def _reference_lengths(lens: Lens, view: Any) -> list[int]:
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


def _tried(
    lens: Lens, view: Any, conditions: Sequence[Condition], options: EvalOptions, lengths: Sequence[int] | None
) -> tuple[float, float | None]:
    """Operations a second, and tokens that are written in a text on average; None where that was not tried.

    From some documents of a task under some conditions, twice as many as before until it took half of `SECONDS`.
    """
    usable = [c for c in conditions if not c.uses_mean and not c.uses_resample]
    some = usable[:: max(1, len(usable) // 8)]
    requests = list(view.requests)
    if lengths is not None and _seconds_of_a_text(lens, requests[0], options) > SECONDS:
        requests = [replace(request, max_new_tokens=min(TOKENS, request.max_new_tokens)) for request in requests]
    n, start = 4, time.monotonic()
    while True:
        engine = Engine(lens, backend=options["backend"], batch_tokens=options["batch_tokens"], progress=False)
        ask = engine.loglikelihood if lengths is None else engine.generate_until
        began = time.monotonic()
        ask(requests[:n], some)
        took = time.monotonic() - began
        if time.monotonic() - start > SECONDS / 2 or n >= len(requests):
            break
        n *= 2
    cut = bool(requests) and requests[0] != view.requests[0]
    mean = None if lengths is None or cut else engine.work.written_tokens / max(1, engine.work.rows)
    return engine.work.flops(lens) / max(took, 1e-9), mean


def _seconds_of_a_text(lens: Lens, request: GenerateRequest, options: EvalOptions) -> float:
    """About how long the longest text would take to write, from a few of its tokens."""
    few = min(TOKENS, request.max_new_tokens)
    engine = Engine(lens, backend=options["backend"], progress=False)
    began = time.monotonic()
    engine.generate_until([replace(request, max_new_tokens=few)], [BASELINE])
    return (time.monotonic() - began) * request.max_new_tokens / few


def _peak_bytes(lens: Lens, work: Work, batch_tokens: int) -> int:
    """What this process holds now, and most of what a sweep adds."""
    dims, size = lens.dims, lens.dtype.itemsize
    states = work.states * dims.d_model * size * 2  # twice, while rows join
    keys = work.keys * 2 * dims.n_layers * dims.n_kv_heads * dims.d_head * size
    vocabulary = lens.model.get_output_embeddings().weight.shape[0]
    logits = min(UNEMBED_ROWS, max(1, work.unembedded)) * vocabulary * (4 + size)
    return int(
        psutil.Process().memory_info().rss + states + keys + logits + batch_tokens * memory_budget.chunk_bytes(lens)
    )


def _short(number: int | float) -> str:
    """A large number in few letters: ``1.2e6``."""
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
