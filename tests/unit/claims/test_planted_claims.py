"""Claims on organisms with planted depth, all the way through: model, sweeps, views, verdicts.

A look at some claims; `benchmarks/planted_claims.py` judges five organisms of each kind for every claim.
"""

from __future__ import annotations

import planted_depth
import pytest

from depthlens.claims import judge


@pytest.mark.slow
@pytest.mark.parametrize(("claim", "true"), [("C2", False), ("C3", True)])
def test_a_claim_is_supported_where_it_was_planted_and_contradicted_where_it_was_not(claim, true):
    seed = planted_depth.CLAIMS.index(claim)  # another organism for every claim
    (found,) = judge(planted_depth.evidence(claim, true=true, seed=seed), claims=claim)
    assert found.verdict == ("supported" if true else "contradicted"), found.sentence
