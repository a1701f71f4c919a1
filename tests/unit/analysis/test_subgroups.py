"""Sweeps read apart for kinds of document."""

import depthlens as dl
from depthlens.analysis.runs import subgroups
from depthlens.tasks import harness

TASK = "kv_retrieval_8"


def test_thirds_of_the_range():
    task = harness.load_tasks([TASK])[TASK]
    kinds = subgroups.kinds_by_third(task, "position")
    for i, doc in enumerate(task.eval_docs):
        word = "first" if doc["position"] <= 2 else "middle" if doc["position"] <= 4 else "last"
        assert kinds[i] == f"position in the {word} third"


def test_questions_go_with_their_documents_and_those_without_a_kind_are_left_out(lens):
    result = dl.condition_sweep(lens, [TASK, "kv_retrieval_4"], "L0", limit=9, progress=False)
    apart = subgroups.split_by_kind(result, TASK, {0: "one", 3: "other"})
    asked = result.questions().set_index(["task", "doc_id"])["question"]
    found = apart.questions().set_index(["task", "doc_id"])["question"].to_dict()
    assert found == {(f"{TASK}, one", 0): asked[TASK, 0], (f"{TASK}, other", 3): asked[TASK, 3]}
    assert sorted(apart.docs["doc_id"].unique()) == [0, 3]
    assert list(apart.docs["task"].unique()) == [f"{TASK}, one", f"{TASK}, other"]
