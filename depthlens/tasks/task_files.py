"""Task files: the YAML file that defines a task, read with its includes, and the smallest index that has its name.

lm-eval leaves a file that it cannot read out of its index without a word, and reads 14,000 files of its own to find
one name. Here the embedded tasks and those under ``include_path`` are indexed alone, and lm-eval's own only where one
of them is asked for: whether a name can be one of lm-eval's is seen from the text of its files (half a second), which
holds every name of its index.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from depthlens import paths
from depthlens.errors import UserError, first_line, unknown
from depthlens.tasks.encoding import quiet

MAX_NAME = 128  # bytes; the store names folders after tasks, and lm-eval's longest name has 86
_IGNORED = {"__pycache__", ".ipynb_checkpoints"}  # as lm-eval does

_OVERRIDES = "task %s: %s is used, not %s of the same name; rename it to have both"

log = logging.getLogger(__name__)


class Function(str):
    """A ``!function module.name`` of a YAML file, not imported."""


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):
    """YAML as lm-eval reads it, but functions stay names."""


_Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))


@dataclass(frozen=True)
class TaskFile:
    """A YAML file as lm-eval sees it.

    Attributes:
        path: Where it is.
        config: What it says, with what it includes; functions by name.
        files: The file, what it includes, and the Python files beside them whose functions they name.
    """

    path: Path
    config: dict[str, Any]
    files: tuple[Path, ...]

    @property
    def name(self) -> Any:
        """Name of the task or group that it defines; None where it defines none."""
        return self.config.get("group", self.config.get("task"))


def read(path: Path, above: tuple[Path, ...] = ()) -> TaskFile:
    """Read a YAML file and what it includes.

    Raises:
        UserError: a file that is missing, cannot be read, is no YAML, or includes itself; names file and line.
    """
    path = path.resolve()
    if path in above:
        raise UserError(f"{str(path)!r} includes itself; correct its include")
    try:
        with path.open("rb") as file:
            own = yaml.load(file, Loader=_Loader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{str(path)!r}{line} is not YAML ({problem or first_line(error)}); correct the file"
        ) from error
    except OSError as error:
        by = f", which {above[-1].name} includes," if above else ""
        raise UserError(f"{str(path)!r}{by} cannot be read: {error.strerror}; correct the path") from error
    own = own if isinstance(own, dict) else {}
    files, merged = [path], {}
    included = own.pop("include", [])
    for name in included if isinstance(included, list) else [included]:
        one = read(path.parent / str(name), (*above, path))
        files += one.files
        merged |= {key: value for key, value in one.config.items() if key != "task_list"}
    modules = {path.parent / f"{f.rpartition('.')[0].replace('.', '/')}.py" for f in leaves(own) if type(f) is Function}
    files += sorted(module for module in modules if module.is_file())
    return TaskFile(path, merged | own, tuple(dict.fromkeys(files)))


def leaves(value: Any) -> Iterator[Any]:
    """Everything within nested dictionaries and lists that is neither."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


def shown(path: Path | str, include_path: str | Path | None = None) -> str:
    """A path as the user knows it: below ``include_path`` as that was given, relative for files that travel along."""
    import lm_eval.tasks

    own = Path(lm_eval.tasks.__file__).parent
    homes = {paths.tasks_dir().resolve(): Path(), own.resolve(): Path("lm_eval/tasks")}
    if include_path is not None:
        homes = {Path(include_path).resolve(): Path(include_path)} | homes
    for home, name in homes.items():
        if Path(path).is_relative_to(home):
            return (name / Path(path).relative_to(home)).as_posix()
    return str(path)


@dataclass
class _Folder:
    """What the YAML files of ``include_path`` define.

    Attributes:
        names: Files by the task or group that they define.
        broken: Files of tasks that cannot be read: why, and their text.
        stamp: Paths and times of the files: an index of these is good as long as they stay.
    """

    names: dict[str, list[Path]] = field(default_factory=dict)
    broken: list[tuple[UserError, bytes]] = field(default_factory=list)
    stamp: tuple[tuple[str, int], ...] = ()


