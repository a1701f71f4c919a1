"""The problems that are solved up to their last step: four right equations, one of which is the next step."""

from __future__ import annotations

import operator
import re

import pytest
from embedded_data import read

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


class TestStepChoices:
    @pytest.mark.parametrize("split", ["test", "fewshot"])
    def test_the_solution_is_cut_before_its_last_equation(self, split):
        steps, written = read(f"arithmetic/step_{split}.jsonl"), read(f"arithmetic/{split}.jsonl")
        for a, b in zip(steps, written, strict=True):
            assert (a["question"], a["n_steps"]) == (b["question"], b["n_steps"])
            assert b["solution"].startswith(f"{a['before']} {a['choices'][a['answer']]}")
            assert len(re.findall("=", a["before"])) == a["n_steps"] - 1

    @pytest.mark.parametrize("split", ["test", "fewshot"])
    def test_every_equation_is_right_and_one_leads_to_the_answer(self, split):
        steps, written = read(f"arithmetic/step_{split}.jsonl"), read(f"arithmetic/{split}.jsonl")
        for doc, solved in zip(steps, written, strict=True):
            equations = [re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", choice).groups() for choice in doc["choices"]]
            assert len(set(equations)) == 4
            for left, sign, right, result in equations:
                assert OPERATIONS[sign](int(left), int(right)) == int(result), doc
            assert [i for i, equation in enumerate(equations) if equation[3] == solved["answer"]] == [doc["answer"]]

    def test_correct_position_is_balanced_from_the_start(self):
        places = [doc["answer"] for doc in read("arithmetic/step_test.jsonl")]
        for start in range(0, len(places), 4):
            assert sorted(places[start : start + 4]) == [0, 1, 2, 3]
