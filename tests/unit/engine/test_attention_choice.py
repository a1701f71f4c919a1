"""The kernel of tree attention is the first that agrees with plain attention."""

import pytest
import torch

from depthlens.engine import tree_attention
from depthlens.engine.branch_attention import fused, unfused
from depthlens.engine.tree_attention import TREES, Case, is_right, kernel, part_kernel

CASE = Case(torch.device("cpu"), torch.float32, 4, 2, 8, 8)
LATENT = Case(torch.device("cpu"), torch.float32, 4, 4, 16, 12)


@pytest.fixture(autouse=True)
def fresh():
    """No trial before, and none that stays."""
    is_right.cache_clear()
    yield
    is_right.cache_clear()


def changed(monkeypatch, change):
    """A kernel that computes what the fused one does, and then something else."""

    class Changed:
        def __init__(self, *about):
            self.tree = real(*about)

        def attention(self, *args):
            return change(self.tree.attention(*args))

    real = TREES["fused"]
    monkeypatch.setitem(TREES, "fused", Changed)


def broken(out):
    raise RuntimeError("no kernel image is available")


def too_large(out):
    raise torch.OutOfMemoryError("out of memory")


def test_a_cpu_gets_the_fused_kernel_and_latent_attention_the_written_out_one():
    assert kernel(CASE) == "fused" and part_kernel(CASE) is fused
    assert kernel(LATENT) == "unfused" and part_kernel(LATENT) is unfused


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_kernel_is_right_in_every_precision(dtype):
    case = Case(CASE.device, dtype, 4, 2, 8, 8)
    assert is_right(case, "fused") and is_right(case, "unfused")


@pytest.mark.parametrize(
    "change", [lambda out: out * 1.01, lambda out: torch.cat([out[:1] + (len(out) > 1), out[1:]]), broken]
)
def test_a_kernel_that_is_wrong_or_raises_is_not_used(monkeypatch, change):
    changed(monkeypatch, change)
    assert kernel(CASE) == "unfused" and part_kernel(CASE) is unfused


def test_lack_of_memory_says_nothing_about_a_kernel(monkeypatch):
    changed(monkeypatch, too_large)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            kernel(CASE)
    monkeypatch.undo()
    assert tree_attention.kernel(CASE) == "fused"
