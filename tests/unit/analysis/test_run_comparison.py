"""Runs side by side: made-up runs whose truth is known, other documents, settings and shapes, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from made_results import EARLY, LATE, N_LAYERS, nats, result_of, sweep

from depthlens.analysis.numbers.means import max_t, mean
from depthlens.analysis.result.concat import concat
from depthlens.analysis.result.results import Result
from depthlens.analysis.runs.comparison import CENTRE, LOSS, SCORE, SHARE, TEST, Comparison, compare_runs

MILD = np.array([0.3, 0.25, 0.2, 0.15, 0.1, 0.1, 0.05, 0, 0])


def compared(*results, names="abcdefgh", **options) -> Comparison:
    return compare_runs(dict(zip(names, results, strict=False)), **options)


def gaps(found: Comparison) -> pd.DataFrame:
    """Differences of losses."""
    return found.of(LOSS, SHARE, compared=True)


def centre_of(found: Comparison, run: str) -> pd.Series:
    return found.of(CENTRE).set_index("run").loc[run]


def with_record(result: Result, task=(), **changes) -> Result:
    tasks = {name: entry | dict(task) for name, entry in result.record["tasks"].items()}
    return Result(result.docs, result.record | {"tasks": tasks} | changes)


def test_a_planted_difference_is_found_everywhere():
    found = compared(sweep(EARLY, n=120), sweep(LATE, n=120, model="late", seed=1))
    table = found.of(LOSS, compared=True).set_index("condition")
    assert table.index[~table["shown"]].tolist() == ["L4"], "both lose alike there"
    assert (table.loc[["L0", "L1", "L2"], "difference"] < 0).all(), "run minus reference"
    shares = found.of(SHARE, compared=True).set_index("condition")
    assert set(shares.index[shares["shown"]]) >= {"L0", "L1", "L7", "L8"}
    assert centre_of(found, "b")["shown"] and centre_of(found, "b")["difference"] > 0.4
    said = "sums acc, layers: the centre of mass of the losses of b is 0.88, a difference of "
    assert any(line.startswith(said) and "from a that is **shown**" in line for line in found.describe())


def test_the_numbers_are_those_of_the_functions_for_one_run_and_for_two():
    a, b = sweep(EARLY), sweep(LATE, model="late", seed=1)
    found = compared(a, b)
    losses, others = (mean(r.losses("sums").loss) for r in (a, b))
    table, gap = found.of(LOSS, compared=True), others - losses
    wanted = (gap.value, *gap.interval(), max_t(gap))
    for column, values in zip(TEST, wanted, strict=False):
        np.testing.assert_allclose(table[column], values)
    profile, share = (found.of(measure)[found.of(measure)["run"] == "a"] for measure in (LOSS, SHARE))
    np.testing.assert_allclose(profile["value"], a.loss_table["loss"])
    np.testing.assert_allclose(profile["depth"], np.arange(N_LAYERS) / (N_LAYERS - 1))
    np.testing.assert_allclose(share["value"], a.loss_table["loss"] / a.baselines["baseline"].item())
    assert profile.loc[profile["critical"], "condition"].tolist() == a.critical()["condition"].tolist()
    assert ((share["ci_low"] <= share["value"]) & (share["value"] <= share["ci_high"])).all()
    assert centre_of(found, "a")["value"] == pytest.approx(a.centre_of_mass().table["centre"].item())


def test_documents_of_a_smaller_run_are_paired_with_the_same_ones_of_a_larger():
    large, small = sweep(EARLY, n=60), sweep(EARLY, n=60)
    small = Result(small.docs[small.docs["doc_id"] < 25], small.record)
    found = compared(large, small)
    assert set(gaps(found)["n_paired"]) == {25} and (gaps(found)["difference"] == 0).all()
    assert any("are compared on the 25 documents that both have" in note for note in found.notes)


@pytest.mark.nightly
def test_false_differences_are_as_rare_as_stated():
    n, wrong = 60, 0
    for seed in range(n):
        results = [sweep(MILD, n=40, chance=0.25, seed=2 * seed + i, model=m) for i, m in enumerate("ab")]
        wrong += gaps(compared(*results))["shown"].any()
    assert wrong <= 10  # at 5% a family and two scales, 11 of 60 or more happen in less than 1 of 100 runs


def test_runs_on_other_documents_are_not_compared():
    late = sweep(LATE, model="late")
    found = compared(sweep(EARLY), Result(late.docs.assign(doc_id=late.docs["doc_id"] + 1000), late.record))
    assert not found.table["reference"].any() and len(found.of(LOSS)) > 0
    assert found.notes == ["sums: b and a have different documents (0 are of both), so that they are not compared"]


@pytest.mark.parametrize(("change", "said"), [
    ({"task": {"num_fewshot": 5}}, "num_fewshot 0 and 5"), ({"seed": 1}, "seed 0 and 1"),
    ({"versions": {"lm-eval": "0.4.1"}}, "version of lm-eval none and 0.4.1"),
    ({"model": {"dims": {"n_layers": N_LAYERS}, "dtype": "bfloat16"}}, "model dtype none and bfloat16"),
    ({"a_setting_of_the_future": 3}, "a_setting_of_the_future none and 3"),
])  # fmt: skip
def test_runs_of_other_settings_are_not_compared_and_both_values_are_said(change, said):
    found = compared(sweep(EARLY), with_record(sweep(LATE, model="late"), **change))
    assert not found.table["reference"].any()
    assert found.of(SCORE)["group"].tolist() == [0, 1] and len(found.of(LOSS)) == 2 * N_LAYERS
    (note,) = found.notes
    assert note == f"sums: b not compared with a, whose settings differ (a first): {said}"


@pytest.mark.parametrize("change", [
    {
        "task": {"n_docs": 3, "file": "elsewhere.yaml"},
        "model": {"dims": {"n_layers": N_LAYERS}, "device": "cuda", "name": "x", "fingerprint": "y"},
        **{"time": "later", "command": ["depthlens"], "git_commit": "abc", "batch_tokens": 7, "limit": 4},
        **{"versions": {"torch": "9.9"}, "platform": "other", "python": "3.13"},
    },
    {"donor": {"fingerprint": "of conditions that no run has"}},
])  # fmt: skip
def test_circumstances_keep_nothing_from_being_compared(change):
    found = compared(sweep(EARLY), with_record(sweep(LATE, model="late", seed=1), **change))
    assert gaps(found)["shown"].any() and not found.notes


def test_models_with_other_numbers_of_layers_are_compared_by_relative_depth():
    right, n = np.random.default_rng(0).random(120) < 0.95, 2 * N_LAYERS
    lost = np.random.default_rng(1).random((n, 120)) < np.repeat(LATE, 2)[:, None]
    values = {f"L{i}": right & ~row for i, row in enumerate(lost)}
    deep = with_record(result_of({"baseline": right} | values, model="deep"), model={"dims": {"n_layers": n}})
    found = compared(sweep(EARLY), deep)
    assert len(gaps(found)) == 0
    assert centre_of(found, "b")["shown"] and centre_of(found, "b")["difference"] > 0.4
    assert found.table.groupby("run")["depth"].max().tolist() == [1, 1]
    assert any("the models of b and a have other shapes, so that no loss" in note for note in found.notes)


def test_scores_of_whole_models_are_compared_by_paired_tests():
    a, b = (result_of({"baseline": np.arange(40) < n, "L0": np.zeros(40)}, model=str(n)) for n in (30, 12))
    row = compared(a, b).of(SCORE).iloc[1]
    assert row["difference"] == pytest.approx(-18 / 40) and row["shown"]
    change = mean(np.r_[np.zeros(12), -np.ones(18), np.zeros(10)])
    assert row["p_adjusted"] == pytest.approx(float(change.p()))


def test_a_run_at_chance_is_called_so_and_nothing_is_concluded():
    found = compared(sweep(EARLY, chance=0.25), sweep(EARLY, accuracy=0.25, chance=0.25, model="weak", seed=3))
    assert len(gaps(found)) == 0
    assert "sums acc: cannot judge the losses of b (not shown to be above chance)." in found.describe()
    weak = found.table[(found.table["run"] == "b") & found.table["measure"].isin([SHARE, CENTRE])]
    assert len(weak) == N_LAYERS + 1 and weak["value"].isna().all()
    assert set(weak["why"]) == {"not shown to be above chance"}


def test_conditions_tasks_and_families_of_one_run_alone_are_named():
    both = concat([sweep(EARLY), sweep(EARLY, task="more"), sweep(EARLY, suffix="@mean")])
    found = compared(both, sweep(EARLY).select(conditions=["L0", "L1", "L2", "L3"]))
    assert gaps(found)["condition"].unique().tolist() == ["L0", "L1", "L2", "L3"]
    assert {"only a has sums acc, layers@mean", "only a has more acc"} <= set(found.notes)
    assert "sums: b and a have 4 of 9 conditions in common" in found.notes


def test_stages_are_compared_with_the_one_before_and_corrected_for_their_number():
    steps = [sweep((1 - w) * EARLY + w * LATE, n=120, model=f"step{i}", seed=i) for i, w in enumerate((0, 0.5, 1))]
    found, others = compared(*steps, stages=True), compared(*steps)
    assert found.of(SCORE)["reference"].tolist() == ["", "a", "b"]
    assert others.of(SCORE)["reference"].tolist() == ["", "a", "a"]
    centre = found.of(CENTRE).set_index("run")
    assert centre.loc[["b", "c"], "shown"].all() and (centre.loc[["b", "c"], "difference"] > 0).all()
    two = gaps(compared(*steps[:2], stages=True))["p_adjusted"].to_numpy()
    three = gaps(found).query("run == 'b'")["p_adjusted"].to_numpy()
    np.testing.assert_allclose(three, np.minimum(1, 2 * two))
    assert found.record["stages"] and found.runs == ["a", "b", "c"]


def test_one_document_is_too_few_for_a_difference():
    few = [Result(r.docs[r.docs["doc_id"] == 0], r.record) for r in (nats(EARLY), nats(LATE, seed=1))]
    assert len(gaps(compared(*few))) == 0
