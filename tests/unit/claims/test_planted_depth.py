"""Claims on organisms with planted depth, all the way through: model, sweeps, views, verdicts.

One organism of each kind here; `benchmarks/planted_claims.py` judges five, and docs/methods.md has its table.
"""

from __future__ import annotations

import planted_depth
import pytest

from depthlens.claims import judge


@pytest.mark.slow
@pytest.mark.parametrize("true", [True, False])
@pytest.mark.parametrize("claim", planted_depth.CLAIMS)
def test_a_claim_is_supported_where_it_was_planted_and_contradicted_where_it_was_not(claim, true):
    seed = planted_depth.CLAIMS.index(claim)  # another organism for every claim
    (found,) = judge(planted_depth.evidence(claim, true=true, seed=seed), claims=claim)
    assert found.verdict == ("supported" if true else "contradicted"), found.sentence
