"""Which documents of a task are run: the first so many, some by number, or all.

Choosing heads on one half of the documents and testing them on the other needs both halves by number
(``samples="0::2"`` and ``samples="1::2"``). Numbers are those of lm-eval's evaluation split, whichever are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from depthlens import arguments
from depthlens.errors import UserError

Some = str | Sequence[int]  # a slice as text, or numbers
Samples = Some | Mapping[str, Some]  # the same for all tasks, or by task


def check(limit: int | None, samples: Samples | None) -> None:
    """Check both options.

    Raises:
        UserError: both are given, or one is of the wrong kind.
    """
    arguments.check(limit=limit, samples=samples)
    if limit is not None and samples is not None:
        raise UserError(f"limit {limit} and samples {recorded(samples)!r} both choose documents; give one of them")


def chosen(name: str, task: Any, limit: int | None, samples: Samples | None) -> Sequence[int]:
    """Numbers of the documents of a task that are run, rising.

    Args:
        name: Name of the task.
        task: A loaded task, whose number of documents bounds the choice.
        limit: The first so many; more than there are mean all.
        samples: Numbers, or a slice as text as in Python (``"0:100:2"``, ``"1::2"``, ``"-50:"``), for all tasks or by
            task; a task that a mapping does not name keeps all documents.

    Raises:
        UserError: a document that the task does not have, or a slice without documents.
    """
    every = range(len(task.eval_docs))
    some = samples.get(name) if isinstance(samples, Mapping) else samples
    if some is None:
        return every[:limit]
    numbers = every[arguments.slice_of(some)] if isinstance(some, str) else sorted(map(int, some))
    if not numbers or numbers[-1] not in every:
        raise UserError(
            f"samples {recorded(some)!r}: task {name} has documents 0..{len(every) - 1}; give some of these"
        )
    return numbers


def recorded(samples: Samples | None) -> Any:
    """The choice for a record: a slice as text, numbers as a list."""
    if samples is None or isinstance(samples, str):
        return samples
    if isinstance(samples, Mapping):
        return {name: recorded(some) for name, some in samples.items()}
    if isinstance(samples, range):
        return f"{samples.start}:{samples.stop}:{samples.step}"
    return sorted(int(number) for number in samples)
