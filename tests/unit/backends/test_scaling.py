"""What parts write, multiplied: against models whose forward methods multiply it, and exports against the condition."""

from __future__ import annotations

import backend_table
import by_hand
import model_classes
import pytest
import surgery
import tiny
import torch
from transformers import AutoModelForCausalLM

import depthlens as dl
from depthlens.ablations import BASELINE, Ablation, expand, parse_condition

TEXTS = ["L2*0.5", "L1-3*1.2", "L1.attn*-2", "L2.mlp*0.3", "L2.H1*3", "L3.KV0*0.25", "L2[1:]*0", "L1.H0[3]*4+L3.mlp*2"]
EXPORTED = [
    "L1.attn*0.5+L2.mlp*2",
    "L1.H0*0.5+L1.KV0*3+L3.H1",
    "L0+L1.KV1*0.5+L1.attn*2+L4.mlp*0",
    "L1.attn@int8+L1.H1*2",
]


@pytest.mark.parametrize("family", ["llama-gqa", "deepseek-v3", "qwen3-moe"])
def test_every_backend_multiplies_what_a_part_writes(family):
    lens = surgery.rough_lens(family)
    conditions = [BASELINE, *map(parse_condition, TEXTS)]
    expected = torch.stack([surgery.logits(lens, c, None, backend_table.TOKENS) for c in conditions])
    assert (expected[1:] - expected[0]).abs().amax((1, 2)).min() > 0.1
    for way in backend_table.WAYS:
        drift = (backend_table.logits(way, lens, None, conditions) - expected).abs().max()
        assert drift < backend_table.TOLERANCE, f"{way}: {drift}"


def test_zero_is_a_removal_and_one_is_nothing():
    lens = surgery.rough_lens("llama-gqa")
    parts = ["L2", "L1.attn", "L2.mlp", "L3.H1", "L0.KV1", "L1-2[1:]", ""]
    removed, zero, one = (
        model_classes.scores(lens, [parse_condition(f"{p}{s}" if p else "baseline") for p in parts])
        for s in ("", "*0", "*1")
    )
    assert torch.allclose(zero, removed, atol=1e-5) and torch.allclose(one, one[-1].expand_as(one), atol=1e-5)


@pytest.mark.parametrize(
    ("family", "condition"),
    [*(("llama-gqa", c) for c in EXPORTED), ("qwen2", EXPORTED[0]), ("deepseek-v3", EXPORTED[1])],
)
def test_a_plain_model_with_scaled_weights_computes_the_condition(family, condition, tmp_path):
    biases = {"attention_bias": True, "mlp_bias": True} if family == "llama-gqa" else {}
    lens = surgery.rough_lens(family, **biases)
    wanted = model_classes.scores(lens, [parse_condition(condition)])[0]
    dl.export(lens, condition, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert [by_hand.logprob(plain, q) for q in model_classes.ASKED] == pytest.approx(wanted.tolist(), abs=1e-4)
    assert wanted.tolist() != pytest.approx(model_classes.scores(lens, [BASELINE])[0].tolist(), abs=1e-2)


def test_what_weights_do_not_hold_is_refused(tmp_path):
    for family, text, said in (
        ("llama-gqa", "L1*0.9", "cannot be written into weights"),
        ("llama-gqa", "L1.attn[1:]*0.9", "cannot be written into weights"),
        ("qwen3-moe", "L1.mlp*0.9", "is not written by one matrix"),
    ):
        with pytest.raises(dl.UserError, match=said):
            dl.export(tiny.lens(family), text, tmp_path / "out")


TEXT_FORMS = {
    **{"L1*0.90": "L1*0.9", "L2*2.0+L1*2": "L1-2*2", "L1.H0*-.5": "L1.H0*-0.5", "L1*-0": "L1*0"},
    **{"L1[1:]*1e-05": "L1[1:]*1e-05", "L1.KV0[2]*0.1": "L1.KV0[2]*0.1"},
}
REFUSED = {
    **dict.fromkeys(("L1*", "L1*x", "L1*0.5[1:]", "L1@scale"), "cannot read"),
    "L1*2000000": "factor 2000000.0: give a number from -1e.06",
    "L1*0.5+L1": "names one part twice",
}


def test_the_text_of_a_factor():
    for text, canonical in TEXT_FORMS.items():
        assert str(parse_condition(text)) == canonical and str(parse_condition(canonical)) == canonical
    scaled = expand("mlp:2[1:]*0.5", tiny.lens("llama-gqa").dims)[1:]
    assert [*map(str, scaled)] == ["L1.mlp[1:]*0.5", "L3.mlp[1:]*0.5"]
    for text, said in REFUSED.items():
        with pytest.raises(dl.UserError, match=said):
            parse_condition(text)
    with pytest.raises(dl.UserError, match="factor 0.5 does not fit site 'layer' and mode 'mean'"):
        Ablation(1, mode="mean", factor=0.5)
