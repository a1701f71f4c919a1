"""States of claims on organisms with planted depth: each claim where it is true, and where it is false.

Usage::

    python benchmarks/planted_claims.py [--seeds 5] [--claims C1,C5] [--processes 2]

`tests/planted_depth.py` and `tests/planted_heads.py` say what is planted. The claims are judged from sweeps of the
organisms' own tasks, under every view. Printed is how often each state came out, which docs/methods.md repeats.

Where a claim is true it should be shown, and where it is false it should not.
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
from depthlens.claims.parts import SHOWN  # noqa: E402
from depthlens.progress import Bar  # noqa: E402

CLAIMS = sorted((*planted_depth.CLAIMS, "C5", "C6"))
TRUE, FALSE, SWAPPED = "true", "false", "lists swapped"


def judged(case: tuple[str, str, int]) -> tuple[str, str]:
    """The state of a claim where it is true or false, and its sentence."""
    claim, planted, seed = case
    if claim == "C5":
        evidence = planted_heads.evidence(true=planted != FALSE, seed=seed, swapped=planted == SWAPPED)
    else:
        evidence = planted_depth.evidence(claim, true=planted == TRUE, seed=seed)
    (row,) = dl.claims.judge(evidence, claims=claim).table.itertuples()
    return row.state, row.sentence


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
        for (claim, planted, seed), (state, sentence) in zip(cases, found, strict=True):
            rows.append((claim, planted, state))
            if (state == SHOWN) != (planted == TRUE):
                print(f"{claim}, seed {seed}, {planted}: {state}: {sentence}", flush=True)
    table = pd.DataFrame(rows, columns=["claim", "planted", "state"])
    print(table.groupby([*table], sort=False).size().rename("organisms").reset_index().to_markdown(index=False))


if __name__ == "__main__":
    main()
