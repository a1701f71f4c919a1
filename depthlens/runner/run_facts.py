"""What a notebook was run with, and how it is run again: facts that stand on its page and on the index."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from nbformat import NotebookNode

from depthlens.errors import UserError
from depthlens.runner.notebook_files import run_state
from depthlens.runner.parameters import MODELS, declared


@dataclass(frozen=True)
class RunFacts:
    """Facts of one executed notebook.

    Attributes:
        models: Names of the models, the main one first.
        setting: Documents and examples, e.g. ``60 documents a task, 2-shot``.
        command: The command line that runs it again; "" where it was not run by ``depthlens run``.
        versions: Of depthlens, the commit and the machine's Python.
    """

    models: tuple[str, ...]
    setting: str
    command: str
    versions: str


def run_facts(nb: NotebookNode, name: str) -> RunFacts:
    """The facts of a notebook, whoever ran it."""
    state = run_state(nb)
    values = _values(nb, name) | state.get("parameters", {})
    models = [model for key in MODELS for model in _names(values.get(key))]
    commit = f"commit {state['git_commit'][:9]}" if state.get("git_commit") else ""
    version = f"depthlens {state['depthlens']}" if state.get("depthlens") else ""
    return RunFacts(
        models=tuple(dict.fromkeys(models)),
        setting=_setting(values),
        command=_command(name, state) if "given" in state else "",
        versions=", ".join(filter(None, [version, commit])),
    )


def _values(nb: NotebookNode, name: str) -> dict[str, object]:
    try:
        return declared(nb, name)
    except UserError:  # a person's notebook, whose cell is not Python
        return {}


def _names(value: object) -> list[str]:
    return (
        [value]
        if isinstance(value, str)
        else [v for v in value if isinstance(v, str)]
        if isinstance(value, list)
        else []
    )


def _setting(values: Mapping[str, object]) -> str:
    limit, shots = values.get("limit"), values.get("num_fewshot")
    parts = []
    if "limit" in values:
        parts.append("all documents" if limit is None else f"{limit} documents a task")
    if isinstance(shots, int):
        parts.append(f"{shots}-shot")
    return ", ".join(parts)


def _command(name: str, state: Mapping[str, Any]) -> str:
    words = ["depthlens", "run", name]
    if state.get("profile"):
        words += ["--profile", state["profile"]]
    for key, value in state["given"].items():
        text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10_000)
        words += ["-p", key, text.removesuffix("\n...\n").strip()]
    return shlex.join(words)
