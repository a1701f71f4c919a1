"""C5 on removal curves: what lists of heads cost, on which documents, against which others."""

from dataclasses import replace

import made_results
import numpy as np
import pandas as pd
import pytest
from made_results import head_scores, same_documents

from depthlens.analysis.numbers.means import mean
from depthlens.analysis.result.results import Result
from depthlens.claims import Evidence, heads, judge
from depthlens.claims.verdicts import DECIDES
from depthlens.metrics import ANSWER_LOGPROB

OWN = {"retrieval": "copy", "reasoning": "sums"}
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


APART = chosen_by(documents=["another:0"])


def judged(heads, scores=APART, own=OWN):
    """The states of C5, and its parts that decide: of each list what it costs beyond random heads, then how often."""
    found = judge(Evidence(heads=heads, head_tasks=own, head_scores=scores), claims="C5")
    return [*found.states["C5"].values()], found.parts[found.parts["view"] == DECIDES].reset_index(drop=True)


def test_lists_that_cost_much_on_their_own_tasks_are_shown():
    states, parts = judged(curve())
    assert states == ["shown", "shown"] and set(parts["n"]) == {120}, list(parts["sentence"])
    effects = [x for own, _, random in LOST.values() for x in (own - random, own / random - 1)]
    assert parts["effect"].tolist() == pytest.approx(effects)
    states, parts = judged(curve(), own=dict(zip(OWN, reversed(OWN.values()), strict=True)))
    assert states[1] in ("smaller", "reversed"), "each list with the task of the other"


def test_what_a_list_costs_on_the_task_of_the_other_stands_beside():
    found = judge(Evidence(heads=curve(), head_tasks=OWN, head_scores=APART), claims="C5").parts
    beside = found[found["part"] == "a"].set_index("view")["effect"]
    assert beside["on sums"] == pytest.approx(LOST["sums"][1] - LOST["sums"][2])


def test_what_a_model_cannot_do_is_not_judged():
    """A4: likelihoods do not count, though it loses some."""
    both = with_likelihoods(curve())
    assert judged(both)[0] == ["shown", "shown"] and len(judged(both)[1]) == 4
    at_chance = (both.tests["task"] == "sums") & (both.tests["metric"] == "acc")
    states, parts = judged(replace(both, tests=both.tests.assign(at_chance=at_chance)))
    assert states == ["open", "open"] and parts["why"].str.contains("sums is not shown to be above chance").sum() == 2
    unscored = replace(both, tests=both.tests[both.tests["metric"] == ANSWER_LOGPROB])
    unscored = replace(unscored, result=both.result.select(metrics=ANSWER_LOGPROB))
    assert "no accuracy of copy without the heads of retrieval says" in judged(unscored)[1]["why"][0]


def test_random_lists_that_cost_as_much_speak_against():
    plain = curve()
    states, parts = judged(replace(plain, tests=plain.tests.assign(p_value=0.2)))
    said = "but 20% of random lists of the same layers cost as much"
    assert states == ["shown", "open"] and said in parts["sentence"][1]


def test_a_list_that_costs_twice_as_much_as_random_heads_is_not_reversed():
    """W4: nor is one smaller that costs everything where random heads cost a third."""
    lost = mean(np.ones(120)), mean(np.r_[np.ones(40), np.zeros(80)])
    every = heads.Costs("copy", "acc", False, {"all": lost[0]}, {"all": lost[1]}, None)
    _, times = heads.compared({"copy": every}, {"all": "copy"}, {"all": ""}, {("all", "copy"): 0.01})
    assert times.main.effect == pytest.approx(2.0) and times.state == "in sign only", times.sentence
    twice = heads.Costs("copy", "acc", False, {"all": lost[1] + lost[1]}, {"all": lost[1]}, None)
    _, times = heads.compared({"copy": twice}, {"all": "copy"}, {"all": ""}, {("all", "copy"): 0.01})
    assert times.state == "smaller", times.sentence


@pytest.mark.parametrize(("record", "said"), [
    (None, "say what chose the heads of retrieval (head_scores=)"),
    ({"tasks": ["another"]}, "say what chose the heads of retrieval (head_scores=)"),
    ({"documents": [f"document {i}" for i in range(200)]}, "120 documents of copy both chose and test the heads"),
    ({"documents": ["document 7"]}, "1 documents of copy both chose and test the heads"),
    ({"documents": ["document 500"]}, ""),
])  # fmt: skip
def test_documents_that_chose_the_heads_do_not_test_them(record, said):
    """A1: heads that are chosen by noise would look specific."""
    known = curve(result=same_documents(curve().result))
    states, parts = judged(known, {} if record is None else chosen_by(**record))
    assert ("open" in states and said in parts["sentence"][0]) if said else states == ["shown", "shown"]


def test_too_few_questions_and_what_does_not_fit():
    plain = made_results.removal_curve(tuple(OWN.values()))
    few = replace(plain, result=Result(plain.result.docs.query("doc_id < 19"), plain.result.record))
    states, parts = judged(few)
    assert states == ["open", "open"] and "19 questions are too few" in parts["sentence"][0]
    for wrong in ({"retrieval": "another"}, {"another": "copy"}):
        said = judged(curve(), APART | {"another": APART["retrieval"]}, wrong | {"reasoning": "sums"})[1]["sentence"][0]
        assert "no accuracy of" in said and "another" in said
    assert "one for reasoning" in judged(curve(), own={"retrieval": "copy"})[1]["sentence"][0]
