"""What a sweep would cost: its rows are counted, and how long they take is tried on a few of them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psutil
import torch

from depthlens.ablations import BASELINE, Condition
from depthlens.engine import memory_budget
from depthlens.engine.engine import Engine
from depthlens.engine.memory_budget import Budget
from depthlens.engine.work import Work, text_lengths
from depthlens.models.lens import Lens
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest, WrittenAnswer

SECONDS = 2.0  # of trying
TOKENS = 8  # that are written to try how fast it goes, where whole texts would take longer
ROW_BYTES = 40  # of an answer in the store; a text takes its letters more


class Counted:
    """What engines of one task would compute.

    Args:
        measured: Try how long it would take.

    Attributes:
        lines: One dictionary for each call of an engine.
        rows: Hashes of rows that were counted, and would be in the store by now.
    """

    def __init__(self, *, measured: bool = True) -> None:
        self.measured = measured
        self.lines: list[dict[str, Any]] = []
        self.rows: set[int] = set()
        self._rates: dict[Any, tuple[float, float | None]] = {}

    def rate(
        self, engine: Engine, requests: Sequence[Any], conditions: Sequence[Condition], lengths: Sequence[int] | None
    ) -> tuple[float | None, float | None]:
        """Operations a second, and the mean number of written tokens; None where it was not tried."""
        if not self.measured:
            return None, None
        kind = _kind(requests, conditions)
        if kind not in self._rates:
            self._rates[kind] = _tried(engine, requests, conditions, lengths)
        return self._rates[kind]


class CountingEngine:
    """Stands for an engine: what it is asked is counted, and its answers say nothing."""

    def __init__(self, engine: Engine, counted: Counted) -> None:
        self._engine, self._counted = engine, counted

    def loglikelihood(
        self, requests: Sequence[LoglikelihoodRequest], conditions: Sequence[Condition], desc: str = ""
    ) -> list[list[LoglikelihoodAnswer]]:
        """Count what `Engine.loglikelihood` would compute."""
        self._count(requests, conditions, None)
        return [[LoglikelihoodAnswer(0.0, False) for _ in requests] for _ in conditions]

    def generate_until(
        self, requests: Sequence[GenerateRequest], conditions: Sequence[Condition], desc: str = ""
    ) -> list[list[WrittenAnswer]]:
        """Count what `Engine.generate_until` would write, if texts are as long as those that are tried."""
        self._engine.check_writing()
        self._count(requests, conditions, text_lengths(self._engine.lens, requests))
        return [[WrittenAnswer("", True) for _ in requests] for _ in conditions]

    def _count(self, requests: Sequence[Any], conditions: Sequence[Condition], lengths: Sequence[int] | None) -> None:
        if not requests:
            return
        engine, lens = self._engine, self._engine.lens
        rate, mean = self._counted.rate(engine, requests, conditions, lengths)
        if lengths is not None and mean is not None:
            lengths = [round(mean)] * len(lengths)
        work, known = engine.plan(requests, conditions, lengths, counted=self._counted.rows)
        flops = work.flops(lens)
        allowed = 0.0 if lengths is None else sum(q.max_new_tokens for q in requests) / len(requests)
        self._counted.lines.append(
            {
                "rows": work.rows,
                "known": known,
                "tokens": work.tokens,
                "unshared_tokens": work.unshared_tokens,
                "written_tokens": work.written_tokens,
                "most_written_tokens": round(allowed * work.rows),
                "flops": flops,
                "seconds": flops / rate if rate else (None if flops else 0.0),
                "peak_bytes": _peak_bytes(lens, work, engine.budget),
                "store_bytes": ROW_BYTES * work.rows + 4 * work.written_tokens,
            }
        )


def _kind(requests: Sequence[Any], conditions: Sequence[Condition]) -> tuple[Any, ...]:
    """What has the same rate: requests and conditions that are alike, up to a factor of two."""
    first = requests[0]
    length = sum(len(q.context) for q in requests) / len(requests)
    written = first.max_new_tokens if isinstance(first, GenerateRequest) else None
    return written, *(round(math.log2(max(1.0, x))) for x in (length, len(requests), len(conditions)))


def _tried(
    engine: Engine, requests: Sequence[Any], conditions: Sequence[Condition], lengths: Sequence[int] | None
) -> tuple[float, float | None]:
    """Operations a second, and tokens that are written in a text on average; None where that was not tried.

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
    cut = asked[0] != requests[0]
    mean = None if lengths is None or cut else trial.work.written_tokens / max(1, trial.work.rows)
    return trial.work.flops(engine.lens) / max(took, 1e-9), mean


def _seconds_of_a_text(engine: Engine, request: GenerateRequest) -> float:
    """About how long the longest text would take to write, from a few of its tokens."""
    few = min(TOKENS, request.max_new_tokens)
    began = time.monotonic()
    engine.like().generate_until([replace(request, max_new_tokens=few)], [BASELINE])
    return (time.monotonic() - began) * request.max_new_tokens / few


def _peak_bytes(lens: Lens, work: Work, budget: Budget) -> int:
    """What this process, or the GPU that holds most, holds now or will have read, and most of what the work adds."""
    dims, size = lens.dims, lens.dtype.itemsize
    states = work.states * dims.d_model * size * 2  # twice, while rows join
    keys = work.keys * 2 * dims.n_layers * dims.n_kv_heads * dims.d_head * size
    logits = min(budget.unembed_rows, max(1, work.unembedded)) * memory_budget.logit_bytes(lens)
    layers = 2 * lens.stream.layer_bytes if lens.stream else 0  # one in use, one that is read
    chunk = budget.batch_tokens * memory_budget.chunk_bytes(lens)
    return _held(lens) + int(states + keys + logits + layers + chunk)


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
