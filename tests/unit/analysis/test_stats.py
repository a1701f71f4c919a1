"""Scores of whole models by formula, and the table of changes."""

import math

import made_results
import numpy as np
import pandas as pd
import pytest
from refusals import refused
from scipy import stats as sps

from depthlens.analysis.numbers import stats
from depthlens.analysis.numbers.means import mean
from depthlens.analysis.result.results import Result


def table(values: dict[str, list[float]], *, metric="acc", doc_ids=None) -> pd.DataFrame:
    """Documents of one (model, task, metric) from values per condition."""
    docs = made_results.docs_of(values, task="t", metric=metric, model="m")
    if doc_ids:
        docs["doc_id"] = [i for condition in values for i in doc_ids[condition]]
    return docs.astype({"layer": "Int64", "head": "Int64", "doc_id": "int64"})


def test_the_score_of_a_whole_model_has_wilsons_interval_and_the_exact_binomial_test():
    k, n, z = 6, 10, sps.norm.ppf(0.975)
    centre, half = (k + z * z / 2) / (n + z * z), z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    by_hand = sum(math.comb(10, i) * 0.25**i * 0.75 ** (10 - i) for i in range(6, 11))
    values = np.r_[np.ones(6), np.zeros(4)]
    found = stats.whole_model(values, mean(values), 0.25)
    assert found == pytest.approx((10, 0.6, centre - half, centre + half, 0.25, by_hand, True))


@pytest.mark.parametrize(("values", "chance", "better", "p", "at_chance"), [
    ([0] * 10, 0.25, True, 1.0, True), ([0] * 10, 0.0, True, 1.0, True), ([1] + [0] * 9, 0.0, True, 0.0, False),
    ([1] * 10, 0.25, True, 0.25**10, False), ([0] * 10, 0.75, False, 0.25**10, False),
    ([1] * 10, None, True, None, False), ([0] * 10, None, True, None, True), ([0] * 10, None, False, None, False),
])  # fmt: skip
def test_chance(values, chance, better, p, at_chance):
    scores = np.array(values, float)
    *_, found, said = stats.whole_model(scores, mean(scores), chance, higher_is_better=better)
    assert said == at_chance and (math.isnan(found) if p is None else found == pytest.approx(p))


def test_scores_between_are_tested_by_their_mean():
    graded = np.array([0.3, 0.5, 0.7, 0.9])
    *_, low, high, _, p, _ = stats.whole_model(graded, mean(graded), 0.25)
    assert (low, high) == pytest.approx(tuple(map(float, mean(graded).interval())))
    assert p == pytest.approx(sps.t.sf((0.6 - 0.25) / float(mean(graded).error), 3))
    subjects = np.array(["a", "a", "b", "b"])
    of_subjects = mean(graded, subjects)
    assert stats.whole_model(graded, of_subjects, None).ci_low == pytest.approx(float(of_subjects.interval()[0]))


def test_losses_in_nats_are_clipped_and_others_are_not():
    lost = {"baseline": [0.0] * 4, "L0": [-3.0, -0.5, 0.2, 0.0]}
    nats, other = (Result(table(lost, metric=name), {}).losses() for name in ("answer_logprob", "points"))
    assert float(nats.mean().value[0]) == pytest.approx((1 + 0.5 - 0.2) / 4) and nats.loss_limits == (-1, 1)
    assert float(other.mean().value[0]) == pytest.approx(3.3 / 4)
    assert other.mean().extra[0] == 0 < nats.mean().extra[0], "what has no limits has no imagined questions"


def test_the_order_and_the_numbers_of_a_summary():
    docs = table({"L1": [1, 1, 0, 0], "L0": [0, 0, 0, 1], "baseline": [1, 1, 1, 0]})
    got = Result(docs, {}).summary
    assert got["condition"].tolist() == ["baseline", "L1", "L0"]
    assert got["layer"].tolist() == [pd.NA, 1, 0] and str(got["layer"].dtype) == "Int64"
    assert got["n"].tolist() == [4, 4, 4]
    assert got["value"].tolist() == [0.75, 0.5, 0.25]
    assert got["baseline"].tolist() == [0.75] * 3
    assert got["delta"].tolist() == [0.0, -0.25, -0.5]
    first = got.iloc[0]
    assert (first["ci_low"], first["ci_high"]) == (0, 0)
    assert all(math.isnan(first[column]) for column in ("p_value", "p_adjusted"))
    assert got["p_adjusted"].tolist()[1:] == [1.0, 1.0]  # one changed document reaches its own size in every flip
    change = mean(np.array([[0, 0, -1, 0], [-1, -1, -1, 1]]).T)
    np.testing.assert_allclose(got["p_value"][1:], change.p())
    np.testing.assert_allclose(got[["ci_low", "ci_high"]][1:].T, np.clip(change.interval(), -1, 1))


def test_documents_are_matched_by_id_not_by_position():
    docs = table({"baseline": [1, 0, 1, 0], "L0": [0, 1, 0, 1]}, doc_ids={"baseline": [0, 1, 2, 3], "L0": [1, 0, 3, 2]})
    assert Result(docs, {}).summary["p_value"].iloc[1] == 1.0  # nothing changed on any document


def test_the_correction_runs_within_one_task_and_metric():
    strong, weak = [0] * 10, [0] * 7 + [1] * 3
    one = table({"baseline": [1] * 10, "L0": strong, "L1": weak})
    both = pd.concat([one, table({"baseline": [1] * 10, "L0": strong, "L1": weak}, metric="em")])
    alone, joint = Result(one, {}).summary, Result(both, {}).summary
    # both are lost together, so that the largest sum of a flip is most often that of L0: 2 of 1024, and 2 of 128
    assert alone["p_adjusted"].tolist()[1:] == pytest.approx([2**-9, 2**-6])
    of_acc = joint.loc[joint["metric"] == "acc", "p_adjusted"]
    assert of_acc.tolist()[1:] == alone["p_adjusted"].tolist()[1:]


def test_in_nats_the_mean_change_stands_beside_the_one_that_is_tested():
    row = Result(table({"baseline": [-1, -2, -3], "L0": [-5, -2.5, -3]}, metric="answer_logprob"), {}).summary.iloc[1]
    assert (row["delta"], row["bounded"]) == (pytest.approx(-1.5), pytest.approx(-0.5))
    assert -1 <= row["ci_low"] < -0.5 < row["ci_high"] <= 1


def test_baseline_alone_is_summarised():
    got = Result(table({"baseline": [1, 0]}), {}).summary
    assert len(got) == 1 and got["value"].item() == 0.5


@pytest.mark.parametrize(("values", "ids", "message"), [
    ({"L0": [1, 0]}, None, r"t acc of m has no 'baseline'"),
    ({"baseline": [1, 0], "L7": [1, math.nan]}, None, r"condition 'L7'.*no number on document 1.*float16"),
    ({"baseline": [1, 0], "L7": [1]}, None, r"condition 'L7'.*no number on document 1"),
    ({"baseline": [1, 0], "L7": [1, 0]}, {"baseline": [0, 1], "L7": [0, 5]}, r"'baseline'.*no number on document 5"),
])  # fmt: skip
def test_bad_documents_are_refused_in_one_line(values, ids, message):
    refused(message, lambda: Result(table(values, doc_ids=ids), {}).summary)
