"""Error rates and documents of races, on simulated sweeps: how often any decision is wrong, at whatever time one stops.

Run: ``python benchmarks/racing_errors.py [--sweeps 2000]``. It needs no model (tests/simulated_races.py).

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

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from simulated_races import MARGIN, binary, race  # noqa: E402

from depthlens.analysis.races import CRITICAL, SPARED, UNDECIDED  # noqa: E402

LAYERS, DOCUMENTS = 30, 2000
STRUCTURES = ("none", "noise", "edge", "mixed", "nats", "shared")


def population(mean: float) -> np.ndarray:
    """Losses in nats with a long tail, clipped, whose mean is exactly this."""
    rng = np.random.default_rng(1)
    raw = rng.exponential(1.5, 20000) * (rng.random(20000) < 0.2) - rng.exponential(0.2, 20000)
    low, high = -2.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(raw + middle, -1, 1).mean() < mean else (low, middle)
    return np.clip(raw + low, -1, 1)


NATS = {mean: population(mean) for mean in (0.0, MARGIN)}


def sample(structure: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Losses of a sweep, shape [document, layer], and their true means."""
    third = LAYERS // 3
    if structure == "nats":
        mean = np.repeat([*NATS], LAYERS // 2)
        return np.stack([rng.choice(NATS[m], DOCUMENTS) for m in mean], 1), mean
    if structure in ("mixed", "shared"):
        mean = np.concatenate([np.zeros(third), np.full(third, MARGIN), np.linspace(MARGIN / 2, 0.6, third)])
        flips = np.maximum(mean + 0.02, 0.1)
    else:
        mean = np.full(LAYERS, MARGIN if structure == "edge" else 0.0)
        flips = np.full(LAYERS, 0.004 if structure == "none" else 0.2)
    return binary(rng, mean, flips, DOCUMENTS, shared=structure == "shared"), mean


def raced(structure: str, rng: np.random.Generator) -> tuple[bool, float, float]:
    """Whether any decision of a race is wrong, the share of layers decided, and the documents that a layer took."""
    losses, mean = sample(structure, rng)
    decided, n = race(losses)
    says = np.array(decided)
    # a mean is known to 1e-9
    wrong = ((says == CRITICAL) & (mean <= 1e-9)) | ((says == SPARED) & (mean >= MARGIN - 1e-9))
    return bool(wrong.any()), float((says != UNDECIDED).mean()), float(n.mean())


def main(sweeps: int = 2000) -> None:
    """Print the table."""
    rows = {}
    for structure in STRUCTURES:
        rng = np.random.default_rng(0)
        rows[structure] = np.mean([raced(structure, rng) for _ in range(sweeps)], axis=0)
    columns = ["sweeps with a wrong decision", "decided", "documents a layer, of 2,000"]
    print(pd.DataFrame.from_dict(rows, orient="index", columns=columns).to_markdown(floatfmt=".3g"))


if __name__ == "__main__":
    typer.run(main)
