"""Reasoning scores: against the removal of heads by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from by_hand import logprobs

from depthlens.errors import UserError
from depthlens.experiments import worked_solutions
from depthlens.experiments.attribution import attribute
from depthlens.experiments.reasoning_heads import reasoning_scores

LOSS_TOLERANCE = 1e-4  # nats; differences of two float32 log-probabilities, computed in another batch layout


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def reasoning(lens):
    options = {"limit": 3, "num_fewshot": 0, "progress": False}
    return {
        method: reasoning_scores(lens, "arithmetic_cot", method=method, **options)
        for method in ("exact", "attribution")
    }


def test_reasoning_losses_are_those_of_removal_by_hand(lens, reasoning):
    solved = worked_solutions.worked_solutions(lens, "arithmetic_cot", limit=3, num_fewshot=0)
    found = reasoning["exact"]
    for head in [(0, 1), (3, 2)]:
        by_kind = {kind: [] for kind in worked_solutions.KINDS}
        for solution in solved:
            lost = logprobs(lens, solution.text.tokens) - logprobs(lens, solution.text.tokens, [head])
            for kind in worked_solutions.KINDS:
                positions = [p - 1 for s in solution.spans if s.kind == kind for p in range(s.start, s.end)]
                by_kind[kind].append(lost[positions].mean())
        for kind in worked_solutions.KINDS:
            assert getattr(found, kind).values[head] == pytest.approx(np.mean(by_kind[kind]), abs=LOSS_TOLERANCE)
        gap = np.subtract(by_kind["computed"], by_kind["copied"])
        assert found.contrast.values[head] == pytest.approx(gap.mean(), abs=2 * LOSS_TOLERANCE)
        half = 4.302653 * gap.std(ddof=1) / np.sqrt(3)  # t quantile for 2 degrees of freedom
        assert found.contrast.high[head] - found.contrast.values[head] == pytest.approx(half, rel=0.01)
    assert np.abs(found.computed.values).max() > 10 * LOSS_TOLERANCE
    clean = [logprobs(lens, s.text.tokens) for s in solved]
    text = [
        np.mean([c[p - 1] for span in s.spans if span.kind == "text" for p in range(span.start, span.end)])
        for s, c in zip(solved, clean, strict=True)
    ]
    assert found.record["baseline"]["text"]["nats_per_token"] == pytest.approx(np.mean(text), abs=LOSS_TOLERANCE)


def test_attributed_reasoning_scores_add_up_to_the_attribution_of_the_whole(lens, reasoning):
    found = reasoning["attribution"]
    assert found.record["baseline"]["text"]["nats_per_token"] == pytest.approx(
        reasoning["exact"].record["baseline"]["text"]["nats_per_token"], abs=LOSS_TOLERANCE
    )
    solved = worked_solutions.worked_solutions(lens, "arithmetic_cot", limit=3, num_fewshot=0)
    assert all(s.n_unclear == 0 for s in solved)  # so that the three kinds are all tokens
    whole, _ = attribute(lens, [s.text.request for s in solved])
    by_solution = [reasoning_scores_of(lens, s) for s in solved]
    assert np.allclose(by_solution, -whole.numpy(), atol=LOSS_TOLERANCE)
    with pytest.raises(UserError, match="weights do not fit"):
        attribute(lens, [solved[0].text.request], weights=[[1.0]])


def reasoning_scores_of(lens, solution):
    """Attributed loss summed over the tokens of all kinds."""
    from depthlens.experiments.reasoning_heads import weighted_tokens

    requests, weights = zip(*(weighted_tokens(solution, kind) for kind in worked_solutions.KINDS), strict=True)
    return -attribute(lens, requests, weights=weights)[0].numpy().sum(0)


def test_bad_reasoning_requests_are_refused(lens):
    for task, options, message in [
        ("arithmetic_cot", {"method": "copy"}, "unknown method 'copy'"),
        ("capitals_continuation", {}, "worked solutions need a generative task"),
        ("capitals_generative", {}, "has a number that does not occur before it"),
    ]:
        with pytest.raises(UserError, match=message):
            reasoning_scores(lens, task, limit=2, progress=False, **options)
