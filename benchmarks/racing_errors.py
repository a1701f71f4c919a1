"""Error rates and documents of races, on simulated sweeps: how often any decision is wrong, at whatever time one stops.

Run: ``python benchmarks/racing_errors.py [--sweeps 2000]``. It needs no model.

A sweep has 30 layers and 2,000 documents in random order. A race of it is stopped at a time that the worst user would
choose: at the first wrong decision if there ever is one. A decision is wrong if it says *critical* of a layer whose
true loss is 0 or less, or *spared* of one whose true loss is the margin or more. The structures:

- ``none``: no layer changes anything (0.2% of documents flip either way);
- ``noise``: no layer costs anything, but a fifth of all documents flips, as often to right as to wrong;
- ``edge``: every layer costs exactly the margin;
- ``mixed``: ten layers cost nothing, ten exactly the margin, ten half of it to everything;
- ``nats``: losses in nats with a long tail, whose clipped mean is exactly 0 in 15 layers and the margin in the others;
- ``shared``: as ``mixed``, but the same documents are hard under every layer.
"""

from __future__ import annotations

import argparse

import numpy as np

from depthlens.analysis.races import CRITICAL, SPARED, UNDECIDED, Evidence
from depthlens.experiments.race import FIRST_WAVE, GROWTH

LAYERS, DOCUMENTS, MARGIN, ALPHA = 30, 2000, 0.1, 0.05
RIGHT = 0.7  # of the documents, without any removal
STRUCTURES = ("none", "noise", "edge", "mixed", "nats", "shared")


def binary_losses(rng: np.random.Generator, mean: np.ndarray, flips: np.ndarray, shared: bool) -> np.ndarray:
    """Losses of -1, 0 and 1 with a mean and a share of documents that change. Shape [document, layer].

    The whole model is right on `RIGHT` of the documents: only these can be lost, and only the others won.
    """
    lost, won = (flips + mean) / 2 / RIGHT, (flips - mean) / 2 / (1 - RIGHT)
    right = rng.random((DOCUMENTS, 1)) < RIGHT
    drawn = rng.random((DOCUMENTS, 1 if shared else len(mean)))
    return np.where(right, drawn < lost, -(drawn < won).astype(float))


def population(mean: float, rng: np.random.Generator) -> np.ndarray:
    """Losses in nats with a long tail, clipped, whose mean is exactly this."""
    raw = rng.exponential(1.5, 20000) * (rng.random(20000) < 0.2) - rng.exponential(0.2, 20000)
    low, high = -2.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(raw + middle, -1, 1).mean() < mean else (low, middle)
    return np.clip(raw + low, -1, 1)


_NATS = [population(mean, np.random.default_rng(1)) for mean in (0.0, MARGIN)]


def sample(structure: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Losses of a sweep, shape [document, layer], and their true means."""
    n, third = LAYERS, LAYERS // 3
    if structure == "nats":
        mean = np.repeat([0.0, MARGIN], n // 2)
        losses = [rng.choice(_NATS[int(m > 0)], DOCUMENTS) for m in mean]
        return np.stack(losses, 1), mean
    if structure in ("mixed", "shared"):
        mean = np.concatenate([np.zeros(third), np.full(third, MARGIN), np.linspace(MARGIN / 2, 0.6, n - 2 * third)])
        flips = np.maximum(mean + 0.02, 0.1)
    else:
        mean = np.full(n, MARGIN if structure == "edge" else 0.0)
        flips = np.full(n, 0.004 if structure == "none" else 0.2)
    return binary_losses(rng, mean, flips, structure == "shared"), mean


def waves() -> list[slice]:
    """Documents of each wave."""
    seen, found = 0, []
    while seen < DOCUMENTS:
        size = max(FIRST_WAVE, seen // GROWTH)
        found.append(slice(seen, min(DOCUMENTS, seen + size)))
        seen += size
    return found


def race(losses: np.ndarray, margin: float) -> tuple[list[str], np.ndarray]:
    """Decisions and the documents that each took."""
    evidence = Evidence(losses.shape[1], margin, ALPHA)
    decided, n = [UNDECIDED] * losses.shape[1], np.zeros(losses.shape[1], dtype=int)
    for wave in waves():
        at = [i for i, decision in enumerate(decided) if decision == UNDECIDED]
        if not at:
            break
        evidence.add(at, losses[wave][:, at])
        n[at] = wave.stop
        decided = [a if a != UNDECIDED else b for a, b in zip(decided, evidence.decisions(), strict=True)]
    return decided, n


def wrong(decided: list[str], mean: np.ndarray) -> bool:
    """Whether any decision is wrong; a mean is known to 1e-9."""
    names = np.array(decided)
    return bool(((names == CRITICAL) & (mean <= 1e-9)).any() or ((names == SPARED) & (mean >= MARGIN - 1e-9)).any())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sweeps", type=int, default=2000)
    n_sweeps = parser.parse_args().sweeps
    print("| structure | sweeps with a wrong decision | decided | documents a layer, of 2,000 |\n|---|---|---|---|")
    for structure in STRUCTURES:
        rng = np.random.default_rng(0)
        n_wrong, shares, needed = 0, [], []
        for _ in range(n_sweeps):
            losses, mean = sample(structure, rng)
            decided, n = race(losses, MARGIN)
            n_wrong += wrong(decided, mean)
            shares.append(np.mean([decision != UNDECIDED for decision in decided]))
            needed.append(n.mean())
        print(f"| {structure} | {n_wrong / n_sweeps:.1%} | {np.mean(shares):.0%} | {np.mean(needed):.0f} |", flush=True)


if __name__ == "__main__":
    main()
