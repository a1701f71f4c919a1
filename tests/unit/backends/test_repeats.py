"""Layers and blocks that run twice, against models in which copies of the layers follow one another."""

from __future__ import annotations

import copy

import by_hand
import model_classes
import pytest
import surgery
import torch
from by_hand import written
from model_classes import scores
from torch import nn

import depthlens as dl
from depthlens.ablations import BASELINE, parse_condition
from depthlens.engine.engine import Engine
from depthlens.requests import GenerateRequest

SAME = 1e-5  # nats
# conditions, the layers that a row of a model of five passes, and what is done to these layers
WAYS = {
    "L0x2": ([0, 0, 1, 2, 3, 4], ""),
    "L4x2": ([0, 1, 2, 3, 4, 4], ""),
    "L1-2x2": ([0, 1, 1, 2, 2, 3, 4], ""),
    "(L1-2)x2": ([0, 1, 2, 1, 2, 3, 4], ""),
    "(L2-4)x2": ([0, 1, 2, 3, 4, 2, 3, 4], ""),
    "(L0-4)x2": ([0, 1, 2, 3, 4] * 2, ""),
    "(L0-1)x2+(L3-4)x2": ([0, 1, 0, 1, 2, 3, 4, 3, 4], ""),
    "(L0-3)x2+L2x2": ([0, 1, 2, 2, 3, 0, 1, 2, 2, 3, 4], ""),
    "(L0-3)x2+(L0-1)x2": ([0, 1, 0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4], ""),
    "(L1-3)x2+L2": ([0, 1, 3, 1, 3, 4], ""),
    "(L1-3)x2+L4": ([0, 1, 2, 3, 1, 2, 3], ""),
    "(L1-3)x2+L2.H1+L0.mlp": ([0, 1, 2, 3, 1, 2, 3, 4], "L2.H1+L0.mlp"),
    "(L2-3)x2+L3.attn[2:]": ([0, 1, 2, 3, 2, 3, 4], "L3.attn[2:]"),
    "(L1-3)x2+L3[2:]*0.5": ([0, 1, 2, 3, 1, 2, 3, 4], "L3[2:]*0.5"),
    "(L1-2)x2+L3*0": ([0, 1, 2, 1, 2, 4], ""),
}
CONDITIONS = [BASELINE, *map(parse_condition, WAYS)]


def longer(lens, layers, edits=""):
    """A model of copies of these layers, in this order, of a model under edits."""
    model = surgery.cut(lens, parse_condition(edits), None) if edits else copy.deepcopy(lens.model)
    made = [copy.deepcopy(model.model.layers[i]) for i in layers]
    for i, layer in enumerate(made):
        layer.self_attn.layer_idx = i
    model.model.layers = nn.ModuleList(made)
    model.config.num_hidden_layers = len(made)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = ["full_attention"] * len(made)
    return model


def wanted(lens):
    """Scores of every condition, and of the baseline, by hand."""
    models = [lens.model, *(longer(lens, *way) for way in WAYS.values())]
    return torch.tensor([[by_hand.logprob(model, q) for q in model_classes.ASKED] for model in models])


@pytest.mark.parametrize("family", ["llama-gqa", "deepseek-v3"])
def test_scores_are_those_of_a_model_with_copies(family):
    lens = surgery.rough_lens(family)
    expected = wanted(lens)
    assert len({tuple(row) for row in expected.round(decimals=3).tolist()}) == len(expected)
    for options in ({}, {"path": "padded_rows"}, {"batch_tokens": 30}):
        assert torch.allclose(scores(lens, CONDITIONS, **options).float(), expected, atol=10 * SAME), options
    for one in CONDITIONS[3:8]:
        assert torch.allclose(scores(lens, [one])[0], scores(lens, [BASELINE, one])[1], atol=SAME)


@pytest.mark.parametrize("prefix", [0, 6])
def test_texts_are_those_of_a_model_with_copies(prefix):
    """Of prompts with and without a common beginning, of rows that end and make room for others."""
    lens = surgery.rough_lens("llama-gqa")
    common = tuple(range(40, 40 + prefix))
    asked = [GenerateRequest((*common, *range(5 + 3 * i, 12 + 4 * i)), (), 4 + 3 * i) for i in range(3)]
    models = [lens.model, *(longer(lens, *way) for way in WAYS.values() if "[" not in way[1])]
    under = [BASELINE, *(c for c, way in zip(CONDITIONS[1:], WAYS.values(), strict=True) if "[" not in way[1])]
    expected = [[written(lens, request, model) for request in asked] for model in models]
    assert len({tuple(row) for row in expected}) > len(expected) - 2
    engine = Engine(lens, progress=False)
    assert engine.generate_until(asked, under) == expected
    engine.budget.key_bytes = 150_000  # of few conditions at once
    assert engine.generate_until(asked, under[::-1]) == expected[::-1]


@pytest.mark.parametrize("outer", ["(L1-3)x2", "L2x2", "(L2-4)x2+L1.H1"])
def test_they_are_added_to_the_rows_of_a_model_under_them(outer):
    lens = surgery.rough_lens("llama-gqa")
    layers = {"(L1-3)x2": [0, 1, 2, 3, 1, 2, 3, 4], "L2x2": [0, 1, 2, 2, 3, 4]}.get(outer, [0, 1, 2, 3, 4, 2, 3, 4])
    edits = outer.partition("+")[2]
    rows = {"baseline": layers, "L3": [i for i in layers if i != 3], "L0x2": [0, *layers], "(L0-4)x2": layers * 2}
    rows["L3x2"] = [i for layer in layers for i in [layer] * (1 + (layer == 3))]
    models = [longer(lens, row, edits) for row in rows.values()]
    expected = torch.tensor([[by_hand.logprob(model, q) for q in model_classes.ASKED] for model in models])
    request = GenerateRequest(tuple(range(5, 12)), (), 6)
    texts = [[written(lens, request, model)] for model in models]
    with dl.ablated(lens, outer):
        under = [*map(parse_condition, rows)]
        for path in (None, "padded_rows"):
            assert torch.allclose(scores(lens, under, path=path).float(), expected, atol=10 * SAME)
        assert Engine(lens, progress=False).generate_until([request], under) == texts
        alone = [by_hand.logprob(lens.model, q) for q in model_classes.ASKED]
        whole = lens.model.generate(torch.tensor([request.context]), max_new_tokens=6, use_cache=False, do_sample=False)
        streams = dl.logit_lens(lens, "the cat").says
    assert alone == pytest.approx(expected[0].tolist(), abs=1e-4) and streams.shape[0] == 6
    assert lens.tokenizer.decode(whole[0, 7:], skip_special_tokens=True) == texts[0][0]


def test_a_block_that_overlaps_one_that_is_in_force_is_refused():
    lens = surgery.rough_lens("llama-gqa")
    with dl.ablated(lens, "(L0-2)x2"), pytest.raises(dl.UserError, match="overlap"):
        scores(lens, [parse_condition("(L1-3)x2")])
