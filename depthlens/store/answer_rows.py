"""Requests under conditions: which answers are known, which are missing, and which process computes them."""

from __future__ import annotations

import copy
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa

from depthlens import progress as bars
from depthlens.errors import Interrupted, hear_ctrl_c
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest, WrittenAnswer
from depthlens.store.parts import Entry
from depthlens.store.reservations import Reservations

Answer = LoglikelihoodAnswer | str | float  # of a log-likelihood request, a generation request, a named number
Row = tuple[int, int]  # condition, request
Product = tuple[list[int], list[int]]  # requests and conditions, each combination of which is a row
Compute = Callable[[list[int], list[int]], None]  # fills the answers of a product and calls `AnswerRows.put`
COUNTED = "counted"  # stands for an answer that a plan has counted before
_WAIT = 0.2  # seconds between looks at what another process has reserved


def _ignore(n: int) -> None:
    pass


def _nothing() -> None:
    pass


class AnswerRows:
    """Requests x conditions: which answers are known, which are missing, and which process computes them.

    Args:
        entry: Where answers are stored; None stores nothing.
        requests: What is asked.
        conditions: Under which conditions (`Condition`); for numbers, their names.
        addresses: What each condition is called in the store.

    Attributes:
        answers: Indexed [condition][request]; None where one is missing.
        n_known: How many answers were known at the start.
        n_read: Answers that were read.
        n_computed: Answers that were computed.
        deferred: Requests and conditions that wait for `finish`.
    """

    def __init__(
        self, entry: Entry | None, requests: Sequence[Any], conditions: Sequence[Any], addresses: Sequence[str]
    ) -> None:
        self.entry = entry
        self.requests = requests
        self.conditions = conditions
        self.addresses = addresses
        self.n_read = 0
        self.n_computed = 0
        self.answers: list[list[Any]] = [[None] * len(requests) for _ in conditions]
        self.deferred: list[Product] = []
        self._reservations: Reservations | None = None
        self._seen: set[str] = set()  # names of parts that were read or written
        self._kept_early: set[Row] = set()  # before the others of their pack
        self._digests = [digest(q) for q in requests] if entry else []
        # equal requests (an option that two documents share) are one row of the store
        self._conditions_at, self._requests_at = _index(addresses), _index(self._digests)
        self._n_stored = 0
        self._bar: bars.Bar | None = None
        self._check_ctrl_c: Callable[[], None] = _nothing
        self.n_known = self._read()

    def only_count(self, counted: set[int]) -> None:
        """From now on nothing is stored, and rows whose hashes were counted before are known; the others are added."""
        entry, self.entry = self.entry, None
        if entry is None:
            return
        missing = [(c, r) for c, row in enumerate(self.answers) for r, answer in enumerate(row) if answer is None]
        numbers = [_number(entry.key, entry.label, self.addresses[c], self._digests[r]) for c, r in missing]
        for (c, r), number in zip(missing, numbers, strict=True):
            if number in counted:
                self.answers[c][r] = COUNTED
                self.n_known += 1
        counted.update(numbers)

    def counting(self) -> AnswerRows:
        """The same rows and what is known of them, to count what the others need; nothing is stored."""
        found = copy.copy(self)
        found.entry, found._bar = None, None
        found.answers, found.deferred, found._kept_early = [list(row) for row in self.answers], [], set()
        return found

    @contextmanager
    def shown_on(self, bar: bars.Bar) -> Iterator[None]:
        """Within the context a bar shows how many rows are stored, and Ctrl-C says so in one line.

        Raises:
            Interrupted: Ctrl-C.
        """
        self._bar = bar if self.entry else None
        self._count_stored(0)
        try:
            with hear_ctrl_c() as self._check_ctrl_c:
                yield
        except KeyboardInterrupt:
            raise Interrupted(self._stored_so_far()) from None

    def _count_stored(self, n: int) -> None:
        self._n_stored += n
        if self._bar is not None:
            self._bar.kept(self._n_stored)

    @property
    def unfinished(self) -> list[int]:
        """Conditions that lack answers."""
        return [c for c, row in enumerate(self.answers) if None in row]

    def missing(self, members: Iterable[int] | None = None, group: Iterable[int] | None = None) -> list[Product]:
        """Rows that lack answers, as products: those of some requests under some conditions, or all."""
        members = range(len(self.requests)) if members is None else list(members)
        group = range(len(self.conditions)) if group is None else group
        return _products([(c, r) for c in group for r in members if self.answers[c][r] is None])

    def _stored_so_far(self) -> str:
        """How many rows are stored and how to continue, in one line."""
        entry = self.entry
        if not entry:
            return "nothing is kept without a store; with one the same call goes on where it was stopped"
        if not entry.writable:
            return f"{entry.store.location} cannot be written here: nothing that was computed is kept"
        rows = f"{self._n_stored} of {len(self.requests) * len(self.conditions)} rows of {entry.label}"
        return f"{rows} are kept in {entry.store.location}; run the same again to go on"

    def run(
        self, members: Sequence[int], group: Sequence[int], compute: Compute, arrived: Callable[[int], Any] = _ignore
    ) -> None:
        """Have ``compute`` fill in what is missing of some requests under some conditions, in products of both.

        Rows that another process has reserved are left for `finish`. ``arrived`` is called with the number of answers
        that other processes have stored meanwhile.
        """
        with self.reserved(members, group, arrived) as products:
            for product in products:
                compute(*product)

    def finish(self, compute: Compute, arrived: Callable[[int], Any] = _ignore) -> None:
        """Wait for rows that other processes have reserved; compute those that they gave up."""
        while self.deferred:
            waiting, self.deferred = self.deferred, []
            for members, group in waiting:
                self.run(members, group, compute, arrived)
            if self.deferred:
                time.sleep(_WAIT)

    def put(self, members: Sequence[int], group: Sequence[int]) -> None:
        """Store the answers that there are to some requests under some conditions, and that `keep` has not stored."""
        rows = {(c, r) for c in group for r in members if self.answers[c][r] is not None}
        self.keep(sorted(rows - self._kept_early))
        self._kept_early.clear()

    def keep(self, rows: Sequence[Row]) -> None:
        """Store the answers of rows (condition, request), before the others of their product are `put`."""
        self._kept_early |= {*rows}
        self.n_computed += len(rows)
        if self.entry and self.entry.writable and rows:
            self._write(self.entry, rows)
        self._check_ctrl_c()

    def _write(self, entry: Entry, rows: Sequence[Row]) -> None:
        unique = {(self.addresses[c], self._digests[r]): self.answers[c][r] for c, r in rows}
        conditions, requests = zip(*unique, strict=True)
        name = entry.write(conditions, requests, *zip(*map(_columns, unique.values()), strict=True))
        self._seen.add(name)
        self._count_stored(len(rows))

    def _read(self) -> int:
        """Fill in what parts hold that were not read before; returns the number of answers that were new."""
        n = 0
        for name, table in self.entry.fresh(self._seen) if self.entry else ():
            new = self._fill(table)
            if self.entry and new:
                self.entry.used.add(name)
            n += new
        self.n_read += n
        self._count_stored(n)
        return n

    def _fill(self, table: pa.Table) -> int:
        n = 0
        columns = [table.column(name).to_pylist() for name in table.schema.names]
        for address, request, value, greedy, text in zip(*columns, strict=True):
            for c in self._conditions_at.get(address, ()):
                for r in self._requests_at.get(request, ()):
                    n += self.answers[c][r] is None
                    self.answers[c][r] = self._answer(c, value, greedy, text)
        return n

    def _answer(self, c: int, value: Any, greedy: bool | None, text: str | None) -> Answer:
        """An answer from the columns of a part; a condition that is a text is the name of a number."""
        if text is not None:
            return WrittenAnswer(text, greedy)
        if greedy is None or isinstance(self.conditions[c], str):  # older parts have False beside a number
            return value
        return LoglikelihoodAnswer(value, greedy)

    @contextmanager
    def reserved(
        self, members: Sequence[int], group: Sequence[int], arrived: Callable[[int], Any] = _ignore
    ) -> Iterator[list[Product]]:
        """Products of requests and conditions that are missing, reserved as long as the context lasts.

        Several contexts may be open at once, in one thread: each is a reservation of its own, which the others respect.
        """
        entry = self.entry
        if not (entry and entry.reservations_folder and entry.writable):
            yield self.missing(members, group)
            return

        def choose(reservations: list[dict]) -> tuple[list[Product], dict]:
            arrived(self._read())
            taken = [(set(other["conditions"]), set(other["requests"])) for other in reservations]
            mine: list[Row] = []
            theirs: list[Row] = []
            for c, r in _rows(self.missing(members, group)):
                reserved = any(self.addresses[c] in a and self._digests[r] in b for a, b in taken)
                (theirs if reserved else mine).append((c, r))
            self.deferred += _products(theirs)
            reservation = {
                "conditions": sorted({self.addresses[c] for c, _ in mine}),
                "requests": sorted({self._digests[r] for _, r in mine}),
            }
            return _products(mine), reservation if mine else {}

        with ExitStack() as stack:
            try:
                if self._reservations is None:
                    self._reservations = Reservations(entry.reservations_folder)
                products = stack.enter_context(self._reservations.reserve(choose))
            except OSError as e:
                raise entry.store.files.unwritable(e) from e
            yield products


