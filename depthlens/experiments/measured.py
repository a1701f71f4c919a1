"""Numbers that are measured on one case after another, such as texts or prompts, and kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from depthlens.store.answer_cache import AnswerCache


def one_by_one(
    cache: AnswerCache,
    cases: Sequence[Any],
    names: Sequence[str],
    measure: Callable[[int], np.ndarray],
    *,
    desc: str,
    unit: str,
    progress: bool,
) -> Float[np.ndarray, "case name"]:
    """Measure every case that the cache does not have.

    Args:
        cache: Where numbers are found and kept.
        cases: What each case is, as far as it decides the numbers: plain values, which the cache hashes.
        names: What each number is.
        measure: The numbers of the case with that index, in the order of ``names``, of any shape.
        desc: What the progress bar says.
        unit: What a case is called in it.
        progress: Show it.
    """

    def run(members: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        for i in members:
            yield [i], measure(i).reshape(1, -1)

    return cache.numbers(cases, names, run, desc=desc, unit=unit, progress=progress)
