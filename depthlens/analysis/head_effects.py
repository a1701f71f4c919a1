"""What a head sweep says about heads: loss per head, agreement of two methods, separation of a known few.

Torch-free; a head sweep is a `Result` with one condition a head (`depthlens.experiments.sweep.head_sweep`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy

from depthlens.ablations import Head
from depthlens.analysis import questions
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.rank_correlations import COLUMNS, correlate, in_words
from depthlens.analysis.stats import changes, loss_unit
from depthlens.analysis.tables import DescribedTable, record_of
from depthlens.errors import UserError
from depthlens.metrics import in_nats

if TYPE_CHECKING:
    from depthlens.analysis.results import Result


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
    metric = _metric(result, task, metric)
    chosen = result.select(tasks=task, metrics=metric)
    rows = chosen.losses()
    if rows["head"].isna().any() or rows[["layer", "head"]].duplicated().any() or not len(rows):
        raise _not_heads(task)
    dims = chosen.record["model"]["dims"]
    shape = dims["n_layers"], dims["n_heads"]
    at = rows["layer"].to_numpy(int), rows["head"].to_numpy(int)
    values, low, high = (np.full(shape, np.nan) for _ in range(3))
    values[at], low[at], high[at] = rows["loss"], rows["loss_low"], rows["loss_high"]
    critical = np.zeros(shape, dtype=bool)
    critical[at] = rows["condition"].isin(chosen.critical()["condition"])
    kind = "loss" if chosen.record.get("method", "exact") == "exact" else "estimated loss"
    name = f"{kind} of {metric}, {task}"
    return HeadScores(name, loss_unit(metric), values, low, high, int(rows["n"].max()), critical, chosen.record)


def head_contrast(result: Result, task: str, other_task: str, metric: str | None = None) -> HeadScores:
    """How much more a head's removal costs on one task than on another: loss minus loss, paired by document.

    High for heads that carry what only ``task`` needs. Heads that both tasks need are near 0. Nats are clipped to 1 a
    document.

    Args:
        result: A head sweep of both tasks, which ask the same documents (`depthlens.analysis.questions.identities`).
        task: The task whose heads are searched for.
        other_task: The task whose losses are subtracted.
        metric: Which metric; may be left out where the tasks have one.

    Returns:
        Means over documents, tested against 0.

    Raises:
        UserError: a task or metric that is not there, or other documents or heads.
    """
    metric = _metric(result, task, metric)
    tasks = task, other_task
    tables = [result.document_losses(name, _metric(result, name, metric)).sort_index(axis=1) for name in tasks]
    losses, rivals = questions.paired(result, tasks, tables)
    if not losses.columns.equals(rivals.columns):
        raise UserError(f"tasks {task} and {other_task} have different heads; sweep the same")
    gap = losses.clip(-1, 1) - rivals.clip(-1, 1) if in_nats(metric) else losses - rivals
    by_name = _heads(result, gap, task)
    gap, heads = gap[list(by_name)], list(by_name.values())
    dims = result.record["model"]["dims"]
    cases = np.zeros((len(gap), dims["n_layers"], dims["n_heads"]))
    cases[:, [layer for layer, _ in heads], [head for _, head in heads]] = gap
    units = questions.units(result, task).loc[tables[0].index]
    bounded = bool((gap.abs() <= 2).all(axis=None))
    name, unit = f"loss of {metric}, {task} minus {other_task}", loss_unit(metric)
    return HeadScores.of_cases(name, unit, cases, result.record, tested=True, heads=heads, bounded=bounded, units=units)


def head_agreement(a: Result, b: Result, *, seed: int = 0) -> DescribedTable:
    """Spearman's correlation over heads between two head sweeps of the same documents, by task and metric.

    See `depthlens.analysis.rank_correlations` for the ceiling that noise sets and the p-value: whether the sweeps agree
    within layers, beyond what their profiles over depth explain.

    Args:
        a: A head sweep, e.g. exact.
        b: Another, e.g. by attribution or integrated gradients.
        seed: Of halves and permutations.

    Returns:
        One row a task and metric that both have: task, metric, and the columns of
        `depthlens.analysis.rank_correlations`. It is described by one sentence a task and metric.

    Raises:
        UserError: nothing in common, different heads or documents, or fewer than three heads.
    """
    rows, lines = [], []
    keys = [set(result.docs[["task", "metric"]].itertuples(index=False, name=None)) for result in (a, b)]
    for task, metric in sorted(keys[0] & keys[1]):
        heads = [_heads(result, result.document_losses(task, metric), task) for result in (a, b)]
        tables = [
            result.document_losses(task, metric)[list(names)] for result, names in zip((a, b), heads, strict=True)
        ]
        if not (tables[0].index.equals(tables[1].index) and tables[0].columns.equals(tables[1].columns)):
            raise UserError(f"task {task}: the two sweeps have different heads or documents; sweep the same")
        layers = np.array([layer for layer, _ in heads[0].values()])
        units = questions.units(a, task).loc[tables[0].index]
        first, second = (changes(metric, table.to_numpy(), units).added for table in tables)
        found = correlate(first, second, layers, seed=seed)
        rows.append((task, metric, *found.row()))
        lines.append(f"{task}, {metric}: heads by the two sweeps: {in_words(found)}.")
    if not rows:
        raise UserError("the two sweeps share no task and metric; sweep the same task with the same measure")
    table = pd.DataFrame(rows, columns=["task", "metric", *COLUMNS])
    return DescribedTable(table, lines, record_of("head_agreement", a, b, seed_of_halves=seed))


def describe_heads(result: Result) -> list[str]:
    """One sentence a task and metric of a head sweep: how many heads are critical, and what the costliest costs."""
    sentences = []
    for row in result.baselines.itertuples():
        if row.at_chance:
            sentences.append(f"{row.task}, {row.metric}: at chance, cannot judge.")
        else:
            sentences += head_losses(result, row.task, row.metric).describe()
    return sentences


def rank_correlation(a: HeadScores, b: HeadScores) -> tuple[float, int]:
    """Spearman's correlation over the heads that have both scores, and how many these are.

    Scores do not keep their cases, so that nothing is known of noise here; `head_agreement` compares two sweeps.

    Raises:
        UserError: scores of different shapes, or fewer than three heads with both.
    """
    if a.values.shape != b.values.shape:
        raise UserError(f"scores have shapes {a.values.shape} and {b.values.shape}; give two of one model")
    measured = np.isfinite(a.values) & np.isfinite(b.values)
    if (n := int(measured.sum())) < 3:
        raise UserError(f"{n} heads have both scores; a rank correlation needs three")
    return float(scipy.stats.spearmanr(a.values[measured], b.values[measured]).statistic), n


def auroc(scores: HeadScores, heads: Collection[Head]) -> float:
    """Chance that a head of ``heads`` scores higher than one of the others (1: all of them rank first).

    Raises:
        UserError: a head that was not scored, or no head on one of the sides.
    """
    positive = np.zeros_like(scores.values, dtype=bool)
    n_layers, n_heads = scores.values.shape
    for layer, head in heads:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise UserError(f"head L{layer}.H{head} does not exist; scored are {n_layers} x {n_heads}")
        positive[layer, head] = True
    scored = np.isfinite(scores.values)
    inside, outside = scores.values[positive & scored], scores.values[~positive & scored]
    if not len(inside) or not len(outside):
        raise UserError("auroc needs scored heads on both sides")
    return float(scipy.stats.mannwhitneyu(inside, outside).statistic / (len(inside) * len(outside)))


def _metric(result: Result, task: str, metric: str | None) -> str:
    """The metric that is asked for, or the only one that the task has."""
    metrics = list(result.select(tasks=task, metrics=metric).docs["metric"].unique())
    if len(metrics) > 1:
        raise UserError(f"there are several metrics; name one of {', '.join(metrics)}")
    return metrics[0]


def _heads(result: Result, losses: pd.DataFrame, task: str) -> dict[str, Head]:
    """The head that each condition of a table of losses removes, by layer and head."""
    parts = result.docs.drop_duplicates("condition").set_index("condition").loc[losses.columns, ["layer", "head"]]
    if parts.isna().any(axis=None):
        raise _not_heads(task)
    heads = {str(name): (int(layer), int(head)) for name, layer, head in parts.itertuples(name=None)}
    return dict(sorted(heads.items(), key=lambda item: item[1]))


def _not_heads(task: str) -> UserError:
    return UserError(f"task {task} has conditions that are not one head each; give the result of a head sweep")
