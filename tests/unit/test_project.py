"""The project files agree with each other, and a built wheel carries what an installed depthlens needs."""

import re
import runpy
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import depthlens
from depthlens import paths

ROOT = paths.data_dir().parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHON = SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_can_be_imported(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)
    runpy.run_path(str(path))


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == depthlens.__version__ == citation["version"]
    assert "arXiv:2510.02091" in str(citation["references"])
    assert PROJECT["license"] == citation["license"] == "MIT" and "MIT License" in (ROOT / "LICENSE").read_text()
    python, pip, through_pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert Requirement(python).specifier == PYTHON and pip == "pip"
    assert re.fullmatch(r"-e \.\[(\w+)\]", *through_pip["pip"])[1] in PROJECT["optional-dependencies"]
    binder = (ROOT / ".binder" / "runtime.txt").read_text().strip().removeprefix("python-")
    assert PYTHON.contains(binder) and (ROOT / ".binder" / "requirements.txt").read_text().splitlines()[-1] == "-e ."


def test_the_readme_counts_the_classes_that_are_taken():
    listed = (ROOT / "docs/models.md").read_text()
    kinds = re.findall(r"^\| \w+ \| (walked|whole passes|refused|not tried)", listed, re.MULTILINE)
    walked, whole = (kinds.count(kind) for kind in ("walked", "whole passes"))
    said = f"Of the {len(kinds)} classes of causal language models in transformers 5.24, {walked} share the walk here"
    said += f" and {whole} take whole passes"
    assert said in " ".join((ROOT / "README.md").read_text().split())


@pytest.mark.slow
def test_a_wheel_carries_data_and_notebooks(tmp_path):
    command = [sys.executable, *"-m pip wheel -q --no-deps --no-build-isolation -w".split(), str(tmp_path), "."]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("depthlens-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"depthlens/cli.py", "depthlens/runner/templates/index.html.j2"} <= names
    assert not [n for n in names if n.startswith(("tests/", "data/", "notebooks/"))]
    for folder, inside in (("data", "_data"), ("notebooks", "_notebooks")):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        kept = [path for path in files if not {"__pycache__", ".ipynb_checkpoints"} & {*path.parts}]
        assert {f"depthlens/{inside}/{path.relative_to(ROOT / folder).as_posix()}" for path in kept} <= names
