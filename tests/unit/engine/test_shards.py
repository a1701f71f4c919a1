"""Shards: even cuts of requests x conditions, and an engine whose shards are computed elsewhere (here: one by one)."""

from __future__ import annotations

import pytest
from stores import WRITTEN, run

from depthlens.engine.batches import cut
from depthlens.engine.engine import Engine
from depthlens.requests import LoglikelihoodRequest


class InTurn:
    """Workers that are this process; they compute the last shard first."""

    n = 3

    def __init__(self) -> None:
        self.shards = []

    def compute(self, lens, method, options, shards):
        for number in reversed(range(len(shards))):
            self.shards.append(shards[number])
            engine = Engine(lens, progress=False, **options)
            yield number, getattr(engine, method)(*shards[number]), engine.work


@pytest.fixture
def in_turn(monkeypatch):
    """Experiments that ask for workers get these."""
    workers = InTurn()
    workers.describe = dict
    monkeypatch.setattr("depthlens.cluster.pool.workers_of", lambda options: workers if options["workers"] else None)
    return workers


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


class TestEngine:
    def test_answers_are_those_of_one_process(self, lens, in_turn):
        for ablate, options in (
            ("layers@mean", {"measure": "both"}),
            (["L1.H1@resample"], {"resample_prompts": ["one two three", "A b c d"]}),
            ("L1.attn", {"gen_kwargs": {"temperature": 1.3}, "tasks": [WRITTEN]}),
        ):
            one, other = run(lens, None, ablate, **options), run(lens, None, ablate, workers=3, **options)
            assert len(in_turn.shards) > 1
            in_turn.shards.clear()
            assert one.docs.drop(columns="value").equals(other.docs.drop(columns="value")), "texts and predictions"
            # float32: another composition of batches rounds otherwise
            assert (one.docs["value"] - other.docs["value"]).abs().max() < 1e-4
