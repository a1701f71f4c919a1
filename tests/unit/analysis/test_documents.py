"""Documents: what cannot be read is not counted as wrong, and the same ones of two tasks are paired."""

from __future__ import annotations

import re
from functools import partial

import made_results
import numpy as np
import pandas as pd
import pytest
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.filters.extraction import RegexFilter
from made_results import docs_of, record_of, same_documents
from refusals import refused

from depthlens.analysis.result.concat import concat
from depthlens.analysis.result.profiles import by_layer, paired
from depthlens.analysis.result.results import Result
from depthlens.analysis.show import written_answers
from depthlens.errors import UserError

MATCH = {"higher_is_better": True, "chance": 0.1, "floor": 0.0, "binary": True}
FLEXIBLE = "exact_match,flexible-extract"
# right with nothing removed 8 of 10; L0 breaks the form, L1 the content
VALUES = {"baseline": [1] * 8 + [0, 0], "L0": [1] + [0] * 9, "L1": [1] + [0] * 9, "L2": [1] * 8 + [0, 0]}
PARSED = {"baseline": [1] * 9 + [0], "L0": [1] + [0] * 9, "L1": [1] * 10, "L2": [1] * 10}


def written(values=VALUES, could_be_read=PARSED, *, metric=FLEXIBLE, **columns) -> Result:
    docs = docs_of(values, task="worked", metric=metric)
    docs["parsed"] = [bool(could_be_read[row.condition][row.doc_id]) for row in docs.itertuples()]
    record = record_of(worked={metric: MATCH})
    record["tasks"]["worked"]["output_type"] = "generate_until"
    return Result(docs.assign(**columns), record)


def test_score_wrong_and_unparsed_add_up_to_one():
    table = written().unparsed("worked", FLEXIBLE).set_index("condition")
    assert table[["value", "wrong", "unparsed"]].sum(axis=1).tolist() == pytest.approx([1.0] * 4)
    assert table["unparsed"].tolist() == pytest.approx([0.1, 0.9, 0, 0])
    assert table["wrong"].tolist() == pytest.approx([0.1, 0, 0.9, 0.2])


def test_sentences_say_how_many_cannot_be_read():
    result = written()
    expected = "whole model: 10% of its answers, and 90% under L0, cannot be read."
    assert result.describe()[-1] == f"worked {FLEXIBLE}, {expected}"
    clean = written(could_be_read=dict.fromkeys(VALUES, [1] * 10))
    assert "read" not in " ".join([*clean.describe(), *clean.describe("L0")])


WRITTEN = ["Rome", " Rome\n", "ROME", "rome ", "Oslo", "Roma", "", " Paris", "x", "y"]  # right: Rome or Paris


def accepted(texts, ignore_case):
    """Which texts lm-eval accepts with the filter that is named, by its own filter and metric."""
    pattern = re.search("regex_pattern: '(.*?)'", written_answers.ACCEPTED["white_space"])[1]
    filtered = RegexFilter(pattern).apply([[text] for text in texts], [{}] * len(texts))
    match = partial(exact_match_hf_evaluate, ignore_case=ignore_case)
    return [any(match([t], [r])["exact_match"] for r in ("Rome", "Paris")) for (t,) in filtered]


def test_answers_that_white_space_or_case_alone_makes_wrong_are_counted_with_what_accepts_them():
    right = [text in ("Rome", "Paris") for text in WRITTEN]
    made = written({"baseline": right, "L0": right}, dict.fromkeys(VALUES, [1] * 10), response=WRITTEN * 2)
    asked = pd.DataFrame({"task": "worked", "doc_id": range(10), "question": "?", "reference": "Rome | Paris"})
    result = Result(made.docs, made.record, asked.assign(choices=None))
    near = written_answers.near_misses(result, "worked", FLEXIBLE).loc["L0"]
    cut, folded = (np.array(accepted(WRITTEN, ignore_case=case)) for case in (False, True))
    assert near.tolist() == [(cut & ~np.array(right)).sum(), (folded & ~cut).sum()] == [2, 2]
    lines = result.describe()[-2:]
    assert lines[0].startswith(f"worked {FLEXIBLE}, whole model: 2 of its wrong answers, and 2 under baseline, differ")
    assert "regex_pattern" in lines[0] and "ignore_case: true" in lines[1]
    assert not any("wrong answers" in line for line in made.describe()), "whose questions are not known"