def _look(folder: Path) -> _Folder:
    """Read a user's folder.

    Raises:
        UserError: a task whose name is no text, which lm-eval's index cannot hold.
    """
    found = _Folder()
    paths = sorted(p for p in folder.rglob("*.yaml") if p.is_file() and not _IGNORED.intersection(p.parts))
    for path in paths:
        try:
            one = read(path)
        except UserError as error:
            text = path.read_bytes() if os.access(path, os.R_OK) else b""
            if _defines(text, None):  # else it is no task's
                found.broken.append((error, text))
            continue
        key = "group" if "group" in one.config else "task"
        tags = one.config.get("tag") or [] if key == "task" and key in one.config else []
        named = [
            (key, one.config.get(key, "")),
            *(("tag", tag) for tag in (tags if isinstance(tags, list) else [tags])),
        ]
        for key, name in named:
            if name is None:
                raise UserError(f"{str(path)!r}: {key} has no name; write one after '{key}:'")
            if not isinstance(name, str | list | dict):
                raise UserError(f"{str(path)!r}: {key} {name!r} is not text; write it in quotes: {key}: '{name}'")
        if isinstance(one.name, str):
            found.names.setdefault(one.name, []).append(path)
    found.stamp = tuple((str(p), p.stat().st_mtime_ns) for p in paths)
    return found


def task_manager(names: Sequence[Any], include_path: str | Path | None = None) -> Any:
    """lm-eval's finder of tasks, with the smallest index that has all names.

    Args:
        names: Tasks, groups or tags.
        include_path: Folder with more YAML files; a task of theirs stands before one of the same name elsewhere.

    Raises:
        UserError: a name that nothing defines, or a file of ``include_path`` that cannot be used.
    """
    folder = _look(Path(include_path).resolve()) if include_path is not None else _Folder()
    place = str(Path(include_path).resolve()) if include_path is not None else None
    manager = _index(place, folder.stamp, of_lm_eval=False)
    used, missing = walk(names, manager.task_index)
    beyond = [name for name in missing if _may_be_of_lm_eval(name)]
    if beyond and all(name in beyond or not group.required for name, group in missing.items()):
        manager = _index(place, folder.stamp, of_lm_eval=True)
        used, missing = walk(names, manager.task_index)
    for name, group in missing.items():
        if group.required:  # others are defined by the group itself
            raise _not_found(name, group, manager, folder, include_path)
    _check(used, folder, include_path, of_lm_eval=bool(beyond))
    return manager


@dataclass(frozen=True)
class _By:
    """Who names a task: the caller, or a group's file; ``required`` unless the group may define it itself."""

    path: Path | None = None
    required: bool = True


def walk(names: Iterable[Any], index: dict[str, Any]) -> tuple[dict[str, Any], dict[Any, _By]]:
    """Entries of an index that names stand for, their groups' members included; and the names that it lacks."""
    used: dict[str, Any] = {}
    missing: dict[Any, _By] = {}

    def members(config: dict[str, Any], path: Any) -> None:
        listed = config.get("task")
        for item in listed if isinstance(listed, list) else []:
            if isinstance(item, str):
                visit(item, _By(path))
            elif isinstance(item, dict):
                visit(item.get("group", item.get("task")), _By(path, required=False))
                members(item, path)

    def visit(name: Any, group: _By) -> None:
        if not isinstance(name, str) or name not in index:
            missing.setdefault(repr(name) if isinstance(name, list | dict) else name, group)
        elif name not in used:
            entry = used[name] = index[name]
            for member in sorted(entry.tags) if entry.kind.name == "TAG" else []:
                visit(member, _By(required=False))
            if entry.kind.name == "GROUP":
                members(entry.cfg or {}, entry.yaml_path)

    for name in names:
        visit(name, _By())
    return used, missing


def changes_its_tasks(config: dict[str, Any]) -> bool:
    """Whether a group's file says more of its tasks than their names."""
    from lm_eval.config.group import GroupConfig

    more = set(config) - {f.name for f in fields_of(GroupConfig)} - {"tag"}
    listed = config.get("task")
    return bool(more) or (isinstance(listed, list) and any(isinstance(item, dict) for item in listed))


