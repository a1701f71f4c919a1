"""Which process computes what, so that processes that share a store do not do the same work twice.

A reservation is a file that says what its owner computes, and a lock that the owner holds. The operating system
releases the lock when the process ends, however it ends. So no clock is needed, and the reservation of a dead owner is
ignored.
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


class Reservations:
    """Reservations of the rows of one entry of a store, in a folder that all who share it can write.

    Raises:
        OSError: the folder cannot be written, here as in `reserve`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._mutex = FileLock(folder / "mutex")

    @contextlib.contextmanager
    def reserve(self, choose: Callable[[list[dict]], tuple[T, dict]]) -> Iterator[T]:
        """Reserve work for as long as the context lasts.

        Args:
            choose: Takes the reservations of all other processes and returns what to compute and what to write down
                for the others (JSON-able; empty: nothing is reserved). No other process chooses meanwhile.
        """
        name = uuid.uuid4().hex
        lock, text = FileLock(self.folder / f"{name}.lock"), self.folder / f"{name}.json"
        with self._mutex:
            work, reservation = choose(self._others())
            if reservation:
                lock.acquire()
                text.write_text(json.dumps(reservation), encoding="utf-8")
        try:
            yield work
        finally:
            if reservation:
                _forget(text, lock)

    def _others(self) -> list[dict]:
        """Reservations whose owners live; those of dead ones are removed."""
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
    """Remove a reservation whose lock is held here."""
    with contextlib.suppress(OSError):  # a reservation without a lock counts for nothing, so it may as well stay
        text.unlink(missing_ok=True)
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
