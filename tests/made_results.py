"""The one maker of made-up results: scores of documents by task and condition, and a record that says what they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from depthlens.analysis.results import DOCS_COLUMNS, Result

ACC = {"higher_is_better": True, "chance": 0.25, "binary": True}
HEAD, LAYER = re.compile(r"L(\d+)\.H(\d+)[^+]*"), re.compile(r"L(\d+)([.\[@][^+]*)?")


def docs_of(scores: Mapping[str, Sequence[float]], *, task="capitals", metric="acc", model="tiny") -> pd.DataFrame:
    """Documents of one task and metric from {condition: one score a document}; conditions tell layer and head."""
    rows = []
    for condition, values in scores.items():
        head, layer = HEAD.fullmatch(condition), LAYER.fullmatch(condition)
        place = (int(head[1]), int(head[2])) if head else (int(layer[1]) if layer else pd.NA, pd.NA)
        for i, v in enumerate(values):
            rows.append((model, task, metric, condition, *place, i, float(v), f"é{v}"))
    return pd.DataFrame(rows, columns=DOCS_COLUMNS)


def record_of(**tasks: dict) -> dict:
    """A record of tasks, of which each is said by its metrics."""
    entry = {"version": 1, "num_fewshot": 0, "output_type": "multiple_choice"}
    told = {task: {**entry, "metrics": metrics} for task, metrics in tasks.items()}
    return {"model": {"name": "tiny", "n_layers": 4}, "seed": 0, "tasks": told}


def result(tasks, *, metric="acc", model="m", n_layers=6, n_heads=4, n_kv_heads=4, info=(), **record) -> Result:
    """A result of {task: {condition: one score a document}}.

    Args:
        tasks: Scores; the first condition is usually ``baseline``.
        metric: Of all tasks.
        model: Its name.
        n_layers: Of the model.
        n_heads: Of each layer.
        n_kv_heads: Of each layer.
        info: More or else than `ACC` of what the record says of the metric.
        record: More or else of the record.
    """
    docs = pd.concat([docs_of(scores, task=task, metric=metric, model=model) for task, scores in tasks.items()])
    dims = {"n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
    made = record_of(**{task: {metric: ACC | dict(info)} for task in tasks})
    return Result(docs, made | {"model": {"name": model, "dims": dims}} | record)


def same_documents(made: Result) -> Result:
    """The result with questions that say: document i of one task is document i of every other."""
    asked = made.docs[["task", "doc_id"]].drop_duplicates().assign(question="?", reference="!", choices=None)
    return Result(made.docs, made.record, asked.assign(doc_hash=[f"document {i}" for i in asked["doc_id"]]))


def capitals_and_elements() -> Result:
    """`capitals` 18/20 at baseline, L0 fatal, L1 harmless; `elements` 5/20, which is chance."""
    good = [1] * 18 + [0, 0]
    capitals = docs_of({"baseline": good, "L0": [0] * 20, "L1": [0] + good[1:]})
    elements = docs_of({"baseline": [1] * 5 + [0] * 15, "L0": [0] * 20, "L1": [1] * 20}, task="elements")
    return Result(pd.concat([capitals, elements]), record_of(capitals={"acc": ACC}, elements={"acc": ACC}))
