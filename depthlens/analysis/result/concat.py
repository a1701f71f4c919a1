"""Several results as one, and one as several: a sweep of all documents holds the answer for each kind of document."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pandas as pd

from depthlens.analysis.numbers.stats import BASELINE, GROUP
from depthlens.analysis.result import questions
from depthlens.analysis.result.folder import mismatches
from depthlens.analysis.result.results import Result
from depthlens.errors import UserError


def concat(results: Sequence[Result]) -> Result:
    """Join results of one model on different tasks or kinds of condition into one.

    A document scored twice under one condition (the baseline, which every sweep computes) is kept once if
    both scores are equal. In the record, what all results agree on stays at the top; the records themselves
    are kept under ``parts``.

    Raises:
        UserError: two results are of different models, or disagree on a score or on what a task is.

    Example:
        >>> attention = dl.layer_sweep(lens, "organism_one_hop", site="attn", limit=12)
        >>> dl.concat([result, attention]).summary["condition"].nunique()
        13
    """
    if not results:
        raise UserError("results []: give at least one result to join")
    key = [*GROUP, "condition", "doc_id"]
    docs = pd.concat([r.docs for r in results], ignore_index=True)
    docs = docs.drop_duplicates([*key, "value"], ignore_index=True)
    clash = docs[docs.duplicated(key)]
    if len(clash):
        first = " ".join(map(str, clash.iloc[0][key]))
        fault = f"the results disagree on {len(clash)} scores, first on {first}"
        raise UserError(f"{fault}; join results of the same settings")
    parts = [r.record for r in results]
    record = _agreed(parts) | {"tasks": _joined_tasks(parts), "parts": parts}
    if any("selected_conditions" in r for r in parts):
        record["selected_conditions"] = docs.loc[docs["condition"] != BASELINE, "condition"].nunique()
    joined = Result(docs, record, questions.joined(r.asked for r in results))
    _ = joined.summary  # documents that do not match are refused here, not at the first plot
    return joined


def split(result: Result, task: str) -> Result:
    """See `depthlens.Result.split`.

    Raises:
        UserError: the result has no such task, or it is no group.
    """
    chosen = result.select(tasks=task)
    subtasks = questions.subtasks(chosen.docs, chosen.asked, task)
    if subtasks is None:
        raise UserError(f"task {task} is no group with a score of its own; name one, such as mmlu")
    names = task + ", " + subtasks  # by document
    docs, asked = (table.assign(task=table["doc_id"].map(names)) for table in (chosen.docs, chosen.questions()))
    docs = pd.concat([docs[docs["task"] == name] for name in names.unique()])
    tasks = {
        name: chosen.record["tasks"][task] | {"n_docs": int(n)} for name, n in names.value_counts(sort=False).items()
    }
    return Result(docs, chosen.record | {"tasks": tasks, "split": task}, asked)


def _agreed(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The entries that are the same in all records."""
    first, *others = records
    return {k: v for k, v in first.items() if all(k in r and r[k] == v for r in others)}


def _joined_tasks(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The tasks of all records.

    Raises:
        UserError: two records disagree on what a task or a metric is.
    """
    tasks: dict[str, dict] = {}
    for task, entry in (item for record in records for item in record.get("tasks", {}).items()):
        both = tasks.setdefault(task, entry), entry
        about = [{field: each.get(field) for field in ("version", "num_fewshot", "output_type")} for each in both]
        old, new = (each.get("metrics", {}) for each in both)
        for metric, field in itertools.product(old.keys() & new.keys(), ("higher_is_better", "chance")):
            for named, metrics in zip(about, (old, new), strict=True):
                named[f"{field} of {metric}"] = metrics[metric].get(field)
        if differs := mismatches(about[0], about[1]):
            raise UserError(f"the results disagree on task {task!r}: {differs[0]}; name them apart")
        tasks[task] = _agreed(both) | {"metrics": {**new, **old}}
    return tasks
