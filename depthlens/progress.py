"""One progress bar for all long work: rows done, rows/s and time left, also in a notebook that runs headlessly.

Rows that a store already has do not count as work done, so the rate is that of new rows. With DEPTHLENS_PROGRESS=-
every change is a line of JSON on standard error, for programs, instead of the bar.

In the kernel of a notebook that a person runs, bars go to standard output, because JupyterLab gives standard error a
red background. Under ``depthlens run``, which sets DEPTHLENS_PROGRESS, they stay on standard error, which pages fold
away.
"""

from __future__ import annotations

import io
import json
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
    """A tqdm bar, or its states as lines of JSON where DEPTHLENS_PROGRESS says so.

    In the kernel of a notebook all bars take the same line, because JupyterLab cannot go back to an earlier one.
    """

    _width: ClassVar[int] = 0  # of what stands on the line, whichever bar wrote it

    def __init__(self, **options: Any) -> None:
        asked = os.environ.get(ENVIRONMENT, "")
        self._as_json = asked == "-"
        # standard error by default; as JSON goes there, what tqdm writes beside its state goes nowhere
        file = io.StringIO() if self._as_json else sys.stdout if not asked and in_kernel() else None
        fixed = {"mininterval": EVERY, "miniters": 1, "smoothing": 0, "position": 0 if in_kernel() else None}
        super().__init__(**{**fixed, "file": file, **options})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        """Show the state."""
        if self._as_json:
            n, held, total, seconds = self.n, self.initial, self.total, self.format_dict["elapsed"]
            rate = (n - held) / seconds if n > held and seconds > 0 else None
            left = (total - n) / rate if rate and total is not None else None
            line = {"what": self.desc.removesuffix(": "), "done": n, "total": total, "held": held}
            print(json.dumps(line | {"unit": self.unit, "per_second": rate, "seconds_left": left}), file=sys.stderr)
            return True
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
