"""A result as logs of Inspect, which ``inspect view`` opens (https://inspect.aisi.org.uk/eval-logs.html).

A log is a zip archive of JSON files: ``header.json``, ``summaries.json`` and a file for each sample. One is written for
each task and condition; the condition is a tag, and in ``model_args``. The format is version 2 of
Inspect's; the library is not needed. Limit: prompts are the questions without examples and chat templates.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import pandas as pd

from depthlens.analysis.result.questions import FIELDS
from depthlens.analysis.result.results import Result
from depthlens.paths import writable_folder, write_files, writing_to


def write(result: Result, out: str | Path) -> list[Path]:
    """See `depthlens.Result.to_inspect`."""
    folder, asked = writable_folder(out), result.questions().set_index(["task", "doc_id"])
    writers = {}
    for (task, condition), rows in result.docs.groupby(["task", "condition"], sort=False):
        samples = list(_samples(rows, asked.loc[task], result.model))
        header = _header(result, rows, str(task), str(condition), len(samples))
        name = "_".join(re.sub(r"[^\w.-]+", "-", str(part)) for part in (result.model, task, condition))
        writers[f"{name}_{header['eval']['eval_id']}.eval"] = partial(_archive, header, samples)
    with writing_to(folder):
        write_files(folder, writers)
    return [folder / name for name in writers]


def _archive(header: dict[str, Any], samples: list[dict[str, Any]], file: IO[bytes]) -> None:
    kept = ("id", "epoch", "input", "choices", "target", "metadata", "scores")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        contents: dict[str, Any] = {f"samples/{one['id']}_epoch_{one['epoch']}.json": one for one in samples}
        contents["summaries.json"] = [{key: one[key] for key in kept} for one in samples]
        for name, content in (contents | {"header.json": header}).items():
            archive.writestr(name, json.dumps(content, ensure_ascii=False))


def _samples(rows: pd.DataFrame, asked: pd.DataFrame, model: str) -> Iterator[dict[str, Any]]:
    """A sample for each document, with its score by each metric."""
    for doc_id, of_document in rows.groupby("doc_id"):
        question = asked.loc[doc_id]
        values = zip(of_document["metric"], of_document["value"], of_document["response"], strict=True)
        said = {"role": "assistant", "content": of_document["response"].iloc[0]}
        yield {
            "id": int(doc_id),
            "epoch": 1,
            "input": question["question"],
            "choices": None if question["choices"] is None else list(question["choices"]),
            "target": question["reference"],
            "messages": [{"role": "user", "content": question["question"]}, said],
            "output": {"model": model, "choices": [{"message": said, "stop_reason": "stop"}]},
            "scores": {metric: {"value": value, "answer": answer} for metric, value, answer in values},
            "metadata": {} if pd.isna(question[FIELDS]) else json.loads(question[FIELDS]),
        }


def _header(result: Result, rows: pd.DataFrame, task: str, condition: str, n: int) -> dict[str, Any]:
    """What was run, and the mean score by each metric with its standard error."""
    model, about = result.model, result.record.get("tasks", {}).get(task, {})
    created = result.record.get("time") or datetime.now(UTC).isoformat(timespec="seconds")
    name = _id(model, task, condition)  # the viewer takes logs with one task_id as retries, and shows the last one
    scores = []
    for metric, values in rows.groupby("metric", sort=False)["value"]:
        found = {"mean": float(values.mean()), "stderr": float(values.sem()) if n > 1 else 0.0}
        metrics = {name: {"name": name, "value": value} for name, value in found.items()}
        scores.append({"name": metric, "scorer": metric, "scored_samples": n, "metrics": metrics})
    spec = {
        "eval_id": name,
        "task_id": name,
        "run_id": _id(model, created),
        "created": created,
        "task": task,
        "task_version": str(about.get("version") or 0),
        "tags": [condition],
        "task_args": {"num_fewshot": about.get("num_fewshot")},
        "dataset": {"name": task, "samples": n},
        "model": model,
        "model_args": {"condition": condition},
        "config": {"epochs": 1},
        "packages": {"depthlens": str(result.record.get("depthlens"))},
    }
    plan = {"steps": [{"solver": "generate"}], "config": {}}
    totals = {"total_samples": n, "completed_samples": n, "scores": scores}
    times = {"started_at": created, "completed_at": created}  # how long one condition takes is not known
    return {"version": 2, "status": "success", "eval": spec, "plan": plan, "results": totals, "stats": times}


def _id(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:22]
