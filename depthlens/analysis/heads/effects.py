"""What a head sweep says about heads: loss per head, on one task or beyond another.

A head sweep is a `Result` with one condition a head (`depthlens.experiments.sweep.head_sweep`).
"""

from __future__ import annotations

from depthlens.ablations import Head
from depthlens.analysis.heads.scores import HeadScores
from depthlens.analysis.numbers.means import ALPHA, max_t
from depthlens.analysis.numbers.stats import BASELINE, loss_unit
from depthlens.analysis.numbers.words import not_above_chance
from depthlens.analysis.result.results import Result
from depthlens.errors import UserError


def head_losses(result: Result, task: str, metric: str | None = None, beyond: str | None = None) -> HeadScores:
    """See `depthlens.Result.head_losses`.

    Heads are critical by step-down maxT over the heads swept. Nats are clipped to 1 a document.
    """
    heads = head_conditions(result.select(tasks=task), task)
    losses, record = result.losses(task, metric), result.select(tasks=task).record
    own = losses.select(list(heads.values()))
    kind = "loss" if record.get("method", "exact") == "exact" else "estimated loss"
    name, found, critical = f"{kind} of {own.metric}, {task}", own.mean(), own.critical()
    if beyond is not None:
        own, rival = own.join(result.losses(beyond, own.metric), every=True)
        name, found, record = f"loss of {own.metric}, {task} minus {beyond}", own - rival, result.record
        critical = (max_t(found) < ALPHA) & (found.value > own.min_effect)
    shape = record["model"]["dims"]["n_layers"], record["model"]["dims"]["n_heads"]
    record = record | {"documents": [*own.documents]}  # those that made the scores
    return HeadScores.of_mean(name, loss_unit(own.metric), found, list(heads), shape, len(own.base), record, critical)


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
