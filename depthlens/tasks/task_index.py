"""The smallest index of lm-eval's that has the tasks asked for, and one-line errors for names that nothing defines.

lm-eval leaves a file that it cannot read out of its index without a message, and reads 14,000 files of its own to find
one name. Here the embedded tasks and those under ``include_path`` are indexed alone, and lm-eval's own only where one
of them is asked for. Whether a name can be one of lm-eval's is known from the text of its files (half a second), which
contains every name of its index.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from depthlens import paths
from depthlens.errors import UserError, unknown
from depthlens.progress import quiet
from depthlens.tasks.task_files import read, shown

MAX_NAME = 128  # bytes; the store names folders after tasks, and lm-eval's longest name has 86
_IGNORED = {"__pycache__", ".ipynb_checkpoints"}  # as lm-eval does
_OVERRIDES = "task %s: %s is used, not %s of the same name; rename it to have both"

log = logging.getLogger(__name__)


@dataclass
class _Folder:
    """The tasks and groups of the YAML files of ``include_path``.

    Attributes:
        names: Files by the task or group that they define.
        broken: Error and text of each task file that cannot be read.
        stamp: Paths and times of the files; an index of them is valid as long as these do not change.
    """

    names: dict[str, list[Path]] = field(default_factory=dict)
    broken: list[tuple[UserError, bytes]] = field(default_factory=list)
    stamp: tuple[tuple[str, int], ...] = ()


def _scan(folder: Path) -> _Folder:
    """Read a user's folder.

    Raises:
        UserError: a task whose name is not text, because lm-eval's index cannot contain it.
    """
    content = _Folder()
    files = sorted(p for p in folder.rglob("*.yaml") if p.is_file() and not _IGNORED.intersection(p.parts))
    for path in files:
        try:
            file = read(path)
        except UserError as error:
            text = path.read_bytes() if os.access(path, os.R_OK) else b""
            if defines(text, None):  # else it is not the file of a task
                content.broken.append((error, text))
            continue
        for key, name in _names(file.config):
            if name is None:
                raise UserError(f"{str(path)!r}: {key} has no name; write one after '{key}:'")
            if not isinstance(name, str | list | dict):
                raise UserError(f"{str(path)!r}: {key} {name!r} is not text; write it in quotes: {key}: '{name}'")
        if isinstance(file.name, str):
            content.names.setdefault(file.name, []).append(path)
    content.stamp = tuple((str(p), p.stat().st_mtime_ns) for p in files)
    return content


def _names(config: dict[str, Any]) -> list[tuple[str, Any]]:
    """The names that a YAML file gives to its task or group and to the task's tags, each with its key."""
    if "group" in config:
        return [("group", config["group"])]
    if "task" not in config:
        return []
    tags = config.get("tag") or []
    return [("task", config["task"]), *(("tag", tag) for tag in (tags if isinstance(tags, list) else [tags]))]


def task_manager(names: Sequence[Any], include_path: str | Path | None = None) -> Any:
    """lm-eval's task manager with the smallest index that has all names.

    Args:
        names: Tasks, groups or tags.
        include_path: Folder with more YAML files; its tasks replace those of the same name elsewhere.

    Raises:
        UserError: a name that nothing defines, or a file of ``include_path`` that cannot be used.
    """
    home = Path(include_path).resolve() if include_path is not None else None
    folder = _scan(home) if home else _Folder()
    manager = build_index(home, folder.stamp, of_lm_eval=False)
    used, missing = walk(names, manager.task_index)
    beyond = [name for name in missing if may_be_of_lm_eval(name)]
    if beyond and all(name in beyond or not group.required for name, group in missing.items()):
        manager = build_index(home, folder.stamp, of_lm_eval=True)
        used, missing = walk(names, manager.task_index)
    for name, group in missing.items():
        if group.required:  # others are defined by the group itself
            raise _not_found(name, group, manager, folder, include_path)
    _check(used, folder, include_path, of_lm_eval=bool(beyond))
    return manager


@dataclass(frozen=True)
class _Origin:
    """Where a name comes from: the caller, or a group's file; ``required`` unless the group may define it itself."""

    path: Path | None = None
    required: bool = True


def walk(names: Iterable[Any], index: dict[str, Any]) -> tuple[dict[str, Any], dict[Any, _Origin]]:
    """The entries of an index with these names and those of their groups' members, and the names that it lacks."""
    used: dict[str, Any] = {}
    missing: dict[Any, _Origin] = {}

    def members(config: dict[str, Any], path: Any) -> None:
        listed = config.get("task")
        for item in listed if isinstance(listed, list) else []:
            if isinstance(item, str):
                visit(item, _Origin(path))
            elif isinstance(item, dict):
                visit(item.get("group", item.get("task")), _Origin(path, required=False))
                members(item, path)

    def visit(name: Any, origin: _Origin) -> None:
        if not isinstance(name, str) or name not in index:
            missing.setdefault(repr(name) if isinstance(name, list | dict) else name, origin)
        elif name not in used:
            entry = used[name] = index[name]
            for member in sorted(entry.tags) if entry.kind.name == "TAG" else []:
                visit(member, _Origin(required=False))
            if entry.kind.name == "GROUP":
                members(entry.cfg or {}, entry.yaml_path)

    for name in names:
        visit(name, _Origin())
    return used, missing


