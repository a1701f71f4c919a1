"""The folder that a sweep writes to: whether it is free, holds the same sweep or another, and who writes to it now.

A repeated ``--out`` must not destroy a result that took hours. A folder is free where it holds none of the files that
would be written. A folder with the same sweep (model, tasks, conditions and every setting that decides a score) is
written again, which costs little because the answers are in the store. Every other folder is refused, unless the caller
asks to replace its content. The check is made before a model is loaded, as far as the record allows, and once more
before anything is written. This module imports neither torch nor pandas.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from depthlens.ablations import Dims, expand
from depthlens.errors import UserError
from depthlens.paths import locked

DOCS_FILE, QUESTIONS_FILE = "docs.parquet", "questions.parquet"
SUMMARY_FILE, RECORD_FILE = "summary.parquet", "record.json"
FILES = (DOCS_FILE, QUESTIONS_FILE, SUMMARY_FILE, RECORD_FILE)
# entries of a record that decide no number
CIRCUMSTANCES = (
    *("command", "depthlens", "git_commit", "platform", "python", "store", "time"),
    *("tree_attention", "versions", "work", "workers"),
)
# entries that follow from others, or are numbers
_DERIVED = ("ablate", "asked_tasks", "baseline", "batch_tokens", "metrics", "parts", "skipped_metrics")
_FIX = "name another folder, or replace it (--overwrite, in Python overwrite=True)"


@contextmanager
def claimed(out: str | Path, asked: Mapping[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """Reserve the folder of a sweep: other processes are refused it until the context ends.

    Args:
        out: The folder. It is made where there is none.
        asked: What is to be swept: model, tasks, ablate and the options of a sweep, as the caller named them.
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


def settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the content of a folder, by name: the entries of a record, those of its model and tasks apart."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        if key in (*CIRCUMSTANCES, *_DERIVED):
            continue
        if key in ("model", "donor") and isinstance(value, Mapping):
            name = "fingerprint" if value.get("fingerprint") else "name"  # equal models may have several names
            found |= {f"{key} {name}": value.get(name), f"{key} dtype": value.get("dtype")}
            found[f"{key} device"] = str(value.get("device")).partition(":")[0]
        elif key == "tasks" and isinstance(value, Mapping):
            found["tasks"] = sorted(value)
            of_each = ((f"{k} of {task}", v) for task, entry in value.items() for k, v in entry.items())
            found |= {name: v for name, v in of_each if name.partition(" ")[0] not in _DERIVED}
        else:
            found[key] = sorted(value) if key == "conditions" else value
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first setting in which two records differ, in words; "" if in none."""
    before = settings(old)
    return first_difference(before, dict.fromkeys(before) | settings(new))


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first of the new values that is not the old one of its name, in words; "" if there is none."""
    for name, value in new.items():
        if (before := old.get(name)) != value:
            return f"{name} {_short(before)}, not {_short(value)}"
    return ""


def _differs_from_asked(record: Any, asked: Mapping[str, Any]) -> str:
    """In what a record differs from a sweep of which nothing is loaded yet; "" if in nothing that is known."""
    model, donor = record["model"], record.get("donor") or {}
    old = {**record, "model": model["name"], "dtype": model["dtype"], "quantize": model.get("quantize")}
    old |= {"donor": donor.get("name"), "tasks": sorted(record.get("asked_tasks", asked["tasks"]))}
    new = {key: asked[key] for key in asked if key in old and key not in (*CIRCUMSTANCES, *_DERIVED)}
    new["tasks"] = sorted(asked["tasks"])
    if asked["dtype"] == "auto":
        del new["dtype"]
    if why := first_difference(old, new):
        return why
    conditions = expand(asked["ablate"], Dims(**model["dims"]))
    old = {name: entry["num_fewshot"] for name, entry in record["tasks"].items()}
    old = {"conditions": sorted(record["conditions"])} | {f"num_fewshot of {task}": n for task, n in old.items()}
    new = dict.fromkeys(old, asked["num_fewshot"]) if asked["num_fewshot"] is not None else {}
    return first_difference(old, new | {"conditions": sorted(map(str, conditions))})


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else repr(value) if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
