"""Whether a whole model is above chance, and how many documents show a loss.

**How many documents** show a loss of right answers that matters, with a stated probability: exact, from the binomial
distribution of the lost documents and the sign test, corrected for the number of conditions. It misleads where new
documents are of another kind, and where documents are gained, too: then more are needed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

from depthlens.analysis.numbers.means import ALPHA as ALPHA
from depthlens.analysis.numbers.means import LEVEL, Mean
from depthlens.metrics import in_nats, metric_unit

BASELINE = "baseline"
POWER, LOSS_THAT_MATTERS = 0.8, 0.1  # probability that a loss is found; of a score that is a share of right answers
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


def documents_for_loss(loss: float, n_conditions: int) -> int:
    """Documents with which a condition that loses a share ``loss`` of them, and gains none, is shown to cost something.

    The sign test with Bonferroni's correction, which the step-down maxT of `depthlens.Result.summary` is at least as
    strong as.

    Args:
        loss: Share of all documents that turn from right to wrong, above 0 and at most 1.
        n_conditions: Conditions that are compared with the baseline.
    """
    lost = math.floor(math.log2(n_conditions / ALPHA)) + 2  # the fewest with n_conditions * 2 ** (1 - lost) < ALPHA
    n = np.arange(lost, math.ceil((lost + 10) * 6 / loss))
    return int(n[np.argmax(scipy.stats.binom.sf(lost - 1, n, loss) >= POWER)])


def needed_documents(base: np.ndarray, n_conditions: int) -> int | None:
    """Documents with which a loss of a 0/1 metric is shown with a probability of 80%; None where there are enough.

    Args:
        base: Right (1) or wrong (0) at baseline. Shape [n_docs].
        n_conditions: Conditions that are compared with it.
    """
    if not n_conditions or not base.any():
        return None
    needed = documents_for_loss(min(LOSS_THAT_MATTERS, float(base.mean())), n_conditions)
    return needed if needed > len(base) else None
