"""What a head sweep says about heads: loss per head, on one task or beyond another.

A head sweep is a `Result` with one condition a head (`depthlens.experiments.sweep.head_sweep`).
"""

from __future__ import annotations

from depthlens.ablations import Head
from depthlens.analysis.heads.scores import HeadScores
from depthlens.analysis.numbers.means import max_t
from depthlens.analysis.numbers.stats import BASELINE, loss_unit
from depthlens.analysis.numbers.words import not_above_chance
from depthlens.analysis.result import documents
from depthlens.analysis.result.results import Result
from depthlens.errors import UserError


def head_losses(result: Result, task: str, metric: str | None = None) -> HeadScores:
    """Loss that removing each head causes: mean over documents of baseline minus score (positive = worse).

    Nats are clipped to 1 a document, as in `Result.losses`.

    Args:
        result: A head sweep.
        task: Which task.
        metric: Which metric; may be left out where the task has one.

    Returns:
        Scores with 95% intervals, and which heads are critical by step-down maxT over the heads swept, as in
        `Result.summary`.

    Raises:
        UserError: several metrics and none named, or conditions that are not single heads.
    """
    metric = documents.only(result.select(tasks=task).docs, "metric", metric)
    chosen = result.select(tasks=task, metrics=metric)
    heads, dims = head_conditions(chosen, task), chosen.record["model"]["dims"]
    rows = chosen.loss_table.set_index("condition").loc[list(heads.values())]
    rows = rows.drop(columns="value").rename(columns={"loss": "value", "loss_low": "low", "loss_high": "high"})
    kind = "loss" if chosen.record.get("method", "exact") == "exact" else "estimated loss"
    name, n, shape = f"{kind} of {metric}, {task}", int(rows["n"].max()), (dims["n_layers"], dims["n_heads"])
    return HeadScores.of_heads(name, loss_unit(metric), rows, shape, n, chosen.record)


def head_contrast(result: Result, task: str, other_task: str, metric: str | None = None) -> HeadScores:
    """How much more a head's removal costs on one task than on another: loss minus loss, paired by document.

    High for heads that carry what only ``task`` needs. Heads that both tasks need are near 0. Nats are clipped to 1 a
    document.

    Args:
        result: A head sweep of both tasks, which ask the same documents (`depthlens.analysis.result.questions`).
        task: The task whose heads are searched for.
        other_task: The task whose losses are subtracted.
        metric: Which metric; may be left out where the tasks have one.

    Returns:
        Means over documents, tested against 0.

    Raises:
        UserError: a task or metric that is not there, or other documents.

    Example:
        >>> dl.analysis.head_contrast(heads, "organism_two_hop", "organism_one_hop", "acc").top(2)
        [L3.H0, L4.H3]
    """
    heads, dims = head_conditions(result, task), result.record["model"]["dims"]
    own = result.losses(task, metric).select(list(heads.values()))
    own, rival = own.join(result.losses(other_task, own.metric), every=True)
    found, shape = own - rival, (dims["n_layers"], dims["n_heads"])
    name, n = f"loss of {own.metric}, {task} minus {other_task}", len(own.base)
    return HeadScores.of_mean(name, loss_unit(own.metric), found, list(heads), shape, n, result.record, max_t(found))


def describe_heads(result: Result) -> list[str]:
    """One sentence a task and metric of a head sweep: how many heads are critical, and what the costliest costs."""
    sentences = []
    for row in result.baselines.itertuples():
        if row.at_chance:
            sentences.append(f"{row.task}, {row.metric}: {not_above_chance(row.n)}, cannot judge.")
        else:
            sentences += head_losses(result, row.task, row.metric).describe()
    return sentences


def head_conditions(result: Result, task: str) -> dict[Head, str]:
    """The condition that removes each head, by layer and head.

    Raises:
        UserError: conditions that are not one head each.
    """
    parts = result.docs.loc[result.docs["condition"] != BASELINE].drop_duplicates("condition")
    heads = parts[["layer", "head"]]
    if heads.isna().any(axis=None) or heads.duplicated().any() or parts.empty:
        raise UserError(f"task {task} has conditions that are not one head each; give the result of a head sweep")
    named = (Head(*pair) for pair in heads.astype(int).itertuples(index=False, name=None))
    return dict(sorted(zip(named, parts["condition"], strict=True)))
