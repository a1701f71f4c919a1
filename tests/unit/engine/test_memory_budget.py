"""Budgets follow the memory that is free."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from by_hand import patched

import depthlens as dl
from depthlens.ablations import BASELINE, expand
from depthlens.engine import batches, decoding, work
from depthlens.models.placement import free_bytes
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

CPU = work.Budget(work.CPU_BATCH_TOKENS, work.CPU_STATE_BYTES, work.CPU_KEY_BYTES, work.CPU_UNEMBED_ROWS)


@pytest.mark.parametrize(("device", "free", "budget"), [
    ("cpu", 1 << 40, CPU),
    ("cuda", 64 << 30, work.Budget(work.GPU_BATCH_TOKENS, 8 << 30, 16 << 30, work.GPU_UNEMBED_ROWS)),
    ("cpu", 1 << 22, {"state_bytes": 1 << 19, "key_bytes": 1 << 20}),
    ("cuda", 1 << 27, {"unembed_rows": (1 << 23) // (2 * 4 * tiny.VOCAB)}),
    ("cpu", 0, {"batch_tokens": work.MIN_BATCH_TOKENS, "unembed_rows": 1}),
])  # fmt: skip
def test_budgets_are_shares_of_what_is_free(lens, monkeypatch, device, free, budget):
    monkeypatch.setattr(work, "free_bytes", lambda device: free)
    monkeypatch.setattr(dl.Lens, "device", torch.device(device))
    chosen = work.choose(lens)
    assert chosen == budget if isinstance(budget, work.Budget) else vars(chosen) == vars(chosen) | budget


def test_answers_do_not_depend_on_how_many_positions_are_unembedded_together(lens):
    requests = [LoglikelihoodRequest(tuple(range(i, i + 9)), (5, 6, i)) for i in range(7)]
    prompts = [GenerateRequest(q.context, (), 5) for q in requests]
    conditions = expand("L1,L2.H0", lens.dims)
    engine = dl.Engine(lens, progress=False)
    wanted, texts = engine.loglikelihood(requests, conditions), engine.generate_until(prompts, conditions)
    for rows in (1, 4):
        few = dl.Engine(lens, progress=False)
        few.budget = replace(few.budget, unembed_rows=rows)
        for row, wanted_row in zip(few.loglikelihood(requests, conditions), wanted, strict=True):
            assert [a.logprob for a in row] == pytest.approx([a.logprob for a in wanted_row], abs=1e-4)
            assert [a.is_greedy for a in row] == [a.is_greedy for a in wanted_row]
        assert few.generate_until(prompts, conditions) == texts


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_rows_join_those_that_write_as_these_leave(lens, at_once, monkeypatch):
    """Of 13 conditions few fit into memory: rows of the next are read while those that write for longest still do."""
    conditions, lengths = expand("layers,L1.attn,L2.attn,L1.mlp,L2.mlp,L1.H0,L1.H1,L2.H0,L3.H2", lens.dims), (2, 4, 12)
    prompts = [GenerateRequest((1, 2, 3, 10 + n), (), n) for n in lengths]
    wanted = dl.Engine(lens, path="padded_rows", progress=False).generate_until(prompts, conditions)
    dims, sizes = lens.dims, []
    per_token = 2 * dims.n_layers * dims.n_kv_heads * dims.d_head * lens.dtype.itemsize
    few = dl.Engine(lens, progress=False)
    few.budget = replace(few.budget, key_bytes=at_once * per_token * (3 + len(prompts) * (1 + max(lengths))))

    def noted(x, **kwargs):
        sizes.extend([len(x)] if x.shape[1] == 1 else [])
        return own(x, **kwargs)

    own = patched(monkeypatch, lens.arch.layers[0], noted)
    assert few.generate_until(prompts, conditions) == wanted
    assert max(sizes) <= at_once * len(prompts)
    groups = -(-len(conditions) // at_once) - (at_once == 1)  # alone, rows without layer 0 do not pass it
    apart = groups * (max(lengths) - 1)  # steps, if conditions were written in groups that fit
    assert len(sizes) == apart if at_once == 1 else len(sizes) < apart


def test_memory_that_torch_holds_and_does_not_use_is_free(monkeypatch):
    numbers = {"mem_get_info": (3 << 30, 80 << 30), "memory_reserved": 50 << 30, "memory_allocated": 20 << 30}
    for name, value in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_bytes(torch.device("cuda", 0)) == 33 << 30


def test_a_packed_weight_has_the_width_of_its_numbers(lens, monkeypatch):
    plain, weight = work.chunk_bytes(lens), lens.arch.layers[0].mlp.up_proj.weight
    packed = torch.nn.Parameter(torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = SimpleNamespace(shape=weight.shape)
    monkeypatch.setitem(lens.arch.layers[0].mlp.up_proj._parameters, "weight", packed)
    assert work.chunk_bytes(lens) == plain


@pytest.mark.parametrize("said", ["CUDA error: out of memory", "DefaultCPUAllocator: can't allocate", "std::bad_alloc"])
def test_memory_has_run_out_under_many_names(said):
    def full():
        raise RuntimeError(said)

    assert work.tried(full, smaller=True) is None
    with pytest.raises(RuntimeError):
        work.tried(full, smaller=False)


def test_room_for_texts_grows_with_them_and_what_does_not_fit_is_written_by_halves(lens, monkeypatch):
    prompts = [GenerateRequest((1, 2, 3, 10 + n), (), n) for n in (2, 38, 39, 40)]
    conditions = expand("L1,L2.H0,L3", lens.dims)
    wanted = dl.Engine(lens, path="padded_rows", progress=False).generate_until(prompts, conditions)
    for module in (decoding, batches):
        monkeypatch.setattr(module, "FIRST_ROOM", 3)
    engine, sizes = dl.Engine(lens, progress=False), []
    assert engine.generate_until(prompts, conditions) == wanted
    grown = decoding.WalkedRows.n_bytes.fget
    monkeypatch.setattr(decoding.WalkedRows, "n_bytes", property(lambda rows: sizes.append(grown(rows)) or sizes[-1]))
    cramped = dl.Engine(lens, progress=False)
    cramped.budget = replace(cramped.budget, key_bytes=60_000)
    monkeypatch.setattr(decoding, "GROWTH", 1)
    assert cramped.generate_until(prompts, conditions) == wanted
    assert max(sizes) > 60_000, "all rows at once did not fit"


def test_a_stop_string_is_looked_for_in_the_last_tokens(lens, monkeypatch):
    prompts = [GenerateRequest((1, 2, 3, n), ("never written",), 200) for n in (10, 20)]
    kind, own, lengths = type(lens.tokenizer), type(lens.tokenizer).decode, []
    monkeypatch.setattr(kind, "decode", lambda self, ids, **of: lengths.append(len(ids)) or own(self, ids, **of))
    lens.model.generation_config.eos_token_id = None
    texts = dl.Engine(lens, progress=False).generate_until(prompts, [BASELINE])
    whole = [n for n in lengths if n > 30]
    assert len(whole) == len(texts[0]) and len(lengths) > 100, "each text is decoded whole once"
