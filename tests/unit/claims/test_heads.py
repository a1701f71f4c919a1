"""C5 on removal curves: what lists of heads cost, on which documents, against which others."""

from dataclasses import replace

import made_results
import numpy as np
import pandas as pd
import pytest
from made_results import head_scores, same_documents

from depthlens.analysis.result.results import Result
from depthlens.claims import Evidence, judge
from depthlens.claims.verdicts import DECIDES
from depthlens.errors import UserError
from depthlens.metrics import ANSWER_LOGPROB

OWN = {"retrieval": "copy", "reasoning": "sums"}
ROOM = 0.75  # between the whole model and chance
LOST = {"copy": (0.9, 0.05, 0.075), "sums": (0.85, 0.05, 0.075)}  # by the own list, the other one, and random heads
SURE, UNSURE = 0.9, 0.05


def curve(**fields):
    """Two tasks of 120 documents; each list costs most of the answers to its own."""
    return replace(made_results.removal_curve(tuple(OWN.values()), times=6), **fields)


def with_likelihoods(found):
    """The curve in nats, too, which say the same as right and wrong."""
    docs, record, tests = found.result.docs, found.result.record, found.tests
    nats = docs.assign(metric=ANSWER_LOGPROB, value=np.log(np.where(docs["value"] == 1, SURE, UNSURE)))
    info = {ANSWER_LOGPROB: {"higher_is_better": True, "chance": None}}
    tasks = {task: entry | {"metrics": entry["metrics"] | info} for task, entry in record["tasks"].items()}
    tests = pd.concat([tests, tests.assign(metric=ANSWER_LOGPROB, at_chance=False)])
    return replace(found, result=Result(pd.concat([docs, nats]), record | {"tasks": tasks}), tests=tests)


def chosen_by(**record):
    return dict.fromkeys(OWN, replace(head_scores(np.zeros((1, 4))), record=record))


APART = chosen_by(tasks=["another"])


def judged(heads, scores=APART, own=OWN):
    """The state of C5, and its parts that decide."""
    found = judge(Evidence(heads=heads, head_tasks=own, head_scores=scores), claims="C5")
    return found.states["C5"], found.parts[found.parts["view"] == DECIDES].reset_index(drop=True)


def test_lists_that_cost_much_on_their_own_tasks_alone_are_shown():
    state, parts = judged(curve())
    assert state == "shown" and set(parts["n"]) == {120}, list(parts["sentence"])
    effects = [x for own, _, random in LOST.values() for x in (own, own - 3 * random)]
    effects.append(sum(own - other for own, other, _ in LOST.values()))
    assert parts["effect"].tolist() == pytest.approx([x / ROOM for x in effects])
    state, parts = judged(curve(), own=dict(zip(OWN, reversed(OWN.values()), strict=True)))
    assert state == "reversed" and parts["state"][4] == "reversed", "each list with the task of the other"


def test_accuracy_and_probability_are_parts_of_their_own():
    state, parts = judged(with_likelihoods(curve()))
    assert state == "shown" and len(parts) == 10, list(parts["sentence"])
    in_nats = parts[parts["unit"] == "of the probability"]
    assert in_nats["effect"].iloc[0] == pytest.approx(LOST["copy"][0] * (SURE - UNSURE))
    assert list(in_nats["tasks"])[-1] == f"copy {ANSWER_LOGPROB}, sums {ANSWER_LOGPROB}"


def test_what_a_model_cannot_do_is_not_judged():
    """A4: in nats neither, though it loses likelihood."""
    both = with_likelihoods(curve())
    at_chance = (both.tests["task"] == "sums") & (both.tests["metric"] == "acc")
    state, parts = judged(replace(both, tests=both.tests.assign(at_chance=at_chance)))
    assert state == "open" and parts["why"].str.contains("sums is not shown to be above chance").sum() == 6
    unscored = replace(both, tests=both.tests[both.tests["metric"] == ANSWER_LOGPROB])
    unscored = replace(unscored, result=both.result.select(metrics=ANSWER_LOGPROB))
    assert "no accuracy of copy says that the model can do it" in judged(unscored)[1]["why"][0]


def test_random_lists_that_cost_as_much_and_heads_that_matter_to_both_tasks_speak_against():
    plain = curve()
    state, parts = judged(replace(plain, tests=plain.tests.assign(p_value=0.2)))
    assert state == "open" and "but 20% of random lists of the same layers cost as much" in parts["sentence"][1]
    same = plain.result.docs.copy()
    retrieval = same[(same["task"] == "copy") & (same["condition"] == "L0.H0")]["value"].to_numpy()
    same.loc[(same["task"] == "copy") & (same["condition"] == "L0.H1"), "value"] = retrieval
    state, parts = judged(replace(plain, result=Result(same, plain.result.record)))
    said = "but the retrieval heads cost no more on copy than the reasoning heads"
    assert state == "open" and said in parts["sentence"][4], "though the interaction is large"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (None, "say what chose the heads of retrieval (head_scores=)"),
        ({"tasks": ["copy", "sums"], "limit": None}, "120 documents of copy both chose and test the heads"),
        ({"tasks": ["copy", "sums"], "limit": 10}, "10 documents of copy both chose and test the heads"),
        ({"tasks": ["copy"], "samples": {"copy": [7]}}, "1 documents of copy both chose and test the heads"),
        ({"tasks": ["another"], "documents": ["document 7"]}, "1 documents of copy both chose and test the heads"),
        ({"tasks": ["another"], "documents": ["document 500"]}, ""),
        ({"tasks": ["another"], "limit": None}, ""),
    ],
)
def test_documents_that_chose_the_heads_do_not_test_them(record, said):
    """A1: heads that are chosen by noise would look specific."""
    known = curve(result=same_documents(curve().result))
    state, parts = judged(known, {} if record is None else chosen_by(**record))
    assert (state == "open" and said in parts["sentence"][0]) if said else state == "shown"


def test_too_few_questions_views_beside_and_what_does_not_fit():
    state, parts = judged(made_results.removal_curve(tuple(OWN.values())))
    assert state == "open" and "20 questions are too few" in parts["sentence"][0]
    mean = curve(record=curve().record | {"suffix": "@mean"}, result=renamed(curve().result))
    found = judge(Evidence(heads=[curve(), mean], head_tasks=OWN, head_scores=APART), claims="C5").parts
    assert set(found["view"]) == {DECIDES, "mean ablation"} and found["effect"].notna().all()
    with pytest.raises(UserError, match="retrieval: another"):
        Evidence(heads=curve(), head_tasks={"retrieval": "another"})
    assert "one for reasoning" in judged(curve(), own={"retrieval": "copy"})[1]["sentence"][0]


def renamed(result):
    """The result with heads that are replaced by their mean."""
    names = result.docs["condition"].where(result.docs["head"].isna(), result.docs["condition"].astype(str) + "@mean")
    return Result(result.docs.assign(condition=names), result.record)
