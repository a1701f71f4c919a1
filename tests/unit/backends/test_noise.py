"""Noise of the norm of what a part writes: its norm and direction, and that it depends on nothing but its place."""

from __future__ import annotations

import numpy as np
import pytest
import surgery
import torch

from depthlens.ablations import parse_condition
from depthlens.backends.row_edits import noise
from depthlens.backends.torch import TorchBackend
from depthlens.engine.engine import Engine
from depthlens.models.architectures import hidden
from depthlens.requests import LoglikelihoodRequest

TOLERANCE = 1e-5  # float32
TOKENS = torch.randint(0, 256, (1, 9), generator=torch.Generator().manual_seed(2))


def of(text):
    (ablation,) = parse_condition(text).ablations
    return ablation


@pytest.fixture(scope="module")
def lens():
    return surgery.rough_lens("qwen3")


def outputs(lens, text):
    """What the layer, its attention and its MLP write, and what ``o_proj`` reads, in layer 2."""
    seen, backend = {}, TorchBackend(lens)
    with torch.no_grad(), backend.ablate([parse_condition(text)], torch.arange(9)[None]):
        arch = lens.arch
        handles = [
            arch.layers[2].register_forward_hook(lambda m, a, o: seen.update(layer=hidden(o), pre=a[0])),
            arch.attn[2].register_forward_hook(lambda m, a, o: seen.update(attn=hidden(o))),
            arch.mlp[2].register_forward_hook(lambda m, a, o: seen.update(mlp=hidden(o))),
            arch.o_proj[2].register_forward_pre_hook(lambda m, a: seen.update(z=a[0])),
        ]
        lens.model(TOKENS, use_cache=False)
        for handle in handles:
            handle.remove()
    return seen


@pytest.mark.parametrize(("site", "start"), [("layer", 0), ("attn", 1), ("mlp", 4), ("head", 1), ("kv", 0), ("kv", 4)])
def test_what_is_added_has_the_norm_of_what_the_part_writes(lens, site, start):
    part = {"layer": "", "head": ".H3", "kv": ".KV1"}.get(site, f".{site}")
    clean, noisy = outputs(lens, "baseline"), outputs(lens, f"L2{part}[{start}:]@noise7")
    if site in ("head", "kv"):
        heads = [3] if site == "head" else [*lens.dims.query_heads(1)]
        z, new = (x["z"].unflatten(-1, (lens.dims.n_heads, -1)) for x in (clean, noisy))
        others = [h for h in range(lens.dims.n_heads) if h not in heads]
        assert torch.equal(z[:, :, others], new[:, :, others])
        columns = lens.arch.o_proj[2].weight.unflatten(1, (lens.dims.n_heads, -1))[:, heads].flatten(1)
        written, added = ((x[:, :, heads].flatten(2) @ columns.T) for x in (z, new - z))
    else:
        written = clean[site] - clean["pre"] if site == "layer" else clean[site]
        added = noisy[site] - clean[site]
    assert not added[:, :start].any()
    ratio = added[:, start:].norm(dim=-1) / written[:, start:].norm(dim=-1)
    assert torch.allclose(ratio, torch.ones_like(ratio), atol=100 * TOLERANCE)


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
