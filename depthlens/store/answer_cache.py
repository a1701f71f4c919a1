"""What a store holds of one model and question, as answers to requests under conditions.

A row's address is all that decides its answer: the model's fingerprint, dtype, kind of device, backend, version of the
engine's arithmetic (these make the entry), the condition with what stands in for the removed part, and the request's
token ids, in which task, examples, document and option have already gone. So another number of documents, another
metric of the same answers or another notebook asks for the same rows, and only what is missing is computed. Numbers
that are measured of single texts (`Kept.numbers`) are rows, too: a number's name stands where conditions do.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from depthlens import progress as bars
from depthlens import provenance
from depthlens.ablations import Condition
from depthlens.errors import Interrupted
from depthlens.requests import Generate, Likelihood, Loglikelihood
from depthlens.store.parts import Entry, Store, open_store
from depthlens.store.reservations import Reservations

log = logging.getLogger(__name__)

# of the engine's arithmetic: raise it when a change moves scores by more than rounding
NUMERICS = 1
# what is computed is kept about so often, in seconds: stopping loses no more
KEEP_SECONDS = 10.0
_WAIT = 0.2  # seconds between looks at what another process has reserved

Answer = Likelihood | str
Where = str | os.PathLike[str] | Store | None


class Kept:
    """Answers of one model to one kind of question; without a store it keeps nothing and finds nothing.

    Args:
        entry: Where they are kept; None keeps nothing.
        reference: Digest of what stands in for parts under ``@mean`` and ``@resample``, by mode; ``donor``'s is its
            fingerprint.

    Attributes:
        n_read: Rows that were found.
        n_computed: Rows that were computed.
    """

    def __init__(self, entry: Entry | None = None, reference: dict[str, str] | None = None) -> None:
        self.entry = entry
        self.reference = reference or {}
        self.n_read = 0
        self.n_computed = 0

    def rows(self, requests: Sequence[Any], conditions: Sequence[Condition | str]) -> Rows:
        """Start on requests under conditions, with what is known already."""
        return Rows(self, requests, conditions)

    def numbers(
        self,
        cases: Sequence[Any],
        names: Sequence[str],
        measure: Callable[[list[int]], Iterable[tuple[Sequence[int], np.ndarray]]],
        *,
        desc: str,
        unit: str = "text",
        progress: bool = False,
    ) -> np.ndarray:
        """Numbers by name of each case (a request, a text), measured where they are not known; shape [case, name].

        Args:
            cases: Their `digest` must say all that decides the numbers, beside what the entry says.
            names: One for each number of a case.
            measure: Given the places of cases, yields some of them with their numbers, shape [some, name].
            desc: What the bar says.
            unit: What a case is, for the bar.
            progress: Show a bar.

        Raises:
            Interrupted: Ctrl-C; says what is kept.
        """
        if not cases or not names:
            return np.empty((len(cases), len(names)))
        rows = self.rows(cases, names)

        def run(members: list[int], group: list[int]) -> None:
            waiting: list[int] = []
            last = time.monotonic()
            try:
                for some, values in measure(members):
                    for case, row in zip(some, values.tolist(), strict=True):
                        for name, value in enumerate(row):
                            rows.answers[name][case] = Likelihood(value, False)
                    waiting += some
                    bar.update(len(some))
                    if time.monotonic() - last > KEEP_SECONDS:
                        rows.put(waiting, range(len(names)))
                        waiting, last = [], time.monotonic()
            finally:
                rows.put(waiting, range(len(names)))

        def came(n: int) -> None:
            bar.held(n // len(names))

        known = rows.n_known // len(names)
        with bars.bar(total=len(cases), initial=known, desc=desc, unit=unit, disable=not progress) as bar:
            rows.watched(bar)
            try:
                rows.run(range(len(cases)), range(len(names)), run, came)
                rows.finish(run, came)
            except KeyboardInterrupt:
                raise Interrupted(rows.kept_so_far()) from None
        return np.array([[answer.logprob for answer in row] for row in rows.answers]).T

    def lacks(self, requests: Sequence[Any], conditions: Sequence[Condition | str]) -> bool:
        """Whether an answer to some request under some condition is missing."""
        return not self.entry or bool(Rows(Kept(self.entry, self.reference), requests, conditions).unfinished)

    def address(self, condition: Condition | str) -> str:
        """A condition's text with what it depends on; other names of values stand for themselves."""
        if isinstance(condition, str):
            return condition
        modes = sorted({a.mode for a in condition.ablations} & set(self.reference))
        return " ".join([str(condition), *(f"{mode}:{self.reference[mode]}" for mode in modes)])


