"""Samples like ours with known truth, and how often each interval of the package covers it.

Used by tests/unit/analysis/test_coverage.py and, with more samples, by benchmarks/simulations.py. A case makes the mean
that the package makes, from n units that are drawn at random. Its truth is the value of very many.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
from made_results import profile

from depthlens.analysis.layers.recovery import recovered_share
from depthlens.analysis.numbers import stats
from depthlens.analysis.numbers.means import Mean, mean
from depthlens.analysis.result.losses import Losses

N_LAYERS, LARGE = 12, 100_000
DAMAGE = np.array([0.7, 0.5, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05, 0.1, 0.1, 0.2, 0.3])  # by layer: of the right answers
FIRST = (np.arange(N_LAYERS) < 4).astype(float)
Rng = np.random.Generator


def right_and_wrong(rng: Rng, n: int, damage: np.ndarray = DAMAGE, base: float = 0.9) -> Losses:
    """Choices among four options, some of which are easy under every condition."""
    right, fragile = (rng.random(n) < base).astype(float), 3 * rng.beta(1, 2, n)[:, None]
    broken = rng.random((n, N_LAYERS)) < np.minimum(1, fragile * damage)
    return profile(right, np.where(broken, rng.random((n, N_LAYERS)) < 0.25, right[:, None]), 0.25)


def probabilities(rng: Rng, n: int) -> Losses:
    """Probabilities of the right answer; a few fragile documents lose most."""
    base = rng.beta(4, 1, n)
    kept = np.exp(-DAMAGE * np.exp(rng.standard_normal((n, 1)) + rng.standard_normal((n, N_LAYERS)) - 0.5))
    return profile(base, base[:, None] * kept, 0.0)


def nats(rng: Rng, n: int, damage: np.ndarray = DAMAGE) -> Losses:
    """Log-likelihoods; a third of the documents lose nothing at a layer."""
    base = -rng.gamma(2, 1, n)
    size = np.exp(0.5 * rng.standard_normal((n, 1)) + 0.6 * rng.standard_normal((n, N_LAYERS)))
    loss = damage * size * (rng.random((n, N_LAYERS)) < 0.67) + 0.02 * rng.standard_normal((n, N_LAYERS))
    return profile(base, base[:, None] - loss, None, metric="answer_logprob")


def of_subjects(rng: Rng, n: int) -> Losses:
    """`right_and_wrong` of n subjects of 5 to 15 documents, which are easy or hard for the model as a whole."""
    subjects = np.repeat(np.arange(n), rng.integers(5, 16, n))
    found = right_and_wrong(rng, len(subjects))
    known = rng.random(len(subjects)) < rng.beta(6, 2, n)[subjects]
    values = np.where(known[:, None], found.values, 0.0)
    return replace(found, values=values, base=found.base * known, units=tuple(map(str, subjects)))


SWEEPS = {"0/1": right_and_wrong, "probability": probabilities, "nats": nats, "0/1, subjects": of_subjects}


def changed(lost: float, won: float) -> Callable[[Rng, int], Mean]:
    return lambda rng, n: mean(rng.choice([-1.0, 1.0, 0.0], n, p=[lost, won, 1 - lost - won]))


def deeper(rng: Rng, n: int) -> Mean:
    """Centre of one task minus that of another that asks the same."""
    return right_and_wrong(rng, n, DAMAGE[::-1]).centre - right_and_wrong(rng, n).centre


def recovered(rng: Rng, n: int) -> Mean:
    hard = rng.random(n)
    base, goal, moved = ((0.5 * hard + 0.5 * rng.random(n) < x).astype(float) for x in (0.45, 0.65, 0.55))
    return recovered_share(profile(base, moved[:, None], 0.0), profile(goal, moved[:, None], 0.0))[0][0]


CASES: dict[str, Callable[[Rng, int], Mean]] = {
    "change, 40% lost": changed(0.4, 0.05),
    "change, 3% lost and 1% won": changed(0.03, 0.01),
    "no change, 5% either way": changed(0.05, 0.05),
    **{f"change of L0 ({name})": lambda rng, n, of=of: of(rng, n).mean()[0] for name, of in SWEEPS.items()},
    **{f"share of the first third ({name})": lambda rng, n, of=of: of(rng, n).share(FIRST)
       for name, of in SWEEPS.items()},
    "share of the first third, half of the layers gain (nats)":
        lambda rng, n: nats(rng, n, DAMAGE - 0.1).share(FIRST),  # W11: no layer is left out after a look
    **{f"centre of mass ({name})": lambda rng, n, of=of: of(rng, n).centre for name, of in SWEEPS.items()},
    "loss above the floor (0/1)": lambda rng, n: right_and_wrong(rng, n).relative()[2],
    "difference of centres (0/1)": deeper,
    "recovered share (0/1)": recovered,
    "whole model 0.9": lambda rng, n: mean(rng.random(n) < 0.9),  # Wilson's interval in `ends`
}  # fmt: skip


def ends(case: str, rng: Rng, n: int) -> tuple[float, float]:
    if case.startswith("whole model"):
        values = (rng.random(n) < 0.9).astype(float)
        return stats.whole_model(values, mean(values), None)[2:4]
    low, high = CASES[case](rng, n).interval()
    return float(low), float(high)


@cache
def truth(case: str) -> float:
    return float(CASES[case](np.random.default_rng(99), LARGE).value)


def coverage(case: str, n: int, samples: int) -> float:
    """The share of samples of n units whose interval covers the truth; those without a quotient do not count."""
    rng = np.random.default_rng(n)
    found = [pair for pair in (ends(case, rng, n) for _ in range(samples)) if np.isfinite(pair[0])]
    return float(np.mean([low <= truth(case) <= high for low, high in found]))
