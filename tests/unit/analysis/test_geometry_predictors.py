"""How well cheap geometry predicts the losses of removed layers."""

from __future__ import annotations

import geometries
import numpy as np
import pandas as pd
import pytest
from geometries import ACCURACIES, N_LAYERS
from made_results import exact
from scipy.stats import spearmanr

from depthlens.analysis.geometry import geometry_agreement
from depthlens.errors import UserError


@pytest.fixture(scope="module")
def found():
    return geometries.measured()


def test_predictors_are_one_row_a_layer(found):
    g, _, table = found
    assert table.columns.tolist() == ["layer", "block_influence", "angular_distance", "entropy_drop"]
    assert table["layer"].tolist() == list(range(g.n_layers))
    assert table["block_influence"].tolist() == g.influences["influence"].tolist()
    assert table["angular_distance"].tolist() == g.distances.query("size == 1")["distance"].tolist()
    entropy = g.logit_lens["entropy"].tolist()
    np.testing.assert_allclose(table["entropy_drop"], [a - b for a, b in zip(entropy, entropy[1:], strict=False)])


def test_agreement_is_spearman_of_the_layers_that_the_sweep_removes():
    cheap = pd.DataFrame({"layer": range(N_LAYERS), "good": [9, 5, 4, 2, 1.0], "poor": [1, 5, 0, 9, 2.0], "flat": 1.0})
    table = geometry_agreement(cheap.sample(frac=1, random_state=1), exact(ACCURACIES)).table.set_index("predictor")
    assert set(table["task"]) == {"sums"}, "a task at chance has no losses to foretell"
    base, without = ACCURACIES["sums"]
    loss = [base - a for a in without]
    for name in ("good", "poor"):
        assert table.loc[name, "spearman"] == pytest.approx(spearmanr(cheap[name], loss).statistic)
        assert table.loc[name, "other_reliability"] == 1
    assert table.loc["good", "spearman"] == pytest.approx(1) and np.isnan(table.loc["flat", "spearman"])


def test_agreement_of_what_does_not_fit_raises(found):
    with pytest.raises(UserError, match="removed layer 3 has no predictors"):
        geometry_agreement(found[2].head(3), exact(ACCURACIES))
    few = geometry_agreement(found[2], exact(ACCURACIES, layers=(0, 4)))
    assert all("cannot judge: a rank correlation needs 3 parts, and here are 2" in line for line in few.describe())
