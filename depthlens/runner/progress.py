"""What a run of notebooks shows while it lasts: which notebook and cell, and the bar of the work in that cell.

Kernels are other processes. Their bars (`progress`) append lines to a file that DEPTHLENS_PROGRESS names, and the last
one is shown here. Without a terminal there is a line a notebook; with ``DEPTHLENS_PROGRESS=-`` every change is a line
of JSON on standard error, the kernels' among them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from depthlens import progress

EVERY = 0.5  # seconds between looks


class RunProgress:
    """Progress over ``total`` notebooks; a context that tells kernels where to write theirs."""

    def __init__(self, total: int, *, enabled: bool) -> None:
        self._total, self._enabled, self._started = total, enabled, 0
        self._bar: tqdm | None = None
        self._run: Any = None
        self._cells = 0
        self._read = 0

    def __enter__(self) -> RunProgress:
        self._before = os.environ.get(progress.ENVIRONMENT)
        self._json = self._enabled and self._before == "-"
        handle, name = tempfile.mkstemp(prefix="depthlens-progress-")
        os.close(handle)
        self._file = Path(name)
        os.environ[progress.ENVIRONMENT] = name
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is None:
            del os.environ[progress.ENVIRONMENT]
        else:
            os.environ[progress.ENVIRONMENT] = self._before
        self._file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def notebook(self, run: Any, n_cells: int) -> Iterator[None]:
        """Show a notebook (`runner.NotebookRun`) as long as it runs."""
        self._started += 1
        self._run, self._cells = run, n_cells
        label = f"[{self._started}/{self._total}] {run.name}"
        if not self._enabled:
            yield
        elif self._json:
            with self._looking():
                self._say(cell=0, status="running")
                yield
            self._say(cell=run.cell, status=run.status, seconds=run.seconds)
        elif sys.stderr.isatty():
            form = "{desc}: cell {n}/{total} |{bar:16}| {elapsed}{postfix}"
            with tqdm(total=n_cells, desc=label, unit="cell", bar_format=form) as bar:
                self._bar = bar
                try:
                    with self._looking():
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

    def cell(self, index: int) -> None:
        """A cell has started, counted from 0."""
        if self._bar is not None:
            self._bar.n = index + 1
        elif self._enabled and self._json:
            self._say(cell=index + 1, status="running")

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        """Look at what kernels write: a cell may take minutes, and a clock that stands still looks like a hang."""
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(EVERY):
                self._look()

        clock = threading.Thread(target=look, daemon=True)
        clock.start()
        try:
            yield
        finally:
            stop.set()
            clock.join()
            self._look()

    def _look(self) -> None:
        with open(self._file, "rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        lines = [json.loads(line) for line in whole.splitlines()]
        if self._bar is None:
            for line in lines:
                self._say(**line)
        else:
            if lines:
                self._bar.set_postfix_str(shown(lines[-1]), refresh=False)
            self._bar.refresh()

    def _say(self, **about: Any) -> None:
        line = {"notebook": self._run.name, "cells": self._cells, **about}
        print(json.dumps(line), file=sys.stderr, flush=True)


def shown(line: dict[str, Any]) -> str:
    """A line of a bar, for people: what, how far, how fast, how long still."""
    text = f" | {line['what']} {line['done']}/{line['total']} {line['unit']}s"
    if line["per_second"]:
        text += f", {line['per_second']:.3g}/s"
    if line["seconds_left"]:
        text += f", {tqdm.format_interval(line['seconds_left'])} left"
    return text
