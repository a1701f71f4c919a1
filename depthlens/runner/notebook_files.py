"""Notebook files: read with one-line errors, written whole or not at all, and what an executed one says of its run."""

from __future__ import annotations

import contextlib
import html
import re
import shlex
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from textwrap import shorten
from typing import Any

import nbformat
from nbconvert.filters import markdown2html
from nbformat import NotebookNode

from depthlens.errors import UserError, blaming
from depthlens.paths import write_files, writing_to
from depthlens.runner.parameters import MODELS, as_yaml, declared, named

_MAX_MESSAGE = 400  # characters of an error message that are shown
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook as format 4.

    Raises:
        UserError: the file is not a valid notebook.
    """
    # cannot be read, is not UTF-8, not JSON, JSON of another shape (nbformat then fails anywhere), not a notebook
    kinds = OSError, ValueError, TypeError, AttributeError, nbformat.ValidationError
    with warnings.catch_warnings(), blaming(f"{str(path)!r} is not a notebook", "repair or remove it", kinds):
        warnings.simplefilter("ignore", nbformat.warnings.MissingIDFieldWarning)  # notebooks edited by hand
        nb = nbformat.read(path, as_version=4)
        nbformat.validate(nb)
    return nb


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old text or the new one, never a part."""
    with writing_to(path.parent):
        write_files(path.parent, {path.name: lambda file: file.write(text.encode())})


def failed_cell(nb: NotebookNode) -> tuple[int, str] | None:
    """Number (from 1) and error message of the cell that papermill marked as failed; None where all cells ran."""
    for number, cell in enumerate(nb.cells, start=1):
        if cell.metadata.get("papermill", {}).get("exception"):
            errors = [output for output in cell.outputs if output.output_type == "error"]
            return number, _in_one_line(errors[-1]) if errors else "stopped without an error message"
    return None


def _in_one_line(error: NotebookNode) -> str:
    message = shorten(error.evalue, _MAX_MESSAGE, placeholder=" ...")
    # a bug cannot be understood without the type of its error
    return message if error.ename == "UserError" else f"{error.ename}: {message}".removesuffix(": ")


@dataclass(frozen=True)
class Executed:
    """A notebook as its page and the index show it, whether depthlens, papermill or a person ran it.

    Attributes:
        name: Its path without ending, relative to the index.
        nb: The notebook.
    """

    name: str
    nb: NotebookNode

    @property
    def run(self) -> dict[str, Any]:
        """What `depthlens run` noted; ``status``, ``error`` and ``seconds`` are known whoever ran it."""
        if ours := self.nb.metadata.get("depthlens"):
            return dict(ours)
        failed = failed_cell(self.nb)
        ran = any(cell.get("execution_count") is not None or cell.get("outputs") for cell in self.nb.cells)
        return {
            "status": "failed" if failed else "ok" if ran else "not run",
            "error": "cell {}: {}".format(*failed) if failed else None,
            "seconds": self.nb.metadata.get("papermill", {}).get("duration"),
        }

    @property
    def heading(self) -> str:
        """The first heading as it is written, with its marks; "" where there is none."""
        texts = (cell.source for cell in self.nb.cells if cell.cell_type == "markdown")
        return next((found[0] for text in texts if (found := _HEADING.search(text))), "")

    @property
    def question(self) -> str:
        """The first heading, which by convention is the notebook's question."""
        return re.sub(r"[*`#]", "", self.heading).strip() or self.name

    @property
    def headline(self) -> str:
        """Text of the cells tagged ``headline``, as Markdown."""
        texts = []
        for cell in self.nb.cells:
            for output in cell.get("outputs", []) if _is_tagged(cell, "headline") else []:
                data = output.get("data", {})
                if output.get("name") == "stdout":
                    texts.append(output.text)
                elif "image/png" not in data:
                    texts.append(data.get("text/markdown", data.get("text/plain", "")))
        return "\n\n".join(text.strip() for text in texts if text)

    @property
    def _said(self) -> list[str]:
        """The first sentence of the headline, and the others."""
        return re.split(r"\n\n|\n(?=[-*] )", self.headline, maxsplit=1)

    @property
    def briefly(self) -> str:
        """The first sentence of the headline as HTML; before there is one, the error or the state."""
        return markdown2html(self._said[0].removeprefix("- ") or self.run["error"] or self.run["status"])

    @property
    def finding(self) -> str:
        """The headline as HTML: its first sentence, and the others in a fold."""
        first, *others = self._said
        more = "".join(map(markdown2html, others))
        if more and not more.startswith("<details"):
            more = f"<details><summary>More of what it found</summary>{more}</details>"
        return markdown2html(first) + more

    @property
    def answers_first(self) -> bool:
        """Whether a cell tagged ``headline`` is among its first, so that its page need not say the same on top."""
        return any(_is_tagged(cell, "headline") for cell in self.nb.cells[:8])

    @property
    def opens(self) -> bool:
        """Whether the index begins with it: a cell is tagged ``opening``."""
        return any(_is_tagged(cell, "opening") for cell in self.nb.cells)

    @property
    def picture(self) -> str:
        """What the index shows, as HTML: of the cell tagged ``opening`` or ``picture``, else the first figure."""
        for cell in sorted(self.nb.cells, key=lambda cell: not _is_tagged(cell, "opening", "picture")):
            for data in (output.get("data", {}) for output in cell.get("outputs", [])):
                if "image/png" in data:
                    png = "".join(data["image/png"].split())
                    return f'<img alt="{html.escape(self.question)}" src="data:image/png;base64,{png}">'
                if "text/html" in data and _is_tagged(cell, "opening", "picture"):
                    return data["text/html"]
        return ""

    @property
    def about(self) -> list[str]:
        """Models, documents, profile and time, as far as they are known."""
        values, run = self.run.get("parameters", {}), self.run
        with contextlib.suppress(UserError):  # a person's notebook, whose cell is not Python
            values = declared(self.nb, self.name) | values
        chosen = [f"{name} {values[name]}" for name in ("limit", "num_fewshot") if values.get(name) is not None]
        profile = f"profile {run['profile']}" if run.get("profile") else ""
        took = str(timedelta(seconds=round(run["seconds"]))) if run["seconds"] else ""
        return list(filter(None, [*dict.fromkeys(named(values, MODELS)), ", ".join(chosen), profile, took]))

    @property
    def command(self) -> str:
        """The command line that runs it again; "" where `depthlens run` did not run it."""
        run, name = self.run, Path(self.name).name
        if "given" not in run:
            return ""
        profile = ["--profile", run["profile"]] if run["profile"] else []
        words = ["depthlens", "run", run["source"], *profile]
        for key, value in run["given"].items():
            words += ["-p", key, value if isinstance(value, str) else as_yaml(value)]
        return shlex.join([*words, "--out", f"runs/{name}"])


def _is_tagged(cell: NotebookNode, *tags: str) -> bool:
    """Whether a cell has one of some tags."""
    return not {*tags}.isdisjoint(cell.metadata.get("tags", []))
