"""Verdicts on organisms with planted depth: each claim where it is true, and where it is false.

Usage::

    python benchmarks/planted_claims.py [--seeds 5] [--claims C1,C4]

`tests/planted_depth.py` says what is planted. The claims are judged from sweeps of the organisms' own tasks, under
every view. Printed is how often each verdict came out, which docs/methods.md repeats.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from planted_depth import CLAIMS, evidence  # noqa: E402

import depthlens as dl  # noqa: E402
from depthlens.progress import bar  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="organisms of each kind")
    parser.add_argument("--claims", default=",".join(CLAIMS))
    args = parser.parse_args()
    rows = []
    cases = [(claim, true) for claim in args.claims.split(",") for true in (True, False)]
    with bar(total=args.seeds * len(cases), desc="organisms", unit="organism") as progress:
        for claim, true in cases:
            for seed in range(args.seeds):
                (found,) = dl.claims.judge(evidence(claim, true=true, seed=seed), claims=claim)
                rows.append((claim, "true" if true else "false", found.verdict))
                if found.verdict != ("supported" if true else "contradicted"):
                    print(f"seed {seed}, {'true' if true else 'false'}: {found.sentence}", flush=True)
                progress.update(1)
    found = pd.DataFrame(rows, columns=["claim", "planted", "verdict"])
    print(found.groupby([*found], sort=False).size().rename("organisms").reset_index().to_markdown(index=False))


if __name__ == "__main__":
    main()
