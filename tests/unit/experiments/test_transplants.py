"""Transplants equal surgery on copies of the model, in every batch layout, and leave nothing behind."""

from __future__ import annotations

import pytest
import surgery
import tiny
import torch
from accelerate.utils import OffloadedWeightsLoader
from transplants import (
    FAMILIES,
    SAME,
    TOKENS,
    attributes,
    conditions_for,
    layers_in_memory,
    logits,
    operated,
    other,
    removals,
    requests,
    same,
    scores,
    texts,
    two,
    weights_of,
)

from depthlens.ablations import expand
from depthlens.backends.torch import TorchBackend
from depthlens.engine.engine import next_token
from depthlens.engine.references import measure_means
from depthlens.errors import UserError
from depthlens.experiments import distillation
from depthlens.models import loading


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_transplant_equals_surgery(family):
    base, donor = two(family)
    together = distillation.with_donor(base, donor)
    conditions = conditions_for(base)
    rows = [TOKENS[:1].repeat(len(conditions), 1), torch.ones(len(conditions), TOKENS.shape[1], dtype=torch.long)]
    every = [range(TOKENS.shape[1])] * len(conditions)
    batch, _ = TorchBackend(together).forward(*rows, conditions, positions=every)
    clean = logits(base.model)
    for condition, found in zip(conditions, batch, strict=True):
        cut = operated(base, donor, condition)
        with TorchBackend(cut).ablate([removals(condition)]):
            wanted = logits(cut.model)
        with TorchBackend(together).ablate([condition]):
            alone = logits(base.model)
        same(found, wanted[0], f"{condition}, one row of many")
        same(alone, wanted, f"{condition}, alone")
        assert bool(condition) == bool((wanted - clean).abs().max() > 10 * SAME), f"{condition} does too little to see"
    assert torch.equal(logits(base.model), clean)


@pytest.mark.parametrize("family", ["llama-gqa", "deepseek-v2"])
def test_a_bias_of_the_output_projection_goes_with_the_whole_attention(family):
    base, donor = two(family, attention_bias=True)
    assert base.arch.o_proj[0].bias is not None
    together = distillation.with_donor(base, donor)
    conditions = expand("L2.H3@donor,L2.attn@donor,L2.H0,L2.KV1@donor", base.dims)
    n = len(conditions)
    found, _ = TorchBackend(together).forward(TOKENS[:1].repeat(n, 1), torch.ones(n, 7, dtype=torch.long), conditions)
    for condition, row in zip(conditions, found, strict=True):
        cut = operated(base, donor, condition)
        with TorchBackend(cut).ablate([removals(condition)]):
            same(row, logits(cut.model)[0, -1:], str(condition))


@pytest.mark.parametrize("family", ["llama-gqa", "qwen3-moe", "deepseek-v3"])
def test_no_part_is_the_base_exactly_and_all_parts_are_the_donor(family):
    base, donor = two(family)
    clean, wanted, before = logits(base.model), logits(donor.model), weights_of(base.model)
    with distillation.transplant(base, donor) as condition:
        assert str(condition) == "baseline"
        assert torch.equal(logits(base.model), clean)
    with distillation.transplant(base, donor, layers=range(5), embeddings=True) as condition:
        assert str(condition) == "embed@donor+unembed@donor+L0-4@donor"
        same(logits(base.model), wanted)
    with distillation.transplant(base, donor, layers=range(5)):
        assert float((logits(base.model) - wanted).abs().max()) > 0.1  # the ends differ too
    assert torch.equal(logits(base.model), clean)
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.model.state_dict().items())


def test_tied_and_untied_embeddings_make_a_pair():
    base = surgery.rough_lens("qwen2", tie_word_embeddings=True)
    donor = other(tiny.lens("qwen2"))
    with distillation.transplant(base, donor, layers=range(5), embeddings=True):
        same(logits(base.model), logits(donor.model))


@pytest.mark.parametrize("family", ["llama-gqa", "deepseek-v3"])
def test_other_rotary_frequencies_go_with_whole_layers(family):
    base = surgery.rough_lens(family)
    donor = other(surgery.rough_lens(family, rope_parameters={"rope_type": "default", "rope_theta": 50.0}))
    together = distillation.with_donor(base, donor)
    assert together.donor.own_rotary and "rotary frequencies differ" in together.donor.notes[-1]
    with distillation.transplant(base, donor, layers=range(5), embeddings=True):
        same(logits(base.model), logits(donor.model))
    conditions = expand("whole@donor,L2.H1@donor,L1", base.dims)
    found = scores(together, conditions)
    same(found[1], scores(donor, conditions[:1])[0])
    # a head shares keys with its group, so it is turned as they are
    same(found[2], scores(operated(base, donor, conditions[2]), conditions[:1])[0])
    assert texts(together, conditions)[1] == texts(donor, conditions[:1])[0]


