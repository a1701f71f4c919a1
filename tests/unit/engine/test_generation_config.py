"""A model's generation configuration decides what the engine writes, as it does in Hugging Face's `generate`."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import tiny
import torch
from by_hand import under
from refusals import refused
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from depthlens.ablations import BASELINE, parse_condition
from depthlens.engine.engine import PATHS, Engine
from depthlens.engine.writer import number
from depthlens.models.lens import Lens
from depthlens.requests import GenerateRequest, Sampling

CONDITIONS = [BASELINE, parse_condition("L2"), parse_condition("L1.H3")]
PROMPTS = [(7,), (3, 200, 3, 200, 3), tuple(range(60, 83))]
ENDS = [257, *range(0, 256, 5)]  # a fifth of all tokens, so that lengths matter
FAVOURITES = list(range(100, 180))
GREEDY = [
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 1},
    {"bad_words_ids": [[t] for t in FAVOURITES] + [[t, t] for t in range(180, 200)]},
    {"sequence_bias": [[[t], -4.0] for t in FAVOURITES] + [[[3, 65], 9.0]]},
    {"min_length": 8, "eos_token_id": ENDS},
    {"forced_eos_token_id": 90},
    {"exponential_decay_length_penalty": (2, 2.0), "eos_token_id": ENDS},
    {"begin_suppress_tokens": FAVOURITES},
    {"no_repeat_ngram_size": 2, "min_new_tokens": 4, "suppress_tokens": [65, 66], "renormalize_logits": True},
]
DRAWN = [{"typical_p": 0.3}, {"top_h": 0.4}, {"epsilon_cutoff": 0.02}, {"eta_cutoff": 0.6}]
DRAWN += [{"repetition_penalty": 1.7, "no_repeat_ngram_size": 1}]
REFUSED = {"num_beams": 4, "penalty_alpha": 0.6, "guidance_scale": 1.5, "stop_strings": ["\n"]}


@pytest.fixture(scope="module")
def lens():
    """A tiny model whose every token is a word, so that texts are equal only if their tokens are."""
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(tiny.VOCAB)}, unk_token="t259"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t257", pad_token="t258", unk_token="t259")
    return Lens(tiny.model("llama-gqa"), tokenizer, "tiny")


@contextmanager
def configured(lens, settings):
    """Within the context the model generates with these settings."""
    config = lens.model.generation_config
    before = {name: getattr(config, name) for name in settings}
    vars(config).update(settings)
    try:
        yield
    finally:
        vars(config).update(before)


def requests(sampling=None):
    return [GenerateRequest(prompt, (), 9 + i, sampling) for i, prompt in enumerate(PROMPTS)]


def alone(lens, request, condition, **options):
    """What `generate` writes after one prompt."""
    options |= {"max_new_tokens": request.max_new_tokens, "pad_token_id": 258}
    with under(lens, [condition]):
        return lens.model.generate(torch.tensor([request.context]), **options)


def write(lens, asked, conditions=CONDITIONS, path=None):
    return Engine(lens, path=path, progress=False).generate_until(asked, conditions)


@pytest.mark.parametrize("settings", GREEDY, ids=lambda settings: ",".join(settings))
def test_greedy_texts_are_those_of_hugging_face(lens, settings):
    ends = {name: settings[name] for name in settings if name == "eos_token_id"}
    with configured(lens, ends):
        before = write(lens, requests())
    with configured(lens, settings):
        wanted = [[alone(lens, q, c, do_sample=False)[0, len(q.context) :] for q in requests()] for c in CONDITIONS]
        wanted = [[lens.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in row] for row in wanted]
        for path in PATHS:
            assert write(lens, requests(), path=path) == wanted
    assert wanted != before, "the setting decides nothing here"


@pytest.mark.parametrize("settings", DRAWN, ids=lambda settings: ",".join(settings))
def test_tokens_are_drawn_from_the_scores_of_hugging_face(lens, settings):
    """The first token of many draws; `generate` says the scores that it would draw from."""
    sampling = {"temperature": 1.5, "top_p": 0.95, "top_k": 40, "min_p": 0.01}
    options = sampling | {"do_sample": True, "return_dict_in_generate": True, "output_scores": True}
    prompts = [GenerateRequest(prompt, (), 1) for prompt in PROMPTS[1:]]
    asked = [replace(q, sampling=Sampling(**sampling, draw=draw)) for q in prompts for draw in range(40)]
    before = write(lens, asked)
    with configured(lens, settings):
        found = write(lens, asked)
        scores = {(c, q.context): alone(lens, q, c, **options).scores[0][0] for c in CONDITIONS for q in prompts}
    for condition, row in zip(CONDITIONS, found, strict=True):
        for q, text in zip(asked, row, strict=True):
            cumulative = scores[condition, q.context].double().softmax(-1).cumsum(-1)
            token = int(torch.searchsorted(cumulative, number(q, condition, 0), right=True))
            assert text == lens.tokenizer.decode([token], skip_special_tokens=True)
    assert found != before, "the setting decides nothing here"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_written_token_by_token_is_refused_by_name(lens, name):
    assert write(lens, requests()[:1], [BASELINE])
    with configured(lens, {name: REFUSED[name]}):
        said = refused(f"set lens.model.generation_config.{name} = None", write, lens, requests())
    assert f"asks for {name}={REFUSED[name]!r}" in said


def test_what_asks_for_nothing_is_not_refused(lens):
    before = write(lens, requests())
    nothing = {"num_beams": 1, "num_return_sequences": 1, "guidance_scale": 1.0, "penalty_alpha": 0.0}
    with configured(lens, nothing):
        assert write(lens, requests()) == before


def test_every_setting_is_part_of_the_address(lens):
    plain = lens.identify().settings["writing"]
    addresses = {plain}
    for settings in (*GREEDY, *DRAWN):
        with configured(lens, settings):
            addresses.add(lens.identify().settings["writing"])
    assert len(addresses) == 1 + len(GREEDY) + len(DRAWN)
