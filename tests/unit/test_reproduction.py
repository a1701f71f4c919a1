"""The page on the study's experiments: every command is one that depthlens takes, and every task is lm-eval's own.

The tasks of the `paper` profiles run on handwritten documents (`hub.py`) through the real YAML files.
"""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from depthlens import cli, paths
from depthlens.models import names
from depthlens.runner import execute, parameters
from depthlens.runner.notebook_files import read_notebook
from depthlens.runner.parameters import declared, read_profile
from depthlens.tasks import harness

pytestmark = pytest.mark.slow

ROOT = paths.data_dir().parent
PAGE = (ROOT / "docs/reproduction.md").read_text(encoding="utf-8")
HEADER = ["experiment", "notebook", "command", "settings", "differences", "one H100"]
BLOCKS = re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
PROFILES = ("paper", "paper-qwen3", "paper-r1-llama", "paper-r1-qwen")
NAMES = list(execute.suite())


def tables() -> dict[str, list[list[str]]]:
    """The rows of each model's table."""
    found = {}
    for section in PAGE.split("\n## ")[1:]:
        rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in section.splitlines() if line[:1] == "|"]
        if rows:
            assert rows[0] == HEADER
            found[section.splitlines()[0]] = rows[2:]
    return found


ROWS = [(model, row) for model, rows in tables().items() for row in rows]
COMMANDS += sorted({command for _, row in ROWS if (command := row[2].strip("`")).startswith("depthlens sweep")})


def values(profile: str) -> dict[str, dict[str, Any]]:
    defaults = {name: declared(read_notebook(paths.notebooks_dir() / f"{name}.ipynb"), name) for name in NAMES}
    given = read_profile(paths.notebooks_dir() / "profiles.yml", profile, defaults)[0]
    return {name: defaults[name] | given[name] for name in NAMES}


def parsed(command: str) -> tuple[str, dict[str, Any]]:
    """A command and its arguments, as the command line reads them."""
    program, name, *arguments = shlex.split(command)
    assert program == "depthlens"
    group = typer.main.get_command(cli.app)
    return name, group.commands[name].make_context(name, arguments).params


def test_each_experiment_has_a_row_for_each_model_and_no_cell_is_empty():
    costs = runpy.run_path(str(ROOT / "benchmarks/reproduction_costs.py"))
    assert list(tables()) == list(costs["MODELS"])
    for model, rows in tables().items():
        assert all(len(row) == len(HEADER) and all(row) for row in rows)
        told = {row[0]: row[-1] for row in rows}
        assert told == {name: costs["shown"](hours) for name, hours in costs["costs"](model).items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_taken(command, monkeypatch, tmp_path):
    """Names, profile, parameters and tasks are checked as before a run; only the hub is not asked for the models."""
    monkeypatch.setattr(names, "configuration", lambda source: None)
    name, arguments = parsed(command)
    if name == "sweep":
        assert names.find(arguments["model"])
        return
    given = dict(arguments["parameter"] or [])
    run = execute.prepare(arguments["names"], out=tmp_path, profile=arguments["profile"], parameters=given)
    chosen = list(dict.fromkeys(Path(one.name).name for one in run.notebooks))
    assert arguments["names"] == ["all"] or chosen == arguments["names"]


def asked() -> dict[tuple[str, int | None], set[str]]:
    """Profiles' tasks with their numbers of examples, and who asks for them."""
    found: dict[tuple[str, int | None], set[str]] = {}
    for profile in PROFILES:
        for notebook, given in values(profile).items():
            for task in parameters.named(given, parameters.TASKS):
                found.setdefault((task, given["num_fewshot"]), set()).add(f"{profile} {notebook}")
    for command in COMMANDS:
        name, arguments = parsed(command)
        if name == "sweep":
            for task in arguments["tasks"]:
                found.setdefault((task, arguments["num_fewshot"]), set()).add(command)
    return found


def often(task: str, num_fewshot: int | None) -> Any:
    """The 57 subjects of MMLU take ten seconds each time that their documents are read."""
    marks = [pytest.mark.nightly] if "mmlu" in task and (task, num_fewshot) != ("mmlu", None) else []
    return pytest.param(task, num_fewshot, marks=marks)


@pytest.mark.parametrize(("task", "num_fewshot"), [often(*pair) for pair in sorted(asked(), key=str)])
def test_every_task_of_the_profiles_makes_prompts_of_handwritten_documents(hubs_data, lens, task, num_fewshot):
    tasks = harness.load_tasks(task, num_fewshot=num_fewshot, seed=1234, limit=1)
    for prepared in harness.prepare(lens, tasks, limit=1, seed=1234):
        assert prepared.requests and all(request.context for request in prepared.requests)
