"""What removing lists of heads costs, compared between lists and tasks: differences, each with its own test.

That one list costs significantly much and another does not is no difference between them (Gelman and Stern 2006, The
American Statistician 60:328-331). Every statement about two lists or two tasks is therefore a test of the difference,
document by document. Costs are means over k > 0. Between two tasks they are shares of what the whole model scores above
the floor (chance, or 0 for scores that are never below), and nats as they are; a share takes the whole model's score as
known.

A difference between tasks is a sum of two means. Documents of two tasks are paired where all of them are the same
(`depthlens.analysis.questions.identities`); otherwise the means are independent, and the interval is Welch's (1947).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy

from depthlens.ablations import heads_condition
from depthlens.analysis import questions, stats
from depthlens.analysis.layer_profiles import floor_of
from depthlens.analysis.stats import ALPHA, BASELINE
from depthlens.metrics import metric_unit

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

TIMES = 3  # a list should cost so many times what random heads cost
Estimate = tuple[float, float, float, float]  # mean, lower and upper bound, two-sided p-value


@dataclass(frozen=True)
class Costs:
    """What lists and their random rivals cost on one task, document by document.

    Attributes:
        task: Its name.
        metric: Its name.
        at_chance: Whether there is nothing to lose.
        lists: Cost of each list. Each of shape [document].
        random: Mean cost of its random rivals. Each of shape [document].
        scale: What a cost is divided by between tasks; NaN where there is no floor.
        documents: Their identities, see `depthlens.analysis.questions.identities`.
    """

    task: str
    metric: str
    at_chance: bool
    lists: dict[str, np.ndarray]
    random: dict[str, np.ndarray]
    scale: float
    documents: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Costs of one kind can be compared between tasks."""
        return metric_unit(self.metric) or "share"


def costs(result: Result, record: dict[str, Any]) -> list[Costs]:
    """Costs on every task and metric of a removal curve.

    Args:
        result: Every document under every condition.
        record: Of the curve: its lists, draws and k.
    """

    def mean(orders: list, losses: pd.DataFrame) -> np.ndarray:
        suffix = record.get("suffix", "")  # curves that were saved before there was one have none
        names = [str(heads_condition([tuple(h) for h in heads[:k]], suffix)) for heads in orders for k in record["k"]]
        return losses[names].mean(axis=1).to_numpy()

    found = []
    for base in result.baselines.itertuples():
        losses = result.document_losses(base.task, base.metric)
        found.append(
            Costs(
                task=base.task,
                metric=base.metric,
                at_chance=bool(base.at_chance),
                lists={name: mean([heads], losses) for name, heads in record["lists"].items()},
                random={name: mean(orders, losses) for name, orders in record["draws"].items()},
                scale=_scale(result, base),
                documents=tuple(questions.identities(result, base.task)),
            )
        )
    return found


def _scale(result: Result, base: Any) -> float:
    if metric_unit(base.metric):
        return 1.0
    scores, info = result.scores(base.task, base.metric), result.metric_info(base.task, base.metric)
    floor = floor_of(result, base.task, info, bool((scores >= 0).all(axis=None)))
    sign = 1.0 if info["higher_is_better"] else -1.0
    scale = np.nan if floor is None else abs(float(sign * scores[BASELINE].mean() - floor))
    return scale if scale > 0 else np.nan


def excess_table(found: list[Costs]) -> pd.DataFrame:
    """Cost of a list beyond its random rivals; see `depthlens.analysis.removal_curve.RemovalCurve.excess`."""
    return _one_task(found, "excess", lambda own, random: own - random)


def ratio_table(found: list[Costs]) -> pd.DataFrame:
    """Cost of a list minus ``TIMES`` that of its random rivals; see `RemovalCurve.ratio`."""
    return _one_task(found, "effect", lambda own, random: own - TIMES * random)


def _one_task(found: list[Costs], column: str, contrast: Any) -> pd.DataFrame:
    rows = []
    for name in found[0].lists:
        for on in found:
            values = contrast(on.lists[name], on.random[name])
            mean, low, high, _ = one_mean(values)
            rows.append((name, on.task, on.metric, mean, low, high, len(values), on.at_chance))
    columns = ["list", "task", "metric", column, "ci_low", "ci_high", "n", "at_chance"]
    return pd.DataFrame(rows, columns=columns)


