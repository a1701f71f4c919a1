"""Paired comparison of every condition with the baseline on the same documents, and nothing else.

Method, per condition against ``baseline``, document by document:

* **0/1 metrics** (accuracy, exact match). With ``lost`` documents right at baseline and wrong under the
  condition, and ``gained`` the other way round, the difference is ``(gained - lost) / n``. Its 95% interval
  is Tango's score interval [1], which keeps its coverage at small n. No interval is given where fewer than `FEWEST`
  documents change: only few counts are possible then, and no procedure covers as often as it says. The test is
  McNemar's exact one [2], a two-sided sign test on the discordant documents. It is the more cautious of the two, so
  that an interval can just exclude 0 where p is a little above 0.05.
* **Other metrics** (F1, log-likelihood). Paired t test, and the t interval with Hall's correction for skewness [6],
  so that the interval can just contain 0 where p is a little below 0.05, and the other way round.
* **Correction**, over all conditions of one (model, task, metric): ``p_adjusted`` is step-down maxT by sign flips of
  documents (`depthlens.analysis.max_t`). ``p_holm`` is Holm's [3] of the p-values above, as a cross-check: it knows
  nothing of the correlation of conditions, and trusts Student's t far into its tails.

Assumption: documents are independent of one another. Limit: where single documents hold most of a loss, intervals are
several times as long as Student's on the side of the long tail (``docs/methods.md`` says how long).

References: [1] Tango 1998, Statistics in Medicine 17:891-908. [2] McNemar 1947, Psychometrika 12:153-157;
Fagerland, Lydersen, Laake 2013, BMC Med Res Methodol 13:91. [3] Holm 1979, Scand J Stat 6:65-70.
[4] Wilson 1927, JASA 22:209-212. [5] Hanley, Lippman-Hand 1983, JAMA 249:1743-1745 (rule of three).
[6] Hall 1992, JRSS B 54:221-228. [7] Korn, Graubard 1998, Survey Methodology 24:193-201.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike

from depthlens.analysis.max_t import max_t
from depthlens.errors import UserError
from depthlens.metrics import limits

Counts = ArrayLike | int
BASELINE = "baseline"
LEVEL = 0.95
ALPHA = 0.05
LEFT_OF_SKEWNESS = 10.0  # what Hall's transformation leaves, in shares of alpha by squared skewness; see `hall_ends`
FEWEST = 4  # documents that have to differ; of fewer no procedure covers in 93% to 97% (docs/methods.md)
GROUP = ["model", "task", "metric"]
SUMMARY_COLUMNS = [
    *GROUP, "condition", "layer", "head", "n", "value", "baseline", "delta", "ci_low", "ci_high", "p_value",
    "p_adjusted", "p_holm",
]  # fmt: skip


def is_binary(values: ArrayLike) -> bool:
    """Whether every value is 0 or 1, so that the mean is a proportion."""
    values = np.asarray(values, dtype=float)
    return bool(np.all((values == 0) | (values == 1)))


def proportion_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson score interval [4] of a proportion."""
    from statsmodels.stats.proportion import proportion_confint  # slow to import

    low, high = proportion_confint(successes, n, alpha=1 - LEVEL, method="wilson")
    return float(low), float(high)


def mean_interval(values: ArrayLike, limits: tuple[float, float] = (-math.inf, math.inf)) -> tuple[float, float]:
    """Interval of a mean; see `mean_intervals`. (NaN, NaN) for one value, which says nothing about spread.

    Args:
        values: Shape [n_values].
        limits: The least and the greatest mean that there can be; an end beyond them is cut off.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float("nan"), float("nan")
    low, high = np.clip(mean_intervals(values[None]), *limits)
    return float(low[0]), float(high[0])


def mean_intervals(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Student's t interval of each row's mean, corrected for skewness by Hall's transformation [6]; see `hall_ends`.

    The interval is longer on the side where the long tail is; without skewness it is Student's.

    Args:
        values: Shape [n_rows, n_values], at least two values.

    Returns:
        Lower and upper bounds. Shapes [n_rows].
    """
    n = values.shape[1]
    mean = values.mean(axis=1)
    deviations = values - mean[:, None]
    spread = np.sqrt(np.square(deviations).mean(axis=1))
    cubes = (deviations**3).mean(axis=1)
    varies = spread > 1e-9 * np.abs(values).max(initial=0.0)
    skewness = np.divide(cubes, spread**3, out=np.zeros_like(mean), where=varies)
    low, high = mean - spread / math.sqrt(n - 1) * hall_ends(skewness / math.sqrt(n), n)
    return low, high


