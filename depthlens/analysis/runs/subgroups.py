"""Results by kinds of document: the same sweep, apart for documents that differ in one of their fields.

The fields of a task's documents say where in a context the asked key is, how many steps a problem has, or whether a
model knows an answer without help. The documents of a group are those of several tasks. A sweep of all documents
already holds the answer for each kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from depthlens.analysis.result import questions
from depthlens.analysis.result.results import Result
from depthlens.errors import UserError, unknown


def kinds_by_third(task: Any, field: str) -> dict[int, str]:
    """The kind of each document by the size of a number in it: ``first``, ``middle`` or ``last`` third of its range.

    Args:
        task: A task from `depthlens.load_tasks`.
        field: Name of the field that has the number; documents without one are left out.

    Returns:
        Kind by document id.

    Raises:
        UserError: no document has such a number.

    Example:
        >>> task = dl.load_tasks("kv_retrieval_8")["kv_retrieval_8"]
        >>> sorted(set(dl.analysis.kinds_by_third(task, "position").values()))
        ['position in the first third', 'position in the last third', 'position in the middle third']
    """
    docs = list(task.eval_docs)
    values = pd.Series({i: doc[field] for i, doc in enumerate(docs) if isinstance(doc.get(field), int | float)})
    if values.empty:
        raise unknown(f"field of the documents of {task.config.task}", field, list(docs[0]))
    thirds = ((values - values.min()) / (np.ptp(values) or 1) * 3).astype(int).clip(upper=2).sort_values(kind="stable")
    return {int(i): f"{field} in the {('first', 'middle', 'last')[third]} third" for i, third in thirds.items()}


def kinds_by_subtask(result: Result, task: str) -> dict[int, str]:
    """The kind of each document of a group: the task that it is of, such as ``mmlu_anatomy``.

    Args:
        result: A result that holds the group.
        task: Its name.

    Returns:
        Kind by document id.

    Raises:
        UserError: the result has no such task, or it is no group.

    Example:
        >>> dl.analysis.kinds_by_subtask(subjects, "mmlu")
        {0: 'mmlu_anatomy', 1: 'mmlu_anatomy', 2: 'mmlu_virology', 3: 'mmlu_virology'}
    """
    result = result.select(tasks=task)
    if (found := questions.subtasks(result.docs, result.asked, task)) is None:
        raise UserError(f"task {task} is no group with a score of its own; name one, such as mmlu")
    return {int(doc_id): str(name) for doc_id, name in found.items()}


def split_by_kind(result: Result, task: str, kinds: Mapping[int, str]) -> Result:
    """One task of a result as several, one per kind of document: ``task, kind``.

    Args:
        result: Any result that holds the task.
        task: Its name.
        kinds: Kind by document id, such as ``{i: doc["type"] for i, doc in enumerate(loaded.eval_docs)}``; documents
            without one are left out.

    Returns:
        A result of that task alone; p-values are corrected within each kind.

    Raises:
        UserError: the result has no such task.

    Example:
        >>> kinds = dl.analysis.kinds_by_subtask(subjects, "mmlu")
        >>> dl.analysis.split_by_kind(subjects, "mmlu", kinds).docs["task"].unique().tolist()
        ['mmlu, mmlu_anatomy', 'mmlu, mmlu_virology']
    """
    chosen = result.select(tasks=task)
    docs = _renamed(chosen.docs, kinds)
    counts = docs.groupby("task")["doc_id"].nunique()
    names = [name for name in dict.fromkeys(f"{task}, {kind}" for kind in kinds.values()) if name in counts]
    docs = pd.concat([docs[docs["task"] == name] for name in names])
    tasks = {name: chosen.record["tasks"][task] | {"n_docs": int(counts[name])} for name in names}
    asked = None if chosen.asked is None else _renamed(chosen.questions(), kinds)
    return Result(docs, chosen.record | {"tasks": tasks, "split": task}, asked)


def _renamed(table: pd.DataFrame, kinds: Mapping[int, str]) -> pd.DataFrame:
    """The rows of documents with a kind, which is added to the task's name."""
    kind = table["doc_id"].map(dict(kinds))
    table = table[kind.notna()]
    return table.assign(task=table["task"] + ", " + kind[kind.notna()])
