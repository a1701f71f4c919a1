"""Budgets follow the memory that is free."""

import psutil
import pytest
import tiny
import torch

from depthlens import budget
from depthlens.engine import Engine


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa")


def with_free(monkeypatch, n_bytes):
    monkeypatch.setattr(budget, "free_bytes", lambda device: n_bytes)


def test_plenty_of_memory_gives_what_is_fastest_on_a_cpu(lens, monkeypatch):
    with_free(monkeypatch, 1 << 40)
    chosen = budget.choose(lens)
    assert chosen == budget.Budget(budget.CPU_BATCH_TOKENS, budget.CPU_STATE_BYTES, budget.CPU_KEY_BYTES)


def test_little_memory_gives_less_of_everything_and_never_nothing(lens, monkeypatch):
    with_free(monkeypatch, 1 << 22)
    chosen = budget.choose(lens)
    assert budget.MIN_BATCH_TOKENS < chosen.batch_tokens < budget.CPU_BATCH_TOKENS
    assert chosen.batch_tokens * budget.chunk_bytes(lens) <= 1 << 20
    assert (chosen.state_bytes, chosen.key_bytes) == (1 << 19, 1 << 20)
    with_free(monkeypatch, 0)
    assert budget.choose(lens).batch_tokens == budget.MIN_BATCH_TOKENS


def test_what_the_user_asks_for_is_taken(lens, monkeypatch):
    with_free(monkeypatch, 1 << 22)
    assert budget.choose(lens, 5).batch_tokens == 5
    assert Engine(lens, batch_tokens=5, progress=False).batch_tokens == 5


def test_a_gpu_gets_its_share_of_what_is_free_and_no_fixed_cap_on_keys(lens, monkeypatch):
    with_free(monkeypatch, 64 << 30)
    sizes = {"dims": lens.dims, "dtype": lens.dtype, "arch": lens.arch}
    gpu = type("Lens", (), {"device": torch.device("cuda"), "remote": None, **sizes})
    chosen = budget.choose(gpu)
    assert chosen == budget.Budget(budget.GPU_BATCH_TOKENS, 8 << 30, 16 << 30)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_chunk_holds_at_least_what_its_widest_product_writes(family):
    lens = tiny.lens(family)
    assert budget.chunk_bytes(lens) >= 4 * (8 * lens.dims.d_model + 4 * lens.dims.n_heads * lens.dims.d_head)


def test_free_memory_of_this_machine():
    assert 0 < budget.free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total
