"""Agreement of rankings: of detectors, of modes of removal, and of noisy profiles by numbers and simulation."""

import json

import made_results
import numpy as np
import pandas as pd
import pytest
from made_results import head_scores
from refusals import refused
from scipy import stats as sps

import depthlens as dl
from depthlens.analysis.numbers.ranks import COLUMNS, N_PERMUTATIONS, correlate, in_words, permutation_p, ranks

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
    false, found = 0, 0
    for _ in range(n):
        a, b = layered(rng)
        c, _ = layered(rng)
        table = dl.detector_agreement({"a": a, "b": b, "c": c}, k=8, n_permutations=199).table
        false += table[["p_spearman_adjusted", "p_shared_adjusted"]].min(axis=None) < ALPHA
        a, b = layered(rng, 2.0)
        found += dl.detector_agreement({"a": a, "b": b}, n_permutations=199).table["p_spearman_adjusted"][0] < ALPHA
    assert false / n <= sps.binom.ppf(0.999, n, ALPHA) / n
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
    said = [f"{x}: one of them scores all heads alike, which ranks none." for x in ("a and flat", "flat and b")]
    assert found.describe() == alone.describe() + said
    nothing = dl.detector_agreement({"a": a, "flat": flat})
    assert nothing.table.empty and len(nothing.describe()) == 1


def test_what_others_published_is_read_from_a_file(tmp_path):
    a, b = layered(np.random.default_rng(5), 2.0)
    needles = {f"{i}-{j}": [b.values[i, j] - 1, b.values[i, j] + 1] for i, j in np.ndindex(b.values.shape)}
    (tmp_path / "scores.json").write_text(json.dumps(needles))  # as those of Retrieval_Head, a score a needle
    (tmp_path / "list.json").write_text(json.dumps([str(head) for head in b.top(5)]))
    options = {"k": 5, "n_permutations": 99}
    own, scores, listed = (
        dl.detector_agreement({"a": a, "b": one}, **options)
        for one in (b, tmp_path / "scores.json", str(tmp_path / "list.json"))
    )
    pd.testing.assert_frame_equal(scores.table, own.table)
    shared = ["n_heads", "n_shared", "expected_shared", "p_shared", "heads"]
    assert listed.table[shared].equals(own.table[shared]) and listed.table["spearman"][0] < own.table["spearman"][0]
    assert listed.record["detectors"]["b"] == "list.json"
    lacks, form = (
        "has 1 heads that the model lacks, such as {}; give JSON such as",
        "heads of .* cannot be read .* give",
    )
    wrong = {'["L12.H0", "L0.H1"]': lacks.format("12-0"), '["L1.KV0"]': lacks.format("1-KV0"), "{}": "has no scores"}
    for text, said in (wrong | dict.fromkeys(["3", '{"1-2": {"a": 1}}', "[1]", "no"], form)).items():
        (tmp_path / "list.json").write_text(text)
        refused(said, dl.detector_agreement, {"a": a, "b": tmp_path / "list.json"})
    refused("all are files; give the scores of a model", dl.detector_agreement, {"b": tmp_path / "list.json"})


N_LAYERS, N = 12, 40
TRUE = np.random.default_rng(0).permutation(N_LAYERS) / 24  # nats, of which 1 a document counts


def sweep(modes, parts=None):
    """modes: {text of a condition with {} for the layer: what each layer costs}."""
    losses = {text.format(i): cost for text, costs in modes.items() for i, cost in enumerate(costs[:parts])}
    return made_results.nats(losses, n=N, noise=0.05, seed=1, task="t", chance=None, n_layers=N_LAYERS)


def test_one_row_a_pair_of_modes_of_the_same_parts():
    modes = {"L{}": TRUE, "L{}[1:]": TRUE, "L{}@mean": TRUE[::-1], "L{}.H0": TRUE, "L{}.H0[1:]@noise3": TRUE}
    found = dl.agreement(sweep(modes))
    table = found.table
    assert list(table.columns) == ["task", "parts", "mode", "other", *COLUMNS]
    pairs = [" ".join(row) for row in table[["parts", "mode", "other"]].to_numpy()]
    assert pairs == ["layers skip skip[1:]", "layers skip mean", "layers skip[1:] mean", "heads zero noise3[1:]"]
    alike = table[table["other"].isin(["skip[1:]", "noise3[1:]"])]
    assert (alike["spearman"] > 0.9).all() and (alike["p_value"] < 0.05).all() and (table["ceiling"] > 0.9).all()
    assert (table.loc[table["other"] == "mean", "spearman"] < 0.5).all()
    assert len(found.describe()) == 4 and found.describe()[0].startswith("t: 12 layers by skip and by skip[1:]: rank")
    assert found.table.equals(dl.agreement(sweep(modes)).table)


def test_a_question_that_is_asked_twice_counts_once():
    once = sweep({"L{}": TRUE, "L{}@mean": TRUE})
    docs = pd.concat([once.docs.assign(doc_id=2 * once.docs["doc_id"] + i) for i in range(2)])
    twice = made_results.same_documents(dl.Result(docs, once.record), times=2)
    pd.testing.assert_frame_equal(dl.agreement(twice).table, dl.agreement(once).table)


def test_parts_that_one_mode_lacks_are_left_out():
    two = sweep({"L{}": TRUE, "L{}@mean": TRUE})
    fewer = two.select(conditions=[c for c in two.docs["condition"].unique() if c not in ("baseline", "L3@mean")])
    assert dl.agreement(fewer).table["n_parts"].tolist() == [N_LAYERS - 1]