def test_a_log_likelihood_has_no_answers_that_could_be_read():
    nats = written(metric="answer_logprob")
    assert not any("read" in line for line in nats.describe())
    refused("metric answer_logprob: the model writes nothing", nats.unparsed, "worked", "answer_logprob")


def test_a_result_says_that_it_does_not_know_what_could_be_read():
    new = written()
    old = Result(new.docs.drop(columns="parsed"), new.record)
    assert old.docs["parsed"].isna().all() and not any("read" in line for line in old.describe())
    with pytest.raises(UserError, match="does not say which answers of task worked could be read; run the sweep again"):
        old.unparsed("worked", FLEXIBLE)
    assert concat([new, old]).summary.equals(new.summary)


@pytest.mark.parametrize(("info", "output_type", "floor"), [
    ({"floor": 0.0}, "generate_until", 0.0),
    ({"floor": 0.25}, "multiple_choice", 0.25),
    ({}, "multiple_choice", 0.1),  # saved before floors were recorded
    ({"chance": None}, "multiple_choice", 0.0),  # never below 0
])  # fmt: skip
def test_the_floor_of_a_profile_is_what_a_broken_model_scores(info, output_type, floor):
    record = record_of(worked={"acc": {"higher_is_better": True, "chance": 0.1, **info}})
    record["tasks"]["worked"]["output_type"] = output_type
    (profile,) = by_layer(Result(docs_of(VALUES, task="worked"), record))
    assert profile.floor == floor


FOUR = {"baseline": [1, 1, 1, 0], "L0": [0, 1, 0, 0], "L1": [1, 1, 0, 0], "L2": [1, 0, 1, 1]}


def of_tasks(*names) -> Result:
    return made_results.result(dict.fromkeys(names, FOUR), model="tiny")


def with_hashes(result: Result, **hashes) -> Result:
    return Result(result.docs, result.record, pd.concat([asked(*of_task) for of_task in hashes.items()]))


def asked(task: str, hashes: list) -> pd.DataFrame:
    table = {"task": task, "doc_id": range(len(hashes)), "question": "?", "reference": "!", "doc_hash": hashes}
    return pd.DataFrame(table).assign(choices=None)


def test_document_7_of_two_tasks_is_not_the_same_unless_they_say_so():
    unknown = of_tasks("gsm8k", "mmlu")
    assert list(unknown.losses("mmlu").documents) == ["mmlu:0", "mmlu:1", "mmlu:2", "mmlu:3"]
    for result, shared in ((unknown, False), (same_documents(unknown), True)):
        a, b = (profile.mean() for profile in by_layer(result))
        assert a.value.tolist() == b.value.tolist()
        assert np.isclose((a - b).error, np.sqrt(2 * a.extra)).all() == shared, "equal losses differ by no document"


def test_a_document_that_a_task_has_twice_is_numbered():
    result = with_hashes(of_tasks("a"), a=["x", "y", "x", "x"])
    assert list(result.losses("a").documents) == ["x", "y", "x#2", "x#3"]
    assert list(result.losses("a").units) == ["x", "y", "x", "x"]


def test_two_models_are_paired_also_where_one_result_is_older():
    new, old = same_documents(of_tasks("a")), of_tasks("a")
    for pair in ((new, old), (old, new), (old, old), (new, new)):
        ((one, other),) = paired(*pair)
        assert one.documents == other.documents
    names = [f"document {i}" for i in range(4)]
    scores = {"baseline": [1.0, 0.0, 1.0, 1.0], "L0": [0.0, 0.5, 1.0, 0.25], "L1": [1.0, 0.0, 0.5, 1.0]}
    order = [2, 0, 3, 1]  # document i of the other result is document order[i] of the first
    shuffled = {name: [values[i] for i in order] for name, values in scores.items()}
    first, second = (made_results.result({"a": table}, n_layers=2) for table in (scores, shuffled))
    second = with_hashes(second, a=[names[i] for i in order])
    ((one, other),) = paired(with_hashes(first, a=names), second)
    assert (one.loss == other.loss).all() and (one.base == other.base).all() and one.documents == other.documents
    changed = with_hashes(of_tasks("a"), a=["document 0", "document 1", "document 2", "other"])
    refused("task a: tiny and tiny were asked other documents", paired, new, changed)
