"""Runs on disk or in memory in, their comparison out (`depthlens.analysis.runs.comparison`).

A run is a folder that ``depthlens sweep --out`` or `depthlens.Result.save` wrote, or a result in memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from depthlens.analysis.result.results import Result
from depthlens.analysis.runs.comparison import Comparison, compare_runs
from depthlens.errors import UserError
from depthlens.runner import logs


def compare(*runs: str | os.PathLike[str] | Result, stages: bool = False, from_logs: bool = False) -> Comparison:
    """Compare runs: whole models, profiles over depth, and losses by condition.

    Only what was measured with equal settings is compared; ``notes`` of the comparison say what was not. Every run is
    compared with the first, or with ``stages`` with the one before it.

    Args:
        runs: Two or more folders that ``depthlens sweep`` wrote, or results in memory.
        stages: Whether the runs are stages of training, in order.
        from_logs: Whether they are logs of lm-eval or Inspect (`depthlens.runner.logs`).

    Raises:
        UserError: fewer than two runs, one run twice, a run that holds no results or a damaged one, runs that have
            no task and metric in common, or logs of which no two can be compared.

    Example:
        >>> comparison = dl.compare(one, other)
        >>> comparison.runs
        ['step1', 'step2']
    """
    names, given = _names(runs), logs.read([Path(str(run)) for run in runs]) if from_logs else runs
    read = [run if isinstance(run, Result) else Result.load(Path(run)) for run in given]
    found = compare_runs(dict(zip(names, read, strict=True)), stages=stages)
    if from_logs and found.notes and not found.table["reference"].any():
        raise UserError(f"{'; '.join(found.notes)}; give logs of the same questions and settings")
    paths = ["" if isinstance(run, Result) else str(Path(run)) for run in runs]
    return replace(found, record=found.record | {"paths": paths})


def _names(runs: Sequence[str | os.PathLike[str] | Result]) -> list[str]:
    """Names that differ: of the model or the folder, with as many of the folders above it as are needed."""
    paths = [(run.model,) if isinstance(run, Result) else Path(run).resolve().parts for run in runs]
    depth = next((d for d in range(1, 100) if len({path[-d:] for path in paths}) == len(paths)), 1)
    names = ["/".join(path[-depth:]) for path in paths]
    if again := [path for path in paths if len(path) > 1 and paths.count(path) > 1]:
        raise UserError(f"run {str(Path(*again[0]))!r} is given twice; give each run once")
    return [f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name for i, name in enumerate(names)]
