"""What parts write, multiplied: against models whose forward methods multiply it."""

from __future__ import annotations

import backend_table
import model_classes
import pytest
import surgery
import tiny
import torch

import depthlens as dl
from depthlens.ablations import BASELINE, parse_condition

TEXTS = ["L2*0.5", "L1-3*1.2", "L1.attn*-2", "L2.mlp*0.3", "L2.H1*3", "L3.KV0*0.25", "L2[1:]*0", "L1.H0[3]*4+L3.mlp*2"]


@pytest.mark.parametrize("family", ["llama-gqa", "deepseek-v3", "qwen3-moe"])
def test_every_backend_multiplies_what_a_part_writes(family):
    lens = surgery.rough_lens(family)
    conditions = [BASELINE, *map(parse_condition, TEXTS)]
    for way, drift in backend_table.drifts(lens, conditions, None).items():
        assert drift.max() < backend_table.TOLERANCE, f"{way}: {drift}"


def test_zero_is_a_removal_and_one_is_nothing():
    lens = surgery.rough_lens("llama-gqa")
    parts = ["L2", "L1.attn", "L2.mlp", "L3.H1", "L0.KV1", "L1-2[1:]", ""]
    removed, zero, one = (
        model_classes.scores(lens, [parse_condition(f"{p}{s}" if p else "baseline") for p in parts])
        for s in ("", "*0", "*1")
    )
    assert torch.allclose(zero, removed, atol=1e-5) and torch.allclose(one, one[-1].expand_as(one), atol=1e-5)


def test_what_weights_do_not_hold_is_refused(tmp_path):
    for family, text, said in (
        ("llama-gqa", "L1*0.9", "cannot be written into weights"),
        ("llama-gqa", "L1.attn[1:]*0.9", "cannot be written into weights"),
        ("qwen3-moe", "L1.mlp*0.9", "is not written by one matrix"),
    ):
        with pytest.raises(dl.UserError, match=said):
            dl.export(tiny.lens(family), text, tmp_path / "out")
