"""Published benchmarks without a network: clones of public repositories in, local tasks of lm-eval out.

Usage::

    python benchmarks/real_data.py --mirror CLONES --out FOLDER [--only arc_easy,piqa]
    depthlens sweep smollm2-135m arc_easy --include-path FOLDER --limit 10 --ablate L3 --out DIR

Every task includes the YAML file of the installed lm-eval, so that prompts, filters and metrics are lm-eval's own. It
replaces the data alone, by JSONL files whose fields have the names of the hub's data set. Tasks keep their names: those
of ``--include-path`` take the place of others. What lm-eval lacks is included from depthlens: ``openbookqa_open``,
``gsm8k_copy``, and key-value retrieval with the prompt of Lost in the Middle, here with its own pairs.

``real_data.csv`` says where each split is, how many documents it has, and the SHA-256 of its bytes. Both are compared.
A clone is ``CLONES/owner+name/repo`` or ``CLONES/name``, with a work tree or without. Limits are stated in
docs/howto/without_network.md.
"""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import lm_eval
import typer
import yaml
from lm_eval.tasks._yaml_loader import load_yaml

from depthlens import paths

LM_EVALS, OURS = Path(lm_eval.__file__).parent / "tasks", paths.tasks_dir()
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
OPENED: dict[str, Callable[[bytes], bytes]] = {".bz2": bz2.decompress, ".gz": gzip.decompress}


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
    found = re.fullmatch(r"(.*[.!?]['\")]*) ([^.!?]+)", context)
    complete, begun = found.groups() if found else (context, "")
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
    same = os.path.commonprefix(row["context_options"]).rpartition(" ")[0] + " "
    first, second = (text.removeprefix(same) for text in row["context_options"])
    sentence = f"{same}_ {row['continuation']}"
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(row["gold"] + 1)}


def pairs(row: dict) -> dict:
    keys, values = map(list, zip(*row["ordered_kv_records"], strict=True))
    asked = {"key": row["key"], "answer": row["value"], "position": keys.index(row["key"]), "n_pairs": len(keys)}
    return {"keys": keys, "values": values, **asked}


# what makes a document of the hub of one of a clone, and the YAML files of its tasks
SETS: dict[str, tuple[Callable[[Any], dict], list[str]]] = {
    "mmlu": (mmlu, [f"mmlu/{kind}/*.yaml" for kind in ("default", "continuation", "generative")]),
    "hellaswag": (hellaswag, ["hellaswag/hellaswag.yaml"]),
    "openbookqa": (openbookqa, ["openbookqa/openbookqa.yaml", f"{OURS}/openbookqa_open.yaml"]),
    "mathqa": (mathqa, ["mathqa/mathqa.yaml"]),
    "arc_challenge": (arc, ["arc/arc_challenge*.yaml"]),
    "arc_easy": (arc, ["arc/arc_easy.yaml"]),
    "piqa": (piqa, ["piqa/piqa.yaml"]),
    "lambada_openai": (lambada, ["lambada/lambada_openai.yaml"]),
    "winogrande": (winogrande, ["winogrande/default.yaml"]),
    "boolq": (boolq, ["super_glue/boolq/default.yaml"]),
    "gsm8k": (dict, ["gsm8k/gsm8k*.yaml", f"{OURS}/gsm8k_copy.yaml"]),
    **{f"kv_retrieval_uuid_{n}": (pairs, [f"{OURS}/kv_retrieval/kv_retrieval_uuid_{n}.yaml"]) for n in (75, 140)},
}


def read(mirror: Path, source: dict[str, str]) -> dict[str, bytes]:
    """The files of a source, by what stands where its path has a star; their bytes are those that are expected."""
    owner, name = source["repository"].split("/")
    places = (mirror / f"{owner}+{name}" / "repo", mirror / name)
    clone = next((place for place in places if place.is_dir()), places[1])
    archive = ["git", "-C", str(clone), "archive", "--format=tar", source["commit"], "--", source["path"]]
    done = subprocess.run(archive, capture_output=True)
    if done.returncode:
        fix = f"git clone https://github.com/{source['repository']} {places[1]}, or choose other sets with --only"
        raise SystemExit(f"{source['set']}: {done.stderr.decode().strip()}; {fix}")
    before, _, after = source["path"].partition("*")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        files = {file.name: tar.extractfile(file).read() for file in tar if file.isfile()}
    if (found := hashlib.sha256(b"".join(files.values())).hexdigest()) != source["sha256"]:
        raise SystemExit(f"{source['path']}: SHA-256 {found}, not {source['sha256']}; clone the repository again")
    return {name[len(before) : len(name) - len(after)]: content for name, content in files.items()}


def rows(path: str, content: bytes) -> Iterable[Any]:
    """The rows of a file by its kind: JSON, a table, or lines of which six are a document."""
    place = Path(path)
    if place.suffix in OPENED:
        place, content = place.with_suffix(""), OPENED[place.suffix](content)
    text = content.decode()
    lines = text.removesuffix("\n").split("\n")
    kinds = {
        ".jsonl": lambda: map(json.loads, lines),
        ".json": lambda: json.loads(text),
        ".csv": lambda: csv.reader(io.StringIO(text, newline="")),
        ".txt": lambda: map(list, zip(*[iter(lines)] * 6, strict=True)),
    }
    return kinds[place.suffix]()


def write_task(folder: Path, included: str, files: dict[str, dict[str, str]]) -> None:
    """Write a task with local documents, or a group of such tasks.

    Args:
        folder: Of YAML files.
        included: YAML file of the task as it is.
        files: Documents by part of the data set (a subject) and split.
    """
    config = load_yaml(included, resolve_func=False)
    local: dict[str, Any] = {"include": included}
    if "group" not in config:
        here = files[config["dataset_name"] if len(files) > 1 else ""]
        local |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": here}}
        local |= {"custom_dataset": None, **{split: None for split in SPLITS if config.get(split) not in here}}
    name = config.get("group") or config["task"]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(local, sort_keys=False), encoding="utf-8")


def main(
    mirror: Annotated[Path, typer.Option()], out: Annotated[Path, typer.Option()], only: str = ",".join(SETS)
) -> None:
    """Write tasks, their documents, and SHA256SUMS of these."""
    folder, sums = out.resolve(), []
    sources = [*csv.DictReader(Path(__file__).with_suffix(".csv").open(encoding="utf-8"))]
    for name in only.split(","):
        if name not in SETS:
            raise SystemExit(f"unknown set {name!r}; the sets are {', '.join(SETS)}")
        document, yamls = SETS[name]
        files: dict[str, dict[str, str]] = defaultdict(dict)
        for source in (source for source in sources if source["set"] == name):
            path, split, n_documents = source["path"], source["split"], 0
            for part, content in read(mirror, source).items():
                documents = [json.dumps(document(row)) + "\n" for row in rows(path, content)]
                n_documents += len(documents)
                place = folder / "data" / name / part / f"{split}.jsonl"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text("".join(documents), encoding="utf-8")
                files[part][split] = str(place)
                sums.append(f"{hashlib.sha256(place.read_bytes()).hexdigest()}  {place.relative_to(folder)}\n")
            if n_documents != int(source["documents"]):
                raise SystemExit(f"{path}: {n_documents} documents, not {source['documents']}; correct real_data.csv")
        for included in (path for pattern in yamls for path in glob.glob(str(LM_EVALS / pattern))):
            write_task(folder, included, files)
        print(f"{name}: {', '.join(sorted({split for of in files.values() for split in of}))}", flush=True)
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
