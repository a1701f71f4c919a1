"""What a run of notebooks would cost: each is executed on made-up answers, and what it asks for is counted.

Every cell runs, in a kernel whose engine counts (`depthlens.store.dry_run`): the model is loaded, documents are
tokenised, a few requests of each kind are tried, and nothing is stored. A cell that stops on made-up answers does not
stop the next one; it is named, because what it would have computed is missing. Single forward passes, means and the
drawing of figures are real, so the time of the kernel without its trials is that of everything that is not counted.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from depthlens import paths
from depthlens.experiments.planning import COUNTS, Plan, planned
from depthlens.progress import say
from depthlens.runner import execute, several
from depthlens.runner.notebook_files import error_of
from depthlens.runner.report import NotebookRun
from depthlens.store import dry_run


@dataclass(frozen=True)
class RunPlan:
    """What notebooks would cost.

    Attributes:
        plan: One row a notebook in its table: calls (of an engine, or of what measures text by text), what
            `depthlens.experiments.planning.Plan` counts, and seconds here. Answers that one notebook needs and another
            has computed count once where a store keeps them.
        stopped: One line for each cell that stops on made-up answers.
    """

    plan: Plan
    stopped: list[str]

    def __repr__(self) -> str:
        notes = [f"Not counted: {line}" for line in self.stopped]
        return "\n".join([repr(self.plan), *notes])


def plan_run(
    names: Sequence[str] | str,
    *,
    profile: str | None = "demo",
    parameters: Mapping[str, object] | None = None,
    progress: bool = True,
) -> RunPlan:
    """What `depthlens.runner.execute.run` with the same arguments would cost; nothing is stored.

    Args:
        names: See `depthlens.runner.execute.run`.
        profile: The same.
        parameters: The same.
        progress: Say on stderr which notebook is planned.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    rows, lines, stopped = [], [], []
    with tempfile.TemporaryDirectory(prefix="depthlens-plan-") as folder:
        run = execute.prepare(names, out=Path(folder) / "out", profile=profile, parameters=parameters)
        with _counting_kernels(Path(folder)) as counted:
            for i, notebook in enumerate(run.report.notebooks):
                if progress:
                    say(f"[{i + 1}/{len(run.report.notebooks)}] planning {notebook.name}", notebook=notebook.name)
                start = time.monotonic()
                stopped += _execute(notebook)
                took = time.monotonic() - start
                new = next(counted)
                # what is done besides: loading, means, scoring, figures
                new.append({"flops": 0.0, "seconds": took - sum(line["spent"] for line in new), "store_bytes": 0})
                rows.append(_row(notebook.name, new))
                lines += new
    return RunPlan(planned(pd.DataFrame(rows), lines), stopped)


def plan_models(
    names: Sequence[str] | str,
    models: Sequence[str],
    *,
    profile: str | None = "demo",
    parameters: Mapping[str, object] | None = None,
    progress: bool = True,
) -> Iterator[tuple[str, RunPlan]]:
    """Plan the same notebooks on each of some models; see `plan_run` and `depthlens.runner.several.run_models`.

    Raises:
        UserError: a model that does not exist, cannot be reached or is named twice; or see `plan_run`.
    """
    for model in several.checked(models, parameters)[0]:
        values = {**(parameters or {}), "model": model}
        yield model, plan_run(names, profile=profile, parameters=values, progress=progress)


@contextmanager
def _counting_kernels(folder: Path) -> Iterator[Iterator[list[dict[str, Any]]]]:
    """Within the context kernels only count; each item is what they noted since the one before."""
    path = folder / dry_run.LINES
    path.touch()

    def noted() -> Iterator[list[dict[str, Any]]]:
        with open(path, encoding="utf-8") as file:
            while True:
                yield [json.loads(line) for line in file]

    before = os.environ.get(dry_run.ENVIRONMENT)
    os.environ[dry_run.ENVIRONMENT] = str(folder)
    try:
        yield noted()
    finally:
        os.environ.pop(dry_run.ENVIRONMENT)
        if before is not None:
            os.environ[dry_run.ENVIRONMENT] = before


def _execute(run: NotebookRun) -> list[str]:
    """Run every cell of a notebook, also behind one that stopped, and say which stopped."""
    nb = load_notebook_node(str(paths.notebooks_dir() / f"{run.name}.ipynb"))
    nb = parameterize_notebook(nb, run.parameters, kernel_name="python3", language="python")
    kernel: dict[str, Any] = {"kernel_manager_class": execute.OwnInterpreter, "kernel_name": "python3"}
    try:
        NotebookClient(nb, allow_errors=True, timeout=None, **kernel).execute()
    except DeadKernelError:
        return [f"{run.name}: {execute.KERNEL_DIED}"]
    found = ((number, error_of(cell)) for number, cell in enumerate(nb.cells, start=1) if cell.cell_type == "code")
    return [f"{run.name}, cell {number}: {error}" for number, error in found if error]


def _row(name: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    seconds = math.nan if any(line["seconds"] is None for line in lines) else sum(line["seconds"] for line in lines)
    counts = {count: sum(line.get(count, 0) for line in lines) for count in COUNTS}
    return {"notebook": name, "calls": sum("name" in line for line in lines), **counts, "seconds": round(seconds)}
