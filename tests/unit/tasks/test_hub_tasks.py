"""Our own tasks of the hub's data sets, on handwritten documents in their schemas."""

import re

import hub
import pytest
import tiny

from depthlens.tasks import harness

# lm-eval's own index takes seconds
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("hubs_data")]


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=8192)


def test_the_open_book_has_the_fact_before_the_very_question(lens):
    open_, closed = (harness.prepare(lens, harness.load_tasks(name))[0] for name in ("openbookqa_open", "openbookqa"))
    facts = [doc["fact1"] for doc in hub.DATA_SETS["allenai/openbookqa"]["additional"]["test"]]
    contexts = ([lens.tokenizer.decode(q.context) for q in prepared.requests] for prepared in (open_, closed))
    with_fact, without = (list(dict.fromkeys(of_task)) for of_task in contexts)
    assert with_fact == [f"{fact}\n{question}" for fact, question in zip(facts, without, strict=True)]
    options = [[lens.tokenizer.decode(q.continuation) for q in prepared.requests] for prepared in (open_, closed)]
    assert options[0] == options[1]
    assert open_.asked["doc_hash"].tolist() == closed.asked["doc_hash"].tolist(), "they are paired by it"


def test_the_copy_of_a_solution_is_as_long_and_cannot_be_calculated(lens):
    solved, copied = (harness.load_tasks(name, num_fewshot=0)[name] for name in ("gsm8k", "gsm8k_copy"))
    for own, copy in zip(solved.eval_docs, copied.eval_docs, strict=True):
        target, text = copied.doc_to_target(copy), copied.doc_to_text(copy)
        assert text == f"Text: {target}\nCopy:" and len(target) == len(solved.doc_to_target(own))
        a, b, result, again = re.findall(r"<<(\d+)&(\d+):(\d+)>>(\d+)", target)[0]
        assert result == again == target.rpartition("#### ")[2] and int(a) + int(b) != int(result)
        assert not re.search(r"[-+*/=]", target)
