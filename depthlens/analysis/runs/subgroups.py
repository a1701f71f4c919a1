"""Results by kinds of document: the same sweep, apart for documents that differ in one of their fields.

The fields of a task's documents say where in a context the asked key is, how many steps a problem has, or whether a
model knows an answer without help. The documents of a group are those of several tasks. A sweep of all documents
already holds the answer for each kind.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from depthlens.analysis.result import questions
from depthlens.analysis.result.results import Result
from depthlens.errors import UserError


def split(result: Result, task: str, kinds: Mapping[int, str] | None = None) -> Result:
    """See `depthlens.Result.split`.

    Raises:
        UserError: the result has no such task; or no kinds are given, and it is no group.
    """
    chosen = result.select(tasks=task)
    subtasks = questions.subtasks(chosen.docs, chosen.asked, task) if kinds is None else pd.Series(kinds)
    if subtasks is None:
        raise UserError(f"task {task} is no group with a score of its own; name one, such as mmlu")
    names = task + ", " + subtasks.dropna().astype(str)  # by document

    def renamed(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(task=table["doc_id"].map(names)).dropna(subset="task")

    docs = renamed(chosen.docs)
    counts = docs.groupby("task")["doc_id"].nunique()
    found = [name for name in names.unique() if name in counts]
    docs = pd.concat([docs[docs["task"] == name] for name in found])
    tasks = {name: chosen.record["tasks"][task] | {"n_docs": int(counts[name])} for name in found}
    asked = None if chosen.asked is None else renamed(chosen.questions())
    return Result(docs, chosen.record | {"tasks": tasks, "split": task}, asked)
