"""lm-eval's task manager over the embedded tasks, those of the user and, where one of them is asked for, its own."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from depthlens import paths
from depthlens.errors import blaming, unknown
from depthlens.progress import quiet

log = logging.getLogger(__name__)


def task_manager(names: Sequence[str], include_path: str | Path | None = None) -> Any:
    """lm-eval's task manager with the smallest index that has all names.

    Args:
        names: Tasks, groups or tags.
        include_path: Folder with more YAML files; its tasks replace those of the same name elsewhere.

    Raises:
        UserError: a name that nothing defines, and a file that cannot be read, which may define it.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    files = sorted(Path(include_path).rglob("*.yaml")) if include_path is not None else []
    stamp = tuple((str(path), path.stat().st_mtime_ns) for path in files)
    manager = _index(include_path, stamp, of_lm_eval=False)
    if any(_missing(names, manager.task_index)):
        manager = _index(include_path, stamp, of_lm_eval=True)
    if absent := next(_missing(names, manager.task_index), None):
        for path in files:  # lm-eval leaves out those that it cannot read
            with blaming(f"unknown task {absent!r}, and {path.name} cannot be read", "correct it"):
                load_yaml(path, resolve_func=False)
        raise unknown("task", absent, manager.all_tasks, "your own .yaml files need include_path")
    return manager


def _missing(names: Iterable[str], index: dict[str, Any]) -> Iterator[str]:
    """Names that an index lacks, and those that its groups name and it lacks."""
    for name in names:
        if name not in index:
            yield name
        elif index[name].kind.name == "GROUP":
            listed = (index[name].cfg or {}).get("task") or []
            yield from _missing((item for item in listed if isinstance(item, str)), index)


@lru_cache(maxsize=4)  # an index of lm-eval's is large, and an edited file makes another
def _index(include_path: str | Path | None, stamp: tuple[tuple[str, int], ...], *, of_lm_eval: bool) -> Any:
    """lm-eval's task manager; ``of_lm_eval``: over its own 14,000 files, too."""
    from lm_eval.tasks import TaskManager

    folders = [str(paths.tasks_dir()), *([str(include_path)] if include_path is not None else [])]
    if of_lm_eval:
        log.warning("looking through lm-eval's tasks (about 5 s)")
    with quiet():
        return TaskManager(include_path=folders, include_defaults=of_lm_eval)
