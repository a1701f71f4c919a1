"""Runs that only count: what would be computed is noted, and the answers are made up.

In a dry run an engine answers with what `depthlens.engine.made_up_answers` draws, and of numbers that are measured case
by case one batch is measured and stands for the others. The store is read and never written. `depthlens.plan` counts
inside one process. With DEPTHLENS_PLAN every process counts for the folder that it names, so that a whole notebook can
be run dry; what one notebook has counted is known to the next.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ENVIRONMENT = "DEPTHLENS_PLAN"
LINES = "lines.jsonl"  # in the folder: one line for each call that was counted
ROWS = "rows.int64"  # and the rows that were counted, as hashes
SPREAD = 0.3  # of made-up numbers around the measured one


class DryRun:
    """What was counted.

    Args:
        folder: Where it is written, and read from what other processes wrote; None: nowhere.
        measured: Try how long it would take.

    Attributes:
        lines: One dictionary for each call.
        rows: Hashes of rows that were counted and would be in the store by now.
        rates: Operations a second, and the mean number of written tokens, by what was tried.
    """

    def __init__(self, folder: Path | None = None, *, measured: bool = True) -> None:
        self.folder = folder
        self.measured = measured
        self.lines: list[dict[str, Any]] = []
        before = folder / ROWS if folder else None
        self.rows: set[int] = set(np.fromfile(before, np.int64).tolist()) if before and before.exists() else set()
        self.rates: dict[Any, tuple[float, float | None]] = {}

    def note(self, **line: Any) -> None:
        """Note what a call would have computed."""
        self.lines.append(line)
        if self.folder:
            with open(self.folder / LINES, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def counted(self, rows: Sequence[int]) -> list[bool]:
        """Which rows were counted before; from now on all were."""
        known = [row in self.rows for row in rows]
        new = [row for row, before in zip(rows, known, strict=True) if not before]
        self.rows.update(new)
        if self.folder:
            with open(self.folder / ROWS, "ab") as file:
                np.array(new, np.int64).tofile(file)
        return known


_CURRENT: ContextVar[DryRun | None] = ContextVar("dry_run", default=None)
_SUSPENDED: ContextVar[bool] = ContextVar("suspended", default=False)


def current() -> DryRun | None:
    """The dry run that this code is part of; None in a real one."""
    if _SUSPENDED.get():
        return None
    folder = os.environ.get(ENVIRONMENT)
    return _CURRENT.get() or (_of_process(folder) if folder else None)


@cache
def _of_process(folder: str) -> DryRun:
    """One for the whole process: a kernel runs each cell in a context of its own."""
    return DryRun(Path(folder))


@contextmanager
def counting(*, measured: bool = True) -> Iterator[DryRun]:
    """Everything within the context is a dry run."""
    run = DryRun(measured=measured)
    token = _CURRENT.set(run)
    try:
        yield run
    finally:
        _CURRENT.reset(token)


@contextmanager
def suspended() -> Iterator[None]:
    """Everything within the context is computed, to try how long it takes."""
    token = _SUSPENDED.set(True)
    try:
        yield
    finally:
        _SUSPENDED.reset(token)


def like(measured: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Numbers of n cases that resemble those of some; shape [n, name]."""
    spread = np.random.default_rng(seed).normal(1, SPREAD, (n, *measured.shape[1:]))
    return measured[np.arange(n) % len(measured)] * spread
