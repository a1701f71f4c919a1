"""Sweeps read apart for kinds of document."""

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


def test_questions_go_with_their_documents_and_those_without_a_kind_are_left_out(result):
    apart = subgroups.split_by_kind(result, TASK, {0: "one", 3: "other"})
    asked = result.questions().set_index(["task", "doc_id"])["question"]
    found = apart.questions().set_index(["task", "doc_id"])["question"].to_dict()
    assert found == {(f"{TASK}, one", 0): asked[TASK, 0], (f"{TASK}, other", 3): asked[TASK, 3]}
    assert sorted(apart.docs["doc_id"].unique()) == [0, 3]
    assert list(apart.docs["task"].unique()) == [f"{TASK}, one", f"{TASK}, other"]
