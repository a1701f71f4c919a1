"""What a notebook was run with, and how it is run again: facts that stand on its page and on the index."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nbformat import NotebookNode

from depthlens.errors import UserError
from depthlens.runner.notebook_files import run_state
from depthlens.runner.parameters import MODELS, as_yaml, declared, named


@dataclass(frozen=True)
class RunFacts:
    """Facts of one executed notebook.

    Attributes:
        models: Names of the models, the main one first.
        setting: Documents and examples, e.g. ``60 documents a task, 2-shot``.
        command: The command line that runs it again; "" where it was not run by ``depthlens run``.
        commit: Of depthlens, with ``-dirty`` where files differed from it; "" where it is not known.
        platform: System and processor that it ran on; "" where it is not known.
    """

    models: tuple[str, ...]
    setting: str
    command: str
    commit: str
    platform: str


def run_facts(nb: NotebookNode, name: str) -> RunFacts:
    """The facts of a notebook, whoever ran it."""
    state = run_state(nb)
    values = _values(nb, name) | state.get("parameters", {})
    commit, *changed = (state.get("git_commit") or "").partition("-")
    models = named(values, MODELS)
    return RunFacts(
        models=tuple(dict.fromkeys(models)),
        setting=_setting(values),
        command=_command(name, state) if "given" in state else "",
        commit=commit[:9] + "".join(changed),
        platform=state.get("platform", ""),
    )


def _values(nb: NotebookNode, name: str) -> dict[str, object]:
    try:
        return declared(nb, name)
    except UserError:  # a person's notebook, whose cell is not Python
        return {}


def _setting(values: Mapping[str, object]) -> str:
    limit, shots = values.get("limit"), values.get("num_fewshot")
    parts = []
    if "limit" in values:
        others = [f"{name} {n}" for name, n in values.items() if name.endswith("_limit") and n not in (limit, None)]
        rest = f" ({', '.join(others)})" if others else ""
        parts.append(("all documents" if limit is None else f"{limit} documents a task") + rest)
    if isinstance(shots, int):
        parts.append(f"{shots}-shot")
    return ", ".join(parts)


def _command(name: str, state: Mapping[str, Any]) -> str:
    words = ["depthlens", "run", name]
    if state.get("profile"):
        words += ["--profile", state["profile"]]
    words += ["--out", f"runs/{name}"]
    for key, value in state["given"].items():
        words += ["-p", key, value if isinstance(value, str) else as_yaml(value)]
    return shlex.join(words)
