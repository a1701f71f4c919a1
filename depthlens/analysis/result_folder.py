"""The folder that a sweep writes to: whether it is free, holds the same sweep or another, and who writes to it now.

A repeated ``--out`` must not destroy a result that took hours. A folder is free where it holds none of the files that
would be written. A folder with the same sweep (model, tasks, conditions and every setting that decides a score) is
written again, which costs little because the answers are in the store. Every other folder is refused, unless the caller
asks to replace its content. The check is made before a model is loaded, as far as the record allows, and once more
before anything is written. This module imports neither torch nor pandas.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from depthlens.ablations import Dims, expand
from depthlens.errors import UserError
from depthlens.paths import locked

DOCS_FILE, QUESTIONS_FILE = "docs.parquet", "questions.parquet"
SUMMARY_FILE, RECORD_FILE = "summary.parquet", "record.json"
FILES = (DOCS_FILE, QUESTIONS_FILE, SUMMARY_FILE, RECORD_FILE)
SETTINGS = (
    *("apply_chat_template", "backend", "include_path", "limit", "measure", "resample_prompts", "samples", "seed"),
    *("system_instruction", "gen_kwargs", "think_end_token", "enable_thinking"),
)
_FIX = "name another folder, or replace it (--overwrite, in Python overwrite=True)"
_DERIVED = ("metrics", "skipped_metrics")  # of a task's entry: computed from the rest


@contextmanager
def claimed(out: str | Path, asked: Mapping[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """Reserve the folder of a sweep: other processes are refused it until the context ends.

    Args:
        out: The folder. It is made where there is none.
        asked: What is to be swept: model, tasks, ablate, num_fewshot, dtype, quantize, donor and `SETTINGS`, as the
            caller named them.
        overwrite: Replace whatever it holds.

    Raises:
        UserError: it cannot be written, another process is writing to it, or it holds something else.
    """
    with locked(out) as folder:
        if not overwrite:
            refuse_other(folder, FILES, lambda record: _differs_from_asked(record, asked))
        yield folder


def refuse_other(folder: Path, files: Sequence[str], differs: Callable[[Any], str]) -> None:
    """Refuse a folder that holds something else than what is to be written.

    Args:
        folder: The folder.
        files: Names of the files that are to be written, the record among them.
        differs: Says in what the record of the folder, any JSON, differs from the new one, "" if in nothing. A
            ``KeyError`` or ``TypeError`` means that it is a record of another kind.

    Raises:
        UserError: the folder holds something else.
    """
    existing = [name for name in files if (folder / name).exists()]
    if not existing:
        return
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        why = differs(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, UserError):
            raise
        name = RECORD_FILE if RECORD_FILE in existing else existing[0]
        raise UserError(f"{str(folder)!r} holds a {name} of something else; {_FIX}") from e
    if why:
        raise UserError(f"{str(folder)!r} holds another result ({why}); {_FIX}")


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In what the records of two sweeps differ, besides time, machine and versions; "" if in nothing."""
    models = [record.get("model") or {} for record in (old, new)]
    pairs = [(f"model {key}", *(model.get(key) for model in models)) for key in ("name", "fingerprint", "dtype")]
    if pairs[1][1] is not None:
        del pairs[0]  # equal models may have several names
    pairs += [("device", *(str(model.get("device")).partition(":")[0] for model in models))]
    pairs += [("tasks", sorted(old["tasks"]), sorted(new.get("tasks", {})))]
    pairs += [("conditions", *(sorted(record.get("conditions", ())) for record in (old, new)))]
    for task, entry in new.get("tasks", {}).items():
        known = old["tasks"].get(task, {})
        pairs += [(f"{key} of {task}", known[key], entry[key]) for key in entry if key in known and key not in _DERIVED]
    pairs += [(key, old.get(key), new.get(key)) for key in (*SETTINGS, "method", "selected_conditions")]
    pairs += [("donor", *((record.get("donor") or {}).get("fingerprint") for record in (old, new)))]
    return first_difference(pairs)


def _differs_from_asked(record: Any, asked: Mapping[str, Any]) -> str:
    """In what a record differs from a sweep of which nothing is loaded yet; "" if in nothing that is known."""
    model, tasks = record["model"], list(asked["tasks"])
    pairs: list[tuple[str, Any, Any]] = [("model", model["name"], asked["model"])]
    if why := first_difference(pairs):
        return why
    before = record.get("asked_tasks", sorted(record["tasks"]))
    pairs += [("tasks", sorted(before), sorted(tasks))] if "asked_tasks" in record or set(tasks) & set(before) else []
    conditions = [str(c) for c in expand(asked["ablate"], Dims(**model["dims"]))]
    pairs += [("conditions", sorted(record["conditions"]), sorted(conditions))]
    pairs += [(key, record[key], asked[key]) for key in SETTINGS if key in record]
    if asked["num_fewshot"] is not None:
        pairs += [("num_fewshot", entry["num_fewshot"], asked["num_fewshot"]) for entry in record["tasks"].values()]
    pairs += [("dtype", model["dtype"], asked["dtype"])] if asked["dtype"] != "auto" else []
    pairs += [("quantize", model.get("quantize"), asked.get("quantize"))]
    pairs += [("donor", (record.get("donor") or {}).get("name"), asked["donor"])]
    return first_difference(pairs)


def first_difference(pairs: Iterable[tuple[Any, ...]]) -> str:
    """The first values that are not equal, in words.

    Args:
        pairs: Name, old value and new value of each.
    """
    for name, old, new in pairs:
        if old != new:
            return f"{name} {_short(old)}, not {_short(new)}"
    return ""


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else repr(value) if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
