"""Prefix trees, where shared tokens stand once and every sequence can be read back, and shards of rows."""

import pytest
from trees import random_sequences

from depthlens.engine.batches import cut
from depthlens.engine.prefix_tree import pack
from depthlens.requests import LoglikelihoodRequest


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


def test_sequences_of_two_few_shot_prefixes_are_not_mixed():
    def few_shot(token, n):
        return [tuple([token] * n + [i, i]) for i in range(5)]

    assert sorted(p.n_prefix for p in pack([*few_shot(1, 300), *few_shot(2, 300)], 10_000)) == [300, 300]
    (mixed,) = pack([*few_shot(1, 30), *few_shot(2, 30)], 10_000)  # too short to be worth a pack each
    assert (mixed.n_prefix, len(mixed.branches)) == (0, 2)


def requests(lens, n=12, prefix="a long shared start "):
    texts = [(prefix + chr(97 + i) * (3 + i % 4), " yes" if i % 2 else " no") for i in range(n)]
    return [LoglikelihoodRequest(*(tuple(lens.tokenizer(t).input_ids) for t in pair)) for pair in texts]


@pytest.mark.parametrize(("docs", "conditions"), [(100, 31), (3, 31), (1, 31), (40, 1), (1, 1)])
def test_every_row_is_in_one_shard_and_neighbours_share_their_beginnings(lens, docs, conditions):
    asked, known = requests(lens, docs), docs // 2  # of the others, a condition is known
    products = [([*range(known)], [*range(conditions)]), ([*range(known, docs)], [*range(1, conditions)] or [0])]
    products = [(members, group) for members, group in products if members]
    shards = cut(asked, products, 12)
    rows = sorted((c, r) for members, group in shards for c in group for r in members)
    assert rows == sorted((c, r) for members, group in products for c in group for r in members)
    assert min(12, len(rows)) / 2 <= len(shards) <= 12 + 2 * conditions
    for members, _ in shards:
        assert [asked[r].context for r in members] == sorted(asked[r].context for r in members)
