"""What a head sweep says about heads: loss per head, agreement of two methods, separation of a known few.

Torch-free; a head sweep is a `Result` with one condition a head (`depthlens.experiments.sweep.head_sweep`).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd
from scipy import stats as sps

from depthlens.ablations import Head
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.results import Result
from depthlens.analysis.stats import BASELINE
from depthlens.errors import UserError, unknown
from depthlens.metrics import metric_unit

N_BOOT = 1000


def losses(result: Result, task: str | None = None, metric: str | None = None) -> HeadScores:
    """Loss that removing each head causes: mean over documents of baseline minus score (positive = worse).

    Args:
        result: A head sweep.
        task: Which task; may be left out where there is one.
        metric: Which metric; may be left out where the task has one.

    Returns:
        Scores with 95% intervals, and which heads are critical after Holm's correction over the heads swept. The
        interval and verdict are those of `Result.summary`.

    Raises:
        UserError: several tasks or metrics and none named, or conditions that are not single heads.
    """
    task = _only(result, "task", task)
    metric = _only(result.select(tasks=task), "metric", metric)
    chosen = result.select(tasks=task, metrics=metric)
    rows = chosen.summary[chosen.summary["condition"] != BASELINE]
    if rows["head"].isna().any() or rows[["layer", "head"]].duplicated().any() or not len(rows):
        raise UserError(f"task {task} has conditions that are not one head each; give the result of a head sweep")
    dims = chosen.record["model"]["dims"]
    better = chosen.metric_info(task, metric)["higher_is_better"]
    grid = {c: np.full((dims["n_layers"], dims["n_heads"]), np.nan) for c in ("delta", "ci_low", "ci_high")}
    critical = np.zeros((dims["n_layers"], dims["n_heads"]), dtype=bool)
    at = rows["layer"].to_numpy(int), rows["head"].to_numpy(int)
    for column, values in grid.items():
        values[at] = rows[column]
    critical[at] = rows["condition"].isin(chosen.critical()["condition"])
    low, high = (-grid["ci_high"], -grid["ci_low"]) if better else (grid["ci_low"], grid["ci_high"])
    values = -grid["delta"] if better else grid["delta"]
    unit = metric_unit(metric)
    how = "estimated loss" if chosen.record.get("method") == "attribution" else "loss"
    name = f"{how} of {metric}, {task}"
    return HeadScores(name, unit, values, low, high, int(rows["n"].max()), critical, chosen.record)


def contrast(result: Result, task: str, other: str, metric: str | None = None) -> HeadScores:
    """How much more a head's removal costs on one task than on another: loss minus loss, paired by document.

    High for heads that carry what only ``task`` needs; heads that both need come out near 0.

    Args:
        result: A head sweep of both tasks, whose documents match one by one (the same prompts, asked differently).
        task: The task whose heads are wanted.
        other: The task that is taken off.
        metric: Which metric; may be left out where the tasks have one.

    Returns:
        Means over documents, tested against 0.

    Raises:
        UserError: a task or metric that is not there, or other documents or heads.
    """
    metric = _only(result.select(tasks=task), "metric", metric)
    tables = []
    for name in (task, other):
        chosen = _only(result.select(tasks=name), "metric", metric)
        sign = -1 if result.metric_info(name, chosen)["higher_is_better"] else 1
        tables.append(sign * _changes(result, name, chosen))
    if not (tables[0].index.equals(tables[1].index) and tables[0].columns.equals(tables[1].columns)):
        raise UserError(f"tasks {task} and {other} have different heads or documents; sweep the same")
    gap = tables[0] - tables[1]
    parts = result.docs.drop_duplicates("condition").set_index("condition").loc[gap.columns, ["layer", "head"]]
    if parts.isna().any(axis=None):
        raise UserError(f"task {task} has conditions that are not one head each; give the result of a head sweep")
    heads = [(int(layer), int(head)) for layer, head in parts.itertuples(index=False)]
    dims = result.record["model"]["dims"]
    cases = np.zeros((len(gap), dims["n_layers"], dims["n_heads"]))
    cases[:, [layer for layer, _ in heads], [head for _, head in heads]] = gap
    name, unit = f"loss of {metric}, {task} minus {other}", metric_unit(metric)
    return HeadScores.of_cases(name, unit, cases, result.record, tested=True, heads=heads)


def agreement(one: Result, other: Result, *, seed: int = 0, n_boot: int = N_BOOT) -> pd.DataFrame:
    """Spearman's correlation over heads between two head sweeps of the same documents, by task and metric.

    The interval is a percentile bootstrap over documents, drawn jointly for both sweeps.

    Args:
        one: A head sweep, e.g. exact.
        other: Another, e.g. by attribution.
        seed: Of the bootstrap.
        n_boot: Number of draws.

    Returns:
        One row a task and metric that both have: task, metric, n_heads, n, spearman, ci_low, ci_high.

    Raises:
        UserError: nothing in common, or different heads or documents.
    """
    rows = []
    keys = [set(map(tuple, r.docs[["task", "metric"]].drop_duplicates().itertuples(index=False))) for r in (one, other)]
    for task, metric in sorted(keys[0] & keys[1]):
        a, b = (_changes(r, task, metric) for r in (one, other))
        if not (a.index.equals(b.index) and a.columns.equals(b.columns)):
            raise UserError(f"task {task}: the two sweeps have different heads or documents; sweep the same")
        rng = np.random.default_rng(seed)
        counts = np.vstack([np.ones(len(a)), rng.multinomial(len(a), np.full(len(a), 1 / len(a)), size=n_boot)])
        ranked = [sps.rankdata(counts @ table.to_numpy(), axis=1) for table in (a, b)]
        rho = [np.corrcoef(x, y)[0, 1] for x, y in zip(*ranked, strict=True)]
        low, high = np.nanquantile(rho[1:], [0.025, 0.975])
        rows.append((task, metric, a.shape[1], len(a), rho[0], low, high))
    if not rows:
        raise UserError("the two sweeps share no task and metric; sweep the same task with the same measure")
    return pd.DataFrame(rows, columns=["task", "metric", "n_heads", "n", "spearman", "ci_low", "ci_high"])


def concentration(result: Result) -> list[str]:
    """One sentence a task and metric: how many heads are critical, and how far the costliest stands out.

    Args:
        result: A head sweep.
    """
    sentences = []
    for row in result.baselines.itertuples():
        if row.at_chance:
            sentences.append(f"{row.task}, {row.metric}: at chance, cannot judge.")
            continue
        scores = losses(result, row.task, row.metric)
        (layer, head), *_ = scores.top(1)
        low, high = scores.low[layer, head], scores.high[layer, head]
        unit = f" {scores.unit}" if scores.unit else ""
        found, n = int(scores.critical.sum()), int(np.isfinite(scores.values).sum())
        sentences.append(
            f"{row.task}, {row.metric}: **{found} of {n}** heads proved critical; the costliest, L{layer}.H{head}, "
            f"costs {scores.values[layer, head]:.2f} [{low:.2f}, {high:.2f}]{unit}, the median head "
            f"{np.nanmedian(scores.values):.3f} (n = {scores.n})."
        )
    return sentences


def rank_correlation(one: HeadScores, other: HeadScores) -> tuple[float, int]:
    """Spearman's correlation over the heads that have both scores, and how many these are.

    Raises:
        UserError: scores of different shapes, or fewer than three heads with both.
    """
    if one.values.shape != other.values.shape:
        raise UserError(f"scores have shapes {one.values.shape} and {other.values.shape}; give two of one model")
    both = np.isfinite(one.values) & np.isfinite(other.values)
    if (n := int(both.sum())) < 3:
        raise UserError(f"{n} heads have both scores; a rank correlation needs three")
    return float(sps.spearmanr(one.values[both], other.values[both]).statistic), n


def auroc(scores: HeadScores, heads: Collection[Head]) -> float:
    """Chance that a head of ``heads`` scores higher than one of the others (1: all of them rank first).

    Raises:
        UserError: a head that was not scored, or no head on one of the sides.
    """
    positive = np.zeros(scores.values.shape, dtype=bool)
    for layer, head in heads:
        if not (0 <= layer < positive.shape[0] and 0 <= head < positive.shape[1]):
            raise UserError(
                f"head L{layer}.H{head} does not exist; scored are {positive.shape[0]} x {positive.shape[1]}"
            )
        positive[layer, head] = True
    scored = np.isfinite(scores.values)
    inside, outside = scores.values[positive & scored], scores.values[~positive & scored]
    if not len(inside) or not len(outside):
        raise UserError("auroc needs scored heads on both sides")
    return float(sps.mannwhitneyu(inside, outside).statistic / (len(inside) * len(outside)))


def _only(result: Result, column: str, wanted: str | None) -> str:
    found = list(result.docs[column].unique())
    if wanted is None:
        if len(found) > 1:
            raise UserError(f"there are several {column}s; name one of {', '.join(found)}")
        return found[0]
    if wanted not in found:
        raise unknown(column, wanted, found)
    return wanted


def _changes(result: Result, task: str, metric: str) -> pd.DataFrame:
    """Score under each head's removal minus baseline; documents x conditions."""
    docs = result.docs[(result.docs["task"] == task) & (result.docs["metric"] == metric)]
    table = docs.pivot(index="doc_id", columns="condition", values="value").sort_index(axis=1)
    return table.drop(columns=BASELINE).sub(table[BASELINE], axis=0)
