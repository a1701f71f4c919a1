"""Where the files that travel with the package lie: a checkout keeps them beside it, a wheel inside it."""

from __future__ import annotations

from pathlib import Path

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


def notebooks_dir() -> Path:
    """The notebook suite."""
    return _folder("notebooks")
