"""What a store holds of one model and question, as answers to requests under conditions.

A row's address is all that decides its answer: the model's fingerprint, dtype, kind of device, backend, version of the
engine's arithmetic (these make the entry), the condition with what stands in for the removed part, and the request's
token ids, in which task, examples, document and option have already gone. So another number of documents, another
metric of the same answers or another notebook asks for the same rows, and only what is missing is computed. Numbers
that are measured of single texts (`AnswerCache.numbers`) are rows, too: a number's name stands where conditions do.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from depthlens import progress as bars
from depthlens import provenance
from depthlens.ablations import Condition
from depthlens.errors import Interrupted
from depthlens.requests import LoglikelihoodAnswer
from depthlens.store.answer_rows import AnswerRows
from depthlens.store.parts import Entry, Store, open_store

log = logging.getLogger(__name__)

# of the engine's arithmetic: raise it when a change moves scores by more than rounding
NUMERICS = 1
# what is computed is kept about so often, in seconds: stopping loses no more
KEEP_SECONDS = 10.0
Where = str | os.PathLike[str] | Store | None


class AnswerCache:
    """Answers of one model to one kind of question; without a store it keeps nothing and finds nothing.

    Args:
        entry: Where they are kept; None keeps nothing.
        reference: Digest of what stands in for parts under ``@mean`` and ``@resample``, by mode; ``donor``'s is its
            fingerprint.
    """

    def __init__(self, entry: Entry | None = None, reference: dict[str, str] | None = None) -> None:
        self.entry = entry
        self.reference = reference or {}
        self._asked: list[AnswerRows] = []

    @property
    def n_read(self) -> int:
        """AnswerRows that were found."""
        return sum(rows.n_read for rows in self._asked)

    @property
    def n_computed(self) -> int:
        """AnswerRows that were computed."""
        return sum(rows.n_computed for rows in self._asked)

    def rows(self, requests: Sequence[Any], conditions: Sequence[Condition | str]) -> AnswerRows:
        """Start on requests under conditions, with what is known already."""
        self._asked.append(self._look(requests, conditions))
        return self._asked[-1]

    def _look(self, requests: Sequence[Any], conditions: Sequence[Condition | str]) -> AnswerRows:
        return AnswerRows(self.entry, requests, conditions, [self.address(c) for c in conditions])

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
                            rows.answers[name][case] = LoglikelihoodAnswer(value, False)
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
        return not self.entry or bool(self._look(requests, conditions).unfinished)

    def address(self, condition: Condition | str) -> str:
        """A condition's text with what it depends on; other names of values stand for themselves."""
        if isinstance(condition, str):
            return condition
        modes = sorted({a.mode for a in condition.ablations} & set(self.reference))
        return " ".join([str(condition), *(f"{mode}:{self.reference[mode]}" for mode in modes)])


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
    ) -> AnswerCache:
        """What the store holds of the model and a question; one that keeps nothing where there is no store.

        Args:
            label: Task, or what else is asked.
            backend: What applies the conditions.
            method: What the values are, where they are not the engine's own answers.
            reference: See `AnswerCache`.
        """
        if self.store is None:
            return AnswerCache()
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
        return AnswerCache(self.store.entry(shared, label, made), (reference or {}) | stands_in)


def describe(kept: Sequence[AnswerCache]) -> dict[str, Any] | None:
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
