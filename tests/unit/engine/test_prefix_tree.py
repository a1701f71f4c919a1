"""Prefix trees: every sequence can be read back along its path, and shared tokens stand once."""

import random

import pytest
import torch

from depthlens.engine.prefix_tree import build, common_prefix, pack
from depthlens.engine.tree_attention import Layout, attend


def random_sequences(seed, n=40):
    """Sequences over four tokens, so that they share a lot; duplicates and prefixes of each other included."""
    rng = random.Random(seed)
    made = [tuple(rng.choices(range(4), k=rng.randint(1, 9))) for _ in range(n)]
    return [(9, 9, *s) for s in made] + [(9, 9, *made[0]), (9, 9)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("max_tokens", "extra"), [(1, 0), (25, 0), (25, 3), (10_000, 0)])
def test_paths_spell_the_sequences(seed, max_tokens, extra):
    sequences = random_sequences(seed)
    seen = []
    for p in pack(sequences, max_tokens, extra):
        tokens, depths = p.tokens, p.depths
        assert len(tokens) == p.n_tokens
        assert p.n_tokens + extra * len(p.sequences) <= max_tokens or len({sequences[i] for i in p.sequences}) == 1
        for i, path in zip(p.sequences, p.paths, strict=True):
            assert tuple(tokens[n] for n in path) == tuple(sequences[i])
            assert [depths[n] for n in path] == list(range(len(path)))
        seen += p.sequences
    assert sorted(seen) == list(range(len(sequences)))


def test_a_tree_has_one_node_for_each_distinct_start():
    sequences = random_sequences(7)
    (p,) = pack(sequences, 10_000)
    assert p.n_tokens == len({s[:n] for s in sequences for n in range(1, len(s) + 1)})


def test_prefix_branches_and_parents_of_a_small_tree():
    p = build([(1, 2, 3, 4), (1, 2, 3, 5, 6), (1, 2, 7)], [0, 1, 2])
    assert p.prefix == [1, 2]
    assert [b.tokens for b in p.branches] == [[3, 4, 5, 6], [7]]
    assert p.branches[0].parents == [-1, 0, 0, 2]
    assert p.paths == [[0, 1, 2, 3], [0, 1, 2, 4, 5], [0, 1, 6]]


def test_sequences_of_two_few_shot_prefixes_are_not_mixed():
    def few_shot(token, n):
        return [tuple([token] * n + [i, i]) for i in range(5)]

    assert sorted(len(p.prefix) for p in pack([*few_shot(1, 300), *few_shot(2, 300)], 10_000)) == [300, 300]
    (mixed,) = pack([*few_shot(1, 30), *few_shot(2, 30)], 10_000)  # too short to be worth a pack each
    assert (len(mixed.prefix), len(mixed.branches)) == (0, 2)


def test_common_prefix():
    assert common_prefix((1, 2, 3), (1, 2, 4)) == 2
    assert common_prefix((), (1,)) == 0


@pytest.mark.parametrize("d_value", [8, 6])  # equal widths take the fused kernel, others the written-out path
def test_tree_attention_equals_one_masked_softmax(d_value):
    (p,) = pack(random_sequences(3), 10_000)
    n, n_heads, n_kv = p.n_tokens, 4, 2
    g = torch.Generator().manual_seed(0)
    q = torch.randn(3, n_heads, n, 8, generator=g)
    k, v = torch.randn(3, n_kv, n, 8, generator=g), torch.randn(3, n_kv, n, d_value, generator=g)
    sees = torch.eye(n, dtype=torch.bool)
    for path in p.paths:
        for at, node in enumerate(path):
            sees[node, path[: at + 1]] = True
    wide_k, wide_v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = (q @ wide_k.transpose(-1, -2) * 0.3).masked_fill(~sees, -torch.inf)
    wanted = scores.softmax(-1) @ wide_v
    got = Layout(p, torch.device("cpu"), torch.float32).attention(0, q, k, v, 0.3)
    assert torch.allclose(got, wanted, atol=1e-5)  # float32 softmax in two parts against one


@pytest.mark.parametrize("d_value", [8, 6])
def test_attend_returns_the_log_of_its_denominator(d_value):
    g = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 3, 5, 8, generator=g), torch.randn(2, 3, 5, 8, generator=g)
    v = torch.randn(2, 3, 5, d_value, generator=g)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    scores = (q @ k.transpose(-1, -2) * 0.5).masked_fill(~causal, -torch.inf)
    out, lse = attend(q, k, v, 0.5, None, True)
    assert torch.allclose(lse, scores.logsumexp(-1), atol=1e-5)
    assert torch.allclose(out, scores.softmax(-1) @ v, atol=1e-5)
