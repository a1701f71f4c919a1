"""One progress bar for all long work: rows done, rows/s and time left, also in a notebook that runs headlessly.

Rows that a store already has do not count as work done, so the rate is that of new rows. Where the operations that are
needed were counted (as `depthlens plan` counts them), the time left is theirs: long documents and early layers take
longer than others. With DEPTHLENS_PROGRESS every change is also a line of JSON for programs: ``-`` writes it to
standard error instead of the bar, and a path appends it to that file. ``depthlens run`` shows the bar of the running
notebook in this way.

In the kernel of a notebook that a person runs, bars go to standard output, because JupyterLab gives standard error a
red background. Under ``depthlens run`` they stay on standard error, which pages fold away.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm import tqdm

ENVIRONMENT = "DEPTHLENS_PROGRESS"
EVERY = 0.5  # seconds between two states
_SILENT = {"lm_eval": logging.CRITICAL, "datasets": logging.CRITICAL, "transformers": logging.ERROR}
_quiet = threading.RLock()


class Bar(tqdm):
    """A tqdm bar that also writes its state as lines of JSON where DEPTHLENS_PROGRESS says so."""

    def __init__(self, **options: Any) -> None:
        self._sink = os.environ.get(ENVIRONMENT, "")
        self._kept: int | None = None
        self._needed = 0.0
        self._spent: Callable[[], float] = float
        # standard error by default; as JSON goes there, what tqdm writes beside its state goes nowhere
        file = io.StringIO() if self._sink == "-" else sys.stdout if not self._sink and _in_kernel() else None
        super().__init__(**{"mininterval": EVERY, "miniters": 1, "file": file, **options})

    def expects(self, needed: int | float, spent: Callable[[], int | float]) -> None:
        """Tell the time left from work instead of rows.

        Args:
            needed: Operations of all rows that are to be computed.
            spent: How many of them are done by now.
        """
        self._needed, self._spent = needed, spent

    @property
    def format_dict(self) -> dict[str, Any]:
        """As of tqdm; ``rate`` is that at which the rows that are left will be done."""
        state = super().format_dict
        total, n, first, elapsed = (state[name] or 0 for name in ("total", "n", "initial", "elapsed"))
        if total and first >= total:
            return state | {"bar_format": "{desc}: all {total_fmt} {unit}s from the store"}
        spent = self._spent()
        if elapsed > 0 and n < total and 0 < spent < self._needed:
            return state | {"rate": (total - n) / (elapsed * (self._needed - spent) / spent)}
        return state | {"rate": (n - first) / elapsed if n > first and elapsed > 0 else None}

    def kept(self, n: int) -> None:
        """Show how many rows a store has, so that stopping now loses only what came after."""
        self._kept = n
        self.set_postfix_str(f"{n} kept", refresh=False)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        """Show the state, and write it where DEPTHLENS_PROGRESS says."""
        if not self._sink:
            return super().display(msg, pos)
        state = self.format_dict
        rate, total = state["rate"], state["total"]
        line = {
            "what": self.desc.removesuffix(": "),
            "done": state["n"],
            "total": total,
            "held": state["initial"],
            "kept": self._kept,
            "unit": self.unit,
            "per_second": rate,
            "seconds_left": (total - state["n"]) / rate if rate and total is not None else None,
        }
        text = json.dumps(line) + "\n"
        if self._sink == "-":
            sys.stderr.write(text)
            return True
        with open(self._sink, "a", encoding="utf-8") as file:
            file.write(text)
        return super().display(msg, pos)


bar = Bar


def _in_kernel() -> bool:
    """Whether this process is the kernel of a notebook; a terminal's IPython is none."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


_busy = False  # whether `working` shows a line now


@contextmanager
def working(what: str) -> Iterator[None]:
    """Tell a person in the kernel of a notebook what takes seconds now, and then how many it took.

    Nothing is said in a terminal, where the command does that, and in a notebook under ``depthlens run``.

    Args:
        what: In words, such as ``"loading smollm2-135m"``.
    """
    global _busy
    if _busy or os.environ.get(ENVIRONMENT) or not _in_kernel():  # what is within it needs no line of its own
        yield
        return
    since = time.monotonic()
    print(f"{what} ...", end="", flush=True)
    _busy = True
    try:
        yield
    finally:
        _busy = False
        print(f"\r{what}: {time.monotonic() - since:.0f} s")


def write_json(asked: bool) -> None:
    """Where it is asked for, write progress as lines of JSON to standard error from now on."""
    if asked:
        os.environ[ENVIRONMENT] = "-"


def say(what: str, **about: Any) -> None:
    """Print to standard error what begins now.

    Args:
        what: In words, such as ``"loading smollm2-135m"``.
        about: The same as values, for the line of JSON.
    """
    as_json = os.environ.get(ENVIRONMENT) == "-"
    print(json.dumps({"status": what, **about}) if as_json else f"{what} ...", file=sys.stderr, flush=True)


def text_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as text columns."""
    cells = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)


@contextmanager
def quiet() -> Iterator[None]:
    """Within the context lm-eval, datasets and transformers log nothing but errors, and show no bars.

    Levels of loggers and bars are settings of the whole process: one thread at a time is within the context, which
    may be entered again. Nothing is redirected: what the user or another thread prints is seen.
    """
    with _quiet, ExitStack() as undo:
        for name, level in _SILENT.items():
            log = logging.getLogger(name)
            undo.callback(log.setLevel, log.level)
            log.setLevel(level)
        tasks: Any = sys.modules.get("lm_eval.api.task")  # what nobody has imported shows no bar
        if tasks is not None:
            undo.callback(setattr, tasks, "tqdm", tasks.tqdm)  # it takes no setting
            tasks.tqdm = lambda documents, **options: documents
        for name in ("datasets", "transformers.utils.logging"):
            library: Any = sys.modules.get(name)
            if library is not None and library.is_progress_bar_enabled():
                undo.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        yield