class Rows:
    """Requests x conditions on their way: what is known, what is left, who computes what.

    Attributes:
        answers: Indexed [condition][request]; None where one is missing.
        n_known: How many there were at the start.
        deferred: Requests and conditions that wait for `finish`.
    """

    def __init__(self, kept: Kept, requests: Sequence[Any], conditions: Sequence[Condition | str]) -> None:
        self.kept = kept
        self.requests = requests
        self.conditions = conditions
        self.answers: list[list[Any]] = [[None] * len(requests) for _ in conditions]
        self.deferred: list[tuple[list[int], list[int]]] = []
        self._reservations: Reservations | None = None
        self._seen: set[str] = set()  # names of parts that were read or written
        self._early: set[tuple[int, int]] = set()  # rows kept before the others of their pack
        if kept.entry:
            self._addresses = [kept.address(c) for c in conditions]
            self._digests = [digest(q) for q in requests]
            # equal requests (an option that two documents share) are one row of the store
            self._at: tuple[dict, dict] = defaultdict(list), defaultdict(list)
            for index, names in zip(self._at, (self._addresses, self._digests), strict=True):
                for i, name in enumerate(names):
                    index[name].append(i)
        self._n_kept = 0
        self._bar: bars.Bar | None = None
        self.n_known = self._read()

    def watched(self, bar: bars.Bar) -> None:
        """Show on a bar how many rows are kept, from now on."""
        self._bar = bar if self.kept.entry else None
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
        entry = self.kept.entry
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

        Rows that another process has reserved are left for `finish`. ``do`` fills ``answers`` and calls `put`;
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
        self.kept.n_computed += len(rows)
        if not (self.kept.entry and self.kept.entry.store.writable and rows):
            return
        unique = {(self._addresses[c], self._digests[r]): self.answers[c][r] for c, r in rows}
        conditions, requests = zip(*unique, strict=True)
        name = self.kept.entry.write(conditions, requests, *zip(*map(_columns, unique.values()), strict=True))
        self._seen.add(name)
        self._n_kept += len(rows)
        self._show()

    def _read(self) -> int:
        """Fill in what parts that were not read before hold; returns the number of answers that were new."""
        n = 0
        for name, table in self.kept.entry.fresh(self._seen) if self.kept.entry else ():
            new = self._fill(table)
            if new:
                self.kept.entry.used.add(name)
            n += new
        self.kept.n_read += n
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
                        self.answers[c][r] = text if text is not None else Likelihood(value, greedy)
        return n

    @contextmanager
    def _reserved(
        self, members: list[int], group: list[int], found: Callable[[int], Any]
    ) -> Iterator[list[tuple[list[int], list[int]]]]:
        """Products of requests and conditions that are missing, reserved as long as the context lasts."""
        entry = self.kept.entry
        if not (entry and entry.reservations_folder and entry.store.writable):
            yield self._products([(c, r) for c in group for r in members if self.answers[c][r] is None])
            return

        def choose(others: list[dict]) -> tuple[list, dict]:
            found(self._read())
            missing = [(c, r) for c in group for r in members if self.answers[c][r] is None]
            taken = [(set(other["conditions"]), set(other["requests"])) for other in others]
            mine, theirs = [], []
            for c, r in missing:
                held = any(self._addresses[c] in a and self._digests[r] in b for a, b in taken)
                (theirs if held else mine).append((c, r))
            self.deferred += self._products(theirs)
            reservation = {
                "conditions": sorted({self._addresses[c] for c, _ in mine}),
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
        """Rows as products: conditions that lack the same requests go together."""
        lacking: dict[int, list[int]] = {}
        for c, r in rows:
            lacking.setdefault(c, []).append(r)
        together: dict[tuple[int, ...], list[int]] = {}
        for c, requests in lacking.items():
            together.setdefault(tuple(requests), []).append(c)
        return [(list(requests), conditions) for requests, conditions in together.items()]


class AnswerStore:
    """A store as one model sees it; make one for each experiment.

    The model is identified once, when it is first asked for: reading the weights of an offloaded one takes long, and
    what is wrong with the request is told before.

    Args:
        store: See `depthlens.store.parts.open_store`; what is wrong with it is told at once.
        lens: A loaded model.
        second: Another model that every value depends on; one whose parts are transplanted (``lens.donor``) is seen by
            itself.
    """

    def __init__(self, store: Where, lens: Any, second: Any = None) -> None:
        self._opened = open_store(store)
        every = {"model": lens, "donor": lens.donor.lens if lens.donor else None, "second": second}
        self._models = {role: one for role, one in every.items() if one is not None}
        for one in self._models.values():
            one.bind()

    @cached_property
    def _identities(self) -> dict[str, Any]:
        return {role: one.identify() for role, one in self._models.items()}

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model."""
        return self._identities["model"].fingerprint

    @property
    def donor_fingerprint(self) -> str | None:
        """Fingerprint of the model whose parts are transplanted; None where there is none."""
        return self._identities["donor"].fingerprint if "donor" in self._models else None

    @cached_property
    def store(self) -> Store | None:
        """None where there is none, or where what a model computes cannot be told from what it holds.

        Hooks, replaced methods and code of one's own are such cases; a warning names the first.
        """
        for role, its in self._identities.items() if self._opened else ():
            if its.obstacle:
                name = self._models[role].name
                log.warning("store: model %s %s; results are neither read nor kept", name, its.obstacle)
                return None
        if self._opened and not self._opened.writable:
            log.warning("store %s is read-only: answers are read, and new ones are not kept", self._opened.location)
        return self._opened

    def entry(
        self, label: str, *, backend: str = "torch", method: str = "exact", reference: dict[str, str] | None = None
    ) -> Kept:
        """What the store holds of the model and a question; one that keeps nothing where there is no store.

        Args:
            label: Task, or what else is asked.
            backend: What applies the conditions.
            method: What the values are, where they are not the engine's own answers.
            reference: See `Kept`.
        """
        if self.store is None:
            return Kept()
        lens = self._models["model"]
        about = lens.describe(self.fingerprint)
        shared = {
            "fingerprint": self.fingerprint,
            "dtype": about["dtype"],
            "device": "remote" if lens.remote else lens.device.type,
            "backend": backend,
            "method": method,
            "numerics": NUMERICS,
            **self._identities["model"].settings,
        }
        if second := self._models.get("second"):
            shared["second"] = [self._identities["second"].fingerprint, str(second.dtype)]
        made = {"model": lens.name, "class": about["class"], "device": about["device"], "label": label}
        made |= provenance.environment() | provenance.where_and_when()
        stands_in = {"donor": self.donor_fingerprint} if self.donor_fingerprint else {}
        return Kept(self.store.entry(shared, label, made), (reference or {}) | stands_in)


def describe(kept: Sequence[Kept]) -> dict[str, Any] | None:
    """For the record: where rows came from, how many were read and computed, and the parts that hold them."""
    entries = [one for one in kept if one.entry]
    if not entries:
        return None
    return {
        "location": entries[0].entry.store.location,
        "rows_read": sum(one.n_read for one in entries),
        "rows_computed": sum(one.n_computed for one in entries),
        "parts": sorted({f"{k.entry.key}/{k.entry.label}/{name}" for k in entries for name in k.entry.used}),
    }


def digest(request: Any) -> str:
    """Address of a request: hash of its token ids and of how it is to be answered; of other values, of their text."""
    if isinstance(request, Loglikelihood):
        text = f"score {request.context} {request.continuation}"
    elif isinstance(request, Generate):
        text = f"write {request.context} {request.until} {request.max_new_tokens}"
    else:
        text = repr(request)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _columns(answer: Answer) -> tuple[float | None, bool | None, str | None]:
    return (None, None, answer) if isinstance(answer, str) else (answer.logprob, answer.is_greedy, None)
