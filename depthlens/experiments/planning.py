"""What a sweep would cost, told before it is computed: its tokens are counted, and a few of its rows are timed.

The tasks are loaded and their documents tokenised, less what the store already has. Time is that of some requests under
some of the conditions, which are computed and not stored, times the tokens that are left over those that were timed.
How long texts are is tried with it, because ablated models often write on until they are stopped. Where trying would
take longer, a text has the length of the task's reference answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, cast

import pandas as pd
import psutil
import torch

from depthlens import arguments
from depthlens.ablations import BASELINE, Condition, expand
from depthlens.engine import prefix_tree, work
from depthlens.engine.engine import Engine
from depthlens.engine.references import Reference
from depthlens.engine.work import text_lengths
from depthlens.errors import UserError
from depthlens.experiments.options import EvalOptions, load_tasks, refuse_workers, settled
from depthlens.experiments.views import references_of, tokens_of_prompts, views_of
from depthlens.models import loading, pairs
from depthlens.models.lens import Lens, one_thread
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, WrittenAnswer
from depthlens.store.answer_cache import AnswerStore

SECONDS = 2.0  # of trying
TOKENS = 8  # that are written to try how fast it goes, where whole texts would take longer
MEAN_TEXTS = 32  # that are run to time the means of a task
COUNTS = ("rows", "known", "tokens", "unshared_tokens", "written_tokens")


@dataclass(frozen=True)
class Plan:
    """What a sweep would cost.

    Attributes:
        table: One row a task: conditions (the baseline included), documents, rows (answers of a request under a
            condition that are to be computed), known (that the store has), tokens (read, shared ones once),
            unshared_tokens (of every request under every condition), written_tokens.
        seconds: Time here; 0 where everything is known.
        peak_bytes: Memory of this process when most is in use; of a model on GPUs, of the one that holds most.
    """

    table: pd.DataFrame
    seconds: float
    peak_bytes: int

    def describe(self) -> list[str]:
        """The plan in sentences."""
        total = {name: int(self.table[name].sum()) for name in COUNTS}
        if not total["rows"]:
            return ["The store has every answer: nothing is computed."]
        known = f"; the store has {total['known']:,} more" if total["known"] else ""
        shared = total["unshared_tokens"] / max(1, total["tokens"])
        return [
            f"{total['rows']:,} rows{known}.",
            f"{total['tokens']:,} tokens are read ({shared:.0f}x fewer than one by one), and about "
            f"{total['written_tokens']:,} written.",
            f"Here: about {_time(self.seconds)}, {self.peak_bytes / 2**30:.1f} GiB of memory.",
        ]

    def __repr__(self) -> str:
        return "\n".join([self.table.to_string(index=False), *self.describe()])


@one_thread
def plan(
    lens: Lens,
    tasks: str | Sequence[str] | dict[str, Any],
    ablate: str | Iterable[str | Condition],
    *,
    donor: str | Path | Lens | None = None,
    resample_prompts: Sequence[str] | None = None,
    **options: Unpack[EvalOptions],
) -> Plan:
    """What `depthlens.condition_sweep` with the same arguments would cost; two seconds of each task are tried.

    Args:
        lens: A loaded model.
        tasks: See `depthlens.condition_sweep`.
        ablate: See `depthlens.condition_sweep`.
        donor: See `depthlens.condition_sweep`.
        resample_prompts: See `depthlens.condition_sweep`.
        options: `EvalOptions`.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    arguments.loaded(lens)
    lens.needs_weights("plan")
    chosen = settled(options)
    refuse_workers(chosen, "plan", "")
    conditions = expand(ablate, lens.dims)
    both = pairs.join_donor(lens, donor, conditions, chosen["backend"])
    answers = AnswerStore(chosen["store"], both)
    if not isinstance(tasks, dict) or not tasks:
        tasks = load_tasks(cast(Sequence[str], tasks), chosen)
    views = views_of(lens, tasks, chosen)
    prompts = tokens_of_prompts(lens, conditions, resample_prompts)
    references = references_of(views, conditions, with_prompts=bool(prompts))
    rows, seconds, peak_bytes = [], 0.0, 0
    for view in views:
        reference = references.get(view.name)
        counted = _Counted()
        if reference and reference.texts:
            counted.seconds += _seconds_of_means(lens, reference)
        for one in reference.with_prompts(prompts, conditions) if reference and prompts else [reference]:
            cache = answers.entry(view.name, backend=chosen["backend"], reference=one.keys if one else None)
            counted.engine = Engine(
                both, backend=chosen["backend"], batch_tokens=chosen["batch_tokens"], cache=cache, progress=False
            )
            view.run(cast(Engine, counted), conditions)
        n_docs = len(view.asked)
        rows.append({"task": view.name, "conditions": len(conditions), "documents": n_docs, **counted.counts})
        seconds, peak_bytes = seconds + counted.seconds, max(peak_bytes, counted.peak_bytes)
    return Plan(pd.DataFrame(rows), seconds, peak_bytes)


