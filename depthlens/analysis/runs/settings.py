"""In what runs differ, and whether it can change a score: only runs with equal settings are compared.

Every entry of a record is of one kind:

* **decides**: it can change a score. All entries do that are not listed here, so that a setting of a newer depthlens is
  never overlooked;
* **circumstance**: it cannot change a score, or by no more than rounding (machine, device, versions of libraries, where
  files are), or says what was chosen out of documents, metrics and conditions, which are matched one by one;
* **model**: what is compared.

The commit is a circumstance: versions are compared, and most commits change no score. The record does not say which do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from depthlens.analysis.result.folder import CIRCUMSTANCES, text
from depthlens.analysis.result.results import Result


DECIDES, CIRCUMSTANCE, MODEL = "decides", "circumstance", "model"
COLUMNS = ["place", "task", "setting", "kind", "equal", "run", "value"]
_MATCHED = {
    *("asked_tasks", "include_path", "limit", "measure", "samples", "selected_conditions"),
    *("n_docs", "n_truncated", "max_tokens_cut", "n_replaced_examples"),
}
_MODEL = {f"model {key}" for key in ("name", "class", "fingerprint", "n_parameters", "dims", "notes", "adapter")}
_DECIDING_VERSIONS = {"depthlens", "version of lm-eval"}
_LEFT_OUT = ("conditions", "metrics", "model", "parts", "skipped_metrics", "tasks", "versions")  # read in another way


def settings(result: Result, task: str, metric: str) -> dict[str, Any]:
    """Every setting of a task and metric by name; ``model ...`` are those of the model, ``task ...`` of the task."""
    info, of_task = result.metric_info(task, metric), dict(result.record["tasks"][task])
    if "subtasks" in of_task:  # of a group
        of_task["subtasks"] = {
            name: {key: value for key, value in one.items() if key not in _LEFT_OUT and kind_of(key) == DECIDES}
            for name, one in of_task["subtasks"].items()
        }
    parts = {"": result.record, "model ": result.record.get("model") or {}}
    parts |= {"version of ": result.record.get("versions") or {}, "task ": of_task}
    named = {f"{of}{key}": value for of, part in parts.items() for key, value in part.items() if key not in _LEFT_OUT}
    return named | {"higher_is_better": info["higher_is_better"], "min_effect": info["min_effect"]}


def kind_of(setting: str) -> str:
    """Whether a setting `DECIDES` scores, is a `CIRCUMSTANCE` or is of the `MODEL`."""
    if setting in _MODEL or setting in _DECIDING_VERSIONS:
        return MODEL if setting in _MODEL else DECIDES
    idle = setting.startswith("version of ") or setting.rpartition(" ")[2] in {*CIRCUMSTANCES, *_MATCHED}
    return CIRCUMSTANCE if idle else DECIDES


def deciding(named: Mapping[str, Any], conditions: Sequence[str]) -> dict[str, Any]:
    """The settings that decide the scores of some conditions.

    The identity of a donor, and the texts of which means are taken, decide only where a condition uses them.

    Args:
        named: Of `settings`.
        conditions: Their texts.
    """
    uses = {"donor": "@donor", "task reference": "@mean"}
    unused = {name for name, mark in uses.items() if not any(mark in text for text in conditions)}
    kept = {k: v for k, v in named.items() if kind_of(k) == DECIDES and k not in unused and v is not None}
    if isinstance(kept.get("donor"), dict):
        kept["donor"] = kept["donor"].get("fingerprint")
    return kept


def table(runs: Mapping[str, Mapping[str, Result]]) -> pd.DataFrame:
    """One row a setting and run, for the first metric of every task.

    Args:
        runs: By name the results of each run, by the folder that they are in.

    Returns:
        ``COLUMNS``: ``equal`` says whether all runs that have the task have the same value, ``value`` is a text.
    """
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for run, results in runs.items():
        for place, result in results.items():
            for task, metric in result.docs.groupby("task", sort=False)["metric"].first().items():
                found.setdefault((place, str(task)), {})[run] = settings(result, str(task), str(metric))
    rows = []
    for where, of_runs in found.items():
        for name in dict.fromkeys(name for named in of_runs.values() for name in named):
            values = {run: named.get(name) for run, named in of_runs.items()}
            equal = all(value == next(iter(values.values())) for value in values.values())
            about = *where, name.removeprefix("task "), kind_of(name), equal
            rows += [(*about, run, text(value)) for run, value in values.items()]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"equal": "bool"})
