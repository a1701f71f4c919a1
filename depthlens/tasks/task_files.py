"""Task files: the YAML file that defines a task or group, read with its includes as lm-eval reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import fields as fields_of
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from depthlens import paths
from depthlens.errors import UserError, first_line


class Function(str):
    """A ``!function module.name`` of a YAML file, not imported."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # the class is chosen at run time
    """YAML as lm-eval reads it, but functions stay names."""


_Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))


@dataclass(frozen=True)
class TaskFile:
    """A YAML file as lm-eval reads it.

    Attributes:
        path: Where it is.
        config: Its content and that of the files it includes; functions by name.
        files: The file, those it includes, and the Python files beside them whose functions they name.
    """

    path: Path
    config: dict[str, Any]
    files: tuple[Path, ...]

    @property
    def name(self) -> Any:
        """Name of the task or group that it defines; None where it defines neither."""
        return self.config.get("group", self.config.get("task"))


def read(path: Path, above: tuple[Path, ...] = ()) -> TaskFile:
    """Read a YAML file and those it includes; ``above`` are the files that include it.

    Raises:
        UserError: a file is missing, cannot be read, is not YAML, or includes itself; names file and line.
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
        fault = f"{str(path)!r}{line} is not YAML ({problem or first_line(error)})"
        raise UserError(f"{fault}; correct the file") from error
    except OSError as error:
        included_by = f", which {above[-1].name} includes," if above else ""
        raise UserError(f"{str(path)!r}{included_by} cannot be read: {error.strerror}; correct the path") from error
    own = own if isinstance(own, dict) else {}
    files = [path]
    config: dict[str, Any] = {}
    included = own.pop("include", [])
    for name in included if isinstance(included, list) else [included]:
        other = read(path.parent / str(name), (*above, path))
        files += other.files
        config |= {key: value for key, value in other.config.items() if key != "task_list"}
    modules = {path.parent / f"{f.rpartition('.')[0].replace('.', '/')}.py" for f in leaves(own) if type(f) is Function}
    files += sorted(module for module in modules if module.is_file())
    return TaskFile(path, config | own, tuple(dict.fromkeys(files)))


def leaves(value: Any) -> Iterator[Any]:
    """The values in nested dictionaries and lists."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value


@cache
def _packages() -> dict[Path, Path]:
    """The folders that packages bring, and how they are shown."""
    import lm_eval.tasks

    own = Path(lm_eval.tasks.__file__).parent
    return {paths.tasks_dir().resolve(): Path(), own.resolve(): Path("lm_eval/tasks")}


def shown(path: Path | str, include_path: str | Path | None = None) -> str:
    """A path as the user knows it: with ``include_path`` as the user gave it, relative for files of a package."""
    homes = _packages()
    if include_path is not None:
        homes = {Path(include_path).resolve(): Path(include_path)} | homes
    for home, name in homes.items():
        if Path(path).is_relative_to(home):
            return (name / Path(path).relative_to(home)).as_posix()
    return str(path)


def changes_its_tasks(config: dict[str, Any]) -> bool:
    """Whether a group's file changes its tasks, beside naming them."""
    from lm_eval.config.group import GroupConfig

    more = set(config) - {f.name for f in fields_of(GroupConfig)} - {"tag"}
    listed = config.get("task")
    return bool(more) or (isinstance(listed, list) and any(isinstance(item, dict) for item in listed))
