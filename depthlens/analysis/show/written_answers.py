"""Written answers that cannot be read, apart from those that are wrong.

A model that loses the form of an answer scores 0, and so does one that writes a wrong answer; only the second says
something about knowledge or reasoning. A score splits exactly: score + wrong + unparsed = 1, where ``unparsed`` is the
share of documents whose answer cannot be read (`depthlens.tasks.prepared_task`), and ``wrong`` is what is lost in
answers that can be. What a condition costs is therefore the rise of the one plus the rise of the other.

A task that is scored with and without regard to its format (GSM8K's ``strict-match`` and ``flexible-extract``) has
``flexible-extract`` as its first metric here: ``strict-match`` counts a right number without "####" as wrong, so that a
layer which only carries the format seems to carry the reasoning.

An answer may also be wrong by white space around it or by case alone. Such answers are counted, with what in the task's
YAML file makes lm-eval accept them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from depthlens.analysis.numbers.stats import BASELINE
from depthlens.analysis.result import documents
from depthlens.analysis.result.answers import questions_of
from depthlens.analysis.result.documents import PARSED
from depthlens.analysis.result.results import Result
from depthlens.errors import UserError
from depthlens.metrics import LOGPROBS

SAID = {
    "unparsed": "{} cannot be read",
    "cut_off": "{} are cut off at the greatest number of tokens and may be right with more (max_gen_toks)",
}
# of near misses: what differs, and the filter or the setting of the metric by which lm-eval accepts them
ACCEPTED = {
    "white_space": r"white space alone: filter {function: regex, regex_pattern: '^\s*(.*?)\s*$'} accepts them",
    "case": "case, or case and white space: ignore_case: true of the metric, after such a filter, accepts them",
}


def unparsed(result: Result, task: str, metric: str) -> pd.DataFrame:
    """How many answers cannot be read under each condition, apart from wrong ones.

    Args:
        result: A sweep.
        task: Name of the task.
        metric: Name of the metric; the filter in it decides what can be read.

    Returns:
        One row a condition, the baseline first: condition, layer, head, n, value (mean score), wrong, unparsed (shares;
        the three add up to 1), cut_off (share of answers that had not ended when they had as many tokens as were
        allowed; NaN where it is not known).

    Raises:
        UserError: there is no such task or metric, the metric is a log-likelihood, for which the model writes nothing,
            or the result does not say what could be read.
    """
    if metric in LOGPROBS:
        raise UserError(f"metric {metric}: the model writes nothing for it that could be read; name one of the task")
    readable, complete, scores = (
        documents.table(result.docs, column, task, metric) for column in (PARSED, documents.COMPLETE, "value")
    )
    if readable.isna().any(axis=None):
        raise UserError(f"this result does not say which answers of task {task} could be read; run the sweep again")
    names = [BASELINE, *(name for name in scores if name != BASELINE)]
    parts = result.docs.drop_duplicates("condition").set_index("condition").loc[names, ["layer", "head"]]
    value, share = scores[names].mean().to_numpy(), 1 - readable[names].to_numpy(dtype=float).mean(0)
    table = parts.reset_index().assign(n=len(scores), value=value, wrong=1 - value - share, unparsed=share)
    return table.assign(cut_off=1 - complete[names].mean().to_numpy(dtype=float, na_value=np.nan))


def near_misses(result: Result, task: str, metric: str) -> pd.DataFrame:
    """How many wrong answers differ from a right one by white space around them, or by case, alone.

    Args:
        result: A sweep.
        task: Name of the task.
        metric: Name of the metric.

    Returns:
        Counts: one row a condition, the baseline first; columns white_space and case, which share no answer.
    """
    values, texts = (documents.table(result.docs, column, task, metric) for column in ("value", "response"))
    right = questions_of(result, task, texts.index)["reference"].str.split(" | ", regex=False)
    found = pd.DataFrame(0, index=texts.columns, columns=list(ACCEPTED))
    for condition, column in texts[values == 0].items():
        for text, accepted in zip(column.dropna(), right[column.notna()], strict=True):
            stripped = [answer.strip() for answer in accepted if answer.strip()]
            if text.strip() in stripped:
                found.loc[condition, "white_space"] += 1
            elif text.strip().casefold() in map(str.casefold, stripped):
                found.loc[condition, "case"] += 1
    return found


def describe(result: Result) -> list[str]:
    """One sentence for each task and metric with answers that cannot be read or were cut off: how many, and where most.

    And one for each kind of `near_misses`.

    There is none for results that do not know it.
    """
    lines = []
    unknown = result.docs[PARSED].isna().groupby([result.docs["task"], result.docs["metric"]], sort=False).any()
    for row in result.baselines.itertuples():
        if row.metric in LOGPROBS or unknown[row.task, row.metric]:
            continue
        table = unparsed(result, row.task, row.metric)
        told = []
        for column, said in SAID.items():
            worst = table.loc[table[column].fillna(0)[::-1].idxmax()]  # of equal ones the last
            shares = f"{table[column].iloc[0]:.0%} of its answers, and {worst[column]:.0%} under {worst['condition']},"
            told += [said.format(shares)] if table[column].any() else []
        if told:
            lines.append(f"{row.task} {row.metric}, whole model: {'; '.join(told)}.")
        if row.metric.startswith("exact_match"):
            near = near_misses(result, row.task, row.metric)
            for kind, fix in ACCEPTED.items():
                worst = near[kind].idxmax()
                counts = f"{near.loc[BASELINE, kind]} of its wrong answers, and {near[kind][worst]} under {worst},"
                if near[kind].any():
                    lines.append(f"{row.task} {row.metric}, whole model: {counts} differ from the right one by {fix}.")
    return lines
