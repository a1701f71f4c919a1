"""Texts whose tokens are drawn: by the right probabilities, and the same whatever runs beside them."""

from dataclasses import replace

import numpy as np
import pytest
import surgery
import torch
from by_hand import random_tokens
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from depthlens.ablations import BASELINE, expand, parse_condition
from depthlens.engine.engine import Engine
from depthlens.engine.writer import Writer, number
from depthlens.requests import GenerateRequest, Sampling

WARM = Sampling(temperature=1.5, top_p=0.9, seed=3)


def probabilities(logits, sampling):
    """What transformers mean by temperature and top_p. Shape [d_vocab]."""
    warmed = TemperatureLogitsWarper(sampling.temperature)(None, logits[None])
    return TopPLogitsWarper(sampling.top_p)(None, warmed)[0].softmax(-1).numpy()


def test_numbers_are_even_and_depend_on_everything_that_is_said():
    request = GenerateRequest((1, 2, 3), (), 9, WARM)
    condition = parse_condition("L1")
    found = [number(request, condition, place) for place in range(2000)]
    # Kolmogorov and Smirnov's distance from evenness, of 2,000 numbers at a level of 0.1%
    assert np.abs(np.sort(found) - np.arange(2000) / 2000).max() < 1.95 / np.sqrt(2000)
    changes = {"context": (1, 2, 4)}, {"sampling": replace(WARM, seed=4)}, {"sampling": replace(WARM, draw=1)}
    for other in [*((replace(request, **change), condition) for change in changes), (request, parse_condition("L2"))]:
        assert len({*found[:50], *(number(*other, place) for place in range(50))}) == 100
    # what only bounds the text changes none of its tokens
    assert number(replace(request, until=("a",), max_new_tokens=20), condition, 7) == found[7]


@pytest.fixture(scope="module")
def lens():
    return surgery.rough_lens("llama-gqa")


@pytest.fixture(scope="module")
def requests():
    prompts = [random_tokens(n, n) for n in (4, 9, 23)]
    prompts.append(prompts[1][:6])
    return [GenerateRequest(p, ("\n",), 12, replace(WARM, draw=draw)) for p in prompts for draw in (0, 1)]


@pytest.fixture(scope="module")
def conditions(lens):
    return expand("layers,L2.H1,L3[1:]@noise", lens.dims)


def write(lens, requests, conditions, **options):
    return Engine(lens, progress=False, **options).generate_until(requests, conditions)


@pytest.fixture(scope="module")
def texts(lens, requests, conditions):
    return write(lens, requests, conditions)


def test_texts_are_drawn_from_the_models_own_predictions(lens, requests, conditions, texts):
    """Token by token from whole passes, by the probabilities of transformers."""
    for condition, row in zip(conditions, texts, strict=True):
        for request, text in zip(requests, row, strict=True):
            tokens = [*request.context]
            model = surgery.cut(lens, condition, None)
            for place in range(request.max_new_tokens):
                logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
                cumulative = np.cumsum(probabilities(logits.double(), request.sampling))
                drawn = number(request, condition, place) * cumulative[-1]
                tokens.append(int(np.searchsorted(cumulative, drawn, side="right")))
                written = lens.tokenizer.decode(tokens[len(request.context) :])
                if "\n" in written or tokens[-1] == lens.tokenizer.eos_token_id:
                    break
            wanted = lens.tokenizer.decode(tokens[len(request.context) :], skip_special_tokens=True)
            assert text == wanted.split("\n")[0], condition


@pytest.mark.parametrize("options", [{"batch_tokens": 7}, {"batch_tokens": 64}, {"path": "padded_rows"}], ids=str)
def test_texts_do_not_depend_on_batches_or_order(lens, requests, conditions, texts, options):
    assert write(lens, requests, conditions, **options) == texts
    backwards = write(lens, requests[::-1], conditions[::-1], **options)
    assert [row[::-1] for row in backwards[::-1]] == texts
    assert [write(lens, [q], [conditions[3]], **options)[0][0] for q in requests] == texts[3]


def replayed(lens, text, request):
    """What is left of a text that a model would write."""
    return Writer(lens, [request], [BASELINE]).replay((0, 0), lens.tokenizer(text).input_ids)


ENDED = [
    ("one two", (), 7, "one two", False), ("one two<eos>", (), 8, "one two", True),
    ("one two<eos> three", (), 99, "one two", True), ("one two. three", (".",), 99, "one two", True),
    ("one two. three", (".",), 7, "one two", False), ("one two. three", (".",), 8, "one two", True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "until", "n", "left", "complete"), ENDED)
def test_answers_say_whether_they_had_ended(lens, text, until, n, left, complete):
    found = replayed(lens, text, GenerateRequest((5,), until, n))
    assert (found, found.complete) == (left, complete)


@pytest.mark.parametrize(("text", "n", "left", "complete"), [
    ("So. 2.</t> four. And", 99, "four", True), ("So. 2.</t> four. And", 14, "fou", False),
    ("So. 2.</t> four<eos>", 99, "four", True), ("So.</t> 2.</t> four.", 99, "2", True),
    ("So. 2. And", 10, "So", False),  # still thinking: lm-eval takes what is there
])  # fmt: skip
def test_stop_strings_count_behind_the_thoughts_and_only_what_follows_is_the_answer(lens, text, n, left, complete):
    found = replayed(lens, text, GenerateRequest((5,), (".",), n, think_end="</t>"))
    assert (found, found.complete) == (left, complete)
