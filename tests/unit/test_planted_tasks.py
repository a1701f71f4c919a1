"""The tasks for organisms with planted depth: right, balanced, of one length, and what the organisms know."""

from __future__ import annotations

import pytest
from embedded_data import ORGANISM_DEPTH, TASKS, planted, read

from depthlens.organisms import language

FAMILIES = ("questions", "copying", "reasoning", "text")
DOCS = {name: read(f"organism/{name}_test.jsonl") for name in FAMILIES}


@pytest.fixture(scope="module")
def tasks() -> dict:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASKS), include_defaults=False).load(ORGANISM_DEPTH)["tasks"]


@pytest.mark.parametrize("family", FAMILIES)
def test_counts(family):
    shots = read(f"organism/{family}_fewshot.jsonl")
    assert (len(DOCS[family]), len(shots)) == (200, 8)
    assert len({doc["context"] for doc in [*DOCS[family], *shots]}) == 208


@pytest.mark.parametrize("name", ORGANISM_DEPTH)
def test_prompts_have_one_length_and_answers_are_balanced(tasks, name):
    places = []
    for doc in tasks[name].task_docs:
        prompt, options, answer = planted(name, doc)
        assert len(prompt.split()) == 26
        n_words = 2 if "copying" in name or "reasoning" in name else 1
        assert {len(option.split()) for option in options} == {n_words}
        places.append(options.index(answer))
    for start in range(0, len(places), 4):
        assert sorted(places[start : start + 4]) == [0, 1, 2, 3]


def test_facts_lead_to_the_answers():
    for doc in DOCS["questions"]:
        facts = dict(piece.split()[-2:] for piece in doc["context"].split(" SEP")[:-1])
        assert len(facts) == 6 and facts[doc["key"]] == doc["retrieval"]
        assert facts[doc["retrieval"]] in doc["retrieval_options"]
        assert not set(doc["knowledge_options"]) & {*doc["context"].split(), doc["key"]}
    for doc in DOCS["reasoning"]:
        facts = dict(piece.split() for piece in doc["context"].split(" SEP")[:-1])
        third = facts[facts[doc["key"]]]
        assert len(facts) == 8 and doc["answer"] == f"{third} {facts[facts[third]]}"
    for doc in DOCS["copying"]:
        sequences = [piece.split() for piece in doc["context"].split(" SEP")[:-1]]
        assert len(sequences) == 6
        assert [" ".join(s[1:]) for s in sequences if s[0] == doc["key"]] == [doc["answer"]]


def test_what_is_learned_is_what_organisms_know():
    knowledge, letters, text = (language.learned(task) for task in ("knowledge", "letters", "text"))
    for doc in DOCS["questions"]:
        assert (doc["knowledge"], doc["letter"]) == (knowledge[doc["key"]], letters[doc["key"]])
    for doc in DOCS["text"]:
        words = doc["context"].split()
        assert doc["answer"] == text[words[-1]] and words[-1] not in words[:-1]
        followed = sum(text[a] == b for a, b in zip(words, words[1:], strict=False))
        assert followed >= 8  # of 25, at a rate of 0.7


@pytest.mark.parametrize("name", ORGANISM_DEPTH)
def test_prompt_and_score(tasks, name):
    task = tasks[name]
    for doc in list(task.task_docs)[:20]:
        prompt, options, answer = planted(name, doc)
        assert task.fewshot_context(doc, 0) == prompt
        if name.endswith("generative"):
            for words in options:
                assert task.process_results(doc, [words])["exact_match"] == float(words == answer)
        else:
            assert list(task.doc_to_choice(doc)) == list(options)
            for chosen, words in enumerate(options):
                results = [(-1.0 if i == chosen else -9.0, i == chosen) for i in range(4)]
                assert task.process_results(doc, results)["acc"] == float(words == answer)
