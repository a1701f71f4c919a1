"""The table of documents of a result: its columns, their types, and which rows are wanted."""

from __future__ import annotations

import pandas as pd

from depthlens.analysis.stats import GROUP
from depthlens.errors import UserError, first_line, unknown

DOCS_COLUMNS = [*GROUP, "condition", "layer", "head", "doc_id", "value", "response"]
PARSED = "parsed"  # whether a written answer could be read; may be left out where it is not known
COMPLETE = "complete"  # whether a written answer ended before it had as many tokens as were allowed; NA elsewhere
_OPTIONAL = (PARSED, COMPLETE)
_DTYPES = {"layer": "Int64", "head": "Int64", "doc_id": "int64", "value": "float64"}


def normalise(docs: pd.DataFrame) -> pd.DataFrame:
    """The columns in order and of one type each; ``parsed`` and ``complete`` are NA where it says neither.

    Raises:
        UserError: a column is missing or unknown, has an empty cell, or is of the wrong type.
    """
    missing = [c for c in DOCS_COLUMNS if c not in docs.columns]
    extra = [str(c) for c in docs.columns if c not in (*DOCS_COLUMNS, *_OPTIONAL)]
    if missing or extra:
        fault = f"lacks column {', '.join(missing)}" if missing else f"has unknown column {', '.join(extra)}"
        needed = f"it needs exactly {', '.join(DOCS_COLUMNS)}, and may have {' and '.join(_OPTIONAL)}"
        raise UserError(f"the table of documents {fault}; {needed}")
    for column in (*GROUP, "condition", "doc_id", "response"):
        if docs[column].isna().any():
            raise UserError(f"the table of documents has a row without {column}; every row needs one")
    docs = docs.assign(**{column: pd.NA for column in _OPTIONAL if column not in docs.columns})
    text = {c: "str" for c in (*GROUP, "condition", "response")}
    types = {**text, **_DTYPES, **dict.fromkeys(_OPTIONAL, "boolean")}
    try:
        return docs[[*DOCS_COLUMNS, *_OPTIONAL]].astype(types).reset_index(drop=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"the table of documents has a column of the wrong type: {first_line(error)}") from error


def only(docs: pd.DataFrame, column: str, name: str | None) -> str:
    """The name that is asked for, or the only one that there is.

    Raises:
        UserError: there are several and none is asked for, or there is none of that name.
    """
    names = list(docs[column].unique())
    if name is None:
        if len(names) > 1:
            raise UserError(f"there are several {column}s; name one of {', '.join(names)}")
        return names[0]
    if name not in names:
        raise unknown(column, name, names)
    return name


def table(docs: pd.DataFrame, values: str, task: str, metric: str, model: str | None = None) -> pd.DataFrame:
    """One column of values of a model, task and metric: documents (rows, by rising id) x conditions.

    Raises:
        UserError: there is no such task, metric or model, or several models and none is named.
    """
    for column, name in (("model", model), ("task", task), ("metric", metric)):
        name = only(docs, column, name)
        docs = docs[docs[column] == name]
    wide = docs.pivot(index="doc_id", columns="condition", values=values)
    return wide[list(docs["condition"].unique())]
