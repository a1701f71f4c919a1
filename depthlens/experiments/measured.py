"""Numbers that are measured on one case after another, such as texts or prompts, and kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthlens import provenance
from depthlens.analysis.means import mean
from depthlens.models.lens import Lens
from depthlens.store.answer_cache import AnswerCache, AnswerStore, Where, cache_usage


def measured(
    lens: Lens,
    cases: Sequence[Any],
    names: Sequence[str],
    measure: Callable[[int], np.ndarray],
    *,
    label: str,
    method: str,
    store: Where,
    shape: Sequence[int] = (-1,),
    unit: str = "text",
    progress: bool = False,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Measure every case that the store does not have.

    Args:
        lens: The model.
        cases: What each case is, as far as it decides the numbers: plain values, which the store hashes.
        names: What each number is.
        measure: The numbers of the case with that index, in the order of ``names``.
        label: Of what the store has numbers.
        method: What the numbers are; the progress bar says it, too.
        store: Where numbers are found and kept.
        shape: Of the numbers of a case.
        unit: What a case is called in the bar.
        progress: Show it.

    Returns:
        The numbers of all cases, of shape [case, *shape], and what a record holds of them.
    """
    answers = AnswerStore(store, lens)
    cache = answers.entry(label, method=method)

    def run(members: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        for i in members:
            yield [i], measure(i).reshape(1, -1)

    values = cache.numbers(cases, names, run, desc=method, unit=unit, progress=progress)
    return values.reshape(len(cases), *shape), made_record(lens, answers, [cache])


def made_record(lens: Lens, answers: AnswerStore, caches: Sequence[AnswerCache], **about: Any) -> dict[str, Any]:
    """What a record holds: the model, what the experiment says, use of the store, versions, time and machine."""
    record = {"model": lens.describe(answers.fingerprint), **about, "store": cache_usage(caches)}
    return record | provenance.environment() | provenance.where_and_when()


def means_of_cases(name: str, values: np.ndarray, limits: tuple[float, float], prefix: str = "ci_") -> pd.DataFrame:
    """Means over cases and the ends of their 95% intervals: a row a number, of values of shape [case, number]."""
    found = mean(values, bounded=False)
    low, high = np.clip(found.interval(), *limits)
    return pd.DataFrame({name: found.value, f"{prefix}low": low, f"{prefix}high": high})