def bounded_mean_intervals(values: np.ndarray) -> np.ndarray:
    """Intervals of means of scores from 0 to 1, many of which may be 0: Wilson's [4] of the effective number [7].

    Scores of mean p and variance s^2 say as much as ``n p (1 - p) / s^2`` answers of 0 or 1, and Wilson's interval for
    that many, with Student's quantile, is longer on the side of the long tail, as theirs is.

    Args:
        values: Shape [n_rows, n_values]. What rounding leaves outside 0 to 1 is cut off.

    Returns:
        Lower and upper bounds; NaN where fewer than `FEWEST` scores are not 0, or not 1, or all are alike. Shape
        [2, n_rows].
    """
    n = values.shape[1]
    values = np.clip(values, 0.0, 1.0)
    mean, variance = values.mean(axis=1), values.var(axis=1, ddof=min(1, n - 1))
    few = (np.minimum((values > 0).sum(axis=1), (values < 1).sum(axis=1)) < FEWEST) | (np.ptp(values, axis=1) < 1e-9)
    effective = np.divide(n * mean * (1 - mean), variance, out=np.full(len(values), np.inf), where=variance > 0)
    share = scipy.stats.t.ppf(1 - ALPHA / 2, max(1, n - 1)) ** 2 / effective
    half = np.sqrt(share * mean * (1 - mean) + share**2 / 4)
    ends = np.stack([mean + share / 2 - half, mean + share / 2 + half]) / (1 + share)
    return np.where(few, np.nan, ends.clip(0.0, 1.0))


def hall_ends(skewness: np.ndarray, n: int, alpha: float = ALPHA) -> np.ndarray:
    """The largest and smallest value of a studentised statistic, by Hall's transformation [6] and a lowered alpha.

    With ``a = skewness / 3`` the studentised statistic T becomes ``((1 + a T)^3 - 1) / (3 a) + a / 2``, which is free
    of skewness to second order and rises with T, and is read with Student's t. What is left grows with the square of
    the skewness, and so does the error of the skewness itself, because a sample without a rare fragile document does
    not know of it. Therefore Student's t is read at ``alpha / (1 + 10 skewness^2)`` (`LEFT_OF_SKEWNESS`). The 10 is
    from simulation: means of normal, exponential, bounded and log-normal values and of losses like ours (skewness 0 to
    5; 30, 100 and 300 documents) are then covered in 93% to 97%, against 90% to 96% at alpha itself.

    Args:
        skewness: Of the statistic that was studentised; of a mean, that of the values divided by sqrt(n). Shape [...].
        n: Documents.
        alpha: Share of intervals that may miss the true value.

    Returns:
        Shape [2, ...].
    """
    skewness = np.asarray(skewness, dtype=float)
    quantile = scipy.stats.t.ppf(1 - alpha / (1 + LEFT_OF_SKEWNESS * skewness**2) / 2, n - 1)
    a, t = skewness / 3, np.stack([quantile, -quantile])
    return np.divide(np.cbrt(1 + 3 * a * (t - a / 2)) - 1, a, out=t.copy(), where=np.abs(a) > 1e-6)


def above_chance(values: ArrayLike, chance: float) -> float:
    """One-sided p-value that the mean of ``values`` exceeds ``chance``.

    Exact binomial test for 0/1 values, one-sided t test otherwise (sign test where values do not vary).
    """
    values = np.asarray(values, dtype=float)
    if is_binary(values):
        return float(scipy.stats.binomtest(int(values.sum()), len(values), chance, alternative="greater").pvalue)
    if np.ptp(values) == 0:
        return float(0.5 ** len(values)) if values[0] > chance else 1.0
    return float(scipy.stats.ttest_1samp(values, chance, alternative="greater").pvalue)


def mcnemar_p(lost: Counts, gained: Counts) -> np.ndarray:
    """Two-sided exact McNemar p-value [2] from both counts of discordant documents; 1 where none is."""
    lost, gained = np.asarray(lost), np.asarray(gained)
    return np.asarray(np.minimum(1.0, 2 * scipy.stats.binom.cdf(np.minimum(lost, gained), lost + gained, 0.5)))


