"""Folders: where the package's data files and notebooks are, who may write to a folder, and atomic writes.

In a checkout these files are beside the package, in a wheel they are inside it.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from depthlens import arguments
from depthlens.errors import UserError, blaming

LOCK = ".depthlens.lock"
PAGE = "index.html"
NO_ANSWERS = "DEPTHLENS_NO_ANSWERS"  # of an environment: no view has the texts of questions and answers
_OUR_PAGES = "<title>depthlens: ", "depthlens-explorer"  # an index of notebooks, a view of answers
_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    installed = _PACKAGE / f"_{name}"  # pyproject.toml force-includes the top-level folders under these names
    return installed if installed.is_dir() else _PACKAGE.parent / name


def data_dir() -> Path:
    """Embedded tasks, facts and adapters."""
    return _folder("data")


def tasks_dir() -> Path:
    """lm-evaluation-harness YAML files of the embedded tasks."""
    return data_dir() / "tasks"


def embedded_names() -> set[str]:
    """Names of the embedded tasks and groups, read from their files because lm-eval is slow to import."""
    texts = (path.read_text(encoding="utf-8") for path in tasks_dir().rglob("*.yaml"))
    return {name for text in texts for name in re.findall(r"^(?:task|group): *(\w+) *$", text, re.MULTILINE)}


def notebooks_dir() -> Path:
    """The notebook suite."""
    return _folder("notebooks")


def writable_folder(path: Path | str) -> Path:
    """Make a folder and try to write to it, so that a wrong path is reported before hours of work and not after.

    Raises:
        UserError: it is no path, a part of it is a file, or the folder cannot be made or written.
    """
    folder = Path(arguments.PATH("folder", path))
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    return folder


def refuse_foreign_page(folder: Path) -> None:
    """Refuse a folder whose ``index.html`` depthlens did not write: it would be replaced."""
    page = folder / PAGE
    if page.is_file() and not any(mark in page.read_text("utf-8", "replace") for mark in _OUR_PAGES):
        raise UserError(f"{str(page)!r} is another page and would be replaced; name another folder, or move it")


@contextmanager
def locked(path: Path | str) -> Iterator[Path]:
    """Make a folder that other processes are refused until the context ends.

    Raises:
        UserError: it cannot be written, or another process is writing to it.
    """
    folder = writable_folder(path)
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        fault = f"another process is writing to {str(folder)!r} now"
        raise UserError(f"{fault}; wait for its end, or name another folder") from None
    with lock:
        try:
            yield folder
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def write_files(folder: Path, writers: Mapping[str, Callable[[IO[bytes]], object]]) -> None:
    """Write files into a folder, each whole or not at all, and none before all are written.

    A process that is killed meanwhile leaves the old files, and at worst a folder with a part of the new ones whose
    name starts with a dot.

    Args:
        folder: It is made where it does not exist.
        writers: Writes each file, by name.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as new:
        for name, write in writers.items():
            with open(Path(new, name), "wb") as file:
                write(file)
        for name in writers:
            os.replace(Path(new, name), folder / name)


def writing_to(folder: Path, *others: type[Exception]) -> AbstractContextManager[None]:
    """Within it an OSError, or one of the ``others``, becomes a `UserError`: why a folder cannot be written."""
    return blaming(f"cannot write to {str(folder)!r}", "name a folder you can write to", (OSError, *others))
