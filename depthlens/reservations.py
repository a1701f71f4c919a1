"""Who computes what right now: processes that share a store do not do the same work twice.

A claim is a file with what its owner computes, and a lock that the owner holds. The system gives a lock back when a
process ends, however it ends, so that no clock is asked and a dead owner's claim counts for nothing.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

T = TypeVar("T")


class Claims:
    """Claims on the rows of one entry of a store, in a folder that all who share it can write.

    Raises:
        OSError: the folder cannot be written, here as in `claim`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._mutex = FileLock(folder / "mutex")

    @contextlib.contextmanager
    def claim(self, choose: Callable[[list[dict]], tuple[T, dict]]) -> Iterator[T]:
        """Claim work for as long as the context lasts.

        Args:
            choose: Told the claims of all others, returns what to compute and the claim on it (JSON-able; empty for
                none). Nobody else chooses meanwhile.
        """
        name = uuid.uuid4().hex
        held, text = FileLock(self.folder / f"{name}.lock"), self.folder / f"{name}.json"
        with self._mutex:
            work, claim = choose(self._others())
            if claim:
                held.acquire()
                text.write_text(json.dumps(claim), encoding="utf-8")
        try:
            yield work
        finally:
            if claim:
                _forget(text, held)

    def _others(self) -> list[dict]:
        """Claims whose owners live; those of dead ones are removed."""
        living = []
        for text in self.folder.glob("*.json"):
            lock = FileLock(text.with_suffix(".lock"))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                try:
                    living.append(json.loads(text.read_text(encoding="utf-8")))
                except (FileNotFoundError, ValueError):
                    pass  # it was given back this moment
            else:
                _forget(text, lock)
        return living


def _forget(text: Path, lock: FileLock) -> None:
    """Remove a claim whose lock is held here."""
    with contextlib.suppress(OSError):  # a claim without a lock counts for nothing, so it may as well stay
        text.unlink(missing_ok=True)
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
