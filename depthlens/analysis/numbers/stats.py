"""What a whole model scores, and whether it is above chance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

from depthlens.analysis.numbers.means import ALPHA as ALPHA
from depthlens.analysis.numbers.means import LEVEL, Mean
from depthlens.metrics import in_nats, metric_unit

BASELINE = "baseline"
CHANCE_ALPHA = 0.01  # a whole model is above chance where p is below; at 0.05 one in twenty that guess would pass
GROUP = ["model", "task", "metric"]
SUMMARY_COLUMNS = [
    *GROUP, "condition", "layer", "head", "n", "value", "baseline", "delta", "bounded", "ci_low", "ci_high", "p_value",
    "p_adjusted",
]  # fmt: skip


def is_binary(values: ArrayLike) -> bool:
    """Whether every value is 0 or 1, so that the mean is a proportion."""
    values = np.asarray(values, dtype=float)
    return bool(np.all((values == 0) | (values == 1)))


def loss_unit(metric: str) -> str:
    """The unit of bounded changes of a metric, which figures and tests are of."""
    return f"{metric_unit(metric)}, at most 1 a document".lstrip(", ") if in_nats(metric) else ""


class Whole(NamedTuple):
    """What a whole model scores.

    Attributes:
        n: Documents.
        baseline: Mean score.
        ci_low: Lower end of its 95% interval.
        ci_high: Upper end.
        chance: Of guessing; None where there is no such level.
        p_chance: P-value of a mean better than chance; NaN without a chance level.
        at_chance: Whether the score is not shown to be above chance.
    """

    n: int
    baseline: float
    ci_low: float
    ci_high: float
    chance: float | None
    p_chance: float
    at_chance: bool


def whole_model(values: np.ndarray, found: Mean, chance: float | None, *, higher_is_better: bool = True) -> Whole:
    """Score of a whole model, its 95% interval, and whether it is at chance.

    Where every question has one document that is right or wrong, the interval is Wilson's (1927, JASA 22:209-212), and
    the test the exact binomial one.

    Args:
        values: Scores. Shape [document].
        found: Their mean.
        chance: Of guessing; None where there is no such level.
        higher_is_better: Of the metric.
    """
    from statsmodels.stats.proportion import proportion_confint  # slow to import

    level, side = np.nan if chance is None else float(chance), 1 if higher_is_better else -1
    of_unit = (found.added * found.n).round(9)  # the mean of each unit, where all have as many documents
    if is_binary(of_unit):
        right = int(of_unit.sum())
        low, high = proportion_confint(right, found.n, alpha=1 - LEVEL, method="wilson")
        alternative = "greater" if higher_is_better else "less"
        p = np.nan if chance is None else scipy.stats.binomtest(right, found.n, level, alternative=alternative).pvalue
    else:
        low, high = found.interval()
        p = scipy.stats.t.sf(side * (found.value - level) / found.error, max(found.n - 1, 1))
    nothing_right = is_binary(values) and higher_is_better and not values.any()
    at_chance = bool(nothing_right or (chance is not None and not p < CHANCE_ALPHA))
    return Whole(len(values), float(values.mean()), float(low), float(high), chance, float(p), at_chance)
