"""The kernel of tree attention is chosen by trial: it must agree with plain attention, and the fastest is taken."""

import time

import pytest
import torch

from depthlens.engine import attention_choice
from depthlens.engine.attention_choice import ENVIRONMENT, TREES, Case
from depthlens.engine.attention_parts import fused, unfused

CASE = Case(torch.device("cpu"), torch.float32, 4, 2, 8, 8)
LATENT = Case(torch.device("cpu"), torch.float32, 4, 4, 16, 12)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No trial before, and none that stays."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    attention_choice.trial.cache_clear()
    yield
    attention_choice.trial.cache_clear()


def made(monkeypatch, name, change):
    """A kernel that computes what the fused one does, and then something else."""

    class Changed:
        def __init__(self, *about):
            self.tree = TREES["fused"](*about)

        def attention(self, *args):
            return change(self.tree.attention(*args))

    monkeypatch.setitem(TREES, name, Changed)
    monkeypatch.setattr(attention_choice, "candidates", lambda device: ("fused", name))


def slow(out):
    time.sleep(0.05)
    return out


def broken(out):
    raise RuntimeError("no kernel image is available\nfor execution on the device")


def too_large(out):
    raise torch.OutOfMemoryError("out of memory")


def test_a_cpu_gets_the_fused_kernel_and_latent_attention_the_written_out_one():
    assert attention_choice.kernel(CASE) == "fused" and attention_choice.part_kernel(CASE) is fused
    assert attention_choice.kernel(LATENT) == "unfused" and attention_choice.part_kernel(LATENT) is unfused
    assert "same head size" in attention_choice.trial(LATENT, "fused")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kernel_passes_its_trial_in_every_precision(dtype):
    case = Case(CASE.device, dtype, 4, 2, 8, 8)
    for name in ("fused", "unfused"):  # flex-eager passes where test_tree_attention asks for it
        assert isinstance(attention_choice.trial(case, name), float), name


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda out: out * 1.01, "differs from plain attention by"),
        (lambda out: torch.cat([out[:1] + (len(out) > 1), out[1:]]), "differs from plain attention by 1"),
        (broken, "raised RuntimeError: no kernel image is available"),
    ],
)
def test_a_kernel_that_is_wrong_or_raises_is_not_used(monkeypatch, change, why):
    made(monkeypatch, "quick", change)
    result = attention_choice.trial(CASE, "quick")
    assert result.startswith(why) and "\n" not in result
    assert attention_choice.kernel(CASE) == "fused"


def test_the_fastest_of_those_that_agree_is_used(monkeypatch):
    made(monkeypatch, "slow", slow)
    assert attention_choice.kernel(CASE) == "fused"
    assert attention_choice.trial(CASE, "slow") > 0.05 > attention_choice.trial(CASE, "fused")
    monkeypatch.setattr(attention_choice, "candidates", lambda device: ("slow",))
    assert attention_choice.kernel(CASE) == "slow"


def test_lack_of_memory_says_nothing_about_a_kernel(monkeypatch):
    made(monkeypatch, "large", too_large)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            attention_choice.kernel(CASE)
    made(monkeypatch, "large", lambda out: out)
    assert isinstance(attention_choice.trial(CASE, "large"), float)
