"""What the documents of a result ask: the table behind `Result.questions`.

On disk it is a file of its own, ``questions.parquet``, beside ``docs.parquet``. A document is scored under every
condition and metric, so a column of ``docs.parquet`` would repeat its question in hundreds of rows.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from depthlens.errors import UserError

KEY = ["task", "doc_id"]
COLUMNS = [*KEY, "question", "reference", "choices"]
HASH = "doc_hash"  # see `depthlens.tasks.prepared_task.identity`; NA in results that were saved before it was recorded
SUBTASK = "subtask"  # of a group, the task that the document is of (`depthlens.tasks.harness`); NA elsewhere
FIELDS = "fields"  # what documents can be grouped by, as JSON; NA in results that were saved before it was recorded
_OPTIONAL = (HASH, SUBTASK, FIELDS)
SUBJECTS_AS_UNITS = 6  # or more; where 5 lose everything, the 2**5 sign flips still leave a p-value above 0.05


def normalise(table: pd.DataFrame) -> pd.DataFrame:
    """The columns in order and of one type each; choices are lists of text, or None; optional ones text, or NA."""
    choices = pd.Series([None if c is None else [str(o) for o in c] for c in table["choices"]], dtype=object)
    text = {"task": "str", "question": "str", "reference": "str", "doc_id": "int64"}
    optional = {c: table[c].reset_index(drop=True) if c in table.columns else pd.NA for c in _OPTIONAL}
    table = table[COLUMNS[:-1]].astype(text).reset_index(drop=True).assign(choices=choices, **optional)
    return table.astype(dict.fromkeys(_OPTIONAL, "string"))


def of(table: pd.DataFrame, docs: pd.DataFrame) -> pd.DataFrame:
    """The questions of the documents that a table of scores holds."""
    return docs[KEY].drop_duplicates().merge(table, on=KEY).reset_index(drop=True)


def joined(tables: Iterable[pd.DataFrame | None]) -> pd.DataFrame | None:
    """The questions of several results; None where none has any.

    Raises:
        UserError: two results ask something else in one document.
    """
    found = [table for table in tables if table is not None]
    if not found:
        return None
    together = pd.concat(found, ignore_index=True)
    together = together.drop_duplicates([*KEY, "question", "reference"]).reset_index(drop=True)
    for row in together[together.duplicated(KEY)].itertuples():
        fault = f"the results disagree on what document {row.doc_id} of task {row.task!r} asks"
        raise UserError(f"{fault}; name them apart")
    return together


def identities_and_units(docs: pd.DataFrame, asked: pd.DataFrame | None, task: str) -> tuple[pd.Series, pd.Series]:
    """What each document of a task is, and what it is independent of the others by.

    Document 7 of one task is not document 7 of another, so that documents of two tasks are paired by identity: the
    document's hash, or ``task:doc_id`` where that is not known. A document that a task has twice is numbered.

    The units are questions, or the subjects of a group of tasks. Documents of one question are one unit, whether a task
    holds it twice or two tasks ask it. Of fewer than `SUBJECTS_AS_UNITS` nothing could be shown, and questions are the
    units: what is found holds for these subjects.

    Args:
        docs: Scores of a result.
        asked: Its questions; None where they are not known.
        task: Name of the task.

    Returns:
        Two texts for each document, by rising document id.
    """
    ids = pd.Index(np.unique(docs.loc[docs["task"] == task, "doc_id"]), name="doc_id")
    names = pd.Series([f"{task}:{i}" for i in ids], index=ids, dtype="str")
    if asked is not None:
        known = asked[asked["task"] == task].set_index("doc_id")[HASH].reindex(ids)
        names = known.where(known.notna(), names).astype("str")
    again = names.groupby(names).cumcount()
    numbered = names.where(again == 0, names + "#" + (again + 1).astype("str"))
    subjects = subtasks(docs, asked, task)
    few = subjects is None or subjects.nunique() < SUBJECTS_AS_UNITS
    return numbered, names if few else subjects


def subtasks(docs: pd.DataFrame, asked: pd.DataFrame | None, task: str) -> pd.Series | None:
    """The task of its group that each document is of, by rising document id; None where the task is no group."""
    if asked is None:
        return None
    rows = asked[(asked["task"] == task) & asked[SUBTASK].notna()]
    ids = sorted(docs.loc[docs["task"] == task, "doc_id"].unique())
    return rows.set_index("doc_id")[SUBTASK].loc[ids].astype("str") if len(rows) else None
