"""Numbers that are measured on one case after another, such as texts or prompts, and kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from depthlens import provenance
from depthlens.models.lens import Lens
from depthlens.store.answer_cache import AnswerCache, AnswerStore, cache_usage


def measured(
    cache: AnswerCache,
    cases: Sequence[Any],
    names: Sequence[str],
    measure: Callable[[int], np.ndarray],
    *,
    desc: str,
    shape: Sequence[int] = (-1,),
    unit: str = "text",
    progress: bool = False,
) -> np.ndarray:
    """Measure every case that the cache does not have.

    Args:
        cache: Where numbers are found and kept.
        cases: What each case is, as far as it decides the numbers: plain values, which the cache hashes.
        names: What each number is.
        measure: The numbers of the case with that index, in the order of ``names``.
        desc: What the progress bar says.
        shape: Of the numbers of a case.
        unit: What a case is called in the bar.
        progress: Show it.

    Returns:
        The numbers of all cases. Shape [case, *shape].
    """

    def run(members: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        for i in members:
            yield [i], measure(i).reshape(1, -1)

    values = cache.numbers(cases, names, run, desc=desc, unit=unit, progress=progress)
    return values.reshape(len(cases), *shape)


def made_record(lens: Lens, answers: AnswerStore, caches: Sequence[AnswerCache], **about: Any) -> dict[str, Any]:
    """What a record holds: the model, what the experiment says, use of the store, versions, time and machine."""
    record = {"model": lens.describe(answers.fingerprint), **about, "store": cache_usage(caches)}
    return record | provenance.environment() | provenance.where_and_when()
