"""Published benchmarks without a network: clones of public repositories in, local tasks of lm-eval out.

Usage::

    python benchmarks/real_data.py --mirror CLONES --out FOLDER [--only arc_easy,piqa]
    depthlens sweep smollm2-135m arc_easy --include-path FOLDER --limit 10 --ablate L3 --out DIR

Every task includes the YAML file of the installed lm-eval, so that prompts, filters and metrics are lm-eval's own. It
replaces the data alone, by JSONL files whose fields have the names of the hub's data set. Tasks keep their names: those
of ``--include-path`` take the place of others. What lm-eval lacks is included from depthlens: ``openbookqa_open``,
``gsm8k_copy``, and key-value retrieval with the prompt of Lost in the Middle, here with its own pairs.

``real_data.csv`` says where each split is, how it is read, and the YAML files of its tasks. The number of documents and
the SHA-256 of the bytes that it has are compared.
A clone is ``CLONES/owner+name/repo``, with a work tree or without. docs/howto/without_network.md has the limits.
"""

from __future__ import annotations

import bz2
import csv
import fnmatch
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lm_eval
import typer
import yaml
from lm_eval.tasks._yaml_loader import load_yaml

from depthlens import paths

ROOTS = (Path(lm_eval.__file__).parent / "tasks", paths.tasks_dir())
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


def arc(row: dict) -> dict:
    """Where a question has three choices, the clone has one of the wrong ones a second time, as its first."""
    extra = row["choices"][0] in row["choices"][1:]
    texts, gold = row["choices"][extra:], row["gold"] - extra
    choices = {"text": texts, "label": [*"ABCD"[: len(texts)]]}
    return {"question": row["query"].removeprefix("Question: "), "choices": choices, "answerKey": "ABCD"[gold]}


def boolq(row: dict) -> dict:
    passage, _, question = row["query"].removeprefix("Passage: ").rpartition("\nQuestion: ")
    return {"passage": passage, "question": question.removesuffix("?"), "label": row["gold"]}


def hellaswag(lines: list[str]) -> dict:
    """A sentence that is not complete is ``ctx_b``, which lm-eval begins with a capital letter."""
    activity, context = lines[0].split(": ", 1)
    complete, begun = re.fullmatch(r"(.*[.!?]['\")]*)(?: ([^.!?]+))?", context).groups("")
    return {"activity_label": activity, "ctx_a": complete, "ctx_b": begun, "endings": lines[2:], "label": lines[1]}


def mathqa(row: dict) -> dict:
    """The clone has every a to e of the options as a capital letter, where the data set has small ones alone."""
    problem, options = row["instruction"].split(" The options: ")
    return {"Problem": problem, "options": options.lower(), "correct": row["answer"].lower()}


def lambada(row: dict) -> dict:
    return {"text": f"{row['context']} {row['continuation']}"}


def mmlu(cells: list[str]) -> dict:
    return {"question": cells[0], "choices": cells[1:5], "answer": "ABCD".index(cells[5])}


def openbookqa(row: dict) -> dict:
    question = row.pop("question")
    choices = {key: [choice[key] for choice in question["choices"]] for key in ("text", "label")}
    return {"id": row.pop("id"), "question_stem": question["stem"], "choices": choices, **row}


def piqa(row: dict) -> dict:
    goal, (first, second) = row["query"].removeprefix("Question: ").removesuffix("\n"), row["choices"]
    return {"goal": goal, "sol1": first, "sol2": second, "label": row["gold"]}


def winogrande(row: dict) -> dict:
    same = re.match("(?s)(.* )?", os.path.commonprefix(row["context_options"]))[0]
    options = {f"option{i}": text.removeprefix(same) for i, text in enumerate(row["context_options"], 1)}
    return {"sentence": f"{same}_ {row['continuation']}", **options, "answer": str(row["gold"] + 1)}


def pairs(row: dict) -> dict:
    keys, values = map(list, zip(*row["ordered_kv_records"], strict=True))
    asked = {"key": row["key"], "answer": row["value"], "position": keys.index(row["key"]), "n_pairs": len(keys)}
    return {"keys": keys, "values": values, **asked}


