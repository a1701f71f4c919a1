"""A folder of executed notebooks: read it, render its pages and its index, write whole files or none.

The index needs nothing but the notebooks, because each carries the record of its run in its metadata;
notebooks that papermill or a person ran are listed too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import nbformat

from depthlens.errors import UserError
from depthlens.paths import writable_folder
from depthlens.runner import pages


def gallery(folder: Path | str) -> Path:
    """Render every executed notebook in a folder and the index over them; returns the index."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}; give one that `depthlens run ... --out` wrote")
    notebooks = notebooks_in(folder)
    if not notebooks:
        raise UserError(f"no notebooks in {str(folder)!r}; give a folder that `depthlens run ... --out` wrote")
    writable_folder(folder)
    cards, profiles, finished = [], set(), []
    for name, nb in sorted(notebooks.items(), key=_place):
        state = _state(nb)
        status, error, seconds = state["status"], state["error"], state["seconds"]
        cards.append(
            pages.Card(
                name=name,
                question=pages.question(nb, name),
                headline=pages.headline_html(nb),
                figure=pages.first_figure(nb),
                status=status,
                error=error,
                seconds=seconds,
            )
        )
        about = [f"depthlens {state['depthlens']}"] if state.get("depthlens") else []
        if state.get("profile"):
            about.append(f"profile {state['profile']}")
            profiles.add(state["profile"])
        if state.get("finished"):
            about.append(state["finished"])
            finished.append(state["finished"])
        write_whole(folder / f"{name}.html", pages.notebook_page(nb, name, error=error, footer=" · ".join(about)))
    subtitle = [f"profile {', '.join(sorted(profiles))}"] if profiles else []
    subtitle += [max(finished)] if finished else []
    index = folder / "index.html"
    title = f"depthlens: {folder.resolve().name}"
    write_whole(index, pages.index_page(cards, title=title, subtitle=" · ".join(subtitle)))
    return index


def _place(item: tuple[str, nbformat.NotebookNode]) -> tuple[bool, str]:
    """Sorts by name, but first what is tagged to open the index."""
    name, nb = item
    return not any(map(pages.opens, nb.cells)), name


def notebooks_in(folder: Path, without: Sequence[str] = ()) -> dict[str, nbformat.NotebookNode]:
    """Notebooks lying in a folder, by name."""
    found = sorted(folder.glob("*.ipynb")) if folder.is_dir() else []
    return {p.stem: read_notebook(p) for p in found if not p.name.startswith(".") and p.stem not in without}


def read_notebook(path: Path) -> nbformat.NotebookNode:
    try:
        text = path.read_text(encoding="utf-8")
        nb = nbformat.reads(json.dumps(_with_ids(json.loads(text))), as_version=4)
        nbformat.validate(nb)
    except (
        json.JSONDecodeError,
        UnicodeDecodeError,
        nbformat.reader.NotJSONError,
        nbformat.ValidationError,
    ) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{str(path)!r} is not a notebook ({reason}); repair or remove it") from None
    return nb


def write_whole(path: Path, text: str) -> None:
    """Whole file or none: a reader never meets half a page."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}") from None


def failed_cell(nb: nbformat.NotebookNode) -> tuple[int, str] | None:
    for number, cell in enumerate(nb.cells, start=1):
        if not cell.metadata.get("papermill", {}).get("exception"):
            continue
        errors = [output for output in cell.outputs if output.output_type == "error"]
        if not errors:
            return number, "stopped without an error message"
        name, message = errors[-1].ename, " ".join(errors[-1].evalue.split())
        message = message if len(message) <= 400 else message[:400] + "..."
        # A mistake in the parameters is told plainly; anything else needs its type to be understood.
        return number, message if name == "UserError" else f"{name}: {message}" if message else name
    return None


def _state(nb: nbformat.NotebookNode) -> dict:
    """Status of a notebook found in a folder, whether depthlens, papermill or a person ran it."""
    ours = nb.metadata.get("depthlens")
    if ours:
        return dict(ours)
    code = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
    ran = any(cell.execution_count is not None or cell.outputs for cell in code)
    failed = failed_cell(nb)
    return {
        "status": "failed" if failed else "ok" if ran else "not run",
        "error": f"cell {failed[0]}: {failed[1]}" if failed else None,
        "seconds": nb.metadata.get("papermill", {}).get("duration"),
    }


def _with_ids(content: object) -> object:
    """Give cells the ids that format 4.5 wants and hand-edited notebooks lack."""
    if isinstance(content, dict) and isinstance(content.get("cells"), list):
        for number, cell in enumerate(content["cells"]):
            if isinstance(cell, dict) and content.get("nbformat_minor", 0) >= 5:
                cell.setdefault("id", f"cell-{number}")
    return content
