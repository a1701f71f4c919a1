"""Requests under conditions: which answers are known, and which are missing."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from depthlens import progress as bars
from depthlens.errors import Interrupted, hear_ctrl_c
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest, WrittenAnswer
from depthlens.store.parts import Entry

Answer = LoglikelihoodAnswer | str | float  # of a log-likelihood request, a generation request, a named number
Row = tuple[int, int]  # condition, request
Product = tuple[list[int], list[int]]  # requests and conditions, each combination of which is a row


def _nothing() -> None:
    pass


class AnswerRows:
    """Requests x conditions: which answers are known, and which are missing.

    Args:
        entry: Where answers are stored; None stores nothing.
        requests: What is asked.
        conditions: Under which conditions (`Condition`); for numbers, their names.
        addresses: What each condition is called in the store.

    Attributes:
        answers: Indexed [condition][request]; None where one is missing.
        n_known: How many answers were read at the start.
        n_computed: Answers that were computed.
    """

    def __init__(
        self, entry: Entry | None, requests: Sequence[Any], conditions: Sequence[Any], addresses: Sequence[str]
    ) -> None:
        self.entry = entry
        self.requests = requests
        self.conditions = conditions
        self.addresses = addresses
        self.n_computed = 0
        self.answers: list[list[Any]] = [[None] * len(requests) for _ in conditions]
        self._kept: set[Row] = set()
        self._digests = [digest(q) for q in requests] if entry else []
        # equal requests (an option that two documents share) are one row of the store
        self._conditions_at, self._requests_at = _index(addresses), _index(self._digests)
        self._bar: bars.Bar | None = None
        self._check_ctrl_c: Callable[[], None] = _nothing
        self.n_known = self._read()
        self._n_stored = self.n_known

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

    def keep(self, rows: Iterable[Row]) -> None:
        """Store the answers that there are of some rows (condition, request), each once."""
        new = [(c, r) for c, r in rows if self.answers[c][r] is not None and (c, r) not in self._kept]
        self._kept |= {*new}
        self.n_computed += len(new)
        if self.entry and self.entry.writable and new:
            self._write(self.entry, new)
        self._check_ctrl_c()

    def _write(self, entry: Entry, rows: Sequence[Row]) -> None:
        unique = {(self.addresses[c], self._digests[r]): self.answers[c][r] for c, r in rows}
        conditions, requests = zip(*unique, strict=True)
        entry.write(conditions, requests, *zip(*map(_columns, unique.values()), strict=True))
        self._count_stored(len(rows))

    def _read(self) -> int:
        """Fill in what parts hold; returns the number of answers."""
        n = 0
        for path, table in self.entry.tables() if self.entry else ():
            new = self._fill(table)
            if self.entry and new:
                self.entry.used.add(path)
            n += new
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


def _index(names: Sequence[str]) -> dict[str, list[int]]:
    """Where each name is in a sequence."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        places[name].append(i)
    return places


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
