"""Worked solutions: their numbers, and reasoning scores against removal by hand."""

from decimal import Decimal

import numpy as np
import pytest
from by_hand import logprobs
from scipy import stats as sps

from depthlens.experiments import reasoning_heads
from depthlens.experiments.attribution import attribute
from depthlens.experiments.reasoning_heads import reasoning_scores
from depthlens.tasks.encoding import Encoder
from depthlens.tasks.measures import align

LOSS_TOLERANCE = 1e-4  # nats; differences of two float32 log-probabilities, computed in another batch layout


@pytest.fixture(scope="module")
def reasoning(lens):
    options, methods = {"limit": 3, "num_fewshot": 0, "progress": False}, ("exact", "attribution")
    return {method: reasoning_scores(lens, "arithmetic_cot", method=method, **options) for method in methods}


@pytest.fixture(scope="module")
def solved(lens):
    return reasoning_heads.worked_solutions(lens, "arithmetic_cot", limit=3, num_fewshot=0)


def tokens_of(solution, kind):
    """Places of the tokens of a kind among all but the first."""
    return [p - 1 for s in solution.spans if s.kind == kind for p in range(s.start, s.end)]


def test_reasoning_losses_are_those_of_removal_by_hand(lens, reasoning, solved):
    found, clean = reasoning["exact"], [logprobs(lens, s.text.tokens) for s in solved]

    def means(lost, kind):
        """Of the tokens of a kind, by solution."""
        return [x[tokens_of(s, kind)].mean() for s, x in zip(solved, lost, strict=True)]

    for head in [(0, 1), (3, 2)]:
        lost = [whole - logprobs(lens, s.text.tokens, [head]) for s, whole in zip(solved, clean, strict=True)]
        by_kind = {kind: means(lost, kind) for kind in reasoning_heads.KINDS}
        for kind, losses in by_kind.items():
            assert found[kind].values[head] == pytest.approx(np.mean(losses), abs=LOSS_TOLERANCE)
        gap = np.subtract(by_kind["computed"], by_kind["copied"])
        assert found["contrast"].values[head] == pytest.approx(gap.mean(), abs=2 * LOSS_TOLERANCE)
        half = sps.t.ppf(0.975, len(gap) - 1) * sps.sem(gap)
        assert found["contrast"].grid("high")[head] - found["contrast"].values[head] == pytest.approx(half, rel=0.01)
    assert np.abs(found["computed"].values).max() > 10 * LOSS_TOLERANCE
    baseline = found["text"].record["baseline"]["text"]
    assert baseline["nats_per_token"] == pytest.approx(np.mean(means(clean, "text")), abs=LOSS_TOLERANCE)


def test_attributed_reasoning_scores_add_up_to_the_attribution_of_the_whole(lens, reasoning, solved):
    estimated, exact = (reasoning[m]["text"].record["baseline"]["text"] for m in ("attribution", "exact"))
    assert estimated["nats_per_token"] == pytest.approx(exact["nats_per_token"], abs=LOSS_TOLERANCE)
    assert all(s.n_unclear == 0 for s in solved)  # so that the three kinds are all tokens
    whole, _ = attribute(lens, [s.text.request for s in solved])
    for solution, of_whole in zip(solved, whole.numpy(), strict=True):
        weights = [[float(of == kind) for of in solution.kinds] for kind in reasoning_heads.KINDS]
        of_kinds, _ = attribute(lens, [solution.text.request] * len(weights), weights=weights)
        assert np.allclose(of_kinds.numpy().sum(0), of_whole, atol=LOSS_TOLERANCE)


def test_numbers_of_a_solution_are_computed_or_copied():
    question = "Question: Ann has 53 pens, gives away 12 and buys 17. Two friends help.\nAnswer:"
    solution = " There are 53 - 12 = 41.\nThen 41 + 17 = 58, or 1,058.5 with 2 of 7th at 12 = 12 and 99.\n#### 58"
    kinds = reasoning_heads.kinds(solution, question, examples="Question: 99\n\n")
    found = {kind: [solution[a:b] for a, b, of in kinds if of == kind] for kind in ("copied", "computed", None)}
    assert found["copied"] == ["53", "12", "41", "17", "12", "58"]
    assert found["computed"] == ["41", "58", "1,058.5"] and found[None] == ["2", "12", "99"]
    as_gsm8k = "90/3 = <<90/3=30>>30 jars, 90+30 = <<90+30=120>>120.\n#### 120"
    kinds = [kind for _, _, kind in reasoning_heads.kinds(as_gsm8k, "90 jars on 3 shelves")]
    assert kinds == ["copied"] * 4 + ["computed"] + ["copied"] * 5 + ["computed"] + ["copied"] * 2
    assert [v for *_, v in reasoning_heads.numbers("$1,234.50. A4 7th 3")] == [Decimal("1234.50"), Decimal(3)]


def test_spans_cover_the_solution(lens):
    for solution in reasoning_heads.worked_solutions(lens, "arithmetic_cot", limit=4, num_fewshot=1):
        tokens, n = solution.text.tokens, len(solution.text.request.context)

        def read(positions, tokens=tokens):
            return lens.tokenizer.decode([tokens[p] for p in positions])

        covered = [p for s in solution.spans for p in range(s.start, s.end)]
        assert covered == sorted(set(covered)) and covered[0] == n
        left_out = [lens.tokenizer.decode([tokens[p]]) for p in {*range(n, len(tokens))} - {*covered}]
        assert len(left_out) == 0 or (solution.n_unclear and all(c.isdigit() for c in left_out))
        assert all(read(range(s.start, s.end)).isdigit() for s in solution.spans if s.kind != "text")
        assert not any(c.isdigit() for s in solution.spans if s.kind == "text" for c in read(range(s.start, s.end)))
        for request in map(solution.request, solution.spans):
            asked = (*request.context, *request.continuation)
            assert asked == tokens[: len(asked)]
    question, solution = "Q: 3 bags of 9, minus 21?\nA:", " 3 * 9 = 27.\n27 - 21 = 6.\nWith 4: 6 + 27 = 33."
    text = align(Encoder(lens), "test", question, solution)
    found = reasoning_heads.take_apart(0, text, question)
    computed = [(text.context + text.continuation)[s.start : s.end] for s in found.spans if s.kind == "computed"]
    assert computed == ["27", "6", "4", "33"], "4 is new, so that the rule calls it computed"