def tango_score(lost: Counts, gained: Counts, n: int, difference: np.ndarray) -> np.ndarray:
    """Tango's score statistic [1] of the hypothesis that the paired difference is ``difference``; see `tango_interval`.

    About standard normal under the hypothesis, and above 0 where the difference at hand is larger.
    """
    lost, gained, d = (np.asarray(values, dtype=float) for values in (lost, gained, difference))
    b = (2 * n - gained + lost) * d - gained - lost
    c = -lost * d * (1 - d)
    q = (np.sqrt(np.maximum(b * b - 8 * n * c, 0)) - b) / (4 * n)
    variance = n * (2 * q + d * (1 - d))
    with np.errstate(divide="ignore", invalid="ignore"):  # variance is 0 only at d = -1, 0 or 1
        return np.where(variance > 0, (gained - lost - n * d) / np.sqrt(np.maximum(variance, 0)), 0.0)


def tango_interval(lost: Counts, gained: Counts, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Tango's score interval [1] of the paired difference ``(gained - lost) / n``, for arrays of counts.

    The interval holds every difference d that the score test does not reject, |T(d)| <= z, where
    ``T(d) = (gained - lost - n d) / sqrt(n (2 q + d (1 - d)))`` and q is the maximum-likelihood probability
    of a lost document given d, the larger root of ``2n q^2 + B q + C = 0`` with
    ``B = (2n - gained + lost) d - gained - lost`` and ``C = -lost d (1 - d)``. T falls with d, so that each
    end is found by bisection.
    """
    lost, gained = np.broadcast_arrays(np.asarray(lost, dtype=float), np.asarray(gained, dtype=float))
    shape, lost, gained = lost.shape, lost.ravel(), gained.ravel()

    def root(target: float) -> np.ndarray:
        low, high = np.full(lost.shape, -1.0), np.full(lost.shape, 1.0)
        for _ in range(60):  # 2 / 2**60 is below the spacing of floats near 1
            middle = (low + high) / 2
            above = tango_score(lost, gained, n, middle) > target
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return ((low + high) / 2).reshape(shape)

    z = scipy.stats.norm.ppf((1 + LEVEL) / 2)
    return root(z), root(-z)


def paired_t(differences: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interval (`mean_intervals`) and two-sided paired t p-value for each row of differences [n_conditions, n_docs].

    Where all differences of a row are equal there is no variance to divide by. Then p is that of the exact
    sign-flip test, ``2**(1 - n)`` (1 if the differences are 0), and the interval is the rule of three [5]:
    with 95% confidence at most a share ``1 - 0.025**(1 / n)`` of documents differs otherwise, each by no more than
    ``spread``.

    Args:
        differences: Condition minus baseline per document.
        spread: Largest minus smallest value of the metric seen in any condition.

    Returns:
        Lower bounds, upper bounds, p-values.
    """
    n = differences.shape[1]
    mean = differences.mean(axis=1)
    slack = spread * (1 - ((1 - LEVEL) / 2) ** (1 / n))
    low, high = mean - slack, mean + slack
    p = np.where(mean == 0, 1.0, 2.0 ** (1 - n))
    # Differences that should be equal differ by rounding; a variance made of rounding would give p = 0.
    varies = np.ptp(differences, axis=1) > 1e-9 * spread
    if varies.any():
        low[varies], high[varies] = mean_intervals(differences[varies])
        p[varies] = scipy.stats.ttest_1samp(differences[varies], 0.0, axis=1).pvalue
    return low, high, p


def paired_change(base: np.ndarray, others: np.ndarray, *, binary: bool) -> tuple[np.ndarray, ...]:
    """Change of the mean score from the baseline to each condition, over the same documents.

    Args:
        base: Scores at baseline. Shape [n_docs].
        others: Scores under each condition. Shape [n_conditions, n_docs].
        binary: Whether all scores are 0 or 1 (or all 0 or -1, of a score whose sign was turned).

    Returns:
        Differences, lower bounds, upper bounds and p-values, each of shape [n_conditions]. The bounds of 0/1 scores are
        NaN where fewer than `FEWEST` documents change: hardly anything but these counts is known there.
    """
    differences = others - base
    if not binary:
        return differences.mean(axis=1), *paired_t(differences, float(np.ptp(np.vstack([base, others]))))
    lost, gained = (differences < 0).sum(axis=1), (differences > 0).sum(axis=1)
    ends = np.where(lost + gained >= FEWEST, tango_interval(lost, gained, len(base)), np.nan)
    low, high = ends
    return (gained - lost) / len(base), low, high, mcnemar_p(lost, gained)


def change(base: np.ndarray, other: np.ndarray) -> tuple[float, float, float, float]:
    """`paired_change` of one condition: difference, lower bound, upper bound, p-value. Both have shape [n_docs]."""
    values = paired_change(base, other[None], binary=is_binary(np.abs([base, other])))
    delta, low, high, p = (float(value[0]) for value in values)
    return delta, low, high, p


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's step-down adjusted p-values [3]: the i-th smallest of m (from 0) times m - i, never falling.

    Args:
        p_values: Shape [..., m]; each row is one family of tests.
    """
    # Not statsmodels' multipletests: it collects garbage on every call, which takes longer than all the rest.
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, axis=-1, kind="stable")
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(1.0, np.maximum.accumulate(steps, axis=-1)), -1)
    return adjusted


def holm_of_known(p_values: ArrayLike) -> np.ndarray:
    """`holm` over the tests that there are, one family of shape [m]; NaN stays NaN."""
    p = np.array(p_values, dtype=float)
    known = np.isfinite(p)
    p[known] = holm(p[known])
    return p


def baseline(values: np.ndarray, chance: int | float | None, higher_is_better: bool) -> tuple[Any, ...]:
    """Score of the whole model, its 95% interval, and whether it is at chance.

    Args:
        values: Scores. Shape [n_docs].
        chance: Of guessing; None where there is no such level.
        higher_is_better: Of the metric.

    Returns:
        Number of documents, mean, lower bound, upper bound, chance, p-value of a mean better than chance (NaN without
        a chance level), and whether the score is at chance.
    """
    binary = is_binary(values)
    low, high = proportion_interval(int(values.sum()), len(values)) if binary else mean_interval(values)
    p = math.nan
    if chance is not None:  # a lower-is-better score beats chance where its complement does
        p = above_chance(values, float(chance)) if higher_is_better else above_chance(1 - values, 1.0 - chance)
    nothing_right = binary and higher_is_better and not values.any()
    at_chance = bool(nothing_right or (chance is not None and not p < ALPHA))
    return len(values), values.mean(), low, high, chance, p, at_chance


def summarise(docs: pd.DataFrame) -> pd.DataFrame:
    """One row per (model, task, metric, condition): mean, paired difference, interval, p-values.

    ``p_value`` is of one condition alone, ``p_adjusted`` and ``p_holm`` are corrected over those of a task and metric.

    Conditions keep their order of first appearance, baseline first. The baseline row has delta 0, interval
    0..0 and no p-value.

    Raises:
        UserError: no baseline, documents that differ from the baseline's, a document twice, or a value that
            is not finite; each names the condition.
    """
    if docs.empty:
        raise UserError("no documents to summarise; run a sweep with at least one document")
    parts = [_summarise_group(key, group) for key, group in docs.groupby(GROUP, sort=False, observed=True)]
    return pd.concat(parts, ignore_index=True)[SUMMARY_COLUMNS]


def _summarise_group(key: tuple[str, str, str], group: pd.DataFrame) -> pd.DataFrame:
    values = _matrix(group, f"{key[1]} {key[2]} of {key[0]}")
    table = group.drop_duplicates("condition").set_index("condition", drop=False).loc[list(values.index)]
    table = table[[*GROUP, "condition", "layer", "head"]].reset_index(drop=True)
    values = values.to_numpy()
    binary = is_binary(values)
    delta, low, high, p = paired_change(values[0], values[1:], binary=binary)
    least, greatest = limits(key[2], values.min(), values.max())
    low, high = np.clip([low, high], least - greatest, greatest - least)
    p_adjusted = max_t(values[1:] - values[0], symmetric=binary)
    table["n"] = values.shape[1]
    table["value"] = values.mean(axis=1)
    table["baseline"] = values[0].mean()
    for column, blank, rest in [
        ("delta", 0.0, delta), ("ci_low", 0.0, low), ("ci_high", 0.0, high),
        ("p_value", np.nan, p), ("p_adjusted", np.nan, p_adjusted),
        ("p_holm", np.nan, holm(p)),
    ]:  # fmt: skip
        table[column] = np.concatenate([[blank], rest])
    return table


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
