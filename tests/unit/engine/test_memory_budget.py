"""Budgets follow the memory that is free."""

import psutil
import pytest
import tiny
import torch

from depthlens.engine import memory_budget
from depthlens.engine.engine import Engine
from depthlens.models.lens import Lens


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa")


def with_free(monkeypatch, n_bytes):
    monkeypatch.setattr(memory_budget, "free_bytes", lambda device: n_bytes)


def test_plenty_of_memory_gives_what_is_fastest_on_a_cpu(lens, monkeypatch):
    with_free(monkeypatch, 1 << 40)
    chosen = memory_budget.choose(lens)
    assert chosen == memory_budget.Budget(
        memory_budget.CPU_BATCH_TOKENS, memory_budget.CPU_STATE_BYTES, memory_budget.CPU_KEY_BYTES
    )


def test_little_memory_gives_less_of_everything_and_never_nothing(lens, monkeypatch):
    with_free(monkeypatch, 1 << 22)
    chosen = memory_budget.choose(lens)
    assert memory_budget.MIN_BATCH_TOKENS < chosen.batch_tokens < memory_budget.CPU_BATCH_TOKENS
    assert chosen.batch_tokens * memory_budget.chunk_bytes(lens) <= 1 << 20
    assert (chosen.state_bytes, chosen.key_bytes) == (1 << 19, 1 << 20)
    with_free(monkeypatch, 0)
    assert memory_budget.choose(lens).batch_tokens == memory_budget.MIN_BATCH_TOKENS


def test_what_the_user_asks_for_is_taken(lens, monkeypatch):
    with_free(monkeypatch, 1 << 22)
    assert memory_budget.choose(lens, 5).batch_tokens == 5
    assert Engine(lens, batch_tokens=5, progress=False).batch_tokens == 5


def test_a_gpu_gets_its_share_of_what_is_free_and_no_fixed_cap_on_keys(lens, monkeypatch):
    with_free(monkeypatch, 64 << 30)
    monkeypatch.setattr(Lens, "device", torch.device("cuda"))
    chosen = memory_budget.choose(lens)
    assert chosen == memory_budget.Budget(memory_budget.GPU_BATCH_TOKENS, 8 << 30, 16 << 30)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_chunk_holds_at_least_what_its_widest_product_writes(family):
    lens = tiny.lens(family)
    assert memory_budget.chunk_bytes(lens) >= 4 * (8 * lens.dims.d_model + 4 * lens.dims.n_heads * lens.dims.d_head)


def test_free_memory_of_this_machine():
    assert 0 < memory_budget.free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total
