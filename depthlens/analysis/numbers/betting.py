"""Races: which parts matter, from as few documents as that takes.

Every condition has two tests on its paired losses, both by betting: that it costs more than 0, which makes it
*critical*, and that it costs less than a margin, which makes it *spared*. Both nulls cannot be true together. A
condition leaves as soon as one of them is rejected. With probability at least ``1 - alpha`` no decision of the whole
race is wrong, at whatever time it ends, for documents that are drawn at random. Documents that ask the same question
count once.

Losses are within [-1, 1]. Scores between 0 and 1 are as they are. A loss in another unit, such as nats, is clipped to
[-1, 1]: such a race judges the mean of clipped losses, in which one document cannot count more than one unit.

**Betting** tests a mean, and the test stays valid however often, and whenever, one looks at the data. A gambler bets on
values ``x`` of at least -1 whose mean is at most 0 under the null hypothesis. With a bet ``b`` in (0, 1) the capital is
multiplied by ``1 + b x`` at every value. Under the null hypothesis the capital is a supermartingale, so it ever reaches
``1 / alpha`` with probability at most alpha (Ville 1939). A weighted average over a set of bets that was fixed before
is such a capital, too, and needs no choice of a bet (Waudby-Smith & Ramdas 2024, JRSS B 86:1-27). It does not depend on
the order of the values within a batch.

**Many hypotheses.** Every average of capitals of true nulls is a supermartingale. So all nulls are rejected whose
average with any others, of which only few can be true together, reaches ``1 / alpha`` (closed testing with e-values;
Vovk & Wang 2021, Annals of Statistics 49:1736-1754): the family-wise error is at most alpha at any stopping time, and a
hypothesis whose data end early keeps the capital that it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy

CRITICAL, SPARED, UNDECIDED, AT_CHANCE = "critical", "spared", "undecided", "at chance"
_FALLING = 0.7 ** np.arange(13)
BETS = 0.9 * _FALLING  # 0.9 to 0.0125: for effects from the largest possible to about a hundredth of it
WEIGHTS = _FALLING / _FALLING.sum()  # of the bets: small ones need many documents anyway


class Evidence:
    """What documents have shown of each condition: that it costs more than 0, and that it costs less than a margin.

    Args:
        n: Conditions, those of several tasks one after another.
        margin: Loss that a spared condition stays below.
        alpha: Probability of any wrong decision.
    """

    def __init__(self, n: int, margin: float, alpha: float) -> None:
        self.margin, self.alpha = margin, alpha
        self._gains = np.zeros((n, 2, len(BETS)))

    def add(self, at: Sequence[int] | np.ndarray, losses: np.ndarray) -> None:
        """Take in documents.

        Args:
            at: The conditions that were run.
            losses: Within [-1, 1]. Shape [document, len(at)].
        """
        self._gains[list(at), 0] += log_gains(losses)
        self._gains[list(at), 1] += log_gains((self.margin - losses) / (1 - self.margin))

    def decisions(self) -> list[str]:
        """The decision on every condition as of now."""
        capitals = log_capital(self._gains)  # [condition, (critical, spared)]
        likelier = np.array([CRITICAL, SPARED])[capitals.argmax(1)]
        return np.where(closed_rejections(capitals, self.alpha).any(1), likelier, UNDECIDED).tolist()


def log_gains(values: np.ndarray) -> np.ndarray:
    """What a batch of values adds to the logarithm of the capital of every bet.

    Args:
        values: At least -1. Shape [value, ...].

    Returns:
        Shape [..., bet].
    """
    return np.asarray(np.log1p(values[..., None] * BETS).sum(0))


def log_capital(gains: np.ndarray) -> np.ndarray:
    """Logarithm of the average capital over all bets, weighted with `WEIGHTS`.

    Args:
        gains: Sums of `log_gains`. Shape [..., bet].

    Returns:
        Shape [...].
    """
    return np.asarray(scipy.special.logsumexp(gains + np.log(WEIGHTS), axis=-1))


def anytime_interval(values: np.ndarray, alpha: float) -> tuple[float, float]:
    """Interval of a mean that holds at every stopping time together with probability ``1 - alpha``.

    It has all means that no bet with half of alpha, upwards or downwards, has refuted; all values together, so that the
    interval is that of the moment.

    Args:
        values: In [-1, 1]. Shape [value].
        alpha: Probability that the interval ever misses the mean.
    """
    if not len(values):
        return -1.0, 1.0
    points, times = np.unique(values, return_counts=True)

    def evidence(mean: float, sign: int) -> float:
        """What the best of all bets has against a mean, beyond what refutes it."""
        scaled = sign * (points - mean) / (1 + sign * mean)  # at least -1
        gains = (np.log1p(scaled[:, None] * BETS) * times[:, None]).sum(0)
        return float(log_capital(gains)) - math.log(2 / alpha)

    inside = float(np.clip(values.mean(), -1 + 1e-9, 1 - 1e-9))
    ends: list[float] = []
    for sign in (1, -1):
        outside = -sign * (1 - 1e-9)
        refuted = evidence(outside, sign) >= 0
        ends.append(scipy.optimize.brentq(evidence, inside, outside, args=(sign,)) if refuted else -float(sign))
    return ends[0], ends[1]


def closed_rejections(log_capitals: np.ndarray, alpha: float) -> np.ndarray:
    """Which nulls are rejected with family-wise error at most alpha, where each group has at most one true null.

    A null is rejected if its average with the nulls of any other groups, one of each, is at least ``1 / alpha``. The
    worst others are those below ``1 / alpha``, the least of each group.

    Args:
        log_capitals: Shape [group, null].
        alpha: Family-wise error.

    Returns:
        Shape [group, null].
    """
    capital = np.exp(np.minimum(log_capitals, 600.0))
    short = np.maximum(0.0, 1 / alpha - capital.min(1))
    others = short.sum() - short
    return capital >= (1 / alpha + others)[:, None]
