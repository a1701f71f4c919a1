"""Records of several results as one: what they agree on, and the tasks of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from depthlens.errors import UserError


def agreed(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The entries that are the same in all records."""
    first = records[0]
    return {k: v for k, v in first.items() if all(k in r and r[k] == v for r in records)}


def joined_tasks(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The tasks of all records.

    Raises:
        UserError: two records disagree on what a task or a metric is.
    """
    tasks: dict[str, dict] = {}
    for task in dict.fromkeys(t for r in records for t in r.get("tasks", {})):
        entries = [r["tasks"][task] for r in records if task in r.get("tasks", {})]
        for field in ("version", "num_fewshot", "output_type"):
            values = [e.get(field) for e in entries]
            if any(v != values[0] for v in values):
                raise UserError(f"the results disagree on {field} of task {task!r}: {values}; name them apart")
        metrics: dict[str, dict] = {}
        for metric, info in ((m, i) for e in entries for m, i in e.get("metrics", {}).items()):
            known = metrics.setdefault(metric, dict(info))
            if any(known.get(k) != info.get(k) for k in ("higher_is_better", "chance")):
                raise UserError(f"the results disagree on metric {metric!r} of task {task!r}; name them apart")
        tasks[task] = {**agreed(entries), "metrics": metrics}
    return tasks
