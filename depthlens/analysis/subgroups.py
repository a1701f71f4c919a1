"""Results by kinds of document: the same sweep, apart for documents that differ in a field of theirs.

Where in a context the asked key stands, how many steps a problem has, whether a model knows an answer without help: a
task's documents have such fields, and a sweep of all of them already holds the answer for each kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from depthlens.analysis.results import Result
from depthlens.errors import UserError, unknown


def kinds_of(task: Any, field: str, names: Mapping[Any, str] | None = None) -> dict[int, str]:
    """The kind of each document, by a field of it.

    Args:
        task: A task from `depthlens.tasks.harness.load_tasks`.
        field: Name of the field.
        names: What to call each value; values that are not named are left out. None: ``field value``.

    Returns:
        Kind by document id.

    Raises:
        UserError: the documents have no such field, or none has a value that is named.
    """
    found: dict[int, str] = {}
    for doc_id, doc in enumerate(task.eval_docs):
        if field not in doc:
            raise unknown(f"field of the documents of {task.config.task}", field, list(doc))
        if names is None or doc[field] in names:
            found[doc_id] = f"{field} {doc[field]}" if names is None else names[doc[field]]
    if not found:
        raise UserError(f"no document of {task.config.task} has a {field} among {', '.join(map(str, names or ()))}")
    return found


def thirds(task: Any, field: str) -> dict[int, str]:
    """The kind of each document by the size of a number in it: ``first``, ``middle`` or ``last`` third of its range.

    Raises:
        UserError: see `kinds_of`, or the field holds no numbers.
    """
    values = sorted({doc[field] for doc in task.eval_docs if isinstance(doc.get(field), int | float)})
    if not values:
        raise UserError(f"field {field!r} of the documents of {task.config.task} holds no numbers; use kinds_of")
    low, span = values[0], values[-1] - values[0] or 1
    words = ("first", "middle", "last")
    names = {v: f"{field} in the {words[min(2, int(3 * (v - low) / span))]} third" for v in values}
    found = kinds_of(task, field, names)
    order = [f"{field} in the {word} third" for word in words]
    return dict(sorted(found.items(), key=lambda item: (order.index(item[1]), item[0])))


def split(result: Result, task: str, kinds: Mapping[int, str]) -> Result:
    """One task of a result as several, one a kind of document: ``task, kind``.

    Args:
        result: Any result that holds the task.
        task: Its name.
        kinds: Kind by document id; documents without one are left out.

    Returns:
        A result of its own, of that task alone; p-values are corrected within each kind.

    Raises:
        UserError: the result has no such task, or no document with a kind.
    """
    one = result.select(tasks=task)
    kind = one.docs["doc_id"].map(dict(kinds))
    docs = one.docs[kind.notna()].assign(task=task + ", " + kind[kind.notna()])
    if docs.empty:
        n = one.docs["doc_id"].nunique()
        raise UserError(f"none of the {n} documents of {task} in the result has a kind")
    found = set(docs["task"])
    names = [name for name in dict.fromkeys(f"{task}, {k}" for k in kinds.values()) if name in found]
    docs = pd.concat([docs[docs["task"] == name] for name in names])
    about = one.record["tasks"][task]
    counts = docs.groupby("task")["doc_id"].nunique()
    tasks = {name: about | {"n_docs": int(counts[name])} for name in names}
    asked = None
    if one.asked is not None:
        asked = one.questions()
        kind = asked["doc_id"].map(dict(kinds))
        asked = asked[kind.notna()].assign(task=task + ", " + kind[kind.notna()])
    return Result(docs, one.record | {"tasks": tasks, "split": task}, asked)
