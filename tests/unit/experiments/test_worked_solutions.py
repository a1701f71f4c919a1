"""Worked solutions: which numbers are computed and which are copied, and the tokens of each."""

from __future__ import annotations

from decimal import Decimal

from depthlens.experiments import worked_solutions
from depthlens.tasks import token_spans


def test_numbers_of_a_solution_are_computed_or_copied():
    question = "Question: Ann has 53 pens, gives away 12 and buys 17. Two friends help.\nAnswer:"
    solution = " There are 53 - 12 = 41.\nThen 41 + 17 = 58, or 1,058.5 with 2 of 7th at 12 = 12 and 99.\n#### 58"
    found = [
        (solution[a:b], kind) for a, b, kind in worked_solutions.kinds(solution, question, examples="Question: 99\n\n")
    ]
    assert found == [
        ("53", "copied"), ("12", "copied"), ("41", "computed"), ("41", "copied"), ("17", "copied"), ("58", "computed"),
        ("1,058.5", "computed"), ("2", None), ("12", "copied"), ("12", None), ("99", None), ("58", "copied"),
    ]  # fmt: skip
    gsm8k = "48/2 = <<48/2=24>>24 clips, 48+24 = <<48+24=72>>72.\n#### 72"
    kinds = [kind for _, _, kind in worked_solutions.kinds(gsm8k, "48 clips to 2 friends")]
    assert kinds == ["copied"] * 4 + ["computed"] + ["copied"] * 5 + ["computed"] + ["copied"] * 2
    assert [v for *_, v in worked_solutions.numbers("$1,234.50. A4 7th 3")] == [Decimal("1234.50"), Decimal(3)]


def test_spans_cover_the_solution_and_results_know_their_operands(lens):
    for solution in worked_solutions.worked_solutions(lens, "arithmetic_cot", limit=4, num_fewshot=1):
        tokens, n = solution.text.tokens, len(solution.text.request.context)

        def read(positions, tokens=tokens):
            return lens.tokenizer.decode([tokens[p] for p in positions])

        covered = [p for s in solution.spans for p in range(s.start, s.end)]
        assert covered == sorted(set(covered)) and covered[0] == n
        assert len(covered) == len(tokens) - n - sum(  # one byte a token: only unclear numbers are left out
            end - start for start, end, kind in worked_solutions.kinds(
                solution.text.continuation, *_question_and_examples(solution)) if kind is None
        )  # fmt: skip
        assert all(read(range(s.start, s.end)).isdigit() for s in solution.spans if s.kind != "text")
        assert not any(c.isdigit() for s in solution.spans if s.kind == "text" for c in read(range(s.start, s.end)))
        assert "Question:" in read(solution.question) and read(solution.question).count("Question:") == 1
        for request in map(solution.request, solution.spans):
            assert (*request.context, *request.continuation) == tokens[
                : len(request.context) + len(request.continuation)
            ]
    text = token_spans.align(
        lens, "test", "Q: 3 bags of 9, minus 21?\nA:", " 3 * 9 = 27.\n27 - 21 = 6.\nWith 4: 6 + 27 = 33."
    )
    found = worked_solutions.take_apart(0, text, "Q: 3 bags of 9, minus 21?\nA:")

    def letters(positions):
        return "".join((text.context + text.continuation)[p] for p in positions)

    told = [(letters(r.tokens), letters(r.operands), letters(r.previous)) for r in found.results]
    # 4 is new, so the rule calls it computed, and what comes after it on its line starts afresh
    assert told == [("27", "39", ""), ("6", "2721", "27"), ("4", "", "6"), ("33", "627", "4")]


def _question_and_examples(solution):
    at = solution.text.context.rindex("Question:")
    return solution.text.context[at:], solution.text.context[:at]
