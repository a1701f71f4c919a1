"""What decides the scores of a run: only runs that are equal in it are compared.

Every entry of a record can change a score, but for those that are listed here, so that a setting of a newer depthlens
is never overlooked. Listed are circumstances, which change a score by no more than rounding (machine, device, versions
of libraries, where files are), what was chosen out of documents, metrics and conditions, which are matched one by one,
and what names the model. The commit is a circumstance: versions are compared, and most commits change no score. The
record does not say which do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from depthlens.analysis.result.folder import CIRCUMSTANCES
from depthlens.analysis.result.results import Result

_IDLE = {
    *CIRCUMSTANCES,
    *("asked_tasks", "include_path", "limit", "measure", "samples", "selected_conditions"),
    *("n_docs", "n_truncated", "max_tokens_cut", "n_merged", "n_replaced_examples"),
    *("conditions", "model", "tasks"),  # read in another way
}
_OF_MODEL = {"name", "class", "fingerprint", "n_parameters", "dims", "notes", "adapter"}


def deciding(result: Result, task: str, metric: str, conditions: Sequence[str]) -> dict[str, Any]:
    """The settings that decide the scores of some conditions, by name.

    The identity of a donor, and the texts of which means are taken, decide only where a condition uses them.

    Args:
        result: A sweep.
        task: Name of the task.
        metric: Name of the metric.
        conditions: Their texts.
    """
    record, of_task = result.record, dict(result.record["tasks"][task])
    if "subtasks" in of_task:  # of a group
        of_task["subtasks"] = {name: _kept(one) for name, one in of_task["subtasks"].items()}
    model = {name: value for name, value in _kept(record.get("model") or {}).items() if name not in _OF_MODEL}
    found = _kept(record) | {"depthlens": record.get("depthlens")}
    found |= {f"model {name}": value for name, value in model.items()}
    found |= {f"task {name}": value for name, value in _kept(of_task).items()}
    found |= {name: result.metric_info(task, metric)[name] for name in ("higher_is_better", "min_effect")}
    found["version of lm-eval"] = (record.get("versions") or {}).get("lm-eval")
    if isinstance(donor := found.get("donor"), dict):
        found["donor"] = donor.get("fingerprint")
    uses = {"donor": "@donor", "task reference": "@mean"}
    unused = {name for name, mark in uses.items() if not any(mark in text for text in conditions)}
    return {name: value for name, value in found.items() if name not in unused and value is not None}


def _kept(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in _IDLE}
