"""The project files agree with each other, and a built wheel carries what an installed depthlens needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from depthlens import paths

ROOT = paths.data_dir().parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    Requirement(text)
    for text in [
        *PROJECT["dependencies"],
        *(r for extra in PROJECT["optional-dependencies"].values() for r in extra),
    ]
]


def test_environment_yml_equals_pyproject():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert conda["name"] == PROJECT["name"]
    python, pip, through_pip = conda["dependencies"]
    assert Requirement(python).specifier == SpecifierSet(PROJECT["requires-python"]) and pip == "pip"
    (package,) = through_pip["pip"]
    extra = re.fullmatch(r"-e \.\[(\w+)\]", package)[1]
    assert extra in PROJECT["optional-dependencies"]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_requirements_are_ranges(requirement):
    operators = {spec.operator for spec in requirement.specifier}
    assert ">=" in operators and not operators & {"==", "===", "~="}
    assert not any("+" in spec.version for spec in requirement.specifier)


# what `make test` installs: the package and its extra `dev`
INSTALLED = [Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]]


@pytest.mark.parametrize("requirement", INSTALLED, ids=lambda r: r.name)
def test_installed_versions_lie_in_the_ranges(requirement):
    assert requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)


def test_versions_agree():
    import depthlens

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == depthlens.__version__ == citation["version"]
    assert "arXiv:2510.02091" in str(citation["references"])
    assert PROJECT["license"] == citation["license"] == "MIT" and "MIT License" in (ROOT / "LICENSE").read_text()


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text() and "make test" in script.read_text()


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["make", "-C", str(ROOT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("target", ["demo", "test", "test-all", "check", "lab", "wheel", "badges", "lint", "clean"])
def test_make_targets_exist(target):
    done = make("--dry-run", target)
    assert done.returncode == 0, done.stderr


def test_make_lint_checks_types():
    assert "-m ruff check ." in make("--dry-run", "lint").stdout and "-m mypy" in make("--dry-run", "lint").stdout


def test_make_demo_is_the_documented_command():
    command = "depthlens run 00_tour 01_protocols 09_claims --profile demo -p draws 0 --out runs/demo"
    assert command in make("--dry-run", "demo").stdout


def test_make_lab_opens_the_tour_in_the_checkout():
    assert "jupyterlab --ServerApp.root_dir=. notebooks/00_tour.ipynb" in make("--dry-run", "lab").stdout
    assert (ROOT / "notebooks" / "00_tour.ipynb").is_file()


def test_make_wheel_runs_a_notebook_outside_the_checkout():
    commands = make("--dry-run", "wheel").stdout
    assert "mktemp -d" in commands and "env/bin/depthlens run 00_tour --profile smoke" in commands
    assert "make wheel" in (ROOT / ".github" / "workflows" / "wheel.yml").read_text()


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_a_container_has_what_the_wheel_is_built_from_and_starts_jupyterlab_without_root(name):
    ignored, *kept = (line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#"))
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], *wheel["only-include"]}
    assert ignored == "*" and {line[1:] for line in kept if line.startswith("!")} == needed
    lines = (ROOT / name).read_text().splitlines()
    assert lines[-1].startswith('CMD ["jupyter", "lab"') and "EXPOSE 8888" in lines
    assert "USER depthlens" in lines and not [line for line in lines[lines.index("USER depthlens") :] if "root" in line]
    python = {line.split()[1] for line in lines if line.startswith("FROM")}
    assert python == {"python:3.12-slim"} and SpecifierSet(PROJECT["requires-python"]).contains("3.12")


def test_binder_installs_this_checkout_on_a_fitting_python():
    assert (ROOT / ".binder" / "requirements.txt").read_text().splitlines()[-1] == "-e ."
    version = (ROOT / ".binder" / "runtime.txt").read_text().strip().removeprefix("python-")
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)


def test_make_without_a_fitting_python_says_so_in_one_line(tmp_path):
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "test", "echo", "touch"):
        (tmp_path / "bin" / tool).symlink_to(f"/bin/{tool}" if tool == "sh" else f"/usr/bin/{tool}")
    make_path = subprocess.run(["which", "make"], capture_output=True, text=True, check=True).stdout.strip()
    done = subprocess.run(
        [make_path, "-C", str(tmp_path), "-f", str(ROOT / "Makefile"), ".venv/.depthlens-installed"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(tmp_path / "bin")},
    )
    assert done.returncode != 0  # no rule for pyproject.toml there
    (tmp_path / "pyproject.toml").touch()
    done = subprocess.run(
        [make_path, "-C", str(tmp_path), "-f", str(ROOT / "Makefile"), ".venv/.depthlens-installed"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(tmp_path / "bin")},
    )
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if "Error" not in line]
    assert told == [
        "make: depthlens needs Python 3.11, 3.12 or 3.13; none was found; "
        "install one or name it: make PYTHON=/path/to/python"
    ]


@pytest.mark.slow
def test_wheel_carries_data_and_notebooks(tmp_path):
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
    names = zipfile.ZipFile(wheel).namelist()
    assert {"depthlens/cli.py", "depthlens/runner/templates/index.html.j2"} <= set(names)
    assert not [n for n in names if n.startswith(("tests/", "data/", "notebooks/"))]
    for folder, inside in (("data", "_data"), ("notebooks", "_notebooks")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and ".ipynb_checkpoints" not in path.parts:
                assert f"depthlens/{inside}/{path.relative_to(ROOT / folder).as_posix()}" in names
