"""What the documents of a result ask: the table behind `Result.questions`.

On disk it is a file of its own, ``questions.parquet``, beside ``docs.parquet``. A document is scored under every
condition and metric, so a column of ``docs.parquet`` would repeat its question in hundreds of rows.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from depthlens.analysis.result_folder import QUESTIONS_FILE
from depthlens.errors import UserError

FILE = QUESTIONS_FILE
KEY = ["task", "doc_id"]
COLUMNS = [*KEY, "question", "reference", "choices"]


def normalise(table: pd.DataFrame) -> pd.DataFrame:
    """The columns in order and of one type each; choices are lists of text, or None."""
    if lacking := [c for c in COLUMNS if c not in table.columns]:
        raise UserError(f"the table of questions lacks column {', '.join(lacking)}; it needs {', '.join(COLUMNS)}")
    choices = pd.Series([None if c is None else [str(o) for o in c] for c in table["choices"]], dtype=object)
    text = {"task": "str", "question": "str", "reference": "str", "doc_id": "int64"}
    return table[COLUMNS[:-1]].astype(text).reset_index(drop=True).assign(choices=choices)


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
    together = pd.concat(found, ignore_index=True).drop_duplicates([*KEY, "question", "reference"], ignore_index=True)
    clash = together[together.duplicated(KEY)]
    if len(clash):
        row = clash.iloc[0]
        raise UserError(
            f"the results disagree on what document {row['doc_id']} of task {row['task']!r} asks; name them apart"
        )
    return together
