"""A small result that is known by heart: tables of documents and records for tests of results."""

from __future__ import annotations

import pandas as pd

from depthlens.analysis.results import DOCS_COLUMNS, Result

ACC = {"higher_is_better": True, "chance": 0.25, "binary": True}


def docs_of(values: dict[str, list[float]], *, task="capitals", metric="acc", model="tiny") -> pd.DataFrame:
    rows = []
    for condition, column in values.items():
        layer = int(condition[1:].split(".")[0]) if condition != "baseline" else pd.NA
        for doc_id, value in enumerate(column):
            rows.append((model, task, metric, condition, layer, pd.NA, doc_id, float(value), f"é{value}"))
    return pd.DataFrame(rows, columns=DOCS_COLUMNS)


def record_of(**tasks: dict) -> dict:
    entry = {"version": 1, "num_fewshot": 0, "output_type": "multiple_choice"}
    return {
        "model": {"name": "tiny", "n_layers": 4},
        "seed": 0,
        "tasks": {task: {**entry, "metrics": metrics} for task, metrics in tasks.items()},
    }


def same_documents(result: Result) -> Result:
    """The result with questions that say: document i of one task is document i of every other."""
    asked = result.docs[["task", "doc_id"]].drop_duplicates().assign(question="?", reference="!", choices=None)
    return Result(result.docs, result.record, asked.assign(doc_hash=[f"document {i}" for i in asked["doc_id"]]))


def capitals_and_elements() -> Result:
    """`capitals` 18/20 at baseline, L0 fatal, L1 harmless; `elements` 5/20, which is chance."""
    good = [1] * 18 + [0, 0]
    docs = pd.concat(
        [
            docs_of({"baseline": good, "L0": [0] * 20, "L1": [0] + good[1:]}),
            docs_of({"baseline": [1] * 5 + [0] * 15, "L0": [0] * 20, "L1": [1] * 20}, task="elements"),
        ]
    )
    return Result(docs, record_of(capitals={"acc": ACC}, elements={"acc": ACC}))
