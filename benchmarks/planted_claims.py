"""States of the claims on organisms with planted depth, each claim where it holds and where it fails.

Usage::

    python benchmarks/planted_claims.py [--layers 30] [--seeds 1] [--claims C1,C5] [--processes 2]

`tests/planted_depth.py` and `tests/planted_heads.py` say what is planted. The claims are judged by sweeps of the
organisms' own tasks. Printed is every part with its estimate and with what was planted, then how often each state came
out. C5 is judged on organisms of 6 layers.

A claim that fails should be *smaller* or *reversed*. C5 fails where no few heads carry retrieval, and where each list
is said to belong to the other's task. C6 fails where the distilled model reasons where its base does.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pandas as pd
import typer
from shared import in_processes

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import planted_depth  # noqa: E402
import planted_heads  # noqa: E402

import depthlens as dl  # noqa: E402
from depthlens.claims.parts import CONTROLLED  # noqa: E402

CLAIMS = sorted((*planted_depth.CLAIMS, "C5", "C6"))
HOLDS, FAILS, SWAPPED = "holds", "fails", "lists swapped"
COLUMNS = ["claim", "planted", "seed", "row", "part", "state", "effect", "ci_low", "ci_high", "n", "why", "minutes"]


def judged(case: tuple[str, str, int, int]) -> pd.DataFrame:
    """The parts of a claim on one organism."""
    claim, planted, seed, n_layers = case
    start, true = time.perf_counter(), planted == HOLDS
    if claim == "C5":
        evidence = planted_heads.evidence(true=planted != FAILS, seed=seed, swapped=planted == SWAPPED)
    else:
        evidence = planted_depth.evidence(claim, true=true, seed=seed, n_layers=n_layers)
    parts = dl.claims.judge(evidence, claims=claim).parts.query("view == 'decides'")
    if claim in planted_depth.CLAIMS:
        parts = parts[parts["row"] == planted_depth.ROW.get(claim, CONTROLLED)]
    parts = parts.assign(planted=planted, seed=seed, minutes=(time.perf_counter() - start) / 60)[[*COLUMNS, "worst"]]
    if claim in planted_depth.CLAIMS:
        name = planted_depth.organism(claim, true=true, seed=seed, n_layers=n_layers)
        parts["true effect"] = [part.main.effect for part in planted_depth.planted(name)[claim]]
    return parts


def main(
    layers: int = planted_depth.LAYERS, seeds: int = 1, claims: str = ",".join(CLAIMS), processes: int = 0
) -> None:
    """Print both tables."""
    kinds = [(claim, planted) for claim in claims.split(",") for planted in (HOLDS, FAILS)]
    kinds += [("C5", SWAPPED)] * ("C5" in claims)
    cases = [(*kind, seed, layers) for kind in kinds for seed in range(seeds)]
    table = pd.concat(in_processes(judged, cases, processes), ignore_index=True)
    print(table.drop(columns="worst").round(3).to_markdown(index=False))
    states = table[table["worst"]].groupby(["claim", "planted", "state"], sort=False)
    print(states.size().rename("organisms").reset_index().to_markdown(index=False))


if __name__ == "__main__":
    typer.run(main)
