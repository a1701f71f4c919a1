"""What a store holds of one model and question, as answers to requests under conditions.

The address of a row is all that decides its answer: the model's fingerprint, dtype, kind of device, backend and the
version of the engine's arithmetic (these make the entry), the condition with what takes the place of the removed part,
and the request's token ids, which task, examples, document and option have determined. So another number of documents,
another metric of the same answers or another notebook asks for the same rows, and only missing rows are computed.
Numbers that are measured of single texts (`AnswerCache.numbers`) are rows as well: a number's name takes the place of
the condition.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from depthlens import progress as bars
from depthlens import provenance
from depthlens.ablations import Condition
from depthlens.store.answer_rows import AnswerRows
from depthlens.store.parts import Entry, Store, open_store

log = logging.getLogger(__name__)


# of the engine's arithmetic: raise it when a change moves scores by more than rounding
NUMERICS = 1
# answers are stored about so often, in seconds: stopping loses no more than that
KEEP_SECONDS = 10.0
Measure = Callable[[list[int]], Iterable[tuple[Sequence[int], np.ndarray]]]
Where = str | os.PathLike[str] | Store | None


class AnswerCache:
    """Answers of one model to one kind of question; without a store it stores nothing and has no answers.

    Args:
        entry: Where the answers are stored; None stores nothing.
        reference: Digest of what takes the place of parts under ``@mean`` and ``@resample``, by mode; of ``donor`` its
            fingerprint.
    """

    def __init__(self, entry: Entry | None = None, reference: Mapping[str, str] | None = None) -> None:
        self.entry = entry
        self.reference = reference or {}
        self._rows: list[AnswerRows] = []

    @property
    def n_read(self) -> int:
        """Answers that were read."""
        return sum(rows.n_known for rows in self._rows if rows.entry)

    @property
    def n_computed(self) -> int:
        """Answers that were computed."""
        return sum(rows.n_computed for rows in self._rows)

    def rows(self, requests: Sequence[Any], conditions: Sequence[Condition | str]) -> AnswerRows:
        """Answers to requests under conditions, with what is known already."""
        self._rows.append(self._look_up(requests, conditions))
        return self._rows[-1]

    def _look_up(self, requests: Sequence[Any], conditions: Sequence[Condition | str]) -> AnswerRows:
        return AnswerRows(self.entry, requests, conditions, [self.address(c) for c in conditions])

    def numbers(
        self,
        cases: Sequence[Any],
        names: Sequence[str],
        measure: Measure,
        *,
        desc: str,
        unit: str = "text",
        progress: bool = False,
    ) -> np.ndarray:
        """Numbers by name of each case (a request, a text), measured where they are not stored; shape [case, name].

        Args:
            cases: The `digest` of a case must contain all that decides its numbers and is not part of the entry.
            names: One for each number of a case.
            measure: Takes indices of cases and yields some of them with their numbers, shape [some, name].
            desc: Text of the bar.
            unit: What a case is, for the bar.
            progress: Show a bar.

        Raises:
            Interrupted: Ctrl-C; the message says what is stored.
        """
        if not cases or not names:
            return np.empty((len(cases), len(names)))
        rows = self.rows(cases, names)

        every, waiting, last = range(len(names)), list[int](), time.monotonic()
        missing = sorted({case for cases_of, _ in rows.missing() for case in cases_of})
        known = len(cases) - len(missing)
        options = {"total": len(cases), "initial": known, "desc": desc, "unit": unit, "disable": not progress}
        with bars.bar(**options) as bar, rows.shown_on(bar):
            try:
                for some, values in measure(missing) if missing else ():
                    for case, numbers in zip(some, values.tolist(), strict=True):
                        for name, number in enumerate(numbers):
                            rows.answers[name][case] = number
                    waiting += some
                    bar.update(len(some))
                    if time.monotonic() - last > KEEP_SECONDS:
                        rows.keep((name, case) for name in every for case in waiting)
                        waiting, last = [], time.monotonic()
            finally:
                rows.keep((name, case) for name in every for case in waiting)
        return np.array(rows.answers).T

    def lacks(self, requests: Sequence[Any], conditions: Sequence[Condition | str]) -> bool:
        """Whether an answer to some request under some condition is missing."""
        return not self.entry or bool(self._look_up(requests, conditions).unfinished)

    def address(self, condition: Condition | str) -> str:
        """A condition's text with the digests it depends on; a name of numbers as it is."""
        if isinstance(condition, str):
            return condition
        modes = sorted({a.mode for a in condition.ablations} & set(self.reference))
        return " ".join([str(condition), *(f"{mode}:{self.reference[mode]}" for mode in modes)])


