"""Rows that conditions share: as long as they do the same they are one, and the scores are those of each alone."""

from __future__ import annotations

import backend_table
import model_classes
import pytest
import surgery
import tiny
import torch

import depthlens as dl
from depthlens.ablations import expand, parse_condition
from depthlens.engine.engine import Engine
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

MIXED = (
    "L1+L3,L1+L4,L1+L3+L4.H1,L1@mean+L3,L1@mean+L4@mean,L1.H0+L2,L1.H0+L4,L1.H0[2:]+L4,L2[1:]+L3.mlp,L2[1:]+L4.mlp,"
    "L3+L3.H1,L3,L0+(L2-4)x2,L0+(L2-4)x2+L4.H1,(L2-4)x2+L3.mlp,L1*0.5+L2,L1*0.5+L3@noise,L1*0.5+L3@noise1,L1-4"
)


@pytest.mark.parametrize("spec", ["pairs", "bottom,top[1:]@mean", MIXED])
@pytest.mark.parametrize("family", ["llama-gqa", "qwen3-moe"])
def test_scores_are_those_of_each_condition_alone(family, spec):
    lens = surgery.rough_lens(family)
    means, conditions = backend_table.reference_of(lens), expand(spec, lens.dims)
    alone = torch.cat([model_classes.scores(lens, [c], means=means, path="padded_rows") for c in conditions])
    for under in (conditions, conditions[::-1]):
        for options in ({}, {"batch_tokens": 40}):
            found = model_classes.scores(lens, under, means=means, **options)
            assert torch.allclose(found if under is conditions else found.flip(0), alone, atol=1e-5)


@pytest.mark.parametrize(("spec", "shared"), [("pairs", 4), ("pairs", 0), ("bottom@mean,top", 4), (MIXED, 4)])
def test_texts_are_those_of_each_condition_alone(spec, shared):
    lens = surgery.rough_lens("llama-gqa")
    means, conditions = backend_table.reference_of(lens), expand(spec, lens.dims)
    prompts = [(*range(5, 5 + shared), *own) for own in ((20, 21), (22,))]
    asked = [GenerateRequest(prompt, (), 4) for prompt in prompts]
    alone = [Engine(lens, means=means, progress=False).generate_until(asked, [c])[0] for c in conditions]
    assert len({str(texts) for texts in alone}) > 0.7 * len(alone), "conditions write other texts"
    for key_bytes in (None, 40_000):  # all conditions write at once, or a few at a time
        engine = Engine(lens, means=means, progress=False)
        engine.budget.key_bytes = key_bytes or engine.budget.key_bytes
        assert engine.generate_until(asked, conditions) == alone


def test_what_conditions_have_in_common_is_read_once():
    lens = tiny.lens("llama-gqa")
    request, conditions = GenerateRequest(tuple(range(5, 14)), (), 1), expand("pairs", lens.dims)
    engine = Engine(lens, progress=False)
    engine.generate_until([request], conditions)
    passes = sum(3 - i for i in range(4)) + sum(4 - j for j in range(5) for i in range(j))
    assert engine.work.layer_tokens == 9 * (5 + passes)


def test_a_donors_layers_are_passed_once_by_all_that_have_them():
    base, donor = tiny.lens("llama-gqa"), tiny.lens("llama-gqa", initializer_range=0.3)
    pair = dl.with_donor(base, donor)
    conditions = expand("bottom@donor,top@donor,whole@donor,embed@donor+L0@donor,embed@donor+L0-1@donor", base.dims)
    found = model_classes.scores(pair, conditions)
    assert torch.allclose(found, model_classes.scores(pair, conditions, path="padded_rows"), atol=1e-5)


@pytest.mark.parametrize(("spec", "passes"), [
    # of five layers: those between the first of a pair and the last that can be its second, and those after the second
    ("pairs", sum(3 - i for i in range(4)) + sum(4 - j for j in range(5) for i in range(j))),
    ("layers", 4 + 3 + 2 + 1 + 0),
    ("bottom@mean", 4 + 3 + 2 + 1 + 0),
    ("bottom*0.5", 5 + 4 + 3 + 2 + 1),
    ("(L1-3)x2,(L1-3)x2+L4.H1", 4 + 1),
])  # fmt: skip
def test_what_conditions_have_in_common_is_passed_once(spec, passes):
    lens = tiny.lens("llama-gqa")
    request, conditions = LoglikelihoodRequest(tuple(range(5, 14)), (7, 8)), expand(spec, lens.dims)
    engine = Engine(lens, means=backend_table.reference_of(lens), progress=False)
    engine.loglikelihood([request], conditions)
    assert engine.work.layer_tokens == 10 * (5 + passes)
    rows = engine.cache.rows([request], conditions)
    assert engine.expected(rows, None) == 10 * (5 + passes), "a plan says the same"


def test_a_condition_that_is_another_in_all_it_does_is_no_row():
    lens = tiny.lens("llama-gqa")
    found = model_classes.scores(lens, [parse_condition(text) for text in ("L2", "L2+L2.H1", "baseline")])
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2], atol=1e-3)
