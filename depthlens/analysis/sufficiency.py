"""Faithfulness by number of heads kept, its areas CPR and CMD, and random lists beside it.

See `depthlens.experiments.head_curves` for the definitions. Faithfulness and both areas are quotients of means over
documents (`depthlens.analysis.means`), so that the noise of m(none) and m(all) is in their intervals. The test against
random lists is a rank test over the draws, with the documents as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from depthlens.analysis import questions, stats
from depthlens.analysis.findings import Finding
from depthlens.analysis.means import mean
from depthlens.analysis.results import Result
from depthlens.analysis.words import bounds

CANNOT_JUDGE = "cannot judge"


@dataclass(frozen=True, eq=False, repr=False)
class SufficiencyCurve(Finding):
    """What is left of the scores of tasks as only the first k heads of lists are kept, and as random heads are.

    Attributes:
        points: list, task, metric, k, share (k of all heads), value (mean score), faithfulness, ci_low, ci_high (95%
            interval of faithfulness). From k = 0, none kept, to all heads.
        band: list, task, metric, k, share, low, high (range of faithfulness over all random lists), mean, n_draws.
        areas: list, task, metric, cpr, cpr_low, cpr_high, cmd, cmd_low, cmd_high (95% intervals), random_cpr (mean of
            the random lists), random_low, random_high (their range), p_value (rank of CPR among them; NaN where not
            judged), separates (higher than all of them), gap (m(all) - m(none), higher is better; of nats
            clipped to 1 a document), gap_low, gap_high, judged (the gap is proven and the whole model above chance).
        result: Every document under every condition.
        record: Lists, draws and settings.
    """

    RECORD: ClassVar[str] = "sufficiency_curve.json"
    NEXT: ClassVar[str] = "next: describe() says it in words, dl.plots.sufficiency(...) draws it"

    points: pd.DataFrame
    band: pd.DataFrame
    areas: pd.DataFrame
    result: Result
    record: dict[str, Any]

    def display(self) -> tuple[str, pd.DataFrame, list[str]]:
        """What is shown: the areas under the curves."""
        lists, tasks = (", ".join(dict.fromkeys(self.areas[column])) for column in ("list", "task"))
        ks = ", ".join(map(str, self.record["k"]))
        kept = f"{ks} of {self.record['n_heads']} heads kept"
        head = f"SufficiencyCurve of {lists} on {tasks}: {kept}, against {self.record['n_draws']} random lists each"
        columns = ["list", "task", "metric", "cpr", "cmd", "random_cpr", "random_low", "random_high", "p_value", "gap"]
        return head, self.areas[[*columns, "judged"]], []

    def describe(self) -> list[str]:
        """How faithful each list is on each task: one sentence each."""
        return [self._sentence(row) for row in self.areas.itertuples()]

    def _sentence(self, row: Any) -> str:
        where = f"{row.list} on {row.task} ({row.metric})"
        if not row.judged:
            gap = f"{row.gap:.3g} {bounds(row.gap_low, row.gap_high, '.3g')}"
            why = "is not proven, or the whole model is at chance"
            return f"{where}: what all heads together add to the score, {gap}, {why}; {CANNOT_JUDGE}."
        own = self.points[(self.points["list"] == row.list) & (self.points["task"] == row.task)]
        k, share, f = own.loc[own["k"] == max(self.record["k"]), ["k", "share", "faithfulness"]].to_numpy()[0]
        reached = f"{int(k)} heads ({share:.0%}) restore {f:.0%} of what all heads add to the score"
        areas = f"CPR {row.cpr:.2f} [{row.cpr_low:.2f}, {row.cpr_high:.2f}], "
        areas += f"CMD {row.cmd:.2f} [{row.cmd_low:.2f}, {row.cmd_high:.2f}]"
        rank = f"random lists of the same layers have CPR {row.random_cpr:.2f} "
        rank += f"[{row.random_low:.2f}, {row.random_high:.2f}], p = {row.p_value:.2g}"
        return f"{where}: {reached}; {areas}; {rank}."


def faithfulness(kept: np.ndarray, none: np.ndarray, whole: np.ndarray, *, higher_is_better: bool = True) -> np.ndarray:
    """``(m(kept) - m(none)) / (m(all) - m(none))``; NaN where the whole model is not better than none.

    Args:
        kept: Mean scores with some heads kept. Shape [curve, k].
        none: With none. Shape [curve].
        whole: With all. Shape [curve].
        higher_is_better: Of the metric.
    """
    sign = 1 if higher_is_better else -1
    gap = sign * (whole - none)[..., None]
    return sign * (kept - none[..., None]) / np.where(gap > 0, gap, np.nan)


def areas(f: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CPR, the area under faithfulness, and CMD, the area between it and 1, by the trapezoidal rule.

    Args:
        f: Faithfulness. Shape [curve, point].
        shares: Share of heads kept, from 0 to 1. Shape [point].

    Returns:
        CPR and CMD of each curve, each of shape [curve].
    """
    return np.trapezoid(f, shares, axis=-1), np.trapezoid(np.abs(1 - f), shares, axis=-1)