class _Counted:
    """Stands for an engine: what it is asked is counted and a part of it is timed, and its answers say nothing.

    Attributes:
        engine: The engine.
        counts: `COUNTS`.
        seconds: What all of it would take.
        peak_bytes: Memory when most is in use.
    """

    engine: Engine

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COUNTS, 0)
        self.seconds, self.peak_bytes = 0.0, 0
        self._rates: dict[Any, tuple[float, float | None]] = {}

    def loglikelihood(
        self, requests: Sequence[Any], conditions: Sequence[Condition], desc: str = ""
    ) -> list[list[LoglikelihoodAnswer]]:
        """Count what `Engine.loglikelihood` would compute."""
        self._count(requests, conditions, None)
        return [[LoglikelihoodAnswer(0.0, False) for _ in requests] for _ in conditions]

    def generate_until(
        self, requests: Sequence[GenerateRequest], conditions: Sequence[Condition], desc: str = ""
    ) -> list[list[WrittenAnswer]]:
        """Count what `Engine.generate_until` would write, if texts are as long as those that are tried."""
        self.engine.check_writing(conditions)
        self._count(requests, conditions, text_lengths(self.engine.lens, requests))
        return [[WrittenAnswer("", True) for _ in requests] for _ in conditions]

    def _count(self, requests: Sequence[Any], conditions: Sequence[Condition], lengths: list[int] | None) -> None:
        if not requests:
            return
        rows = self.engine.cache.rows(requests, conditions)
        self.counts["known"] += rows.n_known
        if not rows.unfinished:
            return
        kind = _kind(requests, conditions)
        if kind not in self._rates:
            self._rates[kind] = _tried(self.engine, requests, conditions, lengths)
        rate, mean = self._rates[kind]
        if lengths is not None and mean is not None:
            lengths = [round(mean)] * len(lengths)
        self.seconds += self.engine.expected(rows, lengths) / rate
        read = [q.inputs if lengths is None else q.context for q in requests]
        for members, group in rows.missing():
            self.counts["rows"] += len(members) * len(group)
            self.counts["tokens"] += prefix_tree.n_distinct([read[r] for r in members])
            self.counts["unshared_tokens"] += len(group) * sum(len(read[r]) for r in members)
            self.counts["written_tokens"] += len(group) * sum(lengths[r] for r in members) if lengths else 0
        self.peak_bytes = max(self.peak_bytes, _peak_bytes(self.engine, read, conditions, lengths))


def _kind(requests: Sequence[Any], conditions: Sequence[Condition]) -> tuple[Any, ...]:
    """What has the same rate: requests and conditions that are alike, up to a factor of two."""
    first = requests[0]
    length = sum(len(q.context) for q in requests) / len(requests)
    written = first.max_new_tokens if isinstance(first, GenerateRequest) else None
    return written, *(round(math.log2(max(1.0, x))) for x in (length, len(requests), len(conditions)))


