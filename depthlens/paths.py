"""Folders: where the package's data files and notebooks are, and whether a folder can be written.

In a checkout these files are beside the package, in a wheel they are inside it.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from depthlens.errors import UserError

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
        UserError: the path is empty, it or a part of it is a file, or the folder cannot be made or written.
    """
    if not isinstance(path, str | Path) or "\0" in str(path):
        raise UserError(f"folder {path!r}: give the path of a folder, such as runs/mine")
    if isinstance(path, str) and not path.strip():
        raise UserError(f"folder {path!r}: the name of a folder is empty; name one, such as runs/mine")
    folder = Path(path)
    probe = folder / f".probe.{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def unwritable(folder: Path, error: OSError) -> UserError:
    """The error for a folder that cannot be written."""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return UserError(f"cannot write to {str(folder)!r}: it, or a part of the path, is a file; name a folder")
    reason = error.strerror or error
    return UserError(f"cannot write to {str(folder)!r}: {reason}; name a folder you can write to")
