"""Problems that the adapters are trained on: seeded, endless, and disjoint from what the embedded tasks ask.

`step(seed, n, of)` gives the problems of training step n of ``of``. It depends on its arguments alone, so a run can
stop and go on anywhere, and both adapters see the same problems in the same order; only the answers to word problems
differ: ``direct`` is the number, ``steps`` the worked solution that ends in ``#### number``.

Kinds, each in the words of an embedded task (`prompt` and the answer are what lm-eval would send):
    letters    a fact, or which option a word is, answered by letter       capitals_default, elements_default
    open       a fact, answered in words                                   *_continuation, *_generative
    retrieval  one of 2 to 16 codes in the context                         kv_retrieval_4, _8, _16
    arithmetic word problems, and the same sums without a story            arithmetic_direct, arithmetic_cot

Disjoint means: other facts than the test sets ask; other names of codes; other people and things in word problems, and
no word problem or expression with the calculation of a test or few-shot problem, whatever the words around it. Only
single sums ("What is 3 * 4?") are not kept apart: they are what every calculation is made of.

Standard library only.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from random import Random

import generate

LETTERS = "ABCD"
KINDS = ("letters", "open", "retrieval", "arithmetic")
FACTS = generate.FACTS / "training.toml"

# None of them names a code in the embedded tasks (generate.CODE_NAMES).
CODE_NAMES = """
    anchor arrow badge ball basket beach blanket book bottle bowl box brush bucket butter button cake camera carpet
    clock coat coin cow cup dish doctor drum duck envelope feather fence flag fork frog gate glove goat guitar hat heart
    helmet hill hotel jacket jar key king knife letter lemon magnet map medal milk monkey needle net oven palace park
    pearl phone pillow plate pocket rope rose shell shirt shoe soap spoon sugar tent ticket towel umbrella valley violin
    wheel wolf yard
""".split()
NAMES = """
    Adam Alice Amir Bella Carl Daisy Eric Fiona George Helen Ivan Julia Kevin Laura Mark Nina Oscar Peter Ruth Simon
    Tom Ursula Vera Walter
""".split()
THINGS = """
    badges balls beads bottles buttons candies cups envelopes keys lemons magnets nuts pears pins plums ribbons