def _number(*address: str) -> int:
    """A row as a number of 64 bits with a sign."""
    text = " ".join(address)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


def _index(names: Sequence[str]) -> dict[str, list[int]]:
    """Where each name is in a sequence."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        places[name].append(i)
    return places


def _rows(products: Sequence[Product]) -> list[Row]:
    """The rows of products."""
    return [(c, r) for members, group in products for c in group for r in members]


def _products(rows: Sequence[Row]) -> list[Product]:
    """Rows as products: conditions that lack the same requests are put together."""
    lacking: dict[int, list[int]] = {}
    for c, r in rows:
        lacking.setdefault(c, []).append(r)
    conditions: dict[tuple[int, ...], list[int]] = {}
    for c, requests in lacking.items():
        conditions.setdefault(tuple(requests), []).append(c)
    return [(list(requests), group) for requests, group in conditions.items()]


def digest(request: Any) -> str:
    """Address of a request: hash of its token ids and of how it is to be answered; of other values, of their text."""
    if isinstance(request, LoglikelihoodRequest):
        text = f"score {request.context} {request.continuation}"
    elif isinstance(request, GenerateRequest):
        text = f"write {request.context} {request.until} {request.max_new_tokens}"
        text += "".join(f" {how}" for how in (request.sampling, request.think_end) if how is not None)
    else:
        text = repr(request)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _columns(answer: Answer) -> tuple[float | None, bool | None, str | None]:
    """Value, greedy and text of an answer, as a part has them."""
    if isinstance(answer, str):
        return None, answer.complete if isinstance(answer, WrittenAnswer) else None, answer
    return (answer.logprob, answer.is_greedy, None) if isinstance(answer, LoglikelihoodAnswer) else (answer, None, None)
