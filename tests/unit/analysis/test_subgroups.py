"""Sweeps read apart for kinds of document."""

import pandas as pd
import pytest
import tiny

import depthlens as dl
from depthlens.analysis import subgroups
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


def test_questions_go_with_their_documents_and_those_without_a_kind_are_left_out(result):
    apart = subgroups.split_by_kind(result, TASK, {0: "one", 3: "other"})
    asked = result.questions().set_index(["task", "doc_id"])["question"]
    found = apart.questions().set_index(["task", "doc_id"])["question"].to_dict()
    assert found == {(f"{TASK}, one", 0): asked[TASK, 0], (f"{TASK}, other", 3): asked[TASK, 3]}
    assert sorted(apart.docs["doc_id"].unique()) == [0, 3]
    assert list(apart.docs["task"].unique()) == [f"{TASK}, one", f"{TASK}, other"]
