"""Every 95% interval that is printed covers the truth about as often as it says, on samples like ours.

Fewer samples than benchmarks/coverage.py takes: these tests find a wrong interval, not a missing percent.
"""

from __future__ import annotations

import numpy as np
import pytest
from coverage_cases import CASES, coverage

FULL, WANTED = 100, 0.93  # samples; the least that benchmarks/coverage.py finds, of 1,000 samples
SOME = [
    "change of L0 (0/1, base 0.9)", "proportion of 0.9 (Wilson)", "centre of mass (nats)", "third, score (nats)",
    "centre difference (nats)", "difference of differences (0/1, base 0.9)", "recovered share (0/1)",
    "head score (every case)", "attention's share (0/1)", "3 seeds, spread 0.5", "clusters, 20",
    "rank correlation (nats)", "faithfulness (nats)", "geometry: effect",
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "samples"),
    [*((case, 25) for case in SOME), *(pytest.param(case, FULL, marks=pytest.mark.nightly) for case in CASES)],
)
def test_coverage(case, samples):
    covered, given = coverage(case, 100 if "clusters" in case else 30, samples)
    if given > 0.5:  # else the text says that the documents are too few for an interval, nearly always
        assert covered >= WANTED - 3 * np.sqrt(WANTED * (1 - WANTED) / (given * samples))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("case", "n"),
    [("share of mistakes 0.05", 100), ("head score (sparse)", 100), ("clusters, 20", 300), ("clusters, 30", 300)],
)
def test_intervals_are_not_longer_than_they_have_to_be(case, n):
    covered, given = coverage(case, n, 400)
    assert given > 0.9 and covered <= 0.97 + 3 * np.sqrt(0.97 * 0.03 / 400)


def test_no_interval_where_hardly_anything_changes():
    """One document in twenty changes: 1.5 of 30 on average."""
    _, given = coverage("change of L5 (0/1, base 0.9)", 30, 25)
    assert given < 0.5
