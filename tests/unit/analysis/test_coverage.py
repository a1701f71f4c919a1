"""How often intervals cover the truth and losses are found or called small."""

import made_results
import numpy as np
import pytest
from coverage_cases import CASES, coverage

from depthlens.analysis.layers.blocks import spared

LEAST = 0.92  # that benchmarks/simulations.py finds, of 300 samples and more
SOME = ["change, 3% lost and 1% won", "share of the first third, half of the layers gain (nats)"]
SOME += ["change of L0 (0/1, subjects)"]
FULL = [(case, n, 300) for case in CASES for n in (30, 100, 300)]


TRIED = [*((case, 100, 40) for case in SOME), *(pytest.param(*f, marks=pytest.mark.nightly) for f in FULL)]


@pytest.mark.parametrize(("case", "n", "samples"), TRIED)
def test_coverage(case, n, samples):
    assert coverage(case, n, samples) >= LEAST - 3 * np.sqrt(LEAST * (1 - LEAST) / samples)


def blocks(loss: float, n: int, rng: np.random.Generator, n_blocks: int = 20) -> made_results.Result:
    """Right answers, which each block loses at the same rate."""
    right = rng.random(n) < 0.85
    of_block = {f"L{i}-{i + 1}": right & (rng.random(n) >= loss / 0.85) for i in range(n_blocks)}
    return made_results.result({"t": {"baseline": right} | of_block}, info={"chance": None}, n_layers=n_blocks + 1)


@pytest.mark.parametrize(("n", "samples"), [
    (30, 30), *(pytest.param(n, 200, marks=pytest.mark.nightly) for n in (30, 100, 300)),
])  # fmt: skip
def test_a_loss_at_the_margin_is_rarely_called_smaller(n, samples):
    rng = np.random.default_rng(0)
    wrong = sum(bool(spared(blocks(0.06, n, rng).losses(), 0.06)) for _ in range(samples))
    assert wrong / samples <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / samples)


def test_a_small_loss_is_shown_to_be_small_by_enough_documents():
    rng = np.random.default_rng(0)
    nothing, costly = {n: blocks(0.0, n, rng) for n in (20, 400)}, blocks(0.3, 400, rng)
    assert not spared(nothing[20].losses(), 0.05), "nothing lost on few documents"
    assert len(spared(nothing[400].losses(), 0.05)) == 20 and not spared(costly.losses(), 0.05)
    thrice = made_results.same_documents(nothing[400], times=20)
    assert not spared(thrice.losses(), 0.05), "20 questions, each asked 20 times"
