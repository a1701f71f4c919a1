"""A few handwritten documents in the schemas of the hub's data sets, in folders that `datasets` takes for them.

`datasets.load_dataset("cais/mmlu", "anatomy")` reads the folder ``cais/mmlu`` of the working directory where there is
one. lm-eval's own YAML files, prompts, filters and metrics therefore run on these documents without a network.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import lm_eval

SUBJECTS = sorted(
    match[1]
    for path in (Path(lm_eval.__file__).parent / "tasks/mmlu/default").glob("mmlu_*.yaml")
    if (match := re.search(r"dataset_name\W+(\w+)", path.read_text()))
)
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Peru": "Lima", "Kenya": "Nairobi"}


def mmlu(subject: str) -> dict[str, list[dict[str, Any]]]:
    cities = list(CAPITALS.values())

    def doc(i: int, country: str) -> dict[str, Any]:
        others = [city for city in cities if city != CAPITALS[country]][i : i + 3]
        choices = [*others[: i % 4], CAPITALS[country], *others[i % 4 :]]
        question = f"What is the capital of {country}, in {subject.replace('_', ' ')}?"
        return {"question": question, "subject": subject, "choices": choices, "answer": i % 4}

    docs = [doc(i % 3, country) for i, country in enumerate(CAPITALS)]
    # of one subject a means can be taken, because most of its documents are not evaluated
    more = [docs[i % 3] | {"question": f"{i}. {docs[i % 3]['question']}"} for i in range(9)]
    return {
        "test": docs[:3] + (more if subject == "miscellaneous" else []),
        "validation": docs[:1],
        "dev": [doc | {"question": f"Once more: {doc['question']}"} for doc in docs[:5]],
    }


def hellaswag() -> dict[str, list[dict[str, Any]]]:
    said = [
        (
            "Baking bread",
            "A baker kneads dough. She",
            ["puts it in the oven.", "sings to a car.", "flies.", "is blue."],
        ),
        ("Swimming", "A boy dives into a pool. He", ["eats the pool.", "swims to the edge.", "is a chair.", "rains."]),
        ("Gardening", "A man digs a hole. Then he", ["reads the sky.", "sells a fish.", "plants a tree.", "is two."]),
    ]
    docs = [
        {
            "ind": i, "activity_label": label, "ctx_a": ctx.rpartition(". ")[0] + ".", "ctx_b": ctx.rpartition(". ")[2],
            "ctx": ctx, "endings": endings, "source_id": f"activitynet~{i}", "split": "val",
            "split_type": "indomain", "label": str(i),
        }
        for i, (label, ctx, endings) in enumerate(said)
    ]  # fmt: skip
    return {"train": docs, "validation": docs, "test": [doc | {"label": ""} for doc in docs]}


def openbookqa(*, with_facts: bool) -> dict[str, list[dict[str, Any]]]:
    said = [
        ("What melts in the sun?", ["ice", "stone", "iron", "glass"], "A", "ice melts when it is warm"),
        ("What do plants need?", ["shoes", "light", "salt", "noise"], "B", "a plant needs light to grow"),
        ("What falls from clouds?", ["sand", "milk", "rain", "leaves"], "C", "rain falls from clouds"),
    ]
    docs = []
    for i, (question, texts, answer, fact) in enumerate(said):
        choices = {"text": texts, "label": ["A", "B", "C", "D"]}
        doc = {"id": f"7-{i}", "question_stem": question, "choices": choices, "answerKey": answer}
        facts = {"fact1": fact, "humanScore": 1.0, "clarity": 2.0, "turkIdAnonymized": "b356d338b7"}
        docs.append(doc | (facts if with_facts else {}))
    train = [doc | {"id": f"8-{i}", "question_stem": f"{i}. {doc['question_stem']}"} for i in range(4) for doc in docs]
    return {"train": train, "validation": docs, "test": docs}


def math_qa() -> dict[str, list[dict[str, Any]]]:
    docs = [
        {
            "Problem": f"A shop sells {n} apples a day. How many does it sell in {days} days?",
            "Rationale": f'"{n} * {days} = {n * days}"',
            "options": f"a ) {n + days} , b ) {n * days} , c ) {n} , d ) {days} , e ) none of these",
            "correct": "b", "annotated_formula": f"multiply({n}, {days})",
            "linear_formula": "multiply(n0,n1)|", "category": "general",
        }
        for n, days in ((12, 3), (7, 5), (20, 4), *((n, 2) for n in range(30, 40)))
    ]  # fmt: skip
    return {"train": docs[3:], "validation": docs[:3], "test": docs[:3]}


def gsm8k() -> dict[str, list[dict[str, Any]]]:
    docs = [
        {
            "question": f"Ann has {a} books and buys {b} more. How many books does she have?",
            "answer": f"She has {a} + {b} = <<{a}+{b}={a + b}>>{a + b} books.\n#### {a + b}",
        }
        for a, b in ((1200, 34), (5, 6), (17, 8), *((a, 5) for a in range(40, 60)))
    ]
    return {"train": docs[2:], "test": docs[:3]}


def c4() -> dict[str, list[dict[str, Any]]]:
    docs = [
        {"text": f"A page about {country}. Its capital is {city}, where many people live.",
         "timestamp": "2019-04-25T12:57:54Z", "url": f"https://example.org/{i}"}
        for i, (country, city) in enumerate(CAPITALS.items())
    ]  # fmt: skip
    return {"train": docs[:2], "validation": docs[2:]}


DATA_SETS = {
    "cais/mmlu": {subject: mmlu(subject) for subject in SUBJECTS},
    "Rowan/hellaswag": {"default": hellaswag()},
    "allenai/openbookqa": {"main": openbookqa(with_facts=False), "additional": openbookqa(with_facts=True)},
    "regisss/math_qa": {"default": math_qa()},
    "openai/gsm8k": {"main": gsm8k()},
    "allenai/c4": {"en": c4()},
}


def write(folder: Path) -> Path:
    """Write all data sets; a process whose working directory this is finds them instead of the hub's."""
    for name, configs in DATA_SETS.items():
        lines = ["---", "configs:"]
        for config, splits in configs.items():
            lines += [f"- config_name: {config}", "  data_files:"]
            for split, docs in splits.items():
                text = "".join(json.dumps(doc) + "\n" for doc in docs)
                # `datasets` keeps what it once read under the names of the files, whatever they hold by now
                file = f"{config}/{split}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"
                path = folder / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                lines.append(f"  - {{split: {split}, path: {file}}}")
        (folder / name / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
    return folder
