"""How much a sweep computes, counted in tokens, and how much of it is done at once.

Work is counted in tokens that pass a layer. The rate at which they pass is measured with every pack, and the next pack
is cut to fit. The reading of weights from files is not counted as work, because it takes the same time however much is
computed with them. Where it takes long, a pack lasts a few times as long as the reading.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch

from depthlens.models.lens import Lens
from depthlens.models.quantised import n_weights
from depthlens.requests import GenerateRequest
from depthlens.store import answer_cache

READS = 4  # a pack lasts at least so many times as long as the reading of weights for it
WIDTH = 2048  # of the square matrix that is multiplied to estimate the rate of the first pack
SHARE = 0.8  # of the rate of matrix products, which a layer reaches


@dataclass
class Work:
    """Counted work.

    Attributes:
        rows: Answers: of a request under a condition.
        tokens: Tokens that are read, those that requests share counted once (in every pack).
        unshared_tokens: Tokens that would be read without sharing: of every request under every condition.
        written_tokens: Tokens that are written.
        layer_tokens: Tokens that pass a layer, each layer and each condition counted.
        spared: Tokens that `text_lengths` expected of the texts that are written, and that they do not have.
    """

    rows: int = 0
    tokens: int = 0
    unshared_tokens: int = 0
    written_tokens: int = 0
    layer_tokens: int = 0
    spared: int = 0

    def add(self, other: Work) -> None:
        """Count what was counted elsewhere."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def described(self) -> dict[str, int]:
        """As a record has it."""
        return {name: value for name, value in vars(self).items() if name != "spared"}


def text_lengths(lens: Lens, requests: Sequence[GenerateRequest]) -> list[int]:
    """About how many tokens each text has: as many as its right answer and one that ends it, or half of what may be."""
    found = []
    for request in requests:
        most = request.max_new_tokens
        known = request.right
        n = most // 2 if known is None else len(lens.tokenizer(known, add_special_tokens=False).input_ids) + 1
        found.append(max(1, min(most, n)))
    return found


class WorkRate:
    """Work that fits into a pack, by the rate of those before.

    Args:
        lens: A loaded model.
    """

    def __init__(self, lens: Lens) -> None:
        models = [lens, lens.donor.lens] if lens.donor else [lens]
        self._streams = [model.stream for model in models if model.stream]
        n_parameters = sum(map(n_weights, lens.arch.layers[0].parameters()))
        # tokens that pass a layer a second
        self._rate = SHARE * products(lens.device, lens.dtype) / (2 * max(1, n_parameters))
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
        return sum((stream.waited for stream in self._streams), 0.0)


@cache
def products(device: torch.device, dtype: torch.dtype) -> float:
    """Rate of matrix products on a device, in floating point operations a second, tried once (20 ms on two cores)."""
    rows = 256
    x, weight = (torch.ones(n, WIDTH, device=device, dtype=dtype) for n in (rows, WIDTH))

    def seconds() -> float:
        start = time.monotonic()
        float((x @ weight)[0, 0])  # waits for the device
        return max(1e-9, time.monotonic() - start)

    seconds()  # the first product of a process takes longer
    return 2 * rows * WIDTH**2 / min(seconds() for _ in range(3))