ALL = (arc, boolq, dict, hellaswag, lambada, mathqa, mmlu, openbookqa, pairs, piqa, winogrande)
FORMATS = {make.__name__: make for make in ALL}  # a document of the hub of one of a clone


def read(mirror: Path, source: dict[str, str]) -> dict[str, bytes]:
    """The files of a source, by what stands where its path has a star (a subject)."""
    git = ["git", "-C", mirror / source["repository"].replace("/", "+") / "repo"]
    listed = subprocess.check_output([*git, "ls-tree", "-r", "--name-only", source["commit"]], text=True)
    names = fnmatch.filter(listed.splitlines(), source["path"])
    files = {name: subprocess.check_output([*git, "show", f"{source['commit']}:{name}"]) for name in names}
    found = hashlib.sha256(b"".join(files.values())).hexdigest()
    assert found == source["sha256"], f"{source['path']}: SHA-256 {found}, and not {source['sha256']}"
    before, _, after = source["path"].partition("*")
    return {name[len(before) : len(name) - len(after)]: content for name, content in files.items()}


def rows(path: str, content: bytes) -> Iterable[Any]:
    """The rows of a file by its name: JSON, cells of a table, or lines of which six are a document."""
    unpack = {".bz2": bz2.decompress, ".gz": gzip.decompress}.get(Path(path).suffix, bytes)
    text = unpack(content).decode()
    lines = text.removesuffix("\n").split("\n")
    if ".json" in path:
        return map(json.loads, lines) if ".jsonl" in path else json.loads(text)
    return csv.reader(io.StringIO(text)) if ".csv" in path else map(list, zip(*[iter(lines)] * 6, strict=True))


def write_documents(folder: Path, mirror: Path, source: dict[str, str]) -> dict[str, str]:
    """Write the documents of a split, and say where those of each part of the data set are."""
    document, written, n_documents = FORMATS[source["format"]], {}, 0
    for part, content in read(mirror, source).items():
        documents = [json.dumps(document(row)) + "\n" for row in rows(source["path"], content)]
        place = folder / "data" / source["set"] / part / f"{source['split']}.jsonl"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(documents), encoding="utf-8")
        written[part], n_documents = str(place), n_documents + len(documents)
    assert n_documents == int(source["documents"]), f"{source['path']}: {n_documents}, and not {source['documents']}"
    return written


def write_task(folder: Path, included: Path, splits: dict[str, dict[str, str]]) -> None:
    """Write a task with local documents (files by split and part), or a group of such tasks."""
    config, local = load_yaml(included, resolve_func=False), {"include": str(included)}
    if "group" not in config:
        files = {split: of.get("") or of[config["dataset_name"]] for split, of in splits.items()}
        local |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        local |= {"custom_dataset": None, **{split: None for split in SPLITS if config.get(split) not in files}}
    name = config.get("group") or config["task"]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(local, sort_keys=False), encoding="utf-8")


def main(mirror: Path = Path("clones"), out: Path = Path("real_tasks"), only: str = "") -> None:
    """Write tasks, their documents, and SHA256SUMS of these."""
    folder, sources = out.resolve(), [*csv.DictReader(Path(__file__).with_suffix(".csv").open(encoding="utf-8"))]
    for name in only.split(",") if only else dict.fromkeys(source["set"] for source in sources):
        of = [source for source in sources if source["set"] == name]
        assert of, f"no set {name!r}; those of real_data.csv are the sets"
        splits = {source["split"]: write_documents(folder, mirror, source) for source in of}
        print(name, *(f"{source['documents']} {source['split']}" for source in of), flush=True)
        for included in (path for root in ROOTS for pattern in of[0]["yaml"].split() for path in root.glob(pattern)):
            write_task(folder, included, splits)
    written = sorted(folder.glob("data/**/*.jsonl"))
    sums = (f"{hashlib.sha256(place.read_bytes()).hexdigest()}  {place.relative_to(folder)}\n" for place in written)
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
