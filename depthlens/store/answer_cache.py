"""What a store holds of one model and question, as answers to requests under conditions.

The address of a row is all that decides its answer: the model's fingerprint, dtype, kind of device, backend and the
version of the engine's arithmetic (these make the folder's key), the condition with what takes the place of the removed
part, and the request's token ids, which task, examples, document and option have determined. So another number of
documents, another metric of the same answers or another notebook asks for the same rows, and only missing rows are
computed.
Numbers that are measured of single texts (`AnswerCache.numbers`) are rows as well: a number's name takes the place of
the condition.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from depthlens import provenance
from depthlens.ablations import Condition, modes
from depthlens.errors import Interrupted
from depthlens.progress import Bar
from depthlens.store.parts import Store, open_store

log = logging.getLogger(__name__)


# of the engine's arithmetic: raise it when a change moves scores by more than rounding
NUMERICS = 1
# answers are stored about so often, in seconds: stopping loses no more than that
KEEP_SECONDS = 10.0
Where = str | os.PathLike[str] | Store | None
Row = tuple[int, int]  # condition, request
Measure = Callable[[list[int]], Iterable[tuple[Sequence[int], np.ndarray]]]
Product = tuple[list[int], list[int]]  # requests and conditions, each combination of which is a row


class AnswerRows:
    """Requests x conditions: which answers are known, and which are missing.

    Args:
        cache: Where answers are read and stored.
        requests: What is asked.
        conditions: Under which conditions; for numbers, their names.

    Attributes:
        addresses: What each condition is called in the store; "": nothing is kept under it.
        answers: Indexed [condition][request]; None where one is missing.
        n_known: How many answers were read at the start.
        computed: Rows that were computed.
    """

    def __init__(self, cache: AnswerCache, requests: Sequence[Any], conditions: Sequence[Any]) -> None:
        self.requests = requests
        self.conditions = conditions
        self._cache = cache
        self.addresses = [cache.address(c) for c in conditions]
        # equal requests (an option that two documents share) are one row of the store
        self._digests = [digest(request) if cache.store else "" for request in requests]
        named = {address for address in self.addresses if address}
        known = cache.store.read(cache.folder, named, {*self._digests}) if cache.store else {}
        self.answers: list[list[Any]] = [[known.get((c, r)) for r in self._digests] for c in self.addresses]
        self.n_known = sum(answer is not None for row in self.answers for answer in row)
        self.computed: set[Row] = set()
        self._waiting: list[Row] = []  # computed, and not stored yet
        self._last_stored = time.monotonic()

    @property
    def unfinished(self) -> list[int]:
        """Conditions that lack answers."""
        return [c for c, row in enumerate(self.answers) if None in row]

    def missing(self, members: Iterable[int] | None = None, group: Iterable[int] | None = None) -> list[Product]:
        """Rows that lack answers, as products: those of some requests under some conditions, or all.

        Conditions that lack the same requests are put together.
        """
        members = range(len(self.requests)) if members is None else list(members)
        found = defaultdict[tuple[int, ...], list[int]](list)
        for c in range(len(self.conditions)) if group is None else group:
            found[tuple(r for r in members if self.answers[c][r] is None)].append(c)
        return [([*requests], conditions) for requests, conditions in found.items() if requests]

    def keep(self, rows: Iterable[Row], *, wait: bool = False) -> None:
        """Store the answers that there are of some rows, each once.

        Args:
            rows: Condition and request.
            wait: Store them together with others, as soon as `KEEP_SECONDS` have passed.
        """
        new = {(c, r) for c, r in rows if self.answers[c][r] is not None} - self.computed
        self.computed |= new
        self._waiting += sorted((c, r) for c, r in new if self.addresses[c])
        if not wait or time.monotonic() - self._last_stored > KEEP_SECONDS:
            self._store()

    def _store(self) -> None:
        self._last_stored = time.monotonic()
        if (store := self._cache.store) and self._waiting:
            answers = {(self.addresses[c], self._digests[r]): self.answers[c][r] for c, r in self._waiting}
            store.write(self._cache.folder, self._cache.made, answers)
            self._waiting = []

    @contextmanager
    def kept_at_the_end(self) -> Iterator[None]:
        """At the end of the context, also after an error, all that was computed is stored.

        Raises:
            Interrupted: Ctrl-C; the message says how much is stored.
        """
        try:
            try:
                yield
            finally:
                self._store()
        except KeyboardInterrupt:
            told = "nothing is kept without a store; with one the same call goes on where it was stopped"
            if store := self._cache.store:
                n = self.n_known + len(self.computed) - len(self._waiting)
                rows = f"{n} of {len(self.requests) * len(self.conditions)} rows of {self._cache.made['label']}"
                told = f"{rows} are kept in {store.location}; run the same again to go on"
            raise Interrupted(told) from None


@dataclass(eq=False)
class AnswerCache:
    """Answers of one model to one kind of question; without a store it stores nothing and has no answers.

    Attributes:
        store: Where the answers are stored; None stores nothing.
        folder: Where in the store: KEY/LABEL.
        made: What all answers share, and what makes them now: written into every part.
        reference: Digest of what takes the place of parts under ``@mean`` and ``@resample``, by mode; of ``donor`` its
            fingerprint.
        asked: All rows that were asked for.
    """

    store: Store | None = None
    folder: str = ""
    made: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, str] = field(default_factory=dict)
    asked: list[AnswerRows] = field(default_factory=list)

    def rows(self, requests: Sequence[Any], conditions: Sequence[Condition | str]) -> AnswerRows:
        """Answers to requests under conditions, with what is known already."""
        self.asked.append(AnswerRows(self, requests, conditions))
        return self.asked[-1]

    def numbers(
        self, cases: Sequence[Any], names: Sequence[str], measure: Measure, *, progress: bool = False, **bar: str
    ) -> np.ndarray:
        """Numbers by name of each case (a request, a text), measured where they are not stored; shape [case, name].

        Args:
            cases: The `digest` of a case must contain all that decides its numbers and is not part of the folder's key.
            names: One for each number of a case.
            measure: Takes indices of cases and yields some of them with their numbers, shape [some, name].
            progress: Show a bar.
            bar: Its text (``desc``), and what a case is (``unit``).

        Raises:
            Interrupted: Ctrl-C; the message says what is stored.
        """
        rows = self.rows(cases, names)
        missing = sorted({case for of_names, _ in rows.missing() for case in of_names})
        shown = Bar(total=len(cases), initial=len(cases) - len(missing), disable=not progress, **bar)
        with shown, rows.kept_at_the_end():
            for some, values in measure(missing) if missing else ():
                for case, numbers in zip(some, values.tolist(), strict=True):
                    for name, number in enumerate(numbers):
                        rows.answers[name][case] = number
                rows.keep(product(range(len(names)), some), wait=True)
                shown.update(len(some))
        return np.array(rows.answers).reshape(len(names), len(cases)).T

    def address(self, condition: Condition | str) -> str:
        """A condition's text with the digests and keys it depends on; a name of numbers as it is.

        "" where the function of a mode of the user's own has no key.
        """
        if isinstance(condition, str):
            return condition
        keys = {**self.reference, **modes.keys(condition.modes)}
        used = sorted(condition.modes & set(keys))
        return "" if None in keys.values() else " ".join([str(condition), *(f"{name}:{keys[name]}" for name in used)])


class AnswerStore:
    """A store as one model sees it; make one for each experiment.

    The model is identified once, when it is first asked for, because reading the weights of an offloaded model takes
    long and errors in the request are reported before.

    Args:
        store: See `depthlens.store.parts.open_store`, which reports errors in it at once.
        lens: A loaded model (`depthlens.models.lens.Lens`).
    """

    def __init__(self, store: Where, lens: Any) -> None:
        self._opened = open_store(store)
        self._models = {"model": lens} | ({"donor": lens.donor} if lens.donor else {})
        self._entries: list[AnswerCache] = []

    @cached_property
    def identities(self) -> dict[str, Any]:
        """Of the model and its donor, by these roles."""
        return {role: model.identify() for role, model in self._models.items()}

    @cached_property
    def store(self) -> Store | None:
        """None where there is none, or where a model's fingerprint does not cover all that decides its answers.

        Hooks, replaced methods and code of the user are such cases; a warning names the first.
        """
        for role, identity in self.identities.items() if self._opened else ():
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
        lens, identity = self._models["model"], self.identities["model"]
        about = lens.describe(identity.fingerprint)
        shared = {
            "fingerprint": identity.fingerprint,
            "dtype": about["dtype"],
            "device": "remote" if lens.remote else lens.device.type,
            "backend": backend,
            "method": method,
            "numerics": NUMERICS,
            # its kernels and classes decide answers as our own arithmetic does
            "transformers": ".".join(str(provenance.version("transformers")).split(".")[:2]),
            **identity.settings,
        }
        key = hashlib.blake2b(json.dumps(shared, sort_keys=True, indent=2).encode(), digest_size=10).hexdigest()
        safe = "".join(c if c.isalnum() or c in "-_. " else "_" for c in label).strip(". ") or "_"
        made = {"model": lens.name, **about, **provenance.environment(), "label": label}
        donor = {"donor": self.identities["donor"].fingerprint} if "donor" in self.identities else {}
        self._entries.append(
            AnswerCache(self.store, f"{key}/{safe}", {**shared, **made}, {**(reference or {}), **donor})
        )
        return self._entries[-1]

    def record(self, **about: Any) -> dict[str, Any]:
        """What a record holds: the model, what the experiment says, use of the store, versions, time and machine."""
        asked = [rows for entry in self._entries for rows in entry.asked]
        read, computed = sum(rows.n_known for rows in asked), sum(len(rows.computed) for rows in asked)
        usage = {"location": self.store.location, "rows_read": read, "rows_computed": computed} if self.store else None
        model = self._models["model"].describe(self.identities["model"].fingerprint)
        return {"model": model, **about, "store": usage, **provenance.environment()}


def digest(request: Any) -> str:
    """Address of a request: hash of its token ids and of how it is to be answered; of other values, of their text."""
    return hashlib.blake2b(repr(request).encode(), digest_size=16).hexdigest()
