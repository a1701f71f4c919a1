"""Shards: even cuts of requests x conditions, and an engine whose shards are computed elsewhere (here: one by one)."""

from __future__ import annotations

import random

import pytest
import tiny
from stores import WRITTEN, run

from depthlens.engine.engine import Engine
from depthlens.engine.shards import Computed, shards_of
from depthlens.requests import LoglikelihoodRequest


class InTurn:
    """Workers that are this process; they compute the last shard first."""

    n, threads = 3, 1

    def __init__(self) -> None:
        self.shards = []

    def prepare(self, lens) -> None:
        pass

    def compute(self, lens, job, shards):
        for shard in reversed([*shards]):  # all are reserved before the first is computed
            self.shards.append(shard)
            engine = Engine(lens, backend=job.backend, path=job.path, means=job.means, progress=False)
            ask = engine.generate_until if job.write else engine.loglikelihood
            yield shard, Computed([ask(*asked) for asked in shard.asked], engine.work)


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=4096)


@pytest.fixture
def in_turn(monkeypatch):
    """Experiments that ask for workers get these."""
    workers = InTurn()
    workers.repeated, workers.describe = 0, dict
    monkeypatch.setattr("depthlens.cluster.workers_of", lambda options: workers if options["workers"] else None)
    return workers


def requests(lens, n=12, prefix="a long shared start "):
    texts = [(prefix + chr(97 + i) * (3 + i % 4), " yes" if i % 2 else " no") for i in range(n)]
    return [LoglikelihoodRequest(*(tuple(lens.tokenizer(t).input_ids) for t in pair)) for pair in texts]


class TestCuts:
    def cut(self, prefix, docs, own, conditions, workers, least=1, n_layers=30, **options):
        draw = random.Random(0)
        shared = [draw.randrange(100) for _ in range(prefix)]
        tokens = [shared + [draw.randrange(100) for _ in range(own)] for _ in range(docs)]
        return shards_of(
            tokens,
            range(docs),
            range(conditions),
            n_workers=float(workers),
            n_shards=(least, docs * conditions),
            passes=(n_layers, (conditions - 1) * n_layers // 2),
            **options,
        )

    @pytest.mark.parametrize("prefix", [0, 10, 300])
    @pytest.mark.parametrize(("docs", "conditions"), [(100, 31), (3, 31), (1, 31), (40, 1), (1, 1)])
    @pytest.mark.parametrize("max_new", [0, 64])
    def test_every_row_is_in_one_shard(self, prefix, docs, conditions, max_new):
        shards = self.cut(prefix, docs, 20, conditions, 3, max_new=max_new)
        rows = [(c, r) for members, group in shards for c in group for r in members]
        assert len(rows) == len({*rows}) == docs * conditions

    def test_a_long_prefix_is_repeated_less(self):
        different = {tuple(members) for members, _ in self.cut(300, 96, 20, 31, 2)}
        assert 1 <= len(different) <= 4

    def test_one_request_is_cut_by_conditions(self):
        shards = self.cut(10, 1, 5, 31, 3)
        assert len(shards) >= 3 and {len(group) for _, group in shards} <= {31 // len(shards), 31 // len(shards) + 1}


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
