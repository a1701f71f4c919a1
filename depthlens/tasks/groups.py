"""What the names of lm-eval's tasks stand for: the index that has them, and groups that are one task.

lm-eval gives a group a score of its own where its YAML file has ``aggregate_metric_list``: with ``weight_by_size``, the
mean over all documents of its tasks (`mmlu`: 57 subjects). Such a group is one task here. Its documents are numbered
through all its tasks, so that a number means the same document whatever ``limit`` is, and each document's own task is
known (``subtask`` in `depthlens.analysis.questions`). Other groups, and tags, only stand for their tasks.

Answers are computed and kept task by task, so that a group and its tasks share them. Chance and floor of a group are
the means over documents of its tasks' own: who guesses may know the subject.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from operator import mul
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

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


class Member(NamedTuple):
    """Of a task: the group that it is a part of.

    Attributes:
        group: Name of the group.
        first: The number that the task's document 0 has in the group.
        version: Of the group.
    """

    group: str
    first: int
    version: Any


def members(name: str, loaded: Mapping[str, Any]) -> dict[str, Member]:
    """The tasks of a group that is one task; none where a name is no such group.

    Args:
        name: What was asked for.
        loaded: What lm-eval's task manager loaded for it.
    """
    tasks, group = loaded["tasks"], loaded["groups"].get(name)
    metrics = group.aggregate_metric_list if group else None
    if not metrics or not all(m.weight_by_size for m in metrics) or len({t.OUTPUT_TYPE for t in tasks.values()}) > 1:
        return {}
    found, first = {}, 0
    for leaf, task in tasks.items():
        found[leaf] = Member(name, first, (group.metadata or {}).get("version"))
        first += len(task.eval_docs)
    return found


def names(tasks: Mapping[str, Any]) -> list[str]:
    """What loaded tasks are called in a result: a group by its name, once."""
    return list(dict.fromkeys(leaf if (member := of(task)) is None else member.group for leaf, task in tasks.items()))


def of(task: Any) -> Member | None:
    """The group that a loaded task is a part of."""
    return getattr(task, "depthlens_group", None)


def renumbered(table: pd.DataFrame, member: Member | None) -> pd.DataFrame:
    """A table with the columns task and doc_id, with the name and the numbers of the task's group."""
    if member is None:
        return table
    return table.assign(task=member.group, doc_id=table["doc_id"] + member.first)


def described(records: Mapping[str, dict[str, Any]], of_task: Mapping[str, Member | None]) -> dict[str, dict[str, Any]]:
    """The records of tasks, with one record for the tasks of each group.

    Args:
        records: By task, see `depthlens.tasks.prepared_task.Prepared.describe`.
        of_task: The groups.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, record in records.items():
        if (member := of_task.get(name)) is None:
            found[name] = record
            continue
        group = found.setdefault(member.group, {"version": member.version, "subtasks": {}})
        group["subtasks"][name] = record
    return {name: _joined(list(r["subtasks"].values())) | r if "subtasks" in r else r for name, r in found.items()}


def _joined(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What records of tasks have in common, with their numbers of documents and the means of their levels."""
    n_docs = [record["n_docs"] for record in records]
    joined = {"num_fewshot": None, "examples_by_seed": None} | _common(records)
    joined |= {"n_docs": sum(n_docs), "n_truncated": sum(record["n_truncated"] for record in records)}
    joined["max_tokens_cut"] = max(record["max_tokens_cut"] for record in records)
    joined["metrics"] = {}
    for metric in (name for name in records[0]["metrics"] if all(name in record["metrics"] for record in records)):
        infos = [record["metrics"][metric] for record in records]
        levels = {level: [info[level] for info in infos] for level in ("chance", "floor")}
        means = {k: None if None in v else sum(map(mul, v, n_docs)) / sum(n_docs) for k, v in levels.items()}
        joined["metrics"][metric] = _common(infos) | means
    return joined


def _common(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The entries that all records have."""
    return {key: value for key, value in records[0].items() if all(record.get(key) == value for record in records)}
