"""Requests under conditions on their way: what is known, what is left, who computes what."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from depthlens import progress as bars
from depthlens.ablations import Condition
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest
from depthlens.store.parts import Entry
from depthlens.store.reservations import Reservations

_WAIT = 0.2  # seconds between looks at what another process has reserved


class AnswerRows:
    """Requests x conditions on their way: what is known, what is left, who computes what.

    Args:
        entry: Where answers are kept; None keeps nothing.
        requests: What is asked.
        conditions: Under which conditions; of numbers, their names.
        addresses: What each condition is called in the store.

    Attributes:
        answers: Indexed [condition][request]; None where one is missing.
        n_known: How many there were at the start.
        n_read: AnswerRows that were found.
        n_computed: AnswerRows that were computed.
        deferred: Requests and conditions that wait for `finish`.
    """

    def __init__(
        self,
        entry: Entry | None,
        requests: Sequence[Any],
        conditions: Sequence[Condition | str],
        addresses: Sequence[str],
    ) -> None:
        self.entry = entry
        self.requests = requests
        self.conditions = conditions
        self.addresses = addresses
        self.n_read = 0
        self.n_computed = 0
        self.answers: list[list[Any]] = [[None] * len(requests) for _ in conditions]
        self.deferred: list[tuple[list[int], list[int]]] = []
        self._reservations: Reservations | None = None
        self._seen: set[str] = set()  # names of parts that were read or written
        self._early: set[tuple[int, int]] = set()  # rows kept before the others of their pack
        if entry:
            self._digests = [digest(q) for q in requests]
            # equal requests (an option that two documents share) are one row of the store
            self._at: tuple[dict, dict] = defaultdict(list), defaultdict(list)
            for index, names in zip(self._at, (self.addresses, self._digests), strict=True):
                for i, name in enumerate(names):
                    index[name].append(i)
        self._n_kept = 0
        self._bar: bars.Bar | None = None
        self.n_known = self._read()

    def watched(self, bar: bars.Bar) -> None:
        """Show on a bar how many rows are kept, from now on."""
        self._bar = bar if self.entry else None
        self._show()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.kept(self._n_kept)

    @property
    def unfinished(self) -> list[int]:
        """Conditions that lack answers."""
        return [c for c, row in enumerate(self.answers) if None in row]

    def kept_so_far(self) -> str:
        """What is kept now and how to go on, in a line."""
        entry = self.entry
        if not entry:
            return "nothing is kept without a store; with one the same call goes on where it was stopped"
        if not entry.store.writable:
            return f"{entry.store.location} is read-only: nothing that was computed is kept"
        rows = f"{self._n_kept} of {sum(map(len, self.answers))} rows of {entry.label}"
        return f"{rows} are kept in {entry.store.location}; run the same again to go on"

    def run(
        self,
        members: Sequence[int],
        group: Sequence[int],
        do: Callable[[list[int], list[int]], None],
        found: Callable[[int], Any] = lambda n: None,
    ) -> None:
        """Have ``do`` compute what is missing of some requests under some conditions, in products of both.

        AnswerRows that another process has reserved are left for `finish`. ``do`` fills ``answers`` and calls `put`;
        ``found`` is told how many rows came from other processes meanwhile.
        """
        with self._reserved(list(members), list(group), found) as products:
            for some, few in products:
                do(some, few)

    def finish(self, do: Callable[[list[int], list[int]], None], found: Callable[[int], Any] = lambda n: None) -> None:
        """Wait for rows that other processes had reserved; compute those that they did not."""
        while self.deferred:
            waiting, self.deferred = self.deferred, []
            for members, group in waiting:
                self.run(members, group, do, found)
            if self.deferred:
                time.sleep(_WAIT)

    def put(self, members: Sequence[int], group: Sequence[int]) -> None:
        """Keep the answers to some requests under some conditions, but for those that were kept by themselves."""
        self.keep([(c, r) for c in group for r in members if (c, r) not in self._early])
        self._early.clear()

    def keep(self, rows: Sequence[tuple[int, int]]) -> None:
        """Keep the answers of rows (condition, request), before those that they are computed with are `put`."""
        self._early |= {*rows}
        self.n_computed += len(rows)
        if not (self.entry and self.entry.store.writable and rows):
            return
        unique = {(self.addresses[c], self._digests[r]): self.answers[c][r] for c, r in rows}
        conditions, requests = zip(*unique, strict=True)
        name = self.entry.write(conditions, requests, *zip(*map(_columns, unique.values()), strict=True))
        self._seen.add(name)
        self._n_kept += len(rows)
        self._show()

    def _read(self) -> int:
        """Fill in what parts that were not read before hold; returns the number of answers that were new."""
        n = 0
        for name, table in self.entry.fresh(self._seen) if self.entry else ():
            new = self._fill(table)
            if new:
                self.entry.used.add(name)
            n += new
        self.n_read += n
        self._n_kept += n
        self._show()
        return n

    def _fill(self, table: Any) -> int:
        n = 0
        wanted, digests = self._at
        columns = [table.column(name).to_pylist() for name in table.schema.names]
        for address, request, value, greedy, text in zip(*columns, strict=True):
            if address in wanted and request in digests:
                for c in wanted[address]:
                    for r in digests[request]:
                        n += self.answers[c][r] is None
                        self.answers[c][r] = text if text is not None else LoglikelihoodAnswer(value, greedy)
        return n

    @contextmanager
    def _reserved(
        self, members: list[int], group: list[int], found: Callable[[int], Any]
    ) -> Iterator[list[tuple[list[int], list[int]]]]:
        """Products of requests and conditions that are missing, reserved as long as the context lasts."""
        entry = self.entry
        if not (entry and entry.reservations_folder and entry.store.writable):
            yield self._products([(c, r) for c in group for r in members if self.answers[c][r] is None])
            return

        def choose(others: list[dict]) -> tuple[list, dict]:
            found(self._read())
            missing = [(c, r) for c in group for r in members if self.answers[c][r] is None]
            taken = [(set(other["conditions"]), set(other["requests"])) for other in others]
            mine, theirs = [], []
            for c, r in missing:
                held = any(self.addresses[c] in a and self._digests[r] in b for a, b in taken)
                (theirs if held else mine).append((c, r))
            self.deferred += self._products(theirs)
            reservation = {
                "conditions": sorted({self.addresses[c] for c, _ in mine}),
                "requests": sorted({self._digests[r] for _, r in mine}),
            }
            return self._products(mine), reservation if mine else {}

        with ExitStack() as stack:
            try:
                if self._reservations is None:
                    self._reservations = Reservations(entry.reservations_folder)
                products = stack.enter_context(self._reservations.reserve(choose))
            except OSError as e:
                raise entry.store.unwritable(e) from e
            yield products

    @staticmethod
    def _products(rows: Sequence[tuple[int, int]]) -> list[tuple[list[int], list[int]]]:
        """AnswerRows as products: conditions that lack the same requests go together."""
        lacking: dict[int, list[int]] = {}
        for c, r in rows:
            lacking.setdefault(c, []).append(r)
        together: dict[tuple[int, ...], list[int]] = {}
        for c, requests in lacking.items():
            together.setdefault(tuple(requests), []).append(c)
        return [(list(requests), conditions) for requests, conditions in together.items()]


def digest(request: Any) -> str:
    """Address of a request: hash of its token ids and of how it is to be answered; of other values, of their text."""
    if isinstance(request, LoglikelihoodRequest):
        text = f"score {request.context} {request.continuation}"
    elif isinstance(request, GenerateRequest):
        text = f"write {request.context} {request.until} {request.max_new_tokens}"
    else:
        text = repr(request)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _columns(answer: LoglikelihoodAnswer | str) -> tuple[float | None, bool | None, str | None]:
    return (None, None, answer) if isinstance(answer, str) else (answer.logprob, answer.is_greedy, None)