def _tried(
    engine: Engine, requests: Sequence[Any], conditions: Sequence[Condition], lengths: Sequence[int] | None
) -> tuple[float, float | None]:
    """Tokens through a layer a second, and the mean length of a text; None where that was not tried.

    From some requests under some conditions, twice as many as before until it took half of `SECONDS`,
    or all of it for texts.
    """
    usable = [c for c in conditions if not c.uses("mean") and not c.uses("resample")] or [BASELINE]
    some = usable[:: max(1, len(usable) // (8 if lengths is None else 16))]  # decoding steps are faster with many rows
    asked = list(requests)
    if lengths is not None and _seconds_of_a_text(engine, asked[0]) > SECONDS:
        asked = [replace(request, max_new_tokens=min(TOKENS, request.max_new_tokens)) for request in asked]
    n, start = 4, time.monotonic()
    while True:
        trial = engine.like()
        began = time.monotonic()
        (trial.loglikelihood if lengths is None else trial.generate_until)(asked[:n], some)
        took = time.monotonic() - began
        if time.monotonic() - start > (SECONDS / 2 if lengths is None else SECONDS) or n >= len(asked):
            break
        n *= 2
    work, cut = trial.work, asked[0] != requests[0]
    mean = None if lengths is None or cut else work.written_tokens / max(1, work.rows)
    return work.layer_tokens / max(took, 1e-9), mean


def _seconds_of_a_text(engine: Engine, request: GenerateRequest) -> float:
    """About how long the longest text would take to write, from a few of its tokens."""
    few = min(TOKENS, request.max_new_tokens)
    began = time.monotonic()
    engine.like().generate_until([replace(request, max_new_tokens=few)], [BASELINE])
    return (time.monotonic() - began) * request.max_new_tokens / few


def _seconds_of_means(lens: Lens, reference: Reference) -> float:
    """About how long the means of a reference take, from a few of its texts."""
    few = reference.texts[:: max(1, len(reference.texts) // MEAN_TEXTS)]
    began = time.monotonic()
    Reference(reference.name, few).measure(lens)
    tokens = [sum(len(prompt) + len(answer) for prompt, answer in texts) for texts in (reference.texts, few)]
    return (time.monotonic() - began) * tokens[0] / tokens[1]


def _peak_bytes(
    engine: Engine, read: Sequence[Sequence[int]], conditions: Sequence[Condition], lengths: Sequence[int] | None
) -> int:
    """What this process, or the GPU that holds most, holds now or will have read, and most of what the work adds."""
    lens, budget, dims, size = engine.lens, engine.budget, engine.lens.dims, engine.lens.dtype.itemsize
    # twice, while rows join
    states = 2 * min(budget.state_bytes, (len(conditions) + 1) * prefix_tree.n_distinct(read) * dims.d_model * size)
    written = 0 if lengths is None else len(conditions) * (sum(map(len, read)) + sum(lengths))
    keys = min(budget.key_bytes, written * 2 * dims.n_layers * dims.n_kv_heads * dims.d_head * size)
    logits = budget.unembed_rows * work.logit_bytes(lens)
    return _held(lens) + states + keys + logits + budget.batch_tokens * work.chunk_bytes(lens)


def _held(lens: Lens) -> int:
    """Memory of this process when it has read all weights: those in a mapped file take memory once they are used.

    Of a model on GPUs, what the GPU holds that holds most.
    """
    if gpus := [device for device in lens.devices if device.type == "cuda"]:
        return max(map(torch.cuda.memory_allocated, gpus))
    process = psutil.Process()
    maps = process.memory_maps() if hasattr(process, "memory_maps") else []  # there are none on macOS
    unread = sum(m.size - m.rss for m in maps if m.path.endswith(".safetensors"))
    return process.memory_info().rss + unread


def run_plan(
    model: str,
    tasks: str | Sequence[str],
    ablate: str | Iterable[str | Condition],
    *,
    donor: str | Path | Lens | None = None,
    resample_prompts: Sequence[str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str | None = None,
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
    lens = loading.load(model, dtype=dtype, device=device, quantize=quantize, offload=offload)
    return plan(lens, loaded, ablate, donor=donor, resample_prompts=resample_prompts, **options)


def _time(seconds: float) -> str:
    """A time in words."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} seconds"
