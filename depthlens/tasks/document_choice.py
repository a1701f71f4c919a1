"""Which documents of a task are run: the first so many, some by number, or all.

Choosing heads on one half of the documents and testing them on the other needs both halves by number
(``samples="0::2"`` and ``samples="1::2"``). Numbers are those of lm-eval's evaluation split, whichever are chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from depthlens import arguments
from depthlens.errors import UserError, unknown

Some = str | Sequence[int]  # a slice as text, or numbers
Samples = Some | Mapping[str, Some]  # the same for all tasks, or by task


def check(limit: int | None, samples: Samples | None, tasks: Iterable[str] | None = None) -> None:
    """Check both options; ``tasks`` are the names that a mapping may have.

    Raises:
        UserError: both are given, one is of the wrong kind, or a mapping names another task.
    """
    arguments.check(limit=limit, samples=samples)
    if limit is not None and samples is not None:
        raise UserError(f"limit {limit} and samples {recorded(samples)!r} both choose documents; give one of them")
    for name in samples if isinstance(samples, Mapping) and tasks is not None else ():
        if name not in (known := list(tasks or ())):
            raise unknown("task in samples", name, known)


def chosen(name: str, task: Any, limit: int | None, samples: Samples | None) -> Sequence[int] | None:
    """Numbers of the documents of a task that are run, rising; None: all.

    Args:
        name: Name of the task.
        task: A loaded task, whose number of documents bounds the choice.
        limit: The first so many; more than there are mean all.
        samples: Numbers, or a slice as text as in Python (``"0:100:2"``, ``"1::2"``, ``"-50:"``), for all tasks or by
            task; a task that a mapping does not name keeps all documents.

    Raises:
        UserError: a document that the task does not have, or a slice without documents.
    """
    if limit is not None:
        return range(min(limit, len(task.eval_docs)))
    if isinstance(samples, Mapping):
        samples = samples.get(name)
    if samples is None:
        return None
    n_docs = len(task.eval_docs)
    if isinstance(samples, str):
        numbers: Sequence[int] = range(*arguments.slice_of(samples).indices(n_docs))
        if not numbers:
            raise UserError(f"samples {samples!r}: task {name} has no such documents; it has 0..{n_docs - 1}")
        return numbers
    if max(samples) >= n_docs:
        fault = f"document {max(samples)} does not exist; task {name} has 0..{n_docs - 1}"
        raise UserError(f"samples: {fault}; name others, or a slice such as '0::2'")
    return sorted(int(number) for number in samples)


def recorded(samples: Samples | None) -> Any:
    """The choice for a record: a slice as text, numbers as a list."""
    if samples is None or isinstance(samples, str):
        return samples
    if isinstance(samples, Mapping):
        return {name: recorded(some) for name, some in samples.items()}
    if isinstance(samples, range):
        return f"{samples.start}:{samples.stop}:{samples.step}"
    return sorted(int(number) for number in samples)
