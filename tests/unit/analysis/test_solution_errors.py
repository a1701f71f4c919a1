"""First mistakes of written solutions, and sweeps read apart for kinds of document."""

from decimal import Decimal

import made_results
import pandas as pd
import pytest
import tiny

import depthlens as dl
from depthlens.analysis import solution_errors, subgroups
from depthlens.analysis.results import Result
from depthlens.analysis.solution_errors import (
    by_layer,
    classify_solutions,
    equations,
    first_mistake,
    sentences,
)
from depthlens.tasks import harness

EGGS = "Question: Kate has 10 eggs and Emma has 8. They share them among two children.\nAnswer:"


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("They have 10 + 8 = 18 eggs.\nEach gets 18 / 2 = 9.\n#### 9", "otherwise"),  # right steps, wrong answer
        ("They have 10 + 8 = 19 eggs.\nEach gets 19 / 2 = 9.5.", "miscomputed"),
        ("They have 10 + 7 = 17 eggs.", "miscopied"),
        ("They have 10 + 7 = 18 eggs.", "miscopied"),  # both: what is first on the line
        ("They have 10 + 8 = 18 eggs.\nEach gets 19 / 2 = 9.5.", "miscopied"),
        ("They have 10 + 8 = 17 eggs.\nEach gets 19 / 2 = 9.5.", "miscomputed"),  # the first line decides
        ("", "no steps"),
        ("10 - 10 = 0\n8 / 0 = 0", "miscomputed"),
        ("They have 10+8=<<10+8=18>>18 eggs. Each gets 18/2=$<<18/2=9>>9.00", "otherwise"),
        ("10 + 8 = 18 + 2 = 21", "miscomputed"),
        ("10 eggs + 8 eggs = 19", "no steps"),  # calculated in words
        ("= = 10 + = 8 - ( = 2", "no steps"),
        (" 1 2 ( x - + 3" * 500, "no steps"),  # and in no time
        (" 1 - 2" * 2000 + " = 3", "miscopied"),
        ("8 - 8 + " * 2000 + " 10 = 10", "miscomputed"),  # too long to be a step
        ("(that is 10 + 8 = 18) and a box 8 + 2 = 10", "otherwise"),
        ("8 / 10 = 0.80\n10 / 8 = 1.25", "otherwise"),
    ],
)
def test_first_mistake(written, kind):
    assert first_mistake(written, EGGS) == kind


def test_rounding_and_thousands():
    assert first_mistake("1,000 / 3 = 333.33", "1000 eggs, 3 nests") == "otherwise"
    assert first_mistake("1,000 / 3 = 333", "1000 eggs, 3 nests") == "miscomputed"
    (one,) = equations("She pays $1,000.50 * 2 = $2,001.")
    assert one == ({Decimal("1000.50"), Decimal(2)}, Decimal("2001.00"), Decimal(2001))


def table(kinds):
    """kinds: {condition: kinds by document}; two layers a third of a model of six."""
    rows = [
        (name, None if name == "baseline" else int(name[1:]), i, f"q{i}", kind, kinds["baseline"][i] == "right", "")
        for name, row in kinds.items()
        for i, kind in enumerate(row)
    ]
    columns = ["condition", "layer", "doc_id", "unit", "kind", "solved", "response"]
    return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64"})


R, C, M, N = "right", "miscopied", "miscomputed", "no steps"
SWEPT = {
    "baseline": [R, R, R, R, M],
    "L0": [N, N, N, N, N],
    "L1": [C, C, R, R, M],
    "L2": [R, R, R, R, R],
    "L3": [M, R, R, R, M],
    "L4": [M, M, M, R, M],
    "L5": [M, R, R, R, M],
}


def test_shares_are_of_the_problems_that_the_whole_model_solves():
    shares = by_layer(table(SWEPT))
    assert list(shares.index) == list(range(6)) and (shares.sum(axis=1) == 1).all()
    assert shares.loc[0, N] == 1 and shares.loc[1, C] == 0.5 and shares.loc[2, R] == 1 and shares.loc[4, M] == 0.75
    lines = sentences(table({name: row[:4] * 3 for name, row in SWEPT.items()}), 6)  # twelve solved problems
    assert len(lines) == 3 and "last third, 50% of the 12 problems" in lines[2]
    assert lines[2].endswith("0% miscopied, 50% miscomputed, 0% otherwise, 0% no steps.")


def test_where_nothing_is_solved_nothing_is_counted():
    unsolved = table(SWEPT | {"baseline": [M] * 5})
    assert by_layer(unsolved).empty
    (line,) = sentences(unsolved, 6)
    assert line.startswith("The whole model solves none of the problems")


QUESTIONS = [EGGS, "There are 10 eggs."]


def written(kind="generate_until", documents=(0, 1)):
    right, wrong = " 10 + 8 = 18\n 18 / 2 = 9\n#### 9", " 10 + 8 = 17\n#### 17"
    made = made_results.result({"cot": {"baseline": [1, 1], "L0": [0, 0]}}, metric="exact_match")
    solved = made.docs["condition"].eq("baseline").map({True: right, False: wrong})
    docs = made.docs.assign(response=solved, doc_id=made.docs["doc_id"].map(dict(enumerate(documents))))
    nats = docs.assign(metric="answer_logprob", value=-3.0, response="the reference")
    metrics = {"exact_match": {}, "answer_logprob": {}}
    return Result(pd.concat([docs, nats]), {"tasks": {"cot": {"metrics": metrics, "output_type": kind}}})


def test_classify_reads_what_was_written():
    solutions = classify_solutions(written(), "cot", QUESTIONS)
    found = solutions.table
    assert solutions.describe() == solution_errors.sentences(found, 1)
    assert len(found) == 4 and not (found["response"] == "the reference").any()
    assert list(found["kind"]) == ["right", "right", "miscomputed", "miscopied"]  # no 8 in the second question
    assert found["solved"].all()


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
    kinds, docs = subgroups.kinds_by_value(task, "position"), list(task.eval_docs)
    assert kinds == {i: f"position {doc['position']}" for i, doc in enumerate(docs)}
    named = subgroups.kinds_by_value(task, "position", {0: "at the start"})
    assert named == {i: "at the start" for i, doc in enumerate(docs) if doc["position"] == 0}


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
