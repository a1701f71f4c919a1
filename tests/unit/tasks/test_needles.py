"""Needles: where they are put, and where the answers of a task are found."""

from __future__ import annotations

import pytest
import tiny

from depthlens.tasks import needles as prompts
from depthlens.tasks import token_spans


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=4096)


def test_written_needles_stand_where_they_should(lens):
    made = prompts.written_needles(lens, n_needles=2, depths=(0.0, 0.5, 1.0), context_lengths=(700, 1000), seed=3)
    assert len(made) == 12 and made == prompts.written_needles(lens, 2, (0.0, 0.5, 1.0), (700, 1000), seed=3)
    assert made != prompts.written_needles(lens, 2, (0.0, 0.5, 1.0), (700, 1000), seed=4)
    for needle in made:
        about, context = needle.about, lens.tokenizer.decode(needle.request.context)
        code = lens.tokenizer.decode(needle.targets)
        assert len(code) == 4 and code.isdigit() and f"The code of the {about['thing']} is {code}." in context
        assert lens.tokenizer.decode([needle.request.context[p] for p in needle.places]) == code
        assert context.count(code) == 1 and context.endswith(f"A: The code of the {about['thing']} is")
        assert about["context_length"] - 90 < len(needle.request.context) <= about["context_length"]
        start = needle.places[0] / context.index("\n\n")
        assert abs(start - about["depth"]) < 0.25  # other codes and whole sentences shift it a little


def test_an_answer_is_found_as_a_whole_word_only(lens):
    text = token_spans.align(lens, "test", "7 and 77, then 1,7 or 7.5; so 7.\nQ: ", "7")
    needle = prompts.find(text, "7", {})
    assert [text.context[p - 0] for p in needle.places] == ["7", "7"]
    assert list(needle.places) == [0, text.context.index("so 7") + 3]
    assert prompts.find(token_spans.align(lens, "test", "nothing here", " 7"), "7", {}) is None


@pytest.mark.parametrize("task", ["kv_retrieval_4", "kv_retrieval_uuid"])
def test_needles_of_a_task_hold_the_answer(lens, task):
    for needle in prompts.task_needles(lens, task, limit=3):
        # one byte a token: the places hold the answer, as often as it stands there
        answer = lens.tokenizer.decode(needle.targets)
        held = lens.tokenizer.decode([needle.request.context[p] for p in needle.places])
        assert len(answer) >= 4 and held and held == answer * (len(held) // len(answer))
        assert needle.asked[0] == len(needle.request.context) - 1 + needle.steps[0]
