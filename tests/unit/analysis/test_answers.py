"""Answers that removals change: the table, and the view of it."""

import csv
import io
import json
import re

import made_results
import pandas as pd
import pytest
from refusals import refused

import depthlens as dl
from depthlens.analysis.result import answers
from depthlens.analysis.show import explorer, views

HOSTILE = '</script><script>alert("x")</script> <b>é</b> "quoted" \u202eright to left\u202c 😀'


def written() -> dl.Result:
    """Four questions: without L1 one answer breaks, one is mended, one wrong answer is another one, one stays."""
    right = {"baseline": [1, 0, 0, 1], "L0": [0, 0, 0, 0], "L1": [0, 1, 0, 1], "L1@mean": [1, 0, 0, 1]}
    whole = ["Rome", "Paris", "x", HOSTILE]
    texts = {"baseline": whole, "L1@mean": whole, "L1": ["Lima", "Oslo", "y", HOSTILE]}
    texts["L0"] = ["a a a a", "a a a a", "b", HOSTILE]
    found = made_results.result_of(right, task="capitals", metric="exact_match", n_layers=2)
    docs = found.docs.assign(response=[texts[c][i] for c, i in found.docs[["condition", "doc_id"]].to_numpy()])
    asked = {"task": "capitals", "doc_id": range(4), "question": ["Italy?", "Norway?", "Chad?", HOSTILE]}
    asked |= {"reference": ["Rome", "Oslo", "N'Djamena", "?"], "choices": None}
    return dl.Result(docs, found.record, pd.DataFrame(asked))


def two_models() -> tuple[dl.Result, dl.Result]:
    """The whole second model answers as the first does without L1."""
    result = written()
    swapped = result.docs["condition"].replace({"baseline": "L1", "L1": "baseline"})
    return result, dl.Result(result.docs.assign(condition=swapped, model="distilled"), result.record, result.asked)


def test_each_answer_is_broken_repaired_changed_or_the_same():
    result = written()
    (broken,) = result.answers("L1").itertuples()
    said = broken.question, broken.reference, broken.baseline_answer, broken.answer
    assert said == ("Italy?", "Rome", "Rome", "Lima")
    assert (broken.baseline_value, broken.value, broken.loss) == (1, 0, 1)
    assert result.answers("L1", "repaired")["answer"].tolist() == ["Oslo"]
    assert result.answers("L1", "changed")["answer"].tolist() == ["y"]
    assert result.answers("L1", "all")["change"].tolist() == ["broken", "changed", "same", "repaired"], "by loss"
    assert not len(result.answers("L1@mean")), "nothing changes"


def test_the_command_prints_the_answers_as_text_and_as_tables_of_other_programs(call, tmp_path):
    """Line breaks, quotes and other alphabets come back as they were."""
    result = written()
    result.save(tmp_path / "run")
    printed = {form: call("answers", tmp_path / "run", "L0", "--format", form) for form in ("text", "csv", "json")}
    assert [code for code, *_ in printed.values()] == [0, 0, 0] and "without L0:" in printed["text"][1]
    rows = list(csv.DictReader(io.StringIO(printed["csv"][1])))
    objects = json.loads(printed["json"][1])
    for found in (rows, objects):
        assert [row["question"] for row in found] == ["Italy?", HOSTILE]
        assert [row["baseline_answer"] for row in found] == ["Rome", HOSTILE]
        assert [float(row["loss"]) for row in found] == [1, 1] and list(found[0]) == answers.COLUMNS
    assert objects[0]["nats"] is None, "JSON has no NaN"
    assert call("answers", tmp_path / "run", "L0", "--format", "xml")[2].startswith("Error: unknown format 'xml'")


def test_without_answers_no_view_has_a_text(monkeypatch):
    monkeypatch.setenv(explorer.NO_ANSWERS, "yes")
    view = written().explore()
    page = view.html() + view.table()
    assert not any(text in page for text in ("Italy", "Rome", "Lima", "Oslo")) and "L1" in page
    assert view.data["tasks"][0]["answers"][0] != view.data["tasks"][0]["answers"][2], "what changed is known"


def test_two_models_differ_where_one_answers_otherwise():
    result, other = two_models()
    broken, repaired = (other.answers("baseline", change, against=result) for change in ("broken", "repaired"))
    pd.testing.assert_frame_equal(broken, result.answers("L1"))
    pd.testing.assert_frame_equal(repaired, result.answers("L1", "repaired"))
    elsewhere = dl.Result(other.docs, other.record, other.asked.assign(question="Who?"))
    refused("no question in common", elsewhere.answers, "baseline", against=result)


