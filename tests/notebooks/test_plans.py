"""Commands of docs/reproduction.md are planned: their notebooks run dry, on documents in the schemas of the hub.

The notebooks are those that `depthlens run --plan` executes, with the profiles' own parameters. Models are tiny random
ones, at most three documents of a task are asked where the profile does not ask all, and cells run in this process.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
from pathlib import Path
from typing import Any

import datasets
import hub
import matplotlib.pyplot as plt
import pytest
import tiny

from depthlens import cli, paths
from depthlens.runner import execute
from depthlens.runner.notebook_files import read_notebook
from depthlens.runner.parameters import Profiles, declared
from depthlens.store import dry_run

pytestmark = pytest.mark.slow

# one of each kind: those of other profiles differ in their models alone, but for 03 of R1, which has a chat template
COMMANDS = [
    ("paper", "01_protocols"),
    ("paper", "02_knowledge_and_retrieval"),
    ("paper", "03_reasoning"),
    ("paper", "04_heads"),
    ("paper", "07_distillation"),
    ("paper", "08_geometry"),
    ("paper", "09_claims"),
    ("paper-r1-llama", "03_reasoning"),
]
PAGE = Path(__file__).parents[2] / "docs/reproduction.md"
SWEEPS = re.findall(r"`depthlens (sweep [^`]+)`", PAGE.read_text(encoding="utf-8"))
MODELS = ("model", "distilled", "base", "control")
LIMIT = 3
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def notebooks() -> dict[str, Any]:
    return {name: read_notebook(paths.notebooks_dir() / f"{name}.ipynb") for name in execute.notebook_names()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder for each; the working directory has the data sets, and nothing may be downloaded."""
    root = tmp_path_factory.mktemp("plans")
    made = {}
    for name in MODELS:
        made[name] = str(tiny.save(root / name, "llama-gqa", num_hidden_layers=9, max_position_embeddings=16384))
        (root / name / "chat_template.jinja").write_text(CHAT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("MPLBACKEND", "Agg")
        patch.chdir(hub.write(root / "hub"))
        # the 57 subjects of MMLU are asked for ten times, and their documents stay the same
        patch.setattr(datasets, "load_dataset", functools.cache(datasets.load_dataset))
        yield made


def values_of(profile: str, name: str, models: dict[str, str]) -> dict[str, Any]:
    defaults = {n: declared(nb, n) for n, nb in notebooks().items()}
    values = defaults[name] | Profiles(paths.notebooks_dir() / "profiles.yml", defaults).values(profile)[name]
    for parameter in MODELS:
        if given := values.get(parameter):
            values[parameter] = [models[parameter]] if isinstance(given, list) else models[parameter]
    for parameter in ("limit", "text_limit", "reasoning_limit", "head_limit"):
        if values.get(parameter) is not None:
            values[parameter] = min(LIMIT, values[parameter])
    # the whole group takes minutes even dry under three protocols and several views; 03 plans it under one
    for role in {"01_protocols": ["tasks"], "09_claims": ["letters", "generation", "continuation"]}.get(name, []):
        values[role] = [task.replace("mmlu", "mmlu_miscellaneous") for task in values[role]]
    if name == "04_heads":  # gradients of one batch are measured, and 02 plans this task at its length
        values["tasks"] = [task.replace("uuid_75", "uuid_8") for task in values["tasks"]]
    return values


@pytest.mark.parametrize(("profile", "name"), COMMANDS)
def test_a_command_is_planned(models, profile, name):
    values = values_of(profile, name, models)
    names: dict[str, Any] = {"display": lambda *shown, **options: None}
    with dry_run.counting(measured=False) as run, contextlib.redirect_stdout(io.StringIO()):
        for i, cell in enumerate(notebooks()[name].cells):
            if cell.cell_type == "code":
                exec(compile(cell.source, f"{name}, cell {i + 1}", "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= values
    plt.close("all")
    swept = [line for line in run.lines if "flops" in line]
    assert swept and all(line["rows"] + line["known"] > 0 for line in swept)
    assert sum(line["flops"] for line in swept) > 0


@pytest.mark.parametrize("command", sorted(set(SWEEPS)))
def test_a_sweep_is_planned(models, capsys, command):
    arguments = shlex.split(command)
    arguments[1] = models["model"]
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--plan", "--limit", str(LIMIT), "--store", "none"])
    assert end.value.code == 0 and "floating point operations" in capsys.readouterr().out
