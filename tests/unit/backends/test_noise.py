"""Noise: that it depends on nothing but its place; models that were cut (`surgery`) prove its norm."""

from __future__ import annotations

import numpy as np
import pytest
import surgery
import torch

from depthlens.ablations import parse_condition
from depthlens.backends.row_edits import noise
from depthlens.engine.engine import Engine
from depthlens.requests import LoglikelihoodRequest

TOLERANCE = 1e-5  # float32


def of(text):
    (ablation,) = parse_condition(text).ablations
    return ablation


def test_a_part_that_writes_nothing_gets_no_noise():
    lens = surgery.rough_lens("llama-gqa")
    with torch.no_grad():
        lens.arch.o_proj[2].weight[:, : lens.dims.d_head] = 0
        lens.arch.mlp[2].down_proj.weight.zero_()
    request = [LoglikelihoodRequest((1, 2, 3), (4, 5))]
    conditions = [parse_condition(text) for text in ("baseline", "L2.H0@noise", "L2.mlp@noise", "L2.H1@noise")]
    clean, head, mlp, other = (
        row[0].logprob for row in Engine(lens, progress=False).loglikelihood(request, conditions)
    )
    assert head == mlp == pytest.approx(clean, abs=TOLERANCE) and abs(other - clean) > 0.01


def test_it_depends_on_seed_layer_site_index_and_position_only():
    texts = ["L2@noise", "L3@noise", "L2.attn@noise", "L2.mlp@noise", "L2.H0@noise", "L2.H1@noise", "L2.KV0@noise"]
    ablations = [of(text) for text in [*texts, "L2@noise1", "L2@noise4294967296"]]
    near, far = torch.arange(300)[None], torch.tensor([[299, 255, 256, 7]])
    drawn = [noise(a, near, 8) for a in ablations]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 0.1, "of 2400 numbers"
        assert len({tuple(row) for row in one[0].tolist()}) == 300, "a position repeats another"
        assert torch.equal(noise(ablations[i], far, 8)[0], one[0][[299, 255, 256, 7]])
        assert torch.equal(noise(ablations[i], near[:, :5], 8), one[:, :5])
    assert torch.equal(noise(of("L2[1:]@noise"), near, 8), drawn[0])  # sparing moves nothing
    assert abs(drawn[0].mean()) < 0.1 and abs(drawn[0].std() - 1) < 0.05


def test_it_is_that_of_the_same_numbers_drawn_again():
    wanted = surgery.noise(3, 2, "head", 1, 270, 12)
    assert torch.equal(noise(of("L2.H1@noise3"), torch.arange(270)[None], 12)[0], wanted)
