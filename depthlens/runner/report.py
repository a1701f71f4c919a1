"""What a run of notebooks did: the content of OUT/record.json and of each notebook's metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class NotebookRun:
    """One notebook of a run.

    Attributes:
        name: File name without ending.
        parameters: Values that differ from the notebook's defaults.
        given: Those of them that the caller gave, over the profile's.
        status: ``not run``, then ``ok``, ``failed`` or ``interrupted``.
        seconds: How long it ran.
        cell: Number of the cell that failed, from 1.
        error: One line that names the notebook, the cell and the error.
        question: The notebook's title.
        headline: Text of its finding.
    """

    name: str
    parameters: dict[str, object]
    given: dict[str, object] = field(default_factory=dict)
    status: str = "not run"
    seconds: float | None = None
    cell: int | None = None
    error: str | None = None
    question: str = ""
    headline: str = ""

    def fail(self, cell: int, message: str) -> None:
        """Note that a cell (from 1) failed."""
        self.status, self.cell, self.error = "failed", cell, f"notebook {self.name}, cell {cell}: {message}"


@dataclass
class RunReport:
    """What a run did; the same as OUT/record.json."""

    out: Path
    profile: str | None
    started: str
    finished: str = ""
    depthlens: str | None = None
    git_commit: str | None = None
    python: str = ""
    versions: dict[str, str | None] = field(default_factory=dict)
    notebooks: list[NotebookRun] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """One line per notebook that failed."""
        return [run.error for run in self.notebooks if run.status == "failed" and run.error]

    def left_out(self) -> dict[str, list[str]]:
        """For each notebook the values that the caller gave and that it does not declare, if there are any."""
        given = dict.fromkeys(name for run in self.notebooks for name in run.given)
        lacking = {run.name: [name for name in given if name not in run.given] for run in self.notebooks}
        return {name: values for name, values in lacking.items() if values}

    @property
    def exit_code(self) -> int:
        """130 after an interrupt, 1 where a notebook failed, else 0."""
        states = {run.status for run in self.notebooks}
        return 130 if "interrupted" in states else 1 if "failed" in states else 0
