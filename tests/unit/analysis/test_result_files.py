"""Results on disk: the round trip, the questions that travel with a result, and folders that cannot be used."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from made_results import capitals_and_elements, docs_of

from depthlens.analysis.results import Result, concat
from depthlens.errors import UserError


@pytest.fixture
def result() -> Result:
    return capitals_and_elements()


def test_every_column_is_on_the_page_of_files_in_its_order(result, tmp_path):
    Result(result.docs, result.record, pd.concat([asked_of(), asked_of("elements")])).save(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "files.md").read_text()
    for name in ("docs", "questions", "summary"):
        section = page.partition(f"## {name}.parquet\n")[2].partition("\n## ")[0]
        told = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert told == pd.read_parquet(tmp_path / f"{name}.parquet").columns.tolist(), name


def asked_of(task="capitals", n=20, **columns) -> pd.DataFrame:
    """Questions of a task, and of one more document than was scored."""
    ids = range(n + 1)
    table = {"task": task, "doc_id": ids, "question": [f"Q{i}?" for i in ids], "reference": [f"r{i}" for i in ids]}
    return pd.DataFrame(table | {"choices": [["a", f"r{i}"] for i in ids]} | columns)


def test_questions_travel_with_a_result(result, tmp_path):
    whole = Result(result.docs, result.record, pd.concat([asked_of(), asked_of("elements", choices=None)]))
    asked = whole.questions()
    columns = ["task", "doc_id", "question", "reference", "choices", "doc_hash", "subtask"]
    assert len(asked) == 40 and asked.columns.tolist() == columns
    assert asked[["doc_hash", "subtask"]].isna().all(axis=None)  # as in a folder that says nothing of them
    whole.save(tmp_path)
    pd.testing.assert_frame_equal(Result.load(tmp_path).questions(), asked)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "questions.parquet")[["question"]], asked[["question"]])
    one = whole.select(tasks="elements", conditions=["L0"])
    assert set(one.questions()["task"]) == {"elements"} and one.questions()["choices"].tolist() == [None] * 20
    joined = concat([whole.select(tasks="capitals"), whole.select(tasks="elements"), whole])
    pd.testing.assert_frame_equal(joined.questions(), asked)
    result.save(tmp_path, overwrite=True)
    assert not (tmp_path / "questions.parquet").exists(), "questions of an older result are not left beside another"


def test_a_result_without_questions_says_so(result, tmp_path):
    result.save(tmp_path)  # as a folder that version 0.1 wrote
    old = Result.load(tmp_path)
    with pytest.raises(UserError, match=r"holds no questions \(no questions.parquet\); run the sweep again"):
        old.questions()
    assert concat([old, result]).asked is None
    result.docs.drop(columns=["response"]).to_parquet(tmp_path / "docs.parquet")
    with pytest.raises(UserError, match="lacks column response"):
        Result.load(tmp_path)


def test_results_that_ask_something_else_are_not_joined(result):
    one = result.select(tasks="capitals")
    other = asked_of(question=[f"Q{i}!" for i in range(21)])
    with pytest.raises(UserError, match="disagree on what document 0 of task 'capitals' asks"):
        concat([Result(one.docs, one.record, asked_of()), Result(one.docs, one.record, other)])


def test_a_table_of_questions_that_lacks_a_column(result):
    with pytest.raises(UserError, match="the table of questions lacks column reference"):
        Result(result.docs, result.record, asked_of().drop(columns="reference"))


def test_notes_tell_of_cut_prompts_in_joined_results_too(result):
    cut = {"n_truncated": 3, "max_tokens_cut": 17}
    one = result.select(tasks="capitals")
    tasks = {t: v | cut for t, v in one.record["tasks"].items()}
    one = Result(one.docs, one.record | {"tasks": tasks})
    note = "capitals: 3 prompts are longer than the model reads and lost up to 17 tokens at their left end"
    assert one.notes.count(note) == 1
    assert concat([one, result.select(tasks="elements")]).notes.count(note) == 1
    assert concat([concat([one, one]), one]).notes.count(note) == 1
    other = Result(one.docs.assign(model="small"), one.record | {"model": {"name": "small", "n_layers": 4}})
    named = [n for n in concat([one, other]).notes if n.endswith(note.partition(":")[2])]
    assert named == [note.replace("capitals", f"capitals of {name}") for name in ("tiny", "small")]


def test_nothing_is_written_for_a_result_that_cannot_be_summarised(tmp_path):
    broken = Result(docs_of({"L0": [1, 0]}), {})
    with pytest.raises(UserError, match="no 'baseline'"):
        broken.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