def test_a_metric_that_is_better_when_lower_breaks_where_it_rises():
    found = made_results.result_of({"baseline": [2.0, 3.0], "L0": [1.0, 4.0]}, metric="bits_per_byte", better=False)
    assert found.answers("L0")["doc_id"].tolist() == [1] and found.answers("L0", "repaired")["doc_id"].tolist() == [0]


def test_nats_of_the_right_answer_stand_beside_a_choice():
    choices = made_results.result_of({"baseline": [1, 1], "L0": [0, 0]})
    nats = made_results.result_of({"baseline": [-1.0, -1.0], "L0": [-2.0, -4.0]}, metric="answer_logprob", chance=None)
    record = choices.record
    record["tasks"]["sums"]["metrics"] |= nats.record["tasks"]["sums"]["metrics"]
    table = dl.Result(pd.concat([choices.docs, nats.docs]), record).answers("L0")
    assert table["nats"].tolist() == [-3.0, -1.0] and table["doc_id"].tolist() == [1, 0], "the most nats first"


def test_the_view_holds_every_answer_and_runs_nothing_of_what_a_model_wrote(tmp_path):
    view = written().explore()
    page = view.html()
    assert HOSTILE not in page and "<script>alert" not in page
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])
    (task,) = data["tasks"]
    assert not task["at_chance"] and "Worked examples before each question: 0." in data["legend"]
    guesses = made_results.sweep(made_results.EARLY, accuracy=0.2, chance=0.25).explore()
    assert guesses.data["tasks"][0]["at_chance"] and "No removal is shown to break answers" in guesses.table()
    assert task["conditions"] == ["baseline", "L0", "L1", "L1@mean"] and task["values"][2] == [0, 1, 0, 1]
    assert [task["texts"][i] for i in task["answers"][2]] == ["Lima", "Oslo", "y", HOSTILE]
    view.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert views.script_hash() in page and not re.search(r"src=|href=|fetch\(|import", page), "loads nothing"


def test_rows_of_buttons_are_one_a_form_and_one_a_layer_of_heads():
    names = ["baseline", *(f"L{i}" for i in range(4)), *(f"L{i}@mean" for i in range(4)), "L0-1"]
    (task,) = made_results.result_of({name: [1, 0] for name in names}).explore().data["tasks"]
    rows = [[task["conditions"][i] for i in row["cells"]] for row in task["rows"]]
    assert rows == [["L0", "L1", "L2", "L3", "L0-1"], ["L0@mean", "L1@mean", "L2@mean", "L3@mean"]]
    heads = made_results.result_of({name: [1, 0] for name in ("baseline", "L0.H0", "L0.H1", "L1.H0", "L1.H1")})
    (task,) = heads.explore().data["tasks"]
    assert [row["label"] for row in task["rows"]] == ["L0", "L1"] and task["rows"][1]["ticks"] == ["0", "1"]


@pytest.mark.parametrize(("lost", "opens"), [
    ({"L2": 10, "L3": 20, "L2-3": 30, "L4+L5": 30}, "L3"), ({"L0": 30, "L3": 20, "L2-3": 30}, "L3"),
    ({"L2": 1, "L3.H1": 2, "L2-3": 30}, "L3.H1"), ({"L2-3": 20, "L3-4": 30}, "L3-4"),
], ids=["not a block nor a pair", "not the first layers", "nothing significant", "only blocks"])  # fmt: skip
def test_a_view_opens_on_the_single_part_that_costs_most(lost, opens):
    result = made_results.result_of({"baseline": [1] * 30, **{c: [0] * n + [1] * (30 - n) for c, n in lost.items()}})
    assert result.explore().condition == opens


def test_the_next_cell_reads_what_is_chosen():
    view = written().explore()
    view.widget.state = {"task": 0, "condition": 2, "change": "all", "find": "oslo"}
    assert view.condition == "L1" and view.documents["answer"].tolist() == ["Oslo"]


def test_the_table_without_a_script_tells_the_commonest_new_answers():
    losses = {"baseline": [1] * 40, "L0": [0] * 30 + [1] * 10, "L1": [1] * 40}
    result = made_results.result_of(losses, metric="exact_match", n_layers=2)
    table = result.explore().table()
    assert "L0, sums" in table and "é0 (30)" in table and "L1," not in table


def test_what_cannot_be_looked_at_is_refused():
    refused("removes nothing", made_results.result_of({"baseline": [1, 0]}).explore)


def test_a_comparison_lists_the_documents_on_which_whole_models_differ():
    found = dl.compare(*two_models()).answers
    assert found[["baseline_answer", "answer"]].to_numpy().tolist() == [["Rome", "Lima"], ["x", "y"], ["Paris", "Oslo"]]
    assert found["change"].tolist() == ["broken", "changed", "repaired"] and set(found["run"]) == {"distilled"}
