"""A sweep read apart for kinds of document."""

from __future__ import annotations

import pandas as pd
import pytest
import tiny

import depthlens as dl
from depthlens.analysis import subgroups
from depthlens.errors import UserError
from depthlens.tasks import harness

TASK = "kv_retrieval_8"


@pytest.fixture(scope="module")
def task():
    return harness.load_tasks([TASK])[TASK]


@pytest.fixture(scope="module")
def result():
    lens = tiny.lens("llama-gqa", max_position_embeddings=4096)
    options = {"measure": "answer_logprob", "progress": False}
    return dl.condition_sweep(lens, [TASK, "kv_retrieval_4"], ["L0", "L1"], limit=9, **options)


def test_kinds_are_the_fields_values(task):
    kinds = subgroups.kinds_by_value(task, "position")
    docs = list(task.eval_docs)
    assert kinds == {i: f"position {doc['position']}" for i, doc in enumerate(docs)}
    named = subgroups.kinds_by_value(task, "position", {0: "at the start"})
    assert set(named) == {i for i, doc in enumerate(docs) if doc["position"] == 0} and set(named.values()) == {
        "at the start"
    }


def test_thirds_of_the_range(task):
    kinds = subgroups.kinds_by_third(task, "position")
    for i, doc in enumerate(task.eval_docs):
        word = "first" if doc["position"] <= 2 else "middle" if doc["position"] <= 4 else "last"
        assert kinds[i] == f"position in the {word} third"


def test_each_kind_is_a_task_of_its_documents(result, task):
    kinds = subgroups.kinds_by_third(task, "position")
    apart = subgroups.split_by_kind(result, TASK, kinds)
    assert set(apart.docs["task"]) == {f"{TASK}, {kinds[i]}" for i in range(9)}
    for name, docs in apart.docs.groupby("task"):
        ids = [i for i in range(9) if f"{TASK}, {kinds[i]}" == name]
        same = result.docs[(result.docs["task"] == TASK) & result.docs["doc_id"].isin(ids)]
        pd.testing.assert_frame_equal(
            docs.drop(columns="task").reset_index(drop=True), same.drop(columns="task").reset_index(drop=True)
        )
        assert apart.record["tasks"][name]["n_docs"] == len(ids)
    assert len(apart.summary) == 3 * len(set(apart.docs["task"]))
    assert apart.metric_info(apart.docs["task"].iloc[0], "answer_logprob")["higher_is_better"]


def test_questions_go_with_their_documents(result):
    apart = subgroups.split_by_kind(result, TASK, {0: "one", 3: "other"})
    asked = result.questions().set_index(["task", "doc_id"])["question"]
    found = apart.questions().set_index(["task", "doc_id"])["question"].to_dict()
    assert found == {(f"{TASK}, one", 0): asked[TASK, 0], (f"{TASK}, other", 3): asked[TASK, 3]}
    assert asked[TASK, 0] != asked["kv_retrieval_4", 0]


def test_documents_without_a_kind_are_left_out(result):
    apart = subgroups.split_by_kind(result, TASK, {0: "one", 3: "other"})
    assert sorted(apart.docs["doc_id"].unique()) == [0, 3] and list(apart.docs["task"].unique()) == [
        f"{TASK}, one",
        f"{TASK}, other",
    ]


def test_mistakes(result, task):
    with pytest.raises(UserError, match="unknown field of the documents of kv_retrieval_8 'positions'; did you mean"):
        subgroups.kinds_by_value(task, "positions")
    with pytest.raises(UserError, match="no document of kv_retrieval_8 has a position among 99"):
        subgroups.kinds_by_value(task, "position", {99: "nowhere"})
    with pytest.raises(UserError, match="holds no numbers"):
        subgroups.kinds_by_third(task, "keys")
    with pytest.raises(UserError, match="unknown task"):
        subgroups.split_by_kind(result, "kv_retrieval_16", {0: "one"})
    with pytest.raises(UserError, match="none of the 9 documents of kv_retrieval_8 in the result has a kind"):
        subgroups.split_by_kind(result, TASK, {100: "one"})
