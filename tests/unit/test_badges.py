"""Badges and the set-up cell follow from the repository's address, and are absent without one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from depthlens import paths

ROOT = paths.data_dir().parent
ADDRESS = "https://github.com/someone/some-lens"
README = "# depthlens\n\nWhat it does.\n\nMore.\n"


@pytest.fixture(scope="module")
def badges():
    spec = importlib.util.spec_from_file_location("badges", ROOT / "docs" / "badges.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def notebook():
    cells = [new_markdown_cell("# A question?", id="title"), new_code_cell("print('found')", id="body")]
    return new_notebook(cells=cells)


def test_the_address_is_read_from_the_urls_of_pyproject(badges):
    assert badges.address(f'[project]\nname = "a"\n[project.urls]\nRepository = "{ADDRESS}"') == ADDRESS
    assert badges.address('[project]\nname = "a"\n[project.urls]\nHomepage = "https://example.org"') is None
    assert badges.address('[project]\nname = "a"') is None


def test_without_an_address_nothing_is_shown(badges, notebook):
    assert badges.badges(None, "00_tour") == ""
    assert badges.in_readme(README, None) == README
    assert badges.in_notebook(notebook, None) == badges.on_page(notebook, None, "00_tour") == notebook


@pytest.mark.parametrize("address", [ADDRESS, f"{ADDRESS}.git", f"{ADDRESS}/"])
def test_badges_open_the_notebook_on_colab_and_binder(badges, address):
    line = badges.badges(address, "00_tour")
    assert "\n" not in line
    assert "(https://colab.research.google.com/github/someone/some-lens/blob/main/notebooks/00_tour.ipynb)" in line
    assert "(https://mybinder.org/v2/gh/someone/some-lens/main?labpath=notebooks/00_tour.ipynb)" in line


def test_an_address_that_colab_cannot_open_is_refused(badges):
    with pytest.raises(ValueError, match=r"'https://example.org/a/b': Colab needs an address such as https://github"):
        badges.badges("https://example.org/a/b", "00_tour")


def test_readme_and_notebook_change_once_and_back(badges, notebook):
    text = badges.in_readme(README, ADDRESS)
    assert text == README.replace("depthlens\n\n", f"depthlens\n\n{badges.badges(ADDRESS, '00_tour')}\n\n")
    assert badges.in_readme(text, ADDRESS) == text and badges.in_readme(text, None) == README
    changed = badges.in_notebook(notebook, ADDRESS)
    nbformat.validate(changed)
    assert [cell.cell_type for cell in changed.cells] == ["markdown", "code", "code"]
    assert badges.in_notebook(changed, ADDRESS) == changed and badges.in_notebook(changed, None) == notebook


def test_a_page_has_its_badges_below_the_title(badges, notebook):
    page = badges.on_page(notebook, ADDRESS, "04_heads")
    nbformat.validate(page)
    assert [cell.id for cell in page.cells] == ["title", "badges", "body"]
    assert "notebooks/04_heads.ipynb" in page.cells[1].source


@pytest.mark.parametrize(("missing", "installs"), [(True, 1), (False, 0)])
def test_the_cell_installs_only_where_depthlens_is_missing(badges, notebook, missing, installs):
    source = badges.in_notebook(notebook, ADDRESS).cells[1].source
    where = "lambda name: None" if missing else "lambda name: name"
    program = f"""
import importlib.util
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell()
shell.register_magic_function(lambda line: print("PIP", line), magic_name="pip")
importlib.util.find_spec = {where}
shell.run_cell({source!r}).raise_error()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.count(f"PIP install --quiet git+{ADDRESS}") == installs


def test_readme_and_notebooks_are_as_the_address_says(badges):
    address, fix = badges.address(), "run make badges"
    readme = (ROOT / "README.md").read_text()
    assert badges.in_readme(readme, address) == readme, fix
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        assert badges.in_notebook(notebook, address) == notebook, fix