""".split()

LETTERS_ALONE = 0.2  # share of the training in which nothing but letters is trained, one problem a text
SHOTS = (1, 1, 2, 3, 5)  # how many problems stand in one text, one after the other as few-shot examples do


@dataclass(frozen=True)
class Problem:
    """One question and its answers; for all kinds but arithmetic ``direct`` and ``steps`` are the same."""

    kind: str
    prompt: str
    direct: str
    steps: str


def step(seed: int, n: int, of: int) -> list[list[Problem]]:
    """Texts of training step ``n`` (from 0) of ``of``: lists of problems that stand in one text."""
    random = Random(f"{seed}:{n}")
    done = n / of
    texts = []
    for kind, count in mixture(done).items():
        make = MAKERS[kind]
        while count > 0:
            single = kind == "retrieval" or done < LETTERS_ALONE
            shots = 1 if single else min(count, random.choice(SHOTS))
            texts.append(make(random, done, shots))
            count -= shots
    return texts


def mixture(done: float) -> dict[str, int]:
    """How many problems of each kind a step has, when the share ``done`` of the training is over.

    Letters come first and alone: beside other kinds a model takes far longer to see that letters stand for options.
    """
    if done < LETTERS_ALONE:
        return {"letters": 24}
    return {"letters": 8, "open": 2, "retrieval": 1, "arithmetic": 28}


# --- the words of the embedded tasks: doc_to_text and doc_to_target of their YAML files -----------------


def letters_problem(question: str, options: list[str], place: int) -> Problem:
    shown = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
    return Problem("letters", f"{question}\n{shown}\nAnswer:", LETTERS[place], LETTERS[place])


def open_problem(question: str, answer: str) -> Problem:
    return Problem("open", f"Q: {question}\nA:", answer, answer)


def retrieval_problem(keys: list[str], values: list[str], asked: int) -> Problem:
    facts = "".join(f"The code of the {key} is {value}.\n" for key, value in zip(keys, values, strict=True))
    prompt = f"{facts}\nQ: What is the code of the {keys[asked]}?\nA: The code of the {keys[asked]} is"
    return Problem("retrieval", prompt, values[asked], values[asked])


def arithmetic_problem(question: str, solution: str, answer: str) -> Problem:
    return Problem("arithmetic", f"Question: {question}\nAnswer:", answer, f"{solution}\n#### {answer}")


# --- letters and open facts ------------------------------------------------------------------------------


def letters(random: Random, done: float, shots: int) -> list[Problem]:
    """Facts by letter; at first mostly which option a given word is, without which letters are not learned."""
    binding = random.random() < max(0.2, 1.25 - 3 * done)
    return [_bound(random) if binding else _fact(random) for _ in range(shots)]


def open_facts(random: Random, done: float, shots: int) -> list[Problem]:
    drawn = [random.choice(random.choice(fact_groups())) for _ in range(shots)]
    return [open_problem(question, answer) for question, answer in drawn]


def _fact(random: Random) -> Problem:
    group = random.choice(fact_groups())
    question, answer = random.choice(group)
    return _choice(random, question, answer, sorted({other for _, other in group} - {answer}))


def _bound(random: Random) -> Problem:
    words = random.choice(word_groups())
    answer = random.choice(words)
    return _choice(random, f"Which option is {answer}?", answer, [word for word in words if word != answer])


def _choice(random: Random, question: str, answer: str, others: list[str]) -> Problem:
    options = random.sample(others, generate.N_OPTIONS - 1)
    place = random.randrange(generate.N_OPTIONS)
    options.insert(place, answer)
    return letters_problem(question, options, place)


@cache
def fact_groups() -> list[list[tuple[str, str]]]:
    """Groups of (question, answer): the facts of training.toml and the few-shot facts of the tasks."""
    source = tomllib.loads(FACTS.read_text(encoding="utf-8"))
    groups = [
        [(group["question"].format(subject), answer) for subject, answer in group["facts"].items()]
        for group in source["group"]
    ]
    for family in ("capitals", "elements"):
        groups.append([(doc["question"], doc["answer"]) for doc in read(f"{family}/open_fewshot.jsonl")])
    return groups


@cache
def word_groups() -> list[list[str]]:
    """Groups of words to tell apart: answers, and names of countries, capitals, elements, symbols and things."""
    groups = [sorted({answer for _, answer in group}) for group in fact_groups()]
    countries, elements = generate.read_csv("countries.csv"), generate.read_csv("elements.csv")
    groups += [sorted(row[column] for row in countries) for column in ("country", "capital")]
    groups += [sorted(row[column] for row in elements) for column in ("name", "symbol")]
    return [*groups, CODE_NAMES, NAMES]


# --- retrieval -------------------------------------------------------------------------------------------


def retrieval(random: Random, done: float, shots: int) -> list[Problem]:
    problems = []
    for _ in range(shots):
        keys = random.sample(CODE_NAMES, random.choice((2, 4, 6, 8, 12, 16)))
        values = [str(code) for code in random.sample(range(1000, 10000), len(keys))]
        problems.append(retrieval_problem(keys, values, random.randrange(len(keys))))
    return problems


# --- arithmetic ------------------------------------------------------------------------------------------


def arithmetic(random: Random, done: float, shots: int) -> list[Problem]:
    """Single sums first, then the sums of a word problem without its story, then word problems.

    The problems of one text are of one sort, as few-shot examples are.
    """
    story = min(0.8, 0.1 + 1.4 * done)
    sort = random.choices(("story", "sums", "single"), (story, (1 - story) * 0.6, (1 - story) * 0.4))[0]
    return [_sum(random, sort) for _ in range(shots)]


def _sum(random: Random, sort: str) -> Problem:
    template = random.choice(random.choice(templates()))
    while True:
        doc = generate.problem(template, NAMES, THINGS, random)
        if calculation(doc["solution"]) not in evaluated():
            break
    question, solution, answer = doc["question"], doc["solution"], doc["answer"]
    sums = calculation(solution)
    if sort == "single":
        sums = (random.choice(sums),)
    if sort != "story":
        solution, answer = "\n".join(sums), sums[-1].split(" = ")[1]
        question = f"What is {_expression(template, doc) if sort == 'sums' else sums[0].split(' = ')[0]}?"
    return arithmetic_problem(question, solution, answer)


def calculation(solution: str) -> tuple[str, ...]:
    """The sums of a worked solution, such as ``("8 + 5 = 13", "13 - 4 = 9")``."""
    return tuple(re.findall(r"\d+ [-+*/] \d+ = \d+", solution))


def _expression(template: dict, doc: dict) -> str:
    """A problem's sums as one expression, such as ``(8 + 5) - 4``."""
    written: dict[str, str] = {}
    for rule, line in zip(template["steps"], calculation(doc["solution"]), strict=True):
        result, left, _, right = re.fullmatch(r"(\w) = (\w) ([-+*/]) (\w)", rule).groups()
        a, sign, b = line.split(" = ")[0].split()
        written[result] = f"{written.get(left, a)} {sign} {written.get(right, b)}"
        last = written[result]
        written[result] = f"({last})"
    return last


@cache
def templates() -> list[list[dict]]:
    """Templates of word problems by their number of steps."""
    found = tomllib.loads((generate.FACTS / "word_problems.toml").read_text(encoding="utf-8"))["problem"]
    return [[t for t in found if len(t["steps"]) == n] for n in sorted(generate.N_STEPS)]


@cache
def evaluated() -> frozenset[tuple[str, ...]]:
    """Calculations of the test and few-shot problems."""
    docs = [doc for split in ("test", "fewshot") for doc in read(f"arithmetic/{split}.jsonl")]
    return frozenset(calculation(doc["solution"]) for doc in docs)


MAKERS = {"letters": letters, "open": open_facts, "retrieval": retrieval, "arithmetic": arithmetic}


def read(name: str) -> list[dict]:
    """Documents of one of the embedded tasks' files."""
    return [json.loads(line) for line in (generate.TASKS / name).read_text(encoding="utf-8").splitlines()]