@pytest.mark.parametrize(
    ("family", "batch_tokens"), [("llama-gqa", 1), *((f, 2048) for f in ("llama-gqa", "qwen3", "deepseek-v3"))]
)
def test_wavefront_plain_rows_and_generation_agree_with_surgery(family, batch_tokens):
    base, donor = two(family)
    together = distillation.with_donor(base, donor)
    conditions = conditions_for(base)
    walked = scores(together, conditions, batch_tokens=batch_tokens)
    written = texts(together, conditions)
    same(scores(together, conditions, batch_tokens=batch_tokens, path="padded_rows"), walked, "plain rows")
    assert texts(together, conditions, path="padded_rows") == written
    for i, condition in enumerate(conditions):
        cut = operated(base, donor, condition)
        same(walked[i], scores(cut, [removals(condition)])[0], str(condition))
        if batch_tokens > 1:
            assert written[i] == texts(cut, [removals(condition)])[0], str(condition)
    assert len({tuple(row) for row in written}) > len(conditions) // 2, "the texts tell nothing apart"


def test_reference_means_and_donors_in_one_condition():
    base, donor = two("llama-gqa")
    means = measure_means(base, [q.context for q in requests()], "prompts")
    conditions = expand("L1@donor+L3.mlp@mean,L2.H0@mean+L2.KV1@donor,L4@mean", base.dims)
    found = scores(distillation.with_donor(base, donor), conditions, means=means)
    for row, condition in zip(found, conditions, strict=True):
        cut = operated(base, donor, condition)
        same(row, scores(cut, [removals(condition)], means=means)[0], str(condition))


def test_next_token_under_a_transplant():
    base, donor = two("llama-gqa")
    table = next_token(distillation.with_donor(base, donor), "abc", ["whole@donor"], k=3)
    wanted = logits(donor.model, torch.tensor([base.tokenizer("abc").input_ids]))[0, -1].softmax(-1)
    assert table.iloc[:, 1].max() == pytest.approx(float(wanted.max()), abs=SAME)


@pytest.mark.parametrize("streamed", [False, True])
def test_after_an_exception_the_base_is_bit_equal_and_nothing_is_left_on_it(folders, streamed):
    base = loading.load(folders("llama-gqa"))
    donor = loading.load(folders("llama-gqa", moved=True), offload="disk" if streamed else None)
    clean, before, shape = logits(base.model), weights_of(base.model), attributes(base.model)
    with (
        pytest.raises(ZeroDivisionError),
        distillation.transplant(base, donor, layers=[1], heads=[(2, 3)], embeddings=True),
    ):
        assert float((logits(base.model) - clean).abs().max()) > SAME
        raise ZeroDivisionError
    assert torch.equal(logits(base.model), clean) and attributes(base.model) == shape
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.model.state_dict().items())
    if streamed:
        assert layers_in_memory(donor) == []


def test_a_failing_read_of_the_donor_leaves_the_base_whole(folders, monkeypatch):
    base, donor = loading.load(folders("llama-gqa")), loading.load(folders("llama-gqa", moved=True), offload="disk")
    clean, shape = logits(base.model), attributes(base.model)

    def fail(self, key):
        raise OSError(f"cannot read {key}")

    with monkeypatch.context() as patch:
        patch.setattr(OffloadedWeightsLoader, "__getitem__", fail)
        with pytest.raises(OSError, match="cannot read"), distillation.transplant(base, donor, layers=[1, 3]):
            logits(base.model)
        with pytest.raises(OSError, match="cannot read"):
            scores(distillation.with_donor(base, donor), expand("L1@donor,L3@donor", base.dims))
    assert torch.equal(logits(base.model), clean) and attributes(base.model) == shape
    assert layers_in_memory(donor) == []


def test_a_transplant_inside_a_transplant_is_refused_and_the_outer_one_stays():
    base, donor = two("llama-gqa")
    clean = logits(base.model)
    with distillation.transplant(base, donor, layers=[1]):
        outer = logits(base.model)
        with (
            pytest.raises(UserError, match="inside a transplant already; name all parts in one"),
            distillation.transplant(base, donor, layers=[2]),
        ):
            pass
        assert torch.equal(logits(base.model), outer)
    assert torch.equal(logits(base.model), clean)
    with distillation.transplant(base, donor, layers=[2]):  # and afterwards there is none
        pass