def _check(used: dict[str, Any], folder: _Folder, include_path: str | Path | None, *, of_lm_eval: bool) -> None:
    """Refuse names of the user's that are too long or defined twice; log which files are used or left out."""
    embedded = build_index(None, (), of_lm_eval=False).task_index
    for name in used:
        for error, text in folder.broken:
            if defines(text, name):  # the user does not mean another task of that name
                raise UserError(f"task {name}: {error}")
        own = folder.names.get(name, [])
        files = [shown(path, include_path) for path in own]
        if len(name.encode()) > MAX_NAME:
            raise UserError(f"task {name[:20]}... has a name of {len(name)} characters; give it at most {MAX_NAME}")
        if len(files) > 1:
            raise UserError(f"task {name} is defined twice, in {' and '.join(files)}; rename one")
        if files and name in embedded and embedded[name].yaml_path != own[0]:
            log.warning(_OVERRIDES, name, files[0], "the embedded task")
        elif files and of_lm_eval and defines(text_of_lm_eval(), name):
            log.warning(_OVERRIDES, name, files[0], "lm-eval's task")
    for error, _ in folder.broken:
        log.warning("left out: %s", error)


def _not_found(name: Any, origin: _Origin, manager: Any, folder: _Folder, include_path: str | Path | None) -> UserError:
    """The error for a name that nothing defines: a broken file, one with another ending, or a mistyped name."""
    for error, text in folder.broken:
        if str(name).encode() in text:
            return UserError(f"unknown task {name!r}: {error}")
    fix = "your own YAML files need include_path"
    if include_path is not None:
        fix = f"name one that a .yaml file under {str(include_path)!r} defines"
        for path in Path(include_path).rglob("*.yml"):
            if path.stem == name:
                return UserError(f"unknown task {name!r}: lm-eval reads .yaml files only; rename {str(path)!r}")
    known = sorted({*manager.all_tasks, *_names_of_lm_eval()})
    kind = f"task, named in the group file {shown(origin.path, include_path)!r}:" if origin.path else "task"
    return unknown(kind, name, known, fix)


@lru_cache(maxsize=4)  # an index of lm-eval's is large, and an edited file makes another
def build_index(include_path: Path | None, stamp: tuple[tuple[str, int], ...], *, of_lm_eval: bool) -> Any:
    """lm-eval's task manager over the embedded tasks and those of ``include_path``, ``of_lm_eval`` over its own too."""
    from lm_eval.tasks import TaskManager

    folders = [str(paths.tasks_dir()), *([str(include_path)] if include_path else [])]
    if of_lm_eval:
        log.warning("looking through lm-eval's tasks (about 5 s)")
    with quiet():
        return TaskManager(include_path=folders, include_defaults=of_lm_eval)


@cache
def text_of_lm_eval() -> bytes:
    """Every YAML file of lm-eval's tasks, also those that are only included; 8 MB, read in a third of a second."""
    import lm_eval.tasks

    return b"\n".join(
        Path(folder, name).read_bytes()
        for folder, _, names in os.walk(Path(lm_eval.tasks.__file__).parent)
        for name in names
        if "yaml" in name or Path(name).suffix in ("", ".yml")
    )


def may_be_of_lm_eval(name: Any) -> bool:
    """Whether a name is a value or an item of a list in lm-eval's files, as every name of its index is."""
    if not isinstance(name, str) or not name.strip():
        return False
    text = text_of_lm_eval()
    # the name itself stands first in the pattern, so that the text is searched at the speed of a comparison
    for found in re.finditer(re.escape(name.encode()) + rb"[\"']?[ \t]*(?:[,\]}#]|\r?$)", text, re.MULTILINE):
        before = text[text.rfind(b"\n", 0, found.start()) + 1 : found.start()]
        if re.search(rb"(?:^|[:\-\[,])[ \t]*[\"']?$", before):
            return True
    return False


def defines(text: bytes, name: str | None) -> bool:
    """Whether a YAML text says ``task: NAME`` or ``group: NAME``, or any name."""
    value = rb"[\"']?" + re.escape(name.encode()) + rb"[\"']?[ \t]*(#.*)?\r?$" if name else rb""
    return bool(re.search(rb"^[\"']?(task|group)[\"']?[ \t]*:[ \t]*" + value, text, re.MULTILINE))


@cache
def _names_of_lm_eval() -> frozenset[str]:
    """Nearly all names of lm-eval's index, to suggest from."""
    line = rb"^[\"']?(?:task|group|tag)[\"']?[ \t]*:[ \t]*[\"']?([^\"'\s#\[\]]+)"
    return frozenset(n.decode(errors="replace") for n in re.findall(line, text_of_lm_eval(), re.MULTILINE))
