"""Shards: even cuts of requests x conditions, and an engine whose shards are computed elsewhere (here: one by one)."""

from __future__ import annotations

import pytest

from depthlens.engine.batches import cut
from depthlens.requests import LoglikelihoodRequest


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
