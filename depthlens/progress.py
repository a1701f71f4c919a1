"""One progress bar for all long work: rows done, rows/s and time left, also in a notebook that runs headlessly.

Rows that a store already has do not count as work done, so the rate is that of new rows. Where the operations that are
needed were counted (as `depthlens plan` counts them), the time left is theirs: long documents and early layers take
longer than others. With DEPTHLENS_PROGRESS every change is also a line of JSON for programs: ``-`` writes it to
standard error instead of the bar, and a path appends it to that file. ``depthlens run`` shows the bar of the running
notebook in this way.

In the kernel of a notebook that a person runs, a bar is a display of its cell that changes in place: JupyterLab gives
standard error a red background, and a saved notebook holds the last state alone. Under ``depthlens run`` it stays on
standard error, which pages fold away.

`quiet` silences other libraries about work of ours. Levels of loggers and bars are settings of the whole process, so
the first thread that comes in saves and changes them, and the last one that leaves puts them back. Nothing is
redirected: what the user or another thread prints is seen.
"""

from __future__ import annotations

import html
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
EVERY = 0.5  # seconds between lines
_SILENT = {"lm_eval": logging.CRITICAL, "datasets": logging.CRITICAL, "transformers": logging.ERROR}
_quiet_lock = threading.Lock()
_n_quiet = 0
_quiet_undo = ExitStack()
_UNITS = {"row": "row: one answer of the model, to one prompt or to one option of it, under one condition"}


class Bar(tqdm):
    """A tqdm bar that also writes its state as lines of JSON where DEPTHLENS_PROGRESS says so."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._sink = os.environ.get(ENVIRONMENT, "")
        self._written = 0.0
        self._kept: int | None = None
        self._needed, self._spent = 0.0, _none
        hidden = kwargs.pop("disable", False)
        self._silent = hidden or not self._sink
        self._cell = _CellDisplay() if not hidden and not self._sink and _in_kernel() else None
        elsewhere = self._sink == "-" or self._cell is not None
        super().__init__(*args, disable=hidden, file=_Nowhere() if elsewhere else None, **kwargs)
        self._write_state()

    def update(self, n: int = 1) -> bool | None:
        """Move on by ``n`` rows."""
        displayed = super().update(n)
        if not self._silent and time.monotonic() - self._written >= EVERY:
            self._write_state()
        return displayed

    def expects(self, needed: float, spent: Callable[[], float]) -> None:
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
        if state["total"] and (state["initial"] or 0) >= state["total"]:
            return state | {"bar_format": "{desc}: all {total_fmt} {unit}s from the store"}
        spent = self._spent()
        left = state["elapsed"] * (self._needed - spent) / spent if spent > 0 else 0.0
        if left > 0 and state["total"] and state["n"] < state["total"]:
            state["rate"] = (state["total"] - state["n"]) / left
        return state

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        """Show the state where the bar is shown."""
        if self._cell is None:
            return super().display(msg, pos)
        self._cell.show(str(self) if msg is None else msg, _UNITS.get(self.unit, ""))
        return True

    def kept(self, n: int) -> None:
        """Show how many rows a store has, so that stopping now loses only what came after."""
        self._kept = n
        self.set_postfix_str(f"{n} kept", refresh=False)

    def close(self) -> None:
        """End the bar; its last state is always written."""
        if not self._silent:
            self._write_state()
            self._silent = True
        super().close()

    def _write_state(self) -> None:
        if self._silent:
            return
        self._written = time.monotonic()
        state = self.format_dict
        elapsed, new = state["elapsed"], state["n"] - state["initial"]
        rate = (state["rate"] if self._needed else None) or (new / elapsed if elapsed > 0 and new > 0 else None)
        left = (state["total"] - state["n"]) / rate if rate and state["total"] is not None else None
        line = {
            "what": self.desc.removesuffix(": "),
            "done": state["n"],
            "total": state["total"],
            "held": state["initial"],
            "kept": self._kept,
            "unit": self.unit,
            "per_second": rate,
            "seconds_left": left,
        }
        text = json.dumps(line) + "\n"
        if self._sink == "-":
            sys.stderr.write(text)
            sys.stderr.flush()
        else:
            with open(self._sink, "a", encoding="utf-8") as file:
                file.write(text)


def _none() -> float:
    return 0.0


def _in_kernel() -> bool:
    """Whether this process is the kernel of a notebook; a terminal's IPython is none."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


class _CellDisplay:
    """A line among the outputs of the running cell."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str, title: str) -> None:
        """Replace the line.

        Args:
            text: The line.
            title: What a browser says of it under the mouse; "": nothing.
        """
        from IPython.display import display

        about = f' title="{html.escape(title)}"' if title else ""
        forms = {"text/plain": text, "text/html": f"<pre{about}>{html.escape(text)}</pre>"}
        if self._handle is None:
            self._handle = display(forms, raw=True, display_id=True)
        else:
            self._handle.update(forms, raw=True)


class _Nowhere:
    """A file that discards what tqdm draws."""

    encoding = "utf-8"  # else tqdm would draw with "#"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def bar(**kwargs: Any) -> Bar:
    """A bar; arguments as of tqdm (total, initial, desc, unit, disable)."""
    return Bar(**kwargs)


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
    line, since = _CellDisplay(), time.monotonic()
    line.show(f"{what} ...", "")
    _busy = True
    try:
        yield
    finally:
        _busy = False
        line.show(f"{what}: {time.monotonic() - since:.0f} s", "")


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
    columns = list(rows[0])
    cells = [columns, *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)


@contextmanager
def quiet() -> Iterator[None]:
    """Within the context lm-eval, datasets and transformers log nothing but errors, and show no bars."""
    global _n_quiet
    with _quiet_lock:
        _n_quiet += 1
        if _n_quiet == 1:
            _silence()
    try:
        yield
    finally:
        with _quiet_lock:
            _n_quiet -= 1
            if not _n_quiet:
                _quiet_undo.close()


def _silence() -> None:
    for name, level in _SILENT.items():
        log = logging.getLogger(name)
        _quiet_undo.callback(log.setLevel, log.level)
        log.setLevel(level)
    tasks: Any = sys.modules.get("lm_eval.api.task")  # what nobody has imported shows no bar
    if tasks is not None:
        _quiet_undo.callback(setattr, tasks, "tqdm", tasks.tqdm)  # it takes no setting
        tasks.tqdm = lambda documents, **options: documents
    for name in ("datasets", "transformers.utils.logging"):
        library: Any = sys.modules.get(name)
        if library is not None and library.is_progress_bar_enabled():
            _quiet_undo.callback(library.enable_progress_bar)
            library.disable_progress_bar()
