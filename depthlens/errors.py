"""Mistakes of the caller, told in one line: the value, what is allowed, the fix.

The command line turns a ``UserError`` into one line and exit code 2. Every other exception is a bug of ours
and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import signal
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path


class UserError(ValueError):
    """The caller asked for something that does not exist or cannot be done."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of long work; the message says what is kept and how to go on."""


def stop_on_sigterm() -> None:
    """From now on SIGTERM ends long work as Ctrl-C does: what is kept is said, and files are left whole."""

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def unknown(kind: str, value: object, allowed: Iterable[object], fix: str = "") -> UserError:
    """Build the error for a name that is not in a list, with the nearest allowed names first.

    Args:
        kind: What the value names, e.g. ``"task"``.
        value: The value given.
        allowed: All values that would have been accepted.
        fix: What to do about it, appended as a sentence.
    """
    names = [str(a) for a in allowed]
    near = difflib.get_close_matches(str(value), names, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"allowed: {', '.join(names[:12]) or 'none'}"
    if not near and len(names) > 12:
        hint += f" and {len(names) - 12} more"
    tail = "" if not fix else f" {fix}" if near else f"; {fix}"
    return UserError(f"unknown {kind} {value!r}; {hint}{tail}")


@contextlib.contextmanager
def blaming(fault: str, fix: str) -> Iterator[None]:
    """Tell in one line whatever files or functions of the user raise; the error itself stays as the cause.

    Args:
        fault: What failed, e.g. ``"task mine, document 3: scoring fails"``.
        fix: What to do about it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{fault} ({told(error)}); {fix}") from error


def told(error: BaseException) -> str:
    """An error in one line: its kind, the line of the user's own Python file that raised it, and its message."""
    library = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    library.add(str(Path(__file__).parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    own = [f for f in frames if not any(f.filename.startswith(folder) for folder in library)]
    place = f" at {Path(own[-1].filename).name} line {own[-1].lineno}" if own else ""
    message = first_line(error)
    return f"{type(error).__name__}{place}" + (f": {message}" if message else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
