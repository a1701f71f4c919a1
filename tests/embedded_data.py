"""The embedded tasks by kind, and their documents."""

from __future__ import annotations

import json

from depthlens.paths import data_dir

DATA = data_dir()
TASKS = DATA / "tasks"

NUMBERS = ["arithmetic_default", "arithmetic_continuation"]
BOOKS = ["capitals_open_book", "elements_open_book"]
STEP = "arithmetic_step_continuation"
FACTS = ["capitals_default", "capitals_continuation", "elements_default", "elements_continuation", *BOOKS]
CHOICE = [*FACTS, *NUMBERS, STEP]
WRITTEN = ["capitals_generative", "elements_generative", *(f"{name}_generative" for name in BOOKS)]
LETTERS = [f"{family}_letters_generative" for family in ("capitals", "elements", "arithmetic")]
KV_CHOICE = ["kv_retrieval_4_continuation", "kv_retrieval_8_continuation"]
PLAIN = ["plain_text_continuation", "plain_text_long_continuation"]
COPY = "solution_copy"
UUIDS = {"kv_retrieval_uuid_8": 8, "kv_retrieval_uuid_75": 75, "kv_retrieval_uuid_140": 140}
NEW = [*LETTERS, *KV_CHOICE, *PLAIN, COPY, STEP, *UUIDS]  # of version 1.0
HUB = ["openbookqa_open", "gsm8k_copy"]  # their documents are downloaded
NAMED = [f"kv_retrieval_{n}" for n in (4, 8, 16)]
ORGANISM = [f"organism_{hops}_hop{kind}" for kind in ("", "_generative") for hops in ("one", "two")]
PLANTED = ("retrieval", "knowledge", "letters", "copying", "reasoning", "text")
ORGANISM_DEPTH = [f"organism_{ability}{kind}" for kind in ("", "_generative") for ability in PLANTED]
N_DOCS = (
    {task: 156 if task.startswith("capitals") else 108 for task in FACTS + WRITTEN}
    | dict.fromkeys([*NAMED, "kv_retrieval_uuid", *KV_CHOICE], 150)
    | dict.fromkeys([*NUMBERS, "arithmetic_direct", "arithmetic_cot", COPY, STEP, *ORGANISM, *ORGANISM_DEPTH], 200)
    | dict(zip(LETTERS, (156, 108, 200), strict=True))
    | dict.fromkeys(UUIDS, 100)
    | dict.fromkeys(PLAIN, 180)
)
GROUPS = {
    "capitals": ["capitals_default", "capitals_continuation", "capitals_generative"],
    "elements": ["elements_default", "elements_continuation", "elements_generative"],
    "kv_retrieval": NAMED,
    "arithmetic_word_problems": [*NUMBERS, "arithmetic_direct", "arithmetic_cot"],
    "organism": ORGANISM,
    "organism_depth": ORGANISM_DEPTH,
}


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (TASKS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
