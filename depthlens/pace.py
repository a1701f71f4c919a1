"""How much work is done at once, so that little is lost when it is stopped: about ten seconds of it.

Work is counted in tokens that pass a layer. The rate at which they pass is measured with every pack, and the next one
is cut to fit. What reads weights from files is not counted as work: it costs the same however much is computed with
them, so that where reading takes long a pack lasts a few times as long as that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from depthlens import kept

READS = 4  # a pack lasts at least so many times as long as the reading of weights for it
# a guess for the first pack, in floating point operations a second (a CPU: of one thread), and how much of the time it
# may be wrong by; what it takes is measured
FIRST_RATES = {"cpu": 2e10, "mps": 1e12, "cuda": 1e13}
CAUTION = 4


class Pace:
    """Work that fits into a pack, by the rate of those before.

    Args:
        lens: A loaded model.
    """

    def __init__(self, lens: Any) -> None:
        self._streams = [one.stream for one in (lens, *([lens.donor.lens] if lens.donor else [])) if one.stream]
        n_parameters = sum(p.numel() for p in lens.arch.layers[0].parameters())
        kind = lens.device.type
        rate = FIRST_RATES.get(kind, 1e12) * (torch.get_num_threads() if kind == "cpu" else 1)
        self._rate = rate / (2 * max(1, n_parameters)) / CAUTION  # tokens that pass a layer a second
        self._reading = 0.0  # seconds of a pack in which weights were waited for

    @property
    def work(self) -> float:
        """Tokens that may pass a layer in one pack, counting each layer."""
        return self._rate * max(kept.KEEP_SECONDS, READS * self._reading)

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