def test_nothing_to_compare_is_said():
    """As of one way to remove, or of a model of two layers."""
    one, two = dl.agreement(sweep({"L{}": TRUE})), dl.agreement(sweep({"L{}": TRUE, "L{}@mean": TRUE}, parts=2))
    assert len(one.table) == 0 and "Fewer than two profiles can be judged" in one.describe()[0]
    assert "cannot judge: a rank correlation needs 3 parts, and here are 2" in two.describe()[0]


DEEP, N_HEADS = 30, 9
LAYERS = np.arange(DEEP)


def profiles(rho, rng, n_parts=DEEP):
    """Two true profiles whose Spearman correlation is ``rho`` on average, and what it is."""
    pearson = 2 * np.sin(np.pi * rho / 6)
    x = rng.normal(size=n_parts)
    y = pearson * x + np.sqrt(1 - pearson**2) * rng.normal(size=n_parts)
    return x, y, float(ranks(x) @ ranks(y))


def losses(profile, n, noise, rng, shared=0.0):
    """A document multiplies the profile by a weight of its own, and each part has noise. [document, part]"""
    return rng.exponential(size=n)[:, None] * profile + noise * rng.normal(size=(n, len(profile))) + shared


def test_it_is_spearmans_of_the_means_and_exact_without_noise():
    rng = np.random.default_rng(0)
    x, y, rho = profiles(0.6, rng)
    a, b = np.tile(x, (12, 1)), np.tile(y, (12, 1))
    found = correlate(a, b, LAYERS)
    assert found.spearman == pytest.approx(sps.spearmanr(x, y).statistic) == pytest.approx(rho)
    assert found.reliability == found.other_reliability == pytest.approx(1) and found.ceiling == pytest.approx(1)
    assert (found.n_parts, found.n, found.note) == (DEEP, 12, "")
    assert correlate(a, y, LAYERS).spearman == pytest.approx(rho)
    assert correlate(a * 1e-12, -b, LAYERS).spearman == pytest.approx(-rho), "no unit is rounded away"


def test_the_ceiling_is_what_two_measurements_of_one_truth_reach():
    rng = np.random.default_rng(1)
    x, _, _ = profiles(0, rng)
    found = [correlate(losses(x, 40, 3, rng), losses(x, 40, 3, rng), LAYERS) for _ in range(40)]
    assert np.mean([f.spearman for f in found]) == pytest.approx(np.mean([f.ceiling for f in found]), abs=0.03)
    assert np.mean([f.spearman for f in found]) < 0.85


def test_p_of_layers_is_the_share_of_turns_and_mirrors_of_what_no_parabola_explains():
    rng, depth, circle = np.random.default_rng(4), np.linspace(-1, 1, 12), [*range(12), *range(11, -1, -1)]
    a, b = ranks(rng.normal(size=(2, 12)).cumsum(1))
    left, other = (x - (basis := np.vander(depth, 3)) @ np.linalg.lstsq(basis, x)[0] for x in (a, b))
    rho = np.abs([left @ other[np.roll(circle, turn)[:12]] for turn in range(24)])
    assert permutation_p(a, b, np.arange(12), rng) == (pytest.approx(np.mean(rho >= rho[0] - 1e-9)), 1 / 24)


def test_heads_agree_within_layers_or_not_at_all():
    rng, layers = np.random.default_rng(5), np.repeat(np.arange(6), N_HEADS)
    a = ranks(rng.normal(size=6 * N_HEADS))
    smallest = 1 / (1 + N_PERMUTATIONS)
    assert permutation_p(a, a, layers, rng) == (smallest, smallest) == permutation_p(a, -a, layers, rng)
    pairs = np.repeat(np.arange(3), 2)
    assert permutation_p(a[:6], a[:6], pairs, rng)[1] == 1 / 8, "two heads in each of three layers"


def test_what_cannot_be_told_is_not_told():
    rng = np.random.default_rng(6)
    x, y, _ = profiles(0.9, rng)
    noise = correlate(rng.normal(size=(40, DEEP)), np.tile(y, (40, 1)), LAYERS)
    assert 0 <= noise.ceiling < 0.8 and noise.other_reliability == pytest.approx(1)
    flat = correlate(np.ones((40, DEEP)), np.tile(y, (40, 1)), LAYERS)
    assert np.isnan(flat.spearman) and "cannot judge: all parts have the same number" in in_words(flat)
    few = correlate(np.tile(x, (7, 1)), np.tile(y, (7, 1)), LAYERS)
    assert np.isnan(few.ceiling) and few.note == "7 documents are too few for halves; take 8"
    two = correlate(np.ones((9, 2)), np.ones((9, 2)), np.arange(2))
    assert np.isnan(two.spearman) and two.note == "a rank correlation needs 3 parts, and here are 2"


def test_other_documents_and_other_numbers_of_them():
    rng = np.random.default_rng(7)
    x, y, truth = profiles(0.6, rng)
    found = correlate(losses(x, 90, 1, rng), losses(y, 12, 0.5, rng), LAYERS)
    assert found.n == 12 and abs(found.spearman - truth) < 0.3 and found.reliability > found.other_reliability


def test_words():
    rng = np.random.default_rng(9)
    x, y, _ = profiles(0.9, rng)
    text = in_words(correlate(losses(x, 60, 1, rng), losses(y, 60, 1, rng), LAYERS))
    assert text.startswith("rank correlation **0.") and " (equal orders would give 0." in text
    short = in_words(correlate(losses(x[:6], 60, 1, rng), losses(y[:6], 60, 1, rng), LAYERS[:6]))
    assert "(p = 0.017)" in text and "p cannot be below 0.083" in short
