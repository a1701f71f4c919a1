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
from operator import mul
from typing import Any, NamedTuple

import pandas as pd


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
    joined |= {"n_docs": sum(n_docs), "metrics": {}, "skipped_metrics": {}}
    for key in ("n_truncated", "n_replaced_examples"):
        joined[key] = sum(record[key] for record in records)
    joined["max_tokens_cut"] = max(record["max_tokens_cut"] for record in records)
    for record in records:
        joined["skipped_metrics"] |= record["skipped_metrics"]
    for metric in records[0]["metrics"]:
        infos = [record["metrics"][metric] for record in records if metric in record["metrics"]]
        if len(infos) == len(records):
            joined["metrics"][metric] = _common(infos) | {"binary": all(info["binary"] for info in infos)}
            for level in ("chance", "floor"):
                values = [info[level] for info in infos]
                mean = None if None in values else sum(map(mul, values, n_docs)) / sum(n_docs)
                joined["metrics"][metric][level] = mean
    return joined


def _common(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The entries that all records have."""
    return {key: value for key, value in records[0].items() if all(record.get(key) == value for record in records)}
