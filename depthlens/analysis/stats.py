"""Paired comparison of every condition with the baseline on the same documents, and nothing else.

Per condition against ``baseline``, document by document: the mean change, its interval and its p-value
(`depthlens.analysis.means`), and ``p_adjusted``, step-down maxT over all conditions of one model, task and metric. The
unit is the question, and in a group of tasks the subject.

Tests and intervals are of bounded changes: of right or wrong, of probabilities, or of nats that are clipped to 1 a
document, because no test of a mean can exclude a rare large change that was never seen (Bahadur & Savage 1956, Ann.
Math. Stat. 27:1115-1122). The mean change of nats without a bound stands beside.

**How many documents** show a loss of right answers that matters, with a stated probability: exact, from the binomial
distribution of the lost documents and the sign test, corrected for the number of conditions. It misleads where new
documents are of another kind, and where documents are gained, too: then more are needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
POWER, LOSS_THAT_MATTERS = 0.8, 0.1  # probability that a loss is found; of a score that is a share of right answers
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


def changes(metric: str, differences: np.ndarray, units: Sequence[str] | np.ndarray | pd.Series | None = None) -> Mean:
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

    found, level = mean(values, units), np.nan if chance is None else float(chance)
    of_unit = values if units is None else pd.Series(values).groupby(np.asarray(units)).mean().to_numpy()
    if is_binary(of_unit):
        right, side = int(of_unit.sum()), "greater" if higher_is_better else "less"
        low, high = proportion_confint(right, found.n, alpha=1 - LEVEL, method="wilson")
        p = np.nan if chance is None else scipy.stats.binomtest(right, found.n, level, alternative=side).pvalue
    else:
        low, high = found.interval()
        above = (found.value - level) * (1 if higher_is_better else -1)
        p = scipy.stats.t.sf(above / found.error, max(found.n - 1, 1))
    nothing_right = is_binary(values) and higher_is_better and not values.any()
    at_chance = bool(nothing_right or (chance is not None and not p < CHANCE_ALPHA))
    return len(values), values.mean(), float(low), float(high), chance, float(p), at_chance


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
        UserError: no baseline, or a condition without a number for each document of the baseline, which it names.
    """
    groups = docs.groupby(GROUP, sort=False, observed=True)
    parts = [_summarise_group(key, group, (units or {}).get(key[1])) for key, group in groups]
    return pd.concat(parts, ignore_index=True)[SUMMARY_COLUMNS]


def _summarise_group(key: tuple[str, str, str], group: pd.DataFrame, units: pd.Series | None) -> pd.DataFrame:
    scores = _matrix(group, f"{key[1]} {key[2]} of {key[0]}")
    table = group.drop_duplicates("condition").set_index("condition", drop=False).loc[list(scores.index)]
    values = scores.to_numpy()
    differences = (values[1:] - values[0]).T
    found = changes(key[2], differences, None if units is None else units.loc[scores.columns].to_numpy())
    columns = {"delta": differences.mean(0), **found.columns("bounded"), "p_adjusted": max_t(found)}
    for end in ("ci_low", "ci_high"):
        columns[end] = columns[end].clip(*span(key[2], values))
    of_base = [np.nan if name.startswith("p_") else 0.0 for name in columns]
    of_all = {name: np.append(blank, rest) for blank, (name, rest) in zip(of_base, columns.items(), strict=True)}
    return table.assign(n=values.shape[1], value=values.mean(axis=1), baseline=values[0].mean(), **of_all)


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
    table = group.pivot(index="condition", columns="doc_id", values="value").loc[names, group["doc_id"].unique()]
    for name, document in np.argwhere(~np.isfinite(table.to_numpy())):
        fault = f"condition {names[name]!r}: {where} has no number on document {table.columns[document]}"
        raise UserError(f"{fault}; every condition needs one for each document; NaN may be due to float16")
    return table


def documents_for_loss(loss: float, n_conditions: int, *, alpha: float = ALPHA, power: float = POWER) -> int:
    """Documents with which a condition that loses a share ``loss`` of them, and gains none, is shown to cost something.

    The sign test with Bonferroni's correction, which the step-down maxT of `depthlens.Result.summary` is at least as
    strong as.

    Args:
        loss: Share of all documents that turn from right to wrong, above 0 and at most 1.
        n_conditions: Conditions that are compared with the baseline.
        alpha: Family-wise level.
        power: Probability that the condition is found.
    """
    lost = math.floor(math.log2(n_conditions / alpha)) + 2  # the fewest with n_conditions * 2 ** (1 - lost) < alpha
    n = np.arange(lost, math.ceil((lost + 10) * 6 / loss))
    return int(n[np.argmax(scipy.stats.binom.sf(lost - 1, n, loss) >= power)])


def needed_documents(base: np.ndarray, n_conditions: int, *, loss: float = LOSS_THAT_MATTERS) -> int | None:
    """Documents with which a loss of a 0/1 metric is shown with a probability of 80%; None where there are enough.

    Args:
        base: Right (1) or wrong (0) at baseline. Shape [n_docs].
        n_conditions: Conditions that are compared with it.
        loss: The loss that matters, in the score's own unit; the whole score, where that is less.
    """
    if not n_conditions or not base.any():
        return None
    needed = documents_for_loss(min(loss, float(base.mean())), n_conditions)
    return needed if needed > len(base) else None
