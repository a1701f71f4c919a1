"""The folder that a sweep writes: whether it is free, holds the same sweep or another, and who writes to it now.

A result that took hours should not be lost to a repeated ``--out``. A folder is free where it holds none of the files
that would be written. One that holds the same sweep (model, tasks, conditions and every setting that decides a score)
is written again: the answers are found in the store, so this costs little. Everything else is refused, unless the
caller says that it is to be replaced. The check is made before a model is loaded, as far as the record tells, and once
more before anything is written. No torch, no pandas.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from depthlens.ablations import Dims, expand
from depthlens.errors import UserError
from depthlens.paths import writable_folder

DOCS_FILE, QUESTIONS_FILE = "docs.parquet", "questions.parquet"
SUMMARY_FILE, RECORD_FILE = "summary.parquet", "record.json"
FILES = (DOCS_FILE, QUESTIONS_FILE, SUMMARY_FILE, RECORD_FILE)
LOCK = ".depthlens.lock"
SETTINGS = (
    *("apply_chat_template", "backend", "include_path", "limit", "measure", "resample_prompts", "seed"),
    "system_instruction",
)
_FIX = "name another folder, or replace it (--overwrite, in Python overwrite=True)"
_DERIVED = ("metrics", "skipped_metrics")  # of a task's entry: computed from the rest


@contextmanager
def claimed(out: str | Path, asked: Mapping[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """Have a sweep's folder for oneself; other processes are refused it as long as the context lasts.

    Args:
        out: The folder; made where there is none.
        asked: What is to be swept: model, tasks, ablate, num_fewshot, dtype, donor and `SETTINGS`, as they were given.
        overwrite: Whatever it holds is to be replaced.

    Raises:
        UserError: it cannot be written, another process is writing to it, or it holds something else.
    """
    folder = writable_folder(out)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        fault = f"another sweep is writing to {str(folder)!r} now"
        raise UserError(f"{fault}; wait for its end, or name another folder") from None
    try:
        if not overwrite:
            refuse_other(folder, FILES, lambda record: _differs_from_asked(record, asked))
        yield folder
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def refuse_other(folder: Path, files: Sequence[str], differs: Callable[[dict[str, Any]], str]) -> None:
    """Refuse a folder that holds something else than what is to be written.

    Args:
        folder: The folder.
        files: What is to be written, the record among them.
        differs: Given the record that is there, says in what it differs; "" if in nothing. A ``KeyError`` or
            ``TypeError`` says that it is a record of another kind.

    Raises:
        UserError: it does.
    """
    found = [name for name in files if (folder / name).exists()]
    if not found:
        return
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        why = differs(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, UserError):
            raise
        name = RECORD_FILE if RECORD_FILE in found else found[0]
        raise UserError(f"{str(folder)!r} holds a {name} of something else; {_FIX}") from e
    if why:
        raise UserError(f"{str(folder)!r} holds another result ({why}); {_FIX}")


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In what the records of two sweeps differ, beside time, machine and versions; "" if in nothing."""
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


def _differs_from_asked(record: dict[str, Any], asked: Mapping[str, Any]) -> str:
    """The same, of what can be told before anything is loaded."""
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
