"""What an engine answers in a dry run: the work is counted, how long it takes is tried, and the answers are made up.

The whole model is right on every request whose right answer is known, and under every other condition on about half.
So a notebook goes on as it would with real answers, and what it computes from them is without meaning.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import psutil
import torch

from depthlens.ablations import BASELINE, Condition
from depthlens.engine import memory_budget
from depthlens.engine.memory_budget import Budget
from depthlens.engine.work import Work, text_lengths
from depthlens.models.lens import Lens
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, WrittenAnswer
from depthlens.store import dry_run
from depthlens.store.dry_run import DryRun

SECONDS = 2.0  # of trying
TOKENS = 8  # that are written to try how fast it goes, where whole texts would take longer
ROW_BYTES = 40  # of an answer in the store; a text takes its letters more
_WRONG = -5.0  # nats
_SPREAD = 2.0  # nats


@runtime_checkable
class Answering(Protocol):
    """See `depthlens.engine.engine.Engine`."""

    lens: Lens
    work: Work
    budget: Budget

    def like(self) -> Answering: ...
    def plan(
        self, requests: Sequence[Any], conditions: Sequence[Condition], lengths: Sequence[int] | None = None
    ) -> tuple[Work, int]: ...
    def loglikelihood(self, requests: Sequence[Any], conditions: Sequence[Condition]) -> list[list[Any]]: ...
    def generate_until(self, requests: Sequence[Any], conditions: Sequence[Condition]) -> list[list[str]]: ...


def answers(
    run: DryRun, engine: Answering, requests: Sequence[Any], conditions: Sequence[Condition], desc: str
) -> list[list[Any]]:
    """Note what requests under conditions would cost, and make up their answers, indexed [condition][request]."""
    if not requests:
        return [[] for _ in conditions]
    lens, write = engine.lens, isinstance(requests[0], GenerateRequest)
    lengths = text_lengths(lens, requests) if write else None
    start = time.monotonic()
    rate = mean = None
    if run.measured:
        with dry_run.suspended():
            kind = _kind(engine, requests, conditions)
            if kind not in run.rates:
                run.rates[kind] = _tried(engine, requests, conditions, lengths)
            rate, mean = run.rates[kind]
    spent = time.monotonic() - start
    if lengths is not None and mean is not None:
        lengths = [round(mean)] * len(lengths)
    work, known = engine.plan(requests, conditions, lengths)
    flops = work.flops(lens)
    allowed = sum(q.max_new_tokens for q in requests) / len(requests) if write else 0
    run.note(
        name=desc,
        conditions=len(conditions),
        rows=work.rows,
        known=known,
        tokens=work.tokens,
        unshared_tokens=work.unshared_tokens,
        written_tokens=work.written_tokens,
        most_written_tokens=round(allowed * work.rows),
        flops=flops,
        seconds=flops / rate if rate else (None if flops else 0.0),
        peak_bytes=_peak_bytes(lens, work, engine.budget),
        store_bytes=ROW_BYTES * work.rows + 4 * work.written_tokens,
        spent=spent,
    )
    return _made_up(requests, conditions, np.random.default_rng(len(requests)))


def _made_up(requests: Sequence[Any], conditions: Sequence[Condition], rng: np.random.Generator) -> list[list[Any]]:
    found: list[list[Any]] = []
    for condition in conditions:
        kept = rng.random(len(requests)) < (0.5 if condition else 1.0)
        nats = rng.normal(0, _SPREAD if condition else 0.1, len(requests))
        row: list[Any] = []
        for request, right, noise in zip(requests, kept.tolist(), nats.tolist(), strict=True):
            if isinstance(request, GenerateRequest):
                row.append(WrittenAnswer((request.right or "") if right else "", True))
            else:
                mean = _WRONG if request.right is False or not right else -1.0
                row.append(LoglikelihoodAnswer(mean + noise, right and request.right is not False))
        found.append(row)
    return found


def _kind(engine: Answering, requests: Sequence[Any], conditions: Sequence[Condition]) -> tuple[Any, ...]:
    """What has the same rate: a model, and requests and conditions that are alike, up to a factor of two."""
    lens, first = engine.lens, requests[0]
    length = sum(len(q.context) for q in requests) / len(requests)
    about = length, len(requests), len(conditions)
    written = first.max_new_tokens if isinstance(first, GenerateRequest) else None
    return lens.name, lens.dims, lens.donor is not None, written, *(round(math.log2(max(1.0, x))) for x in about)


def _tried(
    engine: Answering, requests: Sequence[Any], conditions: Sequence[Condition], lengths: Sequence[int] | None
) -> tuple[float, float | None]:
    """Operations a second, and tokens that are written in a text on average; None where that was not tried.

    From some requests under some conditions, twice as many as before until it took half of `SECONDS`.
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


def _seconds_of_a_text(engine: Answering, request: GenerateRequest) -> float:
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
