"""lm-eval's task manager over the embedded tasks, those of the user and, where one of them is asked for, its own."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from depthlens import paths
from depthlens.errors import UserError, unknown
from depthlens.progress import quiet

log = logging.getLogger(__name__)


def task_manager(names: Sequence[Any], include_path: str | Path | None = None) -> Any:
    """lm-eval's task manager with the smallest index that has all names.

    Args:
        names: Tasks, groups or tags.
        include_path: Folder with more YAML files; its tasks replace those of the same name elsewhere.

    Raises:
        UserError: a name that nothing defines.
    """
    files = sorted(Path(include_path).rglob("*.yaml")) if include_path is not None else []
    stamp = tuple((str(path), path.stat().st_mtime_ns) for path in files)
    manager = _index(include_path, stamp, of_lm_eval=False)
    if set(_missing(names, manager.task_index)):
        manager = _index(include_path, stamp, of_lm_eval=True)
    if absent := next(_missing(names, manager.task_index), None):
        raise _not_found(absent, manager.all_tasks, files)
    return manager


def _missing(names: Iterable[Any], index: dict[str, Any]) -> Iterator[Any]:
    """Names that an index lacks, and those that its groups name and it lacks."""
    for name in names:
        if not isinstance(name, str) or name not in index:
            yield name
        elif index[name].kind.name == "GROUP":
            listed = (index[name].cfg or {}).get("task")
            yield from _missing((item for item in listed or [] if isinstance(item, str)), index)


def _not_found(name: Any, known: Sequence[str], files: Sequence[Path]) -> UserError:
    """The error for a name that nothing defines; lm-eval leaves files out that it cannot read."""
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    fix = "your own .yaml files need include_path"
    for path in files:
        try:
            load_yaml(path, resolve_func=False)
        except (yaml.YAMLError, OSError, ValueError) as error:
            fix = f"a file cannot be read: {' '.join(str(error).split())}"
    return unknown("task", name, known, fix)


@lru_cache(maxsize=4)  # an index of lm-eval's is large, and an edited file makes another
def _index(include_path: str | Path | None, stamp: tuple[tuple[str, int], ...], *, of_lm_eval: bool) -> Any:
    """lm-eval's task manager; ``of_lm_eval``: over its own 14,000 files, too."""
    from lm_eval.tasks import TaskManager

    folders = [str(paths.tasks_dir()), *([str(include_path)] if include_path is not None else [])]
    if of_lm_eval:
        log.warning("looking through lm-eval's tasks (about 5 s)")
    with quiet():
        return TaskManager(include_path=folders, include_defaults=of_lm_eval)
