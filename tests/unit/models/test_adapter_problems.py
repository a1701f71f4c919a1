"""The problems that the embedded adapters were trained on can be checked, and none is in a test set."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys

import pytest

from depthlens import paths

DATA = paths.data_dir()
TASKS = DATA / "tasks"
STEPS = 260  # of the committed runs


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (TASKS / name).read_text(encoding="utf-8").splitlines()]


def script(name: str):
    """A module of data/, which find each other as scripts do: beside themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DATA))
        return importlib.import_module(name)


problems = script("training_problems")


@pytest.fixture(scope="module")
def drawn() -> list:
    """Every problem that the committed runs train on."""
    steps = [problems.step(0, n, STEPS) for n in range(STEPS)]
    return [problem for texts in steps for shots in texts for problem in shots]


def of(drawn: list, *kinds: str) -> list:
    return [problem for problem in drawn if problem.kind in kinds]


def question(problem) -> str:
    return re.sub(r"^(Q|Question): ", "", problem.prompt).split("\n")[0]


def sums(solution: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+ [-+*/] \d+ = \d+", solution))


class TestProblems:
    def test_no_question_is_one_of_a_test_set_or_a_few_shot_word_problem(self, drawn):
        asked = {doc["question"] for name in ("capitals", "elements") for doc in read(f"{name}/choice_test.jsonl")}
        asked |= {doc["question"] for split in ("test", "fewshot") for doc in read(f"arithmetic/{split}.jsonl")}
        assert len(asked) > 450
        assert not asked & {question(problem) for problem in drawn}

    def test_no_calculation_is_that_of_an_evaluated_problem(self, drawn):
        evaluated = {sums(d["solution"]) for s in ("test", "fewshot") for d in read(f"arithmetic/{s}.jsonl")}
        single = re.compile(r"What is \d+ [-+*/] \d+\?")
        larger = [p for p in of(drawn, "arithmetic") if not single.fullmatch(question(p))]
        assert len(larger) > 3000
        assert not evaluated & {sums(p.steps) for p in larger}

    def test_answers_are_right(self, drawn):
        facts = {q: a for group in problems.fact_groups() for q, a in group}
        for p in of(drawn, "letters"):
            options = dict(re.findall(r"^([A-D])\. (.*)$", p.prompt, re.M))
            bound = re.fullmatch(r"Which option is (.*)\?", question(p))
            assert options[p.direct] == (bound[1] if bound else facts[question(p)])
            assert len(set(options.values())) == 4
        for p in of(drawn, "retrieval"):
            asked = re.search(r"What is the code of the (\w+)\?", p.prompt)[1]
            assert re.findall(rf"code of the {asked} is (\d+)\.", p.prompt) == [p.direct]
        for p in of(drawn, "arithmetic"):
            lines = sums(p.steps)
            for line in lines:
                left, result = line.split(" = ")
                assert eval(left) == int(result), p
            assert p.steps.endswith(f"\n#### {p.direct}") and lines[-1].endswith(f" = {p.direct}")
            if expression := re.fullmatch(r"What is ([-+*/() \d]+)\?", question(p)):
                assert eval(expression[1]) == int(p.direct), p

    def test_a_step_depends_on_seed_and_number_alone(self):
        again = "import training_problems as p; print(p.step(3, 7, 260))"
        done = subprocess.run(
            [sys.executable, "-c", again],
            cwd=DATA,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": "5"},
        )
        assert done.stdout.strip() == str(problems.step(3, 7, STEPS))
        assert problems.step(3, 7, STEPS) != problems.step(4, 7, STEPS) != problems.step(4, 8, STEPS)
