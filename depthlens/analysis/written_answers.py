"""Written answers that cannot be read, apart from those that are wrong.

A model that loses the form of an answer scores 0, and so does one that writes a wrong answer; only the second says
something about knowledge or reasoning. A score splits exactly: score + wrong + unparsed = 1, where ``unparsed`` is the
share of documents whose answer cannot be read (`depthlens.tasks.prepared_task`), and ``wrong`` is what is lost in
answers that can be. What a condition costs is therefore the rise of the one plus the rise of the other.

A task that is scored with and without regard to its format (GSM8K's ``strict-match`` and ``flexible-extract``) has
``flexible-extract`` as its first metric here: ``strict-match`` counts a right number without "####" as wrong, so that a
layer which only carries the format seems to carry the reasoning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from depthlens.analysis import documents, questions, stats
from depthlens.analysis.documents import PARSED
from depthlens.analysis.stats import BASELINE
from depthlens.errors import UserError
from depthlens.metrics import ACC_NORM, LENGTH_NORMALISED, LOGPROBS

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

FLEXIBLE, STRICT = "flexible-extract", "strict-match"


def headline(task: str, metrics: Sequence[str]) -> str:
    """The metric of a task that stands for it: its first own one, read by ``flexible-extract`` where that exists.

    ``acc_norm`` stands for the tasks of `depthlens.metrics.LENGTH_NORMALISED`. A log-likelihood that depthlens adds
    (`depthlens.metrics.LOGPROBS`) is chosen only where there is nothing else.

    Args:
        task: Its name, or that of some of its documents (`depthlens.analysis.subgroups`).
        metrics: Those that were measured.
    """
    if task.partition(",")[0] in LENGTH_NORMALISED and ACC_NORM in metrics:
        return ACC_NORM
    first = next((metric for metric in metrics if metric not in LOGPROBS), metrics[0])
    flexible = f"{first.partition(',')[0]},{FLEXIBLE}"
    return flexible if flexible in metrics else first


def parsed(result: Result, task: str, metric: str, model: str | None = None) -> pd.DataFrame:
    """Whether each answer could be read: documents (rows, by rising id) x conditions (columns), True or False.

    Raises:
        UserError: there is no such task or metric, or the result does not say it (a folder of an older depthlens).
    """
    table = documents.table(result.docs, PARSED, task, metric, model)
    if not table.isna().any(axis=None):
        return table.astype(bool)
    if is_written(result, task):
        raise UserError(f"this result does not say which answers of task {task} could be read; run the sweep again")
    return table.fillna(True).astype(bool)


def is_written(result: Result, task: str) -> bool:
    """Whether the model writes its answers to a task."""
    return bool(result.record["tasks"][task].get("output_type") == "generate_until")


def unparsed(result: Result, task: str, metric: str, model: str | None = None) -> pd.DataFrame:
    """How many answers cannot be read under each condition, apart from wrong ones.

    Args:
        result: A sweep.
        task: Name of the task.
        metric: Name of the metric; the filter in it decides what can be read.
        model: Which model; may be left out where there is one.

    Returns:
        One row a condition, the baseline first: condition, layer, head, n, value (mean score), wrong, unparsed (shares;
        the three add up to 1), cut_off (share of answers that had not ended when they had as many tokens as were
        allowed; NaN where it is not known), and the change of ``unparsed`` from the baseline: rise, ci_low, ci_high
        (95% interval), p_value (not corrected).

    Raises:
        UserError: see `parsed`; or the metric is a log-likelihood, for which the model writes nothing.
    """
    readable = parsed(result, task, metric, model)
    if metric in LOGPROBS:
        own = [name for name in result.record["tasks"][task]["metrics"] if name not in LOGPROBS]
        allowed = f"; allowed: {', '.join(own)}" if own else "; measure 'both' or 'task' to have written answers"
        raise UserError(f"metric {metric}: the model writes nothing for it that could be read{allowed}")
    scores = documents.table(result.docs, "value", task, metric, model)
    names = [BASELINE, *(name for name in scores if name != BASELINE)]
    lost = (~readable[names]).to_numpy(dtype=float)  # [document, condition]
    rise = stats.changes(metric, lost - lost[:, :1], questions.units(result, task).to_numpy())
    is_base = np.array(names) == BASELINE
    low, high = np.where(is_base, 0.0, rise.interval())
    parts = result.docs.drop_duplicates("condition").set_index("condition").loc[names, ["layer", "head"]]
    value, share = scores[names].mean().to_numpy(), lost.mean(0)
    table = parts.reset_index().assign(n=len(scores), value=value, wrong=1 - value - share, unparsed=share)
    table["cut_off"] = 1 - _complete(result, task, metric, model)[names].mean().to_numpy(dtype=float, na_value=np.nan)
    return table.assign(rise=rise.value, ci_low=low, ci_high=high, p_value=np.where(is_base, np.nan, rise.p()))


def _complete(result: Result, task: str, metric: str, model: str | None) -> pd.DataFrame:
    return documents.table(result.docs, documents.COMPLETE, task, metric, model)


def describe(result: Result) -> list[str]:
    """One sentence for each written task and metric: how many answers cannot be read, and under which condition most.

    Where all can be read and none was cut off there is nothing to say, and so there is for results that do not know it.
    """
    lines = []
    for row in result.baselines.itertuples():
        known = result.docs.loc[(result.docs["task"] == row.task) & (result.docs["metric"] == row.metric), PARSED]
        if row.metric in LOGPROBS or not is_written(result, row.task) or known.isna().any():
            continue
        table = unparsed(result, row.task, row.metric)
        if not table["unparsed"].any() and not _cut_off(table):
            continue
        base, others = table.iloc[0], table.iloc[1:]
        line = f"{row.task} {row.metric}: {base['unparsed']:.0%} of the answers cannot be read with nothing removed"
        if others["unparsed"].gt(0).any():
            worst = others.loc[others["unparsed"].idxmax()]
            line += f", and at most {worst['unparsed']:.0%} under a condition ({worst['condition']})"
        elif len(others):
            line += ", and none under the conditions"
        lines.append(f"{line}.{_cut_off(table)}")
    return lines


def _cut_off(table: pd.DataFrame) -> str:
    """How many answers were cut off, as a sentence; "" where none was, or where it is not known."""
    share = table["cut_off"].to_numpy()
    if not np.nanmax(share, initial=0.0):
        return ""
    text = f" {share[0]:.0%} were cut off at the greatest number of tokens with nothing removed"
    if len(share) > 1:
        worst = int(np.argmax(share[1:])) + 1
        text += f", and at most {share[worst]:.0%} under a condition ({table['condition'].iloc[worst]})"
    return f"{text}; with more tokens (max_gen_toks) they may be right."


def notes(result: Result) -> Iterator[str]:
    """One line for each task that is scored both with and without regard to its format: by how much they differ."""
    rows = result.baselines
    for (model, task), group in rows.groupby(["model", "task"], sort=False):
        scores = group.set_index("metric")["baseline"]
        for flexible in (metric for metric in scores.index if metric.endswith(f",{FLEXIBLE}")):
            strict = flexible.replace(FLEXIBLE, STRICT)
            if strict in scores.index:
                of = f" of {model}" if rows["model"].nunique() > 1 else ""
                gap = scores[strict] - scores[flexible]
                yield (
                    f"{task}{of}: {flexible} stands for the task; {strict} also asks for the format of the answer "
                    f"({gap:+.2f} with nothing removed)"
                )
