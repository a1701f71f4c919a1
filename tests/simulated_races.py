"""Losses of simulated sweeps, and races on them; `benchmarks/simulations.py` runs more of them than the tests."""

from collections.abc import Callable

import numpy as np

from depthlens.analysis.numbers.betting import UNDECIDED, Evidence
from depthlens.experiments.race import FIRST_WAVE, GROWTH

MARGIN, ALPHA = 0.1, 0.05
RIGHT = 0.7  # of the documents, without any removal


def binary(rng: np.random.Generator, mean: np.ndarray, flips: np.ndarray, n: int, *, shared=False) -> np.ndarray:
    """Losses of -1, 0 and 1 with a mean and a share of documents that change. Shape [document, part].

    The whole model is right on `RIGHT` of the documents: only these can be lost, and only the others won. Where
    ``shared``, the same documents are hard without every part.
    """
    lost, won = (flips + mean) / 2 / RIGHT, (flips - mean) / 2 / (1 - RIGHT)
    right = rng.random((n, 1)) < RIGHT
    drawn = rng.random((n, 1 if shared else len(mean)))
    return np.where(right, drawn < lost, -(drawn < won).astype(float))


def wave_end(n_seen: int) -> int:
    """Documents that have come after the next wave, where so many came before."""
    return n_seen + max(FIRST_WAVE, n_seen // GROWTH)


def race(losses: np.ndarray, next_wave: Callable[[int], int] = wave_end) -> tuple[list[str], np.ndarray]:
    """The decisions of a race, and the documents that each took."""
    n, seen = losses.shape[1], 0
    evidence, decided, taken = Evidence(n, MARGIN, ALPHA), [UNDECIDED] * n, np.zeros(n, dtype=int)
    while seen < len(losses) and (at := [i for i in range(n) if decided[i] == UNDECIDED]):
        end = min(len(losses), next_wave(seen))
        evidence.add(at, losses[seen:end][:, at])
        taken[at] = seen = end
        decided = [a if a != UNDECIDED else b for a, b in zip(decided, evidence.decisions(), strict=True)]
    return decided, taken
