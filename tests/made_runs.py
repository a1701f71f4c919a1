"""Folders of made-up runs: a sweep each, or what 09_claims writes, with its verdicts below."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from made_layer_sweeps import FEW, FLAT, viewed
from made_sweeps import EARLY, LATE, nats, sweep

from depthlens.analysis.results import Result, concat
from depthlens.claims import Evidence, Verdicts, judge


def steps(n: int) -> list[Result]:
    """Stages of one model whose losses move from the first layers to the last; the first is at chance on `sums`."""
    made = []
    for i, late in enumerate(np.linspace(0, 1, n)):
        loss, name = (1 - late) * EARLY + late * LATE, f"step{i + 1}"
        right = sweep(loss, model=name, seed=i, n=100, accuracy=0.3 + 0.6 * late, chance=0.3)
        made.append(concat([right, nats(2 * loss, model=name, task="words", seed=10 + i)]))
    return made


def verdicts(loss: np.ndarray, model: str, seeds: int = 3) -> Verdicts:
    """Verdicts on made-up sweeps; C1 and C2 can be judged."""
    tasks = {"letters": "letters", "continuation": "facts"}
    sweeps = {role: viewed(loss, task, n=150, model=model, seeds=seeds) for role, task in tasks.items()}
    return judge(Evidence(**sweeps), claims=["C1", "C2"], n_boot=400)


def scorecard(folder: Path, loss: np.ndarray, model: str, **record: object) -> Path:
    """What `depthlens run 09_claims` leaves of a model: results, and verdicts below them."""
    result = viewed(loss, "letters", n=60, model=model, seeds=1, views=("",))[0]
    Result(result.docs, result.record | record).save(folder / "09_claims")
    verdicts(loss, model).save(folder / "09_claims" / "verdicts")
    return folder


def two_scorecards(folder: Path) -> list[Path]:
    """Two models; the first supports C1, the second contradicts it."""
    return [scorecard(folder / name, loss, name) for name, loss in (("few", FEW), ("flat", FLAT))]
