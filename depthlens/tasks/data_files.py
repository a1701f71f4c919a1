"""The files of a task on disk: its data files, the hashes of all files for the record, and what is wrong with one.

Data files are those that ``dataset_kwargs`` or ``dataset_path`` name and that exist here: relative to the working
folder, as `datasets` reads them, or beside the task's YAML and Python files, as the embedded tasks read theirs. Data
from the hub have no files here and are not hashed.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from depthlens.errors import UserError, first_line
from depthlens.tasks.task_files import changes_its_tasks, leaves, read, shown
from depthlens.tasks.task_index import walk

Config = dict[str, Any]
_KINDS = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}


def source(task: Any, name: str, index: dict[str, Any], include_path: str | Path | None) -> dict[str, Any]:
    """The entries of a record about the files of a task.

    Args:
        task: The loaded task.
        name: The name that the user gave: the task's own, or that of a group or tag.
        index: lm-eval's index with this name.
        include_path: As the user gave it.

    Returns:
        ``file``: the YAML file. ``sha256``: by file, of this one and those that it includes, of Python files that they
        name, of the file of a group that changes its tasks, and of the data files.
    """
    config = task.config
    entry = index.get(config.task) or index.get(name)
    paths = [entry.yaml_path] if entry and entry.yaml_path else []
    for used in walk([name], index)[0].values():
        if used.kind.name == "GROUP" and changes_its_tasks(used.cfg or {}):
            paths.append(used.yaml_path)
    files = list(dict.fromkeys(file for path in paths for file in read(path).files))
    data = data_files({key: config[key] for key in ("dataset_path", "dataset_kwargs", "custom_dataset")}, files)
    hashes = {shown(file, include_path): _sha256(file) for file in dict.fromkeys([*files, *data])}
    return {"file": shown(paths[0], include_path) if paths else None, "sha256": hashes}


def data_files(config: Config, files: Iterable[Path]) -> list[Path]:
    """The data files of a task that exist here; ``files`` are its YAML and Python files."""
    options, path = config.get("dataset_kwargs") or {}, config.get("dataset_path")
    named = options if config.get("custom_dataset") else options.get("data_files")
    folders = [options.get("data_dir"), path if isinstance(path, str) and os.sep in path else None]
    within = [Path(folder).resolve() for folder in folders if folder and Path(folder).is_dir()]
    if not named:
        return [path for folder in within for path in sorted(folder.rglob("*")) if path.is_file()]
    homes = dict.fromkeys([*within, Path.cwd(), *(file.parent for file in files)])
    texts = [text for text in leaves(named) if isinstance(text, str) and text]
    matches = (next(filter(None, (_matches(home, text) for home in homes)), []) for text in texts)
    return list(dict.fromkeys(chain.from_iterable(matches)))


def _matches(home: Path, text: str) -> list[Path]:
    """The files that a path or pattern means within a folder."""
    if (path := home / text).is_file():
        return [path.resolve()]
    return [Path(p).resolve() for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_damaged(name: str, config: Config, files: Iterable[Path]) -> None:
    """Refuse a JSON file that explains why a task could not be loaded.

    Raises:
        UserError: one is empty or not JSON; names file and line.
    """
    for path in data_files(config, files):
        if path.suffix in (".json", ".jsonl") and (fault := _fault(path)):
            raise UserError(f"task {name}: {fault}; write one JSON object a line")


def _fault(path: Path) -> str | None:
    """What is wrong with a JSON file, in words; None where nothing is."""
    text = path.read_bytes()
    if not text.strip():
        return f"data file {str(path)!r} is empty"
    try:
        whole = json.loads(text)
    except ValueError as error:  # it is not one JSON value, so it must be one a line
        if text.lstrip().startswith(b"["):
            return f"data file {str(path)!r}, line {getattr(error, 'lineno', 1)} is not JSON ({_reason(error)})"
        return next(_bad_lines(path, text), None)
    if isinstance(whole, dict) or (isinstance(whole, list) and whole and all(isinstance(d, dict) for d in whole)):
        return None
    return f"data file {str(path)!r} contains {_KINDS[type(whole)]}, not documents"


def _bad_lines(path: Path, text: bytes) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        where = f"data file {str(path)!r}, line {number}"
        try:
            document = json.loads(line) if line.strip() else {}
        except ValueError as error:
            yield f"{where} is not JSON ({_reason(error)})"
            continue
        if not isinstance(document, dict):
            yield f"{where} is {_KINDS[type(document)]}, not an object"


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return first_line(error)
