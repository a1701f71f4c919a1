"""Errors of the caller as one line: the value, what is allowed, the fix.

The command line turns a ``UserError`` into one line and exit code 2. IPython and JupyterLab show one line, too, for it
and for `Interrupted`, and no frames of the package (``traceback.print_exception(sys.last_value)`` shows them). Plain
Python prints the traceback. Every other exception is a bug of ours and keeps its traceback everywhere.
"""

from __future__ import annotations

import contextlib
import difflib
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path


class _OneLine:
    """An exception that IPython shows as its name and message."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class UserError(_OneLine, ValueError):
    """The caller asked for something that does not exist or cannot be done.

    Example:
        >>> dl.parse_condition("layer 3")
        Traceback (most recent call last):
        depthlens.errors.UserError: condition 'layer 3': cannot read 'layer 3'; write ...
    """


class Interrupted(_OneLine, KeyboardInterrupt):
    """Ctrl-C in the middle of long work; the message says what is stored and how to go on."""


def unknown(kind: str, value: object, allowed: Iterable[object], fix: str = "") -> UserError:
    """The error for a name that is not in a list, with the most similar allowed names, or with all where none is.

    Args:
        kind: The kind of thing that the value names, e.g. ``"task"``.
        value: The wrong name.
        allowed: All names that would have been accepted.
        fix: What to do about it.
    """
    names = [str(a) for a in allowed]
    hint = f"allowed: {', '.join(names) or 'none'}; {fix}".removesuffix("; ")
    if near := difflib.get_close_matches(str(value), names, n=3):
        hint = f"did you mean {', '.join(near)}? {fix}".rstrip()
    return UserError(f"unknown {kind} {value!r}; {hint}")


@contextlib.contextmanager
def concerning(what: str) -> Iterator[None]:
    """Within it the message of a `UserError` begins with what it concerns, e.g. ``"notebook 00_tour"``."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


@contextlib.contextmanager
def blaming(fault: str, fix: str, kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Turn errors that files or functions of the user raise into a one-line `UserError` with that cause.

    Args:
        fault: What failed, e.g. ``"task mine, document 3: scoring fails"``.
        fix: What to do about it.
        kinds: Of errors that are the user's; others are bugs of ours, and pass.
    """
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__} at {Path(place.filename).name} line {place.lineno}: {first_line(error)}"
        raise UserError(f"{fault} ({told.removesuffix(': ')}); {fix}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
