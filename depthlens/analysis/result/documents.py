"""The table of documents of a result: its columns, their types, and which rows are wanted."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from depthlens.analysis.numbers.stats import GROUP
from depthlens.errors import UserError, unknown
from depthlens.metrics import ACC_NORM, LENGTH_NORMALISED, LOGPROBS

DOCS_COLUMNS = [*GROUP, "condition", "layer", "head", "doc_id", "value", "response"]
PARSED = "parsed"  # whether a written answer could be read; may be left out where it is not known
COMPLETE = "complete"  # whether a written answer ended before it had as many tokens as were allowed; NA elsewhere
MARGIN = (
    "margin"  # of the whole model: log-likelihood of the right option minus that of the best wrong one; NaN elsewhere
)
FLEXIBLE = "flexible-extract"
_OPTIONAL = (PARSED, COMPLETE, MARGIN)
_TEXTS = (*GROUP, "condition", "response")
_DTYPES = dict.fromkeys(_TEXTS, "str") | dict.fromkeys((PARSED, COMPLETE), "boolean")
_DTYPES |= {"layer": "Int64", "head": "Int64", "doc_id": "int64", "value": "float64", MARGIN: "float32"}


def normalise(docs: pd.DataFrame) -> pd.DataFrame:
    """The columns in order and of one type each; ``parsed``, ``complete`` and ``margin`` are NA where it says none.

    Raises:
        UserError: a column is missing, or has an empty cell.
    """
    docs = docs.reindex(columns=[*DOCS_COLUMNS, *_OPTIONAL])
    if lacking := [c for c in (*_TEXTS, "doc_id") if docs[c].isna().any()]:
        fault = f"the table of documents lacks column {lacking[0]}, or a value in it"
        raise UserError(f"{fault}; it needs {', '.join(DOCS_COLUMNS)}")
    return docs.astype(_DTYPES).reset_index(drop=True)


def only(docs: pd.DataFrame, column: str, name: str | None) -> str:
    """The name that is asked for, or the only one that there is.

    Raises:
        UserError: there are several and none is asked for, or there is none of that name.
    """
    names = list(docs[column].unique())
    if name is None and len(names) > 1:
        raise UserError(f"there are several {column}s; name or select one of {', '.join(names)}")
    if name is not None and name not in names:
        raise unknown(column, name, names)
    return names[0] if name is None else name


def table(docs: pd.DataFrame, values: str, task: str, metric: str) -> pd.DataFrame:
    """One column of values of a task and metric: documents (rows, by rising id) x conditions.

    Raises:
        UserError: there is no such task or metric.
    """
    for column, name in (("task", task), ("metric", metric)):
        name = only(docs, column, name)
        docs = docs[docs[column] == name]
    wide = docs.pivot(index="doc_id", columns="condition", values=values)
    return wide[list(docs["condition"].unique())]


def headline(task: str, metrics: Sequence[str]) -> str:
    """The metric of a task that stands for it: its first own one, read by ``flexible-extract`` where that exists.

    ``acc_norm`` stands for the tasks of `depthlens.metrics.LENGTH_NORMALISED`. A log-likelihood that depthlens adds
    (`depthlens.metrics.LOGPROBS`) is chosen only where there is nothing else.

    Args:
        task: Its name, or that of some of its documents (`depthlens.Result.split`).
        metrics: Those that were measured.
    """
    if task.partition(",")[0] in LENGTH_NORMALISED and ACC_NORM in metrics:
        return ACC_NORM
    first = next((metric for metric in metrics if metric not in LOGPROBS), metrics[0])
    flexible = f"{first.partition(',')[0]},{FLEXIBLE}"
    return flexible if flexible in metrics else first
