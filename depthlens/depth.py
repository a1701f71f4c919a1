"""What a layer sweep says about depth: losses by depth third, agreement of two tasks' profiles, findings in words.

Intervals are percentile bootstraps over documents (Efron & Tibshirani 1993, chapter 13); documents are drawn jointly
for tasks that share them, since the same question is easy or hard under every protocol. Tasks at chance are left out: a
loss cannot be told where there is nothing to lose.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from depthlens.errors import UserError
from depthlens.results import Result
from depthlens.stats import BASELINE

N_BOOT = 1000
THIRDS = ("first third", "middle third", "last third")


def primary(result: Result) -> Result:
    """The result with the first metric of each task only."""
    return result.select(metric=list(dict.fromkeys(result.baselines.drop_duplicates("task")["metric"])))


def judged(result: Result) -> list[str]:
    """Tasks that are not at chance with everything in place."""
    return list(result.baselines.loc[~result.baselines["at_chance"], "task"].unique())


def loss_by_third(result: Result, *, seed: int = 0, n_boot: int = N_BOOT) -> pd.DataFrame:
    """Mean loss of removing one layer of each depth third, as a share of what the whole model scores above chance.

    0: nothing is lost; 1: the task falls to guessing.

    Args:
        result: A layer sweep with one metric a task (see `primary`).
        seed: Of the bootstrap.
        n_boot: Number of draws.

    Returns:
        One row a task and third: task, third, loss, ci_low, ci_high.

    Raises:
        UserError: the result has no single-layer conditions, or several metrics of one task.
    """
    rows = []
    for task in judged(result):
        values, base, layers = _tables(result, task)
        chance = result.metric_info(task, _metric(result, task))["chance"] or 0.0
        draws = _draws(len(base), n_boot, seed) / len(base)
        third = layers * 3 // (layers.max() + 1)
        for i, name in enumerate(THIRDS):
            mean = values[:, third == i].mean(1)
            with np.errstate(divide="ignore", invalid="ignore"):
                share = (draws @ (base - mean)) / (draws @ base - chance)
            # draws whose baseline does not beat chance have no share to give
            low, high = np.nanquantile(np.where(draws @ base > chance, share, np.nan)[1:], [0.025, 0.975])
            rows.append((task, name, share[0], low, high))
    return pd.DataFrame(rows, columns=["task", "third", "loss", "ci_low", "ci_high"])


def rank_agreement(result: Result, *, seed: int = 0, n_boot: int = N_BOOT) -> pd.DataFrame:
    """Spearman's correlation between the layer profiles of every two tasks that can be judged.

    Noise in both profiles pulls it towards zero: a low value from few documents is no proof of disagreement.

    Args:
        result: A layer sweep with one metric a task.
        seed: Of the bootstrap.
        n_boot: Number of draws.

    Returns:
        One row a pair: task, other, spearman, ci_low, ci_high.

    Raises:
        UserError: see `loss_by_third`.
    """
    rows = []
    for one, other in itertools.combinations(judged(result), 2):
        profiles = [_tables(result, task)[0] for task in (one, other)]
        sizes = {len(p) for p in profiles}
        if len(sizes) == 1:
            shared = _draws(sizes.pop(), n_boot, seed)
            drawn = [shared @ p for p in profiles]
        else:
            drawn = [_draws(len(p), n_boot, seed + i) @ p for i, p in enumerate(profiles)]
        a, b = (pd.DataFrame(d).rank(axis=1) for d in drawn)
        rho = a.corrwith(b, axis=1).to_numpy()
        low, high = np.nanquantile(rho[1:], [0.025, 0.975])
        rows.append((one, other, rho[0], low, high))
    return pd.DataFrame(rows, columns=["task", "other", "spearman", "ci_low", "ci_high"])


def critical_overlap(result: Result) -> pd.DataFrame:
    """Which conditions are critical under both of two tasks, and under one alone.

    Returns:
        One row a pair of tasks that can be judged: task, other, both, only_task, only_other (texts, ``none`` if empty).
    """
    found = critical_by_task(result)

    def text(conditions: list[str]) -> str:
        return ", ".join(conditions) or "none"

    rows = [
        (
            one,
            other,
            text([c for c in found[one] if c in found[other]]),
            text([c for c in found[one] if c not in found[other]]),
            text([c for c in found[other] if c not in found[one]]),
        )
        for one, other in itertools.combinations(judged(result), 2)
    ]
    return pd.DataFrame(rows, columns=["task", "other", "both", "only_task", "only_other"])


def critical_by_task(result: Result) -> dict[str, list[str]]:
    """Conditions that are critical, for each task that can be judged, in order of depth."""
    tasks = judged(result)
    table = result.select(task=tasks).critical() if tasks else pd.DataFrame(columns=["task", "condition"])
    return {task: table.loc[table["task"] == task, "condition"].tolist() for task in tasks}


def findings(result: Result) -> list[str]:
    """One sentence a task: how many conditions are critical, which, and what the whole model scores."""
    found = critical_by_task(result)
    sentences = []
    for row in result.baselines.itertuples():
        conditions = result.docs.loc[result.docs["task"] == row.task, "condition"]
        scored = f"{row.baseline:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}] with nothing removed, n = {row.n}"
        if row.at_chance:
            sentences.append(f"{row.task}: at chance, cannot judge ({scored}).")
            continue
        names = found[row.task]
        total = conditions.nunique() - (BASELINE in set(conditions))
        critical = f"**{len(names)} of {total}** conditions proved critical ({', '.join(names) or 'none'})"
        sentences.append(f"{row.task}: {critical}; {scored}.")
    return sentences


def _metric(result: Result, task: str) -> str:
    metrics = result.docs.loc[result.docs["task"] == task, "metric"].unique()
    if len(metrics) != 1:
        raise UserError(f"task {task} has metrics {', '.join(metrics)}; choose one with select(metric=...)")
    return metrics[0]


def _tables(result: Result, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values [doc, layer], baseline values [doc] and layer numbers [layer] of one task's single-layer conditions."""
    _metric(result, task)
    docs = result.docs[result.docs["task"] == task]
    single = docs[docs["layer"].notna() & docs["head"].isna()]
    if single["condition"].nunique() != single["layer"].nunique() or not len(single):
        raise UserError(f"task {task} has not one condition a layer; give the result of a layer sweep")
    values = single.pivot(index="doc_id", columns="layer", values="value")
    base = docs[docs["condition"] == BASELINE].set_index("doc_id")["value"].loc[values.index]
    sign = 1.0 if result.metric_info(task, _metric(result, task))["higher_is_better"] else -1.0
    return sign * values.to_numpy(), sign * base.to_numpy(), values.columns.to_numpy(dtype=int)


def _draws(n: int, n_boot: int, seed: int) -> np.ndarray:
    """How often each document is drawn: the sample itself, then bootstrap draws. Shape [1 + n_boot, doc]."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot)
    return np.vstack([np.ones(n), counts])  # counts and not shares: sums of 0/1 values stay exact, so ties stay ties
