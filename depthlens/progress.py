"""One progress bar for all long work: rows done, rows/s and time left, also in a notebook that runs headlessly.

Rows that a store already held are not counted into the pace. With DEPTHLENS_PROGRESS every change is also a line of
JSON, for programs: ``-`` writes to standard error in place of the bar, a path appends to that file, which is how
``depthlens run`` shows the bar of the notebook that is running.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

ENVIRONMENT = "DEPTHLENS_PROGRESS"
EVERY = 0.5  # seconds between lines


class Bar(tqdm):
    """A tqdm bar that also tells its state as JSON lines, where it is asked to."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._sink = os.environ.get(ENVIRONMENT, "")
        self._told = 0.0
        self._kept: int | None = None
        hidden = kwargs.pop("disable", False)
        self._silent = hidden or not self._sink
        super().__init__(*args, disable=hidden, file=_Nowhere() if self._sink == "-" else None, **kwargs)
        self._tell()

    def update(self, n: int = 1) -> bool | None:
        """Move on by ``n`` rows."""
        shown = super().update(n)
        if not self._silent and time.monotonic() - self._told >= EVERY:
            self._tell()
        return shown

    def held(self, n: int) -> None:
        """Move on by ``n`` rows that were computed before, or elsewhere."""
        if not self.disable:  # a hidden bar counts nothing
            self.initial += n
            self.update(n)

    def kept(self, n: int) -> None:
        """Show how many rows a store has, so that stopping now loses only what came after."""
        self._kept = n
        self.set_postfix_str(f"{n} kept", refresh=False)

    def close(self) -> None:
        """End the bar; its last state is always told."""
        if not self._silent:
            self._tell()
            self._silent = True
        super().close()

    def _tell(self) -> None:
        if self._silent:
            return
        self._told = time.monotonic()
        state = self.format_dict
        elapsed, new = state["elapsed"], state["n"] - state["initial"]
        rate = new / elapsed if elapsed > 0 and new > 0 else None
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


class _Nowhere:
    """Takes what tqdm draws and drops it."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def bar(**kwargs: Any) -> Bar:
    """A bar; arguments as of tqdm (total, initial, desc, unit, disable)."""
    return Bar(**kwargs)


def say(what: str, **about: Any) -> None:
    """Tell what begins now.

    Args:
        what: In words, as ``"loading smollm2-135m"``.
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
