"""How many documents show an effect that matters, with a stated probability.

Two plans, both for one two-sided test at a level that the caller corrects for the number of tests:

* `documents_for_power` for an estimate with an interval: from the standard error at hand, the number of documents with
  which an effect of the size that matters is shown with probability ``power``:
  ``N = n ((t(1 - alpha / 2) + t(power)) SE / matters)^2`` (Cohen 1988, chapter 2; Student's t of N - 1 degrees of
  freedom takes the place of the normal distribution). At an N for which half the interval equals the effect, power is
  50%, not 80%.
* `documents_for_loss` for right and wrong answers under many conditions: exact, from the binomial distribution of the
  lost documents and McNemar's test.

They mislead where the effect is not the one that matters (a smaller one needs more documents, with the square), where
the standard error comes from few documents, and where the new documents are of another kind. In simulations power at
the promised number is 0.75 to 0.9; it falls to 0.7 where rare large changes go against the effect (skewness below -2).
"""

from __future__ import annotations

import math

import numpy as np
import scipy

from depthlens.errors import UserError

POWER = 0.8
LOSS_THAT_MATTERS = 0.1  # of a score that is a share of right answers
_MOST = 1e9  # documents


def documents_for_power(
    matters: float, half_width: float, n: int, *, alpha: float = 0.05, power: float = POWER
) -> int | None:
    """Documents with which an effect of the size that matters is shown with probability ``power``.

    Args:
        matters: The distance of the effect from the null that should be found, above 0.
        half_width: Half the width of the interval of level ``1 - alpha`` that n documents gave, in the same unit.
        n: Documents that gave it, at least 2.
        alpha: Two-sided level of the test that has to reject.
        power: Probability of that, from 0.5 on.

    Returns:
        The number of documents, at least 2; None where it is beyond a thousand million.

    Raises:
        UserError: a number outside its range.
    """
    for name, value, low, high in (
        ("matters", matters, 0, math.inf), ("half_width", half_width, 0, math.inf),
        ("n", n, 1, math.inf), ("alpha", alpha, 0, 1), ("power", power, 0.4999, 1),
    ):  # fmt: skip
        if not low < value < high:
            raise UserError(f"{name} {value!r} is not a number between {low:g} and {high:g}; give one")
    spread = half_width / scipy.stats.t.ppf(1 - alpha / 2, n - 1) * math.sqrt(n)  # standard deviation of one document

    def lacking(documents: float) -> float:
        quantiles = scipy.stats.t.ppf([1 - alpha / 2, power], documents - 1).sum()
        return float(quantiles * spread - matters * math.sqrt(documents))

    if lacking(_MOST) > 0:
        return None
    return math.ceil(scipy.optimize.brentq(lacking, 1.0001, _MOST, xtol=1e-3)) if lacking(2.0) > 0 else 2


def documents_for_loss(loss: float, n_conditions: int, *, alpha: float = 0.05, power: float = POWER) -> int:
    """Documents with which a condition that loses a share ``loss`` of them, and gains none, is shown to cost something.

    McNemar's exact test, with Bonferroni's correction, which the step-down maxT of `depthlens.Result.summary` is at
    least as strong as. Where documents are gained, too, more are needed.

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
