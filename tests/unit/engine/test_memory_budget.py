"""Budgets follow the memory that is free."""

from dataclasses import replace

import pytest
import tiny
import torch

from depthlens.ablations import expand
from depthlens.engine import work
from depthlens.engine.engine import Engine
from depthlens.models.lens import Lens
from depthlens.requests import GenerateRequest, LoglikelihoodRequest


def with_free(monkeypatch, n_bytes):
    monkeypatch.setattr(work, "free_bytes", lambda device: n_bytes)


def test_plenty_of_memory_gives_what_is_fastest_on_a_cpu(lens, monkeypatch):
    with_free(monkeypatch, 1 << 40)
    chosen = work.choose(lens)
    assert chosen == work.Budget(
        work.CPU_BATCH_TOKENS,
        work.CPU_STATE_BYTES,
        work.CPU_KEY_BYTES,
        work.CPU_UNEMBED_ROWS,
    )


def test_little_memory_gives_less_of_everything_and_never_nothing(lens, monkeypatch):
    with_free(monkeypatch, 1 << 22)
    chosen = work.choose(lens)
    assert work.MIN_BATCH_TOKENS < chosen.batch_tokens < work.CPU_BATCH_TOKENS
    assert chosen.batch_tokens * work.chunk_bytes(lens) <= 1 << 20
    assert (chosen.state_bytes, chosen.key_bytes) == (1 << 19, 1 << 20)
    with_free(monkeypatch, 0)
    nothing = work.choose(lens)
    assert (nothing.batch_tokens, nothing.unembed_rows) == (work.MIN_BATCH_TOKENS, 1)


def test_a_gpu_gets_its_share_of_what_is_free_and_no_fixed_cap_on_keys(lens, monkeypatch):
    with_free(monkeypatch, 64 << 30)
    monkeypatch.setattr(Lens, "device", torch.device("cuda"))
    chosen = work.choose(lens)
    assert chosen == work.Budget(work.GPU_BATCH_TOKENS, 8 << 30, 16 << 30, work.GPU_UNEMBED_ROWS)


def test_logits_of_a_block_fit_into_their_share_of_a_gpu(lens, monkeypatch):
    with_free(monkeypatch, 1 << 27)
    monkeypatch.setattr(Lens, "device", torch.device("cuda"))
    rows = work.choose(lens).unembed_rows
    assert rows == (1 << 23) // (2 * 4 * tiny.VOCAB) and rows < work.GPU_UNEMBED_ROWS


def test_answers_do_not_depend_on_how_many_positions_are_unembedded_together(lens):
    requests = [LoglikelihoodRequest(tuple(range(i, i + 9)), (5, 6, i)) for i in range(7)]
    prompts = [GenerateRequest(q.context, (), 5) for q in requests]
    conditions = expand("L1,L2.H0", lens.dims)
    engine = Engine(lens, progress=False)
    wanted, texts = engine.loglikelihood(requests, conditions), engine.generate_until(prompts, conditions)
    for rows in (1, 4):
        few = Engine(lens, progress=False)
        few.budget = replace(few.budget, unembed_rows=rows)
        for row, wanted_row in zip(few.loglikelihood(requests, conditions), wanted, strict=True):
            assert [a.logprob for a in row] == pytest.approx([a.logprob for a in wanted_row], abs=1e-4)
            assert [a.is_greedy for a in row] == [a.is_greedy for a in wanted_row]
        assert few.generate_until(prompts, conditions) == texts


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_rows_join_those_that_write_as_these_leave(lens, at_once):
    """Of 13 conditions few fit into memory: rows of the next are read while those that write for longest still do."""
    conditions, lengths = expand("layers,L1.attn,L2.attn,L1.mlp,L2.mlp,L1.H0,L1.H1,L2.H0,L3.H2", lens.dims), (2, 4, 12)
    prompts = [GenerateRequest((1, 2, 3, 10 + n), (), n) for n in lengths]
    wanted = Engine(lens, path="padded_rows", progress=False).generate_until(prompts, conditions)
    dims, sizes = lens.dims, []
    per_token = 2 * dims.n_layers * dims.n_kv_heads * dims.d_head * lens.dtype.itemsize
    few = Engine(lens, progress=False)
    few.budget = replace(few.budget, key_bytes=at_once * per_token * (3 + len(prompts) * (1 + max(lengths))))
    note = lens.arch.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(args[0])) if args[0].shape[1] == 1 else None, with_kwargs=True
    )
    assert few.generate_until(prompts, conditions) == wanted
    note.remove()
    assert max(sizes) <= at_once * len(prompts)
    groups = -(-len(conditions) // at_once)
    apart = groups * (max(lengths) - 1)  # steps, if conditions were written in groups that fit
    assert len(sizes) == apart if at_once == 1 else len(sizes) < apart
