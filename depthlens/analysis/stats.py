"""Paired comparison of every condition with the baseline on the same documents, and nothing else.

Per condition against ``baseline``, document by document: the mean change, its interval and its p-value
(`depthlens.analysis.means`), and ``p_adjusted``, step-down maxT over all conditions of one model, task and metric. The
unit is the question, and in a group of tasks the subject.

Tests and intervals are of bounded changes: of right or wrong, of probabilities, or of nats that are clipped to 1 a
document, because no test of a mean can exclude a rare large change that was never seen (Bahadur & Savage 1956, Ann.
Math. Stat. 27:1115-1122). The mean change of nats without a bound stands beside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike

from depthlens.analysis.means import ALPHA as ALPHA
from depthlens.analysis.means import LEVEL, Mean, max_t, mean
from depthlens.errors import UserError
from depthlens.metrics import in_nats, limits, metric_unit

BASELINE = "baseline"
CHANCE_ALPHA = 0.01  # a whole model is above chance where p is below; at 0.05 one in twenty that guess would pass
GROUP = ["model", "task", "metric"]
SUMMARY_COLUMNS = [
    *GROUP, "condition", "layer", "head", "n", "value", "baseline", "delta", "bounded", "ci_low", "ci_high", "p_value",
    "p_adjusted",
]  # fmt: skip
Units = Mapping[str, pd.Series]  # of each task the unit of every document, by its id


def is_binary(values: ArrayLike) -> bool:
    """Whether every value is 0 or 1, so that the mean is a proportion."""
    values = np.asarray(values, dtype=float)
    return bool(np.all((values == 0) | (values == 1)))


def changes(metric: str, differences: np.ndarray, units: pd.Series | np.ndarray | None = None) -> Mean:
    """Mean changes of a metric, bounded: those in nats are clipped to 1 a document.

    Args:
        metric: Its name.
        differences: Shape [document, ...].
        units: See `depthlens.analysis.means.mean`.
    """
    if in_nats(metric):
        differences = np.clip(differences, -1.0, 1.0)
    return mean(differences, units, bounded=bool(np.abs(differences).max(initial=0.0) <= 2))


def loss_unit(metric: str) -> str:
    """The unit of bounded changes of a metric, which figures and tests are of (`changes`)."""
    return f"{metric_unit(metric)}, at most 1 a document".lstrip(", ") if in_nats(metric) else ""


def baseline(
    values: np.ndarray, chance: float | None, higher_is_better: bool, units: pd.Series | np.ndarray | None = None
) -> tuple[Any, ...]:
    """Score of the whole model, its 95% interval, and whether it is at chance.

    Of right and wrong answers the interval is Wilson's (1927, JASA 22:209-212) and the test the exact binomial one.

    Args:
        values: Scores. Shape [n_docs].
        chance: Of guessing; None where there is no such level.
        higher_is_better: Of the metric.
        units: See `depthlens.analysis.means.mean`.

    Returns:
        Number of documents, mean, lower bound, upper bound, chance, p-value of a mean better than chance (NaN without
        a chance level), and whether the score is at chance.
    """
    from statsmodels.stats.proportion import proportion_confint  # slow to import

    found, p = mean(values, units), math.nan
    of_unit = values if units is None else pd.Series(values).groupby(np.asarray(units)).mean().to_numpy()
    binary = is_binary(of_unit)
    right = int(of_unit.sum())
    low, high = proportion_confint(right, found.n, alpha=1 - LEVEL, method="wilson") if binary else found.interval()
    if chance is not None and binary:
        side = "greater" if higher_is_better else "less"
        p = float(scipy.stats.binomtest(right, found.n, float(chance), alternative=side).pvalue)
    elif chance is not None:
        above = float(found.value - chance) * (1 if higher_is_better else -1)
        p = float(scipy.stats.t.sf(above / float(found.error), max(found.n - 1, 1)))
    nothing_right = is_binary(values) and higher_is_better and not values.any()
    at_chance = bool(nothing_right or (chance is not None and not p < CHANCE_ALPHA))
    return len(values), values.mean(), float(low), float(high), chance, p, at_chance


def summarise(docs: pd.DataFrame, units: Units | None = None) -> pd.DataFrame:
    """One row per (model, task, metric, condition): mean, paired change, interval, p-values.

    ``delta`` is the mean change, and ``bounded`` that of `changes`, which ``ci_low``, ``ci_high`` and ``p_value`` (of
    one condition alone) are of; the two differ in nats only. ``p_adjusted`` is corrected over the conditions of a task
    and metric.

    Conditions keep their order of first appearance, baseline first. The baseline row has delta 0, interval
    0..0 and no p-value.

    Args:
        docs: One row per (model, task, metric, condition, document).
        units: The unit of every document of a task; None: each document is its own.

    Raises:
        UserError: no baseline, documents that differ from the baseline's, a document twice, or a value that
            is not finite; each names the condition.
    """
    if docs.empty:
        raise UserError("no documents to summarise; run a sweep with at least one document")
    groups = docs.groupby(GROUP, sort=False, observed=True)
    parts = [_summarise_group(key, group, (units or {}).get(key[1])) for key, group in groups]
    return pd.concat(parts, ignore_index=True)[SUMMARY_COLUMNS]


def _summarise_group(key: tuple[str, str, str], group: pd.DataFrame, units: pd.Series | None) -> pd.DataFrame:
    scores = _matrix(group, f"{key[1]} {key[2]} of {key[0]}")
    table = group.drop_duplicates("condition").set_index("condition", drop=False).loc[list(scores.index)]
    table = table[[*GROUP, "condition", "layer", "head"]].reset_index(drop=True)
    values = scores.to_numpy()
    differences = (values[1:] - values[0]).T
    found = changes(key[2], differences, None if units is None else units.loc[scores.columns].to_numpy())
    table["n"] = values.shape[1]
    table["value"] = values.mean(axis=1)
    table["baseline"] = values[0].mean()
    low, high = np.clip(found.interval(), *span(key[2], values))
    for column, blank, rest in [
        ("delta", 0.0, differences.mean(0)), ("bounded", 0.0, found.value), ("ci_low", 0.0, low),
        ("ci_high", 0.0, high), ("p_value", np.nan, found.p()), ("p_adjusted", np.nan, max_t(found)),
    ]:  # fmt: skip
        table[column] = np.concatenate([[blank], rest])
    return table


def span(metric: str, values: np.ndarray) -> tuple[float, float]:
    """The least and the greatest that a mean change of `changes` can be."""
    if in_nats(metric):
        return -1.0, 1.0
    least, greatest = limits(metric, values.min(), values.max())
    return least - greatest, greatest - least


def _matrix(group: pd.DataFrame, where: str) -> pd.DataFrame:
    """Scores, conditions (baseline first) x documents; refuses what cannot be compared."""
    names = sorted(group["condition"].unique(), key=lambda name: name != BASELINE)
    if BASELINE not in names:
        raise UserError(f"{where} has no {BASELINE!r} condition to compare with; add it to the sweep")
    bad = group[~np.isfinite(group["value"])]
    if len(bad):
        row = bad.iloc[0]
        raise UserError(
            f"condition {row['condition']!r}: {where} is {row['value']} on document {row['doc_id']} "
            f"({len(bad)} such values); run in float32 or leave the condition out"
        )
    repeated = group[group.duplicated(["condition", "doc_id"])]
    if len(repeated):
        row = repeated.iloc[0]
        raise UserError(
            f"condition {row['condition']!r}: {where} has document {row['doc_id']} more than once; keep one row"
        )
    table = group.pivot(index="condition", columns="doc_id", values="value").loc[names, group["doc_id"].unique()]
    differs = np.argwhere((table.isna() != table.loc[BASELINE].isna()).to_numpy())
    if len(differs):
        c, d = differs[0]
        state = "has a document that the baseline lacks:" if np.isnan(table.iloc[0, d]) else "lacks document"
        raise UserError(
            f"condition {names[c]!r}: {where} {state} {table.columns[d]}; "
            "every condition needs the documents of the baseline"
        )
    return table
