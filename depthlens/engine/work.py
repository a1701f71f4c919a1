"""How much a sweep computes, counted in tokens, and how much of it is done at once.

Four numbers determine memory: the tokens that pass a layer together, the residual streams that the open rows of a pack
keep from layer to layer, the keys and values of the rows that are decoded together, and the positions that are
unembedded together. Each gets a share of the free memory, up to the size that still gains speed on that kind of device.

Work is counted in tokens that pass a layer. The rate at which they pass is measured with every pack, and the next pack
is cut to fit. The reading of weights from files is not counted as work, because it takes the same time however much is
computed with them. Where it takes long, a pack lasts a few times as long as the reading.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from depthlens.engine import tree_attention
from depthlens.models import quantised
from depthlens.models.lens import Lens
from depthlens.models.placement import free_bytes
from depthlens.requests import GenerateRequest
from depthlens.store import answer_cache

T = TypeVar("T")

# measured on 2 cores: larger batches lose on a CPU, since what a layer makes no longer fits its caches
CPU_BATCH_TOKENS = 2048
GPU_BATCH_TOKENS = 65536
# a server is shared and its memory is unknown: at 8192 tokens the widest part of LLaMA-70B takes 3 GB in bfloat16, and
# the logits of all of them 2 GB
REMOTE_BATCH_TOKENS = 8192
# below this a layer's weights cost more to read than its arithmetic; with less memory nothing can be computed
MIN_BATCH_TOKENS = 64
# on a CPU more of either gains little: with these a sweep of the embedded model takes 2 GiB more than its weights where
# it scores, and 3.0 GiB more where it writes
CPU_STATE_BYTES = 512 << 20
CPU_KEY_BYTES = 2 << 30
# positions that are unembedded at once; 512 x 49k logits take 200 MB, and a GPU wants some thousand rows for a product
CPU_UNEMBED_ROWS = 512
GPU_UNEMBED_ROWS = 4096
# shares of the free memory: a pack needs its states about twice while rows join, a step copies keys as rows leave
CHUNK_SHARE, STATE_SHARE, KEY_SHARE, LOGIT_SHARE = 4, 8, 4, 16
OUT_OF_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate|ALLOC_FAILED|bad_alloc", re.IGNORECASE)
READS = 4  # a pack lasts at least so many times as long as the reading of weights for it
# floating point operations a second of one core and of a GPU, for the first pack; the rate of others was measured
CORE_RATE = 4e10
GPU_RATE = 1e14


@dataclass
class Budget:
    """Bounds on one batch.

    Attributes:
        batch_tokens: Tokens (rows x padded length) that pass a layer together; fewer once memory has run out.
        state_bytes: Residual streams of all open rows of a pack.
        key_bytes: Keys and values of the rows that are decoded together.
        unembed_rows: Positions that are unembedded together.
    """

    batch_tokens: int
    state_bytes: int
    key_bytes: int
    unembed_rows: int


def choose(lens: Lens, batch_tokens: int | None = None) -> Budget:
    """The budget for a model, by the device with least room; ``batch_tokens`` overrides the first number."""
    if lens.remote:
        return Budget(batch_tokens or REMOTE_BATCH_TOKENS, 0, 0, MIN_BATCH_TOKENS)
    free, on_cpu = min(map(free_bytes, lens.devices)), lens.device.type == "cpu"
    if batch_tokens is None:
        fits = free // CHUNK_SHARE // chunk_bytes(lens)
        batch_tokens = max(MIN_BATCH_TOKENS, min(CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS, fits))
    states, keys = free // STATE_SHARE, free // KEY_SHARE
    if on_cpu:
        states, keys = min(states, CPU_STATE_BYTES), min(keys, CPU_KEY_BYTES)
    most = CPU_UNEMBED_ROWS if on_cpu else GPU_UNEMBED_ROWS
    return Budget(batch_tokens, states, keys, max(1, min(most, free // LOGIT_SHARE // logit_bytes(lens))))


def chunk_bytes(lens: Lens) -> int:
    """About what one token holds while it passes a layer: eight residual streams and four of the widest product.

    And its scores, where attention holds them.
    """
    layer = lens.arch.layers[0]
    # experts are stacked [expert, width, d_model]; a token passes few of them, and one width is about their sum
    widest = max(shape[-2] for p in layer.parameters() if len(shape := quantised.shape_of(p)) >= 2)
    in_layer = lens.dtype.itemsize * (8 * lens.dims.d_model + 4 * widest)
    held = lens.dims.n_heads * tree_attention.SCORES_PER_QUERY * tree_attention.SCORE_BYTES
    return in_layer + held if tree_attention.kernel_of(lens) == "unfused" else in_layer


def logit_bytes(lens: Lens) -> int:
    """What one position holds while it is unembedded: its logits in float32, and their exponentials."""
    return 2 * 4 * lens.model.get_output_embeddings().weight.shape[0]


def tried(run: Callable[[], T], *, smaller: bool) -> T | None:
    """What ``run`` gives; None where memory ran out, if something ``smaller`` can be run instead.

    The error's traceback, which holds tensors, is gone when this returns.
    """
    try:
        return run()
    except (RuntimeError, MemoryError) as e:
        if not (smaller and of_memory(e)):
            raise
        return None


def of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; on a CPU, and where libraries allocate, it has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(OUT_OF_MEMORY.search(str(error)))


@dataclass
class Work:
    """Counted work.

    Attributes:
        rows: Answers: of a request under a condition.
        tokens: Tokens that are read, those that requests share counted once (in every pack).
        unshared_tokens: Tokens that would be read without sharing: of every request under every condition.
        written_tokens: Tokens that are written.
        layer_tokens: Tokens that pass a layer, each layer and each condition counted.
    """

    rows: int = 0
    tokens: int = 0
    unshared_tokens: int = 0
    written_tokens: int = 0
    layer_tokens: int = 0

    def add(self, other: Work) -> None:
        """Count what was counted elsewhere."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def text_lengths(lens: Lens, requests: Sequence[GenerateRequest]) -> list[int]:
    """About how many tokens each text has: as many as its right answer and one that ends it, or half of what may be."""
    found = []
    for request in requests:
        n = request.max_new_tokens // 2
        if request.right is not None:
            n = len(lens.tokenizer(request.right, add_special_tokens=False).input_ids) + 1
        found.append(max(1, min(request.max_new_tokens, n)))
    return found


class WorkRate:
    """Work that fits into a pack, by the rate of those before.

    Args:
        lens: A loaded model.
    """

    def __init__(self, lens: Lens) -> None:
        self._models = [lens, lens.donor] if lens.donor else [lens]
        n_parameters = sum(weight.numel() for weight in lens.arch.layers[0].parameters())
        rate = CORE_RATE * torch.get_num_threads() if lens.device.type == "cpu" else GPU_RATE
        self._rate = rate / (2 * max(1, n_parameters))  # tokens that pass a layer a second
        self._reading = 0.0  # seconds of a pack in which weights were waited for

    @property
    def work(self) -> float:
        """Tokens that may pass a layer in one pack, counting each layer."""
        return self._rate * max(answer_cache.KEEP_SECONDS, READS * self._reading)

    @contextmanager
    def measured(self, work: int) -> Iterator[None]:
        """Measure some work; where it fails nothing is learnt."""
        start, waited = time.monotonic(), self._waited()
        yield
        self._reading = self._waited() - waited
        seconds = time.monotonic() - start - self._reading
        if seconds > 0 and work > 0:
            self._rate = work / seconds

    def _waited(self) -> float:
        return sum(model.waited for model in self._models)
