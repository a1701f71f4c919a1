"""What the YAML files beside this one call: read documents, and judge a short written answer.

Imported by lm-eval through `!function utils.<name>`, so it stands alone: it may not import depthlens.
"""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import datasets

HERE = Path(__file__).resolve().parent

_APOSTROPHES_AND_DOTS = re.compile(r"['’‘`´ʻʼ.]")
# "The capital of France is Paris": what stands before the answer when a model writes a sentence.
_LEAD = re.compile(r"^\W*(?:the )?(?:answer|capital|chemical symbol|symbol)\b(?:.*?\bis\b|:)", re.IGNORECASE)
# A clause ends at a comma, bracket or full stop, but not at the full stop of "St. John's" or "D.C.".
_CLAUSE_END = re.compile(r"[,;:(]|(?<=\w{3})\.")


def load(test: str, fewshot: str, **_: object) -> dict[str, datasets.Dataset]:
    """Documents of the two splits; names are relative to this folder. lm-eval adds the task's metadata."""
    return {"test": _read(test), "fewshot": _read(fewshot)}


def _read(name: str) -> datasets.Dataset:
    with (HERE / name).open(encoding="utf-8") as file:
        return datasets.Dataset.from_list([json.loads(line) for line in file])


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
