"""Results: derived numbers, sentences, selections, joined results, and every refusal."""

import copy
import json
import pickle
import warnings

import made_results
import numpy as np
import pandas as pd
import pytest
from made_results import ACC, capitals_and_elements, docs_of, record_of, sweep
from refusals import refused

import depthlens as dl
from depthlens.analysis.numbers import stats
from depthlens.analysis.numbers.means import mean
from depthlens.analysis.result.concat import concat
from depthlens.analysis.result.results import DOCS_COLUMNS, Result


@pytest.fixture
def result() -> Result:
    return capitals_and_elements()


def test_docs_are_brought_to_the_contracted_types(result):
    own = ["model", "task", "metric", "condition", "layer", "head", "doc_id", "value", "response"]
    assert DOCS_COLUMNS == own and list(result.docs.columns) == [*own, "parsed", "complete", "margin"]
    types = {c: str(t) for c, t in result.docs.dtypes.items()}
    assert (types["layer"], types["head"]) == ("Int64", "Int64")
    assert (types["doc_id"], types["value"], types["parsed"]) == ("int64", "float64", "boolean")


def test_baselines(result):
    table = result.baselines.set_index("task")
    assert list(result.baselines.columns) == [
        "model", "task", "metric", "n", "baseline", "ci_low", "ci_high", "chance", "p_chance", "at_chance",
    ]  # fmt: skip
    capitals = table.loc["capitals"]
    assert (capitals["n"], capitals["baseline"], capitals["chance"]) == (20, 0.9, 0.25)
    values = np.r_[np.ones(18), np.zeros(2)]
    by_itself = stats.whole_model(values, mean(values), 0.25)
    assert tuple(capitals[["ci_low", "ci_high", "p_chance"]]) == (*by_itself[2:4], by_itself[5])
    assert table["at_chance"].tolist() == [False, True]


def test_two_right_answers_of_two_are_not_called_at_chance():
    few = Result(docs_of({"baseline": [1, 1], "L0": [0, 0]}), record_of(capitals={"acc": {"chance": 0.25}}))
    told = "not shown to be above chance (2 questions)"
    assert few.notes[0].startswith(f"capitals acc is {told}: cannot judge (baseline 1, chance 0.25, p = 0.06")
    said = [*few.notes, *few.describe(), *few.describe("L0"), repr(few), few._repr_html_(), few.explore().html()]
    assert all(told in text for text in said) and not any("at chance" in text for text in said)
    one = few.select(conditions="L0")
    one = Result(one.docs[one.docs["doc_id"] == 0], one.record)
    assert "(1 question): cannot judge" in one.notes[0]


def test_a_condition_is_found_however_it_is_written():
    result = sweep({"L1.H0+L2.H3": 0.9, "L1": 0.0})
    for written in ("L1.H0+L2.H3", "L2.H3 + L1.H0"):
        assert result.select(conditions=[written]).docs["condition"].unique().tolist() == ["baseline", "L1.H0+L2.H3"]
        assert "L1.H0+L2.H3" in result.describe(written)[0]
        found = dl.claims.tested("{effect}", result.losses(), [written], ["L1"], at_least=0.1)
        assert found.main.effect == pytest.approx(np.diff(result.losses().loss.mean(0)[::-1])[0])
    refused("cannot read 'nothing'", result.select, conditions=["nothing"])


def test_critical_excludes_chance_and_names_it(result):
    message = r"elements acc is not shown to be above chance \(20 questions\): cannot judge \(baseline 0.25, ch"
    with pytest.warns(UserWarning, match=message):
        table = result.critical()
    assert table[["task", "condition"]].values.tolist() == [["capitals", "L0"]]
    assert list(table.columns) == [*result.summary.columns, "in_top"] and table["in_top"].tolist() == [1.0]


