"""Errors of the caller as one line: the value, what is allowed, the fix.

The command line turns a ``UserError`` into one line and exit code 2. IPython and JupyterLab show one line, too, for it
and for `Interrupted`, and no frames of the package (``traceback.print_exception(sys.last_value)`` shows them). Plain
Python prints the traceback. Every other exception is a bug of ours and keeps its traceback everywhere.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


class _OneLine:
    """An exception that IPython shows as its name and message."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class UserError(_OneLine, ValueError):
    """The caller asked for something that does not exist or cannot be done."""


class Interrupted(_OneLine, KeyboardInterrupt):
    """Ctrl-C in the middle of long work; the message says what is stored and how to go on."""


_came: set[int] = set()  # signals that no long work has heard yet


def _stop(number: int, frame: object) -> None:
    _came.add(number)
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise KeyboardInterrupt


def stop_on_signals() -> None:
    """From now on SIGTERM ends long work as Ctrl-C does: with a message about what is stored, and with whole files.

    Either ends the work that comes next, too, where a library that is being imported swallows the exception.
    """
    _came.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


@contextlib.contextmanager
def told_where_output_fails() -> Iterator[None]:
    """Within the context, standard output that `typer.echo` cannot write to ends the process with one line and 74."""
    try:
        yield
    except (OSError, SystemExit) as error:
        fault = error.__context__ if isinstance(error, SystemExit) else error  # typer itself ends at a closed pipe
        frames = traceback.extract_tb(fault.__traceback__) if isinstance(fault, OSError) else []
        if not isinstance(fault, OSError) or "echo" not in (frame.name for frame in frames):
            raise
        print(f"Error: standard output: {fault.strerror}; files that were written are kept", file=sys.stderr)
        with contextlib.suppress(OSError):  # else Python tries again when it ends, and complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(74) from None


@contextlib.contextmanager
def hear_ctrl_c() -> Iterator[Callable[[], None]]:
    """Within the context Ctrl-C is heard, also where it arrives in code whose exceptions Python ignores.

    Python raises KeyboardInterrupt wherever the main thread is. Where that is a ``__del__`` (of a lock, of an object
    of Ray), Python prints the exception and goes on. A program that handles SIGINT itself keeps its handler.

    Yields:
        To be called between pieces of work: raises KeyboardInterrupt if there was one since the context began, or
        since `stop_on_signals`, whose SIGTERM is heard as well.
    """

    def check() -> None:
        if _came:
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()  # no other one may say what signals do
    pythons = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if pythons:
        signal.signal(signal.SIGINT, _stop)
    try:
        check()
        yield check
    finally:
        _came.clear()
        if pythons:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def unknown(kind: str, value: object, allowed: Iterable[object], fix: str = "") -> UserError:
    """The error for a name that is not in a list, with the most similar allowed names.

    Args:
        kind: The kind of thing that the value names, e.g. ``"task"``.
        value: The wrong name.
        allowed: All names that would have been accepted.
        fix: What to do about it.
    """
    names = [str(a) for a in allowed]
    near = difflib.get_close_matches(str(value), names, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"allowed: {', '.join(names[:12]) or 'none'}"
    if not near and len(names) > 12:
        hint += f" and {len(names) - 12} more"
    if fix:
        hint += f" {fix}" if near else f"; {fix}"
    return UserError(f"unknown {kind} {value!r}; {hint}")


@contextlib.contextmanager
def blaming(fault: str, fix: str) -> Iterator[None]:
    """Turn any error that files or functions of the user raise into a one-line `UserError` with that cause.

    Args:
        fault: What failed, e.g. ``"task mine, document 3: scoring fails"``.
        fix: What to do about it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{fault} ({one_line(error)}); {fix}") from error


def one_line(error: BaseException) -> str:
    """An error in one line: its type, the line of the user's own Python file that raised it, and its message."""
    libraries = (*(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")), "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*libraries, str(Path(__file__).parent)))]
    place = f" at {Path(own[-1].filename).name} line {own[-1].lineno}" if own else ""
    message = first_line(error)
    return f"{type(error).__name__}{place}" + (f": {message}" if message else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