def with_intervals(
    values: np.ndarray, shares: np.ndarray, units: Any = None, *, higher_is_better: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Faithfulness by number of heads kept, then CPR and CMD, each with its 95% interval.

    Args:
        values: Scores: with no head kept first, and with all last. Shape [document, k].
        shares: Share of heads kept. Shape [k].
        units: See `depthlens.analysis.means.mean`.
        higher_is_better: Of the metric.

    Returns:
        Value, lower and upper end. Shapes [3, k] and [2, 3].
    """
    restored = (values - values[:, :1]) * (1 if higher_is_better else -1)
    missing = restored[:, -1:] - restored
    steps = np.diff(shares)
    width = (np.append(steps, 0) + np.append(0, steps)) / 2  # of the trapezoidal rule
    both = np.stack([restored @ width, missing @ (width * np.sign(missing.mean(0)))], 1)
    gap = mean(restored[:, -1], units, bounded=False)
    bounded = bool(np.abs(restored).max() <= 1)
    f, found = (mean(part, units, bounded=bounded) / gap for part in (restored, both))
    low, high = f.interval()
    low[[0, -1]] = high[[0, -1]] = f.value[[0, -1]]  # 0 and 1 by definition
    least, most = found.interval()
    return np.stack([f.value, low, high]), np.stack([found.value, np.maximum(least, [-np.inf, 0]), most], 1)


def assemble(
    result: Result, conditions: dict[str, list[list[str]]], record: dict[str, Any], *, none: str
) -> SufficiencyCurve:
    """The curve of a sweep.

    Args:
        result: One metric of each task, under the baseline and every condition.
        conditions: By list, for the list itself and then each random list, one condition for each k.
        record: See `SufficiencyCurve`.
        none: The condition under which no head is kept.
    """
    every_k = [0, *record["k"], record["n_heads"]]
    shares = np.array(every_k) / record["n_heads"]
    points, band, table = [], [], []
    for base in result.baselines.itertuples():
        scores = result.scores(base.task, base.metric)
        better = result.metric_info(base.task, base.metric)["higher_is_better"]
        units = questions.units(result, base.task).loc[scores.index]
        added = (scores[stats.BASELINE] - scores[none]).to_numpy() * (1 if better else -1)
        gap = stats.changes(base.metric, added, units)
        judged = bool(gap.interval()[0] > 0 and not base.at_chance)
        for name, orders in conditions.items():
            key = name, base.task, base.metric
            values = [scores[[none, *order, stats.BASELINE]].to_numpy() for order in orders]
            f, (cpr, cmd) = with_intervals(values[0], shares, units, higher_is_better=better)
            points += [(*key, *row) for row in zip(every_k, shares, values[0].mean(0), *f, strict=True)]
            rival_means = np.array([rival.mean(0) for rival in values[1:]])  # [rival, k]
            rivals = faithfulness(rival_means, rival_means[:, 0], rival_means[:, -1], higher_is_better=better)
            low_f, high_f, mean_f = rivals.min(0), rivals.max(0), rivals.mean(0)
            band += [(*key, *row, len(rivals)) for row in zip(every_k, shares, low_f, high_f, mean_f, strict=True)]
            random, _ = areas(rivals, shares)
            at_least = random >= cpr[0]  # NaN where there is nothing to restore
            p_value = (1 + at_least.sum()) / (1 + len(random)) if judged else np.nan
            against = random.mean(), random.min(), random.max(), p_value
            separates = judged and not at_least.any()
            table.append((*key, *cpr, *cmd, *against, separates, gap.value, *gap.interval(), judged))
    keys = ["list", "task", "metric"]
    of_areas = ["cpr", "cpr_low", "cpr_high", "cmd", "cmd_low", "cmd_high"]
    of_test = ["random_cpr", "random_low", "random_high", "p_value", "separates"]
    return SufficiencyCurve(
        pd.DataFrame(points, columns=[*keys, "k", "share", "value", "faithfulness", "ci_low", "ci_high"]),
        pd.DataFrame(band, columns=[*keys, "k", "share", "low", "high", "mean", "n_draws"]),
        pd.DataFrame(table, columns=[*keys, *of_areas, *of_test, "gap", "gap_low", "gap_high", "judged"]),
        result,
        record,
    )