def interaction_table(found: list[Costs]) -> pd.DataFrame:
    """List x task interactions; see `depthlens.analysis.removal_curve.RemovalCurve.interactions`."""
    rows = []
    for a, b in combinations(found[0].lists, 2):
        for one, two in combinations(found, 2):
            if one.task == two.task or one.kind != two.kind:
                continue
            first = (one.lists[a] - one.lists[b]) / one.scale
            second = (two.lists[b] - two.lists[a]) / two.scale
            at_chance = one.at_chance or two.at_chance
            effect, sides = _two(one, two, first, second), [one_mean(first), one_mean(second)]
            p_sides = stats.holm([side[3] for side in sides])
            sign = np.sign(effect[0])
            proven = [sign * m > 0 and p < ALPHA for m, p in [(effect[0], effect[3]), *_with(sides, p_sides)]]
            names = a, b, one.task, two.task, one.metric, two.metric
            terms = sides[0][0], p_sides[0], sides[1][0], p_sides[1], min(len(first), len(second))
            rows.append((*names, *effect, *terms, bool(all(proven)) and not at_chance, at_chance))
    columns = ["list", "other_list", "task", "other_task", "metric", "other_metric", "effect", "ci_low", "ci_high"]
    columns += ["p_value", "on_task", "p_on_task", "on_other", "p_on_other", "n", "double", "at_chance"]
    return pd.DataFrame(rows, columns=columns)


def _with(sides: list[Estimate], p_values: np.ndarray) -> list[tuple[float, float]]:
    return [(side[0], float(p)) for side, p in zip(sides, p_values, strict=True)]


def specificity_table(found: list[Costs]) -> pd.DataFrame:
    """Excess on one task minus excess on another; see `depthlens.analysis.removal_curve.RemovalCurve.specificity`."""
    rows = []
    for name in found[0].lists:
        for one, two in permutations(found, 2):
            if one.task == two.task or one.kind != two.kind:
                continue
            first, second = ((on.lists[name] - on.random[name]) / on.scale for on in (one, two))
            effect = _two(one, two, first, -second)
            at_chance = one.at_chance or two.at_chance
            n = min(len(first), len(second))
            rows.append((name, one.task, two.task, one.metric, two.metric, *effect, n, at_chance))
    columns = ["list", "task", "other_task", "metric", "other_metric", "effect", "ci_low", "ci_high", "p_value", "n"]
    return pd.DataFrame(rows, columns=[*columns, "at_chance"])


def _two(one: Costs, two: Costs, first: np.ndarray, second: np.ndarray) -> Estimate:
    return one_mean(first + second) if one.documents == two.documents else sum_of_means(first, second)


def one_mean(values: np.ndarray) -> Estimate:
    """Mean of differences per document with Student's interval; that of `stats.paired_t` where none differs."""
    if not np.isfinite(values).all():
        return (np.nan,) * 4
    if len(values) < 2:
        return float(values[0]), np.nan, np.nan, 1.0
    spread = max(1.0, float(np.ptp(values)))  # of a score between 0 and 1, where all differences are the same
    low, high, p = (float(bound[0]) for bound in stats.paired_t(values[None], spread))
    return float(values.mean()), low, high, p


def sum_of_means(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Sum of the means of two independent samples, with Welch's interval and test.

    Where one of them does not vary, its mean counts as uncertain as that of one whose values are not all the same in
    one document.
    """
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return (np.nan,) * 4
    mean = float(first.mean() + second.mean())
    if min(len(first), len(second)) < 2:
        return mean, np.nan, np.nan, 1.0
    variance, freedom = zip(_variance(first), _variance(second), strict=True)
    error = float(np.sqrt(sum(variance)))
    df = sum(variance) ** 2 / sum(v**2 / f for v, f in zip(variance, freedom, strict=True))
    half = float(scipy.stats.t.ppf(1 - ALPHA / 2, df)) * error
    return mean, mean - half, mean + half, float(2 * scipy.stats.t.sf(abs(mean) / error, df))


def _variance(values: np.ndarray) -> tuple[float, int]:
    """Squared standard error of a mean and its degrees of freedom; one document counts as different if none is."""
    n = len(values)
    spread = float(values.var(ddof=1))
    return max(spread, 1 / n if spread < 1e-18 else 0.0) / n, n - 1
