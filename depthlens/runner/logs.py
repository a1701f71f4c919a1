"""Logs of lm-eval and of Inspect as results, so that they are compared as runs are (`depthlens compare --from-logs`).

A log of lm-eval is the folder of ``--log_samples --output_path``: ``samples_TASK_DATE.jsonl`` for each task, and
``results_DATE.json`` beside them, which says what was set. A log of Inspect is an ``.eval`` file, a zip archive of JSON
files, or one JSON file; a folder may hold several. Of a task that was run several times the last one is read.

Each becomes a result of whole models, of one condition. Questions are paired by lm-eval's hash of the document, or by
Inspect's id of the sample together with its text; epochs are times that a question is asked. Chance is known among
options. Limits: the question of a prompt with examples is what stands behind the last separator of examples. Where
options are parts of the prompt (Winogrande), no log says which is right: the reference is what follows them. A score of
Inspect that is no number, no grade (C, P, I, N) and no dictionary of these is left out.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow

from depthlens import metrics
from depthlens.analysis.numbers.stats import BASELINE
from depthlens.analysis.result.questions import COLUMNS, HASH
from depthlens.analysis.result.results import DOCS_COLUMNS, Result
from depthlens.errors import UserError, blaming

_SAMPLES = re.compile(r"samples_(.+)_(\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl")
_GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # Inspect's: correct, partial, incorrect, no answer
_ZSTANDARD = 93  # a way of compression that newer versions of Inspect use, and zipfile does not know
_FIX = "give the folder of lm-eval's --output_path with --log_samples, or an .eval file of Inspect"
_CONNECTION = ("max_con", "max_ret", "timeout", "attempt_timeout", "adaptive")  # settings that decide no answer

Row = dict[str, Any]
Log = tuple[str, list[Row], dict[str, Any], dict[str, Any]]  # a task, its rows, its entry in a record, other entries


def read(logs: Sequence[Path]) -> list[Result]:
    """The result of each log; a question that several logs ask has the same number in all of them.

    Raises:
        UserError: there is no such log, or it cannot be read.
    """
    kinds = OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile, pyarrow.ArrowException
    tables, records = [], []
    for log in logs:
        with blaming(f"log {str(log)!r} cannot be read", _FIX, kinds):
            rows, record = _rows(log)
        table = pd.DataFrame(rows)
        tables.append(table.assign(again=table.groupby(["model", "task", "metric", HASH]).cumcount()))
        records.append(record)
    asked = pd.concat(tables)[["task", HASH, "again"]].drop_duplicates()
    asked["doc_id"] = asked.groupby("task").cumcount()
    return [_result(table.merge(asked), record) for table, record in zip(tables, records, strict=True)]


def _rows(log: Path) -> tuple[list[Row], dict[str, Any]]:
    """A row for each document and metric of a log, and its record."""
    every = [log] if log.is_file() else [*log.rglob("samples_*.jsonl"), *log.rglob("*.eval")]
    found: dict[tuple[str, str], list[Row]] = {}
    record: dict[str, Any] = {"made_by": "log", "tasks": {}}
    for file in sorted(every, key=lambda file: file.name):  # names begin with a date, or end with one
        task, rows, about, settings = (_lm_eval if file.suffix == ".jsonl" else _inspect)(file)
        if rows:
            found[rows[0]["model"], task] = [{"task": task, **row} for row in rows]
            record |= {"tasks": record["tasks"] | {task: about}, **settings}
    if not found:
        raise UserError(f"log {str(log)!r} has no scores of documents; {_FIX}")
    return [row for rows in found.values() for row in rows], record


def _result(table: pd.DataFrame, record: dict[str, Any]) -> Result:
    for (task, metric), rows in table.groupby(["task", "metric"]):
        chooses = rows["choices"].map(bool).all() and metric in (*metrics.AMONG_OPTIONS, "choice")
        chance = float((1 / rows["choices"].map(len)).mean()) if chooses else None
        info = {"higher_is_better": bool(rows["better"].all()), "chance": chance}
        record["tasks"][task].setdefault("metrics", {})[metric] = info
    docs = table.assign(condition=BASELINE, layer=pd.NA, head=pd.NA)[DOCS_COLUMNS]
    return Result(docs, record, table.drop_duplicates(["task", "doc_id"])[[*COLUMNS, HASH]])


# -- lm-eval -------------------------------------------------------------------------------------------


def _lm_eval(file: Path) -> Log:
    task, date = _SAMPLES.fullmatch(file.name).groups()  # type: ignore[union-attr]
    beside = file.with_name(f"results_{date}.json")
    told = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    config, better = (told.get(key, {}).get(task, {}) for key in ("configs", "higher_is_better"))
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    several, rows = len({sample["filter"] for sample in samples}) > 1, list[Row]()
    for sample in samples:
        prompt, options, target = sample["arguments"]["gen_args_0"]["arg_0"], _options(sample, config), sample["target"]
        if config.get("num_fewshot"):
            prompt = prompt.rpartition(config["fewshot_delimiter"])[2]
        if options and target.isdigit() and int(target) < len(options):  # the number of one, or its text
            target = options[int(target)]
        about = {"model": told.get("model_name") or file.parent.name, HASH: sample["doc_hash"]}
        about |= {"question": prompt, "choices": options, "reference": target}
        for metric in sample["metrics"]:
            if (found := metrics.of_document(metric, sample[metric])) is not None:
                name, value = found
                own = {"metric": f"{name},{sample['filter']}" if several else name, "value": value}
                own |= {"response": _response(sample, metric, options), "better": better.get(name, metrics.rises(name))}
                rows.append(about | own)
    entry = {"version": told.get("versions", {}).get(task), "num_fewshot": told.get("n-shot", {}).get(task)}
    entry["generation_kwargs"], run = config.get("generation_kwargs"), told.get("config", {})
    settings = {name: run.get(name) for name in ("fewshot_seed", "gen_kwargs")}
    settings |= {name: told.get(name) for name in ("lm_eval_version", "system_instruction")}
    return task, rows, entry, settings | {"apply_chat_template": bool(told.get("chat_template"))}


def _options(sample: Mapping[str, Any], config: Mapping[str, Any]) -> list[str] | None:
    """What a model chooses from, in order; None where it does not choose."""
    asked = [(request["arg_0"], request.get("arg_1")) for request in sample["arguments"].values()]
    if len(asked) < 2 or not isinstance(sample["filtered_resps"][0], list):
        return None
    asked = asked[: len(asked) // 2] if "acc_mutual_info" in sample["metrics"] else asked
    if len({continuation for _, continuation in asked}) == 1:  # the options are parts of the prompt
        return [context for context, _ in asked]
    return [text.removeprefix(config.get("target_delimiter", " ")) for _, text in asked]


def _response(sample: Mapping[str, Any], metric: str, options: list[str] | None) -> str:
    if options:
        answers = [(float(logprob), greedy == "True") for logprob, greedy in sample["filtered_resps"]]
        return metrics.chosen(metric, options, answers)
    return " | ".join(dict.fromkeys(map(str, sample["resps"][0])))


# -- Inspect -------------------------------------------------------------------------------------------


def _inspect(file: Path) -> Log:
    log, samples = _opened(file)
    spec, plan, rows = log["eval"], log.get("plan", {}), list[Row]()
    for sample in samples:
        text, target = _text(sample, sample["input"]), sample["target"]
        identity = hashlib.sha256(f"{sample['id']}\n{text}".encode()).hexdigest()
        about = {"model": spec["model"], "question": text, "choices": sample.get("choices"), HASH: identity}
        about |= {"reference": target if isinstance(target, str) else " | ".join(target), "better": True}
        choices = sample.get("output", {}).get("choices") or [{}]
        for name, score in (sample.get("scores") or {}).items():
            response = score.get("answer") or _text(sample, choices[0].get("message", {}))
            of = _values(name, score["value"])
            rows += [about | {"metric": metric, "value": value, "response": response} for metric, value in of]
    kwargs = {name: value for name, value in plan.get("config", {}).items() if not name.startswith(_CONNECTION)}
    entry = {"version": spec.get("task_version"), "task_args": spec.get("task_args"), "solvers": plan.get("steps")}
    version = spec.get("packages", {}).get("inspect_ai")
    return spec["task"], rows, entry | {"generation_kwargs": kwargs}, {"versions": {"inspect": version}}


def _opened(file: Path) -> tuple[dict[str, Any], Sequence[dict[str, Any]]]:
    """Header and samples of a log."""
    if file.suffix == ".json":
        log = json.loads(file.read_text(encoding="utf-8"))
        return log, log["samples"]
    with zipfile.ZipFile(file) as archive:
        names = dict.fromkeys(name for name in archive.namelist() if name.startswith("samples/"))
        header, *samples = (json.loads(_member(archive, name)) for name in ("header.json", *names))
    return header, sorted(samples, key=lambda sample: (sample["epoch"], str(sample["id"]).zfill(20)))


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a file in an archive."""
    info, file = archive.getinfo(name), archive.fp
    if info.compress_type != _ZSTANDARD or file is None:
        return archive.read(name)
    file.seek(info.header_offset + 26)  # where a local header says how long its own name and extra field are
    file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
    return pyarrow.decompress(file.read(info.compress_size), info.file_size, "zstd").to_pybytes()


def _values(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers in a score, each with the name of its metric."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _values(f"{name}/{key}", part)
        return
    number = _GRADES.get(value) if isinstance(value, str) else value
    if isinstance(number, bool | int | float) and math.isfinite(number):
        yield name, float(number)


def _text(sample: Mapping[str, Any], content: Any) -> str:
    """The text of an input or a message; of a conversation what was said last."""
    if isinstance(content, list):  # messages, or parts of one
        return _text(sample, content[-1]) if content else ""
    if isinstance(content, dict):
        return _text(sample, content.get("content", content.get("text", "")))
    return str(sample.get("attachments", {}).get(str(content).removeprefix("attachment://"), content))
