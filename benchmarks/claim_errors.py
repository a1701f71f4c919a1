"""Error rates and power of the claims' tests, through the whole of each test, on simulated sweeps.

Usage::

    python benchmarks/claim_errors.py [--simulations 500] [--documents 60] [--claims C2,C4] [--worlds token,formats]

Every simulation draws the documents of all tasks, under four views and three few-shot seeds, and judges the claims
(`tests/made_claims.py` has the model). Printed is a table of docs/methods.md: the share of simulations in which a claim
is supported, and in which it is contradicted.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from made_claims import EARLY, FEW, FLAT, LATE, NONE, THIRD, parts, sweeps  # noqa: E402

from depthlens.claims.verdicts import combined  # noqa: E402
from depthlens.progress import bar  # noqa: E402

CLAIMS = ("C1", "C2", "C3", "C4", "C6", "C7")
DEEP = np.where(THIRD > 0, 0.5, 0.0)


def by_token(broken: np.ndarray, n: int = 3) -> dict[str, np.ndarray]:
    """Written texts have n chances to break."""
    long = 1 - (1 - broken) ** n
    return {"rest": broken, "reasoning": long, "copying": long}


# what is simulated, and the claims that are not true there
NULLS = {
    "nothing breaks": ({"broken": NONE}, ("C2", "C3", "C4", "C6", "C7")),
    "every layer breaks every task": ({"broken": FLAT}, CLAIMS),
    "late layers break every task": ({"broken": LATE}, CLAIMS),
    "early layers break every task": ({"broken": 0.5 * EARLY}, ("C2", "C3", "C4", "C6", "C7")),
    "by token, late": ({"broken": by_token(0.4 * LATE)}, ("C2", "C3", "C4", "C6", "C7")),
    "by token, everywhere": ({"broken": by_token(0.4 * FLAT)}, ("C2", "C3", "C4", "C6", "C7")),
    "formats are lost in deep layers": ({"broken": FEW, "formats": DEEP}, ("C2", "C3", "C4", "C6")),
    "formats are lost, every layer breaks": ({"broken": FLAT, "formats": DEEP}, ("C2", "C3", "C4", "C6")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--simulations", type=int, default=500)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--draws", type=int, default=400, help="bootstrap draws")
    parser.add_argument("--claims", default=",".join(CLAIMS))
    parser.add_argument("--worlds", default="", help="parts of the names of the worlds to simulate, comma-separated")
    args = parser.parse_args()
    rows = []
    for name, (world, false) in NULLS.items():
        if args.worlds and not any(part in name for part in args.worlds.split(",")):
            continue
        wanted = [claim for claim in args.claims.split(",") if claim in false]
        count: Counter[tuple[str, str]] = Counter()
        with bar(total=args.simulations, desc=name, unit="simulation") as progress:
            for i in range(args.simulations):
                of = sweeps(n=args.documents, seed=[i, args.documents], **world)
                for claim in wanted:
                    count[claim, combined(parts(claim, of, seed=i, n_boot=args.draws))] += 1
                progress.update(1)
        for verdict in ("supported", "contradicted"):
            row = {"world": name, "verdict": verdict, "n": args.documents}
            rows.append(row | {c: f"{count[c, verdict] / args.simulations:.1%}" for c in wanted})
        print(pd.DataFrame(rows[-2:]).fillna("").to_string(index=False), flush=True)
    print(pd.DataFrame(rows).fillna("").to_markdown(index=False))


if __name__ == "__main__":
    main()
