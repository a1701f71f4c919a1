"""The documents of the embedded tasks: generated as committed, right, balanced, and not solved without reading."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import operator
import re
from collections import Counter

import gsm8k
import pytest

from depthlens.paths import data_dir

DATA = data_dir()
TASKS = DATA / "tasks"

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
SPLITS = pytest.mark.parametrize("split", ["test", "fewshot"])
# of all documents and facts, in the order of their paths; a change of one changes numbers of users
SHA256 = "74f5a3b58630b92031ae7ba652f06aed78ba625ccaaccbaf27dd8ba3cf60fff3"


def test_the_worked_problems_of_the_tests_are_right():
    problems = [json.loads(line) for line in gsm8k.DOCUMENTS.read_text(encoding="utf-8").splitlines()]
    assert len({problem["question"] for problem in problems}) == 20
    for problem in problems:
        steps = re.findall(r"<<([-+*/.\d]+)=([.\d]+)>>([,.\d]*\d)", problem["answer"])
        assert len(steps) == problem["answer"].count("<<") > 1
        for sum_, result, written in steps:
            assert float(result) == float(written.replace(",", "")) == eval(sum_), problem  # digits and signs alone
        assert problem["answer"].endswith(f"#### {steps[-1][1]}")


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate", DATA / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (TASKS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def right(doc: dict) -> str:
    return doc["choices"][doc["answer"]]


def test_documents_are_those_of_the_release_and_generated(generator):
    """Numbers of users depend on every letter: who changes one changes the hash, and a line of the changelog."""
    files = sorted([*TASKS.glob("**/*.jsonl"), *(DATA / "facts").iterdir(), *(DATA / "texts").iterdir()])
    assert hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest() == SHA256
    assert generator.main(["--check"]) == 0


@SPLITS
def test_word_problems_and_what_is_made_of_them(split):
    """Every step is right and leads to the answer, which no number of the problem is; options and copies follow."""
    kinds = [read(f"arithmetic/{kind}{split}") for kind in ("", "choice_", "step_", "copy_")]
    for doc, choice, step, copy in zip(*kinds, strict=True):
        stated = re.findall(r"\d+", doc["question"])
        numbers, steps = [int(number) for number in stated], STEP.findall(doc["solution"])
        assert len(steps) == doc["n_steps"] == len(doc["solution"].splitlines())
        for left, sign, other, result in steps:
            assert int(left) in numbers and int(other) in numbers, doc
            assert OPERATIONS[sign](int(left), int(other)) == int(result), doc
            numbers.append(int(result))
        assert doc["answer"] == steps[-1][3] == right(choice) and doc["answer"] not in stated
        assert {*stated} <= {n for a, _, b, _ in steps for n in (a, b)}
        assert len({*choice["choices"]}) == 4 and not {*choice["choices"]} & {*stated}
        equations = [STEP.fullmatch(text).groups() for text in step["choices"]]
        assert all(OPERATIONS[sign](int(a), int(b)) == int(c) for a, sign, b, c in equations)
        assert [i for i, equation in enumerate(equations) if equation[3] == doc["answer"]] == [step["answer"]]
        assert doc["solution"].startswith(f"{step['before']} {right(step)}")
        assert choice["question"] == step["question"] == copy["question"] == doc["question"]
        assert len(copy["text"]) == len(doc["solution"]) and re.findall(r"\d+", copy["text"])[-1] == copy["answer"]
        for a, b, c in re.findall(r"(\d+) & (\d+) : (\d+)", copy["text"]):
            assert all(OPERATIONS[sign](int(a), int(b)) != int(c) for sign in OPERATIONS), "nothing is calculated"
        assert len(re.findall(rf"(?<!\d){copy['answer']}(?!\d)", f"{copy['question']} {copy['text']}")) == 1
    assert split == "fewshot" or Counter(doc["n_steps"] for doc in kinds[0]) == {1: 100, 2: 100}
