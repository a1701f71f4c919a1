"""Sweeps read apart for kinds of document."""

import depthlens as dl

TASK = "kv_retrieval_8"


def test_questions_go_with_their_documents_and_those_without_a_kind_are_left_out(lens):
    result = dl.condition_sweep(lens, [TASK, "kv_retrieval_4"], "L0", limit=9, progress=False)
    apart = result.split(TASK, {3: "other", 0: "one", 5: None})
    asked = result.questions().set_index(["task", "doc_id"])["question"]
    found = apart.questions().set_index(["task", "doc_id"])["question"].to_dict()
    assert found == {(f"{TASK}, one", 0): asked[TASK, 0], (f"{TASK}, other", 3): asked[TASK, 3]}
    assert sorted(apart.docs["doc_id"].unique()) == [0, 3]
    assert list(apart.docs["task"].unique()) == [f"{TASK}, other", f"{TASK}, one"]  # in the order of the kinds