@pytest.mark.parametrize(("better", "critical"), [(True, ["L0"]), (False, ["L1"])])
def test_critical_is_the_harmful_direction_and_verdicts_know_it(better, critical):
    docs = docs_of({"baseline": [1] * 10 + [0] * 10, "L0": [0] * 20, "L1": [1] * 20})
    result = Result(docs, record_of(capitals={"acc": {"higher_is_better": better, "chance": None}}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is at chance: nothing to warn of
        assert result.critical()["condition"].tolist() == critical
    assert result.describe("L0")[0].startswith("L0: acc of capitals falls by 0.5 [")
    assert result.describe("L1")[0].startswith("L1: acc of capitals rises by 0.5 [")


def test_verdicts(result):
    low, high = np.clip(mean(-np.r_[np.ones(18), np.zeros(2)]).interval(), -1, 1)
    capitals, elements = (result.select(tasks=task) for task in ("capitals", "elements"))
    (cost,) = capitals.describe("L0")
    assert cost.startswith(f"L0: acc of capitals falls by 0.9 [{-high:.2g}, {-low:.2g}] (p_adjusted = ")
    assert capitals.describe("L1")[0].startswith("L1: no change of acc of capitals is shown: -0.05 [")
    assert "not shown to be above chance (20 questions): cannot judge" in elements.describe("L1")[0]
    assert len(result.describe("L0")) == 2 and len(result.describe(["L0", "L1"])) == 4  # one for each task
    assert all(line.endswith(".") for line in result.describe(["L0", "L1"]))


def test_tables_that_are_no_documents_are_refused(result):
    refused("lacks column task, or a value in it; it needs model, task", Result, result.docs.assign(task=None), {})


def test_select_keeps_the_baseline_and_says_so(result):
    one = result.select(tasks=["capitals"], conditions=["L0"])
    assert one.docs["condition"].unique().tolist() == ["baseline", "L0"]
    assert list(one.record["tasks"]) == ["capitals"]
    assert "1 conditions were selected, and p_adjusted corrects for these alone" in one.notes
    assert result.select(metrics="acc").summary.equals(result.summary)


STRICT, FLEXIBLE = "exact_match,strict-match", "exact_match,flexible-extract"
BOTH = ("acc", "acc_norm", "answer_logprob")
# metrics of a task in the order in which they were measured, and the one that stands for it; of some tasks that of
# published baselines
PRIMARY = {"a": (BOTH[:2], "acc"), "b": (("acc_norm", "acc"), "acc_norm"), "c": (BOTH[2:], "answer_logprob")}
PRIMARY |= {"d": (("answer_logprob", "acc"), "acc"), "e": ((STRICT, FLEXIBLE), FLEXIBLE), "f": (BOTH, "acc")}
PRIMARY |= {"hellaswag": (BOTH, "acc_norm"), "hellaswag, kind 1": (BOTH, "acc_norm")}
PRIMARY |= {"arc_challenge": (("acc", "answer_logprob"), "acc")}


def test_one_metric_stands_for_each_task_with_likelihoods_beside_it_where_they_are_wanted():
    pairs = [(task, metric) for task, (metrics, _) in PRIMARY.items() for metric in metrics]
    docs = pd.concat([docs_of({"baseline": [1, 0], "L0": [0, 0]}, task=task, metric=metric) for task, metric in pairs])
    result = Result(docs, record_of(**{task: dict.fromkeys(metrics, ACC) for task, (metrics, _) in PRIMARY.items()}))
    found, more = ({*zip(of.docs["task"], of.docs["metric"], strict=True)} for of in (
        result.primary(), result.primary(with_logprob=True)
    ))  # fmt: skip
    assert found == {(task, stands) for task, (_, stands) in PRIMARY.items()}
    assert more == found | {pair for pair in pairs if pair[1] == "answer_logprob"}


def test_scores_and_losses_of_documents():
    values = {"baseline": [1.0, 0.5], "L1": [0.25, 0.5], "L0": [1.0, 1.0]}
    for better, sign in ((True, 1), (False, -1)):
        result = Result(docs_of(values), record_of(capitals={"acc": {"higher_is_better": better}}))
        assert result.scores("capitals", "acc").to_dict("list") == values
        losses = result.losses("capitals")
        assert losses.conditions == ("L1", "L0") and losses.loss.T.tolist() == [[0.75 * sign, 0.0], [0.0, -0.5 * sign]]
        table = result.loss_table.set_index("condition")
        assert table["loss"].tolist() == losses.mean().value.tolist()
        assert (table["loss_low"] <= table["loss"]).all() and (table["loss"] <= table["loss_high"]).all()
    refused("unknown metric 'f1'", result.scores, "capitals", "f1")
    two = pd.concat([result.docs, result.docs.assign(model="other")])
    refused("results of tiny, other: a result is of one model", Result, two, result.record)


def test_a_whole_result_is_described_by_what_was_removed(result):
    critical, chance = result.describe()
    assert critical.startswith("capitals: **1 of 2** layers are critical (L0)") and "chance (20 questions)" in chance
    assert result.select(tasks="elements").describe() == [chance]
    blocks = Result(result.docs.replace({"condition": {"L1": "L0-1"}}), result.record).select(tasks="capitals")
    assert "of 2 blocks of up to 2 layers is shown to cost less than 0.05" in blocks.describe()[0]
    heads = result.docs.assign(head=result.docs["layer"] * 0)
    record = result.record | {"model": {"name": "tiny", "dims": {"n_layers": 2, "n_heads": 1}}}
    (line,) = Result(heads, record).select(tasks="capitals").describe()
    assert line.startswith("loss of acc, capitals: **1 of 2** heads are critical; the highest of 2 heads is L0.H0 with")


def test_concat_keeps_the_shared_baseline_once(result):
    whole = result.select(tasks="capitals")
    base = whole.docs[whole.docs["condition"] == "baseline"]["value"].tolist()
    record = record_of(capitals={"acc": ACC}) | {"seed": 1}
    attn = Result(docs_of({"baseline": base, "L0.attn": [0] * 20}), record)
    joined = concat([whole, attn])
    assert joined.summary["condition"].tolist() == ["baseline", "L0", "L1", "L0.attn"]
    assert joined.record["model"] == whole.record["model"]
    assert "seed" not in joined.record  # they disagree; each part keeps its own
    assert [p["seed"] for p in joined.record["parts"]] == [0, 1]
    assert concat([whole]).summary.equals(whole.summary)
    assert "2 conditions were selected" not in " ".join(joined.notes)
    selected = concat([whole.select(conditions=["L0", "L1"]), attn])
    assert any("3 conditions were selected" in note for note in selected.notes)


def test_concat_refuses_disagreement(result):
    flipped = result.docs.copy()
    flipped.loc[0, "value"] = 0.0
    with pytest.raises(dl.UserError, match="disagree on 1 scores, first on tiny capitals acc baseline 0;"):
        concat([result, Result(flipped, result.record)])
    shots = json.loads(json.dumps(result.record))
    shots["tasks"]["capitals"]["num_fewshot"] = 5
    refused("disagree on task 'capitals': num_fewshot 0 and 5", concat, [result, Result(result.docs, shots)])
    chance = json.loads(json.dumps(result.record))
    chance["tasks"]["capitals"]["metrics"]["acc"]["chance"] = 0.5
    refused("disagree on task 'capitals': chance of acc 0.25 and 0.5", concat, [result, Result(result.docs, chance)])
    half = result.docs[result.docs["doc_id"] < 10]
    fewer = Result(half.replace({"condition": {"L0": "L2"}}), result.record)
    refused("condition 'L2'.*has no number on document", concat, [result, fewer])


def test_display(result):
    text, page = repr(result), result._repr_html_()
    assert text.startswith("Result of 1 model, 2 tasks, 1 metric, 3 conditions; worst loss of each task and metric")
    assert all("not shown to be above chance (20 questions): cannot judge" in shown for shown in (text, page))
    assert text.index("baseline") < text.index("L0") < text.index("L1") and page.count("<table") == 1
    many = Result(docs_of({"baseline": [1], **{f"L{i}": [0] for i in range(20)}}), {})
    assert all("record says nothing" in text and "L9" in text for text in (repr(many), many._repr_html_()))
    assert "9 more rows in result.summary" in repr(Result(many.docs, record_of(capitals={"acc": ACC})))


def test_display_shows_the_damage_first_whichever_way_is_better():
    nats = {"baseline": [2.0, 2.5], **{f"L{i}": [2.0 + i - 2, 2.6 + i - 2] for i in range(12)}}
    right = {"baseline": [1.0, 1.0], **{f"L{i}": [1.0, float(i % 2)] for i in range(12)}}
    docs = pd.concat([docs_of(nats, metric="nats"), docs_of(right, metric="acc")])
    record = record_of(capitals={"nats": {"higher_is_better": False}, "acc": {"higher_is_better": True}})
    lines = [line.split() for line in repr(Result(docs, record)).splitlines()[2:]]
    rows = [(line[3], line[0]) for line in lines if len(line) > 5 and line[1] == "tiny"]
    # the worst of each metric, a group for each: six rows of twelve are the share of two
    assert rows[:6] == [("nats", c) for c in ("baseline", "L11", "L10", "L9", "L8", "L7")]
    assert rows[6:] == [("acc", c) for c in ("baseline", "L0", "L2", "L4", "L6", "L8")]


def test_a_change_below_the_smallest_effect_is_not_critical_however_sure():
    rng = np.random.default_rng(0)
    base = rng.normal(-2, 1, 400)
    values = {f"L{i}": base - drop + 0.001 * rng.normal(size=400) for i, drop in enumerate((0.03, 0.2))}
    for smallest, wanted in (({"min_effect": 0.05}, ["L1"]), ({}, ["L0", "L1"])):
        info = {"chance": None} | smallest
        found = made_results.result({"t": {"baseline": base} | values}, metric="nats_up", info=info)
        assert (found.summary["p_adjusted"].dropna() < 1e-3).all()
        assert found.critical()["condition"].tolist() == wanted


def test_an_edit_of_the_documents_is_in_all_that_is_said_and_saved_afterwards(result, tmp_path):
    docs, before = result.docs.copy(), result.describe()
    docs.loc[(docs["task"] == "capitals") & (docs["condition"] == "L1"), "value"] = 0.0
    wanted = Result(docs, result.record)
    result.docs.loc[:, "value"] = docs["value"]
    assert result.describe() == wanted.describe() != before
    for table in ("summary", "baselines"):
        pd.testing.assert_frame_equal(getattr(result, table), getattr(wanted, table))
    pd.testing.assert_frame_equal(result.loss_table, wanted.loss_table)
    result.save(tmp_path)
    written = pd.read_parquet(tmp_path / "summary.parquet")
    pd.testing.assert_frame_equal(written, Result.load(tmp_path).summary)


def test_an_edit_of_the_record_is_in_all_that_is_said_afterwards(result):
    assert result.baselines["at_chance"].tolist() == [False, True]
    result.record["tasks"]["elements"]["metrics"]["acc"]["chance"] = 0.01
    assert result.baselines["at_chance"].tolist() == [False, False]
    assert not result.loss_table["at_chance"].any() and not any("above chance" in note for note in result.notes)


def test_an_edit_of_a_table_that_was_derived_is_the_callers_own(result):
    for table in (result.summary, result.baselines, result.loss_table):
        table.loc[:, "n"] = 7
    assert 7 not in {*result.summary["n"], *result.baselines["n"], *result.loss_table["n"]}


def test_a_result_that_was_summarised_can_be_pickled_and_copied(result):
    dl.claims.Evidence(letters=result)
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        pd.testing.assert_frame_equal(again.summary, result.summary)
