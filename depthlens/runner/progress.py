"""What a run of notebooks shows while it lasts: which notebook and cell, and the bar of the work in that cell.

Kernels are other processes. Their bars (`depthlens.progress`) append lines to a file that DEPTHLENS_PROGRESS names, and
the last line is shown here. Without a terminal there is a line when a notebook begins, one for each cell of code, and
one when it ends. With ``DEPTHLENS_PROGRESS=-`` every change is a line of JSON on standard error, and so are those of
the kernels.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from depthlens import progress
from depthlens.runner.report import NotebookRun

EVERY = 0.5  # seconds between two refreshes


class RunProgress:
    """Progress over ``total`` notebooks; within its context kernels write theirs to a file that it reads."""

    def __init__(self, total: int, *, enabled: bool) -> None:
        self._total, self._enabled, self._started = total, enabled, 0
        self._bar: tqdm | None = None
        self._name = self._label = ""
        self._began = 0.0
        self._cells = 0
        self._read = 0  # bytes of the kernels' file

    def __enter__(self) -> RunProgress:
        self._before = os.environ.get(progress.ENVIRONMENT)
        self._json = self._enabled and self._before == "-"
        handle, name = tempfile.mkstemp(prefix="depthlens-progress-")
        os.close(handle)
        self._file = Path(name)
        os.environ[progress.ENVIRONMENT] = name
        return self

    def __exit__(self, *error: object) -> None:
        os.environ.pop(progress.ENVIRONMENT)
        if self._before is not None:
            os.environ[progress.ENVIRONMENT] = self._before
        self._file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def notebook(self, run: NotebookRun, n_cells: int) -> Iterator[None]:
        """Show a notebook as long as it runs."""
        self._started += 1
        self._name, self._cells = run.name, n_cells
        self._label = label = f"[{self._started}/{self._total}] {run.name}"
        self._began = time.monotonic()
        if not self._enabled:
            yield
        elif self._json:
            with self._following():
                self._say(cell=0, status="running")
                yield
            self._say(cell=run.cell, status=run.status, seconds=run.seconds)
        elif sys.stderr.isatty():
            form = "{desc}: cell {n}/{total} |{bar:16}| {elapsed}{postfix}"
            with tqdm(total=n_cells, desc=label, unit="cell", bar_format=form) as bar:
                self._bar = bar
                try:
                    with self._following():
                        yield
                finally:
                    bar.n = run.cell or (n_cells if run.status == "ok" else bar.n)
                    bar.set_postfix_str("", refresh=False)
                    bar.set_description_str(f"{label} {run.status}")
                    self._bar = None
        else:
            print(f"{label}: running {n_cells} cells", file=sys.stderr, flush=True)
            yield
            print(f"{label}: {run.status} after {run.seconds:.1f} s", file=sys.stderr, flush=True)

    def cell(self, number: int) -> None:
        """A cell has started, counted from 1."""
        if self._bar is not None:
            self._bar.n = number
        elif self._enabled and self._json:
            self._say(cell=number, status="running")
        elif self._enabled:
            seconds = time.monotonic() - self._began
            print(f"{self._label}: cell {number} of {self._cells} at {seconds:.1f} s", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def _following(self) -> Iterator[None]:
        """Show what kernels write while a cell runs: it may take minutes, and a bar that never changes looks hung."""
        stop = threading.Event()

        def follow() -> None:
            while not stop.wait(EVERY):
                self.refresh()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.refresh()

    def refresh(self) -> None:
        """Show the lines that kernels have written since the last call; a line without its end waits."""
        with open(self._file, "rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        states = [json.loads(line) for line in whole.splitlines()]
        if self._bar is None:
            for state in states:
                self._say(**state)
        else:
            if states:
                self._bar.set_postfix_str(bar_text(states[-1]), refresh=False)
            self._bar.refresh()

    def _say(self, **about: Any) -> None:
        line = {"notebook": self._name, "cells": self._cells, **about}
        print(json.dumps(line), file=sys.stderr, flush=True)


def bar_text(line: dict[str, Any]) -> str:
    """The state of a kernel's bar for people: what, how far, how fast, how long still."""
    text = f" | {line['what']} {line['done']}/{line['total']} {line['unit']}s"
    if line["per_second"]:
        text += f", {line['per_second']:.3g}/s"
    if line["seconds_left"]:
        text += f", {tqdm.format_interval(line['seconds_left'])} left"
    return text
