"""How many documents show a loss of right answers that matters, with a stated probability.

Exact, from the binomial distribution of the lost documents and the sign test, corrected for the number of conditions.
It misleads where new documents are of another kind, and where documents are gained, too: then more are needed.
"""

from __future__ import annotations

import math

import numpy as np
import scipy

POWER = 0.8
LOSS_THAT_MATTERS = 0.1  # of a score that is a share of right answers


def documents_for_loss(loss: float, n_conditions: int, *, alpha: float = 0.05, power: float = POWER) -> int:
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
