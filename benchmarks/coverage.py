"""Coverage of the 95% intervals that the package prints, on samples like ours with known truth.

    python benchmarks/coverage.py [SAMPLES]

prints one row a case and the share of samples of 30, 100 and 300 questions (or subjects) whose interval covers the
truth. With 2,000 samples a share has a standard error of 0.005. The cases are those of tests/coverage_cases.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from coverage_cases import CASES, coverage  # noqa: E402


def main(samples: int = typer.Argument(500)) -> None:
    """Print the table."""
    found = {f"n = {n}": {case: coverage(case, n, samples) for case in CASES} for n in (30, 100, 300)}
    print(pd.DataFrame(found).to_markdown(floatfmt=".3f"))


if __name__ == "__main__":
    typer.run(main)
