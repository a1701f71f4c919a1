"""Agreement of detectors: what layers alone explain is no agreement."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as sps

import depthlens as dl
from depthlens.analysis.head_scores import HeadScores
from depthlens.errors import UserError

ALPHA = 0.05


def made(values, name="test"):
    values = np.asarray(values, dtype=float)
    return HeadScores(name, "", values, None, None, 5, None, {"model": {"name": "m"}})


def layered(rng, effect=0.0, n_layers=12, n_heads=6):
    """Two scores that are high in the same layers; within a layer they share ``effect`` of their variation."""
    layers, common = rng.normal(0, 2, (n_layers, 1)), rng.normal(size=(n_layers, n_heads))
    own = rng.standard_t(3, size=(2, n_layers, n_heads))  # heavy tails, as scores of heads have
    return [made(np.exp(layers + effect * common + own_part)) for own_part in own]


def test_the_numbers_are_those_of_the_definitions():
    rng = np.random.default_rng(0)
    a, b = layered(rng, 1.0)
    found = dl.detector_agreement({"one": a, "two": b}, k=5, n_permutations=999)
    (row,) = found.table.to_dict("records")
    assert row["spearman"] == pytest.approx(sps.spearmanr(a.values.ravel(), b.values.ravel()).statistic)
    shared = set(a.top(5)) & set(b.top(5))
    assert row["n_shared"] == len(shared) and set(row["heads"].split(", ")) - {""} == {f"L{x}.H{y}" for x, y in shared}
    # expected number in common: in each layer, the product of the two numbers of listed heads over the heads
    counts = [np.bincount([layer for layer, _ in s.top(5)], minlength=12) for s in (a, b)]
    assert row["expected_shared"] == pytest.approx((counts[0] * counts[1] / 6).sum(), abs=0.15)
    assert found.record["k"] == 5 and len(found.describe()) == 1 and "by layers alone" in found.describe()[0]


@pytest.mark.parametrize("n", [25, pytest.param(300, marks=pytest.mark.nightly)])
def test_layers_in_common_are_no_agreement_and_heads_in_common_are(n):
    """Error rate through the whole procedure: three detectors, both statistics, Holm; and power."""
    rng = np.random.default_rng(1)
    false, naive, found = 0, 0, 0
    for _ in range(n):
        a, b = layered(rng)
        c, _ = layered(rng)
        table = dl.detector_agreement({"a": a, "b": b, "c": c}, k=8, n_permutations=199).table
        false += table[["p_spearman_adjusted", "p_shared_adjusted"]].min(axis=None) < ALPHA
        naive += sps.spearmanr(a.values.ravel(), b.values.ravel()).pvalue < ALPHA
        a, b = layered(rng, 2.0)
        found += dl.detector_agreement({"a": a, "b": b}, n_permutations=199).table["p_spearman_adjusted"][0] < ALPHA
    assert false / n <= sps.binom.ppf(0.999, n, ALPHA) / n
    assert naive / n > 0.9  # what a correlation over heads would say
    assert found / n > 0.9


def test_only_heads_with_both_scores_count():
    rng = np.random.default_rng(2)
    a, b = layered(rng, 2.0)
    holes = b.values.copy()
    holes[3:, 2:] = np.nan
    (row,) = dl.detector_agreement({"a": a, "b": made(holes)}, k=4, n_permutations=99).table.to_dict("records")
    assert row["n_heads"] == np.isfinite(holes).sum() == 36
    kept = np.isfinite(holes)
    assert row["spearman"] == pytest.approx(sps.spearmanr(a.values[kept], b.values[kept]).statistic)


def test_a_detector_that_ranks_no_head_is_named_and_the_others_are_compared():
    """As a copy-paste score of a model that copies nothing."""
    a, b = layered(np.random.default_rng(4), 2.0)
    flat = made(np.zeros((12, 6)))
    found = dl.detector_agreement({"a": a, "flat": flat, "b": b}, n_permutations=99)
    alone = dl.detector_agreement({"a": a, "b": b}, n_permutations=99)
    assert found.table.equals(alone.table)
    assert found.describe() == [*alone.describe(), "flat: all heads have the same score, which ranks none."]
    nothing = dl.detector_agreement({"a": a, "flat": flat})
    assert nothing.table.empty and len(nothing.describe()) == 1


def test_scores_that_rank_no_common_heads_or_of_other_models_are_refused():
    a, b = layered(np.random.default_rng(3))
    in_first = np.arange(12)[:, None] == 0
    first, rest = made(np.where(in_first, a.values, np.nan)), made(np.where(in_first, 1.0, b.values))
    with pytest.raises(UserError, match="give scores of one model"):
        dl.detector_agreement({"a": a, "b": made(b.values[:5])})
    with pytest.raises(UserError, match="b: all 6 heads have the same score"):
        dl.detector_agreement({"a": first, "b": rest}, k=2)
