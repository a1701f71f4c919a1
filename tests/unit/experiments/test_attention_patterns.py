"""Attention patterns: those of the eager kernel and of TransformerLens, one layer in memory at a time."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from by_hand import attentions, random_tokens
from torch.profiler import ProfilerActivity, profile

from depthlens.errors import UserError
from depthlens.experiments import attention_patterns

PATTERN_TOLERANCE = 1e-5  # float32 softmax rows, computed from the same queries and keys in another order
FAMILIES = ["llama-gqa", "qwen3", "deepseek-v3"]  # shared keys, normed queries and keys, latent attention


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_patterns_are_those_of_the_eager_kernel(family):
    lens = tiny.lens(family)
    sequences, asked = [random_tokens(7, 0), random_tokens(20, 1)], [[0, 3, 6], [19, 2]]
    seen = {}
    attention_patterns.read(lens, sequences, asked, lambda layer, i, p: seen.__setitem__((layer, i), p))
    assert list(seen) == [(layer, i) for i in (0, 1) for layer in range(lens.dims.n_layers)]
    for i, tokens in enumerate(sequences):
        for layer, whole in enumerate(attentions(family, tokens)):
            assert torch.allclose(seen[layer, i], whole[:, asked[i]], atol=PATTERN_TOLERANCE)


@pytest.mark.parametrize("family", ["llama-gqa", *(pytest.param(f, marks=pytest.mark.nightly) for f in FAMILIES[1:])])
def test_memory_at_4096_tokens_is_that_of_one_layer(family):
    """Peak of torch's allocations, counted by its profiler: the same for 2 layers as for 6, and far from pos x pos."""
    n_pos, asked = 4096, range(4088, 4096)

    def peak(n_layers):
        lens = tiny.lens(family, num_hidden_layers=n_layers, max_position_embeddings=n_pos)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            attention_patterns.read(lens, [random_tokens(n_pos, 5)], [asked], lambda layer, i, p: None)
        held = [
            e.nbytes()
            for e in sorted(recorded.profiler.kineto_results.events(), key=lambda e: e.start_ns())
            if e.name() == "[memory]"
        ]
        return np.cumsum(held).max(), lens.dims

    few, dims = peak(2)
    many, _ = peak(6)
    assert many == pytest.approx(few, rel=0.01)
    one_layer_of_patterns = dims.n_heads * n_pos * n_pos * 4
    streams = 25 * n_pos * dims.d_model * 4  # what a token holds as it passes a layer: queries, keys, values, MLP
    rows = 3 * dims.n_heads * len(asked) * n_pos * 4  # scores, mask and softmax of the asked positions
    assert many < streams + rows < one_layer_of_patterns / 10


def test_what_cannot_be_read_is_refused(lens):
    with pytest.raises(UserError, match="position 7 of sequence 1: it has 7 tokens"):
        attention_patterns.read(lens, [(1, 2), random_tokens(7, 0)], [[0], [7]], lambda *a: None)
    narrow = tiny.lens("mistral", sliding_window=6)
    with pytest.raises(UserError, match="more than the 6 that attention sees at once"):
        attention_patterns.read(narrow, [random_tokens(7, 0)], [[0]], lambda *a: None)


def test_the_model_is_left_alone_even_after_an_exception():
    lens = tiny.lens("llama-gqa")
    tokens = torch.tensor([random_tokens(9, 0)])
    config, before = dict(vars(lens.model.config)), lens.model(tokens).logits

    def fail(layer, i, pattern):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        attention_patterns.read(lens, [random_tokens(9, 0)], [[8]], fail)
    assert vars(lens.model.config) == config
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in lens.model.modules())
    assert torch.equal(lens.model(tokens).logits, before)
