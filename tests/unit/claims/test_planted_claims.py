"""Claims on organisms with planted depth, all the way through: model, sweeps, views, verdicts.

A look at one claim; `benchmarks/planted_claims.py` judges five organisms of each kind for every claim.
"""

from __future__ import annotations

import planted_depth
import pytest

from depthlens.claims import judge


@pytest.mark.slow
@pytest.mark.parametrize("true", [pytest.param(True, marks=pytest.mark.nightly), False])
def test_a_claim_is_supported_where_it_was_planted_and_contradicted_where_it_was_not(true):
    """Of the claim that needs the fewest sweeps, with the fewest documents that its verdict needs."""
    (found,) = judge(planted_depth.evidence("C2", true=true, seed=1, limit=30), claims="C2")
    assert found.verdict == ("supported" if true else "contradicted"), found.sentence
