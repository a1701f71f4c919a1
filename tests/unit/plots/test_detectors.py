"""The map of agreement of detectors."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import by_gid, check, nothing_leaks, texts  # noqa: F401 (a fixture for all of them)
from made_up_heads import record

from depthlens import plots
from depthlens.analysis.detector_agreement import detector_agreement
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.tables import DescribedTable
from depthlens.errors import UserError


def agreement(n_detectors=4, k=5):
    """The first two share what they see, the others see noise."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(12, 6))
    scores = {}
    for i in range(n_detectors):
        values = rng.normal(size=common.shape) + (4 * common if i < 2 else 0)
        scores[f"detector {i}"] = HeadScores(f"d{i}", "", values, None, None, 5, None, record())
    return detector_agreement(scores, k=k, n_permutations=999)


@pytest.mark.parametrize("n_detectors", [2, 4, 7])
def test_agreement_shows_correlation_and_shared_heads(n_detectors):
    made = agreement(n_detectors)
    fig = plots.detector_agreement(made)
    check(fig)
    shown = {(*map(int, text.get_position()),): text.get_text() for text in by_gid(fig, "number")}
    assert len(shown) == n_detectors * (n_detectors - 1)
    first = made.table.iloc[0]
    assert shown[0, 1] == f"{first['spearman']:.2f}" and shown[1, 0] == str(first["n_shared"])  # x, y: below, above
    significant = (made.table[["p_spearman_adjusted", "p_shared_adjusted"]] < 0.05).sum(axis=None)
    assert len(by_gid(fig, "agrees")) == significant >= 1
    assert f"agreement of {n_detectors} detectors over 72 heads" in texts(fig)


def test_other_tables_are_refused():
    made = agreement()
    with pytest.raises(UserError, match="a table of something else"):
        plots.detector_agreement(DescribedTable(made.table, [], {"made_by": "x"}))
