"""Groups of lm-eval that are one task: the documents of all their tasks, pooled.

lm-eval gives a group a score of its own where its YAML file has ``aggregate_metric_list``: with ``weight_by_size``, the
mean over all documents of its tasks (`mmlu`: 57 subjects). Such a group is one task here. Its documents are numbered
through all its tasks, so that a number means the same document whatever ``limit`` is, and each document's own task is
known (``subtask`` in `depthlens.analysis.questions`). Other groups, and tags, only stand for their tasks.

Answers are computed and kept task by task, so that a group and its tasks share them. Chance and floor of a group are
the means over documents of its tasks' own: who guesses may know the subject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from depthlens.errors import UserError

_SUMS, _LARGEST = ("n_docs", "n_truncated", "n_replaced_examples"), ("max_tokens_cut",)


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


def members(name: str, tasks: Mapping[str, Any], index: Mapping[str, Any]) -> dict[str, Member]:
    """The tasks of a group that is one task; none where a name is no such group.

    Args:
        name: What was asked for.
        tasks: Its lm-eval tasks.
        index: lm-eval's index with this name.
    """
    config = (index[name].cfg or {}) if name in index and index[name].kind.name == "GROUP" else {}
    metrics = config.get("aggregate_metric_list") or []
    metrics = [metrics] if isinstance(metrics, dict) else metrics
    by_size = bool(metrics) and all(metric.get("weight_by_size", True) for metric in metrics)
    if not by_size or len({task.OUTPUT_TYPE for task in tasks.values()}) > 1:
        return {}
    found, first = {}, 0
    for leaf, task in tasks.items():
        found[leaf] = Member(name, first, (config.get("metadata") or {}).get("version"))
        first += len(task.eval_docs)
    return found


def check(tasks: Mapping[str, Any], leaf: str, member: Member | None) -> None:
    """Refuse a task that is asked for in two ways.

    Raises:
        UserError: the task is there already, alone or in another group.
    """
    if leaf not in tasks or (before := of(tasks[leaf])) == member:
        return
    names = [leaf if m is None else f"group {m.group}" for m in (before, member)]
    raise UserError(f"task {leaf} is asked for twice, as {' and as '.join(names)}; leave one of them out")


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
        elif member.group not in found:
            inside = {n: r for n, r in records.items() if (m := of_task.get(n)) is not None and m.group == member.group}
            found[member.group] = {**_joined(list(inside.values())), "version": member.version, "subtasks": inside}
    return found


def _joined(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first, n_docs = records[0], [record["n_docs"] for record in records]
    same = {key: value for key, value in first.items() if all(record.get(key) == value for record in records)}
    numbers = {key: sum(record[key] for record in records) for key in _SUMS}
    numbers |= {key: max(record[key] for record in records) for key in _LARGEST}
    metrics: dict[str, dict[str, Any]] = {}
    for metric, info in first["metrics"].items():
        infos = [record["metrics"][metric] for record in records if metric in record["metrics"]]
        if len(infos) < len(records):
            continue
        metrics[metric] = {key: value for key, value in info.items() if all(i.get(key) == value for i in infos)}
        metrics[metric]["binary"] = all(i["binary"] for i in infos)
        for level in ("chance", "floor"):
            values = [i[level] for i in infos]
            known = None not in values
            metrics[metric][level] = (
                sum(v * n for v, n in zip(values, n_docs, strict=True)) / sum(n_docs) if known else None
            )
    skipped = {metric: why for record in records for metric, why in record["skipped_metrics"].items()}
    return {
        "num_fewshot": None, "examples_by_seed": None, **same, **numbers,
        "metrics": metrics, "skipped_metrics": skipped,
    }  # fmt: skip