def _check(used: dict[str, Any], folder: _Folder, include_path: str | Path | None, *, of_lm_eval: bool) -> None:
    """Refuse names of the user's that are too long or defined twice; say which files are used or left out."""
    embedded = _index(None, (), of_lm_eval=False).task_index
    for name in used:
        for error, text in folder.broken:
            if _defines(text, name):  # another of that name is not what is meant
                raise UserError(f"task {name}: {error}")
        paths = folder.names.get(name, [])
        files = [shown(path, include_path) for path in paths]
        if len(name.encode()) > MAX_NAME:
            raise UserError(f"task {name[:20]}... has a name of {len(name)} characters; give it at most {MAX_NAME}")
        if len(files) > 1:
            raise UserError(f"task {name} is defined twice, in {' and '.join(files)}; rename one")
        if files and name in embedded and embedded[name].yaml_path != paths[0]:
            log.warning(_OVERRIDES, name, files[0], "the embedded task")
        elif files and of_lm_eval and _defines(_text_of_lm_eval(), name):
            log.warning(_OVERRIDES, name, files[0], "lm-eval's task")
    for error, _ in folder.broken:
        log.warning("left out: %s", error)


def _not_found(name: Any, by: _By, manager: Any, folder: _Folder, include_path: str | Path | None) -> UserError:
    """Why nothing defines a name: a file that cannot be read, one with another ending, or a mistyped name."""
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
    kind = f"task, named in the group file {shown(by.path, include_path)!r}:" if by.path else "task"
    return unknown(kind, name, known, fix)


@lru_cache(maxsize=4)  # an index of lm-eval's is large, and an edited file makes another
def _index(include_path: str | None, stamp: tuple[tuple[str, int], ...], *, of_lm_eval: bool) -> Any:
    """lm-eval's index of the embedded tasks, of ``include_path``'s and perhaps of its own."""
    from lm_eval.tasks import TaskManager

    folders = [str(paths.tasks_dir())] + ([include_path] if include_path else [])
    if of_lm_eval:
        log.warning("looking through lm-eval's tasks (about 5 s)")
    with quiet():
        return TaskManager(include_path=folders, include_defaults=of_lm_eval)


@cache
def _text_of_lm_eval() -> bytes:
    """Every YAML file of lm-eval's tasks, those that are only included too; 8 MB, a third of a second."""
    import lm_eval.tasks

    found = []
    for folder, _, names in os.walk(Path(lm_eval.tasks.__file__).parent):
        for name in names:
            if "yaml" in name or Path(name).suffix in ("", ".yml"):
                found.append(Path(folder, name).read_bytes())
    return b"\n".join(found)


def _may_be_of_lm_eval(name: Any) -> bool:
    """Whether a name stands in lm-eval's files as a value or an item of a list; every name of its index does."""
    if not isinstance(name, str) or not name.strip():
        return False
    value = rb"(?:^|[:\-\[,])[ \t]*[\"']?" + re.escape(name.encode()) + rb"[\"']?[ \t]*(?:[,\]}#]|\r?$)"
    return bool(re.search(value, _text_of_lm_eval(), re.MULTILINE))


def _defines(text: bytes, name: str | None) -> bool:
    """Whether a YAML text says ``task: NAME`` or ``group: NAME``, or any name."""
    value = rb"[\"']?" + re.escape(name.encode()) + rb"[\"']?[ \t]*(#.*)?\r?$" if name else rb""
    return bool(re.search(rb"^[\"']?(task|group)[\"']?[ \t]*:[ \t]*" + value, text, re.MULTILINE))


@cache
def _names_of_lm_eval() -> frozenset[str]:
    """Nearly all names of lm-eval's index, to suggest from."""
    line = rb"^[\"']?(?:task|group|tag)[\"']?[ \t]*:[ \t]*[\"']?([^\"'\s#\[\]]+)"
    return frozenset(n.decode(errors="replace") for n in re.findall(line, _text_of_lm_eval(), re.MULTILINE))
