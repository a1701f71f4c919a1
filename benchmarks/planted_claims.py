"""Verdicts on organisms with planted depth: each claim where it is true, and where it is false.

Usage::

    python benchmarks/planted_claims.py [--seeds 5] [--claims C1,C5] [--processes 2]

`tests/planted_depth.py` and `tests/planted_heads.py` say what is planted. The claims are judged from sweeps of the
organisms' own tasks, under every view. Printed is how often each verdict came out, which docs/methods.md repeats.

Where a claim is false it should be contradicted, but for C5 where no few heads carry retrieval: that a list does not
cost more than 3 times as much as random heads is no proof that it costs less, so that C5 should not be supported.
Each list with the other's task contradicts C5.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import planted_depth  # noqa: E402
import planted_heads  # noqa: E402

import depthlens as dl  # noqa: E402
from depthlens.progress import Bar  # noqa: E402

CLAIMS = sorted((*planted_depth.CLAIMS, "C5", "C6"))
TRUE, FALSE, SWAPPED = "true", "false", "lists swapped"


def judged(case: tuple[str, str, int]) -> tuple[str, str]:
    """The verdict on a claim where it is true or false, and its sentence."""
    claim, planted, seed = case
    if claim == "C5":
        evidence = planted_heads.evidence(true=planted != FALSE, seed=seed, swapped=planted == SWAPPED)
    else:
        evidence = planted_depth.evidence(claim, true=planted == TRUE, seed=seed)
    (found,) = dl.claims.judge(evidence, claims=claim)
    return found.verdict, found.sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="organisms of each kind")
    parser.add_argument("--claims", default=",".join(CLAIMS))
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="each with one thread")
    args = parser.parse_args()
    kinds = [(claim, planted) for claim in args.claims.split(",") for planted in (TRUE, FALSE)]
    kinds += [("C5", SWAPPED)] * ("C5" in args.claims)
    cases = [(*kind, seed) for kind in kinds for seed in range(args.seeds)]
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # new processes read them
    rows = []
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as executor:
        found = Bar(iterable=executor.map(judged, cases), total=len(cases), desc="organisms", unit="organism")
        for (claim, planted, seed), (verdict, sentence) in zip(cases, found, strict=True):
            rows.append((claim, planted, verdict))
            if verdict != ("supported" if planted == TRUE else "contradicted"):
                print(f"seed {seed}, {planted}: {sentence}", flush=True)
    table = pd.DataFrame(rows, columns=["claim", "planted", "verdict"])
    print(table.groupby([*table], sort=False).size().rename("organisms").reset_index().to_markdown(index=False))


if __name__ == "__main__":
    main()
