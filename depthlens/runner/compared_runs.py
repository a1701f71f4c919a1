"""Runs on disk or in memory in, their comparison out (`depthlens.analysis.run_comparison`).

A run is a folder of results (``depthlens sweep --out``, `depthlens.Result.save`), or a folder with such folders below,
as ``depthlens run`` writes one for each model. Every folder of results is found, and so is every folder of verdicts
(`depthlens.claims.Verdicts.save`), which belongs to the results of the folder above it. Results of two runs are paired
by their path below the run; where every run has results in one folder alone, they are paired whatever its name is. All
of it is read before anything is compared, so that a damaged file is reported at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from depthlens.analysis.result_folder import DOCS_FILE, QUESTIONS_FILE, RECORD_FILE, SUMMARY_FILE
from depthlens.analysis.results import Result
from depthlens.analysis.run_comparison import Comparison, compare_runs
from depthlens.analysis.run_families import Run
from depthlens.claims.verdicts import Verdicts
from depthlens.errors import UserError

T = TypeVar("T")
VERDICTS = "verdicts"  # what `depthlens.claims.Verdicts.save` writes below the results that the verdicts are of
_OF_RESULT = {DOCS_FILE, QUESTIONS_FILE, SUMMARY_FILE}
_FIX = "give a folder that `depthlens sweep --out` or `depthlens run --out` wrote"


def compare(*runs: str | os.PathLike[str] | Result, stages: bool = False) -> Comparison:
    """Compare runs: whole models, profiles over depth, losses by condition, and verdicts.

    Only what was measured with equal settings is compared; ``settings`` and ``notes`` of the comparison say what was
    not. Every run is compared with the first, or with ``stages`` with the one before it.

    Args:
        runs: Two or more folders that ``depthlens sweep`` or ``depthlens run`` wrote, or results in memory; each of
            one model.
        stages: Whether the runs are stages of training, in order.

    Raises:
        UserError: fewer than two runs, a run that does not exist, holds no results or a damaged one, or runs that have
            no task and metric in common.
    """
    if len(runs) < 2:
        given = f"run {_name_of(runs[0])!r} alone" if runs else "no run"
        raise UserError(f"{given}: a comparison needs two runs or more; {_FIX} for each")
    read = [_read(run, name) for run, name in zip(runs, _names(runs), strict=True)]
    return compare_runs(_by_place(read), stages=stages)


def _name_of(run: Any) -> str:
    if isinstance(run, Result):
        return str(run.docs["model"].iloc[0]) if len(run.docs) else "empty"
    if not isinstance(run, str | os.PathLike) or not os.fspath(run).strip() or "\0" in os.fspath(run):
        given = repr(run) if isinstance(run, str) else f"of type {type(run).__name__}"
        raise UserError(f"run {given}: {_FIX}, or a Result")
    return os.fspath(run)


def _names(runs: Sequence[Any]) -> list[str]:
    """Short names that differ: as few of the last parts of the paths as are needed, else numbered."""
    whole = [_name_of(run) for run in runs]
    parts = [
        (name,) if isinstance(run, Result) else Path(name).resolve().parts
        for run, name in zip(runs, whole, strict=True)
    ]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    folders = [p for run, p in zip(runs, parts, strict=True) if not isinstance(run, Result)]
    if again := next((p for i, p in enumerate(folders) if p in folders[:i]), None):
        raise UserError(f"run {str(Path(*again))!r} is given twice; give each run once")
    return [f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _read(run: Any, name: str) -> Run:
    """One run with everything that it holds."""
    if isinstance(run, Result):
        return Run(name, {"": run})
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"run {str(folder)!r} is not a folder; {_FIX}")
    results: dict[str, Result] = {}
    verdicts: dict[str, pd.DataFrame] = {}
    for path in sorted(p for p in (folder, *folder.rglob("*")) if p.is_dir() and not _hidden(p, folder)):
        files = {file.name for file in path.iterdir()}
        place = path.relative_to(folder).as_posix().removeprefix(".")
        if files & _OF_RESULT:
            results[place] = Result.load(path)
        elif set(Verdicts.files()) <= files or (path.name == VERDICTS and RECORD_FILE in files):
            parent = path.parent.relative_to(folder).as_posix().removeprefix(".") if path != folder else ""
            verdicts[parent] = _parts(Verdicts.load(path))
    if not results and not verdicts:
        raise UserError(f"run {str(folder)!r} holds no results; {_FIX}")
    return Run(name, results, verdicts, str(folder))


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _parts(verdicts: Verdicts) -> pd.DataFrame:
    """The parts of verdicts, with the state of the whole claim."""
    return verdicts.parts.assign(claim_state=verdicts.parts["claim"].map(verdicts.states))


def _by_place(runs: Sequence[Run]) -> list[Run]:
    """Runs whose results are all in one folder have them at the same place."""
    if any(len({*run.results, *run.verdicts}) > 1 for run in runs):
        return list(runs)
    return [replace(run, results=_unplaced(run.results), verdicts=_unplaced(run.verdicts)) for run in runs]


def _unplaced(found: Mapping[str, T]) -> dict[str, T]:
    return dict.fromkeys([""] * len(found), *found.values()) if found else {}
