"""The folder that a sweep writes to: whether it is free, holds the same sweep or another, and who writes to it now.

A repeated ``--out`` must not destroy a result that took hours. A folder is free where it holds none of the files that
would be written. A folder with the same sweep (model, tasks, conditions and every setting that decides a score) is
written again, which costs little because the answers are in the store. Every other folder is refused, unless the caller
asks to replace its content. The check is made before a model is loaded, as far as the record allows, and once more
before anything is written. This module imports neither torch nor pandas.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from depthlens.errors import UserError
from depthlens.paths import locked, refuse_foreign_page

DOCS_FILE, QUESTIONS_FILE = "docs.parquet", "questions.parquet"
SUMMARY_FILE, RECORD_FILE = "summary.parquet", "record.json"
FILES = (DOCS_FILE, QUESTIONS_FILE, SUMMARY_FILE, RECORD_FILE)
# entries of a record, at any depth, that decide no number: where and how it was computed, or what follows from others
CIRCUMSTANCES = {
    *("ablate", "asked", "attention_kernel", "baseline", "batch_tokens", "budget", "command", "depthlens"),
    *("device", "file", "gpu", "whole_passes"),
    *("git_commit", "metrics", "notes", "offload", "parts", "platform", "python", "remote", "skipped_metrics", "store"),
    *("time", "tree_attention", "versions", "work", "workers"),
}
_LONGEST = 60  # characters of a value in a sentence
_FIX = "name another folder, or replace it (--overwrite, in Python overwrite=True)"


@contextmanager
def claimed(out: str | Path, asked: Mapping[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """Reserve the folder of a sweep or race: other processes are refused it until the context ends.

    Args:
        out: The folder. It is made where there is none.
        asked: What is to be run, as the caller named it. It is the entry ``asked`` of the record that is written.
        overwrite: Replace whatever it holds.

    Raises:
        UserError: it cannot be written, another process is writing to it, or it holds something else.
    """
    with locked(out) as folder:
        if not overwrite:
            refuse_foreign_page(folder)
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
        name = RECORD_FILE if RECORD_FILE in existing else existing[0]
        raise UserError(f"{str(folder)!r} holds a {name} of something else; {_FIX}") from e
    if why:
        raise UserError(f"{str(folder)!r} holds another result ({why}); {_FIX}")


def _settings(record: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """What decides the content of a folder: name and value of each entry of a record, and of those inside."""
    for key, value in record.items():
        if key in CIRCUMSTANCES or (within and key == "name"):  # equal models may have several names
            continue
        if isinstance(value, Mapping):
            yield from _settings(value, f"{within}{key} ")
        else:
            yield f"{within}{key}", sorted(value) if key == "conditions" else value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first entry that decides something and differs in two records, in words; "" if in none."""
    return next(iter(mismatches(dict(_settings(old)), dict(_settings(new)), ", not ")), "")


def _differs_from_asked(record: Any, asked: Mapping[str, Any]) -> str:
    """In what a record differs from a run of which nothing is loaded yet; "" if in nothing that is known."""
    own = record.get("record", record)  # of a race it is inside
    if "asked" not in own and own["tasks"]:  # made in Python: it is compared when there is a result
        return ""
    return next(iter(mismatches(own["asked"], json.loads(json.dumps(asked)), ", not ")), "")


def mismatches(a: Mapping[str, Any], b: Mapping[str, Any], between: str = " and ") -> list[str]:
    """In words, every setting in which two runs differ: ``num_fewshot 0 and 5``."""
    names = [name for name in dict.fromkeys((*a, *b)) if a.get(name) != b.get(name)]
    return [f"{name.removeprefix('task ')} {text(a.get(name))}{between}{text(b.get(name))}" for name in names]


def text(value: Any) -> str:
    """A value of a record in one short line."""
    if value is None:
        return "none"
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(shown) <= _LONGEST:
        return shown
    # different values have different texts, also where they begin alike
    end = f"... #{hashlib.sha256(shown.encode()).hexdigest()[:8]}"
    return shown[: _LONGEST - len(end)] + end
