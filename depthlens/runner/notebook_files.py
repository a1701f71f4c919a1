"""Notebook files: read with one-line errors, written whole or not at all, and what their outputs say of their run."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import nbformat

from depthlens.errors import UserError
from depthlens.paths import write_files

_MAX_MESSAGE = 400  # characters of an error message that are shown


def notebooks_in(folder: Path, without: Collection[str] = ()) -> dict[str, nbformat.NotebookNode]:
    """The notebooks of a folder by name, except those named in ``without``."""
    files = sorted(folder.glob("*.ipynb")) if folder.is_dir() else []
    return {p.stem: read_notebook(p) for p in files if not p.name.startswith(".") and p.stem not in without}


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook as format 4.

    Raises:
        UserError: the file is not a valid notebook.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        nb = nbformat.reads(json.dumps(_with_ids(content)), as_version=4)
        nbformat.validate(nb)
    except (OSError, ValueError, TypeError, AttributeError, nbformat.ValidationError) as error:
        # cannot be read, is not UTF-8, not JSON, JSON of another shape (nbformat then fails anywhere), not a notebook
        reason = str(error).splitlines()[0]
        raise UserError(f"{str(path)!r} is not a notebook ({reason}); repair or remove it") from None
    return nb


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old text or the new one, never a part."""
    try:
        write_files(path.parent, {path.name: lambda file: file.write(text.encode())})
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}") from None


def failed_cell(nb: nbformat.NotebookNode) -> tuple[int, str] | None:
    """Number (from 1) and error message of the cell that papermill marked as failed; None where all cells ran."""
    for number, cell in enumerate(nb.cells, start=1):
        if not cell.metadata.get("papermill", {}).get("exception"):
            continue
        return number, _error_of(cell) or "stopped without an error message"
    return None


def _error_of(cell: nbformat.NotebookNode) -> str | None:
    """The last error message among a code cell's outputs; None where there is none."""
    errors = [output for output in cell.outputs if output.output_type == "error"]
    if not errors:
        return None
    kind, message = errors[-1].ename, " ".join(errors[-1].evalue.split())
    if len(message) > _MAX_MESSAGE:
        message = f"{message[:_MAX_MESSAGE]}..."
    # a bug cannot be understood without the type of its error
    return message if kind == "UserError" else f"{kind}: {message}" if message else kind


def run_state(nb: nbformat.NotebookNode) -> dict[str, Any]:
    """``status``, ``error`` and ``seconds`` of a notebook, whether depthlens, papermill or a person ran it."""
    if ours := nb.metadata.get("depthlens"):
        return dict(ours)
    cells = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
    ran = any(cell.execution_count is not None or cell.outputs for cell in cells)
    failed = failed_cell(nb)
    return {
        "status": "failed" if failed else "ok" if ran else "not run",
        "error": f"cell {failed[0]}: {failed[1]}" if failed else None,
        "seconds": nb.metadata.get("papermill", {}).get("duration"),
    }


def _with_ids(content: Any) -> Any:
    """Give cells the ids that format 4.5 requires and that notebooks edited by hand lack."""
    if isinstance(content, dict) and isinstance(content.get("cells"), list) and content.get("nbformat_minor", 0) >= 5:
        for number, cell in enumerate(content["cells"]):
            if isinstance(cell, dict):
                cell.setdefault("id", f"cell-{number}")
    return content
