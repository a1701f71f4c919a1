"""The project files agree with each other, and a built wheel carries what an installed depthlens needs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import depthlens
from depthlens import paths

ROOT = paths.data_dir().parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()}
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
PYTHON = SpecifierSet(PROJECT["requires-python"])
ADDRESS = "https://github.com/someone/some-lens"


def test_requirements_are_ranges_and_the_installed_versions_lie_in_them():
    for requirement in [*NEEDED, *(r for extra in EXTRAS.values() for r in extra)]:
        operators = {spec.operator for spec in requirement.specifier}
        assert ">=" in operators and not operators & {"==", "===", "~="}, requirement
    for requirement in [*NEEDED, *EXTRAS["dev"]]:
        assert requirement.specifier.contains(metadata.version(requirement.name), prereleases=True), requirement


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == depthlens.__version__ == citation["version"]
    assert "arXiv:2510.02091" in str(citation["references"])
    assert PROJECT["license"] == citation["license"] == "MIT" and "MIT License" in (ROOT / "LICENSE").read_text()
    python, pip, through_pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert Requirement(python).specifier == PYTHON and pip == "pip"
    assert re.fullmatch(r"-e \.\[(\w+)\]", *through_pip["pip"])[1] in EXTRAS
    binder = (ROOT / ".binder" / "runtime.txt").read_text().strip().removeprefix("python-")
    assert PYTHON.contains(binder) and (ROOT / ".binder" / "requirements.txt").read_text().splitlines()[-1] == "-e ."


def test_make_targets_and_ci():
    targets = ["demo", "test", "test-all", "check", "lab", "wheel", "badges", "lint", "clean"]
    done = subprocess.run(["make", "-C", str(ROOT), "--dry-run", *targets], capture_output=True, text=True, check=True)
    for command in (
        "depthlens run 00_tour 01_protocols 09_claims --profile demo -p draws 0 --out runs/demo",
        "-m ruff check .",
        "-m mypy",
        'tests -m "not nightly"',
        "jupyterlab --ServerApp.root_dir=. notebooks/00_tour.ipynb",
        "env/bin/depthlens run 00_tour --profile smoke",
    ):
        assert command in done.stdout
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "make test" in script.read_text()


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_a_container_has_what_the_wheel_is_built_from_and_starts_jupyterlab_without_root(name):
    ignored, *kept = (line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#"))
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], *wheel["only-include"]}
    assert ignored == "*" and {line[1:] for line in kept if line.startswith("!")} == needed
    lines = (ROOT / name).read_text().splitlines()
    assert lines[-1].startswith('CMD ["jupyter", "lab"') and "EXPOSE 8888" in lines and "FROM python:3.12-slim" in lines
    assert not [line for line in lines[lines.index("USER depthlens") :] if "root" in line]


@pytest.mark.slow
def test_a_wheel_carries_data_and_notebooks(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("depthlens-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"depthlens/cli.py", "depthlens/runner/templates/index.html.j2"} <= names
    assert not [n for n in names if n.startswith(("tests/", "data/", "notebooks/"))]
    for folder, inside in (("data", "_data"), ("notebooks", "_notebooks")):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        kept = [path for path in files if not {"__pycache__", ".ipynb_checkpoints"} & {*path.parts}]
        assert {f"depthlens/{inside}/{path.relative_to(ROOT / folder).as_posix()}" for path in kept} <= names


def test_badges_and_the_cell_of_colab_follow_from_the_repositorys_address():
    spec = importlib.util.spec_from_file_location("badges", ROOT / "docs" / "badges.py")
    badges = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(badges)
    assert badges.address(f'[project]\nname = "a"\n[project.urls]\nRepository = "{ADDRESS}"') == ADDRESS
    assert badges.address('[project]\nname = "a"') is None and badges.badges(None, "00_tour") == ""
    line = badges.badges(f"{ADDRESS}.git", "00_tour")
    assert "(https://colab.research.google.com/github/someone/some-lens/blob/main/notebooks/00_tour.ipynb)" in line
    assert "(https://mybinder.org/v2/gh/someone/some-lens/main?labpath=notebooks/00_tour.ipynb)" in line
    with pytest.raises(ValueError, match=r"'https://example.org/a/b': Colab needs an address such as https://github"):
        badges.badges("https://example.org/a/b", "00_tour")
    cells = [new_markdown_cell("# A question?", id="title"), new_code_cell("print('found')", id="body")]
    own, readme = new_notebook(cells=cells), "# depthlens\n\nWhat it does.\n\nMore.\n"
    text, changed = badges.in_readme(readme, ADDRESS), badges.in_notebook(own, ADDRESS)
    assert line in text and badges.in_readme(text, ADDRESS) == text and badges.in_readme(text, None) == readme
    assert badges.in_notebook(changed, ADDRESS) == changed and badges.in_notebook(changed, None) == own
    assert [cell.cell_type for cell in changed.cells] == ["markdown", "code", "code"]
    assert "find_spec" in changed.cells[1].source and f"git+{ADDRESS}" in changed.cells[1].source
    assert [cell.id for cell in badges.on_page(own, ADDRESS, "04_heads").cells] == ["title", "badges", "body"]
    readme = (ROOT / "README.md").read_text()
    assert badges.in_readme(readme, badges.address()) == readme, "run make badges"
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        assert badges.in_notebook(notebook, badges.address()) == notebook, "run make badges"
