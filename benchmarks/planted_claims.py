"""Verdicts on organisms with planted depth: each claim where it is true, and where it is false.

Usage::

    python benchmarks/planted_claims.py [--seeds 5] [--documents 60]

`tests/planted_depth.py` says what is planted. The claims are judged from sweeps of the organisms' own tasks, under
every view. Printed is a table of docs/methods.md: one row an organism, with the verdicts of its seeds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from planted_depth import ALL_TRUE, CLAIMS, FALSE, evidence, organism_name  # noqa: E402

import depthlens as dl  # noqa: E402
from depthlens.progress import bar  # noqa: E402

WORLDS = {"every claim is true": ALL_TRUE} | {f"{claim} is false": truth for claim, truth in FALSE.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="organisms of each kind")
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--noise", type=float, default=0.9, help="of the organisms' states")
    parser.add_argument("--worlds", default="", help="parts of the names of the worlds, comma-separated")
    args = parser.parse_args()
    rows = []
    with bar(total=args.seeds * len(WORLDS), desc="organisms", unit="organism") as progress:
        for world, truth in WORLDS.items():
            if args.worlds and not any(part in world for part in args.worlds.split(",")):
                continue
            for seed in range(args.seeds):
                name = organism_name(truth, seed, noise=args.noise)
                verdicts = dl.claims.judge(evidence(name, limit=args.documents), claims=CLAIMS)
                for verdict in verdicts:
                    true = truth[verdict.claim.id]
                    rows.append((world, verdict.claim.id, true, verdict.verdict))
                    if verdict.verdict != ("supported" if true else "contradicted"):
                        print(f"{name}\n  {verdict.sentence}", flush=True)
                progress.update(1)
    found = pd.DataFrame(rows, columns=["organism", "claim", "true", "verdict"])
    found = found.groupby([*found], sort=False).size().rename("organisms").reset_index()
    print(found.to_markdown(index=False))


if __name__ == "__main__":
    main()
