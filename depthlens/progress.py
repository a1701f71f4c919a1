"""One progress bar for all long work: rows done, rows/s and time left, also in a notebook that runs headlessly.

Rows that a store already has do not count as work done, so the rate is that of new rows.

In the kernel of a notebook that a person runs, bars go to standard output, because JupyterLab gives standard error a
red background. Under ``depthlens run``, which sets DEPTHLENS_PROGRESS, they stay on standard error, which pages fold
away.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar
from unittest.mock import patch

from tqdm import tqdm
from tqdm.utils import disp_len

ENVIRONMENT = "DEPTHLENS_PROGRESS"
EVERY = 0.5  # seconds between two states
_SILENT = {"lm_eval": logging.CRITICAL, "datasets": logging.CRITICAL, "transformers": logging.ERROR}
_quiet = threading.RLock()


class Bar(tqdm):
    """A tqdm bar; in the kernel of a notebook all take one line, as JupyterLab cannot go back to an earlier one."""

    _width: ClassVar[int] = 0  # of what stands on the line, whichever bar wrote it

    def __init__(self, **options: Any) -> None:
        file = sys.stdout if in_kernel() and not os.environ.get(ENVIRONMENT) else None  # standard error
        fixed = {"mininterval": EVERY, "miniters": 1, "smoothing": 0, "position": 0 if in_kernel() else None}
        super().__init__(**{**fixed, "file": file, **options})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        """Show the state."""
        msg = str(self) if msg is None else msg
        padded = msg + " " * (Bar._width - disp_len(msg))
        Bar._width = 0 if self.disable else disp_len(msg)  # a bar that is closed leaves the line
        return super().display(padded, pos)


def in_kernel() -> bool:
    """Whether this process is the kernel of a notebook; a terminal's IPython is none."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def working(what: str) -> Bar:
    """A context that tells a person in the kernel of a notebook what takes seconds now, and how many it took.

    Nothing is said in a terminal, where the command does that, and in a notebook under ``depthlens run``.

    Args:
        what: In words, such as ``"loading smollm2-135m"``.
    """
    return Bar(desc=what, bar_format="{desc}: {elapsed}", disable=bool(os.environ.get(ENVIRONMENT)) or not in_kernel())


def say(what: str) -> None:
    """Print to standard error what begins now, such as ``"loading smollm2-135m"``."""
    print(f"{what} ...", file=sys.stderr, flush=True)


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
            undo.enter_context(patch.object(tasks, "tqdm", lambda documents, **options: documents))  # it has no setting
        for name in ("datasets", "transformers.utils.logging"):
            library: Any = sys.modules.get(name)
            if library is not None and library.is_progress_bar_enabled():
                undo.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        yield