class AnswerStore:
    """A store as one model sees it; make one for each experiment.

    The model is identified once, when it is first asked for, because reading the weights of an offloaded model takes
    long and errors in the request are reported before.

    Args:
        store: See `depthlens.store.parts.open_store`, which reports errors in it at once.
        lens: A loaded model (`depthlens.models.lens.Lens`).
        second: Another model that every value depends on. A model whose parts are transplanted (``lens.donor``) need
            not be named.
    """

    def __init__(self, store: Where, lens: Any, second: Any = None) -> None:
        self._opened = open_store(store)
        self._models = {"model": lens}
        if lens.donor:
            self._models["donor"] = lens.donor.lens
        if second is not None:
            self._models["second"] = second
        for model in self._models.values():
            model.bind()

    @cached_property
    def _identities(self) -> dict[str, Any]:
        return {role: model.identify() for role, model in self._models.items()}

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
        """None where there is none, or where a model's fingerprint does not cover all that decides its answers.

        Hooks, replaced methods and code of the user are such cases; a warning names the first.
        """
        for role, identity in self._identities.items() if self._opened else ():
            if identity.obstacle:
                name = self._models[role].name
                log.warning("store: model %s %s; results are neither read nor kept", name, identity.obstacle)
                return None
        return self._opened

    def entry(
        self, label: str, *, backend: str = "torch", method: str = "exact", reference: Mapping[str, str] | None = None
    ) -> AnswerCache:
        """What the store holds of the model and a question; a cache that stores nothing where there is no store.

        Args:
            label: Task, or what else is asked.
            backend: What applies the conditions.
            method: What the values are, where they are not the engine's own answers.
            reference: See `AnswerCache`.
        """
        if self.store is None:
            return AnswerCache()
        lens, identity = self._models["model"], self._identities["model"]
        about = lens.describe(identity.fingerprint)
        shared = {
            "fingerprint": identity.fingerprint,
            "dtype": about["dtype"],
            "device": "remote" if lens.remote else lens.device.type,
            "backend": backend,
            "method": method,
            "numerics": NUMERICS,
            **identity.settings,
        }
        if "second" in self._models:
            shared["second"] = [self._identities["second"].fingerprint, str(self._models["second"].dtype)]
        made = {"model": lens.name, "class": about["class"], "device": about["device"], "label": label}
        made |= provenance.environment() | provenance.where_and_when()
        donor = {"donor": self.donor_fingerprint} if self.donor_fingerprint else {}
        return AnswerCache(self.store.entry(shared, label, made), {**(reference or {}), **donor})


def cache_usage(caches: Sequence[AnswerCache]) -> dict[str, Any] | None:
    """For the record: where answers were stored, how many were read and computed, and the parts that hold them."""
    entries = [cache.entry for cache in caches if cache.entry]
    if not entries:
        return None
    return {
        "location": entries[0].store.location,
        "rows_read": sum(cache.n_read for cache in caches if cache.entry),
        "rows_computed": sum(cache.n_computed for cache in caches if cache.entry),
        "parts": sorted(set().union(*(entry.used for entry in entries))),
    }
