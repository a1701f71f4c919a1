"""Every 95% interval that is printed covers the truth about as often as it says, on samples like ours.

Fewer samples than benchmarks/coverage.py takes: these tests find a wrong interval, not a missing percent.
"""

from __future__ import annotations

import numpy as np
import pytest
from coverage_cases import CASES, coverage

pytestmark = pytest.mark.slow

SAMPLES = 100
WANTED = 0.93  # the least that benchmarks/coverage.py finds, of 1,000 samples
CASES_AND_SIZES = [(case, 100 if "clusters" in case else 30) for case in CASES]


@pytest.mark.parametrize(("case", "n"), CASES_AND_SIZES)
def test_coverage(case, n):
    covered, given = coverage(case, n, SAMPLES)
    if given > 0.5:  # else the text says that the documents are too few for an interval, nearly always
        assert covered >= WANTED - 3 * np.sqrt(WANTED * (1 - WANTED) / (given * SAMPLES))


@pytest.mark.parametrize(
    ("case", "n"),
    [("share of mistakes 0.05", 100), ("head score (sparse)", 100), ("clusters, 20", 300), ("clusters, 30", 300)],
)
def test_intervals_are_not_longer_than_they_have_to_be(case, n):
    covered, given = coverage(case, n, 400)
    assert given > 0.9 and covered <= 0.97 + 3 * np.sqrt(0.97 * 0.03 / 400)


def test_no_interval_where_hardly_anything_changes():
    """One document in twenty changes: 1.5 of 30 on average."""
    _, given = coverage("change of L5 (0/1, base 0.9)", 30, SAMPLES)
    assert given < 0.5
