"""The origin of a result, for its record: versions, commit, machine and time."""

from __future__ import annotations

import platform
import shutil
import subprocess
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = "torch transformers transformer-lens nnsight lm-eval datasets numpy pandas scipy statsmodels".split()
PACKAGES += "matplotlib seaborn papermill nbclient nbconvert torchao bitsandbytes".split()
COMMAND: ContextVar[list[str]] = ContextVar("command")  # as the user typed it, for records


def version(distribution: str) -> str | None:
    """Version of an installed distribution; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the checkout, with ``-dirty`` when files differ from it; None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists() or not shutil.which("git"):
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def environment() -> dict[str, Any]:
    """The entries that all records share; machine and time may differ between equal runs."""
    ours = {"depthlens": version("depthlens"), "python": platform.python_version()}
    versions = ours | {name: version(name) for name in PACKAGES}
    where_and_when = {"platform": platform.platform(), "time": datetime.now(UTC).isoformat(timespec="seconds")}
    return {**ours, "git_commit": git_commit(), "versions": versions, **where_and_when}
