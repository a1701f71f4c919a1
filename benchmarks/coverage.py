"""Coverage of the 95% intervals that the package prints, on samples like ours with known truth.

    python benchmarks/coverage.py [SAMPLES]

prints one row a case and the share of samples of 30, 100 and 300 questions (or subjects) whose interval covers the
truth. With 2,000 samples a share has a standard error of 0.005. The cases are those of tests/coverage_cases.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from coverage_cases import CASES, coverage  # noqa: E402

SIZES = (30, 100, 300)


def main() -> None:
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    print(f"| interval, {samples} samples | " + " | ".join(f"n = {n}" for n in SIZES) + " |")
    print("|---|" + "---|" * len(SIZES))
    for case in CASES:
        print(f"| {case} | {' | '.join(f'{coverage(case, n, samples):.3f}' for n in SIZES)} |", flush=True)


if __name__ == "__main__":
    main()
