"""Coverage of every 95% interval that the package prints, on samples like ours with known truth.

    python benchmarks/coverage.py [SAMPLES]

prints one row a case and the share of samples of 30, 100 and 300 documents whose interval covers the truth. With 2,000
samples a share has a standard error of 0.005. Where fewer than all samples have an interval, their share stands in
brackets. The cases are those of tests/coverage_cases.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from coverage_cases import CASES, coverage  # noqa: E402

SIZES = (30, 100, 300)
CLUSTERS = {"clusters, 20": 20, "clusters, 30": 30}  # fewer documents have no more than one a cluster


def main() -> None:
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    print(f"| interval, {samples} samples | " + " | ".join(f"n = {n}" for n in SIZES) + " |")
    print("|---|" + "---|" * len(SIZES))
    for case in CASES:
        cells = [coverage(case, n, samples) for n in SIZES if n > CLUSTERS.get(case, 0)]
        shown = [f"{covered:.3f}" + (f" ({given:.0%})" if given < 1 else "") for covered, given in cells]
        print(f"| {case} | {' | '.join(['–'] * (len(SIZES) - len(shown)) + shown)} |", flush=True)


if __name__ == "__main__":
    main()
