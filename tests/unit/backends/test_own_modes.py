"""Modes of one's own: against models whose forward methods do the same, what is refused, and what is kept."""

from __future__ import annotations

import backend_table
import plain_conditions
import pytest
import surgery
import torch
from by_hand import written

import depthlens as dl
from depthlens.ablations import BASELINE, parse_condition
from depthlens.engine.engine import Engine
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

TEXTS = ["L2", "L4", "L2[1:]", "L1.attn[3:]", "L2.mlp", "L2.H1", "L2.KV0[2]", "L1-3"]
SUM = "L0.H1@odd+L1.attn[3:]@odd+L2[2:]@mean+L3.H0@odd+L3.H3@noise+L4@odd"


def odd(written, positions, tokens):
    """Depends on all that it may depend on."""
    turned = written.flip(-1) * (1 + positions[..., None] % 3)
    return turned + 0.01 * tokens[..., None].to(written)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(plain_conditions.OWN, "odd", odd)
    dl.mode("odd", odd)


@pytest.mark.parametrize("family", ["llama-gqa", "deepseek-v3", "qwen3"])
def test_every_backend_computes_what_forward_methods_compute(family):
    lens = surgery.rough_lens(family)
    means = backend_table.reference_of(lens)
    conditions = [BASELINE, *(parse_condition(f"{text}@odd") for text in TEXTS), parse_condition(SUM)]
    largest = surgery.logits(lens, conditions[-1], means, backend_table.TOKENS).abs().max().clamp(min=10)
    for way, drift in backend_table.drifts(lens, conditions, means).items():
        assert drift.max() < backend_table.TOLERANCE * largest, f"{way}: {drift}"


def test_texts_of_many_rows_and_ablated_models_are_those_of_the_forward_methods():
    lens = surgery.rough_lens("llama-gqa")
    requests = [GenerateRequest(tuple(range(5, 12 + i)), (), 8) for i in range(3)]
    conditions = [BASELINE, *map(parse_condition, ["L2@odd", "L1.attn[9:]@odd", "L3", "L2.H1@odd+L3"])]
    texts = Engine(lens, progress=False).generate_until(requests, conditions)
    assert len({tuple(row) for row in texts}) == len(texts)
    for condition, row in zip(conditions, texts, strict=True):
        model = surgery.cut(lens, condition, None)
        assert row == [written(lens, request, model) for request in requests]
    asked = [LoglikelihoodRequest(tuple(range(5, 12 + i)), (i, 9)) for i in range(3)]
    with dl.ablated(lens, "L1@odd"):
        found = Engine(lens, progress=False).loglikelihood(asked, [BASELINE, parse_condition("L2@odd")])
        again = lens.model(backend_table.TOKENS[None], use_cache=False).logits[0]
    both = [parse_condition("L1@odd"), parse_condition("L1@odd+L2@odd")]
    for condition, row in zip(both, found, strict=True):
        wanted = [surgery.logprob(lens, condition, None, request) for request in asked]
        assert [answer.logprob for answer in row] == pytest.approx(wanted, abs=1e-4)
    assert torch.allclose(again, surgery.logits(lens, both[0], None, backend_table.TOKENS), atol=1e-4)


BAD = {
    "sees other rows": (lambda w, p, t: w - w.mean((0, 1), keepdim=True), "something else alone than in a batch"),
    "sees other places": (lambda w, p, t: w.cumsum(1), "something else alone than in a batch"),
    "draws": (lambda w, p, t: w + torch.randn_like(w), "something else alone than in a batch"),
    "another shape": (lambda w, p, t: w[:, :1], r"returns \(\(3, 1, 32\).* where a part writes \(\(3, 5, 32\)"),
    "another dtype": (lambda w, p, t: w.double(), "float64.* where a part writes .*float32"),
    "not a number": (lambda w, p, t: w.log(), "not finite"),
    "nothing": (lambda w, p, t: None, "returns .*NoneType.* where a part writes"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_function_must_not_do_is_found_before_a_sweep(name):
    function, said = BAD[name]
    dl.mode("bad", function)
    lens = surgery.rough_lens("llama-gqa")
    with pytest.raises(dl.UserError, match=f"mode 'bad' .*{said}"):
        Engine(lens, progress=False).loglikelihood([LoglikelihoodRequest((1, 2), (3,))], [parse_condition("L1@bad")])
    with pytest.raises(dl.UserError, match=f"mode 'bad' .*{said}"), dl.ablated(lens, "L2.attn@bad"):
        pass


def test_names_and_calls_that_cannot_be_are_refused():
    for name in ("mean", "noise3", "no-name", "", 3):
        with pytest.raises(dl.UserError, match="give a name of letters"):
            dl.mode(name, odd)
    with pytest.raises(dl.UserError, match="give a function"):
        dl.mode("calm", 3)
    with pytest.raises(dl.UserError, match="key 1 of mode 'calm'"):
        dl.mode("calm", odd, key=1)
    lens = surgery.rough_lens("llama-gqa")
    with pytest.raises(dl.UserError, match="unknown mode 'od'; did you mean odd"):
        dl.next_token(lens, "ab", ["L1@od"])
    with pytest.raises(dl.UserError, match="does not fit site 'embed'"):
        parse_condition("embed@odd")
    with pytest.raises(dl.UserError, match="cannot be written into weights"):
        dl.export(lens, "L1@odd", "never")
    with dl.ablated(lens, "L1@odd"), pytest.raises(dl.UserError, match="reads token ids, .* give input_ids"):
        lens.model(inputs_embeds=torch.zeros(1, 2, 32))


def test_answers_are_kept_under_the_key_of_the_function_alone(tmp_path):
    lens, options = (
        dl.load("organism"),
        {"limit": 4, "progress": False, "store": str(tmp_path), "measure": "answer_logprob"},
    )

    def computed(factor, key, within=None):
        dl.mode("odd", lambda written, *_: written * factor, key=key)
        if within:
            with dl.ablated(lens, within):
                result = dl.condition_sweep(lens, "organism_one_hop", ["L2@odd"], **options)
        else:
            result = dl.condition_sweep(lens, "organism_one_hop", ["L2@odd"], **options)
        assert result.record["modes"] == {"odd": key}
        value = result.docs.query("condition == 'L2@odd'")["value"].mean()
        return (result.record["store"] or {}).get("rows_computed"), value

    first, half = computed(0.5, "half")
    assert first and computed(0.5, "half") == (0, half)
    other, double = computed(2.0, "double")
    assert other == first / 2 and double != half
    assert computed(0.5, "half") == (0, half)
    assert computed(2.0, None) == (other, double) and computed(2.0, None) == (other, double)
    assert computed(0.5, "half", within="L1@odd")[0] == first
    assert computed(0.5, None, within="L1@odd")[0] is None, "the model itself is not known"
