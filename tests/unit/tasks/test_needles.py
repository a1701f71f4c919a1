"""Needles: where they are put, and where the answers of a task are found."""

import re

import pytest
import tiny

from depthlens.errors import UserError
from depthlens.tasks import needles as prompts
from depthlens.tasks.encoding import Encoder
from depthlens.tasks.measures import align

FUNCTION_WORDS = set("a an the of in on with and from at by for to without".split())


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=4096)


def words(text):
    return re.findall(r"[\w'-]+", text.lower())


def phrases(text, n):
    split = words(text)
    return {tuple(split[i : i + n]) for i in range(len(split) - n + 1)}


def squeezed(text):
    """Without white space, which no position of a needle holds."""
    return "".join(text.split())


def decoded(lens, needle, positions):
    return lens.tokenizer.decode([needle.request.context[p] for p in positions])


def test_natural_needles_stand_where_they_should(lens):
    """One byte a token, so that positions are characters."""
    options = {"depths": (0.0, 0.5, 1.0), "context_lengths": (2000, 3500)}
    made = prompts.written_needles(lens, n_needles=2, seed=3, **options)
    assert len(made) == 12 and made == prompts.written_needles(lens, 2, seed=3, **options)
    assert made != prompts.written_needles(lens, 2, seed=4, **options)
    for needle in made:
        about, context = needle.about, lens.tokenizer.decode(needle.request.context)
        answer = lens.tokenizer.decode(needle.request.continuation).strip()
        assert lens.tokenizer.decode(needle.targets) == decoded(lens, needle, needle.places) == squeezed(answer)
        fact, question = (decoded(lens, needle, positions) for positions in (needle.gold, needle.queries))
        assert context.count(answer) == 1 and answer in context[needle.gold[0] : needle.gold[-1] + 1]
        assert fact in squeezed(context) and squeezed(about["who"]) in fact and fact.endswith(".")
        assert squeezed(about["who"]) in question and question.endswith("?")
        assert about["context_length"] - 500 < len(needle.request.context) <= about["context_length"]
        start = needle.gold[0] / context.index("\n\nQ:")
        assert abs(start - about["depth"]) < 0.3  # other facts and whole sentences shift it


def test_no_phrase_leads_from_a_question_to_its_natural_needle():
    """What `needles` and the header of the file say of every template and answer."""
    file = prompts.needles_file()
    hay = "".join("".join(paragraph) for paragraph in prompts.paragraphs())
    answers = [answer.rpartition(" | ")[2] for template in file["needles"] for answer in template["answers"]]
    assert len(file["needles"]) >= 40 and len(set(answers)) == len(answers) >= 200
    assert not [(a, b) for a in answers for b in answers if a != b and a in b]
    assert not [a for a in answers if a in hay] and not [n for n in file["last_names"] if n in hay]
    for template in file["needles"]:
        for chosen in template["answers"]:
            fact, answer, question, lead, _ = prompts.natural(template, "Hanna Lindqvist", chosen)
            asked = f"{question} {lead.removeprefix('A: ')}"
            assert fact.count(answer) == 1 and len(answer.split()) >= 2
            assert not phrases(fact, 3) & phrases(asked, 3), (fact, asked)
            assert not set(words(answer)) & set(words(asked)) - FUNCTION_WORDS, (answer, asked)


def test_lengths_that_a_model_cannot_have_become_the_nearest_that_it_can(caplog):
    """One byte a token, so that the facts of natural needles take some 700 tokens, and stand without hay."""
    asked = {"n_needles": 1, "depths": (0.5,), "context_lengths": (256, 512, 1500, 4000)}
    made = prompts.written_needles(tiny.lens("llama-gqa", max_position_embeddings=2048), **asked)
    assert [needle.about["context_length"] for needle in made] == [256, 512, 1500, 2048 - prompts.RESERVE]
    sizes = [len(needle.request.context) for needle in made]
    assert 600 < min(sizes[:2]) <= max(sizes[:2]) < 800 and sizes[2] <= 1500 and sizes[3] <= 2048 - prompts.RESERVE
    told = f"prompts have {min(sizes)} to {max(sizes)}; tiny-llama-gqa reads 2048 tokens"
    assert f"context_lengths [256, 512, 1500, 4000]: {told}" in caplog.text
    with pytest.raises(UserError, match="reads 512 tokens, and a prompt without hay has .*: no needle fits"):
        prompts.written_needles(tiny.lens("llama-gqa"), **asked)


def test_an_answer_is_found_as_a_whole_word_only(lens):
    text = align(Encoder(lens), "test", "7 and 77, then 1,7 or 7.5; so 7.\nQ: ", "7")
    needle = prompts.find(text, "7", {})
    assert [text.context[p - 0] for p in needle.places] == ["7", "7"]
    assert list(needle.places) == [0, text.context.index("so 7") + 3]
    assert prompts.find(align(Encoder(lens), "test", "nothing here", " 7"), "7", {}) is None


@pytest.mark.parametrize("task", ["kv_retrieval_4", "kv_retrieval_uuid"])
def test_needles_of_a_task_hold_the_answer(lens, task):
    for needle in prompts.task_needles(lens, task, limit=3):
        # one byte a token: the places hold the answer, as often as it stands there
        answer = lens.tokenizer.decode(needle.targets)
        held = lens.tokenizer.decode([needle.request.context[p] for p in needle.places])
        assert len(answer) >= 4 and held and held == answer * (len(held) // len(answer))
        assert needle.asked[0] == len(needle.request.context) - 1 + needle.steps[0]
