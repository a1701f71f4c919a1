"""Badges and a set-up cell for Colab and Binder, made from the repository's address.

The address is ``[project.urls] Repository`` of pyproject.toml; without one there is nothing to show. ``make badges``
writes the badges into README.md and the cell into the notebooks, since Colab opens these from the repository. The pages
of the site get their badges in conf.py.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).parents[1]
COLAB, BINDER = "https://colab.research.google.com", "https://mybinder.org"
TAG = "colab"
CELL = """\
# Colab: installs depthlens where it is missing
import importlib.util

if importlib.util.find_spec("depthlens") is None:
    %pip install --quiet git+{address}
"""


def address(pyproject: str | None = None) -> str | None:
    """The repository's address, where pyproject.toml has one."""
    text = (ROOT / "pyproject.toml").read_text() if pyproject is None else pyproject
    return tomllib.loads(text)["project"].get("urls", {}).get("Repository")


def badges(repository: str | None, notebook: str) -> str:
    """One line of Markdown that opens a notebook of the branch main; empty without an address.

    Raises:
        ValueError: the address is not one of GitHub, from where Colab opens notebooks.
    """
    if not repository:
        return ""
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", repository)
    if not found:
        raise ValueError(f"Repository {repository!r}: Colab needs an address such as https://github.com/OWNER/NAME")
    colab = f"{COLAB}/github/{found[1]}/blob/main/notebooks/{notebook}.ipynb"
    binder = f"{BINDER}/v2/gh/{found[1]}/main?labpath=notebooks/{notebook}.ipynb"
    return (
        f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Binder]({BINDER}/badge_logo.svg)]({binder})"
    )


def in_readme(text: str, repository: str | None) -> str:
    """README.md with its badges below the title, instead of those that it has."""
    title, rest = re.sub(r"^\[!\[Open in Colab\].*\n\n", "", text, flags=re.MULTILINE).split("\n\n", 1)
    return "\n\n".join(part for part in (title, badges(repository, "00_tour"), rest) if part)


def in_notebook(notebook: nbformat.NotebookNode, repository: str | None) -> nbformat.NotebookNode:
    """A notebook with the set-up cell below the title, instead of the one that it has."""
    cells = [cell for cell in notebook.cells if TAG not in cell.metadata.get("tags", [])]
    if repository:
        cells.insert(1, new_code_cell(CELL.format(address=repository).rstrip(), id=TAG, metadata={"tags": [TAG]}))
    return nbformat.from_dict(notebook | {"cells": cells})


def on_page(notebook: nbformat.NotebookNode, repository: str | None, name: str) -> nbformat.NotebookNode:
    """A notebook with its badges below the title, for a page of the site."""
    line = badges(repository, name)
    cells = notebook.cells[:1] + [new_markdown_cell(line, id="badges")] * bool(line) + notebook.cells[1:]
    return nbformat.from_dict(notebook | {"cells": cells})


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(in_readme(readme.read_text(), address()))
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        nbformat.write(in_notebook(nbformat.read(path, as_version=4), address()), path)


if __name__ == "__main__":
    main()
