"""What the YAML files beside this one call: read or draw documents, draw examples, and judge a short written answer.

Imported by lm-eval through `!function utils.<name>`, so it stands alone: it may not import depthlens.
"""

from __future__ import annotations

import json
import re
import unicodedata
import uuid
from pathlib import Path
from random import Random
from typing import Any

import datasets
from lm_eval.api.samplers import ContextSampler

HERE = Path(__file__).resolve().parent
N_FEWSHOT = 8  # of the documents that are drawn here

_APOSTROPHES_AND_DOTS = re.compile(r"['’‘`´ʻʼ.]")
# "The capital of France is Paris": what stands before the answer when a model writes a sentence.
_LEAD = re.compile(r"^\W*(?:the )?(?:answer|capital|chemical symbol|symbol)\b(?:.*?\bis\b|:)", re.IGNORECASE)
# A clause ends at a comma, bracket or full stop, but not at the full stop of "St. John's" or "D.C.".
_CLAUSE_END = re.compile(r"[,;:(]|(?<=\w{3})\.")


def load(test: str = "", fewshot: str = "", **drawn: Any) -> dict[str, datasets.Dataset]:
    """Documents of the splits that are named, relative to this folder. lm-eval adds the task's metadata.

    Without names they are drawn by `key_value_pairs`.
    """
    names = {"test": test, "fewshot": fewshot}
    return {split: _read(name) for split, name in names.items() if name} if test else key_value_pairs(**drawn)


def _read(name: str) -> datasets.Dataset:
    with (HERE / name).open(encoding="utf-8") as file:
        return datasets.Dataset.from_list([json.loads(line) for line in file])


def key_value_pairs(n_pairs: int, positions: list[int], n_documents: int, **_: object) -> dict[str, datasets.Dataset]:
    """Documents with pairs of random UUIDs, one of which is asked for; drawn anew at every load, always the same ones.

    Args:
        n_pairs: Pairs of a document.
        positions: Places of the asked key among them, in turn.
        n_documents: Test documents; 8 more are for examples.
    """
    random = Random(f"key-value pairs {n_pairs}")

    def uuids() -> list[str]:
        return [str(uuid.UUID(int=random.getrandbits(128), version=4)) for _ in range(n_pairs)]

    docs = []
    for i in range(n_documents + N_FEWSHOT):
        keys, values, position = uuids(), uuids(), positions[i % len(positions)]
        asked = {"key": keys[position], "answer": values[position], "position": position, "n_pairs": n_pairs}
        docs.append({"keys": keys, "values": values, **asked})
    splits = {"test": docs[:n_documents], "fewshot": docs[n_documents:]}
    return {split: datasets.Dataset.from_list(part) for split, part in splits.items()}


class SameForAll(ContextSampler):
    """Few-shot examples that depend on the seed (lm-eval's ``fewshot_random_seed``) and on nothing else.

    Seed 0 takes the first n examples of the file, whose order was chosen by hand, seed 1 the next n, and so on: seeds
    share no example until the file is used up. Then it is shuffled and used again. All documents of a run have the same
    examples.
    """

    seed = 0

    def set_rnd(self, rnd: int | None) -> SameForAll:
        self.seed = rnd or 0
        super().set_rnd(rnd)
        return self

    def sample(self, n: int, eval_doc: dict | None = None, df: list | None = None, **_: object) -> list:
        pool = list(self.fewshot_docs() if df is None else df)
        if eval_doc is not None:
            pool = self.rm_eval_doc(eval_doc, pool)
        assert n <= len(pool), f"{n} examples are asked for, and the file has {len(pool)}"
        again, block = divmod(self.seed, max(1, len(pool) // max(1, n)))
        order = Random(again).sample(pool, len(pool)) if again else pool
        return order[block * n : (block + 1) * n]


def normalise(text: str) -> str:
    """Lower case without diacritics, punctuation or extra spaces: "Port-au-Prince." -> "port au prince"."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    plain = _APOSTROPHES_AND_DOTS.sub("", plain).casefold()
    return re.sub(r"[\W_]+", " ", plain).strip()


def candidates(response: str) -> set[str]:
    """The answer that a response gives: its first line, whole or up to the end of the first clause."""
    line = _LEAD.sub("", response.strip().split("\n")[0]).strip()
    return {normalise(line), normalise(_CLAUSE_END.split(line, maxsplit=1)[0])} - {""}


def exact_match(doc: dict, results: list[str]) -> dict[str, float]:
    """1.0 if the answer written is an accepted one, else 0.0."""
    accepted = {normalise(answer) for answer in doc["accepted"]}
    return {"exact_match": float(bool(candidates(results[0]) & accepted))}


def as_copies(dataset: datasets.Dataset) -> datasets.Dataset:
    """Problems of GSM8K with ``copied`` in place of their solutions: as long, and without a calculation.

    As `copies` in data/generate.py: every whole result becomes another number of as many digits, wherever it occurs,
    and signs between numbers become "&" and ":".
    """
    return dataset.map(lambda doc: {"copied": copyable(doc["answer"], doc["question"])})


def copyable(answer: str, question: str) -> str:
    """A solution of GSM8K, the line of its answer included, that can be copied and not calculated."""
    random = Random(question)
    known = set(re.findall(r"\d+", question + answer))
    for result in dict.fromkeys(re.findall(r"=\s*\$?(\d+)", answer)):
        first = 10 ** (len(result) - 1) if len(result) > 1 else 0
        others = [n for n in range(first, 10 ** len(result)) if str(n) not in known] if len(result) < 5 else []
        other = str(random.choice(others) if others else random.randrange(first, 10 ** len(result)))
        known.add(other)
        answer = re.sub(rf"(?<![\d\0]){result}(?!\d)", f"\0{other}\0", answer)  # marked, lest it be replaced again
    answer = answer.replace("\0", "")
    return re.sub(r"(?<=\d)(\s*)[-+*/](?=\s*\$?\d)", r"\1&", answer).replace("=", ":")
