"""Agreement of detectors: what layers alone explain is no agreement."""

from __future__ import annotations

import made_results
import numpy as np
import pytest
from made_results import head_scores
from scipy import stats as sps

import depthlens as dl
from depthlens.analysis.rank_correlations import COLUMNS
from depthlens.errors import UserError

ALPHA = 0.05


def layered(rng, effect=0.0, n_layers=12, n_heads=6):
    """Two scores that are high in the same layers; within a layer they share ``effect`` of their variation."""
    layers, common = rng.normal(0, 2, (n_layers, 1)), rng.normal(size=(n_layers, n_heads))
    own = rng.standard_t(3, size=(2, n_layers, n_heads))  # heavy tails, as scores of heads have
    return [head_scores(np.exp(layers + effect * common + own_part)) for own_part in own]


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
    (row,) = dl.detector_agreement({"a": a, "b": head_scores(holes)}, k=4, n_permutations=99).table.to_dict("records")
    assert row["n_heads"] == np.isfinite(holes).sum() == 36
    kept = np.isfinite(holes)
    assert row["spearman"] == pytest.approx(sps.spearmanr(a.values[kept], b.values[kept]).statistic)


def test_a_detector_that_ranks_no_head_is_named_and_the_others_are_compared():
    """As a copy-paste score of a model that copies nothing."""
    a, b = layered(np.random.default_rng(4), 2.0)
    flat = head_scores(np.zeros((12, 6)))
    found = dl.detector_agreement({"a": a, "flat": flat, "b": b}, n_permutations=99)
    alone = dl.detector_agreement({"a": a, "b": b}, n_permutations=99)
    assert found.table.equals(alone.table)
    assert found.describe() == [*alone.describe(), "flat: all heads have the same score, which ranks none."]
    nothing = dl.detector_agreement({"a": a, "flat": flat})
    assert nothing.table.empty and len(nothing.describe()) == 1


def test_scores_that_rank_no_common_heads_or_of_other_models_are_refused():
    a, b = layered(np.random.default_rng(3))
    in_first = np.arange(12)[:, None] == 0
    first, rest = head_scores(np.where(in_first, a.values, np.nan)), head_scores(np.where(in_first, 1.0, b.values))
    with pytest.raises(UserError, match="give scores of one model"):
        dl.detector_agreement({"a": a, "b": head_scores(b.values[:5])})
    with pytest.raises(UserError, match="b: all 6 heads have the same score"):
        dl.detector_agreement({"a": first, "b": rest}, k=2)


N_LAYERS, N = 12, 40
TRUE = np.random.default_rng(0).permutation(N_LAYERS) / 4


def sweep(modes, *, chance=None, parts=None):
    """modes: {text of a condition with {} for the layer: what each layer costs}."""
    losses = {text.format(i): cost for text, costs in modes.items() for i, cost in enumerate(costs[:parts])}
    return made_results.nats(losses, n=N, noise=0.2, seed=1, task="t", chance=chance, n_layers=N_LAYERS)


def test_one_row_a_pair_of_modes_of_the_same_parts():
    modes = {"L{}": TRUE, "L{}[1:]": TRUE, "L{}@mean": TRUE[::-1], "L{}.H0": TRUE, "L{}.H0[1:]@noise3": TRUE}
    found = dl.mode_agreement(sweep(modes))
    table = found.table
    assert list(table.columns) == ["task", "parts", "mode", "other", *COLUMNS]
    pairs = [tuple(row) for row in table[["parts", "mode", "other"]].to_numpy()]
    assert pairs == [
        ("layers", "skip", "skip[1:]"), ("layers", "skip", "mean"), ("layers", "skip[1:]", "mean"),
        ("heads", "zero", "noise3[1:]"),
    ]  # fmt: skip
    alike = table[table["other"].isin(["skip[1:]", "noise3[1:]"])]
    assert (alike["corrected"] > 0.9).all() and (alike["ci_low"] > 0.8).all()
    assert (table.loc[table["other"] == "mean", "corrected"] < 0.5).all()
    assert len(found.describe()) == 4 and found.describe()[0].startswith("t: 12 layers by skip and by skip[1:]: rank")
    assert found.table.equals(dl.mode_agreement(sweep(modes)).table)


def test_parts_that_one_mode_lacks_are_left_out():
    two = sweep({"L{}": TRUE, "L{}@mean": TRUE})
    fewer = two.select(conditions=[c for c in two.docs["condition"].unique() if c not in ("baseline", "L3@mean")])
    assert dl.mode_agreement(fewer).table["n_parts"].tolist() == [N_LAYERS - 1]


def test_a_task_at_chance_has_no_row():
    found = dl.mode_agreement(sweep({"L{}": TRUE, "L{}@mean": TRUE}, chance=0.9))
    assert found.table.empty and found.describe() == [f"t: at chance, cannot judge (n = {N})."]


@pytest.mark.parametrize(
    ("modes", "parts", "n_rows", "said"),
    [
        ({"L{}": TRUE}, None, 0, "The result has skip of layers: no two modes have parts in common"),
        ({"L{}-20": TRUE}, None, 0, "The result has no single parts: "),
        ({"L{}": TRUE, "L{}@mean": TRUE}, 2, 1, "cannot judge: a rank correlation needs 3 parts, and here are 2"),
    ],
)
def test_nothing_to_compare_is_said(modes, parts, n_rows, said):
    """As of one way to remove, or of a model of two layers."""
    found = dl.mode_agreement(sweep(modes, parts=parts))
    (sentence,) = found.describe()
    assert len(found.table) == n_rows and said in sentence
