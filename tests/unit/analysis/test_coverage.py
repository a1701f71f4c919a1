"""Every 95% interval that is printed covers the truth about as often as it says, on samples like ours.

Fewer samples than benchmarks/coverage.py takes: these tests find a wrong interval, not a missing percent.
"""

from __future__ import annotations

import numpy as np
import pytest
from coverage_cases import CASES, coverage

SAMPLES = 100
WANTED = 0.93  # 0.95, less what is lost in places to skewness; see benchmarks/coverage.py
HEAVY = ("heavy",)  # a few documents hold everything: documented in `stats.mean_intervals` to cover less
HEAVY_WANTED = 0.88
CASES_AND_SIZES = [(case, 30) for case in CASES if not any(word in case for word in (*HEAVY, "clusters"))]
CASES_AND_SIZES += [(case, 100) for case in CASES if any(word in case for word in (*HEAVY, "clusters"))]


@pytest.mark.parametrize(("case", "n"), CASES_AND_SIZES)
def test_coverage(case, n):
    wanted = HEAVY_WANTED if any(word in case for word in HEAVY) else WANTED
    assert coverage(case, n, SAMPLES) >= wanted - 3 * np.sqrt(wanted * (1 - wanted) / SAMPLES)
