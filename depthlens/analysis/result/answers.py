"""What a model answers without a part of it, beside what the whole model answers: the language behind a loss."""

from __future__ import annotations

import numpy as np
import pandas as pd

from depthlens.analysis.numbers.stats import BASELINE
from depthlens.analysis.result import documents
from depthlens.analysis.result.results import Result
from depthlens.errors import UserError, unknown
from depthlens.metrics import ANSWER_LOGPROB

BROKEN, REPAIRED, CHANGED, SAME, ALL = "broken", "repaired", "changed", "same", "all"
CHANGES = (BROKEN, REPAIRED, CHANGED, ALL)
COLUMNS = [
    "task", "metric", "doc_id", "question", "reference", "baseline_answer", "answer", "baseline_value", "value", "loss",
    "nats", "change",
]  # fmt: skip


def answers(
    result: Result, condition: str, change: str = BROKEN, *, task: str | None = None, against: Result | None = None
) -> pd.DataFrame:
    """The answers that a condition changes, by the metric that stands for each task; or how two models differ.

    Args:
        result: A sweep.
        condition: One of its conditions, such as ``L11``.
        change: ``broken``: the score falls; ``repaired``: it rises; ``changed``: the answer is another one with the
            same score; ``all``: every document.
        task: Of this task only.
        against: A sweep of another model on the same documents: its whole model is the baseline. With the condition
            ``baseline`` these are the documents on which two whole models differ.

    Returns:
        One row a document, the largest loss first: ``task``, ``metric``, ``doc_id``, ``question``, ``reference`` (the
        right answer), ``baseline_answer`` (of the whole model), ``answer``, ``baseline_value``, ``value``, ``loss``
        (above 0 is worse), ``nats`` (change of the log-likelihood of the right answer; NaN where it was not measured)
        and ``change``.

    Raises:
        UserError: the result has no such condition or task, or the change is none of these.
    """
    if change not in CHANGES:
        raise unknown("change", change, CHANGES)
    if task is not None:
        result = result.select(tasks=task)
    documents.only(result.docs, "condition", condition)
    rows = result.primary().baselines.itertuples()
    whole = result if against is None else against
    found = pd.concat([of_task(result, row.task, row.metric, condition, whole) for row in rows], ignore_index=True)
    if found.empty:
        raise UserError("the results have no question in common; give two of the same documents")
    return found if change == ALL else found[found["change"] == change].reset_index(drop=True)


def of_task(result: Result, task: str, metric: str, condition: str, whole: Result) -> pd.DataFrame:
    """The answers under a condition beside those of a whole model, of the questions that both results ask."""
    value, text = (documents.table(result.docs, column, task, metric)[condition] for column in ("value", "response"))
    before, said = (documents.table(whole.docs, column, task, metric)[BASELINE] for column in ("value", "response"))
    shared = value.index.intersection(before.index)
    asked, same = (questions_of(run, task, shared) for run in (result, whole))
    shared = shared[(asked == same).all(axis=1)]
    asked = asked.loc[shared]
    value, text, before, said = (column[shared] for column in (value, text, before, said))
    sign = 1.0 if result.metric_info(task, metric)["higher_is_better"] else -1.0
    loss = sign * (before - value)
    table = pd.DataFrame(
        {
            "task": task,
            "metric": metric,
            "question": asked["question"],
            "reference": asked["reference"],
            "baseline_answer": said,
            "answer": text,
            "baseline_value": before,
            "value": value,
            "loss": loss,
            "nats": logprobs(result, task, shared)[condition] - logprobs(whole, task, shared)[BASELINE],
            "change": np.select([loss > 0, loss < 0, said != text], CHANGES[:3], SAME),
        }
    )
    return table.reset_index().sort_values(["loss", "nats"], ascending=[False, True], kind="stable")[COLUMNS]


def questions_of(result: Result, task: str, ids: pd.Index) -> pd.DataFrame:
    """Question and right answer of documents, by id; empty texts where the result does not say."""
    if result.asked is None:
        return pd.DataFrame("", index=ids, columns=["question", "reference"])
    asked = result.asked[result.asked["task"] == task].set_index("doc_id")
    return asked[["question", "reference"]].reindex(ids).fillna("")


def logprobs(result: Result, task: str, ids: pd.Index) -> pd.DataFrame:
    """Log-likelihood of the right answer, documents by conditions; NaN where it was not measured."""
    docs = result.docs[result.docs["task"] == task]
    if not (docs["metric"] == ANSWER_LOGPROB).any():
        return pd.DataFrame(np.nan, index=ids, columns=list(docs["condition"].unique()))
    return documents.table(docs, "value", task, ANSWER_LOGPROB).reindex(ids)
